"""Trains and scores the classifier, arm by arm and seed by seed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import CacheDataset, DataLoader, get_track_meta, set_track_meta
from monai.transforms import Compose, EnsureTyped, Randomizable
from monai.utils import CommonKeys
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from torch import Tensor, nn
from torch.utils.data import WeightedRandomSampler

from monai_diverse.data import IntArray, LabelledImages, require_every_class
from monai_diverse.errors import BankMismatchError, DataError, RecipeError
from monai_diverse.study.config import Arm, ClassifierConfig, augmentation, build_network, replacement, weighted
from monai_diverse.study.metrics import metrics_of
from monai_diverse.transforms import set_epoch

_REPLACEMENT_STREAM = 1000

Stage = tuple[int, DataLoader]
"""Steps, and what to train on for so many."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained classifier: one arm, one seed.

    Attributes:
        arm: the arm's name.
        seed: the seed; runs of different arms with one seed start from the same weights and see the same order.
        metrics: of the test images, by `metrics_of`.
        best_epoch: the epoch, from 1, whose weights scored best on the validation images and were tested; where `check_every` is set, the look.
        validation: metrics of the validation images at that epoch.
        probabilities: float64 (n, K), predicted for the test images.
        seconds: wall-clock time.
    """

    arm: str
    seed: int
    metrics: dict[str, float]
    best_epoch: int
    validation: dict[str, float]
    probabilities: npt.NDArray[np.float64]
    seconds: float


def run_study(
    arms: Sequence[Arm], train: LabelledImages, validation: LabelledImages, test: LabelledImages, config: ClassifierConfig
) -> Iterator[Run]:
    """Trains every arm on every seed and yields each run as it ends, seed by seed.

    The weights with the best validation AUC (on a tie: balanced accuracy, then the earliest) are kept; the test images
    are scored once, with them. With one seed, arms start from the same weights, see the images in the same order and
    draw the same augmentation, so that differences can be paired over seeds. Global random state is left as it was.

    Args:
        arms: what to compare; names must differ.
        train: real images to train on.
        validation: real images that choose the epoch.
        test: real images to score, of no other use.
        config: how to train.

    Raises:
        RecipeError: no arm, or two of one name.
        DataError: classes missing from a split, or splits of different image shapes.
        BankMismatchError: a bank of another image shape, or with classes that the training images lack.
    """
    _check(arms, train, validation, test)
    return _runs(arms, train, validation, test, config)


def restrict(runs: Sequence[Run], test: LabelledImages, keep: IntArray | npt.NDArray[np.bool_]) -> list[Run]:
    """The same runs scored on some of the test images, for instance those without a twin in training.

    Args:
        runs: of `run_study` with `test`.
        test: all images that the runs were scored on.
        keep: indices, or one truth value an image.

    Raises:
        DataError: `test` is not what was scored, or a class is left without an image.
    """
    for run in runs:
        if len(run.probabilities) != len(test):
            raise DataError(f"test: expected the {len(run.probabilities)} images that the runs were scored on, got {len(test)}")
    return [replace(run, metrics=metrics_of(run.probabilities[keep], test.labels[keep]), probabilities=run.probabilities[keep]) for run in runs]


def _runs(arms: Sequence[Arm], train: LabelledImages, validation: LabelledImages, test: LabelledImages, config: ClassifierConfig) -> Iterator[Run]:
    for seed in config.seeds:
        for arm in arms:
            yield _run(arm, seed, train, validation, test, config)


def _run(arm: Arm, seed: int, train: LabelledImages, validation: LabelledImages, test: LabelledImages, config: ClassifierConfig) -> Run:
    started = time.perf_counter()
    classes = len(train.class_counts)
    network = build_network(config, channels=train.images.shape[1], spatial_dims=train.images.ndim - 2, classes=classes, seed=seed)
    with _without_metadata():
        stages = _stages(arm, seed, train, config)
        weights = _class_weights(train, config) if weighted(arm, config) else None
        best_epoch, scores = _fit(network, stages, weights, validation, config)
    probabilities = _predict(network, test, config)
    return Run(
        arm=arm.name,
        seed=seed,
        metrics=metrics_of(probabilities, test.labels),
        best_epoch=best_epoch,
        validation=scores,
        probabilities=probabilities,
        seconds=time.perf_counter() - started,
    )


def _fit(
    network: nn.Module, stages: Sequence[Stage], weights: Tensor | None, validation: LabelledImages, config: ClassifierConfig
) -> tuple[int, dict[str, float]]:
    """Trains, leaves the best epoch's weights in the network, and returns that epoch with its validation metrics."""
    best_key, best_epoch, best_scores = (-math.inf, -math.inf), 0, {}
    best_state: dict[str, Tensor] = {}
    for epoch in _looks(network, stages, weights, config):
        scores = metrics_of(_predict(network, validation, config), validation.labels)
        key = (scores["auc"], scores["balanced_accuracy"])
        if key > best_key:
            best_key, best_epoch, best_scores = key, epoch, scores
            best_state = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best_state)
    return best_epoch, best_scores


def _check(arms: Sequence[Arm], train: LabelledImages, validation: LabelledImages, test: LabelledImages) -> None:
    names = [arm.name for arm in arms]
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"arms: expected one or more with different names, got {names}")
    classes = len(train.class_counts)
    if classes < 2:
        raise DataError(f"train: expected images of two or more classes to tell apart, got {classes}")
    shape = train.images.shape[1:]
    for what, data in (("train", train), ("validation", validation), ("test", test)):
        require_every_class(data.labels, classes, what)
        if len(data.class_counts) > classes:
            raise DataError(f"{what}: expected classes 0..{classes - 1}, those of the training images, got {data.labels.max()}")
        if data.images.shape[1:] != shape:
            raise DataError(f"{what}: expected images of shape {shape} as in training, got {data.images.shape[1:]}; resize them first")
    for arm in arms:
        if isinstance(arm.prob, Sequence) and len(arm.prob) != classes:
            raise RecipeError(f"arm {arm.name!r}: expected one prob, or {classes}, one a class, got {arm.prob}")
        if arm.bank is None or len(arm.bank) == 0:
            continue
        if tuple(arm.bank.header.shape) != shape:
            raise BankMismatchError(f"arm {arm.name!r}: expected a bank of images {shape} as in training, got {tuple(arm.bank.header.shape)}")
        highest = max(label for label, count in enumerate(arm.bank.class_counts) if count)
        if highest >= classes:
            raise BankMismatchError(f"arm {arm.name!r}: expected a bank of classes 0..{classes - 1} as in training, got {highest}")


def _stages(arm: Arm, seed: int, train: LabelledImages, config: ClassifierConfig) -> list[Stage]:
    """The parts of a training, each with its number of steps; together `config.steps`."""
    ends = np.round(np.cumsum([share for share, _ in arm.stages]) * config.steps).astype(int).tolist()
    probs = [prob for _, prob in arm.stages]
    lengths = [end - start for start, end in itertools.pairwise([0, *ends])]
    return [(steps, _loader(arm, prob, steps, seed, train, config)) for steps, prob in zip(lengths, probs, strict=True)]


def _loader(arm: Arm, prob: float | Sequence[float], steps: int, seed: int, train: LabelledImages, config: ClassifierConfig) -> DataLoader:
    items = [{CommonKeys.IMAGE: image, CommonKeys.LABEL: int(label)} for image, label in zip(train.images, train.labels, strict=True)]
    batch_size = min(config.batch_size, len(items))
    replaced, augmented = replacement(arm, prob, steps), augmentation(arm, train.images.ndim - 2)
    transform = Compose([EnsureTyped(keys=CommonKeys.IMAGE, track_meta=False), *replaced, *augmented])
    generator = torch.Generator().manual_seed(seed)
    balanced = WeightedRandomSampler(_rarity(train), len(items), generator=generator) if arm.balanced else None
    loader = DataLoader(
        CacheDataset(items, transform, progress=False),
        batch_size=batch_size,
        shuffle=not arm.balanced,
        sampler=balanced,
        drop_last=True,
        num_workers=0,
        generator=generator,
    )
    # Compose hands out seeds by position, so an arm with one more transform would augment differently: seed each by its role.
    # After the loader, which seeds the transforms too.
    for stream, step in [(_REPLACEMENT_STREAM, step) for step in replaced] + list(enumerate(augmented)):
        if isinstance(step, Randomizable):
            step.set_random_state(seed=int(np.random.SeedSequence([seed, stream]).generate_state(1)[0]))
    return loader


def _rarity(train: LabelledImages) -> list[float]:
    """A weight an image (n,) with which all classes are drawn equally often."""
    return [float(weight) for weight in compute_sample_weight("balanced", train.labels)]


def _class_weights(train: LabelledImages, config: ClassifierConfig) -> Tensor:
    weights = compute_class_weight("balanced", classes=np.arange(len(train.class_counts)), y=train.labels)
    return torch.as_tensor(weights, dtype=torch.float32, device=config.device)


@contextmanager
def _without_metadata() -> Iterator[None]:
    """Lets MONAI's transforms work on plain tensors: a third of the time, and the classifier reads no metadata."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def _looks(network: nn.Module, stages: Sequence[Stage], weights: Tensor | None, config: ClassifierConfig) -> Iterator[int]:
    """Trains stage by stage and yields the number of each look at the validation images, from 1; each stage ends with one."""
    done = 0
    for steps, loader in stages:
        look = 0
        for look in _stage(network, steps, loader, weights, config):
            yield done + look
        done += look


def _stage(network: nn.Module, steps: int, loader: DataLoader, weights: Tensor | None, config: ClassifierConfig) -> Iterator[int]:
    every = config.check_every or len(loader)
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=config.learning_rate, total_steps=steps)
    objective = nn.CrossEntropyLoss(weight=weights)
    for step, batch in enumerate(itertools.islice(_batches(loader), steps), start=1):
        network.train()
        optimiser.zero_grad()
        objective(network(batch[CommonKeys.IMAGE].to(config.device)), batch[CommonKeys.LABEL].to(config.device)).backward()
        optimiser.step()
        schedule.step()
        if step % every == 0 or step == steps:
            yield math.ceil(step / every)


def _batches(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Those of one epoch after another, without end; what changes with the training changes with each."""
    step = 0
    while True:
        batches = iter(loader)
        set_epoch(loader.dataset.transform, step)
        while (batch := next(batches, None)) is not None:  # to its end, where torch's sampler draws once more: the next epoch's order depends on it
            step += 1
            yield batch
            set_epoch(loader.dataset.transform, step)


@torch.no_grad()
def _predict(network: nn.Module, data: LabelledImages, config: ClassifierConfig) -> npt.NDArray[np.float64]:
    network.eval()
    parts = torch.split(torch.from_numpy(data.images), max(config.batch_size, 64))
    logits = torch.cat([network(part.to(config.device)).cpu() for part in parts])
    return np.asarray(logits.double().softmax(dim=1).numpy(), dtype=np.float64)
