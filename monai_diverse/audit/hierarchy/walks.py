"""From noise to leaves, and from leaves into noise and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diverse.audit.hierarchy.grammar import Grammar, require_seed
from monai_diverse.audit.hierarchy.losses import NoisyLeaves
from monai_diverse.audit.hierarchy.propagation import most_probable_ancestors
from monai_diverse.errors import DataError
from monai_diverse.sampling import NoiseSchedule, Start, build_scheduler, sample_states
from monai_diverse.sampling.loop import Denoise
from monai_diverse.training.objective import generator_for


def sample_leaves(
    denoise: Denoise, grammar: Grammar, schedule: NoiseSchedule, seeds: Sequence[int], *, steps: int | None = None, start: Start | None = None
) -> Tensor:
    """Leaves int64 (n, leaves) by ancestral sampling (DDPM) on predicted clean leaves; the largest entry of each leaf at the end.

    Two models that are given the same seeds start from the same noise and are given the same noise on the way.

    Args:
        denoise: gives probabilities (n, leaves, q).
        grammar: of the leaves.
        schedule: of the noise.
        seeds: one a sample.
        steps: inference steps, evenly spaced; None: every index of the schedule.
        start: where to start, instead of from pure noise.

    Raises:
        RecipeError: steps that the schedule does not have, or a start after the last step.
    """
    if not len(seeds):
        return torch.zeros((0, grammar.leaves), dtype=torch.int64)
    with torch.no_grad():
        states = sample_states(
            denoise,
            build_scheduler("DDPMScheduler", schedule),
            schedule,
            (grammar.leaves, grammar.alphabet),
            labels=torch.zeros(len(seeds), dtype=torch.int64),
            seeds=seeds,
            steps=len(schedule) if steps is None else steps,
            start=start,
        )
        for state in states:
            last = state
    return last.x.argmax(-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class UTurn:
    """What is left of leaves and their ancestors after a turn in the noise.

    Attributes:
        index: of the schedule, where it turned.
        leaves: int64 (n, leaves) that came back.
        overlap: for each height from the leaves to the root, share of the nodes that are what they were.
        chance: the same for two independent draws of the grammar.
    """

    index: int
    leaves: Tensor
    overlap: list[float]
    chance: list[float]


def u_turn(denoise: Denoise, grammar: Grammar, schedule: NoiseSchedule, leaves: Tensor, index: int, *, seed: int) -> UTurn:
    """Adds noise up to an index, takes it away again step by step, and compares node by node.

    Ancestors are the most probable ones given clean leaves (`most_probable_ancestors`). Sampling takes every index of the schedule on the way back.

    Args:
        denoise: gives probabilities (n, leaves, q).
        grammar: of the leaves.
        schedule: of the noise.
        leaves: int64 (n, leaves), n from 1, to start from.
        index: of the schedule, where to turn.
        seed: of the noise, there and back.

    Raises:
        DataError: not leaves of this grammar, or none.
        RecipeError: an index that the schedule does not have, or a seed below 0.
    """
    if not len(leaves):
        raise DataError("leaves: expected at least one row, got none")
    noisy = NoisyLeaves.draw(grammar, schedule, leaves, torch.full((len(leaves),), index), generator_for(require_seed(seed), 1)).noisy
    start = Start(images=noisy, sigma=float(schedule.noise_ratio(torch.tensor(index))), noised=True)
    seeds = torch.randint(2**62, (len(leaves),), generator=generator_for(seed, 2)).tolist()
    back = sample_leaves(denoise, grammar, schedule, seeds, start=start)
    before, after = most_probable_ancestors(grammar, leaves), most_probable_ancestors(grammar, back)
    overlap = [float((b == a).double().mean()) for b, a in zip(before, after, strict=True)]
    return UTurn(index=index, leaves=back, overlap=overlap, chance=[grammar.chance(height) for height in range(grammar.depth + 1)])
