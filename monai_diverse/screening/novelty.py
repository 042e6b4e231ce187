"""Does it show something that no image of its class in the reference shows?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from monai_diverse.data import FloatArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information.neighbours import DoubleArray, Neighbours
from monai_diverse.screening.calibrate import ClassConformal, check_level, groups_needed, require_groups
from monai_diverse.screening.views import Real, Views, require_known

SMALLEST = 1e-12


@dataclass(frozen=True, kw_only=True)
class NoveltyGate:
    """Accepts what is farther from the reference of its class than nearly all unseen real images are, in the feature view.

    Nonconformity: log of the distance d_k to the k-th nearest reference image of the same class, less the log of that class's median d_k
    between groups; the smallest over the `neighbours` k. Its conformal p-value among the calibration images is the score. So of
    unseen *real* images at most a share `alpha` is accepted: the yardstick for generated ones.

    With k = 5 alone, a shifted copy of an isolated reference image would be as novel as that image is among the others; with k = 1 alone,
    a single odd reference image would hide a whole region. Novel is what is far in both.

    Attributes:
        alpha: accepted when p <= alpha.
        neighbours: each k; lowered for a class with fewer reference images.
        min_per_class: calibration groups from which on a class is calibrated on its own; smaller classes are pooled.
    """

    reason: ClassVar[str] = "not_novel"
    alpha: float = 0.05
    neighbours: tuple[int, ...] = (1, 5)
    min_per_class: int = 100

    def __post_init__(self) -> None:
        check_level("alpha", self.alpha)
        # a recipe read from a file gives a list
        object.__setattr__(self, "neighbours", tuple(self.neighbours))
        if not self.neighbours or min(self.neighbours) < 1:
            raise RecipeError(f"neighbours: expected one or more numbers from 1, got {self.neighbours}")
        if self.min_per_class < 1:
            raise RecipeError(f"min_per_class: expected at least 1, got {self.min_per_class}")

    def fit(self, real: Real) -> FittedNovelty:
        """Indexes the reference by class and scores the calibration images.

        Raises:
            DataError: a class with one group only, a calibration label that the reference lacks, or too few calibration images for
                any p-value to reach `alpha`.
        """
        require_known(real.calibration.labels, real.classes)
        distances = _ClassDistances({c: _one_class(real.reference, c) for c in real.classes}, self.neighbours)
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
        return FittedNovelty(distances=distances, conformal=conformal, threshold=float(np.float32(self.alpha)))


class _ClassDistances:
    """Smallest log(d_k / median d_k) over k, to the reference of a sample's own class."""

    def __init__(self, index: Mapping[int, Neighbours], neighbours: tuple[int, ...]) -> None:
        self._index = dict(index)
        self._k = {c: sorted({min(k, i.most) for k in neighbours}) for c, i in self._index.items()}
        self.typical = {c: np.median(self._at(i.within(self._k[c][-1]), c), axis=0) for c, i in self._index.items()}

    def excess(self, views: Views) -> DoubleArray:
        require_known(views.labels, tuple(self._index))
        result = np.zeros(len(views))
        for c, index in self._index.items():
            chosen = views.labels == c
            distance = self._at(index.distances(views.features[chosen], self._k[c][-1]), c)
            result[chosen] = np.log(distance / self.typical[c]).min(axis=1)
        return result

    def _at(self, distances: DoubleArray, label: int) -> DoubleArray:
        return np.maximum(distances[:, np.array(self._k[label]) - 1], SMALLEST)

    def notes(self) -> dict[str, dict[str, float]]:
        return {str(c): {str(k): float(t) for k, t in zip(self._k[c], self.typical[c], strict=True)} for c in self._index}


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedNovelty:
    """Score: the conformal p-value of the distance to the reference; small is novel."""

    distances: _ClassDistances
    conformal: ClassConformal
    threshold: float

    def score(self, views: Views) -> FloatArray:
        """Scores (n,) in (0, 1]; above alpha is not novel."""
        return self.conformal.p_values(self.distances.excess(views), views.labels).astype(np.float32)

    def notes(self) -> dict[str, Any]:
        """Typical distances by class and k, and how classes were calibrated."""
        return {"typical_distance": self.distances.notes(), "categories": self.conformal.notes()}


def _one_class(reference: Views, label: int) -> Neighbours:
    chosen = reference.labels == label
    index = Neighbours(reference.features[chosen], reference.group_ids[chosen])
    if index.most < 1:
        raise DataError(f"novelty: expected reference images of at least 2 groups in class {label}, got {len(index)} image(s) of one; add some")
    return index
