"""The sets of real images that a screen is fitted on: apart from one another, and named by their hashes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from monai_diverse.data import LabelledImages
from monai_diverse.errors import DataError
from monai_diverse.storage import fingerprint_of


def require_disjoint(reference: LabelledImages, calibration: LabelledImages, generator_train: LabelledImages | None) -> None:
    """Raises DataError if shapes differ, or if the calibration holds an image that another set holds pixel for pixel."""
    aside = {image.tobytes() for image in calibration.images}
    for name, other in (("reference", reference), ("generator_train", None if generator_train is reference else generator_train)):
        if other is None:
            continue
        if other.images.shape[1:] != calibration.images.shape[1:]:
            shapes = f"{other.images.shape[1:]} in {name}, {calibration.images.shape[1:]} in calibration"
            raise DataError(f"screen: expected images of one shape, got {shapes}; resize them")
        shared = sum(image.tobytes() in aside for image in other.images)
        if shared:
            raise DataError(f"calibration: expected images that {name} does not hold, got {shared} in both; split by near-duplicate group")


def summaries(sets: dict[str, LabelledImages | None]) -> dict[str, dict[str, Any] | None]:
    """Shape, class counts and hash of each set as JSON; a set that plays two parts is read once."""
    distinct = {id(data): data for data in sets.values() if data is not None}
    found = {key: _summary(data) for key, data in distinct.items()}
    return {name: None if data is None else found[id(data)] for name, data in sets.items()}


def _summary(data: LabelledImages) -> dict[str, Any]:
    arrays = {"images": data.images, "labels": data.labels, "groups": data.group_ids}
    hashes = {name: hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for name, array in arrays.items()}
    return {"shape": list(data.images.shape), "class_counts": data.class_counts, "sha256": fingerprint_of(hashes)}
