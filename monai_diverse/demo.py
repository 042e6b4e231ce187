"""The whole path on the shipped model and data: grow, compare with controls, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.bank import SampleBank
from monai_diverse.components import Component
from monai_diverse.data import FloatArray, IntArray, LabelledImages
from monai_diverse.datasheet import AUDIT, read_audit
from monai_diverse.growth import grow_steps
from monai_diverse.information import LabelledFeatures, describe_information
from monai_diverse.job import Job, as_stored, to_model
from monai_diverse.recipe import BUILTIN, DataChoice, Recipe
from monai_diverse.report import Borderline, FeatureMap, Pictures, write_report
from monai_diverse.report.provenance import describe_environment
from monai_diverse.screening import FittedScreen, Views, Yield
from monai_diverse.sources.builtin import ASSETS, BuiltinData, builtin_data
from monai_diverse.storage import fingerprint_of, make_folder, sha256_of, write_json
from monai_diverse.study import ClassifierConfig, Run, compare, control_arms, duplicates_bank, matched_bank, restrict, run_study, summarise
from monai_diverse.version import __version__

SHOWN = 24


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How much the demo does.

    Attributes:
        quick: as the summary reports it.
        seed: of bank, controls and classifiers.
        max_evaluations: network evaluations for the diverse bank, and as many again for brute force.
        classifier: how the classifier is trained.
        prob: share of real training images that the arms with a bank replace.
    """

    quick: bool = False
    seed: int = 0
    max_evaluations: int = 40_000
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    prob: float = 0.1

    @classmethod
    def of(cls, *, quick: bool, seed: int) -> DemoConfig:
        """The full demo, or a quick one whose intervals are wide."""
        seeds = tuple(seed * 100 + i for i in range(2 if quick else 5))
        if quick:
            return cls(quick=True, seed=seed, max_evaluations=5_120, classifier=ClassifierConfig(seeds=seeds, steps=60))
        return cls(seed=seed, classifier=ClassifierConfig(seeds=seeds))


@dataclass(frozen=True, kw_only=True)
class DemoProgress:
    """How far the demo is: `share` of the stage in [0, 1] and a few words."""

    stage: str
    share: float
    detail: str


def demo_recipe(config: DemoConfig) -> Recipe:
    """The shipped model with the default guide; reference and generator's training images are the same 437.

    The control, all of val, includes images that nearly repeat training images; the demo reports those without beside it.
    """
    return Recipe(
        source=Component(target="monai_diverse.BuiltinSource"),
        reference=DataChoice(path=BUILTIN, part="generator_train"),
        calibration=DataChoice(path=BUILTIN, part="calibration"),
        generator_train=DataChoice(path=BUILTIN, part="generator_train", mirrored=True),
        control=DataChoice(path=BUILTIN, split="val"),
        guide=Component(target="monai_diverse.sampling.Diverse"),
        max_evaluations=config.max_evaluations,
        seed=config.seed,
    )


def run_demo(out: Path, config: DemoConfig) -> Iterator[DemoProgress]:
    """Runs the demo, yielding progress; leaves `report.html`, `figures/`, `bank/`, `controls/` and `summary.json` in `out`.

    A demo that was interrupted goes on where its bank was.

    Raises:
        BankMismatchError: `out` holds the bank of another demo (seed or version).
        StorageError: the disk refuses.
    """
    started = time.perf_counter()
    make_folder(out / "controls")
    yield DemoProgress(stage="prepare", share=0, detail="loading the model, fitting the screen")
    job, data = Job.prepare(demo_recipe(config)), builtin_data()
    plain = job.without_guide()
    yield from _grow("diverse", job, out / "bank")
    yield from _grow("random", plain, out / "controls" / "brute-force")
    bank, brute = SampleBank.open(out / "bank"), SampleBank.open(out / "controls" / "brute-force")
    unscreened = _unscreened(plain, bank)
    runs: list[Run] = []
    for runs in _classify(out, config, bank, unscreened, data):
        last = runs[-1]
        detail = f"{last.arm}, seed {last.seed}: validation AUC {last.validation['auc']:.3f}"
        yield DemoProgress(stage="classify", share=len(runs) / (5 * len(config.classifier.seeds)), detail=detail)
    yield DemoProgress(stage="report", share=0, detail="drawing")
    accepted, fresh = (job.screen.embed(drawn.images[:], drawn.labels) for drawn in (bank, unscreened))
    summary = _summary(config, job, bank, brute, data, runs) | {"information": _information(job.screen, accepted, fresh)}
    summary |= {"seconds": time.perf_counter() - started}
    write_report(out, summary, _pictures(job, bank, accepted, fresh, data))
    summary |= {"seconds": time.perf_counter() - started}
    write_json(out / "summary.json", summary)
    yield DemoProgress(stage="report", share=1, detail=str(out / "report.html"))


def _grow(stage: str, job: Job, out: Path) -> Iterator[DemoProgress]:
    for progress in grow_steps(job, out, resume=True):
        rejected = ", ".join(f"{reason} {count}" for reason, count in progress.rejections.items() if count)
        detail = f"{progress.drawn} drawn, {progress.accepted} accepted; rejected: {rejected or 'none'}"
        yield DemoProgress(stage=stage, share=progress.share, detail=detail)
    yield DemoProgress(stage=stage, share=1, detail=detail)


def _unscreened(plain: Job, bank: SampleBank) -> LabelledImages:
    """Images of the plain model with the bank's labels, then some more to look at, of seeds that no bank used."""
    labels = np.concatenate([bank.labels, np.arange(SHOWN) % plain.source.classes])
    seeds = (plain.recipe.seed + 1) * 2**32 - 1 - np.arange(len(labels))
    images = plain.source.sample(labels, seeds).numpy()
    return LabelledImages(images=as_stored(images, plain.recipe.dtype), labels=labels)


def _classify(out: Path, config: DemoConfig, bank: SampleBank, unscreened: LabelledImages, data: BuiltinData) -> Iterator[list[Run]]:
    # control banks follow from these two, so a demo that grew on, or drew on another machine, makes new ones
    folder = make_folder(out / "controls" / fingerprint_of([bank.fingerprint, sha256_of(unscreened.images.tobytes())])[:12])
    source = {"name": bank.header.source["name"], "licence": bank.header.source["licence"]}
    matched = unscreened[np.arange(max(len(bank), 1))]
    arms = control_arms(
        diverse=bank,
        random=matched_bank(folder / "random", matched, bank, seed=config.seed, source=source, resume=True),
        duplicates=duplicates_bank(folder / "duplicates", data.train, bank, seed=config.seed, resume=True),
        prob=config.prob,
    )
    runs: list[Run] = []
    for run in run_study(arms, data.train, data.validation, data.test, config.classifier):
        runs.append(run)
        yield runs


def _summary(config: DemoConfig, job: Job, bank: SampleBank, brute: SampleBank, data: BuiltinData, runs: list[Run]) -> dict[str, Any]:
    unseen = data.validation[data.validation_unseen]
    known = np.concatenate([data.generator_train.group_ids, data.calibration.group_ids, data.validation.group_ids])
    without_twins = ~np.isin(data.test.group_ids, known)
    return {
        "version": __version__,
        "seed": config.seed,
        "quick": config.quick,
        "environment": describe_environment(),
        "yield": {
            "diverse": _yield(bank),
            "random": _yield(brute),
            "heldout_real": job.screen.yield_of(unseen).as_json(),
            "heldout_real_with_twins": job.screen.yield_of(job.real["control"]).as_json(),
        },
        "rejections": bank.progress["rejections"],
        "rejections_random": brute.progress["rejections"],
        "classifier": summarise(runs),
        "classifier_without_twins": {"images": int(without_twins.sum())} | summarise(restrict(runs, data.test, without_twins)),
        "comparisons": {f"diverse_vs_{arm}": compare(runs, "diverse", arm) for arm in ("standard", "duplicates", "random")},
        "references": _references(job),
        "thresholds": _thresholds(job.screen),
        "bank": {"path": "bank", "size": len(bank), "fingerprint": bank.fingerprint},
        **_audit(bank),
        "recipe": job.recipe.as_json(),
        "provenance": {
            "source": bank.header.source,
            "screen": job.screen.describe(),
            "data": job.data_hashes,
            "classifier": {"prob": config.prob, "settings": repr(config.classifier)},
        },
    }


def _audit(bank: SampleBank) -> dict[str, Any]:
    """The audit that the bank carries, or else that of the shipped model, where there is one that can be read."""
    found = read_audit(bank) or read_audit(bank, ASSETS / AUDIT)
    return {} if found is None else {"audit": found}


def _yield(bank: SampleBank) -> dict[str, Any]:
    return Yield(drawn=bank.progress["drawn"], accepted=len(bank), nfe=bank.progress["nfe"]).as_json()


def _information(screen: FittedScreen, accepted: Views, fresh: Views) -> dict[str, Any]:
    """Scores of the bank and of as many unguided draws of the same classes; of all unguided draws if the bank is empty."""
    samples = {"diverse": accepted, "random": fresh[: len(accepted)]} if len(accepted) else {"random": fresh}
    reference, calibration = _labelled(screen.real.reference), _labelled(screen.real.calibration)
    return describe_information({name: _labelled(views) for name, views in samples.items()}, reference, calibration)


def _labelled(views: Views) -> LabelledFeatures:
    return LabelledFeatures(features=views.features, labels=views.labels, groups=views.groups)


def _pictures(job: Job, bank: SampleBank, accepted: Views, fresh: Views, data: BuiltinData) -> Pictures:
    real, screen = data.generator_train, job.screen
    order = np.argsort(-bank.scores["information_gain"], kind="stable") if len(bank) else np.empty(0, dtype=np.int64)
    accepted, shown = accepted[order], fresh[len(bank) :]
    guided = screen.embed(*_next_draws(job, bank))
    nearest = screen.seen.nearest(accepted.features) if len(bank) else order
    return Pictures(
        real=real.images[_first_of_each(real.labels)],
        real_labels=real.labels[_first_of_each(real.labels)],
        random=shown.images,
        random_labels=shown.labels,
        diverse=accepted.images,
        diverse_labels=accepted.labels,
        nearest=screen.real.seen.images[nearest],
        diverse_scores=[{name: float(values[i]) for name, values in bank.scores.items()} for i in order],
        class_names=job.source.class_names,
        nearest_set=screen.against["copies"],
        borderline=_borderline(screen, bank, accepted, order, guided.concat(fresh)),
        map=FeatureMap.of(real=screen.real.reference.features, generated=fresh.features, accepted=accepted.features),
    )


def _next_draws(job: Job, bank: SampleBank) -> tuple[FloatArray, IntArray]:
    """The batch, images and labels, that the guide would draw next: a bank does not keep what was rejected on its way."""
    batch = job.recipe.batch_size
    labels, seeds = job.asked(-(-bank.progress["drawn"] // batch) * batch, batch)
    guide = job.guide if job.guide is None or not len(bank) else job.guide.given(*to_model(job.source, bank.images[:], np.array(bank.labels)))
    return job.draw(labels, seeds, guide), labels


def _borderline(screen: FittedScreen, bank: SampleBank, accepted: Views, order: IntArray, fresh: Views) -> tuple[Borderline, ...]:
    """What lies at each gate's threshold of the bank's samples, with the scores that they were accepted with, and of fresh ones."""
    verdicts = screen.judge(fresh, accepted if len(accepted) else None)
    images, labels = np.concatenate([accepted.images, fresh.images]), np.concatenate([accepted.labels, fresh.labels])
    reasons = [None] * len(accepted) + [verdict.reason for verdict in verdicts]

    def scores(gate: str) -> list[float]:
        return [float(bank.scores[gate][i]) for i in order] + [verdict.scores[gate] for verdict in verdicts]

    edges = _thresholds(screen).items()
    return tuple(Borderline.among(images, labels, scores(gate), reasons, gate=gate, threshold=threshold) for gate, threshold in edges)


def _thresholds(screen: FittedScreen) -> dict[str, float]:
    return {reason: gate.threshold for reason, gate in screen.gates.items()} | {"duplicate": screen.duplicates.threshold}


def _references(job: Job) -> dict[str, Any]:
    """Which real images play which part, and against which of them novelty and copies were judged."""
    choices = {name: getattr(job.recipe, name) for name in job.screen.sets}
    sets = {name: None if found is None else found | {"mirrored": choices[name].mirrored} for name, found in job.screen.sets.items()}
    return {"sets": sets, "against": job.screen.against}


def _first_of_each(labels: IntArray) -> IntArray:
    """Indices of the first few images of each class, class by class in turn."""
    by_class = [np.flatnonzero(labels == c)[: SHOWN // 2] for c in np.unique(labels)]
    return np.concatenate(by_class)
