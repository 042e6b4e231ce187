"""Network + noise schedule + conditioning: from a noisy image to the predicted clean one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.condition import ClassifierFree

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x, timesteps (n,), labels (n,) or None) -> prediction, shaped as x."""

_TO_CLEAN: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    # x = alpha x0 + sigma eps; v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D)
    "epsilon": lambda x, out, alpha, sigma: (x - sigma * out) / alpha,
    "v_prediction": lambda x, out, alpha, sigma: alpha * x - sigma * out,
    "sample": lambda x, out, alpha, sigma: out,
}


@dataclass
class Denoiser:
    """Predicts clean images and counts what that costs.

    Attributes:
        network: the trained network.
        alphas_cumprod: (T,) of the schedule that it was trained on.
        prediction_type: what it predicts, in diffusers' terms: epsilon, v_prediction or sample.
        null: the class that stands for 'no label'; None if the network was not trained with one.
        guidance: classifier-free guidance.
        clip: bound of the clean image in the model's space; None for latents.
        nfe: network evaluations so far, counted an image: a guided pair counts two.
    """

    network: Network
    alphas_cumprod: Tensor
    prediction_type: str
    null: int | None = None
    guidance: ClassifierFree = field(default_factory=ClassifierFree)
    clip: float | None = 1.0
    nfe: int = 0

    def __post_init__(self) -> None:
        if self.prediction_type not in _TO_CLEAN:
            raise RecipeError(f"prediction_type: expected one of {sorted(_TO_CLEAN)}, got {self.prediction_type!r}")
        if self.guidance.scale != 1.0 and self.null is None:
            raise RecipeError(f"guidance scale {self.guidance.scale}: expected a model trained with a null class, got one without; use scale 1")

    def evaluations(self, timestep: int) -> int:
        """Evaluations that one image of a class takes at this timestep."""
        abar = float(self.alphas_cumprod[timestep])
        return 2 if self.guidance.acts(((1 - abar) / abar) ** 0.5) else 1

    def __call__(self, x: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
        """Predicted clean images (n, c, *spatial), clipped; `labels` is None for an unconditional network."""
        abar = self.alphas_cumprod.to(x.device)[timesteps.long()].to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        if labels is not None and self.null is not None and self.evaluations(int(timesteps[0])) == 2:
            both = self.network(x.repeat(2, *[1] * (x.ndim - 1)), timesteps.repeat(2), torch.cat([labels, torch.full_like(labels, self.null)]))
            conditional, null = both.chunk(2)
            out = null + self.guidance.scale * (conditional - null)
            self.nfe += 2 * len(x)
        else:
            out = self.network(x, timesteps, labels)
            self.nfe += len(x)
        clean = _TO_CLEAN[self.prediction_type](x, out, alpha, sigma)
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip)
