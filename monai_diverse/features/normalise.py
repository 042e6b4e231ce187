"""What a pretrained network wants done to images in [0, 1] before it sees them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from monai_diverse.errors import RecipeError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """Resizes planes (n, c, h, w) in [0, 1], then computes (x - mean) / std; one channel becomes as many as `mean` has.

    The whole plane is resized. Publishers' own pipelines often crop the centre; a medical image may show its finding at the border.

    Args:
        size: (height, width) that the network takes; None: keep the planes' own.
        mean: by channel, in units of the images' [0, 1].
        std: likewise.
        mode: `bilinear` or `bicubic`, antialiased; what bicubic overshoots is clamped to [0, 1].

    Raises:
        RecipeError: a size below 1, unequal lengths of mean and std, a std of 0, an unknown mode.
    """

    def __init__(self, *, size: Sequence[int] | None, mean: Sequence[float], std: Sequence[float], mode: str = "bilinear") -> None:
        super().__init__()
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise RecipeError(f"size: expected (height, width) from 1, or None, got {tuple(size)}")
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise RecipeError(f"normalise: expected a mean and a positive std for every channel, got {tuple(mean)} and {tuple(std)}")
        if mode not in ("bilinear", "bicubic"):
            raise RecipeError(f"mode: expected bilinear or bicubic, got {mode!r}")
        self._size = None if size is None else (int(size[0]), int(size[1]))
        self._mode = mode
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(-1, 1, 1))

    def forward(self, planes: Tensor) -> Tensor:
        """Turns (n, 1 or c, h, w) into (n, c, *size)."""
        if self._size is not None and tuple(planes.shape[2:]) != self._size:
            planes = functional.interpolate(planes, size=self._size, mode=self._mode, antialias=True).clamp(0, 1)
        return (planes - self.mean) / self.std

    def extra_repr(self) -> str:
        """Size and mode, which take part in a fingerprint through it."""
        return f"size={self._size}, mode={self._mode}"
