"""What an audit comes to, and what it does not say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scipy import stats

from monai_diverse.audit.bias import BLOCKS, CONFIDENCE, Effect
from monai_diverse.errors import RecipeError

ALPHA = 0.05
WIDER = float(stats.t.ppf(0.995, BLOCKS - 1) / stats.t.ppf((1 + CONFIDENCE) / 2, BLOCKS - 1))
"""From an interval of `CONFIDENCE` to one of 99 %."""
LIMITS = (
    "This is no privacy guarantee: samples that keep their distance can still tell who was in the training set "
    "(distance tests miss membership leakage, arXiv 2505.01524).",
    "The membership scores are those of a simple attack on the loss; a stronger attack may find more, so a low AUC does not clear a model.",
    "Held-out images must come from the same hospitals, machines and years as the training images; otherwise the bias measures that difference too.",
    "For more: train with differential privacy, run a suite of membership inference attacks, and have a person look at the closest pairs.",
)


@dataclass(frozen=True, kw_only=True)
class BiasVerdict:
    """Whether samples lean towards the training images by more than is tolerated.

    Attributes:
        word: `beyond` if p <= .05 and the bias is above the tolerance; `within` if the upper end of its interval is at most the tolerance;
            otherwise `unresolved`. None without a tolerance.
        tolerance: bias that is tolerated, in natural logarithms of distances: .02 is 2 % nearer. `beyond` says that there is a lean, and that its
            estimate is above the tolerance.
        sampler: whose samples.
        bias: see `Contrast`.
        reasons: why it is unresolved though the figures alone would say otherwise, or never could; sentences.
    """

    word: str | None
    tolerance: float | None
    sampler: str
    bias: Effect
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, bias: Effect, tolerance: float | None, sampler: str, *, control: Effect | None = None, smallest_p: float = 0.0, flat: bool = False
    ) -> BiasVerdict:
        """Decides.

        Args:
            bias: of the samples.
            tolerance: bias that is tolerated; None: no verdict.
            sampler: whose samples.
            control: bias of held-out reals in the samples' place. Where it is off 0 at a level of 99 %, the sets differ in more than what the model
                saw. At 95 %, one audit in twenty would be called unresolved by chance.
            smallest_p: the smallest that exchanging so few patients can give.
            flat: whether samples without any contrast are among them.

        Raises:
            RecipeError: a tolerance below 0.
        """
        check_tolerance(tolerance)
        if tolerance is None:
            return cls(word=None, tolerance=None, sampler=sampler, bias=bias)
        reasons = []
        if control is not None and abs(control.value) > WIDER * (control.ci[1] - control.ci[0]) / 2:
            reasons.append("Held-out images in the samples' place do not score 0: the two sets differ in more than what the model saw.")
        if smallest_p > ALPHA:
            reasons.append(f"With so few patients no exchange of them can give p below {smallest_p:.2g}: give more.")
        if flat or bias.ci[0] == bias.ci[1]:
            reasons.append("There are samples without any contrast, whose distances mean nothing.")
        word = "unresolved"
        if not reasons and bias.ci[1] <= tolerance:
            word = "within"
        elif not reasons and bias.p is not None and bias.p <= ALPHA and bias.value > tolerance:
            word = "beyond"
        return cls(word=word, tolerance=tolerance, sampler=sampler, bias=bias, reasons=tuple(reasons))

    @property
    def text(self) -> str:
        """One sentence."""
        value, low, high = (-100 * math.expm1(-end) for end in (self.bias.value, *self.bias.ci))
        nearer = value >= 0
        low, high = (low, high) if nearer else (-high, -low)
        interval = f"{100 * CONFIDENCE:g} % interval {low:.1f} to {high:.1f} %".replace("-", "−")
        test = "" if self.bias.p is None else f", p = {self.bias.p:.2g}"
        found = f"samples of '{self.sampler}' lie {abs(value):.1f} % {'nearer to' if nearer else 'farther from'} training images"
        found += f" than unseen ones ({interval}{test})"
        if self.word is None or self.tolerance is None:
            return f"On average, {found}."
        meaning = {
            "beyond": f"Beyond the tolerance of {self.tolerance:g}",
            "within": f"Within the tolerance of {self.tolerance:g}",
            "unresolved": f"Unresolved at the tolerance of {self.tolerance:g}; give more images, above all held-out ones",
        }[self.word]
        return f"{meaning}: on average, {found}."

    def as_json(self) -> dict[str, Any]:
        """As in audit.json."""
        return {
            "word": self.word,
            "tolerance": self.tolerance,
            "sampler": self.sampler,
            "bias": self.bias.value,
            "ci": list(self.bias.ci),
            "p": self.bias.p,
            "text": self.text,
            "reasons": list(self.reasons),
        }


def check_tolerance(tolerance: float | None) -> None:
    """Raises RecipeError for a tolerance below 0 or not finite."""
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise RecipeError(f"tolerance: expected a bias from 0, or None for no verdict, got {tolerance}")
