"""The main job: sample, embed, screen, store, until the bank is full or the budget is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.bank import BankWriter, SampleBank
from monai_diverse.batches import Accepted, Drawer, Here, InThisProcess, Known, Queue, Workers
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.datasheet import write_datasheet
from monai_diverse.errors import RecipeError
from monai_diverse.job import Job
from monai_diverse.recipe import Recipe
from monai_diverse.screening import AcceptedViews, Verdict

BLOCK = 1024
"""Images of a bank that are embedded at a time when it is taken up."""


@dataclass(frozen=True, kw_only=True)
class GrowProgress:
    """How far a bank has grown.

    Attributes:
        drawn: samples drawn so far.
        accepted: of them in the bank.
        rejections: of the others, how many by first reason.
        nfe: network evaluations spent.
        seconds: since this call began.
        share: of the way to the nearer bound, in [0, 1].
    """

    drawn: int
    accepted: int
    rejections: dict[str, int]
    nfe: int
    seconds: float
    share: float


def grow(recipe: Recipe, out: Path | str, *, resume: bool = False, workers: Workers | None = None) -> SampleBank:
    """Grows a bank and returns it; see `grow_steps` for progress on the way.

    Args:
        recipe: every choice.
        out: folder of the bank.
        resume: go on with a bank of the same recipe that was interrupted, or that shall become larger.
        workers: where to draw, such as `monai_diverse.Processes` or `monai_diverse.RayActors`; None: in this process. The bank is the same.

    Raises:
        RecipeError: a recipe that does not work.
        DataError: images that do not fit the model.
        BankError: `out` holds a bank, and `resume` is not set, or the bank is another recipe's.
        StorageError: the disk refuses; what was accepted before is stored.
        WorkerError: workers die again and again; what was accepted before is stored.
        MissingExtraError: workers that need a package that is not installed.
    """
    for _ in grow_steps(Job.prepare(recipe), Path(out), resume=resume, workers=workers):
        pass
    return SampleBank.open(out)


def grow_steps(job: Job, out: Path, *, resume: bool = False, workers: Workers | None = None) -> Iterator[GrowProgress]:
    """Grows a bank, yielding after each batch; arguments and errors as `grow`'s.

    What has been yielded is on disk. A run that was interrupted and resumed gives the bank of an uninterrupted one. At the end a datasheet is written
    beside the samples.
    """
    started = time.perf_counter()
    _require_one_batch(job)
    # a cluster or device that is not there must not leave an empty bank behind
    with (workers or InThisProcess()).start(job) as drawer, BankWriter.create_or_resume(out, job.header(), resume=resume) as writer:
        done = _Counts.of(writer.progress)
        yield done.report(job.recipe, writer.count, started)
        for counts in _growth(job, writer, done, drawer):
            yield counts.report(job.recipe, writer.count, started)
        write_datasheet(writer.bank)


def _growth(job: Job, writer: BankWriter, done: _Counts, drawer: Drawer) -> Iterator[_Counts]:
    """Judges and stores batch after batch; what is in work when the bank is full is thrown away."""
    size = job.recipe.size
    accepted, known = _taken_up(job, writer.bank)
    queue = Queue(job, drawer, drawn=done.drawn, nfe=done.nfe)
    while (size is None or writer.count < size) and (batch := queue.next(known)) is not None:
        views = batch.drawn.views
        verdicts = _until(size, writer.count, job.screen.decide(views, batch.drawn.assessment, accepted))
        kept = np.flatnonzero([v.accepted for v in verdicts])
        done = done.plus(verdicts, int(batch.costs[: len(verdicts)].sum()))
        fresh, seeds = views[kept], batch.seeds[kept]
        accepted = accepted.plus(fresh)
        known = (*known, *Accepted.of(job, fresh.images, fresh.labels, seeds))
        scores = _scores([verdicts[i] for i in kept])
        progress = done.as_json() | {"stopped": _stop_of(size, writer.count + len(kept)), "control": job.control}
        writer.append(fresh.images, fresh.labels, seeds, scores, progress, nearest=[verdicts[i].nearest for i in kept] or None)
        yield done


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """One batch of a rehearsal.

    Attributes:
        images: float32 (n, c, *spatial) in [0, 1], as a bank would store them.
        labels: (n,) their classes.
        verdicts: of the job's screen.
        nfe: network evaluations that it took.
    """

    images: FloatArray
    labels: IntArray
    verdicts: list[Verdict]
    nfe: int


def rehearse(job: Job) -> Iterator[Round]:
    """Draws and judges as `grow` does up to the recipe's evaluations, whatever its size, and keeps nothing: for pilots and benchmarks.

    Raises:
        RecipeError: too few evaluations for one batch.
    """
    _require_one_batch(job)
    accepted = AcceptedViews()
    known: Known = ()
    queue = Queue(job, Here(job))
    while (batch := queue.next(known)) is not None:
        views = batch.drawn.views
        verdicts = job.screen.decide(views, batch.drawn.assessment, accepted)
        kept = np.flatnonzero([v.accepted for v in verdicts])
        fresh, seeds = views[kept], batch.seeds[kept]
        accepted, known = accepted.plus(fresh), (*known, *Accepted.of(job, fresh.images, fresh.labels, seeds))
        yield Round(images=views.images, labels=views.labels, verdicts=verdicts, nfe=int(batch.costs.sum()))


@dataclass(frozen=True, kw_only=True)
class _Counts:
    drawn: int
    nfe: int
    rejections: dict[str, int]

    @classmethod
    def of(cls, progress: dict[str, Any]) -> _Counts:
        return cls(
            drawn=progress.get("drawn", 0), nfe=progress.get("nfe", 0), rejections=progress.get("rejections") or dict.fromkeys(Verdict.REASONS, 0)
        )

    def plus(self, verdicts: list[Verdict], nfe: int) -> _Counts:
        found = {reason: self.rejections[reason] + sum(v.reason == reason for v in verdicts) for reason in self.rejections}
        return _Counts(drawn=self.drawn + len(verdicts), nfe=self.nfe + nfe, rejections=found)

    def as_json(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "nfe": self.nfe, "rejections": self.rejections}

    def report(self, recipe: Recipe, accepted: int, started: float) -> GrowProgress:
        share = max(self.nfe / recipe.max_evaluations, accepted / recipe.size if recipe.size else 0)
        return GrowProgress(
            drawn=self.drawn,
            accepted=accepted,
            rejections=self.rejections,
            nfe=self.nfe,
            seconds=time.perf_counter() - started,
            share=min(1.0, share),
        )


def _require_one_batch(job: Job) -> None:
    batch = job.recipe.batch_size
    least = int(job.costs(*job.asked(0, batch), job.guide).sum())
    if least > job.recipe.max_evaluations:
        raise RecipeError(f"max_evaluations: expected at least one batch of {batch} samples, {least}, got {job.recipe.max_evaluations}")


def _stop_of(size: int | None, count: int) -> str | None:
    """Why growth ended, as far as known: a bank that stopped at its size has a yield that is a little too high."""
    return "size" if size is not None and count >= size else None


def _until(size: int | None, count: int, verdicts: list[Verdict]) -> list[Verdict]:
    """The verdicts up to the one that fills the bank."""
    if size is None:
        return verdicts
    full = np.flatnonzero(count + np.cumsum([v.accepted for v in verdicts]) >= size)
    return verdicts[: int(full[0]) + 1] if len(full) else verdicts


def _scores(verdicts: list[Verdict]) -> dict[str, FloatArray]:
    names = verdicts[0].scores if verdicts else {}
    return {name: np.array([v.scores[name] for v in verdicts], dtype=np.float32) for name in names}


def _taken_up(job: Job, bank: SampleBank) -> tuple[AcceptedViews, Known]:
    """What a bank holds already, block by block: its images need not fit into memory."""
    accepted = AcceptedViews()
    known: Known = ()
    for start in range(0, len(bank), BLOCK):
        part = slice(start, start + BLOCK)
        images, labels = bank.images[part], np.array(bank.labels[part])
        accepted = accepted.plus(job.screen.embed(images, labels))
        known = (*known, *Accepted.of(job, images, labels, np.array(bank.seeds[part])))
    return accepted, known
