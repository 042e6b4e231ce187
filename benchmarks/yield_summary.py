"""What the arms of benchmarks/yield.py come to: rates, ratios, parity, bars, a table."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from monai_diverse.screening import Yield

TOLERANCE = 0.03


def summarised(found: dict[str, list[dict[str, Any]]], controls: dict[str, Any], nearest_real: float) -> dict[str, Any]:
    plain = {key: sum(r[key] for r in found["iid"]) for key in ("nfe", "accepted", "accepted_by_both")}
    results: dict[str, Any] = {}
    for arm, runs in found.items():
        total = {key: sum(r[key] for r in runs) for key in ("nfe", "drawn", "accepted", "own_accepted", "accepted_by_both", "calibration")}
        mean = {key: float(np.mean([r[key] for r in runs])) for key in ("in_distribution", "precision", "recall", "novel", "vendi")}
        rates = {key: np.array([1e3 * r[key] / r["nfe"] for r in runs]) for key in ("accepted", "accepted_by_both")}
        results[arm] = mean | {
            "accepted_per_1k_nfe": {"mean": 1e3 * total["accepted"] / total["nfe"], "ci95": rate_interval(rates["accepted"], total)},
            "ratio_vs_iid": ratio(rates["accepted"], total, plain, "accepted"),
            "own_accepted_per_1k_nfe": 1e3 * total["own_accepted"] / total["nfe"],
            "both_accepted_per_1k_nfe": 1e3 * total["accepted_by_both"] / total["nfe"],
            "both_ratio_vs_iid": ratio(rates["accepted_by_both"], total, plain, "accepted_by_both"),
            "parity": parity(total["accepted"], total["drawn"], controls["unseen"]),
            "own_parity": parity(total["own_accepted"], total["drawn"], controls["own"]),
            "nearest_training_ratio": float(np.mean([r["nearest"] for r in runs])) / nearest_real,
            "yield": Yield(drawn=total["drawn"], accepted=total["accepted"], nfe=total["nfe"]).as_json(),
            "nfe": total["nfe"], "calibration_nfe": total["calibration"], "seeds": len(runs), "calibrated": runs[0]["calibrated"],
        }  # fmt: skip
    return results | {"ratio_vs_iid": results["diverse"]["ratio_vs_iid"], "unseen_real": controls}


def parity(accepted: int, drawn: int, real: dict[str, Any]) -> dict[str, Any]:
    """Accepted share of the drawn over that of unseen real images, with the 95 % interval of a ratio of proportions (Katz et al. 1978)."""
    if not accepted or not real["accepted"]:
        return {"mean": 0.0 if real["accepted"] else None, "ci95": None}
    value = (accepted / drawn) / (real["accepted"] / real["drawn"])
    reach = 1.96 * (1 / accepted - 1 / drawn + 1 / real["accepted"] - 1 / real["drawn"]) ** 0.5
    return {"mean": value, "ci95": [value * float(np.exp(-reach)), value * float(np.exp(reach))]}


def rate_interval(rates: np.ndarray, total: dict[str, int]) -> list[float]:
    """95 % interval of accepted in 1000 evaluations: Student's t over seeds, never below Poisson's error; for one, exact (Garwood 1936)."""
    if len(rates) > 1:
        poisson = 1e3 * max(total["accepted"], 1) ** 0.5 / total["nfe"]  # seeds that agree by chance are no more certain than counts are
        low, high = stats.t.interval(0.95, len(rates) - 1, rates.mean(), max(float(stats.sem(rates)), poisson))
        return [max(0.0, float(low)), float(high)]
    count, scale = total["accepted"], 1e3 / total["nfe"]
    return [float(stats.chi2.ppf(0.025, 2 * count) / 2 * scale) if count else 0.0, float(stats.chi2.ppf(0.975, 2 * count + 2) / 2 * scale)]


def ratio(rates: np.ndarray, total: dict[str, int], plain: dict[str, int], what: str) -> dict[str, Any]:
    """Accepted per evaluation over brute force's, which has ten times the evaluations of a guided seed.

    95 % interval on the logarithm: variance between seeds (draws of a seed depend on one another; never below Poisson's) plus Poisson's of
    brute force; Student's t with the degrees of freedom of Welch and Satterthwaite, the first variance having one less than seeds.
    """
    if not plain[what] or not total[what]:
        return {"mean": 0.0 if plain[what] else None, "ci95": None}
    value = (total[what] / total["nfe"]) / (plain[what] / plain["nfe"])
    between = float(np.var(rates, ddof=1) / rates.mean() ** 2 / len(rates)) if len(rates) > 1 else 0.0
    ours, theirs = max(between, 1 / total[what]), 1 / plain[what]
    freedom = (ours + theirs) ** 2 / (ours**2 / (len(rates) - 1)) if len(rates) > 1 else np.inf
    reach = float(stats.t.ppf(0.975, freedom)) * (ours + theirs) ** 0.5
    return {"mean": value, "ci95": [value * float(np.exp(-reach)), value * float(np.exp(reach))]}


def bars(results: dict[str, Any]) -> dict[str, Any]:
    """What the default guide must reach on each data set, in the unseen space."""
    out: dict[str, Any] = {}
    for name, found in results.items():
        ours, plain = found["diverse"], found["iid"]
        interval = ours["ratio_vs_iid"]["ci95"]
        checks = {
            "parity": (ours["parity"]["mean"], 1.0),
            "ratio_vs_iid": (ours["ratio_vs_iid"]["mean"], 10.0),
            "ratio_vs_iid_low": (interval[0] if interval else None, 5.0),
            "in_distribution": (ours["in_distribution"], plain["in_distribution"] - TOLERANCE),
            "precision": (ours["precision"], plain["precision"] - TOLERANCE),
        }
        out |= {f"{name}_{key}": {"value": v, "bar": bar, "holds": v is not None and v >= bar} for key, (v, bar) in checks.items()}
    return out


def as_markdown(results: dict[str, Any]) -> str:
    """The table of docs/sampler.md."""

    def spread(found: dict[str, Any], digits: int) -> str:
        if found["ci95"] is None:
            return "?" if found["mean"] is None else f"{found['mean']:.0f}"
        return f"{found['mean']:.{digits}f} ({found['ci95'][0]:.{digits}f} to {found['ci95'][1]:.{digits}f})"

    lines = []
    for name, found in results.items():
        real = found["unseen_real"]
        lines += [
            f"**{name}**: of unseen real images {real['unseen']['accepted']} of {real['unseen']['drawn']} are accepted in the unseen space,"
            f" {real['own']['accepted']} in the guide's own.", "",
            "| arm | accepted in 1,000 evaluations | over iid | parity | in distribution | precision | recall | nearest | Vendi | own space | both |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for arm in (name for name, value in found.items() if isinstance(value, dict) and "yield" in value):
            f = found[arm]
            cells = [
                arm.replace("_", " "), spread(f["accepted_per_1k_nfe"], 2), spread(f["ratio_vs_iid"], 1), spread(f["parity"], 1),
                *(f"{f[key]:.3f}" for key in ("in_distribution", "precision")), f"{f['recall']:.2f}", f"{f['nearest_training_ratio']:.2f}",
                f"{f['vendi']:.0f} of {f['yield']['accepted'] / f['seeds']:.0f}",
                f"{f['own_accepted_per_1k_nfe']:.2f}", f"{f['both_accepted_per_1k_nfe']:.2f}",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        if found["tuning"]:
            points = "; ".join(
                f"{p['strength']:g}: {p['accepted_per_1k_nfe']:.2f}, {p['in_distribution']:.3f}{' (chosen)' * p['chosen']}" for p in found["tuning"]
            )
            lines += ["", f"Tuning, by the shield's strength: accepted in 1,000 evaluations and share in distribution, own space: {points}."]
        lines.append("")
    return "\n".join(lines)
