"""Images to vectors: any callable with a name and a fingerprint is an extractor."""

from monai_diverse.features.base import BlockExtractor, DifferentiableExtractor, FeatureExtractor
from monai_diverse.features.cache import CachedFeatures
from monai_diverse.features.efficientnet import EfficientNetLite0
from monai_diverse.features.ensemble import Ensemble
from monai_diverse.features.huggingface import HuggingFaceFeatures
from monai_diverse.features.medicalnet import MedicalNetFeatures
from monai_diverse.features.module import ModuleFeatures
from monai_diverse.features.normalise import Normalise
from monai_diverse.features.pca import PCA, FittedPCA
from monai_diverse.features.pixels import PixelFeatures
from monai_diverse.features.planes import Planes
from monai_diverse.features.squeezenet import SqueezeNetLogits
from monai_diverse.features.textures import EfficientNetTextures
from monai_diverse.features.timm import TimmFeatures
from monai_diverse.features.xray import TorchXRayVisionFeatures

__all__ = [
    "PCA",
    "BlockExtractor",
    "CachedFeatures",
    "DifferentiableExtractor",
    "EfficientNetLite0",
    "EfficientNetTextures",
    "Ensemble",
    "FeatureExtractor",
    "FittedPCA",
    "HuggingFaceFeatures",
    "MedicalNetFeatures",
    "ModuleFeatures",
    "Normalise",
    "PixelFeatures",
    "Planes",
    "SqueezeNetLogits",
    "TimmFeatures",
    "TorchXRayVisionFeatures",
]
