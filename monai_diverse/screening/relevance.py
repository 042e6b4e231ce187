"""Does it belong to the class that it was made for?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import RecipeError
from monai_diverse.information.neighbours import DoubleArray
from monai_diverse.screening.calibrate import ClassConformal, check_level, groups_needed, require_groups
from monai_diverse.screening.tables import LARGE, class_rows
from monai_diverse.screening.views import FittedOn, Real, Views, check_fitted_on, require_known


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """What the classifier learns from: features (n, d), labels (n,) and groups (n,)."""

    features: DoubleArray
    labels: IntArray
    groups: IntArray

    @classmethod
    def of(cls, views: Views) -> _Known:
        """All images; of a large set, `LARGE` of them at most (`class_rows`)."""
        rows = class_rows(views.labels, LARGE)
        return cls(features=views.features[rows].astype(np.float64), labels=views.labels[rows], groups=views.group_ids[rows])


@dataclass(frozen=True, kw_only=True)
class RelevanceGate:
    """Rejects what a classifier of real images would hardly give its label, less than nearly all unseen real images.

    Nonconformity: 1 - p(label | features) of a class-balanced logistic regression; its conformal p-value among the
    calibration images of the class says how unusual that is. With a single class nothing is irrelevant.

    Attributes:
        level: rejected when the conformal p-value is below this: the share of unseen real images that is lost, at most. Half rejects what is less
            plainly of its class than half of the unseen real images are.
        fitted_on: whose labels the classifier learns from: the `reference`'s, or those of `generator_train`, where that is known; a small
            reference cannot tell wrong labels from rare images.
        min_per_class: calibration groups from which on a class is calibrated on its own; smaller classes are pooled.
        inverse_strengths: regularisation constants C to choose from, by log-likelihood in cross-validation.
        folds: of the cross-validation; groups are kept whole.
    """

    reason: ClassVar[str] = "irrelevant"
    level: float = 0.05
    fitted_on: FittedOn = "reference"
    min_per_class: int = 20
    inverse_strengths: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    folds: int = 5

    def __post_init__(self) -> None:
        check_level("level", self.level)
        check_fitted_on(self.fitted_on)
        if self.min_per_class < 1:
            raise RecipeError(f"min_per_class: expected at least 1, got {self.min_per_class}")
        if self.folds < 2:
            raise RecipeError(f"folds: expected at least 2, got {self.folds}")
        # a recipe read from a file gives a list
        object.__setattr__(self, "inverse_strengths", tuple(self.inverse_strengths))
        if not self.inverse_strengths or min(self.inverse_strengths) <= 0:
            raise RecipeError(f"inverse_strengths: expected one or more constants above 0, got {self.inverse_strengths}")

    def fit(self, real: Real) -> FittedRelevance:
        """Fits the classifier and scores the calibration images.

        Raises:
            DataError: a calibration label that the reference lacks, or too few calibration images for any p-value to fall below `level`.
        """
        require_known(real.calibration.labels, real.classes)
        threshold = float(np.float32(1 - self.level))
        if len(real.classes) < 2:
            return FittedRelevance(classes=real.classes, classifier=None, conformal=None, strength=None, threshold=threshold)
        known = _Known.of(real.seen if self.fitted_on == "generator_train" else real.reference)
        strength = self._best_strength(known)
        classifier = _classifier(strength).fit(known.features, known.labels)
        needed, calibration = groups_needed(self.level, reaching=False), real.calibration
        conformal = ClassConformal.fit(
            _doubt(classifier, calibration.features, calibration.labels),
            calibration.labels,
            calibration.group_ids,
            classes=real.classes,
            minimum=max(self.min_per_class, needed),
        )
        require_groups(conformal, needed, f"relevance at level {self.level}")
        return FittedRelevance(classes=real.classes, classifier=classifier, conformal=conformal, strength=strength, threshold=threshold)

    def _best_strength(self, known: _Known) -> float:
        """The constant with the highest class-balanced log-likelihood on left-out groups, the smallest of equals; else that nearest to 1."""
        features, labels, groups = known.features, known.labels, known.groups
        classes, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
        folds = min(self.folds, *(len(np.unique(groups[labels == c])) for c in classes))
        splitter = StratifiedGroupKFold(max(2, folds), shuffle=True, random_state=0)
        splits = splitter.split(features, labels, groups) if folds > 1 else ()
        # few groups can leave a fold without some class, which then cannot be predicted
        usable = [(train, test) for train, test in splits if len(np.unique(labels[train])) == len(classes)]
        if not usable:
            return min(self.inverse_strengths, key=lambda strength: abs(float(np.log(strength))))

        def loss(strength: float) -> float:
            total = 0.0
            for train, test in usable:
                doubt = _doubt(_classifier(strength).fit(features[train], labels[train]), features[test], labels[test])
                total -= float((np.log(np.maximum(1 - doubt, 1e-12)) / counts[place[test]]).sum())
            return total

        return min(sorted(self.inverse_strengths), key=loss)


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedRelevance:
    """Score: 1 - conformal p-value of the classifier's doubt in the label.

    Attributes:
        classes: those of the reference.
        classifier: logistic regression on features; None with a single class.
        conformal: the calibration images' doubts; None with a single class.
        strength: the regularisation constant C that was chosen.
        threshold: 1 - level.
    """

    classes: tuple[int, ...]
    classifier: LogisticRegression | None
    conformal: ClassConformal | None
    strength: float | None
    threshold: float

    def score(self, views: Views) -> FloatArray:
        """Scores (n,) in [0, 1); above 1 - level is irrelevant."""
        require_known(views.labels, self.classes)
        if self.classifier is None or self.conformal is None or not len(views):
            return np.zeros(len(views), np.float32)
        p = self.conformal.p_values(_doubt(self.classifier, views.features, views.labels), views.labels)
        return (1 - p).astype(np.float32)

    def notes(self) -> dict[str, Any]:
        """The regularisation chosen, and how classes were calibrated."""
        return {"strength": self.strength, "categories": [] if self.conformal is None else self.conformal.notes()}


def _classifier(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, class_weight="balanced", max_iter=5000)


def _doubt(classifier: LogisticRegression, features: FloatArray | DoubleArray, labels: IntArray) -> DoubleArray:
    """1 - p(label | features), summed over the other classes so that it stays exact near 0."""
    probabilities = np.array(classifier.predict_proba(features.astype(np.float64)))
    probabilities[classifier.classes_ == labels[:, None]] = 0
    doubt: DoubleArray = probabilities.sum(axis=1)
    return doubt
