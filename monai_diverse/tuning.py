"""How strongly to push: a pilot for each strength, and the frontier of yield against realism that they draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from monai_diverse.errors import RecipeError
from monai_diverse.growth import rehearse
from monai_diverse.job import Job
from monai_diverse.recipe import Recipe
from monai_diverse.screening import Verdict, Yield

STRENGTHS = (0.0, 0.15, 0.3, 0.6, 1.2)
TOLERANCE = 0.03


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """One point of the frontier.

    Attributes:
        strength: of the guide's push.
        outcome: yield in the recipe's own screen.
        in_distribution: share of the pilot's samples that the outlier gate passes.
    """

    strength: float
    outcome: Yield
    in_distribution: float

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        return {"strength": self.strength, **self.outcome.as_json(), "in_distribution": self.in_distribution}

    def __str__(self) -> str:
        rate = self.outcome.accepted_per_1k_nfe or 0.0
        return f"strength {self.strength:g}: {rate:.2f} accepted in 1000 evaluations, {self.in_distribution:.1%} in distribution; {self.outcome}"


def pilots(recipe: Recipe, *, strengths: Sequence[float] = STRENGTHS, evaluations: int = 10_000) -> Iterator[Pilot]:
    """Runs a pilot for each strength, each on the same seeds, which are not those of the recipe's bank.

    The pilots are judged by the recipe's own screen, so the yield of the bank that follows is tuned on it: judge it with another feature
    space too before you compare it with anything.

    Args:
        recipe: its guide has a `strength`, as `Diverse`, `Shield`, `Particle` and `Semantic` have.
        strengths: what to try.
        evaluations: network evaluations for each.

    Raises:
        RecipeError: a guide without a strength, or too few evaluations for one batch.
    """
    if recipe.guide is None:
        raise RecipeError("tune: expected a recipe with a guide, got one without; add `guide: diverse`")
    aside = replace(recipe, seed=2**31 - 1 - recipe.seed, size=None, max_evaluations=evaluations)
    prepared = Job.prepare(replace(aside, guide=None))
    for strength in strengths:
        job = prepared.with_guide(with_strength(aside, strength).guide)
        verdicts: list[Verdict] = []
        nfe = 0
        for round_ in rehearse(job):
            verdicts, nfe = [*verdicts, *round_.verdicts], nfe + round_.nfe
        threshold = job.screen.gates["outlier"].threshold
        yield Pilot(
            strength=strength,
            outcome=Yield(drawn=len(verdicts), accepted=sum(v.accepted for v in verdicts), nfe=nfe),
            in_distribution=float(np.mean([v.scores["outlier"] <= threshold for v in verdicts])),
        )


def best(found: Sequence[Pilot]) -> Pilot:
    """The highest yield among the pilots whose in-distribution share is at most 3 points below that of the weakest push."""
    weakest = min(found, key=lambda pilot: pilot.strength)
    sound = [pilot for pilot in found if pilot.in_distribution >= weakest.in_distribution - TOLERANCE]
    return max(sound, key=lambda pilot: (pilot.outcome.accepted_per_1k_nfe or 0.0, -pilot.strength))


def with_strength(recipe: Recipe, strength: float) -> Recipe:
    """The recipe with its guide at another strength.

    Raises:
        RecipeError: a recipe without a guide.
    """
    if recipe.guide is None:
        raise RecipeError("strength: expected a recipe with a guide, got one without; add `guide: diverse`")
    return replace(recipe, guide=replace(recipe.guide, arguments={**recipe.guide.arguments, "strength": strength}))
