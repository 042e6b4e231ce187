"""New samples from accepted ones: noised to where the model must decide anew, and denoised from there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_diverse.data import IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.guides import Guide, Renoise, Start

SIGMAS = tuple(float(s) for s in (*np.geomspace(0.35, 8.0, 14), *np.geomspace(8.0, 80.0, 10)[1:]))
"""Noise that is tried. Large images need the upper half: the more pixels show the same thing, the more noise hides it (Hoogeboom et al. 2023); 80 is
as far as Karras et al. (2022) go."""
PILOT = 48
"""Held-out images that calibrate the noise, drawn at random from all of them."""
PARENTS = 500
"""Of more accepted samples of a class than this, the latest are branched from."""
BLOCK = 16
"""Images of so many consecutive seeds branch together or not at all: networks are slow on the small rest of a batch."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Settings of branching.

    Diverse samples are rare among a model's samples, and neighbours of one another. So once some are accepted, most passes start from
    an accepted sample of their class, noised (SDEdit, Meng et al. 2022), instead of from pure noise; what is accepted of that is started
    from in turn. It is the splitting of rare-event simulation (subset simulation, Au & Beck 2001), with the screen as the level: everything
    that comes out is the model's own sample given a noisy image, no push involved, and costs the remaining steps only.

    A class's accepted samples are branched from in proportion to how alone they are, so that one fertile find does not fill the bank.

    How much noise decides how new a branch is. By default the least noise is taken at which branches of held-out real images come to lie as
    far from them as new patients' images lie from the nearest training image of their class.

    Attributes:
        share: of the images that branch, where there is an accepted sample of their class, by blocks of 16 seeds; the others start from pure
            noise, so that the bank does not live on its first finds alone.
        distance: how far branches of real images must come to lie from them, in units of the median distance of a held-out image to its
            nearest training image of the class, images standardised; decides the noise.
        sigma: noise-to-signal ratio to start at; None: from `distance`.
        pace: steps of a branch, as a share of a whole pass's over the same noise.
    """

    share: float = 0.8
    distance: float = 1.0
    sigma: float | None = None
    pace: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise RecipeError(f"share: expected 0 <= share < 1, got {self.share}; 1 would never draw a fresh sample")
        if not 0 < self.pace <= 1:
            raise RecipeError(f"pace: expected a share above 0 and up to 1, got {self.pace}")
        if not self.distance > 0 or (self.sigma is not None and not self.sigma > 0):
            raise RecipeError(f"branch: expected distance and sigma above 0, got {self.distance} and {self.sigma}")

    def fit(self, train: Tensor, train_labels: Tensor, heldout: Tensor, heldout_labels: Tensor) -> FittedBranch:
        """Measures how far new patients' images lie from the training images.

        Raises:
            DataError: no held-out image of a class that the training images have.
        """
        nearest = []
        known, new = _standardised(train), _standardised(heldout)
        for c in np.unique(heldout_labels.numpy()):
            mates = known[train_labels == int(c)]
            if len(mates):
                nearest.append(torch.cdist(new[heldout_labels == int(c)], mates).min(1).values)
        if not nearest:
            raise DataError("branch: expected held-out images of the training images' classes, got none")
        picks = torch.from_numpy(np.random.default_rng(0).permutation(len(heldout))[:PILOT])
        return FittedBranch(
            settings=self,
            wanted=self.distance * float(torch.cat(nearest).median()),
            heldout=heldout[picks],
            heldout_labels=heldout_labels[picks],
            sigma=self.sigma,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedBranch(Guide):
    """Branching as a guide.

    Attributes:
        settings: see `Branch`.
        wanted: distance of a branch from where it started, standardised images.
        heldout: (k, c, *spatial) images whose branches calibrate the noise.
        heldout_labels: (k,) their classes.
        sigma: noise-to-signal ratio to start at; None before `calibrated`.
        accepted: (m, c, *spatial) samples to branch from.
        labels: (m,) their classes.
        weights: (m,) in proportion to which class-mates are chosen.
    """

    settings: Branch
    wanted: float
    heldout: Tensor
    heldout_labels: Tensor
    sigma: float | None
    accepted: Tensor = field(default_factory=lambda: torch.empty(0))
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weights: Tensor = field(default_factory=lambda: torch.empty(0))

    def given(self, accepted: Tensor, labels: Tensor) -> FittedBranch:
        """The same, with samples to branch from, each weighted by one over the Gaussian kernel density of its class there, half `wanted` wide."""
        latest = [torch.from_numpy(np.flatnonzero(labels.numpy() == c)[-PARENTS:]) for c in np.unique(labels.numpy())]
        kept = torch.cat(latest) if latest else torch.empty(0, dtype=torch.int64)
        accepted, labels = accepted[kept], labels[kept]
        seen = _standardised(accepted)
        kernel = torch.exp(-2 * (torch.cdist(seen, seen) / self.wanted).square()) * (labels[:, None] == labels)
        return replace(self, accepted=accepted, labels=labels, weights=1 / kernel.sum(1))

    def calibrated(self, renoise: Renoise) -> FittedBranch:
        """With the least noise of a fixed grid at which half the branches are as far from where they started as wanted.

        If not even the strongest takes them there, that is taken, with a warning: branches are then nearly fresh samples, and nothing lies farther.

        Raises:
            RecipeError: no noise of the grid moves them, as with very few steps.
        """
        if self.sigma is not None:
            return self
        low, high = 0, len(SIGMAS)
        while low < high:  # distance grows with noise: bisect
            middle = (low + high) // 2
            low, high = (low, middle) if self._reach(renoise, SIGMAS[middle]) >= self.wanted else (middle + 1, high)
        if low == len(SIGMAS):
            low, reached = low - 1, self._reach(renoise, SIGMAS[-1])
            if not reached:
                raise RecipeError(f"branch: expected branches that move, got none up to a noise-to-signal ratio of {SIGMAS[-1]:.3g}; take more steps")
            share = self.settings.distance * reached / self.wanted
            text = f"no noise takes branches as far as distance {self.settings.distance:g}, so the strongest is used, which goes {share:.3g}"
            warnings.warn(f"branch: {text}; lower distance to keep more of what they start from", stacklevel=2)
        return replace(self, sigma=SIGMAS[low])

    def notes(self) -> dict[str, Any]:
        """The noise that branches start from."""
        return {"branch_sigma": self.sigma}

    def start(self, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Start] | None:
        """Each image's parent is drawn from its own seed among the accepted samples of its class; None only where no sample is known."""
        if not len(self.labels):
            return None
        if self.sigma is None:
            raise RecipeError("branch: expected a noise-to-signal ratio, got none; call calibrated, or give sigma")
        parents = np.array([self._parent(int(c), seed) for c, seed in zip(labels, seeds, strict=True)], dtype=np.int64)
        chosen = torch.from_numpy(parents >= 0)  # all False is an answer too: another guide's start must not depend on the rest of the batch
        return chosen, Start(images=self.accepted[torch.from_numpy(parents)[chosen]], sigma=self.sigma, pace=self.settings.pace)

    def _parent(self, label: int, seed: int) -> int:
        mates: IntArray = (self.labels == label).nonzero().flatten().numpy()
        if np.random.default_rng(np.random.SeedSequence(seed // BLOCK, spawn_key=(6,))).random() >= self.settings.share or not len(mates):
            return -1
        stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(3,)))
        weights = self.weights[mates].double().numpy()
        return int(stream.choice(mates, p=weights / weights.sum()))

    def _reach(self, renoise: Renoise, sigma: float) -> float:
        try:
            branches = renoise(self.heldout, self.heldout_labels, range(len(self.heldout)), sigma, self.settings.pace)
        except RecipeError:  # so few steps that none is left below this noise
            return 0.0
        return float((_standardised(branches) - _standardised(self.heldout)).norm(dim=1).median())


def _standardised(images: Tensor) -> Tensor:
    """(n, p) with mean 0 and norm 1, so that the distance is sqrt(2 - 2 r), r Pearson's."""
    flat = images.flatten(1).float()
    flat = flat - flat.mean(1, keepdim=True)
    lengths: Tensor = flat.norm(dim=1, keepdim=True)
    return flat / lengths.clamp_min(1e-12)
