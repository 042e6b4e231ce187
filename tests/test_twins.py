"""Twins: division of the patients, what is measured of a pair, where to stop; and the experiment of the paper on digits."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import blobs
from scipy.stats import energy_distance as scalar_energy_distance

from monai_diverse.audit import TwinRecipe, UNetTrainer, audit_twins, twin_result, twin_steps
from monai_diverse.audit.denoising import denoised, loss_levels, noised
from monai_diverse.audit.halves import Halves, grouped, halves
from monai_diverse.audit.halves import test_part as part_for_testing
from monai_diverse.audit.stops import Curve, budget_stop, resample, strict_stop, utility_stop
from monai_diverse.audit.twin_measures import Measures, energy_distance, of_reals
from monai_diverse.audit.twin_result import TwinAudit, conclude
from monai_diverse.data import LabelledImages
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import PixelFeatures
from monai_diverse.sources import DiffusersSource
from monai_diverse.training import TrainConfig
from monai_diverse.training.config import build_scheduler
from monai_diverse.training.objective import Batch, to_model_range

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "digits_twins.py"
STEPS = [10, 20, 40, 80, 160]


@pytest.fixture(scope="module")
def digits_twins() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_twins", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits_twins"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _curve(values: list[float], noise: float = 1e-3, seed: int = 0) -> Curve:
    rng = np.random.default_rng(seed)
    value = np.array(values)
    return Curve(value=value, resampled=value + noise * rng.standard_normal((400, len(values))), confidence=0.95)


# -- the published effect ------------------------------------------------------------------------------------------------------------------------


def test_digits_show_biased_generalization(tmp_path: Path, digits_twins: ModuleType) -> None:
    trainer = digits_twins.DigitsTrainer(learning_rate=3e-3, width=192, batch_size=64, ema_decay=0.99, sampling_steps=20)
    recipe = TwinRecipe(trainer=trainer, steps=2000, first=70, checkpoints=8, per_twin=200, images=300, test_parts=8)
    data = digits_twins.digits()
    audit = audit_twins(recipe, data, np.arange(len(data)), out=tmp_path)
    rows = {row["step"]: row for row in audit.summary["checkpoints"]}
    strict, budget, utility = (audit.stops[name] for name in ("strict", "budget", "utility"))
    assert strict.resolved
    assert strict.step is not None
    assert utility.step is not None
    assert budget.step is not None
    lowest = rows[utility.step]
    assert strict.step < utility.step / 2
    assert lowest["d_pair"]["value"] > 1.3 * rows[strict.step]["d_pair"]["value"]
    assert lowest["ratio"]["value"] < 0.97
    assert lowest["ratio"]["ci"][1] < 1
    assert lowest["own_nearer"]["ci"][0] > 0.5
    assert lowest["gap_ratio"] <= 0.01  # the usual test is blind to it
    assert lowest["loss_train"] < lowest["loss"]["value"] - 0.02
    assert budget.step < utility.step
    assert strict.quality_ok
    assert lowest["quality"] < rows[recipe.schedule[0]]["quality"]
    assert audit.summary["phase"] == [strict.step, utility.step]
    assert audit.quadruplets[strict.step].shape == (8, 4, 1, 8, 8)


# -- a small audit -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(digits_twins: ModuleType) -> TwinRecipe:
    trainer = digits_twins.DigitsTrainer(width=32, blocks=1, batch_size=16, sampling_steps=4)
    return TwinRecipe(trainer=trainer, steps=40, first=10, checkpoints=3, pairs=2, per_twin=60, images=20, resamples=100)


def test_an_interrupted_audit_goes_on_to_the_same_result(tmp_path: Path, digits_twins: ModuleType, small: TwinRecipe) -> None:
    data = digits_twins.digits()[np.arange(400)]
    whole = audit_twins(small, data, np.arange(400), out=tmp_path / "whole")
    for count in (50, 130, 163):
        steps = twin_steps(small, data, np.arange(400), out=tmp_path / "parts")
        for _, _ in zip(range(count), steps, strict=False):
            pass
        steps.close()
    again = audit_twins(small, data, np.arange(400), out=tmp_path / "parts")
    assert again.summary == whole.summary
    assert [row["step"] for row in whole.summary["checkpoints"]] == small.schedule == [10, 20, 40]
    assert whole.summary["checkpoints"][0]["d_pair"]["value"] != whole.summary["checkpoints"][1]["d_pair"]["value"]


def test_processes_give_what_one_gives(tmp_path: Path, small: TwinRecipe) -> None:
    data, recipe = (
        blobs(40, 0),
        TwinRecipe(
            trainer=UNetTrainer(config=TrainConfig(batch_size=2, channels=(16, 32), validation_draws=1, check_every=4), sampling_steps=2),
            steps=4,
            first=2,
            checkpoints=2,
            images=4,
            resamples=100,
            twin_correlation=0.99999,
        ),
    )
    alone = audit_twins(recipe, data, out=tmp_path / "alone")
    both = audit_twins(recipe, data, out=tmp_path / "both", workers=2)
    assert both.summary == alone.summary
    weights = [tmp_path / "alone" / "pair0" / twin / "snapshots" / "000004" / "unet" / "diffusion_pytorch_model.safetensors" for twin in "ab"]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_another_audits_folder_is_refused_and_what_is_missing_is_said(tmp_path: Path, digits_twins: ModuleType, small: TwinRecipe) -> None:
    data = digits_twins.digits()[np.arange(400)]
    next(twin_steps(small, data, np.arange(400), out=tmp_path))
    before = (tmp_path / "twins.json").read_bytes()
    with pytest.raises(RecipeError, match="holds twins with other data or settings"):
        next(twin_steps(replace(small, per_twin=50), data, np.arange(400), out=tmp_path))
    with pytest.raises(RecipeError, match="holds twins with other data or settings"):
        next(twin_steps(small, data[np.arange(399)], np.arange(399), out=tmp_path))
    assert (tmp_path / "twins.json").read_bytes() == before
    with pytest.raises(DataError, match="expected measures of a checkpoint, but there are none yet"):
        twin_result(small, data, np.arange(400), out=tmp_path)
    (tmp_path / "pair0" / "measures").mkdir(parents=True)
    (tmp_path / "pair0" / "measures" / "000010.npz").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(DataError, match="it cannot be read; delete it to measure again"):
        twin_result(small, data, np.arange(400), out=tmp_path)
    with pytest.raises(DataError, match="expected twins, but there are none yet"):
        twin_result(small, data, np.arange(400), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(RecipeError, match="workers: expected at least 1"):
        next(twin_steps(small, data, np.arange(400), out=tmp_path, workers=0))
    more = replace(small, pairs=3, tolerance=0.1)  # neither changes what a twin is
    next(twin_steps(more, data, np.arange(400), out=tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pairs": 0}, "pairs: expected at least 1, got 0"),
        ({"steps": 50}, r"steps: expected more than first \(50\), got 50"),
        ({"confidence": 1.0}, "confidence: expected between 0 and 1"),
        ({"tolerance": 0.0}, "tolerance and quality_floor: expected above 0"),
        ({"tolerance": float("nan")}, "tolerance and quality_floor: expected above 0"),
        ({"per_twin": 1}, "per_twin: expected at least 2"),
        ({"twin_correlation": 0.0}, "twin_correlation: expected above 0"),
        ({"seed": -1}, "seed: expected 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TwinRecipe(**settings)


def test_seeds_of_all_twins_differ() -> None:
    recipes = [TwinRecipe(seed=seed) for seed in range(3)]
    seeds = [recipe.seed_of(pair, twin) for recipe in recipes for pair in range(50) for twin in (0, 1)]
    assert len(set(seeds)) == len(seeds)


# -- halves --------------------------------------------------------------------------------------------------------------------------------------


def test_halves_share_no_patient_and_keep_class_shares() -> None:
    data = blobs(240, 0)
    patients = np.arange(240) // 4
    known = grouped(data, patients, 0.95)
    rest, test = part_for_testing(known, 5, 0)
    pairs = [halves(known, rest, pair, None, 0) for pair in range(3)]
    for pair in pairs:
        parts = [set(known.group_ids[indices]) for indices in (pair.a, pair.b, test)]
        assert all(not first & second for i, first in enumerate(parts) for second in parts[i + 1 :])
        assert sorted([*pair.a, *pair.b, *test]) == list(range(240))
        assert abs(len(pair.a) - len(pair.b)) <= 4
        assert abs(known.labels[pair.a].mean() - 0.5) < 0.05
    assert any(set(first.a) != set(second.a) for first, second in pairwise(pairs))
    small = halves(known, rest, 0, 40, 0)
    assert 32 <= len(small.a) <= 48
    assert not set(known.group_ids[small.a]) & set(known.group_ids[small.b])


def test_halves_that_cannot_be_are_refused() -> None:
    data = grouped(blobs(40, 0), np.arange(40) // 20, 0.95)
    with pytest.raises(DataError, match="whole groups to make two halves of about 20 images"):
        halves(grouped(blobs(40, 0), np.arange(40) // 30, 0.95), np.arange(40), 0, None, 0)
    with pytest.raises(DataError, match="expected at least 60 images"):
        halves(data, np.arange(40), 0, 30, 0)
    alone = LabelledImages(images=data.images, labels=(np.arange(40) == 0).astype(np.int64))
    with pytest.raises(DataError, match="none of class 1 in one"):
        halves(alone, np.arange(40), 0, None, 0)


def test_halves_of_single_images_are_equal_by_class_and_quick() -> None:
    labels = np.random.default_rng(0).integers(0, 5, size=20_000)
    data = LabelledImages(images=np.zeros((20_000, 1, 1, 1), np.float32), labels=labels)
    for wanted in (None, 50, 1000):
        pair = halves(data, np.arange(20_000), 0, wanted, 0)
        assert abs(len(pair.a) - len(pair.b)) <= 2
        assert abs(len(pair.a) - (wanted or 10_000)) <= 3
        assert np.abs(np.bincount(labels[pair.a]) - np.bincount(labels[pair.b])).max() <= 2


def test_halves_of_uneven_patients_are_alike_and_differ_from_pair_to_pair() -> None:
    groups = np.repeat(np.arange(200), np.random.default_rng(1).geometric(0.15, size=200))
    count = len(groups)
    data = LabelledImages(images=np.zeros((count, 1, 1, 1), np.float32), labels=groups % 2, groups=groups)
    pairs = [halves(data, np.arange(count), pair, per_twin, 0) for per_twin in (None, 100) for pair in range(4)]
    for pair in pairs:
        assert min(len(pair.a), len(pair.b)) >= 0.8 * max(len(pair.a), len(pair.b))
        assert not set(groups[pair.a]) & set(groups[pair.b])
    shared = [len(set(first.a) & set(second.a)) / len(first.a) for first, second in pairwise(pairs[:4])]
    assert all(0.2 < share < 0.8 for share in shared)


def test_the_division_is_kept_whatever_a_later_version_would_draw(
    tmp_path: Path, digits_twins: ModuleType, small: TwinRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, file = digits_twins.digits()[np.arange(400)], tmp_path / "division.json"
    next(twin_steps(small, data, np.arange(400), out=tmp_path))
    before = json.loads(file.read_text())
    assert len(before["pairs"]) == 2
    assert sorted(before["test"] + before["rest"]) == list(range(400))
    monkeypatch.setattr("monai_diverse.audit.division.halves", lambda data, rest, pair, per_twin, seed: Halves(a=rest[:60], b=rest[60:120]))
    next(twin_steps(replace(small, pairs=3), data, np.arange(400), out=tmp_path))
    after = json.loads(file.read_text())
    assert after["pairs"] == [*before["pairs"], {"a": before["rest"][:60], "b": before["rest"][60:120]}]
    after["pairs"][0]["b"] = after["pairs"][0]["a"]
    file.write_text(json.dumps(after))
    with pytest.raises(DataError, match="patients in two parts"):
        next(twin_steps(small, data, np.arange(400), out=tmp_path))
    file.unlink()
    with pytest.raises(DataError, match="expected who sees what"):
        next(twin_steps(small, data, np.arange(400), out=tmp_path))


def test_groups_are_the_given_the_datas_own_or_near_duplicates() -> None:
    data = blobs(6, 0)
    images = np.concatenate([data.images, data.images[:2]])
    labels = np.concatenate([data.labels, data.labels[:2]])
    alike = LabelledImages(images=images, labels=labels)
    assert grouped(alike, None, 0.9999).group_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    own = LabelledImages(images=images, labels=labels, groups=np.arange(8) // 2)
    assert grouped(own, None, 0.9999).group_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert grouped(own, np.zeros(8, np.int64), 0.9999).group_ids.tolist() == [0] * 8
    for groups in (np.zeros(7, np.int64), np.arange(8) / 2, np.array(list("aabbccdd"))):
        with pytest.raises(DataError, match="groups: expected whole numbers"):
            grouped(own, groups, 0.9999)


# -- what is measured ----------------------------------------------------------------------------------------------------------------------------


def test_losses_are_those_that_the_network_is_trained_on(tiny_model: Path) -> None:
    source, data, scheduler = DiffusersSource(tiny_model), blobs(6, 5), build_scheduler()
    clean, labels = to_model_range(torch.from_numpy(data.images)), torch.from_numpy(data.labels)
    for index in (50, 500, 950):
        states, encoded = noised(source, torch.from_numpy(data.images), index, 3)
        assert torch.allclose(encoded, clean)
        abar = scheduler.alphas_cumprod[index]
        noise = (states - abar.sqrt() * clean) / (1 - abar).sqrt()
        times = torch.full((6,), index)
        with torch.no_grad():
            loss = Batch(states, times, labels, scheduler.get_velocity(clean, noise, times)).loss(
                lambda x, t, class_labels: source._denoiser.network.args[0].model(x, t, class_labels=class_labels)
            )
        ours, guess = denoised(source, data, index, 3)
        assert np.allclose(ours, loss.numpy(), rtol=1e-3)
        velocity_error = ((guess - noise) / abar.sqrt()).flatten(1).square().mean(1)
        assert np.allclose(velocity_error.numpy(), loss.numpy(), rtol=2e-3, atol=1e-5)


def test_levels_cover_the_schedule_evenly(tiny_model: Path) -> None:
    assert loss_levels(DiffusersSource(tiny_model).schedule, 4) == [125, 375, 625, 875]


def test_the_noise_is_the_same_for_every_model_and_differs_by_seed_and_level(tiny_model: Path) -> None:
    source, images = DiffusersSource(tiny_model), torch.from_numpy(blobs(2, 0).images)
    first, second = (noised(source, images, 400, 1)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.allclose(first, noised(source, images, 400, 2)[0])


def test_energy_distance_is_that_of_the_line_and_zero_for_one_distribution() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, 3000), rng.normal(1, 2, 3000)
    between = np.abs(x[:, None] - y).mean()
    expected = scalar_energy_distance(x, y) ** 2 / (2 * between)
    assert energy_distance(x[:, None], y[:, None]) == pytest.approx(expected, rel=0.03)
    values = [energy_distance(*rng.normal(size=(2, 40, 3))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


def test_own_and_other_are_the_nearest_of_each_set(tmp_path: Path, digits_twins: ModuleType, small: TwinRecipe) -> None:
    data = digits_twins.digits()[np.arange(400)]
    recipe = replace(small, pairs=1)
    audit_twins(recipe, data, np.arange(400), out=tmp_path)
    found = Measures.read(tmp_path / "pair0" / "measures" / "000040.npz")
    known = grouped(data, np.arange(400), 0.95)
    rest, _ = part_for_testing(known, recipe.test_parts, recipe.seed)
    pair = halves(known, rest, 0, recipe.per_twin, recipe.seed)
    sources = [recipe.trainer.load(tmp_path / "pair0" / twin, 40) for twin in "ab"]
    seeds = 2**33 + np.arange(recipe.images)
    pixels = [source.sample(np.zeros(recipe.images, int), seeds).numpy().reshape(recipe.images, -1) for source in sources]
    reals = [known.images[indices].reshape(len(indices), -1) for indices in (pair.a, pair.b)]
    for twin in (0, 1):
        for sets, kept in ((reals[twin], found.own[twin]), (reals[1 - twin], found.other[twin])):
            correlations = np.array([[np.corrcoef(sample, real)[0, 1] for real in sets] for sample in pixels[twin][:5]])
            assert np.allclose(np.sqrt(2 - 2 * correlations.max(1)), kept[:5], atol=1e-5)
    cosines = [np.corrcoef(a, b)[0, 1] for a, b in zip(*pixels, strict=True)]
    assert np.allclose(cosines, found.similarity, atol=1e-5)
    assert PixelFeatures().fingerprint == recipe.describe()["features"]


def test_an_image_and_its_mirrored_self_are_one() -> None:
    images = np.random.default_rng(0).random((12, 1, 8, 8), dtype=np.float32)
    half = LabelledImages(images=images, labels=np.zeros(12, np.int64))
    turned = LabelledImages(images=images[:4, ..., ::-1], labels=np.zeros(4, np.int64))
    assert of_reals([half], turned, PixelFeatures(), mirrored=True)["gap_ratio_real"] == 1
    assert of_reals([half], turned, PixelFeatures(), mirrored=False)["gap_ratio_real"] == 0
    even = LabelledImages(images=(images + images[..., ::-1]) / 2, labels=half.labels)  # the mirrored self is no second nearest
    assert of_reals([even], even[np.arange(4)], PixelFeatures(), mirrored=True)["gap_ratio_real"] == 1


# -- intervals and stops -------------------------------------------------------------------------------------------------------------------------


def test_resamples_vary_as_means_do_within_and_between_pairs() -> None:
    rng = np.random.default_rng(0)
    within = resample(rng.normal(0, 1, (1, 1, 400)), resamples=2000, confidence=0.95, seed=0)
    assert within.resampled.std() == pytest.approx(1 / 20, rel=0.1)
    between = resample(rng.normal(0, 0.01, (1, 40, 50)) + rng.normal(0, 1, (40, 1)), resamples=2000, confidence=0.95, seed=0)
    assert between.resampled.std() == pytest.approx(1 / np.sqrt(40), rel=0.25)
    low, high = within.interval[:, 0]
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_resamples_are_paired_over_checkpoints() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (1, 2, 300))
    curve = resample(np.concatenate([noise, noise + 0.01]), resamples=200, confidence=0.95, seed=0)
    assert curve.rise(0, 1) == pytest.approx((0.01, 0.01))


@pytest.mark.parametrize("pairs", [1, 3])
def test_a_flat_curve_has_no_onset_and_no_lowest_loss(pairs: int) -> None:
    rng, found = np.random.default_rng(pairs), []
    for number in range(60):
        curve = resample(rng.normal(0, 1, (10, pairs, 60)), resamples=200, confidence=0.95, seed=number)
        found.append((strict_stop(range(10), curve, 9).step is not None, utility_stop(range(10), curve)[1].resolved))
    assert np.mean(found, axis=0).max() <= 0.085


def test_intervals_cover_test_images_that_all_pairs_share() -> None:
    rng, covered = np.random.default_rng(5), {True: 0, False: 0}
    for number in range(100):
        shared = rng.normal(0, 1, 40) + rng.normal(0, 0.01, (1, 8, 40))
        for crossed in covered:
            low, high = resample(shared, resamples=200, confidence=0.95, seed=number, crossed=crossed).interval[:, 0]
            covered[crossed] += int(low <= 0 <= high)
    assert covered[True] >= 88
    assert covered[False] < 75  # as if each pair had test images of its own


def test_intervals_of_few_pairs_cover_other_trainings() -> None:
    rng, covered = np.random.default_rng(6), 0
    for number in range(100):
        low, high = resample(rng.normal(0, 1, (1, 3, 1)) + rng.normal(0, 0.1, (1, 3, 20)), resamples=200, confidence=0.95, seed=number).interval[:, 0]
        covered += int(low <= 0 <= high)
    assert covered >= 88


def test_the_utility_stop_needs_a_rise_after_it() -> None:
    index, stop = utility_stop(STEPS, _curve([5, 3, 2, 2.5, 3]))
    assert (index, stop.step, stop.resolved) == (2, 40, True)
    assert not utility_stop(STEPS, _curve([5, 4, 3, 2, 1]))[1].resolved
    index, stop = utility_stop(STEPS, _curve([5, 3, 2, 2, 2.001], noise=0.1))
    assert not stop.resolved
    assert "flat" in stop.why


def test_the_onset_is_the_last_significant_minimum() -> None:
    assert strict_stop(STEPS, _curve([3, 2, 1, 2, 3]), 4).step == 40
    assert strict_stop(STEPS, _curve([3, 1, 2, 0.5, 3]), 4).step == 80
    assert strict_stop(STEPS, _curve([3, 1, 2, 1.5, 1.4]), 4).step == 20


def test_untrained_twins_that_look_alike_are_no_onset() -> None:
    assert strict_stop(STEPS, _curve([0.1, 2, 1, 2, 3]), 4).step == 40
    assert strict_stop(STEPS, _curve([0.1, 2, 3, 4, 5]), 4).step is None


def test_noise_is_no_onset_and_what_lies_behind_the_lowest_loss_does_not_count() -> None:
    noisy = strict_stop(STEPS, _curve([3, 2, 1, 1.02, 1.01], noise=0.1), 4)
    assert noisy.step is None
    assert not noisy.resolved
    assert strict_stop(STEPS, _curve([3, 2, 1, 2, 3]), 2).step is None
    assert "nothing lies before it" in strict_stop(STEPS, _curve([1, 2, 3, 4, 5]), 0).why


def test_the_budget_stop_is_the_latest_that_is_within_for_sure() -> None:
    stop = budget_stop(STEPS, _curve([0, 0.005, 0.01, 0.05, 0.1]), 4, 0.02)
    assert (stop.step, stop.resolved) == (40, True)
    unclear = budget_stop(STEPS, _curve([0, 0.005, 0.02, 0.022, 0.1], noise=0.004), 4, 0.02)
    assert (unclear.step, unclear.resolved) == (20, False)
    assert "until step 160" in unclear.why
    assert budget_stop(STEPS, _curve([0, 0, 0, 0, 0.1]), 3, 0.02).step == 80
    none = budget_stop(STEPS, _curve([0.1, 0.1, 0.2, 0.3, 0.4]), 4, 0.02)
    assert none.step is None
    assert none.resolved
    assert not budget_stop(STEPS, _curve([0.02, 0.1, 0.2, 0.3, 0.4], noise=0.01), 4, 0.02).resolved


def test_the_budget_stop_lies_before_what_is_beyond_and_has_passable_samples() -> None:
    assert budget_stop(STEPS, _curve([0, 0.01, 0.05, 0.01, 0.1]), 4, 0.02).step == 20
    bias = _curve([0, 0.005, 0.01, 0.05, 0.1])
    poor = budget_stop(STEPS, bias, 4, 0.02, quality_ok=[True, True, False, True, True])
    assert (poor.step, poor.resolved) == (20, False)
    none = budget_stop(STEPS, bias, 4, 0.02, quality_ok=[False, False, False, True, True])
    assert none.step is None
    assert "quality" in none.why


def test_stops_that_end_at_an_unresolved_utility_stop_are_unresolved() -> None:
    within = _curve([0, 0, 0, 0, 0.001])
    assert budget_stop(STEPS, within, 4, 0.02).resolved
    assert not budget_stop(STEPS, within, 4, 0.02, sure=False).resolved
    onset = strict_stop(STEPS, _curve([3, 2, 1, 2, 3]), 4, sure=False)
    assert (onset.step, onset.resolved) == (40, False)
    assert not utility_stop(STEPS, _curve([1, 2, 3, 4, 5]))[1].resolved


def _measures(own: float, quality: float, loss: float) -> Measures:
    rng = np.random.default_rng(0)
    return Measures(
        similarity=rng.normal(0.5, 0.01, 50),
        own=own * np.ones((2, 50)),
        other=np.ones((2, 50)),
        copies=np.zeros((2, 50), bool),
        test_losses=loss + rng.normal(0, 0.001, (2, 30)),
        train_losses=np.ones((2, 30)),
        divergence=np.zeros((8, 30)),
        noise_ratios=np.arange(1.0, 9),
        quality=np.full(2, quality),
    )


@pytest.mark.parametrize(("own", "quality", "advice"), [(1.0, 0.01, ("budget", 20)), (0.9, 0.01, None), (1.0, 0.5, None)])
def test_there_is_no_advice_beyond_the_tolerance_or_with_poor_samples(own: float, quality: float, advice: tuple[str, int] | None) -> None:
    found = [[_measures(own, quality, loss)] for loss in (3.0, 1.0, 2.0)]
    summary, stops = conclude(STEPS[:3], found, tolerance=0.02, floor=0.1, confidence=0.95, resamples=100, seed=0)
    assert TwinAudit(summary=summary, stops=stops).advice == advice
    assert all("one pair says nothing of other trainings" in stop.why for stop in stops.values())
    two = conclude(STEPS[:3], [pair * 2 for pair in found], tolerance=0.02, floor=0.1, confidence=0.95, resamples=100, seed=0)[1]
    assert "two pairs say little of others" in two["utility"].why
