"""Diverse synthetic training images for MONAI: sampled in one pass, screened, banked, audited.

The names stand in the order of an image's path: a source draws it, a screen judges it, a bank keeps it, a transform or a
dataset hands it to a classifier. They are imported at first use, since torch, MONAI and diffusers take seconds to import.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from monai_diverse.version import __version__

if TYPE_CHECKING:
    from monai_diverse.audit import audit_model, audit_twins
    from monai_diverse.bank import SampleBank
    from monai_diverse.dataset import DiverseDiffusionDataset, mixing_sampler
    from monai_diverse.distributed import Processes, RayActors
    from monai_diverse.growth import grow
    from monai_diverse.recipe import Recipe
    from monai_diverse.screening import NoveltyScreen, Verdict
    from monai_diverse.sources import BuiltinSource, BundleSource, CallableSource, DiffusersSource, FolderSource, MonaiSource, SampleSource
    from monai_diverse.transforms import (
        Albumentations,
        AlbumentationsD,
        Albumentationsd,
        AlbumentationsDict,
        RandDiverseMixD,
        RandDiverseMixd,
        RandDiverseMixDict,
        RandDiverseReplace,
        RandDiverseReplaceD,
        RandDiverseReplaced,
        RandDiverseReplaceDict,
    )
    from monai_diverse.transforms.albumentations import BankReference, BankTransform

_HOMES = {
    "SampleSource": "sources",
    "MonaiSource": "sources",
    "BundleSource": "sources",
    "DiffusersSource": "sources",
    "BuiltinSource": "sources",
    "CallableSource": "sources",
    "FolderSource": "sources",
    "NoveltyScreen": "screening",
    "Verdict": "screening",
    "SampleBank": "bank",
    "Recipe": "recipe",
    "grow": "growth",
    "Processes": "distributed",
    "RayActors": "distributed",
    "RandDiverseReplace": "transforms",
    "RandDiverseReplaced": "transforms",
    "RandDiverseReplaceD": "transforms",
    "RandDiverseReplaceDict": "transforms",
    "RandDiverseMixd": "transforms",
    "RandDiverseMixD": "transforms",
    "RandDiverseMixDict": "transforms",
    "BankTransform": "transforms.albumentations",
    "BankReference": "transforms.albumentations",
    "Albumentations": "transforms",
    "Albumentationsd": "transforms",
    "AlbumentationsD": "transforms",
    "AlbumentationsDict": "transforms",
    "DiverseDiffusionDataset": "dataset",
    "mixing_sampler": "dataset",
    "audit_model": "audit",
    "audit_twins": "audit",
}

__all__ = [
    "Albumentations",
    "AlbumentationsD",
    "AlbumentationsDict",
    "Albumentationsd",
    "BankReference",
    "BankTransform",
    "BuiltinSource",
    "BundleSource",
    "CallableSource",
    "DiffusersSource",
    "DiverseDiffusionDataset",
    "FolderSource",
    "MonaiSource",
    "NoveltyScreen",
    "Processes",
    "RandDiverseMixD",
    "RandDiverseMixDict",
    "RandDiverseMixd",
    "RandDiverseReplace",
    "RandDiverseReplaceD",
    "RandDiverseReplaceDict",
    "RandDiverseReplaced",
    "RayActors",
    "Recipe",
    "SampleBank",
    "SampleSource",
    "Verdict",
    "__version__",
    "audit_model",
    "audit_twins",
    "grow",
    "mixing_sampler",
]


if importlib.util.find_spec("albumentations") is None:  # for `import *`; by name they say what to install
    for _optional in ("BankReference", "BankTransform"):
        __all__.remove(_optional)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
