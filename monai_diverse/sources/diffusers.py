"""A folder in diffusers' layout, pixel UNets with or without classes, as a source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import SafetensorError
from torch import Tensor

from monai_diverse.errors import DataError
from monai_diverse.sampling.condition import ClassifierFree
from monai_diverse.sampling.guides import Guide
from monai_diverse.sampling.loop import build_scheduler, sample_states
from monai_diverse.sources.base import SampleSource
from monai_diverse.sources.denoiser import Denoiser
from monai_diverse.storage import fingerprint_of, sha256_of

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULE = "scheduler_config.json"
MODEL = "model.json"


class DiffusersSource(SampleSource):
    """Draws from a `UNet2DModel` saved with its scheduler: `FOLDER/unet/`, `FOLDER/scheduler/`.

    A class-conditional network with more embeddings than classes has its last one as the null class; `model.json`, which
    `monai-diverse train` writes, says how many classes there are. Without that file every embedding is a class.

    Args:
        folder: the model.
        guidance: classifier-free guidance.
        scheduler: diffusers scheduler to sample with.
        steps: inference steps where `sample` is not told otherwise.
        batch_size: images at a time; bounds memory.
        device: where to compute.

    Raises:
        DataError: not such a folder, or weights that do not fit.
        RecipeError: unknown scheduler, or guidance without a null class.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        guidance: ClassifierFree | None = None,
        scheduler: str = "DPMSolverMultistepScheduler",
        steps: int = 20,
        batch_size: int = 64,
        device: str = "cpu",
    ) -> None:
        folder = Path(folder)
        self._unet, self._schedule = _load(folder)
        described = _described(folder)
        embeddings = self._unet.config.num_class_embeds
        self.classes = int(described.get("classes", embeddings or 1))
        self.shape = (self._unet.config.in_channels, *_as_pair(self._unet.config.sample_size))
        self.name = str(described.get("name", folder.name))
        self.licence = str(described.get("licence", "unknown"))
        self._names = tuple(described.get("class_names", ()))
        self._scheduler, self._steps, self._batch_size, self._device = scheduler, steps, batch_size, device
        build_scheduler(scheduler, self._schedule)
        self._conditional = embeddings is not None
        self._denoiser = Denoiser(
            network=self._predict,
            alphas_cumprod=DDPMScheduler.from_config(self._schedule).alphas_cumprod,
            prediction_type=self._schedule.get("prediction_type", "epsilon"),
            null=self.classes if self._conditional and embeddings > self.classes else None,
            guidance=guidance or ClassifierFree(),
        )
        self._unet = self._unet.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
        settings = [scheduler, steps, repr(self._denoiser.guidance), self.classes, self.shape]
        self._fingerprint = fingerprint_of([sha256_of(folder / "unet" / WEIGHTS), sha256_of(folder / "scheduler" / SCHEDULE), settings])

    @property
    def nfe(self) -> int:
        """Network evaluations so far, counted an image; a classifier-free pair counts two."""
        return self._denoiser.nfe

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, schedule and sampling settings."""
        return self._fingerprint

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, from `model.json` where it gives them."""
        return self._names or super().class_names

    def encode(self, images: Tensor) -> Tensor:
        """[0, 1] to the [-1, 1] of pixel models."""
        return images * 2 - 1

    def _predict(self, x: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        out: Tensor = self._unet(x.contiguous(memory_format=torch.channels_last), timesteps, class_labels=labels).sample
        return out

    @torch.inference_mode()
    def _draw(self, labels: Tensor, seeds: list[int], guide: Guide | None, steps: int | None) -> Tensor:
        parts = []
        for start in range(0, len(seeds), self._batch_size):
            of_batch = labels[start : start + self._batch_size].to(self._device)
            given = of_batch if self._conditional else None
            x = torch.empty(0)
            for state in sample_states(
                lambda x, t, given=given: self._denoiser(x, t, given),  # type: ignore[misc]
                build_scheduler(self._scheduler, self._schedule),
                self._denoiser.alphas_cumprod,
                self.shape,
                labels=of_batch,
                seeds=seeds[start : start + self._batch_size],
                steps=self._steps if steps is None else steps,
                guide=guide,
                device=self._device,
            ):
                x = state.x
            parts.append(((x + 1) / 2).clamp(0, 1).float().cpu())
        return torch.cat(parts).clone()


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    weights, schedule = folder / "unet" / WEIGHTS, folder / "scheduler" / SCHEDULE
    for file in (folder / "unet" / "config.json", weights, schedule):
        if not file.is_file():
            raise DataError(f"{folder}: expected a diffusers folder with unet/ and scheduler/, but {file.relative_to(folder)} is missing")
    try:
        unet = UNet2DModel.from_pretrained(folder / "unet", torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False)
        return unet, json.loads(schedule.read_text())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: the model cannot be loaded ({error}); is it a complete copy?") from error


def _described(folder: Path) -> dict[str, Any]:
    file = folder / MODEL
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _as_pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
