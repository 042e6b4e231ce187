"""Information gain of samples under a Gaussian process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from sklearn.metrics.pairwise import rbf_kernel

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information.cells import evenly_spaced
from monai_diverse.information.choice import GainTracker, LazyChoice
from monai_diverse.information.neighbours import DoubleArray, Neighbours

POOL = 20_000


class InformationGain:
    """What observing a point would tell, in nats, about a Gaussian process already observed at the reference.

    Prior variance 1, kernel k(x, y) = exp(-|x - y|^2 / (2 lengthscale^2)), observation noise variance `noise`. The gain of x is
    1/2 log(1 + s2(x) / noise), s2 the posterior variance given the reference: between 0 and 1/2 log(1 + 1 / noise). It is the
    mutual information between one noisy observation at x and the process (Krause, Singh & Guestrin, JMLR 2008, sec. 3), and the gain
    of a set is monotone and submodular, so that greedy choice is within 1 - 1/e of the best set (Nemhauser et al. 1978).

    Args:
        reference: (n, d), n from 1.
        groups: int (n,), left out together when the length scale is found; None: every row its own.
        lengthscale: in units of the features; None: the median distance to the nearest neighbour outside the own group.
        noise: variance of the observation noise relative to the prior.
        max_points: a larger reference is thinned to this many points, each the one with the most information beyond those
            chosen before, out of 20,000 evenly spaced ones where there are more. Posterior variances are then upper bounds.
        folder: as of `Neighbours`, for the length scale.

    Raises:
        RecipeError: a length scale or noise that is not above 0, or `max_points` below 1.
        DataError: an empty reference, or one from which no length scale can be found.
    """

    def __init__(
        self,
        reference: npt.ArrayLike,
        *,
        groups: IntArray | None = None,
        lengthscale: float | None = None,
        noise: float = 0.1,
        max_points: int = 2048,
        folder: Path | None = None,
    ) -> None:
        for name, value in (("lengthscale", lengthscale), ("noise", noise), ("max_points", max_points)):
            if value is not None and not value > 0:
                raise RecipeError(f"{name}: expected above 0, got {value}")
        rows = np.asarray(reference)
        self.noise = noise
        self.lengthscale = _median_nearest(rows, groups, folder) if lengthscale is None else lengthscale
        points = np.array(rows[evenly_spaced(len(rows), POOL)] if len(rows) > max_points else rows, np.float64)
        self._points, self._factor = points[:0], np.zeros((0, 0))
        self._latest: tuple[DoubleArray, InformationGain] | None = None
        if len(points) > max_points:
            points = points[np.sort(self.greedy(points, max_points))]
        self._observe(points)

    def __len__(self) -> int:
        return len(self._points)

    def __getstate__(self) -> dict[str, Any]:
        # the last answer is kept for speed alone, and is as large as a bank
        return self.__dict__ | {"_latest": None}

    def gain(self, x: npt.ArrayLike) -> FloatArray:
        """Information gain (m,) in nats of each of (m, d) on its own."""
        return self.track(x).gain

    def of_set(self, x: npt.ArrayLike) -> float:
        """Information gain in nats of all of (m, d) together: 1/2 log det(1 + S / noise), S their covariance given the reference; 0 of none."""
        points = np.asarray(x, np.float64)
        if not len(points):
            return 0.0
        whitened = self._whiten(points)
        covariance = self.kernel(points, points) - whitened.T @ whitened
        factor = cholesky(np.eye(len(points)) + covariance / self.noise, lower=True)
        return float(np.log(np.diagonal(factor)).sum())

    def given(self, picked: npt.ArrayLike) -> InformationGain:
        """The same process, observed at `picked` (m, d) too; this one's gains stay as they are.

        Asked again with more points after the same first ones, as a bank grows, it goes on from the last answer.
        """
        points = np.array(picked, np.float64)
        base, known = (self, points[:0]) if self._latest is None else (self._latest[1], self._latest[0])
        if not np.array_equal(known, points[: len(known)]):
            base, known = self, points[:0]
        if len(points) == len(known):
            return base
        later = object.__new__(InformationGain)
        later.noise, later.lengthscale, later._latest = self.noise, self.lengthscale, None
        later._points, later._factor = base._points, base._factor
        later._observe(points[len(known) :])
        self._latest = points, later
        return later

    def greedy(self, x: npt.ArrayLike, n: int) -> IntArray:
        """Indices of up to `n` of (m, d) in the order of their gain given all before.

        Lazy (Minoux 1978): gains only shrink as more is observed, so that one that was computed earlier bounds what it is now, and
        only candidates with the highest bounds are computed anew.
        """
        points = np.asarray(x, np.float64)
        return LazyChoice(self, points, self._whiten(points).T).choose(n)

    def track(self, x: npt.ArrayLike) -> GainTracker:
        """The gains of (m, d), to be kept up to date while some of them are observed."""
        points = np.asarray(x, np.float64)
        return GainTracker(self, points, self._whiten(points))

    def kernel(self, a: DoubleArray, b: DoubleArray) -> DoubleArray:
        """Prior covariance (m, n) of (m, d) and (n, d)."""
        if not len(a) or not len(b):
            return np.zeros((len(a), len(b)))
        kernel: DoubleArray = rbf_kernel(a, b, gamma=0.5 / self.lengthscale**2)
        return kernel

    def _whiten(self, x: DoubleArray) -> DoubleArray:
        """L^-1 k(points, x), where L L^T = k(points, points) + noise; its squared columns sum to what the points explain."""
        if not len(self._points) or not len(x):
            return np.zeros((len(self._points), len(x)))
        whitened: DoubleArray = solve_triangular(self._factor, self.kernel(self._points, x), lower=True, check_finite=False)
        return whitened

    def _observe(self, points: DoubleArray) -> None:
        if not len(points):
            return
        cross = self._whiten(points)
        own = self.kernel(points, points) + self.noise * np.eye(len(points)) - cross.T @ cross
        old, new = len(self._points), len(points)
        factor = np.zeros((old + new, old + new))
        factor[:old, :old], factor[old:, :old], factor[old:, old:] = self._factor, cross.T, cholesky(own, lower=True)
        self._points, self._factor = np.concatenate([self._points, points]) if old else points, factor


def _median_nearest(points: npt.NDArray[Any], groups: IntArray | None, folder: Path | None) -> float:
    scale = float(np.median(Neighbours(points, groups, folder=folder).within(1)))
    if not scale > 0:
        raise DataError("information gain: expected reference features that differ, but most rows repeat another; group near-duplicates")
    return scale
