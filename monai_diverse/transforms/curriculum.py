"""Probabilities that change from epoch to epoch, and reach every worker of a DataLoader."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from monai_diverse.errors import RecipeError

Curriculum = Callable[[int], float]
"""Epoch from 0 -> probability in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class LinearRamp:
    """A probability that moves in a straight line from `start` to `stop`, and stays there.

    Attributes:
        start: the probability in epoch 0.
        stop: the probability from epoch `epochs` on; below `start` for a ramp down.
        epochs: how many epochs it takes, from 1.

    Raises:
        RecipeError: a probability outside [0, 1], or `epochs` that is no whole number from 1.
    """

    start: float = 0.0
    stop: float
    epochs: int

    def __post_init__(self) -> None:
        check_probability(self.start, "start")
        check_probability(self.stop, "stop")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int | np.integer) or self.epochs < 1:
            raise RecipeError(f"epochs: expected a whole number from 1, got {self.epochs!r}")

    def __call__(self, epoch: int) -> float:
        """The probability in an epoch from 0."""
        done = min(epoch / self.epochs, 1.0)
        return float((1 - done) * self.start + done * self.stop)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A probability that jumps: `probs[0]` until epoch `milestones[0]`, from then on `probs[1]`, and so on.

    `Steps(probs=(1, 0), milestones=(10,))` trains on samples alone for ten epochs, and on real images after that.

    Attributes:
        probs: the probabilities, one more than milestones.
        milestones: the epochs from which the next one holds, whole numbers from 1, rising.

    Raises:
        RecipeError: a probability outside [0, 1], or milestones that are not as described.
    """

    probs: Sequence[float]
    milestones: Sequence[int]

    def __post_init__(self) -> None:
        for name in ("probs", "milestones"):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), Sequence):
                raise RecipeError(f"{name}: expected a list, got {getattr(self, name)!r}")
            object.__setattr__(self, name, tuple(getattr(self, name)))  # YAML gives lists
        for prob in self.probs:
            check_probability(prob, "probs")
        whole = all(isinstance(epoch, int | np.integer) and not isinstance(epoch, bool) for epoch in self.milestones)
        if not whole or list(self.milestones) != sorted({*self.milestones}) or min(self.milestones, default=1) < 1:
            raise RecipeError(f"milestones: expected rising whole numbers from 1, got {list(self.milestones)!r}")
        if len(self.probs) != len(self.milestones) + 1:
            raise RecipeError(f"probs: expected {len(self.milestones) + 1}, one more than milestones, got {len(self.probs)}")

    def __call__(self, epoch: int) -> float:
        """The probability in an epoch from 0."""
        return float(self.probs[sum(epoch >= milestone for milestone in self.milestones)])


def check_probability(prob: object, name: str = "prob", where: str = "") -> float:
    """The probability itself; raises RecipeError outside [0, 1]."""
    if not isinstance(prob, int | float | np.number) or not 0 <= prob <= 1:
        raise RecipeError(f"{name}: expected a probability in [0, 1]{where}, got {prob!r}")
    return float(prob)


class EpochProbability:
    """What has a `prob` that is a number or a function of the epoch.

    A function is evaluated where `set_epoch` is called, usually in the main process; what it returns lies in memory that forked and spawned
    workers share, persistent ones too, and so do deep copies. A copy that went through plain `pickle` goes on by itself. Spawned workers and
    pickles need a function that can be pickled: `LinearRamp` or `Steps`, not a lambda.
    """

    _prob: float | _InForce = 0.0

    @property
    def prob(self) -> float:
        """The probability in force; may be set, to a number or a function of the epoch, before workers start."""
        return self._prob if isinstance(self._prob, float) else self._prob.value

    @prob.setter
    def prob(self, prob: float | Curriculum) -> None:
        self._prob = _InForce(prob) if callable(prob) else check_probability(prob)

    def set_epoch(self, epoch: int) -> None:
        """Sets the probability of an epoch; does nothing where it is the same in all.

        Call it before you iterate over the loader: workers fetch ahead.

        Args:
            epoch: from 0.

        Raises:
            RecipeError: `epoch` is no whole number from 0, or the function returns no probability; what was in force stays.
        """
        epoch = check_epoch(epoch)
        if not isinstance(self._prob, float):
            self._prob.enter(epoch)


def set_epoch(part: Any, epoch: int) -> int:
    """Calls `set_epoch(epoch)` of whatever has one in a data set, transform, `Compose` or DataLoader, however deep.

    It searches attributes, lists and tuples, as MONAI does when it seeds workers, and stops at what has a `set_epoch`. With MONAI's trainers:
    `trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: set_epoch(data, engine.state.epoch - 1))`.

    Args:
        part: where to search; of a DataLoader, its dataset alone.
        epoch: from 0.

    Returns:
        How many were found.

    Raises:
        RecipeError: as `EpochProbability.set_epoch`.
    """
    return _forward(part.dataset if isinstance(part, DataLoader) else part, check_epoch(epoch), set())


def check_epoch(epoch: object) -> int:
    """The epoch itself; raises RecipeError unless it is a whole number from 0."""
    if isinstance(epoch, bool) or not isinstance(epoch, int | np.integer) or epoch < 0:
        raise RecipeError(f"epoch: expected a whole number from 0, got {epoch!r}")
    return int(epoch)


_LEAVES = (str, bytes, int, float, Mapping, np.ndarray, torch.Tensor, type, types.ModuleType)


def _forward(part: Any, epoch: int, seen: set[int]) -> int:
    if id(part) in seen or isinstance(part, _LEAVES):
        return 0
    seen.add(id(part))
    if callable(getattr(part, "set_epoch", None)):
        part.set_epoch(epoch)
        return 1
    inner = part if isinstance(part, list | tuple) else list(getattr(part, "__dict__", {}).values())
    return sum(_forward(each, epoch, seen) for each in inner)


class _InForce:
    """The probability of the current epoch, in shared memory."""

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        # not the epoch: a worker's copy of the function may know less than the original, such as the validation loss so far
        cell = torch.tensor([self._at(0)], dtype=torch.float64, device="cpu")
        self._cell: torch.Tensor = cell.share_memory_()  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> _InForce:
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # plain pickle brings a private tensor; workers that start from here must see this one
        self._cell.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def value(self) -> float:
        return float(self._cell[0])

    def enter(self, epoch: int) -> None:
        self._cell[0] = self._at(epoch)

    def _at(self, epoch: int) -> float:
        return check_probability(self.curriculum(epoch), where=f" from {self.curriculum!r} in epoch {epoch}")
