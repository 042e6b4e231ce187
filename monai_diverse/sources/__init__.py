"""A pretrained model, whoever made it, as one `SampleSource`."""

from monai_diverse.sources.base import SampleSource
from monai_diverse.sources.builtin import BuiltinSource
from monai_diverse.sources.bundle import BundleSource
from monai_diverse.sources.bundle_recipes import RECIPES, BundleRecipe, NetworkInput
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.diffusers import DiffusersSource
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.sources.external import CallableSource, FolderSource
from monai_diverse.sources.latent import Latent
from monai_diverse.sources.monai import MonaiSource
from monai_diverse.sources.precision import Precision

__all__ = [
    "RECIPES",
    "BuiltinSource",
    "BundleRecipe",
    "BundleSource",
    "CallableSource",
    "Conditioning",
    "DiffusersSource",
    "DiffusionSource",
    "FolderSource",
    "Latent",
    "MonaiSource",
    "NetworkInput",
    "Precision",
    "SampleSource",
]
