"""What a worker is sent, and what it does with it."""

from __future__ import annotations

import inspect
import io
import pickle
import sys
import traceback
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch.serialization import default_restore_location

from monai_diverse.batches import Accepted, Drawn, Known, Order, draw, guide_of
from monai_diverse.errors import RecipeError
from monai_diverse.job import Job
from monai_diverse.recipe import Recipe
from monai_diverse.sources import SampleSource
from monai_diverse.threads import Threads

MADE_THERE = ("source", "real")
"""Parts of a job that do not travel: each worker loads the source itself, on its own device, and real images are needed for fitting only."""


@dataclass(frozen=True, kw_only=True)
class Commission:
    """What a worker needs in order to draw for a job; one for all workers.

    Attributes:
        recipe: to load the source from.
        source: fingerprint of the source that must come of it.
        fitted: the rest of the job: screen and guide travel fitted, so that all workers judge alike on whatever machine.
        threads: to compute with.
        path: where modules are imported from.
    """

    recipe: Recipe
    source: str
    fitted: bytes
    threads: Threads
    path: tuple[str, ...]

    @classmethod
    def of(cls, job: Job) -> Commission:
        """Packs a job.

        Raises:
            RecipeError: a screen or guide that cannot be sent to another process.
        """
        parts, content = {f.name: getattr(job, f.name) for f in fields(job) if f.name not in MADE_THERE}, io.BytesIO()
        recipe = replace(job.recipe, folder=job.recipe.folder.resolve())
        try:
            torch.save(parts | {"recipe": recipe, "screen": job.screen.for_judging()}, content)
        except Exception as error:  # pickle raises several kinds
            reason = " ".join(str(error).split())
            raise RecipeError(f"workers: expected a screen and a guide that can be sent to another process, but {reason}; grow in one") from error
        path = tuple(str(Path(entry).resolve()) for entry in sys.path)
        return cls(recipe=recipe, source=job.source.fingerprint, fitted=content.getvalue(), threads=Threads.here(), path=path)

    def job(self, device: str | None) -> Job:
        """The job again, its source on `device`; None: where the recipe puts it.

        Raises:
            RecipeError: no such device here, or another source than the one that the job was packed with.
        """
        self.threads.take()
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        source = source_on(self.recipe, device)
        if source.fingerprint != self.source:
            raise RecipeError(
                f"source: expected the model that the recipe names where growth was started, got another one from {self.recipe.folder} on a worker; "
                "give all the same files, as on a shared file system"
            )

        def place(storage: Any, location: str) -> Any:
            """What lay on a GPU comes to this worker's device."""
            return default_restore_location(storage, location if location == "cpu" or device is None else device)  # type: ignore[no-untyped-call]

        # whoever starts workers is trusted: it is the same user's driver, over its own pipe or cluster
        parts = torch.load(io.BytesIO(self.fitted), map_location=place, weights_only=False)
        self.threads.take()  # again, for libraries that only source and screen brought along
        return Job(**parts, source=source, real={})


def source_on(recipe: Recipe, device: str | None) -> SampleSource:
    """Makes a recipe's source, on a device if its class takes one. Devices are no part of a recipe's fingerprint."""
    component = recipe.source
    if device is not None and "device" in inspect.signature(component.imported(recipe.allow)).parameters:
        component = replace(component, arguments={**component.arguments, "device": device})
    source: SampleSource = component.build(recipe.folder, recipe.allow)
    return source


@dataclass(frozen=True, kw_only=True)
class Task:
    """A batch to draw, with what was accepted since the worker's last one."""

    order: Order
    news: Known


@dataclass(frozen=True, kw_only=True)
class Failed:
    """What a worker raised; errors of the job, which another try would raise again."""

    error: Exception
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failed:
        """The error with its traceback as text, which cannot travel otherwise; an error that cannot travel itself becomes a RuntimeError."""
        trace = "".join(traceback.format_exception(error))
        try:
            told = pickle.loads(pickle.dumps(error))
        except Exception:
            told = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error=told, trace=trace)

    def reraise(self) -> None:
        """Raises the error as if it had come up here."""
        self.error.add_note(f"in a worker:\n{self.trace}")
        raise self.error


class Ready:
    """A worker has made its job and waits for batches."""


READY: Final = Ready()
Reply = Ready | Drawn | Failed


class JobWorker:
    """Makes a job, then draws its batches one after another, in a process of its own."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._known: list[Accepted] = []

    def prepare(self, commission: Commission, device: str | None) -> Ready | Failed:
        """Loads the source."""
        try:
            self._job = commission.job(device)
        except Exception as error:
            return Failed.of(error)
        return READY

    def draw(self, task: Task) -> Drawn | Failed:
        """Draws a batch."""
        assert self._job is not None
        self._known.extend(task.news)
        try:
            return draw(self._job, task.order, guide_of(self._job, task.order, self._known))
        except Exception as error:
            return Failed.of(error)
