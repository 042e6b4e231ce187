"""The real images of an audit: what the model saw and what it never saw, checked, with no patient on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from monai_diverse.audit.bias import Contrast
from monai_diverse.audit.distances import embedded
from monai_diverse.audit.nearest import OTHER, OUT, OWN, Sides
from monai_diverse.data import IntArray, LabelledImages, near_duplicate_groups
from monai_diverse.errors import DataError
from monai_diverse.features import FeatureExtractor


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditSets:
    """Train and held-out images under one numbering: train first.

    Attributes:
        train: as given, with the joint groups.
        heldout: as given, with the joint groups.
        sides: int8 (len(train) + len(heldout),): `OWN` and `OTHER` for what is compared. Groups with images in both sets are `OUT`: what
            lies near them lies near both. Leaving out their held-out images alone would thin out just those regions of one set that are
            densest, and unbiased samples would seem to lean towards the other.
    """

    train: LabelledImages
    heldout: LabelledImages
    sides: Sides
    groups_from: str

    @classmethod
    def of(
        cls, train: LabelledImages, heldout: LabelledImages, groups: IntArray | None, twin_correlation: float, *, mirrored: bool = False
    ) -> AuditSets:
        """Checks both sets and finds who is in both.

        Args:
            train: what the model was trained on.
            heldout: what it never saw.
            groups: int (len(train) + len(heldout),), patients over both. None: the sets' own where both have them, one numbering over both;
                otherwise near-duplicates over both together.
            twin_correlation: see `near_duplicate_groups`.
            mirrored: whether an image that is another mirrored is its near-duplicate.

        Raises:
            DataError: shapes that differ, groups of another length, or every image of a set in a group that the other has too.
        """
        if train.images.shape[1:] != heldout.images.shape[1:]:
            raise DataError(
                f"heldout: expected images of train's shape {train.images.shape[1:]}, got {heldout.images.shape[1:]}; resize or crop them"
            )
        groups_from, joint = _joint_groups(train, heldout, groups, twin_correlation, mirrored)
        sides = np.repeat(np.array([OWN, OTHER]), [len(train), len(heldout)])
        both = np.intersect1d(joint[: len(train)], joint[len(train) :])
        sides[np.isin(joint, both)] = OUT
        if OWN not in sides or OTHER not in sides:
            left = f"all {len(train)} training images" if OWN not in sides else f"all {len(heldout)} held-out images"
            raise DataError(
                f"groups: expected patients of one set alone, got {left} in groups of both; number patients over both sets, or give others"
            )
        parts = [
            LabelledImages(images=s.images, labels=s.labels, groups=g) for s, g in zip((train, heldout), np.split(joint, [len(train)]), strict=True)
        ]
        return cls(train=parts[0], heldout=parts[1], sides=sides, groups_from=groups_from)

    @property
    def labels(self) -> IntArray:
        """int64, train first."""
        return np.concatenate([self.train.labels, self.heldout.labels])

    @property
    def groups(self) -> IntArray:
        """int64, train first."""
        return np.concatenate([self.train.group_ids, self.heldout.group_ids])

    @property
    def compared(self) -> LabelledImages:
        """The held-out images that are compared."""
        return self.heldout[np.flatnonzero(self.sides[len(self.train) :] == OTHER)]

    def one_class(self) -> AuditSets:
        """The same as one class, for models without classes."""
        train, heldout = (LabelledImages(images=s.images, labels=np.zeros_like(s.labels), groups=s.groups) for s in (self.train, self.heldout))
        return AuditSets(train=train, heldout=heldout, sides=self.sides, groups_from=self.groups_from)

    def sample(self, most: int, seed: int) -> IntArray:
        """Indices of what is compared, of each set at most so many, whole groups or parts of them at random."""
        rng = np.random.default_rng([seed, 6])
        chosen = [rng.permutation(np.flatnonzero(self.sides == side))[:most] for side in (OWN, OTHER)]
        return np.sort(np.concatenate(chosen))

    def contrast(self, features: FeatureExtractor, permutations: int, seed: int) -> Contrast:
        """Both sets in feature space."""
        rows = np.concatenate([embedded(features, s.images, mirrored=False)[0] for s in (self.train, self.heldout)])
        return Contrast(rows=rows, labels=self.labels, groups=self.groups, sides=self.sides, permutations=permutations, seed=seed)

    def as_json(self, classes: int) -> dict[str, Any]:
        """Counts of what is compared, and of what is left out, and what groups are: `given`, the sets' `own`, or `near-duplicates`."""
        n = len(self.train)
        parts = {"train": (self.train, self.sides[:n]), "heldout": (self.heldout, self.sides[n:])}
        found: dict[str, Any] = {"groups_from": self.groups_from}
        for name, (part, sides) in parts.items():
            images, groups = int((sides != OUT).sum()), len(np.unique(part.group_ids[sides != OUT]))
            found[name] = {
                "images": images,
                "groups": groups,
                "images_per_group": images / groups,
                "by_class": np.bincount(part.labels[sides != OUT], minlength=classes).tolist(),
                "dropped": int((sides == OUT).sum()),
            }
        return found


def require_shape(shape: tuple[int, ...], sets: AuditSets, what: str) -> None:
    """Raises DataError unless images of `shape` (c, *spatial) are as those of the sets."""
    if shape != sets.train.images.shape[1:]:
        raise DataError(f"{what}: expected images of train's shape {sets.train.images.shape[1:]}, got {shape}; resize or crop them")


def _joint_groups(
    train: LabelledImages, heldout: LabelledImages, groups: IntArray | None, twin_correlation: float, mirrored: bool
) -> tuple[str, IntArray]:
    if groups is not None:
        joint = np.asarray(groups)
        if joint.shape != (len(train) + len(heldout),) or joint.dtype.kind not in "iu":
            wanted = f"whole numbers ({len(train)} + {len(heldout)},), train first"
            raise DataError(f"groups: expected {wanted}, got {joint.dtype} {joint.shape}")
        return "given", joint.astype(np.int64)
    if train.groups is not None and heldout.groups is not None:
        return "own", np.concatenate([train.groups, heldout.groups])
    images = np.concatenate([train.images, heldout.images])
    if not mirrored:
        return "near-duplicates", near_duplicate_groups(images, twin_correlation)
    both = near_duplicate_groups(np.concatenate([images, images[..., ::-1]]), twin_correlation)
    # an image and its mirror image are one patient
    links = csr_array((np.ones(len(images)), (both[: len(images)], both[len(images) :])), shape=(both.max() + 1,) * 2)
    return "near-duplicates", connected_components(links, directed=False)[1][both[: len(images)]].astype(np.int64)
