"""What was accepted before, as the gate for duplicates and the information gain need it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from monai_diverse.data import FloatArray
from monai_diverse.information import GrowingNeighbours
from monai_diverse.screening.views import Views

OBSERVED = 2048
"""Accepted samples that information gains are given, the first ones: a process of more would take memory with the square of their number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AcceptedViews:
    """Vectors of samples that were accepted, without their images; adding to them costs little, however many there are.

    Attributes:
        features: as `Views.features`.
        pixels: as `Views.pixels`.
        first: float32 (m, d), features of the first `OBSERVED`.
    """

    features: GrowingNeighbours = field(default_factory=GrowingNeighbours)
    pixels: GrowingNeighbours = field(default_factory=GrowingNeighbours)
    first: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.features)

    def plus(self, views: Views) -> AcceptedViews:
        """These samples and others; this value stays as it is."""
        if not len(views):
            return self
        first = views.features if self.first is None else self.first
        if self.first is not None and len(first) < OBSERVED:
            first = np.concatenate([first, views.features])
        return AcceptedViews(features=self.features.plus(views.features), pixels=self.pixels.plus(views.pixels), first=first[:OBSERVED])

    @classmethod
    def of(cls, views: Views | AcceptedViews | None) -> AcceptedViews:
        """Samples in whichever form they are given."""
        if isinstance(views, AcceptedViews):
            return views
        return cls() if views is None else cls().plus(views)
