"""One set of images, seen in the ways that the gates look at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.screening.tables import IN_MEMORY, Tables

FittedOn = Literal["reference", "generator_train"]
"""Which real images something is fitted on: what the user has, or what the generator saw, which may be many more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """Images with their labels and the vectors that gates compare.

    Attributes:
        images: float32 (n, channels, *spatial) in [0, 1].
        labels: int64 (n,), the class that each is meant to show.
        groups: int64 (n,), equal for images of one patient or near-duplicates; None: every image its own.
        pixels: float32 (n, p), low-resolution pixels, standardised per image: distance sqrt(2 - 2 r), r Pearson's.
        features: float32 (n, d), deep features in the whitened principal components of the reference.
        residual: float32 (n,), distance of the deep features from the plane of those components: what `features` leave out; None: not known.
    """

    images: FloatArray
    labels: IntArray
    groups: IntArray | None = None
    pixels: FloatArray
    features: FloatArray
    residual: FloatArray | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "groups", "pixels", "features", "residual"):
            value = getattr(self, name)
            if value is not None and len(value) != len(self.images):
                raise DataError(f"views: expected {len(self.images)} {name}, one an image, got {len(value)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice) -> Views:
        return Views(
            images=self.images[index],
            labels=self.labels[index],
            groups=None if self.groups is None else self.groups[index],
            pixels=self.pixels[index],
            features=self.features[index],
            residual=None if self.residual is None else self.residual[index],
        )

    @property
    def group_ids(self) -> IntArray:
        """int64 (n,): `groups`, or one group an image where none were given."""
        return np.arange(len(self), dtype=np.int64) if self.groups is None else self.groups

    def concat(self, *others: Views) -> Views:
        """These images and then the others'. Groups and residuals are kept if every part has them; equal groups then mean one group across parts."""
        parts = (self, *others)
        groups = [p.groups for p in parts if p.groups is not None]
        residuals = [p.residual for p in parts if p.residual is not None]
        return Views(
            images=np.concatenate([p.images for p in parts]),
            labels=np.concatenate([p.labels for p in parts]),
            groups=np.concatenate(groups) if len(groups) == len(parts) else None,
            pixels=np.concatenate([p.pixels for p in parts]),
            features=np.concatenate([p.features for p in parts]),
            residual=np.concatenate(residuals) if len(residuals) == len(parts) else None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Real:
    """The real images that gates are fitted on.

    Attributes:
        reference: what the user has; novelty is relative to it, and everything is fitted on it alone, unless `FittedOn` says otherwise.
        calibration: real images of other patients, as a new one would be: nothing is fitted on them, thresholds are read off them.
        generator_train: what the generator saw, for copies (mirrored images too if it was trained on those, in the group of
            their original); None: unknown.
        tables: where gates keep what they know of each of these images.
    """

    reference: Views
    calibration: Views
    generator_train: Views | None = None
    tables: Tables = IN_MEMORY

    @property
    def seen(self) -> Views:
        """`generator_train`, or the reference where that is unknown."""
        return self.reference if self.generator_train is None else self.generator_train

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that the reference holds, ascending."""
        return tuple(int(c) for c in np.unique(self.reference.labels))


def check_fitted_on(value: str) -> None:
    """Raises RecipeError unless `value` is one of `FittedOn`."""
    if value not in get_args(FittedOn):
        raise RecipeError(f"fitted_on: expected one of {', '.join(get_args(FittedOn))}, got {value!r}")


def require_known(labels: IntArray, classes: tuple[int, ...]) -> None:
    """Raises DataError unless every label is one of `classes`."""
    unknown = sorted(set(labels.tolist()) - set(classes))
    if unknown:
        raise DataError(f"labels: expected classes of the reference {list(classes)}, got {unknown[0]}; add reference images of it or drop it")
