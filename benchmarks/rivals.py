"""Published scores of how far a sample is from what is known, as functions of features alone; benchmarks/screen.py compares the screen with them.

Each takes reference features (n, d) and query features (m, d) and gives (m,), higher for what is more novel or more authentic. None has a
threshold calibrated on unseen real images, a class, or a gate for outliers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from monai_diverse.errors import DataError
from monai_diverse.features import PCA

DoubleArray = npt.NDArray[np.float64]


def neighbour_distance(reference: npt.ArrayLike, query: npt.ArrayLike, *, k: int = 5, components: int = 48) -> DoubleArray:
    """Euclidean distance to the k-th nearest reference image, in whitened principal components of the reference.

    Raises:
        DataError: fewer than k references, or references that are all equal.
    """
    _require(reference, k)
    whitened = PCA(n_components=components, whiten=True).fit(reference)
    distances, _ = NearestNeighbors(n_neighbors=k).fit(whitened.transform(reference)).kneighbors(whitened.transform(query))
    return np.asarray(distances[:, -1], np.float64)


def rarity_score(reference: npt.ArrayLike, query: npt.ArrayLike, *, k: int = 3) -> DoubleArray:
    """Rarity score (Han, Choi, Choi, Kim, Ha & Choi, ICLR 2023): the smallest radius of the real balls that hold the sample.

    The ball of a reference image reaches to its k-th nearest other one, its border excluded. As in the authors' code, a sample in no
    ball scores 0: it is off the manifold, where the paper gives no score.

    Raises:
        DataError: k references or fewer.
    """
    _require(reference, k + 1)
    rows, points = np.asarray(reference, np.float64), np.asarray(query, np.float64)
    # without a query, a row is not its own neighbour
    radii = NearestNeighbors(n_neighbors=k).fit(rows).kneighbors()[0][:, -1]
    # in chunks, since all distances of a large set at once do not fit in memory
    smallest = [np.where(d < radii, radii, np.inf).min(axis=1) for d in pairwise_distances_chunked(points, rows)]
    scores = np.concatenate(smallest)
    return np.where(np.isfinite(scores), scores, 0.0)


def authenticity(reference: npt.ArrayLike, query: npt.ArrayLike) -> DoubleArray:
    """Authenticity (Alaa, van Breugel, Saveliev & van der Schaar, ICML 2022) before its threshold: d(g, r) - d(r, r').

    r is the reference image nearest to the sample g, r' the one nearest to r. Above 0 the sample is authentic; at 0 and below, it is
    as close to r as the references are, and counts as a copy. The difference stays finite where references repeat.

    Raises:
        DataError: fewer than 2 references.
    """
    _require(reference, 2)
    index = NearestNeighbors(n_neighbors=1).fit(np.asarray(reference, np.float64))
    distances, nearest = index.kneighbors(np.asarray(query, np.float64))
    return np.asarray(distances[:, 0] - index.kneighbors()[0][nearest[:, 0], 0], np.float64)


def authentic(reference: npt.ArrayLike, query: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """The authors' decision (m,): whether `authenticity` is above 0."""
    return np.greater(authenticity(reference, query), 0)


def _require(reference: npt.ArrayLike, least: int) -> None:
    if len(np.asarray(reference)) < least:
        raise DataError(f"reference: expected at least {least} images, got {len(np.asarray(reference))}; give more")
