"""Where the parts of a study are computed: in this process, in several of this machine, or in actors of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from monai_diverse.cluster import ray_cluster
from monai_diverse.errors import RecipeError, StorageError
from monai_diverse.processes import WAITING, end_with_parent, fresh_processes, waiting_gives_way

IMPORTED = ("monai_diverse.study.workers",)
KILLED = "study: a process was killed, perhaps for want of memory; run again with fewer --workers, what was finished is kept"


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who computes.

    Attributes:
        workers: how many processes, or actors; None: one without Ray, and else one a GPU of the cluster, or one a core.
        ray: address of a Ray cluster, `auto` or `local`, as of `RayActors`; None: processes of this machine. All machines must find the study's
            folder and data at the same paths.

    Raises:
        RecipeError: fewer than one worker.
    """

    workers: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise RecipeError(f"workers: expected at least 1, got {self.workers}")

    @property
    def alone(self) -> bool:
        """Whether this process does it all."""
        return self.ray is None and self.workers in (None, 1)

    @property
    def threads(self) -> int:
        """Cores of this machine for each worker."""
        return max(1, (os.cpu_count() or 1) // (self.workers or (1 if self.ray is None else os.cpu_count() or 1)))

    def each(
        self, begin: Callable[..., None], arguments: tuple[Any, ...], work: Callable[[Any], Any], tasks: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """Calls `begin` once in every worker, then `work` on every task, and yields (place of the task, what came out) as they end.

        What is not begun when the iterator is closed is dropped.

        Raises:
            StorageError: a worker was killed.
            MissingExtraError, RecipeError: as `ray_cluster`; also more workers than the cluster has GPUs, or else cores.
        """
        numbered = [(work, place, task) for place, task in enumerate(tasks)]
        if self.ray is None:
            with _processes(self.workers or 1, begin, arguments) as pool:
                with waiting_gives_way():
                    running = [pool.submit(_numbered, item) for item in numbered]
                for done in as_completed(running):
                    yield done.result()
            return
        with _actors(self.ray, self.workers, begin, arguments) as pool:
            yield from pool.map_unordered(lambda actor, item: actor.work.remote(item), numbered)


def in_order(outcomes: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """What came out, in the order of the tasks; each as soon as those before it are there."""
    waiting: dict[int, Any] = {}
    place = 0
    for number, outcome in outcomes:
        waiting[number] = outcome
        while place in waiting:
            yield waiting.pop(place)
            place += 1


def _numbered(item: tuple[Callable[[Any], Any], int, Any]) -> tuple[int, Any]:
    work, place, task = item
    return place, work(task)


def _begin(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    begin(*arguments)


@contextmanager
def _processes(workers: int, begin: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[ProcessPoolExecutor]:
    context = fresh_processes(*IMPORTED)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(begin, arguments))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise StorageError(KILLED) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Actor:
    """One worker of a Ray cluster."""

    def begin(self, begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        begin(*arguments)

    def work(self, item: tuple[Callable[[Any], Any], int, Any]) -> tuple[int, Any]:
        return _numbered(item)


@contextmanager
def _actors(address: str, workers: int | None, begin: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[Any]:
    with ray_cluster(address) as ray:
        # of Ray's pools the one without a thread: the other's calls Ray after its end too, which ends this process or begins another cluster
        from ray.util import ActorPool

        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        places = gpus or max(cores, 1)
        if workers is not None and workers > places:
            raise RecipeError(f"workers: expected at most {places}, one a {'GPU' if gpus else 'core'} of the cluster, got {workers}")
        options = {"num_cpus": 0 if gpus else 1, "num_gpus": 1 if gpus else 0, "scheduling_strategy": "SPREAD", "runtime_env": {"env_vars": WAITING}}
        kind = ray.remote(_Actor).options(**options)
        actors = [kind.remote() for _ in range(workers or places)]
        try:
            shared = ray.put(arguments)
            ray.get([actor.begin.remote(begin, shared) for actor in actors])
            yield ActorPool(actors)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayActorError as error:
            raise StorageError(KILLED) from error
        finally:
            for actor in actors:
                ray.kill(actor)
