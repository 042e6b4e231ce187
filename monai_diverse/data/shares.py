"""The setting `labels` of recipes and studies: the shares of the classes among what is grown."""

from __future__ import annotations

import numpy as np

from monai_diverse.data.labelled import FloatArray, IntArray
from monai_diverse.errors import RecipeError


def require_labels(labels: str | tuple[float, ...]) -> None:
    """Checks the setting `labels` of a recipe.

    Raises:
        RecipeError: neither a known word nor a list of shares.
    """
    shares = not isinstance(labels, str) and all(isinstance(v, int | float) and 0 <= v < float("inf") for v in labels)
    if not shares and labels not in ("reference", "balanced"):
        raise RecipeError(f"labels: expected 'reference', 'balanced' or a list of shares, got {labels!r}")


def label_shares(labels: str | tuple[float, ...], reference: IntArray, classes: int) -> FloatArray:
    """Shares (K,) of the classes among what is grown, which add up to 1.

    Args:
        labels: as in a recipe.
        reference: (n,) classes of the reference's images.
        classes: K, how many the source knows.

    Raises:
        RecipeError: a list that has not one share a class.
    """
    if labels == "balanced":
        shares = np.ones(classes)
    elif labels == "reference":
        shares = np.bincount(reference, minlength=classes).astype(float)
    else:
        shares = np.asarray(labels, dtype=float)
    if shares.shape != (classes,) or (shares < 0).any() or shares.sum() == 0:
        raise RecipeError(f"labels: expected {classes} shares from 0, one a class, got {labels}")
    return np.asarray(shares / shares.sum())
