"""Does a bank help a classifier? The plans in benchmarks/studies, each run to its end.

python benchmarks/study.py [--quick] [--json] [--only NAME]... [--work FOLDER] [--validation-only]

A plan that was interrupted goes on with what lies in the work folder. Data sets other than BreastMNIST need ../shared/data. The full run writes
results/study.json, the tables in docs/study.md and the figures beside them; --validation-only writes neither and leaves test images alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_diverse.report import study_markdown, write_study
from monai_diverse.report.provenance import describe_environment
from monai_diverse.storage import make_folder, write_atomic, write_json
from monai_diverse.study import ClassifierConfig, Study, StudyPlan, outcome, study_steps

HERE = Path(__file__).parent
PLANS, RESULTS, DOCS = HERE / "studies", HERE / "results", HERE.parent / "docs"
SCARCE = (0.1, 0.25)
"""Sizes of the user's data that the bars are about."""
SETS = 2
"""Data sets, of three, on which the first bar must hold."""
AIM = 0.05
"""Gain over real images with random transforms that is aimed at."""
BEGIN, END = "<!-- results: benchmarks/study.py -->", "<!-- end of results -->"


def conducted(plan: StudyPlan, out: Path, *, test: bool, workers: int) -> dict[str, Any]:
    """Runs a plan behind progress bars and gives its outcome."""
    started = time.perf_counter()
    study = Study.begin(plan, out, test=test)
    for stage, reports in groupby(study_steps(study, workers=workers), key=lambda progress: progress.stage):
        with tqdm(desc=f"{plan.name}: {stage}") as bar:
            for progress in reports:
                bar.total = progress.total
                bar.update(progress.done - bar.n)
                bar.set_postfix_str(progress.detail)
    found = outcome(study) | {"seconds": time.perf_counter() - started, "environment": describe_environment()}
    write_json(out / "study.json", found)
    write_study(out, found)
    return found


def quick(plan: StudyPlan) -> StudyPlan:
    """The same with one size, two seeds and short trainings: the path, not a result."""
    return dataclasses.replace(
        plan,
        name=f"{plan.name} (quick)",
        sizes=(0.25,),
        ratios=(1.0,),
        seeds=2,
        trainings=("mixed",),
        augment=(True,),
        pool=256,
        max_evaluations=6_400,
        classifier=ClassifierConfig(steps=40, check_every=20),
        primary=dataclasses.replace(plan.primary, sizes=None),
    )


def bars(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was asked, for each regime: on how many data sets `diverse` beats both controls in a scarce cell, and the largest gain there."""
    out: dict[str, Any] = {}
    for regime in sorted({study["regime"] for study in found.values()}):
        studies = [study for study in found.values() if study["regime"] == regime]
        beaten = sum(any(_beats(cell) for cell in study["cells"] if cell["size"] in SCARCE) for study in studies)
        gains = [gain for study in studies for cell in study["cells"] if cell["size"] in SCARCE for gain in _gains(cell)]
        out[f"{regime}: data sets with random and duplicates beaten at 10 or 25 %"] = {"value": beaten, "bar": SETS, "holds": beaten >= SETS}
        largest = max(gains, default=None)
        out[f"{regime}: largest gain over real images with random transforms"] = {
            "value": largest,
            "bar": AIM,
            "holds": largest is not None and largest >= AIM,
        }
    return out


def _beats(cell: dict[str, Any]) -> bool:
    primary = [row["difference"] for row in cell["comparisons"] if row["primary"]]
    return bool(primary) and all(difference["ci95"][0] > 0 for difference in primary)


def _gains(cell: dict[str, Any]) -> list[float]:
    rows = (row for row in cell["comparisons"] if row["control"] == "real" and row["training"] == "mixed" and row["augment"])
    return [row["difference"]["mean"] for row in rows]


def written(found: dict[str, dict[str, Any]], work: Path) -> None:
    """The tables into docs/study.md, and the figures beside it."""
    parts = [BEGIN, ""]
    for name, study in found.items():
        parts += [f"### {study['name']}", "", study_markdown(study), ""]
        for figure in ("comparisons", "sizes", "ratios"):
            source = work / name / "figures" / f"study-{figure}.png"
            if source.exists():
                write_atomic(make_folder(DOCS / "images") / f"study-{name}-{figure}.png", source.read_bytes())
                parts += [f"![{study['name']}: {figure}](images/study-{name}-{figure}.png)", ""]
    page = (DOCS / "study.md").read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    write_atomic(DOCS / "study.md", (before + "\n".join([*parts, END]) + after).encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one plan, two seeds, short trainings; nothing is written to results")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--only", action="append", help="name of a plan; may be repeated")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "study", help="where plans run")
    parser.add_argument("--validation-only", action="store_true", help="leave test images alone")
    parser.add_argument("--workers", type=int, default=2, help="processes that grow banks and train classifiers")
    chosen = parser.parse_args()
    plans = {file.stem: StudyPlan.load(file) for file in sorted(PLANS.glob("*.yaml")) if not chosen.only or file.stem in chosen.only}
    if chosen.quick:
        plans = {f"{name}-quick": quick(plan) for name, plan in plans.items() if plan.data == "builtin" and plan.regime == "pretrained"}
    found = {name: conducted(plan, chosen.work / name, test=not chosen.validation_only, workers=chosen.workers) for name, plan in plans.items()}
    result = {"bars": bars(found), "results": found, "environment": describe_environment()}
    if not (chosen.quick or chosen.validation_only or chosen.only):
        write_json(RESULTS / "study.json", result)
        written(found, chosen.work)
    print(json.dumps(result) if chosen.json else json.dumps(result["bars"], indent=1))
    return 0 if all(bar["holds"] for bar in result["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
