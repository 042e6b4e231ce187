"""A study as one self-contained HTML page, and its main tables as Markdown."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from monai_diverse.errors import DataError
from monai_diverse.report.rendering import duration, encoded, interval, png, render
from monai_diverse.report.study_figures import MAX_CLASSES, comparisons_figure, ratios_figure, recalls_figure, sizes_figure
from monai_diverse.report.study_words import (
    ARM_MEANINGS,
    CEILING,
    DEVELOPMENT,
    TRAINING_MEANINGS,
    added_in_words,
    arm_in_words,
    arm_name,
    bar_in_words,
    beside_in_words,
    chance,
    comparison_in_words,
    exploratory_of,
    gap_in_words,
    level_of,
    metric_name,
    outcome_in_words,
    pair_in_words,
    percent,
    points,
    points_interval,
    primary_of,
    regime_in_words,
    scored,
    size_in_words,
    verdict_in_words,
    yields_of,
    yields_of_cell_in_words,
)
from monai_diverse.report.style import METRIC_NAMES, significant
from monai_diverse.storage import make_folder, write_atomic

REGIMES = ("pretrained", "strict")
SCORED_ON = ("test", "development")
_REQUIRED = ("name", "version", "regime", "confidence", "scored_on", "data", "generator", "primary", "cells")
_OF_CELL = ("size", "real", "arms")


def write_study(out: Path, study: Mapping[str, Any]) -> Path:
    """Writes `out/figures/study-*.png` and `out/study.html`, which holds all it needs and opens without a network.

    Args:
        out: folder; made if need be.
        study: the JSON of a study: name, version, regime, confidence, scored_on, data, generator, primary (what was fixed before) and cells (one
            a size: size, real, arms; comparisons, ratios, yields, extra and seconds are shown if there), plan, environment and seconds (of the last
            call) if there. Metrics and differences are shares. An interval may be [None, None], `without_twins` None.

    Returns:
        The page's path.

    Raises:
        DataError: no study, or one without what the page needs.
        StorageError: the disk refuses.
    """
    _check(study)
    folder = make_folder(make_folder(out) / "figures")
    shown: dict[str, str] = {}
    for name, figure in _figures(study).items():
        content = png(figure)
        write_atomic(folder / f"study-{name}.png", content)
        shown[name] = encoded(content)
    page = out / "study.html"
    write_atomic(page, _render(study, shown).encode())
    return page


def study_markdown(study: Mapping[str, Any]) -> str:
    """The outcome, the primary comparisons, the arms by size and the yields of a study as Markdown of GitHub's kind.

    Args:
        study: as of `write_study`. Metrics are given in percent, differences in points, both with one decimal.

    Raises:
        DataError: no study, or one without what the tables need.
    """
    _check(study)
    level = level_of(study)
    first = [DEVELOPMENT, ""] if study["scored_on"] == "development" else []
    heads = {
        "Primary comparisons": (
            *("real images", "comparison", "difference, points", f"{level} interval", "p", "p after Holm", "in AUC"),
            *(["without near-duplicates"] if _without_twins(study) else []),
            "outcome",
        ),
        "Arms": ("real images", "arm", "seeds", "added, different (by class)", *(f"{name}, %" for name in _metrics(study).values())),
        "Yields": ("real images", "images", "drawn", "accepted", "per 10,000", f"{level} interval"),
    }
    rows = {"Primary comparisons": _primary_rows(study), "Arms": _arm_rows(study), "Yields": _yield_rows(study)}
    untested = [f" {bar_in_words(cell, study)}" for cell in study["cells"] if cell.get("untested")]
    lines = [*first, _escaped("".join([verdict_in_words(study), *untested]))]
    for title, head in heads.items():
        body = list(rows[title])
        lines += ["", f"### {title}", ""] + ([_line(head), _line(["---"] * len(head)), *map(_line, body)] if body else ["None."])
    return "\n".join(lines) + "\n"


def _check(study: Mapping[str, Any]) -> None:
    if study.get("kind") != "study":
        raise DataError(f"kind: expected study, got {study.get('kind')!r}; is it the result of a study?")
    absent = [key for key in _REQUIRED if key not in study]
    if absent:
        raise DataError(f"study: expected the keys {', '.join(_REQUIRED)}, missing {', '.join(absent)}")
    for key, known in (("regime", REGIMES), ("scored_on", SCORED_ON)):
        if study[key] not in known:
            raise DataError(f"{key}: expected {' or '.join(known)}, got {study[key]!r}")
    if not study["cells"]:
        raise DataError("cells: expected one or more, got none; run the study first")
    for cell in study["cells"]:
        absent = [key for key in _OF_CELL if not cell.get(key)]
        if absent:
            raise DataError(f"cells: expected each with {', '.join(_OF_CELL)}, missing {', '.join(absent)}")
        unscored = [row["arm"] for row in cell["arms"] if study["primary"]["metric"] not in row["metrics"]]
        if unscored:
            raise DataError(f"cells: expected {study['primary']['metric']} of every arm, missing for {', '.join(unscored)}")


def _figures(study: Mapping[str, Any]) -> dict[str, Figure]:
    cells, metric = study["cells"], study["primary"]["metric"]
    figures = {}
    if any(comparison["metric"] == metric for cell in cells for comparison in cell.get("comparisons", ())):
        figures["comparisons"] = comparisons_figure(study)
    figures["sizes"] = sizes_figure(study)
    if any(cell.get("ratios") for cell in cells):
        figures["ratios"] = ratios_figure(study)
    if any("recall_0" in row["metrics"] for cell in cells for row in cell["arms"]):
        figures["recalls"] = recalls_figure(study)
    return figures


def _render(study: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    cells, names = study["cells"], study["data"]["class_names"]
    arms = dict.fromkeys(row["arm"] for cell in cells for row in cell["arms"])
    return render(
        "study.html",
        _filters(study),
        study={"plan": {}, "environment": {}} | dict(study),
        figures=figures,
        development=DEVELOPMENT if study["scored_on"] == "development" else None,
        verdict=verdict_in_words(study),
        regime=regime_in_words(study),
        level=level_of(study),
        about=[f"{duration(study['seconds'])} since it was last begun or resumed"] if study.get("seconds") is not None else [],
        bars=[bar_in_words(cell, study) for cell in cells if primary_of(cell) or cell.get("untested")],
        beside=[beside_in_words(cell, study) for cell in cells],
        primary=[primary_of(cell) for cell in cells],
        exploratory=[exploratory_of(cell) for cell in cells],
        yields=[yields_of(cell) for cell in cells],
        has_heldout=any((cell.get("yields") or {}).get("heldout_real") for cell in cells),
        yield_words=[list(yields_of_cell_in_words(cell)) for cell in cells],
        meanings={arm_name(arm): ARM_MEANINGS[arm] for arm in arms if arm in ARM_MEANINGS},
        trainings={
            row["training"]: TRAINING_MEANINGS[row["training"]] for cell in cells for row in cell["arms"] if row["training"] in TRAINING_MEANINGS
        },
        ceiling=CEILING,
        metrics=_metrics(study),
        recalls={f"recall_{number}": metric_name(f"recall_{number}", names) for number in range(len(names))},
        most=MAX_CLASSES,
        beside_validation=any((row.get("validation") or row["metrics"]) != row["metrics"] for cell in cells for row in cell["arms"]),
        without_twins=_without_twins(study),
        provenance={key: study[key] for key in ("data", "generator", "plan", "instructions", "environment") if study.get(key)},
    )


def _filters(study: Mapping[str, Any]) -> dict[str, Callable[..., str]]:
    names = study["data"]["class_names"]
    return {
        "chance": chance,
        "duration": duration,
        "metric": lambda metric: metric_name(metric, names),
        "outcome": outcome_in_words,
        "percent": percent,
        "added": added_in_words,
        "gap": gap_in_words,
        "points": points,
        "points_interval": points_interval,
        "scored": scored,
        "size": size_in_words,
        "named": arm_name,
        "arm": lambda row, cell: arm_in_words(row, study, cell),
        "pair": lambda comparison, cell: pair_in_words(comparison, study, cell),
        "sentence": lambda comparison, cell: comparison_in_words(comparison, cell, study),
    }


def _without_twins(study: Mapping[str, Any]) -> bool:
    return any(row.get("without_twins") for cell in study["cells"] for row in cell["arms"])


def _metrics(study: Mapping[str, Any]) -> dict[str, str]:
    """The metrics of the tables of arms with their names, the primary one first."""
    names = study["data"]["class_names"]
    return {metric: metric_name(metric, names) for metric in dict.fromkeys((study["primary"]["metric"], *METRIC_NAMES))}


def _primary_rows(study: Mapping[str, Any]) -> Iterator[list[str]]:
    for cell in study["cells"]:
        for comparison in primary_of(cell):
            found = comparison["difference"]
            numbers = [points(found["mean"]), points_interval(found["ci95"]), chance(found.get("p")), chance(found.get("p_holm"))]
            others = [gap_in_words(comparison.get("auc")), *([gap_in_words(comparison.get("without_twins"))] if _without_twins(study) else [])]
            yield [size_in_words(cell), pair_in_words(comparison, study, cell), *numbers, *others, outcome_in_words(comparison)]


def _arm_rows(study: Mapping[str, Any]) -> Iterator[list[str]]:
    for cell in study["cells"]:
        for row in cell["arms"]:
            scores = [scored(row["metrics"].get(metric)) for metric in _metrics(study)]
            yield [size_in_words(cell), arm_in_words(row, study, cell), str(row["seeds"]), added_in_words(row), *scores]


def _yield_rows(study: Mapping[str, Any]) -> Iterator[list[str]]:
    for cell in study["cells"]:
        for name, value in yields_of(cell):
            counts = [f"{value['drawn']:,}", f"{value['accepted']:,}", significant(value["per_10k"], 4), interval(value["ci95"], ",.1f")]
            yield [size_in_words(cell), name, *counts]


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, values))} |"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: no tag, no cell, no line of its own."""
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())
