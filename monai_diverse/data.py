"""Labelled real images: read, checked, grouped and split."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from monai_diverse.errors import DataError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Real images with class labels, and groups that must not be split or compared with themselves.

    Attributes:
        images: float32 (n, channels, *spatial) in [0, 1].
        labels: int64 (n,), classes 0..K-1.
        groups: int64 (n,); equal for images of one patient, or for near-duplicates. None: every image its own.
    """

    images: FloatArray
    labels: IntArray
    groups: IntArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", check_images(self.images))
        object.__setattr__(self, "labels", check_labels(self.labels, len(self.images)))
        if self.groups is not None and np.shape(self.groups) != (len(self.images),):
            raise DataError(f"groups: expected shape ({len(self.images)},), one an image, got {np.shape(self.groups)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> LabelledImages:
        groups = None if self.groups is None else self.groups[index]
        return LabelledImages(images=self.images[index], labels=self.labels[index], groups=groups)

    @property
    def group_ids(self) -> IntArray:
        """int64 (n,): `groups`, or one group an image where none were given."""
        return np.arange(len(self), dtype=np.int64) if self.groups is None else self.groups

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
    if len(array) == 0:
        raise DataError(f"{name}: expected at least one image, got none")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{name}: expected numbers, got dtype {array.dtype}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
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
    if classes is not None and count and result.max() >= classes:
        raise DataError(f"{name}: expected classes 0..{classes - 1}, got {result.max()}")
    return result


def require_every_class(labels: IntArray, classes: int, what: str) -> None:
    """Raises DataError unless each class 0..classes-1 occurs in `labels`."""
    missing = [c for c in range(classes) if not (labels == c).any()]
    if missing:
        raise DataError(f"{what}: expected images of every class 0..{classes - 1}, got none of class {missing[0]}; add some or drop the class")


def load_images(path: Path | str, split: str = "train") -> LabelledImages:
    """Reads labelled images from an `.npz` file or a folder with one subfolder a class.

    Args:
        path: a file with `{split}_images` and `{split}_labels` (MedMNIST's layout), or `images` and `labels`; images are
            (n, h, w), (n, h, w, 3) or, in three dimensions, (n, d, h, w); integers are divided by their type's maximum, floats must be in [0, 1].
            Or a folder: `folder/CLASS/*.png`, classes numbered in alphabetical order, all images of one size;
            with `folder/{split}/CLASS/` where there are splits.
        split: which split to read.

    Raises:
        DataError: missing or corrupt file, missing array, wrong shape or dtype, NaN, or no images.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path / split if (path / split).is_dir() else path)
    images, labels = _read_npz(path, split)
    return LabelledImages(images=_channels_first(_to_unit(images, f"{path.name}: images"), path.name), labels=labels)


def available_splits(path: Path | str) -> tuple[str, ...]:
    """Which of train, val and test a file or folder holds, in that order; empty if it is not divided."""
    path = Path(path)
    if path.is_dir():
        names = {p.name for p in path.iterdir() if p.is_dir()}
        return tuple(s for s in ("train", "val", "test") if s in names)
    with _open_npz(path) as archive:
        return tuple(s for s in ("train", "val", "test") if f"{s}_images" in archive.files)


def near_duplicate_groups(images: FloatArray, threshold: float = 0.95) -> IntArray:
    """Groups of images that repeat one another: views of one lesion, copies, crops.

    Args:
        images: (n, channels, *spatial).
        threshold: Pearson correlation of two images' pixels from which on they count as one group (transitively).

    Returns:
        int64 (n,), group numbers from 0 in order of first appearance.
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    # a flat image correlates with nothing, not even with itself: connected_components still gives it its own group
    _, groups = connected_components(flat @ flat.T > threshold, directed=False)
    return np.asarray(groups, dtype=np.int64)


def split_by_group(data: LabelledImages, parts: int, seed: int) -> tuple[IntArray, IntArray]:
    """Sets one of `parts` equal parts aside, keeping groups whole and class shares close.

    Returns:
        (kept, aside): sorted indices into `data`; `aside` is about 1/`parts` of it.

    Raises:
        DataError: fewer groups of some class than parts.
    """
    per_class = [len(np.unique(data.group_ids[data.labels == c])) for c in range(len(data.class_counts))]
    if min(per_class) < parts:
        raise DataError(f"split: expected at least {parts} groups of every class to set 1/{parts} aside, got {per_class} by class")
    folds = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=seed)
    kept, aside = next(iter(folds.split(data.labels, data.labels, data.group_ids)))
    return np.sort(kept).astype(np.int64), np.sort(aside).astype(np.int64)


@contextmanager
def _open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    # opened here, because NumPy leaves the file open when it cannot read it
    with path.open("rb") as stream:
        try:
            archive = np.load(stream, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: expected an .npz archive, but it cannot be read ({error}); is it a complete download?") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: expected an .npz archive with images and labels, got a single array")
        yield archive


def _read_npz(path: Path, split: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    with _open_npz(path) as archive:
        prefix = f"{split}_" if f"{split}_images" in archive.files else ""
        wanted = (f"{prefix}images", f"{prefix}labels")
        absent = [name for name in wanted if name not in archive.files]
        if absent:
            raise DataError(f"{path}: expected arrays '{split}_images' and '{split}_labels' (or 'images' and 'labels'), got {archive.files}")
        try:
            images, labels = (archive[name] for name in wanted)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: array cannot be read ({error}); is it a complete download?") from error
    return images, labels


def _to_unit(images: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    if images.dtype.kind == "u":
        return (images / np.float32(np.iinfo(images.dtype).max)).astype(np.float32)
    if images.dtype.kind == "f":
        return images.astype(np.float32)
    raise DataError(f"{name}: expected unsigned integers or floats in [0, 1], got dtype {images.dtype}")


def _channels_first(images: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        return np.moveaxis(images, -1, 1) if images.shape[-1] in (1, 3) else images[:, None]
    raise DataError(f"{name}: expected images (n, h, w), (n, h, w, 3) or (n, d, h, w), got {images.shape}")


def _load_folder(folder: Path) -> LabelledImages:
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    if not classes:
        raise DataError(f"{folder}: expected one subfolder a class with images in it, got no subfolder")
    images: list[npt.NDArray[np.float32]] = []
    labels: list[int] = []
    for label, subfolder in enumerate(classes):
        files = sorted(p for p in subfolder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise DataError(f"{subfolder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got none; remove the empty class")
        images += [_read_picture(file) for file in files]
        labels += [label] * len(files)
    _require_one_shape(images, folder)
    return LabelledImages(images=np.stack(images), labels=np.asarray(labels, dtype=np.int64))


def _read_picture(file: Path) -> npt.NDArray[np.float32]:
    try:
        with Image.open(file) as picture:
            grey = picture.mode in ("1", "L", "I;16", "I", "F")
            array = np.asarray(picture if grey else picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{file}: expected an image, but it cannot be read ({error})") from error
    if array.dtype.kind == "b":
        return array[None].astype(np.float32)
    if array.dtype == np.int32:  # Pillow's mode "I" holds 16-bit pictures in 32 bits
        array = array.astype(np.uint16)
    unit = _to_unit(array, str(file))
    return unit[None] if unit.ndim == 2 else np.moveaxis(unit, -1, 0)


def _require_one_shape(images: Sequence[npt.NDArray[np.float32]], folder: Path) -> None:
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(f"{folder}: expected images of one size and kind, got {shapes[:3]} (channels, height, width); resize them first")
