"""How many diverse images does each sampler find in 1000 network evaluations? Judged in a feature space that no guide and no tuning saw.

python benchmarks/yield.py [--quick] [--json] [--pneumonia MODEL DATA] [--work DIR] [--only DATASET]

The second data set needs a model that is not shipped; docs/sampler.md has its training command. Arms are kept in --work, so that an
interrupted run goes on, and the data sets can be drawn by two processes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from prdc import compute_prdc
from scipy.spatial.distance import cdist
from tqdm import tqdm
from unseen import unseen_extractor
from yield_summary import as_markdown, bars, summarised

from monai_diverse import __version__
from monai_diverse.components import Component
from monai_diverse.data import LabelledImages, near_duplicate_groups
from monai_diverse.growth import rehearse
from monai_diverse.information import vendi_score
from monai_diverse.job import Job
from monai_diverse.recipe import DataChoice, Recipe
from monai_diverse.report.provenance import describe_environment
from monai_diverse.sampling import Shield
from monai_diverse.screening import FittedScreen, NoveltyScreen
from monai_diverse.sources.builtin import builtin_data
from monai_diverse.storage import fingerprint_of, read_json, write_json
from monai_diverse.tuning import best, pilots

RESULTS = Path(__file__).parent / "results"
FAST = {"target": "monai_diverse.sources.Precision", "arguments": {"dtype": "bfloat16", "compile": True}}
PILOT = 6_000
EQUAL = 200


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A sampler: a guide, and what the source is made with; `tuned` as `monai-diverse grow --tune` does, in the guide's own space."""

    guide: str | None = None
    settings: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    budget: int = 4_000
    seeds: int = 2
    tuned: bool = False


def sampler(name: str, **settings: Any) -> dict[str, Any]:
    return {"target": f"monai_diverse.sampling.{name}", "arguments": settings}


ARMS = {
    "diverse": Arm(guide="Diverse", budget=10_000, seeds=3),
    "iid": Arm(budget=10_000, seeds=10),  # ten times the evaluations of a guided seed: the denominator of every ratio
    "branch": Arm(guide="Branch", budget=10_000, seeds=3),
    "shield": Arm(guide="Shield"),
    "boost_and_skip": Arm(guide="BoostAndSkip"),
    "cads": Arm(source={"cads": sampler("CADS"), "precision": {**FAST, "arguments": {"dtype": "bfloat16"}}}),  # it hooks into the network
    "guidance_interval": Arm(source={"guidance": sampler("ClassifierFree", scale=2.0, sigma_min=0.3, sigma_max=5.0)}),
    "particle": Arm(guide="Particle"),
    "churn": Arm(guide="Churn"),
    "shield_polish": Arm(guide="Together", settings={"guides": [sampler("Shield"), sampler("Polish")]}),
    "semantic": Arm(guide="Semantic"),
    "early_choice": Arm(guide="EarlyChoice"),
    "diverse_tuned": Arm(guide="Diverse", budget=10_000, seeds=3, tuned=True),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A data set: its recipe without a guide, and real images that model, reference and calibration never saw."""

    recipe: Recipe
    unseen_real: LabelledImages


def breast() -> Setting:
    """The shipped model. Unseen: val and test images without a near-duplicate in the official train split; nothing is tuned on them."""
    data = builtin_data()
    known = np.concatenate([data.generator_train.group_ids, data.calibration.group_ids])
    parts = [part[np.flatnonzero(~np.isin(part.group_ids, known))] for part in (data.validation, data.test)]
    unseen = LabelledImages(
        images=np.concatenate([p.images for p in parts]), labels=np.concatenate([p.labels for p in parts]),
        groups=np.concatenate([p.group_ids for p in parts]),
    )  # fmt: skip
    recipe = Recipe(
        source=Component(target="monai_diverse.BuiltinSource", arguments={"precision": FAST}),
        reference=DataChoice(path="builtin", part="generator_train"),
        calibration=DataChoice(path="builtin", part="calibration"),
        generator_train=DataChoice(path="builtin", part="generator_train", mirrored=True),
    )
    return Setting(recipe=recipe, unseen_real=unseen)


def pneumonia(model: Path, data: Path) -> Setting:
    """A model of `monai-diverse train --no-mirror`. Unseen: val images without a near-duplicate in train; test is left alone."""
    train, unseen = (DataChoice(path=str(data.resolve()), split=split).load(Path()) for split in ("train", "val"))
    groups = near_duplicate_groups(np.concatenate([train.images, unseen.images]), DataChoice(path="").twin_correlation)
    apart = ~np.isin(groups[len(train) :], groups[: len(train)])
    split = str((model / "split.json").resolve())
    recipe = Recipe(
        source=Component(target="monai_diverse.DiffusersSource", arguments={"folder": str(model.resolve()), "precision": FAST}),
        **{
            name: DataChoice(path=str(data.resolve()), split_file=split, part=part)
            for name, part in (("reference", "generator_train"), ("calibration", "calibration"), ("generator_train", "generator_train"))
        },
    )
    return Setting(recipe=recipe, unseen_real=unseen[np.flatnonzero(apart)])


def recipe_of(setting: Setting, arm: Arm, seed: int) -> Recipe:
    recipe = setting.recipe
    source = replace(recipe.source, arguments={**recipe.source.arguments, **(arm.source or {})})
    guide = None if arm.guide is None else Component(target=f"monai_diverse.sampling.{arm.guide}", arguments=arm.settings or {})
    return replace(recipe, source=source, guide=guide, max_evaluations=arm.budget, seed=seed)


def draw(job: Job, tick: Callable[[int], object]) -> dict[str, Any]:
    """Every image that the job draws within its evaluations, and whether its own screen accepted it."""
    rounds = []
    for found in rehearse(job):
        rounds.append(found)
        tick(found.nfe)
    own = np.concatenate([[v.accepted for v in r.verdicts] for r in rounds])
    images, labels = (np.concatenate([getattr(r, part) for r in rounds]) for part in ("images", "labels"))
    return {"images": images, "labels": labels, "own": own, "nfe": sum(r.nfe for r in rounds)}  # calibration is added by the caller


def judged(drawn: dict[str, Any], screen: FittedScreen, reference: LabelledImages) -> dict[str, Any]:
    """What an unseen screen says of the images, accepted ones counted without repeats."""
    views, real = screen.embed(drawn["images"], drawn["labels"]), screen.embed(reference.images, reference.labels).features
    verdicts = screen.judge(views)
    kept = np.array([v.accepted for v in verdicts])
    with contextlib.redirect_stdout(io.StringIO()):  # the package prints
        quality = compute_prdc(real, views.features, nearest_k=5)
        equal = compute_prdc(real, views.features[:EQUAL], nearest_k=5)  # recall grows with the number of samples
    nearest = screen.seen.distances(views.features, 1)[:, 0]
    within = cdist(real, real)
    np.fill_diagonal(within, np.inf)
    width = float(np.median(within.min(1)))
    chosen = views.features[kept]
    return {
        "nfe": drawn["nfe"], "drawn": len(views), "accepted": int(kept.sum()), "own_accepted": int(drawn["own"].sum()),
        "accepted_by_both": int((kept & drawn["own"]).sum()),
        "novel": float(np.mean([v.scores["not_novel"] <= screen.gates["not_novel"].threshold for v in verdicts])),
        "in_distribution": float(np.mean([v.scores["outlier"] <= screen.gates["outlier"].threshold for v in verdicts])),
        "precision": float(quality["precision"]), "recall": float(equal["recall"]), "nearest": float(np.median(nearest)),
        "vendi": float(vendi_score(np.exp(-cdist(chosen, chosen, "sqeuclidean") / (2 * width**2)))) if len(chosen) else 0.0,
    }  # fmt: skip


def run(name: str, setting: Setting, work: Path, quick: bool, finished: bool) -> dict[str, Any]:
    """Draws and judges every arm of a data set that `work` does not hold yet, or leaves out what it does not hold."""
    plain = Job.prepare(setting.recipe)
    reference, aside = setting.recipe.reference.load(Path()), setting.recipe.calibration.load(Path())
    seen = setting.recipe.generator_train
    screen = NoveltyScreen(extractor=unseen_extractor()).fit(reference, aside, seen and seen.load(Path()))
    arms = {n: replace(a, budget=6_000, seeds=1) for n, a in ARMS.items() if n in ("iid", "shield", "diverse")} if quick else ARMS
    found: dict[str, list[dict[str, Any]]] = {}
    frontier: list[dict[str, Any]] = []
    for arm_name, arm in arms.items():
        if arm.tuned and finished and not list(work.glob(f"{name}-tuning-*.json")):
            continue
        if arm.tuned:
            frontier = tuning(name, setting, arm, work)
            chosen = next(point["strength"] for point in frontier if point["chosen"])
            # the default strength is the arm without tuning
            arm = replace(arm, settings=None if chosen == Shield().strength else {"strength": chosen})
        for seed in range(arm.seeds):
            recipe = recipe_of(setting, arm, seed + 1)
            settings = repr(recipe.guide and recipe.guide.build(Path()))  # with defaults
            parts = [recipe.as_json(), settings, plain.source.fingerprint, plain.screen.fingerprint, screen.fingerprint, __version__]
            key = fingerprint_of(parts)[:12]
            file = work / f"{name}-{seed}-{key}.json"
            if finished and not file.is_file():
                continue
            if not file.is_file():
                before = 0 if arm.source else plain.source.nfe
                job = Job.prepare(recipe) if arm.source else replace(plain.with_guide(recipe.guide), recipe=recipe)
                calibration = job.source.nfe - before
                with tqdm(total=arm.budget, desc=f"{name} {arm_name} {seed}", unit="nfe") as bar:
                    drawn = draw(job, bar.update)
                outcome = judged(drawn | {"nfe": drawn["nfe"] + calibration}, screen, reference)
                write_json(file, outcome | {"calibration": calibration, "calibrated": {} if job.guide is None else job.guide.notes()})
            found.setdefault(arm_name, []).append(read_json(file))
    real, labels = setting.unseen_real.images, setting.unseen_real.labels
    nearest_real = float(np.median(screen.seen.distances(screen.embed(real, labels).features, 1)[:, 0]))
    controls = {"unseen": screen.yield_of(setting.unseen_real).as_json(), "own": plain.screen.yield_of(setting.unseen_real).as_json()}
    return summarised(found, controls, nearest_real) | {"tuning": frontier}


def tuning(name: str, setting: Setting, arm: Arm, work: Path) -> list[dict[str, Any]]:
    """The frontier of the shield's strength, on seeds and evaluations of its own."""
    recipe = recipe_of(setting, arm, 1)
    file = work / f"{name}-tuning-{fingerprint_of(recipe.as_json())[:12]}.json"
    if not file.is_file():
        found = list(pilots(recipe, evaluations=PILOT))
        picked = best(found).strength
        write_json(file, [pilot.as_json() | {"chosen": pilot.strength == picked} for pilot in found])
    points: list[dict[str, Any]] = json.loads(file.read_text())
    return points


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three arms, one seed, 6,000 evaluations")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--markdown", action="store_true", help="print the table of the last full run and stop")
    parser.add_argument("--pneumonia", nargs=2, type=Path, metavar=("MODEL", "DATA"), help="the second data set")
    parser.add_argument("--work", type=Path, default=RESULTS / "yield-arms", help="where finished arms are kept")
    parser.add_argument("--finished", action="store_true", help="sum up what --work holds, draw nothing")
    parser.add_argument("--only", choices=("breast", "pneumonia"), help="draw one data set and stop")
    chosen = parser.parse_args()
    if chosen.markdown:
        print(as_markdown(read_json(RESULTS / "yield.json")["results"]))
        return 0
    settings: dict[str, Callable[[], Setting]] = {"breast": breast}
    if chosen.pneumonia:
        settings["pneumonia"] = lambda: pneumonia(*chosen.pneumonia)
    chosen.work.mkdir(parents=True, exist_ok=True)
    results = {name: run(name, make(), chosen.work, chosen.quick, chosen.finished) for name, make in settings.items() if chosen.only in (None, name)}
    if chosen.only:
        return 0
    outcome = {"bars": bars(results), "results": results, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "yield.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps({"bars": outcome["bars"], "results": results}, indent=1))
    return 0 if all(bar["holds"] for bar in outcome["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
