"""Samples as they are stored, and the bytes of a shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from monai_diverse.bank.format import FORMAT, SCORE_PREFIX, VERDICTS, BankHeader
from monai_diverse.bank.manifest import ShardRecord, shard_name
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError
from monai_diverse.storage import sha256_of

COLUMNS = {"labels": "int64", "seeds": "int64", "verdicts": "uint8", "nearest": "int64", "origins": "int32"}
"""One number a sample, by the tensor's name in a shard."""
OPTIONAL = {"verdicts": VERDICTS.index("accepted"), "nearest": -1, "origins": 0}
"""What a shard without the column says: format version 1 held accepted samples of one origin, and not which image was nearest."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Some samples as they are stored.

    Attributes:
        images: (n, c, *spatial) in the bank's dtype.
        labels: int64 (n,).
        seeds: int64 (n,), what each image was sampled from.
        verdicts: uint8 (n,), codes of `VERDICTS`.
        nearest: int64 (n,), index of the nearest real image, see `screening.Verdict`; -1 if not known.
        origins: int32 (n,), which of the header's origins each came from; 0 in a bank that is its own.
        scores: float32 (n,) each, by name.
    """

    images: npt.NDArray[Any]
    labels: IntArray
    seeds: IntArray
    verdicts: npt.NDArray[np.uint8]
    nearest: IntArray
    origins: npt.NDArray[np.int32]
    scores: dict[str, FloatArray]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> Samples:
        columns = {name: getattr(self, name)[part] for name in _ARRAYS}
        return replace(self, **columns, scores={name: values[part] for name, values in self.scores.items()})

    def followed_by(self, other: Samples) -> Samples:
        """These samples, then the others."""
        columns = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in _ARRAYS}
        return replace(self, **columns, scores={name: np.concatenate([values, other.scores[name]]) for name, values in self.scores.items()})


_ARRAYS = tuple(f.name for f in fields(Samples) if f.name != "scores")


def verdict_codes(verdicts: Sequence[str] | None, count: int) -> npt.NDArray[np.uint8]:
    """The codes of some verdicts; all "accepted" for None.

    Raises:
        DataError: a verdict that `VERDICTS` lacks, or another number of them than `count`.
    """
    words = ["accepted"] * count if verdicts is None else list(verdicts)
    unknown = sorted(set(words) - set(VERDICTS), key=str)
    if unknown or len(words) != count:
        raise DataError(f"verdicts: expected {count} of {', '.join(VERDICTS)}, got {len(words)}{f' with {unknown[0]!r}' if unknown else ''}")
    return np.array([VERDICTS.index(word) for word in words], dtype=np.uint8)


def quantise(images: FloatArray, dtype: str) -> npt.NDArray[Any]:
    """[0, 1] floats as they are stored: rounded to 256 levels for uint8, to the nearest float otherwise."""
    clipped = np.clip(images, 0, 1)
    return np.rint(clipped * 255).astype(np.uint8) if dtype == "uint8" else clipped.astype(dtype)


def dequantise(stored: npt.NDArray[Any]) -> FloatArray:
    """The inverse of `quantise`: float32 in [0, 1], in new memory unless it is float32 already."""
    images: FloatArray = stored.astype(np.float32, copy=False)
    if stored.dtype == np.uint8:
        images /= np.float32(255)
    return images


def content_hash(samples: Samples, header: BankHeader) -> str:
    """SHA-256 over the bytes of images, labels, seeds and, in a bank of several origins, origins, in this order, little-endian."""
    digest = hashlib.sha256()
    for array in (samples.images, samples.labels, samples.seeds, *((samples.origins,) if header.origins else ())):
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def place_of(header: BankHeader, number: int, kind: str = "number") -> dict[str, Any]:
    """What a file says of where it belongs: the bank's recipe and source, and, as "number" of a shard or "index" of an index file, which it is."""
    return {"recipe": header.recipe_fingerprint, "source": header.source["fingerprint"], kind: number}


def pack(samples: Samples, header: BankHeader, number: int) -> tuple[ShardRecord, bytes]:
    """A shard's bytes and the line that the manifest needs for it."""
    tensors = {name: getattr(samples, name) for name in ("images", *COLUMNS)}
    tensors |= {SCORE_PREFIX + name: values for name, values in samples.scores.items()}
    # safetensors writes several metadata entries in random order: with one, equal samples make equal files.
    # The header is there as well, so that a shard can be used when the manifest is lost
    metadata = {FORMAT: json.dumps(place_of(header, number) | {"header": header.as_json()}, sort_keys=True)}
    content = save({name: np.ascontiguousarray(values) for name, values in tensors.items()}, metadata=metadata)
    digest = sha256_of(content)
    record = ShardRecord(file=shard_name(number, digest), sha256=digest, content=content_hash(samples, header), count=len(samples), size=len(content))
    return record, content
