"""Views of an image that neither features nor pixel positions show: its intensities, its spatial frequencies, the size of its foreground."""

from __future__ import annotations

import numpy as np

from monai_diverse.data import FloatArray, IntArray

CHUNK = 256


def intensity_profile(images: FloatArray, bins: int) -> FloatArray:
    """Cumulative histograms of each channel.

    The squared Euclidean distance of two profiles is the sum over channels of the integral of (F - G)^2 (Cramér 1928), F and G being the
    channels' distribution functions.

    Args:
        images: (n, channels, *spatial) in [0, 1].
        bins: equal bins of [0, 1].

    Returns:
        float32 (n, channels * bins): shares of pixels up to each bin's upper edge, divided by sqrt(bins).
    """
    count, channels = images.shape[:2]
    flat = images.reshape(count * channels, int(np.prod(images.shape[2:])))
    place = np.minimum((flat * bins).astype(np.int64), bins - 1) + bins * np.arange(len(flat))[:, None]
    histogram = np.bincount(place.ravel(), minlength=bins * len(flat)).reshape(len(flat), bins) / flat.shape[1]
    profile: FloatArray = (histogram.cumsum(axis=1) / np.sqrt(bins)).reshape(count, channels * bins).astype(np.float32)
    return profile


def otsu_threshold(images: FloatArray, bins: int = 256) -> float:
    """The intensity that parts the pixels of all images, taken together, into foreground and background (Otsu 1979).

    It makes the variance between both parts largest; the channels are averaged first.

    Args:
        images: (n, channels, *spatial) in [0, 1], n from 1.
        bins: of the histogram.

    Returns:
        A threshold in (0, 1); .5 for images of one single intensity.
    """
    edges = np.linspace(0, 1, bins + 1)
    parts = (images[start : start + CHUNK].mean(axis=1, dtype=np.float32) for start in range(0, len(images), CHUNK))
    counts = sum((np.histogram(part, bins=bins, range=(0, 1))[0] for part in parts), np.zeros(bins, np.int64))
    share = counts / counts.sum()
    centres = (edges[:-1] + edges[1:]) / 2
    below, moment = np.cumsum(share)[:-1], np.cumsum(share * centres)
    apart = (moment[-1] * below - moment[:-1]) ** 2
    parted = np.divide(apart, below * (1 - below), out=np.zeros_like(apart), where=(below > 1e-12) & (below < 1 - 1e-12))
    if not parted.max() > 0:
        return 0.5
    # between two clusters every threshold does equally well: the middle one
    return float(edges[1:-1][parted >= parted.max() * (1 - 1e-9)].mean())


def foreground_share(images: FloatArray, threshold: float) -> FloatArray:
    """Share of pixels (or voxels) above a threshold, the channels averaged first: the area (or volume) of the foreground mask.

    Args:
        images: (n, channels, *spatial) in [0, 1].
        threshold: see `otsu_threshold`.

    Returns:
        float32 (n, 1) in [0, 1].
    """
    flat = images.mean(axis=1, dtype=np.float32).reshape(len(images), int(np.prod(images.shape[2:])))
    share: FloatArray = (flat > threshold).mean(axis=1, dtype=np.float32, keepdims=True)
    return share


def spectral_profile(images: FloatArray, bins: int, floor: float) -> FloatArray:
    """Radially averaged power spectra of the channels' mean, in decades; two or three spatial dimensions.

    The mean intensity is left out and power is relative to its mean over all frequencies, so that brightness and contrast do not matter.
    The Euclidean distance of two profiles is the root mean square of their differences in decades.

    Args:
        images: (n, channels, *spatial).
        bins: rings of equal width from 0 to .5 cycles a pixel, fewer for images of fewer than twice as many pixels a side.
            Higher frequencies (towards the corners) count to the last ring.
        floor: relative power below which all is the same.

    Returns:
        float32 (n, rings): log10 of the power, divided by sqrt(rings).
    """
    shape = images.shape[2:]
    rings = min(bins, min(shape) // 2)
    ring = _rings(shape, rings)
    sizes = np.bincount(ring, minlength=rings + 1)[1:]
    profiles = np.zeros((len(images), rings))
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].mean(axis=1, dtype=np.float64)
        power = np.abs(np.fft.fftn(part, axes=tuple(range(1, part.ndim)))).reshape(len(part), -1) ** 2
        power[:, 0] = 0
        # what rounding leaves of a flat image is no power
        total = power.mean(axis=1, keepdims=True)
        power = np.where(total > 1e-12 * power.shape[1], power / np.maximum(total, 1e-30), 0)
        for row, values in enumerate(power):
            profiles[start + row] = np.bincount(ring, values, minlength=rings + 1)[1:] / sizes
    result: FloatArray = (np.log10(np.maximum(profiles, floor)) / np.sqrt(rings)).astype(np.float32)
    return result


def _rings(shape: tuple[int, ...], rings: int) -> IntArray:
    """Ring 1..rings of every frequency, flattened; 0 for the mean."""
    axes = np.meshgrid(*(np.fft.fftfreq(side) for side in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes)).ravel()
    ring: IntArray = np.minimum(np.ceil(radius * 2 * rings - 1e-9), rings).astype(np.int64)
    return ring
