"""What every source of samples promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from monai_diverse.data import IntArray, check_labels
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.guides import Guide

IntLike = Sequence[int] | npt.NDArray[np.integer] | Tensor


class SampleSource(ABC):
    """A generative model that draws labelled images.

    Image i depends on `seeds[i]` and `labels[i]` alone, not on the batch that it came in, unless a guide couples the batch;
    floating-point noise aside: 1e-4 in [0, 1] for float32 on the CPU.

    Attributes:
        shape: (c, *spatial) of an image.
        classes: number of classes; 1 for an unconditional model.
        name: for reports.
        licence: of the data that the model was trained on, as far as known.
        mirrored: whether it was trained on images mirrored left-right too, so that a mirrored training image is a copy.
        size: how many images it has, for sources that hold a fixed set; None: it draws as many as are asked for.
    """

    shape: tuple[int, ...]
    classes: int
    name: str
    licence: str = "unknown"
    mirrored: bool = False
    size: int | None = None

    @property
    @abstractmethod
    def nfe(self) -> int:
        """Network evaluations so far, counted an image; a classifier-free pair counts two."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over weights and settings: equal fingerprints draw equal images (with a guide that couples the batch: from equal batches)."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, for reports."""
        return tuple(f"class {c}" for c in range(self.classes))

    @abstractmethod
    def cost(self, steps: int | None = None) -> int:
        """Network evaluations that one image takes with so many steps; None for the source's own number."""

    def labels_of(self, seeds: IntLike) -> IntArray | None:
        """Classes (n,) that the images of these seeds have, for sources that hold a fixed set; None: any class can be asked for."""
        return None

    def costs(self, labels: IntLike, seeds: IntLike, *, guide: Guide | None = None, steps: int | None = None) -> IntArray:
        """Network evaluations (n,) that `sample` will take for each image; arguments as its own."""
        return np.full(len(seeds), self.cost(steps), dtype=np.int64)

    def renoise(self, states: Tensor, labels: Tensor, seeds: Sequence[int], sigma: float, pace: float = 1.0, steps: int | None = None) -> Tensor:
        """Noises images (n, c, *spatial) in the model's space and denoises them again.

        Raises:
            RecipeError: a source that cannot.
        """
        raise RecipeError(
            f"{self.name}: expected a diffusion model to noise images and denoise them again, got {type(self).__name__}; leave branching out"
        )

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (n, c, *spatial) in [0, 1] to the space in which guides work."""

    def sample(self, labels: IntLike, seeds: IntLike, *, guide: Guide | None = None, steps: int | None = None) -> Tensor:
        """Draws one image for each seed.

        Args:
            labels: (n,) classes 0..classes-1.
            seeds: (n,) whole numbers from 0, one an image.
            guide: moves predictions on the way; None for brute force.
            steps: inference steps; None for the source's own number.

        Returns:
            float32 (n, c, *spatial) in [0, 1].

        Raises:
            DataError: counts differ, labels that the model does not know, negative seeds.
            RecipeError: steps out of range.
        """
        checked = check_labels(np.asarray(labels), len(seeds), self.classes)
        numbers = np.asarray(seeds) if len(seeds) else np.empty(0, dtype=np.int64)
        if numbers.dtype.kind not in "iu" or (len(numbers) and numbers.min() < 0):
            raise DataError(f"seeds: expected whole numbers from 0, got {numbers.dtype} from {numbers.min()}")
        if not len(numbers):
            return torch.empty((0, *self.shape))
        return self._draw(torch.from_numpy(checked), [int(s) for s in numbers], guide, steps)

    @abstractmethod
    def _draw(self, labels: Tensor, seeds: list[int], guide: Guide | None, steps: int | None) -> Tensor: ...
