"""The shield: SPELL (Kirchhof et al., ICML 2025), with radii calibrated on real images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.balls import Balls
from monai_diverse.sampling.guides import Guide
from monai_diverse.sampling.repulsion import low_passed, nearest_by_class, push_out, quantile_by_class, upsampled, with_intensity_of


@dataclass(frozen=True, kw_only=True)
class Shield:
    """Settings of the shield.

    Distances and pushes are taken in a low-passed space (average pooling), because a push on single pixels makes noise, not
    novelty. It acts between `sigma_max` and `sigma_min`: before, predictions are class means within reach of every ball;
    after, the remaining steps bring the pushed image back among plausible ones.

    The defaults were chosen on the shipped model, with 128 samples a setting, as the ones whose samples pass the outlier gate
    within 3 points of brute force's share; they are no optimum.

    Attributes:
        strength: the paper's lambda; 0 does nothing.
        scale: radius of the balls around training images, in units of the 95 % quantile of the distance from a held-out
            real image to its nearest class-mate in the training set: at 1, samples are kept as far away as new patients.
        distinct: radius of the balls around accepted samples and around the rest of the batch, in units of the median
            distance between nearest training images of a class; 0 for none. Above 0 it couples the batch.
        pool: side of the average-pooling window; 1 for no low-pass.
        sigma_max: noise-to-signal ratio from which on the shield acts.
        sigma_min: noise-to-signal ratio until which it acts.
        keep_intensity: give each pushed image its mean and standard deviation back. Without it a push away from the crowd mostly raises the
            contrast, which is novel because it is broken.
        bounded: push an image no farther in a step than it lies deep in the ball that it is deepest in. Without it the pushes of thousands of
            training images add up, and more data make a stronger shield.
        index_from: training images of a class from which on a FAISS index finds those within reach (extra `faiss`); None: never, exact search
            in chunks.
    """

    strength: float = 0.3
    scale: float = 1.0
    distinct: float = 0.6
    pool: int = 2
    sigma_max: float = 2.0
    sigma_min: float = 0.5
    keep_intensity: bool = True
    bounded: bool = True
    index_from: int | None = 50_000

    def __post_init__(self) -> None:
        if self.strength < 0 or self.scale < 0 or self.distinct < 0:
            raise RecipeError(f"shield: expected strength, scale and distinct from 0, got {self.strength}, {self.scale}, {self.distinct}")
        if self.pool < 1 or self.sigma_max <= self.sigma_min:
            raise RecipeError(f"shield: expected pool from 1 and sigma_max above sigma_min, got {self.pool}, {self.sigma_max}, {self.sigma_min}")

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedShield:
        """Calibrates the radii.

        Args:
            train: (m, c, *spatial) images in the model's space that samples must not repeat.
            train_labels: (m,) their classes.
            heldout: (k, c, *spatial) real images that are not in `train`, at least one.
            heldout_labels: (k,) their classes.

        Raises:
            DataError: no held-out image, or one training image only.
        """
        if len(heldout) == 0 or len(train) < 2:
            raise DataError(f"shield: expected two or more training images and held-out reals to calibrate on, got {len(train)} and {len(heldout)}")
        low, unseen = low_passed(train, self.pool).flatten(1), low_passed(heldout, self.pool).flatten(1)
        to_new = nearest_by_class(unseen, heldout_labels, low, train_labels, 0)
        among = nearest_by_class(low, train_labels, low, train_labels, 1)
        radii = self.scale * quantile_by_class(to_new, heldout_labels, train_labels, 0.95)
        return FittedShield(
            settings=self,
            balls=Balls(centres=low, radii=radii, labels=train_labels, index_from=self.index_from),
            distinct_radius=self.distinct * float(among.nanmedian()),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedShield(Guide):
    """The shield as a guide.

    push_i = strength * sum_k relu(r_k / |x0_i - z_k| - 1) (x0_i - z_k), over the class-mates z_k among training images,
    accepted samples and the rest of the batch (SPELL, Kirchhof et al. 2025); keeping the intensity is ours.

    Attributes:
        settings: see `Shield`.
        balls: around training images, low-passed, flattened, in the model's space.
        distinct_radius: of the balls around accepted samples and the rest of the batch.
        accepted: the balls around accepted samples; None: there are none.
    """

    settings: Shield
    balls: Balls
    distinct_radius: float
    accepted: Balls | None = None

    def __call__(self, x0: Tensor, labels: Tensor, sigma: float) -> Tensor:
        """Moves x0 (n, c, *spatial) out of the balls of its class; `sigma` decides whether the shield acts."""
        chosen = self.settings
        if not chosen.sigma_min <= sigma <= chosen.sigma_max or chosen.strength == 0:
            return x0
        low = low_passed(x0, chosen.pool)
        flat = low.flatten(1)
        pushes = [self.balls.push(flat, labels)]
        if self.accepted is not None:
            pushes.append(self.accepted.push(flat, labels))
        if self.distinct_radius > 0 and len(x0) > 1:
            others = (labels[:, None] == labels[None]) & ~torch.eye(len(x0), dtype=torch.bool, device=x0.device)
            apart = torch.cdist(flat, flat).masked_fill(~others, float("inf")).amin(1)
            pushes.append((push_out(flat, flat, self.distinct_radius * others), (self.distinct_radius - apart).clamp_min(0)))
        push = chosen.strength * torch.stack([p for p, _ in pushes]).sum(0)
        if chosen.bounded:
            deepest = torch.stack([depth for _, depth in pushes]).amax(0)
            push = push * (deepest / push.norm(dim=1).clamp_min(1e-12)).clamp(max=1)[:, None]
        moved = x0 + upsampled(push.reshape(low.shape), x0)
        return with_intensity_of(moved, x0) if chosen.keep_intensity else moved

    def given(self, accepted: Tensor, labels: Tensor) -> FittedShield:
        """The same shield with balls around these accepted samples (m, c, *spatial) of classes `labels` too, in place of earlier ones."""
        if len(accepted) == 0 or self.distinct_radius == 0:
            return replace(self, accepted=None)
        centres = low_passed(accepted, self.settings.pool).flatten(1)
        return replace(self, accepted=Balls(centres=centres, radii=torch.full((len(centres),), self.distinct_radius), labels=labels))
