"""An index of many rows: cells around k-means centres, of which the nearest few are searched (FAISS, `IndexIVFFlat`)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import assert_all_finite

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError

BLOCK = 65_536
"""Rows that are converted at a time, so that a second copy of all of them is never needed."""
TRAINED_ON = 64
"""Rows a cell that its centre is found from."""
ITERATIONS = 10
SEED = 0


def faiss_installed() -> bool:
    """Whether an index can be made; without it every search is exact."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Rows in float32, held once, in sqrt(n) cells. Made by `fit`.

    Attributes:
        index: FAISS's.
        probes: cells that a search looks into.
    """

    index: Any
    probes: int

    @classmethod
    def fit(cls, rows: npt.NDArray[Any]) -> Cells:
        """Cells of rows (n, d), n from 1, one of them searched; the same for the same rows, whatever was drawn elsewhere.

        The centres are found by k-means with a fixed seed, from evenly spaced rows. Rows of any dtype, a memory map too, are read in blocks.

        Raises:
            ImportError: FAISS is not installed.
            DataError: rows that are not finite.
        """
        import faiss

        count, width = rows.shape
        cells = max(1, round(count**0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, cells)
        index.cp.niter, index.cp.seed, index.cp.min_points_per_centroid = ITERATIONS, SEED, 1
        index.train(_single(rows[evenly_spaced(count, TRAINED_ON * cells)]))
        for start in range(0, count, BLOCK):
            index.add(_single(rows[start : start + BLOCK]))
        # where each row lies, so that rows can be read back
        index.make_direct_map()
        return cls(index=index, probes=1)

    @property
    def count(self) -> int:
        """The cells that there are."""
        return int(self.index.nlist)

    def candidates(self, query: npt.NDArray[Any], k: int) -> IntArray:
        """Indices (m, k) of the rows nearest to each of (m, d) in the cells that are searched; -1 where those hold fewer."""
        self.index.nprobe = self.probes
        return np.asarray(self.index.search(_single(query), k)[1], np.int64)

    def within_reach(self, query: npt.NDArray[Any], radius: float) -> list[IntArray]:
        """For each of (m, d) the indices of the rows in the cells that are searched, no farther than `radius`."""
        self.index.nprobe = self.probes
        limits, _, found = self.index.range_search(_single(query), radius**2)
        return [np.asarray(found[int(a) : int(b)], np.int64) for a, b in pairwise(limits)]

    def rows(self, indices: IntArray) -> FloatArray:
        """The rows (m, d) of these indices (m,)."""
        found: FloatArray = self.index.reconstruct_batch(np.ascontiguousarray(indices, np.int64))
        return found


def evenly_spaced(count: int, most: int) -> IntArray:
    """Up to `most` of the numbers below `count`, ascending, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def require_finite(features: npt.NDArray[Any]) -> None:
    """Raises DataError unless all features are finite."""
    try:
        assert_all_finite(features)
    except ValueError as error:
        message = "neighbours: expected finite features, got NaN, infinity or numbers beyond float32; check the images and the extractor"
        raise DataError(message) from error


def _single(rows: npt.NDArray[Any]) -> FloatArray:
    single = np.ascontiguousarray(rows, np.float32)
    require_finite(single)
    return single
