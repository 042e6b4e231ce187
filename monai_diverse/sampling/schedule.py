"""The noise that a network was trained on: diffusion (betas) or rectified flow, in one set of terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor

from monai_diverse.errors import DataError
from monai_diverse.storage import fingerprint_of

SMALLEST = 2.0**-24
"""A schedule that ends in pure noise is given the tiny signal that diffusers gives it too: with none at all, a predicted noise says
nothing of the image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseSchedule:
    """The noise that a network was trained on, in variance-preserving terms: x = sqrt(abar) x0 + sqrt(1 - abar) eps.

    A rectified flow, trained on (1 - s) x0 + s eps for s in (0, 1], is that up to a factor: its abar is (1-s)^2 / ((1-s)^2 + s^2).
    Index j of its T steps is the noise s = (j + 1) / T; between them lie fractional indices, from -1 (clean) on.

    Attributes:
        alphas_cumprod: (T,) abar of each index, falling: index 0 has least noise. Kept at `SMALLEST` or more, float32.
        flow: the network was trained on a flow and is told s T.
        shift: flows only: sampling takes s to shift s / (1 + (shift - 1) s), which spends more steps on strong noise above 1.

    Raises:
        DataError: not such numbers.
    """

    alphas_cumprod: Tensor
    flow: bool = False
    shift: float = 1.0

    def __post_init__(self) -> None:
        given = torch.as_tensor(self.alphas_cumprod).detach().cpu()
        if given.ndim != 1 or not len(given) or not bool(((given >= 0) & (given <= 1)).all()) or bool((given.diff() > 0).any()):
            raise DataError(f"noise schedule: expected alphas_cumprod (T,) that falls within [0, 1], got {tuple(given.shape)} {given.flatten()[:4]}")
        if not 0 < self.shift < float("inf") or (self.shift != 1 and not self.flow):
            raise DataError(f"noise schedule: expected a shift above 0, and 1 for what is no flow, got {self.shift}")
        object.__setattr__(self, "alphas_cumprod", given.float().clamp(min=SMALLEST))

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """The schedule of betas (T,), each in [0, 1]."""
        return cls(alphas_cumprod=torch.cumprod(1 - torch.as_tensor(betas), 0))

    @classmethod
    def from_alphas(cls, alphas_cumprod: Tensor) -> NoiseSchedule:
        """The schedule of the cumulative product (T,) of 1 - beta."""
        return cls(alphas_cumprod=alphas_cumprod)

    @classmethod
    def from_flow(cls, steps: int, *, shift: float = 1.0) -> NoiseSchedule:
        """A rectified flow whose networks are told s times `steps`."""
        s = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        return cls(alphas_cumprod=_of_flow(s), flow=True, shift=shift)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any] | SchedulerMixin) -> NoiseSchedule:
        """Reads a diffusers scheduler or its stored configuration: its noise, not how it samples.

        Raises:
            DataError: neither betas nor a flow, or a flow whose shift depends on the image's size.
        """
        if isinstance(config, SchedulerMixin):
            config = {**config.config, "_class_name": type(config).__name__}
        kind = str(config.get("_class_name", "DDPMScheduler"))
        try:
            if "FlowMatch" in kind or config.get("use_flow_sigmas"):
                if config.get("use_dynamic_shifting"):
                    raise DataError(f"scheduler: expected a fixed shift, got {kind} with use_dynamic_shifting; write the shift for this image size")
                steps, shift = int(config.get("num_train_timesteps", 1000)), config.get("shift", config.get("flow_shift", 1.0))
                return cls.from_flow(steps, shift=float(shift))
            if not {"beta_schedule", "trained_betas"} & config.keys():
                raise DataError(f"scheduler: expected the configuration of one with betas or of a flow, got {kind} without beta_schedule")
            return cls(alphas_cumprod=DDPMScheduler.from_config(dict(config)).alphas_cumprod)
        except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"scheduler: expected a configuration that diffusers knows, but {error}") from error

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def at(self, index: Tensor) -> Tensor:
        """abar at indices of any shape, shaped alike; whole ones exactly, between two by the logarithm of the noise ratio, for flows analytically."""
        table = self.alphas_cumprod.to(index.device)
        if not index.is_floating_point():
            return table[index]
        if self.flow:
            return _of_flow(self.flow_time(index)).clamp(min=SMALLEST)
        low = index.floor().long().clamp(0, len(self) - 1)
        high, share = (low + 1).clamp(max=len(self) - 1), (index - low).clamp(0, 1)
        ratio = ((1 - table).clamp(min=SMALLEST) / table).log()
        between = torch.sigmoid(-torch.lerp(ratio[low], ratio[high], share.to(ratio)))
        return torch.where(share == 0, table[low], between)

    def noise_ratio(self, index: Tensor) -> Tensor:
        """sigma = sqrt(1 - abar) / sqrt(abar) at indices of any shape."""
        abar = self.at(index)
        return ((1 - abar) / abar).sqrt()

    def network_timestep(self, index: Tensor) -> Tensor:
        """What the network is told: the index, or s T for a flow."""
        return index + 1 if self.flow else index

    def network_scale(self, index: Tensor) -> Tensor:
        """What takes the variance-preserving x to the network's x: 1, or (1 - s) / sqrt(abar) for a flow."""
        if not self.flow:
            return torch.ones(index.shape, device=index.device)
        s = self.flow_time(index)
        return ((1 - s) ** 2 + s**2).sqrt()

    def flow_time(self, index: Tensor) -> Tensor:
        """A flow's s = (index + 1) / T, float32 and shaped as `index`."""
        return (index.float() + 1) / len(self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the schedule, to five digits, so that it is the same on all machines."""
        return fingerprint_of([[f"{float(a):.5g}" for a in self.alphas_cumprod], self.flow, self.shift])


def _of_flow(s: Tensor) -> Tensor:
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2)
