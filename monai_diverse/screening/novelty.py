"""Does it show something that no image of the reference shows?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from monai_diverse.data import FloatArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information.neighbours import DoubleArray, Neighbours
from monai_diverse.screening.calibrate import ClassConformal, check_level, groups_needed, require_groups
from monai_diverse.screening.tables import class_rows
from monai_diverse.screening.views import Real, Views, require_known

SMALLEST = 1e-12
SAMPLE = 10_000
"""Reference images that typical distances are taken over, at most."""


@dataclass(frozen=True, kw_only=True)
class NoveltyGate:
    """Accepts what is farther from the reference than nearly all unseen real images of its class are, in the feature view.

    Nonconformity: log of the distance d_k to the k-th nearest reference image, whatever its class, less the log of the median d_k (between groups)
    of the reference images of the nearest one's class; the smallest over the `neighbours` k. Its conformal p-value among the calibration
    images of the sample's class is the score. So of unseen *real* images at most a share `alpha` is accepted: the yardstick for generated ones.

    Of all classes, because an image that shows what another class shows is a wrong label rather than something new; and measured against the
    class that it lies in, because images of one class may lie farther apart than those of another. With k = 5 alone, a shifted copy of an
    isolated reference image would be as novel as that image is among the others; with k = 1 alone, a single odd reference image would
    hide a whole region. Novel is what is far in both.

    Attributes:
        alpha: accepted when p <= alpha.
        neighbours: each k; lowered for a smaller reference.
        min_per_class: calibration groups from which on a class is calibrated on its own; smaller classes are pooled. A rare class that is
            pooled with a frequent one may have no novel images at all.
    """

    reason: ClassVar[str] = "not_novel"
    alpha: float = 0.05
    neighbours: tuple[int, ...] = (1, 5)
    min_per_class: int = 20

    def __post_init__(self) -> None:
        check_level("alpha", self.alpha)
        # a recipe read from a file gives a list
        object.__setattr__(self, "neighbours", tuple(self.neighbours))
        if not self.neighbours or min(self.neighbours) < 1:
            raise RecipeError(f"neighbours: expected one or more numbers from 1, got {self.neighbours}")
        if self.min_per_class < 1:
            raise RecipeError(f"min_per_class: expected at least 1, got {self.min_per_class}")

    def fit(self, real: Real) -> FittedNovelty:
        """Indexes the reference and scores the calibration images.

        Raises:
            DataError: a reference of one group only, a calibration label that it lacks, or too few calibration images for
                any p-value to reach `alpha`.
        """
        require_known(real.calibration.labels, real.classes)
        distances = _Distances(real.reference, self.neighbours, real.tables.folder)
        calibration = real.calibration
        needed = groups_needed(self.alpha, reaching=True)
        conformal = ClassConformal.fit(
            distances.excess(calibration),
            calibration.labels,
            calibration.group_ids,
            classes=real.classes,
            minimum=max(self.min_per_class, needed),
        )
        require_groups(conformal, needed, f"novelty at alpha {self.alpha}")
        return FittedNovelty(distances=distances, conformal=conformal, classes=real.classes, threshold=float(np.float32(self.alpha)))


class _Distances:
    """Smallest log(d_k / typical d_k) over k, to the reference."""

    def __init__(self, reference: Views, neighbours: tuple[int, ...], folder: Path | None) -> None:
        self._index = Neighbours(reference.features, reference.groups, folder=folder)
        if self._index.most < 1:
            raise DataError(f"novelty: expected reference images of at least 2 groups, got {len(self._index)} image(s) of one; add some")
        self._k = sorted({min(k, self._index.most) for k in neighbours})
        self._labels = reference.labels
        rows = class_rows(reference.labels, SAMPLE)
        between = self._at(self._index.distances(reference.features[rows], self._k[-1], leave_out=reference.group_ids[rows]))
        labels = reference.labels[rows]
        self.typical = {int(c): np.median(between[labels == c], axis=0) for c in np.unique(labels)}

    def excess(self, views: Views) -> DoubleArray:
        if not len(views):
            return np.zeros(0)
        distances = self._at(self._index.distances(views.features, self._k[-1]))
        typical = np.stack([self.typical[int(c)] for c in self._labels[self._index.nearest(views.features)]])
        smallest: DoubleArray = np.log(distances / typical).min(axis=1)
        return smallest

    def _at(self, distances: DoubleArray) -> DoubleArray:
        return np.maximum(distances[:, np.array(self._k) - 1], SMALLEST)

    def notes(self) -> dict[str, dict[str, float]]:
        return {str(c): {str(k): float(t) for k, t in zip(self._k, values, strict=True)} for c, values in self.typical.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedNovelty:
    """Score: the conformal p-value of the distance to the reference; small is novel."""

    distances: _Distances
    conformal: ClassConformal
    classes: tuple[int, ...]
    threshold: float

    def score(self, views: Views) -> FloatArray:
        """Scores (n,) in (0, 1]; above alpha is not novel."""
        require_known(views.labels, self.classes)
        return self.conformal.p_values(self.distances.excess(views), views.labels).astype(np.float32)

    def notes(self) -> dict[str, Any]:
        """Typical distances by class and k, and how classes were calibrated."""
        return {"typical_distance": self.distances.notes(), "categories": self.conformal.notes()}
