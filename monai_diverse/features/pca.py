"""Principal components, fitted on the reference images only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA as SklearnPCA

from monai_diverse.data import FloatArray
from monai_diverse.errors import DataError, RecipeError


@dataclass(frozen=True, kw_only=True)
class PCA:
    """Settings of a principal component analysis.

    Attributes:
        n_components: components to keep, at most; never more than n - 1, d, or the directions in which the data vary.
        whiten: scale every component to unit variance on the data of the fit.
    """

    n_components: int = 48
    whiten: bool = True

    def __post_init__(self) -> None:
        if self.n_components < 1:
            raise RecipeError(f"n_components: expected at least 1, got {self.n_components}")

    def fit(self, x: npt.ArrayLike) -> FittedPCA:
        """Fits on (n, d).

        Raises:
            DataError: fewer than two rows, or rows that are all equal.
        """
        data = np.asarray(x, np.float64)
        if data.ndim != 2 or len(data) < 2:
            raise DataError(f"PCA: expected at least 2 rows of features (n, d), got shape {data.shape}")
        count = min(self.n_components, len(data) - 1, data.shape[1])
        mean = data.mean(axis=0)
        if np.abs(data - mean).max() <= 1e-9 * max(1.0, np.abs(mean).max()):
            raise DataError(f"PCA: expected rows that differ, got {len(data)} equal ones")
        # centred here, since the covariance solver subtracts the mean only after squaring
        model = SklearnPCA(count, svd_solver=_solver(data.shape), random_state=0).fit(data - mean)
        variance = np.asarray(model.explained_variance_)
        # whitening a direction without variance would blow rounding up to unit length
        kept = int((variance > 1e-10 * variance[0]).sum())
        scale = np.sqrt(variance[:kept]) if self.whiten else np.ones(kept)
        explained = float(model.explained_variance_ratio_[:kept].sum())
        return FittedPCA(mean=mean, components=model.components_[:kept], scale=scale, explained=explained)


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedPCA:
    """Principal components.

    Attributes:
        mean: (d,).
        components: (k, d), orthonormal rows.
        scale: (k,) divisors; ones unless whitened.
        explained: share of the variance that the k components hold.
    """

    mean: npt.NDArray[np.float64]
    components: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    explained: float

    def transform(self, x: npt.ArrayLike) -> FloatArray:
        """Coordinates float32 (n, k) of rows (n, d)."""
        centred = np.asarray(x, np.float64) - self.mean
        return (centred @ self.components.T / self.scale).astype(np.float32)

    def residual(self, x: npt.ArrayLike) -> FloatArray:
        """Euclidean distance (n,) of each row from the plane of the components."""
        centred = np.asarray(x, np.float64) - self.mean
        residual: FloatArray = np.linalg.norm(centred - centred @ self.components.T @ self.components, axis=1).astype(np.float32)
        return residual


def _solver(shape: tuple[int, ...]) -> str:
    rows, columns = shape
    if columns <= 2048 and rows >= columns:
        return "covariance_eigh"
    return "full" if rows * columns <= 10_000_000 else "randomized"
