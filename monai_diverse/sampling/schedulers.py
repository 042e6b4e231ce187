"""diffusers' schedulers that the loop draws the right distribution with, and how they are made."""

from __future__ import annotations

from typing import Any, Protocol

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.schedule import NoiseSchedule

FLOW = "FlowMatchEulerDiscreteScheduler"
VARIANCE_EXPLODING = ("EulerDiscreteScheduler", "HeunDiscreteScheduler")
KARRAS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", *VARIANCE_EXPLODING)
SIGMA_MAX = 80.0
"""Where Karras spacing starts (Karras et al. 2022, table 1); a cosine schedule's own largest noise would take most steps for itself."""

SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    FLOW,
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers of diffusers that `sample_states` draws the right distribution with."""


class Scheduler(Protocol):
    """What the loop needs of a diffusers scheduler."""

    timesteps: Tensor
    config: Any

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Chooses the timesteps."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        """One step towards the data."""


def build_scheduler(name: str, schedule: NoiseSchedule, *, karras: bool = False, sigma_max: float | None = None) -> Scheduler:
    """A fresh diffusers scheduler whose steps `sample_states` takes from predicted clean images, so that a guide can move them first.

    Schedulers keep state between steps: make one for each pass.

    Args:
        name: one of `SCHEDULERS`; those are tested against an exact denoiser. FlowMatchEulerDiscreteScheduler is for flows only; the others
            serve flows too. HeunDiscreteScheduler takes 2n - 1 evaluations for n steps.
        schedule: the noise that the network was trained on.
        karras: space the steps as Karras et al. (2022, eq. 5) do, between `sigma_max` and the least noise of the schedule.
        sigma_max: largest noise-to-signal ratio of Karras spacing; None: `SIGMA_MAX`, or the schedule's own where that is less.

    Raises:
        RecipeError: not one of them, one that does not serve this schedule or spacing, or `sigma_max` at or below the least noise.
    """
    if name not in SCHEDULERS:
        raise RecipeError(f"scheduler: expected one of {', '.join(SCHEDULERS)}, got {name!r}")
    if karras and name not in KARRAS:
        raise RecipeError(f"karras: expected one of {', '.join(KARRAS)} with it, got {name}")
    if name == "HeunDiscreteScheduler" and not karras:
        raise RecipeError(f"karras: expected it with {name}, whose first steps are wrong on other spacings")
    if name == FLOW and not schedule.flow:
        raise RecipeError(f"scheduler: {name} expects a network trained as a flow, got a schedule of betas; use DPMSolverMultistepScheduler")
    if name == FLOW:
        flow: Scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=len(schedule), shift=schedule.shift)
        return flow
    alphas = schedule.alphas_cumprod
    betas = 1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])
    options: dict[str, Any] = {"prediction_type": "sample", "timestep_spacing": "trailing"}
    if name in ("DDIMScheduler", "DDPMScheduler"):
        options["clip_sample"] = False  # clipping inside the scheduler would undo a guide's push
    if name == "HeunDiscreteScheduler":
        options["prediction_type"] = "epsilon"  # its second-order step is wrong with clean images
    if karras:
        options["use_karras_sigmas"] = True
    kind = _DDIMScheduler if name == "DDIMScheduler" else getattr(diffusers, name)
    scheduler: Scheduler = kind(num_train_timesteps=len(betas), trained_betas=betas.numpy(), **options)
    if karras:
        least, most = (float(schedule.noise_ratio(torch.tensor(index))) for index in (0, len(schedule) - 1))
        if sigma_max is not None and not sigma_max > least:
            raise RecipeError(f"start: expected a noise-to-signal ratio above {least:.3g}, the least trained on, got {sigma_max:.3g}")
        scheduler.register_to_config(sigma_min=least, sigma_max=min(most, SIGMA_MAX if sigma_max is None else sigma_max))  # type: ignore[attr-defined]
    return scheduler


class _DDIMScheduler(diffusers.DDIMScheduler):  # type: ignore[misc]  # diffusers has no type information
    """Steps to the next timestep, without noise of its own (Song et al. 2021, equation 12).

    diffusers' own goes num_train_timesteps // steps, less than the way to the next one unless steps divide it: 600 steps of 1000 then draw a variance
    1.8 times too large.
    """

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> DDIMSchedulerOutput:
        later = self.timesteps[self.timesteps < timestep]
        now, then = self.alphas_cumprod[timestep], self.alphas_cumprod[later[0]] if len(later) else self.final_alpha_cumprod
        noise = (sample - now.sqrt() * model_output) / (1 - now).sqrt()
        return DDIMSchedulerOutput(prev_sample=then.sqrt() * model_output + (1 - then).sqrt() * noise, pred_original_sample=model_output)


def set_steps(scheduler: Scheduler, steps: int) -> None:
    """Chooses the timesteps of so many inference steps.

    For flows on an even grid of s from 1 to 1/steps, then shifted; diffusers' own grid shifts its least noise twice and spends the last step on it.
    """
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    else:
        scheduler.set_timesteps(steps)
