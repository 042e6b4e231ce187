"""Real images with class labels, checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monai_diverse.errors import DataError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

MAX_CLASSES = 10_000
BLOCK = 4096
"""Images that are checked at a time, so that many need no second array."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Real images with class labels, and groups that must not be split or compared with themselves.

    Attributes:
        images: float32 (n, channels, *spatial) in [0, 1].
        labels: int64 (n,), classes 0..K-1.
        groups: int64 (n,); equal for images of one patient, or for near-duplicates; names of patients are numbered in alphabetical order. None:
            every image its own.
    """

    images: FloatArray
    labels: IntArray
    groups: IntArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", check_images(self.images))
        object.__setattr__(self, "labels", check_labels(self.labels, len(self.images)))
        if self.groups is not None:
            object.__setattr__(self, "groups", check_groups(self.groups, len(self.images)))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> LabelledImages:
        groups = None if self.groups is None else self.groups[index]
        return LabelledImages(images=self.images[index], labels=self.labels[index], groups=groups)

    @property
    def group_ids(self) -> IntArray:
        """int64 (n,): `groups`, or one group an image where none were given."""
        return np.arange(len(self), dtype=np.int64) if self.groups is None else self.groups

    def sha256(self, *, groups: bool = False) -> str:
        """SHA-256 over images and labels, and groups if asked for, in hexadecimal."""
        content = hashlib.sha256()
        for array in (self.images, self.labels, self.group_ids)[: 3 if groups else 2]:
            content.update(np.ascontiguousarray(array).data)
        return content.hexdigest()

    @property
    def class_counts(self) -> list[int]:
        """Images of each class 0..K-1."""
        return [int(c) for c in np.bincount(self.labels)]


def check_images(images: npt.ArrayLike, name: str = "images") -> FloatArray:
    """Checks an array of images and returns it as float32.

    Args:
        images: (n, channels, *spatial), two or three spatial axes, finite, in [0, 1].
        name: how the message calls the array.

    Raises:
        DataError: wrong number of axes, no image, NaN or infinity, or values outside [0, 1].
    """
    array = np.asarray(images)
    if array.ndim not in (4, 5):
        raise DataError(f"{name}: expected shape (n, channels, *spatial) with 2 or 3 spatial axes, got {array.shape}")
    if array.size == 0:
        raise DataError(f"{name}: expected at least one image of at least one pixel, got shape {array.shape}")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name}: expected numbers, got dtype {array.dtype}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    parts = [array[start : start + BLOCK] for start in range(0, len(array), BLOCK)]
    bad = ~np.concatenate([np.isfinite(part.reshape(len(part), -1)).all(axis=1) for part in parts])
    if bad.any():
        raise DataError(f"{name}: expected finite values, got NaN or infinity in {bad.sum()} of {len(array)}, first at index {int(bad.argmax())}")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1 + 1e-6:
        raise DataError(f"{name}: expected values in [0, 1], got [{low:.4g}, {high:.4g}]; rescale first (ScaleIntensity)")
    return array


def check_labels(labels: npt.ArrayLike, count: int, classes: int | None = None, name: str = "labels") -> IntArray:
    """Checks class labels and returns them as int64 of shape (count,).

    Args:
        labels: (count,) or (count, 1), whole numbers from 0.
        count: how many images there are.
        classes: the number of classes that a model knows; None: any.
        name: how the message calls the array.

    Raises:
        DataError: wrong shape, fractions, negative labels, or labels that the model does not know.
    """
    array = np.asarray(labels)
    if array.shape not in ((count,), (count, 1)):
        raise DataError(f"{name}: expected shape ({count},), one an image, got {array.shape}")
    array = array.reshape(count)
    if array.dtype.kind not in "iu" and not (array.dtype.kind == "f" and np.array_equal(array, np.round(array))):
        raise DataError(f"{name}: expected whole numbers, got dtype {array.dtype}")
    result = array.astype(np.int64)
    if count and result.min() < 0:
        raise DataError(f"{name}: expected classes from 0, got {result.min()}")
    if count and result.max() >= MAX_CLASSES:
        raise DataError(f"{name}: expected classes numbered 0, 1, 2, ..., got {result.max()}; is that a patient's number?")
    if classes is not None and count and result.max() >= classes:
        raise DataError(f"{name}: expected classes 0..{classes - 1}, got {result.max()}")
    return result


def check_groups(groups: npt.ArrayLike, count: int, name: str = "groups") -> IntArray:
    """Checks group numbers, or names of patients, and returns numbers: int64 of shape (count,).

    Args:
        groups: (count,), whole numbers or text.
        count: how many images there are.
        name: how the message calls the array.

    Raises:
        DataError: wrong shape, or neither numbers nor text.
    """
    array = np.asarray(groups)
    if array.shape != (count,):
        raise DataError(f"{name}: expected shape ({count},), one an image, got {array.shape}")
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if not all(isinstance(value, str | int | np.integer) for value in array.tolist()):
        raise DataError(f"{name}: expected whole numbers or text, one an image, got {array.dtype}; is one missing?")
    return np.unique(array.astype(str), return_inverse=True)[1].astype(np.int64)


def require_every_class(labels: IntArray, classes: int, what: str) -> None:
    """Raises DataError unless each class 0..classes-1 occurs in `labels`."""
    missing = [c for c in range(classes) if not (labels == c).any()]
    if missing:
        raise DataError(f"{what}: expected images of every class 0..{classes - 1}, got none of class {missing[0]}; add some or drop the class")
