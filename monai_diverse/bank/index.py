"""Index files: what is known of the samples of a run of full shards but the images, in one file, and their order by label."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from monai_diverse.bank.folder import BankFolder
from monai_diverse.bank.format import FORMAT, SCORE_PREFIX, BankHeader
from monai_diverse.bank.manifest import IndexRecord, Manifest, ShardRecord, index_name, shard_name
from monai_diverse.bank.samples import COLUMNS, place_of
from monai_diverse.bank.shard import Shard
from monai_diverse.bank.tensors import TensorFile
from monai_diverse.data import IntArray
from monai_diverse.errors import BankCorruptError
from monai_diverse.storage import sha256_of

ORDER = "order"
"""Rows sorted by label, and those of a label as they are; so a class is one stretch of it."""
_HELD = 4
"""Up to so many index files a bank keeps their orders in memory once it has drawn from them, a MiB each: draws take half the time then."""
_HASHES = ("shards.sha256", "shards.content")
_SIZES = "shards.size"


class IndexFile:
    """An index file, of which only what is asked for is read.

    Args:
        folder: the bank's.
        manifest: holds its line.
        number: its place in the manifest.

    Raises:
        BankCorruptError: see `TensorFile`; or its tensors are not those of an index file of this bank.
    """

    def __init__(self, folder: BankFolder, manifest: Manifest, number: int) -> None:
        self._header, self._capacity = manifest.header, manifest.capacity
        self._record = manifest.indexes[number]
        self._first = sum(index.shards for index in manifest.indexes[:number])
        self._is_held = len(manifest.indexes) <= _HELD
        self._class_starts = tuple(accumulate(self._record.class_counts, initial=0))
        # kept open where each draw reads from it
        self._file = TensorFile(folder, self._record, place_of(manifest.header, number, "index"), pinned=not self._is_held)
        self._check_tensors()

    def __len__(self) -> int:
        return self._record.count

    @property
    def columns(self) -> list[str]:
        """The names of what it holds of each sample."""
        return sorted(name for name in self._file.found if name in COLUMNS or name.startswith(SCORE_PREFIX))

    @property
    def score_names(self) -> list[str]:
        """The scores that it holds, sorted."""
        return [name.removeprefix(SCORE_PREFIX) for name in self.columns if name.startswith(SCORE_PREFIX)]

    def shard(self, place: int) -> ShardRecord:
        """What it says of the shard at `place` among its own."""
        return next(self.shards(place, 1))

    def shards(self, first: int = 0, count: int | None = None) -> Iterator[ShardRecord]:
        """What it says of its shards."""
        hashes, contents = (self._file.rows(name, first, count) for name in _HASHES)
        for place, size in enumerate(self._file.rows(_SIZES, first, count).tolist()):
            digest = hashes[place].tobytes().hex()
            yield ShardRecord(
                file=shard_name(self._first + first + place, digest),
                sha256=digest,
                content=contents[place].tobytes().hex(),
                count=self._capacity,
                size=size,
            )

    def array(self, name: str) -> npt.NDArray[Any]:
        """A column, by its name as in the shards.

        Raises:
            BankCorruptError: no such column, or labels, verdicts or origins that the bank does not know.
        """
        if name not in self._file.found:
            raise self._file.corrupt(f"expected a column {name} as in the other index files, got none")
        array = self._file.rows(name)
        self._file.check_values(name, array, self._header)
        return array

    def label(self, row: int) -> int:
        """The label of a row."""
        label = self._file.number("labels", row)
        if label >= self._header.classes:
            raise self._file.corrupt(f"expected labels 0..{self._header.classes - 1}, got {label}")
        return label

    def nth(self, label: int, number: int) -> int:
        """`of_label(label)[number]`."""
        place = self._class_starts[label] + number
        if self._is_held:
            return int(self._order[place])
        row = self._file.number(ORDER, place)
        if row >= self._record.count:
            raise self._file.corrupt(f"expected rows below {len(self)} in its order, got {row}")
        return row

    def of_label(self, label: int) -> IntArray:
        """Rows of a label, ascending."""
        start, end = self._class_starts[label : label + 2]
        return self._rows_in_order(start, end - start).astype(np.int64)

    def check(self) -> None:
        """Reads every byte, and compares hash, order and counts with what they should be.

        Raises:
            BankCorruptError: something differs from what was written.
        """
        self._file.check_digest()
        labels = self.array("labels")
        if tuple(np.bincount(labels, minlength=self._header.classes).tolist()) != self._record.class_counts:
            raise self._file.corrupt("its labels are not as many of each class as the manifest says")
        if not np.array_equal(self._file.rows(ORDER), np.argsort(labels, kind="stable")):
            raise self._file.corrupt("its order is not that of its labels")

    def corrupt(self, what: str) -> BankCorruptError:
        """The error that says what is wrong with the file."""
        return self._file.corrupt(what)

    @cached_property
    def _order(self) -> npt.NDArray[np.uint32]:
        return self._rows_in_order(0, len(self))

    def _rows_in_order(self, first: int, count: int) -> npt.NDArray[np.uint32]:
        rows = self._file.rows(ORDER, first, count)
        if count and rows.max() >= len(self):
            raise self._file.corrupt(f"expected rows below {len(self)} in its order, got {rows.max()}")
        return rows

    def _check_tensors(self) -> None:
        count, shards, found = self._record.count, self._record.shards, self._file.found
        expected: dict[str, tuple[str, tuple[int, ...]]] = {name: (dtype, (count,)) for name, dtype in COLUMNS.items()}
        expected |= {name: ("float32", (count,)) for name in found if name.startswith(SCORE_PREFIX)}
        expected |= dict.fromkeys(_HASHES, ("uint8", (shards, 32)))
        expected |= {_SIZES: ("int64", (shards,)), ORDER: ("uint32", (count,))}
        self._file.check(expected, ", ".join(expected))


def columns_of(shard: Shard) -> dict[str, npt.NDArray[Any]]:
    """What an index file says of a shard's samples."""
    return {name: shard.array(name) for name in (*COLUMNS, *(SCORE_PREFIX + score for score in shard.score_names))}


def describe(folder: BankFolder, header: BankHeader, records: Sequence[ShardRecord], number: int) -> tuple[IndexRecord, bytes]:
    """The bytes of the index file of some full shards, which it reads, and the manifest's line on it.

    Raises:
        BankCorruptError: a shard cannot be read, or has other scores than the first.
    """
    shards = [columns_of(Shard(folder, record, header)) for record in records]
    return pack_index(records, {name: np.concatenate([_column(shard, name) for shard in shards]) for name in shards[0]}, header, number)


def pack_index(records: Sequence[ShardRecord], columns: Mapping[str, npt.NDArray[Any]], header: BankHeader, number: int) -> tuple[IndexRecord, bytes]:
    """An index file's bytes and the line that the manifest needs for it.

    Args:
        records: of its shards, in order.
        columns: what is known of each of their samples, by the names in the shards.
        header: the bank's.
        number: its place among the bank's index files.
    """
    labels = columns["labels"]
    tensors = dict(columns) | {ORDER: np.argsort(labels, kind="stable").astype(np.uint32)}
    for name, digests in zip(_HASHES, ([r.sha256 for r in records], [r.content for r in records]), strict=True):
        tensors[name] = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(records), 32)
    tensors[_SIZES] = np.array([record.size for record in records], np.int64)
    metadata = {FORMAT: json.dumps(place_of(header, number, "index"), sort_keys=True)}
    content = save({name: np.ascontiguousarray(values) for name, values in tensors.items()}, metadata=metadata)
    digest = sha256_of(content)
    counts = tuple(np.bincount(labels, minlength=header.classes).tolist())
    record = IndexRecord(
        file=index_name(number, digest), sha256=digest, size=len(content), shards=len(records), count=len(labels), class_counts=counts
    )
    return record, content


def _column(shard: Mapping[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    if name not in shard:
        raise BankCorruptError(f"{name}: expected it in every shard, got one without it")
    return shard[name]
