"""Images to vectors: any callable with a name and a fingerprint is an extractor."""

from monai_diverse.features.base import DifferentiableExtractor, FeatureExtractor
from monai_diverse.features.efficientnet import EfficientNetLite0
from monai_diverse.features.module import ModuleFeatures
from monai_diverse.features.pca import PCA, FittedPCA
from monai_diverse.features.pixels import PixelFeatures

__all__ = ["PCA", "DifferentiableExtractor", "EfficientNetLite0", "FeatureExtractor", "FittedPCA", "ModuleFeatures", "PixelFeatures"]
