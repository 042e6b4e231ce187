import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_diverse import Recipe, SampleBank, grow
from monai_diverse.errors import BankError, BankMismatchError, DataError, RecipeError, StorageError
from monai_diverse.grow import Job, grow_steps
from monai_diverse.recipe import Component


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


def test_guide_keeps_samples_from_each_other(recipe: Recipe, guided: Recipe, tmp_path: Path) -> None:
    """The shield must reach the sampler: the same seeds give other images."""
    plain, shielded = Job.prepare(recipe), Job.prepare(guided)
    first, second = (job.draw(0, 32, job.guide)[0] for job in (plain, shielded))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("labels", "share"), [("balanced", 0.5), ("reference", 0.5), ((1.0, 3.0), 0.75)])
def test_label_shares(recipe: Recipe, labels: object, share: float) -> None:
    job = Job.prepare(replace(recipe, labels=labels))
    drawn = [np.random.default_rng([s, 1]).choice(2, p=job.label_shares) for s in range(2000)]
    assert np.mean(drawn) == pytest.approx(share, abs=0.05)


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
