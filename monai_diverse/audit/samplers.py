"""The ways in which an audit samples a model: its own, and others with the same seeds and classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from monai_diverse.audit.sets import AuditSets
from monai_diverse.data import FloatArray, IntArray, LabelledImages
from monai_diverse.errors import RecipeError
from monai_diverse.sampling import ClassifierFree, Guide, GuideSettings, Shield
from monai_diverse.sources import DiffusionSource, SampleSource

BATCH = 128
"""Images between two reports of progress."""
SCALES = (1.0, 2.0, 4.0)
OTHER_SCHEDULERS = ("DDIMScheduler", "DPMSolverMultistepScheduler")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """A way to sample a model; None leaves a setting as the model's own.

    Attributes:
        name: for reports, each once.
        guidance: scale of classifier-free guidance, at all noise levels.
        scheduler: one of `sampling.SCHEDULERS`.
        steps: of inference.
        guide: settings, which are fitted with the training images as those to keep away from, or a fitted guide.
    """

    name: str
    guidance: float | None = None
    scheduler: str | None = None
    steps: int | None = None
    guide: GuideSettings | Guide | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise RecipeError("sampler: expected a name, got none")
        if self.steps is not None and self.steps < 1:
            raise RecipeError(f"sampler {self.name}: expected steps from 1, got {self.steps}")
        if self.guide is not None and not isinstance(self.guide, Guide) and not hasattr(self.guide, "fit"):
            raise RecipeError(f"sampler {self.name}: expected a guide or settings with a fit method, such as Shield, got {type(self.guide).__name__}")

    def applied(self, source: SampleSource) -> SampleSource:
        """The source with these settings, counting its own evaluations where it is a diffusion model.

        Raises:
            RecipeError: guidance or a scheduler for what is no diffusion model, or what the model cannot do.
        """
        if isinstance(source, DiffusionSource):
            return source.variant(guidance=None if self.guidance is None else ClassifierFree(scale=self.guidance), scheduler=self.scheduler)
        if self.guidance is not None or self.scheduler is not None:
            raise RecipeError(f"sampler {self.name}: expected no guidance and no scheduler, as {type(source).__name__} is no diffusion model")
        return source

    def as_json(self) -> dict[str, Any]:
        """As in audit.json."""
        guide = None if self.guide is None else type(self.guide).__name__
        return {"name": self.name, "guidance": self.guidance, "scheduler": self.scheduler, "steps": self.steps, "guide": guide}


def checked(samplers: Sequence[Sampler]) -> tuple[Sampler, ...]:
    """The samplers.

    Raises:
        RecipeError: a name twice.
    """
    names = [sampler.name for sampler in samplers]
    if len(set(names)) < len(names):
        raise RecipeError(f"samplers: expected each name once, got {', '.join(names)}")
    return tuple(samplers)


def default_samplers(source: SampleSource) -> tuple[Sampler, ...]:
    """The model's own settings; with a null class guidance of 1, 2 and 4, another scheduler, and the shield too.

    The shield does not couple the batch here, so that each of its images differs from the model's own by the shield alone.
    """
    own = Sampler(name="own")
    if not isinstance(source, DiffusionSource):
        return (own,)
    more = [Sampler(name=f"guidance {scale:g}", guidance=scale) for scale in SCALES]
    try:
        new = [sampler for sampler in more if _differs(sampler, source)]
    except RecipeError:  # there is no null class
        return (own,)
    others = [Sampler(name=name.removesuffix("Scheduler"), scheduler=name) for name in OTHER_SCHEDULERS]
    return (own, *new, next(s for s in others if _differs(s, source)), Sampler(name="shield", guide=Shield(distinct=0.0)))


def _differs(sampler: Sampler, source: SampleSource) -> bool:
    return sampler.applied(source).fingerprint != source.fingerprint


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """What every sampler draws: classes by train's shares, spread over the seeds at random.

    Attributes:
        labels: int64 (m,).
        seeds: int64 (m,).
    """

    labels: IntArray
    seeds: IntArray

    @classmethod
    def of(cls, source: SampleSource, train: IntArray, count: int, seed: int) -> Draws:
        """So many draws, or all that the source has, with the classes (n,) of train.

        Raises:
            RecipeError: fewer than two.
        """
        count = count if source.size is None else min(count, source.size)
        if count < 2:
            raise RecipeError(f"images: expected at least 2 samples, got {count}")
        seeds = seed * 2**32 + np.arange(count, dtype=np.int64) if source.size is None else np.arange(count, dtype=np.int64)
        held = source.labels_of(seeds)
        if held is not None:
            return cls(labels=held, seeds=seeds)
        spread = np.sort(train)[((np.arange(count) + 0.5) * len(train) / count).astype(np.int64)]
        return cls(labels=np.random.default_rng([seed, 4]).permutation(spread), seeds=seeds)

    def run(self, source: SampleSource, sampler: Sampler, sets: AuditSets) -> Iterator[FloatArray]:
        """Images (part, c, *spatial) in [0, 1], part by part; `source` is `sampler.applied`."""
        guide = _fitted(sampler, source, sets)
        for start in range(0, len(self.seeds), BATCH):
            part = slice(start, start + BATCH)
            yield source.sample(self.labels[part], self.seeds[part], guide=guide, steps=sampler.steps).numpy()


def _fitted(sampler: Sampler, source: SampleSource, sets: AuditSets) -> Guide | None:
    if sampler.guide is None or isinstance(sampler.guide, Guide):
        return sampler.guide
    train, heldout = sets.train, sets.compared
    if source.mirrored:
        train = LabelledImages(images=np.concatenate([train.images, train.images[..., ::-1]]), labels=np.tile(train.labels, 2))
    parts = [part for s in (train, heldout) for part in (source.encode(torch.from_numpy(s.images)), torch.from_numpy(s.labels))]
    return sampler.guide.fit(*parts).calibrated(partial(source.renoise, steps=sampler.steps))
