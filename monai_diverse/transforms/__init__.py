"""Bank samples in MONAI pipelines."""

from monai_diverse.transforms.array import RandDiverseReplace
from monai_diverse.transforms.dictionary import RandDiverseReplaceD, RandDiverseReplaced, RandDiverseReplaceDict

__all__ = ["RandDiverseReplace", "RandDiverseReplaceD", "RandDiverseReplaceDict", "RandDiverseReplaced"]
