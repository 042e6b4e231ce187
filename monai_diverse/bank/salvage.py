"""What is intact of a damaged bank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from monai_diverse.bank.format import MANIFEST, NONSENSE, SHARD_NAME, BankHeader
from monai_diverse.bank.manifest import Manifest, ShardRecord
from monai_diverse.bank.samples import content_hash, place_of
from monai_diverse.bank.shard import Shard, stated_place
from monai_diverse.errors import BankCorruptError, BankError
from monai_diverse.storage import sha256_of


def intact(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """A table of contents of the shards that are as they were written, and what is wrong with the others, a line each.

    Reads every byte. Where the manifest itself is damaged or lost, the shards are what it is made of anew: each holds the bank's header, and its name
    its own hash. The progress (what was drawn, the yields) is lost then. Of a bank that is being written, it takes the state of one moment.

    Raises:
        BankError: there is no bank, a newer version wrote it, or nothing in it is intact.
    """
    while True:
        found, damages = _looked_at(folder)
        # a writer replaces the last shard, and removes what it replaced: what was missing then is whole in the next manifest
        if not damages or not _has_moved_on(folder, found):
            break
    if damages and not found.shards:
        raise BankCorruptError(f"{folder}: nothing in it is intact; {damages[0]}")
    return found.kept(), tuple(damages)


@dataclass(frozen=True, kw_only=True)
class _Found:
    manifest: Manifest
    shards: tuple[ShardRecord, ...]
    class_counts: tuple[int, ...]

    def kept(self) -> Manifest:
        return replace(self.manifest, shards=self.shards, class_counts=self.class_counts)


def _looked_at(folder: Path) -> tuple[_Found, list[str]]:
    damages: list[str] = []
    try:
        manifest = Manifest.read(folder)
    except BankError as error:
        if not isinstance(error, BankCorruptError) and (folder / MANIFEST).exists():
            raise
        manifest, damages = _rebuilt(folder, error)
    kept: list[ShardRecord] = []
    counts = np.zeros(manifest.header.classes, np.int64)
    scores: list[str] | None = None
    for record in reversed(manifest.shards):  # a writer may replace the last one soon, and no other
        try:
            shard = Shard(folder, record, manifest.header)
            labels = shard.verify().labels
        except BankCorruptError as error:
            damages.append(str(error))
            continue
        scores = shard.score_names if scores is None else scores
        if shard.score_names != scores:
            damages.append(f"{folder / record.file}: expected scores {scores} as in the other shards, got {shard.score_names}")
            continue
        kept.append(record)
        counts += np.bincount(labels, minlength=len(counts))
    return _Found(manifest=manifest, shards=tuple(reversed(kept)), class_counts=tuple(counts.tolist())), damages


def _has_moved_on(folder: Path, found: _Found) -> bool:
    try:
        return Manifest.read(folder) != found.manifest
    except BankError:
        return False


def _rebuilt(folder: Path, cause: BankError) -> tuple[Manifest, list[str]]:
    """A manifest made from the shards' own words, and what is wrong; raises `cause` where no shard says enough."""
    described, damages = [], [str(cause)]
    for path in _candidates(folder):
        try:
            described.append(_Described.read(path))
        except (SafetensorError, OSError, *NONSENSE) as error:
            damages.append(f"{path}: expected a shard that says what it is, but it cannot be read ({error})")
    headers = [shard.header for shard in described if shard.header is not None]
    if not headers:
        raise cause
    header = max(headers, key=headers.count)
    place = place_of(header, 0)
    best: defaultdict[int, list[ShardRecord]] = defaultdict(list)
    for shard in described:
        record = shard.record_in(folder, header, place)
        if record is None:
            damages.append(f"{shard.path}: it belongs to another bank, or is damaged")
        else:
            best[record.number].append(record)
    # a crash may leave a shard beside the longer one that superseded it
    records = tuple(max(best[number], key=lambda record: record.count) for number in sorted(best))
    missing = sorted(set(range(max(best, default=-1) + 1)) - set(best))
    damages += [f"{folder}: shard {number} is missing" for number in missing]
    manifest = Manifest(header=header, progress={}, shards=records, class_counts=(0,) * header.classes, capacity=header.capacity)
    return manifest, damages


def _candidates(folder: Path) -> Sequence[Path]:
    try:
        inside = folder.resolve()
        return sorted(entry for entry in folder.iterdir() if SHARD_NAME.fullmatch(entry.name) and _is_in(entry, inside))
    except (OSError, RuntimeError):
        return []


def _is_in(entry: Path, folder: Path) -> bool:
    try:
        return entry.is_file() and entry.resolve().parent == folder
    except (OSError, RuntimeError):  # pathlib says RuntimeError of a link to itself
        return False


@dataclass(frozen=True, kw_only=True)
class _Described:
    """What a shard says of itself; one of format version 1 lacks the header."""

    path: Path
    place: dict[str, Any]
    header: BankHeader | None
    count: int

    @classmethod
    def read(cls, path: Path) -> _Described:
        with safe_open(path, framework="np") as file:
            stated = stated_place(file.metadata() or {})
            count = int(file.get_slice("labels").get_shape()[0])
        if stated is None:
            raise ValueError("another safetensors file")
        header = BankHeader.from_json(stated["header"]) if "header" in stated else None
        return cls(path=path, place={name: stated.get(name) for name in ("recipe", "source")}, header=header, count=count)

    def record_in(self, folder: Path, header: BankHeader, place: dict[str, Any]) -> ShardRecord | None:
        """The manifest's line on this shard, if it belongs to the bank with that header and is as its name says."""
        if self.place != {name: place[name] for name in self.place} or self.header not in (None, header):
            return None
        digest = sha256_of(self.path)
        record = ShardRecord(file=self.path.name, sha256=digest, content="", count=self.count, size=self.path.stat().st_size)
        try:
            return replace(record, content=content_hash(Shard(folder, record, header).samples(), header))
        except BankCorruptError:
            return None
