"""The banks and the runs of a study, one after another or in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import torch

from monai_diverse.bank import SampleBank
from monai_diverse.data import LabelledImages
from monai_diverse.errors import StorageError
from monai_diverse.study.arms import Stock
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.plan import StudyPlan
from monai_diverse.study.runs import Result, Setting, run_setting
from monai_diverse.study.synthetic import find, record_of
from monai_diverse.study.user import User
from monai_diverse.threads import Threads, waiting_gives_way

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


class _Finder:
    """What a process keeps between users: the images are sent once."""

    plan: ClassVar[StudyPlan]
    cohort: ClassVar[Cohort]
    out: ClassVar[Path]
    threads: ClassVar[Threads]

    @classmethod
    def begin(cls, plan: StudyPlan, cohort: Cohort, out: Path, threads: Threads) -> None:
        cls.plan, cls.cohort, cls.out, cls.threads = plan, cohort, out, threads

    @classmethod
    def run(cls, task: tuple[User, SampleBank]) -> None:
        user, pool = task
        for _ in find(cls.plan, cls.cohort, user, pool, cls.out):
            cls.threads.take()  # whatever libraries were loaded on the way


def find_banks(
    plan: StudyPlan, cohort: Cohort, tasks: Sequence[tuple[User, SampleBank]], out: Path, *, workers: int = 1
) -> Iterator[tuple[int, str]]:
    """Does `find` for every user.

    Args:
        plan: of the study.
        cohort: its images.
        tasks: users, each with the pool of its generator.
        out: folder of the study.
        workers: processes; each computes with as many threads as this one, on which the banks depend.

    Yields:
        (users that are done, what is being done for the next).

    Raises:
        StorageError: the disk refuses, or a process was killed; what was finished is kept.
    """
    if workers == 1:
        for number, (user, pool) in enumerate(tasks):
            for detail in find(plan, cohort, user, pool, out):
                yield number, f"{user.size:g} of the reals, draw {user.draw + 1}: {detail}"
            yield number + 1, ""
        return
    alike: dict[Path, list[tuple[User, SampleBank]]] = {}
    for task in tasks:  # sizes that round to the same images make users with the same banks: two processes would race for them
        alike.setdefault(record_of(plan, cohort, *task, out), []).append(task)
    with _processes(workers, _Finder.begin, (plan, cohort, out, Threads.here())) as processes:
        with waiting_gives_way():
            running = {processes.submit(_Finder.run, group[0]): len(group) for group in alike.values()}
        number = 0
        for done in as_completed(running):
            done.result()
            number += running[done]
            yield number, ""


def run_jobs(jobs: Sequence[Job], stocks: Sequence[Stock], scored: LabelledImages, *, workers: int = 1) -> Iterator[Result]:
    """Runs all jobs and yields each result, in the order of the jobs.

    Args:
        jobs: what to run; `stocks` by their place.
        stocks: of the users.
        scored: images to score.
        workers: processes; each has its share of the threads that torch would use. Classifiers repeat bit for bit only with an unchanged number of
            threads, so that this number may move the last digits.

    Raises:
        StorageError: a process was killed, as the system does when memory runs out.
    """
    for setting, place, _ in dict.fromkeys(
        (setting, place, 0) for setting, place, _ in jobs
    ):  # banks are made here: two processes would race for them
        stocks[place].arm(setting.arm, ratio=setting.ratio, augment=setting.augment, training=setting.training)
    if workers == 1:
        for setting, place, seed in jobs:
            yield run_setting(setting, stocks[place], seed, scored)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with _processes(workers, _Trainer.begin, (stocks, scored, threads)) as pool:
        yield from pool.map(_Trainer.run, jobs)


@contextmanager
def _processes(workers: int, begin: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    """Processes that each call `begin` first; what is not yet started when the block is left is dropped."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=begin, initargs=arguments)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise StorageError(
            "study: a process was killed, perhaps for want of memory; run again with fewer --workers, what was finished is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
