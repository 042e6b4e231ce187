"""A training's state: kept, taken up again, and turned into the model's files."""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import UNet2DModel
from torch.optim.swa_utils import AveragedModel

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.storage import make_folder, write_atomic, write_json
from monai_diverse.training.config import TrainConfig, build_unet
from monai_diverse.training.split import TrainingData

CHECKPOINT = "checkpoint.pt"


@dataclass
class TrainingState:
    """Everything that a step changes.

    Attributes:
        unet: the network that is trained.
        average: its averaged weights, which are what is kept.
        optimizer: of `unet`.
        step: steps done.
        best_step: the one with the lowest validation loss.
        history: [step, training loss, validation loss] of every look at the validation bank.
    """

    unet: UNet2DModel
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    best_step: int = 0
    history: list[list[float]] = field(default_factory=list)

    @classmethod
    def new(cls, data: TrainingData, config: TrainConfig) -> TrainingState:
        """Initial weights from the seed; global random state is left alone."""
        channels, *size = data.seen.images.shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            unet = build_unet(config, image_channels=channels, size=tuple(size), classes=data.classes)
        unet = unet.to(device=config.device, memory_format=torch.channels_last)
        average = AveragedModel(unet, multi_avg_fn=partial(_average, config.ema_decay))
        return cls(unet, average, torch.optim.Adam(unet.parameters(), lr=config.learning_rate))

    def best_loss(self) -> float:
        """The lowest validation loss so far."""
        return min((row[2] for row in self.history), default=float("inf"))


def identity_of(data: TrainingData, config: TrainConfig) -> dict[str, Any]:
    """All that decides the weights of a step, which a resumed training must share: settings and split, as JSON."""
    free = ("steps", "snapshots", "device")
    settings = {name: value for name, value in asdict(config).items() if name not in free}
    return {"config": settings | {"channels": list(config.channels)}, "split": data.split}


def keep(state: TrainingState, out: Path, identity: dict[str, Any]) -> None:
    """Writes the checkpoint, then `training.json`."""
    buffer = io.BytesIO()
    content = {
        "unet": state.unet.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "best_step": state.best_step,
        "history": state.history,
        "settings": identity,
    }
    torch.save(content, buffer)
    write_atomic(out / CHECKPOINT, buffer.getvalue())
    write_history(state, out, identity)


def write_history(state: TrainingState, out: Path, identity: dict[str, Any]) -> None:
    """Writes `training.json`: settings, steps, losses."""
    losses = [dict(zip(("step", "train_loss", "validation_loss"), row, strict=True)) for row in state.history]
    write_json(out / "training.json", identity["config"] | {"steps": state.step, "best_step": state.best_step, "losses": losses})


def take_up(state: TrainingState, out: Path, identity: dict[str, Any]) -> None:
    """Loads the checkpoint in `out`, if there is one, into a new state.

    Raises:
        RecipeError: it is another training's.
        DataError: it cannot be read.
    """
    path = out / CHECKPOINT
    if not path.exists():
        return
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        held = content["settings"]
        same = held | {"config": {"patch": 1} | held["config"]} == identity  # before there were patches, every pixel was one
        if same:
            state.unet.load_state_dict(content["unet"])
            state.average.load_state_dict(content["average"])
            state.optimizer.load_state_dict(content["optimizer"])
            state.step, state.best_step, state.history = content["step"], content["best_step"], content["history"]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected a training's checkpoint, but it cannot be read; delete it to begin again") from error
    if not same:
        raise RecipeError(f"{out}: holds a training with other data or settings; use another --out, or delete {CHECKPOINT} to begin again")
    write_history(state, out, identity)


def save_unet(unet: UNet2DModel, folder: Path) -> None:
    """Writes configuration and fp16 weights as diffusers' `from_pretrained` reads them."""
    make_folder(folder)
    weights = {name: value.half().cpu().contiguous() for name, value in unet.state_dict().items()}
    write_atomic(folder / "config.json", unet.to_json_string().encode())
    write_atomic(folder / "diffusion_pytorch_model.safetensors", safetensors.torch.save(weights, metadata={"format": "pt"}))


@torch.no_grad()
def _average(decay: float, averaged: Any, current: Any, count: torch.Tensor) -> None:
    """Exponential moving average whose decay rises to `decay`, so that it does not drag the first weights along."""
    n = int(count)
    torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
