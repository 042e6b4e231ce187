"""`monai-diverse inspect` and `monai-diverse verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from monai_diverse.bank import SampleBank
from monai_diverse.cli.main import app
from monai_diverse.screening import Yield

Folder = Annotated[Path, typer.Argument(help="Folder of the bank.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("inspect")
def inspect(bank: Folder, as_json: AsJson = False) -> None:
    """Say what is in a bank: yields with intervals, rejections by reason, provenance."""
    found = _described(SampleBank.open(bank))
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{bank}: {found['size']} samples, shape {tuple(found['shape'])}, by class {found['class_counts']}")
    rate = found["yield"]
    if rate["drawn"]:
        typer.echo(
            f"yield: {rate['accepted']} of {rate['drawn']} drawn = {rate['per_10k']:.0f} per 10,000,"
            f" 95 % interval {rate['ci95'][0]:.0f} to {rate['ci95'][1]:.0f} (Clopper-Pearson)"
        )
        typer.echo(f"unseen real images under the same screen: {_control(found['control'])}")
        if found["stopped"] == "size":
            typer.echo("growth stopped at a full bank, not after a fixed number of draws: the yield is a little too high, its interval approximate")
    for reason, count in found["rejections"].items():
        typer.echo(f"rejected as {reason}: {count}")
    for name, score in found["scores"].items():
        typer.echo(f"score {name}: {score['min']:.3g} to {score['max']:.3g}, median {score['median']:.3g}")
    typer.echo(f"source: {found['source'].get('name')} (licence of its data: {found['source'].get('licence')})")
    typer.echo(f"fingerprint: {found['fingerprint']}")


@app.command("verify")
def verify(bank: Folder, as_json: AsJson = False) -> None:
    """Check every hash of a bank; exit 1 and name the shard if anything is off."""
    opened = SampleBank.open(bank)
    opened.verify()
    if as_json:
        typer.echo(json.dumps({"path": str(bank), "ok": True, "size": len(opened), "fingerprint": opened.fingerprint}))
        return
    typer.echo(f"{bank}: {len(opened)} samples, every shard as written")


def _described(bank: SampleBank) -> dict[str, Any]:
    progress = bank.progress
    return {
        "size": len(bank),
        "shape": list(bank.header.shape),
        "class_counts": [int(c) for c in bank.class_counts],
        "yield": Yield(drawn=progress.get("drawn", 0), accepted=len(bank), nfe=progress.get("nfe")).as_json(),
        "control": progress.get("control"),
        "stopped": progress.get("stopped"),
        "rejections": progress.get("rejections", {}),
        "scores": {name: _range(values) for name, values in bank.scores.items()} if len(bank) else {},
        "source": bank.header.source,
        "features": bank.header.features,
        "recipe": bank.header.recipe,
        "fingerprint": bank.fingerprint,
    }


def _control(control: dict[str, Any] | None) -> str:
    if control is None:
        return "unknown, since the recipe names no control images; without them the yield says little"
    low, high = control["ci95"]
    return f"{control['accepted']} of {control['drawn']} = {control['per_10k']:.0f} per 10,000, 95 % interval {low:.0f} to {high:.0f}"


def _range(values: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, float]:
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}
