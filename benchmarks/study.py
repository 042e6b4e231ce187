"""Does a bank help a classifier? The plans in benchmarks/studies, each run to its end.

python benchmarks/study.py [--quick] [--json] [--only NAME]... [--work FOLDER] [--validation-only]

A plan that was interrupted goes on with what lies in the work folder. Data sets other than BreastMNIST need ../shared/data. What is run to its
end is put into results/study.json, the tables of docs/study.md and the figures beside them, beside what earlier calls found for plans that are as
they were; --validation-only and --quick write none of these, and --validation-only leaves test images alone.
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
from monai_diverse.report.study_words import arm_name, percent, points, points_interval, size_in_words
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
GLANCE = ("real", "duplicates", "random", "relevant", "tsne_hull", "extra_real")
"""Controls of the summary."""
OUTCOME = RESULTS / "study.json"
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


def earlier(plans: dict[str, StudyPlan]) -> dict[str, dict[str, Any]]:
    """What an earlier call found for these plans; what was found for a plan that has changed since is left out."""
    if not OUTCOME.exists():
        return {}
    studies = json.loads(OUTCOME.read_text())["results"]
    return {name: study for name, study in studies.items() if name in plans and study["plan"] == plans[name].as_json()}


def bars(found: dict[str, dict[str, Any]], plans: dict[str, StudyPlan]) -> dict[str, Any]:
    """What was asked, for each regime: on how many data sets `diverse` beats both controls in a scarce cell, and the largest gain there.

    `holds` is None as long as plans that have not run could still decide it.
    """
    out: dict[str, Any] = {}
    for regime in sorted({plan.regime for plan in plans.values()}):
        studies = [study for study in found.values() if study["regime"] == regime]
        open_plans = sum(plan.regime == regime for plan in plans.values()) - len(studies)
        beaten = sum(any(_beats(cell) for cell in study["cells"] if cell["size"] in SCARCE) for study in studies)
        gains = [gain for study in studies for cell in study["cells"] if cell["size"] in SCARCE for gain in _gains(cell)]
        largest = max(gains, default=None)
        aimed = largest is not None and largest >= AIM
        counts = {"run": len(studies), "not_run": open_plans}
        out[f"{regime}: data sets with random and duplicates beaten at 10 or 25 %"] = {
            "value": beaten,
            "bar": SETS,
            **counts,
            "holds": True if beaten >= SETS else None if beaten + open_plans >= SETS else False,
        }
        out[f"{regime}: largest mean gain over real images with random transforms, at 10 or 25 %"] = {
            "value": largest,
            "bar": AIM,
            **counts,
            "holds": True if aimed else None if open_plans else False,
        }
    return out


def _beats(cell: dict[str, Any]) -> bool:
    primary = [row["difference"] for row in cell["comparisons"] if row["primary"]]
    return bool(primary) and all(difference["ci95"][0] > 0 for difference in primary)


def _gains(cell: dict[str, Any]) -> list[float]:
    rows = (row for row in cell["comparisons"] if row["control"] == "real" and row["training"] == "mixed" and row["augment"])
    return [row["difference"]["mean"] for row in rows]


def written(found: dict[str, dict[str, Any]], plans: dict[str, StudyPlan], work: Path) -> None:
    """The tables into docs/study.md, and the figures of what ran now beside it."""
    parts = [BEGIN, "", "| bar | found | data sets run | holds |", "| --- | --- | --- | --- |"]
    for name, bar in bars(found, plans).items():
        value, asked = (_shown(bar[key]) for key in ("value", "bar"))
        verdict = {True: "yes", False: "no", None: "open"}[bar["holds"]]
        parts.append(f"| {name}: {asked} or more | {value} | {bar['run']} of {bar['run'] + bar['not_run']} | {verdict} |")
    parts += ["", *glances(found)]
    for name, plan in plans.items():
        parts += [f"### {plan.name}", ""]
        if name not in found:
            parts += ["Not run yet.", ""]
            continue
        parts += [study_markdown(found[name]).replace("\n### ", "\n#### "), ""]
        for figure in ("comparisons", "sizes", "ratios"):
            source, shown = work / name / "figures" / f"study-{figure}.png", DOCS / "images" / f"study-{name}-{figure}.png"
            if source.exists():
                write_atomic(make_folder(shown.parent) / shown.name, source.read_bytes())
            if shown.exists():
                parts += [f"![{plan.name}: {figure}](images/{shown.name})", ""]
    page = (DOCS / "study.md").read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    write_atomic(DOCS / "study.md", (before + "\n".join([*parts, END]) + after).encode())


def glances(found: dict[str, dict[str, Any]]) -> list[str]:
    """One table a regime: what the bank is worth beside each control, in all studies that have run."""
    lines: list[str] = []
    for regime in sorted({study["regime"] for study in found.values()}):
        head = ["data", "real images", "real, %", *(f"diverse − {arm_name(control)}" for control in GLANCE)]
        lines += [f"### At a glance: {regime}", "", _row(head), _row(["---"] * len(head))]
        for study in (study for study in found.values() if study["regime"] == regime):
            lines += [_row([study["name"].split(",")[0], *_glance(cell)]) for cell in study["cells"]]
        lines += [
            "",
            "Balanced accuracy, with random transforms; differences in points with 95 % intervals, bold where 0 lies outside. Those against random "
            "and duplicates were fixed before, the others are exploratory; none is corrected here for their number.",
            "",
        ]
    return lines


def _glance(cell: dict[str, Any]) -> list[str]:
    real = next(row for row in cell["arms"] if row["arm"] == "real" and row["augment"])
    rows = {row["control"]: row["difference"] for row in cell["comparisons"] if row["training"] == "mixed" and row["augment"]}
    shown = [_gap(rows[control]) if control in rows else "–" for control in GLANCE]
    return [size_in_words(cell), percent(real["metrics"]["balanced_accuracy"]["mean"]), *shown]


def _gap(difference: dict[str, Any]) -> str:
    low, high = difference["ci95"]
    said = f"{points(difference['mean'])} ({points_interval((low, high))})"
    return said if low is None or low <= 0 <= high else f"**{said}**"


def _row(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def _shown(value: float | int | None) -> str:
    """A count as it is, a share as points."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{100 * value:+.1f} points"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one plan, two seeds, short trainings; nothing is written to results")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--only", action="append", help="name of a plan; may be repeated")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "study", help="where plans run")
    parser.add_argument("--validation-only", action="store_true", help="leave test images alone")
    parser.add_argument("--workers", type=int, default=2, help="processes that grow banks and train classifiers")
    chosen = parser.parse_args()
    plans = {file.stem: StudyPlan.load(file) for file in sorted(PLANS.glob("*.yaml"))}
    asked = {name: plan for name, plan in plans.items() if not chosen.only or name in chosen.only}
    if chosen.quick:
        plans = asked = {f"{name}-quick": quick(plan) for name, plan in asked.items() if plan.data == "builtin" and plan.regime == "pretrained"}
    found = {} if chosen.quick or chosen.validation_only else earlier(plans)
    for name, plan in asked.items():
        found[name] = conducted(plan, chosen.work / name, test=not chosen.validation_only, workers=chosen.workers)
        if not (chosen.quick or chosen.validation_only):
            write_json(OUTCOME, {"bars": bars(found, plans), "results": found, "environment": describe_environment()})
            written(found, plans, chosen.work)
    result = {"bars": bars(found, plans), "results": found, "environment": describe_environment()}
    print(json.dumps(result) if chosen.json else json.dumps(result["bars"], indent=1))
    return 0 if all(bar["holds"] for bar in result["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
