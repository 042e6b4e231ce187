"""The runs of a study: which there are, in which order, and each of them kept, so that an interrupted study goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.data import LabelledImages
from monai_diverse.storage import fingerprint_of, make_folder, read_json, write_json
from monai_diverse.study.arms import Stock
from monai_diverse.study.config import weighted
from monai_diverse.study.plan import REAL, StudyPlan, Training
from monai_diverse.study.training import Run, run_study

DIGITS = 6
"""Of the probabilities that are kept."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train, beside the seed.

    Attributes:
        arm: what is added to the user's images.
        ratio: bank samples for each real image; None for arms that add nothing.
        augment: with random transforms.
        training: how the bank comes in, as `StudyPlan.trainings` says.
    """

    arm: str
    ratio: float | None = None
    augment: bool = True
    training: Training = "mixed"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run and what it was.

    Attributes:
        setting: how it was trained.
        size: the user's share of the labelled images.
        seed: of the run.
        by_class: different bank images that it could draw, of each class.
        run: what came out.
    """

    setting: Setting
    size: float
    seed: int
    by_class: tuple[int, ...]
    run: Run

    @property
    def images(self) -> int:
        """Different bank images that it could draw."""
        return sum(self.by_class)


def sweep(plan: StudyPlan) -> list[Setting]:
    """What is trained at every ratio, before one is chosen: the primary arm and its controls."""
    primary = plan.primary
    return [
        Setting(arm=arm, ratio=ratio, augment=primary.augment, training=primary.training)
        for ratio in plan.ratios
        for arm in (primary.arm, *primary.controls)
    ]


def settings(plan: StudyPlan, ratio: float | None) -> list[Setting]:
    """What is trained at the chosen ratio: every arm, with and without random transforms; in other ways than the primary one what is tested alone.

    Without a ratio, where nothing can be tested, the arms that add nothing.
    """
    tested = (plan.primary.arm, *plan.primary.controls)
    plain = [Setting(arm=arm, augment=augment) for augment in plan.augment for arm in plan.arms if arm in REAL]
    if ratio is None:
        return plain
    return plain + [
        Setting(arm=arm, ratio=ratio, augment=augment, training=training)
        for training in plan.trainings
        for augment in plan.augment
        for arm in plan.arms
        if arm not in REAL and (training == plan.primary.training or (augment == plan.primary.augment and arm in tested))
    ]


def run_setting(setting: Setting, stock: Stock, seed: int, scored: LabelledImages) -> Result:
    """Trains and scores one classifier, or reads what an earlier call kept.

    Args:
        setting: how to train.
        stock: of the user.
        seed: of the run.
        scored: the images to score.
    """
    plan, cohort = stock.plan, stock.cohort
    arm = stock.arm(setting.arm, ratio=setting.ratio, augment=setting.augment, training=setting.training)
    config = replace(plan.classifier, seeds=(plan.seed * plan.seeds + seed,))
    reals = cohort.train[stock.user.reals]
    bank = None if arm.bank is None else arm.bank.fingerprint
    choices = asdict(config) | {"prob": arm.prob, "pretrain": arm.pretrain, "balanced": arm.balanced, "augment": arm.augment, "bank": bank}
    choices["class_weighted"] = weighted(arm, config)
    choices |= {"channels": list(config.channels)}
    choices |= {"fade": "by step"} if arm.fade else {}  # runs that were kept before there was one keep their names
    images = [data.sha256() for data in (reals, cohort.validation, scored)]
    file = make_folder(stock.out / "runs") / f"{fingerprint_of([choices | {'seeds': list(config.seeds)}, images])[:32]}.json"
    if file.exists():
        found = _read(file)
    else:
        found = next(run_study([arm], reals, cohort.validation, scored, config))
        found = replace(found, probabilities=np.round(found.probabilities, DIGITS))  # as they are read again
        write_json(file, _as_json(found))
    held = () if arm.bank is None else tuple(np.bincount(arm.bank.labels, minlength=arm.bank.header.classes).tolist())
    return Result(setting=setting, size=stock.user.size, seed=seed, by_class=held, run=replace(found, arm=setting.arm, seed=seed))


def _as_json(run: Run) -> dict[str, Any]:
    values = {name: getattr(run, name) for name in ("metrics", "validation", "best_epoch", "seconds")}
    return values | {"probabilities": run.probabilities.tolist()}


def _read(file: Path) -> Run:
    content = read_json(file)
    return Run(
        arm="",
        seed=0,
        metrics=content["metrics"],
        best_epoch=content["best_epoch"],
        validation=content["validation"],
        probabilities=np.asarray(content["probabilities"], dtype=np.float64),
        seconds=content["seconds"],
    )
