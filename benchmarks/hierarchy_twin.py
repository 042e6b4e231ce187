"""What the twins on hierarchical data are: settings, rows, a network, a training whose every step follows from its seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from monai_diverse.audit.hierarchy import ExactDenoiser, Grammar, NoisyLeaves, published_schedule, split_loss
from monai_diverse.training.objective import generator_for

SCHEDULE = published_schedule()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run.

    Attributes:
        depth: of the tree; published 4.
        per_twin: training rows of each twin.
        test: rows that neither twin sees.
        steps: of the training.
        first: step of the first checkpoint.
        checkpoints: how many, their steps evenly spaced in the logarithm.
        batch: rows a step.
        learning_rate: of Adam, constant.
        average: decay of the averaged weights.
        width: of the network.
        blocks: of the network.
        draws: noises of each row in the bank on which losses are taken.
        samples: drawn from each twin, from shared noises.
        sampling_steps: of a sample.
        turn: noise index at which U-turns turn.
        turns: U-turns each from training and test rows, for each twin.
        seed: of everything.
    """

    depth: int = 4
    per_twin: int = 2000
    test: int = 4000
    steps: int = 5000
    first: int = 50
    checkpoints: int = 17
    batch: int = 256
    learning_rate: float = 5e-4
    average: float = 0.99
    width: int = 384
    blocks: int = 4
    draws: int = 2
    samples: int = 768
    sampling_steps: int = 100
    turn: int = 80
    turns: int = 128
    seed: int = 0

    def steps_to_measure(self) -> list[int]:
        """Of the checkpoints."""
        return sorted({round(step) for step in np.geomspace(self.first, self.steps, self.checkpoints)})


def noise_indices(count: int, generator: torch.Generator) -> Tensor:
    """Half of them in the lowest quarter of the schedule: above it little is to be told. Trainings and banks draw alike."""
    return (len(SCHEDULE) * torch.rand(count, generator=generator).square()).long()


class Network(nn.Module):
    """Residual perceptron; adds what the noisy leaf itself says of its symbol to the logits, so that it need only learn what the others say."""

    frequencies: Tensor

    def __init__(self, leaves: int, alphabet: int, width: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(-1, 2, 8)), persistent=False)
        self.first = nn.Linear(2 * leaves * alphabet, width)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, leaves * alphabet))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """Noisy leaves (n, leaves, q) and noise indices (n,) -> logits (n, leaves, q)."""
        abar = SCHEDULE.at(index)[:, None]
        angles = ((1 - abar) / abar).log() / 2 * self.frequencies
        evidence = x * (abar.sqrt() / (1 - abar))[..., None]
        hidden = self.first(torch.cat([x, evidence.softmax(-1) * x.shape[-1] - 1], -1).flatten(1))
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        for block in self.blocks:
            hidden = hidden + block(hidden + time)
        logits: Tensor = self.last(hidden).reshape(x.shape) + evidence
        return logits


@dataclass(frozen=True, eq=False)
class Bank:
    """Noisy leaves, each row under several noises, with what is exactly known of them."""

    noisy: NoisyLeaves
    grammar: Grammar
    draws: int

    @classmethod
    def draw(cls, grammar: Grammar, rows: Tensor, draws: int, *seeds: int) -> Bank:
        """Each row under `draws` noises."""
        generator, leaves = generator_for(*seeds), rows.repeat(draws, 1)
        return cls(NoisyLeaves.draw(grammar, SCHEDULE, leaves, noise_indices(len(leaves), generator), generator), grammar, draws)

    @cached_property
    def by_level(self) -> list[Tensor]:
        """What the denoisers of each level say, (n, leaves, q); the last is exact."""
        return [self.noisy.predict(ExactDenoiser(grammar=self.grammar, level=k)) for k in range(self.grammar.depth + 1)]

    def by_row(self, values: Tensor) -> Tensor:
        """(draws x rows, ...) -> (rows, draws, ...): rows are independent, noises of one row are not."""
        return values.reshape(self.draws, -1, *values.shape[1:]).transpose(0, 1)

    def split_of(self, predicted: Tensor) -> dict[str, Tensor]:
        """Losses (rows,), averaged over the noises of a row.

        What the exact posterior itself would 'memorise' of these very noises, zero on average, is taken off the memorised part: its own fluctuation
        goes with it.
        """
        exact = self.by_level[-1]
        split, own = split_loss(predicted, exact, self.noisy.leaves), split_loss(exact, exact, self.noisy.leaves)
        found = {"loss": split.total, "learned": split.learned, "memorised": split.memorised - own.memorised}
        return {name: self.by_row(values).mean(1) for name, values in found.items()}


class Data:
    """Rows of both twins and test rows, all drawn independently; banks of each."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.grammar = settings, Grammar(depth=settings.depth, seed=settings.seed)
        rows = self.grammar.sample(2 * settings.per_twin + settings.test, settings.seed)  # independent draws: a likely row may come twice
        first, second, self.test = torch.tensor_split(rows, (settings.per_twin, 2 * settings.per_twin))
        self.halves = (first, second)
        self.test_bank = Bank.draw(self.grammar, self.test, settings.draws, settings.seed, 1)
        self.train_banks = [Bank.draw(self.grammar, half, settings.draws, settings.seed, 2, number) for number, half in enumerate(self.halves)]


class Twin:
    """One network on its own rows; which rows and noises a step draws follows from seed, twin and step alone."""

    def __init__(self, settings: Settings, data: Data, number: int) -> None:
        self.settings, self.grammar, self.number = settings, data.grammar, number
        self.own, self.other = data.halves[number], data.halves[1 - number]
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator_for(settings.seed, 10, number))))
            self.network = Network(self.grammar.leaves, self.grammar.alphabet, settings.width, settings.blocks)
        self.average = AveragedModel(self.network, multi_avg_fn=self._averaged)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)

    @torch.no_grad()
    def _averaged(self, averages: tuple[Tensor, ...] | list[Tensor], current: tuple[Tensor, ...] | list[Tensor], count: Tensor | int) -> None:
        weight = 1 - min(self.settings.average, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(averages, current, weight)

    def train_step(self, step: int) -> None:
        """One step of Adam on the cross-entropy of clean leaves."""
        generator = generator_for(self.settings.seed, 11, self.number, step)
        leaves = self.own[torch.randint(len(self.own), (self.settings.batch,), generator=generator)]
        batch = NoisyLeaves.draw(self.grammar, SCHEDULE, leaves, noise_indices(len(leaves), generator), generator)
        loss = nn.functional.cross_entropy(self.network(batch.noisy, batch.index).flatten(0, 1), leaves.flatten())
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.average.update_parameters(self.network)

    def denoise(self, x: Tensor, index: Tensor) -> Tensor:
        """Probabilities (n, leaves, q), by the averaged weights."""
        probabilities: Tensor = self.average(x, index).softmax(-1)
        return probabilities

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"network": self.network.state_dict(), "average": self.average.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        for name in ("network", "average", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
