"""How the label enters: classifier-free guidance, inside an interval of noise levels."""

from __future__ import annotations

from dataclasses import dataclass

from monai_diverse.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022) inside an interval of noise levels (Kynkaanniemi et al. 2024).

    prediction = null + scale * (conditional - null); outside the interval, and at scale 1, the conditional alone.

    Attributes:
        scale: 1 is the plain conditional model; more is more typical of the class and less diverse. Costs a second
            evaluation a step wherever it acts.
        sigma_min: lowest noise-to-signal ratio at which it acts.
        sigma_max: highest.
    """

    scale: float = 1.0
    sigma_min: float = 0.0
    sigma_max: float = float("inf")

    def __post_init__(self) -> None:
        if self.scale < 0 or self.sigma_min > self.sigma_max:
            raise RecipeError(f"guidance: expected scale >= 0 and sigma_min <= sigma_max, got {self.scale}, {self.sigma_min}, {self.sigma_max}")

    def acts(self, sigma: float) -> bool:
        """Whether a second, unconditional evaluation is needed at this noise level."""
        return self.scale != 1.0 and self.sigma_min <= sigma <= self.sigma_max
