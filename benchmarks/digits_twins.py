"""A small diffusion model of scikit-learn's digits, for twins that train in a minute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monai_diverse.audit import TwinTrainer
from monai_diverse.data import LabelledImages
from monai_diverse.sampling.schedule import NoiseSchedule
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.storage import make_folder, sha256_of, write_atomic
from monai_diverse.training.config import build_scheduler
from monai_diverse.training.objective import draw_batch, generator_for, to_model_range


def digits() -> LabelledImages:
    """The 1797 digits, 8x8; scikit-learn's copy does not say who wrote which, so every digit counts as its own writer."""
    found = load_digits()
    return LabelledImages(images=(found.images[:, None] / 16).astype(np.float32), labels=found.target.astype(np.int64))


class DigitNetwork(nn.Module):
    """Residual perceptron on 64 pixels and a sinusoidal time; predicts the velocity."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, -6, 32)), persistent=False)
        self.first = nn.Linear(64 + 64, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks)
        )
        self.last = nn.Linear(width, 64)

    def forward(self, x: Tensor, timesteps: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        """(n, 1, 8, 8) noisy, (n,) timesteps -> (n, 1, 8, 8)."""
        angles = timesteps[:, None] * self.frequencies
        hidden = self.first(torch.cat([x.flatten(1), angles.sin(), angles.cos()], 1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        out: Tensor = self.last(nn.functional.silu(hidden))
        return out.reshape(x.shape)


@dataclass(frozen=True, kw_only=True)
class DigitsTrainer(TwinTrainer):
    """Adam at a constant rate, with averaged weights; a training that was interrupted begins again, since it takes less than a minute.

    Attributes:
        width: of the network.
        blocks: of the network.
        batch_size: images a step.
        learning_rate: Adam's.
        ema_decay: of the averaged weights.
        sampling_steps: of DDIM.
    """

    width: int = 256
    blocks: int = 3
    batch_size: int = 128
    learning_rate: float = 5e-4
    ema_decay: float = 0.995
    sampling_steps: int = 50

    def describe(self) -> dict[str, Any]:
        """All settings."""
        return {"trainer": "DigitsTrainer", **asdict(self)}

    def train(self, data: LabelledImages, test: LabelledImages, *, seed: int, checkpoints: Sequence[int], out: Path) -> Iterator[int]:
        """See `TwinTrainer`."""
        if self._file(out, checkpoints[-1]).exists():
            yield checkpoints[-1]
            return
        network, average = self._networks(seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        scheduler, images = build_scheduler(), to_model_range(torch.from_numpy(data.images))
        labels, generator = torch.zeros(len(data), dtype=torch.int64), generator_for(seed, 1)
        for step in range(1, checkpoints[-1] + 1):
            batch = draw_batch(images, labels, scheduler, size=self.batch_size, null=0, label_dropout=0, mirror=False, generator=generator)
            loss = (network(batch.noisy, batch.timesteps, {}) - batch.target).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            average.update_parameters(network)
            if step in checkpoints:
                make_folder(out)
                write_atomic(self._file(out, step), safetensors.torch.save(average.module.state_dict()))
            yield step

    def load(self, out: Path, step: int) -> DiffusionSource:
        """See `TwinTrainer`."""
        network = DigitNetwork(self.width, self.blocks)
        content = self._file(out, step).read_bytes()
        network.load_state_dict(safetensors.torch.load(content))
        return DiffusionSource(
            network,
            NoiseSchedule.from_diffusers(build_scheduler()),
            shape=(1, 8, 8),
            prediction_type="v_prediction",
            scheduler="DDIMScheduler",
            steps=self.sampling_steps,
            batch_size=512,
            name="digits",
            identity=[sha256_of(content)],
        )

    def _networks(self, seed: int) -> tuple[DigitNetwork, AveragedModel]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = DigitNetwork(self.width, self.blocks)
        return network, AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(self.ema_decay))

    def _file(self, out: Path, step: int) -> Path:
        return out / f"{step:06d}.safetensors"
