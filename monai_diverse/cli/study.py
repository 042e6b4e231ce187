"""`monai-diverse study`."""

from __future__ import annotations

import json
import time
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from monai_diverse.cli.main import app
from monai_diverse.report import write_study
from monai_diverse.report.provenance import describe_environment
from monai_diverse.report.study_words import DEVELOPMENT, bar_in_words, comparison_in_words, verdict_in_words
from monai_diverse.storage import write_json
from monai_diverse.study import Crew, Study, StudyPlan, outcome, study_steps

STUDY = "study.json"
TITLES = {"generator": "generator", "pool": "random samples", "banks": "banks", "sweep": "classifiers by ratio", "arms": "classifiers by arm"}


@app.command("study")
def command(
    plan: Annotated[Path, typer.Argument(help="YAML: data, regime, generator, arms, primary analysis.")],
    out: Annotated[Path, typer.Option(help="Folder of the study; one that was interrupted there is taken up again.")],
    validation_only: Annotated[
        bool, typer.Option("--validation-only", help="Leave the test images alone, while the method is still being chosen.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, or with --ray actors, that train, grow banks and classify.")] = None,
    ray: Annotated[str | None, typer.Option(help="Compute in actors of a Ray cluster: its address, auto, or local for a new one here.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="A package that the plan may load classes from; loading runs its code.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Does a bank help a classifier? Train with and without it, beside fair controls, and compare."""
    started = time.perf_counter()
    study = Study.begin(StudyPlan.load(plan, allow or ()), out, test=not validation_only)
    for stage, reports in groupby(study_steps(study, crew=Crew(workers=workers, ray=ray)), key=lambda progress: progress.stage):
        with tqdm(desc=TITLES[stage]) as bar:
            for progress in reports:
                bar.total = progress.total
                bar.update(progress.done - bar.n)
                bar.set_postfix_str(progress.detail)
    found = outcome(study) | {"seconds": time.perf_counter() - started, "environment": describe_environment()}
    write_json(out / STUDY, found)
    page = write_study(out, found)
    typer.echo(json.dumps(found) if as_json else "\n".join([*_words(found), f"report: {page}"]))


def _words(found: dict[str, Any]) -> list[str]:
    """The primary comparisons, a line each, the verdict, and why sizes were not tested."""
    pairs = [(row, cell) for cell in found["cells"] for row in cell["comparisons"] if row["primary"]]
    first = [DEVELOPMENT] if found["scored_on"] == "development" else []
    untested = [bar_in_words(cell, found) for cell in found["cells"] if cell["untested"]]
    return [*first, *(comparison_in_words(row, cell, found) for row, cell in pairs), verdict_in_words(found), *untested]
