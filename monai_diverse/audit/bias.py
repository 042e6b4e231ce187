"""How much nearer images lie to one set of reals than to another: the statistic, its permutations over patients, its intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from monai_diverse.audit.distances import Views, class_distances
from monai_diverse.audit.nearest import OTHER, OUT, OWN, Near, Sides, smallest
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError
from monai_diverse.information.neighbours import DoubleArray

CONFIDENCE = 0.95
ROUNDING = 1e-6
BLOCKS = 20
"""Blocks of groups that the jackknife leaves out in turn."""
DRAWS = 8
"""Images of each patient that are drawn in turn, where the sets differ in images a patient."""
UNEVEN, REPEATED, EQUAL = 1.3, 1.02, 1.05
"""Ratio of images a group from which on sets differ in it; images a group that count as several; ratio of sizes that counts as equal."""
NEGLIGIBLE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A figure with its interval.

    Attributes:
        value: the figure.
        ci: the ends of its `CONFIDENCE` interval.
        p: one-sided, against no difference between the sets; None where it was not tested.
    """

    value: float
    ci: tuple[float, float]
    p: float | None = None

    def as_json(self) -> dict[str, Any]:
        """{"value", "ci"}, and "p" where there is one."""
        return {"value": self.value, "ci": list(self.ci)} | ({} if self.p is None else {"p": self.p})


@dataclass(frozen=True, kw_only=True, eq=False)
class Leaning:
    """What `Contrast.of` found of m images; figures are means over the images.

    Attributes:
        bias: (m,) E log d(image, other set) - E log d(image, own set), at equal sizes k.
        own_nearer: (m,) chance that the nearest of both is of the own set, at equal sizes.
        permuted: (permutations, m) `bias` with the groups' sets permuted.
        bias_without: (blocks, m) `bias` without each block of groups.
        own_nearer_without: (blocks, m).
        scale: (m,) n / k of the image's class, n the own set's size. What a sample copied is among the random k only with chance k / n, so
            that a bias at equal sizes shrinks with k, whatever the model does; times n / k it does not, to first order. The price is
            a longer interval where held-out images are few.
        blocks: (m,) how many blocks hold groups of the image's class, of which the degrees of freedom of an interval are one less.
    """

    bias: DoubleArray
    own_nearer: DoubleArray
    permuted: FloatArray
    bias_without: DoubleArray
    own_nearer_without: DoubleArray
    scale: DoubleArray
    blocks: IntArray

    def effects(self, chosen: npt.NDArray[np.bool_] | None = None) -> dict[str, Effect]:
        """`bias` times `scale` with its p, and `own_nearer`, of the chosen images (m,); None: of all.

        p = (1 + #{permuted >= bias}) / (permutations + 1). Intervals: Student's t, with the variance over groups, by the delete-a-block jackknife
        (Shao & Tu 1995, section 2.3; blocks of train and held-out groups are left out in pairs), plus that over images, less that of their
        interaction, which both contain (as in a two-way layout; Searle, Casella & McCulloch 1992, chapter 4), and never less than either.

        Raises:
            DataError: fewer than two images.
        """
        mask = np.ones(len(self.bias), bool) if chosen is None else chosen
        scale = self.scale[mask]
        held = int(self.blocks[mask].max(initial=2))
        bias = _effect(self.bias[mask] * scale, self.bias_without[:, mask] * scale, held)
        slack = ROUNDING * max(1.0, abs(bias.value))  # permutations are kept in single precision
        as_far = (self.permuted[:, mask] @ scale) / len(scale) >= bias.value - slack
        p = float((1 + as_far.sum()) / (len(as_far) + 1))
        nearer = _effect(self.own_nearer[mask], self.own_nearer_without[:, mask], held)
        shares = (max(0.0, nearer.ci[0]), min(1.0, nearer.ci[1]))
        return {"bias": Effect(value=bias.value, ci=bias.ci, p=p), "own_nearer": Effect(value=nearer.value, ci=shares)}

    def minus(self, other: Leaning) -> Effect:
        """The difference in bias from images with the same labels and seeds, image by image."""
        return _effect((self.bias - other.bias) * self.scale, (self.bias_without - other.bias_without) * self.scale, int(self.blocks.max()))

    @classmethod
    def mean(cls, parts: Sequence[Leaning]) -> Leaning:
        """Of the same images, groups and blocks, held against several draws of the groups' images."""
        return cls(**{part.name: np.mean([getattr(leaning, part.name) for leaning in parts], axis=0) for part in fields(cls)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast:
    """Two sets of real images that images are held against.

    For an image of class c whose distances to the n own images of that class are d_1 <= d_2 <= ..., the expected log distance to the nearest of
    a random k of them is sum_i w_i log d_i, w_i = C(n - i, k - 1) / C(n, k). With k the size of the smaller set for both, sets of unequal size
    compare without a subset being drawn.

    Where the sets differ in images a group (by more than `UNEVEN` in a class), many images of one patient in one set would be weighed against
    few in the other, and patients could not be exchanged. Where groups have several images and the sets differ in size, k images of the larger set
    come from more groups than the k of the smaller, and would lie nearer. In both cases one image of each group and class is drawn, and figures are
    means over `DRAWS` draws.

    Attributes:
        rows: float32 (n, d), vectors of all real images.
        labels: int64 (n,).
        groups: int64 (n,), patients; a group lies in one set.
        sides: int8 (n,), see `Sides`.
        permutations: of the groups' sets, among groups that have images of the same classes.
        seed: of permutations and blocks.
    """

    rows: FloatArray
    labels: IntArray
    groups: IntArray
    sides: Sides
    permutations: int = 999
    seed: int = 0
    _group_of: IntArray = field(init=False, repr=False)
    _first: IntArray = field(init=False, repr=False)
    _kinds: IntArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _, first, place = np.unique(self.groups, return_index=True, return_inverse=True)
        if (self.sides[first][place] != self.sides).any():
            raise DataError("groups: expected each group in one set, got some in both; leave those out")
        object.__setattr__(self, "_group_of", place)
        object.__setattr__(self, "_first", first)
        object.__setattr__(self, "_kinds", _kinds(place, self.labels))

    def of(self, views: Views, labels: IntArray) -> Leaning:
        """Holds images against both sets, class by class.

        Args:
            views: (m, d) vectors of the images, and others of the same images (mirrored); the nearest counts.
            labels: int64 (m,).

        Raises:
            DataError: a class of which a set has fewer than two groups, or fewer than two images.
        """
        self.require(labels)
        if len(labels) < 2:
            raise DataError(f"images: expected at least 2, for an interval, got {len(labels)}")
        if self.uneven(labels):
            return Leaning.mean([self._one_of_each(draw)._held(views, labels) for draw in range(DRAWS)])
        return self._held(views, labels)

    def uneven(self, labels: IntArray) -> bool:
        """Whether groups, not images, must be compared, in a class of these labels (m,); see `Contrast`."""
        for c in np.unique(labels):
            groups = [self._group_of[(self.labels == c) & (self.sides == side)] for side in (OWN, OTHER)]
            counts = [len(np.unique(found)) for found in groups]
            sizes = [len(found) / count for found, count in zip(groups, counts, strict=True)]
            if max(sizes) > UNEVEN * min(sizes) or (max(sizes) > REPEATED and max(counts) > EQUAL * min(counts)):
                return True
        return False

    def smallest_p(self, labels: IntArray) -> float:
        """The smallest p that exchanging groups of these classes (m,) could ever give: one over the number of ways to divide them."""
        ways = 0.0
        sides, classes = self.sides[self._first], np.unique(labels)
        relevant = np.isin(np.arange(len(self._first)), self._group_of[np.isin(self.labels, classes)]) & (sides != OUT)
        for kind in np.unique(self._kinds[relevant]):
            of_kind = sides[relevant & (self._kinds == kind)]
            n, own = len(of_kind), int((of_kind == OWN).sum())
            ways += math.lgamma(n + 1) - math.lgamma(own + 1) - math.lgamma(n - own + 1)
        return max(math.exp(-ways), 1 / (self.permutations + 1))

    def _one_of_each(self, draw: int) -> Contrast:
        """The same with one image of each group and class."""
        order = np.random.default_rng([self.seed, 3, draw]).permutation(len(self.rows))
        pairs = np.stack([self._group_of, self.labels], axis=1)[order]
        chosen = np.sort(order[np.unique(pairs, axis=0, return_index=True)[1]])
        parts = {name: getattr(self, name)[chosen] for name in ("rows", "labels", "groups", "sides")}
        return Contrast(**parts, permutations=self.permutations, seed=self.seed)

    def _held(self, views: Views, labels: IntArray) -> Leaning:
        m, blocks = len(labels), self._blocks()
        observed = np.concatenate([self.sides[None], blocks])
        bias, own = np.empty((len(observed), m)), np.empty((len(observed), m))
        permuted, scale = np.empty((self.permutations, m), np.float32), np.empty(m)
        held = np.empty(m, np.int64)
        for c in np.unique(labels):
            images = np.flatnonzero(labels == c)
            sizes = [int(((self.labels == c) & (self.sides == side)).sum()) for side in (OWN, OTHER)]
            scale[images] = sizes[0] / min(sizes)
            held[images] = ((blocks == OUT) & (self.sides != OUT) & (self.labels == c)).any(axis=1).sum()
            own_near, pooled = self._near(tuple(view[images] for view in views), np.flatnonzero((self.labels == c) & (self.sides != OUT)))
            for part in own_near.chunks(len(observed)):
                survived = own_near.survival(observed[part])
                bias[np.ix_(np.arange(len(observed))[part], images)] = own_near.bias(*survived)
                own[np.ix_(np.arange(len(observed))[part], images)] = own_near.own_nearer(*survived)
            permutations = self._permutations()
            for part in pooled.chunks(self.permutations):
                sides = np.stack([next(permutations) for _ in range(part.stop - part.start)])
                permuted[part, images] = pooled.bias(*pooled.survival(sides))
        return Leaning(
            bias=bias[0], own_nearer=own[0], permuted=permuted, bias_without=bias[1:], own_nearer_without=own[1:], scale=scale, blocks=held
        )

    def require(self, labels: IntArray) -> None:
        """Raises DataError unless both sets have two groups of every class in `labels` (m,)."""
        for name, side in (("train", OWN), ("heldout", OTHER)):
            for c in np.unique(labels):
                count = len(np.unique(self.groups[(self.labels == c) & (self.sides == side)]))
                if count < 2:
                    raise DataError(f"{name}: expected at least 2 groups of class {c}, as there are samples of it, got {count}; add some or drop it")

    def _permutations(self) -> Iterator[Sides]:
        """Sides (n,), drawn anew without end, the same at each call."""
        rng = np.random.default_rng([self.seed, 1])
        kinds, sides = self._kinds, self.sides[self._first]
        strata = [np.flatnonzero((kinds == c) & (sides != OUT)) for c in np.unique(kinds)]
        while True:
            drawn = sides.copy()
            for stratum in strata:
                drawn[stratum] = rng.permutation(sides[stratum])
            yield drawn[self._group_of]

    def _blocks(self) -> Sides:
        """(blocks, n) sides without each block: groups of both sets in random order, class by class, are dealt out in turn."""
        rng = np.random.default_rng([self.seed, 2])
        kinds, sides = self._kinds, self.sides[self._first]
        found = min(BLOCKS, *(int((sides == side).sum()) for side in (OWN, OTHER)))
        block = np.full(len(self._first), -1)
        for side in (OWN, OTHER):
            chosen = rng.permutation(np.flatnonzero(sides == side))
            chosen = chosen[np.argsort(kinds[chosen], kind="stable")]
            block[chosen] = np.arange(len(chosen)) % found
        return np.stack([np.where(block[self._group_of] == b, OUT, self.sides) for b in range(found)]).astype(np.int8)

    def _near(self, views: Views, reals: IntArray) -> tuple[Near, Near]:
        """What matters of the reals of a class as they are, and with their sets permuted."""
        own = self.sides[reals] == OWN
        sizes = np.unique(self.groups[reals], return_counts=True)[1]
        n, k = len(reals), int(min(own.sum(), (~own).sum()))
        mean_size = float((sizes**2).sum() / sizes.sum())
        pooled = min(n, math.ceil(math.log(NEGLIGIBLE) / math.log1p(-k / n) * mean_size))
        # each set's nearest that a weight falls on, though a block without its groups be left out
        least = int(sizes.max()) + 8
        most = [
            min(len(s), least + (0 if k == len(s) else math.ceil(math.log(NEGLIGIBLE) / math.log1p(-k / len(s))))) for s in (reals[own], reals[~own])
        ]
        found: list[list[DoubleArray | IntArray]] = [[], []]
        orders: list[list[IntArray]] = [[], []]
        for distances in class_distances(views, self.rows[reals]):
            sets = [np.flatnonzero(side)[smallest(distances[:, side], count)] for side, count in zip((own, ~own), most, strict=True)]
            for i, near in enumerate((np.concatenate(sets, axis=1), smallest(distances, pooled))):
                order = np.take_along_axis(near, np.argsort(np.take_along_axis(distances, near, 1), axis=1, kind="stable"), 1)
                found[i].append(np.log(np.take_along_axis(distances, order, 1).astype(np.float64)))
                orders[i].append(reals[order])
        made = [Near(order=np.concatenate(orders[i]), logs=np.concatenate(found[i]), reals=reals) for i in (0, 1)]
        return made[0], made[1]


def _kinds(group_of: IntArray, labels: IntArray) -> IntArray:
    """(groups,) equal for groups that have images of the same classes."""
    numbers: dict[tuple[int, ...], int] = {}
    classes: list[list[int]] = [[] for _ in range(int(group_of.max()) + 1)]
    for group, label in np.unique(np.stack([group_of, labels], axis=1), axis=0).tolist():
        classes[group].append(label)
    return np.array([numbers.setdefault(tuple(found), len(numbers)) for found in classes], dtype=np.int64)


def _effect(values: DoubleArray, without: DoubleArray, held: int) -> Effect:
    """Mean of values (m,) with its interval; `without` (blocks, m) are they without each block of groups, `held` of which matter."""
    blocks, m = without.shape
    if m < 2:
        raise DataError(f"images: expected at least 2, for an interval, got {m}")
    over_groups, over_images = _jackknife(without.mean(axis=1)), float(values.var(ddof=1)) / m
    apart = without - without.mean(axis=1, keepdims=True) - without.mean(axis=0) + without.mean()
    both = float((apart**2).sum()) * (blocks - 1) / (blocks * m * (m - 1))
    variance = max(over_groups, over_images, over_groups + over_images - both)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, max(1, held - 1))) * math.sqrt(variance)
    mean = float(values.mean())
    return Effect(value=mean, ci=(mean - half, mean + half))


def _jackknife(left: DoubleArray) -> float:
    """Variance from a figure without each block (blocks,)."""
    return float((len(left) - 1) * left.var())
