"""`monai-diverse train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm import tqdm

from monai_diverse.audit import Stop, TwinRecipe, UNetTrainer, twin_result, twin_steps
from monai_diverse.audit.twins import RECIPE
from monai_diverse.cli.main import app
from monai_diverse.data import LabelledImages
from monai_diverse.errors import RecipeError
from monai_diverse.report.audit import REAL_PATIENTS, write_audit
from monai_diverse.screening import NoveltyGate, RelevanceGate
from monai_diverse.screening.calibrate import groups_needed
from monai_diverse.storage import read_json
from monai_diverse.training import ModelCard, TrainConfig, TrainingData, is_first, launched_processes, prepare, train, write_card

MAX_BIAS = 0.02


@app.command("train")
def command(
    data: Annotated[Path, typer.Option(help="An .npz file (MedMNIST's layout) or a folder with one subfolder a class.")],
    out: Annotated[Path, typer.Option(help="Folder of the model; an interrupted training there is taken up again.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps; more can be asked later, on the same folder.")] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    seed: Annotated[int, typer.Option(help="Of split, weights, batches and noise.")] = 0,
    mirror: Annotated[bool, typer.Option(help="Mirror images left-right at random.")] = True,
    calibration_parts: Annotated[int, typer.Option(help="One in so many images is set aside to calibrate the screen.")] = 5,
    snapshot_every: Annotated[int, typer.Option(help="Steps between snapshots of the weights; 0 for none.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute, such as cpu or cuda:0.")] = "cpu",
    patch: Annotated[int, typer.Option(help="Squares of so many pixels become channels first; 2 makes steps about four times cheaper.")] = 1,
    channels: Annotated[
        str,
        typer.Option(help="Feature maps at each resolution, separated by commas; each further one halves it. 64,128 suits --patch 2 and 28 x 28."),
    ] = ",".join(map(str, TrainConfig.channels)),
    twin: Annotated[bool, typer.Option("--twin", help="First train twins on halves of the images; they say when to stop.")] = False,
    max_bias: Annotated[
        float | None, typer.Option(help="With --twin: how much nearer to own patients samples may lie.", show_default=f"{MAX_BIAS}, which is 2 %")
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="With --twin: pairs of twins; several tell how much trainings differ.", show_default="1")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="With --twin: processes, each trains one twin at a time.", show_default="1")] = None,
    name: Annotated[str, typer.Option(help="Name of the model, for its card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the card.")] = "unknown",
    class_names: Annotated[str, typer.Option(help="Names of the classes, separated by commas.")] = "",
) -> None:
    """Train a small class-conditional diffusion model on your images.

    Several processes train one model together: `accelerate launch -m monai_diverse train ...` or `torchrun`; --device cuda gives each a GPU.
    """
    if twin and launched_processes() > 1:
        raise RecipeError("--twin: expected one process, got several; train the twins without a launcher first, with --workers")
    for option, value in (("--max-bias", max_bias), ("--pairs", pairs), ("--workers", workers)):
        if value is not None and not twin:
            raise RecipeError(f"{option}: expected --twin beside it, got {value} alone; add --twin, or leave it out")
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        mirror=mirror,
        calibration_parts=calibration_parts,
        patch=patch,
        channels=_numbers(channels),
        snapshots=tuple(range(snapshot_every, steps + 1, snapshot_every)) if snapshot_every else (),
        device=device,
    )
    prepared = prepare(data, config)
    names = [part.strip() for part in class_names.split(",")] if class_names else list(prepared.class_names)
    card = ModelCard(name=name or out.name, classes=prepared.classes, class_names=tuple(names), licence=licence)
    if is_first():
        typer.echo(
            f"{len(prepared.seen)} images to train on (by class {prepared.seen.class_counts}), {len(prepared.calibration)} set aside"
            f" {prepared.calibration.class_counts}, {len(prepared.validation)} for the validation bank",
            err=True,
        )
        _advise(prepared)
    if twin:
        _require_room(out, config.steps)
        tolerance = MAX_BIAS if max_bias is None else max_bias
        stop = _stop_of_twins(prepared.seen, config, out / "twins", max_bias=tolerance, pairs=pairs or 1, workers=workers or 1)
        config = replace(config, steps=stop, snapshots=tuple(step for step in config.snapshots if step <= stop))
    done = 0
    with tqdm(total=config.steps, unit="step", desc="train", disable=not is_first()) as bar:
        for progress in train(prepared, out, config, card):
            if not done:  # steps of an earlier run cost this one nothing: leave them out of rate and time left
                bar.initial = bar.n = bar.last_print_n = progress.step - 1
            done = progress.step
            validation = "" if progress.validation_loss is None else f", validation {progress.validation_loss:.4f}, best at step {progress.best_step}"
            bar.set_postfix_str(f"loss {progress.train_loss:.4f}{validation}", refresh=False)
            bar.update()
    if not is_first():
        return
    write_card(out)
    typer.echo(f"model: {out}  card: {out / 'CARD.md'}")


def _advise(prepared: TrainingData) -> None:
    """Says before the training what `grow` would refuse after it."""
    needed = max(groups_needed(NoveltyGate().alpha, reaching=True), groups_needed(RelevanceGate().level, reaching=False))
    aside = len(np.unique(prepared.calibration.group_ids))
    if aside < needed:
        typer.echo(
            f"warning: {aside} different images (patients) are set aside, and the default screen needs {needed}: give more images, a smaller"
            " --calibration-parts, or the recipe a screen whose NoveltyGate has a larger alpha and whose RelevanceGate a larger level",
            err=True,
        )


def _numbers(channels: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in channels.split(","))
    except ValueError:
        raise RecipeError(f"--channels: expected whole numbers separated by commas, such as 64,128, got {channels!r}") from None


def _require_room(out: Path, steps: int) -> None:
    """Refuses what could not be trained in `out` after the twins, before they cost hours."""
    file = out / "training.json"
    held = read_json(file).get("steps", 0) if file.exists() else 0
    if held > steps:
        raise RecipeError(f"--steps: expected at least {held}, which {out} holds already, got {steps}; use another --out")
    twins = out / "twins" / RECIPE
    if held and not twins.exists():
        raise RecipeError(
            f"--twin: expected a folder without a model, which twins may have to stop earlier, got {out} with {held} steps; use another --out"
        )
    before = read_json(twins).get("steps") if twins.exists() else steps
    if before != steps:
        raise RecipeError(f"--steps: expected {before}, to which the twins in {twins.parent} were trained, got {steps}; give that, or another --out")


def _stop_of_twins(data: LabelledImages, config: TrainConfig, out: Path, *, max_bias: float, pairs: int, workers: int) -> int:
    """Trains twins, writes what they show, and gives the step at which the model itself should stop."""
    recipe = TwinRecipe(
        trainer=UNetTrainer(config=config),
        steps=config.steps,
        first=max(1, config.steps // 60),
        pairs=pairs,
        tolerance=max_bias,
        seed=config.seed % 2**20,
    )
    with tqdm(total=1.0, desc="twins", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}") as bar:
        for progress in twin_steps(recipe, data, out=out, workers=workers):
            if bar.postfix != progress.stage:  # training and measuring have rates of their own
                bar.reset()
                bar.set_postfix_str(progress.stage)
            bar.update(progress.done / progress.total - bar.n)
    audit = twin_result(recipe, data, out=out)
    page = write_audit(out, audit.summary, {"quadruplets": audit.quadruplets})
    typer.echo(f"{page} {REAL_PATIENTS}", err=True)
    for name, stop in audit.stops.items():
        typer.echo(f"{name} stop: {_told(stop)} ({stop.why})", err=True)
    if audit.advice is None:
        strict = audit.stops["strict"].step
        instead = "" if strict is None else f"the strict stop is step {strict}: give --steps {strict} without --twin, or "
        wanted = "--max-bias: expected a tolerance that some checkpoint of passable quality keeps"
        raise RecipeError(f"{wanted}, got {max_bias:g}, see {page}; {instead or 'there is no strict stop either: give '}a larger --max-bias")
    name, step = audit.advice
    typer.echo(f"stopping at step {step}, the {name} stop; {page} says more", err=True)
    return step


def _told(stop: Stop) -> str:
    if stop.step is None:
        return "none"
    return f"step {stop.step}, {'resolved' if stop.resolved else 'unresolved'}, quality {'passable' if stop.quality_ok else 'poor'}"
