"""Features as codes: the nearest of a few centres, so that a set of images becomes counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin

from monai_diverse.data import IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information.neighbours import DoubleArray

IN_BATCHES_FROM = 20_000
"""Rows from which on k-means sees batches of them."""


def require_seed(seed: int) -> None:
    """Raises RecipeError unless k-means takes `seed`."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise RecipeError(f"seed: expected a whole number from 0 to 2^32 - 1, got {seed!r}")


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """Settings of a codebook.

    Attributes:
        codes: centres; None: the square root of the rows that it is fitted on, 2 to 64. Lowered to the number of rows that differ.
        seed: of k-means, 0 to 2^32 - 1.
    """

    codes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.codes is not None and self.codes < 1:
            raise RecipeError(f"codes: expected at least 1, got {self.codes}")
        require_seed(self.seed)

    def fit(self, reference: npt.ArrayLike) -> FittedCodebook:
        """Finds the centres by k-means (Lloyd; from 20,000 rows on in batches, Sculley, WWW 2010).

        Args:
            reference: (n, d), n from 1, finite.

        Raises:
            DataError: no rows.
        """
        rows = np.asarray(reference, np.float64)
        if rows.ndim != 2 or not len(rows):
            raise DataError(f"codebook: expected at least one row of features (n, d), got shape {rows.shape}")
        wanted = int(np.clip(round(len(rows) ** 0.5), 2, 64)) if self.codes is None else self.codes
        codes = min(wanted, len(np.unique(rows, axis=0)))
        method = KMeans if len(rows) < IN_BATCHES_FROM else MiniBatchKMeans
        return FittedCodebook(centres=method(codes, n_init=3, random_state=self.seed).fit(rows).cluster_centers_)


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedCodebook:
    """Images to codes. Made by `Codebook.fit`.

    Attributes:
        centres: (codes, d).
    """

    centres: DoubleArray

    def __len__(self) -> int:
        return len(self.centres)

    def assign(self, x: npt.ArrayLike) -> IntArray:
        """The code (n,) of each of (n, d), from 0: its nearest centre.

        Raises:
            DataError: rows of another width.
        """
        rows = np.asarray(x, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.centres.shape[1]:
            raise DataError(f"codebook: expected rows of {self.centres.shape[1]} features, got shape {rows.shape}")
        return pairwise_distances_argmin(rows, self.centres).astype(np.int64) if len(rows) else np.zeros(0, np.int64)

    def histogram(self, x: npt.ArrayLike, groups: IntArray | None = None) -> IntArray:
        """How many of (n, d) have each code: (codes,).

        Args:
            x: (n, d).
            groups: int (n,); images of a group count once for each code that they have. None: every image counts.
        """
        codes = self.assign(x)
        pairs = np.stack([codes, np.arange(len(codes)) if groups is None else np.asarray(groups)], axis=1)
        return np.bincount(np.unique(pairs, axis=0)[:, 0], minlength=len(self))
