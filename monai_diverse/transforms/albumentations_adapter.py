"""albumentations' transforms in MONAI's pipelines."""

from __future__ import annotations

import copy
import inspect
import random
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import MAX_SEED, TransformBackends, convert_to_dst_type

from monai_diverse.errors import DataError, MissingExtraError, RecipeError
from monai_diverse.transforms.seeding import WorkerSeeded

if TYPE_CHECKING:
    import albumentations as A

Target = Literal["image", "mask"]
"""How albumentations treats an array: masks are moved with images, by nearest neighbours, and their intensities stay."""

_EXACT = 2**24
_SLACK = 0.1


class _Adapter(WorkerSeeded, RandomizableTransform):  # type: ignore[misc]  # MONAI has no type information
    """What draws one seed a call for all that albumentations draws."""

    backend = [TransformBackends.NUMPY]  # noqa: RUF012  # MONAI's convention

    def __init__(self, transform: Any, kwargs: Mapping[str, Any]) -> None:
        WorkerSeeded.__init__(self)
        RandomizableTransform.__init__(self, 1.0)
        self.pipeline = _Pipeline(transform, kwargs)
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draws the seed; `data` is not looked at."""
        self._seed = int(self.random_state().randint(MAX_SEED, dtype="uint32"))


class Albumentations(_Adapter):
    """An albumentations transform or `Compose` as a random transform of MONAI.

        Albumentations("GaussNoise", p=0.5)
        Albumentations(A.Compose([A.HorizontalFlip(), A.RandomBrightnessContrast()]))

    Random numbers are MONAI's: reproducible with `set_random_state` (of this or of the `Compose` round it) and `set_determinism`, different in
    every DataLoader worker and epoch, see `transforms.seeding.WorkerSeeded`. A seed given to `A.Compose` counts for nothing. All is random to
    MONAI: caching datasets stop before it. Probabilities are albumentations' own.

    The result has the type and device of the image: NumPy array, tensor or MetaTensor, whose meta data and applied operations stay. So the
    affine does not follow what moves pixels, and MONAI cannot invert it. Its dtype is the image's, unless albumentations changes dtypes
    (`A.Normalize`, `A.ToFloat`). Floating-point images are computed in float32, uint8 ones in uint8; albumentations takes no others.
    Intensities pass through as they are, but whatever changes them expects [0, 1] (or 0..255) and clips to that; a warning says so, once, where
    yours are farther out.

    Volumes (c, d, h, w) are stacks of d slices, along the first spatial axis, all transformed alike; or volumes, if one of the transforms is
    three-dimensional (`A.RandomCrop3D`).

    Args:
        transform: a transform or `Compose` of albumentations, which is copied, or the name of one.
        kwargs: the arguments of one given by name.

    Raises:
        MissingExtraError: albumentations is not installed.
        RecipeError: none of that name, or not with these arguments; or arguments for what is made already.
        DataError: (when called) an image that is not (c, h, w) or (c, d, h, w), or of a dtype that albumentations does not take.
    """

    def __init__(self, transform: A.BasicTransform | A.BaseCompose | str, **kwargs: Any) -> None:
        super().__init__(transform, kwargs)

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        """The image, transformed.

        Args:
            img: (c, h, w) or (c, d, h, w), NumPy array, tensor or MetaTensor.
            randomize: False: with the same random numbers as at the last call.
        """
        if randomize:
            self.randomize()
        return self.pipeline.run([("image", img, "image")], self._seed)[0]


class Albumentationsd(_Adapter, MapTransform):  # type: ignore[misc]  # MONAI has no type information
    """An albumentations transform or `Compose` as a random transform of MONAI; dictionary version.

        Albumentationsd(["image", "seg"], A.Compose([A.Rotate(), A.GaussNoise()]), targets={"seg": "mask"})
        Albumentationsd("image", "HorizontalFlip", p=0.5)

    All keys get the same random parameters, by one call of albumentations; they must have the same spatial shape. Everything else is as with
    `Albumentations`. Masks keep their dtype, and whole numbers stay whole; they may be boolean, floating-point, or whole numbers up to 2**24.

    Args:
        keys: of the images and masks, at least one image.
        transform: a transform or `Compose` of albumentations, which is copied, or the name of one.
        targets: what each key holds, "image" or "mask"; keys that are not named hold images.
        allow_missing_keys: leave out keys that an item lacks, instead of raising; an item without any image stays as it is.
        kwargs: the arguments of a transform given by name.

    Raises:
        MissingExtraError: albumentations is not installed.
        RecipeError: as `Albumentations`, or targets that are not as described.
        KeyError: (when called) a missing key.
        DataError: (when called) as `Albumentations`, or a mask of numbers that are too large.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: A.BasicTransform | A.BaseCompose | str,
        targets: Mapping[Hashable, Target] | None = None,
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        _Adapter.__init__(self, transform, kwargs)
        self.targets = _check_targets(self.keys, targets or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of the item, with all keys transformed alike."""
        d = dict(data)
        present = list(self.key_iterator(d))
        self.randomize()
        if any(self.targets[key] == "image" for key in present):
            made = self.pipeline.run([(self.targets[key], d[key], str(key)) for key in present], self._seed)
            d.update(zip(present, made, strict=True))
        return d


AlbumentationsD = AlbumentationsDict = Albumentationsd


class _Pipeline:
    """An albumentations `Compose` that takes channel-first arrays and tensors."""

    def __init__(self, transform: Any, kwargs: Mapping[str, Any]) -> None:
        module = _import()
        made = _made(module, transform, kwargs)
        self.compose = made if isinstance(made, module.Compose) else module.Compose([made])
        leaves = list(_leaves(self.compose))
        self.spatial = [type(leaf).__name__ for leaf in leaves if isinstance(leaf, module.Transform3D)]
        keeps_range = (module.Normalize, module.ToFloat, module.FromFloat)
        self._clips = any(isinstance(leaf, module.ImageOnlyTransform) and not isinstance(leaf, keeps_range) for leaf in leaves)

    def run(self, parts: Sequence[tuple[Target, Any, str]], seed: int) -> list[Any]:
        """Transforms (target, array, what errors call it) together."""
        given = [_prepared(target, value, what) for target, value, what in parts]
        for (target, _, what), array in zip(parts, given, strict=True):
            self._check(target, array, what)
        names = self._names([target for target, _, _ in parts], [np.ndim(value) == 4 for _, value, _ in parts])
        # one stream for all: with one seed for all, as set_random_seed gives, every transform would draw the same numbers
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            made = self.compose(**dict(zip(names, given, strict=True)))
        except KeyError as error:
            if error.args != ("images",):
                raise
            raise RecipeError(
                f"transform: some transforms beside {self.spatial[0]} take slices only, as albumentations 2.0.8 has them; give three-dimensional"
                " transforms an Albumentationsd of their own"
            ) from error
        return [_restored(made[name], array, value, what) for name, array, (_, value, what) in zip(names, given, parts, strict=True)]

    def _names(self, targets: Sequence[Target], volumes: Sequence[bool]) -> list[str]:
        """What albumentations calls each array."""
        many: dict[Target, str] = {"image": "volume", "mask": "mask3d"} if self.spatial else {"image": "images", "mask": "masks"}
        names: list[str] = []
        for target, volume in zip(targets, volumes, strict=True):
            base = many[target] if volume else target
            names.append(base if base not in names else f"monai_{base}_{len(names)}")
            if names[-1] != base and names[-1] not in self.compose.additional_targets:
                self.compose.add_targets({names[-1]: base})
        return names

    def _check(self, target: Target, array: npt.NDArray[Any], what: str) -> None:
        if self.spatial and target == "image" and array.ndim != 4:
            raise DataError(f"{what}: expected a volume (c, d, h, w) for {self.spatial[0]}, got an image {array.shape[-1:] + array.shape[:-1]}")
        if not self._clips or target == "mask" or array.dtype != np.float32 or not array.size:
            return
        low, high = float(array.min()), float(array.max())
        if low < -_SLACK or high > 1 + _SLACK:
            self._clips = False  # said once
            warnings.warn(
                f"{what}: intensities are in [{low:.4g}, {high:.4g}], but albumentations' transforms of intensity expect [0, 1] and clip to that;"
                " scale images before this transform, by ScaleIntensity or ScaleIntensityRange",
                stacklevel=4,
            )


def _import() -> ModuleType:
    try:
        import albumentations
    except ImportError as error:
        raise MissingExtraError("Albumentations needs albumentations: pip install 'monai-diverse[albumentations]'") from error
    module: ModuleType = albumentations
    return module


def _made(module: ModuleType, transform: Any, kwargs: Mapping[str, Any]) -> Any:
    kinds = (module.BasicTransform, module.BaseCompose)
    if isinstance(transform, kinds):
        if kwargs:
            raise RecipeError(
                f"{next(iter(kwargs))}: expected arguments only with the name of a transform, got a {type(transform).__name__} made already"
            )
        return copy.deepcopy(transform)
    kind = getattr(module, transform, None) if isinstance(transform, str) else None
    if not (inspect.isclass(kind) and issubclass(kind, kinds)):
        raise RecipeError(f"transform: expected a transform of albumentations or the name of one, such as 'HorizontalFlip', got {transform!r}")
    known = inspect.signature(kind).parameters
    unknown = [name for name in kwargs if name not in known]
    if unknown:  # albumentations itself would warn and go on
        raise RecipeError(f"{unknown[0]}: expected arguments of {transform}: {', '.join(known)}")
    try:
        return kind(**kwargs)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{transform}: {' '.join(str(error).split())}") from error


def _leaves(part: Any) -> Iterator[Any]:
    inner = getattr(part, "transforms", None)
    if inner is None:
        yield part
    else:
        for each in inner:
            yield from _leaves(each)


def _check_targets(keys: Sequence[Hashable], targets: Mapping[Hashable, Target]) -> dict[Hashable, Target]:
    if not isinstance(targets, Mapping) or any(key not in keys or target not in ("image", "mask") for key, target in targets.items()):
        raise RecipeError(f"targets: expected some of the keys {list(keys)}, each with 'image' or 'mask', got {targets!r}")
    whole: dict[Hashable, Target] = {key: targets.get(key, "image") for key in keys}
    if "image" not in whole.values():
        raise RecipeError("targets: expected at least one image among the keys, got masks alone")
    return whole


def _prepared(target: Target, value: Any, what: str) -> npt.NDArray[Any]:
    """A copy as albumentations takes it: channels last (none, for masks of one channel), uint8 or float32."""
    if not isinstance(value, np.ndarray | torch.Tensor):
        raise DataError(f"{what}: expected an array or tensor, got {type(value).__name__}; load the image first")
    if value.ndim not in (3, 4):
        raise DataError(f"{what}: expected (c, h, w) or (c, d, h, w), got {tuple(value.shape)}; use EnsureChannelFirst before")
    if isinstance(value, torch.Tensor):
        plain = (value.as_tensor() if isinstance(value, MetaTensor) else value).detach().cpu()
        value = (plain.float() if plain.is_floating_point() else plain).numpy()
    dtype = _mask_dtype(value, what) if target == "mask" else _image_dtype(value, what)
    last = value[0] if target == "mask" and len(value) == 1 else np.moveaxis(value, 0, -1)
    # a copy, since some transforms write into what they get, which may lie in a cache
    return np.array(last, dtype=dtype, order="C")


def _image_dtype(value: npt.NDArray[Any], what: str) -> type[np.generic]:
    if value.dtype == np.uint8:
        return np.uint8
    if value.dtype.kind == "f":
        return np.float32
    raise DataError(
        f"{what}: expected an image of uint8 or floating point, which is all that albumentations takes, got {value.dtype}; scale it to float, or,"
        f" for a label map, set targets={{{what!r}: 'mask'}}"
    )


def _mask_dtype(value: npt.NDArray[Any], what: str) -> type[np.generic]:
    if value.dtype.kind not in "iu":
        return np.uint8 if value.dtype == np.bool_ else np.float32
    low, high = (int(value.min()), int(value.max())) if value.size else (0, 0)
    if low >= 0 and high <= 255:
        return np.uint8
    if max(-low, high) <= _EXACT:
        return np.float32
    raise DataError(f"{what}: expected a mask of whole numbers up to 2**24, got {low} to {high}; renumber it")


def _restored(made: Any, given: npt.NDArray[Any], value: Any, what: str) -> Any:
    """What albumentations made, in the form of `value`; channels first again."""
    if not isinstance(made, np.ndarray):
        raise DataError(
            f"{what}: expected albumentations to return a NumPy array, got {type(made).__name__}; leave ToTensorV2 out, this transform does that"
        )
    first = made[None] if made.ndim < np.ndim(value) else np.moveaxis(made, -1, 0)
    kept = made.dtype == given.dtype
    whole = not value.is_floating_point() if isinstance(value, torch.Tensor) else value.dtype.kind in "biu"
    if kept and whole and made.dtype.kind == "f":
        first = np.rint(first)
    return convert_to_dst_type(np.ascontiguousarray(first), dst=value, dtype=value.dtype if kept else made.dtype)[0]
