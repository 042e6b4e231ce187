from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr, ndtri

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.study import METRICS, Run, compare, metrics_of, summarise
from monai_diverse.study.inference import holm, paired_difference, weighted_metric
from monai_diverse.study.metrics import calibration_error

Doubles = npt.NDArray[np.float64]
BY_CLASS = (42, 114)
LABELS = np.repeat([0, 1], BY_CLASS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Standard deviations of what moves a classifier's margin: the image, for both arms or for one, the seed, and both together."""

    shared: float = 1.0
    images: float = 0.0
    seeds: float = 0.0
    both: float = 0.0

    def draw(self, rng: np.random.Generator, *, better: float = 0.0, seeds: int = 10) -> tuple[Doubles, Doubles]:
        """Probabilities of two arms, right with chance .8, the first with Phi(Phi^-1(.8) + better)."""
        n, scale = len(LABELS), np.sqrt(self.shared**2 + self.images**2 + self.seeds**2 + self.both**2)
        difficulty, arms = rng.normal(0, self.shared, n), []
        for ahead in (better, 0.0):
            margin = scale * (ndtri(0.8) + ahead) + difficulty + rng.normal(0, self.images, n)
            # half of the seeds err towards either class
            margin = margin + rng.normal(0, self.seeds, (seeds, 1)) * (2 * LABELS - 1) + rng.normal(0, self.both, (seeds, n))
            one = 1 / (1 + np.exp(-margin * (2 * LABELS - 1)))
            arms.append(np.stack([1 - one, one], axis=2))
        return arms[0], arms[1]

    @staticmethod
    def truth(better: float) -> float:
        return float(ndtr(ndtri(0.8) + better)) - 0.8


SMALL = np.repeat([0, 1, 2], (3, 5, 4))


def random_arms(seed: int, *, seeds: int = 3, labels: npt.NDArray[np.int64] = SMALL) -> tuple[Doubles, Doubles]:
    rng = np.random.default_rng(seed)
    shape = (seeds, len(labels))
    return rng.dirichlet(np.ones(labels.max() + 1), shape), rng.dirichlet(np.ones(labels.max() + 1), shape)


# --- metrics of one run


def test_calibration_error_by_hand() -> None:
    # in bin ]10/15, 11/15] three images of confidence .7, two of them right; .95, wrong; in ]8/15, 9/15] .6, its end, right, and .58, wrong
    probabilities = np.array([[0.7, 0.3], [0.7, 0.3], [0.3, 0.7], [0.05, 0.95], [0.6, 0.4], [0.58, 0.42]])
    labels = np.array([0, 1, 1, 0, 0, 1])
    assert calibration_error(probabilities, labels) == pytest.approx((abs(2 - 3 * 0.7) + 0.95 + abs(1 - 0.6 - 0.58)) / 6)
    assert metrics_of(probabilities, labels)["ece"] == calibration_error(probabilities, labels)
    assert calibration_error(np.eye(3), np.arange(3)) == 0
    assert calibration_error(np.eye(3), np.array([1, 2, 0])) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.sampled_from([0.3, 1.0, 5.0]), st.integers(0, 2**32 - 1))
def test_calibration_error_is_that_of_torchmetrics(classes: int, sharpness: float, seed: int) -> None:
    reference = pytest.importorskip("torchmetrics.functional.classification", reason="the independent reference of this test")
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.integers(classes, size=80), rng.dirichlet(np.full(classes, sharpness), size=80)
    expected = reference.multiclass_calibration_error(torch.from_numpy(probabilities), torch.from_numpy(labels), classes, n_bins=15, norm="l1")
    assert calibration_error(probabilities, labels) == pytest.approx(float(expected), abs=1e-6)


def test_recalls_are_of_each_class() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    decided = np.array([0, 0, 0, 2, 0, 1, 1])
    got = metrics_of(np.eye(3)[decided], labels)
    assert [got[f"recall_{c}"] for c in range(3)] == [0.75, 0.5, 0]
    assert list(got) == [*METRICS, "recall_0", "recall_1", "recall_2", "ece"]


# --- summaries


def run(arm: str, seed: int, **metrics: float) -> Run:
    return Run(arm=arm, seed=seed, metrics=metrics, best_epoch=1, validation={}, probabilities=np.full((2, 2), 0.5), seconds=1.0)


def test_summaries_hold_every_metric_that_all_runs_have() -> None:
    runs = [run(arm, seed, ece=0.1 * seed, recall_0=0.5, accuracy=0.7, auc=0.8, balanced_accuracy=0.9) for arm in "ab" for seed in (1, 2)]
    names = [*METRICS, "ece", "recall_0"]
    assert [list(arm) for arm in summarise(runs).values()] == [[*names, "seeds"]] * 2
    assert summarise(runs)["a"]["ece"]["mean"] == pytest.approx(0.15)
    runs[3] = run("b", 2, accuracy=0.6, auc=0.8, balanced_accuracy=0.9, ece=0.4)
    assert list(summarise(runs)["a"]) == list(compare(runs, "a", "b")) == [*METRICS, "ece", "seeds"]
    assert compare(runs, "a", "b")["ece"]["mean"] == pytest.approx((0 - 0.2) / 2)


# --- differences


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_weighted_metrics_are_those_of_images_that_are_there_so_often(classes: int, ties: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=10)])
    probabilities = rng.dirichlet(np.ones(classes), size=(2, len(labels)))
    if ties:
        probabilities = np.eye(classes)[probabilities.argmax(axis=2)] * 0.5 + 0.5 / classes
    weights = rng.integers(0, 4, size=(2, len(labels)))
    weights[:, :classes] += 1  # no class without an image
    repeated = [np.repeat(np.arange(len(labels)), row) for row in weights]
    expected = [[metrics_of(one[rows], labels[rows]) for one in probabilities] for rows in repeated]
    for metric in ("balanced_accuracy", "accuracy", "auc", *(f"recall_{c}" for c in range(classes))):
        got = weighted_metric(metric, probabilities, labels, weights.astype(np.float64))
        np.testing.assert_allclose(got, [[one[metric] for one in row] for row in expected])


@pytest.mark.parametrize("metric", ["balanced_accuracy", "auc", "accuracy", "recall_2"])
def test_the_mean_and_the_interval_over_seeds_are_those_of_the_runs(metric: str) -> None:
    ours, theirs = random_arms(0)
    values = [[metrics_of(one, SMALL)[metric] for one in arm] for arm in (ours, theirs)]
    expected = stats.ttest_rel(*values).confidence_interval(0.95)
    got = paired_difference(ours, theirs, SMALL, metric=metric, resamples=50)
    assert got["mean"] == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert got["seeds_ci95"] == pytest.approx([expected.low, expected.high])


def test_the_interval_is_that_of_a_two_way_layout() -> None:
    ours, theirs = World(images=0.5, seeds=0.6, both=0.8).draw(np.random.default_rng(8), better=0.1, seeds=3)
    hits = [(arm.argmax(axis=2) == LABELS).astype(float)[:, LABELS == 1] for arm in (ours, theirs)]
    table = hits[0] - hits[1]
    s, n = table.shape
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    seeds, images = table.mean(axis=1).var(ddof=1) / s, table.mean(axis=0).var(ddof=1) / n
    both = (rest**2).sum() / ((s - 1) * (n - 1) * s * n)
    variance, few = seeds + images - both, BY_CLASS[0] - 1  # degrees of freedom: those of the smaller class
    assert variance > max(seeds, images)
    freedom = variance**2 / (seeds**2 / (s - 1) + images**2 / few + both**2 / ((s - 1) * few))
    got = paired_difference(ours, theirs, LABELS, metric="recall_1", resamples=20_000)
    half = (got["ci95"][1] - got["ci95"][0]) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(variance), rel=0.02)
    assert sum(got["ci95"]) / 2 == pytest.approx(got["mean"])


def test_accuracy_weighs_classes_by_their_images() -> None:
    labels, right = np.repeat([0, 1], [3, 9]), np.array([0, 0, 1, *[1] * 6, 0, 1, 1])
    ours = np.eye(2)[np.where(right == 1, labels, 1 - labels)]
    theirs = np.eye(2)[1 - labels]  # always wrong, so that the difference is the accuracy; and all seeds alike
    variance = sum(n**2 * right[labels == c].var(ddof=1) / n for c, n in enumerate((3, 9))) / 12**2
    got = paired_difference(np.stack([ours] * 2), np.stack([theirs] * 2), labels, metric="accuracy", resamples=20_000)
    assert got["mean"] == pytest.approx(right.mean())
    assert got["ci95"][1] - got["mean"] == pytest.approx(stats.t.ppf(0.975, 2) * np.sqrt(variance), rel=0.03)


def intervals(world: World, better: float = 0.0, *, trials: int = 300) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    return [paired_difference(*world.draw(rng, better=better), LABELS, resamples=200, seed=number) for number in range(trials)]


@pytest.mark.parametrize(
    ("world", "better"),
    [
        (World(images=0.8, seeds=0.05, both=0.2), 0.0),  # without the variance over images .35
        (World(shared=0.5, seeds=0.8, both=0.3), 0.25),  # without the variance over seeds .4
        (World(images=0.3, both=1.2), 0.0),  # with both resampled at once .99
    ],
)
def test_intervals_cover_the_truth_as_often_as_they_say(world: World, better: float) -> None:
    found, truth = intervals(world, better), world.truth(better)
    low, high = stats.binom.interval(0.99, len(found), 0.95)
    assert low <= sum(one["ci95"][0] <= truth <= one["ci95"][1] for one in found) <= high
    assert np.mean([one["mean"] for one in found]) == pytest.approx(truth, abs=0.005)


def test_intervals_over_seeds_alone_do_not_hold_for_other_images() -> None:
    found = intervals(World(images=0.8, seeds=0.05, both=0.2), trials=60)
    assert sum(one["seeds_ci95"][0] <= 0 <= one["seeds_ci95"][1] for one in found) < 40
    assert all(np.ptp(one["seeds_ci95"]) < np.ptp(one["ci95"]) for one in found)


def test_images_of_one_patient_count_once() -> None:
    ours, theirs = World(images=0.5, both=0.5).draw(np.random.default_rng(4), better=0.1)
    once = paired_difference(ours, theirs, LABELS)
    groups = np.repeat(np.arange(len(LABELS)), 4)
    often = [np.repeat(arm, 4, axis=1) for arm in (ours, theirs)]
    grouped = paired_difference(*often, np.repeat(LABELS, 4), groups=groups)
    for name, value in once.items():
        assert grouped[name] == pytest.approx(value)
    alone = paired_difference(*often, np.repeat(LABELS, 4))
    assert np.ptp(alone["ci95"]) < 0.75 * np.ptp(once["ci95"])


def test_a_patient_with_images_of_two_classes_counts_with_the_first() -> None:
    labels, groups = np.array([0, 1, 1, 1, 0, 0]), np.array([7, 7, 5, 3, 2, 2])
    ours, theirs = random_arms(2, labels=labels)
    got = paired_difference(ours, theirs, labels, groups=groups, resamples=100)
    assert np.isfinite(got["ci95"]).all()
    with pytest.raises(DataError, match="first image is of class 1, got 0"):
        paired_difference(ours, theirs, labels, groups=np.array([0, 0, 0, 0, 1, 1]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["balanced_accuracy", "auc", "accuracy", "recall_1"]), st.floats(0, 0.6))
def test_p_is_small_exactly_where_the_interval_leaves_out_zero(seed: int, metric: str, better: float) -> None:
    ours, theirs = World(both=0.5).draw(np.random.default_rng(seed), better=better, seeds=4)
    got, swapped = (paired_difference(*arms, LABELS, metric=metric, resamples=60) for arms in ((ours, theirs), (theirs, ours)))
    low, high = got["ci95"]
    assert (got["p"] < 0.05) == (not low <= 0 <= high)
    assert 0 <= got["p"] <= 1
    assert swapped["p"] == pytest.approx(got["p"])
    assert swapped["ci95"] == pytest.approx([-high, -low])


def test_arms_without_a_difference_and_with_nothing_else() -> None:
    ours, _ = random_arms(5)
    assert paired_difference(ours, ours, SMALL) == {"mean": 0.0, "ci95": [0.0, 0.0], "seeds_ci95": [0.0, 0.0], "p": 1.0}
    right = np.repeat(np.eye(3)[SMALL][None], 2, axis=0)
    assert paired_difference(right, right[:, :, ::-1][:, :, [1, 2, 0]], SMALL, metric="recall_0")["p"] == 0.0


def test_resamples_repeat_by_their_seed_and_leave_global_state_alone() -> None:
    ours, theirs = random_arms(6)
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    once = paired_difference(ours, theirs, SMALL, resamples=700, seed=1)
    assert paired_difference(ours, theirs, SMALL, resamples=700, seed=1) == once
    assert paired_difference(ours, theirs, SMALL, resamples=700, seed=2)["ci95"] != once["ci95"]
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theirs": random_arms(0)[1][:2]}, DataError, "expected one shape"),
        ({"theirs": random_arms(0)[1][:, :4]}, DataError, "expected one shape"),
        ({"ours": random_arms(0)[0][0]}, DataError, "expected one shape"),
        ({"ours": random_arms(0)[0][:1], "theirs": random_arms(0)[1][:1]}, DataError, "two or more seeds, got 1"),
        ({"ours": np.full((3, len(SMALL), 3), np.nan)}, DataError, "diverged"),
        ({"labels": SMALL[:-1]}, DataError, "labels: expected shape"),
        ({"labels": np.minimum(SMALL, 1)}, DataError, "got none of class 2"),
        ({"labels": np.array([0, *[1] * 5, *[2] * 6])}, DataError, "first image is of class 0, got 1"),
        ({"groups": np.arange(3)}, DataError, "groups: expected shape"),
        ({"metric": "ece"}, RecipeError, "metric: expected one of balanced_accuracy, accuracy, auc, recall_0, recall_1, recall_2, got 'ece'"),
        ({"metric": "recall_3"}, RecipeError, "metric: expected one of"),
        ({"resamples": 1}, RecipeError, "resamples: expected at least 2"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(change: dict[str, Any], error: type[Exception], message: str) -> None:
    ours, theirs = random_arms(0)
    arguments = {"ours": ours, "theirs": theirs, "labels": SMALL} | change
    with pytest.raises(error, match=message) as caught:
        paired_difference(**arguments)
    assert "\n" not in str(caught.value)


# --- several comparisons


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.8, 0.5]) == [1.0, 1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1), st.floats(0, 0.05)), min_size=1, max_size=6))
def test_holm_closes_bonferronis_test(values: list[float]) -> None:
    got = holm(values)
    # an hypothesis falls where Bonferroni rejects every set of hypotheses that holds it (Marcus, Peritz & Gabriel 1976)
    places = range(len(values))
    sets = [chosen for size in range(1, len(values) + 1) for chosen in itertools.combinations(places, size)]
    expected = [max(min(1, len(chosen) * min(values[j] for j in chosen)) for chosen in sets if i in chosen) for i in places]
    assert got == pytest.approx(expected)
    assert all(value <= adjusted <= 1 for value, adjusted in zip(values, got, strict=True))
    order = np.argsort(values)
    assert (np.diff(np.array(got)[order]) >= 0).all()


@pytest.mark.parametrize("values", [[0.5, 1.1], [-0.1], [float("nan"), 0.2]])
def test_holm_refuses_what_is_no_p(values: list[float]) -> None:
    with pytest.raises(DataError, match="from 0 to 1"):
        holm(values)
