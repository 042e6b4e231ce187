"""From how many rows is an index worth its making, what does it find and hold, and how long does greedy choice take?

python benchmarks/neighbours.py [--quick] [--json]

Features are simulated: 200 clusters in 16 dimensions, put into 48 or 512 with a little noise, as deep features have far fewer dimensions than
numbers; and, to show the limit, normal noise without any structure. Each case runs in a process of its own, whose peak memory is measured, the
caller's own float32 array included.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.information import InformationGain, Neighbours
from monai_diverse.report.provenance import describe_environment
from monai_diverse.storage import write_json

RESULTS = Path(__file__).parent / "results"
SIZES, WIDTHS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000), (48, 512)
QUICK_SIZES = (1_000, 10_000, 100_000)
QUERIES, ASKED = 1_000, (1_000, 10_000)
LATENT, CLUSTERS, BLOCK = 16, 200, 50_000


def simulated(n: int, d: int, structured: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows and queries of one distribution; the rows alone are large."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(LATENT, d)).astype(np.float32) / LATENT**0.5
    centres = 1.5 * rng.normal(size=(CLUSTERS, LATENT)).astype(np.float32)
    rows = np.empty((n + QUERIES, d), np.float32)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        part[:] = rng.standard_normal(part.shape, np.float32)
        if structured:
            latent = centres[rng.integers(CLUSTERS, size=len(part))] + rng.standard_normal((len(part), LATENT), np.float32)
            part[:] = 0.1 * part + latent @ basis
    return rows[:n], rows[n:].copy()


def one_case(n: int, d: int, way: str) -> dict[str, Any]:
    """One search, timed, in this process."""
    rows, queries = simulated(n, d, structured=way != "unstructured")
    if way == "exact":
        if rows.nbytes > 2**30:
            sys.modules["faiss"] = None  # type: ignore[assignment]
        index_from = 1 if rows.nbytes > 2**30 else None
    else:
        index_from = 1
    began = time.perf_counter()
    found = Neighbours(rows, index_from=index_from)
    made = time.perf_counter() - began
    found.distances(queries[:10], 5)  # warms up
    few = queries if found.exact is False or n <= 100_000 else queries[:100]
    seconds = elapsed(lambda: found.distances(few, 5)) * len(queries) / len(few)
    result: dict[str, Any] = {"rows": n, "width": d, "way": way, "exact": found.exact, "made_seconds": made, "queries_seconds": seconds}
    result["peak_gib"] = peak_gib()
    if not found.exact:
        result |= {"cells": found._rows.cells.count, "probes": found._rows.cells.probes}
        result |= {f"recall_at_{k}": found.recall(k, query=queries[:256]) for k in (1, 5)}
    return result


def peak_gib() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status").read_text()
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) / 2**20


def in_its_own_process(n: int, d: int, way: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", str(n), str(d), way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    case: dict[str, Any] = json.loads(done.stdout)
    print(json.dumps(case), file=sys.stderr, flush=True)
    return case


def crossovers(cases: list[dict[str, Any]]) -> dict[str, dict[str, int | None]]:
    """By width and number of queries, the fewest rows of those measured at which making the index and asking it takes less time than exact search."""

    def total(case: dict[str, Any], asked: int) -> float:
        return float(case["made_seconds"] + case["queries_seconds"] * asked / QUERIES)

    by = {(c["rows"], c["width"], c["way"]): c for c in cases}
    found: dict[str, dict[str, int | None]] = {}
    for d in WIDTHS:
        # the smallest sets have too few cells for an index that is worth it
        sizes = sorted(n for (n, width, way), c in by.items() if width == d and way == "index" and not c["exact"])
        found[str(d)] = {
            f"{asked}_queries": next((n for n in sizes if total(by[n, d, "index"], asked) < total(by[n, d, "exact"], asked)), None) for asked in ASKED
        }
    return found


def greedy() -> dict[str, float]:
    """Seconds for picks out of 10,000 candidates given 2,048 reference points, 48 features; lazy, and with every gain kept up to date."""
    rng = np.random.default_rng(0)
    gain, candidates = InformationGain(rng.normal(size=(2048, 48))), rng.normal(size=(10_000, 48))
    found = {f"lazy_{n}": elapsed(lambda n=n: gain.greedy(candidates, n)) for n in (500, 1000)}

    def eager() -> None:
        tracker = gain.track(candidates)
        for _ in range(500):
            tracker.observe(int(np.argmax(tracker.gain)))

    return found | {"eager_500": elapsed(eager)}


def elapsed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(quick: bool) -> dict[str, Any]:
    sizes = QUICK_SIZES if quick else SIZES
    cases = [in_its_own_process(n, d, way) for d in WIDTHS for n in sizes for way in ("exact", "index")]
    cases += [in_its_own_process(100_000, d, "unstructured") for d in WIDTHS]
    return {"queries": QUERIES, "cases": cases, "index_from": crossovers(cases), "greedy_seconds": greedy()}


def bars(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    largest = max((c for c in found["cases"] if c["way"] == "index"), key=lambda c: (c["rows"], c["width"]))
    name = f"{largest['rows']}_x_{largest['width']}"
    most = {
        f"memory_gib_{name}": (largest["peak_gib"], 8.0),
        f"seconds_for_1000_queries_{name}": (largest["queries_seconds"], 10.0),
        "greedy_1000_of_10000_seconds": (found["greedy_seconds"]["lazy_1000"], 10.0),
    }
    checks = {key: {"value": value, "bar": bar, "holds": value <= bar} for key, (value, bar) in most.items()}
    recall = largest.get("recall_at_5", 1.0)
    return checks | {f"recall_at_5_{name}": {"value": recall, "bar": 0.95, "holds": recall >= 0.95}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="up to 100,000 rows")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--case", nargs=3, metavar=("ROWS", "WIDTH", "WAY"), help="one search in this process: exact, index or unstructured")
    chosen = parser.parse_args()
    if chosen.case:
        print(json.dumps(one_case(int(chosen.case[0]), int(chosen.case[1]), chosen.case[2])))
        return 0
    found = measure(chosen.quick)
    outcome = {"bars": bars(found), "results": found, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "neighbours.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps(outcome, indent=1))
    return 0 if all(bar["holds"] for bar in outcome["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
