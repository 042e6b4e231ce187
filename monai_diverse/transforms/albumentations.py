"""Bank samples in albumentations' pipelines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.bank import LabelPolicy, SampleBank, check_policy, draw, open_bank
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.transforms.albumentations_base import A, FromBank, SampleStage
from monai_diverse.transforms.counts import ClassCounts
from monai_diverse.transforms.insertion import CLASS_NAME_KEY, REAL, source_of
from monai_diverse.transforms.labels import write_label

_DESCRIBING = ("images", "volumes", "mask", "masks", "mask3d", "masks3d", "bboxes", "keypoints")


class BankTransform(FromBank):
    """Replaces the image by a random sample of a bank, with a given probability; for albumentations' `Compose`.

        A.Compose([BankTransform("bank", p=0.1), A.HorizontalFlip()])(image=image, label=label)

    Put it first, before the random augmentation. Replaced or not, the image keeps shape, dtype and range: uint8 in 0..255 or floating point
    in 0..1, (height, width, channels) or (height, width). Banks of volumes replace `volume`, (depth, height, width[, channels]), instead. Other
    images of the call that `additional_targets` declares as such get the same sample. The label keeps its form. `source_key` is added to
    every output: "real" or "synthetic:INDEX" with the sample's index in the bank. Where the label changes, a "class_name" in the call
    changes with it. In an `A.OneOf` or a `Compose` with p < 1 the key is missing wherever they pass it by: put it straight into the outer `Compose`.

    Class numbers must be the bank's own. Only a "class_name" can show that they are not: a call is refused if the bank knows that name under
    another number.

    Masks, boxes and keypoints describe the real image, so a call that has any is refused, whatever would have been drawn.

    Random numbers come from albumentations' own generators, reproducibly with `A.Compose(seed=...)`. Two things that albumentations 2.0.8 does
    are guarded against here; other transforms still do both. All transforms of a seeded `Compose` draw the same numbers: this one draws its own,
    others for each bank, policy, `source_key` and `p`.
    DataLoader workers are copies that repeat one another, and start over in every epoch, seeded or not: in a worker where neither
    `set_random_seed` nor `set_random_state` was called, this one derives new streams, once a worker, from those that it came with and from the
    worker's seed, which torch draws for each worker and epoch, and, in distributed training, from the process's rank. With
    `persistent_workers` the streams just run on.

    `A.to_dict`, `A.save` and pickles hold the bank's path. `A.load` knows the class once `monai_diverse.BankTransform` was imported.
    `A.ReplayCompose` replays the same sample, and writes its label, whatever the new data's is.

    Args:
        bank: a `SampleBank`, or its path or URL.
        label_key: of the class label in the call: a whole number in any type, or one-hot.
        label_policy: "match": a sample of the item's class. "own": any sample, the item takes its label. "balance": a sample of a class drawn
            with probability inverse to the class's count in your data; the item takes its label. Classes that your data lack are not drawn.
        class_counts: items of each class 0.. in your data, `np.bincount(labels)`; for "balance" alone. Without them it counts the items seen so
            far, since the random state was set, so anew in each worker and epoch: rare classes then come too seldom, of which it warns.
        sample_transform: applied to the sample before it replaces the image: what your images have been through by then. A transform or `Compose`
            of albumentations, or a function from array to array. It gets the sample in dtype, range and layout of your image.
        source_key: where to write the item's origin.
        p: probability of replacing.

    Attributes:
        ineligible: how often a replacement was due, but the bank has no sample of such a class; the real item stayed. Counted over all
            workers.

    Raises:
        RecipeError: `p` outside [0, 1], an unknown policy, `class_counts` that are not as described or with another policy, a `sample_transform`
            that cannot be called.
        BankError: no bank there.
        DataError: (when called) no image or label, an image of another shape than the sample or of a dtype that albumentations does not
            take, masks, boxes or keypoints, a label of none of the forms above, or one whose number and "class_name" are not one class of the
            bank.
    """

    label_key: str

    def __init__(
        self,
        bank: SampleBank | str | os.PathLike[str],
        *,
        label_key: str = "label",
        label_policy: LabelPolicy = "match",
        class_counts: Sequence[int] | None = None,
        sample_transform: SampleStage | A.BasicTransform | A.BaseCompose | Mapping[str, Any] | None = None,
        source_key: str = "sample_source",
        p: float = 0.1,
    ) -> None:
        self.label_policy = check_policy(label_policy)
        self.source_key = source_key
        opened = open_bank(bank)
        self._counts = ClassCounts(class_counts, self.label_policy, opened.header.classes)
        self.class_counts = self._counts.given
        super().__init__(opened, label_key, sample_transform, p)
        self._available_keys.update([label_key, source_key, CLASS_NAME_KEY])

    @property
    def targets(self) -> dict[str, Callable[..., Any]]:
        """What it replaces, and what it must know of, by any name, to refuse it."""
        other = "volume" if self.image_key == "image" else "image"
        return dict.fromkeys((*_DESCRIBING, other), self._refuse) | {self.image_key: self.apply}

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        """The data, with image and label replaced or not, and their source."""
        if not args:  # positional arguments are albumentations' to refuse
            self._check(data)
            label = self._label(data)
            self.insertion.check_class(data, label)
            self._counts.see(label)
        made = super().__call__(*args, force_apply=force_apply, **data)
        if not isinstance(made.get(self.source_key), str):
            made[self.source_key] = REAL  # else what an earlier replacement wrote holds still
        return made

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws the sample: {"index": its index, or None if nothing is eligible}."""
        index = draw(self.bank, self._label(data), self.label_policy, self._rng(), counts=self._counts.values)
        return {"index": self._counted(index)}

    def apply(self, img: npt.NDArray[Any], index: int, **params: Any) -> npt.NDArray[Any]:
        """Sample `index` in the form of `img`."""
        made: npt.NDArray[Any] = self.insertion.put(self.insertion.sample_like(index, img), img, self.image_key, source_of(index))
        return made

    def apply_with_params(self, params: dict[str, Any], *args: Any, **data: Any) -> dict[str, Any]:
        """The data with the drawn sample's image, label and source."""
        index = params["index"]
        if index is None:
            return data
        made: dict[str, Any] = super().apply_with_params(params, *args, **data)
        made[self.source_key] = source_of(index)
        label = self.bank.label_of(index)
        if label != self._label(made):
            made[self.label_key] = write_label(made[self.label_key], label)
            if isinstance(made.get(CLASS_NAME_KEY), str):
                made[CLASS_NAME_KEY] = self.insertion.class_name(label)
        return made

    def _stream(self) -> tuple[str, ...]:
        return (*super()._stream(), self.label_policy, self.source_key, repr(float(self.p)))

    def _begin(self) -> None:
        super()._begin()
        self._counts.forget()

    def _check(self, data: Mapping[str, Any]) -> None:
        present = {key: self._key2func[key] for key, value in data.items() if key in self._key2func and value is not None}
        refused = [key for key, function in present.items() if function == self._refuse]
        if refused:
            raise DataError(
                f"{refused[0]}: expected {self.image_key} and label alone, since a sample has no {refused[0]}; leave it out of the call, or leave"
                " BankTransform out"
            )
        if self.image_key not in present:
            raise DataError(f"{self.image_key}: expected it in the call, for a bank of shape {self.bank.header.shape}, got {sorted(data)}")
        for key in present:
            self.insertion.check(data[key], key)

    def _refuse(self, value: Any, **params: Any) -> Any:
        raise NotImplementedError("a call with such a target is refused before anything is applied")


class BankReference(FromBank):
    """Draws samples of a bank as references for transforms that adapt an image to another: `A.FDA`, `A.HistogramMatching`.

        A.Compose([BankReference("bank", metadata_key="fda_metadata"), A.FDA(p=0.5)])(image=image)

    It changes no image. It puts a list of samples, in dtype, range and number of channels of the image, under `metadata_key`, where such a
    transform looks for them; give several transforms the same `metadata_key` to feed them all. As any metadata the list is in the output, too.
    Of a class that the bank has no sample of, the image itself is the reference, and nothing changes.

    `A.PixelDistributionAdaptation` of albumentations 2.0.8 makes black images of uint8 ones, whatever the reference: give it float32.
    `A.Mosaic` and `A.OverlayElements` are not served: they would put parts of samples into images that count as real.

    Random numbers, workers and saving are as with `BankTransform`; but `A.FDA` and the like refuse to be saved or replayed.

    Args:
        bank: a `SampleBank` of two-dimensional images, or its path or URL.
        metadata_key: where to put the samples; "fda_metadata", "hm_metadata" and "pda_metadata" are what albumentations' transforms look for.
        count: how many samples, from 1; such a transform picks one of them.
        label_key: of the class label in the call: references are of the item's class. None: of any class.
        sample_transform: applied to each sample, as with `BankTransform`; sizes need not match.
        p: must be 1, since what reads `metadata_key` looks for it in every call; set probabilities there.

    Attributes:
        ineligible: how often the bank had no sample of the item's class, over all workers.

    Raises:
        RecipeError: `count` or `p` outside its range, a bank of volumes, a `sample_transform` that cannot be called.
        BankError: no bank there.
        DataError: (when called) no image or label, or an image of another number of channels than the samples.
    """

    def __init__(
        self,
        bank: SampleBank | str | os.PathLike[str],
        *,
        metadata_key: str = "fda_metadata",
        count: int = 1,
        label_key: str | None = None,
        sample_transform: SampleStage | A.BasicTransform | A.BaseCompose | Mapping[str, Any] | None = None,
        p: float = 1.0,
    ) -> None:
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise RecipeError(f"count: expected a whole number from 1, got {count!r}")
        if p != 1:
            raise RecipeError(f"p: expected 1, got {p!r}; set the probability of the transform that reads {metadata_key!r}")
        self.metadata_key, self.count = metadata_key, int(count)
        super().__init__(bank, label_key, sample_transform, p)
        if self.image_key != "image":
            raise RecipeError(f"bank: expected images (channels, height, width), got {self.bank.header.shape}")
        self._available_keys.update([metadata_key, *([] if label_key is None else [label_key])])

    @property
    def targets(self) -> dict[str, Callable[..., Any]]:
        """The image, which stays as it is."""
        return {"image": self.apply}

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        """The data, with references."""
        if not args:  # positional arguments are albumentations' to refuse
            self.insertion.check_form(data.get("image"), "image")
        return super().__call__(*args, force_apply=force_apply, **data)

    def apply(self, img: npt.NDArray[Any], **params: Any) -> npt.NDArray[Any]:
        """The image itself."""
        return img

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws the samples: {"indices": their indices}."""
        policy: LabelPolicy = "own" if self.label_key is None else "match"
        label = 0 if self.label_key is None else self._label(data)
        drawn = [draw(self.bank, label, policy, self._rng()) for _ in range(self.count)]
        return {"indices": [index for index in drawn if index is not None]}

    def apply_with_params(self, params: dict[str, Any], *args: Any, **data: Any) -> dict[str, Any]:
        """The data with the drawn samples under `metadata_key`."""
        image = data["image"]
        samples = [self._reference(index, image) for index in params["indices"]]
        if not samples:
            self._counted(None)
        return data | {self.metadata_key: samples or [image]}

    def _reference(self, index: int, image: Any) -> npt.NDArray[Any]:
        sample = self.insertion.sample_like(index, image)
        if sample.dtype != image.dtype or sample.shape[2:] != image.shape[2:]:
            raise DataError(
                f"image: has dtype {image.dtype} and shape {image.shape}, the sample {sample.dtype} and {sample.shape}; pass a sample_transform that"
                " makes samples of the image's dtype and channels, such as A.ToRGB()"
            )
        return sample

    def _stream(self) -> tuple[str, ...]:
        return (*super()._stream(), self.metadata_key)
