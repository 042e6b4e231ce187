"""What a study found, as one JSON value: the primary comparisons first, everything else as exploratory."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.data import LabelledImages
from monai_diverse.errors import DataError
from monai_diverse.screening import Yield
from monai_diverse.storage import read_json
from monai_diverse.study.conduct import PROCESSORS, Cell, Study
from monai_diverse.study.inference import holm, paired_difference
from monai_diverse.study.metrics import metrics_of
from monai_diverse.study.plan import CEILING, StudyPlan
from monai_diverse.study.runs import Result, Setting, sweep
from monai_diverse.study.statistics import CONFIDENCE, over_seeds
from monai_diverse.study.synthetic import GROWN
from monai_diverse.version import __version__

Keep = npt.NDArray[np.bool_] | None
BESIDE = (("random", "real"), ("relevant", "random"), (CEILING, "real"))
"""Further pairs: what plain samples are worth, right labels beside them, and more real images."""


def outcome(study: Study) -> dict[str, Any]:
    """Summarises a study that `study_steps` has run to its end.

    Args:
        study: with all its results.

    Returns:
        JSON, of which `report.write_study` makes a page: what was studied (name, regime, data, generator, plan), the vector instructions of the
        processors that computed it (`instructions`), `primary` (what was fixed before) and `cells`, one a size: the user's reals, the chosen ratio,
        the sweep that chose it (`ratios`), `arms`, `comparisons` and `yields`; and `untested`: None, or why no bank was trained on.

    Raises:
        DataError: a study that has not been run.
    """
    plan, cohort = study.plan, study.cohort
    if not study.cells or any((cell.ratio is None and cell.untested is None) or not cell.results for cell in study.cells):
        raise DataError("study: expected one whose steps have all been run, got an unfinished one; run study_steps first")
    scored = study.scored()
    keep = cohort.test_apart if study.test and not cohort.test_apart.all() else None
    cells = [_cell(plan, cell, scored, keep) for cell in study.cells]
    _correct(cells)
    return {
        "kind": "study",
        "version": __version__,
        "name": plan.name,
        "regime": plan.regime,
        "confidence": CONFIDENCE,
        "scored_on": "test" if study.test else "development",
        "data": _data(study, len(scored)),
        "generator": _generator(study.cells[0]),
        "plan": plan.as_json(),
        "instructions": read_json(study.out / PROCESSORS)["instructions"],
        "primary": primary_of(plan),
        "cells": cells,
    }


def _data(study: Study, scored: int) -> dict[str, Any]:
    cohort = study.cohort
    return {
        "name": cohort.path.name,
        "sha256": cohort.sha256,
        "class_names": list(study.cells[0].stocks[0].user.generator.class_names),
        "images": {"train": len(cohort.train), "validation": len(cohort.validation), "test": len(cohort.test), "scored": scored},
        "test_without_twins": int(cohort.test_apart.sum()),
    }


def _generator(cell: Cell) -> dict[str, Any]:
    generator = cell.stocks[0].user.generator
    counts = {"images": len(generator.seen), "aside": len(generator.aside), "trained": generator.trained}
    return {**generator.described, "source": generator.source.target, **counts}


def primary_of(plan: StudyPlan) -> dict[str, Any]:
    """What was fixed before the runs, as JSON and in a sentence."""
    primary, sizes = plan.primary, plan.primary.sizes or plan.sizes
    shares = ", ".join(f"{100 * size:g} %" for size in sizes)
    arm, *controls = (name.replace("_", " ") for name in (primary.arm, *primary.controls))
    text = (
        f"{primary.metric.replace('_', ' ')} of {arm} against {' and '.join(controls)} at equal counts, {shares} of the labelled images,"
        f" {primary.training} training {'with' if primary.augment else 'without'} random transforms, ratio chosen on validation;"
        f" {len(sizes) * len(controls)} comparisons, Holm's correction"
    )
    values = {"metric": primary.metric, "arm": primary.arm, "controls": list(primary.controls), "sizes": list(sizes)}
    return values | {"training": primary.training, "augment": primary.augment, "text": text}


def _cell(plan: StudyPlan, cell: Cell, scored: LabelledImages, keep: Keep) -> dict[str, Any]:
    by_setting: dict[Setting, list[Result]] = {}
    for result in cell.results:
        by_setting.setdefault(result.setting, []).append(result)
    stock = cell.stocks[0]
    reals = stock.cohort.train.labels[stock.user.reals]
    chosen = {  # an arm that found nothing would be another `real`
        setting: results
        for setting, results in by_setting.items()
        if setting.ratio in (None, cell.ratio) and (setting.ratio is None or any(result.images for result in results))
    }
    return {
        "size": cell.size,
        "real": {"images": len(reals), "by_class": np.bincount(reals).tolist()},
        "subsets": len(cell.stocks),
        "extra": len(stock.user.extra),
        "ratio": cell.ratio,
        "untested": cell.untested,
        "ratios": [_swept(setting, by_setting[setting]) for setting in sweep(plan) if setting in by_setting],
        "arms": [_arm(setting, results, cell, scored, keep) for setting, results in chosen.items()],
        "comparisons": list(_comparisons(plan, cell, chosen, scored, keep)),
        "yields": _yields(cell),
        "seconds": sum(result.run.seconds for result in cell.results),
    }


def _swept(setting: Setting, results: list[Result]) -> dict[str, Any]:
    counts = float(np.mean([result.images for result in results]))
    shown = {"validation": [result.run.validation for result in results], "scores": [result.run.metrics for result in results]}
    return {"arm": setting.arm, "ratio": setting.ratio, "images": counts, **{name: over_seeds(values) for name, values in shown.items()}}


def _arm(setting: Setting, results: list[Result], cell: Cell, scored: LabelledImages, keep: Keep) -> dict[str, Any]:
    asked = None if setting.ratio is None else int(np.mean([stock.asked(setting.ratio).sum() for stock in cell.stocks]))
    apart = None
    if keep is not None:
        apart = over_seeds([metrics_of(result.run.probabilities[keep], scored.labels[keep]) for result in results])
    return {
        "arm": setting.arm,
        "augment": setting.augment,
        "training": setting.training,
        "ratio": setting.ratio,
        "asked": asked,
        "images": float(np.mean([result.images for result in results])),
        "by_class": np.mean([result.by_class for result in results], axis=0).tolist(),
        "seeds": len(results),
        "metrics": over_seeds([result.run.metrics for result in results]),
        "validation": over_seeds([result.run.validation for result in results]),
        "without_twins": apart,
    }


def _comparisons(plan: StudyPlan, cell: Cell, chosen: dict[Setting, list[Result]], scored: LabelledImages, keep: Keep) -> list[dict[str, Any]]:
    """The primary arm against every other arm that was trained alike, and `BESIDE`.

    Those trained as in the primary comparisons are compared by the area under the ROC curve too, which a moved threshold does not change.
    """
    primary, rows = plan.primary, []
    for ours, theirs in itertools.permutations(chosen, 2):
        alike = ours.training == primary.training and ours.augment == primary.augment
        if theirs.augment != ours.augment or (theirs.ratio is not None and theirs.training != ours.training):
            continue
        if ours.arm != primary.arm and not (alike and (ours.arm, theirs.arm) in BESIDE):
            continue
        pair = chosen[ours], chosen[theirs]
        tested = ours.arm == primary.arm and theirs.arm in primary.controls and cell.size in (primary.sizes or plan.sizes)
        rows.append(
            {
                "arm": ours.arm,
                "control": theirs.arm,
                "augment": ours.augment,
                "training": ours.training,
                "ratio": ours.ratio,
                "metric": primary.metric,
                "primary": alike and tested,
                "difference": _difference(*pair, scored, None, primary.metric) | {"p_holm": None},
                "auc": _difference(*pair, scored, None, "auc") if alike else None,
                "without_twins": None if keep is None else _difference(*pair, scored, keep, primary.metric),
            }
        )
    return rows


def _difference(ours: list[Result], theirs: list[Result], scored: LabelledImages, keep: Keep, metric: str) -> dict[str, Any]:
    kept = np.ones(len(scored), dtype=bool) if keep is None else keep
    seeds = [sorted(result.seed for result in results) for results in (ours, theirs)]
    if seeds[0] != seeds[1]:
        raise DataError(f"study: expected arms on the same seeds, got {seeds[0]} and {seeds[1]}; run study_steps to its end")
    our, their = (np.stack([r.run.probabilities[kept] for r in sorted(results, key=lambda r: r.seed)]) for results in (ours, theirs))
    return paired_difference(our, their, scored.labels[kept], groups=scored.group_ids[kept], metric=metric)


def _correct(cells: list[dict[str, Any]]) -> None:
    """Writes Holm's adjusted p into the primary comparisons of all cells together."""
    family = [row["difference"] for cell in cells for row in cell["comparisons"] if row["primary"]]
    for difference, adjusted in zip(family, holm([difference["p"] for difference in family]), strict=True):
        difference["p_holm"] = adjusted


def _yields(cell: Cell) -> dict[str, Any]:
    """Summed over the draws of the user where each draw has samples of its own; of those that judge the same images the mean, as of one draw."""
    sums = {}
    for name in dict.fromkeys(name for stock in cell.stocks for name in stock.found.yields):
        parts = [stock.found.yields[name] for stock in cell.stocks]
        shared = 1 if name in GROWN else len(parts)
        drawn, accepted = (round(sum(part[key] for part in parts) / shared) for key in ("drawn", "accepted"))
        nfe = None if any(part.get("nfe") is None for part in parts) else round(sum(int(part["nfe"]) for part in parts) / shared)
        sums[name] = Yield(drawn=drawn, accepted=accepted, nfe=nfe).as_json()
    return sums
