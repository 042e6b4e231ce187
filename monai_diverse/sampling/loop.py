"""The sampling loop: seeds become noise, noise becomes images, every state on the way is yielded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import diffusers
import numpy as np
import torch
from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.guides import Guide

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy x scaled to the network's input, timesteps (n,)) -> predicted clean x0, shaped as x."""


class Scheduler(Protocol):
    """What the loop needs of a diffusers scheduler."""

    timesteps: Tensor
    init_noise_sigma: Any

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Chooses the timesteps."""

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Scales x to what the network was trained on."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        """One step towards the data."""


@dataclass(frozen=True)
class State:
    """One step of the loop.

    Attributes:
        step: 0..steps-1.
        steps: how many there are.
        sigma: noise-to-signal ratio sqrt(1 - abar) / sqrt(abar) at which x0 was predicted.
        x: (n, c, *spatial) after the step; at the last one the samples.
        x0: (n, c, *spatial) clean image that the step used: the prediction, moved by the guide if there is one.
    """

    step: int
    steps: int
    sigma: float
    x: Tensor
    x0: Tensor


def build_scheduler(name: str, config: dict[str, Any]) -> Scheduler:
    """A fresh diffusers scheduler that takes predicted clean images, so that a guide can move them first.

    Schedulers keep state between steps: make one for each batch.

    Args:
        name: class name in diffusers, such as `DDIMScheduler`.
        config: configuration of the schedule that the network was trained on.

    Raises:
        RecipeError: diffusers has no such scheduler.
    """
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        raise RecipeError(f"scheduler: expected the name of a diffusers scheduler such as DDIMScheduler, got {name!r}")
    # clipping inside the scheduler would undo a guide's push; variance type and sigmas of training do not carry over
    overrides = {"prediction_type": "sample", "clip_sample": False, "thresholding": False, "timestep_spacing": "trailing"}
    keep = {k: v for k, v in config.items() if k in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")}
    accepted = kind.__init__.__wrapped__.__code__.co_varnames if hasattr(kind.__init__, "__wrapped__") else ()
    scheduler: Scheduler = kind(**keep, **{k: v for k, v in overrides.items() if k in accepted})
    return scheduler


def initial_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (n, *shape), image i from seed i.

    NumPy's generator draws it, because torch's on the CPU reads 32 bits of a seed only: in a bank of a million images
    hundreds of pairs would start from the same noise.
    """
    return torch.stack([torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)) for seed in seeds])


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """One torch generator an image, for noise that a scheduler adds on the way."""
    return [torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0])) for seed in seeds]


def sample_states(
    denoise: Denoise,
    scheduler: Scheduler,
    alphas_cumprod: Tensor,
    shape: Sequence[int],
    *,
    labels: Tensor,
    seeds: Sequence[int],
    steps: int,
    guide: Guide | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[State]:
    """Runs a diffusers scheduler on predicted clean images and yields every state.

    Args:
        denoise: predicts the clean image; called once a step.
        scheduler: from `build_scheduler`.
        alphas_cumprod: (T,) of the training schedule.
        shape: (c, *spatial) in the model's space.
        labels: (n,) class of each image, for the guide.
        seeds: (n,) one an image: they decide the first noise and any noise on the way.
        steps: number of inference steps.
        guide: moves the predicted clean image before the step uses it.
        device: where to compute.

    Raises:
        RecipeError: fewer than one step, or more than the schedule has.
    """
    if not 1 <= steps <= len(alphas_cumprod):
        raise RecipeError(f"steps: expected 1..{len(alphas_cumprod)}, got {steps}")
    scheduler.set_timesteps(steps)
    x = initial_noise(seeds, shape).to(device) * float(scheduler.init_noise_sigma)
    extra = {"generator": generators_of(seeds)} if "generator" in type(scheduler).step.__code__.co_varnames else {}
    for step, timestep in enumerate(scheduler.timesteps):
        abar = float(alphas_cumprod[int(timestep)])
        sigma = ((1 - abar) / max(abar, 1e-12)) ** 0.5
        x0 = denoise(scheduler.scale_model_input(x, timestep), timestep.expand(len(x)).to(device))
        if guide is not None:
            x0 = guide(x0, labels, sigma)
        x = scheduler.step(x0, timestep, x, **extra).prev_sample
        yield State(step, len(scheduler.timesteps), sigma, x, x0)
