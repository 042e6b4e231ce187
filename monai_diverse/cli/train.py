"""`monai-diverse train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from monai_diverse.cli.main import app
from monai_diverse.training import ModelCard, TrainConfig, prepare, train, write_card, write_model_json


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
    name: Annotated[str, typer.Option(help="Name of the model, for its card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the card.")] = "unknown",
    class_names: Annotated[str, typer.Option(help="Names of the classes, separated by commas.")] = "",
) -> None:
    """Train a small class-conditional diffusion model on your images."""
    config = TrainConfig(
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        mirror=mirror,
        calibration_parts=calibration_parts,
        snapshot_every=snapshot_every,
        device=device,
    )
    prepared = prepare(data, config)
    names = [part.strip() for part in class_names.split(",")] if class_names else list(prepared.class_names)
    card = ModelCard(name=name or out.name, classes=prepared.classes, class_names=tuple(names), licence=licence, mirror=mirror)
    typer.echo(
        f"{len(prepared.seen)} images to train on (by class {prepared.seen.class_counts}), {len(prepared.calibration)} set aside"
        f" {prepared.calibration.class_counts}, {len(prepared.validation)} for the validation bank",
        err=True,
    )
    done = 0
    with tqdm(total=steps, unit="step", desc="train") as bar:
        for progress in train(prepared, out, config):
            if not done:  # steps of an earlier run cost this one nothing: leave them out of rate and time left
                bar.initial = bar.n = bar.last_print_n = progress.step - 1
                write_model_json(out, card)
            done = progress.step
            validation = "" if progress.validation_loss is None else f", validation {progress.validation_loss:.4f}, best at step {progress.best_step}"
            bar.set_postfix_str(f"loss {progress.train_loss:.4f}{validation}", refresh=False)
            bar.update()
    write_model_json(out, card)
    write_card(out)
    typer.echo(f"model: {out}  card: {out / 'CARD.md'}")
