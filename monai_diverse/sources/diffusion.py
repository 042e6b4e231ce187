"""What every diffusion source shares, pixel or latent, in two or three dimensions: network in, images out."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_diverse.data import IntArray
from monai_diverse.devices import require_device
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.condition import CADS, ClassifierFree
from monai_diverse.sampling.guides import Guide, Start
from monai_diverse.sampling.passes import Passes
from monai_diverse.sampling.schedule import NoiseSchedule
from monai_diverse.sampling.schedulers import KARRAS, Scheduler, build_scheduler
from monai_diverse.sources.annealing import class_embeddings
from monai_diverse.sources.base import IntLike, SampleSource
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.denoiser import Denoiser, Network
from monai_diverse.sources.latent import Latent
from monai_diverse.sources.precision import Batches, Precision
from monai_diverse.storage import fingerprint_of


class DiffusionSource(SampleSource):
    """Draws from a diffusion network: 2D or 3D, pixels or latents, diffusion or rectified flow, however it is conditioned.

    `MonaiSource`, `BundleSource` and `DiffusersSource` load what it takes. The modules are taken over: moved to the device and precision,
    set to evaluation mode, their weights frozen. Pass copies of a model whose training goes on.

    Args:
        network: called as network(x, timesteps (n,), condition rows by name) -> prediction; an nn.Module is placed on the device.
        schedule: the noise that it was trained on.
        shape: (c, *spatial) of an image.
        prediction_type: what it predicts; see `Denoiser`.
        conditioning: what it is told by class; None for an unconditional network.
        latent: the autoencoder of a latent model; None for pixels.
        output_range: values of black and white in the model's images; they become 0 and 1. Pixel models' predictions are clipped to them.
        guidance: classifier-free guidance.
        cads: noises conditions at first, so that samples of one class spread; None for never.
        scheduler: diffusers scheduler to sample with, one of `sampling.SCHEDULERS`.
        karras: space the steps as Karras et al. (2022) do; None: where the scheduler can, and the network is no flow. With it 20 evaluations of
            the shipped model are as good as 250 of DDPM, without it they are not (docs/sampler.md).
        steps: inference steps where `sample` is not told otherwise.
        batch_size: images at a time; bounds memory. None: on CUDA the largest that fits is found, on the CPU it is 64. A guide that couples
            the batch makes images depend on it, so give a number there.
        device: where to compute.
        precision: float32 in channels-last layout where None.
        name: for reports.
        licence: of the data that the model was trained on.
        mirrored: whether it was trained on mirrored images too.
        class_names: names of the classes, for reports; empty for numbers.
        identity: what with the settings above makes the fingerprint: hashes of weights and configurations, as JSON.

    Raises:
        RecipeError: a setting out of range, an unknown scheduler, guidance without a null condition, CADS without a condition to noise, or of
            class labels in a compiled network.
        DataError: an output range or class names that do not fit.
    """

    def __init__(
        self,
        network: Network,
        schedule: NoiseSchedule,
        *,
        shape: Sequence[int],
        prediction_type: str,
        conditioning: Conditioning | None = None,
        latent: Latent | None = None,
        output_range: tuple[float, float] = (-1.0, 1.0),
        guidance: ClassifierFree | None = None,
        cads: CADS | None = None,
        scheduler: str = "DPMSolverMultistepScheduler",
        karras: bool | None = None,
        steps: int = 20,
        batch_size: int | None = 64,
        device: str = "cpu",
        precision: Precision | None = None,
        name: str,
        licence: str = "unknown",
        mirrored: bool = False,
        class_names: Sequence[str] = (),
        identity: Sequence[Any],
    ) -> None:
        conditioning, precision = conditioning or Conditioning(), precision or Precision()
        precision = replace(precision, channels_last=precision.channels_last in (None, True))
        self.shape, self.classes = tuple(shape), conditioning.classes
        self.name, self.licence, self.mirrored, self._names = name, licence, mirrored, tuple(class_names)
        self._check(steps, output_range)
        self._batches, self._decoding = Batches(batch_size, require_device(device)), Batches(batch_size, device)
        self._scheduler, self._steps, self._device, self._range = scheduler, steps, device, output_range
        self._denoiser = Denoiser(
            network=partial(precision.run, network),
            schedule=schedule,
            prediction_type=prediction_type,
            conditioning=conditioning.to(device),
            guidance=guidance or ClassifierFree(),
            clip=output_range if latent is None else None,
            cads=cads,
            embeddings=_embeddings(network, precision) if cads is not None and conditioning.embeds_labels else (),
        )
        self._karras = self._suits_karras(scheduler) if karras is None else karras
        self._templates: dict[float | None, Scheduler] = {}
        self._fresh_scheduler()
        trained = [schedule.fingerprint, prediction_type, conditioning.fingerprint, list(output_range), list(self.shape)]
        self._computed, self._weights = [precision.dtype, precision.autocast], list(identity)
        self._trained = [trained, None if latent is None else latent.settings]
        if isinstance(network, nn.Module):
            precision.prepare(network, device)
        self._latent = None if latent is None else _placed(latent, precision, device)

    def _check(self, steps: int, output_range: tuple[float, float]) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise RecipeError(f"steps: expected a whole number from 1, got {steps!r}")
        low, high = output_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise DataError(f"output_range: expected (black, white) in rising order, got {output_range}")
        if self._names and len(self._names) != self.classes:
            raise DataError(f"class_names: expected {self.classes}, one a class, got {len(self._names)}")

    @property
    def nfe(self) -> int:
        """Network evaluations so far, counted an image; a classifier-free pair counts two."""
        return self._denoiser.nfe

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, schedule, conditioning and sampling settings."""
        settings = [self._scheduler, self._karras, self._steps, repr(self._denoiser.guidance), *self._computed]
        settings += [] if self._denoiser.cads is None else [repr(self._denoiser.cads)]
        return fingerprint_of([self._weights, settings, *self._trained])

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise that the network was trained on."""
        return self._denoiser.schedule

    @property
    def prediction_type(self) -> str:
        """What the network predicts; see `Denoiser`."""
        return self._denoiser.prediction_type

    def variant(self, *, guidance: ClassifierFree | None = None, scheduler: str | None = None, karras: bool | None = None) -> DiffusionSource:
        """The same network, sampled otherwise; it counts its own evaluations.

        Args:
            guidance: classifier-free guidance; None: as here.
            scheduler: one of `sampling.SCHEDULERS`; None: as here.
            karras: see `DiffusionSource`; None: as here, or with another scheduler what suits that.

        Raises:
            RecipeError: an unknown scheduler, or guidance without a null condition.
        """
        other = copy.copy(self)
        other._denoiser = replace(self._denoiser, guidance=guidance or self._denoiser.guidance, nfe=0)
        if karras is None:
            karras = self._karras if scheduler is None else self._suits_karras(scheduler)
        other._scheduler, other._karras, other._templates = scheduler or self._scheduler, karras, {}
        other._fresh_scheduler()
        return other

    @torch.no_grad()
    def denoise(self, states: Tensor, labels: Tensor, index: int) -> Tensor:
        """The network's own guess at the clean image: no guidance, no clipping, conditions as they are.

        Args:
            states: (n, c, *spatial), noised in the model's space, variance-preserving.
            labels: (n,) classes.
            index: of the schedule, 0..T-1: 0 has least noise.

        Returns:
            float32 (n, c, *spatial) in the model's space, on the CPU.

        Raises:
            RecipeError: an index outside the schedule.
        """
        if not 0 <= index < len(self.schedule):
            raise RecipeError(f"index: expected 0..{len(self.schedule) - 1}, as the schedule has steps, got {index}")
        plain = replace(self._denoiser, guidance=ClassifierFree(), clip=None, cads=None, nfe=0)

        def batch(part: slice) -> Tensor:
            x = states[part].to(self._device)
            return plain(x, torch.full((len(x),), index, device=self._device), labels[part].to(self._device)).float().cpu()

        clean = self._batches.run(batch, len(states))
        self._denoiser.nfe += len(states)
        return clean

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, where they are known."""
        return self._names or super().class_names

    @property
    def model_shape(self) -> tuple[int, ...]:
        """(c, *spatial) in the model's space: of an image, or of a latent."""
        return self.shape if self._latent is None else tuple(self._latent.shape)

    def cost(self, steps: int | None = None) -> int:
        """One evaluation a step, two where classifier-free guidance acts."""
        return int(self.costs([0], [0], steps=steps)[0])

    def costs(self, labels: IntLike, seeds: IntLike, *, guide: Guide | None = None, steps: int | None = None) -> IntArray:
        """Of whole passes, branches, candidates and polishing, whatever the guide asks for."""
        classes, numbers = torch.as_tensor(np.asarray(labels)), [int(s) for s in seeds]
        return np.array(self._passes(steps).costs(classes, numbers, guide, self._denoiser.evaluations), dtype=np.int64)

    @torch.no_grad()
    def renoise(self, states: Tensor, labels: Tensor, seeds: Sequence[int], sigma: float, pace: float = 1.0, steps: int | None = None) -> Tensor:
        """Noises images to a noise-to-signal ratio and denoises them again (SDEdit, Meng et al. 2022).

        Args:
            states: (n, c, *spatial) in the model's space.
            labels: (n,) classes.
            seeds: (n,) decide the noise.
            sigma: the more, the less of the image is left.
            pace: steps, as a share of those that a whole pass takes over the same noise.
            steps: inference steps of a whole pass; None for the source's own number.

        Returns:
            float32 (n, c, *spatial) in the model's space.
        """
        numbers = [int(s) for s in seeds]

        def batch(part: slice) -> Tensor:
            start = Start(images=states[part].to(self._device), sigma=sigma, pace=pace)
            return self._passes(steps).run(labels[part].to(self._device), numbers[part], start=start).float().cpu()

        return self._batches.run(batch, len(numbers))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (n, c, *spatial) in [0, 1] to the model's space: its range of pixels, or scaled latents."""
        low, high = self._range
        ranged = images * (high - low) + low
        latent = self._latent
        if latent is None:
            return ranged
        if not len(images):
            return torch.empty((0, *latent.shape))
        return self._decoding.run(lambda part: latent.encode(ranged[part].to(self._device)).cpu(), len(images))

    @torch.no_grad()
    def decode(self, states: Tensor) -> Tensor:
        """The model's space (n, c, *spatial) to images in [0, 1], float32 on the CPU."""
        latent = self._latent
        if latent is None:
            return self._to_unit(states)
        if not len(states):
            return torch.empty((0, *self.shape))
        return self._decoding.run(lambda part: self._to_unit(latent.decode(states[part].to(self._device))), len(states))

    def _suits_karras(self, scheduler: str) -> bool:
        return scheduler in KARRAS and (not self.schedule.flow or "Heun" in scheduler)

    def _fresh_scheduler(self, sigma_max: float | None = None) -> Scheduler:
        if sigma_max not in self._templates:  # making one takes as long as several evaluations of a small network
            self._templates[sigma_max] = build_scheduler(self._scheduler, self._denoiser.schedule, karras=self._karras, sigma_max=sigma_max)
        return copy.deepcopy(self._templates[sigma_max])

    def _to_unit(self, images: Tensor) -> Tensor:
        low, high = self._range
        return ((images - low) / (high - low)).clamp(0, 1).float().cpu()

    @torch.no_grad()
    def _draw(self, labels: Tensor, seeds: list[int], guide: Guide | None, steps: int | None) -> Tensor:
        def batch(part: slice) -> Tensor:
            before = self._denoiser.nfe
            try:
                return self.decode(self._passes(steps).draw(labels[part].to(self._device), seeds[part], guide))
            except torch.cuda.OutOfMemoryError:
                self._denoiser.nfe = before
                raise

        return self._batches.run(batch, len(seeds))

    def _passes(self, steps: int | None) -> Passes:
        return Passes(
            denoise=self._denoiser,
            scheduler=self._fresh_scheduler,
            schedule=self._denoiser.schedule,
            shape=self.model_shape,
            steps=self._steps if steps is None else steps,
            device=self._device,
            seeded=self._denoiser.seeded,
        )


def _embeddings(network: Network, precision: Precision) -> tuple[nn.Module, ...]:
    if precision.compile:
        raise RecipeError("cads: expected a network that is not compiled, as its class embedding is noised by a hook; leave compile or cads out")
    return class_embeddings(network)


def _placed(latent: Latent, precision: Precision, device: str) -> Latent:
    precision.prepare(latent.autoencoder, device)
    return replace(latent, encoder=partial(precision.run, latent.encoder), decoder=partial(precision.run, latent.decoder))
