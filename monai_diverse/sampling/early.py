"""Early choice: several noises for each image, of which the one whose preview is farthest from the training images is drawn to the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.features import EfficientNetLite0, FeatureExtractor
from monai_diverse.information import Neighbours
from monai_diverse.sampling.embedding import SemanticSpace
from monai_diverse.sampling.guides import Choice, Guide

SMALLEST = 1e-12


@dataclass(frozen=True, kw_only=True)
class EarlyChoice:
    """Settings of early choice.

    A candidate costs the steps above `sigma` only; the chosen one alone goes on from there.

    Attributes:
        candidates: noises an image; 1 for no choice.
        sigma: noise-to-signal ratio at which the predicted clean images are compared: low enough that they show what they will become.
        extractor: images in [0, 1] to vectors; let another one judge the bank.
        components: whitened principal components of the training images' features, at most.
        neighbours: each k of the score; lowered for a class with fewer training images.
    """

    candidates: int = 2
    sigma: float = 1.0
    extractor: FeatureExtractor = field(default_factory=EfficientNetLite0)
    components: int = 48
    neighbours: tuple[int, ...] = (1, 5)

    def __post_init__(self) -> None:
        object.__setattr__(self, "neighbours", tuple(self.neighbours))  # a recipe read from a file gives a list
        if self.candidates < 1 or not self.sigma > 0:
            raise RecipeError(f"early choice: expected candidates from 1 and sigma above 0, got {self.candidates} and {self.sigma}")
        if self.components < 1 or not self.neighbours or min(self.neighbours) < 1:
            raise RecipeError(f"early choice: expected components and neighbours from 1, got {self.components} and {self.neighbours}")

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedEarlyChoice:
        """Indexes the training images by class, in the extractor's space.

        Raises:
            DataError: fewer than two training images, or all alike.
        """
        space = SemanticSpace.fit(train, self.extractor, self.components)
        labels = train_labels.cpu().numpy()
        everything = _Distances.of(space.train, self.neighbours)
        of_class = {int(c): _Distances.of(space.train[labels == c], self.neighbours) for c in np.unique(labels) if (labels == c).sum() > 1}
        return FittedEarlyChoice(settings=self, space=space, of_class=of_class, of_all=everything)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Distances:
    """Distances to one set of training images, relative to those among themselves."""

    index: Neighbours
    k: tuple[int, ...]
    typical: np.ndarray[tuple[int, ...], np.dtype[np.float64]]

    @classmethod
    def of(cls, rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]], neighbours: tuple[int, ...]) -> _Distances:
        index = Neighbours(rows)
        k = tuple(sorted({min(k, index.most) for k in neighbours}))
        within = np.maximum(index.within(k[-1])[:, np.array(k) - 1], SMALLEST)
        return cls(index=index, k=k, typical=np.median(within, axis=0))

    def excess(self, rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        distances = np.maximum(self.index.distances(rows, self.k[-1])[:, np.array(self.k) - 1], SMALLEST)
        lowest: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.log(distances / self.typical).min(axis=1)
        return lowest


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedEarlyChoice(Guide):
    """Early choice as a guide.

    score_i = min over k of log(d_k(i) / median d_k), d_k being the distance to the k-th nearest training image of the same class and the
    median that of the class's own images, each left out in turn. `screening.NoveltyGate` differs: it compares with all classes, and leaves out
    whole groups. A class with fewer than two
    training images is compared with all.

    Attributes:
        settings: see `EarlyChoice`.
        space: in which distances are taken.
        of_class: by class.
        of_all: for the other classes.
    """

    settings: EarlyChoice
    space: SemanticSpace
    of_class: Mapping[int, _Distances]
    of_all: _Distances

    @property
    def choice(self) -> Choice | None:  # type: ignore[override]
        """The candidates and their score."""
        chosen = self.settings
        return Choice(candidates=chosen.candidates, sigma=chosen.sigma, score=self.score) if chosen.candidates > 1 else None

    def score(self, x0: Tensor, labels: Tensor) -> Tensor:
        """How far predicted clean images (n, c, *spatial) are from the training images of their classes (n,); the higher the farther."""
        rows, classes = self.space(x0), labels.cpu().numpy()
        scores = np.empty(len(rows), np.float32)
        for c in np.unique(classes):
            asked = classes == c
            scores[asked] = self.of_class.get(int(c), self.of_all).excess(rows[asked])
        return torch.from_numpy(scores).to(x0.device)
