"""The figures of a study, each from its result alone; drawn without pyplot."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monai_diverse.report.audit_figures import GRID, plain
from monai_diverse.report.figures import ARM_COLOURS
from monai_diverse.report.study_words import CEILING, arm_in_words, arm_name, level_of, metric_name, pair_in_words, points, size_in_words
from monai_diverse.report.style import GREY, INK, SOFT

COLOURS = ARM_COLOURS | {
    "real": INK,
    "balanced": "#CC79A7",
    "relevant": "#8C6D31",
    "tsne_hull": "#56B4E9",
    "diverse_ungated": "#E69F00",
    "brute_force": GREY,
    CEILING: SOFT,
}
MARKERS = {
    "real": "s",
    "balanced": "D",
    "duplicates": "^",
    "random": "v",
    "relevant": "h",
    "tsne_hull": "P",
    "diverse": "o",
    "diverse_ungated": "X",
    "brute_force": "<",
    CEILING: "*",
}
SHADE = "#EFECE6"
MAX_CLASSES = 12
"""Classes whose recall is drawn."""
WIDE = 3
"""Sizes side by side; more go below."""
TITLE_WIDTH = 34
"""Characters of a class's name on a line above one of so many panels."""


@dataclass(frozen=True)
class _Arm:
    """An arm as it is drawn: its name tells augmentation and training if they are not those of the primary comparison."""

    name: str
    arm: str

    @property
    def style(self) -> dict[str, Any]:
        """Colour, marker and line; hollow and dotted: a variant of the arm; dashed: the ceiling."""
        variant, colour = self.name != arm_name(self.arm), COLOURS.get(self.arm, GREY)
        line = (0, (5, 3)) if self.arm == CEILING else ":" if variant else "-"
        size, face = 9 if self.arm == CEILING else 6, "white" if variant else colour
        return {"color": colour, "marker": MARKERS.get(self.arm, "o"), "linestyle": line, "markerfacecolor": face, "markersize": size}


def comparisons_figure(study: Mapping[str, Any]) -> Figure:
    """Differences of the primary metric with their intervals, a panel a size; filled: fixed before, hollow: exploratory.

    Args:
        study: see `write_study`.
    """
    rows = _pairs(study)
    figure, panels = _panels(study, 1, 0.36 * len(rows) + 0.6)
    for cell, panel in zip(study["cells"], panels[0], strict=True):
        panel.axvline(0, color=INK, linewidth=1)
        for comparison in _drawn(study, cell):
            _draw_difference(panel, list(rows).index(pair_in_words(comparison, study, cell)), comparison)
        _say_if_untested(panel, cell)
        _finish_rows(panel, list(rows))
        for label, primary in zip(panel.get_yticklabels(), rows.values(), strict=False):  # none where a panel to the left has them
            label.set_fontweight("bold" if primary else "normal")
    metric = _metric(study)
    _below(figure, f"difference in {metric}, points, with {level_of(study)} interval; filled and bold: fixed before; hollow: exploratory")
    return figure


def sizes_figure(study: Mapping[str, Any]) -> Figure:
    """The primary metric of every arm against the number of real images, with intervals; dashed: the ceiling.

    Args:
        study: see `write_study`.
    """
    arms, cells = _arms(study), sorted(study["cells"], key=lambda cell: float(cell["real"]["images"]))
    places = [math.log10(cell["real"]["images"]) for cell in cells]
    step = min(0.04, 0.55 * min((b - a for a, b in itertools.pairwise(places)), default=0.5) / len(arms))
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panel = figure.subplots()
    for place in places:
        panel.axvspan(place - step * (len(arms) + 1) / 2, place + step * (len(arms) + 1) / 2, color=SHADE, linewidth=0, zorder=0)
    for number, arm in enumerate(arms):
        found = [(place, row) for place, cell in zip(places, cells, strict=True) for row in _rows(study, cell, arm)]
        move = step * (number - (len(arms) - 1) / 2)
        values = [row["metrics"][study["primary"]["metric"]] for _, row in found]
        _curve(panel, [place + move for place, _ in found], values, arm)
    plain(panel)
    panel.grid(visible=False, axis="x")
    panel.set_xticks(places, labels=[size_in_words(cell) for cell in cells], fontsize=9.5)
    panel.set_xlabel(f"labelled real images{' (logarithmic)' if len(cells) > 1 else ''}; in a shaded band the arms stand side by side", fontsize=9)
    panel.set_ylabel(f"{_metric(study)} on {study['scored_on']} images, %\nmean with {level_of(study)} interval", fontsize=9, parse_math=False)
    _legend(figure, [panel])
    return figure


def ratios_figure(study: Mapping[str, Any]) -> Figure:
    """The primary metric against the ratio of added to real images, a panel a size; shaded: the ratio that was chosen.

    Args:
        study: see `write_study`; cells without a sweep show an empty panel, which says so if no bank could be tested.
    """
    swept = [row for cell in study["cells"] for row in cell.get("ratios") or ()]
    alike = all(row["scores"] == row["validation"] for row in swept)
    scored_on = "scored" if study["scored_on"] == "development" else study["scored_on"]  # in development they may be others than those that choose
    bands = {"validation": "validation"} | ({} if alike else {"scores": scored_on})
    figure, panels = _panels(study, len(bands), 2.3)
    for (key, name), band in zip(bands.items(), panels, strict=True):
        for cell, panel in zip(study["cells"], band, strict=True):
            _sweep(panel, study, cell, key)
            _say_if_untested(panel, cell)
        for panel in band[::WIDE]:
            panel.set_ylabel(f"{name} images, %", fontsize=9)
    metric, level = _metric(study), level_of(study)
    _below(figure, f"added images for each real one; {metric} with {level} interval; the ratio is chosen on validation images")
    _legend(figure, [panel for band in panels for panel in band])
    return figure


def recalls_figure(study: Mapping[str, Any]) -> Figure:
    """Recall of each class by arm and size, with intervals; of more than `MAX_CLASSES` classes the first.

    Args:
        study: see `write_study`.
    """
    names, arms = study["data"]["class_names"][:MAX_CLASSES], _arms(study)
    figure, panels = _panels(study, len(names), 0.25 * len(arms) + 0.7)
    for number, (name, band) in enumerate(zip(names, panels, strict=True)):
        for cell, panel in zip(study["cells"], band, strict=True):
            for position, arm in enumerate(arms):
                for row in _rows(study, cell, arm):
                    _dot(panel, position, row["metrics"].get(f"recall_{number}"), arm.style)
            _finish_rows(panel, [arm.name for arm in arms])
            title = f"{textwrap.fill(name, TITLE_WIDTH)}\n{size_in_words(cell)}"
            panel.set_title(title, fontsize=10, fontweight="bold", color=INK, parse_math=False)
    _below(figure, f"recall on {study['scored_on']} images, %, mean with {level_of(study)} interval")
    return figure


def _panels(study: Mapping[str, Any], bands: int, height: float) -> tuple[Figure, list[list[Axes]]]:
    """Small multiples: of each band a panel a size, at most `WIDE` side by side, on the same axes; the scale across is the band's own."""
    cells = study["cells"]
    columns = min(WIDE, len(cells))
    lines = math.ceil(len(cells) / columns)
    figure = Figure(figsize=(11 if columns > 1 else 7.5, bands * lines * height + 0.5), layout="constrained")
    grid = figure.subplots(bands * lines, columns, squeeze=False, sharey=True)
    panels = []
    for band in range(bands):
        flat = grid[band * lines : (band + 1) * lines].ravel().tolist()
        for panel in flat[len(cells) :]:
            panel.set_axis_off()
        for cell, panel in zip(cells, flat, strict=False):
            panel.sharex(flat[0])
            panel.set_title(size_in_words(cell) if band == 0 else "", fontsize=10, fontweight="bold", color=INK)
        panels.append(flat[: len(cells)])
    return figure, panels


def _arms(study: Mapping[str, Any]) -> list[_Arm]:
    """The arms of all cells in order of first appearance."""
    return list(dict.fromkeys(_Arm(arm_in_words(row, study, cell), row["arm"]) for cell in study["cells"] for row in cell["arms"]))


def _rows(study: Mapping[str, Any], cell: Mapping[str, Any], arm: _Arm) -> list[Mapping[str, Any]]:
    """That arm's row in a cell, if it is there."""
    return [row for row in cell["arms"] if _Arm(arm_in_words(row, study, cell), row["arm"]) == arm][:1]


def _drawn(study: Mapping[str, Any], cell: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [comparison for comparison in cell.get("comparisons", ()) if comparison["metric"] == study["primary"]["metric"]]


def _pairs(study: Mapping[str, Any]) -> dict[str, bool]:
    """Names of the compared pairs, and whether they are primary anywhere; those first."""
    found: dict[str, bool] = {}
    for cell in study["cells"]:
        for comparison in _drawn(study, cell):
            name = pair_in_words(comparison, study, cell)
            found[name] = found.get(name, False) or comparison["primary"]
    return dict(sorted(found.items(), key=lambda item: not item[1]))


def _sweep(panel: Axes, study: Mapping[str, Any], cell: Mapping[str, Any], key: str) -> None:
    arms = list(dict.fromkeys(row["arm"] for each in study["cells"] for row in each.get("ratios") or ()))
    swept = sorted(cell.get("ratios") or (), key=lambda row: float(row["ratio"]))
    panel.set_xscale("log", base=2)
    for number, arm in enumerate(arms):
        rows, move = [row for row in swept if row["arm"] == arm], 2 ** (0.07 * (number - (len(arms) - 1) / 2))
        values = [row[key][study["primary"]["metric"]] for row in rows]
        _curve(panel, [move * row["ratio"] for row in rows], values, _Arm(arm_name(arm), arm))
    if swept and cell.get("ratio") is not None:
        panel.axvspan(cell["ratio"] / 2**0.25, cell["ratio"] * 2**0.25, color=SHADE, linewidth=0, zorder=0)
        where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        panel.annotate("chosen", (cell["ratio"], 0), fontsize=8.5, color=SOFT, **where)
    plain(panel)
    panel.tick_params(axis="y", length=0)
    ratios = sorted({row["ratio"] for each in study["cells"] for row in each.get("ratios") or ()})
    panel.set_xticks(ratios, labels=[f"{ratio:g}" for ratio in ratios])
    panel.set_xticks([], minor=True)


def _say_if_untested(panel: Axes, cell: Mapping[str, Any]) -> None:
    if cell.get("untested"):
        panel.text(0.5, 0.5, "not tested", transform=panel.transAxes, ha="center", va="center", color=INK, backgroundcolor="white")


def _draw_difference(panel: Axes, position: int, comparison: Mapping[str, Any]) -> None:
    colour, difference = COLOURS.get(comparison["arm"], GREY), comparison["difference"]
    face = colour if comparison["primary"] else "white"
    _dot(panel, position, difference, {"color": colour, "marker": "o", "markerfacecolor": face, "markersize": 6})
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
    place = (100 * difference["mean"], position)
    panel.annotate(points(difference["mean"]), place, xytext=(0, 5.5), textcoords="offset points", ha="center", fontsize=8, color=INK, bbox=ground)


def _dot(panel: Axes, position: float, value: Mapping[str, Any] | None, style: Mapping[str, Any]) -> None:
    if value is None:
        return
    low, high = value["ci95"] or (None, None)
    if low is not None and high is not None:
        panel.plot([100 * low, 100 * high], [position, position], color=style["color"], linewidth=2, solid_capstyle="butt", zorder=2)
    panel.plot([100 * value["mean"]], [position], clip_on=False, zorder=3, **style)


def _curve(panel: Axes, places: Sequence[float], values: Sequence[Mapping[str, Any]], arm: _Arm) -> None:
    """Means joined by a line, named for the legend, with an upright interval each."""
    for place, value in zip(places, values, strict=True):
        low, high = value["ci95"] or (None, None)
        if low is not None and high is not None:
            panel.plot([place, place], [100 * low, 100 * high], color=arm.style["color"], linewidth=1.3, alpha=0.75, zorder=1)
    if places:
        panel.plot(places, [100 * value["mean"] for value in values], linewidth=1.5, label=arm.name, **arm.style)


def _finish_rows(panel: Axes, names: Sequence[str]) -> None:
    panel.set_yticks(range(len(names)), labels=list(names), fontsize=9, parse_math=False)
    panel.set_ylim(len(names) - 0.5, -0.75)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=8.5)
    panel.grid(axis="x", color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend for all panels, beside them."""
    lines = {str(line.get_label()): line for panel in panels for line in panel.get_lines() if not str(line.get_label()).startswith("_")}
    legend = figure.legend(list(lines.values()), list(lines), loc="outside right upper", fontsize=9, frameon=False, handlelength=3.2)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _below(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=9, parse_math=False)


def _metric(study: Mapping[str, Any]) -> str:
    return metric_name(study["primary"]["metric"], study["data"]["class_names"])
