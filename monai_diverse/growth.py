"""The main job: sample, embed, screen, store, until the bank is full or the budget is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.data import FloatArray, IntArray, LabelledImages, require_every_class
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.recipe import Recipe
from monai_diverse.sampling import Guide, GuideSettings
from monai_diverse.screening import FittedScreen, NoveltyScreen, Verdict, Views
from monai_diverse.sources import SampleSource
from monai_diverse.storage import sha256_of


@dataclass(frozen=True, kw_only=True)
class GrowProgress:
    """How far a bank has grown.

    Attributes:
        drawn: samples drawn so far.
        accepted: of them in the bank.
        rejections: of the others, how many by first reason.
        nfe: network evaluations spent.
        seconds: since this call began.
        share: of the way to the nearer bound, in [0, 1].
    """

    drawn: int
    accepted: int
    rejections: dict[str, int]
    nfe: int
    seconds: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe with everything that it names made and fitted.

    Attributes:
        recipe: the choices.
        source: the generative model.
        screen: fitted to reference and calibration reals.
        guide: fitted; None for brute force.
        label_shares: (classes,) probabilities with which classes are drawn.
        data_hashes: by part, for the fingerprint.
    """

    recipe: Recipe
    source: SampleSource
    screen: FittedScreen
    guide: Guide | None
    label_shares: FloatArray
    data_hashes: dict[str, str]

    @classmethod
    def prepare(cls, recipe: Recipe) -> Job:
        """Loads the model and the images, fits screen and guide.

        Raises:
            RecipeError: a component that is not what its place needs.
            DataError: images that do not fit the model, an empty class.
        """
        source = recipe.source.build(recipe.folder, recipe.allow)
        screen = recipe.screen.build(recipe.folder, recipe.allow)
        for value, kind, name in ((source, SampleSource, "source"), (screen, NoveltyScreen, "screen")):
            if not isinstance(value, kind):
                raise RecipeError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
        parts = {name: getattr(recipe, name) for name in ("reference", "calibration", "generator_train")}
        real = {name: choice.load(recipe.folder) for name, choice in parts.items() if choice is not None}
        for name, images in real.items():
            _require_fit(source, images, name)
        return cls(
            recipe=recipe,
            source=source,
            screen=screen.fit(real["reference"], real["calibration"], real.get("generator_train")),
            guide=_fit_guide(recipe, source, real),
            label_shares=_label_shares(recipe, source, real["reference"]),
            data_hashes={name: sha256_of(images.images.tobytes() + images.labels.tobytes()) for name, images in real.items()},
        )

    def with_guide(self, recipe: Recipe, guide: Guide | None) -> Job:
        """The same model and screen with another guide; `recipe` must say so."""
        return replace(self, recipe=recipe, guide=guide)

    def header(self) -> BankHeader:
        """What a bank of this job says of itself."""
        return BankHeader(
            recipe=self.recipe.as_json() | {"data": self.data_hashes},
            recipe_fingerprint=self.recipe.fingerprint(self.data_hashes),
            source={
                "name": self.source.name,
                "fingerprint": self.source.fingerprint,
                "licence": self.source.licence,
                "class_names": list(self.source.class_names),
            },
            features=self.screen.describe(),
            shape=self.source.shape,
            classes=self.source.classes,
            dtype=self.recipe.dtype,
        )

    def draw(self, first: int, count: int, guide: Guide | None) -> tuple[FloatArray, IntArray, IntArray]:
        """Draws samples number `first` to `first + count - 1` of the recipe: (images, labels, seeds), images as a bank stores them."""
        seeds = self.recipe.seed * 2**32 + np.arange(first, first + count, dtype=np.int64)
        labels = np.array([np.random.default_rng([int(s), 1]).choice(len(self.label_shares), p=self.label_shares) for s in seeds], dtype=np.int64)
        images = self.source.sample(labels, seeds, guide=guide, steps=self.recipe.steps).numpy()
        return as_stored(images, self.recipe.dtype), labels, seeds


def grow(recipe: Recipe, out: Path | str, *, resume: bool = False) -> SampleBank:
    """Grows a bank and returns it; see `grow_steps` for progress on the way.

    Args:
        recipe: every choice.
        out: folder of the bank.
        resume: go on with a bank of the same recipe that was interrupted, or that shall become larger.

    Raises:
        RecipeError: a recipe that does not work.
        DataError: images that do not fit the model.
        BankError: `out` holds a bank, and `resume` is not set, or the bank is another recipe's.
        StorageError: the disk refuses; what was accepted before is stored.
    """
    for _ in grow_steps(Job.prepare(recipe), Path(out), resume=resume):
        pass
    return SampleBank.open(out)


def grow_steps(job: Job, out: Path, *, resume: bool = False) -> Iterator[GrowProgress]:
    """Grows a bank, yielding after each batch; arguments and errors as `grow`'s.

    What has been yielded is on disk. A run that was interrupted and resumed gives the bank of an uninterrupted one.
    """
    started, size, batch = time.perf_counter(), job.recipe.size, job.recipe.batch_size
    with BankWriter.create_or_resume(out, job.header(), resume=resume) as writer:
        done = _Counts.of(writer.progress)
        accepted = job.screen.embed(*_stored(writer.bank)) if writer.count else None
        per_image: int | None = done.nfe // done.drawn if done.drawn else None
        yield done.report(job.recipe, writer.count, started)
        while (size is None or writer.count < size) and not _spent(done, per_image, batch, job.recipe):
            # a stop at `size` may fall inside a batch: draw that batch again with what the guide then knew
            first = done.drawn // batch * batch
            known = _known(writer.bank, job.recipe.seed * 2**32 + first) if job.guide else None
            guide = job.guide.given(*_to_model(job.source, *known)) if job.guide and known else job.guide
            before = job.source.nfe
            images, labels, seeds = job.draw(first, batch, guide)
            per_image = (job.source.nfe - before) // batch
            fresh = slice(done.drawn - first, None)
            views = job.screen.embed(images[fresh], labels[fresh])
            verdicts = _until(size, writer.count, job.screen.judge(views, accepted))
            kept = np.flatnonzero([v.accepted for v in verdicts])
            done = done.plus(verdicts, per_image)
            accepted = _grown(accepted, views[kept])
            scores = _scores([verdicts[i] for i in kept])
            writer.append(images[fresh][kept], labels[fresh][kept], seeds[fresh][kept], scores, done.as_json())
            yield done.report(job.recipe, writer.count, started)


def as_stored(images: FloatArray, dtype: str) -> FloatArray:
    """Rounds images in [0, 1] to what a bank of `dtype` gives back, so that what is judged is what is stored."""
    if dtype == "uint8":
        return (np.round(images * 255) / 255).astype(np.float32)
    return images.astype(dtype).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class _Counts:
    drawn: int
    nfe: int
    rejections: dict[str, int]

    @classmethod
    def of(cls, progress: dict[str, Any]) -> _Counts:
        return cls(
            drawn=progress.get("drawn", 0), nfe=progress.get("nfe", 0), rejections=progress.get("rejections") or dict.fromkeys(Verdict.REASONS, 0)
        )

    def plus(self, verdicts: list[Verdict], per_image: int) -> _Counts:
        found = {reason: self.rejections[reason] + sum(v.reason == reason for v in verdicts) for reason in self.rejections}
        return _Counts(drawn=self.drawn + len(verdicts), nfe=self.nfe + per_image * len(verdicts), rejections=found)

    def as_json(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "nfe": self.nfe, "rejections": self.rejections}

    def report(self, recipe: Recipe, accepted: int, started: float) -> GrowProgress:
        share = max(self.nfe / recipe.max_evaluations, accepted / recipe.size if recipe.size else 0)
        return GrowProgress(
            drawn=self.drawn,
            accepted=accepted,
            rejections=self.rejections,
            nfe=self.nfe,
            seconds=time.perf_counter() - started,
            share=min(1.0, share),
        )


def _spent(done: _Counts, per_image: int | None, batch: int, recipe: Recipe) -> bool:
    """Whether another batch would pass the budget; the first batch is always drawn, since only then its cost is known."""
    return per_image is not None and done.nfe + per_image * batch > recipe.max_evaluations


def _until(size: int | None, count: int, verdicts: list[Verdict]) -> list[Verdict]:
    """The verdicts up to the one that fills the bank."""
    if size is None:
        return verdicts
    full = np.flatnonzero(count + np.cumsum([v.accepted for v in verdicts]) >= size)
    return verdicts[: int(full[0]) + 1] if len(full) else verdicts


def _scores(verdicts: list[Verdict]) -> dict[str, FloatArray]:
    names = verdicts[0].scores if verdicts else {}
    return {name: np.array([v.scores[name] for v in verdicts], dtype=np.float32) for name in names}


def _stored(bank: SampleBank) -> tuple[FloatArray, IntArray]:
    return bank.images[:], bank.labels


def _known(bank: SampleBank, before_seed: int) -> tuple[FloatArray, IntArray] | None:
    earlier = np.flatnonzero(bank.seeds < before_seed)
    return (bank.images[earlier], bank.labels[earlier]) if len(earlier) else None


def _to_model(source: SampleSource, images: FloatArray, labels: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    return source.encode(torch.from_numpy(images)), torch.from_numpy(labels)


def _grown(accepted: Views | None, fresh: Views) -> Views | None:
    if not len(fresh):
        return accepted
    return fresh if accepted is None else accepted.concat(fresh)


def _fit_guide(recipe: Recipe, source: SampleSource, real: dict[str, LabelledImages]) -> Guide | None:
    if recipe.guide is None:
        return None
    settings: GuideSettings = recipe.guide.build(recipe.folder, recipe.allow)
    if not hasattr(settings, "fit"):
        raise RecipeError(f"guide: expected settings with a fit method, such as monai_diverse.sampling.Shield, got {type(settings).__name__}")
    train = real.get("generator_train", real["reference"])
    return settings.fit(*_to_model(source, train.images, train.labels), *_to_model(source, real["calibration"].images, real["calibration"].labels))


def _require_fit(source: SampleSource, images: LabelledImages, name: str) -> None:
    if images.images.shape[1:] != source.shape:
        raise DataError(f"{name}: expected images of the model's shape {source.shape}, got {images.images.shape[1:]}; resize or crop them")
    if images.labels.max() >= source.classes:
        raise DataError(f"{name}: expected the model's classes 0..{source.classes - 1}, got {images.labels.max()}")
    require_every_class(images.labels, source.classes, name)


def _label_shares(recipe: Recipe, source: SampleSource, reference: LabelledImages) -> FloatArray:
    if recipe.labels == "balanced":
        shares = np.ones(source.classes)
    elif recipe.labels == "reference":
        shares = np.bincount(reference.labels, minlength=source.classes).astype(float)
    else:
        shares = np.asarray(recipe.labels, dtype=float)
    if shares.shape != (source.classes,) or (shares < 0).any() or shares.sum() == 0:
        raise RecipeError(f"labels: expected {source.classes} shares from 0, one a class, got {recipe.labels}")
    return np.asarray(shares / shares.sum())
