"""Networks of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from monai_diverse.devices import require_device
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features.module import ModuleFeatures
from monai_diverse.features.normalise import Normalise
from monai_diverse.features.planes import Planes
from monai_diverse.features.pretrained import build, import_optional, load_weights, read_weights


class TimmFeatures(ModuleFeatures):
    """The pooled features of a timm network, before its classifier; `pip install timm`.

    Planes are resized whole to the network's input and normalised with its mean and standard deviation, as timm's configuration of it says.

    Args:
        model: its name, such as `resnet18.a1_in1k`; see `timm.list_models()`.
        path: file with its weights: `.safetensors`, or a state dict of `torch.save`; None: timm's own, from the hub or its cache.
        in_chans: channels that the network takes, as in `timm.create_model`.
        size: side in pixels to which planes are resized; None: what the network was trained with.
        slices: see `Planes`.
        slice_axis: see `Planes`.
        batch_size: planes at a time.
        device: where it runs.

    Raises:
        MissingExtraError: timm, or torchvision that it needs, does not import.
        RecipeError: no such model, or a size that it does not take.
        DataError: weights that cannot be had or are another network's.
    """

    def __init__(
        self,
        model: str,
        *,
        path: str | Path | None = None,
        in_chans: int = 3,
        size: int | None = None,
        slices: int = 8,
        slice_axis: int = 0,
        batch_size: int = 64,
        device: str = "cpu",
    ) -> None:
        timm = import_optional("timm", "TimmFeatures")
        if not timm.is_model(model):
            raise RecipeError(f"model: expected one of timm's, such as 'resnet18.a1_in1k', got {model!r}; see timm.list_models()")
        network: Any = _with_weights(timm, model, path, in_chans)
        given = timm.data.resolve_model_data_config(network)
        sides = tuple(given["input_size"][1:])
        if size is not None and size != max(sides) and network.pretrained_cfg.get("fixed_input_size"):
            raise RecipeError(f"size: {model} takes planes of {sides} only, got {size}")
        mean, std = (values if len(values) == in_chans else [sum(values) / len(values)] * in_chans for values in (given["mean"], given["std"]))
        super().__init__(
            network.to(require_device(device)),
            preprocess=Normalise(
                size=sides if size is None else (size, size),
                mean=mean,
                std=std,
                mode="bicubic" if given["interpolation"] == "bicubic" else "bilinear",
            ),
            planes=Planes(slices=slices, slice_axis=slice_axis, channels=in_chans),
            batch_size=batch_size,
            name=f"timm-{model}",
        )


def _with_weights(timm: Any, model: str, path: str | Path | None, in_chans: int) -> nn.Module:
    try:
        network: Any = build(lambda: timm.create_model(model, pretrained=path is None, num_classes=0, in_chans=in_chans))
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{model}: its weights cannot be had here ({' '.join(str(error).split())[:200]}); download them and give `path`") from error
    if path is not None:
        classifier = network.pretrained_cfg["classifier"]
        load_weights(network, read_weights(path), path, beside=[classifier] if isinstance(classifier, str) else classifier)
    filled: nn.Module = network
    return filled
