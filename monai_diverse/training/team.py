"""The processes that train one model together, as `accelerate launch` or `torchrun` starts them; or this one alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_diverse.errors import RecipeError
from monai_diverse.training.objective import Batch, bank_loss


def launched_processes() -> int:
    """How many processes a launcher started for this work; 1 without one, such as where a scheduler says how many there are and not which this is."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return launched_processes() == 1 or os.environ["RANK"] == "0"


@dataclass(frozen=True, kw_only=True)
class Team:
    """Who takes part in a training.

    Every process draws the same whole batch and takes its own part of it, so the gradients, averaged, are those of one process with the whole batch:
    the same training up to rounding (and dropout, whose masks each process draws for itself).

    Attributes:
        device: where this process computes.
        rank: its number, from 0.
        count: processes.
        accelerator: accelerate's `Accelerator`; None for a process alone.
    """

    device: str
    rank: int = 0
    count: int = 1
    accelerator: Any = None

    @classmethod
    def here(cls, device: str, batch_size: int) -> Team:
        """The team that the launcher's environment variables describe.

        Args:
            device: where to compute; `cuda` for a GPU each.
            batch_size: images a step, of all together.

        Raises:
            RecipeError: several processes and a device with a number, fewer images than processes, or no package `accelerate`.
        """
        if launched_processes() == 1:
            return cls(device=device)
        if batch_size < launched_processes():
            raise RecipeError(f"batch_size: expected at least {launched_processes()}, an image a process, got {batch_size}")
        if ":" in device:
            raise RecipeError(f"device: expected one without a number for several processes, such as 'cuda', got {device!r}; each takes its own")
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise RecipeError("train: several processes need accelerate; pip install 'monai-diverse[accelerate]'") from error
        accelerator = Accelerator(cpu=device == "cpu")
        return cls(device=str(accelerator.device), rank=accelerator.process_index, count=accelerator.num_processes, accelerator=accelerator)

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def shared(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are averaged over the team."""
        return network if self.accelerator is None else self.accelerator.prepare_model(network)

    def part_of(self, batch: Batch) -> Batch:
        """This process's images of a batch."""
        return batch[slice(self.rank, None, self.count)]

    def mean_loss(self, losses: Tensor, images: int) -> Tensor:
        """What this process minimises, of losses (m,) of its part of a batch of `images`; averaged over the team it is the mean of the batch."""
        return losses.mean() * (len(losses) * self.count / images)

    def averaged(self, value: Tensor) -> float:
        """The mean of a number over the team."""
        return float(value if self.accelerator is None else self.accelerator.reduce(value, reduction="mean"))

    def bank_loss(self, network: nn.Module, bank: list[Batch]) -> float:
        """Mean loss over a validation bank, each process with its part of it."""
        own = bank[self.rank :: self.count]
        mean = bank_loss(network, own) if own else 0.0
        return mean if self.accelerator is None else self.averaged(torch.tensor(mean * len(own) * self.count / len(bank), device=self.device))

    def wait(self) -> None:
        """Until all are here, so that what the first wrote is there for the others."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
