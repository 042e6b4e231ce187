"""Workers that are processes of this machine."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from monai_diverse.batches import Drawer
from monai_diverse.devices import require_device
from monai_diverse.distributed.pool import Pool
from monai_diverse.distributed.worker import Commission, JobWorker, Reply, Task
from monai_diverse.errors import RecipeError
from monai_diverse.job import Job
from monai_diverse.processes import fresh_processes, waiting_gives_way

IMPORTED = ("monai.networks.nets", "monai_diverse.distributed.worker", "monai_diverse.features")
GRACE = 5.0
"""Seconds for a process that was killed to be gone."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Grows a bank with processes of this machine, each with a model of its own: `grow(recipe, out, workers=Processes())`.

    Each computes with as many threads as this process (see `torch.get_num_threads`, `OMP_NUM_THREADS`), because sums depend on that in their last
    digits. They are started afresh, so that a script that grows a bank needs `if __name__ == "__main__":`.

    Attributes:
        devices: where each computes, such as `("cuda:0", "cuda:1")` or `("cpu", "cpu")`; `auto`: one a GPU, or else one a core, on the CPU.
        count: how many, in turn on the devices; None: as many as devices.

    Raises:
        RecipeError: no device, or a count below 1.
    """

    devices: str | tuple[str, ...] = "auto"
    count: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.devices, str) and self.devices != "auto":
            raise RecipeError(f"devices: expected 'auto' or a tuple of devices, got {self.devices!r}")
        if not self.devices or not all(self.devices):
            raise RecipeError(f"devices: expected names such as cuda:0 or cpu, one a worker, got {self.devices!r}")
        check_count(self.count)

    def chosen(self) -> tuple[str, ...]:
        """The device of each worker."""
        devices = _found() if isinstance(self.devices, str) else self.devices
        return tuple(devices[i % len(devices)] for i in range(self.count or len(devices)))

    @contextmanager
    def start(self, job: Job) -> Iterator[Drawer]:
        """Starts the processes; they are killed in the end, and end by themselves when this process is gone.

        Raises:
            RecipeError: a device that this machine does not have, or a job that cannot be sent.
        """
        fleet = _Fleet(tuple(require_device(name) for name in self.chosen()), Commission.of(job))
        pool = Pool(fleet, first_seed=int(job.asked(0, 1)[1][0]), batch_size=job.recipe.batch_size)
        try:
            yield pool
        finally:
            pool.close()


def check_count(count: int | None) -> None:
    """Raises RecipeError unless a number of workers is None or at least 1."""
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise RecipeError(f"workers: expected a whole number from 1, got {count!r}")


def _found() -> tuple[str, ...]:
    gpus = torch.cuda.device_count()
    return (
        tuple(f"cuda:{i}" for i in range(gpus))
        if gpus
        else ("cpu",) * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    )


class _Process:
    """One process and the pipe to it."""

    def __init__(self, commission: Commission, device: str) -> None:
        context = fresh_processes(*IMPORTED)
        self.pipe, there = context.Pipe()
        self._ended = False
        self._process: BaseProcess = context.Process(target=_work, args=(there,), daemon=True)  # type: ignore[attr-defined]
        with waiting_gives_way():
            self._process.start()
        there.close()  # so that the pipe ends when the process does
        self._write((commission, device))

    def send(self, task: Task) -> None:
        """Writes to the pipe; the process reads at any time."""
        self._write(task)

    def read(self) -> Reply | None:
        """The next reply; None when the process is dead."""
        try:
            reply: Reply = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self._ended = True
            return None
        return reply

    def stop(self) -> str:
        """Kills the process; says with which code it ended."""
        if self._ended:
            self._process.join(GRACE)
        self._process.kill()
        self._process.join(GRACE)
        self.pipe.close()
        code = self._process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _write(self, message: object) -> None:
        try:
            # plain pickle copies tensors, where that of multiprocessing would share memory
            self.pipe.send_bytes(pickle.dumps(message))
        except OSError:  # it is dead, as reading will tell
            return


class _Fleet:
    """One process a device."""

    def __init__(self, devices: tuple[str, ...], commission: Commission) -> None:
        self._devices, self._commission = devices, commission

    @property
    def size(self) -> int:
        return len(self._devices)

    def hire(self, place: int) -> _Process:
        return _Process(self._commission, self._devices[place])

    def hear(self, handles: Sequence[_Process]) -> list[tuple[_Process, Reply | None]]:
        by_pipe = {handle.pipe: handle for handle in handles}
        return [(by_pipe[pipe], by_pipe[pipe].read()) for pipe in wait(list(by_pipe)) if isinstance(pipe, Connection)]


def _work(pipe: Connection) -> None:
    """What a process does: read while it draws, so that whoever writes never waits, and end with whoever started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted terminal tells every process; the one that started this one decides
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    worker = JobWorker()
    commission, device = pickle.loads(inbox.get())
    pipe.send_bytes(pickle.dumps(worker.prepare(commission, device)))
    while True:
        pipe.send_bytes(pickle.dumps(worker.draw(pickle.loads(inbox.get()))))


def _listen(pipe: Connection, inbox: queue.SimpleQueue[bytes]) -> None:
    while True:
        try:
            inbox.put(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)
