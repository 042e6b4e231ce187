"""What does a sample from the bank cost in a training pipeline? Ratios within one run; times alone mean little on a busy machine.

python benchmarks/transform.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, list_data_collate
from monai.transforms import Compose, RandFlipd, RandRotated, RandZoomd
from torch.utils.data import DataLoader

from monai_diverse.bank import BankHeader, BankWriter, SampleBank, draw
from monai_diverse.report.provenance import describe_environment
from monai_diverse.storage import write_json
from monai_diverse.transforms import RandDiverseReplaced

RESULTS = Path(__file__).parent / "results"
SHAPES = {"64x64": (1, 64, 64), "224x224": (1, 224, 224), "96^3": (1, 96, 96, 96)}
BATCH = {"64x64": 32, "224x224": 32, "96^3": 4}
ROTATED, MEMMAP, LOADER = 0.5, 1.5, 0.95
Pair = tuple[Callable[[], object], Callable[[], object]]


def make_bank(folder: Path, shape: tuple[int, ...], dtype: str) -> SampleBank:
    """About 48 MB of samples of two classes."""
    count = int(max(16, 48e6 // (np.prod(shape) * np.dtype(dtype).itemsize)))
    header = BankHeader(recipe={}, recipe_fingerprint="r", source={"fingerprint": "s"}, features={}, shape=shape, classes=2, dtype=dtype)
    rng = np.random.default_rng(0)
    with BankWriter.create_or_resume(folder, header, resume=False) as writer:
        for start in range(0, count, 256):
            part = np.arange(start, min(count, start + 256))
            writer.append(rng.random((len(part), *shape), np.float32), part % 2, part, {}, {})
    return SampleBank.open(folder)


def mapped(bank: SampleBank, file: Path) -> np.memmap[Any, Any]:
    """The same bytes as a bare memory-mapped array."""
    array = np.memmap(file, dtype=bank.header.dtype, mode="w+", shape=(len(bank), *bank.header.shape))
    for place in range(len(bank)):
        array[place] = bank.images.stored(place)
    array.flush()
    return np.memmap(file, dtype=bank.header.dtype, mode="r", shape=array.shape)


def single_draws(folder: Path, name: str, dtype: str, repeats: int) -> dict[str, Any]:
    """One draw over MONAI's RandRotated, and over a bare read of the same bytes."""
    shape = SHAPES[name]
    bank = make_bank(folder / f"{name}-{dtype}", shape, dtype)
    array, rng = mapped(bank, folder / f"{name}-{dtype}.raw"), np.random.RandomState(0)
    item = {"image": torch.rand(shape), "label": 1}
    transform = RandDiverseReplaced(keys="image", bank=bank, prob=1.0).set_random_state(0)
    angles = dict.fromkeys(("range_x", "range_y", "range_z") if len(shape) == 4 else ("range_x",), 0.3)
    rotated = RandRotated(keys="image", prob=1.0, **angles).set_random_state(0)

    def as_float(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        made = values.astype(np.float32)
        if values.dtype == np.uint8:
            made /= np.float32(255)
        return made

    def transformed() -> object:
        return transform(item)

    def stored() -> object:
        return bank.images.stored(draw(bank, 1, "match", rng) or 0)

    def drawn() -> object:
        return bank.images[draw(bank, 1, "match", rng) or 0]

    def bare() -> object:
        return np.array(array[int(rng.random_sample() * len(bank))])

    pairs: dict[str, Pair] = {
        "transform_over_rotated": (transformed, lambda: rotated(item)),
        "stored_over_memmap": (stored, bare),
        "draw_over_memmap": (drawn, bare),
        "transform_over_memmap": (transformed, bare),
        "transform_over_memmap_as_float": (transformed, lambda: as_float(array[int(rng.random_sample() * len(bank))])),
    }
    calls = 400 if len(shape) == 3 else 20
    return {key: ratio(*pair, calls=calls, repeats=repeats) for key, pair in pairs.items()}


def throughput(folder: Path, name: str, workers: int, repeats: int, *, augmented: bool) -> dict[str, Any]:
    """Items a second of a DataLoader with our transform at prob=1 over those of the same without, in turn."""
    shape = SHAPES[name]
    bank = SampleBank.open(folder / f"{name}-uint8")
    rng = np.random.default_rng(1)
    real = [{"image": torch.from_numpy(rng.random(shape, np.float32)), "label": i % 2} for i in range(16)]
    axis = len(shape) - 2
    angles = dict.fromkeys(("range_x", "range_y", "range_z") if axis == 2 else ("range_x",), np.pi / 12)
    random = [  # the random stage of MONAI's MedNIST tutorial
        RandRotated(keys="image", prob=0.5, keep_size=True, **angles),
        RandFlipd(keys="image", prob=0.5, spatial_axis=0),
        RandZoomd(keys="image", prob=0.5, min_zoom=0.9, max_zoom=1.1),
    ]

    def loader(first: list[Any]) -> DataLoader[Any]:
        items = real * (BATCH[name] * (24 if axis == 1 else 6) // len(real))
        pipeline = Compose([*first, *(copy.deepcopy(random) if augmented else [])])
        # the same augmentation in both, so that chance does not decide; a Compose and MONAI's loader seed transforms by their place
        for seed, transform in enumerate(pipeline.transforms[len(first) :]):
            transform.set_random_state(seed)
        return DataLoader(
            Dataset(items, pipeline),
            batch_size=BATCH[name],
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=list_data_collate,
        )

    ours, plain = loader([RandDiverseReplaced(keys="image", bank=bank, prob=1.0)]), loader([])

    def run(which: DataLoader[Any]) -> Callable[[], object]:
        return lambda: sum(len(batch["label"]) for batch in which)

    found = ratio(run(plain), run(ours), calls=1, repeats=repeats)  # time without over time with: throughput with over without
    del ours, plain
    return found


def ratio(ours: Callable[[], object], theirs: Callable[[], object], *, calls: int, repeats: int) -> dict[str, Any]:
    """Median over repeats of the time of `ours` over that of `theirs`, each repeat timing both, in alternating order."""
    ratios, mine, others = [], [], []
    for repeat in range(repeats + 1):
        first, second = (ours, theirs) if repeat % 2 else (theirs, ours)
        times = {first: timed(first, calls), second: timed(second, calls)}
        ratios.append(times[ours] / times[theirs])
        mine.append(times[ours])
        others.append(times[theirs])
    return spread(ratios[1:]) | {"microseconds": [1e6 * float(np.median(values[1:])) for values in (mine, others)]}  # the first one warms up


def timed(work: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": float(np.median(values)), "lowest": min(values), "highest": max(values), "repeats": len(values)}


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="monai")
    draws = {name: {dtype: single_draws(folder, name, dtype, repeats) for dtype in ("uint8", "float32")} for name in SHAPES}
    loaders = {
        name: {
            f"{'augmented' if augmented else 'bare'}_{workers}_workers": throughput(folder, name, workers, repeats, augmented=augmented)
            for augmented in (True, False)
            for workers in (0, 2)
        }
        for name in SHAPES
    }
    return {"draws": draws, "loaders": loaders}


def bars_of(found: dict[str, Any]) -> dict[str, Any]:
    """The issue's aims: of two figures the worse one counts."""
    bars = {}
    for name, draws in found["draws"].items():
        value = max(draws[dtype]["transform_over_rotated"]["median"] for dtype in draws)
        bars[f"transform_over_rotated_{name}"] = {"value": value, "bar": ROTATED, "holds": value <= ROTATED}
        if name != "64x64":
            value = max(draws[dtype]["stored_over_memmap"]["median"] for dtype in draws)
            bars[f"draw_as_stored_over_memmap_{name}"] = {"value": value, "bar": MEMMAP, "holds": value <= MEMMAP}
            for dtype in draws:  # what a uint8 bank gives must be scaled as well, which a bare read of its bytes is not
                for kind in ("draw", "transform"):
                    value = draws[dtype][f"{kind}_over_memmap"]["median"]
                    bars[f"{kind}_of_{dtype}_over_memmap_{name}"] = {"value": value, "bar": MEMMAP, "holds": value <= MEMMAP}
        value = min(found["loaders"][name][f"augmented_{workers}_workers"]["median"] for workers in (0, 2))
        bars[f"loader_throughput_{name}"] = {"value": value, "bar": LOADER, "holds": value >= LOADER}
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), 3 if chosen.quick else 9)
    bars = bars_of(found)
    outcome = {"bars": bars, "results": found, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "transform.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps(found | {"bars": bars}, indent=1))
    return 0 if all(bar["holds"] for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
