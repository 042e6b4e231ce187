"""Is it a copy of an image that the generator was trained on?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import RecipeError
from monai_diverse.features import PixelFeatures
from monai_diverse.information.neighbours import DoubleArray, Neighbours
from monai_diverse.screening.calibrate import check_level
from monai_diverse.screening.views import Real, Views

WORST = 1e6


@dataclass(frozen=True, kw_only=True)
class CopyGate:
    """Rejects what is closer to an image of `generator_train` than those images are to one another, in low-resolution pixels.

    Distance: sqrt(2 - 2 r), r Pearson's correlation, the smallest over shifts by up to `max_shift` low-resolution pixels along each axis
    (edges repeated): a copy that is moved a little is a copy. The closest admissible distance is the `quantile` of the
    same distance between groups of `generator_train`. Where that set is unknown, the reference stands in for it, and the notes say so.

    Attributes:
        quantile: share of the training images whose own nearest neighbour may be closer.
        floor: the admissible distance is never below this, so that a training set that repeats itself does not make copies
            admissible; .1 is a correlation of .995.
        max_shift: in pixels of the low resolution, along every spatial axis.
        side: largest side of the low resolution.
        sample: the quantile is taken over so many training images, evenly spaced, or over all where there are fewer.
    """

    reason: ClassVar[str] = "copy"
    quantile: float = 0.01
    floor: float = 0.1
    max_shift: int = 1
    side: int = 32
    sample: int = 2000

    def __post_init__(self) -> None:
        check_level("quantile", self.quantile)
        if not 0 < self.floor < 2:
            raise RecipeError(f"floor: expected a distance between 0 and 2, got {self.floor}")
        for name, least in (("max_shift", 0), ("side", 2), ("sample", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    def fit(self, real: Real) -> FittedCopies:
        """Finds the admissible distance.

        Raises:
            DataError: fewer than two groups of images.
        """
        index = Neighbours(next(_shifted(real.seen.images, self.side, 0)), real.seen.groups)
        rows = np.unique(np.linspace(0, len(index) - 1, min(self.sample, len(index))).round().astype(np.int64))
        between = _distance(index, real.seen.images[rows], self, leave_out=real.seen.group_ids[rows])
        admissible = max(self.floor, float(np.quantile(between, self.quantile)))
        against = "reference" if real.generator_train is None else "generator_train"
        return FittedCopies(settings=self, index=index, admissible=admissible, against=against)


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedCopies:
    """Score: admissible distance / distance to the nearest image; up to a million for an exact copy.

    Attributes:
        settings: how distances are taken.
        index: the images that may have been copied.
        admissible: distance below which a sample counts as a copy.
        against: `generator_train` or `reference`.
    """

    settings: CopyGate
    index: Neighbours
    admissible: float
    against: str
    threshold: float = 1.0

    def score(self, views: Views) -> FloatArray:
        """Scores (n,); above 1 is a copy."""
        distance = _distance(self.index, views.images, self.settings)
        return (self.admissible / np.maximum(distance, self.admissible / WORST)).astype(np.float32)

    def notes(self) -> dict[str, Any]:
        """The admissible distance and what was compared."""
        return {"admissible_distance": self.admissible, "against": self.against, "images": len(self.index)}


def _distance(index: Neighbours, images: FloatArray, settings: CopyGate, leave_out: IntArray | None = None) -> DoubleArray:
    """Distance (n,) to the nearest image of the index, the smallest over shifts."""
    best = np.full(len(images), np.inf)
    for pixels in _shifted(images, settings.side, settings.max_shift):
        best = np.minimum(best, index.distances(pixels, 1, leave_out=leave_out)[:, 0])
    return best


def _shifted(images: FloatArray, side: int, most: int) -> Iterator[FloatArray]:
    """Standardised low-resolution pixels (n, p) at every shift by -most..most along each spatial axis."""
    coarse = PixelFeatures(max_side=side, average_channels=True, standardise=False)
    standardise = PixelFeatures()
    size = tuple(min(side, length) for length in images.shape[2:])
    low = coarse(images).reshape(len(images), 1, *size)
    padded = np.pad(low, [(0, 0), (0, 0), *[(most, most)] * len(size)], mode="edge")
    for start in product(range(2 * most + 1), repeat=len(size)):
        window = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
        yield standardise(np.ascontiguousarray(padded[(slice(None), slice(None), *window)]))
