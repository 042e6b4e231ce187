"""What `monai-diverse audit` is given: a model or images, what it was trained on, and what it never saw."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.audit.subject import Audited
from monai_diverse.bank import SampleBank
from monai_diverse.bank.folder import url_of
from monai_diverse.bank.format import MANIFEST
from monai_diverse.data import IntArray, LabelledImages, available_splits, class_names, load_images
from monai_diverse.data.files import SPLITS
from monai_diverse.errors import DataError, DiverseError, RecipeError
from monai_diverse.recipe import BUILTIN, DataChoice
from monai_diverse.sources import BuiltinSource, BundleSource, DiffusersSource
from monai_diverse.sources.builtin import builtin_data
from monai_diverse.storage import read_json, sha256_of

SPLIT_FILE = "split.json"
TWIN_CORRELATION = 0.95
_LONGEST = 200
_KINDS = "builtin, the folder of a diffusers model, a MONAI bundle or a bank (also by URL), or images (.npz, or a folder with one subfolder a class)"


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditSetsGiven:
    """Real images as the command line names them.

    Attributes:
        train: what the model was trained on.
        heldout: what it never saw.
        groups: (len(train) + len(heldout),), patients, train first; None where they were not given.
        twin_correlation: from which on pixels count as near-duplicates, where no patients are given.
        told: names and hashes of both, for the summary.
    """

    train: LabelledImages
    heldout: LabelledImages
    groups: IntArray | None
    twin_correlation: float
    told: dict[str, Any]


def find_source(name: str, device: str) -> Audited:
    """The model, bank or images behind a name.

    Raises:
        DataError: none of the kinds that can be audited, or a damaged one.
        BankError: a bank that cannot be read.
    """
    if name == BUILTIN:
        return BuiltinSource(device=device)
    if url_of(name) is not None:
        return SampleBank.open(name)
    folder, (path, split) = Path(name), _file_and_split(name)
    with _readable("--source", _KINDS):
        is_bank = (folder / MANIFEST).is_file() or any(folder.glob("shard-*.safetensors"))
        is_model = any((folder / part).is_dir() for part in ("unet", "transformer"))
        is_bundle, exists = (folder / "configs").is_dir(), path.exists()
    if is_bank:
        return SampleBank.open(folder)
    if is_model:
        return DiffusersSource(folder, device=device)
    if is_bundle:
        return BundleSource(folder, device=device)
    if not exists:
        raise DataError(f"--source: expected {_KINDS}, got {name}, which does not exist")
    try:
        return _read(path, split, "--source")
    except DataError as error:
        raise DataError(f"--source: expected {_KINDS}, got {name}, which is none of them ({error})") from error


def find_sets(
    source: str,
    data: Path | None,
    train: Sequence[str],
    heldout: Sequence[str],
    *,
    groups: IntArray | None = None,
    twin_correlation: float | None = None,
) -> AuditSetsGiven:
    """The real images: those named, and for what is not named what the model's own training recorded.

    Args:
        source: as `find_source`'s.
        data: the file or folder that `monai-diverse train` was given.
        train: files or folders, with `:SPLIT` where they are divided; empty for what the model's record says.
        heldout: likewise.
        groups: patients, as `_patients` takes them.
        twin_correlation: None for what the model's own training recorded, or .95.

    Raises:
        RecipeError: neither named nor recorded, or groups of images whose order the user cannot know.
        DataError: unreadable images, sets of other classes or shapes, a record of other data, groups of another number of images.
    """
    own: _Recorded | None = None
    if source == BUILTIN and data is None:
        found = builtin_data()
        # without the recorded groups, which are near-duplicates too, and no patients
        heldout_parts = [_without_groups(part) for part in (found.calibration, found.validation, found.test)]
        own = _Recorded(sets=(_without_groups(found.generator_train), _joined(heldout_parts, "builtin")))
    elif data is not None:
        own = _recorded(Path(source), data)
    if own is None and not (train and heldout):
        missing = " and ".join(f"--{name}" for name, given in (("train", train), ("heldout", heldout)) if not given)
        hint = "; for a model of monai-diverse train, --data with the file that it was trained on says both"
        raise RecipeError(f"{missing}: expected .npz files or folders of real images, got none{hint}")
    with _readable("--train, --heldout", "files or folders of real images"):
        _require_one_naming([*train, *heldout])
        sets = {
            name: named(given, f"--{name}") if given else own.sets[index]  # type: ignore[union-attr]
            for index, (name, given) in enumerate({"train": train, "heldout": heldout}.items())
        }
    names = {"train": list(train), "heldout": list(heldout)}
    recorded = f"{BUILTIN if data is None else data.name}, {SPLIT_FILE}"
    told = {name: {"from": [Path(given).name for given in names[name]] or [recorded], "sha256": images.sha256()} for name, images in sets.items()}
    recorded_correlation = TWIN_CORRELATION if own is None else own.twin_correlation
    return AuditSetsGiven(
        train=sets["train"],
        heldout=sets["heldout"],
        groups=None if groups is None else _patients(groups, own, named=bool(train) + bool(heldout)),
        twin_correlation=recorded_correlation if twin_correlation is None else twin_correlation,
        told=told,
    )


def named(given: Sequence[str], option: str) -> LabelledImages:
    """Images of all files and folders together.

    Raises:
        DataError: unreadable images, images of several shapes, a divided file without `:SPLIT`.
    """
    return _joined([_read(*_file_and_split(name), option) for name in given], option)


def read_groups(path: Path) -> IntArray:
    """Patients (n,), whole numbers or texts, from an `.npy` file, as numbers.

    Raises:
        DataError: not such a file.
    """
    try:
        with path.open("rb") as stream:  # NumPy leaves a file open that it cannot read
            values = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"--groups: expected an .npy file of patient numbers or names, but {path} cannot be read ({error})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iuUS":
        raise DataError(f"--groups: expected one number or name an image, train first, in an .npy file, got another kind of array in {path}")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Recorded:
    """What a model's own record says of its images.

    Attributes:
        sets: what it saw, and what it did not.
        order: (n,), where their images stand in the file: train split, then val split; None for the shipped ones.
        count: images in the file.
        twin_correlation: as in training.
    """

    sets: tuple[LabelledImages, LabelledImages]
    order: IntArray | None = None
    count: int = 0
    twin_correlation: float = TWIN_CORRELATION


def _recorded(model: Path, data: Path) -> _Recorded:
    """What `split.json` beside a model says that it saw, and what it did not: the calibration reals, and the val split where there is one.

    The whole val split, since what repeats a training image must be left out on both sides, or neither.
    """
    file = model / SPLIT_FILE
    with _readable("--data", f"images, and a model whose {SPLIT_FILE} says what it saw"):
        if not file.is_file():
            raise RecipeError(f"--data: expected a model of monai-diverse train, whose {SPLIT_FILE} says what it saw, but {file} is missing")
        split = read_json(file)
        twin_correlation = split.get("twin_correlation", TWIN_CORRELATION)
        if not isinstance(twin_correlation, float) or not 0 < twin_correlation < 1:
            raise DataError(f"{file}: expected twin_correlation between 0 and 1, got {twin_correlation!r}")
        real = load_images(data, "train")
        if split.get("data_sha256") != (sha256_of(data) if data.is_file() else real.sha256()):
            raise DataError(f"--data: expected the images that the model was trained on, by the hash in {file}, got others in {data}")
        names = ("generator_train", "calibration")
        parts = [DataChoice(path=str(data), split_file=str(file), part=name, twin_correlation=twin_correlation).load(Path()) for name in names]
        order = [np.asarray(split[name], np.int64).reshape(-1) for name in names]
    seen, unseen = (_without_groups(part) for part in parts)
    validation = [load_images(data, "val")] if split.get("validation") is not None else []
    count = len(real) + sum(map(len, validation))
    return _Recorded(
        sets=(seen, _joined([unseen, *validation], str(data))),
        order=np.concatenate([*order, np.arange(len(real), count)]),
        count=count,
        twin_correlation=twin_correlation,
    )


def _patients(groups: IntArray, own: _Recorded | None, named: int) -> IntArray:
    """Patients in the order of the images: of sets that are both named as they are given, of `--data` as the file has its images."""
    if named == 2 or own is None:
        return groups
    if own.order is None:
        raise RecipeError(f"--groups: expected --train and --heldout beside it, got images of {BUILTIN}, whose order is not yours; leave it out")
    if named:
        raise RecipeError("--groups: expected --data alone or both --train and --heldout beside it, got a mixture; name both, or neither")
    if len(groups) != own.count:
        wanted = f"{own.count} with --data, one for each image of the train split, then of the val split if the model was trained with one"
        raise DataError(f"--groups: expected {wanted}, got {len(groups)}")
    return groups[own.order]


@contextmanager
def _readable(option: str, expected: str) -> Iterator[None]:
    """What a strange name, folder or record may raise becomes one line."""
    try:
        yield
    except DiverseError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{option}: expected {expected}, got what cannot be read ({str(error)[:_LONGEST]})") from error


def _read(path: Path, split: str | None, option: str) -> LabelledImages:
    splits = available_splits(path)
    if split is not None and split not in splits:
        raise DataError(f"{option}: expected a split {split} in {path}, got {', '.join(splits) or 'data that are not divided'}")
    if split is None and len(splits) > 1:
        raise DataError(f"{option}: expected one of the splits, such as {path}:{splits[-1]}, got {path} with {', '.join(splits)}")
    return load_images(path, split or (splits[0] if splits else "train"))


def _file_and_split(name: str) -> tuple[Path, str | None]:
    path, _, split = name.rpartition(":")
    return (Path(path), split) if path and split in SPLITS else (Path(name), None)


def _require_one_naming(given: Sequence[str]) -> None:
    """Folders number their classes by name, so that other names mean other numbers."""
    names = {path: class_names(path) for path in dict.fromkeys(_file_and_split(name)[0] for name in given) if path.is_dir()}
    if len(set(names.values())) > 1:
        said = "; ".join(f"{path}: {', '.join(found)}" for path, found in names.items())
        raise DataError(f"--train, --heldout: expected folders with the same classes, since their order numbers them, got {said}")


def _joined(parts: Sequence[LabelledImages], what: str) -> LabelledImages:
    shapes = sorted({part.images.shape[1:] for part in parts})
    if len(shapes) > 1:
        raise DataError(f"{what}: expected images of one shape (channels, *spatial), got {', '.join(map(str, shapes))}; resize them first")
    known = [part.groups for part in parts if part.groups is not None]
    return LabelledImages(
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        groups=np.concatenate(known) if len(known) == len(parts) else None,
    )


def _without_groups(images: LabelledImages) -> LabelledImages:
    return LabelledImages(images=images.images, labels=images.labels)
