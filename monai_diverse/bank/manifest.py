"""A bank's table of contents: written last, checked when read, earlier versions brought up to date."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.bank.folder import BankFolder
from monai_diverse.bank.format import FORMAT, INDEX_NAME, MANIFEST, NONSENSE, SHARD_NAME, VERSION, BankHeader, plain_json
from monai_diverse.errors import BankCorruptError, BankError, RecipeError
from monai_diverse.storage import fingerprint_of, write_json

REMEDY = "restore the whole bank from a copy, or keep what is intact: monai-diverse merge BANK --skip-damaged --out NEW"
_SHA256 = frozenset("0123456789abcdef")


def index_name(number: int, digest: str) -> str:
    """The file name of index file `number` with this SHA-256."""
    return f"index-{number:06d}-{digest[:12]}.safetensors"


def shard_name(number: int, digest: str) -> str:
    """The file name of shard `number` with this SHA-256."""
    return f"shard-{number:06d}-{digest[:12]}.safetensors"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One line of the manifest.

    Attributes:
        file: the shard's name in the bank's folder; holds its number and the first 12 digits of `sha256`.
        sha256: of the whole file.
        content: SHA-256 of what decides what the samples are (`samples.content_hash`); scores carry floating-point noise.
        count: samples in it.
        size: bytes of the file.
    """

    file: str
    sha256: str
    content: str
    count: int
    size: int

    @property
    def number(self) -> int:
        """The shard's place in the bank, from 0."""
        return int(self.file.split("-")[1])


@dataclass(frozen=True, kw_only=True)
class IndexRecord:
    """The manifest's line on an index file, which describes a run of full shards.

    Attributes:
        file: the name in the bank's folder; holds the index file's number and the first 12 digits of `sha256`.
        sha256: of the whole file.
        size: bytes of the file.
        shards: how many it describes.
        count: samples in these.
        class_counts: samples of each class among these.
    """

    file: str
    sha256: str
    size: int
    shards: int
    count: int
    class_counts: tuple[int, ...]

    @property
    def number(self) -> int:
        """Its place among the index files, from 0."""
        return int(self.file.split("-")[1])


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The bank's table of contents, the only file that is ever replaced.

    Attributes:
        header: what all samples have in common.
        progress: how far the work has come, a JSON value that belongs to whoever writes the bank.
        indexes: in order; each describes a run of full shards, from the bank's first on.
        shards: those that no index file describes, in order; on disk, all but the last hold `capacity` samples.
        class_counts: samples of each class.
        capacity: samples in a full shard.
    """

    header: BankHeader
    progress: dict[str, Any]
    indexes: tuple[IndexRecord, ...]
    shards: tuple[ShardRecord, ...]
    class_counts: tuple[int, ...]
    capacity: int

    @cached_property
    def sealed(self) -> int:
        """Samples that index files describe; the bank's first."""
        return sum(index.count for index in self.indexes)

    @cached_property
    def sealed_shards(self) -> int:
        """Shards that index files describe."""
        return sum(index.shards for index in self.indexes)

    @property
    def shard_count(self) -> int:
        """Shards in the bank."""
        return self.sealed_shards + len(self.shards)

    @cached_property
    def count(self) -> int:
        """Samples in the bank."""
        return self.sealed + sum(shard.count for shard in self.shards)

    def with_progress(self, progress: Mapping[str, Any]) -> Manifest:
        """The same with another progress, copied.

        Raises:
            BankError: it is not a JSON value.
        """
        try:
            return replace(self, progress=plain_json(dict(progress), "progress"))
        except RecipeError as error:
            raise BankError(str(error)) from error

    def write(self, folder: Path) -> None:
        """Replaces the folder's manifest atomically."""
        body: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "header": self.header.as_json(),
            "progress": self.progress,
            "class_counts": list(self.class_counts),
            "capacity": self.capacity,
            "indexes": [asdict(index) | {"class_counts": list(index.class_counts)} for index in self.indexes],
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_json(folder / MANIFEST, body | {"sha256": fingerprint_of(body)})

    @staticmethod
    def read(folder: BankFolder) -> Manifest:
        """Reads and checks a folder's manifest, of this format version or an earlier one.

        Raises:
            BankError: there is no bank, or a newer version of this package wrote it.
            BankCorruptError: the manifest is damaged, or names files outside the folder.
        """
        return Manifest.parse(folder.manifest(), f"{folder.location}/{MANIFEST}")

    @staticmethod
    def parse(content: bytes, place: str) -> Manifest:
        """Checks what a manifest holds; arguments and errors as of `read`, which gives `place` as errors call it."""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise BankCorruptError(f"{place}: expected JSON, but it cannot be read ({error}); {REMEDY}") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise BankCorruptError(f"{place}: expected the manifest of a {FORMAT}, got something else; check the path")
        version = body.get("version")
        if type(version) is not int or version < 1:
            raise BankCorruptError(f"{place}: expected a format version from 1 to {VERSION}, got {version!r}; {REMEDY}")
        if version > VERSION:
            raise BankError(f"{place}: expected a format version from 1 to {VERSION}, got {version}; upgrade monai_diverse to read it")
        return _parse(place, body, version)


def _from_version_1(body: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew no origins; its shards lack the columns in `samples.OPTIONAL`."""
    return body | {"header": body["header"] | {"origins": []}}


def _from_version_2(body: dict[str, Any]) -> dict[str, Any]:
    """Version 2 knew no index files."""
    return body | {"indexes": []}


_UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_version_1, 2: _from_version_2}
"""From each earlier version to the next."""


def _parse(place: str, body: dict[str, Any], version: int) -> Manifest:
    try:
        stated = body.get("sha256")
        content = {name: value for name, value in body.items() if name != "sha256"}
        for earlier in range(version, VERSION):
            body = _UPGRADES[earlier](body)
        _check_names(place, body)
        if stated != fingerprint_of(content):
            raise BankCorruptError(f"{place}: its content does not match its own hash: altered or damaged; {REMEDY}")
        manifest = Manifest(
            header=BankHeader.from_json(body["header"]),
            progress=plain_json(dict(body["progress"]), "progress"),
            indexes=tuple(IndexRecord(**index | {"class_counts": tuple(index["class_counts"])}) for index in body["indexes"]),
            shards=tuple(ShardRecord(**shard) for shard in body["shards"]),
            class_counts=tuple(body["class_counts"]),
            capacity=body["capacity"],
        )
        _check_numbers(manifest)
        _check_indexes(manifest)
        return manifest
    except NONSENSE as error:
        raise BankCorruptError(f"{place}: expected the entries of format version {version}, got others ({error!r}); {REMEDY}") from error


def _check_names(place: str, body: Mapping[str, Any]) -> None:
    for kind, pattern, records in (("shard", SHARD_NAME, body["shards"]), ("index", INDEX_NAME, body["indexes"])):
        for record in records:
            if not pattern.fullmatch(record["file"]):
                like = f"{kind}-000000-0123456789ab.safetensors"
                raise BankCorruptError(f"{place}: expected {kind} names like {like}, got {record['file']!r}; do not trust this bank")


def _check_numbers(manifest: Manifest) -> None:
    counts = [shard.count for shard in manifest.shards]
    _require_whole(manifest.capacity, *counts, *(shard.size for shard in manifest.shards), *manifest.class_counts)
    if manifest.capacity < 1:
        raise ValueError(f"capacity {manifest.capacity}")
    if any(shard.count > shard.size for shard in manifest.shards):
        raise ValueError("a shard of more samples than bytes")
    if any(not isinstance(text, str) for shard in manifest.shards for text in (shard.sha256, shard.content)):
        raise ValueError("a hash that is no text")
    if any(count != manifest.capacity for count in counts[:-1]) or any(not 0 < count <= manifest.capacity for count in counts[-1:]):
        raise ValueError(f"shards of {counts} samples, capacity {manifest.capacity}")


def _check_indexes(manifest: Manifest) -> None:
    indexes, classes = manifest.indexes, manifest.header.classes
    _require_whole(*(number for index in indexes for number in (index.size, index.shards, index.count, *index.class_counts)))
    if any(not isinstance(index.sha256, str) or not _SHA256.issuperset(index.sha256) for index in indexes):
        raise ValueError("a hash that is none")
    for place, index in enumerate(indexes):
        if index.number != place or not index.shards or index.count != index.shards * manifest.capacity or index.count > index.size:
            raise ValueError(f"index file {index.number} at place {place}, {index.shards} shards, {index.count} samples, {index.size} bytes")
        if len(index.class_counts) != classes or sum(index.class_counts) != index.count:
            raise ValueError(f"class_counts {index.class_counts} of index file {place}, {index.count} samples, {classes} classes")
    if [shard.number for shard in manifest.shards] != list(range(manifest.sealed_shards, manifest.shard_count)):
        raise ValueError("shards out of order")
    if len(manifest.class_counts) != classes or sum(manifest.class_counts) != manifest.count:
        raise ValueError(f"class_counts {manifest.class_counts}, {manifest.count} samples, {classes} classes")
    within: Sequence[Sequence[int]] = [index.class_counts for index in indexes]
    if indexes and (np.sum(np.array(within, dtype=object), axis=0) > np.array(manifest.class_counts, dtype=object)).any():
        raise ValueError(f"class_counts {manifest.class_counts}, but more in the index files")


def _require_whole(*numbers: Any) -> None:
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise ValueError("a count that is no whole number from 0")
