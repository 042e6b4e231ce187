"""A bank's table of contents: written last, checked when read, earlier versions brought up to date."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_diverse.bank.format import FORMAT, MANIFEST, NONSENSE, SHARD_NAME, VERSION, BankHeader, plain_json
from monai_diverse.errors import BankCorruptError, BankError, RecipeError
from monai_diverse.storage import fingerprint_of, write_json

REMEDY = "restore the whole bank from a copy, or keep what is intact: monai-diverse merge BANK --skip-damaged --out NEW"
LARGEST = 256 * 2**20


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
class Manifest:
    """The bank's table of contents, the only file that is ever replaced.

    Attributes:
        header: what all samples have in common.
        progress: how far the work has come, a JSON value that belongs to whoever writes the bank.
        shards: in order; on disk, all but the last hold `capacity` samples.
        class_counts: samples of each class.
        capacity: samples in a full shard.
    """

    header: BankHeader
    progress: dict[str, Any]
    shards: tuple[ShardRecord, ...]
    class_counts: tuple[int, ...]
    capacity: int

    @cached_property
    def count(self) -> int:
        """Samples in the bank."""
        return sum(shard.count for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over recipe, source and the shards' contents; the same however often the work was interrupted."""
        header = self.header
        return fingerprint_of([header.recipe_fingerprint, header.source["fingerprint"], [shard.content for shard in self.shards]])

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
            "shards": [asdict(shard) for shard in self.shards],
        }
        write_json(folder / MANIFEST, body | {"sha256": fingerprint_of(body)})

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Reads and checks a folder's manifest, of this format version or an earlier one.

        Raises:
            BankError: there is no bank, or a newer version of this package wrote it.
            BankCorruptError: the manifest is damaged, or names files outside the folder.
        """
        path = folder / MANIFEST
        body = _json(path)
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise BankCorruptError(f"{path}: expected the manifest of a {FORMAT}, got something else; check the path")
        version = body.get("version")
        if type(version) is not int or version < 1:
            raise BankCorruptError(f"{path}: expected a format version from 1 to {VERSION}, got {version!r}; {REMEDY}")
        if version > VERSION:
            raise BankError(f"{path}: expected a format version from 1 to {VERSION}, got {version}; upgrade monai_diverse to read it")
        return _parse(path, body, version)


def _json(path: Path) -> Any:
    try:
        state = path.lstat()
        if stat.S_ISLNK(state.st_mode):
            if path.resolve().parent != path.parent.resolve():
                raise BankCorruptError(f"{path}: expected a file inside the bank, got a link out of it; do not trust this bank")
            state = path.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > LARGEST:  # a pipe would never end
            raise BankCorruptError(f"{path}: expected a file of at most {LARGEST // 2**20} MiB, got something else; do not trust this bank")
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BankError(f"{path.parent}: expected a bank, but there is no {MANIFEST}; check the path, or grow a bank there") from error
    except OSError as error:
        raise BankError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions") from error
    except (ValueError, RecursionError, RuntimeError) as error:  # pathlib says RuntimeError of a link to itself
        raise BankCorruptError(f"{path}: expected JSON, but it cannot be read ({error}); {REMEDY}") from error


def _from_version_1(body: dict[str, Any]) -> dict[str, Any]:
    """Version 1 knew no origins; its shards lack the columns in `samples.OPTIONAL`."""
    return body | {"header": body["header"] | {"origins": []}}


_UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_version_1}
"""From each earlier version to the next."""


def _parse(path: Path, body: dict[str, Any], version: int) -> Manifest:
    try:
        for shard in body["shards"]:
            if not SHARD_NAME.fullmatch(shard["file"]):
                raise BankCorruptError(
                    f"{path}: expected shard names like shard-000000-0123456789ab.safetensors, got {shard['file']!r}; do not trust this bank"
                )
        stated = body.pop("sha256")
        if stated != fingerprint_of(body):
            raise BankCorruptError(f"{path}: its content does not match its own hash: altered or damaged; {REMEDY}")
        for earlier in range(version, VERSION):
            body = _UPGRADES[earlier](body)
        manifest = Manifest(
            header=BankHeader.from_json(body["header"]),
            progress=plain_json(dict(body["progress"]), "progress"),
            shards=tuple(ShardRecord(**shard) for shard in body["shards"]),
            class_counts=tuple(body["class_counts"]),
            capacity=body["capacity"],
        )
        _check_numbers(manifest)
        return manifest
    except NONSENSE as error:
        raise BankCorruptError(f"{path}: expected the entries of format version {version}, got others ({error!r}); {REMEDY}") from error


def _check_numbers(manifest: Manifest) -> None:
    counts = [shard.count for shard in manifest.shards]
    numbers = (manifest.capacity, *counts, *(shard.size for shard in manifest.shards), *manifest.class_counts)
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers) or manifest.capacity < 1:
        raise ValueError(f"capacity {manifest.capacity}, or a count that is no whole number from 0")
    if any(shard.count > shard.size for shard in manifest.shards):
        raise ValueError("a shard of more samples than bytes")
    if any(not isinstance(text, str) for shard in manifest.shards for text in (shard.sha256, shard.content)):
        raise ValueError("a hash that is no text")
    if any(count != manifest.capacity for count in counts[:-1]) or any(not 0 < count <= manifest.capacity for count in counts[-1:]):
        raise ValueError(f"shards of {counts} samples, capacity {manifest.capacity}")
    if [shard.number for shard in manifest.shards] != list(range(len(counts))):
        raise ValueError("shards out of order")
    if len(manifest.class_counts) != manifest.header.classes or sum(manifest.class_counts) != manifest.count:
        raise ValueError(f"class_counts {manifest.class_counts}, {manifest.count} samples, {manifest.header.classes} classes")
