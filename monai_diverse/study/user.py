"""What the user of a study has: some of the labelled images, and the recipe that grows a bank from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_diverse.data import IntArray
from monai_diverse.recipe import Recipe
from monai_diverse.storage import make_folder, write_json
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.generator import Generator
from monai_diverse.study.plan import StudyPlan

SEEDS = 2**15
"""Recipe seeds of a study; the first is for samples without a user, each draw of a user has one of the others."""


@dataclass(frozen=True, kw_only=True)
class User:
    """What one draw of a user has.

    Attributes:
        size: share of the labelled images.
        draw: number of the draw.
        reals: indices into the cohort's train images.
        extra: as `reals`: further labelled images, that only the arm `extra_real` sees.
        generator: the one that this user has.
        recipe: of the arm `diverse`.
    """

    size: float
    draw: int
    reals: IntArray
    extra: IntArray
    generator: Generator
    recipe: Recipe


def user_of(plan: StudyPlan, cohort: Cohort, generator: Generator, *, size: float, draw: int, scored: IntArray, out: Path) -> User:
    """Draws what the user has, and writes down which images play which part.

    In the regime `strict` the user has what the generator was trained on and what was set aside then. Novelty is judged against the former.

    Args:
        plan: every choice.
        cohort: all real images.
        generator: the one that the user has.
        size: the user's share of the labelled images.
        draw: number of the draw.
        scored: indices into the cohort's train images, those that classifiers are scored on while the method is being chosen; no arm may have them.
        out: folder of the study.
    """
    labelled = np.sort(np.concatenate([generator.seen, generator.aside]))
    if plan.regime == "strict":
        reals, file, reference = labelled, generator.split_file, "generator_train"
        rest = np.setdiff1d(np.arange(len(cohort.train)), labelled)
    else:
        reals, reference = cohort.drawn(generator.seen, size, draw, plan.seed), "user"
        file = make_folder(out / "users") / f"{size:g}-{draw}.json"
        write_json(file, {"user": reals.tolist(), "generator_train": generator.seen.tolist(), "calibration": generator.aside.tolist()})
        rest = np.setdiff1d(labelled, reals)
    recipe = Recipe(
        source=generator.source,
        reference=generator.choice(reference, split_file=file),
        calibration=generator.choice("calibration", split_file=file),
        generator_train=generator.choice("generator_train", split_file=file, mirrored=generator.mirrored),
        guide=plan.guide,
        screen=plan.screen,
        labels=plan.labels,
        size=round(max(plan.ratios) * len(reals) * plan.surplus),
        max_evaluations=plan.max_evaluations,
        steps=plan.steps,
        batch_size=plan.batch_size,
        seed=plan.seed * SEEDS + 1 + draw,
        folder=plan.folder,
        allow=plan.allow,
    )
    return User(size=size, draw=draw, reals=reals, extra=cohort.apart_from(rest, np.concatenate([reals, scored])), generator=generator, recipe=recipe)
