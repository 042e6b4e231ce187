"""Thresholds from real images that nothing was fitted on, exact at any sample size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control

from monai_diverse.data import IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information.neighbours import DoubleArray

TIE = 1e-6
"""Nonconformity scores this close count as equal: float32 features of one image differ by less from batch to batch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conformal:
    """Split-conformal p-values against calibration scores.

    p(x) = (1 + sum over groups of the share of the group that scores at least s(x)) / (groups + 1). With one image a group this is the
    usual (1 + #{c: s(c) >= s(x)}) / (n + 1) (Vovk, Gammerman & Shafer 2005). If groups are exchangeable and x comes from a new
    one, P(p <= a) <= a for every a (on average over calibration sets), however the images of one group depend on one another (hierarchical conformal
    prediction: Lee, Barber & Willett 2023). Ties count against x.

    Attributes:
        ascending: (n,) calibration scores, sorted.
        above: (n + 1,) weight of the scores from each place on; every group weighs 1.
        groups: how many groups there are.
    """

    ascending: DoubleArray
    above: DoubleArray
    groups: int

    @classmethod
    def fit(cls, scores: npt.ArrayLike, groups: IntArray | None = None) -> Conformal:
        """Takes calibration scores (n,), higher is stranger, and their groups (n,).

        Raises:
            DataError: NaN among the scores, or groups that are not as many.
        """
        values = _checked(scores)
        ids = np.arange(len(values)) if groups is None else groups
        _require_length("groups", ids, len(values))
        _, place, sizes = np.unique(ids, return_inverse=True, return_counts=True)
        order = np.argsort(values, kind="stable")
        weights = (1 / sizes)[place][order] if len(values) else values
        # rounded, so that thirds add up to one and a p-value meets its level where it should
        above = np.round(np.append(np.cumsum(weights[::-1])[::-1], 0.0), 9)
        return cls(ascending=values[order], above=above, groups=len(sizes))

    def p_values(self, scores: npt.ArrayLike) -> DoubleArray:
        """p-values (m,) of scores (m,), in [1 / (groups + 1), 1]; small means strange.

        Raises:
            DataError: NaN among the scores.
        """
        first = np.searchsorted(self.ascending, _checked(scores) - TIE, side="left")
        p: DoubleArray = (1 + self.above[first]) / (self.groups + 1)
        return p


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassConformal:
    """Conformal p-values within categories of classes (Mondrian: Vovk et al. 2005, sec. 4.5), valid in every category.

    A class with enough calibration groups is a category of its own; the others are pooled, with the next smallest classes until the pool
    too has enough or holds all. An image is only ever compared with calibration images of its own category.

    Attributes:
        members: the classes of each category.
        conformal: one a category.
    """

    members: tuple[tuple[int, ...], ...]
    conformal: tuple[Conformal, ...]

    @classmethod
    def fit(cls, scores: npt.ArrayLike, labels: IntArray, groups: IntArray, *, classes: Sequence[int], minimum: int) -> ClassConformal:
        """Takes calibration scores, labels and groups, all (n,), the classes there are, and how many groups a category needs.

        Raises:
            DataError: NaN among the scores, or labels or groups that are not as many.
        """
        values = _checked(scores)
        _require_length("labels", labels, len(values))
        _require_length("groups", groups, len(values))
        members = _categories(labels, groups, classes, minimum)
        masks = [np.isin(labels, m) for m in members]
        return cls(members=members, conformal=tuple(Conformal.fit(values[m], groups[m]) for m in masks))

    @property
    def smallest(self) -> int:
        """Calibration groups of the smallest category."""
        return min(c.groups for c in self.conformal)

    def p_values(self, scores: npt.ArrayLike, labels: IntArray) -> DoubleArray:
        """p-values (m,) of scores (m,) in the categories of their labels (m,), which must be known ones.

        Raises:
            DataError: NaN among the scores, or labels that are not as many.
        """
        values = _checked(scores)
        _require_length("labels", labels, len(values))
        p = np.ones(len(values))
        for members, conformal in zip(self.members, self.conformal, strict=True):
            chosen = np.isin(labels, members)
            p[chosen] = conformal.p_values(values[chosen])
        return p

    def notes(self) -> list[dict[str, object]]:
        """Classes and calibration groups of each category, as JSON."""
        return [{"classes": list(m), "calibration_groups": c.groups} for m, c in zip(self.members, self.conformal, strict=True)]


def groups_needed(level: float, *, reaching: bool) -> int:
    """How many calibration groups p-values need to fall below `level`, or with `reaching` to be equal to it."""
    exact = 1 / level - 1
    return max(1, math.ceil(exact - 1e-9) if reaching else math.floor(exact + 1e-9) + 1)


def require_groups(conformal: ClassConformal, needed: int, what: str) -> None:
    """Raises DataError if some category has too few calibration groups for its p-values to reach the level."""
    if conformal.smallest < needed:
        found = f"expected at least {needed} calibration images (or patients), near-duplicates counting as one, got {conformal.smallest}"
        raise DataError(f"{what}: {found}; set more aside, choose a larger alpha or level, or twin_correlation if they are merely alike")


def calibration_limit(values: npt.ArrayLike, share: float, groups: IntArray | None = None) -> float:
    """The smallest calibration value that a new image stays within with probability `share`.

    The ceil((n + 1) share)-th smallest of n values (split conformal), each group weighing one; the largest value where n is too small
    for that, so that it is always finite: the probability is then n / (n + 1).

    Args:
        values: (n,), n from 1.
        share: in (0, 1).
        groups: (n,); None: every value its own.

    Raises:
        DataError: no values, NaN among them, or groups that are not as many.
    """
    fitted = Conformal.fit(values, groups)
    if not len(fitted.ascending):
        raise DataError("calibration: expected at least one image, got none")
    within = fitted.groups - fitted.above[1:]
    place = int(np.searchsorted(within, share * (fitted.groups + 1) - 1e-9, side="left"))
    return float(fitted.ascending[min(place, len(fitted.ascending) - 1)])


def discoveries(p_values: npt.ArrayLike, rate: float) -> npt.NDArray[np.bool_]:
    """Which of a batch of p-values stay significant when the share of false ones among them is to be bounded.

    Benjamini & Hochberg (1995): of those kept, the expected share that are no stranger than the calibration images is at most `rate`.
    Conformal p-values from one calibration set depend on one another positively, for which the bound holds (Bates et al., Annals of
    Statistics 2023, theorem 2) if images are drawn independently, in a number fixed beforehand, and calibration has one image a group.
    Where a guide's draws depend on one another, growth stopped at a full bank, groups have several images, or what other gates rejected counts
    as p = 1, the rate is approximate.

    Args:
        p_values: (m,) in [0, 1], of all that were judged.
        rate: in (0, 1).

    Returns:
        bool (m,).

    Raises:
        RecipeError: a rate outside (0, 1).
        DataError: p-values that are not in [0, 1].
    """
    check_level("rate", rate)
    values = np.asarray(p_values, np.float64)
    outside = values[~((values >= 0) & (values <= 1))]
    if values.ndim != 1 or len(outside):
        got = f"{outside[0]:g} among {values.size}" if len(outside) else f"shape {values.shape}"
        raise DataError(f"p_values: expected values (m,) in [0, 1], got {got}; give one p-value a judged image")
    if not len(values):
        return np.zeros(0, bool)
    kept: npt.NDArray[np.bool_] = false_discovery_control(values) <= rate + 1e-12
    return kept


def check_level(name: str, value: float) -> None:
    """Raises RecipeError unless `value` is a share strictly between 0 and 1."""
    if not 0 < value < 1:
        raise RecipeError(f"{name}: expected a share between 0 and 1, got {value}")


def _checked(scores: npt.ArrayLike) -> DoubleArray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or np.isnan(values).any():
        got = f"shape {values.shape}" if values.ndim != 1 else f"NaN in {int(np.isnan(values).sum())} of {len(values)}"
        raise DataError(f"scores: expected a number an image, got {got}; look for NaN in the images and in the extractor's features")
    return values


def _require_length(name: str, values: npt.NDArray[Any], count: int) -> None:
    if np.shape(values) != (count,):
        raise DataError(f"{name}: expected shape ({count},), one a score, got {np.shape(values)}")


def _categories(labels: IntArray, groups: IntArray, classes: Sequence[int], minimum: int) -> tuple[tuple[int, ...], ...]:
    def count(members: Sequence[int]) -> int:
        return len(np.unique(groups[np.isin(labels, members)]))

    by_size = sorted(classes, key=lambda c: (count([c]), c))
    pool = [c for c in by_size if count([c]) < minimum]
    alone = by_size[len(pool) :]
    while pool and alone and count(pool) < minimum:
        pool.append(alone.pop(0))
    return tuple(sorted([(c,) for c in alone] + ([tuple(sorted(pool))] if pool else [])))
