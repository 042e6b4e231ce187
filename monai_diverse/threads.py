"""With how many threads libraries compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_info, threadpool_limits


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
