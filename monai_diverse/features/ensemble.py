"""Several extractors as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monai_diverse.data import FloatArray
from monai_diverse.errors import RecipeError
from monai_diverse.features.base import DifferentiableExtractor, FeatureExtractor
from monai_diverse.storage import fingerprint_of


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The vectors of several extractors side by side.

    It has a `differentiable` method if all its members have one, so that guides take it or refuse it as they would its members.
    `PCA.fit(x, blocks=...)` with its `widths` gives every member an equal say, however wide or large its vectors are.

    Attributes:
        extractors: the members, two or more; their order is the vectors'.
    """

    extractors: tuple[FeatureExtractor, ...]

    def __post_init__(self) -> None:
        members = tuple(self.extractors)
        if len(members) < 2 or not all(isinstance(member, FeatureExtractor) for member in members):
            raise RecipeError(f"extractors: expected two or more extractors, got {[type(member).__name__ for member in members]}")
        object.__setattr__(self, "extractors", members)
        if all(isinstance(member, DifferentiableExtractor) for member in members):
            # a method of the class would be there for members without a gradient too
            object.__setattr__(self, "differentiable", self._differentiable)

    @property
    def name(self) -> str:
        """The members' names, joined by `+`."""
        return "+".join(member.name for member in self.extractors)

    @property
    def fingerprint(self) -> str:
        """Hash of the members' fingerprints in order."""
        return fingerprint_of({"extractor": "Ensemble", "members": [member.fingerprint for member in self.extractors]})

    def __call__(self, images: FloatArray) -> FloatArray:
        """Turns (n, channels, *spatial) in [0, 1] into float32 (n, sum of `widths`)."""
        features: FloatArray = np.concatenate([member(images) for member in self.extractors], axis=1)
        return features

    def widths(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Length of each member's vectors for images of shape (channels, *spatial)."""
        none = np.zeros((0, *shape), np.float32)
        return tuple(member(none).shape[1] for member in self.extractors)

    def _differentiable(self, images: Tensor) -> Tensor:
        """The same of float32 tensors, with their gradient, on the first member's device."""
        members = [member for member in self.extractors if isinstance(member, DifferentiableExtractor)]
        parts = [member.differentiable(images) for member in members]
        return torch.cat([part.to(parts[0]) for part in parts], 1)
