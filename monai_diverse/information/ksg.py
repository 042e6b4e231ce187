"""Mutual information of continuous vectors from nearest neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import digamma

from monai_diverse.errors import DataError
from monai_diverse.information.neighbours import DoubleArray


def ksg_mutual_information(x: npt.ArrayLike, y: npt.ArrayLike, k: int = 3) -> float:
    """I(X; Y) in nats: psi(k) + psi(n) - <psi(n_x + 1) + psi(n_y + 1)>; of independent ones about 0, or slightly less.

    Kraskov, Stogbauer & Grassberger, Phys. Rev. E 69, 066138 (2004), eq. 8 (estimator 1): the maximum norm throughout; n_x is the
    number of other points strictly nearer in x than the k-th neighbour in (x, y). It falls short of a strong dependence in many
    dimensions unless points are very many: keep to a few leading components, scaled alike.

    Args:
        x: (n, p), n above k.
        y: (n, q).
        k: neighbours, from 1; more of them make less variance and more bias.

    Raises:
        DataError: other shapes, too few points, or more than k repeats of a point, between which there is no distance.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or not 1 <= k < len(a):
        raise DataError(f"mutual information: expected (n, p) and (n, q), n above k from 1, got shapes {a.shape} and {b.shape}, k = {k}")
    joint = np.concatenate([a, b], axis=1)
    radius = cKDTree(joint).query(joint, k + 1, p=np.inf)[0][:, -1]
    if not radius.min() > 0:
        raise DataError(f"mutual information: expected points that differ, got {int((radius == 0).sum())} with {k} or more repeats; drop repeats")
    return float(digamma(k) + digamma(len(a)) - np.mean(digamma(_nearer(a, radius)) + digamma(_nearer(b, radius))))


def _nearer(points: DoubleArray, radius: DoubleArray) -> npt.NDArray[np.int64]:
    """Points strictly nearer than `radius`, the point itself among them."""
    counts = cKDTree(points).query_ball_point(points, np.nextafter(radius, 0), p=np.inf, return_length=True)
    return np.asarray(counts, np.int64)
