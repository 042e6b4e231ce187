"""What albumentations' transforms from a bank have in common: images with channels last, and random streams of their own."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import get_worker_info

from monai_diverse.bank import SampleBank, open_bank
from monai_diverse.errors import DataError, MissingExtraError
from monai_diverse.transforms.curriculum import check_probability
from monai_diverse.transforms.insertion import Insertion, Inserts
from monai_diverse.transforms.labels import read_label
from monai_diverse.transforms.seeding import process_rank

try:
    import albumentations as A
except ImportError as error:
    raise MissingExtraError("BankTransform and BankReference need albumentations: pip install 'monai-diverse[albumentations]'") from error

__all__ = ["A", "ChannelsLast", "FromBank", "SampleStage"]

SampleStage = Callable[[npt.NDArray[Any]], Any]
"""What `sample_transform` may be as a function: an image, channels last, to an image."""


class ChannelsLast(Insertion):
    """Puts samples in the place of albumentations' images: channels last, uint8 in 0..255 or floating point in 0..1."""

    remedy = (
        "place this transform where images have the bank's size and channels, or pass a sample_transform that does to samples what your images"
        " have been through, such as A.Resize(...) or A.ToRGB()"
    )

    def check_form(self, real: Any, what: str) -> None:
        """Raises DataError unless `real` is an image as albumentations takes it."""
        if not isinstance(real, np.ndarray):
            raise DataError(f"{what}: expected a NumPy array with channels last, got {type(real).__name__}; place this transform before ToTensorV2")
        if real.dtype != np.uint8 and real.dtype.kind != "f":
            raise DataError(f"{what}: expected uint8 in 0..255 or float32 in 0..1, got {real.dtype}; convert it first, by A.ToFloat(max_value=...)")

    def check(self, real: Any, what: str) -> None:
        """Raises DataError unless `real` is such an image, and, where no `sample_transform` could change that, one of the bank's shape."""
        self.check_form(real, what)
        if self.sample_transform is None:
            channels, *spatial = self.bank.header.shape
            flat = channels == 1 and real.ndim == len(spatial)
            self._check_shape(real.shape, tuple(spatial if flat else [*spatial, channels]), what)

    def full_range(self, real: npt.NDArray[Any]) -> tuple[float, float]:
        """The range of `real`'s dtype."""
        return 0.0, 255.0 if real.dtype == np.uint8 else 1.0

    def sample_like(self, index: int, real: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sample `index` with channels last (or none, where it and `real` have but one), in dtype and range of `real`, then transformed."""
        image = np.moveaxis(self.bank.images[index], 0, -1)
        if image.shape[-1] == 1 and real.ndim < image.ndim:
            image = image[..., 0]
        if real.dtype == np.uint8:
            image = np.rint(image * 255)
        return self.transformed(np.ascontiguousarray(image, dtype=real.dtype))


class FromBank(Inserts, A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations has no type information
    """What draws from a bank, by random streams that repeat neither those of its neighbours nor those of another worker."""

    insertion: ChannelsLast

    def __init__(
        self,
        bank: SampleBank | str | os.PathLike[str],
        label_key: str | None,
        sample_transform: SampleStage | A.BasicTransform | A.BaseCompose | Mapping[str, Any] | None,
        p: float,
    ) -> None:
        if isinstance(sample_transform, Mapping):
            sample_transform = A.from_dict(sample_transform)
        opened = open_bank(bank)
        self.image_key = "image" if len(opened.header.shape) == 3 else "volume"
        self.label_key = label_key
        self.sample_transform = sample_transform
        self._rank = process_rank()
        stage: Any = sample_transform
        if isinstance(sample_transform, A.BasicTransform | A.BaseCompose):
            stage = partial(_run, sample_transform, self.image_key)
        self.insertion = ChannelsLast(opened, stage)
        super().__init__(p=check_probability(p, "p"))

    def set_random_seed(self, seed: int | None) -> None:
        """Seeds this transform and a random `sample_transform`, and forgets class counts of items seen."""
        super().set_random_seed(seed)
        if seed is not None:
            # a Compose seeds all its transforms alike: drawn by the same numbers, a replacement would be known by the flip that follows
            self._set_streams([int(seed), zlib.crc32(repr(self._stream()).encode())])
        self._begin()

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        """Takes over random generators, for a random `sample_transform` too, and forgets class counts of items seen."""
        super().set_random_state(random_generator, py_random)
        self._begin()

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        """The data as albumentations passes it on."""
        worker = _worker_seed()
        if worker is not None and worker != self._seeded_in:
            rank = self._rank or process_rank()
            inherited = [int(self.random_generator.integers(2**63)), self.py_random.getrandbits(64)]
            self._set_streams([worker, *inherited, *([rank] if rank else [])])
            self._begin()
        made: dict[str, Any] = super().__call__(*args, force_apply=force_apply, **data)
        return made

    def get_transform_init_args(self) -> dict[str, Any]:
        """The arguments by which `A.from_dict` makes this transform again; the bank as its path or URL."""
        args: dict[str, Any] = super().get_transform_init_args()
        return args | {"bank": self.bank.location}

    def to_dict_private(self) -> dict[str, Any]:
        """What `A.to_dict` and `A.save` write.

        Raises:
            NotImplementedError: `sample_transform` is a function, which cannot be written.
        """
        state: dict[str, Any] = super().to_dict_private()
        if isinstance(self.sample_transform, A.BasicTransform | A.BaseCompose):
            state["sample_transform"] = self.sample_transform.to_dict()
        elif self.sample_transform is not None:
            raise NotImplementedError(f"{type(self).__name__}: a sample_transform must be a transform of albumentations to be saved, not a function")
        return state

    def _stream(self) -> tuple[str, ...]:
        """What tells this transform's stream of random numbers from others of the same seed."""
        return type(self).__name__, self.bank.fingerprint

    def _set_streams(self, entropy: list[int]) -> None:
        generator, python = np.random.SeedSequence(entropy).spawn(2)
        self.random_generator = np.random.default_rng(generator)
        self.py_random = random.Random(int.from_bytes(python.generate_state(4).tobytes(), "little"))

    def _begin(self) -> None:
        self._seeded_in = _worker_seed()
        if isinstance(self.sample_transform, A.BasicTransform | A.BaseCompose):
            self.sample_transform.set_random_state(self.random_generator, self.py_random)
        self.insertion.seed(self._rng())

    def _rng(self) -> np.random.RandomState:
        """`random_generator`'s own stream, as `bank.draw` takes it."""
        return np.random.RandomState(self.random_generator.bit_generator)

    def _label(self, data: Mapping[str, Any]) -> int:
        key = str(self.label_key)
        if key not in data:
            raise DataError(f"{key}: expected the class label in the call, (image=..., {key}=...), got {sorted(data)}; pass it, or set label_key")
        return read_label(data[key])


def _run(transform: A.BasicTransform | A.BaseCompose, key: str, image: npt.NDArray[Any]) -> Any:
    return transform(**{key: image})[key]


def _worker_seed() -> int | None:
    info = get_worker_info()
    return None if info is None else int(info.seed)
