"""What a guide is: it moves the predicted clean image at each step, and so what the sampler draws."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Guide(Protocol):
    """Moves predicted clean images; `None` in its place is brute force."""

    def __call__(self, x0: Tensor, labels: Tensor, sigma: float) -> Tensor:
        """Moves x0.

        Args:
            x0: (n, c, *spatial) predicted clean images in the model's space.
            labels: (n,) classes asked for.
            sigma: noise-to-signal ratio of the step, from large to 0.

        Returns:
            (n, c, *spatial).
        """

    def given(self, accepted: Tensor, labels: Tensor) -> Guide:
        """The same guide, knowing the samples that were accepted so far.

        Args:
            accepted: (m, c, *spatial) in the model's space.
            labels: (m,) their classes.
        """


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
