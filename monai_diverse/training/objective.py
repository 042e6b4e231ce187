"""The diffusion loss, on random and on fixed noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional

from monai_diverse.data import LabelledImages

CHUNK = 256
"""Images of the validation bank that are evaluated at a time."""


def to_model_range(images: Tensor) -> Tensor:
    """[0, 1] to the [-1, 1] that the networks work in."""
    return images * 2 - 1


def generator_for(*numbers: int) -> torch.Generator:
    """A generator that depends on all of `numbers` and on nothing else."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@dataclass(frozen=True)
class Batch:
    """Noised images with what is needed to score a prediction."""

    noisy: Tensor
    timesteps: Tensor
    labels: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.noisy[part], self.timesteps[part], self.labels[part], self.target[part])

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(self.noisy.to(device), self.timesteps.to(device), self.labels.to(device), self.target.to(device))

    def loss(self, unet: nn.Module) -> Tensor:
        """Mean squared error of the predicted velocity, (n,)."""
        predicted = unet(self.noisy, self.timesteps, class_labels=self.labels).sample
        error: Tensor = (predicted - self.target).square().flatten(1).mean(1)
        return error


def draw_batch(
    images: Tensor,
    labels: Tensor,
    scheduler: DDPMScheduler,
    *,
    size: int,
    null: int,
    label_dropout: float,
    mirror: bool,
    generator: torch.Generator,
    patch: int = 1,
) -> Batch:
    """Draws images with replacement, timesteps stratified over the schedule, noise, and drops some labels.

    Args:
        images: (n, c, h, w) in [-1, 1].
        labels: (n,) classes.
        scheduler: the noise schedule.
        size: images to draw.
        null: the class that stands for 'no label'.
        label_dropout: share of labels to drop.
        mirror: mirror half of the images left-right.
        generator: the only source of randomness.
        patch: see `TrainConfig`.
    """
    picks = torch.randint(len(images), (size,), generator=generator)
    clean, chosen = images[picks], labels[picks].clone()
    if mirror:
        flip = torch.rand(size, generator=generator) < 0.5
        clean = torch.where(flip[:, None, None, None], clean.flip(-1), clean)
    chosen[torch.rand(size, generator=generator) < label_dropout] = null
    return _noised(functional.pixel_unshuffle(clean, patch), chosen, scheduler, _stratified(size, scheduler, generator), generator)


def validation_bank(data: LabelledImages, scheduler: DDPMScheduler, *, draws: int, seed: int, patch: int = 1) -> list[Batch]:
    """Fixed (timestep, noise) pairs for each image, so that losses of different steps compare.

    Returns:
        `draws` batches, each with every image once; timesteps are stratified over the batches.
    """
    generator = generator_for(seed, 1)
    clean, labels = functional.pixel_unshuffle(to_model_range(torch.from_numpy(data.images)), patch), torch.from_numpy(data.labels)
    timesteps = torch.stack([_stratified(draws, scheduler, generator)[torch.randperm(draws, generator=generator)] for _ in range(len(data))])
    return [_noised(clean, labels, scheduler, timesteps[:, d], generator) for d in range(draws)]


@torch.no_grad()
def bank_loss(unet: nn.Module, bank: list[Batch]) -> float:
    """Mean loss over a validation bank, with the network in evaluation mode."""
    training, device = unet.training, next(unet.parameters()).device
    unet.eval()
    losses = [batch[start : start + CHUNK].to(device).loss(unet) for batch in bank for start in range(0, len(batch), CHUNK)]
    unet.train(training)
    return float(torch.cat(losses).mean())


def _stratified(count: int, scheduler: DDPMScheduler, generator: torch.Generator) -> Tensor:
    steps = int(scheduler.config["num_train_timesteps"])
    shares = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (shares * steps).long().clamp(max=steps - 1)


def _noised(clean: Tensor, labels: Tensor, scheduler: DDPMScheduler, timesteps: Tensor, generator: torch.Generator) -> Batch:
    noise = torch.randn(clean.shape, generator=generator)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    return Batch(noisy, timesteps, labels, scheduler.get_velocity(clean, noise, timesteps))
