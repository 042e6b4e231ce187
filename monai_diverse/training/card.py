"""What a trained model says of itself: `model.json` for programs, `CARD.md` and `loss.png` for people."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from monai_diverse.errors import RecipeError
from monai_diverse.storage import sha256_of, write_atomic, write_json


def write_card(folder: Path) -> None:
    """Writes `CARD.md` and `loss.png` from the JSON files beside the model: model, training, split and, if measured, quality."""
    model, training, split = (json.loads((folder / f"{name}.json").read_text()) for name in ("model", "training", "split"))
    quality = folder / "quality.json"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    write_atomic(folder / "loss.png", _loss_plot(training))
    lines = [
        f"# {model['name']}",
        "",
        "A class-conditional diffusion model, trained by `monai-diverse train`. For research; not for clinical use.",
        "",
        *_table(
            {
                "data": f"{split['data']} (sha256 `{split['data_sha256']}`)",
                "licence of the data": model["licence"],
                "classes": ", ".join(f"{c} {name}" for c, name in enumerate(model["class_names"])),
                "seen by the generator": f"{len(split['generator_train'])} images of the train split (`split.json`)",
                "set aside, never seen": f"{len(split['calibration'])} images; twins (correlation > {split['twin_correlation']}) stay together",
                "validation bank": f"the {split['validation']} images, {training['validation_draws']} fixed (timestep, noise) pairs each",
                "command": f"`{model['command']}`",
                "seed": training["seed"],
                "steps": f"{training['steps']} of batch {training['batch_size']}; the weights are those of step {training['best_step']}",
                "loss there": _loss_at(training, training["best_step"]),
                "network": f"diffusers UNet2DModel, channels {training['channels']}, {training['layers']} block(s) a resolution",
                "weights": f"averaged (EMA {training['ema_decay']}), fp16, {weights.stat().st_size / 1e6:.1f} MB, sha256 `{sha256_of(weights)}`",
            }
        ),
        "",
        "The stop is the lowest loss on the validation bank. A model that trains on drifts towards its training images,",
        "and may do so before that point (Garnier-Brun et al. 2026): no privacy guarantee is given.",
        "",
        "![losses](loss.png)",
        "",
    ]
    if quality.is_file():
        lines += _quality(json.loads(quality.read_text()))
    write_atomic(folder / "CARD.md", "\n".join(lines).encode())


def write_model_json(folder: Path, *, name: str, classes: int, class_names: Sequence[str], licence: str, mirror: bool, command: str) -> None:
    """Writes what a source needs to know of a model.

    Raises:
        RecipeError: not one name a class.
    """
    names = list(class_names) or [f"class {c}" for c in range(classes)]
    if len(names) != classes:
        raise RecipeError(f"class names: expected {classes}, one a class, got {len(names)}: {', '.join(names)}")
    content = {"name": name, "classes": classes, "class_names": names, "licence": licence, "mirror": mirror, "command": command}
    write_json(folder / "model.json", content)


def _table(rows: dict[str, Any]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]


def _loss_at(training: dict[str, Any], step: int) -> str:
    row = next(r for r in training["losses"] if r["step"] == step)
    return f"validation {row['validation_loss']:.4f}, training {row['train_loss']:.4f} (mean squared error of v)"


def _quality(quality: dict[str, Any]) -> list[str]:
    rows = {entry["name"]: f"{entry['model']} | {entry['real']} | {entry['meaning']}" for entry in quality["rows"]}
    head = ["| | model | real images | what it means |", "| --- | --- | --- | --- |"]
    return ["## Quality", "", quality["note"], "", *head, *(f"| {key} | {value} |" for key, value in rows.items()), ""]


def _loss_plot(training: dict[str, Any]) -> bytes:
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in training["losses"]]
    axes.plot(steps, [row["train_loss"] for row in training["losses"]], color="#999999", label="training (with dropout, current weights)")
    axes.plot(steps, [row["validation_loss"] for row in training["losses"]], color="#0072B2", label="validation bank (averaged weights)")
    axes.axvline(training["best_step"], color="#D55E00", linestyle="--", label=f"kept: step {training['best_step']}")
    axes.set(xlabel="optimiser step", ylabel="mean squared error of v", yscale="log")
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
