"""Does a bank help a classifier? The plans in benchmarks/studies and its folder follow_up, each run to its end.

python benchmarks/study.py [--quick] [--json] [--only NAME]... [--work FOLDER] [--validation-only]

A plan that was interrupted goes on with what lies in the work folder. Data sets other than BreastMNIST need ../shared/data. What is run to its
end is put into results/study.json, the tables of docs/study.md and docs/study-results.md and the figures, beside what earlier calls found for plans
that are as they were; --validation-only and --quick write none of these, and --validation-only leaves test images alone. Follow-ups were planned
after test scores of another plan were seen: no bar counts them. A `note` in a study's results, what a reader of its tables has to know, stands by the
tables until the study is run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_diverse.report import study_markdown, write_study
from monai_diverse.report.provenance import describe_environment
from monai_diverse.report.study_words import arm_name, gap_in_words, percent, size_in_words
from monai_diverse.report.style import METRIC_NAMES
from monai_diverse.storage import make_folder, write_atomic, write_json
from monai_diverse.study import ClassifierConfig, Crew, Study, StudyPlan, outcome, study_steps

HERE = Path(__file__).parent
PLANS, RESULTS, DOCS = HERE / "studies", HERE / "results", HERE.parent / "docs"
FOLLOW_UPS = PLANS / "follow_up"
SCARCE = (0.1, 0.25)
"""Sizes of the user's data that the bars are about."""
SETS = 2
"""Data sets, of three, on which a bar must hold."""
AIM = 0.05
"""Gain over real images with random transforms that is aimed at."""
GLANCE = (
    *(("diverse", control) for control in ("real", "duplicates", "random")),
    ("random", "real"),
    ("relevant", "random"),
    ("extra_real", "real"),
)
"""Pairs of arms in the summary."""
OUTCOME = RESULTS / "study.json"
BEGIN, END = "<!-- results: benchmarks/study.py -->", "<!-- end of results -->"
INTERVALS = (
    "Intervals of single arms are over seeds, on these test images; those of differences allow for other test images too; those of yields take draws "
    "for independent, which guided ones are not."
)


def conducted(plan: StudyPlan, out: Path, *, test: bool, workers: int) -> dict[str, Any]:
    """Runs a plan behind progress bars and gives its outcome."""
    started = time.perf_counter()
    study = Study.begin(plan, out, test=test)
    for stage, reports in groupby(study_steps(study, crew=Crew(workers=workers)), key=lambda progress: progress.stage):
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
    """What an earlier call found for these plans; what was found for a plan, or by a version, that has changed since is left out."""
    if not OUTCOME.exists():
        return {}
    studies = json.loads(OUTCOME.read_text())["results"]
    return {
        name: study
        for name, study in studies.items()
        if name in plans and study["plan"] == plans[name].as_json() and all("untested" in cell for cell in study["cells"])
    }


def is_follow_up(plan: StudyPlan) -> bool:
    """Whether it was planned after test scores of another plan were seen."""
    return plan.folder == FOLLOW_UPS


def bars(found: dict[str, dict[str, Any]], plans: dict[str, StudyPlan]) -> dict[str, Any]:
    """What was asked, for each regime: on how many data sets `diverse` beats both controls in a scarce cell, and on how many it gains enough there.

    `holds` is None as long as plans that have not run could still decide it. Follow-ups do not count.
    """
    out: dict[str, Any] = {}
    plans = {name: plan for name, plan in plans.items() if not is_follow_up(plan)}
    found = {name: study for name, study in found.items() if name in plans}
    for regime in sorted({plan.regime for plan in plans.values()}):
        studies = [study for study in found.values() if study["regime"] == regime]
        open_plans = sum(plan.regime == regime for plan in plans.values()) - len(studies)
        untested = sum(all(cell["untested"] for cell in _scarce(study)) for study in studies)
        for name, passes in (
            ("random and duplicates beaten", _beats),
            (f"{100 * AIM:g} points or more gained over real images with random transforms, the interval above 0,", _gains),
        ):
            value = sum(any(passes(cell) for cell in _scarce(study)) for study in studies)
            out[f"{regime}: data sets with {name} at 10 or 25 %"] = {
                "value": value,
                "bar": SETS,
                "run": len(studies),
                "untested": untested,
                "not_run": open_plans,
                "holds": True if value >= SETS else None if value + open_plans >= SETS else False,
            }
    return out


def _scarce(study: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in study["cells"] if cell["size"] in SCARCE]


def _beats(cell: dict[str, Any]) -> bool:
    primary = [row["difference"] for row in cell["comparisons"] if row["primary"]]
    return bool(primary) and all(difference["ci95"][0] > 0 for difference in primary)


def _gains(cell: dict[str, Any]) -> bool:
    difference = _alike(cell).get(("diverse", "real"), {}).get("difference")
    return difference is not None and difference["mean"] >= AIM and difference["ci95"][0] > 0


def _alike(cell: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The comparisons of arms that were trained as the primary one, by pair."""
    return {(row["arm"], row["control"]): row for row in cell["comparisons"] if row["training"] == "mixed" and row["augment"]}


def written(found: dict[str, dict[str, Any]], plans: dict[str, StudyPlan], ran: dict[str, Path]) -> None:
    """The bars and the summary into docs/study.md, all tables into docs/study-results.md, and the figures of what ran now, by folder, beside it."""
    follow_ups = {name for name, plan in plans.items() if is_follow_up(plan)}
    head, tail = (DOCS / "study.md").read_text().split(BEGIN)[0], (DOCS / "study.md").read_text().split(END)[1]
    between = [BEGIN, "", *_bars_table(bars(found, plans)), "", *glances(found, follow_ups), END]
    write_atomic(DOCS / "study.md", (head + "\n".join(between) + tail).encode())
    parts = [
        "# The classifier study: all tables",
        "",
        f"Written by `python benchmarks/study.py`; [study.md](study.md) says what they mean. {INTERVALS}",
        "",
    ]
    for name, plan in plans.items():
        parts += [f"## {plan.name}", ""]
        if is_follow_up(plan):
            parts += ["A follow-up, planned after test scores of this data set were seen: all of it is exploratory, also what it calls primary.", ""]
        if name not in found:
            parts += ["Not run yet.", ""]
            continue
        if "note" in found[name]:
            parts += [found[name]["note"], ""]
        parts += [study_markdown(found[name]), ""]
        for figure in ("comparisons", "sizes", "ratios", "recalls"):
            shown = DOCS / "images" / f"study-{name}-{figure}.png"
            if name in ran and (made := ran[name] / "figures" / f"study-{figure}.png").exists():
                write_atomic(make_folder(shown.parent) / shown.name, made.read_bytes())
            if shown.exists():
                parts += [f"![{plan.name}: {figure}](images/{shown.name})", ""]
    write_atomic(DOCS / "study-results.md", "\n".join(parts).encode())


def _bars_table(found: dict[str, Any]) -> list[str]:
    lines = ["| bar | found | data sets run | holds |", "| --- | --- | --- | --- |"]
    for name, bar in found.items():
        verdict = {True: "yes", False: "no", None: "open"}[bar["holds"]]
        run = f"{bar['run']} of {bar['run'] + bar['not_run']}" + (f", {bar['untested']} without a bank to test" if bar["untested"] else "")
        lines.append(f"| {name}: {bar['bar']} or more | {bar['value']} | {run} | {verdict} |")
    return lines


def glances(found: dict[str, dict[str, Any]], follow_ups: Collection[str]) -> list[str]:
    """Two tables a regime, of balanced accuracy and of AUC: what the bank and what else is worth, in all studies that have run."""
    lines: list[str] = []
    for regime in sorted({study["regime"] for study in found.values()}):
        lines += [f"### At a glance: {regime}", ""]
        for metric, key in (("balanced_accuracy", "difference"), ("auc", "auc")):
            head = ["data", "real images", f"real: {METRIC_NAMES[metric]}, %", *(f"{arm_name(ours)} − {arm_name(theirs)}" for ours, theirs in GLANCE)]
            lines += [_row(head), _row(["---"] * len(head))]
            for name, study in found.items():
                if study["regime"] == regime:
                    title = study["name"].split(",")[0] + (" (follow-up)" if name in follow_ups else "")
                    lines += [_row([title, *_glance(cell, metric, key)]) for cell in study["cells"]]
            lines.append("")
        lines += [f"{study['name']}: {study['note']}\n" for study in found.values() if study["regime"] == regime and "note" in study]
        lines += [
            "With random transforms; differences in points with 95 % intervals, bold where 0 lies outside. Balanced accuracy of diverse against "
            "random and duplicates was fixed before, all else and all of a follow-up is exploratory; nothing is corrected here for the number of "
            "comparisons.",
            "",
        ]
    return lines


def _glance(cell: dict[str, Any], metric: str, key: str) -> list[str]:
    real = next(row for row in cell["arms"] if row["arm"] == "real" and row["augment"])
    rows = _alike(cell)
    shown = [_gap(rows[pair][key]) if pair in rows else "–" for pair in GLANCE]
    return [size_in_words(cell), percent(real["metrics"][metric]["mean"]), *shown]


def _gap(difference: dict[str, Any]) -> str:
    low, high = difference["ci95"]
    said = gap_in_words(difference)
    return said if low is None or low <= 0 <= high else f"**{said}**"


def _row(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one plan, two seeds, short trainings; nothing is written to results")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--only", action="append", help="name of a plan; may be repeated")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "study", help="where plans run")
    parser.add_argument("--validation-only", action="store_true", help="leave test images alone")
    parser.add_argument("--workers", type=int, default=2, help="processes that train generators, grow banks and train classifiers")
    chosen = parser.parse_args()
    plans = {file.stem: StudyPlan.load(file) for folder in (PLANS, FOLLOW_UPS) for file in sorted(folder.glob("*.yaml"))}
    if unknown := sorted(set(chosen.only or ()) - set(plans)):
        parser.error(f"--only: expected some of {', '.join(plans)}, got {', '.join(unknown)}")
    asked = {name: plan for name, plan in plans.items() if not chosen.only or name in chosen.only}
    if chosen.quick:
        plans = asked = {f"{name}-quick": quick(plan) for name, plan in asked.items() if plan.data == "builtin" and plan.regime == "pretrained"}
    found = {} if chosen.quick or chosen.validation_only else earlier(plans)
    ran: dict[str, Path] = {}
    for name, plan in asked.items():
        ran[name] = chosen.work / name
        found[name] = conducted(plan, ran[name], test=not chosen.validation_only, workers=chosen.workers)
        if not (chosen.quick or chosen.validation_only):
            write_json(OUTCOME, {"bars": bars(found, plans), "results": found, "environment": describe_environment()})
            written(found, plans, ran)
    result = {"bars": bars(found, plans), "results": found, "environment": describe_environment()}
    print(json.dumps(result) if chosen.json else json.dumps(result["bars"], indent=1))
    return 0 if all(bar["holds"] for bar in result["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
