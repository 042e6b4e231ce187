"""Writing a bank: one writer at a time, shard first, manifest last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from monai_diverse.bank import format as bank_format
from monai_diverse.bank.contents import Contents
from monai_diverse.bank.folder import LocalFolder, local_path
from monai_diverse.bank.format import INDEX_NAME, MANIFEST, SHARD_NAME, BankHeader
from monai_diverse.bank.index import describe
from monai_diverse.bank.lock import WriterLock
from monai_diverse.bank.manifest import Manifest, ShardRecord
from monai_diverse.bank.salvage import restore_indexes
from monai_diverse.bank.samples import Samples, pack, quantise, verdict_codes
from monai_diverse.bank.shard import Shard
from monai_diverse.bank.store import SampleBank
from monai_diverse.data import check_images, check_labels
from monai_diverse.errors import BankCorruptError, BankError, BankMismatchError, DataError
from monai_diverse.storage import make_folder, write_atomic


class BankWriter:
    """The only one who may add to a bank, from `create_or_resume` until `close`.

    Each `append` is all or nothing: new shards are written and flushed beside the old ones, and an index file of each run of full shards that has
    become long enough; then the manifest is replaced in one step, then the shard that became superfluous is removed. A crash, a kill or a full disk
    in between leaves the manifest of the last complete `append`. What an append of a few samples costs does not depend on how many there are.

    Use it as a context manager.
    """

    def __init__(self, folder: Path, manifest: Manifest, tail: Samples | None, lock: WriterLock) -> None:
        self._folder = folder
        self._manifest = manifest
        self._tail = tail
        self._lock: WriterLock | None = lock

    @classmethod
    def create_or_resume(cls, path: str | os.PathLike[str], header: BankHeader, *, resume: bool) -> BankWriter:
        """Begins a bank, or takes up one that the same recipe began.

        Args:
            path: the bank's folder, on this machine; made if there is none.
            header: what all samples have in common.
            resume: whether an existing bank may be continued. Every shard is verified first, and what a crash left over is removed. An index file
                that is damaged or missing is written again if its shards are those that it described.

        Raises:
            BankError: `path` is a URL, another writer is at work, or a bank exists and `resume` is False.
            BankMismatchError: the bank there was begun by another recipe, source or for other images.
            BankCorruptError: the bank there is damaged.
            StorageError: the disk refuses.
        """
        folder = make_folder(local_path(path))
        lock = WriterLock(folder)
        try:
            if (folder / MANIFEST).exists():
                manifest = _existing(folder, header, resume=resume)
                tail = _take_up(folder, manifest)
            else:
                manifest, tail = _begin(folder, header), None
        except BaseException:
            lock.release()
            raise
        return cls(folder, manifest, tail, lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def progress(self) -> dict[str, Any]:
        """The progress that the last complete `append` stored; a copy, empty for a new bank."""
        return self._manifest.with_progress(self._manifest.progress).progress

    @property
    def count(self) -> int:
        """Samples stored."""
        return self._manifest.count

    @property
    def bank(self) -> SampleBank:
        """What is stored now, to read."""
        return SampleBank(LocalFolder(self._folder), self._manifest)

    def append(
        self,
        images: npt.ArrayLike,
        labels: npt.ArrayLike,
        seeds: npt.ArrayLike,
        scores: Mapping[str, npt.ArrayLike],
        progress: Mapping[str, Any],
        *,
        verdicts: Sequence[str] | None = None,
        nearest: npt.ArrayLike | None = None,
        origins: npt.ArrayLike | None = None,
    ) -> None:
        """Stores samples and the progress that they brought, both or neither.

        Args:
            images: (m, c, *spatial) in [0, 1]; m may be 0, then the progress alone is stored.
            labels: (m,) classes.
            seeds: (m,) whole numbers, what each image was sampled from.
            scores: the screen's scores by name, (m,) each; the same names at every call that brings samples.
            progress: how far the work has come; a JSON value.
            verdicts: (m,) words of `bank.format.VERDICTS`; None: all "accepted".
            nearest: (m,) index of the nearest real image, as in `screening.Verdict`; None: not known.
            origins: (m,) which of the header's origins each sample came from; None: the first.

        Raises:
            DataError: images, labels, seeds, scores or what else is given do not fit the bank or one another.
            BankError: the writer is closed, this is not the process that opened it, its folder was replaced, or `progress` is no JSON value.
            StorageError: the disk refuses; what was stored before is intact, and the same call may be made again. If only the last flush failed,
                the samples may be there already; the same call then stores them once all the same.
        """
        if self._lock is None:
            raise BankError(f"{self._folder}: expected an open writer, got one that is closed; use create_or_resume(..., resume=True)")
        self._lock.check()
        manifest, tail = self._manifest.with_progress(progress), self._tail
        superseded: list[str] = []
        if any(len(np.asarray(values)) for values in (images, labels, seeds)):
            fresh = self._check(images, labels, seeds, scores, verdicts, nearest, origins)
            written, tail = self._write_shards(fresh)
            kept = self._manifest.shards[: len(self._manifest.shards) - (self._tail is not None)]
            superseded = [shard.file for shard in self._manifest.shards[len(kept) :]]
            counts = np.asarray(manifest.class_counts) + np.bincount(fresh.labels, minlength=manifest.header.classes)
            manifest = replace(manifest, shards=(*kept, *written), class_counts=tuple(counts.tolist()))
        manifest = self._sealed(manifest)
        manifest.write(self._folder)
        self._manifest, self._tail = manifest, tail
        for file in superseded:
            _discard(self._folder / file)

    def close(self) -> None:
        """Lets the next writer in; may be called twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write_shards(self, fresh: Samples) -> tuple[list[ShardRecord], Samples | None]:
        pending = fresh if self._tail is None else self._tail.followed_by(fresh)
        capacity = self._manifest.capacity
        first = self._manifest.shard_count - (self._tail is not None)
        records = []
        for place in range(0, len(pending), capacity):
            record, content = pack(pending[place : place + capacity], self._manifest.header, first + place // capacity)
            write_atomic(self._folder / record.file, content)
            records.append(record)
        left = len(pending) % capacity
        return records, pending[len(pending) - left :] if left else None

    def _sealed(self, manifest: Manifest) -> Manifest:
        """The manifest with an index file, which it writes, in the place of each long enough run of full shards."""
        run = bank_format.INDEX_SHARDS
        while sum(shard.count == manifest.capacity for shard in manifest.shards) >= run:
            record, content = describe(LocalFolder(self._folder), manifest.header, manifest.shards[:run], len(manifest.indexes))
            write_atomic(self._folder / record.file, content)
            manifest = replace(manifest, indexes=(*manifest.indexes, record), shards=manifest.shards[run:])
        return manifest

    def _check(
        self,
        images: npt.ArrayLike,
        labels: npt.ArrayLike,
        seeds: npt.ArrayLike,
        scores: Mapping[str, npt.ArrayLike],
        verdicts: Sequence[str] | None,
        nearest: npt.ArrayLike | None,
        origins: npt.ArrayLike | None,
    ) -> Samples:
        header = self._manifest.header
        pixels = check_images(images)
        if pixels.shape[1:] != header.shape:
            raise DataError(f"images: expected shape (n, {', '.join(map(str, header.shape))}) as in the bank, got {pixels.shape}")
        count = len(pixels)
        columns = {name: np.asarray(values, dtype=np.float32) for name, values in scores.items()}
        names = self._score_names()
        if names is not None and sorted(columns) != names:
            raise DataError(f"scores: expected {names} as in the bank, got {sorted(columns)}")
        for name, column in columns.items():
            if column.shape != (count,):
                raise DataError(f"{name}: expected shape ({count},), one an image, got {column.shape}")
        return Samples(
            images=quantise(pixels, header.dtype),
            labels=check_labels(labels, count, header.classes),
            seeds=_whole(seeds, count, "seeds"),
            verdicts=verdict_codes(verdicts, count),
            nearest=_whole(np.full(count, -1) if nearest is None else nearest, count, "nearest"),
            origins=check_labels(np.zeros(count, int) if origins is None else origins, count, max(1, len(header.origins)), "origins").astype(
                np.int32
            ),
            scores=columns,
        )

    def _score_names(self) -> list[str] | None:
        if self._tail is not None:
            return sorted(self._tail.scores)
        if self._manifest.count:
            return Contents(LocalFolder(self._folder), self._manifest).score_names()
        return None


def _whole(values: npt.ArrayLike, count: int, name: str) -> npt.NDArray[np.int64]:
    numbers = np.asarray(values)
    if numbers.dtype.kind not in "iu" or (numbers.size and int(numbers.max()) > np.iinfo(np.int64).max):
        raise DataError(f"{name}: expected whole numbers below 2**63, got dtype {numbers.dtype}")
    if numbers.shape != (count,):
        raise DataError(f"{name}: expected shape ({count},), one an image, got {numbers.shape}")
    return numbers.astype(np.int64)


def _begin(folder: Path, header: BankHeader) -> Manifest:
    shards = [entry.name for entry in folder.iterdir() if SHARD_NAME.fullmatch(entry.name)]
    if shards:
        raise BankCorruptError(f"{folder}: holds {len(shards)} shards, but no {MANIFEST}; restore it from a copy, or use another folder")
    manifest = Manifest(header=header, progress={}, indexes=(), shards=(), class_counts=(0,) * header.classes, capacity=header.capacity)
    manifest.write(folder)
    return manifest


def _existing(folder: Path, header: BankHeader, *, resume: bool) -> Manifest:
    manifest = Manifest.read(LocalFolder(folder))
    ours, theirs = _identity(header), _identity(manifest.header)
    for name, value in ours.items():
        if theirs[name] != value:
            raise BankMismatchError(f"{folder}: holds a bank of another {name} ({theirs[name]}, not {value}); use another folder")
    if not resume:
        raise BankError(
            f"{folder}: already holds a bank of this recipe with {manifest.count} samples; pass --resume to continue it, or use another folder"
        )
    return manifest


def _identity(header: BankHeader) -> dict[str, Any]:
    return {
        "recipe": header.recipe_fingerprint[:12],
        "source": header.source["fingerprint"][:12],
        "image shape": header.shape,
        "number of classes": header.classes,
        "dtype": header.dtype,
    }


def _take_up(path: Path, manifest: Manifest) -> Samples | None:
    folder = LocalFolder(path)
    restore_indexes(folder, manifest)
    SampleBank(folder, manifest).verify()
    known = {index.file for index in manifest.indexes} | {record.file for record in Contents(folder, manifest).records()}
    for entry in path.iterdir():
        left_over = entry.name.endswith(".part") and entry.name.startswith((".shard-", ".index-", f".{MANIFEST}."))
        if left_over or ((SHARD_NAME.fullmatch(entry.name) or INDEX_NAME.fullmatch(entry.name)) and entry.name not in known):
            _discard(entry)
    if not manifest.shards or manifest.shards[-1].count == manifest.capacity:
        return None
    return Shard(folder, manifest.shards[-1], manifest.header).samples()


def _discard(path: Path) -> None:
    # nothing refers to this file any more: one that cannot be removed costs space, and is tried again at the next resume
    with contextlib.suppress(OSError):
        path.unlink()
