"""Of some images the nearest reals, and what follows for the nearest of random subsets of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.information.neighbours import DoubleArray

Sides = npt.NDArray[np.int8]
"""Which set each real image is in: `OWN`, `OTHER`, or `OUT` of both."""

OWN, OTHER, OUT = np.int8(1), np.int8(0), np.int8(-1)
ELEMENTS = 2**16
"""Numbers that are worked on at a time: as many as a processor's cache holds."""


@dataclass(frozen=True, eq=False)
class Near:
    """Of m images of a class the nearest l reals (m, l), which they are and their log distances; beyond, none matters."""

    order: IntArray
    logs: DoubleArray
    reals: IntArray

    def chunks(self, count: int) -> Iterator[slice]:
        """Parts of so many rows of sides, that are worked on at a time."""
        step = max(1, ELEMENTS // self.order.size)
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def survival(self, sides: Sides) -> tuple[DoubleArray, DoubleArray]:
        """(b, m, l) each, for sides (b, n): the chance that none of the own, and of the others, up to here is among the random k."""
        inside = sides[:, self.reals]
        own, other = ((inside == side).sum(axis=1) for side in (OWN, OTHER))
        k, placed = np.minimum(own, other), sides[:, self.order]
        kind = np.min_scalar_type(placed.shape[2])  # narrow integers halve the time
        passed = np.cumsum(placed == OWN, axis=2, dtype=kind)
        whole = not (inside == OUT).any()
        rest = np.arange(1, placed.shape[2] + 1, dtype=kind) - passed if whole else np.cumsum(placed == OTHER, axis=2, dtype=kind)
        return _none_among(own, k, passed), _none_among(other, k, rest)

    def bias(self, own: DoubleArray, other: DoubleArray) -> DoubleArray:
        """(b, m); by parts, E log d = log d_1 + sum_i P(none up to i) (log d_(i+1) - log d_i)."""
        found: DoubleArray = np.einsum("bml,ml->bm", other[..., :-1] - own[..., :-1], np.diff(self.logs, axis=1))
        return found

    def own_nearer(self, own: DoubleArray, other: DoubleArray) -> DoubleArray:
        """(b, m); ties count half."""
        ends = _ends_of_ties(self.logs)
        if ends is not None:
            own, other = (np.take_along_axis(s, np.broadcast_to(ends, s.shape), 2) for s in (own, other))
        own, other = (np.concatenate([np.ones((*s.shape[:2], 1)), s], axis=2) for s in (own, other))
        nearer: DoubleArray = np.einsum("bml,bml->bm", own[..., :-1] - own[..., 1:], other[..., :-1] + other[..., 1:]) / 2
        return nearer + own[..., -1] * other[..., -1] / 2


def _none_among(count: IntArray, k: IntArray, passed: npt.NDArray[np.unsignedinteger[Any]]) -> DoubleArray:
    """C(count - j, k) / C(count, k) for j = passed (b, m, l), count and k (b,)."""
    steps = np.arange(int(passed.max(initial=0)))
    left = np.clip((count - k)[:, None] - steps, 0, None) / np.maximum(count[:, None] - steps, 1)
    table = np.concatenate([np.ones((len(count), 1)), np.cumprod(left, axis=1)], axis=1)
    if (table == table[0]).all():
        same: DoubleArray = table[0].take(passed)
        return same
    found: DoubleArray = table.ravel().take(passed + (np.arange(len(count)) * table.shape[1])[:, None, None])
    return found


def smallest(distances: FloatArray, count: int) -> IntArray:
    """Columns (m, count) of the smallest, in any order."""
    if count == distances.shape[1]:
        return np.broadcast_to(np.arange(count), distances.shape)
    return np.argpartition(distances, count - 1, axis=1)[:, :count]


def _ends_of_ties(logs: DoubleArray) -> IntArray | None:
    """(m, l) the last place of equal distances; None where all differ."""
    equal = np.diff(logs, axis=1) == 0
    if not equal.any():
        return None
    last = np.concatenate([~equal, np.ones((len(logs), 1), bool)], axis=1)
    places = np.where(last, np.arange(logs.shape[1]), logs.shape[1])
    return np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]
