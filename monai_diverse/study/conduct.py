"""A whole study: generators, banks, runs, in the order in which each needs the other; it only wires."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from monai_diverse.bank import SampleBank
from monai_diverse.data import IntArray, LabelledImages, label_shares
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.storage import make_folder, read_json, write_json
from monai_diverse.study.arms import Stock
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.crew import Crew
from monai_diverse.study.generator import Generator, generator_folder, given_generator, trained_generator
from monai_diverse.study.plan import StudyPlan
from monai_diverse.study.runs import Result, Setting, settings, sweep
from monai_diverse.study.synthetic import found
from monai_diverse.study.unscreened import pool_folder, real_bank
from monai_diverse.study.user import user_of
from monai_diverse.study.workers import ALONE, Job, draw_pools, find_banks, run_jobs, train_generators

PLAN = "plan.json"
PROCESSORS = "processors.json"
"""Names the vector instructions of the processors that a study has been computed on, in the order of their first use."""


@dataclass(frozen=True, kw_only=True)
class StudyProgress:
    """How far a stage of a study is.

    Attributes:
        stage: generator, pool, banks, sweep or arms.
        done: of `total`.
        total: how much there is to do.
        detail: a few words.
    """

    stage: str
    done: int
    total: int
    detail: str


@dataclass(kw_only=True)
class Cell:
    """One size of the user's data.

    Attributes:
        size: share of the labelled images.
        stocks: of each draw of the user.
        results: of the runs so far.
        ratio: the one that validation chose; None before the sweep is done, and where nothing can be tested.
    """

    size: float
    stocks: list[Stock]
    results: list[Result] = field(default_factory=list)
    ratio: float | None = None

    @property
    def untested(self) -> str | None:
        """Why no bank is trained on, if so: in a draw of the user the primary arm has no sample of some class."""
        lacking = [classes for stock in self.stocks if len(classes := stock.lacking())]
        if not lacking:
            return None
        names = " or ".join(str(label) for label in np.unique(np.concatenate(lacking)))
        return f"no sample of class {names} was accepted for {len(lacking)} of {len(self.stocks)} users"


@dataclass(kw_only=True)
class Study:
    """All that a study has made; `study_steps` fills it.

    Attributes:
        plan: every choice.
        out: folder.
        cohort: the real images.
        test: whether the test images are scored; else the images that development may look at.
        cells: one a size.
    """

    plan: StudyPlan
    out: Path
    cohort: Cohort
    test: bool
    cells: list[Cell] = field(default_factory=list)

    @classmethod
    def begin(cls, plan: StudyPlan, out: Path, *, test: bool = True) -> Study:
        """Reads the data, and writes the plan down, or finds it in a folder where the study was begun.

        Warns if the study was computed on a processor with other vector instructions before.

        Raises:
            RecipeError: `out` holds another plan; a metric or shares of classes that the data do not have.
            DataError: as `Cohort.load`; a size of which no image of some class is left.
        """
        make_folder(out)
        file = out / PLAN
        if file.exists() and StudyPlan.from_json(read_json(file)) != plan:
            raise RecipeError(f"{out}: holds a study of another plan; a plan is fixed once it runs, so use another --out")
        cohort = Cohort.load(plan, out)
        _require_choices(plan, cohort)
        for name, images in (("test images", cohort.test), ("test images without near-duplicates", cohort.test[cohort.test_apart])):
            _require_groups(images, len(cohort.train.class_counts), name)
        write_json(file, plan.as_json())
        _note_instructions(out)
        return cls(plan=plan, out=out, cohort=cohort, test=test)

    def scored(self) -> LabelledImages:
        """The images that runs are scored on: test; in development those that the generator never saw, and in the regime `strict` validation."""
        if self.test:
            return self.cohort.test
        if self.plan.regime == "strict":
            return self.cohort.validation
        return self.cohort.train[self.scored_of_train(self.cells[0].stocks[0].user.generator)]

    def scored_of_train(self, generator: Generator) -> IntArray:
        """Indices into the train images of those that runs are scored on: in development of `pretrained` what the generator never saw."""
        return np.empty(0, dtype=np.int64) if self.test or self.plan.regime == "strict" else generator.aside


def _note_instructions(out: Path) -> None:
    """Notes this processor's vector instructions, and warns where a study goes on with others: its classifiers differ then as by another seed."""
    own, file = torch.backends.cpu.get_cpu_capability(), out / PROCESSORS
    known: list[str] = read_json(file)["instructions"] if file.exists() else []
    if others := [name for name in known if name != own]:
        text = f"{out}: begun with the vector instructions {', '.join(others)}, goes on with {own}, which end trainings in other weights"
        warnings.warn(f"{text}; arms that are paired by seed tell less then, so finish a study on one kind of processor", stacklevel=3)
    write_json(file, {"instructions": list(dict.fromkeys([*known, own]))})


def _require_choices(plan: StudyPlan, cohort: Cohort) -> None:
    """Raises RecipeError or DataError for what the plan says and the data do not allow: before hours of training, not after."""
    classes = len(cohort.train.class_counts)
    recall = plan.primary.metric.removeprefix("recall_")
    if recall.isdecimal() and int(recall) >= classes:
        raise RecipeError(f"metric: expected a recall of class 0..{classes - 1}, got {plan.primary.metric!r}")
    label_shares(plan.labels, cohort.train.labels, classes)
    cohort.drawn(np.arange(len(cohort.train), dtype=np.int64), min(plan.sizes), 0, plan.seed)


def _require_groups(images: LabelledImages, classes: int, name: str) -> None:
    """Raises DataError where a class has too few groups for an interval: before hours of training, not after."""
    groups = [len(np.unique(images.group_ids[images.labels == label])) for label in range(classes)]
    if min(groups) < 2:
        raise DataError(f"study: expected {name} of at least 2 patients or groups of every class, got {groups} by class; intervals need them")


def study_steps(study: Study, *, crew: Crew = ALONE) -> Iterator[StudyProgress]:
    """Does what the plan says, yielding on the way; whatever was finished in the folder before is taken up.

    Args:
        study: begun by `Study.begin`; its cells are filled.
        crew: who trains generators where there are several, draws pools, grows banks and trains classifiers.

    Raises:
        RecipeError, DataError: parts of the plan that do not work.
        StorageError: the disk refuses, or a worker was killed; what was finished is kept.
    """
    generators: dict[tuple[float, int], Generator] = {}
    yield from _generators(study, generators, crew)
    if study.plan.regime == "pretrained":
        for (size, draw), generator in generators.items():
            study.cohort.drawn(generator.seen, size, draw, study.plan.seed)  # raises before pools are drawn, not after
    pools: dict[str, SampleBank] = {}
    yield from _pools(study, generators, pools, crew)
    yield from _stocks(study, generators, pools, crew)
    tested = [cell for cell in study.cells if cell.untested is None]
    yield from _runs(study, "sweep", {cell.size: sweep(study.plan) for cell in tested}, crew)
    for cell in tested:
        cell.ratio = chosen_ratio(study.plan, cell.results)
    yield from _runs(study, "arms", {cell.size: settings(study.plan, cell.ratio) for cell in study.cells}, crew)


def draws(plan: StudyPlan, size: float) -> int:
    """How many different draws of the user's images there are: see `StudyPlan.subsets`."""
    if size == 1:
        return 1
    return plan.subsets or (1 if plan.regime == "strict" else plan.seeds)


def chosen_ratio(plan: StudyPlan, results: Sequence[Result]) -> float:
    """The ratio at which the primary arm does best on the validation images, over all seeds; of equals the smallest."""
    primary = plan.primary

    def score(ratio: float) -> float:
        setting = Setting(arm=primary.arm, ratio=ratio, augment=primary.augment, training=primary.training)
        return float(np.mean([result.run.validation[primary.metric] for result in results if result.setting == setting]))

    return max(sorted(plan.ratios), key=score)


def _generators(study: Study, made: dict[tuple[float, int], Generator], crew: Crew) -> Iterator[StudyProgress]:
    """Makes the generator of each size and draw: one for all, or in the regime `strict` one for each."""
    plan, cohort = study.plan, study.cohort
    places = [(size, draw) for size in plan.sizes for draw in range(draws(plan, size))]
    if plan.source is not None:
        made |= dict.fromkeys(places, given_generator(plan, cohort))
        return
    among: dict[tuple[float, int], IntArray | None] = dict.fromkeys(places)
    if plan.regime == "strict":
        everything = np.arange(len(cohort.train), dtype=np.int64)
        among = {(size, draw): cohort.drawn(everything, size, draw, plan.seed) for size, draw in places}
    tasks = {generator_folder(plan, cohort, images, study.out): images for images in among.values()}
    for done, total, detail in train_generators(plan, cohort, list(tasks.values()), study.out, crew=crew):
        yield StudyProgress(stage="generator", done=done, total=total, detail=detail)
    trained = {folder: trained_generator(plan, cohort, images, study.out) for folder, images in tasks.items()}
    made |= {place: trained[generator_folder(plan, cohort, images, study.out)] for place, images in among.items()}


def _pools(study: Study, generators: dict[tuple[float, int], Generator], pools: dict[str, SampleBank], crew: Crew) -> Iterator[StudyProgress]:
    """Draws a pool of every generator, by its folder."""
    different = {str(pool_folder(study.plan, generator, study.out)): generator for generator in generators.values()}
    for done, total, detail in draw_pools(study.plan, study.cohort, list(different.values()), study.out, crew=crew):
        yield StudyProgress(stage="pool", done=done, total=total, detail=detail)
    pools |= {folder: SampleBank.open(Path(folder)) for folder in different}


def _stocks(study: Study, generators: dict[tuple[float, int], Generator], pools: dict[str, SampleBank], crew: Crew) -> Iterator[StudyProgress]:
    plan, cohort, out = study.plan, study.cohort, study.out
    real = real_bank(cohort, out)
    tasks = [
        (
            user_of(plan, cohort, generator, size=size, draw=draw, scored=study.scored_of_train(generator), out=out),
            pools[str(pool_folder(plan, generator, out))],
        )
        for (size, draw), generator in generators.items()
    ]
    for done, detail in find_banks(plan, cohort, tasks, out, crew=crew):
        yield StudyProgress(stage="banks", done=done, total=len(tasks), detail=detail)
    cells: dict[float, list[Stock]] = {size: [] for size in plan.sizes}
    for user, pool in tasks:
        own = found(plan, cohort, user, pool, out)
        cells[user.size].append(Stock(plan=plan, cohort=cohort, user=user, found=own, pool=pool, real=real, out=out))
    study.cells = [Cell(size=size, stocks=stocks) for size, stocks in cells.items()]
    for cell in study.cells:
        if cell.untested is not None:
            yield StudyProgress(stage="banks", done=len(tasks), total=len(tasks), detail=f"{cell.size:g} of the reals: not tested, {cell.untested}")


def _runs(study: Study, stage: str, asked: dict[float, list[Setting]], crew: Crew) -> Iterator[StudyProgress]:
    stocks = [stock for cell in study.cells for stock in cell.stocks]
    jobs: list[Job] = []
    owners: list[Cell] = []
    first = 0
    for cell in study.cells:
        known = {result.setting for result in cell.results}
        pairs = [(setting, seed) for setting in asked.get(cell.size, ()) if setting not in known for seed in range(study.plan.seeds)]
        jobs += [(setting, first + seed % len(cell.stocks), seed) for setting, seed in pairs]
        owners += [cell] * len(pairs)
        first += len(cell.stocks)
    for number, (cell, result) in enumerate(zip(owners, run_jobs(jobs, stocks, study.scored(), crew=crew), strict=True), start=1):
        cell.results.append(result)
        words = (
            f"{cell.size:g} of the reals, {result.setting.arm}, seed {result.seed}: validation {result.run.validation[study.plan.primary.metric]:.3f}"
        )
        yield StudyProgress(stage=stage, done=number, total=len(jobs), detail=words)
