"""Branches of accepted samples, the default guide, and pilots."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from monai_diverse import Recipe, grow
from monai_diverse.cli import main
from monai_diverse.components import Component
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.growth import rehearse
from monai_diverse.job import Job
from monai_diverse.sampling import BoostAndSkip, Branch, Diverse, FittedBranch, Shield, Together, branch
from monai_diverse.sampling.branch import SIGMAS
from monai_diverse.screening import Yield
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.storage import read_json
from monai_diverse.tuning import Pilot, best, pilots, with_strength


def _images(count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, 1, 6, 6)).astype(np.float32))


def _fitted(**settings: object) -> FittedBranch:
    return Branch(**settings).fit(_images(40, 0), torch.arange(40) % 2, _images(20, 1), torch.arange(20) % 2)


def _renoise(images: Tensor, labels: Tensor, seeds: Sequence[int], sigma: float, pace: float) -> Tensor:
    """A model that gives back its noisy input."""
    noise = torch.stack([_images(1, 100 + s)[0] for s in seeds])
    return images + sigma * noise


@pytest.fixture
def diverse(recipe_file: Path) -> Recipe:
    return replace(Recipe.load(recipe_file), guide=Component(target="monai_diverse.sampling.Diverse"), max_evaluations=1500)


def test_wanted_distance_is_that_of_new_patients() -> None:
    train, heldout = _images(40, 0), _images(20, 1)

    def unit(x: Tensor) -> np.ndarray:
        flat = x.flatten(1).numpy()
        flat = flat - flat.mean(1, keepdims=True)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    nearest = [np.linalg.norm(unit(train)[i % 2 :: 2] - unit(heldout)[i], axis=1).min() for i in range(20)]
    assert _fitted().wanted == pytest.approx(float(torch.tensor(nearest).median()), rel=1e-5)
    assert _fitted(distance=0.5).wanted == pytest.approx(_fitted().wanted / 2)


def test_calibration_takes_the_least_noise_that_reaches_far_enough() -> None:
    guide = _fitted(distance=0.6)
    sigma = guide.calibrated(_renoise).sigma
    reach = [guide._reach(_renoise, s) for s in SIGMAS]
    assert sigma == next(s for s, r in zip(SIGMAS, reach, strict=True) if r >= guide.wanted)
    assert SIGMAS[0] < sigma < SIGMAS[-1]
    assert guide.calibrated(_renoise).notes() == {"branch_sigma": sigma}
    assert _fitted(sigma=1.5).calibrated(_renoise).sigma == 1.5


def test_large_images_are_noised_more() -> None:
    def of_many_pixels(images: Tensor, labels: Tensor, seeds: Sequence[int], sigma: float, pace: float) -> Tensor:
        """A model that sees each value sixteen times and takes the mean: a quarter of the noise is left."""
        return _renoise(images, labels, seeds, sigma / 4, pace)

    guide = _fitted(distance=0.9)
    sigma = guide.calibrated(of_many_pixels).sigma
    assert sigma > guide.calibrated(_renoise).sigma
    assert guide._reach(of_many_pixels, sigma) >= guide.wanted > guide._reach(of_many_pixels, SIGMAS[SIGMAS.index(sigma) - 1])


def test_a_model_that_changes_nothing_cannot_be_calibrated() -> None:
    with pytest.raises(RecipeError, match="expected branches that move, got none up to a noise-to-signal ratio of 80"):
        _fitted().calibrated(lambda images, labels, seeds, sigma, pace: images)


def test_where_no_branch_goes_far_enough_the_strongest_noise_is_taken() -> None:
    with pytest.warns(UserWarning, match="no noise takes branches as far as distance 3, so the strongest is used"):
        assert _fitted(distance=3.0).calibrated(_renoise).sigma == SIGMAS[-1]


def test_parents_are_class_mates_and_follow_from_the_seed_alone() -> None:
    accepted, labels = _images(10, 5), torch.arange(10) % 2
    guide = _fitted(sigma=1.0, share=0.7).given(accepted, labels)
    asked, seeds = torch.arange(200) % 2, list(range(0, 3200, 16))  # one a block
    mask, start = guide.start(asked, seeds)
    assert start.sigma == 1.0
    assert 0.6 < float(mask.float().mean()) < 0.8
    parents = [int((accepted == image).flatten(1).all(1).nonzero()) for image in start.images]
    assert all(labels[p] == c for p, c in zip(parents, asked[mask], strict=True))
    assert len(set(parents)) == 10
    alone = [guide.start(asked[i : i + 1], [seeds[i]]) for i in range(20)]
    assert [bool(found[0]) for found in alone] == mask[:20].tolist()
    for image, found in zip(start.images, [f for f in alone if f[0]], strict=False):
        assert torch.equal(found[1].images[0], image)


def test_seeds_branch_by_blocks() -> None:
    guide = _fitted(sigma=1.0, share=0.5).given(_images(4, 5), torch.zeros(4).long())
    mask, _ = guide.start(torch.zeros(320).long(), list(range(320)))
    blocks = mask.reshape(20, 16)
    assert bool((blocks.all(1) | ~blocks.any(1)).all())
    assert 4 < int(blocks.any(1).sum()) < 16


def test_crowded_samples_are_branched_from_less() -> None:
    crowd = _images(1, 5).repeat(30, 1, 1, 1) + 0.01 * _images(30, 6)
    accepted = torch.cat([crowd, _images(1, 7)])
    guide = _fitted(sigma=1.0, share=0.99).given(accepted, torch.zeros(31).long())
    _, start = guide.start(torch.zeros(600).long(), list(range(600)))
    alone = (start.images == accepted[-1]).flatten(1).all(1).float().mean()
    assert float(alone) > 0.2, "by number it would be one in 31"


def test_without_an_accepted_class_mate_all_start_from_noise() -> None:
    guide = _fitted(sigma=1.0, share=0.9)
    assert guide.start(torch.zeros(50).long(), list(range(50))) is None
    mask, _ = guide.given(_images(2, 5), torch.ones(2).long()).start(torch.zeros(50).long(), list(range(50)))
    assert not mask.any()


def test_beside_another_start_an_image_depends_on_its_own_seed_alone() -> None:
    """Whether some image of the batch branches must not decide whether the others are boosted."""
    data = (_images(40, 0), torch.arange(40) % 2, _images(20, 1), torch.arange(20) % 2)
    guide = Together(guides=(Branch(sigma=1.0, share=0.5), BoostAndSkip(gain=2.0))).fit(*data).given(_images(10, 5), torch.zeros(10).long())
    seeds = list(range(20))
    mask, _ = guide.start(torch.zeros(20).long(), seeds)
    assert 0 < int(mask.sum()) < 20
    for seed in seeds:
        alone, start = guide.start(torch.zeros(1).long(), [seed])
        assert bool(alone) == bool(mask[seed])
        assert start.gain == 1.0


def test_the_latest_parents_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch, "PARENTS", 3)
    accepted, labels = _images(10, 5), torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    guide = _fitted(sigma=1.0).given(accepted, labels)
    assert torch.equal(guide.labels, torch.tensor([0, 0, 0, 1, 1])), "a rare class should keep its parents"
    assert torch.equal(guide.accepted, accepted[[6, 7, 8, 0, 9]])
    assert len(guide.weights) == 5


@pytest.mark.parametrize("settings", [{"strength": -0.1}, {"strength": float("nan")}, {"shield": Branch()}, {"branch": {"share": 0.5}}])
def test_default_guide_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="diverse: expected"):
        Diverse(**settings)


@pytest.mark.parametrize("settings", [{"share": 1.0}, {"share": -0.1}, {"distance": 0.0}, {"sigma": 0.0}, {"pace": 0.0}, {"pace": 1.5}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="expected"):
        Branch(**settings)


def test_heldout_images_of_other_classes() -> None:
    with pytest.raises(DataError, match="held-out"):
        Branch().fit(_images(4, 0), torch.zeros(4).long(), _images(4, 1), torch.ones(4).long())


def test_uncalibrated_branches_cannot_start() -> None:
    with pytest.raises(RecipeError, match="call calibrated"):
        _fitted().given(_images(2, 5), torch.zeros(2).long()).start(torch.zeros(2).long(), [0, 1])


def test_branches_stay_nearer_to_their_parent_than_fresh_samples_and_cost_less(diverse: Recipe) -> None:
    job = Job.prepare(replace(diverse, guide=Component(target="monai_diverse.sampling.Branch", arguments={"sigma": 0.5, "share": 0.99})))
    labels, seeds = job.asked(0, 32)
    parent = job.draw(labels[:1], seeds[:1], None)
    guide = job.guide.given(job.source.encode(torch.from_numpy(parent)), torch.from_numpy(labels[:1]))
    same = np.full(32, labels[0])
    before = job.source.nfe
    branches, costs = job.draw(same, seeds, guide), job.costs(same, seeds, guide)
    assert job.source.nfe - before == costs.sum()
    assert np.median(costs) < job.source.cost(job.recipe.steps)
    fresh = job.draw(same, seeds, None)
    branched = costs < job.source.cost(job.recipe.steps)

    def apart(images: np.ndarray) -> float:
        return float(np.median(np.linalg.norm((images - parent).reshape(len(images), -1), axis=1)))

    assert apart(branches[branched]) < 0.7 * apart(fresh[branched])


def test_branches_are_calibrated_with_the_recipes_steps(diverse: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[int | None] = set()
    renoise = DiffusionSource.renoise

    def noted(self: DiffusionSource, *given: object, steps: int | None = None) -> Tensor:
        asked.add(steps)
        return renoise(self, *given, steps=steps)

    monkeypatch.setattr(DiffusionSource, "renoise", noted)
    Job.prepare(replace(diverse, steps=7))
    assert asked == {7}
    source = diverse.source.build(diverse.folder)
    spent = []
    for steps in (None, 40):
        before = source.nfe
        source.renoise(torch.zeros(1, *source.shape), torch.zeros(1).long(), [0], 1.0, steps=steps)
        spent.append(source.nfe - before)
    assert spent[1] > spent[0]


def test_growth_with_the_default_guide_resumes_and_counts_what_it_spends(diverse: Recipe, tmp_path: Path) -> None:
    """Branches make images depend on the bank: interrupted inside a batch, the same bank must come out."""
    diverse = replace(diverse, max_evaluations=700)
    job = Job.prepare(diverse)
    assert job.guide.notes()["branch_sigma"] in SIGMAS
    spent = job.source.nfe
    rounds = list(rehearse(job))
    assert sum(r.nfe for r in rounds) == job.source.nfe - spent <= diverse.max_evaluations
    assert rounds[-1].nfe < rounds[0].nfe, "branches should have been drawn for this test to mean anything"
    whole = grow(diverse, tmp_path / "whole")
    assert whole.progress["nfe"] == sum(r.nfe for r in rounds)
    np.testing.assert_array_equal(whole.images[:], np.concatenate([r.images[[v.accepted for v in r.verdicts]] for r in rounds]))
    assert whole.header.recipe["calibrated"] == job.guide.notes()
    part = grow(replace(diverse, size=len(whole) // 2 + 1), tmp_path / "part")
    assert part.progress["drawn"] % diverse.batch_size, "the bound should fall inside a batch for this test to mean anything"
    assert grow(diverse, tmp_path / "part", resume=True).fingerprint == whole.fingerprint


def test_the_shield_covers_what_the_model_saw_and_what_the_user_has(diverse: Recipe) -> None:
    other = replace(diverse.reference, part=None)  # the whole train split, of which the model saw a part
    covered = []
    for recipe in (diverse, replace(diverse, reference=other, calibration=replace(diverse.reference, part=None, split="val"))):
        job = Job.prepare(recipe)
        covered.append(next(g.balls for g in job.guide.guides if hasattr(g, "balls")))
    seen, whole = len(diverse.generator_train.load(Path())), len(other.load(Path()))
    assert len(covered[0].centres) == seen
    assert len(covered[1].centres) == seen + whole - len(diverse.reference.load(Path()))


def test_recipes_name_the_default_guide_in_one_word(recipe_file: Path) -> None:
    content = yaml.safe_load(recipe_file.read_text()) | {"guide": "diverse"}
    recipe_file.write_text(yaml.safe_dump(content))
    recipe = Recipe.load(recipe_file)
    assert recipe.guide == Component(target="monai_diverse.sampling.Diverse")
    assert recipe.guide.build(recipe_file.parent) == Diverse()


def test_pilots_differ_by_strength_and_leave_the_banks_seeds_alone(diverse: Recipe) -> None:
    found = list(pilots(replace(diverse, steps=12), strengths=(0.0, 5.0), evaluations=1200))
    assert [pilot.strength for pilot in found] == [0.0, 5.0]
    assert all(pilot.outcome.nfe <= 1200 and 0 < pilot.in_distribution <= 1 for pilot in found)
    wide = Component(target="monai_diverse.sampling.Shield", arguments={"scale": 3.0, "pool": 1})
    guided = replace(diverse, steps=12, guide=Component(target="monai_diverse.sampling.Diverse", arguments={"shield": asdict(wide)}))
    none, some = (next(rehearse(Job.prepare(with_strength(guided, strength)))).images for strength in (0.0, 5.0))
    assert np.abs(none - some).max() > 0.01
    fixed = with_strength(diverse, 0.4).guide.build(Path())
    assert fixed.strength == 0.4
    fitted = fixed.fit(*[_images(40, 0), torch.arange(40) % 2] * 2)
    assert next(g.settings.strength for g in fitted.guides if isinstance(g.settings, Shield)) == 0.4


def _pilot(strength: float, accepted: int, share: float) -> Pilot:
    return Pilot(strength=strength, outcome=Yield(drawn=1000, accepted=accepted, nfe=10_000), in_distribution=share)


def test_the_best_pilot_is_as_realistic_as_the_weakest_within_3_points() -> None:
    found = [_pilot(0.0, 5, 0.99), _pilot(0.3, 9, 0.97), _pilot(0.6, 9, 0.965), _pilot(1.2, 30, 0.95)]
    assert best(found).strength == 0.3


def test_tuning_needs_a_guide_with_a_strength(diverse: Recipe) -> None:
    with pytest.raises(RecipeError, match="at least one batch"):
        next(pilots(diverse, evaluations=10))
    with pytest.raises(RecipeError, match="add `guide: diverse`"):
        next(pilots(replace(diverse, guide=None)))
    with pytest.raises(RecipeError, match="strength"):
        next(pilots(replace(diverse, guide=Component(target="monai_diverse.sampling.Branch"))))


def test_command_line_tunes_once(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(recipe_file.read_text()) | {"guide": "diverse", "max_evaluations": 400}
    recipe_file.write_text(yaml.safe_dump(content))
    asked = ["grow", str(recipe_file), "--out", str(tmp_path / "bank"), "--tune", "--tune-evaluations", "320"]
    assert main(asked) == 0
    frontier = read_json(tmp_path / "bank.tuning.json")
    assert [point["strength"] for point in frontier["frontier"]] == [0.0, 0.15, 0.3, 0.6, 1.2]
    assert f"chosen: strength {frontier['strength']:g}" in capsys.readouterr().err
    assert main([*asked, "--resume", "--max-evaluations", "800"]) == 0
    assert "chosen" not in capsys.readouterr().err
