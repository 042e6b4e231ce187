"""With how many threads libraries compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_info, threadpool_limits

WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of workers: threads that wait for others must not keep those from a core, where workers have more threads than there are cores."""


@dataclass(frozen=True, kw_only=True)
class Threads:
    """How many threads compute: sums depend on it in their last digits, and verdicts on sums.

    Attributes:
        torch: of torch.
        others: of the libraries behind NumPy, SciPy and scikit-learn, by kind, as threadpoolctl calls them: blas, openmp.
    """

    torch: int
    others: dict[str, int]

    @classmethod
    def here(cls) -> Threads:
        """Those of this process."""
        others: dict[str, int] = {}
        for library in threadpool_info():
            others[library["user_api"]] = max(library["num_threads"], others.get(library["user_api"], 1))
        return cls(torch=torch.get_num_threads(), others=others)

    def take(self) -> None:
        """Sets this process to them, as far as libraries are loaded."""
        threadpool_limits(self.others)
        torch.set_num_threads(self.torch)


@contextmanager
def waiting_gives_way() -> Iterator[None]:
    """Processes that are started in the block have the environment `WAITING`, unless this one's says otherwise."""
    added = {name: value for name, value in WAITING.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
