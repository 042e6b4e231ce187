"""The images that controls are made of: which kinds there are, and what is expected of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from monai_diverse.data import FloatArray, IntArray, LabelledImages, check_images, near_duplicate_groups
from monai_diverse.errors import DataError
from monai_diverse.screening.calibrate import check_level
from monai_diverse.screening.corruptions import CORRUPTIONS, NEGATIVE, Corruption, picks

if TYPE_CHECKING:
    from monai_diverse.screening.screen import FittedScreen
    from monai_diverse.screening.views import Views

GENERATED, UNSEEN, OTHER, WRONG = "generated", "unseen real", "other modality", "wrong label"
TWINS = "unseen real, near-duplicates of known ones"
YARDSTICK = "none stated: compare with unseen real images"
SEEN = {"generator_train": "that the generator saw", "reference": "of the reference"}
"""What near-copies are made of, by the set that copies are judged against."""
TWIN_CORRELATION = 0.95
LEAST_COMPARED = 1000
"""Known images that are compared with the unseen ones at a time, at least."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Images of one kind, made when they are asked for.

    Attributes:
        name: of the kind.
        expected: see `ControlRow`.
        at_most: likewise.
        on_average: likewise.
        labels: (m,), under which they are judged.
        groups: (m,), the patient of the real image behind each; None: not known.
        image: number 0..m-1 to image (channels, *spatial).
    """

    name: str
    expected: str
    at_most: float | None = None
    on_average: float | None = None
    labels: IntArray
    groups: IntArray | None
    image: Callable[[int], FloatArray]


def control_cases(
    screen: FittedScreen,
    unseen: LabelledImages,
    generated: LabelledImages | None,
    other: npt.ArrayLike | None,
    count: int,
    seed: int,
    twin_correlation: float | None = None,
) -> Iterator[Case]:
    """Every kind of image that can be made; see `control_rows` for the arguments.

    Raises:
        DataError: images of another modality that cannot be fitted to the screen's shape.
    """
    foreign = None if other is None else _foreign(other, screen.embedding.shape, unseen.labels, count, seed)
    if generated is not None:
        yield _as_they_are(GENERATED, generated, generated.groups, YARDSTICK)
    near = near_known(screen, unseen, twin_correlation)
    if not near.all():
        alpha = screen.settings["gates"]["not_novel"].get("alpha")
        promise = "none stated by the novelty gate" if alpha is None else f"at most {100 * alpha:g} %, on average over calibration sets"
        yield _as_they_are(UNSEEN, unseen[~near], unseen.group_ids[~near], promise, alpha)
    if near.any():
        yield _as_they_are(TWINS, unseen[near], unseen.group_ids[near], "few: they repeat what is known")
    unseen = unseen if near.all() else replace(unseen, groups=unseen.group_ids)[~near]
    # the generator may know more classes than the screen
    seen = screen.real.seen
    known = np.flatnonzero(np.isin(seen.labels, screen.classes))
    for corruption in CORRUPTIONS:
        if not corruption.near_copy or len(known):
            expected = corruption.expected.format(seen=SEEN[screen.against["copies"]])
            real, among = (seen, known) if corruption.near_copy else (unseen, np.arange(len(unseen)))
            yield _corrupted(corruption, real, among, expected, count, seed)
    if foreign is not None:
        yield foreign
    if len(screen.classes) > 1:
        yield _mislabelled(unseen, screen.classes, count, seed)


def near_known(screen: FittedScreen, unseen: LabelledImages, twin_correlation: float | None = None) -> npt.NDArray[np.bool_]:
    """Which unseen images are in a group with one that nearly repeats an image that the screen was fitted on, as `near_duplicate_groups` has it.

    Args:
        screen: the fitted screen.
        unseen: (n, channels, *spatial) of the screen's shape.
        twin_correlation: pixels that correlate above this make near-duplicates; None: the screen's own, or .95 where it has none.

    Returns:
        bool (n,).

    Raises:
        RecipeError: a correlation outside (0, 1).
    """
    own = screen.settings.get("twin_correlation") or TWIN_CORRELATION
    correlation = own if twin_correlation is None else twin_correlation
    check_level("twin_correlation", correlation)
    near, step = np.zeros(len(unseen), bool), max(LEAST_COMPARED, len(unseen))
    for _, known in _known(screen):
        # a chain of near-duplicates from an unseen image to the first known one passes through unseen ones only: parts find what all at once would
        for start in range(0, len(known), step):
            groups = near_duplicate_groups(np.concatenate([unseen.images, known.images[start : start + step]]), correlation)
            near |= np.isin(groups[: len(unseen)], groups[len(unseen) :])
    found: npt.NDArray[np.bool_] = np.isin(unseen.group_ids, unseen.group_ids[near])
    return found


def _known(screen: FittedScreen) -> list[tuple[str, Views]]:
    """The sets that the screen was fitted on by name, one that plays two parts once."""
    real = screen.real
    sets = [("reference", real.reference), ("calibration", real.calibration)]
    return sets if real.generator_train is None or real.generator_train is real.reference else [*sets, ("generator_train", real.generator_train)]


def _as_they_are(name: str, data: LabelledImages, groups: IntArray | None, expected: str, on_average: float | None = None) -> Case:
    return Case(name=name, expected=expected, on_average=on_average, labels=data.labels, groups=groups, image=data.images.__getitem__)


def _corrupted(corruption: Corruption, real: LabelledImages | Views, among: IntArray, expected: str, count: int, seed: int) -> Case:
    variants = None if corruption.variants is None else corruption.variants(real.images.shape[1:])
    picked, variant = picks(len(among), variants, count, _random(seed, corruption.name))
    source = among[picked]

    def image(number: int) -> FloatArray:
        # numbered from 1, since 0 is the stream that chose the sources
        return corruption.apply(real.images[source[number]], int(variant[number]), _random(seed, corruption.name, number + 1))

    return Case(
        name=corruption.name,
        expected=expected,
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


def require_unseen(screen: FittedScreen, unseen: LabelledImages, name: str = "unseen") -> None:
    """Raises DataError if images are not of the screen's shape, or if it was fitted on one of them, pixel for pixel."""
    if not len(screen.real.reference):
        raise DataError("controls: expected the screen as it was fitted, got one for judging alone, which does not know what is unseen")
    shape = screen.embedding.shape
    if unseen.images.shape[1:] != shape:
        raise DataError(f"{name}: expected shape (n, {', '.join(map(str, shape))}) as the reference, got {unseen.images.shape}; resize them")
    content = {image.tobytes() for image in unseen.images}
    for known, views in _known(screen):
        held = {key for key in (image.tobytes() for image in views.images) if key in content}
        shared = sum(image.tobytes() in held for image in unseen.images)
        if shared:
            raise DataError(f"{name}: expected images that {known} does not hold, got {shared} in both; take another split")
