"""A diffusers pipeline or folder as a source: UNets with or without classes, DiT transformers, latent models with their autoencoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from monai_diverse.errors import DataError
from monai_diverse.sampling.condition import CADS, ClassifierFree
from monai_diverse.sampling.schedule import NoiseSchedule
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.sources.latent import Latent
from monai_diverse.sources.precision import Precision
from monai_diverse.sources.weights import hash_of_tensors
from monai_diverse.storage import read_json

MODEL = "model.json"
_INPUTS = {
    "UNet2DModel": ("class_labels", "concat"),
    "UNet2DConditionModel": ("context", "class_labels", "concat"),
    "DiTTransformer2DModel": ("class_labels",),
}
NETWORKS = tuple(_INPUTS)
AUTOENCODERS = ("AutoencoderKL", "VQModel")


class DiffusersSource(DiffusionSource):
    """Draws from a pipeline of diffusers, in pixels or latents.

    The network is a `UNet2DModel`, a `DiTTransformer2DModel` or a `UNet2DConditionModel` (its text embeddings given as `conditioning`); the
    autoencoder of a latent model an `AutoencoderKL` or a `VQModel`; the scheduler any of diffusers' that stores betas or a flow.

    A class-conditional network with more embeddings than classes has its last one as the null class: a DiT always, a UNet where `model.json`,
    which `monai-diverse train` writes, says how many classes there are. Without that file every embedding of a UNet is a class.

    A latent of a `VQModel` that lies between two codes may fall to either by its last bit: there an image may depend on its batch.

    Args:
        folder: written by `save_pretrained` or by `monai-diverse train`: `unet/` or `transformer/`, `scheduler/`, and of a latent model `vae/`
            or `vqvae/`, all as safetensors; or a pipeline object, whose modules are taken over.
        conditioning: what the network is told by class, in place of what its embeddings say; see `Conditioning`.
        guidance: see `DiffusionSource`, as all that follow.
        cads: noises conditions at first; None for never.
        scheduler: diffusers scheduler to sample with.
        karras: space the steps as Karras et al. (2022) do.
        steps: inference steps where `sample` is not told otherwise.
        batch_size: images at a time; None to find the largest that fits on CUDA.
        device: where to compute.
        precision: float32 where None.

    Raises:
        DataError: not such a folder or pipeline, or weights that do not fit.
        RecipeError: unknown scheduler, or guidance without a null class.
    """

    def __init__(
        self,
        folder: Path | str | diffusers.DiffusionPipeline,
        *,
        conditioning: Conditioning | None = None,
        guidance: ClassifierFree | None = None,
        cads: CADS | None = None,
        scheduler: str = "DPMSolverMultistepScheduler",
        karras: bool | None = None,
        steps: int = 20,
        batch_size: int | None = 64,
        device: str = "cpu",
        precision: Precision | None = None,
    ) -> None:
        parts = _of_pipeline(folder) if isinstance(folder, diffusers.DiffusionPipeline) else _of_folder(Path(folder))
        conditioning = _conditioning(parts) if conditioning is None else _checked(conditioning, parts)
        concat = conditioning.inputs.get("concat")
        patch = _patch(parts)
        channels = parts.network.config.in_channels // patch**2 - (0 if concat is None else concat.shape[1])
        seen = (channels, *(side * patch for side in _sides(parts)))
        latent = None if parts.autoencoder is None else _latent(parts, seen)
        schedule = NoiseSchedule.from_diffusers(parts.schedule)
        super().__init__(
            _Network(parts.network, channels, patch),
            schedule,
            shape=seen if latent is None else _image_shape(parts.autoencoder, seen),
            prediction_type="flow" if schedule.flow else parts.schedule.get("prediction_type", "epsilon"),
            conditioning=conditioning,
            latent=latent,
            guidance=guidance,
            cads=cads,
            scheduler=scheduler,
            karras=karras,
            steps=steps,
            batch_size=batch_size,
            device=device,
            precision=precision,
            name=str(parts.described.get("name", parts.name)),
            licence=str(parts.described.get("licence", "unknown")),
            mirrored=bool(parts.described.get("mirror", False)),
            class_names=tuple(parts.described.get("class_names", ())),
            identity=[*(_identity(module) for module in (parts.network, parts.autoencoder) if module is not None), *([patch] if patch > 1 else [])],
        )


@dataclass(frozen=True)
class _Parts:
    """What a pipeline consists of, and what `model.json` says of it."""

    name: str
    network: Any
    autoencoder: Any
    schedule: dict[str, Any]
    described: dict[str, Any]


class _Network(nn.Module):
    """A diffusers network as a `Network`; squares of `patch` pixels are channels to it; variances that it predicts too are left out."""

    def __init__(self, model: nn.Module, channels: int, patch: int) -> None:
        super().__init__()
        self.model, self._channels, self._patch = model, channels, patch

    def forward(self, x: Tensor, timesteps: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        given = {"encoder_hidden_states" if name == "context" else name: row for name, row in rows.items()}
        out: Tensor = self.model(functional.pixel_unshuffle(x, self._patch), timesteps, **given).sample
        return functional.pixel_shuffle(out, self._patch)[:, : self._channels]


def _of_pipeline(pipeline: Any) -> _Parts:
    name = type(pipeline).__name__
    parts = pipeline.components
    network, autoencoder = parts.get("unet") or parts.get("transformer"), parts.get("vae") or parts.get("vqvae")
    scheduler = parts.get("scheduler")
    if network is None or scheduler is None:
        raise DataError(f"{name}: expected a pipeline with a unet or transformer and a scheduler, got {', '.join(parts) or 'nothing'}")
    for module, known in ((network, NETWORKS), (autoencoder, AUTOENCODERS)):
        if module is not None:
            _require_known(type(module).__name__, known, name)
    return _Parts(name, network, autoencoder, {**scheduler.config, "_class_name": type(scheduler).__name__}, {})


def _of_folder(folder: Path) -> _Parts:
    network = _first(folder, "unet", "transformer")
    autoencoder = next((folder / name for name in ("vae", "vqvae") if (folder / name).is_dir()), None)
    schedule = folder / "scheduler" / "scheduler_config.json"
    for file in (network / "config.json", schedule):
        if not file.is_file():
            raise DataError(
                f"{folder}: expected a diffusers folder with unet/ or transformer/ and scheduler/, but {file.relative_to(folder)} is missing"
            )
    return _Parts(
        name=folder.name,
        network=_load(network, NETWORKS),
        autoencoder=None if autoencoder is None else _load(autoencoder, AUTOENCODERS),
        schedule=read_json(schedule),
        described=_described(folder),
    )


def _first(folder: Path, *names: str) -> Path:
    return next((folder / name for name in names if (folder / name).is_dir()), folder / names[0])


def _described(folder: Path) -> dict[str, Any]:
    described = read_json(folder / MODEL) if (folder / MODEL).is_file() else {}
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    labels = index.get("id2label")
    if isinstance(labels, dict) and "class_names" not in described:
        described["class_names"] = [str(labels[key]) for key in sorted(labels, key=int)]
    return described


def _require_known(kind: str, known: tuple[str, ...], where: str | Path) -> None:
    if kind not in known:
        raise DataError(f"{where}: expected {' or '.join(known)}, got {kind}")


def _load(folder: Path, known: tuple[str, ...]) -> Any:
    # a configuration that is no JSON is told as what it is: a broken copy
    try:
        kind = str(read_json(folder / "config.json").get("_class_name"))
        _require_known(kind, known, folder)
        module, loading = getattr(diffusers, kind).from_pretrained(
            folder, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder}: the model cannot be loaded ({error}); is it a complete copy with safetensors?") from error
    wrong = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise DataError(f"{folder}: expected the weights of its own configuration, but {len(wrong)} tensors differ, first {wrong[0]}")
    return module


def _embeddings(parts: _Parts) -> int | None:
    """How many labels the network has embeddings for; None if it takes no label, or vectors in their place."""
    config = parts.network.config
    if _kind(parts) == "DiTTransformer2DModel":
        return int(config.num_embeds_ada_norm) + 1
    return None if config.class_embed_type is not None or config.num_class_embeds is None else int(config.num_class_embeds)


def _kind(parts: _Parts) -> str:
    return type(parts.network).__name__


def _conditioning(parts: _Parts) -> Conditioning:
    kind, embeddings = _kind(parts), _embeddings(parts)
    if kind == "UNet2DConditionModel" or (embeddings is None and parts.network.config.class_embed_type is not None):
        raise DataError(f"{parts.name}: expected conditioning for a {kind}, such as context rows (classes, tokens, dim), got none; give it")
    if embeddings is None:
        return Conditioning()
    known = embeddings - 1 if kind == "DiTTransformer2DModel" else embeddings
    classes = int(parts.described.get("classes", known))
    if not 1 <= classes <= embeddings:
        raise DataError(f"{parts.name}: expected 1..{embeddings} classes, as the network has embeddings, got {classes} in {MODEL}")
    return Conditioning({"class_labels": torch.arange(classes)}, {"class_labels": embeddings - 1} if embeddings > classes else None)


def _checked(conditioning: Conditioning, parts: _Parts) -> Conditioning:
    kind, embeddings, inputs = _kind(parts), _embeddings(parts), conditioning.inputs
    if not inputs.keys() <= set(_INPUTS[kind]):
        raise DataError(f"conditioning: expected of {', '.join(_INPUTS[kind])} for a {kind}, got {', '.join(inputs)}")
    if "context" in inputs and inputs["context"].shape[1:][-1:] != (parts.network.config.cross_attention_dim,):
        dimension = parts.network.config.cross_attention_dim
        raise DataError(f"conditioning: expected context (classes, tokens, {dimension}), got {tuple(inputs['context'].shape)}")
    if "class_labels" in inputs and embeddings is not None:
        labels = [*inputs["class_labels"].flatten().tolist(), *([int(v)] if (v := (conditioning.null or {}).get("class_labels")) is not None else [])]
        if min(labels) < 0 or max(labels) >= embeddings:
            raise DataError(f"conditioning: expected class_labels 0..{embeddings - 1}, the null among them, got {min(labels)}..{max(labels)}")
    return conditioning


def _patch(parts: _Parts) -> int:
    patch, channels = parts.described.get("patch", 1), parts.network.config.in_channels
    if not isinstance(patch, int) or patch < 1 or channels % patch**2:
        raise DataError(f"{parts.name}: expected a patch whose square divides the network's {channels} channels, got {patch!r} in {MODEL}")
    return patch


def _sides(parts: _Parts) -> tuple[int, int]:
    size = parts.network.config.sample_size
    if size is None:
        raise DataError(f"{parts.name}: expected sample_size in the network's configuration, got none; write it there")
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _latent(parts: _Parts, seen: tuple[int, ...]) -> Latent:
    module, config = parts.autoencoder, parts.autoencoder.config
    if config.latent_channels != seen[0]:
        raise DataError(f"{parts.name}: expected an autoencoder with the network's {seen[0]} latent channels, got {config.latent_channels}")
    variational = isinstance(module, diffusers.AutoencoderKL)
    return Latent(
        autoencoder=module,
        encoder=lambda x: module.encode(x).latent_dist.mean if variational else module.encode(x).latents,
        decoder=lambda z: module.decode(z).sample,
        shape=seen,
        scale_factor=config.scaling_factor,
        shift=config.get("shift_factor") or 0.0,
    )


def _image_shape(autoencoder: Any, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    return (autoencoder.config.out_channels, *(side * factor for side in latent_shape[1:]))


def _identity(module: Any) -> list[Any]:
    settings = {key: value for key, value in json.loads(module.to_json_string()).items() if not key.startswith("_") or key == "_class_name"}
    return [settings, hash_of_tensors(module.state_dict())]
