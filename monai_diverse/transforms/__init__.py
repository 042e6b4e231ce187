"""Bank samples in pipelines of MONAI and, in `transforms.albumentations`, of albumentations; albumentations' own transforms in MONAI's."""

from monai_diverse.transforms.albumentations_adapter import Albumentations, AlbumentationsD, Albumentationsd, AlbumentationsDict
from monai_diverse.transforms.array import RandDiverseReplace
from monai_diverse.transforms.curriculum import LinearRamp, Steps, set_epoch
from monai_diverse.transforms.dictionary import RandDiverseReplaceD, RandDiverseReplaced, RandDiverseReplaceDict
from monai_diverse.transforms.mix import RandDiverseMixD, RandDiverseMixd, RandDiverseMixDict

__all__ = [
    "Albumentations",
    "AlbumentationsD",
    "AlbumentationsDict",
    "Albumentationsd",
    "LinearRamp",
    "RandDiverseMixD",
    "RandDiverseMixDict",
    "RandDiverseMixd",
    "RandDiverseReplace",
    "RandDiverseReplaceD",
    "RandDiverseReplaceDict",
    "RandDiverseReplaced",
    "Steps",
    "set_epoch",
]
