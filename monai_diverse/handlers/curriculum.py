"""Epochs for curricula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from monai_diverse.errors import RecipeError
from monai_diverse.handlers.base import Handler
from monai_diverse.transforms.curriculum import set_epoch

if TYPE_CHECKING:
    from ignite.engine import Engine


class CurriculumHandler(Handler):
    """Tells transforms and datasets at the start of each epoch which it is, for probabilities that change from epoch to epoch.

    It calls `set_epoch(epoch)`, counted from 0 as in PyTorch (`engine.state.epoch` counts from 1), in the main process, before workers are asked for
    the epoch's batches. Transforms and datasets of this package pass it on to workers, persistent ones too.

    Args:
        *parts: objects with a method `set_epoch(epoch)`, or datasets, transforms, `Compose` and DataLoaders that hold such; none: the loader that
            the engine runs over.

    Raises:
        MissingExtraError: pytorch-ignite is not installed.
        RecipeError: nothing with `set_epoch` was found; for the engine's loader, when the run starts.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(None)
        self.parts = parts
        for part in parts:
            _tell(part, 0)

    def functions(self) -> Mapping[Any, Callable[[Engine], None]]:
        """What to call at which event."""
        return {self._events.EPOCH_STARTED: self.epoch_started}

    def epoch_started(self, engine: Engine) -> None:
        """Tells the epoch, from 0."""
        for part in self.parts or (engine.state.dataloader,):
            _tell(part, engine.state.epoch - 1)


def _tell(part: Any, epoch: int) -> None:
    if not set_epoch(part, epoch):
        raise RecipeError(f"CurriculumHandler: expected something with set_epoch(epoch), or that holds it, got {type(part).__name__}")
