"""Banks that no screen has judged: real images, and a pool of what the generator draws unguided."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.job import as_stored
from monai_diverse.sources import SampleSource
from monai_diverse.storage import fingerprint_of
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.generator import Generator
from monai_diverse.study.plan import StudyPlan
from monai_diverse.study.user import SEEDS

BLOCK = 64


def real_bank(cohort: Cohort, out: Path) -> SampleBank:
    """All train images as a bank, in their order, or the one that is there."""
    source = {"name": "real train images", "fingerprint": cohort.train.sha256()}
    folder = out / "banks" / f"real-{source['fingerprint'][:16]}"
    count = len(cohort.train)
    with BankWriter.create_or_resume(folder, _header(cohort, source, {"real": source["fingerprint"]}), resume=True) as writer:
        if writer.count < count:
            numbers = np.arange(count)
            writer.append(cohort.train.images, cohort.train.labels, numbers, {}, {"count": count}, verdicts=["unscreened"] * count)
        return writer.bank


def draw_pool(plan: StudyPlan, cohort: Cohort, generator: Generator, out: Path) -> Iterator[int]:
    """Draws `plan.pool` samples, unguided, in the class shares of what the generator saw, into `pool_folder`; yields how many there are.

    A pool that was interrupted goes on where it was.
    """
    source: SampleSource = generator.source.build(plan.folder, plan.allow)
    shares = np.bincount(cohort.train.labels[generator.seen], minlength=source.classes)
    labels = np.random.default_rng([plan.seed, len(shares)]).choice(len(shares), plan.pool, p=shares / shares.sum())
    seeds = plan.seed * SEEDS * 2**32 + np.arange(plan.pool, dtype=np.int64)
    described = generator.described | {"class_names": list(generator.class_names)}
    choices = {"pool": plan.seed, "source": source.fingerprint, "steps": plan.steps, "size": plan.pool}
    with BankWriter.create_or_resume(pool_folder(plan, generator, out), _header(cohort, described, choices), resume=True) as writer:
        yield writer.count
        for start in range(writer.count, plan.pool, BLOCK):
            part = slice(start, start + BLOCK)
            images = as_stored(source.sample(labels[part], seeds[part], steps=plan.steps).numpy(), "uint8")
            writer.append(images, labels[part], seeds[part], {}, {"drawn": start + len(images)}, verdicts=["unscreened"] * len(images))
            yield writer.count


def pool_folder(plan: StudyPlan, generator: Generator, out: Path) -> Path:
    """Where the pool of a generator lies."""
    choices = {"source": generator.described["fingerprint"], "seed": plan.seed, "steps": plan.steps, "size": plan.pool}
    return out / "banks" / f"pool-{fingerprint_of(choices)[:16]}"


def _header(cohort: Cohort, source: dict[str, Any], recipe: dict[str, Any]) -> BankHeader:
    return BankHeader(
        recipe=recipe,
        recipe_fingerprint=fingerprint_of(recipe),
        source=source,
        features={},
        shape=cohort.train.images.shape[1:],
        classes=len(cohort.train.class_counts),
        dtype="uint8",
    )
