"""Trains the model: a generator of progress that can be stopped and taken up again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from monai_diverse.errors import RecipeError
from monai_diverse.storage import make_folder, write_atomic, write_json
from monai_diverse.training.card import ModelCard, write_model_json
from monai_diverse.training.checkpoint import TrainingState, identity_of, keep, save_unet, take_up
from monai_diverse.training.config import TrainConfig, build_scheduler
from monai_diverse.training.objective import Batch, draw_batch, generator_for, to_model_range, validation_bank
from monai_diverse.training.split import TrainingData
from monai_diverse.training.team import Team


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: optimiser steps done.
        train_loss: mean since the last look at the validation bank.
        validation_loss: of the averaged weights at the last look; None before the first.
        best_step: step with the lowest validation loss, whose weights are kept; 0 before the first look.
    """

    step: int
    train_loss: float
    validation_loss: float | None
    best_step: int


def train(data: TrainingData, out: Path, config: TrainConfig, card: ModelCard | None = None) -> Iterator[Progress]:
    """Trains until `config.steps`, yielding after each; takes up what `out` holds.

    Every `config.check_every` steps it looks at the validation bank and keeps a checkpoint. Called in several processes that `accelerate launch` or
    `torchrun` started, these train together; the first writes.

    Writes `unet/` (averaged weights with the lowest validation loss so far) and `scheduler/` in diffusers' layout, `model.json`,
    `split.json`, `training.json` (settings and losses) and a checkpoint to resume from. Each folder in `snapshots/` is such a model too.

    Args:
        data: what to train on; see `prepare`.
        out: folder.
        config: settings.
        card: what the model says of itself; None: its folder's name.

    Raises:
        RecipeError: `out` holds another training or more steps, or the loss became infinite.
        DataError: a checkpoint in `out` that cannot be read, or images that the network cannot take.
        StorageError: the disk refuses; the last checkpoint is intact.
    """
    team = Team.here(config.device, config.batch_size)
    config = replace(config, device=team.device)
    state = TrainingState.new(data, config)
    make_folder(out)
    identity, scheduler = identity_of(data, config), build_scheduler()
    take_up(state, out, identity)
    if state.step > config.steps:
        raise RecipeError(f"steps: expected at least {state.step}, which {out} holds already, got {config.steps}; use another folder")
    network = team.shared(state.unet)
    card = card or ModelCard(name=out.name, classes=data.classes, class_names=data.class_names)
    card = replace(card, mirror=config.mirror, patch=config.patch)
    if team.first:
        write_json(out / "split.json", data.split)
        _describe(out, card, scheduler)
    bank = validation_bank(data.validation, scheduler, draws=config.validation_draws, seed=config.seed, patch=config.patch)
    images, labels = to_model_range(torch.from_numpy(data.seen.images)), torch.from_numpy(data.seen.labels)
    losses: list[float] = []
    while state.step < config.steps:
        losses.append(_step(state, network, team, _batch(state, images, labels, scheduler, data.classes, config), config))
        mean = float(np.mean(losses))
        due = state.step % config.check_every == 0 or state.step == config.steps
        if due:
            _check(state, mean, bank, out, team)
        if state.step in config.snapshots and team.first:  # before the checkpoint: what is resumed from there never comes by this step again
            kept = out / "snapshots" / f"{state.step:06d}"
            save_unet(state.average.module, kept / "unet")
            _describe(kept, card, scheduler)
        if due:
            if team.first:
                keep(state, out, identity)
            team.wait()
            losses.clear()
        yield Progress(state.step, mean, state.history[-1][2] if state.history else None, state.best_step)


def _describe(folder: Path, card: ModelCard, scheduler: DDPMScheduler) -> None:
    write_model_json(folder, card)
    write_atomic(make_folder(folder / "scheduler") / "scheduler_config.json", scheduler.to_json_string().encode())


def _check(state: TrainingState, train_loss: float, bank: list[Batch], out: Path, team: Team) -> None:
    loss = team.bank_loss(state.average.module, bank)
    if not math.isfinite(loss) or not math.isfinite(train_loss):
        raise RecipeError(f"training: the loss became {loss} at step {state.step}; lower the learning rate; {out} keeps the last good checkpoint")
    if loss < state.best_loss():
        state.best_step = state.step
        if team.first:
            save_unet(state.average.module, out / "unet")
    state.history.append([state.step, train_loss, loss])


def _batch(state: TrainingState, images: Tensor, labels: Tensor, scheduler: DDPMScheduler, null: int, config: TrainConfig) -> Batch:
    return draw_batch(
        images,
        labels,
        scheduler,
        size=config.batch_size,
        null=null,
        label_dropout=config.label_dropout,
        mirror=config.mirror,
        generator=generator_for(config.seed, 2, state.step),
        patch=config.patch,
    )


def _step(state: TrainingState, network: nn.Module, team: Team, batch: Batch, config: TrainConfig) -> float:
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate * min(1.0, (state.step + 1) / max(1, config.warmup))
    own = team.part_of(batch).to(config.device)
    device = torch.device(config.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # dropout draws from the device's global state, restored on leaving
        seed = generator_for(config.seed, 2, state.step).initial_seed() + team.rank
        if device.type == "cuda":
            with torch.cuda.device(device):  # else that of the first GPU would be seeded
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        loss = team.mean_loss(own.loss(network), len(batch))
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.unet.parameters(), 1.0)
    state.optimizer.step()
    state.average.update_parameters(state.unet)
    state.step += 1
    return team.averaged(loss.detach())
