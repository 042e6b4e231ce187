"""Early layers of the default network: edges, grain and polarity, of which its last layer keeps little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monai_diverse.data import FloatArray
from monai_diverse.errors import RecipeError
from monai_diverse.features.efficientnet import Lite0Planes, lite0_network, lite0_weights_hash
from monai_diverse.storage import fingerprint_of


@dataclass(frozen=True, kw_only=True)
class EfficientNetTextures(Lite0Planes):
    """Feature maps of early layers of EfficientNet-Lite0, averaged over space, those of each layer a block of their own.

    Lee et al. (NeurIPS 2018) found that early layers tell images of another kind apart best. The stem sees the polarity of edges, which
    inverting an image turns round; the layers after it see grain, smoothness and the borders of patches. Other settings: see `Lite0Planes`.

    Attributes:
        layers: numbers of inverted-residual blocks (1 to 16) after which the maps are averaged, ascending; 0 is the stem.
    """

    layers: tuple[int, ...] = (0, 3, 5)

    def __post_init__(self) -> None:
        # a recipe read from a file gives a list
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0 or self.layers[-1] > 16:
            raise RecipeError(f"layers: expected one or more ascending numbers in 0..16, got {self.layers}")
        super().__post_init__()

    @property
    def name(self) -> str:
        """`efficientnet-lite0-textures`."""
        return "efficientnet-lite0-textures"

    @property
    def fingerprint(self) -> str:
        """Hash of the weights file and of the settings that change the features."""
        settings = {"layers": list(self.layers), "size": self.size, "slices": self.slices, "slice_axis": self.slice_axis}
        return fingerprint_of({"extractor": self.name, "weights": lite0_weights_hash(), **settings})

    def widths(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Channels of each layer, in order; the same for every shape."""
        network = lite0_network(self.size)
        return tuple(network._bn0.num_features if n == 0 else network._blocks[n - 1]._bn2.num_features for n in self.layers)

    @torch.no_grad()
    def __call__(self, images: FloatArray) -> FloatArray:
        """Turns (n, channels, h, w) or (n, channels, *three axes) in [0, 1] into float32 (n, sum of `widths`)."""
        if not len(images):
            return np.zeros((0, sum(self.widths(images.shape[1:]))), np.float32)
        return np.concatenate([self._features(batch).numpy() for batch in self._batches(images)])

    def _features(self, images: Tensor) -> Tensor:
        vectors = torch.cat([maps.mean((2, 3)) for maps in self._maps(self._input(images))], dim=1)
        return self._planes.pooled(vectors, len(images))

    def _maps(self, planes: Tensor) -> list[Tensor]:
        network = lite0_network(self.size)
        stem = network._bn0(network._conv_stem(planes))
        maps, x = [stem] if self.layers[0] == 0 else [], network._swish(stem)
        for number, block in enumerate(network._blocks[: self.layers[-1]], 1):
            x = block(x)
            if number in self.layers:
                maps.append(x)
        return maps
