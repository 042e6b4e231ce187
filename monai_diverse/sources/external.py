"""Images that come from elsewhere: a callable (a GAN, a service), or a folder of pictures that exist already."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diverse.data import IntArray, class_names, load_images
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.guides import Guide
from monai_diverse.sources.base import IntLike, SampleSource
from monai_diverse.storage import fingerprint_of, sha256_of

ImageFunction = Callable[[IntArray, IntArray], Any]
"""(labels (n,) int64, seeds (n,) int64) -> images (n, c, *spatial), a tensor or an array."""

SLACK = 0.01
"""Share of the output range by which values may leave it before that is an error; a decoder's overshoot is cut off."""


class ExternalSource(SampleSource):
    """What sources have in common that draw whole images without steps: no guide can act on them.

    Attributes:
        evaluations: what an image costs, as the budget of a recipe counts it.
    """

    evaluations: int = 1
    _nfe: int = 0
    _names: tuple[str, ...] = ()

    @property
    def nfe(self) -> int:
        """What the images drawn so far have cost: `evaluations` each."""
        return self._nfe

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, where they are known."""
        return self._names or super().class_names

    def cost(self, steps: int | None = None) -> int:
        """`evaluations`; there are no steps to choose."""
        self._refuse(None, steps)
        return self.evaluations

    def encode(self, images: Tensor) -> Tensor:
        """The images themselves: there is no other space."""
        return images

    def _refuse(self, guide: Guide | None, steps: int | None) -> None:
        if guide is not None:
            raise RecipeError(f"{self.name}: expected no guide, got {type(guide).__name__}; its images come whole: leave the guide out")
        if steps is not None:
            raise RecipeError(f"{self.name}: expected no steps, got {steps}; its images come whole: leave steps out")

    def _draw(self, labels: Tensor, seeds: list[int], guide: Guide | None, steps: int | None) -> Tensor:
        self._refuse(guide, steps)
        images = self._images(labels.numpy(), seeds)
        self._nfe += self.evaluations * len(seeds)
        return images

    @abstractmethod
    def _images(self, labels: IntArray, seeds: list[int]) -> Tensor: ...


class CallableSource(ExternalSource):
    """Draws from a function of labels and seeds: a GAN, an autoregressive model, a service.

    That image i depends on `labels[i]` and `seeds[i]` alone is the function's promise: derive all randomness from the seed, an image at a
    time (`monai_diverse.testing.SourceContract` tests it). For a recipe, give it a name to load by:

        class MyGan(CallableSource):
            def __init__(self) -> None:
                super().__init__(draw, shape=(1, 64, 64), classes=2, name="my GAN", version="weights of 3 May")

    and grow with `--allow` and its package.

    Args:
        function: takes labels (n,) and seeds (n,), both int64 arrays, and returns images (n, c, *spatial), a tensor or an array.
        shape: (c, *spatial) of an image.
        classes: number of classes; 1 if labels mean nothing to it.
        name: for reports.
        version: changes whenever the images that a seed gives change. Code and services cannot be hashed, so it stands for them in the
            fingerprint: a bank must not be resumed with images of another model.
        output_range: what its darkest and brightest values are; mapped to [0, 1].
        evaluations: what an image counts in a recipe's budget.
        batch_size: images asked for at a time.
        class_names: names of the classes.
        licence: of the data that it was trained on.
        mirrored: whether it was trained on mirrored images too.

    Raises:
        RecipeError: settings that cannot be meant.
    """

    def __init__(
        self,
        function: ImageFunction,
        *,
        shape: Sequence[int],
        classes: int,
        name: str,
        version: str,
        output_range: tuple[float, float] = (0.0, 1.0),
        evaluations: int = 1,
        batch_size: int = 64,
        class_names: Sequence[str] = (),
        licence: str = "unknown",
        mirrored: bool = False,
    ) -> None:
        for value, what in ((classes, "classes"), (evaluations, "evaluations"), (batch_size, "batch_size"), *((side, "shape") for side in shape)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(f"{what}: expected whole numbers from 1, got {value!r}")
        if len(shape) not in (3, 4):
            raise RecipeError(f"shape: expected (channels, *spatial) with 2 or 3 spatial axes, got {tuple(shape)}")
        low, high = (float(v) for v in output_range)
        if not -np.inf < low < high < np.inf:
            raise RecipeError(f"output_range: expected two finite numbers, the lower first, got {tuple(output_range)}")
        if class_names and len(class_names) != classes:
            raise RecipeError(f"class_names: expected {classes}, one a class, got {len(class_names)}")
        if not name or not version:
            raise RecipeError(f"name, version: expected text, got {name!r} and {version!r}")
        self.shape, self.classes, self.name, self.licence, self.mirrored = tuple(shape), classes, name, licence, mirrored
        self.evaluations, self._batch_size, self._names = evaluations, batch_size, tuple(class_names)
        self._function, self._low, self._high, self._version = function, low, high, version

    @property
    def fingerprint(self) -> str:
        """SHA-256 over name, version and settings; the function itself is not part of it."""
        return fingerprint_of([self.name, self._version, list(self.shape), self.classes, self._low, self._high])

    def _images(self, labels: IntArray, seeds: list[int]) -> Tensor:
        numbers = np.asarray(seeds)
        starts = range(0, len(seeds), self._batch_size)
        return torch.cat([self._batch(labels[s : s + self._batch_size], numbers[s : s + self._batch_size]) for s in starts])

    def _batch(self, labels: IntArray, seeds: IntArray) -> Tensor:
        images = torch.as_tensor(self._function(labels, seeds)).detach().to("cpu", torch.float32)
        if images.shape != (len(seeds), *self.shape):
            raise DataError(f"{self.name}: expected images of shape {(len(seeds), *self.shape)}, got {tuple(images.shape)}")
        low, high = float(images.min()), float(images.max())
        slack = SLACK * (self._high - self._low)
        if not self._low - slack <= low <= high <= self._high + slack:
            raise DataError(f"{self.name}: expected finite values in [{self._low:g}, {self._high:g}], got [{low:.4g}, {high:.4g}]; give output_range")
        return ((images - self._low) / (self._high - self._low)).clamp(0, 1)


class FolderSource(ExternalSource):
    """Images that exist already, each with its class; they are screened and banked as any others.

    They stand in one order, shuffled by `seed // 2**32` (the seed of a recipe): seed s is image number `s % 2**32` of it. Asked for another
    class than this image's, it is the next image of that class, cyclically. So seeds 0, 1, ... with the labels of `labels_of` give every
    image exactly once, and a number past the last image is an error. Subfolders are classes in alphabetical order: name them so that this is
    the order of the reference's classes.

    Args:
        folder: an `.npz` file or a folder with a subfolder a class, as `monai_diverse.data.load_images` takes.
        split: where the data are divided.
        name: for reports; the folder's name if not given.
        licence: of the images, or of what their model was trained on.
        mirrored: whether their model was trained on mirrored images too.

    Raises:
        DataError: unreadable images, or a class without any.
    """

    def __init__(
        self, folder: Path | str, *, split: str = "train", name: str | None = None, licence: str = "unknown", mirrored: bool = False
    ) -> None:
        data = load_images(folder, split)
        self._names = class_names(folder)
        self.shape, self.classes = data.images.shape[1:], len(self._names) or len(data.class_counts)
        if 0 in data.class_counts:
            raise DataError(f"{folder}: expected images of every class 0..{self.classes - 1}, got none of class {data.class_counts.index(0)}")
        self.name, self.licence, self.mirrored = name or Path(folder).stem, licence, mirrored
        self._pixels, self._labels, self.size = torch.from_numpy(data.images), data.labels, len(data.labels)
        self._fingerprint = fingerprint_of([sha256_of(data.images.tobytes()), sha256_of(data.labels.tobytes()), list(self.shape)])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over images and labels."""
        return self._fingerprint

    def labels_of(self, seeds: IntLike) -> IntArray:
        """The own classes (n,) of the images that these seeds stand for.

        Raises:
            DataError: a seed past the last image.
        """
        return np.asarray([self._labels[self._order(*self._place(int(seed)))[0]] for seed in seeds], dtype=np.int64)

    def _place(self, seed: int) -> tuple[int, int]:
        shuffle, number = divmod(seed, 2**32)
        if number >= len(self._labels):
            raise DataError(f"{self.name}: expected a draw of its {self.size} images, got number {number + 1}; set max_evaluations to {self.size}")
        return shuffle, number

    def _order(self, shuffle: int, number: int) -> IntArray:
        return np.roll(_permutation(len(self._labels), shuffle), -number)

    def _images(self, labels: IntArray, seeds: list[int]) -> Tensor:
        orders = (self._order(*self._place(seed)) for seed in seeds)
        return self._pixels[[int(order[np.argmax(self._labels[order] == label)]) for order, label in zip(orders, labels, strict=True)]]


@lru_cache(maxsize=8)
def _permutation(count: int, shuffle: int) -> IntArray:
    return np.random.default_rng(shuffle).permutation(count).astype(np.int64)
