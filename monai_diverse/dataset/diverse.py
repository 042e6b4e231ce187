"""A dataset with bank samples among its items."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.data.utils import set_rnd
from torch.utils.data import Dataset

from monai_diverse.bank import LabelPolicy, SampleBank, check_policy, draw, open_bank
from monai_diverse.data import IntArray, check_labels
from monai_diverse.dataset.items import Items, blanked, image_and_label, sequence_like
from monai_diverse.dataset.quotas import cycled, levelled, raised, shared
from monai_diverse.dataset.weights import mixing_weights
from monai_diverse.errors import RecipeError
from monai_diverse.transforms.blank import blank_meta
from monai_diverse.transforms.curriculum import Curriculum, EpochProbability, set_epoch
from monai_diverse.transforms.insertion import CLASS_NAME_KEY, Insertion, Inserts, SampleTransform, source_of
from monai_diverse.transforms.labels import read_label, write_label
from monai_diverse.transforms.seeding import WorkerSeeded, process_rank, ranked

Mode = Literal["replace", "append"]
SOURCE_KEY = "sample_source"


class DiverseDiffusionDataset(Inserts, EpochProbability, WorkerSeeded, Dataset[Any]):
    """A dataset with bank samples among its items.

    Items are dicts, or tuples or lists that begin (image, label, ...). Images are channel-first (c, *spatial), of the samples' shape, arrays or
    tensors; labels are whole numbers in any type, or one-hot. All items, real or not, have the same keys, types, dtypes and shapes, so that
    they collate; dicts gain "sample_source": "real" or "synthetic:INDEX" with the sample's index in the bank, and a "class_name" follows
    the label; class numbers must be the bank's own, see `RandDiverseReplaced`. In "replace" mode, whatever else a replaced item holds stays, except
    meta data of the image; in "append" mode, other entries of a synthetic item are blank: zeros and empty strings of the types that the first
    real item has.

    Samples are as the bank's model learned them, rows first for a model of `monai-diverse train`; see `RandDiverseReplaced` on pictures that
    MONAI's `LoadImage` reads.

    In "replace" mode items are drawn anew at every access: differently in every epoch and DataLoader worker, reproducibly with `seed`, or
    `set_determinism` and MONAI's DataLoader, which sets the state anew; see `transforms.seeding.WorkerSeeded`. In "append" mode the samples are drawn
    once, from `seed`, and every sample of a class is used before one is used twice. `set_random_state` seeds `data` and `transform` along,
    since MONAI's search for random objects ends at this dataset. In distributed training make it after the process group: the rank counts in what
    is drawn anew; appended samples are the same in all processes.

    It goes round a dataset that caches, never inside one: `CacheDataset(DiverseDiffusionDataset(...), ...)` would keep what was drawn first.

    Args:
        data: real items.
        bank: a `SampleBank`, or its path or URL.
        mode: "replace": each item becomes a sample with probability `prob`. "append": `ratio * len(data)` samples, rounded, follow the real items.
        prob: in "replace" mode alone: a number, or a function of the epoch that gives it, such as `transforms.LinearRamp`; see `set_epoch`.
        ratio: in "append" mode alone, from 0. None, with "balance" alone: as many samples as raise every class in `data` to the largest.
        label_policy: "match": samples of the item's class, or in the class shares of `data`. "own": in the bank's class shares. "balance": in
            "replace" mode the class is drawn with probability inverse to its count in `data`; in "append" mode classes are filled up so that
            real and appended items together are as even as can be. Both read each label in `data` once, at construction, as does "match" in
            "append" mode.
        image_key: of dict items.
        label_key: of dict items.
        transform: applied to the final item, real or not, as a whole: to the dict, or to the whole tuple.
        sample_transform: applied to the sample, a float32 array (c, *spatial) in [0, 1], before it becomes an item: what the images of `data` have
            been through (resize, scaling). It is seeded along if it is `Randomizable`.
        seed: of the random state, from 0.

    Attributes:
        ineligible: how many replacements or appended samples were due, but the bank has none of such a class. Counted over all workers.

    Raises:
        RecipeError: a setting outside its range.
        BankError: no bank there.
        DataError: items that are not as described, or of another shape than the bank's images.
    """

    def __init__(
        self,
        data: Items,
        bank: SampleBank | str | os.PathLike[str],
        *,
        mode: Mode = "replace",
        prob: float | Curriculum = 0.1,
        ratio: float | None = 0.2,
        label_policy: LabelPolicy = "match",
        image_key: str = "image",
        label_key: str = "label",
        transform: Callable[[Any], Any] | None = None,
        sample_transform: SampleTransform | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.label_policy = check_policy(label_policy)
        _check_settings(mode, ratio, label_policy, transform)
        self.data = data
        self.insertion = Insertion(open_bank(bank), sample_transform)
        self.mode, self.prob, self.ratio = mode, prob, ratio
        self.image_key, self.label_key = image_key, label_key
        self.transform = transform
        # not the overridden set_random_state: how `data` and `transform` were seeded before is their owner's choice
        self._reseed(seed_of_rank(check_seed(seed)))
        self._names: dict[int, str] = {}
        self._labels: IntArray | None = None
        self._counts = self._class_counts() if self._needs_counts() else None
        self._appended = self._draw_appended(seed) if mode == "append" else np.empty(0, np.int64)
        self._template = self._blank_item() if len(self._appended) else None

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> DiverseDiffusionDataset:
        """Seeds this dataset, its `data` and its `transform`; arguments as MONAI's. Samples that were appended stay."""
        super().set_random_state(seed, state)
        self.insertion.seed(self.R)
        for part in (self.data, self.transform):
            set_rnd(part, seed=int(self.R.randint(2**31)))
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of `prob`, and of whatever in `data` and `transform` has a `set_epoch`; see `transforms.set_epoch` for the search.

        Call it before you iterate over the loader: workers fetch ahead. It reaches all workers, persistent ones too.

        Args:
            epoch: from 0.

        Raises:
            RecipeError: `epoch` is no whole number from 0, or the function of the epoch returns no probability.
        """
        super().set_epoch(epoch)
        for part in (self.data, self.transform):
            set_epoch(part, epoch)

    def source_of(self, index: int) -> str:
        """Where item `index` comes from, without reading it: "real" or "synthetic:INDEX"; for tuples, which have no "sample_source".

        Raises:
            RecipeError: in "replace" mode, where that is drawn anew at every access.
            IndexError: there is no such item.
        """
        self._check_append("source_of")
        place = self._place(index)
        return source_of(None if place < len(self.data) else int(self._appended[place - len(self.data)]))

    def mixing_weights(self, share: float = 0.3, class_balanced: bool = False) -> torch.Tensor:
        """Weights for torch's `WeightedRandomSampler` or MONAI's `DistributedWeightedRandomSampler`, in "append" mode.

        Args:
            share: expected share of synthetic items among those drawn, in [0, 1].
            class_balanced: let every class be equally likely, real and synthetic items taken together; a class that lacks one kind is drawn
                from the other alone. Reads each label in `data` once, if construction did not.

        Returns:
            float64 (len(dataset),), summing to 1.

        Raises:
            RecipeError: "replace" mode, a share above 0 without synthetic items, or a share with which classes cannot be equally likely.
        """
        self._check_append("mixing_weights")
        if class_balanced:
            real, synthetic = self._real_labels(), self.bank.labels[self._appended]
        else:
            real, synthetic = np.zeros(len(self.data), np.int64), np.zeros(len(self._appended), np.int64)
        return torch.from_numpy(mixing_weights(real, synthetic, share))

    def __len__(self) -> int:
        return len(self.data) + len(self._appended)

    def __getitem__(self, index: int) -> Any:
        place = self._place(index)
        if place >= len(self.data):
            self.random_state()  # so that a random sample_transform is seeded in each worker
            blank = blanked(self._template, self.image_key, self.label_key)  # items must not share memory
            item = self._with_sample(blank, int(self._appended[place - len(self.data)]))
        else:
            item = self._real_or_replaced(place)
        return item if self.transform is None else self.transform(item)

    def _place(self, index: int) -> int:
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        return place

    def _check_append(self, asked: str) -> None:
        if self.mode != "append":
            raise RecipeError(f"{asked}: expected a dataset in 'append' mode, got {self.mode!r}, where each access draws what is synthetic")

    def _reseed(self, seed: int) -> None:
        WorkerSeeded.set_random_state(self, seed=seed)
        self.insertion.seed(self.R)

    def randomize(self, data: int) -> int | None:
        """Draws whether an item of class `data` is replaced, and by which sample."""
        rng = self.random_state()
        if rng.random_sample() >= self.prob:
            return None
        return self._counted(draw(self.bank, data, self.label_policy, rng, counts=self._counts))

    def _real_or_replaced(self, place: int) -> Any:
        item = self.data[place]
        image, label = image_and_label(item, self.image_key, self.label_key)
        self.insertion.check(image, self.image_key)
        self._check_class(item)
        index = self.randomize(read_label(label)) if self.mode == "replace" else None
        return self._rebuilt(item, image, label, None) if index is None else self._with_sample(item, index)

    def _check_class(self, item: Any) -> None:
        if isinstance(item, Mapping) and CLASS_NAME_KEY in item:
            self.insertion.check_class(item, read_label(item[self.label_key]))

    def _with_sample(self, item: Any, index: int) -> Any:
        image, label = image_and_label(item, self.image_key, self.label_key)
        sample = self.insertion.put(self.insertion.sample(index), image, self.image_key, source_of(index))
        return self._rebuilt(item, sample, write_label(label, self.bank.label_of(index)), index)

    def _rebuilt(self, item: Any, image: Any, label: Any, index: int | None) -> Any:
        if not isinstance(item, Mapping):
            return sequence_like(item, [image, label, *item[2:]])
        d = dict(item) | {self.image_key: image, self.label_key: label}
        if index is not None or not isinstance(d.get(SOURCE_KEY), str):
            d[SOURCE_KEY] = source_of(index)
        if index is not None:
            blank_meta(d, self.image_key)
        changed = index is not None and read_label(label) != read_label(item[self.label_key])
        if changed and isinstance(d.get(CLASS_NAME_KEY), str):
            d[CLASS_NAME_KEY] = self._names.get(read_label(label)) or self.insertion.class_name(read_label(label))
        return d

    def _needs_counts(self) -> bool:
        return self.label_policy == "balance" or (self.mode == "append" and self.label_policy == "match")

    def _real_labels(self) -> IntArray:
        if self._labels is None:
            labels = np.empty(len(self.data), np.int64)
            for place in range(len(self.data)):
                item = self.data[place]
                labels[place] = read_label(image_and_label(item, self.image_key, self.label_key)[1])
                self._check_class(item)
                if isinstance(item, Mapping) and isinstance(item.get(CLASS_NAME_KEY), str):
                    self._names[int(labels[place])] = item[CLASS_NAME_KEY]
            self._labels = check_labels(labels, len(labels))
        return self._labels

    def _class_counts(self) -> IntArray:
        return np.bincount(self._real_labels(), minlength=self.bank.header.classes).astype(np.int64, copy=False)

    def _quotas(self, held: IntArray) -> IntArray:
        """How many samples of each class are due, whether the bank has any or not; `held` are its samples by class."""
        if self.ratio is None:
            return raised(self._class_counts())
        wanted = round(self.ratio * len(self.data))
        if self.label_policy == "balance" and self._counts is not None:
            return levelled(self._counts, (self._counts > 0) & (np.pad(held, (0, len(self._counts) - len(held))) > 0), wanted)
        return shared(held if self._counts is None else self._counts, wanted)

    def _draw_appended(self, seed: int) -> IntArray:
        held = np.asarray(self.bank.class_counts)
        quotas = self._quotas(held)
        wanted = int(quotas.sum()) if self.ratio is None else round(self.ratio * len(self.data))
        rng = np.random.default_rng(seed)
        picks = [cycled(self.bank.indices_of(label), int(quota), rng) for label, quota in enumerate(quotas)]
        appended = rng.permutation(np.concatenate(picks))
        self.ineligible = wanted - len(appended)
        if self.ineligible:
            text = f"append: {self.ineligible} of {wanted} samples were due in classes of which the bank has none, and are left out"
            warnings.warn(f"{text}; the bank holds {held.tolist()} by class", stacklevel=3)
        return appended

    def _blank_item(self) -> Any:
        """The first real item with everything blank but image and label, whose form samples take and whose content they replace."""
        item = self.data[0]
        self.insertion.check(image_and_label(item, self.image_key, self.label_key)[0], self.image_key)
        self._check_class(item)
        return blanked(item, self.image_key, self.label_key)


def check_seed(seed: object) -> int:
    """The seed itself; raises RecipeError unless it is a whole number from 0."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise RecipeError(f"seed: expected a whole number from 0, got {seed!r}")
    return int(seed)


def seed_of_rank(seed: int) -> int:
    """The seed itself in the first process, others in the others."""
    rank = process_rank()
    return ranked(seed, rank=rank) if rank else seed


def _check_settings(mode: str, ratio: float | None, label_policy: str, transform: object) -> None:
    if mode not in ("replace", "append"):
        raise RecipeError(f"mode: expected 'replace' or 'append', got {mode!r}")
    if ratio is None and (mode, label_policy) != ("append", "balance"):
        raise RecipeError(f"ratio: expected a number, got None, which goes with 'append' and 'balance' alone, not {mode!r} and {label_policy!r}")
    if ratio is not None and not (isinstance(ratio, int | float | np.number) and ratio >= 0 and math.isfinite(ratio)):
        raise RecipeError(f"ratio: expected a finite number from 0, got {ratio!r}")
    if transform is not None and not callable(transform):
        raise RecipeError(f"transform: expected a callable, got {type(transform).__name__}")
