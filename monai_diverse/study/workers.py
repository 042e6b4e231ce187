"""Generators, pools, banks and runs of a study, one after another or by a crew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from monai_diverse.bank import SampleBank
from monai_diverse.data import IntArray, LabelledImages
from monai_diverse.study.arms import Stock
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.crew import Crew, in_order
from monai_diverse.study.generator import Generator, training_of
from monai_diverse.study.plan import StudyPlan
from monai_diverse.study.runs import Result, Setting, run_setting
from monai_diverse.study.synthetic import find, record_of
from monai_diverse.study.unscreened import draw_pool
from monai_diverse.study.user import User
from monai_diverse.threads import Threads

ALONE = Crew()

Job = tuple[Setting, int, int]
"""How to train, for which of the stocks, with which seed."""


class _Trainer:
    """What a process keeps between jobs: the stocks are sent once."""

    stocks: ClassVar[Sequence[Stock]] = ()
    scored: ClassVar[LabelledImages | None] = None

    @classmethod
    def begin(cls, stocks: Sequence[Stock], scored: LabelledImages, threads: int) -> None:
        torch.set_num_threads(threads)
        cls.stocks, cls.scored = stocks, scored

    @classmethod
    def run(cls, job: Job) -> Result:
        assert cls.scored is not None
        setting, place, seed = job
        return run_setting(setting, cls.stocks[place], seed, cls.scored)


class _Maker:
    """What a process keeps between tasks: the images are sent once."""

    plan: ClassVar[StudyPlan]
    cohort: ClassVar[Cohort]
    out: ClassVar[Path]
    threads: ClassVar[Threads]

    @classmethod
    def begin(cls, plan: StudyPlan, cohort: Cohort, out: Path, threads: Threads) -> None:
        cls.plan, cls.cohort, cls.out, cls.threads = plan, cohort, out, threads

    @classmethod
    def generator(cls, images: IntArray | None) -> None:
        cls._through(training_of(cls.plan, cls.cohort, images, cls.out))

    @classmethod
    def pool(cls, generator: Generator) -> None:
        cls._through(draw_pool(cls.plan, cls.cohort, generator, cls.out))

    @classmethod
    def banks(cls, task: tuple[User, SampleBank]) -> None:
        cls._through(find(cls.plan, cls.cohort, *task, cls.out))

    @classmethod
    def _through(cls, steps: Iterator[Any]) -> None:
        cls.threads.take()
        for _ in steps:
            cls.threads.take()  # whatever libraries were loaded on the way


def train_generators(
    plan: StudyPlan, cohort: Cohort, tasks: Sequence[IntArray | None], out: Path, *, crew: Crew = ALONE
) -> Iterator[tuple[int, int, str]]:
    """Does `training_of` for every task.

    Args:
        plan: of the study.
        cohort: its images.
        tasks: what each generator may see, as `training_of` takes it; different ones.
        out: folder of the study.
        crew: who does it, where there are several tasks; each worker computes with as many threads as this process.

    Yields:
        (steps that are done, of how many, a few words).

    Raises:
        StorageError: the disk refuses, or a worker was killed; what was finished is kept.
    """
    steps, count = plan.training.steps, len(tasks)
    if crew.alone or count == 1:
        for number, images in enumerate(tasks):
            for progress in training_of(plan, cohort, images, out):
                yield number * steps + progress.step, count * steps, f"{number + 1} of {count}, loss {progress.train_loss:.4f}"
        return
    for number, _ in enumerate(crew.each(_Maker.begin, (plan, cohort, out, Threads.here()), _Maker.generator, tasks), start=1):
        yield number * steps, count * steps, f"{number} of {count} trained"


def draw_pools(plan: StudyPlan, cohort: Cohort, generators: Sequence[Generator], out: Path, *, crew: Crew = ALONE) -> Iterator[tuple[int, int, str]]:
    """Does `draw_pool` for every generator; arguments, yields (samples instead of steps) and errors as of `train_generators`."""
    count = len(generators)
    if crew.alone or count == 1:
        for number, generator in enumerate(generators):
            for drawn in draw_pool(plan, cohort, generator, out):
                yield number * plan.pool + drawn, count * plan.pool, f"of generator {number + 1} of {count}"
        return
    for number, _ in enumerate(crew.each(_Maker.begin, (plan, cohort, out, Threads.here()), _Maker.pool, generators), start=1):
        yield number * plan.pool, count * plan.pool, f"of {number} of {count} generators"


def find_banks(
    plan: StudyPlan, cohort: Cohort, tasks: Sequence[tuple[User, SampleBank]], out: Path, *, crew: Crew = ALONE
) -> Iterator[tuple[int, str]]:
    """Does `find` for every user.

    Args:
        plan: of the study.
        cohort: its images.
        tasks: users, each with the pool of its generator.
        out: folder of the study.
        crew: who does it; each worker computes with as many threads as this process, on which the banks depend.

    Yields:
        (users that are done, what is being done for the next).

    Raises:
        StorageError: the disk refuses, or a worker was killed; what was finished is kept.
    """
    if crew.alone:
        for number, (user, pool) in enumerate(tasks):
            for detail in find(plan, cohort, user, pool, out):
                yield number, f"{user.size:g} of the reals, draw {user.draw + 1}: {detail}"
            yield number + 1, ""
        return
    alike: dict[Path, list[tuple[User, SampleBank]]] = {}
    for task in tasks:  # sizes that round to the same images make users with the same banks: two processes would race for them
        alike.setdefault(record_of(plan, cohort, *task, out), []).append(task)
    groups, number = list(alike.values()), 0
    for place, _ in crew.each(_Maker.begin, (plan, cohort, out, Threads.here()), _Maker.banks, [group[0] for group in groups]):
        number += len(groups[place])
        yield number, ""


def run_jobs(jobs: Sequence[Job], stocks: Sequence[Stock], scored: LabelledImages, *, crew: Crew = ALONE) -> Iterator[Result]:
    """Runs all jobs and yields each result, in the order of the jobs.

    Args:
        jobs: what to run; `stocks` by their place.
        stocks: of the users.
        scored: images to score.
        crew: who does it; each worker has its share of this machine's cores as threads. Classifiers repeat bit for bit only with an unchanged number
            of threads, on processors of one kind, so that the number of workers, or another processor, changes what a training ends in.

    Raises:
        StorageError: a worker was killed, as the system does when memory runs out.
    """
    for setting, place, _ in dict.fromkeys(
        (setting, place, 0) for setting, place, _ in jobs
    ):  # banks are made here: two processes would race for them
        stocks[place].arm(setting.arm, ratio=setting.ratio, augment=setting.augment, training=setting.training)
    if crew.alone:
        for setting, place, seed in jobs:
            yield run_setting(setting, stocks[place], seed, scored)
        return
    yield from in_order(crew.each(_Trainer.begin, (stocks, scored, crew.threads), _Trainer.run, jobs))
