"""A folder in diffusers' layout, pixel UNets with or without classes, as a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError
from torch import Tensor

from monai_diverse.devices import require_device
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.condition import ClassifierFree
from monai_diverse.sampling.guides import Guide
from monai_diverse.sampling.loop import alphas_of, build_scheduler, sample_states
from monai_diverse.sources.base import SampleSource
from monai_diverse.sources.denoiser import Denoiser
from monai_diverse.storage import fingerprint_of, read_json, sha256_of

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
        for value, what in ((steps, "steps"), (batch_size, "batch_size")):
            if not isinstance(value, int) or value < 1:
                raise RecipeError(f"{what}: expected a whole number from 1, got {value!r}")
        unet, schedule = _load(folder)
        described = read_json(folder / MODEL) if (folder / MODEL).is_file() else {}
        embeddings = unet.config.num_class_embeds
        self.classes = int(described.get("classes", embeddings or 1))
        self.shape = (unet.config.in_channels, *_as_pair(unet.config.sample_size))
        self.name = str(described.get("name", folder.name))
        self.licence = str(described.get("licence", "unknown"))
        self.mirrored = bool(described.get("mirror", False))
        self._names = tuple(described.get("class_names", ()))
        self._scheduler, self._steps, self._batch_size, self._device = scheduler, steps, batch_size, require_device(device)
        self._conditional = embeddings is not None
        self._denoiser = Denoiser(
            network=self._predict,
            alphas_cumprod=alphas_of(schedule),
            prediction_type=schedule.get("prediction_type", "epsilon"),
            null=self.classes if self._conditional and embeddings > self.classes else None,
            guidance=guidance or ClassifierFree(),
        )
        build_scheduler(scheduler, self._denoiser.alphas_cumprod)
        self._unet = unet.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
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

    def cost(self, steps: int | None = None) -> int:
        """One evaluation a step, two where classifier-free guidance acts."""
        scheduler = build_scheduler(self._scheduler, self._denoiser.alphas_cumprod)
        scheduler.set_timesteps(self._steps if steps is None else steps)
        return sum(self._denoiser.evaluations(int(t)) for t in scheduler.timesteps)

    def encode(self, images: Tensor) -> Tensor:
        """[0, 1] to the [-1, 1] of pixel models."""
        return images * 2 - 1

    def _predict(self, x: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        out: Tensor = self._unet(x.contiguous(memory_format=torch.channels_last), timesteps, class_labels=labels).sample
        return out

    @torch.no_grad()
    def _draw(self, labels: Tensor, seeds: list[int], guide: Guide | None, steps: int | None) -> Tensor:
        parts = []
        for start in range(0, len(seeds), self._batch_size):
            of_batch = labels[start : start + self._batch_size].to(self._device)
            given = of_batch if self._conditional else None
            x = torch.empty(0)
            for state in sample_states(
                lambda x, t, given=given: self._denoiser(x, t, given),  # type: ignore[misc]
                build_scheduler(self._scheduler, self._denoiser.alphas_cumprod),
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
        return torch.cat(parts)


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    weights, schedule = folder / "unet" / WEIGHTS, folder / "scheduler" / SCHEDULE
    for file in (folder / "unet" / "config.json", weights, schedule):
        if not file.is_file():
            raise DataError(f"{folder}: expected a diffusers folder with unet/ and scheduler/, but {file.relative_to(folder)} is missing")
    config = read_json(schedule)
    try:
        unet, loading = UNet2DModel.from_pretrained(
            folder / "unet", torch_dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder}: the model cannot be loaded ({error}); is it a complete copy?") from error
    wrong = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise DataError(f"{folder}: expected the weights of its own configuration, but {len(wrong)} tensors differ, first {wrong[0]}")
    return unet, config


def _as_pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
