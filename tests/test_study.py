from __future__ import annotations

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import get_track_meta, set_track_meta
from scipy import stats

from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.data import LabelledImages
from monai_diverse.errors import BankError, BankMismatchError, DataError, RecipeError
from monai_diverse.study import (
    METRICS,
    Arm,
    ClassifierConfig,
    Run,
    compare,
    control_arms,
    duplicates_bank,
    matched_bank,
    metrics_of,
    restrict,
    run_study,
    summarise,
    training,
)
from monai_diverse.study.config import build_network
from monai_diverse.study.statistics import t_interval
from monai_diverse.study.training import _batches, _looks, _stages

SIDE = 8
TINY = ClassifierConfig(steps=12, batch_size=8, channels=(8, 8, 8, 8), seeds=(0,))


def toy(count: int, seed: int, *, classes: int = 2, contrast: float = 0.5, spatial_dims: int = 2) -> LabelledImages:
    """Noise, with the more brighter columns the higher the class; contrast 0 tells nothing."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 0.5, size=(count, 1, *(SIDE,) * spatial_dims)).astype(np.float32)
    labels = np.arange(count, dtype=np.int64) % classes
    for image, label in zip(images, labels, strict=True):
        image[..., : SIDE * label // classes] += contrast
    return LabelledImages(images=images, labels=labels)


def make_bank(
    path: Path, data: LabelledImages | None, *, shape: tuple[int, ...] = (1, SIDE, SIDE), classes: int = 2, dtype: str = "float32"
) -> SampleBank:
    header = BankHeader(
        recipe={"made": "by a test"}, recipe_fingerprint="r", source={"fingerprint": "s"}, features={}, shape=shape, classes=classes, dtype="float32"
    )
    with BankWriter.create_or_resume(path, header, resume=False) as writer:
        if data is not None:
            writer.append(data.images, data.labels, np.arange(len(data)), {"copy": np.zeros(len(data), np.float32)}, {})
        return writer.bank


def study(arms: list[Arm], config: ClassifierConfig = TINY, *, train: LabelledImages | None = None) -> list[Run]:
    return list(run_study(arms, train or toy(32, 0), toy(20, 1), toy(20, 2), config))


def fake(arm: str, seed: int, value: float) -> Run:
    return Run(
        arm=arm, seed=seed, metrics=dict.fromkeys(METRICS, value), best_epoch=1, validation={}, probabilities=np.full((2, 2), 0.5), seconds=1.0
    )


# --- runs


def lopsided() -> LabelledImages:
    data = toy(40, 0)
    return data[np.flatnonzero((data.labels == 0) | (np.arange(40) < 10))]


def test_a_balanced_arm_shows_classes_equally_often() -> None:
    train = lopsided()
    shares = []
    for balanced in (False, True):
        ((steps, loader),) = _stages(Arm(name="real", augment=False, balanced=balanced), 0, train, dataclasses.replace(TINY, steps=400))
        shown = torch.cat([batch["label"] for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps)])
        shares.append(float(shown.float().mean()))
    assert shares[0] == pytest.approx((train.labels == 1).mean(), abs=0.02)
    assert shares[1] == pytest.approx(0.5, abs=0.03)


def test_the_loss_weighs_classes_unless_they_are_shown_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both at once would give the rarer class more than its share."""
    used = []

    def fit(network: Any, stages: Any, weights: torch.Tensor | None, *rest: Any) -> tuple[int, dict[str, float]]:
        used.append(None if weights is None else weights.tolist())
        return 1, {}

    monkeypatch.setattr(training, "_fit", fit)
    train = lopsided()
    study([Arm(name="real"), Arm(name="balanced", balanced=True)], dataclasses.replace(TINY, seeds=(0,)), train=train)
    assert used == [pytest.approx((len(train) / (2 * np.bincount(train.labels))).tolist()), None]


def test_a_bank_may_replace_the_items_of_one_class_more_often(tmp_path: Path) -> None:
    train, dark = toy(400, 0), toy(16, 5)
    bank = make_bank(tmp_path / "bank", LabelledImages(images=np.zeros_like(dark.images), labels=dark.labels))
    config = dataclasses.replace(TINY, batch_size=100, steps=20)
    for fade in (False, True):
        ((steps, loader),) = _stages(Arm(name="extra", bank=bank, prob=(0.2, 0.8), fade=fade, augment=False), 0, train, config)
        batches = list(itertools.islice(_batches(loader), steps))
        replaced = torch.cat([(batch["image"] == 0).flatten(1).all(1) for batch in batches]).float()
        labels = torch.cat([batch["label"] for batch in batches])
        shares = [float(replaced[labels == label].mean()) for label in (0, 1)]
        assert shares == pytest.approx([0.1, 0.4] if fade else [0.2, 0.8], abs=0.04)


def test_a_probability_a_class_is_one_for_each() -> None:
    with pytest.raises(RecipeError, match="arm 'a': expected one prob, or 2, one a class"):
        study([Arm(name="a", prob=(0.1, 0.2, 0.3))])


def test_pretraining_shows_the_bank_alone_and_then_reals_alone(tmp_path: Path) -> None:
    train, dark = toy(16, 0), toy(16, 5)
    bank = make_bank(tmp_path / "bank", LabelledImages(images=np.zeros_like(dark.images), labels=dark.labels))
    stages = _stages(Arm(name="diverse", bank=bank, pretrain=0.25, augment=False), 0, train, TINY)
    assert [steps for steps, _ in stages] == [3, 9]
    for (_, loader), replaced in zip(stages, (True, False), strict=True):
        for batch in loader:
            assert bool((batch["image"] == 0).all()) == replaced
    (whole,) = _stages(Arm(name="empty", bank=make_bank(tmp_path / "empty", None), pretrain=0.25), 0, train, TINY)
    assert whole[0] == TINY.steps


def test_epochs_follow_one_another_as_the_loader_gives_them() -> None:
    train, config = toy(40, 0), dataclasses.replace(TINY, steps=20)

    def order(batches: Any) -> list[float]:
        return [float(value) for batch in itertools.islice(batches, config.steps) for value in batch["image"].mean(dim=(1, 2, 3))]

    (_, one), (_, other) = (_stages(Arm(name="real", augment=False), 0, train, config)[0] for _ in range(2))
    assert config.steps > 3 * len(one)
    assert order(_batches(one)) == order(itertools.chain.from_iterable(itertools.repeat(other)))


def test_a_share_that_fades_falls_within_an_epoch(tmp_path: Path) -> None:
    train, dark = toy(400, 0), toy(16, 5)
    bank = make_bank(tmp_path / "bank", LabelledImages(images=np.zeros_like(dark.images), labels=dark.labels))
    config = dataclasses.replace(TINY, batch_size=200, steps=2)
    ((steps, loader),) = _stages(Arm(name="diverse", bank=bank, prob=0.8, fade=True, augment=False), 0, train, config)
    assert steps == len(loader)
    dark_ones = [float((batch["image"] == 0).flatten(1).all(1).float().mean()) for batch in itertools.islice(_batches(loader), steps)]
    assert dark_ones == pytest.approx([0.8, 0.4], abs=0.08)


def test_pretrained_runs_end_on_reals_and_differ_from_mixed_ones(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank", toy(10, 5))
    runs = study([Arm(name="pretrained", bank=bank, pretrain=0.5), Arm(name="mixed", bank=bank, prob=0.5)])
    assert not np.array_equal(runs[0].probabilities, runs[1].probabilities)


def test_looks_at_the_validation_images_are_so_many_steps_apart() -> None:
    config = dataclasses.replace(TINY, steps=7, check_every=3)
    network = build_network(config, channels=1, spatial_dims=2, classes=2, seed=0)
    looks = list(_looks(network, _stages(Arm(name="real"), 0, toy(16, 0), config), None, config))
    assert looks == [1, 2, 3]


def test_a_study_repeats_bit_for_bit_and_seeds_differ(tmp_path: Path) -> None:
    arms = [Arm(name="diverse", bank=make_bank(tmp_path / "bank", toy(10, 5)), prob=0.5)]
    config = dataclasses.replace(TINY, seeds=(3, 4))
    once, again = study(arms, config), study(arms, config)
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        assert (one.metrics, one.best_epoch) == (other.metrics, other.best_epoch)
    assert not np.array_equal(once[0].probabilities, once[1].probabilities)


def test_global_state_is_left_as_it_was_while_the_caller_looks_on() -> None:
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    for _ in run_study([Arm(name="standard")], toy(16, 0), toy(8, 1), toy(8, 2), TINY):
        assert torch.equal(torch.get_rng_state(), torch_state)
        np.testing.assert_equal(np.random.get_state(legacy=False), numpy_state)  # noqa: NPY002
        assert random.getstate() == python_state
        assert get_track_meta()


def test_results_do_not_depend_on_the_callers_metadata_setting() -> None:
    expected = study([Arm(name="standard")])[0]
    try:
        set_track_meta(False)
        got = study([Arm(name="standard")])[0]
        assert not get_track_meta()
    finally:
        set_track_meta(True)
    np.testing.assert_array_equal(got.probabilities, expected.probabilities)


def test_runs_of_one_seed_are_paired(tmp_path: Path) -> None:
    """Arms that must train alike do so exactly: with an empty bank, at probability 0, and beside a replacement that never fires."""
    full = make_bank(tmp_path / "full", toy(10, 5))
    arms = [
        Arm(name="standard"),
        Arm(name="empty", bank=make_bank(tmp_path / "empty", None), prob=0.5),
        Arm(name="never", bank=full, prob=0.0),
        Arm(name="hardly", bank=full, prob=1e-12),
        Arm(name="often", bank=full, prob=0.5),
        Arm(name="real", augment=False),
    ]
    runs = {run.arm: run for run in study(arms)}
    for name in ("empty", "never", "hardly"):
        np.testing.assert_array_equal(runs[name].probabilities, runs["standard"].probabilities)
    for name in ("often", "real"):
        assert not np.array_equal(runs[name].probabilities, runs["standard"].probabilities)


def test_an_arm_does_not_depend_on_its_neighbours() -> None:
    alone = study([Arm(name="standard")])[0]
    beside = study([Arm(name="real", augment=False), Arm(name="standard")])[1]
    np.testing.assert_array_equal(alone.probabilities, beside.probabilities)


def test_the_best_epoch_on_validation_is_what_is_tested() -> None:
    """Validation images with swapped labels like an untrained network best: were the last epoch tested, it would do as well as with right ones."""
    train, right, test = toy(40, 0), toy(40, 1), toy(40, 2)
    swapped = LabelledImages(images=right.images, labels=1 - right.labels)
    config, arm = dataclasses.replace(TINY, steps=40, learning_rate=1e-2), Arm(name="real", augment=False)
    honest, misled = (next(run_study([arm], train, validation, test, config)) for validation in (right, swapped))
    assert honest.metrics["auc"] == 1.0
    assert misled.metrics["auc"] < 0.9
    assert misled.best_epoch < honest.best_epoch <= 8
    same = next(run_study([arm], train, test, test, config))
    assert same.metrics == same.validation


def test_informative_samples_are_found_to_help(tmp_path: Path) -> None:
    """Real training images that mislead, and a bank that tells the truth: the study must see the gain, and whom it is owed to."""
    misleading = toy(40, 0)
    misleading = LabelledImages(images=misleading.images, labels=1 - misleading.labels)
    truth = make_bank(tmp_path / "truth", toy(40, 5))
    arms = [
        Arm(name="standard", augment=False),
        Arm(name="diverse", bank=truth, prob=0.9, augment=False),
        Arm(name="duplicates", bank=duplicates_bank(tmp_path / "duplicates", misleading, truth, seed=0), prob=0.9, augment=False),
    ]
    runs = study(arms, dataclasses.replace(TINY, steps=24, batch_size=16, seeds=(0, 1, 2), learning_rate=1e-2), train=misleading)
    assert summarise(runs)["diverse"]["auc"]["mean"] > 0.9
    for control in ("standard", "duplicates"):
        assert compare(runs, "diverse", control)["auc"]["ci95"][0] > 0


def test_every_item_can_be_replaced(tmp_path: Path) -> None:
    """At probability 1 the real images no longer matter."""
    bank = make_bank(tmp_path / "bank", toy(10, 5))
    arms = [Arm(name="diverse", bank=bank, prob=1.0, augment=False)]
    one, other = study(arms, train=toy(32, 0)), study(arms, train=toy(32, 99))
    np.testing.assert_array_equal(one[0].probabilities, other[0].probabilities)


@pytest.mark.parametrize(("classes", "spatial_dims"), [(3, 2), (2, 3)])
def test_more_classes_and_volumes(classes: int, spatial_dims: int) -> None:
    data = [toy(18, seed, classes=classes, spatial_dims=spatial_dims) for seed in range(3)]
    run = next(run_study([Arm(name="standard")], *data, dataclasses.replace(TINY, steps=4)))
    assert run.probabilities.shape == (18, classes)
    np.testing.assert_allclose(run.probabilities.sum(axis=1), 1)


def test_class_weights_lift_the_rare_class() -> None:
    data, validation, test = (toy(60, seed, contrast=0.1) for seed in range(3))
    train = data[np.flatnonzero((data.labels == 0) | (np.arange(60) < 16))]
    mean = {}
    for weighted in (True, False):
        config = dataclasses.replace(TINY, steps=60, class_weighted=weighted, seeds=(0, 1, 2))
        runs = run_study([Arm(name="real", augment=False)], train, validation, test, config)
        mean[weighted] = np.mean([run.probabilities[:, 1].mean() for run in runs])
    assert mean[True] > mean[False] + 0.05


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_enough(steps: int) -> None:
    assert study([Arm(name="standard")], dataclasses.replace(TINY, steps=steps))[0].best_epoch == 1


def test_batches_are_capped_by_the_images() -> None:
    assert len(study([Arm(name="real")], dataclasses.replace(TINY, batch_size=500), train=toy(10, 0))) == 1


def test_what_cannot_be_compared_is_refused_before_training(tmp_path: Path) -> None:
    train, other = toy(16, 0), toy(16, 1)
    one_class = train[np.flatnonzero(train.labels == 0)]
    small = LabelledImages(images=train.images[..., :4], labels=train.labels)
    arm = Arm(name="a")
    wide = Arm(name="a", bank=make_bank(tmp_path / "wide", toy(4, 0, classes=2, spatial_dims=3), shape=(1, SIDE, SIDE, SIDE)), prob=0.5)
    more = Arm(name="a", bank=make_bank(tmp_path / "more", toy(6, 0, classes=3), classes=3), prob=0.5)
    cases = [
        ([], (train, other, other), RecipeError, "arms"),
        ([arm, arm], (train, other, other), RecipeError, "different names"),
        ([arm], (one_class, other, other), DataError, "two or more classes"),
        ([arm], (train, one_class, other), DataError, "validation: expected images of every class"),
        ([arm], (train, other, toy(18, 2, classes=3)), DataError, "test: expected classes 0..1"),
        ([arm], (train, small, other), DataError, "validation: expected images of shape"),
        ([wide], (train, other, other), BankMismatchError, "expected a bank of images"),
        ([more], (train, other, other), BankMismatchError, "expected a bank of classes"),
    ]
    for arms, splits, kind, message in cases:
        with pytest.raises(kind, match=message):
            run_study(arms, *splits, TINY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1.0},
        {"channels": (8, 8)},
        {"channels": (8, 8, 8, 0)},
        {"stem_stride": 0},
        {"check_every": 0},
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"seeds": (-1,)},
        {"seeds": (2**63,)},
        {"device": "abacus"},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        ClassifierConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a", "prob": -0.1},
        {"name": "a", "prob": 1.1},
        {"name": "a", "prob": float("nan")},
        {"name": "a", "prob": (0.5, 1.1)},
        {"name": "a", "prob": ()},
        {"name": "a", "pretrain": 1.0},
        {"name": "a", "pretrain": 0.5, "prob": 0.1},
        {"name": "a", "pretrain": 0.5, "fade": True},
    ],
)
def test_arms_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="expected"):
        Arm(**wrong)  # type: ignore[arg-type]


# --- metrics


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_metrics_agree_with_their_definitions(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=12)])
    probabilities = rng.dirichlet(np.ones(classes), size=len(labels))
    got = metrics_of(probabilities, labels)
    hit = probabilities.argmax(axis=1) == labels
    assert got["accuracy"] == pytest.approx(hit.mean())
    assert got["balanced_accuracy"] == pytest.approx(np.mean([hit[labels == c].mean() for c in range(classes)]))
    areas = []
    for c in range(classes):
        pairs = itertools.product(probabilities[labels == c, c], probabilities[labels != c, c])
        areas.append(np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    assert got["auc"] == pytest.approx(np.mean(areas))


def test_metrics_refuse_what_is_undefined() -> None:
    with pytest.raises(DataError, match="every class"):
        metrics_of(np.full((2, 2), 0.5), np.array([1, 1]))
    with pytest.raises(DataError, match="two or more classes"):
        metrics_of(np.ones((2, 1)), np.array([0, 0]))
    with pytest.raises(DataError, match="diverged"):
        metrics_of(np.full((2, 2), np.nan), np.array([0, 1]))


def test_runs_can_be_scored_on_some_of_the_test_images() -> None:
    test = toy(20, 2)
    runs = list(run_study([Arm(name="real")], toy(32, 0), toy(20, 1), test, TINY))
    keep = np.arange(20) >= 6
    restricted = restrict(runs, test, keep)[0]
    assert restricted.metrics == metrics_of(runs[0].probabilities[6:], test.labels[6:])
    assert restrict(runs, test, np.flatnonzero(keep))[0].metrics == restricted.metrics
    with pytest.raises(DataError, match="scored on"):
        restrict(runs, toy(8, 2), keep[:8])


# --- statistics


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_interval_is_students(values: list[float]) -> None:
    got = t_interval(values)
    assert got["mean"] == pytest.approx(np.mean(values))
    if np.ptp(values) > 1e-6:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert got["ci95"] == pytest.approx([expected.low, expected.high])


def test_interval_of_equal_values_and_of_one() -> None:
    assert t_interval([0.5, 0.5, 0.5]) == {"mean": 0.5, "ci95": [0.5, 0.5]}
    assert t_interval([0.5]) == {"mean": 0.5, "ci95": [None, None]}
    with pytest.raises(DataError, match="at least one"):
        t_interval([])


def test_differences_are_paired_over_seeds() -> None:
    ours, theirs = [0.9, 0.7, 0.82], [0.86, 0.65, 0.78]
    runs = [fake("a", seed, value) for seed, value in enumerate(ours)] + [fake("b", seed, theirs[seed]) for seed in (2, 0, 1)]
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    got = compare(runs, "a", "b")
    assert got["seeds"] == 3
    for name in METRICS:
        assert got[name]["ci95"] == pytest.approx([expected.low, expected.high])
    # unpaired, the same scores would show nothing
    apart = stats.ttest_ind(ours, theirs).confidence_interval(0.95)
    assert apart.low < 0 < got["auc"]["ci95"][0]


def test_summary_holds_every_arm_in_order() -> None:
    summary = summarise([fake("b", 0, 0.5), fake("a", 0, 0.7), fake("b", 1, 0.6)])
    assert list(summary) == ["b", "a"]
    assert summary["b"]["seeds"] == 2
    assert summary["a"]["auc"] == {"mean": 0.7, "ci95": [None, None]}
    assert summary["b"]["auc"]["mean"] == pytest.approx(0.55)


def test_unpaired_runs_are_refused() -> None:
    runs = [fake("a", 0, 0.5), fake("b", 1, 0.5)]
    with pytest.raises(DataError, match="same seeds"):
        compare(runs, "a", "b")
    with pytest.raises(DataError, match="arm 'c'"):
        compare(runs, "a", "c")
    with pytest.raises(DataError, match="one run a seed"):
        summarise([fake("a", 0, 0.5), fake("a", 0, 0.6)])


# --- control banks


def uneven(path: Path) -> SampleBank:
    """A bank with 3 samples of class 0 and 7 of class 1."""
    data = toy(14, 7)
    return make_bank(path, data[np.concatenate([np.flatnonzero(data.labels == 0)[:3], np.flatnonzero(data.labels == 1)])])


@pytest.mark.parametrize("seed", [0, 1])
def test_duplicates_are_real_and_as_many_of_each_class(tmp_path: Path, seed: int) -> None:
    train, like = toy(20, 0), uneven(tmp_path / "like")
    bank = duplicates_bank(tmp_path / "dup", train, like, seed=seed)
    assert bank.class_counts == like.class_counts == [3, 7]
    np.testing.assert_array_equal(np.asarray(bank.images), train.images[bank.seeds])
    np.testing.assert_array_equal(bank.labels, train.labels[bank.seeds])
    assert len(set(bank.seeds.tolist())) == len(bank), "no image twice while others are unused"
    bank.verify()


def test_duplicates_start_over_when_the_class_is_used_up(tmp_path: Path) -> None:
    train = toy(6, 0)
    bank = duplicates_bank(tmp_path / "dup", train, uneven(tmp_path / "like"), seed=0)
    counts = np.bincount(bank.seeds, minlength=6)
    assert sorted(counts[train.labels == 0]) == [1, 1, 1]
    assert sorted(counts[train.labels == 1]) == [2, 2, 3]


def test_random_control_takes_generated_images_once(tmp_path: Path) -> None:
    generated, like = toy(30, 3), uneven(tmp_path / "like")
    bank = matched_bank(tmp_path / "random", generated, like, seed=0, source={"name": "a model", "licence": "CC BY 4.0"})
    assert bank.class_counts == like.class_counts
    np.testing.assert_array_equal(np.asarray(bank.images), generated.images[bank.seeds])
    assert len(set(bank.seeds.tolist())) == len(bank)
    assert bank.header.source["name"] == "a model"
    with pytest.raises(DataError, match="at least 7 images of class 1"):
        matched_bank(tmp_path / "few", toy(8, 3), like, seed=0)


def test_control_banks_follow_from_their_seed(tmp_path: Path) -> None:
    train, like = toy(40, 0), uneven(tmp_path / "like")
    same = [duplicates_bank(tmp_path / name, train, like, seed=0).fingerprint for name in ("a", "b")]
    assert same[0] == same[1]
    assert duplicates_bank(tmp_path / "c", train, like, seed=1).fingerprint != same[0]


def test_control_banks_resume_and_refuse_strangers(tmp_path: Path) -> None:
    train, like = toy(40, 0), uneven(tmp_path / "like")
    first = duplicates_bank(tmp_path / "a", train, like, seed=0)
    again = duplicates_bank(tmp_path / "a", train, like, seed=0, resume=True)
    assert (again.fingerprint, len(again)) == (first.fingerprint, 10)
    with pytest.raises(BankError):
        duplicates_bank(tmp_path / "a", train, like, seed=0)
    with pytest.raises(BankMismatchError):
        duplicates_bank(tmp_path / "a", train, like, seed=1, resume=True)
    with pytest.raises(BankMismatchError):
        duplicates_bank(tmp_path / "a", toy(40, 1), like, seed=0, resume=True)


def test_controls_of_an_empty_bank_are_empty(tmp_path: Path) -> None:
    like = make_bank(tmp_path / "like", None)
    assert len(duplicates_bank(tmp_path / "dup", toy(8, 0), like, seed=0)) == 0
    assert len(matched_bank(tmp_path / "random", toy(8, 0), like, seed=0)) == 0


def test_control_banks_need_fitting_images(tmp_path: Path) -> None:
    like, train = uneven(tmp_path / "like"), toy(8, 0)
    with pytest.raises(DataError, match="at least 1 images of class 1"):
        duplicates_bank(tmp_path / "one", train[np.flatnonzero(train.labels == 0)], like, seed=0)
    with pytest.raises(DataError, match="expected images of shape"):
        duplicates_bank(tmp_path / "flat", toy(8, 0, spatial_dims=3), like, seed=0)


def test_the_five_arms_differ_in_one_thing_each(tmp_path: Path) -> None:
    banks = {name: make_bank(tmp_path / name, toy(4, index)) for index, name in enumerate(("diverse", "random", "duplicates"))}
    arms = {arm.name: arm for arm in control_arms(**banks, prob=0.3)}
    assert list(arms) == ["real", "standard", "duplicates", "random", "diverse"]
    assert [arm.augment for arm in arms.values()] == [False, True, True, True, True]
    assert not arms["real"].replaces
    assert not arms["standard"].replaces
    for name, bank in banks.items():
        assert arms[name].bank is bank
        assert arms[name].prob == 0.3
