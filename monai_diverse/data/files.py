"""Labelled images from files: `.npz` archives and folders of pictures."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from monai_diverse.data.labelled import LabelledImages
from monai_diverse.errors import DataError

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def load_images(path: Path | str, split: str = "train") -> LabelledImages:
    """Reads labelled images from an `.npz` file or a folder with one subfolder a class.

    Args:
        path: a file with `{split}_images` and `{split}_labels` (MedMNIST's layout), or `images` and `labels`; images are
            (n, h, w), (n, h, w, 3) or, in three dimensions, (n, d, h, w); integers are divided by their type's maximum, floats must be in [0, 1].
            Or a folder: `folder/CLASS/*.png`, classes numbered in alphabetical order, all images of one size;
            with `folder/{split}/CLASS/` where there are splits.
        split: which split to read; images that are not divided are `train`, and no other.

    Raises:
        DataError: missing or corrupt file, missing array, a split that is not there, wrong shape or dtype, NaN, or no images.
    """
    path = Path(path)
    splits = available_splits(path)
    if split not in (splits or ("train",)):
        kind = f"a subfolder {split}" if path.is_dir() else f"arrays '{split}_images' and '{split}_labels'"
        found = f"only {', '.join(splits)}" if splits else "images that are not divided"
        raise DataError(f"{path}: expected {kind}, got {found}; keep some apart there, or name another file")
    if path.is_dir():
        return _load_folder(path / split if splits else path, class_names(path))
    images, labels = _read_npz(path, split)
    return LabelledImages(images=_channels_first(_to_unit(images, f"{path.name}: images"), path.name), labels=labels)


def class_names(path: Path | str) -> tuple[str, ...]:
    """Names of the classes of a folder, in order: the subfolders of all its splits together; empty for a file."""
    path = Path(path)
    if not path.is_dir():
        return ()
    roots = [path / split for split in available_splits(path)] or [path]
    return tuple(sorted({p.name for root in roots for p in _listed(root) if p.is_dir()}))


def available_splits(path: Path | str) -> tuple[str, ...]:
    """Which of train, val and test a file or folder holds, in that order; empty if it is not divided."""
    path = Path(path)
    if path.is_dir():
        names = {p.name for p in _listed(path) if p.is_dir()}
        return tuple(s for s in SPLITS if s in names)
    with _open_npz(path) as archive:
        return tuple(s for s in SPLITS if f"{s}_images" in archive.files)


@contextmanager
def _open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: expected a file that can be read, but {error.strerror}") from error
    with stream:  # opened here, because NumPy leaves the file open when it cannot read it
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
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
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
    if images.ndim == 4 and images.shape[-1] in (1, 3):
        return np.moveaxis(images, -1, 1)
    if images.ndim == 4 and images.shape[1] > 4 and images.shape[-1] > 4:
        return images[:, None]
    raise DataError(f"{name}: expected images (n, h, w), (n, h, w, 3) or (n, d, h, w), got {images.shape}")


def _load_folder(folder: Path, names: Sequence[str]) -> LabelledImages:
    if not names:
        raise DataError(f"{folder}: expected one subfolder a class with images in it, got no subfolder")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        subfolder = folder / name
        found = sorted(p for p in _listed(subfolder) if p.suffix.lower() in IMAGE_SUFFIXES) if subfolder.is_dir() else []
        if not found:
            raise DataError(f"{subfolder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got none; every split needs every class")
        files += found
        labels += [label] * len(found)
    return LabelledImages(images=load_pictures(files), labels=np.asarray(labels, dtype=np.int64))


def load_pictures(files: Sequence[Path]) -> npt.NDArray[np.float32]:
    """Reads pictures of one size and kind.

    Args:
        files: at least one.

    Returns:
        float32 (n, channels, height, width) in [0, 1], one channel or three.

    Raises:
        DataError: a file that is no picture, or pictures of several sizes or kinds.
    """
    images = [_read_picture(file) for file in files]
    _require_one_shape(images, files[0].parent)
    return np.stack(images)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: expected a folder that can be read, but {error.strerror}") from error


def _read_picture(file: Path) -> npt.NDArray[np.float32]:
    try:
        with Image.open(file) as picture:
            pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
            grey = picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16")
            array = np.asarray(picture if grey else picture.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file}: expected an image, but it cannot be read ({error})") from error
    if pages > 1:
        raise DataError(f"{file}: expected one picture, got {pages} pages; give volumes as an .npz archive, or one page a file")
    if array.dtype.kind == "b":
        return array[None].astype(np.float32)
    if array.dtype == np.int32:  # Pillow's mode "I" holds 16-bit pictures in 32 bits
        if array.min() < 0 or array.max() > np.iinfo(np.uint16).max:
            raise DataError(f"{file}: expected at most 16 bits a pixel, got values in [{array.min()}, {array.max()}]")
        array = array.astype(np.uint16)
    unit = _to_unit(array, str(file))
    return unit[None] if unit.ndim == 2 else np.moveaxis(unit, -1, 0)


def _require_one_shape(images: Sequence[npt.NDArray[np.float32]], folder: Path) -> None:
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise DataError(f"{folder}: expected images of one size and kind, got {shapes[:3]} (channels, height, width); resize them first")
