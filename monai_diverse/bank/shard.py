"""One shard on disk: checked, read in parts, verified."""

from __future__ import annotations

import functools
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from monai_diverse.bank.format import FORMAT, SCORE_PREFIX, VERDICTS, BankHeader
from monai_diverse.bank.manifest import REMEDY, ShardRecord
from monai_diverse.bank.samples import COLUMNS, OPTIONAL, Samples, content_hash, place_of
from monai_diverse.errors import BankCorruptError
from monai_diverse.storage import sha256_of

_DTYPES = {"U8": "uint8", "F16": "float16", "F32": "float32", "I64": "int64", "I32": "int32"}
_OPEN_FILES = 64


class Shard:
    """A shard file, of which only what is asked for is read.

    Images are read by position, straight from the operating system's page cache into the caller's array. All processes share those pages, as they
    would share a memory mapping's; but a mapping counts every page that was ever touched as the process's own, and this does not.

    Args:
        folder: the bank's.
        record: the manifest's line on it.
        header: the bank's.
        pinned: keep the file open, so that it can still be read when a writer has replaced it; only the last shard of a bank ever is.

    Raises:
        BankCorruptError: the file is missing, of another size, no safetensors file, reached through a link that leads out of the bank, or belongs
            to another bank or place. Hashes are compared by `verify` alone.
    """

    def __init__(self, folder: Path, record: ShardRecord, header: BankHeader, *, pinned: bool = False) -> None:
        self._path = folder / record.file
        self._record = record
        self._header = header
        self._file = self._checked_file(folder)
        try:
            with safe_open(self._path, framework="np") as file:
                self._metadata = file.metadata() or {}
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
                self._found = {name: (_DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
            self._starts = _starts_of(self._path)
            self._kept = _Descriptor(self._file) if pinned else None
        except (SafetensorError, OSError) as error:
            raise self._corrupt(f"expected a safetensors file, but it cannot be read ({error})") from error
        self._check_place()
        self._check_tensors()
        self._dtype = np.dtype(header.dtype).newbyteorder("<")
        self._stride = math.prod(header.shape) * self._dtype.itemsize

    def __len__(self) -> int:
        return self._record.count

    @property
    def score_names(self) -> list[str]:
        """The scores that it holds, sorted."""
        return sorted(name.removeprefix(SCORE_PREFIX) for name in self._found if name.startswith(SCORE_PREFIX))

    def image(self, row: int) -> npt.NDArray[Any]:
        """One image (c, *spatial), as stored, in new memory; raises IndexError for a row that it has not."""
        if not 0 <= row < self._record.count:
            raise IndexError(f"expected a row below {self._record.count}, got {row}")
        image = np.empty(self._header.shape, self._dtype)
        self._read_into(image, self._starts["images"] + row * self._stride)
        return image

    @property
    def record(self) -> ShardRecord:
        """The manifest's line on it."""
        return self._record

    def images(self) -> npt.NDArray[Any]:
        """All images (n, c, *spatial), as stored, in new memory."""
        images = np.empty((len(self), *self._header.shape), self._dtype)
        self._read_into(images, self._starts["images"])
        return images

    def array(self, name: str) -> npt.NDArray[Any]:
        """A column by its name in the file: labels, seeds, scores.NAME, ...; its default where an earlier version wrote none.

        Raises:
            BankCorruptError: no such column, or labels, verdicts or origins that the bank does not know.
        """
        if name not in self._found and name in OPTIONAL:
            return np.full(len(self), OPTIONAL[name], COLUMNS[name])
        if name not in self._found:
            raise self._corrupt(f"expected a column {name} as in the other shards, got none")
        array = np.empty(len(self), np.dtype(self._found[name][0]).newbyteorder("<"))
        self._read_into(array, self._starts[name])
        limit = {"labels": self._header.classes, "verdicts": len(VERDICTS), "origins": max(1, len(self._header.origins))}.get(name)
        if limit is not None and len(array) and not 0 <= array.min() <= array.max() < limit:
            raise self._corrupt(f"expected {name} 0..{limit - 1}, got {array.min()}..{array.max()}")
        return array

    def samples(self) -> Samples:
        """Everything in it, in memory."""
        columns = {name: self.array(name) for name in COLUMNS}
        return Samples(images=self.images(), **columns, scores={name: self.array(SCORE_PREFIX + name) for name in self.score_names})

    def verify(self) -> Samples:
        """Reads every byte and compares hashes, then values with what a bank may hold.

        Returns:
            Everything in it.

        Raises:
            BankCorruptError: something differs from what was written.
        """
        try:
            digest = sha256_of(self._path)
        except OSError as error:
            raise self._corrupt(f"it cannot be read ({error.strerror or error})") from error
        if digest != self._record.sha256 or not self._path.name.endswith(f"-{digest[:12]}.safetensors"):
            raise self._corrupt(f"expected SHA-256 {self._record.sha256[:12]}…, got {digest[:12]}…: a bit flipped, or another file in its place")
        samples = self.samples()
        if content_hash(samples, self._header) != self._record.content:
            raise self._corrupt("images, labels or seeds do not match the content hash")
        if samples.images.dtype.kind == "f" and not (np.isfinite(samples.images).all() and 0 <= samples.images.min() <= samples.images.max() <= 1):
            raise self._corrupt("expected finite pixels in [0, 1], got others")
        return samples

    def _read_into(self, target: npt.NDArray[Any], offset: int) -> None:
        try:
            complete = _read_at(self._file, self._kept, target.reshape(-1).view(np.uint8).data, offset)
        except OSError as error:
            raise self._corrupt(f"it cannot be read ({error.strerror or error})") from error
        if not complete:
            raise self._corrupt("truncated since it was opened")

    def _checked_file(self, folder: Path) -> _File:
        try:
            state = self._path.stat()
            inside = self._path.resolve().parent == folder.resolve()
        except FileNotFoundError as error:
            raise self._corrupt("the file is missing") from error
        except (OSError, RuntimeError) as error:  # pathlib says RuntimeError of a link to itself
            raise self._corrupt(f"it cannot be read ({error})") from error
        if not inside:
            raise self._corrupt("expected a file inside the bank, got a link out of it; do not trust this bank")
        if not stat.S_ISREG(state.st_mode):
            raise self._corrupt("expected a file, got something else; do not trust this bank")
        if state.st_size != self._record.size:
            kind = "truncated" if state.st_size < self._record.size else "longer than written"
            raise self._corrupt(f"expected {self._record.size} bytes, got {state.st_size}: {kind}")
        return _File(str(self._path), state.st_ino, state.st_mtime_ns, state.st_ctime_ns)

    def _check_place(self) -> None:
        stated = stated_place(self._metadata)
        if stated is None:
            raise self._corrupt("expected a shard of a bank, got another safetensors file")
        expected = place_of(self._header, self._record.number)
        found = {name: stated.get(name) for name in expected}
        if found == expected:
            return
        same_bank = found | {"number": self._record.number} == expected
        raise self._corrupt(
            f"it was written as shard {found['number']}, not {self._record.number}: out of place" if same_bank else "it belongs to another bank"
        )

    def _check_tensors(self) -> None:
        count = self._record.count
        expected = {"images": (self._header.dtype, (count, *self._header.shape))}
        expected |= {name: (dtype, (count,)) for name, dtype in COLUMNS.items() if name in self._found or name not in OPTIONAL}
        expected |= {SCORE_PREFIX + name: ("float32", (count,)) for name in self.score_names}
        if set(expected) != set(self._found):
            raise self._corrupt(f"expected tensors images, labels, seeds, scores.* and perhaps {', '.join(OPTIONAL)}, got {sorted(self._found)}")
        for name, found in self._found.items():
            if found != expected[name]:
                raise self._corrupt(f"expected {name} as {expected[name][0]} {expected[name][1]}, got {found[0]} {found[1]}")

    def _corrupt(self, what: str) -> BankCorruptError:
        return BankCorruptError(f"{self._path}: {what}; {REMEDY}")


def stated_place(metadata: dict[str, str]) -> dict[str, Any] | None:
    """What a safetensors file's metadata say of its place in a bank; None if it is no shard."""
    try:
        stated = json.loads(metadata[FORMAT])
    except (KeyError, ValueError, RecursionError):
        return None
    return stated if isinstance(stated, dict) else None


def _starts_of(path: Path) -> dict[str, int]:
    """Where each tensor's bytes begin in a valid safetensors file: eight bytes with the length of a JSON header, the header, the tensors."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        tensors = json.loads(stream.read(length))
    return {name: 8 + length + tensor["data_offsets"][0] for name, tensor in tensors.items() if name != "__metadata__"}


class _File(NamedTuple):
    """A file as it was when its shard was opened."""

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
"""The shards read last, since opening takes longer than reading; a file that was replaced or repaired is another one."""


def _read_at(file: _File, kept: _Descriptor | None, target: memoryview, offset: int) -> bool:
    """Fills `target` from a file; False where the file ends too early. Safe in threads and after a fork, since no position is shared."""
    if not hasattr(os, "preadv"):  # Windows, where an open file cannot be replaced anyway
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
