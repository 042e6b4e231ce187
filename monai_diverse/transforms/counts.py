"""How many items of each class the user's data have, for "balance"."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from monai_diverse.bank import LabelPolicy
from monai_diverse.data import IntArray
from monai_diverse.errors import RecipeError


class ClassCounts:
    """Items of each class: as given, or of those seen so far.

    Args:
        given: items of each class 0.. in the data; None: count those that are seen.
        policy: whose counts they are; with another one than "balance" they are not asked for.
        classes: how many classes there may be among those seen.

    Raises:
        RecipeError: counts that are no whole numbers from 0, one of them positive, or counts with another policy than "balance".
    """

    def __init__(self, given: Sequence[int] | None, policy: LabelPolicy, classes: int) -> None:
        if given is not None and policy != "balance":
            raise RecipeError(f"class_counts: expected none with label_policy {policy!r}, got {given!r}; they are for 'balance' alone")
        if given is None and policy == "balance":
            text = "estimates class counts from the items seen, anew in each worker and epoch, so that rare classes come too seldom"
            warnings.warn(f"label_policy: 'balance' without class_counts {text}; pass class_counts=np.bincount(labels)", stacklevel=3)
        self.given = None if given is None else _checked(given)
        self.classes = classes
        self.forget()

    def see(self, label: int) -> None:
        """Counts an item, unless counts were given."""
        if self.given is None and 0 <= label < self.classes:
            self.values[label] += 1

    def forget(self) -> None:
        """Begins to count anew, unless counts were given."""
        self.values: IntArray = np.zeros(self.classes, np.int64) if self.given is None else np.asarray(self.given, np.int64)


def _checked(given: Sequence[int]) -> list[int]:
    expected = f"class_counts: expected how many items of each class 0.. your data have, whole numbers from 0, one of them positive, got {given!r}"
    try:
        counts = np.asarray(given)
    except (TypeError, ValueError) as error:  # such as rows of different lengths
        raise RecipeError(expected) from error
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or not counts.size or counts.min() < 0 or not counts.any():
        raise RecipeError(f"{expected}; pass np.bincount(labels)")
    return [int(count) for count in counts]
