"""MONAI's schedulers in this package's terms: the noise that they trained with, and what their network predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, TypeAlias

import torch
from diffusers import SchedulerMixin
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler, Scheduler

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.schedule import NoiseSchedule

FLOW_TYPES = ("rflow", "flow")
DIFFUSION_TYPES = ("epsilon", "v_prediction", "sample")

AnyScheduler: TypeAlias = Scheduler | SchedulerMixin | NoiseSchedule


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedWith:
    """What a scheduler says of the network that was trained with it; how it would sample is left to this package's own schedulers.

    Attributes:
        schedule: the noise.
        prediction_type: what the network predicts: epsilon, v_prediction, sample, rflow (x0 - eps, as MONAI trains) or flow (eps - x0).
        clip: bounds of predicted clean images; infinite if it is told not to clip, None if it has no such setting.
        learned_variance: the network's second half of channels is a variance, which no scheduler here reads.
        steps: network evaluations that `set_timesteps` chose; None where it was not called or chose all training steps.
    """

    schedule: NoiseSchedule
    prediction_type: str
    clip: tuple[float, float] | None = None
    learned_variance: bool = False
    steps: int | None = None


def trained_with(scheduler: AnyScheduler | None, spatial: Sequence[int], prediction_type: str | None = None) -> TrainedWith:
    """Translates a scheduler.

    Args:
        scheduler: MONAI's DDPMScheduler, DDIMScheduler, PNDMScheduler, RFlowScheduler or one derived from them; a diffusers scheduler; a
            `NoiseSchedule`. None: MONAI's RFlowScheduler() where the prediction type is a flow's, else its DDPMScheduler().
        spatial: size of what the network sees, for RFlow's transformed timesteps.
        prediction_type: what the network predicts, where the scheduler does not say; must agree with it where it does.

    Raises:
        DataError: not a scheduler, or not a noise schedule in it.
        RecipeError: the prediction type is unknown or contradicts the scheduler.
    """
    if prediction_type not in (None, *FLOW_TYPES, *DIFFUSION_TYPES):
        raise RecipeError(f"prediction_type: expected one of {', '.join(DIFFUSION_TYPES + FLOW_TYPES)}, got {prediction_type!r}")
    if scheduler is None:
        scheduler = RFlowScheduler() if prediction_type in FLOW_TYPES else DDPMScheduler(prediction_type=prediction_type or "epsilon")
    if isinstance(scheduler, NoiseSchedule):
        return TrainedWith(schedule=scheduler, prediction_type=_agreed(prediction_type, "", scheduler.flow))
    if isinstance(scheduler, SchedulerMixin):
        schedule = NoiseSchedule.from_diffusers(scheduler)
        # diffusers' flow schedulers do not name the prediction: it is always eps - x0
        own = "flow" if schedule.flow else str(scheduler.config.get("prediction_type", "epsilon"))
        return TrainedWith(schedule=schedule, prediction_type=_agreed(prediction_type, own, schedule.flow))
    if isinstance(scheduler, RFlowScheduler):
        schedule = NoiseSchedule.from_flow(scheduler.num_train_timesteps, shift=_shift(scheduler, spatial))
        return TrainedWith(schedule=schedule, prediction_type=_agreed(prediction_type, "rflow", True), steps=_steps(scheduler))
    if not isinstance(getattr(scheduler, "betas", None), torch.Tensor):
        raise DataError(f"scheduler: expected a scheduler of MONAI or diffusers or a NoiseSchedule, got {type(scheduler).__name__}")
    return TrainedWith(
        # alphas_cumprod is not to be trusted: add_noise and get_velocity store it in the dtype of what they noised, half precision included
        schedule=NoiseSchedule.from_betas(scheduler.betas),
        prediction_type=_agreed(prediction_type, str(getattr(scheduler, "prediction_type", "")), False),
        clip=_clip(scheduler),
        learned_variance=getattr(scheduler, "variance_type", "") in ("learned", "learned_range"),
        steps=_steps(scheduler),
    )


def _agreed(given: str | None, own: str, flow: bool) -> str:
    """The prediction type, from what the user and the scheduler (an empty string if it does not know) say."""
    kinds = FLOW_TYPES if flow else DIFFUSION_TYPES
    if given is None:
        return own or kinds[0]
    if flow and given == "v_prediction" and own == "rflow":  # MONAI's own name for it
        return "rflow"
    # a flow's scheduler does not know which sign its network learned
    if given not in kinds or (own and not flow and given != own):
        expected = own if own and not flow else " or ".join(kinds)
        raise RecipeError(f"prediction_type: expected {expected}, which the scheduler says, got {given}; give the scheduler of the training")
    return given


def _shift(scheduler: Any, spatial: Sequence[int]) -> float:
    """MONAI's `timestep_transform`: s -> r s / (1 + (r - 1) s), r = (voxels / base)^(1/dim); its `transform_scale` is read nowhere in MONAI."""
    if not scheduler.use_timestep_transform:
        return 1.0
    return float((prod(spatial) / scheduler.base_img_size_numel) ** (1 / len(spatial)))


def _clip(scheduler: Any) -> tuple[float, float] | None:
    if not hasattr(scheduler, "clip_sample"):
        return None
    if not scheduler.clip_sample:
        return -inf, inf
    low, high = scheduler.clip_sample_values
    return float(low), float(high)


def _steps(scheduler: Any) -> int | None:
    chosen = getattr(scheduler, "num_inference_steps", None)
    # DDIM and PNDM call set_timesteps themselves, with all of them
    return None if chosen is None or chosen >= scheduler.num_train_timesteps else int(chosen)
