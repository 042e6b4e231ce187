"""What of the study of PneumoniaMNIST with a pretrained generator needs no generated image, trained anew: `real`, `balanced` and `extra_real`.

python benchmarks/study_controls.py [--work FOLDER] [--workers N] [--json]

Two of these arms were mended after the study had run. Users, ratios and how many further images there are come from the plan and results/study.json
(`extra_real` has, as there, as many images of each class as `diverse`, here as it had on average over users), so that no generator is needed. Needs
../shared/data. What was interrupted goes on. Writes results/study_controls.json and a table of docs/study.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_diverse.components import Component
from monai_diverse.data import IntArray
from monai_diverse.report.provenance import describe_environment
from monai_diverse.report.study_words import gap_in_words, percent
from monai_diverse.storage import write_atomic, write_json
from monai_diverse.study import Crew, Study, StudyPlan, paired_difference
from monai_diverse.study.arms import Stock
from monai_diverse.study.conduct import draws
from monai_diverse.study.generator import SPLIT, Generator, generator_folder
from monai_diverse.study.runs import Result, Setting
from monai_diverse.study.statistics import over_seeds
from monai_diverse.study.synthetic import Found
from monai_diverse.study.unscreened import real_bank
from monai_diverse.study.user import user_of
from monai_diverse.study.workers import run_jobs
from monai_diverse.training import prepare

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "study.md"
NAME = "pneumonia-pretrained"
METRICS = ("balanced_accuracy", "auc", "accuracy")
MENDED = ("balanced", "extra_real")
NOTHING = Found(grown={}, accepted={}, yields={})
BEGIN, END = "<!-- results: benchmarks/study_controls.py -->", "<!-- end of controls -->"


@dataclass(frozen=True, kw_only=True)
class RealStock(Stock):
    """That of a user without a generated image.

    Attributes:
        further: images of each class that `extra_real` has.
    """

    further: IntArray

    def counts(self, ratio: float) -> IntArray:
        """The same whatever the ratio."""
        return self.further


def untrained(study: Study) -> Generator:
    """The study's generator without its weights: which images it would have seen."""
    plan, cohort = study.plan, study.cohort
    split = prepare(cohort.path, plan.training).split
    write_json(file := study.out / SPLIT, split)
    return Generator(
        source=Component(target="monai_diverse.DiffusersSource", arguments={"folder": str(generator_folder(plan, cohort, None, study.out))}),
        described={},
        class_names=(),
        seen=np.asarray(split["generator_train"], dtype=np.int64),
        aside=np.asarray(split["calibration"], dtype=np.int64),
        data=cohort.path,
        split_file=file,
        trained=True,
        mirrored=plan.training.mirror,
        twin_correlation=plan.twin_correlation,
    )


def stocks_of(study: Study, further: dict[float, IntArray]) -> list[RealStock]:
    """Those of all users; of further images as many of each class as `further` says for a size."""
    plan, cohort, out = study.plan, study.cohort, study.out
    generator, real, stocks = untrained(study), real_bank(cohort, out), []
    for size in plan.sizes:
        for draw in range(draws(plan, size)):
            user = user_of(plan, cohort, generator, size=size, draw=draw, scored=np.empty(0, dtype=np.int64), out=out)
            stocks.append(RealStock(plan=plan, cohort=cohort, user=user, found=NOTHING, pool=real, real=real, out=out, further=further[size]))
    return stocks


def trained(study: Study, published: dict[str, Any], crew: Crew) -> Iterator[Result]:
    """All runs, behind a progress bar."""
    cells = {cell["size"]: cell for cell in published["cells"]}
    means = {size: next(row["by_class"] for row in cell["arms"] if row["arm"] == "extra_real") for size, cell in cells.items()}
    stocks = stocks_of(study, {size: np.round(mean).astype(np.int64) for size, mean in means.items()})
    jobs = []
    for size, cell in cells.items():
        own = [place for place, stock in enumerate(stocks) if stock.user.size == size]
        for augment in study.plan.augment:
            for arm, ratio in (("real", None), ("balanced", None), ("extra_real", cell["ratio"])):
                setting = Setting(arm=arm, ratio=ratio, augment=augment)
                jobs += [(setting, own[seed % len(own)], seed) for seed in range(study.plan.seeds)]
    yield from tqdm(run_jobs(jobs, stocks, study.scored(), crew=crew), total=len(jobs), desc="classifiers")


def rows_of(study: Study, published: dict[str, Any], results: list[Result]) -> Iterator[dict[str, Any]]:
    """What was found for each size, with and without random transforms."""
    scored = study.scored()
    for cell in published["cells"]:
        for augment in study.plan.augment:
            own = {
                arm: [result for result in results if (result.size, result.setting.arm, result.setting.augment) == (cell["size"], arm, augment)]
                for arm in ("real", *MENDED)
            }
            before = next(row for row in cell["arms"] if (row["arm"], row["augment"], row["training"]) == ("real", augment, "mixed"))
            probabilities = {arm: np.stack([result.run.probabilities for result in runs]) for arm, runs in own.items()}
            differences = {
                arm: {
                    metric: paired_difference(probabilities[arm], probabilities["real"], scored.labels, groups=scored.group_ids, metric=metric)
                    for metric in METRICS
                }
                for arm in MENDED
            }
            yield {
                "size": cell["size"],
                "real": cell["real"],
                "augment": augment,
                "extra": own["extra_real"][0].images,
                "arms": {arm: over_seeds([result.run.metrics for result in runs]) for arm, runs in own.items()},
                "real_as_published": before["metrics"],
                "less_real": differences,
            }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows of the page."""
    heads = (
        "real images",
        "transforms",
        "real, %",
        "in the study, %",
        "balanced − real",
        "extra real − real",
        "further images",
        "balanced − real, AUC",
        "extra real − real, AUC",
    )
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        values = [
            f"{100 * row['size']:g} % ({row['real']['images']:,} images)",
            "yes" if row["augment"] else "no",
            percent(row["arms"]["real"]["balanced_accuracy"]["mean"]),
            percent(row["real_as_published"]["balanced_accuracy"]["mean"]),
            *(gap_in_words(row["less_real"][arm]["balanced_accuracy"]) for arm in MENDED),
            f"{row['extra']:,}",
            *(gap_in_words(row["less_real"][arm]["auc"]) for arm in MENDED),
        ]
        lines.append(f"| {' | '.join(values)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "study", help="where plans run")
    parser.add_argument("--workers", type=int, default=2, help="processes that train classifiers")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    published = json.loads((RESULTS / "study.json").read_text())["results"][NAME]
    study = Study.begin(StudyPlan.load(HERE / "studies" / f"{NAME}.yaml"), chosen.work / NAME)
    results = list(trained(study, published, Crew(workers=chosen.workers)))
    rows, seconds = list(rows_of(study, published, results)), sum(result.run.seconds for result in results)
    result = {"study": NAME, "rows": rows, "seconds": seconds, "environment": describe_environment()}
    write_json(RESULTS / "study_controls.json", result)
    text = PAGE.read_text()
    write_atomic(PAGE, (text.split(BEGIN)[0] + "\n".join([BEGIN, "", *table(rows), "", END]) + text.split(END)[1]).encode())
    print(json.dumps(result) if chosen.json else "\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
