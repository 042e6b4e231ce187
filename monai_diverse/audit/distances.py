"""Distances between images, as the audit takes them: between unit vectors, mirrored images counting as the same, never below a floor."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from monai_diverse.data import FloatArray
from monai_diverse.features import FeatureExtractor

Views = tuple[FloatArray, ...]
"""Vectors (n, d) of the same images, seen in one or several ways; of distances to them the smallest counts."""

FLOOR = 0.01
"""Below this, distances are rounding; a Pearson correlation of .99995."""
ELEMENTS = 2**22
"""Distances that are held at a time."""
IMAGES = 1024
"""Images that are embedded at a time."""


def embedded(features: FeatureExtractor, images: FloatArray, *, mirrored: bool) -> Views:
    """Vectors (n, d) of unit length of images (n, c, *spatial), and where `mirrored` of the same images mirrored along the last axis.

    With `PixelFeatures()` the distance of two is sqrt(2 - 2 r), r Pearson's correlation (Garnier-Brun et al., arXiv 2603.03469).
    """
    turns = (1, -1) if mirrored else (1,)
    parts = range(0, len(images), IMAGES)
    return tuple(np.concatenate([_unit(features(np.ascontiguousarray(images[i : i + IMAGES, ..., ::turn]))) for i in parts]) for turn in turns)


def class_distances(views: Views, rows: FloatArray) -> Iterator[FloatArray]:
    """Distances (part, n) of the images behind views (m, d) to rows (n, d), the smallest over views, in parts that follow one another."""
    step = max(1, ELEMENTS // max(1, len(rows)))
    squares = np.einsum("nd,nd->n", rows, rows)
    for start in range(0, len(views[0]), step):
        best = np.full((len(views[0][start : start + step]), len(rows)), np.inf, np.float32)
        for view in views:
            part = view[start : start + step]
            np.minimum(best, np.einsum("md,md->m", part, part)[:, None] + squares - 2 * (part @ rows.T), out=best)
        yield np.sqrt(np.maximum(best, np.float32(FLOOR) ** 2))


def _unit(vectors: FloatArray) -> FloatArray:
    unit: FloatArray = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return unit
