"""What can be chosen in a study: how the classifier is trained, and what each arm adds to its training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.networks.nets import ResNet
from monai.transforms import RandAffined, RandFlipd, RandGaussianNoised, RandScaleIntensityd
from monai.utils import CommonKeys
from torch import nn

from monai_diverse.bank import SampleBank
from monai_diverse.errors import RecipeError
from monai_diverse.transforms import LinearRamp, RandDiverseReplaced
from monai_diverse.transforms.curriculum import Curriculum


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """How the classifier is trained: the same for all arms, so that they differ in their images alone.

    Attributes:
        steps: optimiser steps of every run; a bank replaces images and so never lengthens the training.
        batch_size: images a step; capped by the number of training images.
        learning_rate: the peak of AdamW's one-cycle schedule.
        weight_decay: AdamW's.
        channels: feature maps of the four stages of the ResNet.
        stem_stride: stride of the first convolution; 2 quarters the cost of two-dimensional images.
        class_weighted: weigh the cross-entropy by inverse class frequency of the real training images; not in arms that are `balanced`, where it
            would count the frequencies twice.
        check_every: steps between looks at the validation images, which choose the weights; None: at the end of each epoch.
        seeds: one run an arm for each; a seed decides initial weights, data order, augmentation and replacements.
        device: where torch computes; runs repeat bit for bit on "cpu" with an unchanged number of threads, on processors of one kind.
    """

    # chosen on BreastMNIST's validation images alone
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    channels: tuple[int, ...] = (8, 16, 32, 64)
    stem_stride: int = 1
    class_weighted: bool = True
    check_every: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 2), ("stem_stride", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.check_every is not None and self.check_every < 1:
            raise RecipeError(f"check_every: expected at least 1, or None for each epoch, got {self.check_every}")
        if not self.learning_rate > 0:
            raise RecipeError(f"learning_rate: expected above 0, got {self.learning_rate}")
        if not self.weight_decay >= 0:
            raise RecipeError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        if len(self.channels) != 4 or min(self.channels) < 1:
            raise RecipeError(f"channels: expected four positive numbers, one a stage, got {self.channels}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0 or max(self.seeds) >= 2**63:
            raise RecipeError(f"seeds: expected one or more different numbers from 0 and below 2**63, got {self.seeds}")
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise RecipeError(f"device: expected a torch device such as 'cpu' or 'cuda:0', got {self.device!r}") from error


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to feed the classifier.

    Attributes:
        name: how runs and summaries call it.
        bank: where replacements come from. None or an empty bank: the arm trains as if without one.
        prob: chance that a real item is replaced by a bank sample of its own class, each time it is shown; one for all classes, or one for each.
        augment: flip, turn, zoom, scale intensity and add noise at random, replaced items included.
        balanced: show the real items of every class equally often.
        pretrain: share of the steps, at first, in which every item is replaced; the rest then shows real items alone. 0 for a mixed training. Each
            part has a learning-rate cycle of its own.
        fade: let the chance fall in a straight line, from `prob` in the first step towards 0 in the last.
    """

    name: str
    bank: SampleBank | None = None
    prob: float | Sequence[float] = 0.0
    augment: bool = True
    balanced: bool = False
    pretrain: float = 0.0
    fade: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise RecipeError("name: expected some text that names the arm, got an empty string")
        if isinstance(self.prob, Sequence):
            object.__setattr__(self, "prob", tuple(self.prob))
        if np.size(self.prob) == 0 or not 0 <= np.min(self.prob) <= np.max(self.prob) <= 1:
            raise RecipeError(f"prob: expected a probability in [0, 1], or one for each class, got {self.prob}")
        if not 0 <= self.pretrain < 1:
            raise RecipeError(f"pretrain: expected a share of the steps in [0, 1), got {self.pretrain}; real items must come last")
        if self.pretrain and np.any(self.prob):
            raise RecipeError(f"prob: expected 0 where the bank is for pretraining, got {self.prob}; a training is mixed or pretrained")
        if self.pretrain and self.fade:
            raise RecipeError("fade: expected False where the bank is for pretraining, which has no chance that could fall; leave one of them out")

    @property
    def replaces(self) -> bool:
        """Whether any item of this arm can be replaced."""
        return self.bank is not None and len(self.bank) > 0 and bool(np.any(self.prob) or self.pretrain > 0)

    @property
    def stages(self) -> tuple[tuple[float, float | Sequence[float]], ...]:
        """The parts of the training in turn: (share of the steps, chance that an item is replaced, as `prob`)."""
        if not self.pretrain or not self.replaces:
            return ((1.0, self.prob),)
        return ((self.pretrain, 1.0), (1 - self.pretrain, 0.0))


def control_arms(*, diverse: SampleBank, random: SampleBank, duplicates: SampleBank, prob: float) -> tuple[Arm, ...]:
    """The five arms that tell a bank's content from its side effects.

    'real': training images only. 'standard': with augmentation. The rest adds a bank to 'standard': 'duplicates' repeats
    real images (replacement as such), 'random' unscreened samples of the same generator (synthetic images as such) and
    'diverse' the screened ones. Let the three banks have equal class counts: see `duplicates_bank` and `matched_bank`.
    """
    return (
        Arm(name="real", augment=False),
        Arm(name="standard"),
        Arm(name="duplicates", bank=duplicates, prob=prob),
        Arm(name="random", bank=random, prob=prob),
        Arm(name="diverse", bank=diverse, prob=prob),
    )


def weighted(arm: Arm, config: ClassifierConfig) -> bool:
    """Whether the loss weighs the classes in a training of this arm."""
    return config.class_weighted and not arm.balanced


def replacement(arm: Arm, prob: float | Sequence[float], steps: int) -> list[RandDiverseReplaced]:
    """The transform that draws from the arm's bank with that probability; none if nothing can be replaced.

    Args:
        arm: whose bank.
        prob: the chance, in the first step if it fades; one for all classes, or one for each.
        steps: of this part of the training.
    """
    highest = float(np.max(prob))
    if arm.bank is None or not arm.replaces or not highest:
        return []
    chance = LinearRamp(start=highest, stop=0.0, epochs=steps) if arm.fade else highest
    if isinstance(prob, Sequence):
        return [_RandReplacedByClass(arm.bank, chance, shares=[own / highest for own in prob])]
    return [RandDiverseReplaced(keys=CommonKeys.IMAGE, bank=arm.bank, label_key=CommonKeys.LABEL, label_policy="match", prob=chance)]


class _RandReplacedByClass(RandDiverseReplaced):
    """Replaces items of each class with a share of the probability."""

    def __init__(self, bank: SampleBank, prob: float | Curriculum, *, shares: Sequence[float]) -> None:
        super().__init__(keys=CommonKeys.IMAGE, bank=bank, label_key=CommonKeys.LABEL, label_policy="match", prob=prob)
        self.shares = shares

    def randomize(self, data: Any = None) -> int | None:
        index = super().randomize(data)
        return index if index is not None and self.random_state().random_sample() < self.shares[data[CommonKeys.LABEL]] else None


def augmentation(arm: Arm, spatial_dims: int) -> list[object]:
    """MONAI's usual random transforms, mild enough for small ultrasound images; none if the arm does not augment.

    Turning and zooming are one `RandAffined`, so that a 28-pixel image is interpolated once, not twice.
    """
    if not arm.augment:
        return []
    angles = (0.2,) * (1 if spatial_dims == 2 else 3)
    return [
        RandFlipd(keys=CommonKeys.IMAGE, prob=0.5, spatial_axis=-1),
        RandAffined(keys=CommonKeys.IMAGE, prob=0.75, rotate_range=angles, scale_range=(0.1,) * spatial_dims, padding_mode="border"),
        RandScaleIntensityd(keys=CommonKeys.IMAGE, prob=0.5, factors=0.15),
        RandGaussianNoised(keys=CommonKeys.IMAGE, prob=0.25, std=0.02),
    ]


def build_network(config: ClassifierConfig, *, channels: int, spatial_dims: int, classes: int, seed: int) -> nn.Module:
    """A MONAI ResNet with one basic block a stage, its initial weights decided by `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network: nn.Module = ResNet(
            block="basic",
            layers=[1, 1, 1, 1],
            block_inplanes=list(config.channels),
            spatial_dims=spatial_dims,
            n_input_channels=channels,
            conv1_t_size=3,
            conv1_t_stride=config.stem_stride,
            no_max_pool=True,
            num_classes=classes,
        )
    return network.to(config.device)
