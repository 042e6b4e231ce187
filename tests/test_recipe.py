import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from monai_diverse import NoveltyScreen, Recipe
from monai_diverse.components import Component
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.recipe import DataChoice
from monai_diverse.training import TrainConfig, prepare


def test_yaml_round_trip(recipe_file: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(recipe_file)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.as_json()))
    again = Recipe.load(tmp_path / "again.yaml")
    assert again == recipe
    assert again.fingerprint({}) == recipe.fingerprint({})


def test_fingerprint_holds_all_but_bounds_and_places(recipe_file: Path) -> None:
    recipe = Recipe.load(recipe_file)
    parts = {"source": "a", "screen": "b"}
    same = recipe.fingerprint(parts)
    moved = replace(recipe, reference=replace(recipe.reference, path="elsewhere.npz"))
    assert replace(recipe, size=7, max_evaluations=9).fingerprint(parts) == moved.fingerprint(parts) == same
    others = [
        replace(recipe, **{key: value})
        for key, value in (("seed", 4), ("batch_size", 16), ("labels", "balanced"), ("steps", 4), ("dtype", "float32"))
    ]
    prints = {other.fingerprint(parts) for other in others} | {recipe.fingerprint(parts | {"screen": "c"}), same}
    assert len(prints) == 7


def _edited(file: Path, **changes: object) -> Path:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedd": 1}, "unknown key 'sedd'"),
        ({"source": ...}, "source"),
        ({"source": 3}, "source: expected a mapping"),
        ({"reference": {"paht": "x"}}, "unknown key 'paht'"),
        ({"seed": -1}, "seed: expected"),
        ({"size": 0}, "size: expected a whole number from 1, got 0"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"dtype": "int8"}, "dtype"),
        ({"labels": "even"}, "labels"),
        ({"labels": ["a", "b"]}, "labels"),
        ({"labels": [float("nan"), 1]}, "labels"),
        ({"source": None}, "source: expected a Component"),
        ({"calibration": None}, "calibration: expected a DataChoice"),
        ({"reference": None, "generator_train": None}, "reference: expected images that the user has, or generator_train"),
        ({"reference": {"path": 3}}, "path: expected text"),
        ({"calibration": {"path": "builtin", "part": "calibration", "split": "val"}}, "expected split train"),
        ({"calibration": {"path": "builtin", "twin_correlation": 0}}, "twin_correlation: expected between 0 and 1, or null, got 0"),
        ({"calibration": {"path": "builtin", "mirrored": "false"}}, "mirrored: expected true or false, got 'false'"),
        ({"source": {"target": 5}}, "target: expected the dotted path"),
        ({"source": {"target": "monai_diverse.BuiltinSource", "arguments": [1]}}, "arguments: expected a mapping"),
        ({"max_evaluations": None}, "max_evaluations: expected a whole number"),
        ({"batch_size": None}, "batch_size: expected a whole number"),
    ],
)
def test_bad_recipes_are_explained(recipe_file: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(_edited(recipe_file, **changes))


@pytest.mark.parametrize("content", ["- a list", "{unclosed", "\x00"])
def test_no_yaml(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(RecipeError, match="expected"):
        Recipe.load(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "absent.yaml")


def test_only_allowed_packages_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    component = Component(target="stranger.Thing")
    with pytest.raises(RecipeError, match="--allow"):
        component.build(Path())
    assert not (tmp_path / "ran").exists()
    assert type(component.build(Path(), allow=("stranger",))).__name__ == "Thing"


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (Component(target="monai_diverse.Nothing"), "importable class"),
        (Component(target="monai_diverse.nowhere.Thing"), "importable class"),
        (Component(target="os.system"), "--allow"),
        (Component(target="torch.load", arguments={"f": "x.pt", "weights_only": False}), "--allow"),
        (Component(target="monai_diverse.recipe.Path"), "--allow"),
        (Component(target="monai_diverse.recipe.importlib.import_module"), "importable class"),
        (Component(target="monai_diverse.storage.write_atomic"), "expected a class, got function"),
        (Component(target="monai_diverse.NoveltyScreen", arguments={"colour": 1}), "arguments do not fit"),
    ],
)
def test_bad_components(component: Component, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        component.build(Path())


def test_components_nest(tmp_path: Path) -> None:
    arguments = {"extractor": {"target": "monai_diverse.features.PixelFeatures"}, "components": 3}
    screen = Component(target="monai_diverse.NoveltyScreen", arguments=arguments).build(tmp_path)
    assert isinstance(screen, NoveltyScreen)
    assert type(screen.extractor).__name__ == "PixelFeatures"


def test_data_parts(tiny_model: Path, blob_file: Path) -> None:
    split = json.loads((tiny_model / "split.json").read_text())
    chosen = DataChoice(path=blob_file.name, split_file=str(tiny_model / "split.json"), part="calibration")
    data = chosen.load(blob_file.parent)
    stored = np.load(blob_file)["train_images"][split["calibration"]]
    np.testing.assert_allclose(data.images[:, 0] * 255, stored, atol=1e-4)
    both = replace(chosen, mirrored=True).load(blob_file.parent)
    np.testing.assert_array_equal(both.images[len(data) :], data.images[..., ::-1])
    np.testing.assert_array_equal(both.group_ids[: len(data)], both.group_ids[len(data) :])


def test_split_of_other_data_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, images=np.random.default_rng(0).random((150, 8, 8)), labels=np.arange(150) % 2)
    with pytest.raises(DataError, match="lists images of other data than"):
        DataChoice(path=str(other), split_file=str(tiny_model / "split.json"), part="calibration").load(tmp_path)


def test_a_folder_that_changed_since_its_split_is_refused(tmp_path: Path) -> None:
    """Indices are places in a sorted listing: one more picture moves all after it."""
    rng = np.random.default_rng(0)
    for name in ("benign", "malignant"):
        (tmp_path / "real" / name).mkdir(parents=True)
        for number in range(1, 21):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "real" / name / f"{number:02}.png")
    (tmp_path / "split.json").write_text(json.dumps(prepare(tmp_path / "real", TrainConfig()).split))
    chosen = DataChoice(path="real", split_file="split.json", part="calibration")
    assert len(chosen.load(tmp_path)) > 0
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "real" / "benign" / "00.png")
    with pytest.raises(DataError, match=r"lists images of other data than .*real holds now"):
        chosen.load(tmp_path)


def test_groups_can_be_left_out(blob_file: Path, tmp_path: Path) -> None:
    grouped = DataChoice(path=str(blob_file), twin_correlation=0.5).load(tmp_path)
    assert len(np.unique(grouped.group_ids)) < len(grouped)
    np.testing.assert_array_equal(DataChoice(path=str(blob_file), twin_correlation=None).load(tmp_path).groups, np.arange(len(grouped)))


def test_paths_start_at_the_recipe(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name in the working directory is another model."""
    component = Component(target="monai_diverse.DiffusersSource", arguments={"folder": tiny_model.name})
    assert component.build(tiny_model.parent).name == "tiny"
    monkeypatch.chdir(tiny_model.parent)
    with pytest.raises(DataError, match="is missing"):
        component.build(tmp_path)


def test_bad_data_parts(tmp_path: Path, blob_file: Path) -> None:
    with pytest.raises(RecipeError, match="needs split_file"):
        DataChoice(path=str(blob_file), part="calibration").load(tmp_path)
    (tmp_path / "split.json").write_text(json.dumps({"far": [0, 999], "empty": []}))
    for part, message in (("far", r"0\.\.149"), ("empty", r"0\.\.149"), ("none", "list of indices 'none'")):
        with pytest.raises(DataError, match=message):
            DataChoice(path=str(blob_file), split_file="split.json", part=part).load(tmp_path)


@pytest.mark.parametrize("listed", ["[1" + "0" * 30 + "]", "[Infinity]", "[[0, 1], 2]", "null", '["a"]'])
def test_what_cannot_be_an_index_is_said_in_one_line(tmp_path: Path, blob_file: Path, listed: str) -> None:
    (tmp_path / "split.json").write_text(f'{{"odd": {listed}}}')
    with pytest.raises(DataError, match=r"split\.json: odd: expected a list of indices, got what cannot be one") as caught:
        DataChoice(path=str(blob_file), split_file="split.json", part="odd").load(tmp_path)
    assert "\n" not in str(caught.value)
