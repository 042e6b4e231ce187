"""Bank samples in any torch dataset, without touching its transforms."""

from __future__ import annotations

import heapq
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from torch.utils.data import Dataset

from monai_diverse.bank import LabelPolicy, SampleBank, check_policy, draw, open_bank
from monai_diverse.data import IntArray, check_labels
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.transforms.array import check_probability
from monai_diverse.transforms.insertion import CLASS_NAME_KEY, Insertion, source_of
from monai_diverse.transforms.labels import read_label, write_label
from monai_diverse.transforms.seeding import WorkerSeeded

Mode = Literal["replace", "append"]
SOURCE_KEY = "sample_source"


class Items(Protocol):
    """What can be wrapped: anything with a length that gives items by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class DiverseDiffusionDataset(WorkerSeeded, Dataset[Any]):
    """A dataset with bank samples among its items.

    Items are dicts, or tuples or lists that begin (image, label, ...). Images are channel-first (c, *spatial), of the bank's shape, arrays or
    tensors; labels are whole numbers in any type, or one-hot. All items, real or not, have the same keys, types, dtypes and shapes, so that
    they collate; dicts gain "sample_source": "real" or "synthetic:INDEX" with the sample's index in the bank, and a "class_name" follows
    the label. In "replace" mode, whatever else a replaced item holds stays; in "append" mode, other entries of a synthetic item are blank:
    zeros and empty strings of the types that the first real item has.

    In "replace" mode items are drawn anew at every access: differently in every epoch and DataLoader worker, reproducibly with `seed`, or
    `set_determinism` and MONAI's DataLoader, which sets the state anew; see `transforms.seeding.WorkerSeeded`. In "append" mode the samples are drawn
    once, from `seed`, and every sample of a class is used before one is used twice. `set_random_state` seeds `data` and `transform` along,
    since MONAI's search for random objects ends at this dataset.

    Args:
        data: real items.
        bank: a `SampleBank` or its path.
        mode: "replace": each item becomes a sample with probability `prob`. "append": `ratio * len(data)` samples, rounded, follow the real items.
        prob: in "replace" mode alone.
        ratio: in "append" mode alone, from 0.
        label_policy: "match": samples of the item's class, or in the class shares of `data`. "own": in the bank's class shares. "balance": in
            "replace" mode the class is drawn with probability inverse to its count in `data`; in "append" mode classes are filled up so that
            real and appended items together are as even as can be. Both read each label in `data` once, at construction, as does "match" in
            "append" mode.
        image_key: of dict items.
        label_key: of dict items.
        transform: applied to the final item, real or not, as a whole: to the dict, or to the whole tuple.
        seed: of the random state, from 0.

    Attributes:
        ineligible: how many replacements or appended samples were due, but the bank has none of such a class. Every worker's copy counts
            for itself.

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
        prob: float = 0.1,
        ratio: float = 0.2,
        label_policy: LabelPolicy = "match",
        image_key: str = "image",
        label_key: str = "label",
        transform: Callable[[Any], Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_settings(mode, prob, ratio, transform, seed)
        self.data = data
        self.insertion = Insertion(open_bank(bank), None)
        self.mode, self.prob, self.ratio = mode, prob, ratio
        self.label_policy = check_policy(label_policy)
        self.image_key, self.label_key = image_key, label_key
        self.transform = transform
        self.ineligible = 0
        # not the overridden set_random_state: how `data` and `transform` were seeded before is their owner's choice
        WorkerSeeded.set_random_state(self, seed=seed)
        self._names: dict[int, str] = {}
        self._counts = self._class_counts() if self._needs_counts() else None
        self._appended = self._draw_appended(seed) if mode == "append" else np.empty(0, np.int64)
        self._template = self._blank_item() if len(self._appended) else None

    @property
    def bank(self) -> SampleBank:
        """Where samples come from."""
        return self.insertion.bank

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> DiverseDiffusionDataset:
        """Seeds this dataset, its `data` and its `transform`; arguments as MONAI's. Samples that were appended stay."""
        super().set_random_state(seed, state)
        for part in (self.data, self.transform):
            set_rnd(part, seed=int(self.R.randint(2**31)))
        return self

    def __len__(self) -> int:
        return len(self.data) + len(self._appended)

    def __getitem__(self, index: int) -> Any:
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        if place >= len(self.data):
            item = self._with_sample(self._template, int(self._appended[place - len(self.data)]))
        else:
            item = self._real_or_replaced(place)
        return item if self.transform is None else self.transform(item)

    def _reseed(self, seed: int) -> None:
        WorkerSeeded.set_random_state(self, seed=seed)

    def randomize(self, data: int) -> int | None:
        """Draws whether an item of class `data` is replaced, and by which sample."""
        rng = self.random_state()
        if rng.random_sample() >= self.prob:
            return None
        index = draw(self.bank, data, self.label_policy, rng, counts=self._counts)
        self.ineligible += index is None
        return index

    def _real_or_replaced(self, place: int) -> Any:
        item = self.data[place]
        image, label = self._image_and_label(item)
        self.insertion.check(image, self.image_key)
        index = self.randomize(read_label(label)) if self.mode == "replace" else None
        return self._rebuilt(item, image, label, None) if index is None else self._with_sample(item, index)

    def _with_sample(self, item: Any, index: int) -> Any:
        image, label = self._image_and_label(item)
        sample = self.insertion.put(self.insertion.sample(index), image, self.image_key)
        return self._rebuilt(item, sample, write_label(label, int(self.bank.labels[index])), index)

    def _rebuilt(self, item: Any, image: Any, label: Any, index: int | None) -> Any:
        if not isinstance(item, Mapping):
            values = [image, label, *item[2:]]
            return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)
        d = dict(item) | {self.image_key: image, self.label_key: label}
        if index is not None or not isinstance(d.get(SOURCE_KEY), str):
            d[SOURCE_KEY] = source_of(index)
        changed = index is not None and read_label(label) != read_label(item[self.label_key])
        if changed and isinstance(d.get(CLASS_NAME_KEY), str):
            d[CLASS_NAME_KEY] = self._names.get(read_label(label)) or self.insertion.class_name(read_label(label))
        return d

    def _image_and_label(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            missing = [key for key in (self.image_key, self.label_key) if key not in item]
            if missing:
                raise DataError(f"data: expected items with keys {self.image_key!r} and {self.label_key!r}, got {sorted(map(str, item))}")
            return item[self.image_key], item[self.label_key]
        if isinstance(item, tuple | list) and len(item) >= 2:
            return item[0], item[1]
        raise DataError(f"data: expected items that are dicts, or tuples or lists (image, label, ...), got {type(item).__name__}")

    def _needs_counts(self) -> bool:
        return self.label_policy == "balance" or (self.mode == "append" and self.label_policy == "match")

    def _class_counts(self) -> IntArray:
        labels = np.empty(len(self.data), np.int64)
        for place in range(len(self.data)):
            item = self.data[place]
            labels[place] = read_label(self._image_and_label(item)[1])
            if isinstance(item, Mapping) and isinstance(item.get(CLASS_NAME_KEY), str):
                self._names[int(labels[place])] = item[CLASS_NAME_KEY]
        return np.bincount(check_labels(labels, len(labels)), minlength=self.bank.header.classes).astype(np.int64, copy=False)

    def _draw_appended(self, seed: int) -> IntArray:
        wanted = round(self.ratio * len(self.data))
        held = np.asarray(self.bank.class_counts)
        if self.label_policy == "balance" and self._counts is not None:
            quotas = _levelled(self._counts, (self._counts > 0) & (np.pad(held, (0, len(self._counts) - len(held))) > 0), wanted)
        else:
            quotas = _shared(held if self._counts is None else self._counts, wanted)
        rng = np.random.default_rng(seed)
        picks = [_cycled(self.bank.indices_of(label), int(quota), rng) for label, quota in enumerate(quotas)]
        appended = rng.permutation(np.concatenate(picks))
        self.ineligible = wanted - len(appended)
        if self.ineligible:
            text = f"append: {self.ineligible} of {wanted} samples were due in classes of which the bank has none, and are left out"
            warnings.warn(f"{text}; the bank holds {held.tolist()} by class", stacklevel=3)
        return appended

    def _blank_item(self) -> Any:
        """The first real item with everything blank but image and label, whose form samples take and whose content they replace."""
        item = self.data[0]
        image, label = self._image_and_label(item)
        self.insertion.check(image, self.image_key)
        if isinstance(item, Mapping):
            ours = (self.image_key, self.label_key, CLASS_NAME_KEY)
            return {key: value if key in ours else _blank(value, str(key)) for key, value in item.items()}
        values = [image, label, *(_blank(value, str(place)) for place, value in enumerate(item[2:], 2))]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)


def _check_settings(mode: str, prob: float, ratio: float, transform: object, seed: int) -> None:
    if mode not in ("replace", "append"):
        raise RecipeError(f"mode: expected 'replace' or 'append', got {mode!r}")
    check_probability(prob)
    if not (isinstance(ratio, int | float | np.number) and ratio >= 0 and math.isfinite(ratio)):
        raise RecipeError(f"ratio: expected a finite number from 0, got {ratio!r}")
    if transform is not None and not callable(transform):
        raise RecipeError(f"transform: expected a callable, got {type(transform).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise RecipeError(f"seed: expected a whole number from 0, got {seed!r}")


def _shared(shares: npt.NDArray[np.int64], total: int) -> IntArray:
    """`total` divided in proportion to `shares` by largest remainders; nothing where there are no shares."""
    if not shares.sum():
        return np.zeros(len(shares), np.int64)
    exact = shares / shares.sum() * total
    quotas: IntArray = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: total - quotas.sum()]] += 1
    return quotas


def _levelled(counts: npt.NDArray[np.int64], usable: npt.NDArray[np.bool_], total: int) -> IntArray:
    """`total` given out one by one, each to the smallest usable class."""
    quotas = np.zeros(len(counts), np.int64)
    heap = [(int(count), label) for label, count in enumerate(counts) if usable[label]]
    heapq.heapify(heap)
    for _ in range(total if heap else 0):
        count, label = heap[0]
        quotas[label] += 1
        heapq.heapreplace(heap, (count + 1, label))
    return quotas


def _cycled(candidates: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """`count` of the candidates in random order, all of them before one comes again; none if there are none."""
    if not len(candidates) or not count:
        return np.empty(0, np.int64)
    return np.concatenate([rng.permutation(candidates) for _ in range(-(-count // len(candidates)))])[:count]


def _blank(value: Any, what: str) -> Any:
    """Zeros, empty strings and the like, of the same type and shape."""
    if isinstance(value, MetaTensor):
        return MetaTensor(torch.zeros_like(value.as_tensor()))
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, np.ndarray):
        return np.zeros_like(value)
    if isinstance(value, str | bytes | bool | int | float | np.generic):
        return type(value)()
    if isinstance(value, Mapping):
        return {key: _blank(part, f"{what}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_blank(part, f"{what}.{place}") for place, part in enumerate(value))
    raise DataError(
        f"data: expected numbers, strings, arrays or tensors beside image and label, got {type(value).__name__} in {what!r}; drop it from the items"
    )
