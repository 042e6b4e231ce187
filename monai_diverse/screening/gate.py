"""What every gate promises; inherit `monai_diverse.testing.GateContract` to test a new one."""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar, Protocol, runtime_checkable

from monai_diverse.data import FloatArray
from monai_diverse.screening.views import Real, Views


class FittedGate(Protocol):
    """A gate with everything that it needs to know of the real images."""

    @property
    def threshold(self) -> float:
        """A sample is rejected when its score is above this; finite, exact in float32."""
        ...

    def score(self, views: Views) -> FloatArray:
        """Scores (n,), float32, finite, higher is worse; each depends on that sample alone.

        Raises:
            DataError: a label that the reference does not hold.
        """
        ...

    def notes(self) -> dict[str, Any]:
        """What was found when it was fitted, as JSON."""
        ...


@runtime_checkable
class Gate(Protocol):
    """Settings of one reason to reject: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    reason: ClassVar[str]

    def fit(self, real: Real) -> FittedGate:
        """Learns from the reference, reads thresholds off the calibration images, and leaves both as they are.

        Raises:
            DataError: too few images for the settings.
        """
        ...
