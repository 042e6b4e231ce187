"""The images that controls are made of: which kinds there are, and what is expected of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from monai_diverse.data import FloatArray, IntArray, LabelledImages, check_images
from monai_diverse.errors import DataError
from monai_diverse.screening.corruptions import CORRUPTIONS, NEGATIVE, Corruption, picks

if TYPE_CHECKING:
    from monai_diverse.screening.screen import FittedScreen
    from monai_diverse.screening.views import Views

GENERATED, UNSEEN, OTHER, WRONG = "generated", "unseen real", "other modality", "wrong label"
YARDSTICK = "none stated: compare with unseen real images"


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Images of one kind, made when they are asked for.

    Attributes:
        name: of the kind.
        expected: see `ControlRow`.
        at_most: likewise.
        labels: (m,), under which they are judged.
        groups: (m,), the patient of the real image behind each; None: not known.
        image: number 0..m-1 to image (channels, *spatial).
    """

    name: str
    expected: str
    at_most: float | None
    labels: IntArray
    groups: IntArray | None
    image: Callable[[int], FloatArray]


def control_cases(
    screen: FittedScreen, unseen: LabelledImages, generated: LabelledImages | None, other: npt.ArrayLike | None, count: int, seed: int
) -> Iterator[Case]:
    """Every kind of image that can be made; see `control_rows` for the arguments.

    Raises:
        DataError: images of another modality that cannot be fitted to the screen's shape.
    """
    if generated is not None:
        yield _as_they_are(GENERATED, generated, generated.groups, YARDSTICK, None)
    alpha = screen.settings["gates"]["not_novel"].get("alpha")
    promise = "none stated by the novelty gate" if alpha is None else f"at most {100 * alpha:g} %, the alpha of novelty"
    yield _as_they_are(UNSEEN, unseen, unseen.group_ids, promise, alpha)
    # the generator may know more classes than the screen
    seen = screen.real.seen
    known = np.flatnonzero(np.isin(seen.labels, screen.classes))
    for corruption in CORRUPTIONS:
        if not corruption.near_copy or len(known):
            yield _corrupted(corruption, seen[known] if corruption.near_copy else unseen, count, seed)
    if other is not None:
        yield _foreign(other, screen.embedding.shape, unseen.labels, count, seed)
    if len(screen.classes) > 1:
        yield _mislabelled(unseen, screen.classes, count, seed)


def _as_they_are(name: str, data: LabelledImages, groups: IntArray | None, expected: str, at_most: float | None) -> Case:
    return Case(name=name, expected=expected, at_most=at_most, labels=data.labels, groups=groups, image=data.images.__getitem__)


def _corrupted(corruption: Corruption, real: LabelledImages | Views, count: int, seed: int) -> Case:
    variants = None if corruption.variants is None else corruption.variants(real.images.shape[1:])
    source, variant = picks(len(real), variants, count, _random(seed, corruption.name))

    def image(number: int) -> FloatArray:
        # numbered from 1, since 0 is the stream that chose the sources
        return corruption.apply(real.images[source[number]], int(variant[number]), _random(seed, corruption.name, number + 1))

    return Case(
        name=corruption.name,
        expected=corruption.expected,
        at_most=corruption.at_most,
        labels=real.labels[source],
        groups=real.group_ids[source],
        image=image,
    )


def _foreign(other: npt.ArrayLike, shape: tuple[int, ...], labels: IntArray, count: int, seed: int) -> Case:
    """Images of another modality under the labels of unseen ones."""
    rng, checked = _random(seed, OTHER), check_images(other, "other")
    source, _ = picks(len(checked), 1, count, rng)
    images = fitted_to(checked[source], shape)
    return Case(name=OTHER, expected=NEGATIVE, at_most=0, labels=rng.choice(labels, len(source)), groups=source, image=images.__getitem__)


def _mislabelled(real: LabelledImages, classes: tuple[int, ...], count: int, seed: int) -> Case:
    """Unseen images under every label that is not theirs, in random order up to `count`."""
    source, variant = picks(len(real), len(classes) - 1, count, _random(seed, WRONG))
    place = np.searchsorted(classes, real.labels[source])
    labels = np.asarray(classes, np.int64)[(place + 1 + variant) % len(classes)]
    return Case(
        name=WRONG,
        expected="few: those whose class is in doubt",
        at_most=None,
        labels=labels,
        groups=real.group_ids[source],
        image=lambda number: real.images[source[number]],
    )


def fitted_to(images: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Images (n, channels, *spatial) in [0, 1], resized to `shape` (channels, *spatial): linear, smoothed first where they shrink.

    Channels are averaged, and repeated, if they are not as many.

    Raises:
        DataError: images of another number of spatial axes.
    """
    if images.ndim != len(shape) + 1:
        raise DataError(f"other: expected images of {len(shape) - 1} spatial axes as the screen's, got shape {images.shape}; give slices or volumes")
    if images.shape[1] != shape[0]:
        images = np.repeat(images.mean(axis=1, keepdims=True), shape[0], axis=1)
    if images.shape[2:] == shape[1:]:
        return images
    shrink = np.divide(images.shape[2:], shape[1:])
    # MONAI's Resize smooths with zeros round the image, which darkens its border
    smooth = ndimage.gaussian_filter(images, (0, 0, *np.maximum(0, (shrink - 1) / 2)), mode="nearest")
    resized: FloatArray = np.clip(ndimage.zoom(smooth, (1, 1, *1 / shrink), order=1, mode="nearest", grid_mode=True), 0, 1)
    return resized


def _random(seed: int, name: str, number: int = 0) -> np.random.Generator:
    """A stream of its own for every image of every kind."""
    return np.random.default_rng([seed, number, *name.encode()])


def require_unseen(screen: FittedScreen, unseen: LabelledImages) -> None:
    """Raises DataError if the screen was fitted on one of the images, pixel for pixel."""
    real = screen.real
    for name, views in (("reference", real.reference), ("calibration", real.calibration), ("generator_train", real.generator_train)):
        held = set() if views is None else {image.tobytes() for image in views.images}
        shared = sum(image.tobytes() in held for image in unseen.images)
        if shared:
            raise DataError(f"unseen: expected images that {name} does not hold, got {shared} in both; take another split")
