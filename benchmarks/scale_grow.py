"""Does a bank grow faster on several workers, and is it the same whatever dies? Processes and Ray actors against a single process.

python benchmarks/scale_grow.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from monai_diverse import Processes, RayActors, SampleBank
from monai_diverse.bank.format import MANIFEST
from monai_diverse.batches import Workers
from monai_diverse.growth import grow_steps
from monai_diverse.job import Job
from monai_diverse.recipe import Recipe
from monai_diverse.report.provenance import describe_environment
from monai_diverse.storage import write_json

RESULTS = Path(__file__).parent / "results"
KILLS, BATCHES, NUMBER = 50, 24, 8
REAL = {
    "reference": {"path": "builtin", "part": "generator_train"},
    "calibration": {"path": "builtin", "part": "calibration"},
    "generator_train": {"path": "builtin", "part": "generator_train", "mirrored": True},
}
SPEED = REAL | {"source": {"target": "monai_diverse.BuiltinSource", "arguments": {"steps": 20}}, "batch_size": 16, "seed": 5}
"""The shipped model behind the default screen."""
LENIENT = {
    "target": "monai_diverse.NoveltyScreen",
    "arguments": {
        "extractor": {"target": "monai_diverse.features.PixelFeatures"},
        "novelty": {"target": "monai_diverse.screening.NoveltyGate", "arguments": {"alpha": 0.9}},
        "outlier": {"target": "monai_diverse.screening.OutlierGate", "arguments": {"textures": None}},
    },
}
QUICK_DRAWS = REAL | {
    "source": {"target": "monai_diverse.BuiltinSource", "arguments": {"steps": 3}},
    "screen": LENIENT,
    "guide": {"target": "monai_diverse.sampling.Shield"},
    "ahead": 3,
    "batch_size": 8,
    "max_evaluations": 3 * 8 * 60,
}
"""Quick draws that depend on what was accepted four batches before: what is tested here is what kills do."""


def speed(folder: Path, batches: int, repeats: int) -> dict[str, Any]:
    """Seconds a batch in one process and on workers, from the first batch to the last, the median of repeats; and whether the banks are the same."""
    recipe = Recipe.from_json(SPEED | {"max_evaluations": 20 * 16 * batches})
    job = Job.prepare(recipe)
    crews: dict[str, Workers | None] = {"single_process": None}
    crews |= {f"processes_{n}": Processes(devices=("cpu",), count=n) for n in (1, 2)}
    seconds: dict[str, list[float]] = {}
    starts: dict[str, list[float]] = {}
    fingerprints = set()
    with cluster(2) as machines:
        crews |= {f"ray_{n}": RayActors(address=machines.address, count=n) for n in (1, 2)}
        for repeat in range(repeats):
            for name, workers in crews.items():
                out = folder / f"{name}-{repeat}"
                times = [progress.seconds for progress in grow_steps(job, out, workers=workers)]
                seconds.setdefault(name, []).append((times[-1] - times[1]) / (len(times) - 2))
                starts.setdefault(name, []).append(times[1] - times[0])
                fingerprints.add(SampleBank.open(out).fingerprint)
    per_batch = {name: float(np.median(values)) for name, values in seconds.items()}
    single = per_batch["single_process"]
    return {
        "batches": batches,
        "samples_a_batch": 16,
        "repeats": repeats,
        "seconds_a_batch": per_batch,
        "seconds_to_the_first_batch": {name: float(np.median(values)) for name, values in starts.items()},
        "speed_over_single_process": {name: single / value for name, value in per_batch.items()},
        "overhead_of_a_process_seconds_a_batch": per_batch["processes_1"] - single,
        "overhead_of_ray_seconds_a_batch": per_batch["ray_1"] - single,
        "different_banks": len(fingerprints) - 1,
    }


class Machines:
    """A Ray cluster of machines with so many cores each, all on this one; held by a process of its own, since this one forks."""

    def __init__(self, cores: tuple[int, ...]) -> None:
        context = get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_hold, args=(there, cores))
        self._process.start()
        self.address: str = self._pipe.recv()

    def remove_one(self) -> None:
        """Takes the machine away that was added last."""
        self._pipe.send("remove")
        self._pipe.recv()

    def close(self) -> None:
        """Shuts the cluster down."""
        self._pipe.send("close")
        self._process.join()


def _hold(pipe: Connection, cores: tuple[int, ...]) -> None:
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    held = Cluster(initialize_head=True, head_node_args={"num_cpus": cores[0], "include_dashboard": False})
    nodes = [held.add_node(num_cpus=count) for count in cores[1:]]
    pipe.send(held.address)
    while pipe.recv() == "remove":
        held.remove_node(nodes.pop(), allow_graceful=False)
        pipe.send("removed")
    held.shutdown()


@contextmanager
def cluster(*cores: int) -> Iterator[Machines]:
    """Machines, shut down in the end."""
    machines = Machines(cores)
    try:
        yield machines
    finally:
        machines.close()


class Driver:
    """A forked process that grows a bank and says how many samples it has stored; it can be killed, and so can its workers."""

    def __init__(self, job: Job, out: Path, workers: Workers) -> None:
        self.ray = isinstance(workers, RayActors)
        self.stored, self.reports = 0, 0
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._reader)
                for progress in grow_steps(job, out, resume=True, workers=workers):
                    os.write(writer, progress.accepted.to_bytes(NUMBER, "little"))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writer)

    def hear(self, seconds: float) -> bool:
        """Reads what it says for so long; False once it has ended."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._reader], [], [], left)[0]:
                told = os.read(self._reader, NUMBER)
                if not told:
                    return False
                self.stored, self.reports = int.from_bytes(told, "little"), self.reports + 1
        return True

    def workers(self) -> list[int]:
        """The processes that draw for it."""
        try:
            if self.ray:
                everyone = psutil.Process(os.getpid()).children(recursive=True)
                return [p.pid for p in everyone if p.name().startswith("ray::JobWorker")]
            return [p.pid for child in psutil.Process(self.pid).children() for p in child.children()]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Ends it as the kernel does when memory runs out, and hears its last words."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Hears it to its end."""
        while self.hear(3600):
            pass
        os.close(self._reader)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def kills(folder: Path, count: int) -> dict[str, Any]:
    """Kills drivers and workers of a real `grow` at random; what was said to be stored must be there, and the end the same as without kills."""
    rng, prepared = np.random.default_rng(0), Job.prepare(Recipe.from_json(QUICK_DRAWS))
    found = {"driver_kills": 0, "worker_kills": 0, "banks": 0, "lost": 0, "different": 0, "left_over": 0, "samples": 0}
    with cluster(2) as machines:
        crews: list[Workers] = [Processes(devices=("cpu", "cpu")), RayActors(address=machines.address, count=2)]
        while found["driver_kills"] + found["worker_kills"] < count:
            job = replace(prepared, recipe=replace(prepared.recipe, seed=found["banks"]))
            whole, path = folder / f"whole-{found['banks']}", folder / f"killed-{found['banks']}"
            list(grow_steps(job, whole))
            harm(job, SampleBank.open(whole), path, crews[found["banks"] % 2], rng, found, count)
            found["banks"] += 1
    return found


def harm(job: Job, whole: SampleBank, path: Path, workers: Workers, rng: np.random.Generator, found: dict[str, int], count: int) -> None:
    """Grows one bank through kills to its end, and adds up in `found` what they did."""
    code: int | None = None
    seen: set[int] = set()
    while code != 0:
        driver, running, early = Driver(job, path, workers), True, rng.random() < 0.2
        while running and driver.reports < 2 and not early:  # most strikes fall after the start, which takes long
            running = driver.hear(0.1)
        while running and found["driver_kills"] + found["worker_kills"] < count:
            running = driver.hear(rng.uniform(0, 3))
            seen.update(targets := driver.workers())
            if running and targets and rng.random() < 0.5:
                with_kill(int(rng.choice(targets)))
                found["worker_kills"] += 1
            elif running:
                driver.kill()
                found["driver_kills"] += 1
                break
        else:
            code = driver.wait()
        found["lost"] += missing(path, whole, driver.stored)
    time.sleep(5)
    found["left_over"] += sum(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in seen)
    found["different"] += SampleBank.open(path).fingerprint != whole.fingerprint
    found["samples"] += len(whole)


def with_kill(pid: int) -> None:
    """Kills a process that may have ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def missing(path: Path, whole: SampleBank, stored: int) -> int:
    """Samples that were said to be stored and are not there, or are others than without kills."""
    if not (path / MANIFEST).exists():
        return stored
    bank = SampleBank.open(path)
    bank.verify()
    same = np.array_equal(bank.seeds, whole.seeds[: len(bank)]) and np.array_equal(bank.images[:], whole.images[: len(bank)])
    return max(0, stored - len(bank)) if same else len(bank)


def node_loss(folder: Path) -> dict[str, Any]:
    """Grows a bank on two machines of a Ray cluster, one of which goes away."""
    job = Job.prepare(Recipe.from_json(QUICK_DRAWS | {"seed": 1000}))
    list(grow_steps(job, folder / "whole-nodes"))
    whole, path = SampleBank.open(folder / "whole-nodes"), folder / "nodes"
    with cluster(1, 1) as machines:
        driver = Driver(job, path, RayActors(address=machines.address, count=2))
        while driver.reports < 2 and driver.hear(0.1):
            pass
        machines.remove_one()
        stored = driver.stored
        code = driver.wait()
    return {
        "stored_before": stored,
        "samples": len(whole),
        "exit_code": code,
        "different": int(SampleBank.open(path).fingerprint != whole.fingerprint),
    }


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    """All of it."""
    torch.set_num_threads(1)
    return {
        "kills": kills(folder, 4 if quick else KILLS),
        "node_loss": node_loss(folder),
        "speed": speed(folder, 6 if quick else BATCHES, 1 if quick else 3),
    }


def bars_of(found: dict[str, Any]) -> dict[str, Any]:
    """What must hold on any machine."""
    lost = found["kills"]["lost"]
    different = found["kills"]["different"] + found["node_loss"]["different"] + found["speed"]["different_banks"]
    left = found["kills"]["left_over"]
    return {
        "samples_lost_by_kills": {"value": lost, "bar": 0, "holds": lost == 0},
        "banks_that_differ_from_a_single_process": {"value": different, "bar": 0, "holds": different == 0},
        "workers_left_over": {"value": left, "bar": 0, "holds": left == 0},
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer kills and batches")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), quick=chosen.quick)
    bars = bars_of(found)
    outcome = {"bars": bars, "results": found, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "scale_grow.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps(found | {"bars": bars}, indent=1))
    return 0 if all(bar["holds"] for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
