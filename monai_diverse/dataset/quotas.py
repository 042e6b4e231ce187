"""How many samples of each class a dataset gets, and which."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from monai_diverse.data import IntArray


def shared(shares: npt.NDArray[np.int64], total: int) -> IntArray:
    """`total` divided in proportion to `shares` by largest remainders; nothing where there are no shares."""
    if not shares.sum():
        return np.zeros(len(shares), np.int64)
    exact = shares / shares.sum() * total
    quotas: IntArray = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: total - quotas.sum()]] += 1
    return quotas


def raised(counts: npt.NDArray[np.int64]) -> IntArray:
    """What every class that has any items lacks to be as large as the largest."""
    return np.where(counts > 0, counts.max(initial=0) - counts, 0).astype(np.int64, copy=False)


def levelled(counts: npt.NDArray[np.int64], usable: npt.NDArray[np.bool_], total: int) -> IntArray:
    """`total` given out one by one, each to the smallest usable class."""
    quotas = np.zeros(len(counts), np.int64)
    heap = [(int(count), label) for label, count in enumerate(counts) if usable[label]]
    heapq.heapify(heap)
    for _ in range(total if heap else 0):
        count, label = heap[0]
        quotas[label] += 1
        heapq.heapreplace(heap, (count + 1, label))
    return quotas


def cycled(candidates: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """`count` of the candidates in random order, all of them before one comes again; none if there are none."""
    if not len(candidates) or not count:
        return np.empty(0, np.int64)
    return np.concatenate([rng.permutation(candidates) for _ in range(-(-count // len(candidates)))])[:count]
