"""Tables with a row for each of very many real images: made block by block, kept in memory or on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError, MissingExtraError
from monai_diverse.information.cells import blocks, evenly_spaced, faiss_installed
from monai_diverse.storage import fingerprint_of, kept_folder, make_folder

LARGE = 50_000
"""Images up to which everything is made at once and kept in memory. Of more, components, covariances and classifiers are fitted on so many."""
BLOCK = 2**24
"""Numbers of images that are looked at together (64 MiB), where there are more than `LARGE` images."""
FORMAT = 1
"""Of tables in a folder: raised when a view of the same images with the same settings becomes another, so that older tables are not found."""
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
    _hashes: list[tuple[FloatArray, str]] = field(default_factory=list, repr=False, compare=False)

    def of(self, images: FloatArray, how: dict[str, Any], compute: Compute, rows: IntArray | None = None) -> FloatArray:
        """What `compute` gives for images (n, channels, *spatial), n from 1: an array (n, d), or a memory map of one.

        Args:
            images: a memory map is read block by block.
            how: plain values that together say what `compute` does.
            compute: as `Compute`.
            rows: of these images only, in this order; None: of all.

        Raises:
            StorageError: the disk refuses.
            DataError: a table in the folder that cannot be read.
            MissingExtraError: a folder for more than `LARGE` images, without FAISS, whose indices it is for.
        """
        if not large(len(images)):
            return compute(images if rows is None else images[rows])
        shape = (len(images) if rows is None else len(rows), compute(images[:1]).shape[1])
        if self.folder is None:
            table = np.empty(shape, np.float32)
            _fill(table, images, rows, compute)
            return table
        if not faiss_installed():
            raise MissingExtraError(
                f"folder: expected FAISS for a screen of {len(images):,} images from a folder: pip install 'monai-diverse[faiss]'"
            )
        key = [FORMAT, how, self._hash_of(images), None if rows is None else hashlib.sha256(rows.tobytes()).hexdigest()]

        def write(fresh: Path) -> None:
            mapped = np.lib.format.open_memmap(fresh / ROWS, mode="w+", dtype=np.float32, shape=shape)
            _fill(mapped, images, rows, compute)

        return _mapped(kept_folder(make_folder(self.folder) / f"table-{fingerprint_of(key)[:32]}", write), shape)

    def _hash_of(self, images: FloatArray) -> str:
        """SHA-256 of images and their shape; each array is read once."""
        for known, found in self._hashes:
            if known is images:
                return found
        digest = hashlib.sha256(repr(images.shape).encode())
        digest.update(np.ascontiguousarray(images).data)
        self._hashes.append((images, digest.hexdigest()))
        return digest.hexdigest()


IN_MEMORY = Tables()


def large(count: int) -> bool:
    """Whether so many images are too many to look at at once."""
    return count > LARGE


def fitted_rows(count: int) -> IntArray | None:
    """Which of so many images something is fitted on: `LARGE` evenly spaced ones, or all (None)."""
    return evenly_spaced(count, LARGE) if large(count) else None


def class_rows(labels: IntArray, most: int) -> IntArray:
    """All rows, or of more than `most` as many from each class as an equal share allows (two at least), evenly spaced; ascending."""
    if len(labels) <= most:
        return np.arange(len(labels))
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    share = max(2, most // len(members))
    return np.sort(np.concatenate([own[evenly_spaced(len(own), share)] for own in members]))


def _fill(table: FloatArray, images: FloatArray, rows: IntArray | None, compute: Compute) -> None:
    for part in blocks(len(table), int(np.prod(images.shape[1:])), BLOCK):
        table[part] = compute(images[part] if rows is None else images[rows[part]])


def _mapped(place: Path, shape: tuple[int, int]) -> FloatArray:
    try:
        rows: FloatArray = np.load(place / ROWS, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: expected a table of {shape}, but it cannot be read; delete the folder, and it is made anew") from error
    if rows.shape != shape:
        raise DataError(f"{place}: expected a table of {shape}, got {rows.shape}; delete the folder, and it is made anew")
    return rows
