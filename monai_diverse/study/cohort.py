"""The real images of a study and who plays which part: what the user has, what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from monai_diverse.data import IntArray, LabelledImages, load_images, near_duplicate_groups, require_every_class
from monai_diverse.data.medmnist import PREFIX, medmnist_file
from monai_diverse.errors import DataError
from monai_diverse.recipe import BUILTIN
from monai_diverse.sources.builtin import DATA
from monai_diverse.storage import fingerprint_of
from monai_diverse.study.plan import StudyPlan


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Three splits whose groups count over all of them.

    Attributes:
        path: file or folder.
        train: the labelled reals.
        validation: chooses weights and ratios.
        test: scored once.
        test_apart: (n,) test images of which no near-duplicate is in train or validation.
    """

    path: Path
    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    test_apart: npt.NDArray[np.bool_]

    @classmethod
    def load(cls, plan: StudyPlan, out: Path) -> Cohort:
        """Reads the data of a plan; what is downloaded goes to `out/data`.

        Raises:
            DataError: unreadable data, a split that is missing or lacks a class, splits of different shapes.
        """
        if plan.data.startswith(PREFIX):
            path = medmnist_file(plan.data.removeprefix(PREFIX), out / "data")
        else:
            path = DATA if plan.data == BUILTIN else plan.folder / plan.data
        train, validation, test = (load_images(path, split) for split in ("train", "val", "test"))
        for name, images in (("train", train), ("val", validation), ("test", test)):
            require_every_class(images.labels, len(train.class_counts), f"{path}: {name}")
            if images.images.shape[1:] != train.images.shape[1:]:
                raise DataError(f"{path}: expected {name} images of the train images' shape {train.images.shape[1:]}, got {images.images.shape[1:]}")
        groups = near_duplicate_groups(np.concatenate([part.images for part in (train, validation, test)]), plan.twin_correlation)
        of_train, of_validation, of_test = np.split(groups, np.cumsum([len(train), len(validation)]))
        return cls(
            path=path,
            train=_grouped(train, of_train),
            validation=_grouped(validation, of_validation),
            test=_grouped(test, of_test),
            test_apart=~np.isin(of_test, np.concatenate([of_train, of_validation])),
        )

    @property
    def sha256(self) -> str:
        """Over images and labels of all splits."""
        return fingerprint_of([part.sha256() for part in (self.train, self.validation, self.test)])

    def drawn(self, among: IntArray, size: float, draw: int, seed: int) -> IntArray:
        """The labelled images that the user has: a share of each class. Of one draw, the smaller share is a part of the larger.

        Args:
            among: indices into `train`.
            size: the share, above 0 and up to 1.
            draw: number of the draw.
            seed: of the study.

        Returns:
            Sorted indices into `train`; images of one group come together as far as the numbers allow.

        Raises:
            DataError: a class of which not one image is left.
        """
        labels, groups = self.train.labels[among], self.train.group_ids[among]
        rank = np.random.default_rng([seed, draw]).permutation(int(groups.max()) + 1)[groups]
        order = np.argsort(rank, kind="stable")
        picks = []
        for label in range(len(self.train.class_counts)):
            own = order[labels[order] == label]
            count = round(size * len(own))
            if not count:
                raise DataError(f"sizes: expected a share that leaves an image of every class, got {size:g} of {len(own)} of class {label}")
            picks.append(own[:count])
        return np.sort(among[np.concatenate(picks)])

    def apart_from(self, among: IntArray, held: IntArray) -> IntArray:
        """Those of `among` that share no group with `held`; all are indices into `train`."""
        groups = self.train.group_ids
        return among[~np.isin(groups[among], groups[held])]


def _grouped(images: LabelledImages, groups: IntArray) -> LabelledImages:
    return LabelledImages(images=images.images, labels=images.labels, groups=groups)
