"""What all samples of a bank have in common, and the names and limits of the format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from monai_diverse.data.labelled import MAX_CLASSES
from monai_diverse.errors import RecipeError

FORMAT = "monai-diverse-bank"
VERSION = 3
MANIFEST = "manifest.json"
LOCK = ".lock"
DATASHEET = "datasheet.md"
AUDIT = "audit.json"
SHARD_NAME = re.compile(r"shard-(\d{6,9})-([0-9a-f]{12})\.safetensors")
INDEX_NAME = re.compile(r"index-(\d{6})-([0-9a-f]{12})\.safetensors")
SCORE_PREFIX = "scores."
DTYPES = ("uint8", "float16", "float32")
VERDICTS = ("accepted", "unscreened", "copy", "not_novel", "irrelevant", "outlier", "duplicate")
"""What a screen said of a sample, by its code on disk; the last five are `screening.verdict.REASONS`. New ones are added at the end."""

SHARD_BYTES = 16 * 2**20
SHARD_IMAGES = 1024
INDEX_SHARDS = 256
"""Full shards that an index file describes. Of those without one, all lines are rewritten at every append, all labels read at the first draw."""
LARGEST_IMAGE = 2**36
"""Numbers in one image, at most: 4096 x 4096 x 4096."""
_FINGERPRINT = re.compile(r"[0-9A-Za-z_-]{1,128}")
_DEPTH = 64

NONSENSE = (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError, RecipeError)
"""What the words of a stranger's bank may raise where they are not as described."""


def drawn_of(progress: Mapping[str, Any]) -> int:
    """How many samples a bank's progress says were drawn; 0 if it says nothing."""
    drawn = progress.get("drawn")
    return drawn if isinstance(drawn, int) else 0


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where samples of a merged, split or imported bank came from: what the header of the bank that first held them said, and its progress.

    Attributes:
        recipe: every choice that made the samples, as a JSON value.
        recipe_fingerprint: SHA-256 of the recipe in canonical form.
        source: what made the images, as a JSON value with "fingerprint".
        features: what the screen saw the images through, as a JSON value.
        progress: what that bank's progress was, yields among it.

    Raises:
        RecipeError: any of these is not as described.
    """

    recipe: dict[str, Any]
    recipe_fingerprint: str
    source: dict[str, Any]
    features: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_provenance(self, ("recipe", "source", "features", "progress"))


@dataclass(frozen=True, kw_only=True)
class BankHeader:
    """What all samples of a bank have in common; it never changes after the bank is created.

    Attributes:
        recipe: every choice that makes the bank, as a JSON value.
        recipe_fingerprint: SHA-256 of the recipe in canonical form.
        source: what made the images, as a JSON value; with "fingerprint", and commonly "name", "licence" and "class_names" (a list, one a class).
        features: what the screen saw the images through, as a JSON value; with "fingerprint" where a screen was fitted.
        shape: (channels, *spatial) of one image, two or three spatial axes.
        classes: labels are 0..classes-1.
        dtype: how images are stored: "uint8" (256 grey levels), "float16" or "float32".
        origins: of a bank that was made from others; empty for a bank that is its own origin.

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
    origins: tuple[Origin, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
        object.__setattr__(self, "origins", tuple(self.origins))
        if len(self.shape) not in (3, 4) or min(self.shape) < 1 or math.prod(self.shape) > LARGEST_IMAGE:
            raise RecipeError(f"shape: expected (channels, *spatial), 2 or 3 spatial axes, all at least 1, {LARGEST_IMAGE} in all, got {self.shape}")
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or not 1 <= self.classes <= MAX_CLASSES:
            raise RecipeError(f"classes: expected a whole number in 1..{MAX_CLASSES}, got {self.classes!r}")
        if self.dtype not in DTYPES:
            raise RecipeError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        _check_provenance(self, ("recipe", "source", "features"))

    @property
    def capacity(self) -> int:
        """Images in a full shard: about 16 MiB, 1024 images at most, one at least."""
        return max(1, min(SHARD_IMAGES, SHARD_BYTES // (math.prod(self.shape) * np.dtype(self.dtype).itemsize)))

    def class_name(self, label: int) -> str:
        """The name that the source gave a class, or "class LABEL"."""
        names = self.source.get("class_names")
        return str(names[label]) if isinstance(names, list) and label < len(names) else f"class {label}"

    def as_json(self) -> dict[str, Any]:
        """The header as the manifest holds it."""
        return asdict(self) | {"shape": list(self.shape), "origins": [asdict(origin) for origin in self.origins]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BankHeader:
        """The inverse of `as_json`.

        Raises:
            RecipeError, TypeError, KeyError: entries that are missing, unknown or not as described.
        """
        return cls(**{**content, "origins": tuple(Origin(**origin) for origin in content["origins"])})


def plain_json(value: Any, name: str) -> Any:
    """A copy of a JSON value that every reader of a bank can take: text that can be written, no NaN, not nested without end.

    Raises:
        RecipeError: it is none.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()
        copy = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{name}: expected a JSON value without NaN ({error})") from error
    level, depth = [copy], 0
    while level:
        level = [inner for each in level if isinstance(each, dict | list) for inner in (each.values() if isinstance(each, dict) else each)]
        depth += 1
        if depth > _DEPTH:
            raise RecipeError(f"{name}: expected a JSON value nested at most {_DEPTH} deep, got one that is deeper")
    return copy


def _check_provenance(holder: BankHeader | Origin, names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(getattr(holder, name), dict):
            raise RecipeError(f"{name}: expected a mapping, got {type(getattr(holder, name)).__name__}")
    # ids begin with it, and files are named after ids
    if not isinstance(holder.recipe_fingerprint, str) or not _FINGERPRINT.fullmatch(holder.recipe_fingerprint):
        raise RecipeError(f"recipe_fingerprint: expected up to 128 letters, digits, - and _, got {str(holder.recipe_fingerprint)[:140]!r}")
    if not isinstance(holder.source.get("fingerprint"), str) or not holder.source["fingerprint"]:
        raise RecipeError(f"source: expected a fingerprint in it, got {list(holder.source)}")
    for name in names:
        object.__setattr__(holder, name, plain_json(getattr(holder, name), name))
