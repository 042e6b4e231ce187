"""Files that are either whole or absent, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from monai_diverse.errors import StorageError


def write_atomic(path: Path, content: bytes) -> None:
    """Writes beside `path`, flushes to disk, then renames: a reader sees the old file or the new one, never a part.

    Args:
        path: the file to write; its folder must exist.
        content: the whole content.

    Raises:
        StorageError: the disk is full, read-only or gone; the old file, if any, is untouched.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private to the user; a bank on shared storage must stay readable to its group
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(_explain(path, error)) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; NaN is refused."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


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


def sha256_of(content: bytes | Path) -> str:
    """The SHA-256 of some bytes, or of a file's content, in hexadecimal."""
    if isinstance(content, Path):
        with content.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    return hashlib.sha256(content).hexdigest()


def fingerprint_of(value: Any) -> str:
    """The SHA-256 of a JSON value in canonical form: sorted keys, no spaces."""
    return sha256_of(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


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
        return f"no space left to write {path}: free some and run the same command again with --resume; nothing stored was lost"
    return f"cannot write {path}: {error.strerror or error}; check the folder and its permissions"
