"""`monai-diverse grow`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm import tqdm

from monai_diverse.bank import SampleBank
from monai_diverse.bank.folder import local_path
from monai_diverse.batches import Workers
from monai_diverse.cli.main import app
from monai_diverse.distributed import Processes, RayActors
from monai_diverse.errors import BankError, RecipeError
from monai_diverse.growth import GrowProgress, grow_steps
from monai_diverse.job import Job
from monai_diverse.recipe import Recipe
from monai_diverse.storage import read_json, write_json
from monai_diverse.tuning import best, pilots, with_strength

LARGE_GROUP = 0.1
"""Share of a set that is one group of near-duplicates from which on `grow` warns."""


@app.command("grow")
def command(
    recipe: Annotated[Path, typer.Argument(help="YAML: model, images, guide, screen, bounds.")],
    out: Annotated[Path, typer.Option(help="Folder of the bank.")],
    size: Annotated[int | None, typer.Option(help="Stop at so many accepted samples; instead of the recipe's bound.")] = None,
    max_evaluations: Annotated[int | None, typer.Option(help="Network evaluations to spend; instead of the recipe's bound.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a bank of the same recipe.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="First choose the guide's strength on pilots; the frontier goes to OUT.tuning.json.")] = False,
    tune_evaluations: Annotated[int, typer.Option(help="Network evaluations of each pilot.")] = 10_000,
    devices: Annotated[str | None, typer.Option(help="Draw in a process each on these: auto, or a list such as cuda:0,cuda:1 or cpu,cpu.")] = None,
    ray: Annotated[str | None, typer.Option(help="Draw in actors of a Ray cluster: its address, auto, or local for a new one here.")] = None,
    workers: Annotated[int | None, typer.Option(help="How many processes or actors; of itself one a GPU, or else one a core.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="A package that the recipe may load classes from; loading runs its code.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Grow a bank of diverse samples."""
    local_path(out)  # before the screen is fitted, which takes long
    chosen = Recipe.load(recipe, allow or ())
    chosen = replace(chosen, size=chosen.size if size is None else size)
    chosen = replace(chosen, max_evaluations=chosen.max_evaluations if max_evaluations is None else max_evaluations)
    if tune:
        chosen = with_strength(chosen, _tuned_strength(chosen, out, tune_evaluations, resume))
    crew = _crew(chosen, devices, ray, workers)
    job = Job.prepare(chosen)
    _warn_of_large_groups(job)
    for progress in show_progress("grow", job, out, resume=resume, workers=crew):
        last = progress
    bank = SampleBank.open(out)
    _warn_of_lacking_classes(job, bank)
    if as_json:
        found = {"path": str(out), "size": len(bank), "fingerprint": bank.fingerprint, "drawn": last.drawn, "nfe": last.nfe}
        typer.echo(json.dumps(found | {"rejections": last.rejections, "seconds": last.seconds}))
        return
    typer.echo(f"{len(bank)} samples in {out} (of {last.drawn} drawn, {last.nfe} network evaluations); monai-diverse inspect {out} says more")


def _warn_of_large_groups(job: Job) -> None:
    """Images that are aligned correlate without being repeats; as one group they would be compared with no other."""
    for name, images in job.real.items():
        largest = int(np.unique(images.group_ids, return_counts=True)[1].max())
        if largest > max(LARGE_GROUP * len(images), 20):
            typer.echo(
                f"warning: {name}: {largest} of {len(images)} images are one group of near-duplicates and count as one patient. If they are merely"
                " alike, as aligned slices are, give that part of the recipe a higher twin_correlation, or null",
                err=True,
            )


def _warn_of_lacking_classes(job: Job, bank: SampleBank) -> None:
    """Trained on a bank without a class that was asked for, a classifier may learn from how generated images look that they are of another."""
    asked = zip(job.source.class_names, job.label_shares, bank.class_counts, strict=True)
    lacking = [repr(name) for name, share, count in asked if share > 0 and count == 0]
    if lacking and len(bank):
        found = f"no sample of class {' or '.join(lacking)} was accepted"
        why = "trained on such a bank, a classifier may take what looks generated for another class"
        typer.echo(f"warning: {found}; {why}. Draw more, or train the generator longer", err=True)


def _crew(recipe: Recipe, devices: str | None, ray: str | None, count: int | None) -> Workers | None:
    """Where to draw; says so if several workers would wait for one another."""
    if devices is None and ray is None and count is None:
        return None
    if devices is not None and ray is not None:
        raise RecipeError("grow: expected --devices for processes of this machine or --ray for a cluster, got both; leave one out")
    if recipe.guide is not None and not recipe.ahead and count != 1:
        text = "each batch's guide waits for the verdicts on the one before, so workers take turns; set `ahead` in the recipe, such as ahead: 1"
        typer.echo(f"warning: {text} (another bank, the same on any number of workers)", err=True)
    if ray is not None:
        return RayActors(address=ray, count=count)
    named = devices or "auto"
    return Processes(devices=named if named == "auto" else tuple(name.strip() for name in named.split(",")), count=count)


def _tuned_strength(recipe: Recipe, out: Path, evaluations: int, resume: bool) -> float:
    """What the pilots choose; a bank that grows on keeps what they chose before."""
    file = out.with_name(f"{out.name}.tuning.json")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise BankError(f"{out}: expected a new or empty folder, got one that holds something; choose another, or go on with --resume")
    if resume and file.is_file():
        return float(read_json(file)["strength"])
    found = []
    for pilot in pilots(recipe, evaluations=evaluations):
        typer.echo(str(pilot), err=True)
        found.append(pilot)
    chosen = best(found).strength
    typer.echo(f"chosen: strength {chosen:g}", err=True)
    write_json(file, {"strength": chosen, "frontier": [pilot.as_json() for pilot in found]})
    return chosen


def show_progress(name: str, job: Job, out: Path, *, resume: bool, workers: Workers | None = None) -> list[GrowProgress]:
    """Grows a bank behind a progress bar: drawn, accepted, rejections by reason, rate and time left."""
    reports: list[GrowProgress] = []
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=1.0, desc=name, bar_format=form) as bar:
        for progress in grow_steps(job, out, resume=resume, workers=workers):
            drawn_here = progress.drawn - (reports[0].drawn if reports else progress.drawn)
            rate = drawn_here / max(progress.seconds, 1e-9)
            rejected = ", ".join(f"{reason} {count}" for reason, count in progress.rejections.items() if count)
            bar.update(progress.share - bar.n)
            bar.set_postfix_str(f"{progress.drawn} drawn ({rate:.1f}/s), {progress.accepted} accepted; rejected: {rejected or 'none'}")
            reports.append(progress)
    return reports
