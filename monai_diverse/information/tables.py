"""Two ways to keep rows that neighbours are looked for among: all compared with, or in an index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import NearestNeighbors

from monai_diverse.data import IntArray
from monai_diverse.information.cells import Cells, blocks, evenly_spaced, require_finite

DoubleArray = npt.NDArray[np.float64]

RECALL, RECALL_K, RECALL_SAMPLE = 0.99, 5, 128
"""An index looks into so many cells that it finds this share of the true nearest few of so many evenly spaced rows."""
MOST_PROBED = 0.25
"""An index that must look into more of its cells than this is slower than comparing with every row."""
GATHERED = 2**23
"""Numbers that are compared in double precision at a time: 64 MiB."""
SAME = 1e-6


class Table:
    """Rows (n, d) that are all compared with; distances in double precision, of rows that are kept in `dtype`."""

    def __init__(self, rows: npt.NDArray[Any], dtype: type[np.float32 | np.float64]) -> None:
        self._rows = np.array(rows, dtype)
        require_finite(self._rows)
        self._nearest = NearestNeighbors(algorithm="brute").fit(self._rows)

    def search(self, points: DoubleArray, k: int) -> tuple[DoubleArray, IntArray]:
        """Distances and indices (m, k) of the nearest to each of (m, d), ascending; k up to n."""
        # scikit-learn's fast search wants one dtype on both sides
        distances, indices = self._nearest.kneighbors(points.astype(self._rows.dtype), n_neighbors=k)
        return np.asarray(distances, np.float64), np.asarray(indices, np.int64)

    everywhere = search

    def at(self, indices: IntArray) -> npt.NDArray[Any]:
        """The rows (m, d) of indices (m,)."""
        rows: npt.NDArray[Any] = self._rows[indices]
        return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Indexed:
    """Rows (n, d) in cells, the nearest of which are searched; distances in double precision, of rows in float32.

    Attributes:
        cells: where the rows are kept.
        size: n.
    """

    cells: Cells
    size: int

    @classmethod
    def fit(cls, rows: npt.NDArray[Any], folder: Path | None = None) -> Indexed | None:
        """An index of rows (n, d) that finds `RECALL` of their neighbours, in `folder` if there is one; None if that takes too many of the cells."""
        made = cls(cells=Cells.fit(rows, folder), size=len(rows))
        points = made.at(evenly_spaced(len(rows), RECALL_SAMPLE)).astype(np.float64)
        # a row finds itself whatever is probed
        k = min(RECALL_K + 1, len(rows))
        true = made.everywhere(points, k)[0][:, 1:]
        while made.cells.probes <= MOST_PROBED * made.cells.count:
            if share_found(made.search(points, k)[0][:, 1:], true) >= RECALL:
                return made
            made = replace(made, cells=replace(made.cells, probes=2 * made.cells.probes))
        return None

    def search(self, points: DoubleArray, k: int) -> tuple[DoubleArray, IntArray]:
        """As `Table.search`, among the rows of the nearest cells; distance inf and index 0 where those hold fewer than k."""
        return self._measured(points, self.cells.candidates(points, min(k, self.size)))

    def everywhere(self, points: DoubleArray, k: int) -> tuple[DoubleArray, IntArray]:
        """As `search`, but compared with every row, block by block."""
        best, which = np.zeros((len(points), 0)), np.zeros((len(points), 0), np.int64)
        for part in blocks(self.size, points.shape[1]):
            block = np.arange(part.start, part.stop)
            distances, indices = Table(self.at(block), np.float32).search(points, min(k, len(block)))
            best, which = _lowest(np.concatenate([best, distances], 1), np.concatenate([which, block[indices]], 1), k)
        return self._measured(points, which)

    def at(self, indices: IntArray) -> npt.NDArray[Any]:
        """The rows (m, d) of indices (m,)."""
        return self.cells.rows(indices)

    def _measured(self, points: DoubleArray, candidates: IntArray) -> tuple[DoubleArray, IntArray]:
        """Candidates (m, k) in the order of their distances, which the index knows in single precision only; -1 is none."""
        m, k = candidates.shape
        distances, known = np.empty((m, k)), np.maximum(candidates, 0)
        step = max(1, GATHERED // (k * points.shape[1]))
        for start in range(0, m, step):
            part = slice(start, start + step)
            rows = self.at(known[part].ravel()).reshape(-1, k, points.shape[1])
            distances[part] = np.linalg.norm(points[part, None] - rows, axis=2)
        return _lowest(np.where(candidates < 0, np.inf, distances), known, k)


def share_found(found: DoubleArray, true: DoubleArray) -> float:
    """Recall: the share of `found` (m, k) that lies no farther than the k-th of `true` (m, k); so ties count as found."""
    return float((found <= true[:, -1:] * (1 + SAME)).mean()) if true.size else 1.0


def _lowest(distances: DoubleArray, indices: IntArray, k: int) -> tuple[DoubleArray, IntArray]:
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(indices, order, 1)
