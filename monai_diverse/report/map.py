"""Real, generated and accepted images as points in the plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from monai_diverse.data import FloatArray
from monai_diverse.errors import DataError
from monai_diverse.report.style import BLUE, GREY, INK, ORANGE, significant

SETS = ("real", "generated", "accepted")
MOST = 500
"""Images of a set that are placed; of a larger one as many, evenly spaced."""
PERPLEXITY = 30.0
_LOOKS = {"real": ("o", GREY, 14), "generated": ("^", BLUE, 18), "accepted": ("D", ORANGE, 16)}
_NAMES = {"real": "real (reference)", "generated": "generated, unscreened", "accepted": "diverse (accepted)"}


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureMap:
    """Images of each of `SETS` in two dimensions, placed in two ways.

    Attributes:
        principal: by set, (n, 2) coordinates on the first two principal components of all three sets together.
        variance: share in [0, 1] of the three sets' variance that each of the two components holds.
        dimensions: of the features that were flattened.
        embedded: by set, (n, 2) coordinates in a t-SNE of all three sets together.
        drawn: by set, how many images there were, shown or not.
    """

    principal: Mapping[str, FloatArray]
    variance: tuple[float, float]
    dimensions: int
    embedded: Mapping[str, FloatArray]
    drawn: Mapping[str, int]

    @classmethod
    def of(cls, *, real: FloatArray, generated: FloatArray, accepted: FloatArray, seed: int = 0) -> FeatureMap:
        """Places features (n, d), of each set at most `MOST` images.

        t-SNE: van der Maaten & Hinton 2008, as scikit-learn computes it, started from the principal components.

        Raises:
            DataError: fewer than four images in all, or features that are all the same.
        """
        sets = dict(zip(SETS, (real, generated, accepted), strict=True))
        kept = {name: values[_spaced(len(values))].reshape(-1, real.shape[1]) for name, values in sets.items()}
        rows = np.concatenate(list(kept.values())).astype(np.float64)
        if len(rows) < 4 or not np.ptp(rows, axis=0).any():
            raise DataError(f"map: expected at least 4 images whose features differ, got {len(rows)}; draw no map")
        # one feature is a line in the plane
        rows = np.pad(rows, [(0, 0), (0, max(0, 2 - rows.shape[1]))])
        plane = PCA(2, svd_solver="full").fit(rows)
        placed = TSNE(2, init="pca", perplexity=min(PERPLEXITY, (len(rows) - 1) / 3), random_state=seed).fit_transform(rows)
        first, second = (float(share) for share in plane.explained_variance_ratio_)
        return cls(
            principal=_parted(plane.transform(rows), kept),
            variance=(first, second),
            dimensions=real.shape[1],
            embedded=_parted(placed, kept),
            drawn={name: len(values) for name, values in sets.items()},
        )


def map_figure(feature_map: FeatureMap) -> Figure:
    """Principal components on the left, t-SNE on the right; colours and marks are the sets."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _scatter(left, feature_map.principal)
    _scatter(right, feature_map.embedded)
    # one unit of length on both axes: distances may be compared
    left.set_aspect("equal", adjustable="datalim")
    first, second = (significant(100 * share, 2) for share in feature_map.variance)
    left.set_title("Principal components", fontsize=11, fontweight="bold", color=INK)
    left.set_xlabel(f"first component ({first} % of the variance)", fontsize=9)
    left.set_ylabel(f"second component ({second} %)", fontsize=9)
    right.set_title("t-SNE: neighbours only, distances mean little", fontsize=11, fontweight="bold", color=INK)
    right.set_xticks([])
    right.set_yticks([])
    counts = {name: (len(feature_map.principal[name]), feature_map.drawn[name]) for name in SETS}
    names = [f"{_NAMES[name]}: {shown:,}" + (f" of {there:,}" if shown < there else "") for name, (shown, there) in counts.items()]
    figure.legend(left.collections, names, loc="outside lower center", ncols=3, fontsize=9.5, markerscale=1.6, frameon=False)
    return figure


def _scatter(panel: Axes, points: Mapping[str, FloatArray]) -> None:
    for name in SETS:
        mark, colour, size = _LOOKS[name]
        panel.scatter(points[name][:, 0], points[name][:, 1], s=size, marker=mark, color=colour, alpha=0.7, linewidths=0)
    panel.tick_params(labelsize=8.5)
    panel.spines[:].set_color("#BBBBBB")


def _spaced(count: int) -> slice | list[int]:
    return slice(None) if count <= MOST else [int(i) for i in np.linspace(0, count - 1, MOST).round()]


def _parted(points: np.ndarray[tuple[int, int], np.dtype[np.float64]], kept: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    ends = np.cumsum([len(values) for values in kept.values()])[:-1]
    return dict(zip(kept, np.split(points.astype(np.float32), ends), strict=True))
