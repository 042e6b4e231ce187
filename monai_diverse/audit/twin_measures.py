"""What is measured of one pair of twins at one checkpoint."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import functional

from monai_diverse.audit.denoising import denoised, loss_levels
from monai_diverse.audit.distances import Views, class_distances, embedded
from monai_diverse.data import FloatArray, IntArray, LabelledImages
from monai_diverse.errors import DataError
from monai_diverse.features import FeatureExtractor
from monai_diverse.information.cells import evenly_spaced
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.storage import write_atomic

GAP = 1 / 3
LEVELS = 8
COMPARED = 2000
"""Real images, evenly spaced, that samples' distribution is held against."""
TESTED = 1000
"""Test images, evenly spaced, that losses are taken of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measures:
    """Of m pairs of samples from the same noises, and of the test images; arrays named first twin, second twin where there are two rows.

    Attributes:
        similarity: (m,) cosine of the two twins' samples in the features: Pearson's r of their pixels by default.
        own: (2, m) distance of each twin's sample to the nearest image of its own training set, of all classes, as in the paper; the bias of
            `audit_model` is over images of the sample's class.
        other: (2, m) to the nearest of the other twin's.
        copies: (2, m) whether the nearest own image is nearer than a third of the second nearest (the usual gap-ratio test); an image and its
            mirrored self are one.
        test_losses: (2, t) of each test image, over all noise levels.
        train_losses: (2, n) of training images of each twin, as many as the test set at most.
        divergence: (levels, t) 1 - cosine of the two twins' predicted noise for test images.
        noise_ratios: (levels,) of those levels.
        quality: (2,) relative energy distance between samples and test images in the features: 0 is the same distribution.
    """

    similarity: npt.NDArray[np.float64]
    own: npt.NDArray[np.float64]
    other: npt.NDArray[np.float64]
    copies: npt.NDArray[np.bool_]
    test_losses: npt.NDArray[np.float64]
    train_losses: npt.NDArray[np.float64]
    divergence: npt.NDArray[np.float64]
    noise_ratios: npt.NDArray[np.float64]
    quality: npt.NDArray[np.float64]

    def write(self, path: Path) -> None:
        """Keeps them, atomically."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        write_atomic(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> Measures:
        """Reads what `write` wrote.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        if not path.exists():
            raise DataError(f"{path}: expected measures of a checkpoint, but there are none yet; run audit_twins or twin_steps to its end")
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                return cls(**{field.name: archive[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: expected measures of a checkpoint, but it cannot be read; delete it to measure again") from error


def measure(
    sources: tuple[DiffusionSource, DiffusionSource],
    seen: tuple[LabelledImages, LabelledImages],
    test: LabelledImages,
    *,
    labels: IntArray,
    seeds: IntArray,
    features: FeatureExtractor,
    seed: int,
) -> Measures:
    """Draws from both twins on the same noises and measures.

    Args:
        sources: the twins.
        seen: what each was trained on.
        test: images that neither saw.
        labels: (m,) classes to draw.
        seeds: (m,) of the noises, shared by the twins.
        features: where distances are taken; the pixels of each image, standardised, in the paper.
        seed: of the noise of the losses.
    """
    drawn = [embedded(features, draw(source, labels, seeds), mirrored=source.mirrored) for source in sources]
    tables = [embedded(features, data.images, mirrored=False)[0] for data in seen]
    own = np.stack([_two_nearest(drawn[twin], tables[twin]) for twin in (0, 1)])
    other = np.stack([_two_nearest(drawn[twin], tables[1 - twin])[:, 0] for twin in (0, 1)])
    indices = loss_levels(sources[0].schedule, LEVELS)
    known, tested = embedded(features, evenly(test, COMPARED).images, mirrored=False)[0], evenly(test, TESTED)
    of_test = [[denoised(source, tested, index, seed) for index in indices] for source in sources]
    return Measures(
        similarity=_cosine(*(torch.from_numpy(views[0]) for views in drawn)),
        own=own[..., 0],
        other=other,
        copies=own[..., 0] < GAP * own[..., 1],
        test_losses=np.stack([np.mean([losses for losses, _ in levels], axis=0) for levels in of_test]),
        train_losses=_train_losses(sources, seen, indices, seed, len(tested)),
        divergence=np.stack([1 - _cosine(a.flatten(1), b.flatten(1)) for (_, a), (_, b) in zip(*of_test, strict=True)]),
        noise_ratios=sources[0].schedule.noise_ratio(torch.tensor(indices)).double().numpy(),
        quality=np.array([energy_distance(views[0], known) for views in drawn]),
    )


def of_reals(halves: Sequence[LabelledImages], test: LabelledImages, features: FeatureExtractor, *, mirrored: bool) -> dict[str, float]:
    """What real images come to where samples are measured: `quality_real` and `gap_ratio_real`, means over halves.

    Args:
        halves: training images of each twin: their energy distance to the test images, and the gap ratio of test images against them.
        test: images that no twin saw.
        features: where distances are taken.
        mirrored: whether an image and its mirrored self are one.
    """
    known = embedded(features, evenly(test, COMPARED).images, mirrored=mirrored)
    quality, copies = [], []
    for half in halves:
        table = embedded(features, half.images, mirrored=False)[0]
        nearest = _two_nearest(known, table)
        quality.append(energy_distance(table[evenly_spaced(len(table), COMPARED)], known[0]))
        copies.append(float((nearest[:, 0] < GAP * nearest[:, 1]).mean()))
    return {"quality_real": float(np.mean(quality)), "gap_ratio_real": float(np.mean(copies))}


def quadruplets(
    sources: tuple[DiffusionSource, DiffusionSource],
    seen: tuple[LabelledImages, LabelledImages],
    labels: IntArray,
    seeds: IntArray,
    features: FeatureExtractor,
    rows: int = 8,
) -> FloatArray:
    """(rows, 4, c, *spatial): nearest image of the first twin, its sample, the second's from the same noise, nearest image of the second.

    Arguments as in `measure`. Where a sample is nearer to an image's mirrored self, and twins are trained on those, that is shown.
    """
    drawn = [draw(source, labels[:rows], seeds[:rows]) for source in sources]
    nearest = [_nearest(images, data, features, mirrored=s.mirrored) for images, data, s in zip(drawn, seen, sources, strict=True)]
    return np.stack([nearest[0], drawn[0], drawn[1], nearest[1]], axis=1)


def evenly(data: LabelledImages, most: int) -> LabelledImages:
    """At most so many of the images, evenly spaced."""
    return data if len(data) <= most else data[evenly_spaced(len(data), most)]


def draw(source: DiffusionSource, labels: IntArray, seeds: IntArray) -> FloatArray:
    """Samples (m, c, *spatial); an unconditional model takes no notice of the labels."""
    return source.sample(labels if source.classes > 1 else np.zeros_like(labels), seeds).numpy()


def energy_distance(first: FloatArray, second: FloatArray) -> float:
    """Relative energy distance of two sets of rows, (2 E|X-Y| - E|X-X'| - E|Y-Y'|) / (2 E|X-Y|), without bias in the numerator.

    Székely & Rizzo, J. Stat. Plan. Inference 143 (2013). 0 for one distribution (below by chance), 1 for sets infinitely far apart.

    Args:
        first: (n, d), at least two rows.
        second: (m, d), at least two rows.
    """
    between = float(cdist(first, second).mean())
    within = [float(cdist(rows, rows).sum()) / (len(rows) * (len(rows) - 1)) for rows in (first, second)]
    return (2 * between - sum(within)) / (2 * between)


def _two_nearest(views: Views, rows: FloatArray) -> npt.NDArray[np.float64]:
    """(m, 2) distances to the two nearest rows, ascending."""
    parts = [np.partition(distances, 1, axis=1)[:, :2] for distances in class_distances(views, rows)]
    return np.concatenate(parts).astype(np.float64)


def _nearest(images: FloatArray, data: LabelledImages, features: FeatureExtractor, *, mirrored: bool) -> FloatArray:
    views, rows = embedded(features, images, mirrored=mirrored), embedded(features, data.images, mirrored=False)[0]
    distances = np.stack([np.concatenate(list(class_distances((view,), rows))) for view in views])
    found: FloatArray = data.images[distances.min(axis=0).argmin(axis=1)]
    turned = distances.min(axis=2).argmin(axis=0) == 1
    found[turned] = found[turned][..., ::-1]
    return found


def _cosine(first: Tensor, second: Tensor) -> npt.NDArray[np.float64]:
    return functional.cosine_similarity(first.double(), second.double()).numpy()


def _train_losses(
    sources: tuple[DiffusionSource, DiffusionSource], seen: tuple[LabelledImages, LabelledImages], indices: list[int], seed: int, most: int
) -> npt.NDArray[np.float64]:
    count = min(most, *(len(data) for data in seen))
    chosen = [evenly(data, count) for data in seen]
    return np.stack([np.mean([denoised(s, data, index, seed)[0] for index in indices], axis=0) for s, data in zip(sources, chosen, strict=True)])
