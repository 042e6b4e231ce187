"""What one set of images is divided into before a model is trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.data import (
    IntArray,
    LabelledImages,
    available_splits,
    check_labels,
    class_names,
    load_images,
    near_duplicate_groups,
    require_every_class,
    split_by_group,
)
from monai_diverse.errors import DataError
from monai_diverse.storage import sha256_of
from monai_diverse.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What one file is divided into before training.

    Attributes:
        seen: what the generator is trained on.
        calibration: reals of the same split that it never sees, to calibrate the screen.
        validation: the reals of the validation bank: the file's own val split without near-duplicates of train images; where there is no
            val split, `calibration`.
        split: JSON value with hashes and indices into the file's train and val splits.
        classes: number of classes.
        class_names: of a folder's classes; empty for a file.
    """

    seen: LabelledImages
    calibration: LabelledImages
    validation: LabelledImages
    split: dict[str, Any]
    classes: int
    class_names: tuple[str, ...] = ()


def prepare(path: Path, config: TrainConfig) -> TrainingData:
    """Reads a file or folder and sets calibration reals aside, near-duplicates kept together.

    Raises:
        DataError: unreadable data, a class with too few images, a val split that does not fit.
    """
    real = load_images(path, "train")
    classes = int(real.labels.max()) + 1
    require_every_class(real.labels, classes, str(path))
    validation = load_images(path, "val") if "val" in available_splits(path) else None
    if validation is not None:
        _require_alike(real, validation, classes, path)
    real = LabelledImages(images=real.images, labels=real.labels, groups=near_duplicate_groups(real.images, config.twin_correlation))
    seen, aside = split_by_group(real, config.calibration_parts, config.seed)
    unseen = _unlike(real, validation, config.twin_correlation)
    if validation is not None and not len(unseen):
        raise DataError(f"{path}: expected val images that do not repeat train images, got near-duplicates only")
    split = {
        "data": path.name,
        "data_sha256": sha256_of(path) if path.is_file() else real.sha256(),
        "twin_correlation": config.twin_correlation,
        "seed": config.seed,
        "generator_train": seen.tolist(),
        "calibration": aside.tolist(),
        "validation": None if validation is None else unseen.tolist(),
        "classes": classes,
    }
    return TrainingData(
        seen=real[seen],
        calibration=real[aside],
        validation=real[aside] if validation is None else validation[unseen],
        split=split,
        classes=classes,
        class_names=class_names(path),
    )


def _unlike(real: LabelledImages, validation: LabelledImages | None, twin_correlation: float) -> IntArray:
    """Indices of the validation images that share no group with a train image."""
    if validation is None:
        return np.empty(0, dtype=np.int64)
    groups = near_duplicate_groups(np.concatenate([real.images, validation.images]), twin_correlation)
    return np.flatnonzero(~np.isin(groups[len(real) :], groups[: len(real)]))


def _require_alike(real: LabelledImages, validation: LabelledImages, classes: int, path: Path) -> None:
    if validation.images.shape[1:] != real.images.shape[1:]:
        raise DataError(f"{path}: expected val images of the train images' shape {real.images.shape[1:]}, got {validation.images.shape[1:]}")
    check_labels(validation.labels, len(validation), classes, f"{path}: val labels")
