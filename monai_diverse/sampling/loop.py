"""The sampling loop: seeds become noise, noise becomes images, every state on the way is yielded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.guides import Guide, Start
from monai_diverse.sampling.schedule import NoiseSchedule
from monai_diverse.sampling.schedulers import FLOW, VARIANCE_EXPLODING, Scheduler, set_steps

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(variance-preserving noisy x, index (n,) into the schedule) -> predicted clean x0, shaped as x."""


@dataclass(frozen=True)
class State:
    """One step of the loop.

    Attributes:
        step: 0..steps-1.
        steps: how many there are.
        sigma: noise-to-signal ratio sqrt(1 - abar) / sqrt(abar) at which x0 was predicted.
        next_sigma: the ratio after the step; 0 at the last one.
        x: (n, c, *spatial) after the step, variance-preserving; at the last one the samples.
        x0: (n, c, *spatial) clean image that the step used: the prediction, moved by the guide if there is one.
        whole: a pass can be left and taken up again here; not between the two evaluations of a step of Heun's.
    """

    step: int
    steps: int
    sigma: float
    next_sigma: float
    x: Tensor
    x0: Tensor
    whole: bool = True


def noise_levels(scheduler: Scheduler, schedule: NoiseSchedule, steps: int) -> list[tuple[Tensor, float]]:
    """What a whole pass goes through: (index of the schedule, noise-to-signal ratio) for each evaluation."""
    set_steps(scheduler, steps)
    space = _Space(scheduler, schedule)
    return [(space.index(step), space.sigma(space.opening(step))) for step in range(len(scheduler.timesteps))]


def first_step(scheduler: Scheduler, schedule: NoiseSchedule, sigma: float) -> int:
    """The first evaluation at or below a noise-to-signal ratio, its timesteps being chosen.

    Raises:
        RecipeError: the last one is above it.
    """
    if scheduler.config.get("sigma_max") == sigma:  # it starts there; its timesteps are rounded to whole numbers
        return 0
    space = _Space(scheduler, schedule)
    for step in range(len(scheduler.timesteps)):
        if space.sigma(step) <= sigma and space.opening(step) == step:
            return step
    least = space.sigma(len(scheduler.timesteps) - 1)
    raise RecipeError(f"start: expected a noise-to-signal ratio of at least {least:.3g}, the last step's, got {sigma:.3g}; take more steps")


def initial_noise(seeds: Sequence[int], shape: Sequence[int], stream: int = 0) -> Tensor:
    """Standard normal noise (n, *shape), image i from seed i.

    NumPy's generator draws it, because torch's on the CPU reads 32 bits of a seed only: in a bank of a million images
    hundreds of pairs would start from the same noise.

    Args:
        seeds: one an image.
        shape: of an image.
        stream: 0 is where passes start; others are independent of it.
    """
    keys = [seed if stream == 0 else np.random.SeedSequence(seed, spawn_key=(2, stream)) for seed in seeds]
    return torch.stack([torch.from_numpy(np.random.default_rng(key).standard_normal(tuple(shape), dtype=np.float32)) for key in keys])


def generators_of(seeds: Sequence[int], stream: int = 0) -> list[torch.Generator]:
    """One torch generator an image, for noise that is added on the way; other streams are independent."""
    keys = [np.random.SeedSequence(seed, spawn_key=() if stream == 0 else (4, stream)) for seed in seeds]
    return [torch.Generator().manual_seed(int(key.generate_state(1)[0])) for key in keys]


def sample_states(
    denoise: Denoise,
    scheduler: Scheduler,
    schedule: NoiseSchedule,
    shape: Sequence[int],
    *,
    labels: Tensor,
    seeds: Sequence[int],
    steps: int,
    guide: Guide | None = None,
    start: Start | None = None,
    stream: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[State]:
    """Runs a diffusers scheduler on predicted clean images and yields every state.

    Args:
        denoise: predicts the clean image; called once a step.
        scheduler: from `build_scheduler`.
        schedule: the noise that the network was trained on.
        shape: (c, *spatial) in the model's space.
        labels: (n,) class of each image, for the guide.
        seeds: (n,) one an image: they decide the first noise and any noise on the way.
        steps: number of inference steps.
        guide: moves the predicted clean image before the step uses it.
        start: where to start, instead of from pure noise at the first step.
        stream: of the first noise and of any on the way, see `initial_noise`.
        device: where to compute.

    Raises:
        RecipeError: fewer than one step, more than the schedule has, or a start after the last one.
    """
    if not 1 <= steps <= len(schedule):
        raise RecipeError(f"steps: expected 1..{len(schedule)}, got {steps}")
    set_steps(scheduler, steps)
    space = _Space(scheduler, schedule)
    first = 0 if start is None else first_step(scheduler, schedule, start.sigma)
    x = space.leave(_first_state(space, first, initial_noise(seeds, shape, stream).to(device), start), first)
    if hasattr(scheduler, "set_begin_index"):  # else it looks its timestep up, and rounded ones may occur twice
        scheduler.set_begin_index(first)
    generators = generators_of(seeds, stream)
    extra = {"generator": generators} if "generator" in type(scheduler).step.__code__.co_varnames else {}
    for step in range(first, len(scheduler.timesteps)):
        index = space.index(step).to(device)
        entered = space.enter(x, step)
        x0 = denoise(entered, index.expand(len(x)))
        if guide is not None:
            x0 = guide(x0, labels, space.sigma(step))
        x = scheduler.step(space.output(x, entered, x0, step), scheduler.timesteps[step], x, **extra).prev_sample
        last, whole = step + 1 == len(scheduler.timesteps), space.opening(step + 1) == step + 1
        if guide is not None and whole and not last:
            x = _refreshed(space, x, x0, step + 1, guide, generators)
        yield State(
            step=step,
            steps=len(scheduler.timesteps),
            sigma=space.sigma(step),
            next_sigma=0.0 if last else space.sigma(step + 1),
            x=x if last else x / space.scale(step + 1),
            x0=x0,
            whole=whole or last,
        )


@dataclass(frozen=True)
class _Space:
    """Between the scheduler's x and the variance-preserving one, sqrt(abar) x0 + sqrt(1 - abar) eps, that networks and guides know."""

    scheduler: Scheduler
    schedule: NoiseSchedule

    @property
    def kind(self) -> str:
        return type(self.scheduler).__name__

    def index(self, step: int) -> Tensor:
        """Of the step in the noise schedule."""
        timestep = self.scheduler.timesteps[step]
        return timestep - 1 if self.kind == FLOW else timestep

    def sigma(self, step: int) -> float:
        """Noise-to-signal ratio at the step."""
        return float(self.schedule.noise_ratio(self.index(step)))

    def opening(self, step: int) -> int:
        """The evaluation that began the step which this one belongs to: Heun takes two a step."""
        return step - step % 2 if self.kind == "HeunDiscreteScheduler" else step

    def scale(self, step: int) -> float:
        """The scheduler's x over the variance-preserving one."""
        if self.kind == FLOW:
            return float(self.schedule.network_scale(self.index(step)))
        return float(self.schedule.at(self.index(step)) ** -0.5) if self.kind in VARIANCE_EXPLODING else 1.0

    def enter(self, x: Tensor, step: int) -> Tensor:
        """To the variance-preserving x."""
        if self.kind in VARIANCE_EXPLODING:  # by the scheduler, which keeps count of it
            scaled: Tensor = self.scheduler.scale_model_input(x, self.scheduler.timesteps[step])  # type: ignore[attr-defined]
            return scaled
        return x / self.scale(step)

    def leave(self, x: Tensor, step: int) -> Tensor:
        """To the scheduler's x."""
        return x * self.scale(step)

    def output(self, x: Tensor, entered: Tensor, x0: Tensor, step: int) -> Tensor:
        """The clean image in the terms that the scheduler's step takes: itself, Heun's noise, or the velocity of a flow."""
        if self.kind == FLOW:
            return (x - x0) / self.schedule.flow_time(self.index(step)).to(x)
        if self.kind == "HeunDiscreteScheduler":
            abar = self.schedule.at(self.index(step)).to(x)
            return (entered - abar.sqrt() * x0) / (1 - abar).sqrt()
        return x0


def _first_state(space: _Space, first: int, noise: Tensor, start: Start | None) -> Tensor:
    if start is None:
        return noise
    images = start.images.to(noise)
    return images if start.noised else _noised(images, start.gain * noise, space.schedule.at(space.index(first)).to(noise))


def _noised(clean: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def _refreshed(space: _Space, x: Tensor, x0: Tensor, step: int, guide: Guide, generators: Sequence[torch.Generator]) -> Tensor:
    """x with a share of its noise drawn anew, at the same noise level: what an ancestral step does (Song et al. 2021, DDIM, eq. 12)."""
    abar = space.schedule.at(space.index(step)).to(x)
    share = guide.refresh(space.sigma(step))
    if share == 0:
        return x
    scale = space.scale(step)
    noise = (x / scale - abar.sqrt() * x0) / (1 - abar).sqrt()
    fresh = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)
    return _noised(x0, (1 - share**2) ** 0.5 * noise + share * fresh, abar) * scale
