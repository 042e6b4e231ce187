"""Particle guidance: the images of a batch repel each other while they are still being decided."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.guides import Guide


@dataclass(frozen=True, kw_only=True)
class Particle:
    """Settings of particle guidance (Corso et al., ICLR 2024), on predicted clean images.

    It couples the batch: image i depends on its class-mates there.

    Attributes:
        strength: the factor c of the push; 0 does nothing.
        sigma_min: noise-to-signal ratio until which it acts, from pure noise on; below, it would blur details.
    """

    strength: float = 1.0
    sigma_min: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf") or self.sigma_min < 0:
            raise RecipeError(f"particle: expected strength and sigma_min from 0, got {self.strength} and {self.sigma_min}")

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedParticle:
        """Nothing is calibrated: the settings as a guide; its kernel follows each batch's own distances."""
        return FittedParticle(settings=self)


@dataclass(frozen=True, kw_only=True)
class FittedParticle(Guide):
    """Particle guidance as a guide.

    eps_i -= c s sum_j 2 k_ij (x_i - x_j) / h_i with k_ij = exp(-|x_i - x_j|^2 / h_i), h_i = med_j |x_i - x_j|^2 / ln(N - 1), over the N - 1
    class-mates x_j in the batch, s = sqrt(1 - abar). In clean images, sigma = s / sqrt(abar) being the noise-to-signal ratio:

        x0_i += c sigma s sum_j 2 k_ij (x0_i - x0_j) / h_i

    with ln 2 in place of the logarithm for N < 3, and no image moved farther than the median distance med_j |x0_i - x0_j|: at the first steps
    predictions nearly coincide and the sum is without bound. Distances are those of predicted clean images, not of the noisy ones.

    Attributes:
        settings: see `Particle`.
    """

    settings: Particle

    def __call__(self, x0: Tensor, labels: Tensor, sigma: float) -> Tensor:
        """Moves x0 (n, c, *spatial) away from its class-mates in the batch."""
        chosen = self.settings
        mates = (labels[:, None] == labels[None]) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        if sigma < chosen.sigma_min or chosen.strength == 0 or not bool(mates.any()):
            return x0
        # in double precision: the two terms of the push are large beside their difference where images nearly coincide
        x = x0.flatten(1).double()
        distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        median = distances.masked_fill(~mates, float("nan")).nanmedian(1, keepdim=True).values.nan_to_num()
        logarithm = mates.sum(1, keepdim=True).clamp_min(2).log()
        width = (median.square() / logarithm).clamp_min(1e-12)
        weights = 2 / width * torch.exp(-distances.square() / width) * mates
        push = weights.sum(1, keepdim=True) * x - weights @ x
        push = chosen.strength * sigma * sigma / math.sqrt(1 + sigma**2) * push
        length = torch.linalg.vector_norm(push, dim=1, keepdim=True).clamp_min(1e-12)
        moved: Tensor = push * (median / length).clamp_max(1)
        return x0 + moved.to(x0.dtype).reshape(x0.shape)
