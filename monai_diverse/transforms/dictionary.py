"""The transforms for dictionary pipelines, image and label together."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import TransformBackends

from monai_diverse.bank import LabelPolicy, SampleBank, check_policy, draw, open_bank
from monai_diverse.transforms.blank import blank_meta
from monai_diverse.transforms.counts import ClassCounts
from monai_diverse.transforms.curriculum import Curriculum, EpochProbability
from monai_diverse.transforms.insertion import CLASS_NAME_KEY, REAL, Insertion, Inserts, SampleTransform, source_of
from monai_diverse.transforms.labels import read_label, write_label
from monai_diverse.transforms.seeding import WorkerSeeded


class RandSampled(Inserts, EpochProbability, WorkerSeeded, RandomizableTransform, MapTransform):  # type: ignore[misc]  # MONAI has no type information
    """Draws a sample of a bank for an item, with a given probability; a subclass says what becomes of both.

    Arguments, attributes and errors are those of `RandDiverseReplaced`.
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012  # MONAI's convention

    def __init__(
        self,
        keys: KeysCollection,
        bank: SampleBank | str | os.PathLike[str],
        *,
        label_key: str = "label",
        label_policy: LabelPolicy = "match",
        class_counts: Sequence[int] | None = None,
        prob: float | Curriculum = 0.1,
        sample_transform: SampleTransform | None = None,
        source_key: str = "sample_source",
        allow_missing_keys: bool = False,
    ) -> None:
        WorkerSeeded.__init__(self)
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self)
        self.prob = prob
        self.insertion = Insertion(open_bank(bank), sample_transform)
        self.label_key = label_key
        self.label_policy = check_policy(label_policy)
        self.source_key = source_key
        self._counts = ClassCounts(class_counts, self.label_policy, self.bank.header.classes)
        self._index: int | None = None

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandSampled:
        """Seeds this transform and a random `sample_transform`, and forgets class counts of items seen; arguments as MONAI's."""
        super().set_random_state(seed, state)
        self.insertion.seed(self.R)
        self._counts.forget()
        return self

    def randomize(self, data: Any = None) -> int | None:
        """Draws whether the item gets a sample, and which; returns its index, which threads that share this object must not read back from it.

        Args:
            data: the item; anything without a label gives no sample.
        """
        rng = self.random_state()
        super().randomize(None)
        self._index = None
        if not isinstance(data, Mapping) or self.label_key not in data:
            return None
        label = read_label(data[self.label_key])
        self._counts.see(label)
        self.insertion.check_class(data, label)
        if not self._do_transform:
            return None
        self._index = index = self._counted(draw(self.bank, label, self.label_policy, rng, counts=self._counts.values))
        return index

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of the item, changed by a sample or not."""
        d = dict(data)
        present = list(self.key_iterator(d))
        if self.label_key not in d and not self.allow_missing_keys:
            raise KeyError(f"Key `{self.label_key}` of transform `{type(self).__name__}` was missing in the data and allow_missing_keys==False.")
        index = self.randomize(d)
        for key in present:
            self.insertion.check(d[key], str(key))
        if index is not None and present:
            self._apply(d, present, index)
            for key in present:
                blank_meta(d, key)
        else:
            self._leave(d)
        return d

    @abstractmethod
    def _apply(self, d: dict[Hashable, Any], present: list[Hashable], index: int) -> None:
        """Changes the item by sample `index`."""

    def _leave(self, d: dict[Hashable, Any]) -> None:
        """Gives an item without a sample the form of the others."""
        if not isinstance(d.get(self.source_key), str):
            d[self.source_key] = REAL  # else what an earlier transform wrote holds still

    def _rename(self, d: dict[Hashable, Any], label: int) -> None:
        if isinstance(d.get(CLASS_NAME_KEY), str):
            d[CLASS_NAME_KEY] = self.insertion.class_name(label)


class RandDiverseReplaced(RandSampled):
    """Replaces an item's image by a random sample of a bank, with a given probability; dictionary version.

    Put it after the deterministic part of a `Compose` (what caching datasets keep) and before the random augmentation, which then acts on
    real and synthetic images alike. Whether it replaces or not, the item keeps its keys, and each value its type, dtype, shape and device,
    so items of both kinds collate. A MetaTensor is replaced by a new one, without the patient's meta data (identity affine, no applied
    operations; a file name, if there was one, becomes "synthetic:INDEX"), and a "KEY_meta_dict" beside it (`LoadImaged(image_only=False)`)
    keeps keys and types alone. `source_key` is added to every item: "real" or "synthetic:INDEX" with the sample's index in the bank. Where
    the label changes, a "class_name" in the item (MONAI's `MedNISTDataset`) changes with it. Other keys are the caller's: they still describe
    the item that was replaced.

    Class numbers must be the bank's own. Only a "class_name" can show that they are not: the item is refused if the bank knows that name under
    another number.

    Samples are as the bank's model learned them: of a model of `monai-diverse train`, rows first. MONAI's `LoadImage` gives PNG and JPEG pictures
    columns first, which on square images no check can see: read them with `reverse_indexing=False`, or give `Transpose((0, 2, 1))` to
    `sample_transform`.

    It draws differently in every DataLoader worker and epoch, see `transforms.seeding.WorkerSeeded`.

    Args:
        keys: of the image; several keys get the same sample.
        bank: a `SampleBank`, or its path or URL.
        label_key: of the class label: a whole number in any type, or one-hot.
        label_policy: "match": a sample of the item's class. "own": any sample, the item takes its label. "balance": a sample of a class drawn
            with probability inverse to the class's count in your data; the item takes its label. Classes that your data lack are not drawn.
        class_counts: items of each class 0.. in your data, `np.bincount(labels)`; for "balance" alone. Without them it counts the items seen so
            far, since the random state was set, so anew in each worker and epoch: rare classes then come too seldom, of which it warns.
        prob: probability of replacing, or a function of the epoch that gives it, such as `LinearRamp`; see `set_epoch`.
        sample_transform: applied to the sample, a float32 array (c, *spatial) in [0, 1], before it replaces an image: what your images
            have been through by then (resize, scaling). It is seeded along if it is `Randomizable`.
        source_key: where to write the item's origin.
        allow_missing_keys: leave items without image or label as they are, instead of raising.

    Attributes:
        ineligible: how often a replacement was due, but the bank has no sample of such a class; the real item stayed. Counted over all
            workers.

    Raises:
        RecipeError: `prob` outside [0, 1], an unknown policy, `class_counts` that are not as described, or with another policy.
        BankError: no bank there.
        KeyError: (when called) a missing key.
        DataError: (when called) the sample has another shape than the image, the label is none of the forms above, or its number and the
            item's "class_name" are not one class of the bank.
    """

    def _apply(self, d: dict[Hashable, Any], present: list[Hashable], index: int) -> None:
        sample = self.insertion.sample(index)
        for key in present:
            own = sample if key == present[-1] else sample.copy()  # images of one item must not share memory
            d[key] = self.insertion.put(own, d[key], str(key), source_of(index))
        d[self.source_key] = source_of(index)
        label = self.bank.label_of(index)
        if label != read_label(d[self.label_key]):
            d[self.label_key] = write_label(d[self.label_key], label)
            self._rename(d, label)


RandDiverseReplaceD = RandDiverseReplaceDict = RandDiverseReplaced
