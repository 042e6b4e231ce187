"""Images of any channels, in two or three dimensions, as what a network takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diverse.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Planes:
    """How an image becomes planes for a 2D network, and the planes' vectors become one.

    One channel is repeated to as many as the network takes, and that many are taken as they are; of any other number, each channel is a grey
    plane of its own. A 3D image is cut into evenly spaced slices. The vectors of an image's planes are averaged.

    Attributes:
        slices: slices of a 3D image, at the middles of as many equal slabs; all of them if it has fewer. None: for a 3D network, which takes
            volumes whole; a "plane" is then a volume.
        slice_axis: the spatial axis along which a 3D image is cut: 0 for axial slices of (depth, height, width), 2 for those
            of MONAI's (x, y, z).
        channels: channels that the network takes: 3 for RGB, 1 for grey.
    """

    slices: int | None = 8
    slice_axis: int = 0
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("slices", "channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name}: expected at least 1, got {value}")
        if self.slice_axis not in (0, 1, 2):
            raise RecipeError(f"slice_axis: expected a spatial axis 0, 1 or 2, got {self.slice_axis}")

    def per_image(self, shape: tuple[int, ...]) -> int:
        """How many planes an image of shape (channels, h, w) or (channels, *three axes) becomes."""
        slices = 1 if self.slices is None or len(shape) == 3 else min(self.slices, shape[1 + self.slice_axis])
        return slices * (1 if shape[0] in (1, self.channels) else shape[0])

    def cut(self, images: Tensor) -> Tensor:
        """Turns (n, c, h, w) or (n, c, *three axes) into (n * `per_image`, 1 or `channels`, h, w), the planes of an image in a row."""
        if self.slices is not None and images.ndim == 5:
            depth = images.shape[2 + self.slice_axis]
            count = min(self.slices, depth)
            middles = torch.tensor([int((i + 0.5) * depth / count) for i in range(count)], device=images.device)
            cut = images.index_select(2 + self.slice_axis, middles).movedim(2 + self.slice_axis, 1)
            images = cut.flatten(0, 1)
        return images if images.shape[1] in (1, self.channels) else images.flatten(0, 1)[:, None]

    def expanded(self, planes: Tensor) -> Tensor:
        """Repeats one channel to as many as the network takes, without a copy."""
        return planes.expand(-1, self.channels, *planes.shape[2:]) if planes.shape[1] == 1 else planes

    def pooled(self, features: Tensor, count: int) -> Tensor:
        """Averages vectors (count * `per_image`, d) of planes to (count, d), one an image."""
        return features.view(count, -1, features.shape[1]).mean(1)
