"""The transform for pipelines of plain arrays."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
from monai.transforms import RandomizableTransform
from monai.utils import TransformBackends

from monai_diverse.bank import SampleBank, draw, open_bank
from monai_diverse.errors import RecipeError
from monai_diverse.transforms.curriculum import Curriculum, EpochProbability
from monai_diverse.transforms.insertion import Insertion, Inserts, SampleTransform, source_of
from monai_diverse.transforms.seeding import WorkerSeeded


class RandDiverseReplace(Inserts, EpochProbability, WorkerSeeded, RandomizableTransform):  # type: ignore[misc]  # MONAI has no type information
    """Replaces an image by a random sample of a bank, with a given probability.

    An array transform sees no label: give it the one that all its images have, or use `RandDiverseReplaced` or
    `monai_diverse.dataset.DiverseDiffusionDataset`, which keep image and label together.

    The result has the image's own type, dtype, shape and device, replaced or not. A MetaTensor is replaced by a new one, without the patient's meta
    data (identity affine, no applied operations; a file name, if there was one, becomes "synthetic:INDEX"). It draws differently in every DataLoader
    worker and epoch, see `transforms.seeding.WorkerSeeded`.

    Args:
        bank: a `SampleBank`, or its path or URL.
        label: draw among this class alone. None: among all samples, which fits only where labels do not matter.
        prob: probability of replacing, or a function of the epoch that gives it, such as `LinearRamp`; see `set_epoch`.
        sample_transform: applied to the sample, a float32 array (c, *spatial) in [0, 1], before it replaces an image: what your images
            have been through by then (resize, scaling). It is seeded along if it is `Randomizable`.

    Attributes:
        ineligible: how often a replacement was due, but the bank has no sample of this class; the real image stayed. Counted over all
            workers.

    Raises:
        RecipeError: `prob` outside [0, 1], a `label` that the bank does not know.
        BankError: no bank there.
        DataError: (when called) the sample has another shape than the image.
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012  # MONAI's convention

    def __init__(
        self,
        bank: SampleBank | str | os.PathLike[str],
        *,
        label: int | None = None,
        prob: float | Curriculum = 0.1,
        sample_transform: SampleTransform | None = None,
    ) -> None:
        WorkerSeeded.__init__(self)
        RandomizableTransform.__init__(self)
        self.prob = prob
        self.insertion = Insertion(open_bank(bank), sample_transform)
        if label is not None and not (isinstance(label, int | np.integer) and 0 <= label < self.bank.header.classes):
            raise RecipeError(f"label: expected a class of the bank, 0..{self.bank.header.classes - 1}, or None, got {label!r}")
        self.label = None if label is None else int(label)
        if self.label is not None and len(self.bank) and not self.bank.count_of(self.label):
            warnings.warn(f"label: the bank has no samples of class {self.label}, so that all images stay real; grow it first", stacklevel=2)
        self._index: int | None = None

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandDiverseReplace:
        """Seeds this transform and a random `sample_transform`; arguments as MONAI's."""
        super().set_random_state(seed, state)
        self.insertion.seed(self.R)
        return self

    def randomize(self, data: Any = None) -> None:
        """Draws whether to replace, and by which sample; `data` is not looked at."""
        rng = self.random_state()
        super().randomize(None)
        self._index = None
        if self._do_transform:
            self._index = self._counted(draw(self.bank, self.label or 0, "own" if self.label is None else "match", rng))

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        """The image, or a sample in its form.

        Args:
            img: (c, *spatial), NumPy array, tensor or MetaTensor.
            randomize: False: the same choice as at the last call.
        """
        if randomize:
            self.randomize()
        index = self._index  # once: threads may share this object
        self.insertion.check(img, "image")
        return img if index is None else self.insertion.put(self.insertion.sample(index), img, "image", source_of(index))
