import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

from monai_diverse import Recipe, SampleBank, grow
from monai_diverse.cli.grow import _warn_of_large_groups
from monai_diverse.components import Component
from monai_diverse.data import LabelledImages
from monai_diverse.errors import BankError, BankMismatchError, DataError, RecipeError, StorageError
from monai_diverse.features import PixelFeatures
from monai_diverse.growth import grow_steps
from monai_diverse.job import Job, _require_one_naming
from monai_diverse.recipe import DataChoice
from monai_diverse.sampling import EarlyChoice


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return Recipe.load(recipe_file)


@pytest.fixture
def guided(recipe: Recipe) -> Recipe:
    """Couples the batch and the bank: the hardest to resume."""
    return replace(recipe, guide=Component(target="monai_diverse.sampling.Shield"))


def test_budget_bounds_evaluations_and_every_sample_is_accounted_for(recipe: Recipe, tmp_path: Path) -> None:
    bank = grow(recipe, tmp_path / "bank")
    assert bank.progress["nfe"] == bank.progress["drawn"] * 5 == recipe.max_evaluations
    assert 0 < len(bank) < bank.progress["drawn"]
    assert len(bank) + sum(bank.progress["rejections"].values()) == bank.progress["drawn"] == 96
    bank.verify()


def test_bank_holds_what_the_source_draws_from_its_seeds(recipe: Recipe, tmp_path: Path) -> None:
    bank = grow(recipe, tmp_path / "bank")
    source = recipe.source.build(recipe.folder)
    again = source.sample(bank.labels, bank.seeds, steps=recipe.steps).numpy()
    assert np.abs(bank.images[:] - again).max() <= 0.5 / 255 + 1e-4
    assert set(bank.seeds) <= set(range(3 * 2**32, 3 * 2**32 + 96))


def test_what_is_banked_passes_the_screen_when_read_back(recipe: Recipe, tmp_path: Path) -> None:
    bank = grow(recipe, tmp_path / "bank")
    assert all(v.accepted for v in Job.prepare(recipe).screen.screen(bank.images[:], bank.labels))


def test_same_recipe_same_bank(guided: Recipe, tmp_path: Path) -> None:
    first, second = (grow(guided, tmp_path / name) for name in ("a", "b"))
    assert first.fingerprint == second.fingerprint
    other = grow(replace(guided, seed=4), tmp_path / "c")
    assert other.fingerprint != first.fingerprint


def test_interrupted_growth_gives_the_same_bank(guided: Recipe, tmp_path: Path) -> None:
    whole = grow(guided, tmp_path / "whole")
    steps = grow_steps(Job.prepare(guided), tmp_path / "parts")
    next(steps)
    next(steps)
    steps.close()
    part = SampleBank.open(tmp_path / "parts")
    assert part.progress["drawn"] == 32
    part.verify()
    assert grow(guided, tmp_path / "parts", resume=True).fingerprint == whole.fingerprint


def test_size_bounds_the_bank_and_can_be_raised(guided: Recipe, tmp_path: Path) -> None:
    whole = grow(guided, tmp_path / "whole")
    small = grow(replace(guided, size=3), tmp_path / "steps")
    assert len(small) == 3
    assert small.progress["drawn"] % 32, "the bound should fall inside a batch for this test to mean anything"
    np.testing.assert_array_equal(small.seeds, whole.seeds[:3])
    grown = grow(guided, tmp_path / "steps", resume=True)
    assert grown.fingerprint == whole.fingerprint
    assert grown.progress == whole.progress


def test_guide_keeps_samples_from_each_other(recipe: Recipe) -> None:
    """The shield must reach the sampler and do what it is for: nearest class-mates of a batch lie further apart."""
    guide = Component(
        target="monai_diverse.sampling.Shield",
        arguments={"strength": 0.5, "scale": 0.0, "distinct": 4.0, "pool": 1, "sigma_min": 0.1, "keep_intensity": False},
    )
    plain, shielded = Job.prepare(recipe), Job.prepare(replace(recipe, guide=guide))

    def spread(job: Job) -> float:
        labels, seeds = job.asked(0, 32)
        images = job.draw(labels, seeds, job.guide)
        distances = cdist(images.reshape(32, -1), images.reshape(32, -1))
        distances[np.eye(32, dtype=bool) | (labels[:, None] != labels)] = np.inf
        return float(np.median(distances.min(1)))

    assert spread(shielded) > 1.1 * spread(plain)


@pytest.mark.parametrize(("labels", "share"), [("balanced", 0.5), ("reference", 0.5), ((1.0, 3.0), 0.75)])
def test_label_shares(recipe: Recipe, labels: object, share: float) -> None:
    job = Job.prepare(replace(recipe, labels=labels, steps=1))
    drawn = job.asked(0, 1500)[0]
    assert np.mean(drawn) == pytest.approx(share, abs=0.05)
    np.testing.assert_array_equal(job.asked(700, 10)[0], drawn[700:710])


def test_size_reached_inside_the_last_batch_can_still_be_completed(guided: Recipe, tmp_path: Path) -> None:
    whole = grow(guided, tmp_path / "whole")
    last = [i for i, seed in enumerate(whole.seeds) if seed % 2**32 >= 64]
    assert last, "some sample of the last batch should be accepted for this test to mean anything"
    grow(replace(guided, size=last[0] + 1), tmp_path / "bank")
    assert grow(guided, tmp_path / "bank", resume=True).fingerprint == whole.fingerprint


def test_budget_below_one_batch(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"at least one batch of 32 samples, 160, got 159"):
        grow(replace(recipe, max_evaluations=159), tmp_path / "bank")


def test_defaults_are_part_of_the_fingerprint(recipe: Recipe, guided: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version with other defaults must not grow on in the same bank."""
    grow(replace(guided, size=1), tmp_path / "bank")
    stronger = replace(guided, guide=Component(target="monai_diverse.sampling.Shield", arguments={"strength": 0.31}))
    arguments = dict(recipe.screen.arguments) | {"components": 7}
    stricter = replace(guided, screen=Component(target=recipe.screen.target, arguments=arguments))
    for other in (stronger, stricter):
        with pytest.raises(BankMismatchError, match="recipe"):
            grow(other, tmp_path / "bank", resume=True)
    same = replace(guided, guide=Component(target="monai_diverse.sampling.Shield", arguments={"strength": 0.3}))
    grow(replace(same, size=2), tmp_path / "bank", resume=True)


def test_an_extractors_weights_not_its_address_are_part_of_the_fingerprint(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    class Opaque(PixelFeatures):
        __repr__ = object.__repr__

    def fingerprint(extractor: PixelFeatures) -> str:
        monkeypatch.setattr(Component, "build", lambda self, *_: EarlyChoice(extractor=extractor) if self is guide else build(self, *_))
        return Job.prepare(replace(recipe, guide=guide)).fingerprint

    build, guide = Component.build, Component(target="monai_diverse.sampling.EarlyChoice")
    assert fingerprint(Opaque()) == fingerprint(Opaque())
    assert fingerprint(Opaque(max_side=4)) != fingerprint(Opaque())


def test_control_stands_beside_the_yield(recipe: Recipe, tmp_path: Path, blob_file: Path) -> None:
    control = replace(recipe.calibration, path=str(blob_file), split="test", part=None)
    bank = grow(replace(recipe, control=control, size=1), tmp_path / "bank")
    assert bank.progress["control"]["drawn"] == 40
    assert bank.progress["stopped"] == "size"
    assert Job.prepare(recipe).control is None


def test_a_control_that_is_known_is_refused_and_near_duplicates_are_left_out(recipe: Recipe, tmp_path: Path, blob_file: Path) -> None:
    with pytest.raises(DataError, match=r"control: expected images that calibration does not hold, got .* in both"):
        Job.prepare(replace(recipe, control=recipe.calibration))
    stored = np.load(blob_file)
    for name, known in (("some", 10), ("all", 20)):
        near = np.clip(stored["train_images"][:known].astype(int), 1, 254) + 1
        fresh = np.random.default_rng(0).integers(0, 256, (20 - known, 8, 8))
        np.savez(tmp_path / f"{name}.npz", images=np.concatenate([near, fresh]).astype(np.uint8), labels=np.arange(20) % 2)
    control = DataChoice(path=str(tmp_path / "some.npz"), twin_correlation=0.999)
    found = Job.prepare(replace(recipe, control=control)).control
    assert found is not None
    assert (found["drawn"], found["near_known"]) == (10, 10)
    with pytest.raises(DataError, match="control: expected images that do not nearly repeat known ones"):
        Job.prepare(replace(recipe, control=replace(control, path=str(tmp_path / "all.npz"))))


def test_classes_that_are_numbered_otherwise_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def folder(name: str, *classes: str) -> DataChoice:
        for label in classes:
            (tmp_path / name / label).mkdir(parents=True)
            for number in range(20):
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / name / label / f"{number}.png")
        return DataChoice(path=str(tmp_path / name))

    ours, others = folder("ours", "benign", "malignant"), folder("others", "malignant", "normal")
    with pytest.raises(DataError, match=r"folders with the same classes, .*reference: benign, malignant; calibration: malignant, normal"):
        Job.prepare(replace(recipe, reference=ours, calibration=others))
    swapped = replace(recipe.source, target="monai_diverse.FolderSource", arguments={"folder": str(tmp_path / "ours")})
    source = swapped.build(tmp_path)
    _require_one_naming({"reference": ("benign", "malignant"), "calibration": ()}, source)
    with pytest.raises(DataError, match="classes in the source's order, benign, malignant, got reference: malignant, benign"):
        _require_one_naming({"reference": ("malignant", "benign")}, source)


@pytest.mark.parametrize(("largest", "said"), [(40, False), (60, True)])
def test_grow_warns_of_a_set_of_which_much_is_one_group(recipe: Recipe, largest: int, said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    groups = np.r_[np.zeros(largest, np.int64), np.arange(1, 501 - largest)]
    many = LabelledImages(images=np.zeros((500, 1, 8, 8)), labels=np.arange(500) % 2, groups=groups)
    job = Job.prepare(recipe)
    _warn_of_large_groups(replace(job, real={"reference": many}))
    assert (f"warning: reference: {largest} of 500 images are one group" in capsys.readouterr().err) == said


def test_model_trained_on_mirrored_images_needs_a_mirrored_copy_gate(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="mirrored: true"):
        Job.prepare(replace(recipe, generator_train=replace(recipe.generator_train, mirrored=False)))


def test_growing_leaves_global_random_state_alone(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before, before_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    grow(replace(recipe, max_evaluations=160), tmp_path / "bank")
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002


def test_existing_bank_is_not_overwritten(recipe: Recipe, tmp_path: Path) -> None:
    bank = grow(recipe, tmp_path / "bank")
    with pytest.raises(BankError, match="resume"):
        grow(recipe, tmp_path / "bank")
    with pytest.raises(BankMismatchError, match="recipe"):
        grow(replace(recipe, seed=9), tmp_path / "bank", resume=True)
    assert SampleBank.open(tmp_path / "bank").fingerprint == bank.fingerprint


def test_full_disk_keeps_what_was_accepted(guided: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = grow(guided, tmp_path / "whole")
    steps = grow_steps(Job.prepare(guided), tmp_path / "bank")
    next(steps)
    stored = next(steps)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left"):
            list(steps)
    kept = SampleBank.open(tmp_path / "bank")
    kept.verify()
    assert len(kept) == stored.accepted
    assert grow(guided, tmp_path / "bank", resume=True).fingerprint == whole.fingerprint


def test_images_that_do_not_fit_the_model(recipe: Recipe, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "big.npz", images=rng.random((40, 16, 16)), labels=np.arange(40) % 2)
    np.savez(tmp_path / "more.npz", images=rng.random((40, 8, 8)), labels=np.arange(40) % 3)
    np.savez(tmp_path / "one.npz", images=rng.random((40, 8, 8)), labels=np.ones(40, dtype=int))
    for name, message in (("big", "model's shape"), ("more", r"classes 0\.\.1, got 2"), ("one", "none of class 0")):
        choice = replace(recipe.reference, path=str(tmp_path / f"{name}.npz"), part=None)
        with pytest.raises(DataError, match=message):
            Job.prepare(replace(recipe, reference=choice))


def test_components_in_the_wrong_place(recipe: Recipe) -> None:
    wrong = Component(target="monai_diverse.NoveltyScreen")
    with pytest.raises(RecipeError, match="expected a SampleSource"):
        Job.prepare(replace(recipe, source=wrong))
    with pytest.raises(RecipeError, match="fit method"):
        Job.prepare(replace(recipe, guide=Component(target="monai_diverse.sampling.ClassifierFree")))
    with pytest.raises(RecipeError, match="2 shares"):
        Job.prepare(replace(recipe, labels=(1.0,)))
