"""Samples out to files that any program reads, and images from elsewhere in, marked as what they are: not screened."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from monai_diverse.bank.derive import class_folder, fresh_bank
from monai_diverse.bank.folder import local_path
from monai_diverse.bank.format import BankHeader
from monai_diverse.bank.store import SampleBank
from monai_diverse.data import LabelledImages, available_splits, class_names, load_images, load_pictures
from monai_diverse.errors import BankError, DataError, MissingExtraError, RecipeError
from monai_diverse.storage import fingerprint_of, make_folder, new_folder

ExportFormat = Literal["png", "npz", "nifti"]
TABLE = "labels.csv"


def export(bank: SampleBank, out: Path | str, file_format: ExportFormat) -> Path:
    """Writes every sample of a bank to files, and `labels.csv` with a line for each: file, id, label, class name, seed, verdict, origin, scores.

    Args:
        bank: the samples.
        out: a folder that does not exist yet, or is empty; it appears when it is complete.
        file_format: "png": `LABEL_CLASS/ID.png`, two dimensions, one channel (16 bits from a bank of floats) or three (uint8 banks alone). "nifti":
            `LABEL_CLASS/ID.nii.gz`, float32 in [0, 1], spatial axes first and channels last as MONAI reads them, identity affine, not for colours in
            two dimensions; needs nibabel (extra `nifti`). "npz": one file `samples.npz` in MedMNIST's layout (`images` (n, h, w), (n, h, w, 3) or
            (n, d, h, w) with sides above 4, `labels` (n, 1)), in the bank's dtype.

    Returns:
        The folder.

    Raises:
        RecipeError: no such format, or one that cannot hold images of this shape and dtype.
        BankError: `out` holds something.
        BankCorruptError: the bank is damaged.
        MissingExtraError: nibabel is not installed.
        StorageError: the disk refuses.
    """
    writers: dict[str, Callable[[SampleBank, Path], list[str]]] = {"png": _png, "npz": _npz, "nifti": _nifti}
    if file_format not in writers:
        raise RecipeError(f"format: expected one of {', '.join(get_args(ExportFormat))}, got {file_format!r}")
    folder = local_path(out, "files")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BankError(f"{folder}: expected a new or empty folder, got one that holds something; choose another")
    with new_folder(folder) as temporary:
        files = writers[file_format](bank, temporary)
        (temporary / TABLE).write_text(_table(bank, files), encoding="utf-8", newline="")
    return folder


def import_images(
    path: Path | str,
    out: Path | str,
    *,
    licence: str,
    names: Sequence[str] = (),
    split: str | None = None,
    dtype: str = "uint8",
) -> SampleBank:
    """A bank of images that another program made. Each verdict is "unscreened": transforms take them, reports say so.

    To have them screened, name the folder as `FolderSource` in a recipe and let `grow` judge it.

    Args:
        path: an `.npz` file, or a folder with a subfolder for each class, as `data.load_images` reads them. A folder with a `labels.csv` as `export`
            writes it (file, label) is read by that table, in its order, so that classes without a sample keep their numbers.
        out: a folder that does not exist yet, or is empty; the bank appears there when it is complete.
        licence: of the images, or of the data that their model saw.
        names: of the classes, in order; from the folder or the table where none are given.
        split: train, val or test, where the data are divided.
        dtype: how the bank stores images.

    Raises:
        DataError: unreadable images, or of several shapes.
        RecipeError: other than one name a class, no licence, or an unknown dtype.
        BankError: `out` holds something.
        StorageError: the disk refuses.
    """
    if not licence.strip():
        raise RecipeError("licence: expected the licence of these images in words, got an empty text; say 'unknown' if it is")
    path = Path(path)
    if (path / TABLE).is_file():
        data, found = _by_table(path)
    else:
        splits = available_splits(path)
        if splits and split is None:
            raise RecipeError(f"split: expected one of {', '.join(splits)}, which {path} is divided into, got none")
        data, found = load_images(path, split or "train"), class_names(path)
    known = tuple(names) or found
    classes = len(known) or len(data.class_counts)
    if known and len(data.class_counts) > len(known):
        raise RecipeError(f"names: expected {len(data.class_counts)}, one a class, got {len(known)}")
    content = data.sha256()
    source = {"name": f"imported from {path.name}", "fingerprint": content, "licence": licence, "class_names": list(known) or None}
    recipe = {"imported": path.name, "split": split}
    header = BankHeader(
        recipe=recipe,
        recipe_fingerprint=fingerprint_of([recipe, content]),
        source=source,
        features={},
        shape=data.images.shape[1:],
        classes=classes,
        dtype=dtype,
    )
    with fresh_bank(out, header) as writer:
        writer.append(data.images, data.labels, np.arange(len(data)), {}, {}, verdicts=["unscreened"] * len(data))
    return SampleBank.open(out)


def _by_table(folder: Path) -> tuple[LabelledImages, tuple[str, ...]]:
    """The pictures that a folder's table names, and the names of all classes up to the last one."""
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        listed = [(row["file"], int(row["label"]), row.get("class_name")) for row in rows]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{folder / TABLE}: expected a table with columns file and label, but it cannot be read ({error!r})") from error
    outside = [file for file, _, _ in listed if (folder / file).resolve().parent.parent != folder.resolve()]
    if outside or not listed:
        raise DataError(f"{folder / TABLE}: expected files in subfolders of its own folder, got {outside[0] if outside else 'none'!r}")
    images = load_pictures([folder / file for file, _, _ in listed])
    names = {label: name for _, label, name in listed if name}
    known = tuple(names.get(label, f"class {label}") for label in range(max(names) + 1)) if names else ()
    return LabelledImages(images=images, labels=np.array([label for _, label, _ in listed])), known


def _png(bank: SampleBank, out: Path) -> list[str]:
    shape, eight_bits = bank.header.shape, bank.header.dtype == "uint8"
    if len(shape) != 3 or shape[0] not in ((1, 3) if eight_bits else (1,)):
        expected = "two dimensions with one channel, or three in a uint8 bank"
        raise RecipeError(f"format png: expected {expected}, got shape {shape} as {bank.header.dtype}; use npz or nifti")

    def write(image: npt.NDArray[Any], file: Path) -> None:
        levels = image if eight_bits else np.rint(image.astype(np.float64) * 65535).astype(np.uint16)
        Image.fromarray(levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1)).save(file)

    return _each(bank, out, ".png", write)


def _nifti(bank: SampleBank, out: Path) -> list[str]:
    try:
        import nibabel
    except ImportError as error:
        raise MissingExtraError("format nifti: needs nibabel; pip install 'monai-diverse[nifti]'") from error

    if len(bank.header.shape) == 3 and bank.header.shape[0] > 1:
        raise RecipeError(f"format nifti: expected volumes, or images of one channel, got shape {bank.header.shape}; use png or npz")

    def write(image: npt.NDArray[Any], file: Path) -> None:
        volume = np.moveaxis(image, 0, -1)
        volume = volume[..., 0] if volume.shape[-1] == 1 else volume
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), file)

    return _each(bank, out, ".nii.gz", write, as_float=True)


def _each(bank: SampleBank, out: Path, suffix: str, write: Callable[[npt.NDArray[Any], Path], None], *, as_float: bool = False) -> list[str]:
    files = []
    for place, (name, label) in enumerate(zip(bank.ids.tolist(), bank.labels.tolist(), strict=True)):
        folder = make_folder(out / class_folder(bank.header, label))
        write(bank.images[place] if as_float else bank.images.stored(place), folder / f"{name}{suffix}")
        files.append(f"{folder.name}/{name}{suffix}")
    return files


def _npz(bank: SampleBank, out: Path) -> list[str]:
    images = np.empty((len(bank), *bank.header.shape), bank.header.dtype)
    for place in range(len(bank)):
        images[place] = bank.images.stored(place)
    channels, *spatial = bank.header.shape
    if channels == 1 and (len(spatial) == 2 or min(spatial) > 4):  # a volume of few slices would read as an image of as many channels
        images = images[:, 0]
    elif channels == 3 and len(spatial) == 2:
        images = np.moveaxis(images, 1, -1)
    else:
        expected = "one channel (of volumes with sides above 4), or three in two dimensions"
        raise RecipeError(f"format npz: expected {expected}, got shape {bank.header.shape}; use nifti")
    np.savez_compressed(out / "samples.npz", images=images, labels=bank.labels[:, None], ids=bank.ids)
    return ["samples.npz"] * len(bank)


def _table(bank: SampleBank, files: list[str]) -> str:
    stream = io.StringIO()
    scores = {f"score_{name}": values.tolist() for name, values in sorted(bank.scores.items())}
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["file", "id", "label", "class_name", "seed", "verdict", "origin", *scores])
    names = [str(origin.source.get("name", "unnamed")) for origin in bank.origins]
    for place, file in enumerate(files):
        label = int(bank.labels[place])
        told = [file, bank.ids[place], label, bank.header.class_name(label), int(bank.seeds[place]), bank.verdicts[place]]
        table.writerow([*told, names[bank.origin_numbers[place]], *(values[place] for values in scores.values())])
    return stream.getvalue()
