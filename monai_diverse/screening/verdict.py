"""What became of one image, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

REASONS = ("copy", "not_novel", "irrelevant", "outlier", "duplicate")
"""Why an image can be rejected, in the order in which the first reason is named."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement of one image; every score is kept, whatever the reason.

    Attributes:
        accepted: no gate rejected it.
        reason: the first of `REASONS` that did; None if accepted.
        scores: every gate's score by its reason, higher is worse; `information_gain` in nats, given the reference and all accepted
            before; `surprisal` in nats above the median calibration image.
        nearest: index of the nearest image of `generator_train`, or of the reference where that is unknown, in the feature view.
    """

    REASONS: ClassVar[tuple[str, ...]] = REASONS
    accepted: bool
    reason: str | None
    scores: dict[str, float]
    nearest: int


def count_reasons(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many verdicts name each reason, `accepted` first, then `REASONS` in order, zeros included."""
    counts = dict.fromkeys(("accepted", *REASONS), 0)
    for verdict in verdicts:
        counts[verdict.reason or "accepted"] += 1
    return counts
