"""Tables with a row for each of very many real images: made block by block, kept in memory or on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError
from monai_diverse.information.cells import evenly_spaced
from monai_diverse.storage import fingerprint_of, make_folder, new_folder

LARGE = 50_000
"""Images up to which everything is made at once and kept in memory. Of more, components, covariances and classifiers
are fitted on so many evenly spaced ones."""
BLOCK = 1024
"""Images that are looked at together, where there are more than `LARGE`: a multiple of what extractors take at once."""
ROWS = "rows.npy"

Compute = Callable[[FloatArray], FloatArray]
"""Images (n, channels, *spatial) to float32 (n, d), each row of its own image alone."""


@dataclass(frozen=True)
class Tables:
    """Where tables are kept.

    Attributes:
        folder: of more than `LARGE` images, tables are files here, found again by what they were made of and how; None: in memory.
    """

    folder: Path | None = None

    def of(self, images: FloatArray, how: dict[str, Any], compute: Compute) -> FloatArray:
        """What `compute` gives for images (n, channels, *spatial), n from 1: an array (n, d), or a memory map of one.

        Args:
            images: a memory map is read block by block.
            how: plain values that together say what `compute` does.
            compute: as `Compute`.

        Raises:
            StorageError: the disk refuses.
            DataError: a table in the folder that cannot be read.
        """
        if not large(len(images)):
            return compute(images)
        width = compute(images[:1]).shape[1]
        if self.folder is None:
            table = np.empty((len(images), width), np.float32)
            _fill(table, images, compute)
            return table
        place = (
            make_folder(self.folder)
            / f"table-{fingerprint_of([how, list(images.shape), hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()])[:32]}"
        )
        if not place.exists():
            with new_folder(place) as fresh:
                mapped = np.lib.format.open_memmap(fresh / ROWS, mode="w+", dtype=np.float32, shape=(len(images), width))
                _fill(mapped, images, compute)
                mapped.flush()
        return _mapped(place, (len(images), width))


IN_MEMORY = Tables()


def _fill(table: FloatArray, images: FloatArray, compute: Compute) -> None:
    for start in range(0, len(images), BLOCK):
        table[start : start + BLOCK] = compute(images[start : start + BLOCK])


def _mapped(place: Path, shape: tuple[int, int]) -> FloatArray:
    try:
        rows: FloatArray = np.load(place / ROWS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: expected a table of {shape}, but it cannot be read; delete the folder, and it is made anew") from error
    if rows.shape != shape:
        raise DataError(f"{place}: expected a table of {shape}, got {rows.shape}; delete the folder, and it is made anew")
    return rows


def large(count: int) -> bool:
    """Whether so many images are too many to look at at once."""
    return count > LARGE


def fitted_rows(count: int) -> IntArray | slice:
    """Which of so many images something is fitted on: all, or `LARGE` evenly spaced ones."""
    return evenly_spaced(count, LARGE) if large(count) else slice(None)


def in_blocks(images: FloatArray, rows: IntArray | slice, compute: Compute) -> FloatArray:
    """What `compute` gives for some of the images (n, channels, *spatial); many are read block by block."""
    if isinstance(rows, slice):
        return compute(images[rows])
    return np.concatenate([compute(images[rows[start : start + BLOCK]]) for start in range(0, len(rows), BLOCK)])
