"""Cross-entropy of predicted leaves, split into what is learned of the score and what is memorised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diverse.audit.hierarchy.denoiser import ExactDenoiser
from monai_diverse.audit.hierarchy.grammar import Grammar, require_seed
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import NoiseSchedule
from monai_diverse.sampling.loop import Denoise
from monai_diverse.training.objective import generator_for

FLOOR = torch.finfo(torch.float32).tiny
"""Probabilities below count as this, so that a network that is sure and wrong costs 87 nats a leaf, not infinitely many."""
CHUNK = 2048
NORMAL = 1.96
"""Standard errors to either end of a 95 % interval."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyLeaves:
    """Leaves with fixed noise, so that losses of different models compare.

    Attributes:
        leaves: int64 (n, leaves), clean.
        noisy: float32 (n, leaves, q), variance-preserving.
        index: int64 (n,) of the schedule.
    """

    leaves: Tensor
    noisy: Tensor
    index: Tensor

    @classmethod
    def draw(cls, grammar: Grammar, schedule: NoiseSchedule, leaves: Tensor, index: Tensor, generator: torch.Generator) -> NoisyLeaves:
        """Adds Gaussian noise: sqrt(abar) x0 + sqrt(1 - abar) eps.

        Args:
            grammar: of the leaves.
            schedule: of the noise.
            leaves: int64 (n, leaves).
            index: int64 (n,) of the schedule.
            generator: the only source of randomness.

        Raises:
            DataError: not leaves of this grammar, or other than one index for each.
            RecipeError: indices that the schedule does not have.
        """
        clean = grammar.one_hot(leaves)
        if tuple(index.shape) != (len(leaves),):
            raise DataError(f"index: expected one for each of {len(leaves)} rows of leaves, got shape {tuple(index.shape)}")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(schedule):
            raise RecipeError(f"index: expected 0..{len(schedule) - 1}, got {int(index.min())}..{int(index.max())}")
        abar = schedule.at(index)[:, None, None]
        noise = torch.randn(clean.shape, generator=generator)
        return cls(leaves=leaves, noisy=abar.sqrt() * clean + (1 - abar).sqrt() * noise, index=index)

    def __len__(self) -> int:
        return len(self.leaves)

    @torch.no_grad()
    def predict(self, denoise: Denoise) -> Tensor:
        """What a denoiser says of each leaf, (n, leaves, q), a chunk at a time."""
        parts = [slice(start, start + CHUNK) for start in range(0, len(self), CHUNK)]
        return torch.cat([denoise(self.noisy[part], self.index[part]) for part in parts])


@dataclass(frozen=True, kw_only=True, eq=False)
class LossSplit:
    """Cross-entropy of each row in nats a leaf, float64 (n,); `total` = `learned` + `memorised`.

    Attributes:
        total: l = -x0 log x_theta.
        learned: l* = -x_BP log x_theta: smallest, the entropy of the posterior, where the prediction is the exact posterior.
        memorised: l~ = -(x0 - x_BP) log x_theta: zero on average over data that the model has not seen; below zero on
            training data once the model knows them better than their noisy versions and the grammar tell.
    """

    total: Tensor
    learned: Tensor
    memorised: Tensor


def split_loss(predicted: Tensor, exact: Tensor, leaves: Tensor) -> LossSplit:
    """Splits a denoiser's loss (Garnier-Brun et al., arXiv 2603.03469).

    Args:
        predicted: x_theta, probabilities (n, leaves, q); those below the smallest normal float32 count as that.
        exact: x_BP, the exact posterior of the same noisy leaves, (n, leaves, q).
        leaves: x0 as symbols, int64 (n, leaves).

    Raises:
        DataError: shapes that do not agree.
    """
    if predicted.shape != exact.shape or predicted.shape[:-1] != leaves.shape:
        shapes = ", ".join(str(tuple(given.shape)) for given in (predicted, exact, leaves))
        raise DataError(f"split: expected probabilities (n, leaves, q), twice, and leaves (n, leaves), got {shapes}")
    log = predicted.double().clamp(min=FLOOR).log()
    total = -log.gather(-1, leaves[..., None])[..., 0].mean(-1)
    learned = -(exact.double() * log).sum(-1).mean(-1)
    return LossSplit(total=total, learned=learned, memorised=total - learned)


def divergence(target: Tensor, predicted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of predicted from target probabilities, in nats a leaf, float64 (n,) for (n, leaves, q) each; never negative."""
    q, p = target.double(), predicted.double().clamp(min=FLOOR).log()
    result: Tensor = (torch.special.xlogy(q, q) - q * p).sum(-1).mean(-1)
    return result


@dataclass(frozen=True, kw_only=True)
class LevelLearned:
    """How much a model knows of what one level of the hierarchy adds.

    Attributes:
        level: k, from 1.
        share: 0 for who knows lower levels only, 1 for who knows this one, above 1 for who makes too much of it.
        ci95: 95 % interval over rows, normal.
    """

    level: int
    share: float
    ci95: tuple[float, float]


def levels_learned(predicted: Tensor, by_level: Sequence[Tensor]) -> list[LevelLearned]:
    """Projects a prediction on what each level adds to the one below, D_k = x_BP_k - x_BP_(k-1): E<x_theta - x_BP_(k-1), D_k> / E|D_k|^2.

    Each level conditions on more leaves than the one below, so the D_k are martingale differences, uncorrelated with one another and with whatever
    lower levels say: x_BP_j has share 1 of the levels up to j and 0 of those above, and errors of other kinds do not count (unlike in a divergence).

    Args:
        predicted: x_theta, probabilities (n, ..., leaves, q); rows along the first axis are independent.
        by_level: what `ExactDenoiser` of level 0, 1, ... says of the same, two at least.

    Raises:
        DataError: fewer than two rows or levels, or shapes that do not agree.
    """
    if len(by_level) < 2 or len(predicted) < 2 or any(level.shape != predicted.shape for level in by_level):
        shapes = ", ".join(str(tuple(level.shape)) for level in by_level)
        raise DataError(f"levels: expected two or more of the prediction's shape, {tuple(predicted.shape)}, two or more rows, got {shapes}")
    found = []
    for k in range(1, len(by_level)):
        below, added = by_level[k - 1].double(), by_level[k].double() - by_level[k - 1].double()
        known, all_there_is = ((part * added).flatten(1).sum(1) for part in (predicted.double() - below, added))
        share = float(known.mean() / all_there_is.mean())
        half = NORMAL * float((known - share * all_there_is).std() / all_there_is.mean()) / len(known) ** 0.5
        found.append(LevelLearned(level=k, share=share, ci95=(share - half, share + half)))
    return found


def loss_by_index(denoise: Denoise, grammar: Grammar, schedule: NoiseSchedule, leaves: Tensor, indices: Sequence[int], *, seed: int) -> list[float]:
    """Mean cross-entropy, in nats a leaf, at each of some noise indices; the same noise for each denoiser and index.

    Args:
        denoise: gives probabilities (n, leaves, q).
        grammar: of the leaves.
        schedule: of the noise.
        leaves: int64 (n, leaves), n from 1.
        indices: of the schedule.
        seed: of the noise.

    Raises:
        DataError: not leaves of this grammar, or none.
        RecipeError: indices that the schedule does not have, or a seed below 0.
    """
    if not len(leaves):
        raise DataError("leaves: expected at least one row, got none")
    losses = []
    for index in indices:
        bank = NoisyLeaves.draw(grammar, schedule, leaves, torch.full((len(leaves),), index), generator_for(require_seed(seed)))
        predicted = bank.predict(denoise)
        losses.append(float(split_loss(predicted, predicted, leaves).total.mean()))
    return losses


def oracle_loss(
    grammar: Grammar, schedule: NoiseSchedule, leaves: Tensor, indices: Sequence[int], *, seed: int, level: int | None = None
) -> list[float]:
    """`loss_by_index` of the exact denoiser, or of one that knows subtrees up to `level`; no denoiser has less on average over the grammar's leaves.

    Raises:
        DataError: not leaves of this grammar, or none.
        RecipeError: indices that the schedule does not have, no such level, or a seed below 0.
    """
    return loss_by_index(ExactDenoiser(grammar=grammar, schedule=schedule, level=level), grammar, schedule, leaves, indices, seed=seed)
