"""Network + noise schedule + conditioning: from a noisy image to the predicted clean one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.condition import CADS, ClassifierFree
from monai_diverse.sampling.schedule import NoiseSchedule
from monai_diverse.sources.annealing import NOISED, Annealing, embeddings_noised
from monai_diverse.sources.conditioning import Conditioning

Network = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
"""(x (n, c, *spatial), timesteps (n,), condition rows (n, ...) by name) -> prediction, as many channels as an image; `concat` is in x already."""

_TO_CLEAN: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    # x = alpha x0 + sigma eps; v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D)
    "epsilon": lambda x, out, alpha, sigma: (x - sigma * out) / alpha,
    "v_prediction": lambda x, out, alpha, sigma: alpha * x - sigma * out,
    "sample": lambda x, out, alpha, sigma: out,
}
_FLOWS = {"flow": 1.0, "rflow": -1.0}
PREDICTION_TYPES = (*_TO_CLEAN, *_FLOWS)


@dataclass
class Denoiser:
    """Predicts clean images and counts what that costs.

    Attributes:
        network: the trained network.
        schedule: the noise that it was trained on.
        prediction_type: what it predicts, in diffusers' terms: epsilon, v_prediction, sample, or flow (eps - x0, as in diffusers' flow
            matching); rflow is x0 - eps, as in MONAI's RFlowScheduler.
        conditioning: what it is told beside x and t; none for an unconditional network.
        guidance: classifier-free guidance.
        clip: bounds of the clean image in the model's space; None for latents.
        cads: noises class labels, context and concat at first; None for never. Class labels are noised as their embeddings, and the null
            condition of a classifier-free pair is not. Call through `seeded`, so that each image has its own noise.
        embeddings: modules of the network that embed class labels, for `cads`.
        nfe: network evaluations so far, counted an image: a guided pair counts two.

    Raises:
        RecipeError: another prediction type, one that does not belong to the schedule, guidance without a null condition, CADS without a
            condition or without embeddings of its class labels.
    """

    network: Network
    schedule: NoiseSchedule
    prediction_type: str
    conditioning: Conditioning = field(default_factory=Conditioning)
    guidance: ClassifierFree = field(default_factory=ClassifierFree)
    clip: tuple[float, float] | None = None
    cads: CADS | None = None
    embeddings: Sequence[nn.Module] = ()
    nfe: int = 0

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise RecipeError(f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {self.prediction_type!r}")
        if self.prediction_type in _FLOWS and not self.schedule.flow:
            raise RecipeError(f"prediction_type: expected a flow's schedule with {self.prediction_type!r}, got one of betas")
        if not isinstance(self.guidance, ClassifierFree):
            raise RecipeError(f"guidance: expected a ClassifierFree, got {self.guidance!r}; a scale of 2 is ClassifierFree(scale=2)")
        if self.guidance.scale != 1.0 and self.conditioning.null is None:
            raise RecipeError(f"guidance scale {self.guidance.scale}: expected a model trained with a null class, got one without; use scale 1")
        if self.cads is not None and not self.conditioning.inputs.keys() & set(NOISED):
            raise RecipeError(f"cads: expected a network that is told {' or '.join(NOISED)}, got none of them; leave cads out")
        if self.cads is not None and self.conditioning.embeds_labels and not self.embeddings:
            raise RecipeError("cads: expected the modules that embed class labels, got none; leave cads out")

    def evaluations(self, index: Tensor) -> int:
        """Evaluations that one image takes at this index of the schedule."""
        return 2 if self.guidance.scale != 1.0 and self.guidance.acts(float(self.schedule.noise_ratio(index))) else 1

    def seeded(self, seeds: Sequence[int], stream: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The denoiser of images with these seeds (n,), whose conditions it noises if `cads` says so; evaluations are counted here."""
        return partial(self, annealing=None if self.cads is None else Annealing(settings=self.cads, seeds=tuple(seeds), stream=stream))

    def __call__(self, x: Tensor, index: Tensor, labels: Tensor, *, annealing: Annealing | None = None) -> Tensor:
        """Predicts clean images.

        Args:
            x: (n, c, *spatial) noisy images, variance-preserving.
            index: (n,) of the schedule, the same for all.
            labels: (n,) classes, on the device of x.
            annealing: noises their conditions; see `seeded`.

        Returns:
            (n, c, *spatial) in the model's space, clipped to `clip`.

        Raises:
            RecipeError: `cads` is set, but there are no seeds to noise by.
        """
        if self.cads is not None and annealing is None:
            raise RecipeError("cads: expected the images' seeds, got none; call through `seeded`")
        each = (-1, *[1] * (x.ndim - 1))
        abar = self.schedule.at(index).to(x.dtype).reshape(each)
        x_in = x * self.schedule.network_scale(index).to(x.dtype).reshape(each) if self.schedule.flow else x
        with self._told(labels, annealing, float(index[0])) as rows:
            out = self._predict(x_in, self.schedule.network_timestep(index), labels, rows, self.evaluations(index[0]))
        if self.prediction_type in _FLOWS:
            clean = x_in - _FLOWS[self.prediction_type] * self.schedule.flow_time(index).reshape(each) * out
        else:
            clean = _TO_CLEAN[self.prediction_type](x, out, abar.sqrt(), (1 - abar).sqrt())
        return clean if self.clip is None else clean.clamp(*self.clip)

    @contextmanager
    def _told(self, labels: Tensor, annealing: Annealing | None, index: float) -> Iterator[dict[str, Tensor]]:
        """What the network is told of classes (n,); inside, it embeds labels with noise."""
        rows = self.conditioning.rows(labels)
        if annealing is None:
            yield rows
            return
        time = (index + 1) / len(self.schedule)
        for name in rows.keys() & set(NOISED):
            if rows[name].is_floating_point():
                rows[name] = annealing(name, rows[name], index, time)
        with embeddings_noised(self.embeddings if self.conditioning.embeds_labels else (), annealing, index, time):
            yield rows

    def _predict(self, x: Tensor, timesteps: Tensor, labels: Tensor, rows: dict[str, Tensor], evaluations: int) -> Tensor:
        self.nfe += evaluations * len(x)
        if evaluations == 1:
            return self._evaluate(x, timesteps, rows)
        null = self.conditioning.null_rows(labels)
        both = {name: torch.cat([value, null[name]]) for name, value in rows.items()}
        conditional, without = self._evaluate(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both).chunk(2)
        return without + self.guidance.scale * (conditional - without)

    def _evaluate(self, x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        concat = rows.pop("concat", None)
        if concat is not None:
            if concat.ndim == 2:
                concat = concat.reshape(*concat.shape, *[1] * (x.ndim - 2))
            x = torch.cat([x, concat.to(x.dtype).expand(*concat.shape[:2], *x.shape[2:])], 1)
        return self.network(x, timesteps, rows)
