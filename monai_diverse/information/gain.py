"""Information gain of samples under a Gaussian process."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from sklearn.metrics.pairwise import rbf_kernel

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information.neighbours import DoubleArray, Neighbours


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
            chosen before. Posterior variances are then upper bounds.

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
    ) -> None:
        for name, value in (("lengthscale", lengthscale), ("noise", noise), ("max_points", max_points)):
            if value is not None and not value > 0:
                raise RecipeError(f"{name}: expected above 0, got {value}")
        points = np.array(reference, np.float64)
        self.noise = noise
        self.lengthscale = _median_nearest(points, groups) if lengthscale is None else lengthscale
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
        """Indices of up to `n` of (m, d) in the order of their gain given all before."""
        tracker = self.track(x)
        order: list[int] = []
        open_ = np.ones(len(tracker.gain), bool)
        for _ in range(min(n, len(open_))):
            best = int(np.argmax(np.where(open_, tracker.gain, -1.0)))
            order.append(best)
            open_[best] = False
            tracker.observe(best)
        return np.array(order, np.int64)

    def track(self, x: npt.ArrayLike) -> GainTracker:
        """The gains of (m, d), to be kept up to date while some of them are observed."""
        points = np.asarray(x, np.float64)
        return GainTracker(self, points, self._whiten(points))

    def _kernel(self, a: DoubleArray, b: DoubleArray) -> DoubleArray:
        if not len(a) or not len(b):
            return np.zeros((len(a), len(b)))
        kernel: DoubleArray = rbf_kernel(a, b, gamma=0.5 / self.lengthscale**2)
        return kernel

    def _whiten(self, x: DoubleArray) -> DoubleArray:
        """L^-1 k(points, x), where L L^T = k(points, points) + noise; its squared columns sum to what the points explain."""
        if not len(self._points) or not len(x):
            return np.zeros((len(self._points), len(x)))
        whitened: DoubleArray = solve_triangular(self._factor, self._kernel(self._points, x), lower=True, check_finite=False)
        return whitened

    def _observe(self, points: DoubleArray) -> None:
        if not len(points):
            return
        cross = self._whiten(points)
        own = self._kernel(points, points) + self.noise * np.eye(len(points)) - cross.T @ cross
        old, new = len(self._points), len(points)
        factor = np.zeros((old + new, old + new))
        factor[:old, :old], factor[old:, :old], factor[old:, old:] = self._factor, cross.T, cholesky(own, lower=True)
        self._points, self._factor = np.concatenate([self._points, points]) if old else points, factor


class GainTracker:
    """Gains of fixed candidates, lowered as candidates are observed one by one; made by `InformationGain.track`."""

    def __init__(self, process: InformationGain, x: DoubleArray, whitened: DoubleArray) -> None:
        self._process = process
        self._x = x
        self._whitened = whitened
        self._variance = 1 - np.einsum("ij,ij->j", whitened, whitened)
        self._added = np.zeros((0, len(x)))
        self._count = 0

    @property
    def gain(self) -> FloatArray:
        """Information gain (m,) in nats, given all that was observed."""
        gain: FloatArray = (0.5 * np.log1p(np.maximum(self._variance, 0) / self._process.noise)).astype(np.float32)
        return gain

    def observe(self, index: int) -> None:
        """Takes candidate `index` as observed: one more row of the Cholesky factor."""
        covariance = self._process._kernel(self._x[index : index + 1], self._x)[0] - self._whitened[:, index] @ self._whitened
        added = self._added[: self._count]
        covariance -= added[:, index] @ added
        row = covariance / np.sqrt(max(self._variance[index], 0.0) + self._process.noise)
        if self._count == len(self._added):
            self._added = np.concatenate([self._added, np.empty((max(8, self._count), len(row)))])
        self._added[self._count] = row
        self._count += 1
        self._variance = self._variance - row**2


def _median_nearest(points: DoubleArray, groups: IntArray | None) -> float:
    scale = float(np.median(Neighbours(points, groups).within(1)))
    if not scale > 0:
        raise DataError("information gain: expected reference features that differ, but most rows repeat another; group near-duplicates")
    return scale
