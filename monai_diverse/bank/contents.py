"""Which file holds which sample; files are opened when they are first needed, and as many stay open as memory should bear."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.folder import BankFolder
from monai_diverse.bank.format import MANIFEST
from monai_diverse.bank.index import IndexFile
from monai_diverse.bank.manifest import REMEDY, Manifest, ShardRecord
from monai_diverse.bank.samples import COLUMNS, content_hash
from monai_diverse.bank.shard import Shard
from monai_diverse.data import IntArray
from monai_diverse.errors import BankCorruptError

_SHARDS = 1024
_INDEXES = 64
_LABELS = 1024
"""How many shards, index files, and counts of a label are kept: some KiB each."""


class Contents:
    """A bank's shards and index files, as one manifest names them.

    Whatever the size of the bank, a sample, its label and the k-th sample of a label are found by reading a few bytes; only of the shards that no
    index file describes yet are all labels read, at the first draw.

    Args:
        folder: the bank's.
        manifest: what it said.
    """

    def __init__(self, folder: BankFolder, manifest: Manifest) -> None:
        self._manifest = manifest
        self._index_starts = tuple(accumulate((index.count for index in manifest.indexes), initial=0))
        self._tail_starts = tuple(accumulate((shard.count for shard in manifest.shards), initial=manifest.sealed))
        # caches that do not refer to this object: files close as soon as nobody needs it
        self._index: Callable[[int], IndexFile] = functools.lru_cache(_INDEXES)(functools.partial(IndexFile, folder, manifest))
        self._opened = functools.lru_cache(_SHARDS)(functools.partial(_shard_at, folder, manifest, self._index))
        self._before = functools.lru_cache(_LABELS)(functools.partial(_labels_before, manifest))
        self._last = functools.lru_cache(1)(functools.partial(_last_shard, folder, manifest))

    def image(self, place: int) -> npt.NDArray[Any]:
        """Image `place` as stored, in fresh memory; `place` is one of the bank's."""
        shard, row = self._shard_of(place)
        return shard.image(row)

    def open_all(self, places: Iterable[int]) -> None:
        """Opens each shard that holds one of these samples.

        Raises:
            BankCorruptError: one of them is not as the bank says; so that nothing is made for images that are not there.
        """
        for place in places:
            self._shard_of(place)

    def label(self, place: int) -> int:
        """The label of sample `place`, which is one of the bank's."""
        if place >= self._manifest.sealed:
            return int(self._tail_labels[place - self._manifest.sealed])
        number = bisect_right(self._index_starts, place) - 1
        return self._index(number).label(place - self._index_starts[number])

    def nth(self, label: int, number: int) -> int:
        """Sample `number` of those with a label, which are at least so many."""
        before = self._before(label)
        if number < before[-1]:
            file = bisect_right(before, number) - 1
            return self._index_starts[file] + self._index(file).nth(label, number - before[file])
        order, starts = self._tail_order
        return self._manifest.sealed + int(order[starts[label] + number - before[-1]])

    def of_label(self, label: int) -> IntArray:
        """All samples of a label, ascending."""
        parts = [self._index_starts[k] + self._index(k).of_label(label) for k in range(len(self._manifest.indexes))]
        order, starts = self._tail_order
        own = order[starts[label] : starts[label + 1]]
        return np.concatenate([*parts, self._manifest.sealed + own]) if parts else own

    def column(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """A column of all samples by its name in the shards, in parts."""
        yield np.empty(0, COLUMNS.get(name, "float32"))
        for number in range(len(self._manifest.indexes)):
            yield self._index(number).array(name)
        for shard, record in zip(self._tail(), self._manifest.shards, strict=True):
            yield shard.array(name)[: record.count]  # its successor may hold more

    def score_names(self) -> list[str]:
        """The scores that every sample has, sorted."""
        for shard in self._tail():
            return shard.score_names
        return self._index(0).score_names if self._manifest.indexes else []

    def records(self) -> Iterator[ShardRecord]:
        """The lines on all shards."""
        for number in range(len(self._manifest.indexes)):
            yield from self._index(number).shards()
        yield from self._manifest.shards

    def record(self, place: int) -> ShardRecord:
        """The line on the shard at `place`."""
        if place >= self._manifest.sealed_shards:
            return self._manifest.shards[place - self._manifest.sealed_shards]
        for number, index in enumerate(self._manifest.indexes):
            if place < index.shards:
                return self._index(number).shard(place)
            place -= index.shards
        raise IndexError(f"expected a shard below {self._manifest.shard_count}, got {place}")

    def _shard_of(self, place: int) -> tuple[Shard, int]:
        if place >= self._manifest.sealed:
            number = bisect_right(self._tail_starts, place) - 1
            return self._tail_shard(number), place - self._tail_starts[number]
        number = bisect_right(self._index_starts, place) - 1
        shard, row = divmod(place - self._index_starts[number], self._manifest.capacity)
        return self._opened(number, shard), row

    def _tail_shard(self, number: int) -> Shard:
        return self._last() if number == len(self._manifest.shards) - 1 else self._opened(len(self._manifest.indexes), number)

    def _tail(self) -> Iterator[Shard]:
        if self._manifest.shards:
            self._last()  # first: a writer may replace it soon, and no other
        return (self._tail_shard(number) for number in range(len(self._manifest.shards)))

    @cached_property
    def _tail_labels(self) -> IntArray:
        labels = [shard.array("labels")[: record.count] for shard, record in zip(self._tail(), self._manifest.shards, strict=True)]
        return np.concatenate([np.empty(0, np.int64), *labels])

    @cached_property
    def _tail_order(self) -> tuple[IntArray, tuple[int, ...]]:
        """Rows of the tail by label, and where each label's begin."""
        counts = np.bincount(self._tail_labels, minlength=self._manifest.header.classes)
        told = np.array(self._manifest.class_counts, np.int64)
        for index in self._manifest.indexes:
            told -= index.class_counts
        if not np.array_equal(counts, told):
            raise BankCorruptError(f"{MANIFEST}: counts {told.tolist()} samples by class, the shards hold {counts.tolist()}; {REMEDY}")
        order = np.argsort(self._tail_labels, kind="stable").astype(np.int64, copy=False)
        return order, tuple(accumulate(counts.tolist(), initial=0))


def follows(folder: BankFolder, before: Manifest, now: Manifest) -> bool:
    """Whether a bank has only grown since `before`: its first samples are still the same."""
    if now.header != before.header or now.count < before.count or now.shard_count < before.shard_count:
        return False
    if now.indexes[: len(before.indexes)] != before.indexes:
        return False
    there, first = Contents(folder, now), before.sealed_shards
    if any(there.record(first + place) != record for place, record in enumerate(before.shards[:-1])):
        return False
    last = [(there.record(before.shard_count - 1), record) for record in before.shards[-1:]]
    return all(found == record or _holds(folder, now, found, record) for found, record in last)


def _holds(folder: BankFolder, manifest: Manifest, record: ShardRecord, earlier: ShardRecord) -> bool:
    """Whether a shard begins with the samples of the one that it superseded."""
    try:
        return content_hash(Shard(folder, record, manifest.header).samples()[: earlier.count], manifest.header) == earlier.content
    except BankCorruptError:
        return False


def _labels_before(manifest: Manifest, label: int) -> tuple[int, ...]:
    """Samples of a label before each index file, and before the tail."""
    return tuple(accumulate((index.class_counts[label] for index in manifest.indexes), initial=0))


def _shard_at(folder: BankFolder, manifest: Manifest, index: Callable[[int], IndexFile], number: int, place: int) -> Shard:
    """Shard `place` of an index file, or, where there is none of this number, of the tail."""
    record = index(number).shard(place) if number < len(manifest.indexes) else manifest.shards[place]
    return Shard(folder, record, manifest.header)


def _last_shard(folder: BankFolder, manifest: Manifest) -> Shard:
    """The last shard, kept open; or the one that a writer has replaced it with since the manifest was read."""
    earlier, known = manifest.shards[-1], manifest
    while True:
        try:
            now = Contents(folder, known).record(earlier.number) if known is not manifest else earlier
            shard = Shard(folder, now, manifest.header, pinned=True)
            if now == earlier or _holds(folder, known, now, earlier):
                return shard
            raise BankCorruptError(f"{folder.location}: holds another bank than the one that was opened; open it anew")
        except BankCorruptError:
            found = Manifest.read(folder)
            if found in (known, manifest) or found.header != manifest.header or found.shard_count <= earlier.number:
                raise
            known = found
