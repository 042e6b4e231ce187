"""Ways to spoil real images, so that a screen can be seen to reject them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from PIL import Image
from scipy import ndimage

from monai_diverse.data import FloatArray, IntArray

PATCHES = 4
"""Along every spatial axis."""
SMOOTH = (1 / 24, 1 / 8)
"""Least and greatest standard deviation of the smooth noise's blur, relative to the shortest side."""
ANGLES = (10.0, 350.0)
"""In degrees; smaller turns are next to none."""
QUALITY = (50, 90)
"""Of JPEG, both included."""
BLUR = (0.5, 1.0)
"""Standard deviations in pixels."""


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One way to make another image of a real one.

    Attributes:
        name: such as `white noise`.
        expected: in words, what a screen should make of such images; `{seen}` stands for which image a near-copy is of.
        at_most: the share of them that a screen which does what it says accepts at most; None: nothing is promised.
        near_copy: made of images that copies are judged against, and to be known again; else of unseen ones.
        variants: how many different images it makes of one of shape (channels, *spatial); None: as many as are asked for.
        apply: (image float32 (channels, *spatial) in [0, 1], variant from 0, random numbers) to an image of the same shape and range.
    """

    name: str
    expected: str
    at_most: float | None
    near_copy: bool = False
    variants: Callable[[tuple[int, ...]], int] | None = None
    apply: Callable[[FloatArray, int, np.random.Generator], FloatArray]


def white_noise(image: FloatArray, variant: int, rng: np.random.Generator) -> FloatArray:
    """The image's pixels in random order: its intensity histogram, and no structure."""
    return _rearranged(image, rng.random(image.shape[1:]))


def smooth_noise(image: FloatArray, variant: int, rng: np.random.Generator) -> FloatArray:
    """The image's pixels in the order of a smooth Gaussian random field: its intensity histogram, a smooth and meaningless structure."""
    sigma = rng.uniform(*SMOOTH) * min(image.shape[1:])
    return _rearranged(image, ndimage.gaussian_filter(rng.normal(size=image.shape[1:]), sigma, mode="wrap"))


def invert(image: FloatArray, variant: int, rng: np.random.Generator) -> FloatArray:
    """Dark for bright: 1 - x."""
    return np.clip(1 - image, 0, 1)


def shuffle_patches(image: FloatArray, variant: int, rng: np.random.Generator) -> FloatArray:
    """`PATCHES` patches along every axis in random order; what is left at the far ends where a side is no multiple stays."""
    parts = [min(PATCHES, side) for side in image.shape[1:]]
    core = (slice(None), *(slice(side // n * n) for side, n in zip(image.shape[1:], parts, strict=True)))
    apart, together = ("c (a h) (b w)", "(a b) c h w") if len(parts) == 2 else ("c (a d) (b h) (e w)", "(a b e) c d h w")
    counts = dict(zip("abe", parts, strict=False))
    patches = rearrange(image[core], f"{apart} -> {together}", **counts)
    result = image.copy()
    result[core] = rearrange(patches[rng.permutation(len(patches))], f"{together} -> {apart}", **counts)
    return result


def rotate_quarters(image: FloatArray, variant: int, rng: np.random.Generator) -> FloatArray:
    """Turned by 90, 180 or 270 degrees in the plane of the last two axes; by 180 where they differ in length."""
    quarters = variant + 1 if image.shape[-1] == image.shape[-2] else 2
    return np.ascontiguousarray(np.rot90(image, quarters, axes=(-2, -1)))


def rotate_freely(image: FloatArray, variant: int, rng: np.random.Generator) -> FloatArray:
    """Turned by a random angle in the plane of the last two axes, the corners filled by reflection."""
    turned = ndimage.rotate(image, rng.uniform(*ANGLES), axes=(-2, -1), reshape=False, order=1, mode="reflect")
    clipped: FloatArray = np.clip(turned, 0, 1)
    return clipped


def jpeg(image: FloatArray, variant: int, rng: np.random.Generator) -> FloatArray:
    """Through JPEG of a random quality: one or three channels as a picture, others one by one; volumes slice by slice along the first axis."""
    quality = int(rng.integers(QUALITY[0], QUALITY[1] + 1))
    slices = image[None] if image.ndim == 3 else np.moveaxis(image, 1, 0)
    planes = slices if len(image) == 3 else slices.reshape(-1, 1, *image.shape[-2:])
    decoded = np.stack([_through_jpeg(plane, quality) for plane in planes]).reshape(slices.shape)
    return decoded[0] if image.ndim == 3 else np.moveaxis(decoded, 0, 1)


def blur(image: FloatArray, variant: int, rng: np.random.Generator) -> FloatArray:
    """Gaussian blur of a random width."""
    sigma = rng.uniform(*BLUR)
    blurred: FloatArray = np.clip(ndimage.gaussian_filter(image, (0, *[sigma] * (image.ndim - 1))), 0, 1)
    return blurred


def shift_one(image: FloatArray, variant: int, rng: np.random.Generator) -> FloatArray:
    """Moved by one pixel along at least one axis, edges repeated."""
    # counted in base 3, the middle, which is no shift, left out
    axes = image.ndim - 1
    place = np.unravel_index(variant if variant < 3**axes // 2 else variant + 1, (3,) * axes)
    return np.asarray(ndimage.shift(image, (0, *(int(p) - 1 for p in place)), order=0, mode="nearest"))


def _quarters(shape: tuple[int, ...]) -> int:
    return 3 if shape[-1] == shape[-2] else 1


def _shifts(shape: tuple[int, ...]) -> int:
    return int(3 ** (len(shape) - 1)) - 1


def _one(shape: tuple[int, ...]) -> int:
    return 1


NEGATIVE = "none: no image of this kind"
COPY = "none: an image {seen}, hardly changed"
ROTATED = "not rejected by design: real images, turned"

CORRUPTIONS = (
    Corruption(name="white noise", expected=NEGATIVE, at_most=0, apply=white_noise),
    Corruption(name="smooth noise", expected=NEGATIVE, at_most=0, apply=smooth_noise),
    Corruption(name="inverted", expected=NEGATIVE, at_most=0, variants=_one, apply=invert),
    Corruption(name="shuffled patches", expected=NEGATIVE, at_most=0, apply=shuffle_patches),
    Corruption(name="rotated by quarters", expected=ROTATED, at_most=None, variants=_quarters, apply=rotate_quarters),
    Corruption(name="rotated freely", expected=ROTATED, at_most=None, apply=rotate_freely),
    Corruption(name="near-copy: JPEG", expected=COPY, at_most=0, near_copy=True, apply=jpeg),
    Corruption(name="near-copy: blur", expected=COPY, at_most=0, near_copy=True, apply=blur),
    Corruption(name="near-copy: 1 pixel shift", expected=COPY, at_most=0, near_copy=True, variants=_shifts, apply=shift_one),
)
"""In the order of the table of controls."""


def picks(available: int, variants: int | None, count: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Which real image, in which variant, each control image is made of: every real image about equally often, no pair twice.

    Args:
        available: real images there are, from 1.
        variants: different images that can be made of one; None: any number.
        count: images wanted.
        rng: random numbers.

    Returns:
        (sources, variants), int64 (m,) each; m is `count`, or `available * variants` where that is less.
    """
    number = np.arange(count if variants is None else min(count, available * variants), dtype=np.int64)
    source = rng.permutation(available)[number % available]
    first = rng.integers(variants or 1, size=available)
    return source, (first[source] + number // available) % (variants or 1)


def _rearranged(image: FloatArray, field: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> FloatArray:
    """The image's pixels, dark to bright (by their mean over channels), where the field is low to high."""
    flat = image.reshape(len(image), -1)
    result = np.empty_like(flat)
    result[:, np.argsort(field, axis=None)] = flat[:, np.argsort(flat.mean(axis=0), kind="stable")]
    return result.reshape(image.shape)


def _through_jpeg(plane: FloatArray, quality: int) -> FloatArray:
    """(1 or 3, h, w) to the same."""
    levels = np.moveaxis(np.rint(plane * 255).astype(np.uint8), 0, -1)
    stream = io.BytesIO()
    Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels).save(stream, "JPEG", quality=quality)
    with Image.open(stream) as picture:
        decoded = np.asarray(picture, np.float32) / np.float32(255)
    return decoded[None] if decoded.ndim == 2 else np.moveaxis(decoded, -1, 0)
