"""Does the network know its training images? Losses by noise level, of images that it saw and of images that it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from monai_diverse.audit.bias import CONFIDENCE, Effect
from monai_diverse.audit.denoising import loss_factor
from monai_diverse.audit.nearest import OTHER, OWN, Sides
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import RecipeError
from monai_diverse.information.neighbours import DoubleArray
from monai_diverse.sampling import NoiseSchedule
from monai_diverse.sources import DiffusionSource

RANGE = (0.02, 20.0)
"""Noise-to-signal ratios within which levels lie: below, nothing is left to learn, above, nothing is left to see."""
RESAMPLES = 400
BATCH = 256
"""Images that are noised at a time."""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How membership is measured.

    Attributes:
        levels: of noise, evenly in the logarithm of the noise-to-signal ratio.
        draws: noises a level; every image meets the same ones.
        seed: of noises and resamples.
    """

    levels: int = 8
    draws: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("levels", 1), ("draws", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    def indices(self, schedule: NoiseSchedule) -> IntArray:
        """Indices of the schedule, rising, each once."""
        ratios = schedule.noise_ratio(torch.arange(len(schedule))).double().log().numpy()
        low, high = np.clip(np.log(RANGE), ratios[0], ratios[-1])
        found: IntArray = np.unique([int(np.abs(ratios - level).argmin()) for level in np.linspace(low, high, self.levels)])
        return found

    def losses(self, source: DiffusionSource, images: FloatArray, labels: IntArray) -> Iterator[DoubleArray]:
        """Mean loss (n,) of each image, level by level.

        The loss is the mean squared error of what the network predicts, averaged over draws, and over both orientations where the source was
        trained on mirrored images.

        Args:
            source: whose network.
            images: (n, c, *spatial) in [0, 1].
            labels: (n,).
        """
        views = (images, np.ascontiguousarray(images[..., ::-1])) if source.mirrored else (images,)
        clean = [source.encode(torch.from_numpy(view)) for view in views]
        classes = torch.from_numpy(labels)
        for index in self.indices(source.schedule):
            abar, factor = float(source.schedule.alphas_cumprod[index]), loss_factor(source, int(index))
            noises = np.random.default_rng([self.seed, int(index)]).standard_normal((self.draws, *clean[0].shape[1:]), dtype=np.float32)
            total = np.zeros(len(labels))
            for x0 in clean:
                for noise in torch.from_numpy(noises):
                    for part in (slice(start, start + BATCH) for start in range(0, len(x0), BATCH)):
                        guess = source.denoise(abar**0.5 * x0[part] + (1 - abar) ** 0.5 * noise, classes[part], int(index))
                        total[part] += factor * (guess - x0[part]).square().flatten(1).mean(1).double().numpy()
            yield total / (len(clean) * self.draws)

    def report(self, schedule: NoiseSchedule, losses: list[DoubleArray], labels: IntArray, groups: IntArray, sides: Sides) -> dict[str, Any]:
        """What the losses (n,) of each level come to, as in audit.json.

        Figures are taken within classes and averaged by the classes' shares in train. gap: loss of held-out images less that of
        training images. auc: chance that a training image's loss is below that of a held-out one, ties half; over all levels: of the losses
        in units of their standard deviations, summed. Intervals: percentiles over resamples of groups, within each set.
        """
        weights = _resampled(labels, groups, sides, np.random.default_rng([self.seed, 3]))
        levels = []
        for index, loss in zip(self.indices(schedule), losses, strict=True):
            found = _Compared(loss, labels, sides)
            own, other = found.means(weights)
            levels.append(
                {
                    "noise_ratio": float(schedule.noise_ratio(torch.tensor(int(index)))),
                    "index": int(index),
                    "loss_train": float(own[0]),
                    "loss_heldout": float(other[0]),
                    "gap": _percentiles(other - own).as_json(),
                    "auc": _percentiles(found.auc(weights)).as_json(),
                }
            )
        total = np.sum([loss / max(loss.std(), 1e-30) for loss in losses], axis=0)
        return {"draws": self.draws, "levels": levels, "auc": _percentiles(_Compared(total, labels, sides).auc(weights)).as_json()}


@dataclass(frozen=True, eq=False)
class _Compared:
    """Losses (n,) of both sets, class by class; weights are (r, n)."""

    losses: DoubleArray
    labels: IntArray
    sides: Sides

    def parts(self) -> list[tuple[float, IntArray, IntArray]]:
        """Of every class that both sets have: its share in train, its images of train, its held-out images."""
        found = [tuple(np.flatnonzero((self.labels == c) & (self.sides == side)) for side in (OWN, OTHER)) for c in np.unique(self.labels)]
        kept = [(own, other) for own, other in found if len(own) and len(other)]
        total = sum(len(own) for own, _ in kept)
        return [(len(own) / total, own, other) for own, other in kept]

    def means(self, weights: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
        """(r,) mean losses of train and held-out images."""
        own, other = np.zeros(len(weights)), np.zeros(len(weights))
        for share, train, heldout in self.parts():
            own += share * _average(self.losses[train], weights[:, train])
            other += share * _average(self.losses[heldout], weights[:, heldout])
        return own, other

    def auc(self, weights: DoubleArray) -> DoubleArray:
        """(r,) chance that a training image's loss is the lower one."""
        found = np.zeros(len(weights))
        for share, train, heldout in self.parts():
            difference = self.losses[heldout][:, None] - self.losses[train][None]
            lower = weights[:, heldout] @ ((difference > 0) + 0.5 * (difference == 0))
            found += share * (lower * weights[:, train]).sum(1) / np.maximum(weights[:, train].sum(1) * weights[:, heldout].sum(1), 1e-30)
        return found


def _average(values: DoubleArray, weights: DoubleArray) -> DoubleArray:
    mean: DoubleArray = weights @ values / np.maximum(weights.sum(1), 1e-30)
    return mean


def _resampled(labels: IntArray, groups: IntArray, sides: Sides, rng: np.random.Generator) -> DoubleArray:
    """(1 + resamples, n) how often each image counts: once, then as often as its group is drawn."""
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    weights = np.ones((1 + RESAMPLES, len(first)))
    for side in (OWN, OTHER):
        for c in np.unique(labels):
            stratum = np.flatnonzero((sides[first] == side) & (labels[first] == c))
            if len(stratum):
                weights[1:, stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), RESAMPLES)
    return weights[:, place]


def _percentiles(values: DoubleArray) -> Effect:
    """The first of values, and the interval over the others."""
    low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Effect(value=float(values[0]), ci=(float(low), float(high)))
