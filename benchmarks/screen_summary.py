"""What the splits of benchmarks/screen.py come to: shares, precision, bars, tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binomtest
from screen_trials import COPIES, RIVALS, precision_at

from monai_diverse.screening import Yield

METHODS = ("ours", *RIVALS)
UNSEEN = "unseen real"
ALPHA = 0.05


def coverage_of(share: float, groups: int) -> dict[str, Any]:
    interval = binomtest(round(share * groups), groups).proportion_ci(0.95, method="exact")
    return {"share": share, "groups": groups, "ci95": [float(interval.low), float(interval.high)]}


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
    # splits share their images, so that these count once
    groups = {kind: len(set().union(*(s["controls"][kind]["groups"] for s in splits))) for kind in rows}
    rows = {kind: row | {"groups": groups[kind]} for kind, row in rows.items()}
    coverage = coverage_of(float(np.mean([s["controls"][UNSEEN]["novel_by_group"] for s in splits])), groups[UNSEEN])
    copies = {kind: {key: sum(s["copies_apart"][kind][key] for s in splits) for key in splits[0]["copies_apart"][kind]} for kind in COPIES}
    trials = [trial for s in splits for trial in s["planted"]]
    found = {kind: _precision([t for t in trials if t["kind"] == kind]) for kind in dict.fromkeys(trial["kind"] for trial in trials)}
    return {"controls": rows, "coverage": coverage, "copies_apart": copies, "planted": found | {"all": _precision(trials)}}


def _precision(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Recall and precision of each method as it stands; ours and the published filter's at equal recall, the smaller of both.

    Once among everything, and once among unseen real images alone.
    """
    novel, real = (np.concatenate([t[key] for t in trials]).astype(bool) for key in ("novel", "real"))
    accepted = {m: np.concatenate([np.isin(np.arange(len(t["novel"])), t["accepted"][m]) for t in trials]) for m in METHODS}
    scores = {m: np.concatenate([t["scores"][m] for t in trials]) for m in METHODS}
    eligible = {m: np.concatenate([t["eligible"] for t in trials]) if m == "ours" else np.ones(len(novel), bool) for m in METHODS}
    hits = {m: int((mask & novel).sum()) for m, mask in accepted.items()}
    recall = min(hits["ours"], hits["tsne_hull"])

    def among(others: np.ndarray) -> dict[str, Any]:
        methods = {
            m: {
                "recall": hits[m] / int(novel.sum()),
                "precision": hits[m] / max(1, int((accepted[m] & (novel | others)).sum())),
                "precision_at_equal_recall": precision_at(scores[m], eligible[m] & (novel | others), novel, recall),
            }
            for m in METHODS
        }
        ours, theirs = (methods[m]["precision_at_equal_recall"] for m in ("ours", "tsne_hull"))
        return {"others": int(others.sum()), "methods": methods, "ratio": None if ours is None or theirs is None else ours / theirs}

    counts = {"trials": len(trials), "planted": int(novel.sum()), "equal_recall": recall}
    return {**counts, "among_everything": among(~novel), "among_unseen_real": among(real)}


def bars(results: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, found in results.items():
        for key, coverage in (("unseen_real", found["coverage"]), ("official_test", found["official"])):
            low, high = coverage["ci95"]
            out[f"{name}_novel_of_{key}"] = {"value": coverage["share"], "bar": ALPHA, "ci95": [low, high], "holds": low <= ALPHA <= high}
        rows = found["controls"]
        for kind in ("white noise", "inverted", "other modality", *COPIES):
            count, judged_ = rows[kind]["accepted"]["ours"]["count"], rows[kind]["judged"]
            out[f"{name}_{kind}"] = {"value": count, "bar": 0, "of": judged_, "holds": count == 0 and judged_ >= 500}
        for kind, row in found["copies_apart"].items():
            out[f"{name}_{kind}_of_what_only_the_generator_saw"] = {
                "value": row["accepted"], "bar": 0, "of": row["judged"], "holds": row["accepted"] == 0 and row["judged"] >= 500,
            }  # fmt: skip
        wrong = rows["wrong label"]["accepted"]["ours"]["share"]
        out[f"{name}_wrong_label"] = {"value": wrong, "bar": 0.1, "holds": wrong <= 0.1}
        ratio = found["planted"]["all"]["among_everything"]["ratio"]
        out[f"{name}_precision_over_tsne_hull"] = {"value": ratio, "bar": 5.0, "holds": ratio is not None and ratio > 5}
    return out


def as_markdown(results: dict[str, Any]) -> str:
    """The tables of docs/screen.md."""
    lines = []
    for name, found in results["sets"].items():
        lines += [
            f"**{name}**: of unseen real images {_share(found['coverage'])} pass the novelty gate in random halves,"
            f" {_share(found['official'])} of the official test split, {found['official']['calibration']} groups of val calibrating.", "",
            f"| accepted | judged | groups | {' | '.join(m.replace('_', ' ') for m in METHODS)} |",
            "| --- | ---: | ---: |" + " ---: |" * len(METHODS),
        ]  # fmt: skip
        for kind, row in found["controls"].items():
            shares = [f"{100 * row['accepted'][m]['share']:.1f} %" for m in METHODS]
            lines.append(f"| {kind} | {row['judged']} | {row['groups']} | {' | '.join(shares)} |")
        lines += ["", "| AUROC against unseen real | copy | novelty | relevance | outlier | neighbour distance | rarity score | authenticity |"]
        lines.append("| --- |" + " ---: |" * 7)
        for kind, row in found["controls"].items():
            if row["auroc"]:
                cells = [f"{value:.2f}" for score, value in row["auroc"].items() if score not in ("ours", "tsne_hull")]
                lines.append(f"| {kind} | {' | '.join(cells)} |")
        copies = [f"{kind.removeprefix('near-copy: ')} {c['accepted']} of {c['judged']}" for kind, c in found["copies_apart"].items()]
        lines += ["", f"Near-copies of what only the generator saw, accepted: {', '.join(copies)}.", ""]
        lines += ["| planted | method | recall | precision | at equal recall | among unseen real: precision | at equal recall |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
        for kind, trial in found["planted"].items():
            every, real = trial["among_everything"], trial["among_unseen_real"]
            for method, value in every["methods"].items():
                alone = real["methods"][method]
                what = f"{kind}: {trial['planted']} among {every['others']} ({real['others']} real); {trial['equal_recall']} found by both"
                cells = [what if method == "ours" else "", method.replace("_", " "), f"{value['recall']:.2f}"]
                for each in (value, alone):
                    at = each["precision_at_equal_recall"]
                    cells += [f"{each['precision']:.3f}", "" if at is None else f"{at:.3f}"]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += ["| references | fit, s | judge 1,000, s | peak memory, GiB |", "| ---: | ---: | ---: | ---: |"]
    for count, value in results["cost"].items():
        lines.append(f"| {int(count):,} | {value['fit_seconds']:.1f} | {value['judge_1000_seconds']:.1f} | {value['peak_gib']:.1f} |")
    return "\n".join(lines)


def _share(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{100 * found['share']:.1f} % ({100 * low:.1f} to {100 * high:.1f}; {found['groups']} groups)"
