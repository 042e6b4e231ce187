"""The figure of a screen's controls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monai_diverse.report.style import BLUE, GREY, INK, ORANGE, SOFT

COLOURS = {"generated": ORANGE, "unseen real": INK}
LINEAR_UP_TO = 10.0
"""Accepted per 10,000 up to which the axis is linear, so that it can show 0."""
TICKS = (0, 10, 100, 1000, 10_000)


def controls_figure(controls: Mapping[str, Any]) -> Figure:
    """Accepted images per 10,000 of each kind with their Clopper-Pearson intervals, on an axis that is logarithmic above 10.

    Args:
        controls: `Controls.as_json()`.
    """
    rows = controls["rows"]
    figure = Figure(figsize=(9.5, 0.36 * len(rows) + 1.0), layout="constrained")
    panel = figure.subplots()
    panel.set_xscale("symlog", linthresh=LINEAR_UP_TO, linscale=0.6)
    for position, row in enumerate(rows):
        _row(panel, position, row)
    panel.set_xlim(-1.2, 1.05e4)
    panel.set_xticks(TICKS, labels=[f"{tick:,}" for tick in TICKS], minor=False)
    panel.set_xticks([], minor=True)
    panel.set_yticks(range(len(rows)), labels=[row["name"].replace(", ", ",\n") for row in rows], fontsize=9.5, parse_math=False)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.tick_params(axis="x", labelsize=8.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
    level = f"{100 * controls['confidence_level']:g} %"
    panel.set_xlabel(
        f"accepted per 10,000, duplicates aside (dot), with {level} Clopper-Pearson interval (line)\n"
        "| the most that the screen promises; of unseen real images, on average over calibration sets",
        fontsize=9,
    )
    return figure


def _row(panel: Axes, position: int, row: Mapping[str, Any]) -> None:
    colour = COLOURS.get(row["name"], GREY if row["at_most"] is None else BLUE)
    panel.plot(row["ci95"], [position, position], color=colour, linewidth=2.2, solid_capstyle="butt")
    panel.plot([row["per_10k"]], [position], marker="o", markersize=7, color=colour, clip_on=False, zorder=3)
    promise = row["at_most_on_average"] if row["at_most"] is None else row["at_most"]
    if promise is not None:
        panel.plot([1e4 * promise], [position], marker="|", markersize=15, markeredgewidth=1.6, color=SOFT, clip_on=False, zorder=4)
    text, place = f"{row['accepted']:,} of {row['drawn']:,}", (1, position)
    panel.annotate(text, place, xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
