"""The runs of a study, one after another or in several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import ClassVar

import torch

from monai_diverse.data import LabelledImages
from monai_diverse.errors import StorageError
from monai_diverse.study.arms import Stock
from monai_diverse.study.runs import Result, Setting, run_setting

Job = tuple[Setting, int, int]
"""How to train, for which of the stocks, with which seed."""


class _Worker:
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
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_Worker.begin, initargs=(stocks, scored, threads))
    try:
        yield from pool.map(_Worker.run, jobs)
    except BrokenProcessPool as error:
        raise StorageError(
            "study: a process was killed, perhaps for want of memory; run again with fewer --workers, what was finished is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
