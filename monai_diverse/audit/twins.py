"""Twins: two models trained alike on disjoint halves of the patients. Where they part, each has begun to learn its own patients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.audit.division import DIVISION, Division
from monai_diverse.audit.halves import grouped
from monai_diverse.audit.twin_measures import Measures, measure, of_reals, quadruplets
from monai_diverse.audit.twin_recipe import TwinRecipe
from monai_diverse.audit.twin_result import TwinAudit, conclude
from monai_diverse.audit.twin_training import TwinJob, trained
from monai_diverse.data import IntArray, LabelledImages
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.storage import make_folder, read_json, write_json

RECIPE = "twins.json"
SEEDS_FROM = 2**33


@dataclass(frozen=True)
class TwinProgress:
    """How far an audit by twins is.

    Attributes:
        stage: `train` or `measure`.
        done: optimiser steps of all twins, or checkpoints measured.
        total: of that stage.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All twins of an audit, with what they see."""

    recipe: TwinRecipe
    data: LabelledImages
    division: Division
    out: Path

    def job(self, pair: int, twin: int) -> TwinJob:
        recipe = self.recipe
        return TwinJob(
            trainer=recipe.trainer,
            data=self.seen(pair)[twin],
            test=self.test,
            seed=recipe.seed_of(pair, twin),
            checkpoints=recipe.schedule,
            out=self.folder(pair, twin),
        )

    def folder(self, pair: int, twin: int) -> Path:
        return self.out / f"pair{pair}" / "ab"[twin]

    def measures(self, pair: int, step: int) -> Path:
        return self.out / f"pair{pair}" / "measures" / f"{step:06d}.npz"

    def measured(self, pair: int) -> bool:
        return all(self.measures(pair, step).exists() for step in self.recipe.schedule)

    def seen(self, pair: int) -> tuple[LabelledImages, LabelledImages]:
        halves = self.division.pairs[pair]
        return self.data[halves.a], self.data[halves.b]

    @property
    def test(self) -> LabelledImages:
        return self.data[self.division.test]

    def sources(self, pair: int, step: int) -> tuple[DiffusionSource, DiffusionSource]:
        first, second = (self.recipe.trainer.load(self.folder(pair, twin), step) for twin in (0, 1))
        return first, second

    def draws(self, pair: int) -> tuple[IntArray, IntArray]:
        """Labels by the data's class shares, and seeds: other ones for each pair, the same for all its checkpoints."""
        recipe, labels = self.recipe, self.data.labels[self.division.rest]
        rng = np.random.default_rng(np.random.SeedSequence([recipe.seed, pair]))
        seeds = SEEDS_FROM + (recipe.seed * 1000 + pair) * 2**20 + np.arange(recipe.images)
        return labels[rng.integers(len(labels), size=recipe.images)], seeds.astype(np.int64)


def audit_twins(recipe: TwinRecipe, data: LabelledImages, groups: IntArray | None = None, *, out: Path | str, workers: int = 1) -> TwinAudit:
    """Trains pairs of twins on disjoint halves of the patients and tells from which step on they learn their own patients by heart.

    Garnier-Brun et al., Biased Generalization in Diffusion Models (arXiv 2603.03469): the twins' samples from the same noises grow alike while
    both learn what all patients share, and part again when each learns its own, often before the test loss reaches its minimum.

    Args:
        recipe: how twins are trained and compared.
        data: labelled images.
        groups: int (n,), patients; None: the data's own groups, or near-duplicates.
        out: folder; an interrupted audit there is taken up again.
        workers: processes; each trains one twin at a time, with its share of the cores.

    Raises:
        RecipeError: `out` holds another audit, a worker died, or no worker.
        DataError: too few images or patients.
        StorageError: the disk refuses; what was finished is kept.
    """
    for _ in twin_steps(recipe, data, groups, out=out, workers=workers):
        pass
    return twin_result(recipe, data, groups, out=out)


def twin_steps(
    recipe: TwinRecipe, data: LabelledImages, groups: IntArray | None = None, *, out: Path | str, workers: int = 1
) -> Iterator[TwinProgress]:
    """The work of `audit_twins`, piece by piece; `twin_result` reads its outcome."""
    if workers < 1:
        raise RecipeError(f"workers: expected at least 1, got {workers}")
    plan = _begin(recipe, data, groups, Path(out))
    total = 2 * recipe.pairs * recipe.schedule[-1]
    jobs = [plan.job(pair, twin) for pair in range(recipe.pairs) if not plan.measured(pair) for twin in (0, 1)]
    before = total - len(jobs) * recipe.schedule[-1]
    for done in trained(jobs, workers):
        yield TwinProgress("train", before + done, total)
    checkpoints = [(pair, step) for pair in range(recipe.pairs) for step in recipe.schedule]
    for number, (pair, step) in enumerate(checkpoints, 1):
        if not plan.measures(pair, step).exists():
            _measure(plan, pair, step)
        yield TwinProgress("measure", number, len(checkpoints))


def twin_result(recipe: TwinRecipe, data: LabelledImages, groups: IntArray | None = None, *, out: Path | str) -> TwinAudit:
    """What the twins in `out` show; they must be trained and measured. Writes nothing.

    Raises:
        DataError: twins or measures are missing.
        RecipeError: `out` holds another audit.
    """
    plan = _found(recipe, data, groups, Path(out))
    pairs = range(recipe.pairs)
    found = [[Measures.read(plan.measures(pair, step)) for pair in pairs] for step in recipe.schedule]
    settings = recipe.describe() | {"tolerance": recipe.tolerance, "quality_floor": recipe.quality_floor, "resamples": recipe.resamples}
    sizes = [len(half) for pair in plan.division.pairs[: recipe.pairs] for half in (pair.a, pair.b)]
    told = {"images": len(plan.data), "groups": len(np.unique(plan.data.group_ids)), "per_twin": sizes, "test": len(plan.division.test)}
    summary, stops = conclude(
        recipe.schedule,
        found,
        tolerance=recipe.tolerance,
        floor=recipe.quality_floor,
        confidence=recipe.confidence,
        resamples=recipe.resamples,
        seed=recipe.seed,
    )
    chosen = sorted({stop.step for stop in stops.values() if stop.step is not None})
    sources = {step: plan.sources(0, step) for step in chosen}
    mirrored = sources[chosen[0]][0].mirrored
    reals = of_reals([half for pair in pairs for half in plan.seen(pair)], plan.test, recipe.features, mirrored=mirrored)
    return TwinAudit(
        summary=summary | reals | {"recipe": settings, "data": told, "pairs": recipe.pairs},
        stops=stops,
        quadruplets={step: quadruplets(sources[step], plan.seen(0), *plan.draws(0), recipe.features) for step in chosen},
    )


def _begin(recipe: TwinRecipe, data: LabelledImages, groups: IntArray | None, out: Path) -> _Plan:
    """The plan in `out`, which is made or extended; the recipe is written last, so that a folder with a recipe has a division."""
    known = grouped(data, groups, recipe.twin_correlation)
    identity = _identity(recipe, known)
    begun = _require_same(identity, out)
    known_division = begun or (out / DIVISION).exists()
    kept = _division(out, known) if known_division else Division.of(known, recipe.test_parts, recipe.seed)
    division = kept.extended(known, recipe.pairs, recipe.per_twin, recipe.seed)
    make_folder(out)
    if len(division.pairs) > len(kept.pairs):
        division.write(out)
    if not begun:
        write_json(out / RECIPE, identity)
    return _Plan(recipe=recipe, data=known, division=division, out=out)


def _found(recipe: TwinRecipe, data: LabelledImages, groups: IntArray | None, out: Path) -> _Plan:
    known = grouped(data, groups, recipe.twin_correlation)
    if not _require_same(_identity(recipe, known), out):
        raise DataError(f"{out / RECIPE}: expected twins, but there are none yet; train them with audit_twins or twin_steps")
    division = _division(out, known)
    if len(division.pairs) < recipe.pairs:
        raise DataError(f"{out}: expected {recipe.pairs} pairs of twins, got {len(division.pairs)}; train them with audit_twins or twin_steps")
    return _Plan(recipe=recipe, data=known, division=division, out=out)


def _identity(recipe: TwinRecipe, data: LabelledImages) -> dict[str, Any]:
    identity: dict[str, Any] = json.loads(json.dumps(recipe.describe() | {"data_sha256": data.sha256(groups=True)}))
    return identity


def _require_same(identity: dict[str, Any], out: Path) -> bool:
    """Whether there are twins in `out` already; refuses others."""
    file = out / RECIPE
    if not file.exists():
        return False
    held = read_json(file)
    if held == identity:
        return True
    differing = ", ".join(sorted(name for name in held.keys() | identity.keys() if held.get(name) != identity.get(name)))
    raise RecipeError(f"{out}: holds twins with other data or settings ({differing}); use another folder, or delete it to begin again")


def _division(out: Path, data: LabelledImages) -> Division:
    if not (out / DIVISION).exists():
        raise DataError(f"{out / DIVISION}: expected who sees what, since {RECIPE} is there, but there is no such file; use another folder")
    return Division.read(out, data)


def _measure(plan: _Plan, pair: int, step: int) -> None:
    recipe = plan.recipe
    labels, seeds = plan.draws(pair)
    found = measure(plan.sources(pair, step), plan.seen(pair), plan.test, labels=labels, seeds=seeds, features=recipe.features, seed=recipe.seed)
    file = plan.measures(pair, step)
    make_folder(file.parent)
    found.write(file)
