"""A MONAI bundle folder as a source: its configuration and weights are read, its code is not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from monai_diverse.errors import DataError
from monai_diverse.sampling.condition import CADS, ClassifierFree
from monai_diverse.sources.bundle_code import TrustedConfig
from monai_diverse.sources.bundle_conditions import Conditions, TextEmbeddings, conditioning_of
from monai_diverse.sources.bundle_config import BundleConfig
from monai_diverse.sources.bundle_files import config_files, recipe_for, weights_file
from monai_diverse.sources.bundle_recipes import BundleRecipe
from monai_diverse.sources.bundle_weights import Checkpoint
from monai_diverse.sources.monai import MonaiSource
from monai_diverse.sources.precision import Precision


class BundleSource(MonaiSource):
    """Draws from a bundle of the MONAI model zoo, of NVIDIA's NV-Generate, or any other with a `BundleRecipe`.

    Network, autoencoder and scheduler are made from the bundle's configuration, of MONAI's own classes only; weights are read as plain tensors
    (.pt, .pth, .safetensors; checkpoints of GenerativeModels too). Python in the configuration (`$...`) is not run, beyond arithmetic.

    A class is a condition that the network is told. Without `conditions` there is one, with the values of the bundle's configuration:

        BundleSource("brain_image_synthesis_latent_diffusion_model", conditions={"young": {"age": 0.1}, "old": {"age": 0.9}})
        BundleSource("NV-Generate-CTMR", "nv_generate_mr", conditions={"T1": {"modality": "mri_t1"}, "T2": {"modality": "mri_t2"}})
        BundleSource("cxr_image_synthesis_latent_diffusion_model", embeddings="findings.safetensors")

    Args:
        bundle_dir: the folder, with configs/ and models/.
        recipe: how to read it: a `BundleRecipe`, or the name of one in `RECIPES`. None: recognised by the folder's name, metadata or files.
        trust_code: run the code in its configuration and scripts, for bundles with networks of their own. Weights are plain tensors still.
        conditions: by class: what it says of the recipe's keys; keys that it leaves out keep the bundle's values.
        embeddings: of texts, for bundles that are told one: `.safetensors` with a tensor (tokens, dim) a class, and one named `null`.
        text_encoder: folder of the CLIP model (`tokenizer/`, `text_encoder/`) that computes them; needs transformers.
        sample_shape: (c, *spatial) of what the network sees, where the bundle's own size does not suit; images change alike.
        guidance: classifier-free guidance; None for the bundle's own.
        cads: noises conditions at first, so that samples of one class spread; None for never.
        sampler: see `MonaiSource`, as all that follow.
        karras: see `MonaiSource`.
        steps: see `MonaiSource`.
        batch_size: see `MonaiSource`.
        device: see `MonaiSource`.
        precision: see `MonaiSource`.
        name: for reports; None for the recipe's.
        licence: of the training data; None for the recipe's.
        mirrored: whether it was trained on mirrored images too.

    Attributes:
        recipe: how it was read.
        intensity: what 0 and 1 in its images mean, and the unit, such as (-1000, 1000, "HU"); None where they have none.

    Raises:
        DataError: not a bundle, missing or foreign weights, pickled code in them.
        RecipeError: a bundle that needs a recipe, or its code; conditions that it does not know.
        MissingExtraError: `text_encoder` without transformers.
    """

    def __init__(
        self,
        bundle_dir: Path | str,
        recipe: BundleRecipe | str | None = None,
        *,
        trust_code: bool = False,
        conditions: Conditions | None = None,
        embeddings: Path | str | None = None,
        text_encoder: Path | str | None = None,
        sample_shape: Sequence[int] | None = None,
        guidance: ClassifierFree | None = None,
        cads: CADS | None = None,
        sampler: str = "DPMSolverMultistepScheduler",
        karras: bool | None = None,
        steps: int | None = None,
        batch_size: int | None = 64,
        device: str = "cpu",
        precision: Precision | None = None,
        name: str | None = None,
        licence: str | None = None,
        mirrored: bool = False,
    ) -> None:
        folder = Path(bundle_dir).resolve()
        self.recipe = chosen = recipe_for(folder, recipe)
        self.intensity = chosen.intensity
        config = (TrustedConfig if trust_code else BundleConfig)(folder, config_files(folder, chosen))
        fitting = _fitting(device, precision or Precision())
        unet = config.build(chosen.network, fitting, chosen.stand_ins)
        checkpoint = Checkpoint.read(weights_file(config, chosen.network_weights))
        checkpoint.load_into(unet)
        autoencoder = _autoencoder(chosen, config, fitting)
        guided = guidance or ClassifierFree(scale=_scale_of_guidance(chosen, config))
        texts = TextEmbeddings(embeddings, text_encoder)
        conditioning, names = conditioning_of(chosen.inputs, unet, config, conditions, texts, guided=guided.scale != 1.0)
        super().__init__(
            unet,
            config.build(chosen.scheduler, {}, chosen.stand_ins),
            sample_shape=_sample_shape(chosen, config, unet) if sample_shape is None else sample_shape,
            autoencoder=autoencoder,
            scale_factor=_scale_factor(chosen, config, checkpoint),
            conditioning=conditioning,
            prediction_type=chosen.prediction_type,
            output_range=chosen.output_range,
            guidance=guided,
            cads=cads,
            sampler=sampler,
            karras=karras,
            steps=steps,
            batch_size=batch_size,
            device=device,
            precision=precision,
            name=name or chosen.name,
            licence=licence or chosen.licence,
            mirrored=mirrored,
            class_names=names,
        )


class WindowedAutoencoder(nn.Module):
    """An autoencoder that decodes large latents in overlapping windows, blended with Gaussian weights, so that memory stays bounded."""

    def __init__(self, autoencoder: nn.Module, window: Sequence[int], overlap: float) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self._window, self.overlap = tuple(window), overlap
        self.windows = repr(self._window)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The autoencoder's own, at once."""
        encoded: tuple[Tensor, Tensor] = self.autoencoder.encode(images)
        return encoded

    def decode_stage_2_outputs(self, latents: Tensor) -> Tensor:
        """Latents (n, c, *spatial) to images."""
        window = [min(limit, side) for limit, side in zip(self._window, latents.shape[2:], strict=True)]
        decode = self.autoencoder.decode_stage_2_outputs
        # a dry run on tensors without storage asks for the shape alone
        whole = isinstance(latents, FakeTensor) or tuple(window) == tuple(latents.shape[2:])
        images: Tensor = decode(latents) if whole else sliding_window_inference(latents, window, 1, decode, self.overlap, mode="gaussian")
        return images


def _fitting(device: str, precision: Precision) -> Mapping[str, bool]:
    """Switches of networks that depend on where they run, not on how they were trained."""
    return {"use_flash_attention": torch.device(device).type == "cuda", "norm_float16": precision.autocast == "float16"}


def _autoencoder(recipe: BundleRecipe, config: BundleConfig, fitting: Mapping[str, bool]) -> nn.Module | None:
    if recipe.autoencoder is None:
        return None
    autoencoder = config.build(recipe.autoencoder, fitting, recipe.stand_ins)
    Checkpoint.read(weights_file(config, recipe.autoencoder_weights)).load_into(autoencoder)
    return autoencoder if recipe.window is None else WindowedAutoencoder(autoencoder, recipe.window, recipe.overlap)


def _scale_of_guidance(recipe: BundleRecipe, config: BundleConfig) -> float:
    scale = config.value(recipe.guidance) if isinstance(recipe.guidance, str) else recipe.guidance
    # NV-Generate writes 0 for no guidance
    return _number(scale, f"{recipe.guidance}") or 1.0


def _scale_factor(recipe: BundleRecipe, config: BundleConfig, checkpoint: Checkpoint) -> float | Tensor:
    scale: Any = recipe.scale_factor
    if isinstance(scale, str):
        scale = checkpoint.others[scale] if scale in checkpoint.others else _configured_scale(scale, config, checkpoint)
    if isinstance(scale, Tensor) and scale.numel() > 1:
        return torch.Tensor(scale.float())
    return _number(scale, "scale_factor")


def _configured_scale(key: str, config: BundleConfig, checkpoint: Checkpoint) -> Any:
    if key in config and not str(config.raw(key)).startswith("$"):
        return config.value(key)
    raise DataError(
        f"{checkpoint.path}: expected {key} beside the weights, got {', '.join(map(str, checkpoint.others)) or 'nothing'}; "
        f"give a recipe with the number as scale_factor"
    )


def _sample_shape(recipe: BundleRecipe, config: BundleConfig, unet: Any) -> tuple[int, ...]:
    shape = recipe.sample_shape
    if shape is None:
        size = config.value(recipe.image_size)
        return (int(unet.in_channels), *(int(side) // recipe.shrink for side in _listed(size, recipe.image_size)))
    if isinstance(shape, str):
        value = config.value(shape)
        return tuple(value.shape[1:]) if isinstance(value, Tensor) else tuple(int(side) for side in _listed(value, shape))
    return shape


def _listed(value: Any, key: str) -> list[int]:
    if not isinstance(value, list | tuple) or not all(isinstance(side, int) for side in value):
        raise DataError(f"{key}: expected a list of sides, got {value!r}")
    return list(value)


def _number(value: Any, key: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{key}: expected a number, got {value!r}") from error
