"""What is intact of a damaged bank."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from monai_diverse.bank.folder import BankFolder, LocalFolder
from monai_diverse.bank.format import MANIFEST, NONSENSE, SCORE_PREFIX, SHARD_NAME, BankHeader
from monai_diverse.bank.index import IndexFile, describe
from monai_diverse.bank.manifest import Manifest, ShardRecord
from monai_diverse.bank.samples import COLUMNS, Samples, content_hash, place_of
from monai_diverse.bank.shard import Shard
from monai_diverse.bank.tensors import stated_place
from monai_diverse.errors import BankCorruptError, BankError
from monai_diverse.storage import sha256_of, write_atomic


def intact(folder: BankFolder) -> tuple[Manifest, tuple[str, ...]]:
    """A table of contents of the shards that are as they were written, and what is wrong with the rest, a line each.

    Reads every byte. Where an index file or the manifest itself is damaged or lost, or says otherwise, the shards are what it is made of anew: each
    holds the bank's header, and its name its own hash. With the manifest the progress (what was drawn, the yields) is lost. Of a bank that is being
    written, it takes the state of one moment.

    Raises:
        BankError: there is no bank, a newer version wrote it, or nothing in it is intact.
    """
    while True:
        found = _looked_at(folder)
        # a writer replaces the last shard, and removes what it replaced: what was missing then is whole in the next manifest
        if not found.damages or not _has_moved_on(folder, found.manifest):
            break
    if found.damages and not found.shards:
        raise BankCorruptError(f"{folder.location}: nothing in it is intact; {found.damages[0]}")
    return found.kept(), tuple(found.damages)


def restore_indexes(folder: LocalFolder, manifest: Manifest) -> None:
    """Writes damaged and lost index files again where the shards prove to be those that they described."""
    search = _Search(folder, manifest)
    for number, index in enumerate(manifest.indexes):
        try:
            IndexFile(folder, manifest, number).check()
        except BankCorruptError:
            with contextlib.suppress(BankCorruptError):  # whoever verifies the bank says what is wrong
                record, content = describe(folder, manifest.header, search.described_by(number), number)
                if record.sha256 == index.sha256:
                    write_atomic(folder.path / record.file, content)


def foreign_shards(folder: BankFolder, names: Sequence[str], header: BankHeader) -> list[str]:
    """Those of some shards that say they belong to another bank than the one with this header."""
    described, _ = _described(folder, names, [])
    return [shard.file for shard in described if not shard.is_of(header)]


def _looked_at(folder: BankFolder) -> _Search:
    damages: list[str] = []
    try:
        manifest = Manifest.read(folder)
    except BankError as error:
        if not isinstance(error, BankCorruptError) and MANIFEST in folder.names():
            raise
        manifest, damages = _rebuilt(folder, error)
    search = _Search(folder, manifest)
    search.damages += damages
    for record in reversed(manifest.shards):  # a writer may replace the last one soon, and no other
        search.take(record)
    for number in reversed(range(len(manifest.indexes))):
        search.take_index(number)
    return search


def _has_moved_on(folder: BankFolder, manifest: Manifest) -> bool:
    try:
        return Manifest.read(folder) != manifest
    except BankError:
        return False


class _Search:
    """What was found so far, from the last shard to the first."""

    def __init__(self, folder: BankFolder, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.damages: list[str] = []
        self.shards: list[ShardRecord] = []
        self._counts = np.zeros(manifest.header.classes, np.int64)
        self._scores: list[str] | None = None

    def kept(self) -> Manifest:
        """The manifest itself where all is sound, else one that names each intact shard."""
        counts = tuple(self._counts.tolist())
        if not self.damages and counts == self.manifest.class_counts:
            return self.manifest
        return replace(self.manifest, indexes=(), shards=tuple(reversed(self.shards)), class_counts=counts)

    def take(self, record: ShardRecord) -> Samples | None:
        """Verifies a shard, and notes what is wrong with it or that it is sound."""
        try:
            shard = Shard(self.folder, record, self.manifest.header)
            samples = shard.verify()
        except BankCorruptError as error:
            self.damages.append(str(error))
            return None
        finally:
            self.folder.let_go(record.file)
        self._scores = shard.score_names if self._scores is None else self._scores
        if shard.score_names != self._scores:
            place = f"{self.folder.location}/{record.file}"
            self.damages.append(f"{place}: expected scores {self._scores} as in the other shards, got {shard.score_names}")
            return None
        self.shards.append(record)
        self._counts += np.bincount(samples.labels, minlength=len(self._counts))
        return samples

    def take_index(self, number: int) -> None:
        """Verifies the shards of an index file, and the file against them."""
        file = self.manifest.indexes[number].file
        try:
            index = IndexFile(self.folder, self.manifest, number)
            index.check()
            told = {name: index.array(name) for name in index.columns}
            records = list(index.shards())
        except BankCorruptError as error:
            self.damages.append(f"{error} (what it says can be made anew from its shards)")
            for record in reversed(self.described_by(number)):
                self.take(record)
            return
        finally:
            self.folder.let_go(file)
        for place in reversed(range(len(records))):
            samples = self.take(records[place])
            rows = slice(place * self.manifest.capacity, (place + 1) * self.manifest.capacity)
            if samples is not None and _bytes_of(samples) != {name: values[rows].tobytes() for name, values in told.items()}:
                self.damages.append(str(index.corrupt(f"it says otherwise of the samples of {records[place].file} than the shard")))

    def described_by(self, number: int) -> list[ShardRecord]:
        """The full shards that an index file described, found by their own names; notes which are missing."""
        manifest = self.manifest
        first = sum(index.shards for index in manifest.indexes[:number])
        wanted = range(first, first + manifest.indexes[number].shards)
        names = [name for name in self._names if int(name.split("-")[1]) in wanted]
        described, self.damages[:] = _described(self.folder, names, self.damages)
        best = _best(self.folder, manifest.header, described, self.damages)
        found = [best[place] for place in wanted if place in best and best[place].count == manifest.capacity]
        missing = sorted(set(wanted) - {record.number for record in found})
        self.damages += [f"{self.folder.location}: shard {place} is missing" for place in missing]
        return found

    @cached_property
    def _names(self) -> list[str]:
        return [name for name in self.folder.names() if SHARD_NAME.fullmatch(name)]


def _bytes_of(samples: Samples) -> dict[str, bytes]:
    columns = {name: getattr(samples, name).tobytes() for name in COLUMNS}
    return columns | {SCORE_PREFIX + name: values.tobytes() for name, values in samples.scores.items()}


def _rebuilt(folder: BankFolder, cause: BankError) -> tuple[Manifest, list[str]]:
    """A manifest made from the shards' own words, and what is wrong; raises `cause` where no shard says enough."""
    described, damages = _described(folder, [name for name in folder.names() if SHARD_NAME.fullmatch(name)], [str(cause)])
    headers = [shard.header for shard in described if shard.header is not None]
    if not headers:
        raise cause
    header = max(headers, key=headers.count)
    best = _best(folder, header, described, damages)
    missing = sorted(set(range(max(best, default=-1) + 1)) - set(best))
    damages += [f"{folder.location}: shard {number} is missing" for number in missing]
    records = tuple(best[number] for number in sorted(best))
    manifest = Manifest(header=header, progress={}, indexes=(), shards=records, class_counts=(0,) * header.classes, capacity=header.capacity)
    return manifest, damages


@dataclass(frozen=True, kw_only=True)
class _Described:
    """What a shard says of itself; one of format version 1 lacks the header."""

    file: str
    path: Path
    place: dict[str, Any]
    header: BankHeader | None
    count: int

    @classmethod
    def read(cls, file: str, path: Path) -> _Described:
        with safe_open(path, framework="np") as tensors:
            stated = stated_place(tensors.metadata() or {})
            count = int(tensors.get_slice("labels").get_shape()[0])
        if stated is None:
            raise ValueError("another safetensors file")
        header = BankHeader.from_json(stated["header"]) if "header" in stated else None
        return cls(file=file, path=path, place={name: stated.get(name) for name in ("recipe", "source")}, header=header, count=count)

    def is_of(self, header: BankHeader) -> bool:
        """Whether it belongs to the bank with that header."""
        place = place_of(header, 0)
        return self.place == {name: place[name] for name in self.place} and self.header in (None, header)

    def record_in(self, folder: BankFolder, header: BankHeader) -> ShardRecord | None:
        """The line on this shard, if it belongs to the bank with that header and is as its name says."""
        if not self.is_of(header):
            return None
        record = ShardRecord(file=self.file, sha256=sha256_of(self.path), content="", count=self.count, size=self.path.stat().st_size)
        try:
            return replace(record, content=content_hash(Shard(folder, record, header).samples(), header))
        except BankCorruptError:
            return None


def _described(folder: BankFolder, names: Sequence[str], damages: Sequence[str]) -> tuple[list[_Described], list[str]]:
    """What some shards say of themselves, and the damages with those of shards that say nothing."""
    described, found = [], list(damages)
    for name in names:
        try:
            described.append(_Described.read(name, folder.fetch(name, SHARD_NAME.fullmatch(name)[2])))  # type: ignore[index]  # they match
        except (SafetensorError, OSError, BankCorruptError, *NONSENSE) as error:
            found.append(f"{folder.location}/{name}: expected a shard that says what it is, but it cannot be read ({error})")
    return described, found


def _best(folder: BankFolder, header: BankHeader, described: Sequence[_Described], damages: list[str]) -> dict[int, ShardRecord]:
    """The fullest shard of each number; what belongs to no shard of the bank joins the damages."""
    found: defaultdict[int, list[ShardRecord]] = defaultdict(list)
    for record in _records(folder, header, described, damages):
        found[record.number].append(record)
    # a crash may leave a shard beside the longer one that superseded it
    return {number: max(records, key=lambda record: record.count) for number, records in found.items()}


def _records(folder: BankFolder, header: BankHeader, described: Sequence[_Described], damages: list[str]) -> Iterator[ShardRecord]:
    for shard in described:
        record = shard.record_in(folder, header)
        if record is None:
            damages.append(f"{folder.location}/{shard.file}: it belongs to another bank, or is damaged")
        else:
            yield record
