"""Banks that grow while a classifier trains on them."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist

from monai_diverse.bank import SampleBank
from monai_diverse.bank.folder import local_path
from monai_diverse.errors import BankError, BankMismatchError, DiverseError, RecipeError
from monai_diverse.growth import GrowProgress, grow_steps
from monai_diverse.handlers.base import Handler
from monai_diverse.job import Job
from monai_diverse.recipe import Recipe

if TYPE_CHECKING:
    from ignite.engine import Engine


class BankRefreshHandler(Handler):
    """Grows a bank between epochs, so that later epochs draw from more samples.

    At the end of every `every`-th epoch but the last it goes on with the bank as `grow` with `resume=True` does, batch by batch, until at least `add`
    more samples are accepted or `max_evaluations` are spent; training waits meanwhile. Then it reloads every bank object that it was given. Workers
    of a DataLoader, forked or spawned, see the new samples from the next pass over the loader on; persistent workers never do, of which it
    warns. A `DiverseDiffusionDataset` in "append" mode keeps the samples that it drew when it was made.

    A refresh that fails (full disk, no memory) does not end the training: the error is logged, the bank keeps what it had, and the next refresh tries
    again. When the recipe's own `max_evaluations` are spent, or its source has no more images, it says so once and grows no more. In distributed
    training the first process grows, the others wait, and all reload.

    Args:
        recipe: the one that the bank was grown with, or its file, or the `Job` of it. Model and screen are made along with this object and stay in
            memory. Its `max_evaluations` bound what is spent on the bank in all, as in `grow`; its `size` does not count.
        banks: the bank as transforms and datasets hold it (their `bank`); several objects where each opened its own.
        add: samples to gain in a refresh.
        every: epochs from one refresh to the next.
        max_evaluations: network evaluations to spend in one refresh at most.
        name: of the logger; None for the engine's own, which keeps to warnings unless it is set up otherwise.

    Attributes:
        stopped: why it grows no more; None while it does.

    Raises:
        MissingExtraError: pytorch-ignite is not installed.
        RecipeError: a setting outside its range, a recipe that does not work, `max_evaluations` below what one batch takes.
        DataError: images that do not fit the recipe's model.
        BankError: something else than banks, or banks in different folders.
        BankMismatchError: a bank that another recipe grew.
    """

    def __init__(
        self,
        recipe: Recipe | Job | str | os.PathLike[str],
        banks: SampleBank | Sequence[SampleBank],
        *,
        add: int,
        every: int = 1,
        max_evaluations: int = 10_000,
        name: str | None = "monai_diverse.handlers.BankRefreshHandler",
    ) -> None:
        super().__init__(name)
        for setting, value in (("add", add), ("every", every), ("max_evaluations", max_evaluations)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(f"{setting}: expected a whole number from 1, got {value!r}")
        self.banks = _one_bank(banks)
        self.add, self.every, self.max_evaluations = add, every, max_evaluations
        self.stopped: str | None = None
        self._job = _prepared(recipe, self.banks[0]) if _is_first_process() else None
        if self._job is not None:
            self._check_budget(self._job)

    def functions(self) -> Mapping[Any, Callable[[Engine], None]]:
        """What to call at which event."""
        return {self._events.STARTED: self.started, self._events.EPOCH_COMPLETED(every=self.every): self.epoch_completed}

    def started(self, engine: Engine) -> None:
        """Warns of workers that will not see new samples."""
        loader = engine.state.dataloader
        if getattr(loader, "num_workers", 0) and getattr(loader, "persistent_workers", False):
            text = "persistent workers keep the bank as it was when they started, and will not draw new samples"
            warnings.warn(f"DataLoader: {text}; make it with persistent_workers=False", stacklevel=2)

    def epoch_completed(self, engine: Engine) -> None:
        """Grows and reloads, unless no epoch follows."""
        if engine.state.epoch == engine.state.max_epochs:
            return
        if self._job is not None and self.stopped is None:
            with self._survived("grown"):
                self._grow(self._job, engine.state.epoch)
        if dist.is_available() and dist.is_initialized():
            dist.barrier()
        with self._survived("reloaded"):
            for bank in self.banks:
                bank.reload()

    def _grow(self, job: Job, epoch: int) -> None:
        before = SampleBank.open(self.banks[0].path)
        left, goal = self._left(job), len(before) + self.add
        bound = job.recipe.max_evaluations - left + min(left, self.max_evaluations)
        asked = replace(job, recipe=replace(job.recipe, size=None, max_evaluations=bound))
        with contextlib.closing(cast("Generator[GrowProgress]", grow_steps(asked, before.path, resume=True))) as steps:
            last = _until(steps, goal)
        self.logger.info(
            f"Epoch[{epoch}] bank -- {last.accepted - len(before)} samples gained, {last.accepted} now, {last.nfe} network evaluations spent"
        )
        if last.accepted < goal:
            self.stopped = _end_of(job, last, bound)
        if self.stopped is not None:
            self.logger.warning(f"Epoch[{epoch}] bank -- grows no more: {self.stopped}")

    def _check_budget(self, job: Job) -> None:
        batch, total = job.recipe.batch_size, job.recipe.max_evaluations
        cost = int(job.costs(*job.asked(0, batch), job.guide).sum())
        if cost > self.max_evaluations:
            raise RecipeError(f"max_evaluations: expected at least one batch of {batch} samples, {cost}, got {self.max_evaluations}")
        if cost > self._left(job):
            self.stopped = _spent(total)
            warnings.warn(f"{self.banks[0].location}: {self.stopped}, so no refresh will add to the bank; raise max_evaluations there", stacklevel=3)

    def _left(self, job: Job) -> int:
        return int(job.recipe.max_evaluations - SampleBank.open(self.banks[0].path).progress.get("nfe", 0))

    @contextlib.contextmanager
    def _survived(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it was: hours of training must not end with it
            text = f"bank -- could not be {what}, training goes on with {len(self.banks[0])} samples: {error}"
            self.logger.warning(text, exc_info=not isinstance(error, DiverseError))


def _one_bank(banks: SampleBank | Sequence[SampleBank]) -> tuple[SampleBank, ...]:
    found = tuple(banks) if isinstance(banks, list | tuple) else (banks,)
    if not found or not all(isinstance(bank, SampleBank) for bank in found):
        raise BankError(f"banks: expected the bank that a transform or dataset holds (transform.bank), or several of them, got {banks!r}")
    folders = sorted({bank.location for bank in found})
    if len(folders) > 1:
        raise BankError(f"banks: expected objects of one bank, got {', '.join(folders)}; take one handler for each")
    local_path(found[0].location, "new samples")  # a bank behind a URL does not grow
    return found


def _prepared(recipe: Recipe | Job | str | os.PathLike[str], bank: SampleBank) -> Job:
    if not isinstance(recipe, Job):
        recipe = Job.prepare(recipe if isinstance(recipe, Recipe) else Recipe.load(Path(recipe)))
    theirs, ours = bank.header.recipe_fingerprint[:12], recipe.fingerprint[:12]
    if theirs != ours:
        raise BankMismatchError(f"{bank.location}: was grown by another recipe ({theirs}, not {ours}); give the one that grew it")
    return recipe


def _is_first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _until(steps: Iterator[GrowProgress], goal: int) -> GrowProgress:
    """Whole batches, so that none is drawn twice: a stop inside one would have it drawn again."""
    for progress in steps:
        if progress.accepted >= goal:
            break
    return progress


def _end_of(job: Job, last: GrowProgress, bound: int) -> str | None:
    """Why a growth that fell short cannot go on; None where it only reached the bound of one refresh."""
    if job.source.size is not None and last.drawn >= job.source.size:
        return "its source has no more images"
    if bound >= job.recipe.max_evaluations:
        return _spent(bound)
    return None


def _spent(evaluations: int) -> str:
    return f"the recipe's {evaluations} network evaluations are spent"
