from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIDE, blobs
from PIL import Image

from monai_diverse import Recipe, grow
from monai_diverse.components import Component
from monai_diverse.data import IntArray, LabelledImages
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sources.external import CallableSource, FolderSource
from monai_diverse.testing import SourceContract


def draw(labels: IntArray, seeds: IntArray) -> torch.Tensor:
    """Blobs in [-1, 1]; as a model should, one generator an image."""
    chosen = [blobs(2, int(seed)).images[label] for label, seed in zip(labels, seeds, strict=True)]
    return torch.from_numpy(np.stack(chosen)) * 2 - 1


def callable_source(function: Callable[..., object] = draw, **changes: object) -> CallableSource:
    settings: dict[str, object] = {"shape": (1, SIDE, SIDE), "classes": 2, "name": "blobs", "version": "1", "output_range": (-1, 1), "batch_size": 2}
    return CallableSource(function, **(settings | changes))


class BlobSource(CallableSource):
    """What a recipe can load by name."""

    def __init__(self) -> None:
        super().__init__(draw, shape=(1, SIDE, SIDE), classes=2, name="blobs", version="1", output_range=(-1, 1), evaluations=3)


@pytest.fixture
def data() -> LabelledImages:
    return blobs(60, 4)


@pytest.fixture
def folder(tmp_path: Path, data: LabelledImages) -> Path:
    for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        place = tmp_path / "pictures" / ("a_top", "b_bottom")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(place / f"{i:03d}.png")
    return tmp_path / "pictures"


class TestCallableSource(SourceContract):
    @pytest.fixture
    def source(self) -> CallableSource:
        return callable_source(evaluations=3)


class TestFolderSource(SourceContract):
    @pytest.fixture
    def source(self, folder: Path) -> FolderSource:
        return FolderSource(folder)


def test_callable_images_are_its_functions() -> None:
    source = callable_source(evaluations=7, class_names=("top", "bottom"), licence="CC0", mirrored=True)
    images = source.sample([1, 0, 1], [5, 6, 2**40])
    expected = np.stack([blobs(2, 5).images[1], blobs(2, 6).images[0], blobs(2, 2**40).images[1]])
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    assert source.nfe == 21 == 3 * source.cost()
    assert (source.class_names, source.licence, source.mirrored) == (("top", "bottom"), "CC0", True)


def test_callable_may_return_arrays_and_overshoot_a_little() -> None:
    source = callable_source(lambda labels, seeds: np.full((len(seeds), 1, SIDE, SIDE), 1.01))
    assert float(source.sample([0], [0]).max()) == 1.0


def test_version_and_settings_make_the_callables_fingerprint() -> None:
    prints = {callable_source(**change).fingerprint for change in ({}, {"version": "2"}, {"name": "b"}, {"output_range": (0, 1)}, {"classes": 3})}
    assert len(prints) == 5
    assert callable_source().fingerprint == callable_source(batch_size=9).fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda labels, seeds: torch.zeros(len(seeds), SIDE, SIDE), r"expected images of shape \(1, 1, 8, 8\), got \(1, 8, 8\)"),
        (lambda labels, seeds: torch.full((len(seeds), 1, SIDE, SIDE), 255.0), r"\[-1, 1\], got \[255, 255\]; give output_range"),
        (lambda labels, seeds: torch.full((len(seeds), 1, SIDE, SIDE), torch.nan), "finite"),
    ],
)
def test_what_a_callable_must_not_return(given: Callable[..., object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        callable_source(given).sample([0], [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (8, 8)}, "shape: expected"),
        ({"shape": (1, 8, 0)}, "shape: expected whole numbers from 1, got 0"),
        ({"classes": 0}, "classes: expected"),
        ({"evaluations": 0.5}, "evaluations: expected"),
        ({"output_range": (1, 1)}, "output_range: expected"),
        ({"class_names": ("a",)}, "class_names: expected 2"),
        ({"version": ""}, "version: expected"),
    ],
)
def test_settings_of_a_callable_that_cannot_be_meant(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        callable_source(**change)


def test_steps_and_guides_are_refused(folder: Path) -> None:
    for source in (callable_source(), FolderSource(folder)):
        with pytest.raises(RecipeError, match="expected no steps, got 5"):
            source.sample([0], [0], steps=5)
        with pytest.raises(RecipeError, match="expected no steps"):
            source.cost(5)
        with pytest.raises(RecipeError, match="expected no guide"):
            source.sample([0], [0], guide=object())  # type: ignore[arg-type]


def test_every_image_of_a_folder_once_with_its_own_label(folder: Path, data: LabelledImages) -> None:
    source = FolderSource(folder, name="pictures of blobs", licence="CC0")
    assert (source.size, source.classes, source.class_names, source.licence) == (60, 2, ("a_top", "b_bottom"), "CC0")
    seeds = 3 * 2**32 + np.arange(60)
    labels = source.labels_of(seeds)
    images = source.sample(labels, seeds).numpy()
    assert len(np.unique(images.reshape(60, -1), axis=0)) == 60
    bottom = images[:, 0, SIDE // 2 :].mean((1, 2)) > images[:, 0, : SIDE // 2].mean((1, 2))
    np.testing.assert_array_equal(labels, np.where(bottom, 1, 0))
    assert 0 < labels[:20].mean() < 1, "classes should be mixed"
    assert not np.array_equal(source.labels_of(np.arange(60)), labels), "another recipe seed should give another order"


def test_another_class_is_the_next_image_of_that_class(folder: Path) -> None:
    source = FolderSource(folder)
    own = source.labels_of(range(60))
    wanted = 1 - own[20]
    after = next(i for i in range(21, 60) if own[i] == wanted)
    torch.testing.assert_close(source.sample([wanted], [20]), source.sample([wanted], [after]))


def test_a_folder_ends(folder: Path) -> None:
    source = FolderSource(folder)
    for call in (lambda: source.sample([0], [60]), lambda: source.labels_of([7 * 2**32 + 60])):
        with pytest.raises(DataError, match="a draw of its 60 images, got number 61; set max_evaluations to 60"):
            call()


def test_volumes_from_an_archive(tmp_path: Path) -> None:
    volumes = np.random.default_rng(0).random((6, 8, 9, 10)).astype(np.float32)
    np.savez(tmp_path / "ct.npz", images=volumes, labels=np.zeros(6, dtype=int))
    source = FolderSource(tmp_path / "ct.npz")
    assert (source.shape, source.classes, source.name) == ((1, 8, 9, 10), 1, "ct")
    drawn = source.sample([0] * 6, range(6)).numpy()[:, 0]
    assert sorted(drawn.sum((1, 2, 3))) == pytest.approx(sorted(volumes.sum((1, 2, 3))))
    np.savez(tmp_path / "ct.npz", images=volumes, labels=np.full(6, 2))
    with pytest.raises(DataError, match="got none of class 0"):
        FolderSource(tmp_path / "ct.npz")


def test_a_folders_fingerprint_follows_its_content(folder: Path) -> None:
    before = FolderSource(folder).fingerprint
    assert before == FolderSource(folder).fingerprint
    next((folder / "a_top").iterdir()).unlink()
    assert FolderSource(folder).fingerprint != before


def test_a_bank_grows_from_a_folder(recipe_file: Path, folder: Path, data: LabelledImages, tmp_path: Path) -> None:
    """Screened as any other source; what lies twice in a batch or the bank is kept once."""
    source = Component(target="monai_diverse.sources.external.FolderSource", arguments={"folder": str(folder)})
    recipe = replace(Recipe.load(recipe_file), source=source, max_evaluations=500, batch_size=25)  # ends where the folder does
    bank = grow(recipe, tmp_path / "bank")
    bank.verify()
    assert 0 < len(bank) < bank.progress["drawn"] == bank.progress["nfe"] == 60
    pixels = bank.images[:].reshape(len(bank), -1)
    assert len(np.unique(pixels, axis=0)) == len(bank)
    originals = np.round(data.images * 255).reshape(60, -1)
    for image, label in zip(np.round(pixels * 255), bank.labels, strict=True):
        found = int(np.flatnonzero((originals == image).all(1))[0])
        assert data.labels[found] == label
    with pytest.raises(RecipeError, match="expected no steps"):
        grow(replace(recipe, steps=5), tmp_path / "steps")


def test_a_bank_grows_from_a_callable(recipe_file: Path, tmp_path: Path) -> None:
    recipe = replace(Recipe.load(recipe_file, allow=[__name__]), source=Component(target=f"{__name__}.BlobSource"), max_evaluations=3 * 64)
    bank = grow(recipe, tmp_path / "bank")
    assert bank.progress["drawn"] == 64
    assert len(bank) > 0
    again = BlobSource().sample(bank.labels, bank.seeds).numpy()
    assert np.abs(bank.images[:] - again).max() <= 0.5 / 255 + 1e-6
