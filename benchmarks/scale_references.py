"""What does it cost to compare a candidate with more and more references, in memory and on disk?

python benchmarks/scale_references.py [--quick] [--json]

Features are like those of benchmarks/neighbours.py: 48 numbers near 16 dimensions, since no data set of ten million images was at hand. Every
case runs in a process of its own, whose peak memory is measured; those on disk read the features from a memory map, and keep the index in a folder.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from neighbours import BLOCK, CLUSTERS, LATENT, QUERIES, elapsed, peak_gib

from monai_diverse.information import Neighbours
from monai_diverse.report.provenance import describe_environment
from monai_diverse.storage import write_atomic, write_json

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs" / "scaling.md"
MARKS = ("<!-- references: benchmarks/scale_references.py -->", "<!-- end of references -->")
SIZES, QUICK_SIZES, WIDTH = (10_000, 100_000, 1_000_000, 10_000_000), (10_000, 100_000), 48
EXPONENT, RECALL = 0.6, 0.95
SEED = 1


def anonymous_gib() -> float:
    """Memory that this process holds and that no file is behind: pages of a map can be given up at any time."""
    (kib,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) / 2**20


def write_features(file: Path, count: int) -> np.ndarray:
    """Rows in a file that is mapped, and queries of the same distribution."""
    rng = np.random.default_rng(SEED)
    basis = rng.normal(size=(LATENT, WIDTH)).astype(np.float32) / LATENT**0.5
    centres = 1.5 * rng.normal(size=(CLUSTERS, LATENT)).astype(np.float32)

    def drawn(n: int) -> np.ndarray:
        latent = centres[rng.integers(CLUSTERS, size=n)] + rng.standard_normal((n, LATENT), np.float32)
        return 0.1 * rng.standard_normal((n, WIDTH), np.float32) + latent @ basis

    rows = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, WIDTH))
    for start in range(0, count, BLOCK):
        rows[start : start + BLOCK] = drawn(min(BLOCK, count - start))
    rows.flush()
    return drawn(QUERIES)


def one_case(count: int, way: str) -> dict[str, Any]:
    """One size, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        queries = write_features(file, count)
        rows = np.load(file, mmap_mode="r" if way == "disk" else None)
        began = time.perf_counter()
        found = Neighbours(rows, folder=Path(folder) / "cells" if way == "disk" else None)
        made = time.perf_counter() - began
        peak = peak_gib()
        found.distances(queries[:10], 5)  # warms up
        seconds = min(elapsed(lambda: found.distances(queries, 5)) for _ in range(3)) / len(queries)
        recall = found.recall(5, query=queries[:256])
        anonymous = anonymous_gib()
    return {"references": count, "way": way, "made_seconds": made, "seconds_a_candidate": seconds, "recall_at_5": recall, "peak_gib": peak} | {
        "anonymous_gib": anonymous,
        "cells": None if found.exact else found._rows.cells.count,
        "probes": None if found.exact else found._rows.cells.probes,
    }


def in_its_own_process(script: str, count: int, way: str) -> dict[str, Any]:
    """One case of a script, which prints it as its last line."""
    command = [sys.executable, script, "--case", str(count), way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    case: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(case), file=sys.stderr, flush=True)
    return case


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def references(sizes: tuple[int, ...]) -> dict[str, Any]:
    """All sizes in both ways, fitted exponents, and the bars."""
    cases = [in_its_own_process(__file__, count, way) for way in ("memory", "disk") for count in sizes]
    fits = {
        way: exponent([c["references"] for c in cases if c["way"] == way], [c["seconds_a_candidate"] for c in cases if c["way"] == way])
        for way in ("memory", "disk")
    }
    recall = min(c["recall_at_5"] for c in cases)
    bars = {f"exponent of seconds a candidate, {way}": {"value": value, "bar": EXPONENT, "holds": value < EXPONENT} for way, value in fits.items()}
    bars["least recall at 5"] = {"value": recall, "bar": RECALL, "holds": recall > RECALL}
    return {"cases": cases, "exponents": fits, "bars": bars}


def table(result: dict[str, Any]) -> str:
    lines = [
        "| references | where | made in | a candidate | recall at 5 | cells searched | memory, without pages of files |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in result["cases"]:
        searched = "all rows" if case["cells"] is None else f"{case['probes']} of {case['cells']:,}"
        seconds = f"{case['made_seconds']:.1f} s | {1e3 * case['seconds_a_candidate']:.2f} ms"
        memory = f"{case['anonymous_gib']:.2f} GiB"
        lines.append(f"| {case['references']:,} | {case['way']} | {seconds} | {case['recall_at_5']:.3f} | {searched} | {memory} |")
    fitted = ", ".join(f"{value:.2f} ({way})" for way, value in result["exponents"].items())
    return "\n".join([*lines, "", f"Exponents: {fitted}."])


def put_between(marks: tuple[str, str], text: str) -> None:
    """Writes a text into docs/scaling.md, between two lines."""
    page, (begin, end) = PAGE.read_text(), marks
    write_atomic(PAGE, f"{page.split(begin)[0]}{begin}\n\n{text}\n\n{end}{page.split(end)[1]}".encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written to results")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        print(json.dumps(one_case(int(chosen.case[0]), chosen.case[1])))
        return 0
    result = references(QUICK_SIZES if chosen.quick else SIZES) | {"environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "scale_references.json", result)
        put_between(MARKS, table(result))
    print(json.dumps(result) if chosen.json else json.dumps(result["bars"], indent=1))
    return 0 if all(bar["holds"] for bar in result["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
