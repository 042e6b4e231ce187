"""The audit of one trained model, or of images that one has drawn: do they lean towards the training patients?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_diverse.audit.bias import CONFIDENCE, Effect
from monai_diverse.audit.measures import Bench, Measured, closest_pairs
from monai_diverse.audit.membership import Membership
from monai_diverse.audit.samplers import Draws, Sampler, checked, default_samplers
from monai_diverse.audit.sets import AuditSets, require_shape
from monai_diverse.audit.subject import Audited, Subject, stored
from monai_diverse.audit.verdict import LIMITS, BiasVerdict, check_tolerance
from monai_diverse.data import FloatArray, IntArray, LabelledImages
from monai_diverse.errors import RecipeError
from monai_diverse.features import FeatureExtractor, PixelFeatures
from monai_diverse.information.neighbours import DoubleArray
from monai_diverse.sources import DiffusionSource, SampleSource
from monai_diverse.version import __version__


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelAudit:
    """What an audit found.

    Attributes:
        summary: everything, as JSON.
        verdict: on the first sampler.
        pictures: "samples", "train" and "heldout": float32 (p, c, *spatial), the closest pairs and the held-out image nearest to each sample.
    """

    summary: dict[str, Any]
    verdict: BiasVerdict
    pictures: dict[str, FloatArray]

    def as_json(self) -> dict[str, Any]:
        """The summary."""
        return self.summary


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditProgress:
    """How far an audit is.

    Attributes:
        stage: what is being done.
        share: of the stage, in [0, 1].
        audit: the result, with the last one.
    """

    stage: str
    share: float
    audit: ModelAudit | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditSettings:
    """How a model is audited.

    Attributes:
        samplers: the first is what the verdict is about. Empty: `default_samplers`.
        images: samples of each sampler; of each real set, at most so many for membership.
        features: what distances are taken in; by default standardised pixels, in which they are sqrt(2 - 2 r), r Pearson's correlation.
        permutations: of the sets of groups, for p.
        tolerance: bias that is tolerated (.02: 2 % nearer to training images); None: no verdict.
        seed: of samples, permutations, blocks and noises.
        twin_correlation: from which on two images are near-duplicates, where groups are not known.
        membership: how losses are taken; None: the defaults, with `seed`.
        mirrored: whether a mirrored image counts as the same; None: what the source, or a bank's recipe, says.
    """

    samplers: Sequence[Sampler] = ()
    images: int = 1000
    features: FeatureExtractor = field(default_factory=PixelFeatures)
    permutations: int = 999
    tolerance: float | None = 0.02
    seed: int = 0
    twin_correlation: float = 0.95
    membership: Membership | None = None
    mirrored: bool | None = None

    def __post_init__(self) -> None:
        check_tolerance(self.tolerance)
        object.__setattr__(self, "samplers", checked(self.samplers))
        for name, least in (("images", 2), ("permutations", 19), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise RecipeError(f"{name}: expected a whole number from {least}, got {value!r}")
        if not 0 < self.twin_correlation < 1:
            raise RecipeError(f"twin_correlation: expected between 0 and 1, got {self.twin_correlation}")


def audit_model(
    source: Audited,
    train: LabelledImages,
    heldout: LabelledImages,
    groups: IntArray | None = None,
    *,
    samplers: Sequence[Sampler] = (),
    images: int = 1000,
    features: FeatureExtractor | None = None,
    permutations: int = 999,
    tolerance: float | None = 0.02,
    seed: int = 0,
    twin_correlation: float = 0.95,
    membership: Membership | None = None,
    mirrored: bool | None = None,
) -> ModelAudit:
    """Audits one model; `audit_steps` does the same and yields progress.

    Held-out images must be of patients that the model never saw, and otherwise such as the training images are.

    Args:
        source: a model, a bank, or images alone; the two last have one sampler, and no membership.
        train: what the model was trained on.
        heldout: what it never saw.
        groups: patients, int (len(train) + len(heldout),), train first. None: the sets' own groups where both have them, as one numbering over
            both; otherwise near-duplicates over both. Groups with images in both sets are left out of the comparison, and counted.
        samplers: and all that follow: see `AuditSettings`.

    Raises:
        DataError: images that do not fit each other or the model, too few groups of a class, groups of the wrong length.
        RecipeError: a setting out of range, or a sampler that the model cannot do.
    """
    settings = AuditSettings(
        samplers=samplers,
        images=images,
        features=features or PixelFeatures(),
        permutations=permutations,
        tolerance=tolerance,
        seed=seed,
        twin_correlation=twin_correlation,
        membership=membership,
        mirrored=mirrored,
    )
    *_, last = audit_steps(source, train, heldout, groups, settings)
    assert last.audit is not None
    return last.audit


def audit_steps(
    source: Audited, train: LabelledImages, heldout: LabelledImages, groups: IntArray | None = None, settings: AuditSettings | None = None
) -> Iterator[AuditProgress]:
    """Audits one model, yielding progress; the last one has the result. Arguments and errors are `audit_model`'s."""
    started, chosen = time.perf_counter(), settings or AuditSettings()
    subject = Subject.of(source, chosen.mirrored)
    sets = AuditSets.of(train, heldout, groups, chosen.twin_correlation, mirrored=subject.mirrored)
    sets = sets.one_class() if subject.classes == 1 else sets
    bench = Bench(sets=sets, features=chosen.features, mirrored=subject.mirrored, permutations=chosen.permutations, seed=chosen.seed)
    found = _Found()
    yield from _samples(source, bench, chosen, found)
    membership: dict[str, Any] | None = None
    if isinstance(source, DiffusionSource):
        for share, report in _membership(source, bench, chosen):
            membership = report
            yield AuditProgress(stage="membership", share=share)
    yield AuditProgress(stage="control", share=0)
    audit = _concluded(bench, chosen, subject, found, membership, started)
    yield AuditProgress(stage="done", share=1, audit=audit)


@dataclass(eq=False)
class _Found:
    """What the samplers have given so far: of each what it is, and what was measured."""

    about: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, Measured] = field(default_factory=dict)
    seeds: list[int] | None = None


def _concluded(bench: Bench, chosen: AuditSettings, subject: Subject, found: _Found, membership: dict[str, Any] | None, started: float) -> ModelAudit:
    """From all that was measured to the verdict, the closest pairs and the summary."""
    sets, names = bench.sets, subject.names(int(bench.sets.labels.max()) + 1)
    first, name = found.measured[found.about[0]["name"]], found.about[0]["name"]
    rows = [about | found.measured[about["name"]].as_json(names, first if i else None) for i, about in enumerate(found.about)]
    control = bench.control()
    verdict = BiasVerdict.of(
        first.leaning.effects()["bias"],
        chosen.tolerance,
        name,
        control=None if control is None else control["bias"],
        smallest_p=bench.contrast.smallest_p(first.images.labels),
        flat=first.flat > 0,
    )
    pairs, pictures = closest_pairs(found.measured, found.seeds, sets)
    summary: dict[str, Any] = {
        "kind": "model",
        "version": __version__,
        "seed": chosen.seed,
        "confidence": CONFIDENCE,
        "tolerance": chosen.tolerance,
        "source": subject.about,
        "mirrored": subject.mirrored,
        "features": {"name": chosen.features.name, "fingerprint": chosen.features.fingerprint},
        "sets": sets.as_json(len(names)),
        "class_names": names,
        "samplers": rows,
        "control": None if control is None else control | {name: effect.as_json() for name, effect in control.items() if isinstance(effect, Effect)},
        "membership": membership,
        "pairs": pairs,
        "verdict": verdict.as_json(),
        "limits": list(LIMITS),
        "seconds": time.perf_counter() - started,
    }
    return ModelAudit(summary=summary, verdict=verdict, pictures=pictures)


def _samples(source: Audited, bench: Bench, chosen: AuditSettings, found: _Found) -> Iterator[AuditProgress]:
    if not isinstance(source, SampleSource):
        if chosen.samplers:
            raise RecipeError(f"samplers: expected none with a {type(source).__name__}, which has its images already")
        kept, found.seeds = stored(source, chosen.images)
        require_shape(kept.images.shape[1:], bench.sets, "source")
        bench.contrast.require(kept.labels)
        about = Sampler(name="bank").as_json() | {"images": len(kept), "nfe": None}
        found.about, found.measured = [about], {"bank": bench.measure(kept)}
        return
    require_shape(source.shape, bench.sets, "source")
    draws = Draws.of(source, bench.sets.train.labels, chosen.images, chosen.seed)
    bench.contrast.require(draws.labels)
    found.seeds = [int(s) for s in draws.seeds]
    samplers = chosen.samplers or default_samplers(source)
    applied = [sampler.applied(source) for sampler in samplers]  # what cannot be done is said before hours are spent
    for sampler, own in zip(samplers, applied, strict=True):
        before, parts, done = own.nfe, [], 0
        yield AuditProgress(stage=f"sample: {sampler.name}", share=0)
        for part in draws.run(own, sampler, bench.sets):
            parts.append(part)
            done += len(part)
            yield AuditProgress(stage=f"sample: {sampler.name}", share=done / len(draws.seeds))
        found.about.append(sampler.as_json() | {"images": done, "nfe": own.nfe - before})
        found.measured[sampler.name] = bench.measure(LabelledImages(images=np.concatenate(parts), labels=draws.labels))


def _membership(source: DiffusionSource, bench: Bench, chosen: AuditSettings) -> Iterator[tuple[float, dict[str, Any] | None]]:
    """Share of the work, and at the end what it came to."""
    settings, sets = chosen.membership or Membership(seed=chosen.seed), bench.sets
    kept = sets.sample(chosen.images, chosen.seed)
    images = np.concatenate([sets.train.images, sets.heldout.images])[kept]
    losses: list[DoubleArray] = []
    levels = len(settings.indices(source.schedule))
    for loss in settings.losses(source, images, sets.labels[kept]):
        yield len(losses) / levels, None
        losses.append(loss)
    yield 1.0, settings.report(source.schedule, losses, sets.labels[kept], sets.groups[kept], sets.sides[kept])
