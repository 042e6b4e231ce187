"""Reading a bank."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.format import SCORE_PREFIX, BankHeader, Manifest, dequantise
from monai_diverse.bank.shard import Shard
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import BankCorruptError, BankError

Index = slice | npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_] | list[int]


class SampleBank:
    """Accepted samples on disk, as they were when the bank was opened: read lazily, never held in memory as a whole.

    A bank pickles as its path, and a deep copy is the bank itself, so workers of a DataLoader, forked or spawned, share one file mapping.
    A bank only ever grows at its end: sample i stays sample i while a `BankWriter` works on it.

    Use `SampleBank.open`.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._manifest = manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SampleBank:
        """Opens a bank's folder; reads its manifest alone.

        Raises:
            BankError: there is no bank.
            BankCorruptError: the manifest is damaged, comes from a newer version, or names files outside the folder.
        """
        folder = Path(path).absolute()
        return cls(folder, Manifest.read(folder))

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleBank.open, (str(self._path),)

    def __copy__(self) -> SampleBank:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleBank:
        return self

    def __repr__(self) -> str:
        return f"SampleBank({str(self._path)!r}, {len(self)} samples of shape {self.header.shape})"

    def __len__(self) -> int:
        return self._manifest.count

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Sample `index`: (image float32 (c, *spatial) in [0, 1], label)."""
        return self.images[index], int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[FloatArray, int]]:
        return (self[i] for i in range(len(self)))

    @property
    def path(self) -> Path:
        """The bank's folder, absolute."""
        return self._path

    @property
    def header(self) -> BankHeader:
        """What all samples have in common."""
        return self._manifest.header

    @property
    def progress(self) -> dict[str, Any]:
        """How far the work had come, as the writer put it; a copy."""
        return self._manifest.with_progress(self._manifest.progress).progress

    @property
    def class_counts(self) -> list[int]:
        """Samples of each class 0..classes-1."""
        return list(self._manifest.class_counts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over recipe, source, images, labels and seeds; the same however often the work was interrupted, and whatever the scores' noise."""
        return self._manifest.fingerprint

    @cached_property
    def labels(self) -> IntArray:
        """int64 (n,), read-only."""
        return self._column("labels", np.int64)

    @cached_property
    def seeds(self) -> IntArray:
        """int64 (n,), the seed that each image was sampled from; read-only."""
        return self._column("seeds", np.int64)

    @cached_property
    def scores(self) -> Mapping[str, FloatArray]:
        """Every score of the screen by name, float32 (n,) each, read-only."""
        names = self._shards[0].score_names if self._shards else []
        return {name: self._column(SCORE_PREFIX + name, np.float32) for name in names}

    @property
    def images(self) -> LazyImages:
        """The images, float32 (n, c, *spatial) in [0, 1]; read from disk when indexed."""
        return LazyImages(self._shards, len(self), self._manifest.capacity, self.header.shape)

    def indices_of(self, label: int) -> IntArray:
        """int64 (m,), sorted and read-only: which samples have this label; none for labels that the bank does not know. O(1) after the first call."""
        return self._by_label[label] if 0 <= label < self.header.classes else _EMPTY

    def verify(self) -> None:
        """Reads every byte and compares it with what was written.

        Raises:
            BankCorruptError: names the shard that is missing, truncated, altered or foreign, or says what is off in the manifest.
        """
        manifest = Manifest.read(self._path)
        shards = _map_shards(self._path, manifest)
        for number, shard in enumerate(shards):
            if shard.score_names != shards[0].score_names:
                raise BankCorruptError(f"{self._path}: expected scores {shards[0].score_names} in shard {number}, got {shard.score_names}")
            shard.verify()
        labels = np.concatenate([_EMPTY, *(shard.array("labels") for shard in shards)])
        counts = np.bincount(labels, minlength=manifest.header.classes).tolist()
        if counts != list(manifest.class_counts):
            raise BankCorruptError(f"{self._path}: the manifest counts {list(manifest.class_counts)} samples by class, the shards hold {counts}")

    @cached_property
    def _shards(self) -> tuple[Shard, ...]:
        try:
            return _map_shards(self._path, self._manifest)
        except BankCorruptError:
            # a writer may have replaced the last shard since this bank was opened; what was there before is a prefix of what is there now
            now = Manifest.read(self._path)
            if now.shards == self._manifest.shards or now.header != self._manifest.header or now.count < len(self):
                raise
            return _map_shards(self._path, now)

    @cached_property
    def _by_label(self) -> tuple[IntArray, ...]:
        order = np.argsort(self.labels, kind="stable").astype(np.int64)
        order.flags.writeable = False
        return tuple(np.split(order, np.searchsorted(self.labels[order], np.arange(1, self.header.classes))))

    def _column(self, name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        parts = [shard.array(name) for shard in self._shards]
        column = np.concatenate([np.empty(0, dtype), *parts])[: len(self)]
        column.flags.writeable = False
        return column


_EMPTY: IntArray = np.empty(0, np.int64)
_EMPTY.flags.writeable = False


@dataclass(frozen=True)
class LazyImages:
    """A sequence of images that reads from disk what is indexed.

    An integer gives one image (c, *spatial); a slice, list, index array or mask a stack (m, c, *spatial); `np.asarray` all of them.
    Always float32 in [0, 1], always fresh memory.
    """

    _shards: tuple[Shard, ...]
    _count: int
    _capacity: int
    _image_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, c, *spatial)."""
        return (self._count, *self._image_shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[FloatArray]:
        return (self[i] for i in range(self._count))

    @overload
    def __getitem__(self, index: int) -> FloatArray: ...
    @overload
    def __getitem__(self, index: Index) -> FloatArray: ...
    def __getitem__(self, index: int | Index) -> FloatArray:
        if isinstance(index, int | np.integer):
            place = int(index) + (self._count if index < 0 else 0)
            if not 0 <= place < self._count:
                raise IndexError(f"expected an index below {self._count}, got {index}")
            shard, row = divmod(place, self._capacity)
            return dequantise(self._shards[shard].images(row))
        places = np.arange(self._count)[index if isinstance(index, slice) else np.asarray(index, dtype=None if len(index) else np.int64)]
        result = np.empty((len(places), *self._image_shape), np.float32)
        for i, place in enumerate(places.tolist()):
            shard, row = divmod(place, self._capacity)
            result[i] = dequantise(self._shards[shard].images(row))
        return result

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a bank's images are read from disk: they cannot become an array without a copy")
        return self[:].astype(dtype or np.float32, copy=False)


def open_bank(bank: SampleBank | str | os.PathLike[str]) -> SampleBank:
    """The bank itself, or the one at a path.

    Raises:
        BankError: neither a bank nor a path, or no bank there.
    """
    if isinstance(bank, SampleBank):
        return bank
    if not isinstance(bank, str | os.PathLike):
        raise BankError(f"bank: expected a SampleBank or the path of one, got {type(bank).__name__}")
    return SampleBank.open(bank)


def _map_shards(folder: Path, manifest: Manifest) -> tuple[Shard, ...]:
    return tuple(Shard(folder, record, manifest.header, number) for number, record in enumerate(manifest.shards))
