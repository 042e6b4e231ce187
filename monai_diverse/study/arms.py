"""What each arm adds to the user's images: as many samples of each class as the arm's ratio asks for, and as the primary arm has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_diverse.bank import SampleBank, select
from monai_diverse.data import IntArray
from monai_diverse.errors import RecipeError
from monai_diverse.storage import fingerprint_of
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.config import Arm
from monai_diverse.study.plan import REAL, StudyPlan, Training
from monai_diverse.study.synthetic import Found
from monai_diverse.study.user import User

PRETRAIN = 0.5
"""Share of the steps on the bank alone, in trainings of the kind `pretrain`."""


@dataclass(frozen=True, kw_only=True)
class Stock:
    """The banks that the arms of one user take their samples from.

    Attributes:
        plan: every choice.
        cohort: all real images.
        user: whose arms these are.
        found: what was grown and accepted.
        pool: unguided samples.
        real: all train images as a bank, in the cohort's order.
        out: folder of the study.
    """

    plan: StudyPlan
    cohort: Cohort
    user: User
    found: Found
    pool: SampleBank
    real: SampleBank
    out: Path

    def asked(self, ratio: float) -> IntArray:
        """Samples of each class that a ratio asks for: so many for each of the user's images of the class."""
        return np.round(ratio * np.bincount(self.cohort.train.labels[self.user.reals])).astype(np.int64)

    def arm(self, name: str, *, ratio: float | None, augment: bool, training: Training) -> Arm:
        """An arm as the trainer takes it.

        Args:
            name: of the arm.
            ratio: bank samples for each real image; None for arms that add nothing.
            augment: with MONAI's usual random transforms.
            training: `mixed`: an item is replaced with probability ratio / (1 + ratio), the share of bank samples among all; `pretrain`: see
                `PRETRAIN`.
        """
        if ratio is None or name in REAL:
            return Arm(name=name, augment=augment, balanced=name == "balanced")
        bank = self.bank(name, ratio)
        if training == "pretrain":
            return Arm(name=name, bank=bank, pretrain=PRETRAIN, augment=augment)
        return Arm(name=name, bank=bank, prob=ratio / (1 + ratio), augment=augment)

    def bank(self, name: str, ratio: float) -> SampleBank:
        """The samples of an arm; made where it is not there yet.

        `random`, `duplicates` and `extra_real` have no more of a class than the primary arm has, so that they are compared at equal counts; of
        reals there may be fewer. The other arms have what they found.

        Raises:
            RecipeError: a pool too small for `random`.
        """
        source, order = self._ranked(name)
        counts = self.asked(ratio)
        if name != self.plan.primary.arm and name in ("random", "duplicates", "extra_real"):
            counts = np.minimum(counts, self._held(self.plan.primary.arm))
        labels = source.labels[order]
        held = np.bincount(labels, minlength=len(counts))
        if name == "random" and (held < counts).any():
            raise RecipeError(
                f"pool: expected at least {counts.tolist()} samples by class, as the arm {self.plan.primary.arm} has, got {held.tolist()}"
            )
        places = np.sort(np.concatenate([order[labels == label][:count] for label, count in enumerate(counts)]))
        folder = self.out / "banks" / f"{name}-{fingerprint_of([source.fingerprint, places.tolist()])[:24]}"
        return SampleBank.open(folder) if folder.exists() else select(source, places, folder)

    def _held(self, name: str) -> IntArray:
        source, order = self._ranked(name)
        return np.bincount(source.labels[order], minlength=source.header.classes).astype(np.int64)

    def _ranked(self, name: str) -> tuple[SampleBank, IntArray]:
        """Where an arm takes its samples from, and which of them, the first first."""
        rng = np.random.default_rng([self.plan.seed, self.user.draw])
        if name in self.found.grown:
            bank = self.found.grown[name]
            return bank, self.plan.selection.ranked(bank)
        if name in ("duplicates", "extra_real"):
            return self.real, rng.permutation(self.user.reals if name == "duplicates" else self.user.extra)
        return self.pool, rng.permutation(self.found.accepted.get(name, np.arange(len(self.pool))))
