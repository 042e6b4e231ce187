"""What a bank looks like on disk: the header, the shard records, the manifest, and the bytes of a shard."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import BankCorruptError, BankError, RecipeError
from monai_diverse.storage import fingerprint_of, sha256_of, write_json

FORMAT = "monai-diverse-bank"
VERSION = 1
MANIFEST = "manifest.json"
LOCK = ".lock"
SHARD_NAME = re.compile(r"shard-(\d{6})-([0-9a-f]{12})\.safetensors")
SCORE_PREFIX = "scores."
DTYPES = ("uint8", "float16", "float32")

SHARD_BYTES = 16 * 2**20
SHARD_IMAGES = 1024


@dataclass(frozen=True, kw_only=True)
class BankHeader:
    """What all samples of a bank have in common; it never changes after the bank is created.

    Attributes:
        recipe: every choice that makes the bank, as a JSON value.
        recipe_fingerprint: SHA-256 of the recipe in canonical form.
        source: what made the images, as a JSON value; with "fingerprint", and commonly "name", "licence" and "class_names" (a list, one a class).
        features: what the screen saw the images through, as a JSON value.
        shape: (channels, *spatial) of one image, two or three spatial axes.
        classes: labels are 0..classes-1.
        dtype: how images are stored: "uint8" (256 grey levels), "float16" or "float32".

    Raises:
        RecipeError: any of these is not as described.
    """

    recipe: dict[str, Any]
    recipe_fingerprint: str
    source: dict[str, Any]
    features: dict[str, Any]
    shape: tuple[int, ...]
    classes: int
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
        if len(self.shape) not in (3, 4) or min(self.shape) < 1:
            raise RecipeError(f"shape: expected (channels, *spatial) with 2 or 3 spatial axes, all at least 1, got {self.shape}")
        if self.classes < 1:
            raise RecipeError(f"classes: expected at least 1, got {self.classes}")
        if self.dtype not in DTYPES:
            raise RecipeError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not self.recipe_fingerprint or not isinstance(self.source.get("fingerprint"), str):
            raise RecipeError("header: expected a recipe_fingerprint and source['fingerprint'], got an empty one or none")
        try:
            for name in ("recipe", "source", "features"):
                object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{name}: expected a JSON value without NaN ({error})") from error

    @property
    def capacity(self) -> int:
        """Images in a full shard: about 16 MiB, 1024 images at most, one at least."""
        return max(1, min(SHARD_IMAGES, SHARD_BYTES // (int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize)))

    def as_json(self) -> dict[str, Any]:
        """The header as the manifest holds it."""
        return asdict(self) | {"shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One line of the manifest.

    Attributes:
        file: the shard's name in the bank's folder; holds its number and the first 12 digits of `sha256`.
        sha256: of the whole file.
        content: SHA-256 of images, labels and seeds alone; scores carry floating-point noise.
        count: samples in it.
        size: bytes of the file.
    """

    file: str
    sha256: str
    content: str
    count: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The bank's table of contents, the only file that is ever replaced.

    Attributes:
        header: what all samples have in common.
        progress: how far the work has come, a JSON value that belongs to whoever writes the bank.
        shards: in order; all but the last hold `capacity` samples.
        class_counts: samples of each class.
        capacity: samples in a full shard.
    """

    header: BankHeader
    progress: dict[str, Any]
    shards: tuple[ShardRecord, ...]
    class_counts: tuple[int, ...]
    capacity: int

    @property
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
            return replace(self, progress=json.loads(json.dumps(dict(progress), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise BankError(f"progress: expected a JSON value without NaN ({error})") from error

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
        """Reads and checks a folder's manifest.

        Raises:
            BankError: there is no bank.
            BankCorruptError: the manifest is damaged, comes from a newer version, or names files outside the folder.
        """
        path = folder / MANIFEST
        try:
            body = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BankError(f"{folder}: expected a bank, but there is no {MANIFEST}; check the path, or grow a bank there") from error
        except OSError as error:
            raise BankError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
        except ValueError as error:
            raise BankCorruptError(f"{path}: expected JSON, but it cannot be read ({error}); restore it from a copy") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise BankCorruptError(f"{path}: expected the manifest of a {FORMAT}, got something else; check the path")
        if body.get("version") != VERSION:
            raise BankCorruptError(f"{path}: expected format version {VERSION}, got {body.get('version')!r}; upgrade monai_diverse to read it")
        return _parse(path, body)


def _parse(path: Path, body: dict[str, Any]) -> Manifest:
    try:
        for shard in body["shards"]:
            if not SHARD_NAME.fullmatch(shard["file"]):
                raise BankCorruptError(
                    f"{path}: expected shard names like shard-000000-0123456789ab.safetensors, got {shard['file']!r}; do not trust this bank"
                )
        stated = body.pop("sha256")
        if stated != fingerprint_of(body):
            raise BankCorruptError(f"{path}: its content does not match its own hash: altered or damaged; restore it from a copy")
        manifest = Manifest(
            header=BankHeader(**body["header"]),
            progress=body["progress"],
            shards=tuple(ShardRecord(**shard) for shard in body["shards"]),
            class_counts=tuple(body["class_counts"]),
            capacity=body["capacity"],
        )
        if any(type(number) is not int for number in (manifest.capacity, *(shard.count for shard in manifest.shards))) or manifest.capacity < 1:
            raise ValueError(f"capacity {manifest.capacity} or a shard's count is no whole number")
        full = all(shard.count == manifest.capacity for shard in manifest.shards[:-1])
        if not full or any(not 0 < shard.count <= manifest.capacity for shard in manifest.shards[-1:]):
            raise ValueError(f"shards of {[shard.count for shard in manifest.shards]} samples, capacity {manifest.capacity}")
        if len(manifest.class_counts) != manifest.header.classes or sum(manifest.class_counts) != manifest.count:
            raise ValueError(f"class_counts {manifest.class_counts}, {manifest.count} samples, {manifest.header.classes} classes")
        return manifest
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise BankCorruptError(f"{path}: expected the entries of format version {VERSION}, got others ({error!r}); restore it from a copy") from error


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Some samples as they are stored: images in the bank's dtype, one label, seed and score (by name) an image."""

    images: npt.NDArray[Any]
    labels: IntArray
    seeds: IntArray
    scores: dict[str, FloatArray]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> Samples:
        scores = {name: values[part] for name, values in self.scores.items()}
        return Samples(images=self.images[part], labels=self.labels[part], seeds=self.seeds[part], scores=scores)

    def followed_by(self, other: Samples) -> Samples:
        """These samples, then the others."""
        return Samples(
            images=np.concatenate([self.images, other.images]),
            labels=np.concatenate([self.labels, other.labels]),
            seeds=np.concatenate([self.seeds, other.seeds]),
            scores={name: np.concatenate([values, other.scores[name]]) for name, values in self.scores.items()},
        )


def quantise(images: FloatArray, dtype: str) -> npt.NDArray[Any]:
    """[0, 1] floats as they are stored: rounded to 256 levels for uint8, to the nearest float otherwise."""
    clipped = np.clip(images, 0, 1)
    return np.rint(clipped * 255).astype(np.uint8) if dtype == "uint8" else clipped.astype(dtype)


def dequantise(stored: npt.NDArray[Any]) -> FloatArray:
    """The inverse of `quantise`: float32 in [0, 1]."""
    if stored.dtype == np.uint8:
        return stored.astype(np.float32) / np.float32(255)
    return stored.astype(np.float32)


def content_hash(images: npt.NDArray[Any], labels: IntArray, seeds: IntArray) -> str:
    """SHA-256 over the bytes of images, labels and seeds, in this order, little-endian."""
    digest = hashlib.sha256()
    for array in (images, labels, seeds):
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def place_of(header: BankHeader, number: int) -> dict[str, Any]:
    """What a shard says of where it belongs: the bank's recipe and source, and its number in the bank."""
    return {"recipe": header.recipe_fingerprint, "source": header.source["fingerprint"], "number": number}


def pack(samples: Samples, header: BankHeader, number: int) -> tuple[ShardRecord, bytes]:
    """A shard's bytes and the line that the manifest needs for it."""
    tensors = {"images": samples.images, "labels": samples.labels, "seeds": samples.seeds}
    tensors |= {SCORE_PREFIX + name: values for name, values in samples.scores.items()}
    # safetensors writes several metadata entries in random order: with one, equal samples make equal files
    metadata = {FORMAT: json.dumps(place_of(header, number))}
    content = save({name: np.ascontiguousarray(values) for name, values in tensors.items()}, metadata=metadata)
    digest = sha256_of(content)
    record = ShardRecord(
        file=f"shard-{number:06d}-{digest[:12]}.safetensors",
        sha256=digest,
        content=content_hash(samples.images, samples.labels, samples.seeds),
        count=len(samples),
        size=len(content),
    )
    return record, content
