"""Diverse synthetic training images for MONAI: sampled in one pass, screened, banked, audited.

The names stand in the order of an image's path: a source draws it, a screen judges it, a bank keeps it, a transform or a
dataset hands it to a classifier.
"""

from monai_diverse.bank import SampleBank
from monai_diverse.dataset import DiverseDiffusionDataset
from monai_diverse.grow import grow
from monai_diverse.recipe import Recipe
from monai_diverse.screening import NoveltyScreen, Verdict
from monai_diverse.sources import BuiltinSource, DiffusersSource, SampleSource
from monai_diverse.transforms import (
    RandDiverseReplace,
    RandDiverseReplaceD,
    RandDiverseReplaced,
    RandDiverseReplaceDict,
)
from monai_diverse.version import __version__

__all__ = [
    "BuiltinSource",
    "DiffusersSource",
    "DiverseDiffusionDataset",
    "NoveltyScreen",
    "RandDiverseReplace",
    "RandDiverseReplaceD",
    "RandDiverseReplaceDict",
    "RandDiverseReplaced",
    "Recipe",
    "SampleBank",
    "SampleSource",
    "Verdict",
    "__version__",
    "grow",
]
