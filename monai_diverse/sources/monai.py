"""MONAI's diffusion networks, pixel or latent, 2D or 3D, as a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isinf
from typing import Any

import torch
from torch import Tensor, nn

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.condition import CADS, ClassifierFree
from monai_diverse.sources.conditioning import Conditioning, Null
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.sources.latent import Latent
from monai_diverse.sources.monai_checks import SWITCHED_INPUTS, check_inputs, shape_of
from monai_diverse.sources.monai_schedules import AnyScheduler, TrainedWith, trained_with
from monai_diverse.sources.precision import Precision
from monai_diverse.sources.weights import hash_of_tensors
from monai_diverse.storage import fingerprint_of

STEPS = 20
LARGEST_TRIED = 64
"""Sides of latents to which the autoencoder's check is cut: MAISI's collects garbage after every layer above 500 voxels."""


class MonaiSource(DiffusionSource):
    """Draws from a `DiffusionModelUNet`, its MAISI and SPADE kin, or any module called alike, with or without an autoencoder.

    The scheduler says how the network was trained: its betas or flow, what it predicts, whether and where it clips. How to sample is `sampler`'s
    matter: MONAI's own DDPM is wrong with fewer steps than it was trained on. An unconditional `MonaiSource(unet, sample_shape=(1, 64, 64))`
    assumes MONAI's `DDPMScheduler()`. The modules are taken over, see `DiffusionSource`.

    Args:
        unet: called as unet(x, timesteps, context=..., class_labels=..., ...), with the inputs that it was built for.
        scheduler: of the training: MONAI's DDPMScheduler, DDIMScheduler, PNDMScheduler or RFlowScheduler, a scheduler of diffusers, or a
            `NoiseSchedule`. None: MONAI's defaults, `RFlowScheduler()` if the prediction type is a flow's, else `DDPMScheduler()`.
        sample_shape: (c, *spatial) that the network denoises: of images, or of latents.
        autoencoder: an `AutoencoderKL`, `AutoencoderKlMaisi` or `VQVAE`; None for a pixel model. Images are encoded to the mean, not to a draw.
        scale_factor: the network sees latents times this, a number or one a channel; with MAISI it lies in the checkpoint.
        conditioning: what the network is told by class: `class_labels` (classes,), `context` (classes, tokens, dim) for cross-attention,
            `concat` (classes, channels) or (classes, channels, *spatial), in any combination; or any other input of the network, one row a class.
        null: what stands for no condition, by the same names: a label, an embedding or a fill value. Needed for guidance.
        prediction_type: where the scheduler does not say it: epsilon, v_prediction, sample, rflow (x0 - eps, as MONAI's flows) or flow (eps - x0).
        output_range: values of black and white in the model's images, before encoding: what its training transforms scaled to. A pixel model's
            predictions are clipped to it, and to the scheduler's bounds; not if the scheduler has clip_sample=False. Latents are never clipped.
        extra_inputs: what the network is told of every image, (1, ...), by name: `spacing_tensor`, `top_region_index_tensor` and
            `bottom_region_index_tensor` of MAISI, in its units (spacing in mm times 100, region one-hot times 100), or `seg` of a SPADE network.
            What differs by class goes to `conditioning` under the same name.
        autoencoder_latent_shape: spatial shape of the autoencoder's latents where the network sees them padded.
        guidance: classifier-free guidance; its null is `null`.
        cads: noises conditions at first, so that samples of one class spread; None for never.
        sampler: diffusers scheduler to sample with, one of `sampling.SCHEDULERS`.
        karras: see `DiffusionSource`, as all that follow.
        steps: None: as many as `scheduler.set_timesteps` chose, if it did; else 20, or all of a shorter training schedule.
        batch_size: images at a time; None to find the largest that fits on CUDA.
        device: where to compute.
        precision: float32 where None, not channels-last: torch's GroupNorm on the CPU loses digits in that layout where channels are far
            from zero mean, which untested networks may have. An AutoencoderKlMaisi with norm_float16 needs autocast="float16".
        name: for reports; None for the network's class.
        licence: of the data that the model was trained on.
        mirrored: whether it was trained on mirrored images too.
        class_names: names of the classes.

    Raises:
        DataError: networks, shapes and inputs that do not fit each other; found by a dry run that computes nothing.
        RecipeError: a setting out of range or contradicting the scheduler; guidance without null; a MAISI network without scheduler.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: AnyScheduler | None = None,
        *,
        sample_shape: Sequence[int],
        autoencoder: nn.Module | None = None,
        scale_factor: float | Tensor = 1.0,
        conditioning: Conditioning | Mapping[str, Tensor] | None = None,
        null: Mapping[str, Null] | None = None,
        prediction_type: str | None = None,
        output_range: tuple[float, float] = (0.0, 1.0),
        extra_inputs: Mapping[str, Tensor] | None = None,
        autoencoder_latent_shape: Sequence[int] | None = None,
        guidance: ClassifierFree | None = None,
        cads: CADS | None = None,
        sampler: str = "DPMSolverMultistepScheduler",
        karras: bool | None = None,
        steps: int | None = None,
        batch_size: int | None = 64,
        device: str = "cpu",
        precision: Precision | None = None,
        name: str | None = None,
        licence: str = "unknown",
        mirrored: bool = False,
        class_names: Sequence[str] = (),
    ) -> None:
        shape, precision = _checked_shape(sample_shape), precision or Precision()
        told, extra = _told(conditioning, null), {key: torch.as_tensor(value) for key, value in (extra_inputs or {}).items()}
        trained = _trained_with(unet, scheduler, shape, prediction_type)
        precision = replace(precision, channels_last=bool(precision.channels_last))
        network = _network(unet, shape, told, extra, trained, precision)
        latent = _latent(autoencoder, shape, scale_factor, autoencoder_latent_shape)
        clip = _clip(trained, output_range) if latent is None else None
        identity = [_identity(unet), hash_of_tensors(extra), None if autoencoder is None else _identity(autoencoder), clip]
        super().__init__(
            network,
            trained.schedule,
            shape=shape if latent is None or autoencoder is None else _image_shape(autoencoder, latent, precision),
            prediction_type=trained.prediction_type,
            conditioning=told,
            latent=latent,
            output_range=output_range,
            guidance=guidance,
            cads=cads,
            scheduler=sampler,
            karras=karras,
            steps=trained.steps or min(STEPS, len(trained.schedule)) if steps is None else steps,
            batch_size=batch_size,
            device=device,
            precision=precision,
            name=name or type(unet).__name__,
            licence=licence,
            mirrored=mirrored,
            class_names=class_names,
            identity=identity,
        )
        self._denoiser.clip = clip


class _Network(nn.Module):
    """A MONAI network as a `Network`: given what is the same for all images, and without the variance that it may predict too."""

    def __init__(self, unet: nn.Module, extra: Mapping[str, Tensor], channels: int) -> None:
        super().__init__()
        self.unet, self._names, self._channels = unet, tuple(extra), channels
        for name, value in extra.items():
            self.register_buffer(f"extra_{name}", value, persistent=False)

    def forward(self, x: Tensor, timesteps: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        extra = {name: getattr(self, f"extra_{name}") for name in self._names}
        out: Tensor = self.unet(x, timesteps, **rows, **{name: value.expand(len(x), *value.shape[1:]) for name, value in extra.items()})
        return out[:, : self._channels]


class _Encoder(nn.Module):
    """The autoencoder's latents of images: the mean of a variational one, the codebook's entries of a VQVAE."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    def forward(self, images: Tensor) -> Tensor:
        quantized = hasattr(self.autoencoder, "quantize")
        latents: Tensor = self.autoencoder.encode_stage_2_inputs(images) if quantized else self.autoencoder.encode(images)[0]
        return latents


class _Decoder(nn.Module):
    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.autoencoder.decode_stage_2_outputs(latents)
        return images


def _checked_shape(sample_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(side) for side in sample_shape)
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(f"sample_shape: expected (c, *spatial) in two or three dimensions, without the batch, got {shape}")
    return shape


def _told(conditioning: Conditioning | Mapping[str, Tensor] | None, null: Mapping[str, Null] | None) -> Conditioning:
    if isinstance(conditioning, Conditioning):
        if null is not None:
            raise RecipeError("null: expected it inside the Conditioning that was given, got one beside it; leave one of them out")
        return conditioning
    rows = {name: torch.as_tensor(value) for name, value in (conditioning or {}).items()}
    # embeddings take whole numbers only, and of some types only
    if "class_labels" in rows and not rows["class_labels"].is_floating_point():
        rows["class_labels"] = rows["class_labels"].long()
    return Conditioning(rows, null)


def _trained_with(unet: nn.Module, scheduler: AnyScheduler | None, shape: tuple[int, ...], prediction_type: str | None) -> TrainedWith:
    if scheduler is None and prediction_type is None and any(hasattr(unet, switch) for switch in SWITCHED_INPUTS):
        raise RecipeError(
            "scheduler: expected that of the training, as MAISI networks come from DDPMScheduler and from RFlowScheduler, got none; give it"
        )
    return trained_with(scheduler, shape[1:], prediction_type)


def _network(
    unet: Any, shape: tuple[int, ...], told: Conditioning, extra: Mapping[str, Tensor], trained: TrainedWith, precision: Precision
) -> _Network:
    """The network, once a dry run has shown that it takes what it will be given.

    Raises:
        DataError: it does not.
    """
    check_inputs(unet, shape, told, extra)
    channels = shape[0] * (2 if trained.learned_variance else 1)
    if getattr(unet, "out_channels", channels) != channels:
        raise DataError(f"unet: expected {channels} output channels for sample_shape {shape}, got {unet.out_channels}")
    network = _Network(unet.eval(), extra, shape[0])
    rows = told.rows(torch.zeros(2, dtype=torch.long))
    concat = rows.pop("concat", None)
    seen = (2, shape[0] + (0 if concat is None else concat.shape[1]), *shape[1:])
    out = shape_of(network, precision, "unet", seen, torch.zeros(2), rows)
    if out != (2, *shape):
        raise DataError(f"unet: expected a prediction of sample_shape {shape}, got {out[1:]}")
    return network


def _latent(autoencoder: nn.Module | None, shape: tuple[int, ...], scale_factor: float | Tensor, inner: Sequence[int] | None) -> Latent | None:
    if autoencoder is None:
        if inner is not None or not bool((torch.as_tensor(scale_factor) == 1).all()):
            raise RecipeError("scale_factor, autoencoder_latent_shape: expected an autoencoder with them, got none; leave them out for pixels")
        return None
    return Latent(
        autoencoder=autoencoder.eval(),
        encoder=_Encoder(autoencoder),
        decoder=_Decoder(autoencoder),
        shape=shape,
        autoencoder_shape=None if inner is None else tuple(int(side) for side in inner),
        scale_factor=scale_factor,
    )


def _image_shape(autoencoder: nn.Module, latent: Latent, precision: Precision) -> tuple[int, ...]:
    """What the autoencoder makes of latents, tried on a smaller piece of large ones: it is convolutional."""
    if "float16" not in (precision.dtype, precision.autocast) and any(getattr(part, "norm_float16", False) for part in autoencoder.modules()):
        raise RecipeError(f"precision: expected Precision(autocast='float16') for an autoencoder with norm_float16, got {precision}; give it")
    inner = latent.autoencoder_shape or latent.shape[1:]
    tried = [min(side, LARGEST_TRIED) for side in inner]
    _, channels, *sides = shape_of(_Decoder(autoencoder), precision, "autoencoder", (1, latent.shape[0], *tried))
    return (channels, *(side * whole // part for side, whole, part in zip(sides, inner, tried, strict=True)))


def _clip(trained: TrainedWith, output_range: tuple[float, float]) -> tuple[float, float] | None:
    """What both the scheduler and the range allow; None if the scheduler is told not to clip."""
    low, high = trained.clip or output_range
    if isinf(low):
        return None
    low, high = max(low, output_range[0]), min(high, output_range[1])
    if output_range[0] < output_range[1] and low >= high:
        raise RecipeError(f"output_range: expected one that the scheduler's clipping {trained.clip} leaves something of, got {output_range}")
    return low, high


def _identity(module: nn.Module) -> str:
    """SHA-256 over the weights, and over all plain numbers and names in the modules: two attention heads and four have equal weights.

    Not over how they compute the same: flash attention is for GPUs alone, and a device is no part of what a source is.
    """
    plain = {
        f"{path}.{key}": repr(value)
        for path, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, (bool, int, float, str)) and not key.startswith("_") and key not in ("training", "use_flash_attention")
    }
    return fingerprint_of([type(module).__name__, hash_of_tensors(module.state_dict()), plain])
