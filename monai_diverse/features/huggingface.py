"""Vision networks of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from monai_diverse.devices import require_device
from monai_diverse.errors import DataError, MissingExtraError, RecipeError
from monai_diverse.features.module import ModuleFeatures
from monai_diverse.features.normalise import Normalise
from monai_diverse.features.planes import Planes
from monai_diverse.features.pretrained import build, import_optional

BICUBIC = 3
"""Pillow's number for it, which configurations hold."""


class HuggingFaceFeatures(ModuleFeatures):
    """The pooled features of a vision network of transformers; `pip install transformers`.

    Of models of images and texts (CLIP, SigLIP) the vision part is taken. The features are its `pooler_output` where its weights have one, else its
    last hidden state averaged over tokens or space. Weights are read from safetensors, and no code from the hub is run. Planes are
    resized whole to the size that the image processor ends with, then rescaled and normalised as it says.

    Args:
        folder: of a model as `save_pretrained` writes it, with `preprocessor_config.json`.
        model: or its name on the hub, such as `microsoft/rad-dino`; from the hub's cache alone where `HF_HUB_OFFLINE=1`.
        revision: commit, tag or branch of `model`; give a commit, so that it stays the same.
        slices: see `Planes`.
        slice_axis: see `Planes`.
        batch_size: planes at a time.
        device: where it runs.

    Raises:
        MissingExtraError: transformers does not import.
        RecipeError: not exactly one of `folder` and `model`.
        DataError: a model that cannot be read, lacks weights, or has no image processor.
    """

    def __init__(
        self,
        *,
        folder: str | Path | None = None,
        model: str | None = None,
        revision: str | None = None,
        slices: int = 8,
        slice_axis: int = 0,
        batch_size: int = 32,
        device: str = "cpu",
    ) -> None:
        if (folder is None) == (model is None):
            raise RecipeError(f"model: expected either a folder or a name on the hub, got folder={folder!r} and model={model!r}")
        where: dict[str, Any] = {"local_files_only": True} if folder is not None else {"revision": revision}
        origin = str(model if folder is None else folder)
        network, processor = _read(origin, where)
        channels = int(getattr(network.config, "num_channels", 3))
        super().__init__(
            _Vision(network).to(require_device(device)),
            preprocess=_normalise(processor, channels, origin),
            planes=Planes(slices=slices, slice_axis=slice_axis, channels=channels),
            batch_size=batch_size,
            name=f"huggingface-{type(network).__name__}" if model is None else f"huggingface-{model}",
        )


class _Vision(nn.Module):
    """A network of transformers that gives one tensor."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, planes: Tensor) -> Tensor:
        output = self.network(pixel_values=planes)
        pooled = getattr(output, "pooler_output", None)
        features: Tensor = output.last_hidden_state if pooled is None else pooled
        return features


def _read(origin: str, where: dict[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    transformers = import_optional("transformers", "HuggingFaceFeatures")
    found: list[Any] = []

    def make() -> nn.Module:
        found.extend(transformers.AutoModel.from_pretrained(origin, use_safetensors=True, output_loading_info=True, **where))
        loaded: nn.Module = found[0]
        return loaded

    try:
        network: Any = build(make)
        processor = transformers.AutoImageProcessor.from_pretrained(origin, **where).to_dict()
    except ImportError as error:
        reason = " ".join(str(error).split())[:300]
        raise MissingExtraError(f"HuggingFaceFeatures: transformers cannot load {origin} here ({reason}): install what it names") from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{origin}: expected a vision model with safetensors and an image processor, but it cannot be read ({reason})") from error
    missing = list(found[1]["missing_keys"])
    if hasattr(network, "vision_model"):
        network = network.vision_model
        missing = [name.removeprefix("vision_model.") for name in missing if name.startswith("vision_model.")]
    lacking = [name for name in missing if not name.startswith("pooler.")]
    if lacking:
        raise DataError(f"{origin}: expected all weights of a {type(network).__name__}, but it lacks {lacking[0]} and {len(lacking) - 1} others")
    if missing:
        network.pooler = None  # what was drawn at random for it would be another at every load
    return network, processor


def _normalise(processor: Mapping[str, Any], channels: int, origin: str) -> Normalise:
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    # the network's own scale is 255 x times this factor
    factor = 255 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0
    plain = not processor.get("do_normalize", True)
    mean, std = ((0.0,), (1.0,)) if plain else (tuple(processor["image_mean"]), tuple(processor["image_std"]))
    mean, std = (values if len(values) == channels else (sum(values) / len(values),) * channels for values in (mean, std))
    return Normalise(
        size=_sides(size, origin) if processor.get("do_resize", True) or processor.get("do_center_crop") else None,
        mean=[value / factor for value in mean],
        std=[value / factor for value in std],
        mode="bicubic" if processor.get("resample") == BICUBIC else "bilinear",
    )


def _sides(size: Any, origin: str) -> tuple[int, int]:
    """Height and width of a size as image processors state it: a number, height and width, or the shortest edge."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    raise DataError(f"{origin}: expected an image processor with a size (height and width, or shortest_edge), got {size!r}")
