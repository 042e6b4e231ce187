"""MedicalNet: 3D ResNets trained on 23 sets of CT and MR volumes."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from monai_diverse.devices import require_device
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features.module import ModuleFeatures
from monai_diverse.features.planes import Planes
from monai_diverse.features.pretrained import build, load_weights, read_weights

DEPTHS = (10, 18, 34, 50, 101, 152, 200)


class MedicalNetFeatures(ModuleFeatures):
    """The pooled features of a MedicalNet ResNet (Chen, Ma & Zheng 2019, arXiv:1904.00625), for 3D images; 512 features, 2048 from depth 50 on.

    MONAI's network holds MedicalNet's weights, with shortcuts of type A at depths 18 and 34 and of type B without bias elsewhere. It strides where
    MedicalNet's segmentation network dilates, so its features are those that MONAI's users fine-tune. Each channel of a volume is passed
    on its own and the features are averaged; each is standardised as MedicalNet does, by mean and deviation of its voxels above 0. The
    background becomes 0, the mean of the noise that MedicalNet puts there.

    Args:
        depth: of the ResNet: 10, 18, 34, 50, 101, 152 or 200.
        path: file with the weights, such as `resnet_10_23dataset.pth`; None: MONAI downloads them from the hub, or takes them from its cache.
        size: (depth, height, width), or the order of your axes, to which volumes are resized (trilinear); None: keep theirs.
        batch_size: volumes at a time.
        device: where it runs.

    Raises:
        RecipeError: another depth, or a size that is not three sides from 1.
        DataError: weights that cannot be had or are another depth's.
    """

    def __init__(
        self,
        *,
        depth: int = 10,
        path: str | Path | None = None,
        size: tuple[int, int, int] | None = None,
        batch_size: int = 4,
        device: str = "cpu",
    ) -> None:
        if depth not in DEPTHS:
            raise RecipeError(f"depth: expected one of {', '.join(map(str, DEPTHS))}, got {depth}")
        if size is not None and (len(size) != 3 or min(size) < 1):
            raise RecipeError(f"size: expected three sides from 1, or None, got {tuple(size)}")
        network = _network(depth)
        weights = _published(depth) if path is None else read_weights(path)
        load_weights(network, weights, "TencentMedicalNet" if path is None else path, beside=("fc", "conv_seg"))
        super().__init__(
            network.to(require_device(device)),
            preprocess=ForegroundZScore(size),
            planes=Planes(slices=None, channels=1),
            batch_size=batch_size,
            name=f"medicalnet-{depth}",
        )


class ForegroundZScore(nn.Module):
    """Standardises volumes (n, 1, *three axes) by mean and standard deviation of their voxels above 0; those at 0 become 0.

    Args:
        size: sides to resize to first (trilinear); None: keep them.
    """

    def __init__(self, size: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self._size = None if size is None else (int(size[0]), int(size[1]), int(size[2]))

    def forward(self, volumes: Tensor) -> Tensor:
        """The same shape, or (n, 1, *size)."""
        if volumes.ndim != 5:
            raise DataError(f"MedicalNetFeatures: expected 3D images (n, channels, *three axes), got shape {tuple(volumes.shape)}")
        if self._size is not None:
            volumes = functional.interpolate(volumes, size=self._size, mode="trilinear")
        inside = (volumes > 0).to(volumes)
        axes = (1, 2, 3, 4)
        count = inside.sum(axes, keepdim=True).clamp_min(1)
        mean = (volumes * inside).sum(axes, keepdim=True) / count
        centred = (volumes - mean) * inside
        # the root has no gradient at 0, where a volume is flat
        deviation = ((centred**2).sum(axes, keepdim=True) / count).clamp_min(1e-12).sqrt()
        return centred / deviation

    def extra_repr(self) -> str:
        """The size, which takes part in a fingerprint through it."""
        return f"size={self._size}"


class PaddedShortcut(nn.Module):
    """The shortcut of type A, strided and padded with zero channels. MONAI's detaches its input, so that gradients would miss it."""

    def __init__(self, *, planes: int, stride: int) -> None:
        super().__init__()
        self.planes, self.stride = planes, stride

    def forward(self, x: Tensor) -> Tensor:
        """Turns (n, c, *three axes) into (n, planes, *three axes / stride)."""
        strided = functional.avg_pool3d(x, kernel_size=1, stride=self.stride)
        return torch.cat([strided, strided.new_zeros(len(x), self.planes - x.shape[1], *strided.shape[2:])], 1)


def _monai() -> Any:
    # MONAI's networks take seconds to import
    return importlib.import_module("monai.networks.nets.resnet")


def _network(depth: int) -> nn.Module:
    resnet = _monai()
    bias, shortcut = resnet.get_medicalnet_pretrained_resnet_args(depth)
    make: Any = getattr(resnet, f"resnet{depth}")
    settings = {"spatial_dims": 3, "n_input_channels": 1, "feed_forward": False, "shortcut_type": shortcut, "bias_downsample": bias}
    network = build(lambda: make(pretrained=False, **settings))
    for part in network.modules():
        old = getattr(part, "downsample", None)
        if isinstance(old, partial):
            part.downsample = PaddedShortcut(planes=old.keywords["planes"], stride=old.keywords["stride"])
    return network


def _published(depth: int) -> dict[str, Tensor]:
    try:
        held = _monai().get_pretrained_resnet_medicalnet(depth)
    except Exception as error:  # the hub's client raises what its network library raises
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"MedicalNet {depth}: its weights cannot be had here ({reason}); download them and give `path`") from error
    return {name.removeprefix("module."): value for name, value in held.items()}
