"""Is a bank cheap to share and hard to hurt? Memory of workers that read a large one, time to open it and to draw, kills of a growing one.

python benchmarks/bank.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from monai_diverse.bank import BankHeader, BankWriter, SampleBank, draw
from monai_diverse.bank.format import MANIFEST
from monai_diverse.growth import grow_steps
from monai_diverse.job import Job
from monai_diverse.recipe import Recipe
from monai_diverse.report.provenance import describe_environment
from monai_diverse.storage import write_json
from monai_diverse.testing.kills import strike

RESULTS = Path(__file__).parent / "results"
SIDE, MIB, RSS_MIB, KILLS = 224, 2**20, 5.0, 100
RECIPE = {
    "source": {"target": "monai_diverse.BuiltinSource", "arguments": {"steps": 3}},
    "reference": {"path": "builtin", "part": "generator_train"},
    "calibration": {"path": "builtin", "part": "calibration"},
    "generator_train": {"path": "builtin", "part": "generator_train", "mirrored": True},
    "screen": {
        "target": "monai_diverse.NoveltyScreen",
        "arguments": {
            "extractor": {"target": "monai_diverse.features.PixelFeatures"},
            "novelty": {"target": "monai_diverse.screening.NoveltyGate", "arguments": {"alpha": 0.9}},
            "outlier": {"target": "monai_diverse.screening.OutlierGate", "arguments": {"textures": None}},
        },
    },
    "max_evaluations": 3 * 8 * 40,
    "batch_size": 8,
    "seed": 5,
}
"""Quick draws behind a lenient screen: what is tested here is storage."""
LOADERS = (("fork", 2), ("fork", 4), ("spawn", 2))


def make_bank(folder: Path, count: int, side: int) -> SampleBank:
    header = BankHeader(recipe={}, recipe_fingerprint="r", source={"fingerprint": "s"}, features={}, shape=(1, side, side), classes=10)
    rng = np.random.default_rng(0)
    with BankWriter.create_or_resume(folder, header, resume=False) as writer:
        for start in range(0, count, header.capacity):
            part = np.arange(start, min(count, start + header.capacity))
            writer.append(rng.random((len(part), 1, side, side), np.float32), part % 10, part, {}, {})
    return SampleBank.open(folder)


class Reader(torch.utils.data.Dataset[Any]):
    """Each item says what memory its worker has, after it read some samples."""

    def __init__(self, images: Any, length: int, reads: int) -> None:
        self.images, self.length, self.reads = images, length, reads

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, float]:
        before = memory()
        rng = np.random.default_rng(index)
        total = 0.0
        for place in rng.integers(len(self.images), size=self.reads):
            total += float(np.asarray(self.images[int(place)]).ravel()[0])
        after = memory()
        told = {f"{name}_{when}": of[name] for when, of in (("before", before), ("after", after)) for name in ("rss", "private")}
        return told | {"worker": after["pid"], "sum": total}


def memory() -> dict[str, float]:
    process = psutil.Process()
    full = process.memory_full_info()
    return {"pid": process.pid, "rss": full.rss / MIB, "private": full.uss / MIB}


def worker_growth(images: Any, workers: int, reads: int, context: str) -> dict[str, float]:
    """MiB by which a worker grows from before its first read to after its last one; the largest over workers."""
    loader = torch.utils.data.DataLoader(
        Reader(images, workers * 8, reads), batch_size=1, num_workers=workers, multiprocessing_context=context, shuffle=False
    )
    first: dict[float, dict[str, float]] = {}
    grown: dict[float, dict[str, float]] = {}
    for batch in loader:
        item = {name: float(value) for name, value in batch.items()}
        first.setdefault(item["worker"], item)
        start = first[item["worker"]]
        grown[item["worker"]] = {name: item[f"{name}_after"] - start[f"{name}_before"] for name in ("rss", "private")}
    return {name: max(each[name] for each in grown.values()) for name in ("rss", "private")} | {"workers": len(grown), "reads_each": 8 * reads}


def sharing(folder: Path, mebibytes: int) -> dict[str, Any]:
    """Workers that read a whole bank; in comparison, a few images in memory, and as many bytes as the bank's as a memory mapping."""
    count = mebibytes * MIB // SIDE**2
    bank = make_bank(folder / "large", count, SIDE)
    reads = count // 8 + 1  # eight items a worker: as many reads as there are samples
    began = time.perf_counter()
    opened = SampleBank.open(bank.path)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    opened.images[0]
    first = time.perf_counter() - began
    found: dict[str, Any] = {"mebibytes": mebibytes, "samples": count, "open_seconds": seconds, "first_read_seconds": first}
    small = [np.asarray(image) for image in bank.images[:8]]
    for name, images in (("bank", Opened(bank)), ("eight_images_in_memory", Scaled(small))):
        found[name] = {f"{context}_{workers}": worker_growth(images, workers, reads, context) for context, workers in LOADERS}
    flat = np.memmap(folder / "flat", dtype=np.uint8, mode="w+", shape=(count, SIDE, SIDE))
    flat[:] = 1
    flat.flush()
    found["memmap"] = {"fork_2": worker_growth(np.memmap(folder / "flat", dtype=np.uint8, mode="r", shape=flat.shape), 2, reads, "fork")}
    return found


class Opened:
    """A bank as an array; pickles as the bank does."""

    def __init__(self, bank: SampleBank) -> None:
        self.bank = bank

    def __len__(self) -> int:
        return len(self.bank)

    def __getitem__(self, index: int) -> Any:
        return self.bank.images[index]


class Scaled:
    """A few images in memory, handed out anew as a bank does: what a worker grows by without any bank."""

    def __init__(self, images: list[Any]) -> None:
        self.images = [np.rint(image * 255).astype(np.uint8) for image in images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index].astype(np.float32) / np.float32(255)


def drawing(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """Microseconds of a draw by label in banks of so many samples, and the exponent of time against size."""
    times = {}
    for size in sizes:
        bank, rng = make_bank(folder / f"tiny-{size}", size, 4), np.random.RandomState(0)
        draw(bank, 3, "match", rng)
        runs = []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(2000):
                draw(bank, 3, "match", rng)
            runs.append((time.perf_counter() - began) / 2000)
        times[size] = 1e6 * min(runs)
    exponent = float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])
    return {"microseconds": {str(size): value for size, value in times.items()}, "exponent": exponent}


def kills(folder: Path, count: int) -> dict[str, Any]:
    """Kills a real `grow` at random until it was struck `count` times; whatever was said to be stored must be there, and the end the same."""
    job = Job.prepare(Recipe.from_json(RECIPE))
    rng = np.random.default_rng(0)
    lost = corrupted = struck = runs = 0
    while struck < count:
        whole, path, runs = folder / f"whole-{runs}", folder / f"killed-{runs}", runs + 1
        job = replace(job, recipe=replace(job.recipe, seed=runs))
        began = time.perf_counter()
        list(grow_steps(job, whole))
        seconds = time.perf_counter() - began
        reference, done = SampleBank.open(whole), False

        def work(report: Callable[[int], None], job: Job = job, path: Path = path) -> None:
            for progress in grow_steps(job, path, resume=True):
                report(progress.accepted)

        while not done and struck < count:
            outcome = strike(work, rng.uniform(0, seconds / 4))
            struck, done = struck + (not outcome.finished), outcome.finished
            if (path / MANIFEST).exists():
                bank = SampleBank.open(path)
                try:
                    bank.verify()
                except Exception:  # counted, whatever it is
                    corrupted += 1
                same = np.array_equal(bank.seeds, reference.seeds[: len(bank)]) and np.array_equal(bank.images[:], reference.images[: len(bank)])
                lost += max(0, (outcome.reported or 0) - len(bank)) + (0 if same else len(bank))
        list(grow_steps(job, path, resume=True))
        corrupted += SampleBank.open(path).fingerprint != reference.fingerprint
    return {"kills": struck, "banks": runs, "lost": lost, "corrupted": corrupted, "samples_in_the_last": len(reference)}


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "sharing": sharing(folder, 128 if quick else 1024),
        "drawing": drawing(folder, [1_000, 10_000, 100_000] if quick else [1_000, 10_000, 100_000, 1_000_000]),
        "kills": kills(folder, 10 if quick else KILLS),
    }


def bars_of(found: dict[str, Any]) -> dict[str, Any]:
    sharing = found["sharing"]
    growth = max(each["rss"] for each in sharing["bank"].values())
    # a forked worker maps the code that it runs, whatever it reads: what is left is the bank's
    beyond = max(sharing["bank"][loader]["rss"] - sharing["eight_images_in_memory"][loader]["rss"] for loader in sharing["bank"])
    harmed = found["kills"]["lost"] + found["kills"]["corrupted"]
    exponent = found["drawing"]["exponent"]
    return {
        "rss_growth_of_a_worker_mib": {"value": growth, "bar": RSS_MIB, "holds": growth < RSS_MIB},
        "rss_growth_beyond_a_loader_without_a_bank_mib": {"value": beyond, "bar": RSS_MIB, "holds": beyond < RSS_MIB},
        "samples_lost_or_corrupted": {"value": harmed, "bar": 0, "holds": harmed == 0},
        "exponent_of_drawing": {"value": exponent, "bar": 0.05, "holds": exponent <= 0.05},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller bank, fewer kills")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), quick=chosen.quick)
    bars = bars_of(found)
    outcome = {"bars": bars, "results": found, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "bank.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps(found | {"bars": bars}, indent=1))
    return 0 if all(bar["holds"] for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
