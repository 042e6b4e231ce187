"""Banks copied between folders and URLs, file by file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from monai_diverse.bank.contents import Contents, follows
from monai_diverse.bank.folder import BankFolder, LocalFolder, folder_of
from monai_diverse.bank.format import AUDIT, DATASHEET, MANIFEST, SHARD_NAME
from monai_diverse.bank.lock import WriterLock
from monai_diverse.bank.manifest import IndexRecord, Manifest, ShardRecord
from monai_diverse.bank.salvage import foreign_shards
from monai_diverse.bank.samples import place_of
from monai_diverse.bank.store import SampleBank
from monai_diverse.bank.tensors import TensorFile
from monai_diverse.errors import BankCorruptError, BankError, BankMismatchError
from monai_diverse.storage import make_folder, sha256_of, write_atomic

_CHUNK = 4 * 2**20
Place = SampleBank | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class CopyProgress:
    """How far a copy has come.

    Attributes:
        done: shards and index files that are at the target.
        total: shards and index files of the bank.
        skipped: those of `done` that were there already.
        bytes: of those that were copied.
    """

    done: int
    total: int
    skipped: int
    bytes: int


def copy_bank(
    source: Place,
    target: str | os.PathLike[str],
    *,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
) -> SampleBank:
    """Copies a bank to a folder or a URL, from a folder or a URL.

    Shards come first, then index files, then `datasheet.md` and `audit.json`, then the manifest, so that there is a whole bank at the target or none;
    or, where an earlier state of the same bank is, that one until the end. Each file is compared with its hash before it is handed on. What is at the
    target already, with the right size and hash, is not copied again: so an interrupted copy goes on, and a bank that grew is copied by what is new.

    Args:
        source: a bank, or where it is.
        target: a folder or a URL, in which is nothing, what an interrupted copy left, or an earlier state of the same bank.
        source_options: storage options of fsspec, if the source is a URL.
        target_options: storage options of fsspec, if the target is a URL.

    Returns:
        The bank at the target.

    Raises:
        BankError: no bank at the source, one that was opened with `skip_damaged`, a place that cannot be reached, or a writer at the target.
        BankMismatchError: another bank is at the target, or the shards of one.
        BankCorruptError: the source is damaged.
        StorageError: the disk refuses.
        MissingExtraError: a URL's file system is not installed.
    """
    for _ in copy_steps(source, target, source_options=source_options, target_options=target_options):
        pass
    return SampleBank.open(target, storage_options=target_options)


def copy_steps(
    source: Place,
    target: str | os.PathLike[str],
    *,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
) -> Iterator[CopyProgress]:
    """`copy_bank`, which yields after each file; arguments and errors are its."""
    origin = source.folder if isinstance(source, SampleBank) else folder_of(source, None, source_options)
    if isinstance(source, SampleBank) and source.damages:
        raise BankError(f"{source.location}: expected a sound bank to copy, got one with damages; make one of it with merge first")
    folder = folder_of(target, None, target_options)
    if folder.location == origin.location:
        raise BankError(f"{folder.location}: expected another place than the source's, got the same; choose another")
    with origin.anew() as fresh, _opened(folder) as there:
        while True:
            content = fresh.manifest()
            manifest = Manifest.parse(content, f"{fresh.location}/{MANIFEST}")
            try:
                yield from _copied(fresh, content, manifest, there)
                return
            except BankCorruptError:
                if fresh.manifest() == content:
                    raise  # else a writer has replaced the last shard meanwhile


class _Target(Protocol):
    """Where files are copied to."""

    @property
    def folder(self) -> BankFolder:
        """To read from."""

    def holds(self, record: ShardRecord | IndexRecord) -> bool:
        """Whether a file is there as it should be."""

    def put(self, file: str, source: Path) -> None:
        """Copies a local file."""

    def remove(self, file: str) -> None:
        """Removes a file, if it can."""


@dataclass(frozen=True)
class _LocalTarget:
    folder: LocalFolder

    def holds(self, record: ShardRecord | IndexRecord) -> bool:
        path = self.folder.path / record.file
        return path.is_file() and not path.is_symlink() and path.stat().st_size == record.size and sha256_of(path) == record.sha256

    def put(self, file: str, source: Path) -> None:
        with source.open("rb") as stream:
            write_atomic(self.folder.path / file, iter(lambda: stream.read(_CHUNK), b""))

    def remove(self, file: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder.path / file).unlink()


@dataclass(frozen=True)
class _RemoteTarget:
    folder: Any

    def holds(self, record: ShardRecord | IndexRecord) -> bool:
        try:
            return all(True for _ in self.folder.checked(record.file, record.sha256, record.size))
        except BankCorruptError:
            return False

    def put(self, file: str, source: Path) -> None:
        self.folder.put(file, source)

    def remove(self, file: str) -> None:
        self.folder.remove(file)


@contextlib.contextmanager
def _opened(folder: BankFolder) -> Iterator[_Target]:
    """The target; a local one is locked as by a writer."""
    if not isinstance(folder, LocalFolder):
        yield _RemoteTarget(folder)
        return
    lock = WriterLock(make_folder(folder.path))
    try:
        yield _LocalTarget(folder)
    finally:
        lock.release()


def _copied(source: BankFolder, content: bytes, manifest: Manifest, target: _Target) -> Iterator[CopyProgress]:
    before = _before(target.folder, source, manifest)
    present = set(target.folder.names())
    total, done, skipped, size = manifest.shard_count + len(manifest.indexes), 0, 0, 0
    for record in _files(source, manifest):
        there = record.file in present and target.holds(record)
        if not there:
            _send(source, manifest, record, target)
        done, skipped, size = done + 1, skipped + there, size + (0 if there else record.size)
        yield CopyProgress(done=done, total=total, skipped=skipped, bytes=size)
    for name in (DATASHEET, AUDIT):
        path = source.beside(name)
        if path is not None:
            target.put(name, path)
    with _as_file(content) as path:
        target.put(MANIFEST, path)
    for file in before:
        target.remove(file)


def _files(source: BankFolder, manifest: Manifest) -> Iterator[ShardRecord | IndexRecord]:
    contents = Contents(source, manifest)
    yield from manifest.shards[-1:]  # first: a writer may replace it soon, and no other
    count = manifest.shard_count
    yield from (record for place, record in enumerate(contents.records()) if place < count - 1 or not manifest.shards)
    yield from manifest.indexes


def _send(source: BankFolder, manifest: Manifest, record: ShardRecord | IndexRecord, target: _Target) -> None:
    kind = "number" if isinstance(record, ShardRecord) else "index"
    TensorFile(source, record, place_of(manifest.header, record.number, kind)).check_digest()
    target.put(record.file, source.fetch(record.file, record.sha256, record.size))
    source.let_go(record.file)


def _before(folder: BankFolder, source: BankFolder, manifest: Manifest) -> list[str]:
    """The files of an earlier state of the bank that the new one does not name."""
    names = folder.names()
    if MANIFEST not in names:
        _require_own(folder, names, source, manifest)
        return []
    earlier = Manifest.read(folder)
    if not follows(source, earlier, manifest):
        raise BankMismatchError(f"{folder.location}: expected nothing, or an earlier state of the bank to copy, got another bank; choose another")
    kept = {record.file for record in manifest.shards}
    return [record.file for record in earlier.shards[-1:] if record.file not in kept and record.count < earlier.capacity]


def _require_own(folder: BankFolder, names: Sequence[str], source: BankFolder, manifest: Manifest) -> None:
    # what an interrupted copy left may go on; a bank that lost its manifest can still be rescued, and a writer would remove its shards
    known = {record.file for record in Contents(source, manifest).records()}
    foreign = foreign_shards(folder, [name for name in names if SHARD_NAME.fullmatch(name) and name not in known], manifest.header)
    if foreign:
        raise BankMismatchError(
            f"{folder.location}: expected nothing, or what an interrupted copy left, got {len(foreign)} shards of another bank, which has no "
            f"{MANIFEST}; choose another folder (monai-diverse merge {folder.location} --skip-damaged --out NEW rescues that bank)"
        )


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / MANIFEST
        path.write_bytes(content)
        yield path
