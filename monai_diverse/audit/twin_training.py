"""The trainings of all twins, one after another or in several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from monai_diverse.audit.trainer import TwinTrainer
from monai_diverse.data import LabelledImages
from monai_diverse.errors import RecipeError
from monai_diverse.processes import end_with_parent, fresh_processes


@dataclass(frozen=True, kw_only=True, eq=False)
class TwinJob:
    """All that the training of one twin needs; see `TwinTrainer.train`."""

    trainer: TwinTrainer
    data: LabelledImages
    test: LabelledImages
    seed: int
    checkpoints: Sequence[int]
    out: Path

    def steps(self) -> Iterator[int]:
        """Trains, yielding steps done."""
        return self.trainer.train(self.data, self.test, seed=self.seed, checkpoints=self.checkpoints, out=self.out)


class _Worker:
    """State of a worker process."""

    stop: Event | None = None

    @classmethod
    def begin(cls, threads: int, stop: Event) -> None:
        end_with_parent()
        torch.set_num_threads(threads)
        cls.stop = stop

    @classmethod
    def run(cls, job: TwinJob) -> None:
        for _ in job.steps():
            if cls.stop is not None and cls.stop.is_set():
                return


def trained(jobs: Sequence[TwinJob], workers: int) -> Iterator[int]:
    """Trains all, yielding steps done of all of them; several workers count whole twins.

    Raises:
        RecipeError: a worker died. What a trainer raises ends all others at their next step; their checkpoints stay.
    """
    if min(workers, len(jobs)) > 1:
        yield from _in_processes(jobs, min(workers, len(jobs)))
        return
    done = 0
    for job in jobs:
        for step in job.steps():
            yield done + step
        done += job.checkpoints[-1]
        yield done


def _in_processes(jobs: Sequence[TwinJob], workers: int) -> Iterator[int]:
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = fresh_processes(__name__)
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_Worker.begin, initargs=(threads, stop))
    try:
        running = {pool.submit(_Worker.run, job): job for job in jobs}
        done = 0
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                done += running.pop(future).checkpoints[-1]
            yield done
    except BrokenProcessPool as error:
        raise RecipeError(f"workers: expected {workers} processes to train twins, but one died, perhaps for want of memory; give fewer") from error
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
