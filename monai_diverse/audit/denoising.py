"""What a network makes of noised images: its losses and its predicted noise, image by image, at chosen noise levels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from monai_diverse.data import LabelledImages
from monai_diverse.information.neighbours import DoubleArray
from monai_diverse.sampling.schedule import NoiseSchedule
from monai_diverse.sources.diffusion import DiffusionSource


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


def loss_factor(source: DiffusionSource, index: int) -> float:
    """Squared error of the prediction over that of the clean image, from x = alpha x0 + sigma eps (`Denoiser`)."""
    alpha2 = float(source.schedule.alphas_cumprod[index])
    if source.prediction_type in ("flow", "rflow"):
        return float(source.schedule.flow_time(torch.tensor(index))) ** -2
    return {"epsilon": alpha2 / (1 - alpha2), "v_prediction": 1 / (1 - alpha2), "sample": 1.0}[source.prediction_type]


def denoised(source: DiffusionSource, data: LabelledImages, index: int, seed: int) -> tuple[DoubleArray, Tensor]:
    """What the network makes of noised images, from one evaluation each.

    Args:
        source: a diffusion model.
        data: images with their labels.
        index: of the schedule.
        seed: of the noise, which is the same for every model of this shape.

    Returns:
        (n,) mean squared error of what it predicts (noise, velocity, image or flow), as it was trained, and the noise that it sees in the
        images, (n, ...) in the model's space.
    """
    states, clean = noised(source, torch.from_numpy(data.images), index, seed)
    guess, abar = source.denoise(states, torch.from_numpy(data.labels), index), source.schedule.at(torch.tensor(index))
    losses: DoubleArray = loss_factor(source, index) * (guess - clean).flatten(1).double().square().mean(1).numpy()
    return losses, (states - abar.sqrt() * guess) / (1 - abar).sqrt()
