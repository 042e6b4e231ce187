"""The figures of an audit of twins, each from its summary or images alone; drawn without pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from monai_diverse.data import FloatArray
from monai_diverse.report.audit_figures import plain, tolerance_line
from monai_diverse.report.style import BLUE, GREEN, GREY, INK, ORANGE, picture, significant

STOPS = {"strict": GREEN, "budget": BLUE, "utility": ORANGE}
"""Colours of the three stops, in the order of a training that goes well."""
COLUMNS = ("nearest of A", "A", "B", "nearest of B")


def phase_figure(summary: Mapping[str, Any]) -> Figure:
    """Test loss and distance between twins' samples against the training step; shaded: biased generalization (Fig. 1a of arXiv 2603.03469).

    Args:
        summary: of `audit_twins`: checkpoints with step, loss and d_pair; stops; phase.
    """
    rows = _trained(summary)
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    phase = summary["phase"]
    if phase is not None and phase[0] < phase[1]:
        left.axvspan(*phase, color=GREY, alpha=0.18, linewidth=0)
    _curve(left, rows, "loss", INK)
    _curve(right, rows, "d_pair", ORANGE)
    left.plot([row["step"] for row in rows], [row["loss_train"] for row in rows], color=INK, linewidth=1, linestyle=":")
    left.set_ylabel("test loss (solid), training loss (dotted)", fontsize=9.5, color=INK)
    right.set_ylabel("distance between twins' samples, D_pair", fontsize=9.5, color=ORANGE, parse_math=False)
    for panel in (left, right):
        panel.tick_params(labelsize=8.5)
        panel.spines[["top"]].set_visible(False)
    right.tick_params(axis="y", colors=ORANGE)
    _over_steps(left)
    _mark_stops(left, summary)
    return figure


def lean_figure(summary: Mapping[str, Any]) -> Figure:
    """Own / other distance ratio and P(own nearer) against the training step, with intervals; dashed: the tolerance.

    Args:
        summary: of `audit_twins`: checkpoints with step, ratio and own_nearer; tolerance; stops.
    """
    rows = _trained(summary)
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"ratio": "distance to own / to other training images", "own_nearer": "P(own training image nearer)"}
    for panel, (key, title), neutral in zip(panels, titles.items(), (1.0, 0.5), strict=True):
        panel.axhline(neutral, color=INK, linewidth=1)
        _curve(panel, rows, key, BLUE)
        panel.set_title(title, fontsize=11, fontweight="bold", color=INK, pad=38)
        plain(panel)
        _over_steps(panel)
        _mark_stops(panel, summary)
    if summary["tolerance"] is not None:
        # the tolerance bounds the mean log ratio
        tolerance_line(panels[0], math.exp(-summary["tolerance"]), "tolerance")
    return figure


def divergence_figure(summary: Mapping[str, Any]) -> Figure:
    """How far the twins' denoisers are apart at each noise level, against the training step.

    Args:
        summary: of `audit_twins`: checkpoints with step and divergence (noise_ratio, value); stops.
    """
    rows = [row for row in _trained(summary) if row["divergence"]]
    ratios = sorted({level["noise_ratio"] for row in rows for level in row["divergence"]})
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panel = figure.subplots()
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.88, max(len(ratios), 1)))
    for colour, ratio in zip(colours, ratios, strict=False):
        points = [(row["step"], level["value"]) for row in rows for level in row["divergence"] if level["noise_ratio"] == ratio]
        panel.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, marker="o", markersize=3.5, label=significant(ratio, 2))
    plain(panel)
    _over_steps(panel)
    _mark_stops(panel, summary)
    panel.set_ylabel("1 − cosine of the twins' predictions", fontsize=9)
    if ratios:
        panel.legend(title="noise-to-\nsignal ratio", title_fontsize=8.5, fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def frontier_figure(summary: Mapping[str, Any]) -> Figure:
    """Privacy against quality: bias with its interval over the samples' quality, a point a checkpoint, the stops marked.

    Args:
        summary: of `audit_twins`: checkpoints with step, bias, quality and quality_ok; tolerance; stops.
    """
    rows = [row for row in _trained(summary) if row["quality"] is not None]
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    panel = figure.subplots()
    panel.axhline(0, color=INK, linewidth=1)
    if summary["tolerance"] is not None:
        tolerance_line(panel, summary["tolerance"], "tolerance")
    panel.plot([row["quality"] for row in rows], [row["bias"]["value"] for row in rows], color=GREY, linewidth=1, zorder=1)
    for row in rows:
        low, high = _ends(row["bias"])
        panel.plot([row["quality"]] * 2, [low, high], color=GREY, linewidth=1.2, alpha=0.6, zorder=1)
        panel.plot(
            [row["quality"]], [row["bias"]["value"]], marker="o", markersize=5, color=GREY, markerfacecolor=GREY if row["quality_ok"] else "white"
        )
    by_step = {row["step"]: row for row in rows}
    for number, (names, step) in enumerate(_stops(summary)):
        if step in by_step:
            place = (by_step[step]["quality"], by_step[step]["bias"]["value"])
            panel.plot(*place, marker="D", markersize=9, color=STOPS[names[0]], zorder=3)
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            text, lift = f"{_named(summary, names)}, step {step:,}", (9, -16, 22)[number]
            panel.annotate(text, place, xytext=(9, lift), textcoords="offset points", fontsize=9, color=STOPS[names[0]], bbox=ground, zorder=4)
    plain(panel)
    panel.set_ylabel("bias; above 0: nearer to own training images", fontsize=9)
    panel.set_xlabel("relative energy distance of samples and unseen images: lower is better (hollow: too poor)", fontsize=9)
    return figure


def quadruplets_figure(images: Mapping[int, FloatArray], titles: Mapping[int, str] | None = None) -> Figure:
    """Samples of both twins from one noise, between the training image of its own that lies nearest to each: NN_A | A | B | NN_B.

    Args:
        images: by training step: (rows, 4, c, *spatial) in [0, 1].
        titles: of the steps; None for their numbers.
    """
    most = max((len(found) for found in images.values()), default=0)
    figure = Figure(figsize=(4.1 * max(len(images), 1), 0.98 * most + 0.75), layout="constrained")
    blocks = figure.subfigures(1, max(len(images), 1), squeeze=False, wspace=0.05)[0]
    for block, (step, found) in zip(blocks, images.items(), strict=False):
        block.suptitle(f"step {step:,}" if titles is None else titles[step], fontsize=10.5, fontweight="bold", color=INK, parse_math=False)
        for row, panels in enumerate(block.subplots(most, 4, squeeze=False)):
            for column, panel in enumerate(panels):
                panel.set_axis_off()
                if row == 0:
                    panel.set_title(COLUMNS[column], fontsize=8.5, color=INK, pad=3)
                if row < len(found):
                    panel.imshow(picture(found[row, column]), vmin=0, vmax=1, interpolation="nearest")
    return figure


def _trained(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Checkpoints that a logarithmic axis can show."""
    return sorted((row for row in summary["checkpoints"] if row["step"] > 0), key=lambda row: row["step"])


def _ends(value: Mapping[str, Any]) -> tuple[float, float]:
    low, high = value["ci"] or (None, None)
    return (math.nan, math.nan) if low is None or high is None else (low, high)


def _curve(panel: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str) -> None:
    steps, ends = [row["step"] for row in rows], [_ends(row[key]) for row in rows]
    panel.fill_between(steps, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.18, linewidth=0)
    panel.plot(steps, [row[key]["value"] for row in rows], color=colour, linewidth=1.8, marker="o", markersize=3.5)


def _over_steps(panel: Axes) -> None:
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("training step", fontsize=9)


def _stops(summary: Mapping[str, Any]) -> list[tuple[list[str], int]]:
    """Stops that were found, those at one step together."""
    found: dict[int, list[str]] = {}
    for name in STOPS:
        step = summary["stops"].get(name, {}).get("step")
        if step is not None:
            found.setdefault(step, []).append(name)
    return [(names, step) for step, names in sorted(found.items())]


def _named(summary: Mapping[str, Any], names: Sequence[str]) -> str:
    return " = ".join(name if summary["stops"][name]["word"] == "resolved" else f"{name} (?)" for name in names)


def _mark_stops(panel: Axes, summary: Mapping[str, Any]) -> None:
    for number, (names, step) in enumerate(_stops(summary)):
        panel.axvline(step, color=STOPS[names[0]], linewidth=1.5, linestyle=(0, (2, 2)))
        panel.annotate(
            _named(summary, names),
            (step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 10 * number),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=STOPS[names[0]],
        )
