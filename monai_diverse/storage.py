"""Files and folders that are either whole or absent, and hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from monai_diverse.errors import DataError, StorageError


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


UMASK = _read_umask()
"""Read once, because reading it means setting it for the whole process."""


def write_atomic(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Writes beside `path`, flushes to disk, then renames: a reader sees the old file or the new one, never a part.

    Args:
        path: the file to write; its folder must exist.
        content: the whole content, or its parts; what their iterator raises ends the writing, and nothing is left of it.

    Raises:
        StorageError: the disk is full, read-only or gone; the old file, if any, is untouched, unless only flushing the folder failed at the end.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            for part in (content,) if isinstance(content, bytes) else content:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private to the user; a bank on shared storage must stay readable to its group
        Path(temporary).chmod(0o666 & ~UMASK)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(_explain(path, error)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # the disk may have become read-only
                Path(temporary).unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; NaN is refused."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataError: no such file, not JSON, nested too deeply, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a JSON file, but it cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def make_folder(path: Path) -> Path:
    """Makes a folder and its parents.

    Raises:
        StorageError: a file stands in the way, or the disk refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(_explain(path, error)) from error
    return path


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name once the block has ended without an error, and vanishes otherwise.

    Args:
        path: does not exist yet, or is an empty folder; its parents are made.

    Raises:
        StorageError: something stands in the way, or the disk refuses.
    """
    temporary: Path | None = None
    try:
        make_folder(path.parent)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        temporary.chmod(0o777 & ~UMASK)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync_file(file)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise error if isinstance(error, StorageError) else StorageError(_explain(path, error)) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def kept_folder(path: Path, write: Callable[[Path], None]) -> Path:
    """A folder whose name says all that is in it: what is there, or what `write` puts into it; of two processes that write at once, one wins.

    Args:
        path: of the folder.
        write: is given a temporary folder beside it.

    Raises:
        StorageError: the disk refuses.
    """
    if not path.exists():
        try:
            with new_folder(path) as fresh:
                write(fresh)
        except StorageError:
            if not path.exists():
                raise
    return path


def sha256_of(content: bytes | Path) -> str:
    """The SHA-256 of some bytes, or of a file's content, in hexadecimal."""
    if isinstance(content, Path):
        with content.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    return hashlib.sha256(content).hexdigest()


def fingerprint_of(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form: sorted keys, no spaces."""
    return sha256_of(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _sync_file(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left to write {path}: free some and go on; nothing stored was lost"
    return f"cannot write {path}: {error.strerror or error}; check the folder and its permissions"
