"""What the workers of a DataLoader tell the process that started them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import get_worker_info

_WORKERS = 64


class Tally:
    """A count and a flag in memory that forked and spawned workers share, and so do deep copies.

    A copy that went through plain `pickle` begins with what both were, and goes on by itself.
    """

    def __init__(self) -> None:
        # first the flag; then a count for the main process and each worker, so that none overwrites what another adds
        cells = torch.zeros(2 + _WORKERS, dtype=torch.int64, device="cpu")
        self._cells: torch.Tensor = cells.share_memory_()  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tally:
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # plain pickle brings a private tensor; workers that start from here must see this one
        self._cells.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def count(self) -> int:
        """The sum over all processes; may be set, while no worker adds to it."""
        return int(self._cells[1:].sum())

    @count.setter
    def count(self, count: int) -> None:
        self._cells[1:] = 0
        self._cells[1] = count

    def add(self) -> None:
        """Counts one more."""
        info = get_worker_info()
        self._cells[1 if info is None else 2 + info.id % _WORKERS] += 1

    def first(self) -> bool:
        """Whether this is the first call of all processes; two at the very same time may both be told so."""
        first = not bool(self._cells[0])
        self._cells[0] = 1
        return first
