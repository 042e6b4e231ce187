"""What the screen accepts of images whose worth is known, beside other filters; and what it costs.

python benchmarks/screen.py --data FOLDER [--quick] [--json] [--markdown] [--work DIR]

FOLDER holds breastmnist.npz, busi_breastmnist_split_64.npz and pneumoniamnist_reordered.npz; sets that are missing are left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from screen_summary import METHODS, UNSEEN, as_markdown, bars, coverage_of, summarised
from screen_trials import (
    COPIES,
    MIXTURE,
    SETS,
    Parts,
    Pool,
    apart,
    control_pool,
    deformed,
    judged,
    official_parts,
    parts_of,
    planted,
    screen_for,
    with_planted,
)
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from monai_diverse.data import LabelledImages
from monai_diverse.features import PixelFeatures
from monai_diverse.report.provenance import describe_environment
from monai_diverse.screening import NoveltyScreen, OutlierGate
from monai_diverse.storage import fingerprint_of, read_json, sha256_of, write_json
from monai_diverse.version import __version__

RESULTS = Path(__file__).parent / "results"
COUNT = 100
"""Images of each control in a split."""
SPLITS = {"breast": 8, "busi": 8, "pneumonia": 5}
"""So many that every control comes to 500 images at least."""
PLANTED = {"breast": 4, "busi": 4, "pneumonia": 1}
"""Splits in which clusters are withheld too: one map of t-SNE each, minutes where there are thousands of images."""


def one_split(name: str, data: Path, work: Path, seed: int, clusters: int) -> dict[str, Any]:
    """Controls on one split, and novelties planted in it."""
    parts = parts_of(name, data, seed)
    screen = screen_for(work).fit(parts.reference, parts.calibration, parts.reference)
    pool = judged(screen, work, parts, *control_pool(screen, parts, COUNT, seed))
    trials = [("deformed", parts, deformed(parts.unseen, COUNT, seed))]
    trials += [("withheld cluster", without, novel) for without, novel in planted(name, data, work, seed, clusters)]
    found = []
    for kind, without, novel in trials if clusters else ():
        fitted = screen if without is parts else screen_for(work).fit(without.reference, without.calibration, without.reference)
        others = control_pool(fitted, without, COUNT // 2, seed, (UNSEEN, *MIXTURE, *COPIES))
        found.append({"kind": kind, **_planted(judged(fitted, work, without, *with_planted(*others, novel)))})
    return {"controls": _controls(pool), "copies_apart": _copies_apart(parts, work, seed), "planted": found}


def _copies_apart(parts: Parts, work: Path, seed: int) -> dict[str, Any]:
    """Near-copies of what only the generator saw: the copy gate has to find them by itself."""
    without, seen = apart(parts, seed)
    screen = screen_for(work).fit(without.reference, without.calibration, seen)
    data, kinds = control_pool(screen, without, COUNT, seed, COPIES)
    views = screen.embed(data.images, data.labels)
    passes = {reason: gate.score(views) <= gate.threshold for reason, gate in screen.gates.items()}
    accepted = np.all(list(passes.values()), axis=0)
    return {
        kind: {
            "judged": int((kinds == kind).sum()),
            "accepted": int(accepted[kinds == kind].sum()),
            "passed_copy_gate": int(passes["copy"][kinds == kind].sum()),
        }
        for kind in COPIES
    }


def official(name: str, data: Path, work: Path) -> dict[str, Any]:
    """Share of the official test split that is novel when the official val split calibrates; patients or groups count once."""
    parts = official_parts(name, data)
    screen = screen_for(work).fit(parts.reference, parts.calibration, parts.reference)
    gate = screen.gates["not_novel"]
    novel = gate.score(screen.embed(parts.unseen.images, parts.unseen.labels)) <= gate.threshold
    share, groups = _by_group(novel, parts.unseen.group_ids)
    return coverage_of(share, groups) | {"calibration": len(np.unique(parts.calibration.group_ids))}


def _by_group(mask: np.ndarray, groups: np.ndarray) -> tuple[float, int]:
    _, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return float(np.average(mask, weights=1 / sizes[place])), len(sizes)


def _controls(pool: Pool) -> dict[str, Any]:
    unseen = pool.kinds == UNSEEN
    rows: dict[str, Any] = {}
    for kind in dict.fromkeys(pool.kinds):
        own = pool.kinds == kind
        # rivals and gates alike: towards 1 where the control is told from unseen real images
        curves = {
            g: float(roc_auc_score(np.r_[np.zeros(unseen.sum()), np.ones(own.sum())], np.r_[s[unseen], s[own]])) for g, s in pool.scores.items()
        }
        rows[str(kind)] = {
            "judged": int(own.sum()),
            "accepted": {method: int(mask[own].sum()) for method, mask in pool.accepted.items()},
            "rejected_alone": {gate: int((~mask)[own].sum()) for gate, mask in pool.passes.items()},
            "auroc": None if kind == UNSEEN else curves,
            "groups": np.unique(pool.groups[own]).tolist(),
        }
    rows[UNSEEN]["novel_by_group"] = _by_group(pool.passes["not_novel"][unseen], pool.groups[unseen])[0]
    return rows


def _planted(pool: Pool) -> dict[str, Any]:
    """Every image's score and whether it may be accepted at all, to be ranked together with the other trials'."""
    eligible = np.all([pool.passes[gate] for gate in ("copy", "irrelevant", "outlier")], axis=0)
    return {
        "novel": (pool.kinds == "planted").tolist(),
        "real": (pool.kinds == UNSEEN).tolist(),
        "eligible": eligible.tolist(),
        # to four digits: ranks stay, and files small
        "scores": {name: [float(f"{v:.4g}") for v in pool.scores[name]] for name in METHODS},
        "accepted": {method: np.flatnonzero(mask).tolist() for method, mask in pool.accepted.items()},
    }


def timed(count: int) -> dict[str, Any]:
    """The whole screen on `count` references of 8 x 8 pixels, features and textures being pixels: the cost of gates and scores alone."""
    rng = np.random.default_rng(0)

    def made(n: int) -> LabelledImages:
        images = rng.random((n, 1, 8, 8), dtype=np.float32)
        return LabelledImages(images=images, labels=rng.integers(0, 2, n), groups=np.arange(n))

    reference, calibration, asked = made(count), made(500), made(1000)
    screen = NoveltyScreen(extractor=PixelFeatures(), outlier=OutlierGate(textures=PixelFeatures(max_side=4)))
    started = time.perf_counter()
    fitted = screen.fit(reference, calibration, reference)
    between = time.perf_counter()
    fitted.screen(asked.images, asked.labels)
    ended = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"fit_seconds": between - started, "judge_1000_seconds": ended - between, "peak_gib": memory}


def timed_alone(count: int) -> dict[str, Any]:
    """The same in a process of its own, whose peak memory is nobody else's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(timed, count).result()


def key(name: str, data: Path, screen: NoveltyScreen, clusters: int) -> str:
    """What a split's outcome follows from."""
    code = [sha256_of(Path(__file__).parent / file) for file in ("screen_trials.py", "rivals.py")]
    return fingerprint_of([__version__, screen.settings(), sha256_of(data / SETS[name]), COUNT, clusters, *code])[:12]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--quick", action="store_true", help="one split, one withheld cluster, up to 10,000 references, PneumoniaMNIST left out")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--markdown", action="store_true", help="print the tables of the last full run and stop")
    parser.add_argument("--work", type=Path, default=RESULTS / "screen-work", help="where features and finished splits are kept")
    chosen = parser.parse_args()
    if chosen.markdown:
        print(as_markdown(read_json(RESULTS / "screen.json")["results"]))
        return 0
    if chosen.data is None:
        parser.error("--data: expected the folder of the data sets")
    names = [name for name, file in SETS.items() if (chosen.data / file).is_file() and not (chosen.quick and name == "pneumonia")]
    clusters = 1 if chosen.quick else 2
    screen = screen_for(chosen.work)
    sets = {}
    for name in names:
        found = []
        for seed in tqdm(range(1 if chosen.quick else SPLITS[name]), desc=name):
            file = chosen.work / f"{name}-{seed}-{key(name, chosen.data, screen, clusters)}.json"
            if not file.is_file():
                write_json(file, one_split(name, chosen.data, chosen.work, seed, clusters if seed < PLANTED[name] else 0))
            found.append(read_json(file))
        sets[name] = summarised(found) | {"official": official(name, chosen.data, chosen.work)}
    cost = {str(n): timed_alone(n) for n in tqdm((1_000, 10_000) if chosen.quick else (1_000, 10_000, 100_000, 1_000_000), desc="cost")}
    outcome = {"bars": bars(sets), "results": {"sets": sets, "cost": cost}, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "screen.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps(outcome["bars"], indent=1))
    return 0 if all(bar["holds"] for bar in outcome["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
