"""Everything that is measured of a sampler's images, and of held-out reals in their place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.audit.bias import Contrast, Leaning
from monai_diverse.audit.distances import Views, class_distances, embedded
from monai_diverse.audit.memorisation import Memorisation
from monai_diverse.audit.nearest import OTHER, OUT, OWN, Sides
from monai_diverse.audit.sets import AuditSets
from monai_diverse.data import FloatArray, IntArray, LabelledImages
from monai_diverse.features import FeatureExtractor
from monai_diverse.information.neighbours import DoubleArray

SHOWN = 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """Some images of one sampler, measured.

    Attributes:
        images: what was drawn.
        leaning: towards train.
        usual: see `Memorisation.of`.
        train_index: (m,) of the nearest training image of the class.
        distance: (m,) to it.
        heldout_index: (m,) of the nearest held-out image of the class.
        heldout_distance: (m,) to it.
        concentration: largest share of the images whose nearest training image is of one group, and the same of held-out reals: a model that
            has collapsed onto few patients draws nearly all of its samples near them, which an exchange of patients cannot show.
        flat: images without any contrast.
    """

    images: LabelledImages
    leaning: Leaning
    usual: dict[str, Any]
    train_index: IntArray
    distance: DoubleArray
    heldout_index: IntArray
    heldout_distance: DoubleArray
    concentration: dict[str, float]
    flat: int

    def as_json(self, names: list[str], first: Measured | None) -> dict[str, Any]:
        """As in audit.json; `first` has the same classes and seeds, and is what the bias is compared with."""
        return {
            **_effects(self.leaning),
            "by_class": _by_class(self.leaning, self.images.labels, names),
            **self.usual,
            "concentration": self.concentration,
            "flat": self.flat,
            "against_first": None if first is None else {"bias": self.leaning.minus(first.leaning).as_json()},
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What images are held against.

    Attributes:
        sets: the real images.
        features: what distances are taken in.
        mirrored: whether a mirrored image counts as the same.
        permutations: see `Contrast`.
        seed: of everything random.
    """

    sets: AuditSets
    features: FeatureExtractor
    mirrored: bool
    permutations: int
    seed: int

    def measure(self, images: LabelledImages) -> Measured:
        """Measures images.

        Raises:
            DataError: see `Contrast.of`.
        """
        views = embedded(self.features, images.images, mirrored=self.mirrored)
        n = len(self.sets.train)
        # copies of training images that are not compared are copies all the same
        own, distance = _nearest(views, images.labels, self.contrast, np.arange(len(self.contrast.rows)) < n)
        other, other_distance = _nearest(views, images.labels, self.contrast, self.sets.sides == OTHER)
        return Measured(
            images=images,
            leaning=self.contrast.of(views, images.labels),
            usual=self._memorisation.of(views),
            train_index=own,
            distance=distance,
            heldout_index=other - n,
            heldout_distance=other_distance,
            concentration={"value": self._concentration(own), "heldout": self._concentration(self._nearest_of_reals)},
            flat=int((np.linalg.norm(views[0], axis=1) < 0.5).sum()),
        )

    def _concentration(self, nearest: IntArray) -> float:
        return float(np.unique(self.contrast.groups[nearest], return_counts=True)[1].max() / len(nearest))

    @cached_property
    def _nearest_of_reals(self) -> IntArray:
        """Of each held-out image that is compared the nearest training image of its class, where there is one."""
        compared = self.sets.compared
        kept = compared[np.isin(compared.labels, self.sets.train.labels)]
        views = embedded(self.features, kept.images, mirrored=self.mirrored)
        return _nearest(views, kept.labels, self.contrast, np.arange(len(self.contrast.rows)) < len(self.sets.train))[0]

    def control(self) -> dict[str, Any] | None:
        """One half of the held-out reals in the place of samples, against train and the other half; None where a half is too small."""
        n, compared = len(self.sets.train), np.flatnonzero(self.sets.sides == OTHER)
        played = compared[self._half]
        sides: Sides = self.sets.sides.copy()
        sides[played] = OUT
        labels = self.contrast.labels
        enough = [
            c
            for c in np.unique(labels[played])
            if min(len(np.unique(self.contrast.groups[(sides == side) & (labels == c)])) for side in (OWN, OTHER)) >= 2
        ]
        played = played[np.isin(labels[played], enough)]
        if len(played) < 2:
            return None
        contrast = Contrast(
            rows=self.contrast.rows,
            labels=labels,
            groups=self.contrast.groups,
            sides=sides,
            permutations=self.permutations,
            seed=self.seed,
        )
        views = embedded(self.features, self.sets.heldout.images[played - n], mirrored=self.mirrored)
        return {"images": len(played), **contrast.of(views, labels[played]).effects()}

    @cached_property
    def contrast(self) -> Contrast:
        """Both sets in feature space."""
        return self.sets.contrast(self.features, self.permutations, self.seed)

    @cached_property
    def _half(self) -> npt.NDArray[np.bool_]:
        """Of the held-out images that are compared, about half, by whole groups, class by class."""
        compared = self.sets.compared
        _, first, place = np.unique(compared.group_ids, return_index=True, return_inverse=True)
        shuffled = np.random.default_rng([self.seed, 5]).permutation(len(first))
        order = shuffled[np.argsort(compared.labels[first][shuffled], kind="stable")]
        chosen = np.zeros(len(first), bool)
        chosen[order[::2]] = True
        return chosen[place]

    @cached_property
    def _memorisation(self) -> Memorisation:
        train, heldout = (embedded(self.features, s.images, mirrored=self.mirrored) for s in (self.sets.train, self.sets.compared))
        return Memorisation(train, heldout, self._half, self.seed)


def closest_pairs(
    measured: dict[str, Measured], seeds: list[int] | None, sets: AuditSets, most: int = SHOWN
) -> tuple[list[dict[str, Any]], dict[str, FloatArray]]:
    """The closest pairs of a sample and a training image of its class, over all samplers: each training image, and each seed, once.

    Args:
        measured: by sampler.
        seeds: (m,) of every sampler's images; None: not known.
        sets: the real images.
        most: pairs.

    Returns:
        Pairs as in audit.json, and pictures: "samples", "train" and "heldout", the held-out image nearest to each sample.
    """
    found = sorted((float(d), name, i) for name, m in measured.items() for i, d in enumerate(m.distance))
    pairs: list[dict[str, Any]] = []
    shown: list[tuple[FloatArray, int, int]] = []
    taken: set[tuple[str, int]] = set()
    for distance, name, i in found:
        m = measured[name]
        keys = {("train", int(m.train_index[i])), ("seed", i)}
        if keys & taken:
            continue
        if len(pairs) == most:
            break
        taken |= keys
        place = {"sampler": name, "label": int(m.images.labels[i]), "seed": None if seeds is None else seeds[i]}
        pairs.append({**place, "train_index": int(m.train_index[i]), "distance": distance, "heldout_distance": float(m.heldout_distance[i])})
        shown.append((m.images.images[i], int(m.train_index[i]), int(m.heldout_index[i])))
    pictures = {
        "samples": np.stack([image for image, _, _ in shown]),
        "train": sets.train.images[[t for _, t, _ in shown]],
        "heldout": sets.heldout.images[[h for _, _, h in shown]],
    }
    return pairs, pictures


def _effects(leaning: Leaning, chosen: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
    return {name: effect.as_json() for name, effect in leaning.effects(chosen).items()}


def _by_class(leaning: Leaning, labels: IntArray, names: list[str]) -> list[dict[str, Any]]:
    counts = np.bincount(labels)
    # one image has no interval
    classes = [int(c) for c in np.flatnonzero(counts >= 2)]
    return [{"label": c, "name": names[c], "images": int(counts[c]), **_effects(leaning, labels == c)} for c in classes]


def _nearest(views: Views, labels: IntArray, reals: Contrast, among: npt.NDArray[np.bool_]) -> tuple[IntArray, DoubleArray]:
    """Of each image behind views (m, d) the nearest real (m,) of its class among those chosen, and the distance (m,)."""
    index, distance = np.empty(len(labels), np.int64), np.empty(len(labels))
    for c in np.unique(labels):
        images, chosen = np.flatnonzero(labels == c), np.flatnonzero(among & (reals.labels == c))
        parts = [(d.argmin(axis=1), d.min(axis=1)) for d in class_distances(tuple(view[images] for view in views), reals.rows[chosen])]
        index[images] = chosen[np.concatenate([i for i, _ in parts])]
        distance[images] = np.concatenate([d for _, d in parts])
    return index, distance
