"""What the gates say of images one by one, and how that becomes verdicts in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.screening.accepted import AcceptedViews
from monai_diverse.screening.duplicates import FittedDuplicates
from monai_diverse.screening.verdict import Verdict
from monai_diverse.screening.views import Views

if TYPE_CHECKING:
    from monai_diverse.information.choice import GainTracker


@dataclass(frozen=True, kw_only=True, eq=False)
class Assessment:
    """What can be said of n images whatever else was accepted.

    Attributes:
        scores: (n,) of every gate but that for duplicates, by its reason, higher is worse.
        surprisal: (n,) in nats above the median calibration image.
        nearest: (n,) index of the nearest image that the generator saw, see `Verdict`.
    """

    scores: dict[str, FloatArray]
    surprisal: FloatArray
    nearest: IntArray


def decide(
    views: Views,
    assessment: Assessment,
    accepted: Views | AcceptedViews | None,
    *,
    limits: Mapping[str, float],
    duplicates: FittedDuplicates,
    gain: GainTracker,
) -> list[Verdict]:
    """Verdicts in order; each image is compared with the accepted ones, and with those that are accepted before it.

    Args:
        views: the images, n from 1.
        assessment: of them.
        accepted: samples that were accepted earlier.
        limits: of the gates, in the order in which the first reason is named.
        duplicates: the gate for repeats.
        gain: their information gains, given the accepted ones.
    """
    rejected = {reason: assessment.scores[reason] > limit for reason, limit in limits.items()}
    scores = {**assessment.scores, "duplicate": duplicates.score(views, accepted), "surprisal": assessment.surprisal}
    verdicts = []
    for i in range(len(views)):
        own = {name: float(values[i]) for name, values in scores.items()} | {"information_gain": float(gain.gain[i])}
        reason = next((name for name, mask in rejected.items() if mask[i]), None)
        if reason is None and own["duplicate"] > duplicates.threshold:
            reason = "duplicate"
        verdicts.append(Verdict(accepted=reason is None, reason=reason, scores=own, nearest=int(assessment.nearest[i])))
        if reason is None:
            gain.observe(i)
            scores["duplicate"] = np.maximum(scores["duplicate"], duplicates.score(views, views[i : i + 1]))
    return verdicts
