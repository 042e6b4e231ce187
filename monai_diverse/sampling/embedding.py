"""The model's space seen through an extractor: whitened principal components of features of the training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monai_diverse.data import FloatArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import PCA, BlockExtractor, DifferentiableExtractor, FeatureExtractor, FittedPCA


@dataclass(frozen=True, kw_only=True, eq=False)
class SemanticSpace:
    """Features of images in the model's space, pixels or latents.

    Extractors take values in [0, 1]: the range of the training images becomes that, and what lies outside is clamped.

    Attributes:
        extractor: images in [0, 1] to vectors.
        low: least value of the training images.
        high: greatest.
        pca: whitened principal components of their features.
        train: (m, k) the training images' own coordinates.
    """

    extractor: FeatureExtractor
    low: float
    high: float
    pca: FittedPCA
    train: FloatArray

    @classmethod
    def fit(cls, train: Tensor, extractor: FeatureExtractor, components: int) -> SemanticSpace:
        """Fits range and components on training images (m, c, *spatial) in the model's space.

        Raises:
            DataError: fewer than two, or all alike.
        """
        if len(train) < 2 or not bool(train.max() > train.min()):
            raise DataError(f"semantic space: expected two or more training images that are not flat, got {len(train)}")
        low, high = float(train.min()), float(train.max())
        features = extractor(_unit(train, low, high).float().cpu().numpy())
        blocks = extractor.widths(tuple(train.shape[1:])) if isinstance(extractor, BlockExtractor) else None
        pca = PCA(n_components=components).fit(features, blocks)
        return cls(extractor=extractor, low=low, high=high, pca=pca, train=pca.transform(features))

    def __call__(self, images: Tensor) -> FloatArray:
        """Coordinates float32 (n, k) of images (n, c, *spatial)."""
        return self.pca.transform(self.extractor(_unit(images, self.low, self.high).float().cpu().numpy()))

    def differentiable(self, images: Tensor) -> Tensor:
        """The same as a tensor on the extractor's device, with its gradient.

        Raises:
            RecipeError: an extractor without one.
        """
        extractor = differentiable_extractor(self.extractor)
        features = extractor.differentiable(_unit(images, self.low, self.high).float().cpu()).float()
        fitted = (self.pca.mean, self.pca.components, self.pca.scale)
        mean, components, scale = (torch.from_numpy(np.asarray(value, np.float32)).to(features) for value in fitted)
        return (features - mean) @ components.T / scale


def differentiable_extractor(extractor: FeatureExtractor) -> DifferentiableExtractor:
    """The extractor, if it has a gradient.

    Raises:
        RecipeError: it has none.
    """
    if not isinstance(extractor, DifferentiableExtractor):
        raise RecipeError(f"extractor: expected one with a `differentiable` method, such as EfficientNetLite0, got {type(extractor).__name__}")
    return extractor


def _unit(images: Tensor, low: float, high: float) -> Tensor:
    return ((images - low) / (high - low)).clamp(0, 1)
