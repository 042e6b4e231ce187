"""Does a bank of 10 million samples open, draw and grow as a small one does? Time and memory in banks of 10,000 to 10,000,000 tiny images.

python benchmarks/scale_bank.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from monai_diverse.bank import BankHeader, BankWriter, SampleBank, draw
from monai_diverse.bank.format import MANIFEST
from monai_diverse.report.provenance import describe_environment
from monai_diverse.storage import write_json

RESULTS = Path(__file__).parent / "results"
SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000, 10_000_000), (10_000, 100_000)
CLASSES, SIDE, PART, DRAWS, RUNS, APPENDS = 10, 4, 262_144, 500, 60, 20
MIB = 2**20
OPEN_SECONDS, OPEN_MIB, RATIO = 0.1, 50.0, 3.0
"""Of a draw from the largest bank to one from the smallest: large ones read a number from a file, small ones have it in memory."""
HEADER = BankHeader(recipe={}, recipe_fingerprint="scale", source={"fingerprint": "tiny"}, features={}, shape=(1, SIDE, SIDE), classes=CLASSES)


def make_bank(folder: Path, count: int) -> float:
    """Writes a bank of so many images through the real writer; the seconds that it took."""
    rng, began = np.random.default_rng(0), time.perf_counter()
    with BankWriter.create_or_resume(folder, HEADER, resume=False) as writer:
        for start in range(0, count, PART):
            size = min(PART, count - start)
            images = rng.integers(0, 256, (size, 1, SIDE, SIDE), np.uint8) / np.float32(255)
            scores = {"not_novel": rng.random(size, np.float32), "copy": rng.random(size, np.float32)}
            writer.append(images, rng.integers(0, CLASSES, size), np.arange(start, start + size), scores, {"drawn": start + size})
    return time.perf_counter() - began


def resident() -> float:
    return psutil.Process().memory_info().rss / MIB


def timed(work: Callable[[], Any], times: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def least(work: Callable[[], Any]) -> float:
    """Microseconds, the least of several runs, since other work on the machine only adds to them."""
    return 1e6 * min(timed(work, DRAWS) for _ in range(RUNS))


def open_and_draw(folder: Path) -> dict[str, float]:
    """What a process that has just started pays: to open, to draw first, and to draw on; MiB are growth of resident memory."""
    before = resident()
    began = time.perf_counter()
    bank = SampleBank.open(folder)
    found = {"open_seconds": time.perf_counter() - began, "open_mib": resident() - before}
    rng, counts = np.random.RandomState(0), list(range(1, CLASSES + 1))
    found["first_draw_seconds"] = timed(lambda: draw(bank, 3, "match", rng))
    found["first_read_seconds"] = timed(lambda: bank.images[draw(bank, 3, "match", rng)])
    for policy in ("match", "balance", "own"):
        found[f"draw_{policy}_microseconds"] = least(lambda: draw(bank, 3, policy, rng, counts=counts))  # noqa: B023
    found["label_microseconds"] = least(lambda: bank.label_of(draw(bank, 3, "own", rng)))
    found["read_microseconds"] = least(lambda: bank.images[draw(bank, 3, "own", rng)])
    found["mib_after_draws"] = resident() - before
    return found


def read_labels(folder: Path) -> dict[str, float]:
    """All labels, as an array; and what an inspection asks for besides."""
    before, bank = resident(), SampleBank.open(folder)
    found = {"labels_seconds": timed(lambda: bank.labels), "labels_mib": resident() - before}
    return found | {"fingerprint_seconds": timed(lambda: bank.fingerprint), "verdict_counts_seconds": timed(lambda: bank.verdict_counts)}


def append(folder: Path) -> dict[str, float]:
    """One image at a time, by a writer that has just sealed nothing; resuming, which verifies every byte, is timed apart."""
    rng = np.random.default_rng(1)
    began = time.perf_counter()
    with BankWriter.create_or_resume(folder, HEADER, resume=True) as writer:
        found = {"resume_seconds": time.perf_counter() - began}
        image, scores = rng.random((1, 1, SIDE, SIDE), np.float32), {"not_novel": [0.5], "copy": [0.5]}
        found["append_seconds"] = min(timed(lambda: writer.append(image, [0], [0], scores, {})) for _ in range(APPENDS))
    return found


STEPS: tuple[Callable[[Path], dict[str, float]], ...] = (open_and_draw, read_labels, append)


def in_fresh_process(step: str, folder: Path) -> dict[str, float]:
    """What a step finds in a process that did nothing before."""
    done = subprocess.run([sys.executable, __file__, "--step", step, str(folder)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(sizes: tuple[int, ...]) -> dict[str, Any]:
    """All figures by size."""
    found: dict[str, Any] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "bank"
            figures = {"write_seconds": make_bank(folder, size), "manifest_bytes": float((folder / MANIFEST).stat().st_size)}
            figures["mib_on_disk"] = sum(file.stat().st_size for file in folder.iterdir()) / MIB
            for step in STEPS:
                figures |= in_fresh_process(step.__name__, folder)
            found[str(size)] = figures
            shutil.rmtree(folder)
        print(size, json.dumps(found[str(size)]), file=sys.stderr, flush=True)
    return found


def exponents(found: dict[str, Any]) -> dict[str, float]:
    """Of each figure against the size of the bank."""
    sizes = np.log([int(size) for size in found])
    names = next(iter(found.values()))
    return {name: float(np.polyfit(sizes, np.log([max(figures[name], 1e-9) for figures in found.values()]), 1)[0]) for name in names}


def bars_of(found: dict[str, Any]) -> dict[str, Any]:
    """What was asked of the largest bank, and of draws."""
    smallest, largest = found[min(found, key=int)], found[max(found, key=int)]
    bars = {
        "open_seconds": (largest["open_seconds"], OPEN_SECONDS),
        "open_mib": (largest["open_mib"], OPEN_MIB),
    }
    for name in (f"draw_{policy}_microseconds" for policy in ("match", "balance", "own")):
        bars[f"ratio_of_{name}"] = (largest[name] / smallest[name], RATIO)
    return {name: {"value": value, "bar": bar, "holds": value <= bar} for name, (value, bar) in bars.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no bank above 100,000 samples")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.step:
        print(json.dumps({step.__name__: step for step in STEPS}[chosen.step[0]](Path(chosen.step[1]))))
        return 0
    found = measure(QUICK_SIZES if chosen.quick else SIZES)
    bars = bars_of(found)
    results = {"by_size": found, "exponents": exponents(found)}
    outcome = {"bars": bars, "results": results, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "scale_bank.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps(outcome["results"] | {"bars": bars}, indent=1))
    return 0 if all(bar["holds"] for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
