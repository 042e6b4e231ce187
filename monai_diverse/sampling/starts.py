"""Starts with stronger noise, later: Boost-and-Skip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.guides import Guide, Start


@dataclass(frozen=True, kw_only=True)
class BoostAndSkip:
    """Settings of Boost-and-Skip (Um et al., ICML 2025): x = gain * sqrt(1 - abar) * eps at a step later than the first.

    Noise stronger than the network was trained on leads to rarer images, and the steps that are skipped cost nothing. A little above 1
    helps; much more breaks the images, which then are new for that reason.

    Attributes:
        gain: factor on the standard deviation of the first noise; 1 for no boost.
        sigma: noise-to-signal ratio; passes start at the first step at or below it.
    """

    gain: float = 1.1
    sigma: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.gain < float("inf") or not self.sigma > 0:
            raise RecipeError(f"boost and skip: expected gain and sigma above 0, got {self.gain} and {self.sigma}")

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedBoostAndSkip:
        """Nothing is calibrated: the settings as a guide."""
        return FittedBoostAndSkip(settings=self)


@dataclass(frozen=True, kw_only=True)
class FittedBoostAndSkip(Guide):
    """Boost-and-Skip as a guide.

    Attributes:
        settings: see `BoostAndSkip`.
    """

    settings: BoostAndSkip

    def start(self, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Start]:
        """All images start from boosted noise alone."""
        chosen = self.settings
        return torch.ones(len(seeds), dtype=torch.bool), Start(images=torch.zeros(()), sigma=chosen.sigma, gain=chosen.gain)
