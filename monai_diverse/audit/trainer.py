"""How one twin is trained: any procedure that keeps its weights on the way, and the package's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from monai_diverse.data import LabelledImages
from monai_diverse.information.cells import evenly_spaced
from monai_diverse.sources import DiffusersSource
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.training import TrainConfig, TrainingData, train

VALIDATED = 256
"""Test images that a twin's own record of its progress is of."""


class TwinTrainer(ABC):
    """Trains one model of a pair. Instances are pickled to other processes."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """All that decides the weights beside data and seed, as JSON: with it a training is recognised when it is taken up again."""

    @abstractmethod
    def train(self, data: LabelledImages, test: LabelledImages, *, seed: int, checkpoints: Sequence[int], out: Path) -> Iterator[int]:
        """Trains to the last checkpoint, keeping averaged weights at each, and takes up what `out` holds.

        Args:
            data: what this twin sees.
            test: unseen by both twins; for the trainer's own records only, since both twins must stop alike.
            seed: of initial weights, batches and noise; another for each twin.
            checkpoints: optimiser steps, rising.
            out: folder of this twin alone.

        Yields:
            Steps done.
        """

    @abstractmethod
    def load(self, out: Path, step: int) -> DiffusionSource:
        """The model of one checkpoint."""


@dataclass(frozen=True, kw_only=True)
class UNetTrainer(TwinTrainer):
    """Trains with `monai_diverse.training.train`, the procedure behind `monai-diverse train`.

    Attributes:
        config: its settings; `steps`, `snapshots` and `seed` are set by the audit.
        sampling_steps: of the sampler, for each image that is compared.
    """

    config: TrainConfig = field(default_factory=TrainConfig)
    sampling_steps: int = 20

    def describe(self) -> dict[str, Any]:
        """The training's settings without those that the audit sets."""
        settings = asdict(self.config) | {"channels": list(self.config.channels), "trainer": "UNetTrainer", "sampling_steps": self.sampling_steps}
        return {name: value for name, value in settings.items() if name not in ("steps", "snapshots", "seed", "device")}

    def train(self, data: LabelledImages, test: LabelledImages, *, seed: int, checkpoints: Sequence[int], out: Path) -> Iterator[int]:
        """See `TwinTrainer`; raises what `training.train` raises."""
        config = replace(self.config, steps=checkpoints[-1], snapshots=tuple(checkpoints), seed=seed)
        split = {"data_sha256": data.sha256(), "images": len(data)}
        looked_at = test[evenly_spaced(len(test), VALIDATED)]  # for the records only, so that few do
        whole = TrainingData(seen=data, calibration=looked_at, validation=looked_at, split=split, classes=len(data.class_counts))
        for progress in train(whole, out, config):
            yield progress.step

    def load(self, out: Path, step: int) -> DiffusersSource:
        """The averaged weights of one checkpoint."""
        return DiffusersSource(out / "snapshots" / f"{step:06d}", steps=self.sampling_steps, device=self.config.device)
