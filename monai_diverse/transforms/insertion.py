"""A sample in the place of a real image: same type, dtype, shape and device, and nothing of the patient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable
from monai.utils import MAX_SEED

from monai_diverse.bank import SampleBank
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.transforms.blank import meta_of
from monai_diverse.transforms.shared import Tally

SampleTransform = Callable[[npt.NDArray[np.float32]], Any]

REAL = "real"
CLASS_NAME_KEY = "class_name"
_TOLERANCE = 4.0
_TOLERANCE_RAW = 0.5
_DIM = 0.02


def source_of(index: int | None, weight: float | None = None) -> str:
    """What an item says of its origin: "real", "synthetic:INDEX", or "mixed:INDEX:WEIGHT".

    Args:
        index: of the sample in its bank; None: there is none.
        weight: the sample's share, where it was mixed with a real image.
    """
    if index is None:
        return REAL
    return f"synthetic:{index}" if weight is None else f"mixed:{index}:{weight:.4f}"


class Insertion:
    """Puts samples of a bank in the place of real images.

    Args:
        bank: the samples.
        sample_transform: applied to the sample, a float32 array (c, *spatial) in [0, 1], before it replaces an image: whatever the real
            images have been through by then (resize, scaling, z-score). None: the sample as it is.
    """

    remedy = (
        "place this transform where images are (channels, *spatial) of the bank's size, or pass a sample_transform that resizes samples as your"
        " images were"
    )

    def __init__(self, bank: SampleBank, sample_transform: SampleTransform | None) -> None:
        if sample_transform is not None and not callable(sample_transform):
            raise RecipeError(f"sample_transform: expected a callable, got {type(sample_transform).__name__}")
        if not len(bank):
            warnings.warn(f"bank: {bank.location} holds no samples, so that all items stay real; grow it first", stacklevel=3)
        self.bank = bank
        self.sample_transform = sample_transform
        self.tally = Tally()
        self._range_seen = False

    def seed(self, rng: np.random.RandomState) -> None:
        """Seeds `sample_transform` from `rng` where it is random."""
        if isinstance(self.sample_transform, Randomizable):
            self.sample_transform.set_random_state(seed=int(rng.randint(MAX_SEED, dtype="uint32")))

    def class_name(self, label: int) -> str:
        """What "class_name" of an item with this label says: the name that the bank's source gave it, or "class LABEL"."""
        return self.bank.header.class_name(label)

    def check_class(self, item: Mapping[Any, Any], label: int) -> None:
        """Raises DataError where the item's "class_name" is one of the bank's, but of another class than `label`."""
        name, names = item.get(CLASS_NAME_KEY), self.bank.header.source.get("class_names")
        if isinstance(name, str) and isinstance(names, list) and name in names and names[label : label + 1] != [name]:
            raise DataError(
                f"{CLASS_NAME_KEY}: the item says class {label} is {name!r}, the bank says it is {self.class_name(label)!r}, and {name!r} is class"
                f" {names.index(name)}; number your classes as the bank does: {', '.join(f'{i} {each}' for i, each in enumerate(names))}"
            )

    def check(self, real: Any, what: str) -> None:
        """Raises DataError unless `real` is an image, and, where no `sample_transform` could change that, one of the bank's shape."""
        if not isinstance(real, np.ndarray | torch.Tensor):
            raise DataError(f"{what}: expected an array or tensor (channels, *spatial), got {type(real).__name__}; load the image first")
        if self.sample_transform is None:
            self._check_shape(tuple(real.shape), self.bank.header.shape, what)

    def sample(self, index: int) -> npt.NDArray[Any]:
        """Sample `index`, transformed, as a fresh array that `put` may hand out."""
        return self.transformed(self.bank.images[index])

    def transformed(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What `sample_transform` makes of a sample."""
        if self.sample_transform is None:
            return image
        made = self.sample_transform(image)
        if not isinstance(made, np.ndarray | torch.Tensor):
            raise DataError(f"sample_transform: expected it to return an array or tensor, got {type(made).__name__}")
        # a transform may return memory that it keeps
        return np.array(made.detach().cpu().float().numpy() if isinstance(made, torch.Tensor) else made)

    def put(self, sample: npt.NDArray[Any], real: Any, what: str, source: str) -> Any:
        """A sample in the form of `real`: NumPy array, tensor, or a MetaTensor with meta data of its own; in the sample's memory where it fits.

        Args:
            sample: from `sample`.
            real: what it replaces.
            what: how errors call that.
            source: of the item from now on; the new MetaTensor's file name, if the real one has any.

        Raises:
            DataError: another shape than the real image's.
        """
        self._check_shape(tuple(real.shape), tuple(sample.shape), what)
        self._check_range(sample, real, what)
        if isinstance(real, np.ndarray):
            return _cast(sample, real.dtype)
        tensor = torch.from_numpy(_cast(sample, sample.dtype) if real.is_floating_point() else _whole(sample, torch.iinfo(real.dtype)))
        tensor = tensor.to(dtype=real.dtype, device=real.device)
        return MetaTensor(tensor, meta=meta_of(real, source)) if isinstance(real, MetaTensor) else tensor

    def blend(self, sample: npt.NDArray[Any], real: Any, weight: float, what: str, source: str) -> Any:
        """(1 - weight) * real + weight * sample, in the form of `real`; integers are rounded; arguments as of `put`.

        Raises:
            DataError: another shape than the real image's, or an image of neither floating-point nor whole numbers.
        """
        self._check_shape(tuple(real.shape), tuple(sample.shape), what)
        self._check_range(sample, real, what)
        plain = _plain(real)
        if plain.dtype.kind not in "iuf":
            raise DataError(f"{what}: expected an image of floating-point or whole numbers to blend, got {real.dtype}; convert it first")
        dtype = np.result_type(plain.dtype, np.float32)
        return self.put((1 - weight) * plain.astype(dtype) + weight * sample.astype(dtype), real, what, source)

    def _check_shape(self, real: tuple[int, ...], sample: tuple[int, ...], what: str) -> None:
        if real != sample:
            raise DataError(f"{what}: the real image has shape {real}, the sample {sample}; {self.remedy}")

    def full_range(self, real: Any) -> tuple[float, float]:
        """The range that all samples share before `sample_transform`, in the terms of `real`."""
        return 0.0, 1.0

    def _check_range(self, sample: npt.NDArray[Any], real: Any, what: str) -> None:
        if self._range_seen:
            return
        low, high = float(real.min()), float(real.max())
        if low == high:
            return  # a blank image says nothing: look at the next
        self._range_seen = True
        if self.sample_transform is None:
            (bottom, top), tolerance = self.full_range(real), _TOLERANCE_RAW
        else:
            bottom, top, tolerance = float(sample.min()), float(sample.max()), _TOLERANCE  # of one sample only: less sure
        slack = tolerance * (top - bottom)
        if (low < bottom - slack or high > top + slack or high - low < _DIM * (top - bottom)) and self.tally.first():
            warnings.warn(
                f"{what}: real intensities are in [{low:.4g}, {high:.4g}], the sample's in [{bottom:.4g}, {top:.4g}]: a classifier could tell them"
                " apart by that alone; pass a sample_transform that scales samples as your images were, or place this transform earlier",
                stacklevel=2,
            )


class Inserts:
    """What puts samples of a bank in the place of real images."""

    insertion: Insertion

    @property
    def bank(self) -> SampleBank:
        """Where samples come from."""
        return self.insertion.bank

    @property
    def ineligible(self) -> int:
        """How often something was due of a class of which the bank has none, over all workers and epochs; may be set, between epochs."""
        return self.insertion.tally.count

    @ineligible.setter
    def ineligible(self, count: int) -> None:
        self.insertion.tally.count = count

    def _counted(self, index: int | None) -> int | None:
        """What was drawn, itself."""
        if index is None:
            self.insertion.tally.add()
        return index


def _plain(image: Any) -> npt.NDArray[Any]:
    """As a NumPy array without meta data."""
    if isinstance(image, np.ndarray):
        return image
    tensor = (image.as_tensor() if isinstance(image, MetaTensor) else image).detach().cpu()
    array: npt.NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # NumPy has no bfloat16
    return array


def _cast(sample: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    rounded = _whole(sample, np.iinfo(dtype)) if dtype.kind in "iu" and sample.dtype.kind == "f" else sample
    return np.asarray(rounded, dtype=dtype, order="C")


def _whole(sample: npt.NDArray[Any], info: np.iinfo[Any] | torch.iinfo) -> npt.NDArray[Any]:
    """Rounded and within what the integers hold, where a resized sample overshoots: beyond it they would wrap around."""
    clipped: npt.NDArray[Any] = np.clip(np.rint(sample), info.min, info.max)
    return clipped
