"""Batches of samples, asked for in order and drawn here or elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.job import Job, to_model
from monai_diverse.sampling import Guide
from monai_diverse.screening import Assessment, Views


@dataclass(frozen=True, kw_only=True)
class Order:
    """A batch to draw.

    Attributes:
        first: number of its first sample in the recipe.
        skip: samples at its beginning that were judged before; they are drawn again, since a guide couples the batch, and left out.
    """

    first: int
    skip: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A batch that was drawn, seen and judged as far as each sample can be judged on its own.

    Attributes:
        views: the images, as a bank stores them, with their labels and features.
        assessment: the screen's.
    """

    views: Views
    assessment: Assessment


@dataclass(frozen=True, kw_only=True, eq=False)
class Accepted:
    """Samples that one batch added, as guides take them.

    Attributes:
        states: (m, c, *spatial) in the model's space.
        labels: (m,) their classes.
        seeds: (m,).
    """

    states: Tensor
    labels: Tensor
    seeds: IntArray

    @classmethod
    def of(cls, job: Job, images: FloatArray, labels: IntArray, seeds: IntArray) -> tuple[Accepted, ...]:
        """Encodes images for the job's guide; nothing where there is no guide to tell, or no image."""
        if job.guide is None or not len(images):
            return ()
        states, classes = to_model(job.source, images, labels)
        return (cls(states=states, labels=classes, seeds=seeds),)


Known = tuple[Accepted, ...]
"""What the batches before accepted, in order."""


def guide_of(job: Job, order: Order, known: Sequence[Accepted]) -> Guide | None:
    """The job's guide for a batch: it knows the samples that were accepted before the batch, those of the last `Recipe.ahead` batches aside."""
    if job.guide is None or not known:
        return job.guide
    first_seed = int(job.asked(order.first, 1)[1][0])
    earlier = torch.from_numpy(np.concatenate([part.seeds for part in known]) < first_seed - job.recipe.ahead * job.recipe.batch_size)
    return job.guide.given(torch.cat([part.states for part in known])[earlier], torch.cat([part.labels for part in known])[earlier])


def draw(job: Job, order: Order, guide: Guide | None) -> Drawn:
    """Draws a batch with its guide, embeds it and judges each sample on its own."""
    labels, seeds = job.asked(order.first, job.recipe.batch_size)
    images = job.draw(labels, seeds, guide)[order.skip :]
    views = job.screen.embed(images, labels[order.skip :])
    return Drawn(views=views, assessment=job.screen.assess(views))


class Drawer(Protocol):
    """Draws batches in the order in which they are asked for."""

    @property
    def capacity(self) -> int:
        """Batches that it can use at a time, from 1."""
        ...

    def submit(self, order: Order, known: Known, guide: Guide | None) -> None:
        """Asks for a batch.

        Args:
            order: which.
            known: what was accepted by now; it begins with what it was given before.
            guide: what `guide_of` makes of both, for who draws in this process: making it can take long.
        """
        ...

    def receive(self) -> Drawn:
        """The oldest batch that was asked for and not yet received.

        Raises:
            DiverseError: what went wrong when it was drawn.
        """
        ...


class Workers(Protocol):
    """Settings of where batches are drawn, such as `monai_diverse.Processes`."""

    def start(self, job: Job) -> AbstractContextManager[Drawer]:
        """What draws for a job, once it is asked for a batch; leaving the context ends it, whatever it does at that time."""
        ...


class Here:
    """Draws in this process, when a batch is received."""

    capacity = 1

    def __init__(self, job: Job) -> None:
        self._job = job
        self._asked: deque[tuple[Order, Guide | None]] = deque()

    def submit(self, order: Order, known: Known, guide: Guide | None) -> None:
        """Remembers the batch."""
        self._asked.append((order, guide))

    def receive(self) -> Drawn:
        """Draws it."""
        return draw(self._job, *self._asked.popleft())


@dataclass(frozen=True)
class InThisProcess:
    """Draws in this process."""

    @contextmanager
    def start(self, job: Job) -> Iterator[Drawer]:
        """Nothing to start and nothing to end."""
        yield Here(job)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch in its turn.

    Attributes:
        seeds: (n,) of its samples.
        costs: (n,) network evaluations that each takes.
        drawn: what came.
    """

    seeds: IntArray
    costs: IntArray
    drawn: Drawn


class Queue:
    """The batches of a job in order, from some sample on, until the source or the budget ends; as many are in work as can be.

    With a guide a batch waits until those before it, the last `Recipe.ahead` aside, are judged. Whether the budget reaches for a batch does not
    depend on later verdicts, so that it is known when the batch is asked for.

    Args:
        job: what to draw.
        drawer: draws it.
        drawn: samples that were judged before.
        nfe: network evaluations that they took.
    """

    def __init__(self, job: Job, drawer: Drawer, *, drawn: int = 0, nfe: int = 0) -> None:
        self._job, self._drawer, self._drawn, self._nfe, self._ended = job, drawer, drawn, nfe, False
        self._waiting: deque[tuple[IntArray, IntArray]] = deque()

    def next(self, known: Known) -> Batch | None:
        """The next batch, once all that were returned before are judged; None after the last.

        Args:
            known: what was accepted of them.
        """
        while not self._ended and len(self._waiting) < self._depth:
            self._ask(known)
        if not self._waiting:
            return None
        seeds, costs = self._waiting.popleft()
        return Batch(seeds=seeds, costs=costs, drawn=self._drawer.receive())

    @property
    def _depth(self) -> int:
        capacity = self._drawer.capacity
        return capacity if self._job.guide is None else min(capacity, self._job.recipe.ahead + 1)

    def _ask(self, known: Known) -> None:
        size = self._job.recipe.batch_size
        # a stop at `size` may have fallen inside a batch: that batch is drawn again with what the guide then knew
        order = Order(first=self._drawn // size * size, skip=self._drawn % size)
        labels, seeds = self._job.asked(order.first, size)
        if len(seeds) <= order.skip:  # a folder's images are used up
            self._ended = True
            return
        guide = guide_of(self._job, order, known)
        costs = self._job.costs(labels, seeds, guide)[order.skip :]
        if self._nfe + int(costs.sum()) > self._job.recipe.max_evaluations:
            self._ended = True
            return
        self._drawn, self._nfe = order.first + len(seeds), self._nfe + int(costs.sum())
        self._waiting.append((seeds[order.skip :], costs))
        self._drawer.submit(order, known, guide)
