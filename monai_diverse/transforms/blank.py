"""Blank forms of what an item holds: the same keys, types and shapes, and nothing of the patient."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import PostFix

from monai_diverse.errors import DataError

FILE_KEY = "filename_or_obj"


def blank(value: Any, what: str) -> Any:
    """Zeros, empty strings and the like, of the same type and shape, in memory of their own; names of a fixed set (enums) and None stay.

    Raises:
        DataError: something in it has no blank form; names it as `what`.
    """
    if isinstance(value, MetaTensor):
        return MetaTensor(torch.zeros_like(value.as_tensor()), meta=meta_of(value, ""))
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, np.ndarray):
        return np.zeros_like(value)
    if value is None or isinstance(value, Enum):
        return value
    if isinstance(value, str | bytes | bool | int | float | np.generic):
        return type(value)()
    if isinstance(value, Mapping):
        return {key: blank(part, f"{what}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(blank(part, f"{what}.{place}") for place, part in enumerate(value))
    raise DataError(
        f"data: expected numbers, strings, arrays or tensors beside image and label, got {type(value).__name__} in {what!r}; drop it from the items"
    )


def blank_meta(item: dict[Hashable, Any], key: Hashable) -> None:
    """Blanks the meta dictionary that MONAI's `LoadImaged(image_only=False)` put beside the image `key`, if there is one."""
    meta = PostFix.meta(str(key))
    if isinstance(item.get(meta), Mapping):
        item[meta] = blank(item[meta], meta)


def meta_of(real: MetaTensor, source: str) -> dict[str, str] | None:
    """Meta data for what takes the place of `real`: `source` as its file name, where `real` has one, so that batches of both keep the key."""
    return {FILE_KEY: source} if FILE_KEY in real.meta else None
