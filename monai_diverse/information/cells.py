"""An index of many rows: cells around k-means centres, of which the nearest few are searched (FAISS, `IndexIVFFlat`), in memory or on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import assert_all_finite

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError
from monai_diverse.storage import kept_folder, make_folder

BLOCK = 2**24
"""Numbers of rows that are converted at a time (64 MiB), so that a second copy of all of them is never needed."""
TRAINED_ON = 64
"""Rows a cell that its centre is found from."""
ITERATIONS = 10
SEED = 0
CELLS, INDEX = "cells.ivfdata", "index.faiss"
SHARD = 2**26
"""Numbers that an index on disk takes up at a time (256 MiB), and so holds in memory while it is made."""
FORMAT = 1
"""Of indices in a folder: raised when the same rows are put into other cells, so that older ones are not found."""


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
        place: where the rows are on disk; None: in memory.
    """

    index: Any
    probes: int
    place: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Rows on disk stay there: another process reads the same files."""
        return _remade, (self.index if self.place is None else None, self.probes, self.place)

    @classmethod
    def fit(cls, rows: npt.NDArray[Any], folder: Path | None = None) -> Cells:
        """Cells of rows (n, d), n from 1, one of them searched; the same for the same rows, whatever was drawn elsewhere.

        The centres are found by k-means with a fixed seed, from evenly spaced rows. Rows of any dtype, a memory map too, are read in blocks.

        Args:
            rows: (n, d).
            folder: where the cells are kept, in a folder named after the rows' SHA-256, and found again; searches read from there what they need.
                None: in memory.

        Raises:
            ImportError: FAISS is not installed.
            DataError: rows that are not finite.
            StorageError: the disk refuses.
        """
        if folder is not None:
            place = make_folder(folder).resolve() / f"cells-{_hash_of(rows)[:32]}"
            return _remade(None, 1, kept_folder(place, lambda fresh: _write(rows, fresh)))
        index = _trained(rows)
        for part in blocks(len(rows), rows.shape[1]):
            index.add(_single(rows[part]))
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


def _trained(rows: npt.NDArray[Any]) -> Any:
    """An index with centres and no rows yet."""
    import faiss

    count, width = rows.shape
    cells = max(1, round(count**0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, cells)
    index.cp.niter, index.cp.seed, index.cp.min_points_per_centroid = ITERATIONS, SEED, 1
    index.train(_single(rows[evenly_spaced(count, TRAINED_ON * cells)]))
    return index


def _write(rows: npt.NDArray[Any], folder: Path) -> None:
    """Fills an index shard by shard, each of which goes to disk before the next, and merges them there."""
    import faiss
    from faiss.contrib.ondisk import merge_ondisk

    index = _trained(rows)
    with tempfile.TemporaryDirectory(dir=folder) as parts:
        files = []
        for whole in blocks(len(rows), rows.shape[1], SHARD):
            shard = faiss.clone_index(index)
            for part in blocks(whole.stop - whole.start, rows.shape[1]):
                numbers = np.arange(whole.start + part.start, whole.start + part.stop)
                shard.add_with_ids(_single(rows[numbers[0] : numbers[-1] + 1]), numbers)
            files.append(f"{parts}/{whole.start}")
            faiss.write_index(shard, files[-1])
            del shard  # the next one would be beside it in memory
        with _stdout_to(STDERR):
            merge_ondisk(index, files, str(folder / CELLS))
    faiss.write_index(index, str(folder / INDEX))


def _remade(index: Any, probes: int, place: Path | None) -> Cells:
    if place is not None:
        index = _mapped(place)
        # where each row lies, so that rows can be read back
        index.make_direct_map()
    return Cells(index=index, probes=probes, place=place)


def _mapped(folder: Path) -> Any:
    """An index whose rows stay on disk."""
    import faiss

    if not folder.exists():
        raise DataError(f"{folder}: expected the index of neighbours that a screen was fitted with, found none; give every machine the same folder")
    try:
        with open(os.devnull, "wb") as nowhere, _stdout_to(nowhere.fileno()):
            index: Any = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
        lists: Any = faiss.downcast_InvertedLists(index.invlists)
        whole = (folder / CELLS).stat().st_size == lists.totsize  # a shorter map would end the process
    except (OSError, RuntimeError, AttributeError):
        whole = False
    if not whole:
        raise DataError(f"{folder}: expected an index of neighbours, but it cannot be read; delete the folder, and it is made anew")
    return index


STDERR = 2


@contextlib.contextmanager
def _stdout_to(descriptor: int) -> Iterator[None]:
    """What FAISS says of its files goes elsewhere: standard output may be a caller's JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(descriptor, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _hash_of(rows: npt.NDArray[Any]) -> str:
    """SHA-256 of rows as they are indexed, with their number and width."""
    digest = hashlib.sha256(repr((FORMAT, rows.shape)).encode())
    for part in blocks(len(rows), rows.shape[1]):
        digest.update(_single(rows[part]).data)
    return digest.hexdigest()


def blocks(count: int, width: int, numbers: int | None = None) -> Iterator[slice]:
    """Runs of `count` rows of `width` numbers, each of `numbers` (None: `BLOCK`) at most, but of one row at least."""
    step = max(1, (BLOCK if numbers is None else numbers) // max(1, width))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


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
