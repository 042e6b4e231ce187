"""Conditions noised on the way (CADS): noise from the images' own seeds, and class labels noised as their embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from monai_diverse.errors import RecipeError
from monai_diverse.sampling.condition import CADS, annealed

NOISED = ("class_labels", "context", "concat")
"""Inputs that are noised; what else a network is told, such as a scan's spacing, stays as it is."""

_EMBEDDINGS = ("class_embedding", "class_embedder")


@dataclass(frozen=True, kw_only=True, eq=False)
class Annealing:
    """CADS for the images of one pass.

    Attributes:
        settings: see `CADS`.
        seeds: (n,) of the images.
        stream: of noise; passes of one image have different ones.
    """

    settings: CADS
    seeds: Sequence[int]
    stream: int

    def __call__(self, name: str, rows: Tensor, index: float, time: float) -> Tensor:
        """Noises what the network is told.

        Args:
            name: of the input.
            rows: (n, ...), one an image; further rows are left as they are.
            index: of the noise schedule: each has its own noise.
            time: 1 for pure noise, 0 for clean.
        """
        if self.settings.clean(time) == 1:
            return rows
        count, key = len(self.seeds), (5, self.stream, NOISED.index(name), round((index + 1) * 1000))
        draws = [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).standard_normal(rows.shape[1:]) for seed in self.seeds]
        told = annealed(rows[:count].float(), time, torch.from_numpy(np.stack(draws)).to(rows.device, torch.float32), self.settings)
        return torch.cat([told.to(rows.dtype), rows[count:]])


def class_embeddings(network: object) -> tuple[nn.Module, ...]:
    """The modules that embed class labels: `class_embedding` of diffusers' and MONAI's UNets, each block's `class_embedder` of a DiT.

    Raises:
        RecipeError: none found.
    """
    modules = network.named_modules() if isinstance(network, nn.Module) else ()
    found = tuple(module for name, module in modules if name.rsplit(".", 1)[-1] in _EMBEDDINGS)
    if not found:
        raise RecipeError(f"cads: expected a network with a module {' or '.join(_EMBEDDINGS)}, got {type(network).__name__}; leave cads out")
    return found


@contextmanager
def embeddings_noised(embeddings: Sequence[nn.Module], annealing: Annealing, index: float, time: float) -> Iterator[None]:
    """Inside, the embeddings' outputs are noised."""

    def noised(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return annealing("class_labels", output, index, time)

    handles = [module.register_forward_hook(noised) for module in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
