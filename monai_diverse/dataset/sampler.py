"""A sampler that draws real and synthetic items at a chosen rate."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler

from monai_diverse.dataset.diverse import DiverseDiffusionDataset, check_seed, seed_of_rank
from monai_diverse.errors import RecipeError


def mixing_sampler(
    dataset: DiverseDiffusionDataset, *, share: float, num_samples: int | None = None, class_balanced: bool = False, seed: int = 0
) -> WeightedRandomSampler:
    """A torch sampler with replacement for a dataset in "append" mode; see `DiverseDiffusionDataset.mixing_weights`.

    It draws differently in every epoch, and all epochs again with the same seed, whatever else draws from torch's random state. In distributed
    training make it after the process group: each process then draws `num_samples` of its own.

    Args:
        dataset: in "append" mode.
        share: expected share of synthetic items, in [0, 1].
        num_samples: items an epoch, from 1; None: as many as the dataset has.
        class_balanced: let every class be equally likely.
        seed: of its generator, from 0.

    Raises:
        RecipeError: a setting outside its range, or one that `mixing_weights` refuses.
    """
    if num_samples is not None and (isinstance(num_samples, bool) or not isinstance(num_samples, int | np.integer) or num_samples < 1):
        raise RecipeError(f"num_samples: expected a whole number from 1, or None, got {num_samples!r}")
    weights = dataset.mixing_weights(share, class_balanced)
    generator = torch.Generator().manual_seed(seed_of_rank(check_seed(seed)))
    count = len(dataset) if num_samples is None else int(num_samples)
    return WeightedRandomSampler(weights, count, replacement=True, generator=generator)  # type: ignore[arg-type]  # takes tensors too
