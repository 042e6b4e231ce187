"""What each arm adds to the user's images: as many samples of each class as the arm's ratio asks for, and as the primary arm has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_diverse.bank import SampleBank, select
from monai_diverse.data import IntArray, label_shares
from monai_diverse.storage import fingerprint_of
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.config import Arm
from monai_diverse.study.plan import CEILING, REAL, StudyPlan, Training
from monai_diverse.study.synthetic import Found
from monai_diverse.study.user import User

PRETRAIN = 0.5
"""Share of the steps on the bank alone, in trainings of the kind `pretrain`."""
FULL = ("random", "duplicates")
"""Arms that stand in for the primary one image by image: shown as often, whether or not there are as many different ones."""


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
        """Samples of each class that a ratio asks for: so many for each of the user's images, in the shares of the plan's `labels`; at least one."""
        counts = self._labelled()
        if self.plan.labels != "reference":
            counts = counts.sum() * label_shares(self.plan.labels, self.cohort.train.labels[self.user.reals], len(counts))
        return np.where(counts > 0, np.maximum(np.round(ratio * counts), 1), 0).astype(np.int64)

    def arm(self, name: str, *, ratio: float | None, augment: bool, training: Training) -> Arm:
        """An arm as the trainer takes it.

        Args:
            name: of the arm.
            ratio: bank samples for each real image; None for arms that add nothing.
            augment: with MONAI's usual random transforms.
            training: `mixed`: an item is replaced with the probability that `shares` gives, in the first step alone if it is `fade`, and of all
                classes as many if it is `balanced`; `pretrain`: see `PRETRAIN`.
        """
        if ratio is None or name in REAL:
            return Arm(name=name, augment=augment, balanced=name == "balanced")
        bank = self.bank(name, ratio)
        if training == "pretrain":
            return Arm(name=name, bank=bank, pretrain=PRETRAIN, augment=augment)
        prob = self.shares(name, ratio)
        return Arm(name=name, bank=bank, prob=prob, augment=augment, balanced=training == "balanced", fade=training == "fade")

    def shares(self, name: str, ratio: float) -> float | tuple[float, ...]:
        """Chance that an item is replaced, in mixed training: odds / (1 + odds), the share of bank samples among all of a class.

        The odds are the ratio. Of an arm that found fewer samples of a class than the primary arm has they are fewer in proportion: beside a real
        image of the class each is shown as often as one of the primary arm's. Further reals are shown as often as the user's own of their class,
        as if they were the user's: a ceiling, whatever the ratio.

        Returns:
            One for all classes, or one for each where they differ.
        """
        odds = np.full(len(self._labelled()), float(ratio))
        if name == CEILING:
            odds = self._numbers(name, ratio) / self._labelled()
        elif name not in FULL and name != self.plan.primary.arm:
            odds *= self._numbers(name, ratio) / np.maximum(self._numbers(self.plan.primary.arm, ratio), 1)
        shares = tuple((odds / (1 + odds)).tolist())
        return shares[0] if len(set(shares)) == 1 else shares

    def counts(self, ratio: float) -> IntArray:
        """Samples of each class that the primary arm has at a ratio: what is asked, if it has so many, and the pool for the arm `random` too."""
        counts = np.minimum(self.asked(ratio), self._held(self.plan.primary.arm))
        return np.minimum(counts, np.bincount(self.pool.labels, minlength=len(counts))) if "random" in self.plan.arms else counts

    def lacking(self) -> IntArray:
        """Classes of the user's images of which the primary arm has no sample: they would be told by looking real."""
        return np.flatnonzero((self._labelled() > 0) & (self.counts(max(self.plan.ratios)) == 0))

    def bank(self, name: str, ratio: float) -> SampleBank:
        """The samples of an arm; made where it is not there yet.

        Of each class as many as `counts` says, so that arms are compared at equal counts. Of reals there may be fewer, and of samples that a filter
        accepts too.
        """
        source, order = self._ranked(name)
        labels, counts = source.labels[order], self.counts(ratio)
        places = np.sort(np.concatenate([order[labels == label][:count] for label, count in enumerate(counts)]))
        folder = self.out / "banks" / f"{name}-{fingerprint_of([source.fingerprint, places.tolist()])[:24]}"
        return SampleBank.open(folder) if folder.exists() else select(source, places, folder)

    def _numbers(self, name: str, ratio: float) -> IntArray:
        """Samples of each class in an arm's bank."""
        return np.bincount(self.bank(name, ratio).labels, minlength=len(self._labelled())).astype(np.int64)

    def _labelled(self) -> IntArray:
        """Images of each class that the user has."""
        return np.bincount(self.cohort.train.labels[self.user.reals]).astype(np.int64)

    def _held(self, name: str) -> IntArray:
        source, order = self._ranked(name)
        return np.bincount(source.labels[order], minlength=source.header.classes).astype(np.int64)

    def _ranked(self, name: str) -> tuple[SampleBank, IntArray]:
        """Where an arm takes its samples from, and which of them, the first first."""
        rng = np.random.default_rng([self.plan.seed, self.user.draw])
        if name in self.found.grown:
            bank = self.found.grown[name]
            return bank, self.plan.selection.ranked(bank)
        if name in ("duplicates", CEILING):
            return self.real, rng.permutation(self.user.reals if name == "duplicates" else self.user.extra)
        return self.pool, rng.permutation(self.found.accepted.get(name, np.arange(len(self.pool))))
