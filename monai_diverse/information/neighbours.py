"""Nearest neighbours among fixed rows, leaving out whole groups where a row is compared with its own set."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from monai_diverse.data import IntArray
from monai_diverse.errors import DataError

DoubleArray = npt.NDArray[np.float64]

CHUNK = 1024


class Neighbours:
    """Exact Euclidean nearest neighbours, in double precision; memory stays linear in the rows.

    Args:
        rows: (n, d), finite.
        groups: int (n,): rows that must not count as one another's neighbours; None: every row its own group.

    Raises:
        DataError: no rows, or groups of another length.
    """

    def __init__(self, rows: npt.ArrayLike, groups: IntArray | None = None) -> None:
        self._rows = np.array(rows, np.float64)
        if self._rows.ndim != 2 or not len(self._rows):
            raise DataError(f"neighbours: expected at least one row of features (n, d), got shape {self._rows.shape}")
        self._groups = np.arange(len(self._rows)) if groups is None else np.asarray(groups)
        if self._groups.shape != (len(self._rows),):
            raise DataError(f"neighbours: expected {len(self._rows)} group numbers, one a row, got shape {self._groups.shape}")
        self._largest_group = int(np.unique(self._groups, return_counts=True)[1].max())
        self._index = NearestNeighbors(algorithm="brute").fit(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def most(self) -> int:
        """The neighbours outside its own group that every row has."""
        return len(self) - self._largest_group

    def distances(self, query: npt.ArrayLike, k: int, *, leave_out: IntArray | None = None) -> DoubleArray:
        """Distances (m, k) of rows (m, d) to their k nearest, ascending.

        Args:
            query: (m, d).
            k: neighbours, from 1.
            leave_out: int (m,), the group that each query must not be compared with; None: compare with all.

        Raises:
            DataError: fewer than k rows, or fewer than k outside some group.
        """
        most = len(self) if leave_out is None else self.most
        if not 1 <= k <= most:
            raise DataError(f"neighbours: expected at least {k} other rows to compare with, got {most}; give more images or smaller groups")
        if leave_out is None:
            return self._search(query, k)[0]
        points = np.asarray(query)
        starts = range(0, len(points), CHUNK)
        return np.concatenate([self._outside(points[i : i + CHUNK], leave_out[i : i + CHUNK], k) for i in starts] or [np.zeros((0, k))])

    def nearest(self, query: npt.ArrayLike) -> IntArray:
        """Index (m,) of the row nearest to each of (m, d)."""
        return self._search(query, 1)[1][:, 0].astype(np.int64)

    def within(self, k: int) -> DoubleArray:
        """Distances (n, k) of each row to its k nearest rows of other groups, ascending (leave one group out).

        Raises:
            DataError: some row has fewer than k rows outside its group.
        """
        return self.distances(self._rows, k, leave_out=self._groups)

    def _outside(self, points: npt.NDArray[Any], groups: IntArray, k: int) -> DoubleArray:
        distances, indices = self._search(points, k + self._largest_group)
        return np.sort(np.where(self._groups[indices] == groups[:, None], np.inf, distances), axis=1)[:, :k]

    def _search(self, query: npt.ArrayLike, k: int) -> tuple[DoubleArray, IntArray]:
        points = np.asarray(query, np.float64)
        if points.ndim != 2 or points.shape[1] != self._rows.shape[1]:
            raise DataError(f"neighbours: expected rows of {self._rows.shape[1]} features, got shape {points.shape}")
        if not len(points):
            return np.zeros((0, k)), np.zeros((0, k), np.int64)
        distances, indices = self._index.kneighbors(points, n_neighbors=k)
        return distances, indices
