"""Choosing among candidates by information gain, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import solve_triangular

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.information.neighbours import DoubleArray

if TYPE_CHECKING:
    from monai_diverse.information.gain import InformationGain

BATCH = 64
"""Candidates whose gains are computed anew together."""


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
        covariance = self._process.kernel(self._x[index : index + 1], self._x)[0] - self._whitened[:, index] @ self._whitened
        added = self._added[: self._count]
        covariance -= added[:, index] @ added
        row = covariance / np.sqrt(max(self._variance[index], 0.0) + self._process.noise)
        if self._count == len(self._added):
            self._added = np.concatenate([self._added, np.empty((max(8, self._count), len(row)))])
        self._added[self._count] = row
        self._count += 1
        self._variance = self._variance - row**2


class LazyChoice:
    """Greedy choice that computes few gains; made by `InformationGain.greedy`.

    Each candidate j keeps c_j = L^-1 k(picks, j | reference), L L^T = k(picks, picks | reference) + noise, up to the picks of its last
    visit; its variance is then k(j, j | reference) - |c_j|^2, and later picks add rows to c_j and L alone (incremental Cholesky, as in
    Chen, Zhang & Zhou, NeurIPS 2018).

    Args:
        process: what was observed before.
        x: (m, d) the candidates.
        whitened: (m, points of the process) what the process explains of them: squared rows sum to it.
    """

    def __init__(self, process: InformationGain, x: DoubleArray, whitened: DoubleArray) -> None:
        self._process = process
        self._x = x
        self._whitened = np.ascontiguousarray(whitened)
        self._variance = 1 - np.einsum("ij,ij->i", self._whitened, self._whitened)
        self._visited = np.zeros(len(x), np.int64)

    def choose(self, n: int) -> IntArray:
        """Indices of up to `n` candidates; the first of those that tie."""
        n = min(n, len(self._x))
        self._rows, self._factor = np.zeros((len(self._x), n)), np.zeros((n, n))
        self._picked, self._picked_whitened = np.zeros((n, self._x.shape[1])), np.zeros((n, self._whitened.shape[1]))
        picks, bound = np.zeros(n, np.int64), self._variance.copy()
        for count in range(n):
            best = int(np.argmax(bound))
            while self._visited[best] < count:
                highest = np.argpartition(bound, -BATCH)[-BATCH:] if len(bound) > BATCH else np.arange(len(bound))
                # none that would have to catch up from farther back than the best
                behind = (self._visited[highest] < count) & (self._visited[highest] >= self._visited[best]) & np.isfinite(bound[highest])
                stale = np.union1d(highest[behind], [best])
                self._visit(stale, count)
                bound[stale] = self._variance[stale]
                best = int(np.argmax(bound))
            picks[count], bound[best] = best, -np.inf
            self._picked[count], self._picked_whitened[count] = self._x[best], self._whitened[best]
            self._factor[count, :count] = self._rows[best, :count]
            self._factor[count, count] = np.sqrt(max(self._variance[best], 0.0) + self._process.noise)
        return picks

    def _visit(self, chosen: IntArray, new: int) -> None:
        """Brings the rows and variances of some candidates up to date with all `new` picks."""
        old = int(self._visited[chosen].min())
        covariance = self._process.kernel(self._picked[old:new], self._x[chosen])
        covariance -= self._picked_whitened[old:new] @ self._whitened[chosen].T + self._factor[old:new, :old] @ self._rows[chosen, :old].T
        added = solve_triangular(self._factor[old:new, old:new], covariance, lower=True, check_finite=False).T
        # some were visited after others: what they had already is computed again, and taken off once
        known = np.arange(old, new) < self._visited[chosen, None]
        self._variance[chosen] -= np.where(known, 0.0, added**2).sum(1)
        self._rows[chosen, old:new] = added
        self._visited[chosen] = new
