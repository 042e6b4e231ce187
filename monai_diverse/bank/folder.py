"""Where a bank's files lie: in a folder, or behind a URL and in a cache."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from monai_diverse.bank.format import MANIFEST
from monai_diverse.errors import BankCorruptError, BankError

LARGEST = 256 * 2**20
"""Bytes of a manifest, or of another file beside the samples."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


class BankFolder(Protocol):
    """A folder whose files can be asked for."""

    @property
    def path(self) -> Path:
        """Where files lie that were asked for."""

    @property
    def location(self) -> str:
        """What `SampleBank.open` was given: an absolute path or a URL."""

    @property
    def reopened_by(self) -> tuple[Any, ...]:
        """The arguments of `folder_of` that make it again."""

    def manifest(self) -> bytes:
        """What the manifest holds now.

        Raises:
            BankError: there is none, or it cannot be read.
            BankCorruptError: it is no plain file of at most `LARGEST` bytes.
        """

    def names(self) -> list[str]:
        """The files in it, sorted; none if they cannot be listed."""

    def fetch(self, file: str, sha256: str, size: int | None = None) -> Path:
        """The local path of a file of the bank.

        Args:
            file: its name.
            sha256: what its SHA-256 begins with. A file that comes from elsewhere is compared with it; one in the bank's own folder is not.
            size: bytes of it; None: not known.

        Raises:
            BankCorruptError: the file from elsewhere is missing or another one.
            BankError: it cannot be reached.
        """

    def beside(self, name: str) -> Path | None:
        """The local path of a file that is no part of the bank, as it is now; None if there is none."""

    def anew(self) -> AbstractContextManager[BankFolder]:
        """The same with nothing in the cache, and files that go when they are let go; for reading every byte."""

    def let_go(self, file: str) -> None:
        """Says that a file is not needed any more."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine."""

    path: Path

    @property
    def location(self) -> str:
        """The absolute path."""
        return str(self.path)

    @property
    def reopened_by(self) -> tuple[Any, ...]:
        """The path."""
        return (str(self.path),)

    def manifest(self) -> bytes:
        """See `BankFolder`."""
        path = self.path / MANIFEST
        try:
            state = path.lstat()
            if stat.S_ISLNK(state.st_mode):
                if path.resolve().parent != path.parent.resolve():
                    raise BankCorruptError(f"{path}: expected a file inside the bank, got a link out of it; do not trust this bank")
                state = path.stat()
            if not stat.S_ISREG(state.st_mode) or state.st_size > LARGEST:  # a pipe would never end
                raise BankCorruptError(f"{path}: expected a file of at most {LARGEST // 2**20} MiB, got something else; do not trust this bank")
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise no_bank(self.location) from error
        except OSError as error:
            raise BankError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions") from error
        except RuntimeError as error:  # pathlib says so of a link to itself
            raise BankCorruptError(f"{path}: expected a file, got a link that leads nowhere ({error}); do not trust this bank") from error

    def names(self) -> list[str]:
        """See `BankFolder`; links out of it and what is no file are left out."""
        try:
            inside = self.path.resolve()
            return sorted(entry.name for entry in self.path.iterdir() if _is_in(entry, inside))
        except (OSError, RuntimeError):
            return []

    def fetch(self, file: str, sha256: str, size: int | None = None) -> Path:
        """See `BankFolder`; whoever opens the file finds out whether it is there."""
        return self.path / file

    def beside(self, name: str) -> Path | None:
        """See `BankFolder`."""
        path = self.path / name
        return path if _is_in(path, self.path.resolve()) else None

    @contextlib.contextmanager
    def anew(self) -> Iterator[BankFolder]:
        """See `BankFolder`."""
        yield self

    def let_go(self, file: str) -> None:
        """See `BankFolder`."""


def _is_in(entry: Path, folder: Path) -> bool:
    try:
        return entry.is_file() and entry.resolve().parent == folder
    except (OSError, RuntimeError):  # pathlib says RuntimeError of a link to itself
        return False


def no_bank(location: str) -> BankError:
    """What is raised where there is no manifest."""
    return BankError(f"{location}: expected a bank, but there is no {MANIFEST}; check the path, or grow a bank there")


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The URL that was meant; None for an ordinary path.

    `Path("s3://bucket/bank")` has lost a slash, which is put back.
    """
    text = os.fspath(path)
    if _URL.match(text):
        return text.rstrip("/")
    lost = _COLLAPSED.match(text) if isinstance(path, os.PathLike) else None
    if lost is None:
        return None
    slashes = ":///" if lost[1] in ("file", "local") else "://"
    return f"{lost[1]}{slashes}{text[lost.end() :]}".rstrip("/")


def local_path(path: str | os.PathLike[str], what: str = "a bank") -> Path:
    """The absolute path of a folder on this machine.

    Raises:
        BankError: a URL.
    """
    url = url_of(path)
    if url is not None:
        raise BankError(f"{url}: expected a local folder to write {what} to, got a URL; write it locally, then copy it with copy_bank")
    return Path(path).absolute()


def folder_of(
    path: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None, storage_options: Mapping[str, Any] | None = None
) -> BankFolder:
    """The folder at a path, or behind a URL.

    Args:
        path: a path or a URL.
        cache: where files from a URL are kept.
        storage_options: for the URL's file system.

    Raises:
        BankError: `cache` or `storage_options` beside a path.
    """
    url = url_of(path)
    if url is not None:
        from monai_diverse.bank.remote import RemoteFolder  # fsspec takes time to import

        return RemoteFolder.at(url, cache, storage_options)
    for name, given in (("cache", cache), ("storage_options", storage_options)):
        if given is not None:
            raise BankError(f"{name}: expected it beside a URL alone, got it beside {path}; leave it out")
    return LocalFolder(Path(path).absolute())
