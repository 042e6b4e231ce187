"""The best denoiser there is for a grammar's leaves, and those that know only part of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from monai_diverse.audit.hierarchy.grammar import Grammar
from monai_diverse.audit.hierarchy.propagation import propagate
from monai_diverse.errors import RecipeError
from monai_diverse.sampling import NoiseSchedule


def published_schedule(steps: int = 500) -> NoiseSchedule:
    """The noise of arXiv 2603.03469 for this data: betas from 2e-4 to .04, linear in the index.

    Raises:
        RecipeError: fewer than two steps.
    """
    if steps < 2:
        raise RecipeError(f"steps: expected at least 2, got {steps}")
    return NoiseSchedule.from_betas(torch.linspace(2e-4, 0.04, steps))


@dataclass(frozen=True, kw_only=True, eq=False)
class ExactDenoiser:
    """E[x0 | x_t], by belief propagation; at a lower `level` what an observer of single subtrees would say.

    At noise abar a leaf's evidence for symbol a is x_t[a] sqrt(abar) / (1 - abar), the logarithm of the Gaussian likelihood up to a constant.
    Level k gives each leaf its posterior given the noisy leaves of its subtree of height k and nothing else: level 0 is independent leaves with
    their priors, level `depth` is exact. Between them, levels are what a model has learned that knows correlations up to that height.

    Attributes:
        grammar: of the data.
        schedule: of the noise.
        level: 0..depth; None: the full depth.

    Raises:
        RecipeError: no such level.
    """

    grammar: Grammar
    schedule: NoiseSchedule = field(default_factory=published_schedule)
    level: int | None = None

    def __post_init__(self) -> None:
        if self.level is not None:
            self.grammar.require_height("level", self.level)

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """Probabilities (n, leaves, q) in the dtype of x, computed in double precision.

        Args:
            x: noisy leaves sqrt(abar) x0 + sqrt(1 - abar) eps, float (n, leaves, q).
            index: int64 (n,) of the schedule.

        Raises:
            DataError: x of another shape or not finite.
        """
        abar = self.schedule.at(index).double()[:, None, None]
        evidence = x.double() * abar.sqrt() / (1 - abar)
        return propagate(self.grammar, evidence, self.level)[0].to(x.dtype)
