"""How many of the drawn images were accepted, with what certainty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from monai_diverse.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Yield:
    """Accepted of drawn.

    Attributes:
        drawn: images judged.
        accepted: of them.
        nfe: network evaluations that drawing took; None: unknown, or real images.
    """

    drawn: int
    accepted: int
    nfe: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.accepted <= self.drawn:
            raise RecipeError(f"yield: expected 0 <= accepted <= drawn, got {self.accepted} of {self.drawn}")
        if self.nfe is not None and self.nfe < 0:
            raise RecipeError(f"nfe: expected at least 0, got {self.nfe}")

    @property
    def per_10k(self) -> float:
        """Accepted images in 10,000; 0 if none were drawn."""
        return 1e4 * self.accepted / self.drawn if self.drawn else 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        """Exact 95 % interval of `per_10k` (Clopper & Pearson 1934); everything, (0, 10000), if none were drawn."""
        if not self.drawn:
            return 0.0, 1e4
        interval = binomtest(self.accepted, self.drawn).proportion_ci(0.95, method="exact")
        return 1e4 * float(interval.low), 1e4 * float(interval.high)

    @property
    def accepted_per_1k_nfe(self) -> float | None:
        """Accepted images in 1000 network evaluations; None if those are unknown or none."""
        return 1e3 * self.accepted / self.nfe if self.nfe else None

    def as_json(self) -> dict[str, Any]:
        """All figures; the interval as a list."""
        return {
            "drawn": self.drawn,
            "accepted": self.accepted,
            "per_10k": self.per_10k,
            "ci95": list(self.ci95),
            "nfe": self.nfe,
            "accepted_per_1k_nfe": self.accepted_per_1k_nfe,
        }

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.accepted} of {self.drawn}: {self.per_10k:.0f} in 10,000 (95 % interval {low:.0f} to {high:.0f})"
