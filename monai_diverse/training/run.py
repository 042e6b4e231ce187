"""Trains the model: a generator of progress that can be stopped and taken up again."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monai_diverse.data import LabelledImages, available_splits, load_images, near_duplicate_groups, require_every_class, split_by_group
from monai_diverse.errors import RecipeError
from monai_diverse.storage import make_folder, sha256_of, write_atomic, write_json
from monai_diverse.training.config import TrainConfig, build_scheduler, build_unet
from monai_diverse.training.objective import bank_loss, draw_batch, generator_for, to_model_range, validation_bank

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Progress:
    """One look at the validation bank."""

    step: int
    train_loss: float
    validation_loss: float
    best_step: int


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What one file is divided into before training.

    Attributes:
        seen: what the generator is trained on.
        calibration: reals of the same split that it never sees, to calibrate the screen.
        validation: the reals of the validation bank: the file's own val split where there is one, else `calibration`.
        split: JSON value with hashes and indices into the file's train split.
        classes: number of classes.
    """

    seen: LabelledImages
    calibration: LabelledImages
    validation: LabelledImages
    split: dict[str, Any]
    classes: int


def prepare(path: Path, config: TrainConfig) -> TrainingData:
    """Reads a file or folder and sets calibration reals aside, near-duplicates kept together.

    Raises:
        DataError: unreadable data, a class with too few images.
    """
    real = load_images(path, "train")
    classes = int(real.labels.max()) + 1
    require_every_class(real.labels, classes, str(path))
    real = LabelledImages(images=real.images, labels=real.labels, groups=near_duplicate_groups(real.images, config.twin_correlation))
    seen, aside = split_by_group(real, config.calibration_parts, config.seed)
    has_validation = "val" in available_splits(path)
    validation = load_images(path, "val") if has_validation else real[aside]
    split = {
        "data": path.name,
        "data_sha256": sha256_of(path) if path.is_file() else sha256_of(real.images.tobytes() + real.labels.tobytes()),
        "twin_correlation": config.twin_correlation,
        "seed": config.seed,
        "generator_train": seen.tolist(),
        "calibration": aside.tolist(),
        "validation": "val" if has_validation else "calibration",
        "classes": classes,
    }
    return TrainingData(seen=real[seen], calibration=real[aside], validation=validation, split=split, classes=classes)


@dataclass
class _State:
    unet: UNet2DModel
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    best_step: int = 0
    history: list[list[float]] = field(default_factory=list)

    def best_loss(self) -> float:
        return min((row[2] for row in self.history), default=float("inf"))


def train(data: TrainingData, out: Path, config: TrainConfig) -> Iterator[Progress]:
    """Trains until `config.steps`, yielding at each look at the validation bank; takes up what `out` holds.

    Writes `unet/` (averaged weights with the lowest validation loss so far) and `scheduler/` in diffusers' layout,
    `split.json`, `training.json` (settings and losses) and a checkpoint to resume from.

    Raises:
        RecipeError: `out` holds another training.
        StorageError: the disk refuses; the last checkpoint is intact.
    """
    make_folder(out)
    settings = {"config": asdict(config) | {"channels": list(config.channels), "steps": None}, "split": data.split}
    scheduler = build_scheduler()
    state = _restore(_new_state(data, config), out, settings)
    if state.step == 0:
        write_json(out / "split.json", data.split)
        scheduler.save_pretrained(out / "scheduler")
    bank = validation_bank(data.validation, scheduler, draws=config.validation_draws, seed=config.seed)
    images, labels = to_model_range(torch.from_numpy(data.seen.images)), torch.from_numpy(data.seen.labels)
    losses: list[float] = []
    while state.step < config.steps:
        losses.append(_step(state, images, labels, scheduler, data.classes, config))
        if state.step % config.check_every and state.step != config.steps:
            continue
        loss = bank_loss(state.average.module, bank)
        if loss < state.best_loss():
            state.best_step = state.step
            save_unet(state.average.module, out / "unet")
        state.history.append([state.step, float(np.mean(losses)), loss])
        losses.clear()
        _keep(state, out, settings)
        if config.snapshot_every and state.step % config.snapshot_every == 0:
            save_unet(state.average.module, out / "snapshots" / f"{state.step:06d}")
        yield Progress(state.step, state.history[-1][1], loss, state.best_step)


def save_unet(unet: UNet2DModel, folder: Path) -> None:
    """Writes configuration and fp16 weights as diffusers' `from_pretrained` reads them."""
    make_folder(folder)
    unet.save_config(folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    part = folder / ".weights.part"
    save_file({name: value.half().contiguous() for name, value in unet.state_dict().items()}, part, metadata={"format": "pt"})
    write_atomic(weights, part.read_bytes())
    part.unlink()


def _new_state(data: TrainingData, config: TrainConfig) -> _State:
    channels, *size = data.seen.images.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        unet = build_unet(config, image_channels=channels, size=tuple(size), classes=data.classes)
    unet = unet.to(memory_format=torch.channels_last)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))  # type: ignore[no-untyped-call]
    return _State(unet, average, torch.optim.Adam(unet.parameters(), lr=config.learning_rate))


def _step(state: _State, images: torch.Tensor, labels: torch.Tensor, scheduler: DDPMScheduler, null: int, config: TrainConfig) -> float:
    generator = generator_for(config.seed, 2, state.step)
    batch = draw_batch(
        images, labels, scheduler, size=config.batch_size, null=null, label_dropout=config.label_dropout, mirror=config.mirror, generator=generator
    )
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, (state.step + 1) / max(1, config.warmup))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())  # dropout draws from the global state, restored on leaving
        loss = batch.loss(state.unet).mean()
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.unet.parameters(), 1.0)
    state.optimizer.step()
    state.average.update_parameters(state.unet)
    state.step += 1
    return float(loss.detach())


def _keep(state: _State, out: Path, settings: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    content = {
        "unet": state.unet.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "best_step": state.best_step,
        "history": state.history,
        "settings": settings,
    }
    torch.save(content, buffer)
    write_atomic(out / CHECKPOINT, buffer.getvalue())
    losses = [dict(zip(("step", "train_loss", "validation_loss"), row, strict=True)) for row in state.history]
    write_json(out / "training.json", settings["config"] | {"steps": state.step, "best_step": state.best_step, "losses": losses})


def _restore(state: _State, out: Path, settings: dict[str, Any]) -> _State:
    path = out / CHECKPOINT
    if not path.exists():
        return state
    content = torch.load(path, weights_only=True)
    if content["settings"] != settings:
        raise RecipeError(f"{out}: holds a training with other data or settings; use another --out, or delete {path.name} to begin again")
    state.unet.load_state_dict(content["unet"])
    state.average.load_state_dict(content["average"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.step, state.best_step, state.history = content["step"], content["best_step"], content["history"]
    return state
