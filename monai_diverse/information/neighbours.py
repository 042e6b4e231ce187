"""Nearest neighbours among fixed rows, leaving out whole groups where a row is compared with its own set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.data import IntArray
from monai_diverse.errors import DataError
from monai_diverse.information.cells import evenly_spaced, faiss_installed, require_finite
from monai_diverse.information.tables import DoubleArray, Indexed, Table, share_found

__all__ = ["DoubleArray", "Neighbours"]

CHUNK = 1024
"""Queries that are answered at a time."""
INDEX_FROM = 50_000
"""Rows from which on an index is worth its making (`benchmarks/neighbours.py`)."""
SAMPLE = 10_000


class Neighbours:
    """Euclidean nearest neighbours.

    Below `index_from` rows: exact, in double precision. From there on rows are kept once, in float32, in an index (extra `faiss`) that
    looks into as many of its cells as find 99 % of the five nearest of 128 evenly spaced rows; what it finds is measured again in
    double precision. Where FAISS is not installed, or no quarter of the cells finds that much (features without structure in hundreds
    of dimensions), every row is compared with: exact, but slower. Distances of the two ways differ by at most 1e-6 times the
    largest norm of a row where the same neighbours are found.

    Args:
        rows: (n, d), finite; a memory map is read in blocks by the index.
        groups: int (n,): rows that must not count as one another's neighbours; None: every row its own group.
        index_from: rows from which on an index is used; None: never.
        folder: where an index is kept and found again, so that neither memory nor time are spent on one that was made before; None: in memory.

    Raises:
        DataError: no rows, rows that are not finite, or groups of another length.
        StorageError: the disk refuses.
    """

    def __init__(
        self, rows: npt.ArrayLike, groups: IntArray | None = None, *, index_from: int | None = INDEX_FROM, folder: Path | None = None
    ) -> None:
        table = np.asarray(rows)
        if table.ndim != 2 or not len(table):
            raise DataError(f"neighbours: expected at least one row of features (n, d), got shape {table.shape}")
        self._count, self._width = int(table.shape[0]), int(table.shape[1])
        self._groups = None if groups is None else np.asarray(groups)
        if self._groups is not None and self._groups.shape != (len(table),):
            raise DataError(f"neighbours: expected {len(table)} group numbers, one a row, got shape {self._groups.shape}")
        self._largest_group = 1 if self._groups is None else int(np.unique(self._groups, return_counts=True)[1].max())
        self._rows = _kept(table, index_from, folder)

    def __len__(self) -> int:
        return self._count

    @property
    def exact(self) -> bool:
        """Whether every row is compared with, so that no neighbour is missed."""
        return isinstance(self._rows, Table)

    @property
    def most(self) -> int:
        """The neighbours outside its own group that every row has."""
        return len(self) - self._largest_group

    def rows(self) -> npt.NDArray[Any]:
        """All rows (n, d), as they are kept."""
        return self._rows.at(np.arange(len(self)))

    def distances(self, query: npt.ArrayLike, k: int, *, leave_out: IntArray | None = None) -> DoubleArray:
        """Distances (m, k) of rows (m, d) to their k nearest, ascending.

        Args:
            query: (m, d).
            k: neighbours, from 1.
            leave_out: int (m,), the group that each query must not be compared with; None: compare with all.

        Raises:
            DataError: fewer than k rows, fewer than k outside some group, or queries of another width or not finite.
        """
        return self._search(query, k, leave_out)[0]

    def nearest(self, query: npt.ArrayLike) -> IntArray:
        """Index (m,) of the row nearest to each of (m, d)."""
        return self._search(query, 1, None)[1][:, 0]

    def within(self, k: int, sample: int | None = SAMPLE) -> DoubleArray:
        """Distances (n, k) of each row to its k nearest rows of other groups, ascending (leave one group out).

        Args:
            k: neighbours, from 1.
            sample: of so many evenly spaced rows, where there are more; None: of all.

        Raises:
            DataError: some row has fewer than k rows outside its group.
        """
        chosen = evenly_spaced(len(self), len(self) if sample is None else sample)
        return self.distances(self._rows.at(chosen), k, leave_out=self._group_of(chosen))

    def recall(self, k: int = 5, *, query: npt.ArrayLike | None = None, sample: int = 256) -> float:
        """The share of the true k nearest that is found, in [0, 1]; 1 if the search is exact.

        Args:
            k: neighbours, from 1.
            query: (m, d), m from 1; None: evenly spaced rows, each without its group.
            sample: so many rows.

        Raises:
            DataError: as `distances`.
        """
        chosen = evenly_spaced(len(self), sample)
        points, groups = (self._rows.at(chosen), self._group_of(chosen)) if query is None else (query, None)
        found = self._search(points, k, groups)[0]
        return 1.0 if self.exact else share_found(found, self._search(points, k, groups, everywhere=True)[0])

    def _group_of(self, indices: IntArray) -> IntArray:
        return indices if self._groups is None else self._groups[indices]

    def _search(self, query: npt.ArrayLike, k: int, groups: IntArray | None, *, everywhere: bool = False) -> tuple[DoubleArray, IntArray]:
        points, most = np.asarray(query), len(self) if groups is None else self.most
        if points.ndim != 2 or points.shape[1] != self._width:
            raise DataError(f"neighbours: expected rows of {self._width} features, got shape {points.shape}")
        if not 1 <= k <= most:
            raise DataError(f"neighbours: expected at least {k} other rows to compare with, got {most}; give more images or smaller groups")
        distances, indices = np.zeros((len(points), k)), np.zeros((len(points), k), np.int64)
        for start in range(0, len(points), CHUNK):
            part = slice(start, start + CHUNK)
            own = None if groups is None else groups[part]
            asked = points[part].astype(np.float64)
            require_finite(asked)
            distances[part], indices[part] = self._part(asked, k, own, everywhere)
        return distances, indices

    def _part(self, points: DoubleArray, k: int, groups: IntArray | None, everywhere: bool) -> tuple[DoubleArray, IntArray]:
        """Some queries; those to which the index finds too few neighbours are compared with every row."""
        search = self._rows.everywhere if everywhere else self._rows.search
        distances, indices = search(points, k if groups is None else k + self._largest_group)
        if groups is not None:
            distances = np.where(self._group_of(indices) == groups[:, None], np.inf, distances)
            order = np.argsort(distances, axis=1, kind="stable")
            distances, indices = np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)
        distances, indices = distances[:, :k], indices[:, :k]
        few = np.isinf(distances[:, -1])
        if few.any() and not everywhere:
            distances[few], indices[few] = self._part(points[few], k, None if groups is None else groups[few], True)
        return distances, indices


def _kept(rows: npt.NDArray[Any], index_from: int | None, folder: Path | None) -> Table | Indexed:
    if index_from is None or len(rows) < index_from:
        return Table(rows, np.float64)
    found = Indexed.fit(rows, folder) if faiss_installed() else None
    return Table(rows, np.float32) if found is None else found
