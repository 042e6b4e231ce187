"""What every extractor promises."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from monai_diverse.data import FloatArray


@runtime_checkable
class FeatureExtractor(Protocol):
    """A fixed map from images to vectors; inherit `monai_diverse.testing.ExtractorContract` to test a new one.

    An image's vector depends on that image alone, not on the batch it came in (floating-point noise aside).
    """

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the vectors would: weights, input size, layer."""
        ...

    def __call__(self, images: FloatArray) -> FloatArray:
        """Turns float32 (n, channels, *spatial) in [0, 1] into float32 (n, d), finite; n may be 0."""
        ...


@runtime_checkable
class DifferentiableExtractor(FeatureExtractor, Protocol):
    """An extractor that a guide can push images with."""

    def differentiable(self, images: Tensor) -> Tensor:
        """The same vectors (n, d) of a float32 tensor (n, channels, *spatial) in [0, 1], as a function of it that torch differentiates."""
        ...


@runtime_checkable
class BlockExtractor(FeatureExtractor, Protocol):
    """An extractor whose vectors are made of blocks of different origin, such as an `Ensemble`."""

    def widths(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Columns of every block, in order, for images of shape (channels, *spatial)."""
        ...
