"""How likely a sampler draws each item of real and synthetic ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from monai_diverse.data import IntArray
from monai_diverse.errors import RecipeError
from monai_diverse.transforms.curriculum import check_probability

_TOLERANCE = 1e-9


def mixing_weights(real: IntArray, synthetic: IntArray, share: float) -> npt.NDArray[np.float64]:
    """Weights by which every class is equally likely, and a synthetic item has probability `share`.

    A class that lacks one kind has all its weight on the other; the remaining classes have equal parts of the synthetic weight that is left.

    Args:
        real: (n,) classes of the real items; all the same if classes do not matter.
        synthetic: (m,) classes of the synthetic items.
        share: in [0, 1].

    Returns:
        (n + m,) real items first; they sum to 1.

    Raises:
        RecipeError: no weights do that.
    """
    check_probability(share, "share")
    if share and not len(synthetic):
        raise RecipeError(f"share: expected 0 for a dataset without synthetic items, got {share!r}; raise its ratio, or grow the bank")
    classes, places = np.unique(np.concatenate([real, synthetic]), return_inverse=True)
    in_real, in_synthetic = places[: len(real)], places[len(real) :]
    counts = np.stack([np.bincount(part, minlength=len(classes)) for part in (in_real, in_synthetic)])
    mass = _masses(counts > 0, share, classes)
    each = np.divide(mass, counts, out=np.zeros_like(mass), where=counts > 0)
    return np.concatenate([each[0, in_real], each[1, in_synthetic]])


def _masses(present: npt.NDArray[np.bool_], share: float, classes: IntArray) -> npt.NDArray[np.float64]:
    """The probability of each class among real (row 0) and synthetic items (row 1)."""
    total = len(classes)
    both, alone = present.all(0), present[1] & ~present[0]
    low, high = alone.sum() / max(total, 1), present[1].sum() / max(total, 1)
    if not low - _TOLERANCE <= share <= high + _TOLERANCE:
        lacking = f"no real items of {classes[~present[0]].tolist()}, no synthetic ones of {classes[~present[1]].tolist()}"
        raise RecipeError(f"share: expected {low:.4g} to {high:.4g} for classes to be equally likely, got {share!r}; there are {lacking}")
    synthetic = alone / max(total, 1) + both * (share - low) / max(both.sum(), 1)
    synthetic = np.clip(synthetic, 0, 1 / max(total, 1))
    return np.stack([1 / max(total, 1) - synthetic, synthetic])
