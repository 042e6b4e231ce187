"""Does it repeat a sample that was accepted before?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from monai_diverse.data import FloatArray
from monai_diverse.errors import RecipeError
from monai_diverse.information.neighbours import Neighbours
from monai_diverse.screening.views import Real, Views

WORST = 1e6
SMALLEST = 1e-9


@dataclass(frozen=True, kw_only=True)
class DuplicateGate:
    """Rejects what lies closer to an accepted sample than a share of the usual distance between reference images, in the feature view.

    Attributes:
        share: of the median distance between a reference image and its nearest one of another group.
    """

    reason: ClassVar[str] = "duplicate"
    share: float = 0.5

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise RecipeError(f"share: expected above 0, got {self.share}")

    def fit(self, real: Real) -> FittedDuplicates:
        """Finds the usual distance.

        Raises:
            DataError: fewer than two groups of reference images.
        """
        usual = float(np.median(Neighbours(real.reference.features, real.reference.groups).within(1)))
        return FittedDuplicates(admissible=max(SMALLEST, self.share * usual))


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedDuplicates:
    """Score: admissible distance / distance to the nearest accepted sample, 0 as long as there is none; up to a million for a repeat.

    Attributes:
        admissible: distance below which a sample counts as a repeat.
    """

    admissible: float
    threshold: float = 1.0

    def score(self, views: Views, picked: Views | None = None) -> FloatArray:
        """Scores (n,) against the accepted samples `picked`; above 1 is a duplicate."""
        if picked is None or not len(picked):
            return np.zeros(len(views), np.float32)
        distance = Neighbours(picked.features).distances(views.features, 1)[:, 0]
        return (self.admissible / np.maximum(distance, self.admissible / WORST)).astype(np.float32)

    def notes(self) -> dict[str, Any]:
        """The admissible distance."""
        return {"admissible_distance": self.admissible}
