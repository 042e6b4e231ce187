"""What a trained model says of itself: `model.json` for programs, `CARD.md` and `loss.png` for people."""

from __future__ import annotations

import io
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from monai_diverse.datasheet import AUDIT, NO_AUDIT, audit_digest, audit_lines
from monai_diverse.errors import RecipeError
from monai_diverse.storage import read_json, sha256_of, write_atomic, write_json
from monai_diverse.training.config import TrainConfig

STEPS = "steps.json"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model says of itself to programs.

    Attributes:
        name: for reports.
        classes: number of classes; the network's embedding after the last one stands for 'no label'.
        class_names: one a class; empty for 'class 0', 'class 1' and so on.
        licence: of the data that it was trained on.
        mirror: whether it was trained on images mirrored left-right too.
        patch: squares of so many pixels are channels to the network; see `TrainConfig`.
    """

    name: str
    classes: int
    class_names: tuple[str, ...] = ()
    licence: str = "unknown"
    mirror: bool = False
    patch: int = 1

    def __post_init__(self) -> None:
        names = self.class_names or tuple(f"class {c}" for c in range(self.classes))
        if len(names) != self.classes:
            raise RecipeError(f"class names: expected {self.classes}, one a class, got {len(names)}: {', '.join(names)}")
        object.__setattr__(self, "class_names", names)


def write_card(folder: Path) -> None:
    """Writes `CARD.md` and `loss.png` from the JSON files beside the model: model, training, split and, if measured, quality, audit and steps."""
    model, training, split = (read_json(folder / f"{name}.json") for name in ("model", "training", "split"))
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
                "validation bank": f"{_validation(split)}, {training['validation_draws']} fixed (timestep, noise) pairs each",
                "command": f"`{_command(model, training, split)}`",
                "seed": training["seed"],
                "steps": f"{training['steps']} of batch {training['batch_size']}; the weights are those of step {training['best_step']}",
                "loss there": _loss_at(training, training["best_step"]),
                "network": f"diffusers UNet2DModel, channels {training['channels']}, {training['layers']} block(s) a resolution",
                "weights": f"averaged (EMA {training['ema_decay']}), fp16, {weights.stat().st_size / 1e6:.1f} MB, sha256 `{sha256_of(weights)}`",
            }
        ),
        "",
        *_stop(folder),
        "",
        "![losses](loss.png)",
        "",
    ]
    lines += _audit(folder / AUDIT) + _steps(folder / STEPS)
    if quality.is_file():
        lines += _quality(read_json(quality))
    write_atomic(folder / "CARD.md", "\n".join(lines).encode())


def _stop(folder: Path) -> list[str]:
    twins = folder / "twins" / AUDIT
    said = "The stop is the lowest loss on the validation bank"
    advice = read_json(twins).get("advice") if twins.is_file() else None
    if advice:
        said += f" up to the {advice['name']} stop that twins gave, step {advice['step']} (`twins/audit.html`)"
    return [
        f"{said}. A model that trains on drifts towards its training images,",
        "and may do so before the loss is lowest (Garnier-Brun et al. 2026): no privacy guarantee is given.",
    ]


def _audit(file: Path) -> list[str]:
    if not file.is_file():
        return ["## Leakage audit", "", NO_AUDIT, ""]
    return ["## Leakage audit", "", *(f"- {line}" for line in audit_lines(audit_digest(read_json(file)))), ""]


def _steps(file: Path) -> list[str]:
    """What `benchmarks/shipped_stop.py` measured: earlier steps of the same training, on the same classes and seeds."""
    if not file.is_file():
        return []
    found = read_json(file)
    *earlier, last = found["steps"]
    rows = [f"| {row['step']} | {_effect(row['bias'])} | {_effect(row['last_minus_this'])} |" for row in earlier]
    rows.append(f"| {last['step']}, these weights | {_effect(last['bias'])} | |")
    head = ["| step | nearer to training images than to unseen ones (95 % interval) | these weights less that step |", "| --- | --- | --- |"]
    note = f"The same training at earlier steps, {found['images']} samples with the same classes and seeds, so that they compare image by image:"
    return [note, "", *head, *rows, ""]


def _effect(effect: dict[str, Any]) -> str:
    low, high = effect["ci"]
    return f"{effect['value']:+.2%} ({low:+.2%} to {high:+.2%})"


def write_model_json(folder: Path, card: ModelCard) -> None:
    """Writes `model.json`: what a source needs to know of a model."""
    write_json(folder / "model.json", asdict(card) | {"class_names": list(card.class_names)})


def _command(model: dict[str, Any], training: dict[str, Any], split: dict[str, Any]) -> str:
    words = ["monai-diverse", "train", "--data", split["data"], "--out", "MODEL", "--steps", str(training["steps"])]
    words += ["--batch-size", str(training["batch_size"]), "--seed", str(training["seed"])]
    words += [] if model["mirror"] else ["--no-mirror"]
    words += ["--patch", str(model["patch"])] if model.get("patch", 1) > 1 else []  # cards of before there were patches name none
    channels = ",".join(map(str, training["channels"]))
    words += ["--channels", channels] if tuple(training["channels"]) != TrainConfig.channels else []
    words += ["--calibration-parts", str(training["calibration_parts"])]
    words += ["--name", model["name"], "--licence", model["licence"], "--class-names", ",".join(model["class_names"])]
    return shlex.join(words)


def _validation(split: dict[str, Any]) -> str:
    if split["validation"] is None:
        return "the images set aside (there is no val split, so they chose the stop too)"
    return f"the {len(split['validation'])} images of the val split that do not repeat an image of the train split"


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
    losses = [row["validation_loss"] for row in training["losses"]]
    axes.plot(steps, [row["train_loss"] for row in training["losses"]], color="#999999", label="training (with dropout, current weights)")
    axes.plot(steps, losses, color="#0072B2", label="validation bank (averaged weights)")
    axes.axvline(training["best_step"], color="#D55E00", linestyle="--", label=f"kept: step {training['best_step']}")
    # the first training losses are many times the rest and would flatten it
    axes.set(xlabel="optimiser step", ylabel="mean squared error of v", ylim=(0.9 * min(losses), 1.15 * max(losses)))
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
