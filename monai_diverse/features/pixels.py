"""Pixels as features."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from monai_diverse.data import FloatArray
from monai_diverse.errors import RecipeError
from monai_diverse.storage import fingerprint_of


@dataclass(frozen=True, kw_only=True)
class PixelFeatures:
    """Flattened pixels, optionally at low resolution and standardised; two or three spatial dimensions.

    Attributes:
        max_side: area-average each spatial side down to at most this many pixels; None: keep the size.
        average_channels: average the channels first.
        standardise: subtract each image's mean and divide by its norm. The dot product of two vectors is then the images'
            Pearson correlation r, and their Euclidean distance is sqrt(2 - 2 r). A flat image becomes the zero vector.
    """

    max_side: int | None = None
    average_channels: bool = False
    standardise: bool = True

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 2:
            raise RecipeError(f"max_side: expected at least 2 pixels or None, got {self.max_side}")

    @property
    def name(self) -> str:
        """`pixels`, with the largest side if there is one."""
        return "pixels" if self.max_side is None else f"pixels-{self.max_side}"

    @property
    def fingerprint(self) -> str:
        """Hash of the settings."""
        return fingerprint_of({"extractor": "PixelFeatures", **asdict(self)})

    def __call__(self, images: FloatArray) -> FloatArray:
        """Turns (n, channels, *spatial) into float32 (n, d)."""
        pixels = images.mean(axis=1, keepdims=True, dtype=np.float32) if self.average_channels else images
        size = tuple(side if self.max_side is None else min(side, self.max_side) for side in pixels.shape[2:])
        if size != pixels.shape[2:] and len(pixels):
            pixels = functional.interpolate(torch.from_numpy(np.array(pixels, np.float32)), size=size, mode="area").numpy()
        flat = pixels.reshape(len(pixels), pixels.shape[1] * int(np.prod(size))).astype(np.float64)
        if self.standardise:
            flat -= flat.mean(axis=1, keepdims=True)
            norms = np.linalg.norm(flat, axis=1, keepdims=True)
            # below float32 resolution what is left of a flat image is rounding, which must not be blown up to unit length
            flat = np.where(norms > 1e-5 * np.sqrt(flat.shape[1]), flat / np.maximum(norms, 1e-30), 0.0)
        return flat.astype(np.float32)

    def differentiable(self, images: Tensor) -> Tensor:
        """The same of float32 tensors, with their gradient."""
        pixels = images.mean(1, keepdim=True) if self.average_channels else images
        size = tuple(side if self.max_side is None else min(side, self.max_side) for side in pixels.shape[2:])
        if size != tuple(pixels.shape[2:]):
            pixels = functional.interpolate(pixels, size=size, mode="area")
        flat = pixels.flatten(1)
        if self.standardise:
            flat = flat - flat.mean(1, keepdim=True)
            norms = flat.norm(dim=1, keepdim=True)
            flat = flat / norms.clamp_min(1e-12) * (norms > 1e-5 * flat.shape[1] ** 0.5)
        return flat
