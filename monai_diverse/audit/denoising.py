"""What a network makes of noised images: its losses and its predicted noise, image by image, at chosen noise levels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from monai_diverse.data import LabelledImages
from monai_diverse.sampling.schedule import NoiseSchedule
from monai_diverse.sources.diffusion import DiffusionSource

DoubleArray = npt.NDArray[np.float64]


def loss_levels(schedule: NoiseSchedule, count: int) -> list[int]:
    """Indices of the schedule, the middles of `count` equal parts of it: the average over them is the training loss over uniform timesteps."""
    return sorted({min(len(schedule) - 1, int((part + 0.5) * len(schedule) / count)) for part in range(count)})


def noised(source: DiffusionSource, images: Tensor, index: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images in the model's space with noise that depends on seed, index and shape only, so that several models see the same.

    Args:
        source: whose space and schedule.
        images: (n, c, *spatial) in [0, 1].
        index: of the schedule.
        seed: of the noise.

    Returns:
        (noised, clean), both (n, ...) in the model's space.
    """
    clean = source.encode(images)
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    noise = torch.from_numpy(rng.standard_normal(tuple(clean.shape), dtype=np.float32))
    abar = source.schedule.at(torch.tensor(index))
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise, clean


def denoising_losses(source: DiffusionSource, data: LabelledImages, indices: list[int], seed: int) -> DoubleArray:
    """Mean squared error of what the network predicts (noise, velocity, image or flow), as it was trained.

    With x = a x0 + s eps, the error of the predicted noise is a / s times that of the predicted clean image, that of a velocity 1 / s times.

    Args:
        source: a diffusion model.
        data: images that the loss is taken of, with their labels.
        indices: of the schedule.
        seed: of the noise, which is the same for every model of this shape.

    Returns:
        (n, levels).
    """
    labels, images = torch.from_numpy(data.labels), torch.from_numpy(data.images)
    return np.stack([_loss(source, images, labels, index, seed) for index in indices], axis=1)


def predicted_noise(source: DiffusionSource, data: LabelledImages, index: int, seed: int) -> Tensor:
    """The noise that the network sees in noised images, (n, ...) in the model's space; arguments as in `denoising_losses`."""
    labels, images = torch.from_numpy(data.labels), torch.from_numpy(data.images)
    states, _ = noised(source, images, index, seed)
    abar = source.schedule.at(torch.tensor(index))
    return (states - abar.sqrt() * source.denoise(states, labels, index)) / (1 - abar).sqrt()


def _loss(source: DiffusionSource, images: Tensor, labels: Tensor, index: int, seed: int) -> DoubleArray:
    states, clean = noised(source, images, index, seed)
    error = (source.denoise(states, labels, index) - clean).flatten(1).double().square().mean(1)
    loss: DoubleArray = (error * _weight(source, index)).numpy()
    return loss


def _weight(source: DiffusionSource, index: int) -> float:
    abar = float(source.schedule.at(torch.tensor(index)))
    if source.prediction_type == "epsilon":
        return abar / (1 - abar)
    if source.prediction_type == "v_prediction":
        return 1 / (1 - abar)
    if source.prediction_type == "sample":
        return 1.0
    return 1 / float(source.schedule.flow_time(torch.tensor(index))) ** 2
