"""What a user grows and finds: the banks of the arms with generated images, and what the screen made of unseen real ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.bank import SampleBank
from monai_diverse.data import IntArray, LabelledImages
from monai_diverse.features import EfficientNetLite0
from monai_diverse.growth import grow_steps
from monai_diverse.job import Job
from monai_diverse.screening import FittedScreen, TsneHull, Yield
from monai_diverse.storage import fingerprint_of, make_folder, read_json, write_json
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.plan import StudyPlan
from monai_diverse.study.user import User

UNGATED = ("irrelevant", "outlier")
"""What the arm `diverse_ungated` leaves out."""
GROWN = ("diverse", "diverse_ungated")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a user's screen accepted.

    Attributes:
        grown: banks by arm.
        accepted: by arm that judges the pool, indices into it.
        yields: by arm, and of unseen real images under the same screen (`heldout_real`), as JSON.
    """

    grown: dict[str, SampleBank]
    accepted: dict[str, IntArray]
    yields: dict[str, dict[str, Any]]


def find(plan: StudyPlan, cohort: Cohort, user: User, pool: SampleBank, out: Path) -> Iterator[str]:
    """Grows the banks of a user and judges the pool, yielding what it does; `found` reads the outcome. What is there already is kept."""
    file = record_of(plan, cohort, user, pool, out)
    if file.exists():
        return
    yield "fitting the screen"
    job = Job.prepare(user.recipe)
    yields: dict[str, Any] = {}
    banks: dict[str, str] = {}
    for arm in (arm for arm in GROWN if arm in plan.arms):
        own = job if arm == "diverse" else replace(job, screen=job.screen.without(*UNGATED))
        folder = out / "banks" / f"{arm}-{own.fingerprint[:16]}"
        for progress in grow_steps(own, folder, resume=True):
            yield f"{arm}: {progress.drawn} drawn, {progress.accepted} accepted"
        banks[arm] = folder.name
        yields[arm] = Yield(drawn=progress.drawn, accepted=progress.accepted, nfe=progress.nfe).as_json()
    yield "judging the pool"
    accepted = _judged(plan, job.screen, cohort.train[user.reals], pool)
    nfe = int(job.costs(np.array(pool.labels), np.array(pool.seeds), None).sum())
    yields |= {arm: Yield(drawn=len(pool), accepted=len(places), nfe=nfe).as_json() for arm, places in accepted.items()}
    unseen = cohort.validation[~np.isin(cohort.validation.group_ids, cohort.train.group_ids)]
    yields["heldout_real"] = job.screen.yield_of(unseen).as_json()
    write_json(file, {"banks": banks, "accepted": {arm: places.tolist() for arm, places in accepted.items()}, "yields": yields})


def found(plan: StudyPlan, cohort: Cohort, user: User, pool: SampleBank, out: Path) -> Found:
    """What `find` with the same arguments left."""
    content = read_json(record_of(plan, cohort, user, pool, out))
    return Found(
        grown={arm: SampleBank.open(out / "banks" / name) for arm, name in content["banks"].items()},
        accepted={arm: np.asarray(places, dtype=np.int64) for arm, places in content["accepted"].items()},
        yields=content["yields"],
    )


def record_of(plan: StudyPlan, cohort: Cohort, user: User, pool: SampleBank, out: Path) -> Path:
    """Where `find` writes the outcome, named by all that decides it: the recipe without where its files lie, the images, the pool, the arms."""
    recipe = user.recipe.as_json()
    choices = {name: recipe[name] for name in ("guide", "screen", "labels", "size", "max_evaluations", "steps", "batch_size", "dtype", "seed")}
    choices["screen"] = {**recipe["screen"], "arguments": {k: v for k, v in recipe["screen"]["arguments"].items() if k != "folder"}}
    images = [cohort.sha256, user.reals.tolist(), user.generator.seen.tolist(), user.generator.aside.tolist()]
    return make_folder(out / "found") / f"{fingerprint_of([choices, images, pool.fingerprint, sorted(plan.arms)])[:24]}.json"


def _judged(plan: StudyPlan, screen: FittedScreen, real: LabelledImages, pool: SampleBank) -> dict[str, IntArray]:
    """Which samples of the pool each arm that judges it accepts."""
    images, labels = pool.images[:], np.array(pool.labels)
    accepted = {}
    views = screen.embed(images, labels)
    if "relevant" in plan.arms:
        gate = screen.gates["irrelevant"]
        accepted["relevant"] = np.flatnonzero(gate.score(views) <= gate.threshold)
    if "brute_force" in plan.arms:
        accepted["brute_force"] = np.flatnonzero([verdict.accepted for verdict in screen.judge(views)])
    if "tsne_hull" in plan.arms:
        accepted["tsne_hull"] = np.flatnonzero(TsneHull(extractor=EfficientNetLite0()).judge(real.images, images).accepted)
    return accepted
