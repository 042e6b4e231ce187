"""Which sample replaces an item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.store import SampleBank
from monai_diverse.data import IntArray
from monai_diverse.errors import RecipeError

LabelPolicy = Literal["match", "own", "balance"]
"""How a sample's class relates to the item that it replaces.

- match: a sample of the item's own class; labels stay, and so do the class shares.
- own: any sample; the item takes the sample's label, and the class shares move towards the bank's.
- balance: the class is drawn with probability inverse to its count in the user's data; the item takes the sample's label. Classes that the data
  lack are never drawn.
"""

Counts = Sequence[int] | npt.NDArray[np.int64]


def check_policy(policy: str) -> LabelPolicy:
    """The policy itself, if there is such a one.

    Raises:
        RecipeError: there is none of that name.
    """
    policies: tuple[LabelPolicy, ...] = get_args(LabelPolicy)
    for known in policies:
        if policy == known:
            return known
    raise RecipeError(f"label_policy: expected one of {', '.join(get_args(LabelPolicy))}, got {policy!r}")


def eligible(bank: SampleBank, label: int, policy: LabelPolicy, *, counts: Counts | None = None) -> IntArray:
    """Which samples may replace an item of class `label`.

    Args:
        bank: the samples.
        label: the item's class.
        policy: how the sample's class relates to the item's.
        counts: items of each class 0.. in the user's data; for "balance" alone.

    Returns:
        int64 (m,), sorted indices into the bank.

    Raises:
        RecipeError: "balance" without counts.
    """
    if policy == "match":
        return bank.indices_of(label)
    if policy == "own":
        return np.arange(len(bank), dtype=np.int64)
    return np.flatnonzero(np.isin(bank.labels, np.flatnonzero(_weights(bank, counts)))).astype(np.int64)


def draw(bank: SampleBank, label: int, policy: LabelPolicy, rng: np.random.RandomState, *, counts: Counts | None = None) -> int | None:
    """Draws a sample to replace an item of class `label`, uniformly among those of the class that the policy chose.

    Takes constant time and memory in the size of the bank.

    Args:
        bank: the samples.
        label: the item's class.
        policy: how the sample's class relates to the item's.
        rng: the only source of randomness.
        counts: items of each class 0.. in the user's data; for "balance" alone.

    Returns:
        An index into the bank, or None when nothing is eligible.

    Raises:
        RecipeError: "balance" without counts.
    """
    if policy == "own":
        return _one_of(len(bank), rng) if len(bank) else None
    if policy == "balance":
        weights = _weights(bank, counts)
        if not weights.any():
            return None
        label = int(np.searchsorted(np.cumsum(weights), rng.random_sample() * weights.sum(), side="right").clip(max=np.flatnonzero(weights)[-1]))
    count = bank.count_of(label)
    return bank.nth_of(label, _one_of(count, rng)) if count else None


def _one_of(count: int, rng: np.random.RandomState) -> int:
    # `randint` takes longer than reading a small image; 53 random bits are as even for any bank that fits on a disk
    return int(rng.random_sample() * count)


def _weights(bank: SampleBank, counts: Counts | None) -> npt.NDArray[np.float64]:
    if counts is None:
        raise RecipeError("label_policy: 'balance' needs the class counts of your data, got none")
    ours = np.zeros(bank.header.classes)
    known = np.asarray(counts, dtype=np.float64)[: len(ours)]
    ours[: len(known)] = known
    usable = (ours > 0) & (np.asarray(bank.class_counts) > 0)
    return np.divide(1.0, ours, out=np.zeros_like(ours), where=usable)
