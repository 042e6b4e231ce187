"""Is it a copy of an image that the generator was trained on?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

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

    Distance: sqrt(2 - 2 r), r Pearson's correlation between the middle of the training image, a border of `max_shift` low-resolution pixels left
    out, and a window of that size of the sample; the smallest over all windows, half a low-resolution pixel apart where the image has that
    detail. So a copy that is moved a little is a copy, by whatever fraction of a pixel. The closest admissible distance is the `quantile` of the
    same distance between groups of `generator_train`. Where that set is unknown, the reference stands in for it, and the notes say so.

    Attributes:
        quantile: share of the training images whose own nearest neighbour may be closer.
        floor: the admissible distance is never below this, so that a training set that repeats itself does not make copies
            admissible; .1 is a correlation of .995.
        max_shift: in pixels of the low resolution, along every spatial axis; less where an image is so small that a window would have fewer than two.
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
        settings = {"copies": [self.max_shift, self.side]}
        middles = real.tables.of(real.seen.images, settings, lambda images: _middle(images, self))
        index = Neighbours(middles, real.seen.groups, folder=real.tables.folder)
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
    """Distance (n,) to the nearest image of the index, the smallest over windows."""
    best = np.full(len(images), np.inf)
    for window in _windows(images, settings):
        best = np.minimum(best, index.distances(window, 1, leave_out=leave_out)[:, 0])
    return best


@dataclass(frozen=True)
class _Axis:
    """One spatial axis: `steps` places to a low-resolution pixel, so many pixels in a window, so many places where it can start."""

    places: int
    steps: int
    pixels: int
    starts: int

    @classmethod
    def of(cls, length: int, settings: CopyGate) -> _Axis:
        steps = 2 if length > settings.side else 1
        cells = min(length, settings.side)
        shift = max(0, min(settings.max_shift, (cells - 2) // 2))
        return cls(places=cells * steps, steps=steps, pixels=cells - 2 * shift, starts=2 * shift * steps + 1)

    def window(self, start: int) -> slice:
        return slice(start, start + (self.pixels - 1) * self.steps + 1, self.steps)


def _middle(images: FloatArray, settings: CopyGate) -> FloatArray:
    """Standardised low-resolution pixels (n, p) of the middle of each image."""
    cells, axes = _cells(images, settings)
    return _standardised(cells, [axis.window(axis.starts // 2) for axis in axes])


def _windows(images: FloatArray, settings: CopyGate) -> Iterator[FloatArray]:
    """The same of every window of each image."""
    cells, axes = _cells(images, settings)
    for starts in product(*(range(axis.starts) for axis in axes)):
        yield _standardised(cells, [axis.window(start) for axis, start in zip(axes, starts, strict=True)])


def _cells(images: FloatArray, settings: CopyGate) -> tuple[FloatArray, list[_Axis]]:
    """Means (n, 1, *starts) of the low-resolution pixels that start at each place, the channels averaged."""
    axes = [_Axis.of(length, settings) for length in images.shape[2:]]
    grey = images.mean(axis=1, keepdims=True, dtype=np.float32)
    if not len(grey):
        return grey[(slice(None), slice(None), *(slice(axis.places - axis.steps + 1) for axis in axes))], axes
    places = functional.interpolate(torch.from_numpy(grey), size=[axis.places for axis in axes], mode="area")
    pool = functional.avg_pool2d if len(axes) == 2 else functional.avg_pool3d
    cells: FloatArray = pool(places, [axis.steps for axis in axes], stride=1).numpy()
    return cells, axes


def _standardised(cells: FloatArray, window: list[slice]) -> FloatArray:
    return PixelFeatures()(np.ascontiguousarray(cells[(slice(None), slice(None), *window)]))
