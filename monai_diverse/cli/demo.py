"""`monai-diverse demo`."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from monai_diverse.cli.main import app
from monai_diverse.demo import DemoConfig, run_demo

TITLES = {"prepare": "prepare", "diverse": "diverse bank", "random": "brute force", "classify": "classifiers", "report": "report"}


@app.command("demo")
def command(
    out: Annotated[Path, typer.Option(help="Folder of the report.")],
    quick: Annotated[bool, typer.Option("--quick", help="Two minutes instead of fifteen; the intervals are wide.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=10_000, help="Of bank, controls and classifiers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Run the whole path on the shipped breast-ultrasound model: grow a bank, train with and without it, write a report."""
    for stage, reports in groupby(run_demo(out, DemoConfig.of(quick=quick, seed=seed)), key=lambda progress: progress.stage):
        with tqdm(total=1.0, desc=TITLES[stage], bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}") as bar:
            for progress in reports:
                bar.update(progress.share - bar.n)
                bar.set_postfix_str(progress.detail)
    summary = json.loads((out / "summary.json").read_text())
    if as_json:
        typer.echo(json.dumps(summary))
        return
    for name, title in (("diverse", "diverse samples"), ("random", "brute force"), ("heldout_real", "unseen real images")):
        found = summary["yield"][name]
        typer.echo(
            f"{title}: {found['accepted']} of {found['drawn']} accepted, {found['per_10k']:.0f} per 10,000"
            f" (95 % interval {found['ci95'][0]:.0f} to {found['ci95'][1]:.0f})"
        )
    typer.echo(f"report: {out / 'report.html'}")
