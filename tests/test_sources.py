import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from monai_diverse import DiffusersSource
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import ClassifierFree
from monai_diverse.sources.builtin import ASSETS, BuiltinSource, builtin_data
from monai_diverse.testing import SourceContract


class TestDiffusersSource(SourceContract):
    @pytest.fixture
    def source(self, tiny_model: Path) -> DiffusersSource:
        return DiffusersSource(tiny_model, steps=6, batch_size=3)


class TestGuidedDiffusersSource(SourceContract):
    @pytest.fixture
    def source(self, tiny_model: Path) -> DiffusersSource:
        return DiffusersSource(tiny_model, steps=6, guidance=ClassifierFree(scale=2.0), scheduler="DDIMScheduler")


class TestBuiltinSource(SourceContract):
    @pytest.fixture
    def source(self) -> BuiltinSource:
        return BuiltinSource(steps=4)


def test_labels_are_obeyed(tiny_model: Path) -> None:
    """Blobs of class 0 lie above, of class 1 below."""
    images = DiffusersSource(tiny_model, guidance=ClassifierFree(scale=2.0)).sample([0] * 16 + [1] * 16, range(32)).numpy()
    lean = images[..., 4:, :].mean((1, 2, 3)) - images[..., :4, :].mean((1, 2, 3))
    assert lean[:16].mean() < 0 < lean[16:].mean()


def test_evaluations_are_counted(tiny_model: Path) -> None:
    plain, guided = DiffusersSource(tiny_model, steps=6), DiffusersSource(tiny_model, steps=6, guidance=ClassifierFree(scale=2.0))
    for source, expected in ((plain, 5 * 6), (guided, 2 * 5 * 6)):
        source.sample([0] * 5, range(5))
        assert source.nfe == expected
    plain.sample([0], [0], steps=3)
    assert plain.nfe == 5 * 6 + 3


def test_what_it_knows_of_itself(tiny_model: Path) -> None:
    source = DiffusersSource(tiny_model)
    assert (source.shape, source.classes, source.name, source.licence) == ((1, 8, 8), 2, "tiny", "CC0")
    assert source.class_names == ("top", "bottom")
    assert source.fingerprint == DiffusersSource(tiny_model).fingerprint != DiffusersSource(tiny_model, steps=7).fingerprint


def test_broken_folders_are_named(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(DataError, match=r"unet.config\.json is missing"):
        DiffusersSource(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="complete copy"):
        DiffusersSource(tmp_path / "cut")
    for arguments, message in (
        ({"scheduler": "Nothing"}, "expected one of DDIMScheduler"),
        ({"batch_size": 0}, "batch_size: expected a whole number from 1, got 0"),
        ({"steps": 0}, "steps: expected"),
        ({"device": "nowhere"}, "device: expected"),
    ):
        with pytest.raises(RecipeError, match=message):
            DiffusersSource(tiny_model, **arguments)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.json", "{", "expected a JSON file"),
        ("model.json", "[]", "expected a JSON object"),
        ("scheduler/scheduler_config.json", "[]", "expected a JSON object"),
        ("scheduler/scheduler_config.json", '{"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}', "with betas"),
        ("unet/config.json", "{", "complete copy"),
    ],
)
def test_corrupt_files_are_named(tmp_path: Path, tiny_model: Path, file: str, content: str, message: str) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    (tmp_path / "m" / file).write_text(content)
    with pytest.raises(DataError, match=message):
        DiffusersSource(tmp_path / "m")


def test_missing_tensors_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    weights = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if "mid_block" not in k}, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match="tensors differ"):
        DiffusersSource(tmp_path / "m")


def test_cost_is_what_sampling_takes(tiny_model: Path) -> None:
    for guidance in (None, ClassifierFree(scale=2.0), ClassifierFree(scale=2.0, sigma_min=0.5, sigma_max=3.0)):
        source = DiffusersSource(tiny_model, steps=6, guidance=guidance)
        source.sample([0, 1, 1], [0, 1, 2], steps=9)
        assert source.nfe == 3 * source.cost(9)
    assert 9 < source.cost(9) < 18


def test_samples_can_be_trained_on(tiny_model: Path) -> None:
    images = DiffusersSource(tiny_model, steps=2).sample([0], [0])
    weight = torch.ones(1, requires_grad=True)
    (images * weight).sum().backward()
    assert weight.grad is not None


def test_guidance_without_null_class(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "all")
    (tmp_path / "all" / "model.json").unlink()
    assert DiffusersSource(tmp_path / "all").classes == 3
    with pytest.raises(RecipeError, match="null class"):
        DiffusersSource(tmp_path / "all", guidance=ClassifierFree(scale=2.0))


def test_builtin_loads_offline_and_fast() -> None:
    BuiltinSource()
    started = time.perf_counter()
    source = BuiltinSource()
    assert time.perf_counter() - started < 2
    assert (source.shape, source.classes, source.class_names[0]) == ((1, 28, 28), 2, "malignant")
    assert sum(file.stat().st_size for file in (ASSETS / "unet").iterdir()) < 8e6


def test_builtin_samples_look_like_its_data() -> None:
    """A model that was not trained, or whose weights are mangled, misses the mean image and the spread by far."""
    real, labels = builtin_data().generator_train.images, builtin_data().generator_train.labels
    fake = BuiltinSource(steps=8).sample(labels[:48], range(48)).numpy()
    assert np.corrcoef(fake.mean(0).ravel(), real.mean(0).ravel())[0, 1] > 0.9
    assert fake.std() == pytest.approx(real.std(), rel=0.2)


def test_builtin_split_is_what_the_card_says() -> None:
    data = builtin_data()
    assert [len(part) for part in (data.generator_train, data.calibration, data.validation, data.test)] == [437, 109, 78, 156]
    assert not set(data.generator_train.group_ids) & set(data.calibration.group_ids)
    card = (ASSETS / "CARD.md").read_text()
    split = json.loads((ASSETS / "split.json").read_text())
    assert split["data_sha256"] in card
    assert "CC BY 4.0" in card
    seen = np.concatenate([data.generator_train.images, data.calibration.images]).reshape(546, -1)
    unseen = data.validation.images[data.validation_unseen].reshape(-1, seen.shape[1])
    correlation = np.corrcoef(unseen, seen)[: len(unseen), len(unseen) :]
    assert correlation.max() <= 0.95


def test_torch_generators_on_the_way_do_not_touch_global_state(tiny_model: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    DiffusersSource(tiny_model, scheduler="DDPMScheduler", steps=4).sample([0, 1], [1, 2])
    assert torch.equal(torch.random.get_rng_state(), before)
