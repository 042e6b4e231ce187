"""The usual metrics of memorisation, for samples and, beside them, for held-out reals in their place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.cluster import KMeans

from monai_diverse.audit.bias import CONFIDENCE
from monai_diverse.audit.distances import Views, class_distances
from monai_diverse.data import FloatArray

Mask = npt.NDArray[np.bool_]

GAP = 1 / 3
"""A sample counts as memorised whose nearest training image is that many times as near as the second nearest."""
IN_A_CELL = 50
"""Held-out images, or samples, in a cell of C_T, on average."""
MOST_CELLS = 20
LEAST_IN_A_CELL = 10
"""Cells with fewer samples, or held-out images, tell nothing."""


@dataclass(frozen=True, eq=False)
class Memorisation:
    """What samples are held against: training images and held-out reals, whatever their class.

    Attributes:
        train: of n images, n from 2; see `embedded`.
        heldout: of held-out reals.
        half: of the held-out reals, those that play samples in C_T's control, in which the others stay held-out reals.
        seed: of the cells.
    """

    train: Views
    heldout: Views
    half: Mask
    seed: int = 0

    def of(self, views: Views) -> dict[str, Any]:
        """C_T, authenticity and gap ratio as published.

        Authenticity (Alaa et al., ICML 2022): share of samples that lie farther from their nearest training image than that lies from its own
        nearest. Gap ratio (as in Yoon et al., 2023): share of samples whose nearest training image is a third as far as the second nearest.

        Returns:
            JSON: "c_t", "authenticity" and "gap_ratio", each {"value", "ci", "heldout", "worse": "lower" or "higher"}; None for what is not known.
        """
        ours = _Nearest.of(views, self.train[0])
        c_t = {"value": self.c_t(ours, self._real), "ci": None, "heldout": self._c_t_of_reals, "worse": "lower"}
        authentic, gap = ((judge(ours), judge(self._real)) for judge in (self._authentic, _gap))
        return {
            "c_t": c_t,
            "authenticity": _share(authentic[0]) | {"heldout": float(authentic[1].mean()), "worse": "lower"},
            "gap_ratio": _share(gap[0]) | {"heldout": float(gap[1].mean()), "worse": "higher"},
        }

    def c_t(self, samples: _Nearest, reals: _Nearest) -> float | None:
        """Data-copying statistic C_T (Meehan, Chaudhuri & Dasgupta, AISTATS 2020, section 4), far below 0 for copies.

        In each k-means cell of the training images: z of the Mann-Whitney test between distances to the nearest training image, of samples and of
        held-out images; above 0 where samples are farther. Cells are weighted by their held-out images. An image belongs to the cell of
        its nearest training image.

        Returns:
            None if no cell holds enough of both.
        """
        scores, weights = [], []
        for cell in np.unique(self._cells):
            ours, theirs = (n.distances[self._cells[n.nearest] == cell, 0] for n in (samples, reals))
            m, n = len(ours), len(theirs)
            if min(m, n) < LEAST_IN_A_CELL:
                continue
            farther = stats.rankdata(np.concatenate([ours, theirs]))[:m].sum() - m * (m + 1) / 2
            scores.append((farther - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12))
            weights.append(n)
        return float(np.average(scores, weights=weights)) if scores else None

    @cached_property
    def _cells(self) -> npt.NDArray[np.int32]:
        """Cell of every training image (n,)."""
        count = int(np.clip(min(len(self.heldout[0]), len(self.train[0])) // IN_A_CELL, 1, MOST_CELLS))
        cells: npt.NDArray[np.int32] = KMeans(count, n_init=1, random_state=self.seed).fit(self.train[0]).labels_
        return cells

    @cached_property
    def _real(self) -> _Nearest:
        return _Nearest.of(self.heldout, self.train[0])

    @cached_property
    def _c_t_of_reals(self) -> float | None:
        return self.c_t(self._real.only(self.half), self._real.only(~self.half))

    @cached_property
    def _among(self) -> FloatArray:
        """(n,) of every training image the distance to the nearest other one; the smallest of all is its own."""
        return np.concatenate([np.partition(d, 1, axis=1)[:, 1] for d in class_distances(self.train, self.train[0])])

    def _authentic(self, images: _Nearest) -> Mask:
        return images.distances[:, 0] > self._among[images.nearest]


def _gap(images: _Nearest) -> Mask:
    return images.distances[:, 0] < np.float32(GAP) * images.distances[:, 1]


@dataclass(frozen=True, eq=False)
class _Nearest:
    """Distances (m, 2) to the two nearest rows, ascending, and which is the nearest (m,)."""

    distances: FloatArray
    nearest: npt.NDArray[np.intp]

    @classmethod
    def of(cls, views: Views, rows: FloatArray) -> _Nearest:
        parts = [(np.partition(d, 1, axis=1)[:, :2], d.argmin(axis=1)) for d in class_distances(views, rows)]
        return cls(np.concatenate([d for d, _ in parts]), np.concatenate([i for _, i in parts]))

    def only(self, chosen: Mask) -> _Nearest:
        return _Nearest(self.distances[chosen], self.nearest[chosen])


def _share(mask: Mask) -> dict[str, Any]:
    """Share with its Clopper-Pearson interval: what varies between samples, not between training sets."""
    interval = stats.binomtest(int(mask.sum()), len(mask)).proportion_ci(CONFIDENCE, method="exact")
    return {"value": float(mask.mean()), "ci": [float(interval.low), float(interval.high)]}
