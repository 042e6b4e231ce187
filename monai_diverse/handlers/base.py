"""What the handlers have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from monai.apps import get_logger

from monai_diverse.errors import MissingExtraError

if TYPE_CHECKING:
    from ignite.engine import Engine


class Handler(ABC):
    """Functions for an engine's events, and a logger.

    Args:
        name: of the logger, which prints to standard output as those of MONAI's handlers do; None for the engine's own.

    Raises:
        MissingExtraError: pytorch-ignite is not installed.
    """

    def __init__(self, name: str | None) -> None:
        self.logger = logging.getLogger(__name__) if name is None else get_logger(name)
        self._events = _events()
        self._takes_engines_logger = name is None

    def attach(self, engine: Engine) -> None:
        """Adds this handler's functions to an engine; those that are there already are not added again."""
        if self._takes_engines_logger:
            self.logger = engine.logger
        for event, function in self.functions().items():
            if not engine.has_event_handler(function):
                engine.add_event_handler(event, function)

    @abstractmethod
    def functions(self) -> Mapping[Any, Callable[[Engine], None]]:
        """What to call at which event."""


def _events() -> Any:
    try:
        from ignite.engine import Events
    except ImportError as error:
        raise MissingExtraError("handlers need pytorch-ignite: pip install 'monai-diverse[ignite]'") from error
    return Events
