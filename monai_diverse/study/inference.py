"""Is one arm better than another, for other trainings and other test images? Intervals, p-values, and several of them at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from monai_diverse.data import IntArray, check_labels, require_every_class
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.study.statistics import CONFIDENCE, t_interval

DoubleArray = npt.NDArray[np.float64]

BLOCK = 500
"""Resamples that are scored at once, so that their weights fit into the cache."""


def paired_difference(
    ours: DoubleArray,
    theirs: DoubleArray,
    labels: IntArray,
    *,
    groups: IntArray | None = None,
    metric: str = "balanced_accuracy",
    resamples: int = 4000,
    seed: int = 0,
) -> dict[str, Any]:
    """Difference ours minus theirs in a metric, paired over seeds and test images, with an interval for other seeds and other test images.

    Seeds and images are crossed: every seed's two classifiers are scored on the same images. The variance of the mean difference is
    V = V_seeds + V_images - V_both (random two-way layout; Searle, Casella & McCulloch 1992, chapter 4), and never less than V_seeds or V_images:
    V_seeds, the variance between seeds over S, is what resampling seeds would give, times S / (S - 1); V_images is the variance of the mean
    difference over a paired bootstrap of the groups within classes (n - 1 of a class's n groups, weighted n / (n - 1), so that it is not too small;
    Rao & Wu 1988); V_both, the part of their interaction that both contain, is the variance over the same resamples of what a seed has of its own,
    over S - 1. Resampling both at once and taking percentiles would count the interaction three times (McCullagh 2000; Owen 2007) and the seeds at
    (S - 1) / S. The interval is Student's t with Satterthwaite's degrees of freedom; S - 1 for seeds, one less than the smallest class's groups for
    images.

    Measured over 1500 simulated studies each of 10 seeds and 156 images (42 and 114 of two classes, accuracy .8, difficulty of images shared by the
    arms): it covers the true difference in balanced accuracy in .943 to .973 of them, whether that varies most between images, between seeds or
    by both together, and in .976 where it varies by both together alone, which is conservative; seeds_ci95 in .35 to .95. Percentiles of a
    bootstrap of both at once cover .92 to .998.

    It holds for other trainings on what the seeds were trained on, and other test images of the same classes, with as many of each; not for
    another generator or another data set. Seeds that share a subset of the training images are less independent than it takes them for.

    Args:
        ours: (S, n, K) probabilities that S classifiers, one a seed, predict for the n test images; rows sum to 1.
        theirs: the same of the other arm, seed by seed.
        labels: (n,) true classes 0..K-1.
        groups: (n,), equal for images of one patient or near-duplicates. A group is resampled as a whole, among the groups whose first image is of
            the same class. None: every image on its own.
        metric: balanced_accuracy, accuracy, auc or recall_0, recall_1, ...
        resamples: of the bootstrap.
        seed: of the resamples.

    Returns:
        JSON: {"mean", "ci95": [low, high], "seeds_ci95": Student's t interval over seeds alone (these test images), "p": two-sided, for no
        difference; below .05 exactly where 0 lies outside "ci95"}.

    Raises:
        DataError: shapes that do not fit, NaN, fewer than two seeds, a class without images or with fewer than two groups.
        RecipeError: an unknown metric, or fewer than two resamples.
    """
    labels = _checked(ours, theirs, labels)
    classes = ours.shape[2]
    if metric not in (known := ["balanced_accuracy", "accuracy", "auc", *(f"recall_{c}" for c in range(classes))]):
        raise RecipeError(f"metric: expected one of {', '.join(known)}, got {metric!r}")
    if resamples < 2:
        raise RecipeError(f"resamples: expected at least 2, got {resamples}; thousands make the interval steady")
    place, strata = _strata(labels, groups, classes)

    def differences(weights: DoubleArray) -> DoubleArray:
        return weighted_metric(metric, ours, labels, weights) - weighted_metric(metric, theirs, labels, weights)

    by_seed = differences(np.ones((1, len(labels))))[0]
    blocks = _resampled(strata, resamples, np.random.default_rng(seed))
    resampled = np.concatenate([differences(weights[:, place]) for weights in blocks])
    mean = float(by_seed.mean())
    deviation, freedom = _error(by_seed, resampled, images=min(len(members) for members in strata) - 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * deviation
    p = float(2 * stats.t.sf(abs(mean) / deviation, freedom)) if deviation > 0 else float(mean == 0)
    return {"mean": mean, "ci95": [mean - half, mean + half], "seeds_ci95": t_interval(by_seed.tolist())["ci95"], "p": p}


def weighted_metric(metric: str, probabilities: DoubleArray, labels: IntArray, weights: DoubleArray) -> DoubleArray:
    """A metric of weighted images, as if each were there so many times.

    Args:
        metric: balanced_accuracy, accuracy, auc or recall_0, recall_1, ..., as in `metrics_of`.
        probabilities: (S, n, K).
        labels: (n,), each class at least once.
        weights: (r, n), of 0 or more, and in each row and class above 0 somewhere.

    Returns:
        (r, S).
    """
    classes = probabilities.shape[2]
    hits = (probabilities.argmax(axis=2) == labels).astype(np.float64)
    if metric == "accuracy":
        return _share(hits, weights)
    if metric == "auc":
        scored = [1] if classes == 2 else range(classes)
        parts = [np.stack([_area(one[:, c], labels == c, weights) for one in probabilities], axis=1) for c in scored]
    else:
        of = range(classes) if metric == "balanced_accuracy" else [int(metric.removeprefix("recall_"))]
        parts = [_share(hits[:, labels == c], weights[:, labels == c]) for c in of]
    mean: DoubleArray = np.mean(parts, axis=0)
    return mean


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, which bounds the chance of any false finding (Holm 1979, Scandinavian Journal of Statistics 6).

    The i-th smallest of m is multiplied by m - i + 1, cut at 1, and never less than a smaller one's. The tests may depend on one another.

    Args:
        p_values: in [0, 1].

    Returns:
        Adjusted, in the order given.

    Raises:
        DataError: a value outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"p_values: expected numbers from 0 to 1, got {list(p_values)}")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return [float(value) for value in adjusted]


def _checked(ours: DoubleArray, theirs: DoubleArray, labels: IntArray) -> IntArray:
    if ours.ndim != 3 or ours.shape[2] < 2 or ours.shape != theirs.shape:
        raise DataError(f"ours, theirs: expected one shape (seeds, images, two or more classes), got {ours.shape} and {theirs.shape}")
    if len(ours) < 2:
        raise DataError(f"ours, theirs: expected two or more seeds, got {len(ours)}; without several trainings there is no interval")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise DataError("ours, theirs: expected finite probabilities, got NaN or infinity; a training diverged, so lower its learning_rate")
    labels = check_labels(labels, ours.shape[1], ours.shape[2])
    require_every_class(labels, ours.shape[2], "images to compare on")
    return labels


def _strata(labels: IntArray, groups: IntArray | None, classes: int) -> tuple[IntArray, list[IntArray]]:
    """(group of each image from 0, groups of each class); a group's class is its first image's."""
    if groups is not None and np.shape(groups) != labels.shape:
        raise DataError(f"groups: expected shape {labels.shape}, one an image, got {np.shape(groups)}")
    _, first, place = np.unique(np.arange(len(labels)) if groups is None else groups, return_index=True, return_inverse=True)
    strata = [np.flatnonzero(labels[first] == c) for c in range(classes)]
    few = [c for c in range(classes) if len(strata[c]) < 2]
    if few:
        raise DataError(f"groups: expected two or more whose first image is of class {few[0]}, got {len(strata[few[0]])}; test on more patients")
    return place, strata


def _resampled(strata: Sequence[IntArray], resamples: int, rng: np.random.Generator) -> Iterator[DoubleArray]:
    """Weights (r, groups) of `resamples` resamples in all."""
    for start in range(0, resamples, BLOCK):
        count = min(BLOCK, resamples - start)
        weights = np.empty((count, sum(map(len, strata))))
        for members in strata:
            n = len(members)
            drawn = rng.integers(n, size=(count, n - 1)) + n * np.arange(count)[:, None]
            weights[:, members] = np.bincount(drawn.ravel(), minlength=n * count).reshape(count, n) * (n / (n - 1))
        yield weights


def _error(by_seed: DoubleArray, resampled: DoubleArray, *, images: int) -> tuple[float, float]:
    """(standard error of the mean over seeds, its degrees of freedom), from differences (S,) and resampled ones (r, S)."""
    count = len(by_seed)
    mean = resampled.mean(axis=1)
    seeds_part = float(by_seed.var(ddof=1)) / count
    images_part = float(mean.var(ddof=1))
    both = float((resampled - mean[:, None]).var(axis=0, ddof=1).mean()) / (count - 1)
    variance = max(seeds_part + images_part - both, seeds_part, images_part)
    if variance == 0:
        return 0.0, float(count - 1)
    spread = seeds_part**2 / (count - 1) + images_part**2 / images + both**2 / ((count - 1) * images)
    return math.sqrt(variance), variance**2 / spread


def _share(hits: DoubleArray, weights: DoubleArray) -> DoubleArray:
    """Weighted mean (r, S) of hits (S, n) with weights (r, n)."""
    share: DoubleArray = (weights @ hits.T) / weights.sum(axis=1, keepdims=True)
    return share


def _area(scores: DoubleArray, positive: npt.NDArray[np.bool_], weights: DoubleArray) -> DoubleArray:
    """Area (r,) under the ROC curve: the weighted share of (positive, negative) pairs in the right order, ties counting half."""
    order = np.argsort(scores, kind="stable")
    levels = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ranked = weights.T[order]
    hits = np.add.reduceat(ranked * positive[order, None], levels)
    misses = np.add.reduceat(ranked * ~positive[order, None], levels)
    below = np.cumsum(misses, axis=0) - misses / 2
    area: DoubleArray = (hits * below).sum(axis=0) / (hits.sum(axis=0) * misses.sum(axis=0))
    return area
