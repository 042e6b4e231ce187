"""Chest X-ray networks of TorchXRayVision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from monai_diverse.devices import require_device
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features.module import ModuleFeatures
from monai_diverse.features.normalise import Normalise
from monai_diverse.features.planes import Planes
from monai_diverse.features.pretrained import build, import_optional, load_weights, read_weights


class TorchXRayVisionFeatures(ModuleFeatures):
    """The pooled features of a TorchXRayVision network trained on chest X-rays, before its classifier; `pip install torchxrayvision`.

    The networks take grey planes of values in [-1024, 1024] (Cohen et al. 2022, MIDL): x in [0, 1] becomes 2048 x - 1024. They saw
    bone bright and air dark.

    Args:
        weights: such as `densenet121-res224-all` (224 pixels, 1024 features) or `resnet50-res512-all` (512 pixels, 2048 features). The
            library reads its files with `pickle`, which can run code in them: they come from its authors' releases, or from `folder`.
        folder: where its weights lie, or are downloaded to; None: the library's own folder.
        path: file with a state dict of its DenseNet-121 instead, in `.safetensors` or of `torch.save`: nothing in it is run.
        slices: see `Planes`.
        slice_axis: see `Planes`.
        batch_size: planes at a time.
        device: where it runs.

    Raises:
        MissingExtraError: torchxrayvision, or torchvision that it needs, does not import.
        RecipeError: no such weights.
        DataError: weights that cannot be had or are another network's.
    """

    def __init__(
        self,
        *,
        weights: str = "densenet121-res224-all",
        folder: str | Path | None = None,
        path: str | Path | None = None,
        slices: int = 8,
        slice_axis: int = 0,
        batch_size: int = 32,
        device: str = "cpu",
    ) -> None:
        models: Any = import_optional("torchxrayvision.models", "TorchXRayVisionFeatures")
        known = [name for name in models.model_urls if name.startswith(("densenet", "resnet"))]
        if weights not in known:
            raise RecipeError(f"weights: expected one of {', '.join(known)}, got {weights!r}")
        network = _published(models, weights, folder) if path is None else _stored(models, path)
        side = models.model_urls[weights]["input_resolution"] if path is None else 224
        super().__init__(
            network.to(require_device(device)),
            preprocess=Normalise(size=(side, side), mean=(0.5,), std=(1 / 2048,)),
            planes=Planes(slices=slices, slice_axis=slice_axis, channels=1),
            batch_size=batch_size,
            name=f"torchxrayvision-{weights if path is None else 'densenet121'}",
        )


class _Pooled(nn.Module):
    """What the library's `features2` computes, without its printed warnings on images that are dark or of another size."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, planes: Tensor) -> Tensor:
        return functional.relu(self.features(planes)).mean((2, 3))


def _published(models: Any, weights: str, folder: str | Path | None) -> nn.Module:
    try:
        network = build(lambda: models.get_model(weights, cache_dir=None if folder is None else str(folder)))
    except Exception as error:  # the library raises what unpickling and downloading may raise, which is anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{weights}: its weights cannot be had here ({reason}); download them and give their `folder`") from error
    if weights.startswith("densenet"):
        return _Pooled(network.get_submodule("features"))
    network.get_submodule("model").fc = nn.Identity()
    return network.get_submodule("model")


def _stored(models: Any, path: str | Path) -> nn.Module:
    network = _Pooled(build(models.DenseNet).get_submodule("features"))
    load_weights(network, read_weights(path), path, beside=("classifier", "op_threshs"))
    return network
