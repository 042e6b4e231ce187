"""The sampling loop: seeds become noise, noise becomes images, every state on the way is yielded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import diffusers
import numpy as np
import torch
from torch import Tensor

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.guides import Guide

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(noisy x scaled to the network's input, timesteps (n,)) -> predicted clean x0, shaped as x."""


SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers of diffusers that take predicted clean images and draw the right distribution with them."""


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


def build_scheduler(name: str, alphas_cumprod: Tensor) -> Scheduler:
    """A fresh diffusers scheduler that takes predicted clean images, so that a guide can move them first.

    Schedulers keep state between steps: make one for each batch.

    Args:
        name: one of `SCHEDULERS`; those are tested against an exact denoiser.
        alphas_cumprod: (T,) of the schedule that the network was trained on, from `alphas_of`.

    Raises:
        RecipeError: not one of them.
    """
    if name not in SCHEDULERS:
        raise RecipeError(f"scheduler: expected one of {', '.join(SCHEDULERS)}, got {name!r}")
    kind = getattr(diffusers, name)
    betas = 1 - alphas_cumprod / torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod[:-1]])
    # clipping inside the scheduler would undo a guide's push
    options = {"prediction_type": "sample", "timestep_spacing": "trailing"} | (
        {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    )
    scheduler: Scheduler = kind(num_train_timesteps=len(betas), trained_betas=betas.numpy(), **options)
    return scheduler


def alphas_of(config: dict[str, Any]) -> Tensor:
    """The cumulative product of alphas (T,) of a training schedule, in diffusers' terms.

    A schedule that ends in pure noise is given the tiny signal that diffusers gives it too: with none at all, a predicted noise says
    nothing of the image.

    Raises:
        DataError: not a schedule of betas, such as a flow-matching one.
    """
    kind = config.get("_class_name", "DDPMScheduler")
    if "FlowMatch" in kind or not {"beta_schedule", "trained_betas"} & config.keys():
        raise DataError(f"scheduler: expected the configuration of a scheduler with betas, such as DDPMScheduler, got {kind}")
    try:
        alphas: Tensor = diffusers.DDPMScheduler.from_config(config).alphas_cumprod
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"scheduler: expected a configuration that diffusers knows, but {error}") from error
    return alphas.clamp(min=2.0**-24)


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
