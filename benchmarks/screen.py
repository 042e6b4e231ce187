"""What the screen accepts of images whose worth is known, beside other filters; and what it costs.

python benchmarks/screen.py --data FOLDER [--quick] [--json] [--markdown] [--work DIR]

FOLDER holds breastmnist.npz, busi_breastmnist_split_64.npz and pneumoniamnist_reordered.npz; sets that are missing are left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest
from screen_trials import (
    COPIES,
    RIVALS,
    SETS,
    Pool,
    control_pool,
    deformed,
    judged,
    parts_of,
    planted,
    precision_at,
    screen_for,
    with_planted,
)  # fmt: skip
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from monai_diverse.data import LabelledImages
from monai_diverse.features import PixelFeatures
from monai_diverse.report.provenance import describe_environment
from monai_diverse.screening import NoveltyScreen, OutlierGate, Yield
from monai_diverse.storage import fingerprint_of, read_json, write_json

RESULTS = Path(__file__).parent / "results"
COUNT = 100
"""Images of each control in a split."""
SPLITS = {"breast": 8, "busi": 8, "pneumonia": 5}
"""So many that every control comes to 500 images at least."""
PLANTED = {"breast": 4, "busi": 4, "pneumonia": 2}
"""Splits in which clusters are withheld too: one map of t-SNE each, minutes where there are thousands of images."""
METHODS = ("ours", *RIVALS)
UNSEEN = "unseen real"
ALPHA = 0.05


def one_split(name: str, data: Path, work: Path, seed: int, clusters: int) -> dict[str, Any]:
    """Controls on one split, and novelties planted in it."""
    parts = parts_of(name, data, seed)
    screen = screen_for(work).fit(parts.reference, parts.calibration, parts.reference)
    pool = judged(screen, work, parts, *control_pool(screen, parts, COUNT, seed))
    trials = [("deformed", parts, deformed(parts.unseen, COUNT, seed))]
    trials += [("withheld cluster", without, novel) for without, novel in planted(name, data, work, seed, clusters)]
    found = []
    for kind, without, novel in trials:
        fitted = screen if without is parts else screen_for(work).fit(without.reference, without.calibration, without.reference)
        mixed = judged(fitted, work, without, *with_planted(*control_pool(fitted, without, COUNT // 2, seed), novel))
        found.append({"kind": kind, **_planted(mixed)})
    return {"controls": _controls(pool), "planted": found, "calibration": len(parts.calibration), "reference": len(parts.reference)}


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
        }
    _, place, sizes = np.unique(pool.groups[unseen], return_inverse=True, return_counts=True)
    rows[UNSEEN]["novel_by_group"] = float(np.average(pool.passes["not_novel"][unseen], weights=1 / sizes[place]))
    rows[UNSEEN]["groups"] = len(sizes)
    return rows


def _planted(pool: Pool) -> dict[str, Any]:
    """Every image's score and whether it may be accepted at all, to be ranked together with the other trials'."""
    eligible = np.all([pool.passes[gate] for gate in ("copy", "irrelevant", "outlier")], axis=0)
    return {
        "novel": (pool.kinds == "planted").tolist(),
        "eligible": eligible.tolist(),
        # to four digits: ranks stay, and files small
        "scores": {name: [float(f"{v:.4g}") for v in pool.scores[name]] for name in METHODS},
        "accepted": {method: np.flatnonzero(mask).tolist() for method, mask in pool.accepted.items()},
    }


def summarised(splits: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all splits, and precision on planted novelties."""
    rows: dict[str, Any] = {}
    for kind in splits[0]["controls"]:
        found = [s["controls"][kind] for s in splits]
        judged_ = sum(f["judged"] for f in found)
        yields = {m: Yield(drawn=judged_, accepted=sum(f["accepted"][m] for f in found)) for m in METHODS}
        rows[kind] = {
            "judged": judged_,
            "accepted": {m: {"count": y.accepted, "share": y.per_10k / 1e4, "ci95": [v / 1e4 for v in y.ci95]} for m, y in yields.items()},
            "rejected_alone": {g: sum(f["rejected_alone"][g] for f in found) / judged_ for g in found[0]["rejected_alone"]},
            "auroc": found[0]["auroc"] and {g: float(np.mean([f["auroc"][g] for f in found])) for g in found[0]["auroc"]},
        }
    unseen = [s["controls"][UNSEEN] for s in splits]
    share, groups = float(np.mean([u["novel_by_group"] for u in unseen])), 2 * round(np.mean([u["groups"] for u in unseen]))
    # splits share their images, so that they count once
    interval = binomtest(round(share * groups), groups).proportion_ci(0.95, method="exact")
    coverage = {"share": share, "groups": groups, "ci95": [float(interval.low), float(interval.high)]}
    trials = [trial for s in splits for trial in s["planted"]]
    kinds = dict.fromkeys(trial["kind"] for trial in trials)
    found = {kind: _precision([t for t in trials if t["kind"] == kind]) for kind in kinds}
    return {"controls": rows, "coverage": coverage, "planted": found | {"all": _precision(trials)}}


def _precision(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall and precision of each method as it stands; ours and the published filter's at equal recall, the smaller of both."""
    novel = np.concatenate([t["novel"] for t in trials])
    accepted = {m: np.concatenate([np.isin(np.arange(len(t["novel"])), t["accepted"][m]) for t in trials]) for m in METHODS}
    scores = {m: np.concatenate([t["scores"][m] for t in trials]) for m in METHODS}
    eligible = {m: np.concatenate([t["eligible"] for t in trials]) if m == "ours" else np.ones(len(novel), bool) for m in METHODS}
    hits = {m: int((mask & novel).sum()) for m, mask in accepted.items()}
    recall = min(hits["ours"], hits["tsne_hull"])
    methods = {
        m: {
            "recall": hits[m] / int(novel.sum()),
            "precision": hits[m] / max(1, int(accepted[m].sum())),
            "precision_at_equal_recall": precision_at(scores[m], eligible[m], novel, recall),
        }
        for m in METHODS
    }
    ours, theirs = (methods[m]["precision_at_equal_recall"] for m in ("ours", "tsne_hull"))
    counts = {"trials": len(trials), "planted": int(novel.sum()), "others": int((~novel).sum()), "equal_recall": recall}
    return {**counts, "methods": methods, "ratio": None if ours is None or theirs is None else ours / theirs}


def bars(results: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, found in results.items():
        low, high = found["coverage"]["ci95"]
        out[f"{name}_novel_of_unseen_real"] = {"value": found["coverage"]["share"], "bar": ALPHA, "ci95": [low, high], "holds": low <= ALPHA <= high}
        rows = found["controls"]
        for kind in ("white noise", "inverted", "other modality", *COPIES):
            count, judged_ = rows[kind]["accepted"]["ours"]["count"], rows[kind]["judged"]
            out[f"{name}_{kind}"] = {"value": count, "bar": 0, "of": judged_, "holds": count == 0 and judged_ >= 500}
        wrong = rows["wrong label"]["accepted"]["ours"]["share"]
        out[f"{name}_wrong_label"] = {"value": wrong, "bar": 0.1, "holds": wrong <= 0.1}
        ratio = found["planted"]["all"]["ratio"]
        out[f"{name}_precision_over_tsne_hull"] = {"value": ratio, "bar": 5.0, "holds": ratio is not None and ratio > 5}
    return out


def timed(count: int) -> dict[str, Any]:
    """The whole screen on `count` references of 8 x 8 pixels, features and textures being pixels: the cost of gates and scores alone."""
    rng = np.random.default_rng(0)

    def made(n: int) -> LabelledImages:
        images = rng.random((n, 1, 8, 8), dtype=np.float32)
        return LabelledImages(images=images, labels=rng.integers(0, 2, n))

    reference, calibration, asked = made(count), made(500), made(1000)
    screen = NoveltyScreen(extractor=PixelFeatures(), outlier=OutlierGate(textures=PixelFeatures(max_side=4)))
    started = time.perf_counter()
    fitted = screen.fit(reference, calibration, reference)
    between = time.perf_counter()
    fitted.screen(asked.images, asked.labels)
    ended = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"fit_seconds": between - started, "judge_1000_seconds": ended - between, "peak_gib": memory}


def as_markdown(results: dict[str, Any]) -> str:
    """The tables of docs/screen.md."""
    lines = []
    for name, found in results["sets"].items():
        coverage = found["coverage"]
        low, high = coverage["ci95"]
        lines += [
            f"**{name}**: {100 * coverage['share']:.1f} % of unseen real images pass the novelty gate"
            f" (95 % interval {100 * low:.1f} to {100 * high:.1f}; {coverage['groups']} patients or groups).", "",
            f"| accepted | judged | {' | '.join(m.replace('_', ' ') for m in METHODS)} |", "| --- | ---: |" + " ---: |" * len(METHODS),
        ]  # fmt: skip
        for kind, row in found["controls"].items():
            shares = [f"{100 * row['accepted'][m]['share']:.1f} %" for m in METHODS]
            lines.append(f"| {kind} | {row['judged']} | {' | '.join(shares)} |")
        lines += ["", "| AUROC against unseen real | copy | novelty | relevance | outlier | neighbour distance | rarity score | authenticity |"]
        lines.append("| --- |" + " ---: |" * 7)
        for kind, row in found["controls"].items():
            if row["auroc"]:
                cells = [f"{value:.2f}" for gate, value in row["auroc"].items() if gate != "tsne_hull"]
                lines.append(f"| {kind} | {' | '.join(cells)} |")
        lines += ["", "| planted | method | recall | precision | precision at equal recall |", "| --- | --- | ---: | ---: | ---: |"]
        for kind, trial in found["planted"].items():
            for method, value in trial["methods"].items():
                at = value["precision_at_equal_recall"]
                what = f"{kind}: {trial['planted']} among {trial['others']}; {trial['equal_recall']} found" if method == "ours" else ""
                cells = [what, method.replace("_", " "), f"{value['recall']:.2f}", f"{value['precision']:.3f}", "" if at is None else f"{at:.3f}"]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += ["| references | fit, s | judge 1,000, s | peak memory, GiB |", "| ---: | ---: | ---: | ---: |"]
    for count, value in results["cost"].items():
        lines.append(f"| {int(count):,} | {value['fit_seconds']:.1f} | {value['judge_1000_seconds']:.1f} | {value['peak_gib']:.1f} |")
    return "\n".join(lines)


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
            file = chosen.work / f"{name}-{seed}-{fingerprint_of([screen.settings(), COUNT, clusters])[:12]}.json"
            if not file.is_file():
                write_json(file, one_split(name, chosen.data, chosen.work, seed, clusters if seed < PLANTED[name] else 0))
            found.append(read_json(file))
        sets[name] = summarised(found)
    cost = {str(n): timed(n) for n in tqdm((1_000, 10_000) if chosen.quick else (1_000, 10_000, 100_000, 1_000_000), desc="cost")}
    outcome = {"bars": bars(sets), "results": {"sets": sets, "cost": cost}, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "screen.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps(outcome["bars"], indent=1))
    return 0 if all(bar["holds"] for bar in outcome["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
