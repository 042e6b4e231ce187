"""How much memory does a screen of very many real images need, in memory and from a folder, and does it judge alike?

python benchmarks/scale_screen.py [--quick] [--json]

No data set of a million images was at hand: images are weighted means of two training images of BreastMNIST, moved, brightened and with noise.
Pixels at 14 x 14 stand in for deep features, and textures are left out, since both only take time. The reference is what the generator saw. Every
case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from scale_references import anonymous_gib, in_its_own_process, put_between

from monai_diverse import NoveltyScreen
from monai_diverse.data import LabelledImages
from monai_diverse.features import PixelFeatures
from monai_diverse.report.provenance import describe_environment
from monai_diverse.screening import OutlierGate
from monai_diverse.sources.builtin import builtin_data
from monai_diverse.storage import write_json

RESULTS = Path(__file__).parent / "results"
MARKS = ("<!-- screen: benchmarks/scale_screen.py -->", "<!-- end of screen -->")
SIZES, QUICK_SIZES = (60_000, 200_000), (60_000,)
BLOCK, PAUSE, SEED = 1000, 0.05, 0
SHARE = 0.1
"""Of what a screen in memory grows by with more references, the most that a screen from a folder may grow by: once fitted, and at most meanwhile."""


class PeakMemory(threading.Thread):
    """The most memory without pages of files that this process has had, looked at twenty times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gib, self._over = 0.0, threading.Event()

    def run(self) -> None:
        """Looks until `stop`."""
        while not self._over.wait(PAUSE):
            self.gib = max(self.gib, anonymous_gib())

    def stop(self) -> float:
        """The most, in GiB."""
        self._over.set()
        self.join()
        return self.gib


def write_images(file: Path, count: int) -> np.ndarray:
    """Images in a file that can be mapped, and their labels."""
    real, rng = builtin_data().generator_train, np.random.default_rng(SEED)
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, *real.images.shape[1:]))
    labels = np.empty(count, np.int64)
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        first, second = rng.integers(len(real), size=(2, n))
        weight, gain = rng.uniform(0.5, 1, size=(n, 1, 1, 1)), rng.uniform(0.8, 1.2, size=(n, 1, 1, 1))
        mixed = weight * real.images[first] + (1 - weight) * real.images[second]
        moved = np.stack([np.roll(image, move, (1, 2)) for image, move in zip(mixed, rng.integers(-2, 3, size=(n, 2)), strict=True)])
        images[start : start + n] = np.clip(gain * moved + 0.01 * rng.standard_normal(moved.shape), 0, 1)
        labels[start : start + n] = real.labels[first]
    images.flush()
    return labels


def one_case(count: int, way: str) -> dict[str, Any]:
    """One size, in this process."""
    data = builtin_data()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = write_images(folder / "images.npy", count)
        before, peak = anonymous_gib(), PeakMemory()
        peak.start()
        began = time.perf_counter()
        images = np.load(folder / "images.npy", mmap_mode="r" if way == "folder" else None)
        known = LabelledImages(images=images, labels=labels, groups=np.arange(count))
        settings = NoveltyScreen(
            extractor=PixelFeatures(max_side=14), outlier=OutlierGate(textures=None), folder=folder / "tables" if way == "folder" else None
        )
        screen = settings.fit(known, data.calibration, known)
        fitted = time.perf_counter() - began
        most, kept = peak.stop() - before, anonymous_gib() - before
        began = time.perf_counter()
        verdicts = screen.screen(data.test.images, data.test.labels)
        seconds = (time.perf_counter() - began) / len(verdicts)
        content = json.dumps([[verdict.accepted, verdict.reason, verdict.scores] for verdict in verdicts], sort_keys=True)
        files = sum(file.stat().st_size for file in (folder / "tables").rglob("*") if file.is_file()) / 2**30
    return {"references": count, "way": way, "fitted_seconds": fitted, "seconds_a_candidate": seconds, "kept_gib": kept, "most_gib": most} | {
        "files_gib": files,
        "verdicts": hashlib.sha256(content.encode()).hexdigest(),
    }


def screens(sizes: tuple[int, ...]) -> dict[str, Any]:
    """All sizes in both ways, and the bars."""
    cases = [in_its_own_process(__file__, count, way) for count in sizes for way in ("memory", "folder")]
    by = {way: [case for case in cases if case["way"] == way] for way in ("memory", "folder")}
    same = sum(a["verdicts"] == b["verdicts"] for a, b in zip(by["memory"], by["folder"], strict=True))
    bars: dict[str, Any] = {"sizes with the same verdicts both ways": {"value": same, "bar": len(sizes), "holds": same == len(sizes)}}
    if len(sizes) > 1:
        for name, what in (("kept_gib", "once fitted"), ("most_gib", "at most while fitted")):
            growth = {way: found[-1][name] - found[0][name] for way, found in by.items()}
            share = growth["folder"] / growth["memory"]
            bars[f"memory that grows with references, folder to memory, {what}"] = {"value": share, "bar": SHARE, "holds": share <= SHARE}
    return {"cases": cases, "bars": bars}


def table(result: dict[str, Any]) -> str:
    lines = [
        "| references | where | fitted in | a candidate | memory kept | at most while it was fitted | files |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in result["cases"]:
        gib = " | ".join(f"{case[name]:.2f} GiB" for name in ("kept_gib", "most_gib", "files_gib"))
        lines.append(
            f"| {case['references']:,} | {case['way']} | {case['fitted_seconds']:.0f} s | {1e3 * case['seconds_a_candidate']:.1f} ms | {gib} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small size; nothing is written to results")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        print(json.dumps(one_case(int(chosen.case[0]), chosen.case[1])))
        return 0
    result = screens(QUICK_SIZES if chosen.quick else SIZES) | {"environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "scale_screen.json", result)
        put_between(MARKS, table(result))
    print(json.dumps(result) if chosen.json else json.dumps(result["bars"], indent=1))
    return 0 if all(bar["holds"] for bar in result["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
