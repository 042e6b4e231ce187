"""The small breast-ultrasound model that the package ships, and the images that it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from monai_diverse.data import LabelledImages, load_images, near_duplicate_groups
from monai_diverse.sampling.condition import CADS, ClassifierFree
from monai_diverse.sources.diffusers import DiffusersSource
from monai_diverse.sources.precision import Precision
from monai_diverse.storage import read_json

ASSETS = Path(str(files("monai_diverse"))) / "assets" / "breast_ultrasound"
DATA = ASSETS / "breastmnist.npz"


class BuiltinSource(DiffusersSource):
    """A class-conditional diffusion model of 28x28 breast ultrasound: 0 malignant, 1 normal or benign.

    Trained on BreastMNIST (CC BY 4.0) by `monai-diverse train`; its card lies beside the weights. It is for trying the
    package out, not for clinical use. The arguments are those of `DiffusersSource`.
    """

    def __init__(
        self,
        *,
        guidance: ClassifierFree | None = None,
        cads: CADS | None = None,
        scheduler: str = "DPMSolverMultistepScheduler",
        karras: bool | None = None,
        steps: int = 20,
        batch_size: int | None = 64,
        device: str = "cpu",
        precision: Precision | None = None,
    ) -> None:
        super().__init__(
            ASSETS,
            guidance=guidance,
            cads=cads,
            scheduler=scheduler,
            karras=karras,
            steps=steps,
            batch_size=batch_size,
            device=device,
            precision=precision,
        )


@dataclass(frozen=True, kw_only=True)
class BuiltinData:
    """BreastMNIST as the shipped model's training divided it; no near-duplicate pair spans the first two.

    Attributes:
        generator_train: what the model saw; also the reference (what the user has) of the demo.
        calibration: reals that it never saw, for the screen's thresholds.
        train: both together, the official train split: what the classifiers learn from, in every arm.
        validation: the official val split: held-out-real control and checkpoint choice.
        test: the official test split: final classifier scores only.
        validation_unseen: mask over `validation` of images without a near-duplicate in the two first.
    """

    generator_train: LabelledImages
    calibration: LabelledImages
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    validation_unseen: np.ndarray[tuple[int], np.dtype[np.bool_]]


@cache
def builtin_data() -> BuiltinData:
    """Reads the shipped images."""
    split = read_json(ASSETS / "split.json")
    official = load_images(DATA, "train")
    validation, test = load_images(DATA, "val"), load_images(DATA, "test")
    groups = near_duplicate_groups(np.concatenate([official.images, validation.images, test.images]), split["twin_correlation"])
    ends = np.cumsum([len(official), len(validation)])
    train_groups, validation_groups, test_groups = np.split(groups, ends)
    official = LabelledImages(images=official.images, labels=official.labels, groups=train_groups)
    return BuiltinData(
        generator_train=official[np.asarray(split["generator_train"])],
        calibration=official[np.asarray(split["calibration"])],
        train=official,
        validation=LabelledImages(images=validation.images, labels=validation.labels, groups=validation_groups),
        test=LabelledImages(images=test.images, labels=test.labels, groups=test_groups),
        validation_unseen=~np.isin(validation_groups, train_groups),
    )
