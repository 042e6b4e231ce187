"""What a guide is: it moves the predicted clean image at each step, or decides where a pass starts, and so what the sampler draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from monai_diverse.errors import RecipeError


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Where a pass starts, if not from pure noise at the first step.

    Attributes:
        images: (n, c, *spatial) in the model's space, or anything that broadcasts to it; the pass starts from them with noise added.
        sigma: noise-to-signal ratio; the pass starts at the first step at or below it, and the steps before cost nothing.
        gain: factor on the noise.
        pace: steps of the pass, as a share of those that a whole pass takes over the same noise: below 1 it is coarser, and cheaper.
        noised: the images are variance-preserving noisy ones of that very step; nothing is added.
    """

    images: Tensor
    sigma: float
    gain: float = 1.0
    pace: float = 1.0
    noised: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """Several noises for each image, of which one is drawn to the end.

    Attributes:
        candidates: noises an image, from streams of its own seed.
        sigma: noise-to-signal ratio; candidates are compared at the first step at or below it.
        score: (predicted clean images (n, c, *spatial), labels (n,)) -> (n,), the higher the better.
    """

    candidates: int
    sigma: float
    score: Callable[[Tensor, Tensor], Tensor]


Renoise = Callable[[Tensor, Tensor, Sequence[int], float, float], Tensor]
"""(images (n, c, *spatial) in the model's space, labels (n,), seeds (n,), noise-to-signal ratio, pace) -> images noised to it and denoised again."""


class Guide:
    """Changes what the sampler draws; the base changes nothing, a guide overrides what it needs. None in its place is brute force.

    Attributes:
        polish: noise-to-signal ratio to which finished images are noised and then denoised once more; 0 for never.
        choice: early choice among candidates; None for none.
    """

    polish: float = 0.0
    choice: Choice | None = None

    def __call__(self, x0: Tensor, labels: Tensor, sigma: float) -> Tensor:
        """Moves predicted clean images.

        Args:
            x0: (n, c, *spatial) in the model's space.
            labels: (n,) classes asked for.
            sigma: noise-to-signal ratio of the step, from large to 0.

        Returns:
            (n, c, *spatial).
        """
        return x0

    def given(self, accepted: Tensor, labels: Tensor) -> Guide:
        """The same guide, knowing the samples that were accepted so far.

        Args:
            accepted: (m, c, *spatial) in the model's space.
            labels: (m,) their classes.
        """
        return self

    def calibrated(self, renoise: Renoise) -> Guide:
        """The same guide, with what it needs to know of the model itself.

        Args:
            renoise: noises images and denoises them again with the model.
        """
        return self

    def start(self, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Start] | None:
        """Where passes start.

        Args:
            labels: (n,) classes asked for.
            seeds: (n,) of the images.

        Returns:
            A mask (n,) of the images that do not start from pure noise at the first step, and where those start; None: all start there.
        """
        return None

    def notes(self) -> dict[str, Any]:
        """What calibration found, as JSON, for reports."""
        return {}

    def refresh(self, sigma: float) -> float:
        """Share of the noise's standard deviation, 0 to 1, that is drawn anew after the step that leads to `sigma`."""
        return 0.0


class GuideSettings(Protocol):
    """Settings of a guide, before it has seen data."""

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> Guide:
        """Calibrates the guide.

        Args:
            train: (m, c, *spatial) images in the model's space that samples must not repeat.
            train_labels: (m,) their classes.
            heldout: (k, c, *spatial) real images that are not in `train`.
            heldout_labels: (k,) their classes.
        """


@dataclass(frozen=True, kw_only=True)
class Together:
    """Several guides as one: pushes in turn; the first that says where to start, or how to choose, decides that.

    Attributes:
        guides: settings, in the order in which they push.
    """

    guides: tuple[GuideSettings, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "guides", tuple(self.guides))  # a recipe read from a file gives a list
        for guide in self.guides:
            if not hasattr(guide, "fit"):
                raise RecipeError(f"guides: expected settings with a fit method, such as Shield, got {type(guide).__name__}")

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedTogether:
        """Calibrates each on the same images."""
        return FittedTogether(tuple(guide.fit(train, train_labels, heldout, heldout_labels) for guide in self.guides))


class FittedTogether(Guide):
    """Several fitted guides as one."""

    def __init__(self, guides: Sequence[Guide]) -> None:
        self.guides = tuple(guides)
        self.polish = max((guide.polish for guide in self.guides), default=0.0)
        self.choice = next((guide.choice for guide in self.guides if guide.choice is not None), None)

    def __call__(self, x0: Tensor, labels: Tensor, sigma: float) -> Tensor:
        """Moves x0 by each in turn."""
        for guide in self.guides:
            x0 = guide(x0, labels, sigma)
        return x0

    def given(self, accepted: Tensor, labels: Tensor) -> FittedTogether:
        """Each, knowing what was accepted."""
        return FittedTogether([guide.given(accepted, labels) for guide in self.guides])

    def calibrated(self, renoise: Renoise) -> FittedTogether:
        """Each, calibrated on the model."""
        return FittedTogether([guide.calibrated(renoise) for guide in self.guides])

    def start(self, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Start] | None:
        """The first answer."""
        return next((found for guide in self.guides if (found := guide.start(labels, seeds)) is not None), None)

    def notes(self) -> dict[str, Any]:
        """Of each."""
        return {name: value for guide in self.guides for name, value in guide.notes().items()}

    def refresh(self, sigma: float) -> float:
        """The largest share."""
        return max((guide.refresh(sigma) for guide in self.guides), default=0.0)
