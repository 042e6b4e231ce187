"""Disjoint halves of a data set, by patient, and test images that neither half holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monai_diverse.data import IntArray, LabelledImages, near_duplicate_groups, split_by_group
from monai_diverse.errors import DataError

ALIKE = 0.8
"""Least size of a half, as a share of the other's and of what was asked for."""
LARGE = 0.1
"""Groups above this share of a half are placed first, so that the others can make up for them."""
ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class Halves:
    """What the twins of one pair see.

    Attributes:
        a: indices of what the first twin sees.
        b: indices of what the second sees; no group is in both.
    """

    a: IntArray
    b: IntArray


def grouped(data: LabelledImages, groups: IntArray | None, twin_correlation: float) -> LabelledImages:
    """The data with patients: those given, its own, or groups of near-duplicates.

    Raises:
        DataError: groups of another length, or that are no whole numbers.
    """
    if groups is None:
        groups = near_duplicate_groups(data.images, twin_correlation) if data.groups is None else data.groups
    numbers = np.asarray(groups)
    if numbers.shape != (len(data),) or numbers.dtype.kind not in "iu":
        raise DataError(f"groups: expected whole numbers ({len(data)},), one an image, got {numbers.dtype} {numbers.shape}")
    return LabelledImages(images=data.images, labels=data.labels, groups=numbers.astype(np.int64))


def test_part(data: LabelledImages, parts: int, seed: int) -> tuple[IntArray, IntArray]:
    """Indices (rest, test): one of so many parts is the test set, the same for all pairs."""
    return split_by_group(data, parts, seed)


def halves(data: LabelledImages, rest: IntArray, pair: int, per_twin: int | None, seed: int) -> Halves:
    """Disjoint parts of `rest`, of about equal size and class shares, drawn anew for every pair.

    Groups in random order, very large ones first, go to the part with fewer images of the group's commonest class, until both hold their share.

    Args:
        data: with groups.
        rest: indices that may be used.
        pair: number of the pair.
        per_twin: about so many images a twin; None for half of `rest`.
        seed: of the draws.

    Raises:
        DataError: fewer images than two twins need, or groups so large that the parts would differ in size or lack a class.
    """
    wanted = len(rest) // 2 if per_twin is None else per_twin
    if wanted < 1 or len(rest) < 2 * wanted:
        raise DataError(f"twins: expected at least {2 * wanted} images beside the test set for two twins of {wanted}, got {len(rest)}")
    _, group = np.unique(data.group_ids[rest], return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, len(data.class_counts)), np.int64)
    np.add.at(counts, (group, data.labels[rest]), 1)
    share = counts.sum(axis=0) * (np.inf if per_twin is None else wanted / len(rest))
    sizes: list[int] = []
    for attempt in range(ATTEMPTS):
        side = _sides(counts, share, wanted, np.random.default_rng([seed, pair, attempt]))
        held = np.stack([counts[side == half].sum(axis=0) for half in (0, 1)])
        sizes = held.sum(axis=1).tolist()
        if min(sizes) >= ALIKE * max(*sizes, wanted) and held.all():
            return Halves(a=np.sort(rest[side[group] == 0]), b=np.sort(rest[side[group] == 1]))
    missing = [int(c) for c in np.flatnonzero(~held.all(axis=0))]
    got = f"{sizes[0]} and {sizes[1]}" + (f", and none of class {missing[0]} in one" if missing else "")
    raise DataError(f"twins: expected whole groups to make two halves of about {wanted} images, got {got}; give more or smaller groups")


def _sides(counts: IntArray, share: npt.NDArray[np.float64], wanted: int, rng: np.random.Generator) -> npt.NDArray[np.int8]:
    """For each group (groups, classes) its part, or -1 for neither."""
    size, commonest = counts.sum(axis=1), counts.argmax(axis=1)
    order = rng.permutation(len(counts))
    large = size[order] > LARGE * wanted
    order = np.concatenate([order[large][np.argsort(-size[order[large]], kind="stable")], order[~large]])
    held = np.zeros((2, counts.shape[1]), np.int64)
    side = np.full(len(counts), -1, np.int8)
    for group, tie in zip(order.tolist(), rng.integers(2, size=len(order)).tolist(), strict=True):
        c, new = commonest[group], counts[group]
        difference = (held[0, c] - held[1, c]) or (held[0].sum() - held[1].sum()) or (2 * tie - 1)
        part = int(difference > 0)
        if held[part, c] + new[c] / 2 <= share[c]:  # nearer to its share with this group than without
            held[part] += new
            side[group] = part
    return side
