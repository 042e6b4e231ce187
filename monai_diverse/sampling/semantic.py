"""The shield in a semantic space: a push on features, pulled back to the image by one vector-Jacobian product."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import EfficientNetLite0, FeatureExtractor
from monai_diverse.sampling.embedding import SemanticSpace, differentiable_extractor
from monai_diverse.sampling.guides import Guide
from monai_diverse.sampling.repulsion import low_passed, nearest_by_class, push_out, quantile_by_class, upsampled, with_intensity_of

AT_ONCE = 16
"""Images whose gradient is taken at a time; bounds memory."""


@dataclass(frozen=True, kw_only=True)
class Semantic:
    """Settings of the shield in an extractor's space.

    A push on pixels buys novelty in pixels, hardly any in what an encoder sees; this one pushes what the encoder sees. Judge the bank by an
    extractor other than this one. Each step at which it acts costs a forward and a backward pass of the extractor.

    Attributes:
        extractor: images in [0, 1] to vectors, with a `differentiable` method.
        strength: length of a full step, in units of the median distance in the model's space from a held-out image to its nearest
            class-mate in the training set; 0 does nothing.
        scale: radius of the balls around training images in the extractor's space, in units of the 95 % quantile of the distance from a
            held-out real image to its nearest class-mate in the training set.
        distinct: radius of the balls around accepted samples and around the rest of the batch, in units of the median distance between
            nearest training images of a class; 0 for none. Above 0 it couples the batch.
        components: whitened principal components of the training images' features, at most.
        pool: side of the average-pooling window by which the gradient is low-passed; 1 for none. Unfiltered, it is mostly noise to which the
            extractor happens to be sensitive.
        sigma_max: noise-to-signal ratio from which on it acts.
        sigma_min: noise-to-signal ratio until which it acts.
        keep_intensity: give each pushed image its mean and standard deviation back.
    """

    extractor: FeatureExtractor = field(default_factory=EfficientNetLite0)
    strength: float = 0.3
    scale: float = 1.0
    distinct: float = 0.6
    components: int = 48
    pool: int = 2
    sigma_max: float = 2.0
    sigma_min: float = 0.3
    keep_intensity: bool = True

    def __post_init__(self) -> None:
        if min(self.strength, self.scale, self.distinct) < 0:
            raise RecipeError(f"semantic: expected strength, scale and distinct from 0, got {self.strength}, {self.scale}, {self.distinct}")
        if min(self.components, self.pool) < 1 or not 0 <= self.sigma_min < self.sigma_max:
            given = f"{self.components}, {self.pool}, {self.sigma_min}, {self.sigma_max}"
            raise RecipeError(f"semantic: expected components and pool from 1, sigma_min from 0 and below sigma_max, got {given}")
        differentiable_extractor(self.extractor)

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedSemantic:
        """Calibrates space, radii and step length.

        Args:
            train: (m, c, *spatial) images in the model's space that samples must not repeat.
            train_labels: (m,) their classes.
            heldout: (k, c, *spatial) real images that are not in `train`, at least one.
            heldout_labels: (k,) their classes.

        Raises:
            DataError: no held-out image, one training image only, or no held-out image with a class-mate in the training set.
        """
        if len(heldout) == 0 or len(train) < 2:
            raise DataError(f"semantic: expected two or more training images and held-out reals to calibrate on, got {len(train)} and {len(heldout)}")
        space = SemanticSpace.fit(train, self.extractor, self.components)
        known, unseen = torch.from_numpy(space.train), torch.from_numpy(space(heldout))
        to_new = nearest_by_class(unseen, heldout_labels, known, train_labels, 0)
        among = nearest_by_class(known, train_labels, known, train_labels, 1)
        unit = float(nearest_by_class(heldout.flatten(1), heldout_labels, train.flatten(1), train_labels, 0).nanmedian())
        if not np.isfinite(unit):
            raise DataError("semantic: expected held-out images of the training set's classes, got none; give some")
        return FittedSemantic(
            settings=self,
            space=space,
            centres=known,
            labels=train_labels,
            radii=self.scale * quantile_by_class(to_new, heldout_labels, train_labels, 0.95),
            distinct_radius=self.distinct * float(among.nanmedian().nan_to_num()),
            unit=unit,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedSemantic(Guide):
    """The shield in an extractor's space as a guide.

    With f the coordinates of an image (whitened principal components of its features), J their Jacobian at x0_i and P a low-pass:

        p_i = sum_k relu(r_k / |f_i - z_k| - 1) (f_i - z_k)         the push of SPELL (Kirchhof et al. 2025) in the features
        g_i = P J^T p_i                                             its pull-back, one vector-Jacobian product
        x0_i += strength * unit * min(1, |p_i| / r_i) * g_i / |g_i|

    over class-mates z_k among training images, accepted samples and the rest of the batch; r_i is the largest radius of a ball of its class,
    so that an image in the middle of one moves by a full step, and one that just touches it hardly at all. The step is ours.

    Attributes:
        settings: see `Semantic`.
        space: the extractor's.
        centres: (m, k) in it.
        labels: (m,) their classes.
        radii: (m,) of their balls.
        distinct_radius: of the balls around accepted samples and the rest of the batch.
        unit: length of a full step at strength 1, in the model's space.
    """

    settings: Semantic
    space: SemanticSpace
    centres: Tensor
    labels: Tensor
    radii: Tensor
    distinct_radius: float
    unit: float

    def __call__(self, x0: Tensor, labels: Tensor, sigma: float) -> Tensor:
        """Moves x0 (n, c, *spatial) out of the balls of its class; `sigma` decides whether it acts."""
        chosen = self.settings
        if not chosen.sigma_min <= sigma <= chosen.sigma_max or chosen.strength == 0:
            return x0
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x0.detach().clone().requires_grad_()
            parts = [self.space.differentiable(part) for part in torch.split(leaf, AT_ONCE)]
            push, radius = self.push_out(torch.cat([part.detach() for part in parts]), labels)
            gradient = torch.zeros_like(leaf)
            if bool((push != 0).any()):
                (gradient,) = torch.autograd.grad(parts, leaf, [p.to(part) for p, part in zip(torch.split(push, AT_ONCE), parts, strict=True)])
        gradient = upsampled(low_passed(gradient, chosen.pool), x0)
        each = (-1, *[1] * (x0.ndim - 1))
        depth = (torch.linalg.vector_norm(push, dim=1) / radius.clamp_min(1e-12)).clamp_max(1).to(x0).reshape(each)
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).clamp_min(1e-12).reshape(each)
        moved: Tensor = x0 + chosen.strength * self.unit * depth * gradient / length
        if not chosen.keep_intensity:
            return moved
        return torch.where(depth > 0, with_intensity_of(moved, x0), x0)

    def given(self, accepted: Tensor, labels: Tensor) -> FittedSemantic:
        """The same guide with balls around accepted samples (m, c, *spatial) of classes `labels` too."""
        if len(accepted) == 0 or self.distinct_radius == 0:
            return self
        return replace(
            self,
            centres=torch.cat([self.centres, torch.from_numpy(self.space(accepted))]),
            labels=torch.cat([self.labels, labels.to(self.labels)]),
            radii=torch.cat([self.radii, torch.full((len(accepted),), self.distinct_radius)]),
        )

    def push_out(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The push (n, k) of points (n, k), and the largest radius (n,) of a ball of their class."""
        labels = labels.to(points.device)
        radii = self.radii.to(points)[None] * (labels[:, None] == self.labels.to(points.device)[None])
        push, largest = push_out(points, self.centres.to(points), radii), radii.amax(1)
        if self.distinct_radius > 0 and len(points) > 1:
            others = (labels[:, None] == labels[None]) & ~torch.eye(len(points), dtype=torch.bool, device=points.device)
            push = push + push_out(points, points, self.distinct_radius * others)
            largest = largest.clamp_min(self.distinct_radius)
        return push, largest
