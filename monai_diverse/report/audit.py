"""An audit as one self-contained HTML page, beside the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from monai_diverse.data import FloatArray
from monai_diverse.errors import DataError
from monai_diverse.report.audit_figures import MAX_SHOWN, closest_figure, forest_figure, left_out_of_forest, membership_figure
from monai_diverse.report.audit_words import (
    STOP_NAMES,
    advice_in_words,
    caveats_in_words,
    changes_in_words,
    control_in_words,
    copies_in_words,
    effect_in_words,
    lean_in_words,
    membership_in_words,
    phase_in_words,
    stop_in_words,
)
from monai_diverse.report.rendering import duration, encoded, png, render
from monai_diverse.report.style import significant
from monai_diverse.report.twin_figures import divergence_figure, frontier_figure, lean_figure, phase_figure, quadruplets_figure
from monai_diverse.storage import make_folder, write_atomic, write_json

TITLES = {"model": "Does the model lean towards its training patients?", "twins": "From which step on does the training lean towards its patients?"}
REAL_PATIENTS = "holds images of real patients: keep it where those may be kept"
"""What is said of a page with pictures."""
METRICS = {
    "c_t": ("C_T", "z of a rank test, by cells: samples nearer to training images than unseen ones are give values far below 0 (Meehan et al. 2020)"),
    "authenticity": (
        "authenticity",
        "share of samples further from their nearest training image than that is from its own nearest (Alaa et al. 2022)",
    ),
    "gap_ratio": ("gap ratio", "share of samples less than a third as far from the nearest training image as from the second nearest"),
}
_WIDEST = 20
"""Letters of a class name above a picture."""
_REQUIRED = {
    "model": (
        *("version", "seed", "confidence", "tolerance", "source", "features", "sets", "class_names"),
        *("samplers", "control", "membership", "pairs", "verdict", "limits"),
    ),
    "twins": ("version", "confidence", "tolerance", "recipe", "data", "pairs", "checkpoints", "stops", "phase", "limits"),
}


def write_audit(out: Path, summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Path:
    """Writes `out/audit.json`, then `out/audit.html`, which holds all it needs and opens without a network.

    Args:
        out: folder; made if need be.
        summary: JSON value of `audit_model` or `audit_twins`; `environment` and `inputs` are shown if there.
        pictures: of a model the closest pairs: `samples`, `train`, `heldout`, each (p, c, *spatial) in [0, 1]; of twins `quadruplets`, by step
            (rows, 4, c, *spatial). What is missing is not shown. They are of real patients, and so is then the page.

    Returns:
        The page's path.

    Raises:
        DataError: neither kind of audit, or one without what the page needs.
        StorageError: the disk refuses.
    """
    kind = summary.get("kind")
    if kind not in _REQUIRED:
        raise DataError(f"kind: expected {' or '.join(_REQUIRED)}, got {kind!r}; is it the summary of an audit?")
    absent = [key for key in _REQUIRED[kind] if key not in summary]
    if absent:
        raise DataError(f"summary: expected the keys {', '.join(_REQUIRED[kind])}, missing {', '.join(absent)}")
    page = make_folder(out) / "audit.html"
    write_json(out / "audit.json", summary)  # first: an audit takes hours, and drawing may fail
    figures, values = _of_model(summary, pictures) if kind == "model" else _of_twins(summary, pictures)
    shown = {name: encoded(png(figure)) for name, figure in figures.items()}
    values |= {"patients": REAL_PATIENTS if holds_patients(summary, pictures) else None}
    filters = {"lean": lean_in_words, "figure": _figure, "class_name": lambda label: _class_name(summary, label)}
    text = render(
        "audit.html", filters, title=TITLES[kind], summary=summary, figures=shown, level=_level(summary), body=f"audit_{kind}.html", **values
    )
    write_atomic(page, text.encode())
    return page


def holds_patients(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> bool:
    """Whether the page of an audit of either kind shows images of real patients."""
    if summary["kind"] == "twins":
        return any(len(images) for images in pictures.get("quadruplets", {}).values())
    return bool(summary["pairs"]) and all(len(pictures.get(name, ())) for name in ("samples", "train", "heldout"))


def _of_model(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> tuple[dict[str, Figure], dict[str, Any]]:
    level, samplers, membership = _level(summary), summary["samplers"], summary["membership"]
    trios = [np.asarray(pictures.get(name, ()), np.float32) for name in ("samples", "train", "heldout")]
    figures = {"forest": forest_figure(summary)}
    if membership is not None:
        figures["membership"] = membership_figure(membership, summary["confidence"])
    if holds_patients(summary, pictures):
        figures["closest"] = closest_figure(trios[0], trios[1], trios[2], _titles(summary))
    judged = next((sampler for sampler in samplers if sampler["name"] == summary["verdict"]["sampler"]), samplers[0])
    about = [f"seed {summary['seed']}"] + ([duration(summary["seconds"])] if "seconds" in summary else [])
    return figures, {
        "about": about,
        "caveats": caveats_in_words(summary),
        "copies": copies_in_words(samplers),
        "left_out": left_out_of_forest(summary),
        "per_group": any("images_per_group" in summary["sets"][name] for name in ("train", "heldout")),
        "effect": effect_in_words(judged, level),
        "control": control_in_words(summary["control"], level),
        "changes": changes_in_words(samplers, level),
        "membership": membership_in_words(membership, level),
        "metrics": METRICS,
        "dropped": {name: summary["sets"][name].get("dropped", 0) for name in ("train", "heldout")},
        "classes": len(summary["class_names"]),
        "volumes": trios[0].ndim == 5,
        "provenance": _provenance(summary, ("source", "features", "mirrored", "inputs", "environment")),
    }


def _of_twins(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> tuple[dict[str, Figure], dict[str, Any]]:
    quadruplets: Mapping[int, FloatArray] = pictures.get("quadruplets", {})
    figures = {"phase": phase_figure(summary), "lean": lean_figure(summary)}
    figures |= {"divergence": divergence_figure(summary), "frontier": frontier_figure(summary)}
    if quadruplets:
        figures["quadruplets"] = quadruplets_figure(quadruplets, _stop_titles(summary, quadruplets))
    data, level = summary["data"], _level(summary)
    return figures, {
        "about": [f"{data['images']:,} images of {data['groups']:,} patients or groups", f"{data['test']:,} of them seen by no twin"],
        "phase": phase_in_words(summary),
        "advice": advice_in_words(summary),
        "stops": [stop_in_words(name, summary, level) for name in STOP_NAMES],
        "rows": {row["step"]: row for row in summary["checkpoints"]},
        "volumes": any(images.ndim == 6 for images in quadruplets.values()),
        "provenance": _provenance(summary, ("data", "recipe", "inputs", "environment")),
    }


def _stop_titles(summary: Mapping[str, Any], steps: Mapping[int, Any]) -> dict[int, str]:
    names = {step: [name for name in STOP_NAMES if summary["stops"][name]["step"] == step] for step in steps}
    return {step: f"{' = '.join(found)}, step {step:,}" if found else f"step {step:,}" for step, found in names.items()}


def _titles(summary: Mapping[str, Any]) -> list[str]:
    titles = []
    for number, pair in enumerate(summary["pairs"][:MAX_SHOWN], 1):
        name = _class_name(summary, pair["label"])
        distances = " | ".join("–" if pair[key] is None else f"{pair[key]:.3f}" for key in ("distance", "heldout_distance"))
        titles.append(f"#{number}  {name if len(name) <= _WIDEST else f'{name[: _WIDEST - 1]}…'}  {distances}")
    return titles


def _class_name(summary: Mapping[str, Any], label: int) -> str:
    names = summary["class_names"]
    return str(names[label]) if 0 <= label < len(names) else f"class {label}"


def _provenance(summary: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: summary[name] for name in names if name in summary}
    if "mirrored" in found:
        found["mirrored"] = f"a mirrored image counts as {'the same' if found['mirrored'] else 'another'}"
    return found


def _level(summary: Mapping[str, Any]) -> str:
    return f"{100 * summary['confidence']:g} %"


def _figure(value: float | None) -> str:
    return "–" if value is None else significant(value, 3).replace("-", "−")
