"""The main job: sample, embed, screen, store, until the bank is full or the budget is spent."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diverse.bank import BankWriter, SampleBank
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.datasheet import write_datasheet
from monai_diverse.errors import RecipeError
from monai_diverse.job import Job, to_model
from monai_diverse.recipe import Recipe
from monai_diverse.sampling import Guide
from monai_diverse.screening import Verdict, Views


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


def grow(recipe: Recipe, out: Path | str, *, resume: bool = False) -> SampleBank:
    """Grows a bank and returns it; see `grow_steps` for progress on the way.

    Args:
        recipe: every choice.
        out: folder of the bank.
        resume: go on with a bank of the same recipe that was interrupted, or that shall become larger.

    Raises:
        RecipeError: a recipe that does not work.
        DataError: images that do not fit the model.
        BankError: `out` holds a bank, and `resume` is not set, or the bank is another recipe's.
        StorageError: the disk refuses; what was accepted before is stored.
    """
    for _ in grow_steps(Job.prepare(recipe), Path(out), resume=resume):
        pass
    return SampleBank.open(out)


def grow_steps(job: Job, out: Path, *, resume: bool = False) -> Iterator[GrowProgress]:
    """Grows a bank, yielding after each batch; arguments and errors as `grow`'s.

    What has been yielded is on disk. A run that was interrupted and resumed gives the bank of an uninterrupted one. At the end a datasheet is written
    beside the samples.
    """
    started, size, batch = time.perf_counter(), job.recipe.size, job.recipe.batch_size
    _require_one_batch(job)
    with BankWriter.create_or_resume(out, job.header(), resume=resume) as writer:
        done = _Counts.of(writer.progress)
        accepted = job.screen.embed(*_stored(writer.bank)) if writer.count else None
        known = _Known(job) if job.guide is None else _Known(job).plus(*_stored(writer.bank), np.array(writer.bank.seeds))
        yield done.report(job.recipe, writer.count, started)
        while size is None or writer.count < size:
            # a stop at `size` may fall inside a batch: draw that batch again with what the guide then knew
            first = done.drawn // batch * batch
            fresh = slice(done.drawn - first, None)
            labels, seeds = job.asked(first, batch)
            if len(seeds) <= done.drawn - first:  # a folder's images are used up
                break
            guide = known.guide(int(seeds[0]))
            costs = job.costs(labels, seeds, guide)[fresh]
            if done.nfe + int(costs.sum()) > job.recipe.max_evaluations:
                break
            images, labels, seeds = job.draw(labels, seeds, guide)[fresh], labels[fresh], seeds[fresh]
            views = job.screen.embed(images, labels)
            verdicts = _until(size, writer.count, job.screen.judge(views, accepted))
            kept = np.flatnonzero([v.accepted for v in verdicts])
            done = done.plus(verdicts, int(costs[: len(verdicts)].sum()))
            accepted = _grown(accepted, views[kept])
            known = known.plus(images[kept], labels[kept], seeds[kept])
            scores = _scores([verdicts[i] for i in kept])
            progress = done.as_json() | {"stopped": _stop_of(size, writer.count + len(kept)), "control": job.control}
            writer.append(images[kept], labels[kept], seeds[kept], scores, progress, nearest=[verdicts[i].nearest for i in kept] or None)
            yield done.report(job.recipe, writer.count, started)
        write_datasheet(writer.bank)


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
    known, accepted, nfe, batch = _Known(job), None, 0, job.recipe.batch_size
    for first in itertools.count(0, batch):
        labels, seeds = job.asked(first, batch)
        guide = known.guide(int(seeds[0])) if len(seeds) else None
        cost = int(job.costs(labels, seeds, guide).sum())
        if not len(seeds) or nfe + cost > job.recipe.max_evaluations:
            return
        images = job.draw(labels, seeds, guide)
        views = job.screen.embed(images, labels)
        verdicts = job.screen.judge(views, accepted)
        kept = np.flatnonzero([v.accepted for v in verdicts])
        accepted, known, nfe = _grown(accepted, views[kept]), known.plus(images[kept], labels[kept], seeds[kept]), nfe + cost
        yield Round(images=images, labels=labels, verdicts=verdicts, nfe=cost)


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


@dataclass(frozen=True, eq=False)
class _Known:
    """The accepted samples in the model's space, encoded once each, for the guide."""

    job: Job
    states: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()
    seeds: tuple[IntArray, ...] = ()

    def plus(self, images: FloatArray, labels: IntArray, seeds: IntArray) -> _Known:
        if self.job.guide is None or not len(images):
            return self
        states, classes = to_model(self.job.source, images, labels)
        return _Known(self.job, (*self.states, states), (*self.labels, classes), (*self.seeds, seeds))

    def guide(self, before_seed: int) -> Guide | None:
        """The job's guide, knowing the samples that were accepted before that seed."""
        if self.job.guide is None or not self.seeds:
            return self.job.guide
        earlier = torch.from_numpy(np.concatenate(self.seeds) < before_seed)
        return self.job.guide.given(torch.cat(self.states)[earlier], torch.cat(self.labels)[earlier])


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


def _stored(bank: SampleBank) -> tuple[FloatArray, IntArray]:
    return bank.images[:], np.array(bank.labels)


def _grown(accepted: Views | None, fresh: Views) -> Views | None:
    if not len(fresh):
        return accepted
    return fresh if accepted is None else accepted.concat(fresh)
