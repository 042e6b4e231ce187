"""Small synthetic images that the contracts judge by."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from monai_diverse.data import LabelledImages
from monai_diverse.features import PixelFeatures
from monai_diverse.screening.embedding import Embedding
from monai_diverse.screening.views import Real

TOLERANCE = 1e-4


def synthetic_images(count: int, seed: int, *, shape: tuple[int, ...] = (12, 12), channels: int = 1, views: int = 1) -> LabelledImages:
    """Smooth images of two classes, bright towards one side (0) or the other (1) of the last axis; any two of one class are exchangeable.

    Args:
        count: images.
        seed: decides everything.
        shape: two or three spatial sides.
        channels: each with the same structure and its own noise.
        views: images that share a group: the same structure with other noise.
    """
    rng = np.random.default_rng(seed)
    owner = np.arange(count) // views
    labels = owner % 2
    ramp = np.linspace(-1, 1, shape[-1]) * np.where(labels, 1, -1).reshape(-1, *[1] * len(shape))
    structure = gaussian_filter(rng.normal(size=(owner[-1] + 1, *shape)), (0, *[1.5] * len(shape)))[owner]
    noise = rng.normal(size=(count, channels, *shape))
    images = 0.5 + 0.15 * ramp[:, None] + 0.4 * structure[:, None] + 0.02 * noise
    return LabelledImages(images=np.clip(images, 0, 1).astype(np.float32), labels=labels, groups=owner if views > 1 else None)


def synthetic_real(seed: int = 0, *, shape: tuple[int, ...] = (12, 12), views: int = 1) -> tuple[Real, Embedding]:
    """90 reference and 60 calibration images as gates see them, generator_train being the reference, and what embeds others alike."""
    data = synthetic_images(150, seed, shape=shape, views=views)
    reference, calibration = data[np.arange(90)], data[np.arange(90, 150)]
    embedding, seen = Embedding.fit(PixelFeatures(), reference, components=8, pixel_side=32)
    return Real(reference=seen, calibration=embedding.views(calibration), generator_train=seen), embedding
