"""How many different things a set holds: effective numbers from a kernel matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigvalsh

from monai_diverse.errors import DataError
from monai_diverse.information.neighbours import DoubleArray


def vendi_score(kernel: npt.ArrayLike) -> float:
    """Effective number of distinct items, between 1 and n: exp of the entropy of the eigenvalues of K / n.

    Friedman & Dieng, TMLR 2023, definition 3.1.

    Args:
        kernel: (n, n), symmetric, positive semi-definite, ones on the diagonal (cosine or RBF, from
            `sklearn.metrics.pairwise`).

    Raises:
        DataError: not such a matrix, or empty.
    """
    checked = _check(kernel)
    values = eigvalsh(checked / len(checked))
    if values[0] < -1e-6:
        raise DataError(f"kernel: expected a positive semi-definite matrix, got eigenvalue {values[0] * len(checked):.3g}")
    positive = values[values > 1e-12]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def rke(kernel: npt.ArrayLike) -> float:
    """Effective number of modes, between 1 and n: exp of the order-2 Renyi entropy, 1 / ||K / n||_F^2.

    Jalali, Li & Farnia, NeurIPS 2023 (RKE mode count). It weighs rare items less than `vendi_score`.

    Args:
        kernel: as for `vendi_score`.

    Raises:
        DataError: not such a matrix, or empty.
    """
    checked = _check(kernel)
    return float(1 / np.square(checked / len(checked)).sum())


def _check(kernel: npt.ArrayLike) -> DoubleArray:
    matrix = np.asarray(kernel, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise DataError(f"kernel: expected a square matrix (n, n), n from 1, got shape {matrix.shape}")
    if not np.allclose(matrix, matrix.T, atol=1e-6) or not np.allclose(np.diagonal(matrix), 1, atol=1e-5):
        raise DataError("kernel: expected a symmetric matrix with ones on its diagonal; divide each entry by sqrt(k_ii k_jj)")
    return matrix
