"""Surprisal of a sample relative to unseen real images, from nearest-neighbour distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information.neighbours import DoubleArray, Neighbours

SMALLEST = 1e-12


def intrinsic_dimension(distances: npt.ArrayLike) -> float:
    """Maximum-likelihood dimension of the manifold that data lie on.

    Levina & Bickel (NIPS 2004, eq. 8), averaged over points by its inverse as MacKay & Ghahramani (2005) corrected it:
    1 / d = mean over points of 1 / (k - 1) sum_{j<k} log(T_k / T_j).

    Args:
        distances: (n, k) of each point to its k nearest, ascending, k from 2.

    Raises:
        DataError: fewer than two neighbours, or neighbours that are all equally far, from which no dimension follows.
    """
    ascending = np.maximum(np.asarray(distances, np.float64), SMALLEST)
    if ascending.ndim != 2 or ascending.shape[1] < 2 or not len(ascending):
        raise DataError(f"intrinsic dimension: expected distances (n, k) to at least 2 neighbours, got shape {ascending.shape}")
    inverse = float(np.log(ascending[:, -1:] / ascending[:, :-1]).mean())
    if not inverse > 0:
        raise DataError("intrinsic dimension: expected neighbours at different distances, got all equally far")
    return 1 / inverse


class Surprisal:
    """How much rarer a sample is, in nats, than a typical unseen real image.

    The k-nearest-neighbour density estimate gives -log p(x) = d log d_k(x) + a constant (Kozachenko & Leonenko 1987), d the
    intrinsic dimension of the reference, so that the excess over the calibration images is d log(d_k(x) / median d_k).

    Args:
        reference: (n, d).
        calibration: (m, d), real images that the features were not fitted on.
        groups: int (n,) of the reference, left out together; None: every row its own.
        neighbours: k of d_k.
        dimension_neighbours: k of the intrinsic dimension. Both k are lowered where the reference is too small.
        folder: as of `Neighbours`.

    Attributes:
        dimension: the intrinsic dimension, at most d.
        typical: the median d_k of the calibration images.

    Raises:
        RecipeError: `neighbours` below 1 or `dimension_neighbours` below 2.
        DataError: no calibration image, or fewer than two reference images outside every group.
    """

    def __init__(
        self,
        reference: npt.ArrayLike,
        calibration: npt.ArrayLike,
        *,
        groups: IntArray | None = None,
        neighbours: int = 5,
        dimension_neighbours: int = 10,
        folder: Path | None = None,
    ) -> None:
        for name, value, least in (("neighbours", neighbours, 1), ("dimension_neighbours", dimension_neighbours, 2)):
            if value < least:
                raise RecipeError(f"{name}: expected at least {least}, got {value}")
        real = np.asarray(calibration, np.float64)
        if not len(real):
            raise DataError("surprisal: expected at least one calibration image, got none")
        self._index = Neighbours(reference, groups, folder=folder)
        self._neighbours = min(neighbours, len(self._index))
        within = self._index.within(max(2, min(dimension_neighbours, self._index.most)))
        self.dimension = min(intrinsic_dimension(within), float(np.shape(reference)[1]))
        self.typical = float(np.median(self._distance(real)))

    def excess(self, x: npt.ArrayLike) -> FloatArray:
        """Surprisal (m,) of (m, d) in nats above the median calibration image; below 0 is commoner than that. Finite for copies too."""
        return (self.dimension * np.log(self._distance(x) / self.typical)).astype(np.float32)

    def _distance(self, x: npt.ArrayLike) -> DoubleArray:
        return np.maximum(self._index.distances(x, self._neighbours)[:, -1], SMALLEST)
