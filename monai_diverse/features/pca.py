"""Principal components, fitted on the reference images only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag
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

    def fit(self, x: npt.ArrayLike, blocks: Sequence[int] | None = None) -> FittedPCA:
        """Fits on (n, d).

        With `blocks`, each run of columns gets components of its own, up to `n_components`, so that none is drowned by a block of larger numbers or
        more columns. With B blocks of which b keeps k_b components, its scale is multiplied by sqrt(B k_b / max k): each block's
        expected squared distance between two whitened rows is then 2 max(k) / B, and that of whole rows 2 max(k), as with one block. Without
        whitening, a block's scale is its total standard deviation times sqrt(B).

        Args:
            x: (n, d).
            blocks: widths of runs of columns that sum to d, such as `Ensemble.widths`; None or a single one: no blocks.

        Raises:
            DataError: fewer than two rows, rows (or a block of them) that are all equal, or blocks that do not sum to d.
        """
        data = np.asarray(x, np.float64)
        if data.ndim != 2 or len(data) < 2:
            raise DataError(f"PCA: expected at least 2 rows of features (n, d), got shape {data.shape}")
        widths = (data.shape[1],) if blocks is None else tuple(blocks)
        if sum(widths) != data.shape[1] or min(widths) < 1:
            raise DataError(f"PCA: expected blocks from 1 that sum to {data.shape[1]} columns, got {widths}")
        parts = [self._fit_block(part) for part in np.split(data, np.cumsum(widths)[:-1], axis=1)]
        return parts[0] if len(parts) == 1 else _joined(parts, np.array(_totals(data, widths)), self.whiten)

    def _fit_block(self, data: npt.NDArray[np.float64]) -> FittedPCA:
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
        components: (k, d), orthonormal rows; block-diagonal if there are blocks.
        scale: (k,) divisors; ones unless whitened or in blocks.
        explained: share of the variance that the k components hold; with blocks the mean of their shares.
        units: (d,) each column's block's total standard deviation, by which residuals are divided; None: no blocks, residuals in the
            features' own unit.
    """

    mean: npt.NDArray[np.float64]
    components: npt.NDArray[np.float64]
    scale: npt.NDArray[np.float64]
    explained: float
    units: npt.NDArray[np.float64] | None = None

    def transform(self, x: npt.ArrayLike) -> FloatArray:
        """Coordinates float32 (n, k) of rows (n, d)."""
        centred = np.asarray(x, np.float64) - self.mean
        return (centred @ self.components.T / self.scale).astype(np.float32)

    def residual(self, x: npt.ArrayLike) -> FloatArray:
        """Euclidean distance (n,) of each row from the plane of the components, each block measured in its total standard deviation."""
        centred = np.asarray(x, np.float64) - self.mean
        beyond = centred - centred @ self.components.T @ self.components
        residual: FloatArray = np.linalg.norm(beyond if self.units is None else beyond / self.units, axis=1).astype(np.float32)
        return residual


def _totals(data: npt.NDArray[np.float64], widths: tuple[int, ...]) -> list[float]:
    """Each block's total standard deviation: the square root of the sum of its columns' variances."""
    return [float(np.sqrt(part.var(axis=0, ddof=1).sum())) for part in np.split(data, np.cumsum(widths)[:-1], axis=1)]


def _joined(parts: list[FittedPCA], totals: npt.NDArray[np.float64], whiten: bool) -> FittedPCA:
    counts = np.array([len(part.scale) for part in parts])
    # `scale` is 1 in every part that is not whitened
    factors = np.sqrt(len(parts) * counts / counts.max()) if whiten else np.sqrt(len(parts)) * totals
    return FittedPCA(
        mean=np.concatenate([part.mean for part in parts]),
        components=block_diag(*[part.components for part in parts]),
        scale=np.concatenate([part.scale * factor for part, factor in zip(parts, factors, strict=True)]),
        explained=float(np.mean([part.explained for part in parts])),
        units=np.repeat(totals, [len(part.mean) for part in parts]),
    )


def _solver(shape: tuple[int, ...]) -> str:
    rows, columns = shape
    if columns <= 2048 and rows >= columns:
        return "covariance_eigh"
    return "full" if rows * columns <= 10_000_000 else "randomized"
