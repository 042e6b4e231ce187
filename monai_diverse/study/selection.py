"""Which of the accepted samples go into training, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from monai_diverse.bank import SampleBank
from monai_diverse.data import IntArray
from monai_diverse.errors import RecipeError

Order = Literal["grown", "information_gain"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Settings of the choice among accepted samples.

    Attributes:
        order: `grown`: as they were accepted. `information_gain`: those that tell most of what the user's images do not show come first; each was
            measured given the samples that were accepted before it.
    """

    order: Order = "grown"

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise RecipeError(f"order: expected one of {', '.join(get_args(Order))}, got {self.order!r}")

    def ranked(self, bank: SampleBank) -> IntArray:
        """Indices (n,) of all samples of a bank, those to take first first."""
        if self.order == "grown" or not len(bank):
            return np.arange(len(bank), dtype=np.int64)
        return np.argsort(-bank.scores["information_gain"], kind="stable").astype(np.int64)
