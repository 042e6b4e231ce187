"""Noise added on the way and at the end, which brings guided images back among plausible ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.guides import Guide


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Settings of churn: after a step, a share of the noise is drawn anew, at the same noise level.

    x' = sqrt(abar) x0 + sqrt(1 - abar) (sqrt(1 - share^2) eps + share * fresh), which is DDIM's step with noise (Song et al. 2021, eq. 12,
    whose sigma is share * sqrt(1 - abar)). It lets the network correct what a push has done. Predictions being means, much of it takes variance
    away: a share of .3 costs a Gaussian 2 % of its standard deviation in 50 steps, .6 costs 8 %.

    Attributes:
        share: of the noise's standard deviation, 0 to 1.
        sigma_min: lowest noise-to-signal ratio at which it acts.
        sigma_max: highest.
    """

    share: float = 0.3
    sigma_min: float = 0.05
    sigma_max: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise RecipeError(f"churn: expected a share of 0 to 1, got {self.share}")
        if not 0 <= self.sigma_min < self.sigma_max:
            raise RecipeError(f"churn: expected 0 <= sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedChurn:
        """Nothing is calibrated: the settings as a guide."""
        return FittedChurn(settings=self)


@dataclass(frozen=True, kw_only=True)
class FittedChurn(Guide):
    """Churn as a guide.

    Attributes:
        settings: see `Churn`.
    """

    settings: Churn

    def refresh(self, sigma: float) -> float:
        """The share inside the interval, 0 outside."""
        chosen = self.settings
        return chosen.share if chosen.sigma_min <= sigma <= chosen.sigma_max else 0.0


@dataclass(frozen=True, kw_only=True)
class Polish:
    """Settings of polish: finished images are noised a little and denoised once more (SDEdit, Meng et al. 2022).

    Costs the evaluations of the steps at or below `sigma` once more.

    Attributes:
        sigma: noise-to-signal ratio of the noise added; in images of unit standard deviation, its standard deviation.
    """

    sigma: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise RecipeError(f"polish: expected sigma above 0, got {self.sigma}")

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedPolish:
        """Nothing is calibrated: the settings as a guide."""
        return FittedPolish(polish=self.sigma)


@dataclass(frozen=True, kw_only=True)
class FittedPolish(Guide):
    """Polish as a guide.

    Attributes:
        polish: noise-to-signal ratio of the noise added.
    """

    polish: float = 0.0
