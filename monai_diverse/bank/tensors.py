"""A safetensors file of a bank: checked, read by position."""

from __future__ import annotations

import functools
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.folder import BankFolder
from monai_diverse.bank.format import FORMAT, NONSENSE, VERDICTS, BankHeader
from monai_diverse.bank.manifest import REMEDY, IndexRecord, ShardRecord
from monai_diverse.errors import BankCorruptError
from monai_diverse.storage import sha256_of

_DTYPES = {"U8": "uint8", "F16": "float16", "F32": "float32", "I64": "int64", "I32": "int32", "U32": "uint32"}
_OPEN_FILES = 64
_HAS_PREAD = hasattr(os, "preadv")
"""Not on Windows, where an open file cannot be replaced anyway."""
_LONGEST_HEADER = 100_000_000
_KINDS = {"number": "shard", "index": "index file"}


class TensorFile:
    """A shard or an index file, of which only what is asked for is read.

    Rows are read by position, straight from the operating system's page cache into the caller's array. All processes share those pages, as they
    would share a memory mapping's; but a mapping counts every page that was ever touched as the process's own, and this does not.

    Args:
        folder: the bank's.
        record: the line on it.
        place: what it must say of where it belongs, see `samples.place_of`.
        pinned: keep the file open: the last shard, so that it can still be read when a writer has replaced it, and what is read all the time.

    Raises:
        BankCorruptError: the file is missing, of another size, no safetensors file, reached through a link that leads out of the bank, or belongs
            to another bank or place. Hashes of local files are compared by `digest` alone.
    """

    def __init__(self, folder: BankFolder, record: ShardRecord | IndexRecord, place: Mapping[str, Any], *, pinned: bool = False) -> None:
        self._name = f"{folder.location}/{record.file}"
        self._record = record
        self._path = folder.fetch(record.file, record.sha256, record.size)
        self._file = self._checked_file()
        try:
            metadata, self.found, self._starts = _layout(self._path, record.size)
            self._kept = _Descriptor(self._file) if pinned else None
        except (OSError, *NONSENSE) as error:
            raise self.corrupt(f"expected a safetensors file, but it cannot be read ({error})") from error
        self._columns = {
            name: (start, np.dtype(self.found[name][0]).itemsize) for name, start in self._starts.items() if self.found[name][0] in _DTYPES.values()
        }
        self._check_place(stated_place(metadata), place)

    def rows(self, name: str, first: int = 0, count: int | None = None) -> npt.NDArray[Any]:
        """Rows of a tensor of one of the known types, little-endian, in new memory; the caller checks that there are such rows."""
        kind, (length, *shape) = self.found[name]
        array = np.empty((length - first if count is None else count, *shape), np.dtype(kind).newbyteorder("<"))
        self.read_into(array, name, first * math.prod(shape) * array.itemsize)
        return array

    def read_into(self, target: npt.NDArray[Any], name: str, offset: int) -> None:
        """Fills an array from a tensor's bytes, from `offset` on.

        Raises:
            BankCorruptError: the file is shorter now, or cannot be read.
        """
        try:
            complete = _read_at(self._file, self._kept, target.reshape(-1).view(np.uint8).data, self._starts[name] + offset)
        except OSError as error:
            raise self.corrupt(f"it cannot be read ({error.strerror or error})") from error
        if not complete:
            raise self.corrupt("truncated since it was opened")

    def number(self, name: str, row: int) -> int:
        """One whole number from 0 of a column; as `rows`, in less time, since each draw asks for one."""
        if not _HAS_PREAD:
            return int(self.rows(name, row, 1)[0])
        start, width = self._columns[name]
        try:
            content = os.pread((self._kept or _opened(self._file)).number, width, start + row * width)
        except OSError as error:
            raise self.corrupt(f"it cannot be read ({error.strerror or error})") from error
        if len(content) < width:
            raise self.corrupt("truncated since it was opened")
        return int.from_bytes(content, "little")

    def check(self, expected: Mapping[str, tuple[str, tuple[int, ...]]], words: str) -> None:
        """Compares the tensors' types and shapes with those that there should be; `words` says which these are.

        Raises:
            BankCorruptError: they are others.
        """
        if set(expected) != set(self.found):
            raise self.corrupt(f"expected tensors {words}, got {sorted(self.found)}")
        for name, found in self.found.items():
            if found != expected[name]:
                raise self.corrupt(f"expected {name} as {expected[name][0]} {expected[name][1]}, got {found[0]} {found[1]}")

    def check_digest(self) -> None:
        """Reads every byte.

        Raises:
            BankCorruptError: the hash is another one.
        """
        try:
            digest = sha256_of(self._path)
        except OSError as error:
            raise self.corrupt(f"it cannot be read ({error.strerror or error})") from error
        if digest != self._record.sha256 or not self._record.file.endswith(f"-{digest[:12]}.safetensors"):
            raise self.corrupt(f"expected SHA-256 {self._record.sha256[:12]}…, got {digest[:12]}…: a bit flipped, or another file in its place")

    def check_values(self, name: str, array: npt.NDArray[Any], header: BankHeader) -> None:
        """Raises BankCorruptError where a column holds labels, verdicts or origins that the bank does not know."""
        limit = {"labels": header.classes, "verdicts": len(VERDICTS), "origins": max(1, len(header.origins))}.get(name)
        if limit is not None and len(array) and not 0 <= array.min() <= array.max() < limit:
            raise self.corrupt(f"expected {name} 0..{limit - 1}, got {array.min()}..{array.max()}")

    def corrupt(self, what: str) -> BankCorruptError:
        """The error that says what is wrong with the file."""
        return BankCorruptError(f"{self._name}: {what}; {REMEDY}")

    def _checked_file(self) -> _File:
        try:
            state, inside = self._path.lstat(), True
            if stat.S_ISLNK(state.st_mode):
                state, inside = self._path.stat(), self._path.resolve().parent == self._path.parent.resolve()
        except FileNotFoundError as error:
            raise self.corrupt("the file is missing") from error
        except (OSError, RuntimeError) as error:  # pathlib says RuntimeError of a link to itself
            raise self.corrupt(f"it cannot be read ({error})") from error
        if not inside:
            raise self.corrupt("expected a file inside the bank, got a link out of it; do not trust this bank")
        if not stat.S_ISREG(state.st_mode):
            raise self.corrupt("expected a file, got something else; do not trust this bank")
        if state.st_size != self._record.size:
            kind = "truncated" if state.st_size < self._record.size else "longer than written"
            raise self.corrupt(f"expected {self._record.size} bytes, got {state.st_size}: {kind}")
        return _File(str(self._path), state.st_ino, state.st_mtime_ns, state.st_ctime_ns)

    def _check_place(self, stated: dict[str, Any] | None, expected: Mapping[str, Any]) -> None:
        *_, number = expected
        kind = _KINDS[number]
        if stated is None:
            raise self.corrupt(f"expected {'an' if kind[0] == 'i' else 'a'} {kind} of a bank, got another safetensors file")
        found = {name: stated.get(name) for name in expected}
        if found == expected:
            return
        same_bank = found | {number: expected[number]} == expected
        raise self.corrupt(
            f"it was written as {kind} {found[number]}, not {expected[number]}: out of place" if same_bank else "it belongs to another bank"
        )


def stated_place(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What a safetensors file's metadata say of its place in a bank; None if it is no part of one."""
    try:
        stated = json.loads(metadata[FORMAT])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return stated if isinstance(stated, dict) else None


def _layout(path: Path, size: int) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]], dict[str, int]]:
    """A safetensors file's metadata, and each tensor's type, shape, and where its bytes begin.

    The file holds eight bytes with the length of a JSON header, the header, and the tensors without gaps. `safetensors` says the same, but maps each
    file; and reading a sample should cost no more than it must.

    Raises:
        ValueError, and others of `NONSENSE`: it is no such file.
    """
    with path.open("rb", buffering=0) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(_LONGEST_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes")
        tensors = json.loads(stream.read(length))
    metadata = tensors.pop("__metadata__", {})
    found, starts, end = {}, {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        kind, shape, (start, stop) = _DTYPES.get(tensor["dtype"], str(tensor["dtype"])), tuple(tensor["shape"]), tensor["data_offsets"]
        if any(type(number) is not int or number < 0 for number in (*shape, start, stop)) or start != end:
            raise ValueError(f"tensor {name!r} of shape {shape} at {start}, where {end} was due")
        if kind in _DTYPES.values() and stop - start != math.prod(shape) * np.dtype(kind).itemsize:
            raise ValueError(f"tensor {name!r} of shape {shape} in {stop - start} bytes")
        found[name], starts[name], end = (kind, shape), 8 + length + start, stop
    if 8 + length + end != size:
        raise ValueError(f"tensors of {end} bytes in a file of {size}")
    return metadata, found, starts


class _File(NamedTuple):
    """A file as it was when it was opened."""

    path: str
    inode: int
    modified: int
    changed: int


class _Descriptor:
    """An open file that closes when nobody uses it any more."""

    def __init__(self, file: _File) -> None:
        self.number = os.open(file.path, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "number"):
            close(self.number)


_opened = functools.lru_cache(maxsize=_OPEN_FILES)(_Descriptor)
"""The files read last, since opening takes longer than reading; a file that was replaced or repaired is another one."""


def _read_at(file: _File, kept: _Descriptor | None, target: memoryview, offset: int) -> bool:
    """Fills `target` from a file; False where the file ends too early. Safe in threads and after a fork, since no position is shared."""
    if not _HAS_PREAD:
        with open(file.path, "rb") as stream:
            stream.seek(offset)
            return stream.readinto(target) == len(target)
    descriptor, done = kept or _opened(file), 0
    while done < len(target):
        count = os.preadv(descriptor.number, [target[done:]], offset + done)
        if not count:
            return False
        done += count
    return True
