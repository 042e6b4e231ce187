"""What can be chosen in an audit by twins."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_diverse.audit.trainer import TwinTrainer, UNetTrainer
from monai_diverse.errors import RecipeError
from monai_diverse.features import FeatureExtractor, PixelFeatures


@dataclass(frozen=True, kw_only=True)
class TwinRecipe:
    """Settings of `audit_twins`; together with the data they decide its outcome.

    The bias is over the nearest training image of all classes, as in the paper; that of `audit_model` is over images of the sample's class, and over
    all numbers of images: compare either with itself alone.

    Attributes:
        trainer: how a twin is trained.
        steps: optimiser steps of the last checkpoint.
        first: of the first checkpoint.
        checkpoints: how many, spaced evenly in the logarithm of the step.
        pairs: pairs of twins, each on another division of the patients. One pair tells nothing of the variation between trainings.
        images: samples of each twin at each checkpoint, from the same noises.
        per_twin: about so many training images a twin; None for half of those that are no test images.
        test_parts: one in so many images (by patient) is seen by no twin: the test loss is taken on them.
        features: where samples are compared. The paper takes each image's standardised pixels, so that a cosine is a Pearson correlation.
        tolerance: largest bias that the budget stop accepts; .02: samples are 2 % nearer to the model's own patients than to others.
        quality_floor: largest relative energy distance between samples and test images that counts as passable.
        confidence: level of the intervals.
        resamples: of the bootstrap.
        twin_correlation: images whose pixels correlate above this count as one patient, where no patients are given.
        seed: of the divisions, initial weights, noises and resamples.
    """

    trainer: TwinTrainer = field(default_factory=UNetTrainer)
    steps: int = 3000
    first: int = 50
    checkpoints: int = 16
    pairs: int = 1
    images: int = 512
    per_twin: int | None = None
    test_parts: int = 5
    features: FeatureExtractor = field(default_factory=PixelFeatures)
    tolerance: float = 0.02
    quality_floor: float = 0.1
    confidence: float = 0.95
    resamples: int = 1000
    twin_correlation: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("pairs", 1), ("images", 2), ("checkpoints", 2), ("test_parts", 2), ("first", 1), ("resamples", 100)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.steps <= self.first:
            raise RecipeError(f"steps: expected more than first ({self.first}), got {self.steps}")
        if not 0 < self.confidence < 1:
            raise RecipeError(f"confidence: expected between 0 and 1, got {self.confidence}")
        if not (0 < self.tolerance < math.inf and 0 < self.quality_floor < math.inf):
            raise RecipeError(f"tolerance and quality_floor: expected above 0, got {self.tolerance} and {self.quality_floor}")
        if self.per_twin is not None and self.per_twin < 2:
            raise RecipeError(f"per_twin: expected at least 2 images, or None for half of them, got {self.per_twin}")
        if not 0 < self.twin_correlation <= 1:
            raise RecipeError(f"twin_correlation: expected above 0 and at most 1, got {self.twin_correlation}")
        if not 0 <= self.seed < 2**20:
            raise RecipeError(f"seed: expected 0..{2**20 - 1}, got {self.seed}")

    @property
    def schedule(self) -> list[int]:
        """Steps of the checkpoints, rising."""
        return sorted({int(step) for step in np.geomspace(self.first, self.steps, self.checkpoints).round()})

    def seed_of(self, pair: int, twin: int) -> int:
        """Of a twin's initial weights, batches and noise: another for each."""
        return self.seed * 2000 + 2 * pair + twin

    def describe(self) -> dict[str, Any]:
        """All that decides weights and samples, as JSON."""
        free = ("trainer", "features", "tolerance", "quality_floor", "confidence", "resamples", "pairs")
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in free}
        return settings | {"trainer": self.trainer.describe(), "features": self.features.fingerprint}
