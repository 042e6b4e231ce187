"""The figures of a model's audit, each from its summary alone; drawn without pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from monai_diverse.data import FloatArray
from monai_diverse.report.rendering import interval, signed
from monai_diverse.report.style import BLUE, GREEN, INK, ORANGE, SOFT, picture

GRID = "#DDDDDD"
MAX_SHOWN = 24
MAX_ROWS = 100
_WIDE = 4


@dataclass(frozen=True)
class _Row:
    name: str
    found: Mapping[str, Any]
    colour: str
    part: bool


def forest_figure(summary: Mapping[str, Any]) -> Figure:
    """Bias of each sampler, and of its classes, with intervals, beside held-out reals in place of samples; dashed: the tolerance.

    Of more than `MAX_ROWS` rows the samplers come first, then the classes of the one that the verdict is about; how many are left out is said.

    Args:
        summary: of `audit_model`: samplers, control, verdict, confidence and tolerance.
    """
    rows, left_out = _rows(summary)
    figure = Figure(figsize=(10, 0.36 * len(rows) + 1.15), layout="constrained")
    panel = figure.subplots()
    panel.axvline(0, color=INK, linewidth=1)
    if summary["tolerance"] is not None:
        tolerance_line(panel, summary["tolerance"], f"tolerance {summary['tolerance']:g}", upright=True)
    for position, row in enumerate(rows):
        _draw_row(panel, position, row)
    _finish_rows(panel, rows)
    panel.set_xlabel(
        f"bias: mean log of distance to unseen / to training images (dot), with {100 * summary['confidence']:g} % interval (line)\n"
        "right of 0: nearer to the training images; 0.02 is about 2 %" + (f"\n{left_out} more rows are left out" if left_out else ""),
        fontsize=9,
    )
    return figure


def left_out_of_forest(summary: Mapping[str, Any]) -> int:
    """How many rows `forest_figure` does not show."""
    return _rows(summary)[1]


def membership_figure(membership: Mapping[str, Any], confidence: float) -> Figure:
    """Whether the network denoises its training images better than unseen ones, by noise level: gap of the losses, and AUC.

    Args:
        membership: of a model's audit: levels with noise_ratio, gap and auc.
        confidence: level of the intervals.
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    levels = membership["levels"]
    for panel, key, neutral, title in ((panels[0], "gap", 0, "loss of unseen − loss of training images"), (panels[1], "auc", 0.5, "AUC")):
        panel.axhline(neutral, color=INK, linewidth=1)
        for level in levels:
            low, high = level[key]["ci"] or (None, None)
            if low is not None and high is not None:
                panel.plot([level["noise_ratio"]] * 2, [low, high], color=BLUE, linewidth=2.2, solid_capstyle="butt")
        panel.plot([level["noise_ratio"] for level in levels], [level[key]["value"] for level in levels], color=BLUE, marker="o", linewidth=1)
        panel.set_xscale("log")
        panel.set_title(title, fontsize=11, fontweight="bold", color=INK)
        panel.set_xlabel("noise-to-signal ratio", fontsize=9)
        plain(panel)
    panels[1].set_ylabel(f"above 0.5: training images\nare told apart ({100 * confidence:g} % interval)", fontsize=8.5, color=SOFT)
    return figure


def closest_figure(samples: FloatArray, train: FloatArray, heldout: FloatArray, titles: Sequence[str]) -> Figure:
    """Samples beside their nearest training and their nearest held-out image, at most `MAX_SHOWN`, for a person to look at.

    Args:
        samples: (n, c, *spatial) in [0, 1].
        train: as many: of each the nearest training image.
        heldout: as many: of each the nearest held-out image.
        titles: of each, such as its number and class.
    """
    shown = min(len(samples), MAX_SHOWN)
    rows = math.ceil(shown / _WIDE)
    figure = Figure(figsize=(11, 1.2 * rows + 0.1), layout=ConstrainedLayoutEngine(w_pad=0.12))
    for index, panel in enumerate(figure.subplots(rows, _WIDE, squeeze=False).ravel()):
        panel.set_axis_off()
        if index >= shown:
            continue
        trio = [picture(images[index]) for images in (samples, train, heldout)]
        gap = np.ones((trio[0].shape[0], max(1, trio[0].shape[1] // 28), 3), dtype=np.float32)
        panel.imshow(np.concatenate([trio[0], gap, trio[1], gap, trio[2]], axis=1), vmin=0, vmax=1, interpolation="nearest")
        panel.set_title(titles[index], fontsize=9, color=INK, parse_math=False, pad=3)
    return figure


def plain(panel: Axes) -> None:
    """Takes the frame away, and draws a grid behind what is shown."""
    panel.tick_params(labelsize=8.5)
    panel.grid(color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left", "bottom"]].set_visible(False)


def tolerance_line(panel: Axes, place: float, text: str, *, upright: bool = False) -> None:
    """A dashed line at the tolerance, named at its end."""
    style: dict[str, Any] = {"color": SOFT, "linewidth": 1.4, "linestyle": (0, (4, 3))}
    words: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "color": SOFT}
    if upright:
        panel.axvline(place, **style)
        panel.annotate(text, (place, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), ha="center", **words)
    else:
        panel.axhline(place, **style)
        panel.annotate(text, (1, place), xycoords=("axes fraction", "data"), xytext=(-2, 3), ha="right", **words)


def _rows(summary: Mapping[str, Any]) -> tuple[list[_Row], int]:
    """The rows that are shown, and how many are not."""
    control = [] if summary["control"] is None else [_Row("held-out real, in place of samples", summary["control"], INK, False)]
    blocks = []
    for number, sampler in enumerate(summary["samplers"]):
        colour = ORANGE if not number else GREEN if sampler.get("guide") else BLUE
        parts = sampler["by_class"] if len(sampler["by_class"]) > 1 else ()
        blocks.append([_Row(sampler["name"], sampler, colour, False), *(_Row(str(part["name"]), part, colour, True) for part in parts)])
    count, most = sum(map(len, blocks)), MAX_ROWS - len(control)
    if count <= most:
        return [*(row for block in blocks for row in block), *control], 0
    judged = next((block for block in blocks if block[0].name == summary["verdict"]["sampler"]), blocks[0])
    return [*[*(block[0] for block in blocks), *judged[1:]][:most], *control], count - min(most, len(blocks) + len(judged) - 1)


def _draw_row(panel: Axes, position: int, row: _Row) -> None:
    bias = row.found["bias"]
    low, high = bias["ci"] or (None, None)
    if low is not None and high is not None:
        panel.plot([low, high], [position, position], color=row.colour, linewidth=1.4 if row.part else 2.4, solid_capstyle="butt")
    panel.plot([bias["value"]], [position], marker="o", markersize=4.5 if row.part else 7, color=row.colour, clip_on=False, zorder=3)
    text = f"{signed(bias['value'])}  ({interval(bias['ci'], '+.3f')})"
    panel.annotate(
        text,
        (1, position),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        color=SOFT if row.part else INK,
    )


def _finish_rows(panel: Axes, rows: Sequence[_Row]) -> None:
    panel.set_yticks(range(len(rows)), labels=[row.name for row in rows], parse_math=False)
    for label, row in zip(panel.get_yticklabels(), rows, strict=True):
        label.set_fontsize(8.5 if row.part else 9.5)
        label.set_color(SOFT if row.part else INK)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=8.5)
    panel.grid(axis="x", color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)
