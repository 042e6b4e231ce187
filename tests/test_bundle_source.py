import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from bundles import SCALE, WRITERS, brats, maisi, nv_generate
from monai.bundle import ConfigParser
from safetensors.torch import save_file
from torch import Tensor, nn

from monai_diverse.components import Component
from monai_diverse.errors import DataError, MissingExtraError, RecipeError
from monai_diverse.sampling import ClassifierFree
from monai_diverse.sampling.loop import initial_noise
from monai_diverse.sources.bundle import BundleSource
from monai_diverse.sources.bundle_recipes import RECIPES, BundleRecipe, NetworkInput
from monai_diverse.sources.bundle_weights import Checkpoint
from monai_diverse.testing import SourceContract

FLOW = "FlowMatchEulerDiscreteScheduler"
EMBEDDINGS = {"effusion": torch.linspace(-1, 1, 80).reshape(5, 16), "clear": torch.ones(5, 16), "null": torch.zeros(5, 16)}
COVARIATES = torch.tensor([[0.0, 0.1, 0.2, 0.4]])
SPACING = torch.tensor([[125.0, 100.0, 100.0]])
REGION = {"top_region_index_tensor": torch.tensor([[0.0, 100, 0, 0]]), "bottom_region_index_tensor": torch.tensor([[0.0, 0, 100, 0]])}

TOLD: dict[str, dict[str, Tensor]] = {
    "brain_image_synthesis_latent_diffusion_model": {"context": COVARIATES[None], "concat": COVARIATES},
    "cxr_image_synthesis_latent_diffusion_model": {"context": EMBEDDINGS["effusion"][None]},
    "maisi_ct_generative": {"class_labels": torch.tensor([1]), "spacing_tensor": torch.tensor([[150.0, 150.0, 200.0]])},
    "nv_generate_ct_rflow": {"class_labels": torch.tensor([1]), "spacing_tensor": SPACING},
    "nv_generate_ct_ddpm": {"spacing_tensor": SPACING, **REGION},
    "nv_generate_mr": {"class_labels": torch.tensor([9]), "spacing_tensor": SPACING},
    "nv_generate_mr_brain": {"class_labels": torch.tensor([31]), "spacing_tensor": SPACING},
}
"""What the bundles' own samplers tell their networks; nothing where they are not listed."""

GUIDED = {
    "cxr_image_synthesis_latent_diffusion_model": (7.0, {"context": EMBEDDINGS["null"][None]}),
    "nv_generate_mr": (15.0, {"class_labels": torch.tensor([0])}),
    "nv_generate_mr_brain": (10.0, {"class_labels": torch.tensor([0])}),
}
SCALES = {"cxr_image_synthesis_latent_diffusion_model": 0.3} | dict.fromkeys([name for name in WRITERS if "maisi" in name or "nv_" in name], SCALE)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Every bundle once, by name; tests that change one copy it."""
    folder, done = tmp_path_factory.mktemp("bundles"), dict[str, Path]()
    save_file(EMBEDDINGS, folder / "embeddings.safetensors")

    def bundle(name: str) -> Path:
        if name not in done:
            done[name] = WRITERS[name](folder / f"my-{name.replace('_', '-')}")
        return done[name]

    return bundle


def rewritten(folder: Path, **changes: Any) -> Path:
    """Changes keys of the configuration; `a__b` is b inside a, None drops a key."""
    file = next(file for file in sorted((folder / "configs").iterdir()) if file.stem.startswith(("inference", "config_network")))
    content = json.loads(file.read_text())
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = content
        for part in outer:
            place = place[part]
        place[last] = value
        if value is None:
            del place[last]
    file.write_text(json.dumps(content))
    return folder


def by_monai(folder: Path, recipe: BundleRecipe) -> tuple[nn.Module, nn.Module | None, Any]:
    """Network, autoencoder and scheduler as MONAI's parser and the bundle's own expressions make them."""
    parser = ConfigParser(ConfigParser.load_config_files([str(folder / file) for file in recipe.files]))
    parser["bundle_root"], parser["device"] = str(folder), "cpu"
    for key in filter(None, (recipe.network, recipe.autoencoder)):
        parser[key] |= {name: False for name in ("use_flash_attention", "norm_float16") if name in parser[key]}
    loads = [key for key in ("load_diffusion", "load_autoencoder", "load_state") if key in parser]
    for key in loads:
        parser.get_parsed_content(key)
    unet = parser.get_parsed_content(recipe.network)
    autoencoder = None if recipe.autoencoder is None else parser.get_parsed_content(recipe.autoencoder)
    if not loads:
        unet.load_state_dict(torch.load(folder / "models" / parser["model_filename"], weights_only=False)["unet_state_dict"])
        autoencoder.load_state_dict(torch.load(folder / parser["trained_autoencoder_path"])["unet_state_dict"])
    schedule = parser[recipe.scheduler]
    return unet.eval(), autoencoder, None if "rectified_flow" in schedule["_target_"] else parser.get_parsed_content(recipe.scheduler)


@torch.no_grad()
def one_step(name: str, x: Tensor, unet: nn.Module, scheduler: Any) -> Tensor:
    """The clean image that the network predicts from pure noise, by the formulae of the bundles' samplers."""

    def predicted(told: dict[str, Tensor]) -> Tensor:
        given = dict(told)
        concat = given.pop("concat", None)
        seen = x if concat is None else torch.cat([x, concat[..., None, None, None].expand(-1, -1, *x.shape[2:])], 1)
        return unet(seen, timesteps=torch.tensor([1000.0 if scheduler is None else 999]), **given)

    out = predicted(TOLD.get(name, {}))
    if name in GUIDED:
        scale, null = GUIDED[name]
        without = predicted(TOLD[name] | null)
        out = without + scale * (out - without)
    if scheduler is None:
        return x + out
    abar = scheduler.alphas_cumprod[999]
    if scheduler.prediction_type == "v_prediction":
        return abar.sqrt() * x - (1 - abar).sqrt() * out
    return (x - (1 - abar).sqrt() * out) / abar.sqrt()


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_bundle_draws_what_its_own_code_would(bundles: Callable[[str], Path], name: str) -> None:
    """Recognised, loaded and sampled in one step, against MONAI's parser, loaders and networks on the same noise."""
    folder = bundles(name)
    unet, autoencoder, scheduler = by_monai(folder, RECIPES[name])
    texts: Any = {"embeddings": folder.parent / "embeddings.safetensors", "conditions": {"effusion": {}}} if name.startswith("cxr") else {}
    source = BundleSource(folder, sampler=FLOW if scheduler is None else "DDIMScheduler", **texts)
    assert source.recipe == RECIPES[name]
    assert (source.name, source.intensity) == (name, RECIPES[name].intensity)
    x = initial_noise([7], source.model_shape)
    clean = one_step(name, x, unet, scheduler)
    expected = clean if autoencoder is None else autoencoder.decode_stage_2_outputs(clean / SCALES.get(name, 1.0))
    drawn = source.sample([0], [7], steps=1)
    assert drawn.shape == (1, *source.shape) == expected.shape
    assert float(drawn.std()) > 0.02, "a flat image would fit anything"
    torch.testing.assert_close(drawn, expected.clamp(0, 1), atol=1e-4, rtol=0)
    assert source.cost(1) == (2 if name in GUIDED else 1)


@pytest.fixture(scope="module")
def brain_source(bundles: Callable[[str], Path]) -> BundleSource:
    conditions = {"young": {"age": 0.1}, "old": {"age": 0.9, "gender": 1}}
    return BundleSource(bundles("brain_image_synthesis_latent_diffusion_model"), conditions=conditions, steps=2, batch_size=3)


class TestBrainBundle(SourceContract):
    @pytest.fixture
    def source(self, brain_source: BundleSource) -> BundleSource:
        return brain_source


@pytest.mark.parametrize(
    ("name", "conditions"),
    [
        ("brain_image_synthesis_latent_diffusion_model", [{}, {"gender": 1}, {"age": 1}, {"ventricular_vol": 1}, {"brain_vol": 1}]),
        ("maisi_ct_generative", [{}, {"modality": "ct_contrast"}, {"spacing": [1, 1, 5]}]),
        ("nv_generate_ct_ddpm", [{}, {"spacing": [5, 1, 1]}, {"top_region_index": [1, 0, 0, 0]}, {"bottom_region_index": [0, 0, 0, 1]}]),
    ],
)
def test_conditions_matter(bundles: Callable[[str], Path], name: str, conditions: list[dict[str, Any]]) -> None:
    source = BundleSource(bundles(name), conditions={str(condition): condition for condition in conditions}, steps=2)
    assert source.class_names == tuple(map(str, conditions))
    images = source.sample(range(len(conditions)), [1] * len(conditions)).flatten(1)
    assert (torch.pdist(images) > 1e-3).all()


def test_classes_keep_the_bundles_values_where_they_say_nothing(bundles: Callable[[str], Path], brain_source: BundleSource) -> None:
    plain = BundleSource(bundles("brain_image_synthesis_latent_diffusion_model"), steps=2)
    torch.testing.assert_close(plain.sample([0], [1]), brain_source.sample([0], [1]), atol=1e-4, rtol=0)
    assert plain.fingerprint != brain_source.fingerprint


def test_texts_are_classes(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    folder = bundles("cxr_image_synthesis_latent_diffusion_model")
    file = folder.parent / "embeddings.safetensors"
    source = BundleSource(folder, embeddings=file, steps=2)
    assert set(source.class_names) == {"effusion", "clear"}
    images = source.sample([0, 1], [3, 3])
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    save_file({name: EMBEDDINGS[name] for name in ("clear", "effusion")}, tmp_path / "few.safetensors")
    with pytest.raises(RecipeError, match="with a tensor 'null'"):
        BundleSource(folder, embeddings=tmp_path / "few.safetensors")
    unguided = BundleSource(folder, embeddings=tmp_path / "few.safetensors", conditions={"clear": {}}, guidance=ClassifierFree(), steps=2)
    assert (unguided.classes, unguided.cost(), source.cost()) == (1, 2, 4)
    with pytest.raises(RecipeError, match=r"pleural effusion': expected embeddings=FILE.safetensors .* or text_encoder=FOLDER"):
        BundleSource(folder, guidance=ClassifierFree())
    save_file({"a": torch.ones(2, 3, 4)}, tmp_path / "deep.safetensors")
    for bad, message in (("none.safetensors", "cannot be read"), ("deep.safetensors", r"of one shape \(tokens, dim\)")):
        with pytest.raises(DataError, match=message):
            BundleSource(folder, embeddings=tmp_path / bad)


def test_texts_are_embedded_by_a_local_clip_model(bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With stand-ins for the two classes of transformers, which is optional."""
    calls: list[str] = []

    class Tokenizer:
        model_max_length = 5

        def __call__(self, texts: list[str], *, padding: str, max_length: int, truncation: bool, return_tensors: str) -> Any:
            assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
            ids = torch.tensor([[len(text) % 7] * max_length for text in texts])
            return type("Tokens", (), {"input_ids": ids})

    class Encoder(nn.Module):
        def forward(self, ids: Tensor) -> tuple[Tensor]:
            return (ids[..., None].repeat(1, 1, 16) / 7.0,)

    def loader(made: Any) -> Any:
        def from_pretrained(folder: Path, *, local_files_only: bool) -> Any:
            assert local_files_only
            calls.append(folder.name)
            return made()

        return type("Loader", (), {"from_pretrained": staticmethod(from_pretrained)})

    folder = bundles("cxr_image_synthesis_latent_diffusion_model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="text_encoder needs transformers: pip install"):
        BundleSource(folder, text_encoder=tmp_path)
    fake = ModuleType("transformers")
    fake.CLIPTokenizer, fake.CLIPTextModel = loader(Tokenizer), loader(Encoder)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", fake)
    with pytest.raises(DataError, match="expected tokenizer/ and text_encoder/ of a CLIP text model"):
        BundleSource(folder, text_encoder=tmp_path)
    for part in ("tokenizer", "text_encoder"):
        (tmp_path / part).mkdir()
    source = BundleSource(folder, text_encoder=tmp_path, conditions={"a": {"prompt": "Cardiomegaly"}, "b": {"prompt": "No finding"}}, steps=2)
    assert calls == ["tokenizer", "text_encoder"]
    images = source.sample([0, 1], [3, 3])
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    rows = {"a": torch.full((5, 16), 5 / 7), "b": torch.full((5, 16), 3 / 7), "null": torch.zeros(5, 16)}
    save_file(rows, tmp_path / "same.safetensors")
    torch.testing.assert_close(BundleSource(folder, embeddings=tmp_path / "same.safetensors", steps=2).sample([0, 1], [3, 3]), images)


def test_first_versions_of_a_bundle_draw_the_same(tmp_path: Path, bundles: Callable[[str], Path]) -> None:
    """Those whose configuration names GenerativeModels' classes and arguments."""
    old = BundleSource(brats(tmp_path / "old", generative=True), steps=2)
    now = BundleSource(bundles("brats_mri_axial_slices_generative_diffusion"), steps=2)
    assert torch.equal(old.sample([0, 0], [1, 2]), now.sample([0, 0], [1, 2]))


def test_weights_in_other_files(tmp_path: Path) -> None:
    """An optimizer's wrapping, and a flat file with its scale."""
    models = maisi(tmp_path / "m") / "models"
    usual = Checkpoint.read(models / "diff_unet_ckpt_epoch19350.pt")
    assert float(usual.others["scale_factor"]) == pytest.approx(SCALE, abs=1e-3)
    assert usual.others["epoch"] == 3
    state = {f"module.{name}": value for name, value in usual.state.items()}
    torch.save({"state_dict": state, "scale_factor": SCALE, "optimizer": {}}, models / "wrapped.pt")
    save_file(usual.state | {"scale_factor": torch.tensor(SCALE)}, models / "flat.safetensors")
    for name in ("wrapped.pt", "flat.safetensors"):
        other = Checkpoint.read(models / name)
        assert other.state.keys() == usual.state.keys()
        assert all(torch.equal(value, usual.state[key]) for key, value in other.state.items())
        assert float(other.others["scale_factor"]) == pytest.approx(SCALE)


def test_safetensors_instead_of_pickles_and_scales_elsewhere(tmp_path: Path) -> None:
    folder = maisi(tmp_path / "m")
    file = folder / "models" / "diff_unet_ckpt_epoch19350.pt"
    images = BundleSource(folder, steps=2).sample([0], [1])
    save_file(Checkpoint.read(file).state, file.with_suffix(".safetensors"))
    file.unlink()
    with pytest.raises(DataError, match="expected scale_factor beside the weights, got nothing; give a recipe with the number"):
        BundleSource(folder)
    told = BundleSource(folder, replace(RECIPES["maisi_ct_generative"], scale_factor=SCALE), steps=2)
    torch.testing.assert_close(told.sample([0], [1]), images, atol=2e-3, rtol=0)  # the file's scale was rounded to float16
    rewritten(folder, scale_factor=SCALE / 2)
    assert not torch.allclose(BundleSource(folder, trust_code=True, steps=2).sample([0], [1]), images, atol=1e-2)


def test_large_latents_are_decoded_in_windows(tmp_path: Path) -> None:
    folder = maisi(tmp_path / "own")
    (folder / "configs" / "metadata.json").unlink()
    with pytest.raises(RecipeError, match="got another one; give recipe, one of these names or a BundleRecipe"):
        BundleSource(folder)
    windowed = replace(RECIPES["maisi_ct_generative"], name="own", window=(8, 8, 12), overlap=0.5)
    source = BundleSource(folder, windowed, sample_shape=(4, 8, 8, 16), licence="CC0", name="mine")
    assert (source.shape, source.licence, source.name) == ((1, 32, 32, 64), "CC0", "mine")
    latents = initial_noise([3], source.model_shape)
    parts, whole = source.decode(latents), BundleSource(folder, "maisi_ct_generative", sample_shape=(4, 8, 8, 16)).decode(latents)
    assert parts.shape == whole.shape == (1, 1, 32, 32, 64)
    assert 0 < float((parts - whole).abs().mean()) < 0.2 * float(whole.std())


def test_the_first_maisi_is_told_a_region(tmp_path: Path) -> None:
    """Versions of the bundle before 1.0 are diffusion models; their configuration says no region, NVIDIA's says chest to abdomen."""
    told = {"plain": {}, "said": {"top_region_index": [0, 1, 0, 0], "bottom_region_index": [0, 0, 1, 0]}, "other": {"top_region_index": [1, 0, 0, 0]}}
    images = BundleSource(maisi(tmp_path / "m", flow=False), conditions=told, steps=2).sample([0, 1, 2], [1, 1, 1])
    torch.testing.assert_close(images[0], images[1], atol=1e-4, rtol=0)
    assert not torch.allclose(images[0], images[2], atol=1e-3)


def test_bundles_of_many_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's repository holds the configuration of all versions: the weights tell. Paths may be relative."""
    for version in ("rflow-ct", "rflow-mr"):
        nv_generate(tmp_path / "nv", version)
    with pytest.raises(RecipeError, match="got one that may be any of nv_generate_ct_rflow, nv_generate_mr; give recipe"):
        BundleSource(tmp_path / "nv")
    (tmp_path / "nv" / "models" / "diff_unet_3d_rflow-ct.pt").unlink()
    monkeypatch.chdir(tmp_path / "nv")
    assert BundleSource(".").recipe.name == "nv_generate_mr"


def test_a_recipe_file_can_name_a_bundle(bundles: Callable[[str], Path]) -> None:
    arguments = {
        "bundle_dir": str(bundles("nv_generate_mr")),
        "recipe": "nv_generate_mr",
        "conditions": {"T1": {"modality": "mri_t1"}, "FLAIR": {"modality": "mri_flair"}},
        "guidance": {"target": "monai_diverse.sampling.ClassifierFree", "arguments": {"scale": 2.0}},
    }
    source = Component(target="monai_diverse.sources.bundle.BundleSource", arguments=arguments).build(Path())
    assert (source.classes, source.class_names, source.cost(3)) == (2, ("T1", "FLAIR"), 6)


def test_broken_bundles_are_named(tmp_path: Path, bundles: Callable[[str], Path]) -> None:
    with pytest.raises(DataError, match="expected a MONAI bundle with configs/ and models/"):
        BundleSource(tmp_path)
    with pytest.raises(RecipeError, match=r"recipe: expected a BundleRecipe or one of brats.*, got 'brats'"):
        BundleSource(bundles("mednist_ddpm"), "brats")
    with pytest.raises(DataError, match=r"inference.json: expected a configuration in JSON or YAML, but it cannot be read"):
        BundleSource(bundles("nv_generate_mr"), "maisi_ct_generative")
    folder = Path(shutil.copytree(bundles("mednist_ddpm"), tmp_path / "mednist_ddpm"))
    config = folder / "configs" / "inference.yaml"
    text = config.read_text()
    for content, message in (("network_def: [", "JSON or YAML, but"), ("[]", "expected a configuration with keys, got list")):
        config.write_text(content)
        with pytest.raises(DataError, match=message):
            BundleSource(folder)
    config.write_text(text.replace("image_size:", "size:"))
    with pytest.raises(DataError, match="mednist_ddpm: image_size: expected this key in the configuration, got none"):
        BundleSource(folder)
    config.write_text(text.replace("num_res_blocks: 1", "num_res_blocks: 1\n  nonsense: 2"))
    with pytest.raises(DataError, match=r"network_def: expected arguments that .*DiffusionModelUNet takes, but .*nonsense"):
        BundleSource(folder)
    config.write_text(
        text.replace("num_train_timesteps: 1000", "num_train_timesteps: '@image_dim'").replace("image_dim: 16", "image_dim: '@num_train_timesteps'")
    )
    with pytest.raises(DataError, match="expected references that end, got a circle"):
        BundleSource(folder)


def test_conditions_for_networks_that_are_told_nothing(bundles: Callable[[str], Path]) -> None:
    folder = bundles("mednist_ddpm")
    with pytest.raises(RecipeError, match="conditions: expected none for a network that is told nothing, got a"):
        BundleSource(folder, conditions={"a": {}})
    with pytest.raises(RecipeError, match="embeddings: expected a network that is told a text"):
        BundleSource(folder, embeddings=folder.parent / "embeddings.safetensors")


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"a": {"height": 1}}, "conditions of 'a': expected a mapping with some of age, brain_vol, gender, ventricular_vol, got {'height': 1}"),
        ({"a": 0.5}, "expected a mapping with some of age"),
        ({"a": {"age": "old"}}, "age: expected numbers, got 'old'"),
    ],
)
def test_conditions_that_a_bundle_does_not_know(bundles: Callable[[str], Path], conditions: Any, message: str) -> None:
    with pytest.raises((RecipeError, DataError), match=message):
        BundleSource(bundles("brain_image_synthesis_latent_diffusion_model"), conditions=conditions)


class Touch:
    """Pickled code that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def test_weights_that_are_refused(tmp_path: Path, bundles: Callable[[str], Path]) -> None:
    folder = Path(shutil.copytree(bundles("brats_mri_axial_slices_generative_diffusion"), tmp_path / "b"))
    file = folder / "models" / "model.pt"
    state = torch.load(file)

    def refused(content: Any, message: str) -> None:
        torch.save(content, file)
        with pytest.raises(DataError, match=f"model.pt: {message}") as caught:
            BundleSource(folder)
        assert "\n" not in str(caught.value)

    refused({"model": state, "extra": Touch(tmp_path / "touched")}, r"expected tensors alone, got pickled code \(.*open\), which is never run")
    assert not (tmp_path / "touched").exists()
    refused({"epoch": 3}, "expected weights by name, or such under .*, got epoch")
    refused([1], "expected weights by name, got list")
    refused({name: value for name, value in state.items() if "conv_in" not in name}, "expected the weights .* but conv_in.* is missing")
    refused(
        {name: value for name, value in state.items() if not name.startswith("middle_block.attention.to_q")}, "expected the weights .* is missing"
    )
    refused(state | {"more": torch.ones(1)}, "expected the weights .* more is unknown")
    refused(torch.load(folder / "models" / "model_autoencoder.pt"), "expected the weights of the bundle's own DiffusionModelUNet")
    refused({name: torch.cat([value, value]) for name, value in state.items()}, "expected the weights .* size mismatch")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"model.pt: expected weights, but the file cannot be read .*complete download"):
        BundleSource(folder)
    file.write_bytes(b"text")
    with pytest.raises(DataError, match=r"model.pt: expected weights, but the file cannot be read"):
        BundleSource(folder)
    file.unlink()
    with pytest.raises(DataError, match=r"model.pt: expected the bundle's weights, but there is no such file; download"):
        BundleSource(folder)
    other = Path(shutil.copytree(bundles("mednist_ddpm"), tmp_path / "m"))
    state = torch.load(other / "models" / "model.pt")
    torch.save({name: value[..., None] for name, value in state.items()}, other / "models" / "model.pt")
    with pytest.raises(DataError, match="size mismatch"):
        BundleSource(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network_def__in_channels": "$__import__('pathlib').Path('{}').touch()"},
            r"network_def::in_channels: expected a plain value, got code \"\$__import__",
        ),
        ({"network_def__in_channels": "$(lambda: 1)()"}, "got code"),
        ({"network_def__in_channels": "$[1] * 1000000"}, "got code"),
        ({"network_def__in_channels": "$torch.load('{}')"}, "got code"),
        ({"network_def__in_channels": "$@latent_channels.__class__"}, "got code"),
        ({"network_def__in_channels": "%/etc/hosts.json"}, "got code"),
        ({"network_def__in_channels": {"_target_": "pathlib.Path.touch", "self": "{}"}}, "got code 'pathlib.Path.touch'"),
        ({"network_def___target_": "torch.os.system"}, "network_def: expected a class of MONAI's .*, got 'torch.os.system'; trust_code=True"),
        ({"network_def___target_": "monai.bundle.run"}, "got 'monai.bundle.run'"),
        ({"network_def___target_": "monai.networks.nets.TorchVisionFCModel"}, "got 'monai.networks.nets.TorchVisionFCModel'"),
        ({"network_def___target_": "monai.networks.nets.diffusion_model_unet.importlib"}, "expected a class of MONAI's"),
        ({"network_def___target_": "scripts.networks.Mine"}, "got 'scripts.networks.Mine'"),
        ({"network_def": "@network_def"}, "network_def: expected references that end, got a circle at @network_def"),
        ({"network_def": "$@autoencoder_def.to('cpu')"}, "network_def: expected a definition with _target_, got"),
        ({"load_diffusion_path": "$open('{}', 'w').name"}, "load_diffusion_path: expected a plain value, got code"),
    ],
)
def test_code_in_a_configuration_is_not_run(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder, witness = brats(tmp_path / "b"), tmp_path / "ran"
    rewritten(folder, **json.loads(json.dumps(changes).replace("{}", str(witness))))
    with pytest.raises((RecipeError, DataError), match=message):
        BundleSource(folder)
    assert not witness.exists()


def test_code_elsewhere_in_a_configuration_does_not_matter(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    touch = f"$__import__('pathlib').Path('{witness}').touch()"
    folder = rewritten(
        brats(tmp_path / "b"), imports=["$import surely_not_there", touch], run=[touch], device=touch, noise_scheduler___requires_=[touch]
    )
    assert BundleSource(folder).sample([0], [0], steps=1).shape == (1, 1, 32, 32)
    assert not witness.exists()


def test_trusted_code_runs(tmp_path: Path) -> None:
    """Networks of a bundle's own scripts; a bundle's `scripts` are not another's, and leave nothing behind."""
    networks = (
        "from monai.networks.nets import DiffusionModelUNet\n\n\nclass Mine(DiffusionModelUNet):\n"
        "    def forward(self, x, timesteps, context=None, class_labels=None):\n        return super().forward(x, timesteps) * {factor}\n"
    )
    path, drawn = list(sys.path), []
    for factor in (1, 2):
        folder = brats(tmp_path / f"b{factor}")
        (folder / "scripts").mkdir()
        (folder / "scripts" / "__init__.py").touch()
        (folder / "scripts" / "networks.py").write_text(networks.format(factor=factor))
        rewritten(folder, network_def___target_="scripts.networks.Mine", network_def__num_res_blocks="$len([1])", imports=["$import scripts"])
        with pytest.raises(RecipeError, match="trust_code=True"):
            BundleSource(folder)
        drawn.append(BundleSource(folder, trust_code=True, steps=2).sample([0], [1]))
    torch.testing.assert_close(drawn[0], BundleSource(brats(tmp_path / "plain"), steps=2).sample([0], [1]))
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-3)
    assert (sys.path, [name for name in sys.modules if name.split(".")[0] == "scripts"]) == (path, [])
    rewritten(folder, network_def__num_res_blocks="$1 / 0")
    with pytest.raises(DataError, match="network_def: its code failed: division by zero"):
        BundleSource(folder, trust_code=True)
    rewritten(folder, network_def__num_res_blocks=1, noise_scheduler="$'ddim'")
    with pytest.raises(DataError, match="noise_scheduler: expected a network or a scheduler, got str"):
        BundleSource(folder, trust_code=True)


def test_trust_does_not_load_pickles(tmp_path: Path) -> None:
    folder = brats(tmp_path / "b")
    torch.save({"extra": Touch(tmp_path / "touched")}, folder / "models" / "model.pt")
    with pytest.raises(DataError, match="pickled code"):
        BundleSource(folder, trust_code=True)
    assert not (tmp_path / "touched").exists()


def test_recipes_that_cannot_be_meant() -> None:
    with pytest.raises(RecipeError, match="expected sample_shape, or image_size and shrink"):
        BundleRecipe(name="a", sample_shape=None)
    with pytest.raises(RecipeError, match="at least one configuration file"):
        BundleRecipe(name="a", files=())


def test_inputs_of_ones_own(bundles: Callable[[str], Path], brain_source: BundleSource) -> None:
    """A recipe for a bundle that tells its network the covariates in another way: as context only, or with another scale."""
    folder = bundles("brain_image_synthesis_latent_diffusion_model")
    usual = RECIPES["brain_image_synthesis_latent_diffusion_model"]
    keys = usual.inputs[0].values
    scaled = (NetworkInput(name="context", values=keys, scale=10), NetworkInput(name="concat", values=keys))
    ten = BundleSource(folder, replace(usual, inputs=scaled), conditions={"young": {"age": 0.1}}, steps=2).sample([0], [1])
    assert not torch.allclose(ten, brain_source.sample([0], [1]), atol=1e-3)
    fewer = (NetworkInput(name="context", values=keys),)
    with pytest.raises(DataError, match="expected 7 input channels, got 3 of sample_shape and 0 of concat"):
        BundleSource(folder, replace(usual, inputs=fewer))
