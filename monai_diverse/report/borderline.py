"""The images that a gate nearly kept or nearly rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from monai_diverse.data import FloatArray, IntArray, check_images, check_labels
from monai_diverse.errors import DataError
from monai_diverse.report.style import INK, ORANGE, REASON_NAMES, SOFT, picture, significant

EACH = 4
"""Images shown on either side of a threshold."""
SCORE_MEANINGS = {
    "copy": "least admissible distance to an image that may be copied / distance to the nearest",
    "not_novel": "share of unseen real images at least as far from the reference (conformal p-value)",
    "irrelevant": "share of unseen real images that fit their class better (1 \u2212 conformal p-value)",
    "outlier": "largest of the measures / its limit",
    "duplicate": "least admissible distance to an accepted sample / distance to the nearest",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Borderline:
    """Images on both sides of one gate's threshold, the nearest to it.

    Attributes:
        gate: the reason that the gate gives for rejecting.
        threshold: scores above it are rejected.
        images: float32 (n, c, *spatial) in [0, 1], by ascending score; n may be 0.
        labels: int64 (n,).
        scores: float64 (n,), ascending.
        verdicts: (n,) the first reason to reject each, by whatever gate; None: it passes all.
    """

    gate: str
    threshold: float
    images: FloatArray
    labels: IntArray
    scores: npt.NDArray[np.float64]
    verdicts: tuple[str | None, ...]

    def __post_init__(self) -> None:
        if len(self.images):
            check_images(self.images, f"borderline {self.gate} images")
        check_labels(self.labels, len(self.images), name=f"borderline {self.gate} labels")
        for name in ("scores", "verdicts"):
            if len(getattr(self, name)) != len(self.images):
                raise DataError(f"borderline {self.gate}: expected {len(self.images)} {name}, one an image, got {len(getattr(self, name))}")
        if (np.diff(self.scores) < 0).any():
            raise DataError(f"borderline {self.gate}: expected ascending scores, got {self.scores.tolist()}; make it with Borderline.among")

    @classmethod
    def among(
        cls,
        images: FloatArray,
        labels: IntArray,
        scores: npt.ArrayLike,
        verdicts: Sequence[str | None],
        *,
        gate: str,
        threshold: float,
        each: int = EACH,
    ) -> Borderline:
        """Takes the `each` images nearest to the threshold on either side, the earlier ones of equal scores.

        Args:
            images: (m, c, *spatial) in [0, 1].
            labels: (m,).
            scores: (m,) of the gate.
            verdicts: (m,) the first reason to reject each; None: it passes all gates.
            gate: the reason that the gate gives.
            threshold: scores above it are rejected.
            each: how many a side, at most.
        """
        values = np.asarray(scores, np.float64)
        order = np.argsort(values, kind="stable")
        passed = values[order] <= threshold
        # from the threshold downwards, so that of equal scores the earlier images are taken there too
        below = np.lexsort((np.arange(len(values)), -values))
        below = below[values[below] <= threshold][:each][::-1]
        chosen = np.concatenate([below, order[~passed][:each]])
        return cls(
            gate=gate,
            threshold=threshold,
            images=images[chosen],
            labels=labels[chosen],
            scores=values[chosen],
            verdicts=tuple(verdicts[i] for i in chosen),
        )

    @property
    def passed(self) -> int:
        """How many of the images the gate let pass: the first so many."""
        return int((self.scores <= self.threshold).sum())


def borderline_figure(edges: Sequence[Borderline], class_names: Sequence[str]) -> Figure:
    """A row a gate: left of the line what it nearly rejected, right of it what it nearly kept, each with score and verdict."""
    tallest = max((image.shape[-2] / image.shape[-1] for edge in edges for image in edge.images[:1]), default=1.0)
    figure = Figure(figsize=(11, (1.25 * min(tallest, 2.0) + 0.9) * len(edges)), layout="constrained")
    rows = figure.subfigures(len(edges), 1, squeeze=False, hspace=0.04)[:, 0]
    for row, edge in zip(rows, edges, strict=True):
        _draw_edge(row, edge, class_names)
    return figure


def _draw_edge(row: SubFigure, edge: Borderline, class_names: Sequence[str]) -> None:
    name, meaning = REASON_NAMES.get(edge.gate, edge.gate), SCORE_MEANINGS.get(edge.gate, "score")
    title = f"{name}: rejected above {significant(edge.threshold, 4)}.  Score: {meaning}"
    row.suptitle(title, x=0.01, ha="left", fontsize=9.5, color=INK, parse_math=False)
    above = len(edge.scores) - edge.passed
    left, right = max(EACH, edge.passed), max(EACH, above)
    panels = row.subplots(1, left + 1 + right, squeeze=False, gridspec_kw={"width_ratios": [1] * left + [0.25] + [1] * right})[0]
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
    panels[left].axvline(0.5, color=ORANGE, linewidth=2.5)
    panels[left].set_xlim(0, 1)
    for index in range(len(edge.scores)):
        # what passed ends at the line, what did not begins behind it
        place = left - edge.passed + index if index < edge.passed else left + 1 + index - edge.passed
        _show(panels[place], edge, index, class_names)
    for count, panel, word in ((edge.passed, panels[left - 1], "kept"), (above, panels[left + 1], "rejected")):
        if not count:
            panel.text(0.5, 0.5, f"none of these\n{word}", ha="center", va="center", fontsize=9, color=SOFT, transform=panel.transAxes)


def _show(panel: Axes, edge: Borderline, index: int, class_names: Sequence[str]) -> None:
    panel.imshow(picture(edge.images[index]), vmin=0, vmax=1, interpolation="nearest")
    panel.set_title(significant(float(edge.scores[index]), 4), fontsize=9, color=INK, pad=3)
    verdict = edge.verdicts[index]
    below = f"{class_names[int(edge.labels[index])]}\n{'passes all gates' if verdict is None else f'fails: {REASON_NAMES.get(verdict, verdict)}'}"
    panel.set_xlabel(below, fontsize=8, color=INK if verdict is None else SOFT, parse_math=False)
