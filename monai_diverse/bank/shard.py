"""One shard on disk: mapped, checked, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from monai_diverse.bank.format import FORMAT, SCORE_PREFIX, BankHeader, Samples, ShardRecord, content_hash, place_of
from monai_diverse.errors import BankCorruptError
from monai_diverse.storage import sha256_of

_DTYPES = {"U8": "uint8", "F16": "float16", "F32": "float32", "I64": "int64"}


class Shard:
    """A shard file, memory-mapped: only what is asked for is read.

    Raises:
        BankCorruptError: the file is missing, of another size, no safetensors file, reached through a link that leads out of the bank, or belongs
            to another bank or place. Hashes are compared by `verify` alone.
    """

    def __init__(self, folder: Path, record: ShardRecord, header: BankHeader, number: int) -> None:
        self._path = folder / record.file
        self._record = record
        self._header = header
        self._check_file(folder)
        try:
            self._file = _mapped(self._path)
            self._metadata = self._file.metadata() or {}
            self._names = set(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise self._corrupt(f"expected a safetensors file, but it cannot be read ({error})") from error
        self._check_place(number)
        self._check_tensors()
        self._images = self._file.get_slice("images")

    def __len__(self) -> int:
        return self._record.count

    @property
    def score_names(self) -> list[str]:
        """The scores that it holds, sorted."""
        return sorted(name.removeprefix(SCORE_PREFIX) for name in self._names if name.startswith(SCORE_PREFIX))

    def images(self, rows: int | slice) -> npt.NDArray[Any]:
        """Some images, as stored, copied from the file."""
        stored: npt.NDArray[Any] = self._images[rows]
        return stored

    def array(self, name: str) -> npt.NDArray[Any]:
        """A whole tensor by its name in the file: labels, seeds, scores.NAME."""
        array: npt.NDArray[Any] = self._file.get_tensor(name)
        return array

    def samples(self) -> Samples:
        """Everything in it, in memory."""
        scores = {name: self.array(SCORE_PREFIX + name) for name in self.score_names}
        return Samples(images=self.images(slice(None)), labels=self.array("labels"), seeds=self.array("seeds"), scores=scores)

    def verify(self) -> None:
        """Reads every byte and compares hashes, then values with what a bank may hold.

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
        if content_hash(samples.images, samples.labels, samples.seeds) != self._record.content:
            raise self._corrupt("images, labels or seeds do not match the content hash")
        if len(samples) and not 0 <= samples.labels.min() <= samples.labels.max() < self._header.classes:
            raise self._corrupt(f"expected labels 0..{self._header.classes - 1}, got {samples.labels.min()}..{samples.labels.max()}")
        if samples.images.dtype.kind == "f" and not (np.isfinite(samples.images).all() and 0 <= samples.images.min() <= samples.images.max() <= 1):
            raise self._corrupt("expected finite pixels in [0, 1], got others")

    def _check_file(self, folder: Path) -> None:
        if not self._path.is_file():
            raise self._corrupt("the file is missing")
        if self._path.resolve().parent != folder.resolve():
            raise self._corrupt("expected a file inside the bank, got a link out of it; do not trust this bank")
        size = self._path.stat().st_size
        if size != self._record.size:
            kind = "truncated" if size < self._record.size else "longer than written"
            raise self._corrupt(f"expected {self._record.size} bytes, got {size}: {kind}")

    def _check_place(self, number: int) -> None:
        try:
            stated = json.loads(self._metadata[FORMAT])
        except (KeyError, ValueError) as error:
            raise self._corrupt("expected a shard of a bank, got another safetensors file") from error
        expected = place_of(self._header, number)
        if stated == expected:
            return
        same_bank = isinstance(stated, dict) and stated | {"number": number} == expected
        raise self._corrupt(f"it was written as shard {stated['number']}, not {number}: out of place" if same_bank else "it belongs to another bank")

    def _check_tensors(self) -> None:
        count = self._record.count
        expected = {"images": (self._header.dtype, (count, *self._header.shape)), "labels": ("int64", (count,)), "seeds": ("int64", (count,))}
        expected |= {SCORE_PREFIX + name: ("float32", (count,)) for name in self.score_names}
        if set(expected) != self._names:
            raise self._corrupt(f"expected tensors images, labels, seeds and scores.*, got {sorted(self._names)}")
        for name, (dtype, shape) in expected.items():
            part = self._file.get_slice(name)
            found = _DTYPES.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape())
            if found != (dtype, shape):
                raise self._corrupt(f"expected {name} as {dtype} {shape}, got {found[0]} {found[1]}")

    def _corrupt(self, what: str) -> BankCorruptError:
        return BankCorruptError(f"{self._path}: {what}; restore this shard from a copy, or grow the bank anew")


def _mapped(path: Path) -> Any:
    return safe_open(path, framework="np")
