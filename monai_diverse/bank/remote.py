"""A bank behind a URL: its files are fetched when they are first needed, compared with their hashes, and kept in a cache."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256 as sha256_hash
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from monai_diverse.bank.folder import LARGEST, BankFolder, no_bank
from monai_diverse.bank.format import MANIFEST
from monai_diverse.errors import BankCorruptError, BankError, DiverseError, MissingExtraError
from monai_diverse.storage import make_folder, sha256_of, write_atomic

_CHUNK = 4 * 2**20
_MISSING = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder that fsspec reaches, and the folder on this machine where its files are kept.

    Several processes may use one cache: files appear in it whole, under names that hold their hashes.

    Attributes:
        location: the URL.
        cache: where banks have their folders.
        is_default: whether that is the default, which may be another one where a bank is unpickled.
        options: what fsspec's file system is told.
        is_temporary: whether files go when they are let go.
    """

    location: str
    cache: Path
    is_default: bool
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_temporary: bool = False

    @classmethod
    def at(cls, url: str, cache: str | os.PathLike[str] | None, options: Mapping[str, Any] | None) -> RemoteFolder:
        """The folder behind a URL.

        Raises:
            BankError: a URL that fsspec does not know.
            MissingExtraError: what fsspec needs for it is not installed.
        """
        root = default_cache() if cache is None else Path(cache).expanduser().absolute()
        folder = cls(location=url, cache=root, is_default=cache is None, options=dict(options or {}))
        folder._reach()
        return folder

    @property
    def path(self) -> Path:
        """See `BankFolder`."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", self.location.rpartition("/")[2]) or "bank"
        return self.cache / f"{name}-{sha256_of(self.location.encode())[:16]}"

    @property
    def reopened_by(self) -> tuple[Any, ...]:
        """URL, cache and options."""
        return (self.location, None if self.is_default else str(self.cache), dict(self.options) or None)

    def manifest(self) -> bytes:
        """See `BankFolder`."""
        return self._whole(MANIFEST)

    def names(self) -> list[str]:
        """See `BankFolder`."""
        with contextlib.suppress(BankError, *_MISSING), self._errors(self.location) as (system, path):
            system.invalidate_cache()
            return sorted(entry["name"].rpartition("/")[2] for entry in system.ls(path, detail=True) if entry["type"] == "file")
        return []

    def fetch(self, file: str, sha256: str, size: int | None = None) -> Path:
        """See `BankFolder`."""
        path = self.path / file
        if not _is_kept(path, sha256, size):
            make_folder(self.path)
            write_atomic(path, self.checked(file, sha256, size))
        return path

    def checked(self, file: str, sha256: str, size: int | None = None) -> Iterator[bytes]:
        """A file in parts, read from the URL; arguments and errors as of `fetch`, raised at the latest after the last part."""
        digest, count, place = sha256_hash(), 0, f"{self.location}/{file}"
        try:
            with self._errors(place) as (system, path), system.open(f"{path}/{file}", "rb", block_size=_CHUNK) as stream:
                while part := stream.read(_CHUNK):
                    digest.update(part)
                    count += len(part)
                    if size is not None and count > size:
                        raise BankCorruptError(f"{place}: expected {size} bytes, got more: longer than written; copy the bank anew")
                    yield part
        except _MISSING as error:
            raise BankCorruptError(f"{place}: the file is missing; copy the bank anew") from error
        found = digest.hexdigest()
        if (size is not None and count != size) or not _fits(file, sha256, found):
            what = f"expected SHA-256 {sha256[:12]}…, got {found[:12]}… of {count} bytes: damaged, or another file in its place"
            raise BankCorruptError(f"{place}: {what}; copy the bank anew")

    def beside(self, name: str) -> Path | None:
        """See `BankFolder`; fetched at every call."""
        try:
            content = self._whole(name)
        except BankError as error:
            if isinstance(error.__cause__, _MISSING):
                return None
            raise
        path = make_folder(self.path) / name
        write_atomic(path, content)
        return path

    @contextlib.contextmanager
    def anew(self) -> Iterator[BankFolder]:
        """See `BankFolder`."""
        with tempfile.TemporaryDirectory(dir=make_folder(self.cache), prefix=".anew-") as name:
            yield replace(self, cache=Path(name), is_temporary=True)

    def let_go(self, file: str) -> None:
        """See `BankFolder`."""
        if self.is_temporary:
            (self.path / file).unlink(missing_ok=True)

    def put(self, file: str, source: Path) -> None:
        """Copies a local file to the URL.

        Raises:
            BankError: it cannot be written, or is of another size there afterwards.
        """
        place = f"{self.location}/{file}"
        try:
            with self._errors(place) as (system, path):
                if not getattr(system, "async_impl", False):  # object stores have no folders, and would make a bucket of a slip
                    system.makedirs(path, exist_ok=True)
                system.put_file(str(source), f"{path}/{file}")
                system.invalidate_cache()
                size = system.size(f"{path}/{file}")
        except _MISSING as error:
            raise BankError(f"{place}: cannot be written, since its bucket or folder does not exist; make it first") from error
        if size != source.stat().st_size:
            raise BankError(f"{place}: expected {source.stat().st_size} bytes after writing it, got {size}; copy the bank anew")

    def remove(self, file: str) -> None:
        """Removes a file behind the URL, if it is there and can be removed."""
        with contextlib.suppress(BankError, *_MISSING), self._errors(f"{self.location}/{file}") as (system, path):
            system.rm_file(f"{path}/{file}")

    def _whole(self, name: str) -> bytes:
        place = f"{self.location}/{name}"
        try:
            with self._errors(place) as (system, path):
                system.invalidate_cache()
                # in one request: the file may be replaced at any time
                content: bytes = system.cat_file(f"{path}/{name}", start=0, end=LARGEST + 1)
        except _MISSING as error:
            raise no_bank(self.location) from error
        if len(content) > LARGEST:
            raise BankCorruptError(f"{place}: expected a file of at most {LARGEST // 2**20} MiB, got a larger one; do not trust this bank")
        return content

    @contextlib.contextmanager
    def _errors(self, place: str) -> Iterator[tuple[AbstractFileSystem, str]]:
        """The file system and the folder's path in it; whatever a file system raises but for a missing file becomes one line."""
        try:
            yield self._reach()
        except (*_MISSING, DiverseError):
            raise
        except Exception as error:  # each file system has its own
            said = " ".join(str(error).split()) or type(error).__name__
            raise BankError(f"{place}: cannot be reached ({said}); check the URL, the network, and the credentials in the environment") from error

    def _reach(self) -> tuple[AbstractFileSystem, str]:
        # anew each time: fsspec keeps the instances of a process, and those of a parent do not work in a child
        try:
            system, path = url_to_fs(self.location, **self.options)
        except ImportError as error:
            said = " ".join(str(error).split())
            raise MissingExtraError(f"{self.location}: its file system is not installed ({said}); s3fs for s3://, gcsfs for gs://") from error
        except (TypeError, ValueError) as error:
            raise BankError(f"{self.location}: expected a URL that fsspec knows, with its storage_options ({error}); check both") from error
        return system, path.rstrip("/")


def default_cache() -> Path:
    """Where banks from URLs are kept: `$XDG_CACHE_HOME/monai_diverse/banks`, or `~/.cache/monai_diverse/banks`."""
    root = os.environ.get("XDG_CACHE_HOME") or ""
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "monai_diverse" / "banks"


def _fits(file: str, sha256: str, digest: str) -> bool:
    return digest.startswith(sha256) and file.endswith(f"-{digest[:12]}.safetensors")


def _is_kept(path: Path, sha256: str, size: int | None) -> bool:
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode) or size not in (None, state.st_size):
            return False
        return _fits(path.name, sha256, _digest(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    except OSError:
        return False


@functools.lru_cache(maxsize=2**14)
def _digest(path: Path, *state: int) -> str:
    """The hash of a file that was not changed since it had this state."""
    return sha256_of(path)
