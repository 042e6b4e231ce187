"""MixUp with samples of a bank, in dictionary pipelines."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection

from monai_diverse.bank import LabelPolicy, SampleBank
from monai_diverse.errors import RecipeError
from monai_diverse.transforms.curriculum import Curriculum
from monai_diverse.transforms.dictionary import RandSampled
from monai_diverse.transforms.insertion import SampleTransform, source_of
from monai_diverse.transforms.labels import read_label, soft_label


class RandDiverseMixd(RandSampled):
    """Blends an item's image with a random sample of a bank, with a given probability, and its label likewise; dictionary version.

    MixUp (Zhang et al., ICLR 2018, equation 1) between a real item and a sample: with w drawn from Beta(alpha, alpha),
    image' = (1 - w) image + w sample, and likewise for the one-hot labels.

    Mixed or not, the label becomes soft: float32 (num_classes,), the share of each class, for a loss that takes probabilities, such as
    torch's `CrossEntropyLoss`. A tensor gives a tensor on its device, any other label a NumPy array; a MetaTensor's meta data are left out.
    Images keep type, dtype, shape and device; whole numbers are rounded. A mixed MetaTensor is a new one, without the patient's meta data
    (identity affine, no applied operations; a file name, if there was one, becomes the source), though the patient's anatomy still shows in it,
    and a "KEY_meta_dict" beside it keeps keys and types alone. `source_key` is added to every item: "real" or "mixed:INDEX:WEIGHT" with the
    sample's index in the bank and its share w. A "class_name" in the item names the class of the sample where w is above a half, else it
    stays. Other keys are the caller's: they still describe the real item. Class numbers must be the bank's own, see `RandDiverseReplaced`.

    Put it where `RandDiverseReplaced` would be, and after that one if you use both: soft labels can be neither matched nor mixed once more. An
    item that was replaced and is then mixed stays "synthetic:INDEX", with the index of the first sample: no real image is in it.
    It draws differently in every DataLoader worker and epoch, see `transforms.seeding.WorkerSeeded`.

    Args:
        keys: of the image; several keys get the same sample and w.
        bank: a `SampleBank`, or its path or URL.
        alpha: of the Beta distribution, above 0: small values leave nearly one or the other, 1 draws w uniformly, large ones stay near a half.
        num_classes: length of the soft labels, at least the bank's classes, which are the default.
        label_key: of the class label: a whole number in any type, or one-hot.
        label_policy: which samples an item may be blended with. "match": of its own class; the soft label stays one-hot. "own": any. "balance":
            of a class drawn with probability inverse to its count in your data.
        class_counts: items of each class 0.. in your data, for "balance" alone; as with `RandDiverseReplaced`.
        prob: probability of blending, or a function of the epoch that gives it, such as `LinearRamp`; see `set_epoch`.
        sample_transform: applied to the sample, a float32 array (c, *spatial) in [0, 1], before it is blended: what your images have been
            through by then (resize, scaling). It is seeded along if it is `Randomizable`.
        source_key: where to write the item's origin.
        allow_missing_keys: leave what lacks an image or a label unmixed, instead of raising. A label is made soft even without an image.

    Attributes:
        ineligible: how often a blend was due, but the bank has no sample of such a class; the real image stayed. Counted over all workers.

    Raises:
        RecipeError: `alpha`, `num_classes` or `prob` outside its range, an unknown policy, `class_counts` that do not fit.
        BankError: no bank there.
        KeyError: (when called) a missing key.
        DataError: (when called) the sample has another shape than the image, the image is of neither floating-point nor whole numbers, the
            label is none of the forms above, or one that `num_classes` has no room for, or its number and the item's "class_name" are not one
            class of the bank.
    """

    def __init__(
        self,
        keys: KeysCollection,
        bank: SampleBank | str | os.PathLike[str],
        *,
        alpha: float = 0.4,
        num_classes: int | None = None,
        label_key: str = "label",
        label_policy: LabelPolicy = "match",
        class_counts: Sequence[int] | None = None,
        prob: float | Curriculum = 0.1,
        sample_transform: SampleTransform | None = None,
        source_key: str = "sample_source",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys,
            bank,
            label_key=label_key,
            label_policy=label_policy,
            class_counts=class_counts,
            prob=prob,
            sample_transform=sample_transform,
            source_key=source_key,
            allow_missing_keys=allow_missing_keys,
        )
        if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number) or not 0 < alpha < float("inf"):
            raise RecipeError(f"alpha: expected a finite number above 0, got {alpha!r}")
        classes = self.bank.header.classes
        if num_classes is not None and not (isinstance(num_classes, int | np.integer) and num_classes >= classes):
            raise RecipeError(f"num_classes: expected a whole number from {classes}, the bank's classes, or None, got {num_classes!r}")
        self.alpha = float(alpha)
        self.num_classes = classes if num_classes is None else int(num_classes)
        self._weight = 0.0

    def randomize(self, data: Any = None) -> int | None:
        """Draws whether to blend, with which sample, and its share.

        Args:
            data: the item; anything without a label gives no sample.
        """
        index = super().randomize(data)
        self._weight = 0.0 if index is None else float(self.random_state().beta(self.alpha, self.alpha))
        return index

    def _apply(self, d: dict[Hashable, Any], present: list[Hashable], index: int) -> None:
        weight = self._weight  # once: threads may share this object
        sample = self.insertion.sample(index)
        earlier = d.get(self.source_key)
        source = earlier if isinstance(earlier, str) and earlier.startswith("synthetic:") else source_of(index, weight)
        for key in present:
            d[key] = self.insertion.blend(sample, d[key], weight, str(key), source)
        d[self.source_key] = source
        own, other = read_label(d[self.label_key]), self.bank.label_of(index)
        shares = {own: 1.0} if own == other else {own: 1 - weight, other: weight}
        d[self.label_key] = soft_label(d[self.label_key], shares, self.num_classes)
        if own != other and weight > 0.5:
            self._rename(d, other)

    def _leave(self, d: dict[Hashable, Any]) -> None:
        super()._leave(d)
        if self.label_key in d:
            d[self.label_key] = soft_label(d[self.label_key], {read_label(d[self.label_key]): 1.0}, self.num_classes)


RandDiverseMixD = RandDiverseMixDict = RandDiverseMixd
