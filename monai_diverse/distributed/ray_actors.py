"""Workers that are actors of a Ray cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from monai_diverse.batches import Drawer
from monai_diverse.cluster import AUTO, ray_cluster
from monai_diverse.distributed.pool import Pool
from monai_diverse.distributed.processes import check_count
from monai_diverse.distributed.worker import Commission, JobWorker, Reply, Task
from monai_diverse.job import Job
from monai_diverse.processes import WAITING

TOLD = 300
"""Characters of what Ray says of a death."""


@dataclass(frozen=True, kw_only=True)
class RayActors:
    """Grows a bank with actors of a Ray cluster, each with a model of its own: `grow(recipe, out, workers=RayActors())`.

    An actor takes a GPU where the cluster has any, or else a core; it computes there, with as many threads as this process, see `Processes`.
    Recipes name files: all machines must find them at the same paths, as on a shared file system. Where Ray is started already, that cluster is
    used.

    Attributes:
        address: of a cluster; `auto`: the one that runs (`RAY_ADDRESS`, or one on this machine), or a new one on this machine; `local`: a new one.
        count: how many; None: one a GPU of the cluster, or else one a core.

    Raises:
        RecipeError: a count below 1.
    """

    address: str = AUTO
    count: int | None = None

    def __post_init__(self) -> None:
        check_count(self.count)

    @contextmanager
    def start(self, job: Job) -> Iterator[Drawer]:
        """Starts the actors; they are killed in the end, and Ray ends them when this process is gone.

        Raises:
            MissingExtraError: Ray is not installed.
            RecipeError: no cluster at the address, or a job that cannot be sent.
        """
        commission = Commission.of(job)
        with ray_cluster(self.address) as ray:
            pool = Pool(_Fleet(ray, commission, self.count), first_seed=int(job.asked(0, 1)[1][0]), batch_size=job.recipe.batch_size)
            try:
                yield pool
            finally:
                pool.close()


class _Actor:
    """One actor, and what it was asked."""

    def __init__(self, ray: Any, actor: Any, first: Any) -> None:
        self._ray, self._actor, self.asked = ray, actor, deque([first])
        self._cause = ""

    def send(self, task: Task) -> None:
        """Calls it; calls are answered in order."""
        self.asked.append(self._actor.draw.remote(task))

    def read(self) -> Reply | None:
        """The oldest reply, which has come; None when the actor, its machine or what it gave is lost."""
        try:
            reply: Reply = self._ray.get(self.asked.popleft())
        except self._ray.exceptions.RayError as error:
            self._cause = " ".join(str(error).split())[:TOLD]
            return None
        return reply

    def stop(self) -> str:
        """Kills the actor; repeats what Ray said of its death."""
        self._ray.kill(self._actor, no_restart=True)
        return self._cause


class _Fleet:
    """Actors on the cluster's GPUs, or else on its cores."""

    def __init__(self, ray: Any, commission: Commission, count: int | None) -> None:
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        self._ray, self._commission = ray, ray.put(commission)
        self._size, self._device = count or gpus or max(cores, 1), "cuda" if gpus else None
        # max_restarts: a new actor would know nothing; the pool makes one, and tells it everything
        options: dict[str, Any] = {"num_cpus": 0 if gpus else 1, "num_gpus": 1 if gpus else 0, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        options["runtime_env"] = {"env_vars": WAITING}
        self._kind = ray.remote(JobWorker).options(**options)

    @property
    def size(self) -> int:
        return self._size

    def hire(self, place: int) -> _Actor:
        actor = self._kind.remote()
        return _Actor(self._ray, actor, actor.prepare.remote(self._commission, self._device))

    def hear(self, handles: Sequence[_Actor]) -> list[tuple[_Actor, Reply | None]]:
        by_call = {handle.asked[0]: handle for handle in handles if handle.asked}
        done, _ = self._ray.wait(list(by_call), num_returns=1)
        return [(by_call[call], by_call[call].read()) for call in done]
