"""The default guide: what serves best together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.branch import Branch
from monai_diverse.sampling.guides import FittedTogether, Together
from monai_diverse.sampling.shield import Shield


@dataclass(frozen=True, kw_only=True)
class Diverse:
    """Branches of accepted samples, kept away from training images, from the bank and from one another. A recipe's `guide: diverse`.

    All radii and noise levels are calibrated on the data and the model; `docs/sampler.md` has what each part buys.

    Attributes:
        branch: where passes start.
        shield: what they keep away from.
        strength: of the shield, in place of its own; None for that. What `monai-diverse grow --tune` chooses.
    """

    branch: Branch = field(default_factory=Branch)
    shield: Shield = field(default_factory=Shield)
    strength: float | None = None

    def __post_init__(self) -> None:
        for part, kind in ((self.branch, Branch), (self.shield, Shield)):
            if not isinstance(part, kind):
                raise RecipeError(f"diverse: expected a {kind.__name__}, got {part!r}")
        if self.strength is not None and not 0 <= self.strength < float("inf"):
            raise RecipeError(f"diverse: expected a strength from 0, got {self.strength}")

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedTogether:
        """Calibrates both on the same images; see their own `fit`."""
        shield = self.shield if self.strength is None else replace(self.shield, strength=self.strength)
        return Together(guides=(self.branch, shield)).fit(train, train_labels, heldout, heldout_labels)
