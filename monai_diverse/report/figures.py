"""The figures of a report, drawn without pyplot: nothing outside the returned figures changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from monai_diverse.data import FloatArray, IntArray, check_images, check_labels
from monai_diverse.errors import DataError
from monai_diverse.report.borderline import Borderline, borderline_figure
from monai_diverse.report.map import FeatureMap, map_figure
from monai_diverse.report.style import BLUE, GREEN, GREY, INK, METRIC_NAMES, ORANGE, REASON_NAMES, SOFT, picture, significant

ARM_COLOURS = {"diverse": ORANGE, "random": BLUE, "duplicates": GREEN}
PASSED_NAMES = {"copy": "no copy", "not_novel": "novel", "irrelevant": "of its class", "outlier": "in range", "duplicate": "no repeat: accepted"}
MAX_PAIRS = 24
_TILES_WIDE, _TILES_HIGH, _PAIRS_WIDE = 6, 2, 6


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The images that a report shows.

    Attributes:
        real: float32 (n, c, *spatial) in [0, 1], training images.
        real_labels: int64 (n,).
        random: generated images as they come, unscreened.
        random_labels: int64, one an image.
        diverse: accepted images; may be empty.
        diverse_labels: int64, one an image.
        nearest: for each diverse image the training image most like it.
        diverse_scores: for each diverse image its scores by name.
        class_names: one a class.
        nearest_set: the set that `nearest` comes from: `generator_train`, or `reference` where that is unknown; None: not said.
        borderline: images at the thresholds, one entry a gate.
        map: real, generated and accepted images in two dimensions; None: not drawn.
    """

    real: FloatArray
    real_labels: IntArray
    random: FloatArray
    random_labels: IntArray
    diverse: FloatArray
    diverse_labels: IntArray
    nearest: FloatArray
    diverse_scores: Sequence[Mapping[str, float]]
    class_names: tuple[str, ...]
    nearest_set: str | None = None
    borderline: tuple[Borderline, ...] = ()
    map: FeatureMap | None = None

    def __post_init__(self) -> None:
        for name in ("real", "random", "diverse"):
            images = getattr(self, name)
            if len(images):
                check_images(images, name)
            check_labels(getattr(self, f"{name}_labels"), len(images), len(self.class_names), f"{name}_labels")
        if len(self.diverse):
            check_images(self.nearest, "nearest")
        for name in ("nearest", "diverse_scores"):
            if len(getattr(self, name)) != len(self.diverse):
                raise DataError(f"{name}: expected one for each of {len(self.diverse)} diverse images, got {len(getattr(self, name))}")
        if self.nearest_set not in (None, "generator_train", "reference"):
            raise DataError(f"nearest_set: expected generator_train, reference or None, got {self.nearest_set!r}")
        for edge in self.borderline:
            check_labels(edge.labels, len(edge.labels), len(self.class_names), f"borderline {edge.gate} labels")


def draw_figures(summary: Mapping[str, Any], pictures: Pictures) -> dict[str, Figure]:
    """All figures of a report by file name without suffix; what there is no data for is left out.

    Args:
        summary: see `write_report`.
        pictures: the images to show.
    """
    figures = {"samples": samples_figure(pictures)}
    if len(pictures.diverse):
        figures["pairs"] = pairs_figure(pictures)
    if pictures.borderline:
        figures["borderline"] = borderline_figure(pictures.borderline, pictures.class_names)
    if pictures.map is not None:
        figures["map"] = map_figure(pictures.map)
    figures["rejections"] = rejections_figure(summary)
    figures["yields"] = yields_figure(summary["yield"])
    if summary["classifier"]:
        figures["classifier"] = classifier_figure(summary["classifier"])
    if summary["comparisons"]:
        figures["differences"] = differences_figure(summary["comparisons"])
    return figures


def samples_figure(pictures: Pictures) -> Figure:
    """Real, generated and diverse images side by side, a row of panels a class."""
    columns = [("Real (training)", pictures.real, pictures.real_labels), ("Generated, unscreened", pictures.random, pictures.random_labels)]
    columns.append(("Diverse (accepted)", pictures.diverse, pictures.diverse_labels))
    names = pictures.class_names
    figure = Figure(figsize=(11, 1.32 * len(names) + 0.35), layout="constrained")
    panels = figure.subplots(len(names), len(columns), squeeze=False)
    for row, class_name in enumerate(names):
        for column, (title, images, labels) in enumerate(columns):
            panel = panels[row, column]
            own = images[labels == row]
            _show_tiles(panel, own)
            if row == 0:
                panel.set_title(title, fontsize=11, fontweight="bold", color=INK)
            if column == 0:
                panel.set_ylabel(class_name, fontsize=11, color=INK, parse_math=False)
            shown = min(len(own), _TILES_WIDE * _TILES_HIGH)
            panel.set_xlabel(f"{shown} of {len(own)}" if shown < len(own) else f"{shown} image{'s' * (shown != 1)}", fontsize=8, color=SOFT)
    return figure


def pairs_figure(pictures: Pictures) -> Figure:
    """Each diverse image (left) with its nearest training image (right), at most `MAX_PAIRS`, in order."""
    shown = min(len(pictures.diverse), MAX_PAIRS)
    rows = math.ceil(shown / _PAIRS_WIDE)
    figure = Figure(figsize=(11, 1.15 * rows + 0.1), layout=ConstrainedLayoutEngine(w_pad=0.09))
    panels = figure.subplots(rows, _PAIRS_WIDE, squeeze=False)
    for index, panel in enumerate(panels.ravel()):
        panel.set_axis_off()
        if index >= shown:
            continue
        left, right = picture(pictures.diverse[index]), picture(pictures.nearest[index])
        gap = np.ones((left.shape[0], max(1, left.shape[1] // 28), 3), dtype=np.float32)
        panel.imshow(np.concatenate([left, gap, right], axis=1), vmin=0, vmax=1, interpolation="nearest")
        name = pictures.class_names[int(pictures.diverse_labels[index])]
        panel.set_title(f"#{index + 1}  {name}", fontsize=9, color=INK, parse_math=False, pad=3)
    return figure


def rejections_figure(summary: Mapping[str, Any]) -> Figure:
    """How many images are left after each gate, for the guided and, where counted, the unguided run."""
    runs = [("Diverse (guided)", ORANGE, summary["rejections"], summary["yield"]["diverse"]["accepted"])]
    if summary.get("rejections_random"):
        runs.append(("Random (no guide)", BLUE, summary["rejections_random"], summary["yield"]["random"]["accepted"]))
    figure = Figure(figsize=(11 if len(runs) > 1 else 6.5, 2.9), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for panel, (title, colour, rejections, accepted) in zip(panels, runs, strict=True):
        _funnel(panel, rejections, accepted, colour)
        panel.set_title(title, fontsize=11, fontweight="bold", color=INK)
    return figure


def yields_figure(yields: Mapping[str, Any]) -> Figure:
    """Accepted images per 10,000 with their Clopper-Pearson intervals."""
    rows = [("diverse", "diverse (guided)", ORANGE), ("random", "random (no guide)", BLUE), ("heldout_real", "held-out real", INK)]
    figure = Figure(figsize=(8.5, 2.2), layout="constrained")
    panel = figure.subplots()
    for position, (key, _, colour) in enumerate(rows):
        _dot(panel, position, yields[key]["per_10k"], yields[key]["ci95"], colour)
        text = f"{significant(yields[key]['per_10k'], 4)}   ({yields[key]['accepted']:,} of {yields[key]['drawn']:,})"
        panel.annotate(text, (yields[key]["per_10k"], position), xytext=(0, 7), textcoords="offset points", ha="left", fontsize=9, color=INK)
    _finish_rows(panel, [name for _, name, _ in rows])
    panel.set_xlim(left=0)
    panel.set_xlabel("accepted per 10,000 (dot) with 95 % Clopper-Pearson interval (line)", fontsize=9)
    return figure


def classifier_figure(classifier: Mapping[str, Any]) -> Figure:
    """Each arm's mean over seeds with its interval, one panel a metric."""
    arms = list(classifier)
    figure = Figure(figsize=(11, 0.42 * len(arms) + 1.1), layout="constrained")
    panels = figure.subplots(1, len(METRIC_NAMES), sharey=True)
    for panel, (metric, name) in zip(panels, METRIC_NAMES.items(), strict=True):
        for position, arm in enumerate(arms):
            value = classifier[arm][metric]
            _dot(panel, position, value["mean"], value["ci95"], ARM_COLOURS.get(arm, GREY))
            _label(panel, position, value["mean"], f"{value['mean']:.3f}")
        _finish_rows(panel, arms)
        panel.set_title(name, fontsize=11, fontweight="bold", color=INK)
    panels[1].set_xlabel("test score: mean over seeds (dot) with 95 % t interval (line)", fontsize=9)
    return figure


def differences_figure(comparisons: Mapping[str, Any]) -> Figure:
    """Differences paired over seeds with their intervals, one panel a metric; the line marks no difference."""
    names = [name.replace("_vs_", " − ").replace("_", " ") for name in comparisons]
    figure = Figure(figsize=(11, 0.42 * len(names) + 1.1), layout="constrained")
    panels = figure.subplots(1, len(METRIC_NAMES), sharey=True)
    for panel, (metric, title) in zip(panels, METRIC_NAMES.items(), strict=True):
        panel.axvline(0, color=INK, linewidth=1)
        for position, comparison in enumerate(comparisons.values()):
            value = comparison[metric]
            _dot(panel, position, value["mean"], value["ci95"], ORANGE)
            _label(panel, position, value["mean"], f"{value['mean']:+.3f}".replace("-", "−"))
        _finish_rows(panel, names)
        panel.set_title(title, fontsize=11, fontweight="bold", color=INK)
    panels[1].set_xlabel("difference in test score, paired over seeds, with 95 % t interval; right of 0 favours diverse", fontsize=9)
    return figure


def _funnel(panel: Axes, rejections: Mapping[str, int], accepted: int, colour: str) -> None:
    judged = accepted + sum(rejections.values())
    left, rows = judged, [("judged", judged, "")]
    for reason, name in REASON_NAMES.items():
        lost = rejections.get(reason, 0)
        left -= lost
        rows.append((PASSED_NAMES[reason], left, f"−{lost:,} {name}"))
    for position, (_, count, loss) in enumerate(rows):
        last = position == len(rows) - 1
        panel.barh(position, count, color=colour if last else _paler(colour), height=0.72)
        panel.annotate(f"{count:,}   {loss}", (count, position), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK)
    _finish_rows(panel, [name for name, _, _ in rows])
    panel.set_xlim(0, max(judged, 1) * 1.4)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_xlabel("images left after each gate", fontsize=9)


def _paler(colour: str) -> tuple[float, float, float]:
    red, green, blue = to_rgb(colour)
    return (0.45 * red + 0.55, 0.45 * green + 0.55, 0.45 * blue + 0.55)


def _dot(panel: Axes, position: int, mean: float, ci95: Sequence[float | None], colour: str) -> None:
    low, high = ci95
    if low is not None and high is not None:
        panel.plot([low, high], [position, position], color=colour, linewidth=2.2, solid_capstyle="butt")
    panel.plot([mean], [position], marker="o", markersize=7, color=colour, clip_on=False, zorder=3)


def _label(panel: Axes, position: int, mean: float, text: str) -> None:
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    panel.annotate(text, (mean, position), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=INK, bbox=ground)


def _finish_rows(panel: Axes, names: Sequence[str]) -> None:
    panel.set_yticks(range(len(names)), labels=list(names), fontsize=9.5, parse_math=False)
    panel.set_ylim(len(names) - 0.5, -0.75)
    panel.tick_params(axis="x", labelsize=8.5)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "left"]].set_visible(False)


def _show_tiles(panel: Axes, images: FloatArray) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    if len(images) == 0:
        panel.text(0.5, 0.5, "none", ha="center", va="center", fontsize=11, color=SOFT, transform=panel.transAxes)
        return
    tiles = [picture(image) for image in images[: _TILES_WIDE * _TILES_HIGH]]
    height, width, _ = tiles[0].shape
    gap = max(1, width // 28)
    sheet = np.ones((_TILES_HIGH * (height + gap) - gap, _TILES_WIDE * (width + gap) - gap, 3), dtype=np.float32)
    for index, tile in enumerate(tiles):
        top, start = (index // _TILES_WIDE) * (height + gap), (index % _TILES_WIDE) * (width + gap)
        sheet[top : top + height, start : start + width] = tile
    panel.imshow(sheet, vmin=0, vmax=1, interpolation="nearest")
