"""The features of the published filter of diverse samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_diverse.devices import require_device
from monai_diverse.errors import DataError
from monai_diverse.features.module import ModuleFeatures
from monai_diverse.features.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from monai_diverse.features.planes import Planes
from monai_diverse.features.pretrained import build, import_optional, load_weights, read_weights


class SqueezeNetLogits(ModuleFeatures):
    """All 1000 ImageNet logits of torchvision's SqueezeNet 1.1, for planes of 224 x 224 pixels; `pip install torchvision`.

    Classes of photographs say little of medical images: this is for reproducing the published filter, not for judging.

    Args:
        path: file with torchvision's weights (`squeezenet1_1-*.pth`); None: torchvision's own download or its cache.
        slices: see `Planes`.
        slice_axis: see `Planes`.
        batch_size: planes at a time.
        device: where it runs.

    Raises:
        MissingExtraError: torchvision does not import.
        DataError: weights that cannot be had or are another network's.
    """

    def __init__(self, *, path: str | Path | None = None, slices: int = 8, slice_axis: int = 0, batch_size: int = 64, device: str = "cpu") -> None:
        models: Any = import_optional("torchvision.models", "SqueezeNetLogits")
        network = build(lambda: models.squeezenet1_1(weights=None))
        if path is None:
            try:
                weights = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
            except (OSError, RuntimeError) as error:
                raise DataError(f"squeezenet1_1: its weights cannot be had here ({error}); download them and give `path`") from error
        else:
            weights = read_weights(path)
        load_weights(network, weights, "torchvision" if path is None else path)
        super().__init__(
            network.to(require_device(device)),
            preprocess=Normalise(size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD),
            planes=Planes(slices=slices, slice_axis=slice_axis),
            batch_size=batch_size,
            name="squeezenet1_1-logits",
        )
