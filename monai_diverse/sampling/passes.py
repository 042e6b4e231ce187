"""From seeds to finished states: which pass each image takes, and how many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diverse.sampling.guides import Choice, Guide, Start
from monai_diverse.sampling.loop import State, first_step, noise_levels, sample_states
from monai_diverse.sampling.schedule import NoiseSchedule
from monai_diverse.sampling.schedulers import Scheduler

Conditional = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(variance-preserving noisy x, index (n,), labels (n,)) -> predicted clean x0, shaped as x."""


POLISHING = 2**20
"""Stream of the noise that polishing adds; candidates have the streams from 0 on."""
CONTINUED = POLISHING + 1
"""Stream of the noise added on the way after a choice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Passes:
    """What every pass of a model shares.

    Attributes:
        denoise: predicts clean images.
        scheduler: makes a fresh diffusers scheduler, one a pass; given a noise-to-signal ratio, one that starts there, if it can.
        schedule: the noise that the network was trained on.
        shape: (c, *spatial) in the model's space.
        steps: inference steps of a whole pass.
        device: where to compute.
        seeded: makes the denoiser of one pass, in place of `denoise`, from its images' seeds and its stream of noise, where what the network
            is told is noised too.
    """

    denoise: Conditional
    scheduler: Callable[[float | None], Scheduler]
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    steps: int
    device: str
    seeded: Callable[[Sequence[int], int], Conditional] | None = None

    def draw(self, labels: Tensor, seeds: Sequence[int], guide: Guide | None = None) -> Tensor:
        """Finished states (n, c, *spatial) in the model's space.

        Images whose guide starts them elsewhere take their own pass; the others choose among candidates first, if the guide says so; then all
        are polished, if it says so.

        Args:
            labels: (n,) classes, on the device.
            seeds: (n,) one an image.
            guide: what changes the draw.
        """
        if guide is None:
            return self.run(labels, seeds)
        found = guide.start(labels, seeds)
        elsewhere = torch.zeros(len(seeds), dtype=torch.bool) if found is None else found[0].cpu()
        x = torch.empty((len(seeds), *self.shape), device=self.device)
        for mask, start in ((~elsewhere, None), (elsewhere, found[1] if found else None)):
            if mask.any():
                own, rows = [seeds[i] for i in mask.nonzero().flatten().tolist()], mask.to(self.device)
                stream = 0
                if start is None and guide.choice is not None:
                    start, stream = self._chosen(labels[rows], own, guide, guide.choice), CONTINUED
                x[rows] = self.run(labels[rows], own, guide, start, stream)
        return self.run(labels, seeds, guide, Start(images=x, sigma=guide.polish), POLISHING) if guide.polish else x

    def costs(self, labels: Tensor, seeds: Sequence[int], guide: Guide | None, evaluations: Callable[[Tensor], int]) -> list[int]:
        """Network evaluations that `draw` will take for each image.

        Args:
            labels: (n,) classes.
            seeds: (n,) one an image.
            guide: what changes the draw.
            evaluations: of one image at an index of the schedule.
        """
        found, choice = (None, None) if guide is None else (guide.start(labels, seeds), guide.choice)
        whole = self._cost(None, evaluations)
        if choice is not None:
            whole += (choice.candidates - 1) * (whole - self._cost(Start(images=labels, sigma=self._compared_at(choice), noised=True), evaluations))
        polish = self._cost(Start(images=labels, sigma=guide.polish), evaluations) if guide is not None and guide.polish else 0
        elsewhere = [False] * len(seeds) if found is None else found[0].tolist()
        short = self._cost(found[1], evaluations) if found else 0
        return [polish + (short if branches else whole) for branches in elsewhere]

    def run(self, labels: Tensor, seeds: Sequence[int], guide: Guide | None = None, start: Start | None = None, stream: int = 0) -> Tensor:
        """One pass for all."""
        x = torch.empty(0)
        for state in self._states(labels, seeds, guide, start, stream):
            x = state.x
        return x

    def _chosen(self, labels: Tensor, seeds: Sequence[int], guide: Guide, choice: Choice) -> Start:
        """The best candidate of each seed, half drawn."""
        best, scores, sigma, until = torch.empty(0), torch.empty(0), 0.0, self._compared_at(choice)
        for candidate in range(choice.candidates):
            states = self._states(labels, seeds, guide, None, candidate)
            state = next(states)
            while state.next_sigma > until or not state.whole:
                state = next(states)
            sigma, found = state.next_sigma, choice.score(state.x0, labels)
            better = found > scores if candidate else torch.ones_like(found, dtype=torch.bool)
            scores = torch.where(better, found, scores) if candidate else found
            best = torch.where(better.reshape(-1, *[1] * (state.x.ndim - 1)), state.x, best) if candidate else state.x
        return Start(images=best, sigma=sigma, noised=True)

    def _compared_at(self, choice: Choice) -> float:
        """The choice's noise-to-signal ratio, or that after the first step where it is above: there is no preview before."""
        levels = [sigma for _, sigma in noise_levels(self.scheduler(None), self.schedule, self.steps)]
        return min(choice.sigma, next((sigma for sigma in levels if sigma < levels[0]), levels[0]))

    def _route(self, start: Start | None) -> tuple[Scheduler, int]:
        """The scheduler of a pass and its steps: where it can start at any noise, only those that a whole pass takes below, at the start's pace."""
        scheduler = self.scheduler(None)
        if start is None:
            return scheduler, self.steps
        if start.noised or not scheduler.config.get("use_karras_sigmas"):
            return scheduler, max(1, round(start.pace * self.steps))
        levels = [sigma for _, sigma in noise_levels(scheduler, self.schedule, self.steps)]
        left = sum(sigma <= start.sigma for sigma in levels) / len(levels)
        return self.scheduler(start.sigma), max(2, round(start.pace * left * self.steps))

    def _cost(self, start: Start | None, evaluations: Callable[[Tensor], int]) -> int:
        scheduler, steps = self._route(start)
        levels = noise_levels(scheduler, self.schedule, steps)
        first = 0 if start is None else first_step(scheduler, self.schedule, start.sigma)
        return sum(evaluations(index) for index, _ in levels[first:])

    def _states(self, labels: Tensor, seeds: Sequence[int], guide: Guide | None, start: Start | None, stream: int) -> Iterator[State]:
        scheduler, steps = self._route(start)
        denoise = self.denoise if self.seeded is None else self.seeded(seeds, stream)
        return sample_states(
            lambda x, index: denoise(x, index, labels),
            scheduler,
            self.schedule,
            self.shape,
            labels=labels,
            seeds=seeds,
            steps=steps,
            guide=guide,
            start=start,
            stream=stream,
            device=self.device,
        )
