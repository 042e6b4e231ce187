from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from monai_diverse.audit.bias import Contrast, Leaning
from monai_diverse.audit.distances import FLOOR, class_distances, embedded
from monai_diverse.audit.nearest import OTHER, OUT, OWN
from monai_diverse.errors import DataError
from monai_diverse.features import PixelFeatures


def sides_of(own: int, other: int) -> np.ndarray:
    return np.repeat(np.array([OWN, OTHER]), [own, other])


def made(rows: np.ndarray, sides: np.ndarray, **given: Any) -> Contrast:
    n = len(rows)
    defaults: dict[str, Any] = {"labels": np.zeros(n, np.int64), "groups": np.arange(n), "permutations": 99}
    return Contrast(rows=rows.astype(np.float32), sides=sides, **(defaults | given))


def gaussians(count: int, seed: int, d: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, d)).astype(np.float32)


def floored(g: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(rows.astype(np.float64) - g, axis=1), FLOOR)


def by_subsets(own: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Bias and chance of own nearer by looking at every pair of k-subsets of the distances."""
    k = min(len(own), len(other))
    nearest = [[min(s) for s in combinations(d, k)] for d in (own, other)]
    bias = np.mean(np.log(nearest[1])) - np.mean(np.log(nearest[0]))
    return float(bias), float(np.mean([(a < b) + 0.5 * (a == b) for a in nearest[0] for b in nearest[1]]))


def by_formula(g: np.ndarray, rows: np.ndarray, sides: np.ndarray) -> float:
    """Bias of one image by the weights C(n - i, k - 1) / C(n, k), in integers."""
    sets = [np.sort(floored(g, rows[sides == side])) for side in (OWN, OTHER)]
    k = min(map(len, sets))
    own, other = (sum(math.comb(len(d) - i, k - 1) / math.comb(len(d), k) * math.log(x) for i, x in enumerate(d, 1)) for d in sets)
    return other - own


@pytest.mark.parametrize(("own", "other"), [(6, 4), (4, 6), (5, 5), (7, 2), (2, 7)])
def test_expectations_over_subsets_are_those_of_all_subsets(own: int, other: int) -> None:
    rows, images = gaussians(own + other, 1), gaussians(5, 2)
    found = made(rows, sides_of(own, other)).of((images,), np.zeros(5, np.int64))
    expected = np.array([by_subsets(floored(g, rows[:own]), floored(g, rows[own:])) for g in images])
    assert found.bias == pytest.approx(expected[:, 0], abs=1e-5)
    assert found.own_nearer == pytest.approx(expected[:, 1], abs=1e-6)


def test_ties_count_half_and_copies_meet_the_floor() -> None:
    rows = np.array([[1, 0], [0, 2], [3, 0], [5, 0], [0, 1], [2, 0], [0, 3]], float)  # images at 0 see equal distances in both sets
    images = np.array([[0, 0], [5, 0]], float)
    found = made(rows, sides_of(4, 3)).of((images.astype(np.float32),), np.zeros(2, np.int64))
    expected = np.array([by_subsets(floored(g, rows[:4]), floored(g, rows[4:])) for g in images])
    assert found.bias == pytest.approx(expected[:, 0], abs=1e-5)
    assert found.own_nearer == pytest.approx(expected[:, 1], abs=1e-6)
    assert 0 < found.own_nearer[0] < 1
    assert np.isfinite(found.bias).all()


@pytest.mark.parametrize(("own", "other"), [(150, 150), (220, 40), (30, 200)])
def test_permutations_agree_with_a_naive_loop(own: int, other: int) -> None:
    rows, images = gaussians(own + other, 3), gaussians(12, 4)
    labels, asked = np.arange(own + other) % 2, np.arange(12) % 2
    contrast = made(rows, sides_of(own, other), labels=labels, permutations=20, seed=7)
    found = contrast.of((images,), asked)
    permutations = contrast._permutations()
    for row in found.permuted:
        sides = next(permutations)
        naive = [by_formula(g, rows[labels == c], sides[labels == c]) for g, c in zip(images, asked, strict=True)]
        assert row == pytest.approx(naive, abs=2e-5)
    observed = [by_formula(g, rows[labels == c], contrast.sides[labels == c]) for g, c in zip(images, asked, strict=True)]
    assert found.bias == pytest.approx(observed, abs=2e-5)
    p = (1 + sum(found.permuted.mean(1) >= np.mean(observed))) / 21
    assert found.effects()["bias"].p == pytest.approx(p)


def test_permutations_keep_groups_whole_and_strata_in_number() -> None:
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 25, 60))
    groups = np.unique(groups, return_inverse=True)[1]
    kinds = rng.integers(0, 2, groups.max() + 1)
    of_group = rng.permutation(np.array([OWN, OTHER] * 20)[: groups.max() + 1])
    of_group[3] = OUT
    contrast = made(gaussians(60, 0), of_group[groups], labels=kinds[groups], groups=groups)
    drawn = contrast._permutations()
    seen = set()
    for _ in range(30):
        sides = next(drawn)
        firsts = np.array([sides[groups == g][0] for g in range(len(of_group))])
        assert (firsts[groups] == sides).all()
        assert firsts[3] == OUT
        for c in (0, 1):
            assert (firsts[kinds == c] == OWN).sum() == (of_group[kinds == c] == OWN).sum()
        seen.add(sides.tobytes())
    assert len(seen) > 25


def test_left_out_blocks_agree_with_smaller_sets() -> None:
    rows, images = gaussians(90, 5), gaussians(8, 6)
    groups = np.arange(90) // 2
    contrast = made(rows, sides_of(60, 30), groups=groups)
    found = contrast._held((images,), np.zeros(8, np.int64))
    blocks = contrast._blocks()
    assert len(blocks) == 15  # as many as the smaller set has groups
    assert ((blocks == OUT).sum(axis=0) == 1).all()
    for sides, bias in zip(blocks, found.bias_without, strict=True):
        assert {tuple(np.unique(sides[groups == g])) for g in np.unique(groups[sides == OUT])} == {(OUT,)}
        assert bias == pytest.approx([by_formula(g, rows, sides) for g in images], abs=2e-5)


def repeats(count: int, copied: float, group_size: int = 1, seed: int = 0) -> list[Leaning]:
    """Images from the distribution of both sets, with a share copied from the own set; groups are tight clusters."""
    found = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        centres = rng.normal(size=(60, 5)).repeat(group_size, 0)
        rows = centres + 0.05 * rng.normal(size=centres.shape) * (group_size > 1)
        images = rng.normal(size=(40, 5))
        k = round(copied * 40)
        images[:k] = rows[rng.integers(0, 30 * group_size, k)] + 0.1 * rng.normal(size=(k, 5))
        groups = np.arange(60).repeat(group_size)
        contrast = made(rows, sides_of(30 * group_size, 30 * group_size), groups=groups, seed=i)
        found.append(contrast.of((images.astype(np.float32),), np.zeros(40, np.int64)))
    return found


@pytest.mark.parametrize("group_size", [1, 3])
def test_p_is_uniform_and_intervals_cover_under_the_null(group_size: int) -> None:
    effects = [leaning.effects() for leaning in repeats(100, 0.0, group_size)]
    p = [e["bias"].p for e in effects]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert stats.binomtest(sum(x <= 0.05 for x in p), 100, 0.05).pvalue > 0.001
    for name, neutral in (("bias", 0.0), ("own_nearer", 0.5)):
        covered = sum(e[name].ci[0] <= neutral <= e[name].ci[1] for e in effects)
        assert stats.binomtest(covered, 100, 0.95, alternative="less").pvalue > 0.001


def test_images_that_are_permuted_without_their_group_would_raise_false_alarms() -> None:
    alarms = []
    for i in range(40):
        rng = np.random.default_rng([9, i])
        rows = rng.normal(size=(12, 5)).repeat(8, 0) + 0.02 * rng.normal(size=(96, 5))
        images = rng.normal(size=(40, 5)).astype(np.float32)
        contrasts = [made(rows, sides_of(48, 48), groups=g, seed=i) for g in (np.arange(12).repeat(8), np.arange(96))]
        alarms.append([c.of((images,), np.zeros(40, np.int64)).effects()["bias"].p for c in contrasts])
    by_group, by_image = (np.array(alarms) <= 0.05).mean(axis=0)
    assert by_image > 0.3
    assert by_group < 0.2


def test_effects_rise_with_the_share_that_is_copied() -> None:
    means = [np.mean([leaning.bias.mean() for leaning in repeats(10, share, seed=1)]) for share in (0.0, 0.05, 0.2, 1.0)]
    assert means == sorted(means)
    assert abs(means[0]) < 0.05 < means[-1]


def test_unequal_sizes_are_no_bias() -> None:
    found, naive = [], []
    for i in range(10):
        rows, images = gaussians(500, 100 + i), gaussians(60, 200 + i)
        found.append(made(rows, sides_of(400, 100), permutations=19).of((images,), np.zeros(60, np.int64)).bias.mean())
        d = next(class_distances((images,), rows))
        naive.append(np.log(d[:, 400:].min(1) / d[:, :400].min(1)).mean())
    assert np.mean(naive) > 0.15
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(10) + 0.01


def test_swapped_sets_flip_the_sign() -> None:
    rows, images = gaussians(70, 11), gaussians(20, 12)
    there = made(rows, sides_of(40, 30)).of((images,), np.zeros(20, np.int64))
    back = made(rows, 1 - sides_of(40, 30)).of((images,), np.zeros(20, np.int64))
    assert back.bias == pytest.approx(-there.bias, abs=1e-9)
    assert back.own_nearer == pytest.approx(1 - there.own_nearer, abs=1e-9)


def test_the_names_of_groups_and_the_size_of_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, images, groups = gaussians(60, 13), gaussians(20, 14), np.arange(60) // 2
    one = made(rows, sides_of(40, 20), groups=groups).of((images,), np.zeros(20, np.int64))
    two = made(rows, sides_of(40, 20), groups=groups * 7 + 5).of((images,), np.zeros(20, np.int64))
    assert one.effects() == two.effects()
    monkeypatch.setattr("monai_diverse.audit.nearest.ELEMENTS", 2000)
    monkeypatch.setattr("monai_diverse.audit.distances.ELEMENTS", 100)
    small = made(rows, sides_of(40, 20), groups=groups).of((images,), np.zeros(20, np.int64))
    assert small.bias == pytest.approx(one.bias, abs=1e-6)
    assert small.permuted == pytest.approx(one.permuted, abs=1e-5)


def test_seeds_decide_permutations() -> None:
    rows, images = gaussians(60, 15), gaussians(20, 16)
    first, again, other = (made(rows, sides_of(30, 30), seed=s).of((images,), np.zeros(20, np.int64)) for s in (1, 1, 2))
    assert (first.permuted == again.permuted).all()
    assert not (first.permuted == other.permuted).all()
    assert first.bias == pytest.approx(other.bias)


def test_classes_are_compared_within_themselves() -> None:
    near, far = gaussians(40, 17), gaussians(40, 18) + 50
    rows = np.concatenate([near, far])
    sides = np.tile(np.repeat(np.array([OWN, OTHER]), 20), 2)
    labels = np.repeat([0, 1], 40)
    images = np.concatenate([gaussians(10, 19), gaussians(10, 20) + 50])
    asked = np.repeat([0, 1], 10)
    found = made(rows, sides, labels=labels).of((images,), asked)
    alone = made(near, sides_of(20, 20)).of((images[:10],), np.zeros(10, np.int64))
    assert found.bias[:10] == pytest.approx(alone.bias, abs=1e-4)
    assert found.effects(asked == 0)["bias"].value == pytest.approx(found.bias[:10].mean())


def test_intervals_are_those_of_the_jackknife_with_everything_left_out_in_turn() -> None:
    found = made(gaussians(80, 25), sides_of(40, 40)).of((gaussians(15, 26),), np.zeros(15, np.int64))
    without = found.bias_without
    blocks, m = without.shape
    over_groups = (blocks - 1) / blocks * sum((w.mean() - without.mean()) ** 2 for w in without)
    left = [np.delete(found.bias, i).mean() for i in range(m)]
    over_images = (m - 1) / m * sum((x - np.mean(left)) ** 2 for x in left)
    table = np.array([[np.delete(w, i).mean() for i in range(m)] for w in without])
    table += table.mean() - table.mean(0) - table.mean(1)[:, None]
    both = (blocks - 1) * (m - 1) / (blocks * m) * (table**2).sum()
    variance = max(over_groups, over_images, over_groups + over_images - both)
    assert variance > over_images * 1.05  # or the groups would not be tested here
    half = stats.t.ppf(0.975, 19) * np.sqrt(variance)
    effect = found.effects()["bias"]
    assert effect.ci == pytest.approx((effect.value - half, effect.value + half))


def test_permutations_that_change_nothing_count_against_significance() -> None:
    rows = gaussians(4, 27)
    found = made(rows, sides_of(2, 2), permutations=399).of((rows[:2] + np.float32(0.02),), np.zeros(2, np.int64))
    assert found.own_nearer.mean() == 1
    assert found.effects()["bias"].p == pytest.approx(1 / 6, abs=0.08)  # one of six ways to divide four groups


def test_a_difference_is_paired() -> None:
    rows, images = gaussians(80, 21), gaussians(30, 22)
    contrast = made(rows, sides_of(40, 40))
    first, second = (contrast.of((x,), np.zeros(30, np.int64)) for x in (images, images + np.float32(0.001)))
    difference = first.minus(second)
    assert difference.value == pytest.approx((first.bias - second.bias).mean())
    width, alone = (e.ci[1] - e.ci[0] for e in (difference, first.effects()["bias"]))
    assert width < alone / 10


def test_mirrored_images_are_the_same() -> None:
    images = np.random.default_rng(0).random((6, 1, 5, 7), dtype=np.float32)
    views = embedded(PixelFeatures(), images, mirrored=True)
    rows = embedded(PixelFeatures(), np.ascontiguousarray(images[..., ::-1]), mirrored=False)[0]
    distances = next(class_distances(views, rows))
    assert distances.diagonal() == pytest.approx(FLOOR, abs=1e-6)
    plain = next(class_distances(views[:1], views[0]))
    correlation = np.corrcoef(images.reshape(6, -1))
    assert plain == pytest.approx(np.maximum(np.sqrt(np.maximum(2 - 2 * correlation, 0)), FLOOR), abs=1e-3)


def test_what_cannot_be_compared_is_said() -> None:
    rows, images = gaussians(20, 23), gaussians(5, 24)
    labels = np.r_[np.zeros(10, np.int64), np.ones(10, np.int64)]
    with pytest.raises(DataError, match=r"heldout: expected at least 2 groups of class 0, .*, got 0"):
        made(rows, sides_of(10, 10), labels=labels).of((images,), np.zeros(5, np.int64))
    with pytest.raises(DataError, match=r"train: expected at least 2 groups of class 0, .*, got 1"):
        made(rows, sides_of(10, 10), groups=np.r_[np.zeros(10, np.int64), np.arange(1, 11)]).of((images,), np.zeros(5, np.int64))
    with pytest.raises(DataError, match="images: expected at least 2"):
        made(rows, sides_of(10, 10)).of((images[:1],), np.zeros(1, np.int64))
    with pytest.raises(DataError, match="groups: expected each group in one set"):
        made(rows, sides_of(10, 10), groups=np.arange(20) % 10)


def planted(own: int, other: int, copied: float, seed: int) -> float:
    """Bias of 200 images of which a share is copied from the own set."""
    rng = np.random.default_rng(seed)
    rows, images = rng.normal(size=(own + other, 8)), rng.normal(size=(200, 8))
    k = round(200 * copied)
    images[:k] = rows[rng.integers(0, own, k)] + 0.05 * rng.normal(size=(k, 8))
    found = made(rows, sides_of(own, other), permutations=19).of((images.astype(np.float32),), np.zeros(200, np.int64))
    return found.effects()["bias"].value


@pytest.mark.parametrize("copied", [0.2, 1.0])
def test_the_size_of_the_sets_does_not_dilute_copying(copied: float) -> None:
    equal, few = (np.mean([planted(500, other, copied, seed) for seed in range(6)]) for other in (500, 50))
    assert few == pytest.approx(equal, rel=0.3)
    none = [planted(500, 50, 0.0, seed) for seed in range(30)]
    assert abs(np.mean(none)) < 3 * np.std(none) / np.sqrt(30)


@pytest.mark.parametrize(("own", "other"), [(1, 5), (5, 1)])
def test_patients_with_many_images_in_one_set_alone_raise_no_alarm(own: int, other: int) -> None:
    alarms, biases = 0, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sizes = np.repeat([own, other], 30)
        centres = rng.normal(size=(60, 5))
        groups = np.arange(60).repeat(sizes)
        rows = centres[groups] + 0.2 * rng.normal(size=(len(groups), 5))
        sides = np.repeat(np.array([OWN, OTHER]), 30).repeat(sizes)
        images = rng.normal(size=(60, 5)) * math.sqrt(1.04)
        contrast = made(rows, sides, groups=groups, seed=seed)
        assert contrast.uneven(np.zeros(60, np.int64))
        bias = contrast.of((images.astype(np.float32),), np.zeros(60, np.int64)).effects()["bias"]
        biases.append(bias.value)
        assert bias.p is not None
        alarms += bias.p <= 0.05
    assert alarms <= 7
    assert abs(np.mean(biases)) < 3 * np.std(biases) / math.sqrt(40)


def test_few_patients_cannot_give_a_small_p() -> None:
    ps = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(4, 6))
        images = rows[rng.integers(0, 2, 30)] + 0.01 * rng.normal(size=(30, 6))
        contrast = made(rows, sides_of(2, 2), permutations=199, seed=seed)
        assert contrast.smallest_p(np.zeros(30, np.int64)) == pytest.approx(1 / 6)
        ps.append(contrast.of((images.astype(np.float32),), np.zeros(30, np.int64)).effects()["bias"].p)
    assert min(ps) > 0.08  # 1/6, but for chance


def test_shares_have_intervals_of_shares() -> None:
    rows = gaussians(8, 1)
    found = made(rows, sides_of(4, 4)).of((np.concatenate([rows[:1]] * 20),), np.zeros(20, np.int64)).effects()["own_nearer"]
    assert 0 <= found.ci[0] <= found.value <= found.ci[1] <= 1


def test_patients_of_several_classes_are_exchanged_with_their_like() -> None:
    groups = np.arange(40).repeat(2)
    labels = np.where((np.arange(80) % 2 == 1) & (groups % 5 == 0), 1, 0)  # every fifth patient has an image of each class
    sides = np.repeat(np.array([OWN, OTHER]), 40)
    drawn = made(gaussians(80, 0), sides, groups=groups, labels=labels)._permutations()
    for _ in range(20):
        permuted = next(drawn)
        assert ((permuted == OWN) & (labels == 1)).sum() == 4


def test_a_rare_class_has_the_freedom_of_its_patients() -> None:
    labels = np.concatenate([np.zeros(60, np.int64), np.ones(3, np.int64), np.zeros(60, np.int64), np.ones(3, np.int64)])
    images = (gaussians(40, 3),)
    found = made(gaussians(126, 2), sides_of(63, 63), labels=labels).of(images, np.repeat([0, 1], 20))
    assert found.blocks[20:].max() <= 6
    assert found.blocks[:20].max() == 20


def test_more_groups_in_one_set_are_not_nearer_for_it() -> None:
    biases = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(90, 4))
        groups = np.arange(90).repeat(2)
        rows = centres[groups] + 0.05 * rng.normal(size=(180, 4))
        sides = np.where(groups < 60, OWN, OTHER)
        images = rng.normal(size=(60, 4))
        contrast = made(rows, sides, groups=groups, permutations=19, seed=seed)
        assert contrast.uneven(np.zeros(60, np.int64))
        biases.append(contrast.of((images.astype(np.float32),), np.zeros(60, np.int64)).effects()["bias"].value)
    assert abs(np.mean(biases)) < 3 * np.std(biases) / math.sqrt(40)
    held = made(rows, sides, groups=groups, permutations=19)._held((images.astype(np.float32),), np.zeros(60, np.int64))
    assert held.bias.mean() > np.mean(biases) + 0.05  # what comparing images instead would give
