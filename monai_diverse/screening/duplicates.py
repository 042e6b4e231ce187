"""Does it repeat a sample that was accepted before?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from monai_diverse.data import FloatArray
from monai_diverse.errors import RecipeError
from monai_diverse.information.neighbours import DoubleArray, Neighbours
from monai_diverse.screening.accepted import AcceptedViews
from monai_diverse.screening.calibrate import check_level
from monai_diverse.screening.views import Real, Views

WORST = 1e6
SMALLEST = 1e-9


@dataclass(frozen=True, kw_only=True)
class DuplicateGate:
    """Rejects what lies closer to an accepted sample than reference images lie to one another, in the feature view or in the pixel view.

    In features: closer than a share of the usual distance. In low-resolution pixels (sqrt(2 - 2 r), r Pearson's correlation): closer than
    nearly all reference images are, as for copies; two samples that hardly differ to the eye can lie far apart in whitened features.

    Attributes:
        share: of the median distance in features between a reference image and its nearest one of another group.
        pixel_quantile: share of the reference images whose own nearest neighbour in pixels may be closer.
    """

    reason: ClassVar[str] = "duplicate"
    share: float = 0.5
    pixel_quantile: float = 0.01

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise RecipeError(f"share: expected above 0, got {self.share}")
        check_level("pixel_quantile", self.pixel_quantile)

    def fit(self, real: Real) -> FittedDuplicates:
        """Finds the usual distances.

        Raises:
            DataError: fewer than two groups of reference images.
        """
        reference, folder = real.reference, real.tables.folder
        usual = float(np.median(Neighbours(reference.features, reference.groups, folder=folder).within(1)))
        close = float(np.quantile(Neighbours(reference.pixels, reference.groups, folder=folder).within(1), self.pixel_quantile))
        return FittedDuplicates(admissible=max(SMALLEST, self.share * usual), admissible_pixels=max(SMALLEST, close))


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedDuplicates:
    """Score: admissible distance / distance to the nearest accepted sample, the larger of both views; 0 as long as there is none.

    Up to a million for a repeat.

    Attributes:
        admissible: distance in features below which a sample counts as a repeat.
        admissible_pixels: likewise in the pixel view.
    """

    admissible: float
    admissible_pixels: float
    threshold: float = 1.0

    def score(self, views: Views, picked: Views | AcceptedViews | None = None) -> FloatArray:
        """Scores (n,) against the accepted samples `picked`; above 1 is a duplicate."""
        known = AcceptedViews.of(picked)
        in_features = _closeness(known.features.nearest(views.features), self.admissible)
        return np.maximum(in_features, _closeness(known.pixels.nearest(views.pixels), self.admissible_pixels))

    def notes(self) -> dict[str, Any]:
        """The admissible distances."""
        return {"admissible_distance": self.admissible, "admissible_pixel_distance": self.admissible_pixels}


def _closeness(distance: DoubleArray, admissible: float) -> FloatArray:
    return (admissible / np.maximum(distance, admissible / WORST)).astype(np.float32)
