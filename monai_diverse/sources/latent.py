"""An autoencoder beside a latent diffusion model: scale, shift, padding and cropping between the two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_diverse.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Latent:
    """The space in which a latent diffusion model works.

    latents = (encoder(images) - shift) * scale_factor, padded with zeros about the centre to `shape`; images come back the other way.

    Attributes:
        autoencoder: the module that `encoder` and `decoder` use; it is moved to the source's device and precision.
        encoder: images (n, c, *spatial) in the model's range -> the autoencoder's latents: their mean, not a draw.
        decoder: the autoencoder's latents -> images in the model's range.
        shape: (c, *spatial) of the latents as the diffusion network sees them.
        autoencoder_shape: spatial shape of the latents as the autoencoder sees them; None: the same.
        scale_factor: a number, or a tensor (c,) with one a channel.
        shift: likewise.

    Raises:
        DataError: a scale that is not positive, shapes of other dimensions.
    """

    autoencoder: nn.Module
    encoder: Callable[[Tensor], Tensor]
    decoder: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    autoencoder_shape: tuple[int, ...] | None = None
    scale_factor: float | Tensor = 1.0
    shift: float | Tensor = 0.0

    def __post_init__(self) -> None:
        scale, shift = self._by_channel(self.scale_factor), self._by_channel(self.shift)
        if not bool(torch.isfinite(scale).all() & (scale > 0).all() & torch.isfinite(shift).all()):
            raise DataError(f"scale_factor: expected positive numbers, got {self.scale_factor} and shift {self.shift}")
        inner = self.autoencoder_shape
        if inner is not None and len(inner) != len(self.shape) - 1:
            raise DataError(f"autoencoder_shape: expected {len(self.shape) - 1} sides, as the network's latents {self.shape} have, got {inner}")

    def encode(self, images: Tensor) -> Tensor:
        """Images in the model's range to latents (n, *shape) as the network sees them.

        Raises:
            DataError: images that do not give latents of `shape`.
        """
        latents = (self.encoder(images) - self._by_channel(self.shift, images.device)) * self._by_channel(self.scale_factor, images.device)
        if tuple(latents.shape[1:]) != (self.shape[0], *self._inner):
            raise DataError(f"autoencoder: expected latents {(self.shape[0], *self._inner)} of such images, got {tuple(latents.shape[1:])}")
        return F.pad(latents, _margins(self._inner, self.shape[1:]))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (n, *shape) as the network sees them to images in the model's range."""
        own = F.pad(latents, _margins(self.shape[1:], self._inner))
        return self.decoder(own / self._by_channel(self.scale_factor, latents.device) + self._by_channel(self.shift, latents.device))

    @property
    def settings(self) -> list[object]:
        """What beside the weights decides the latents, as JSON."""
        numbers = [self._by_channel(value).flatten().tolist() for value in (self.scale_factor, self.shift)]
        return [list(self.shape), list(self._inner), numbers]

    @property
    def _inner(self) -> tuple[int, ...]:
        return self.shape[1:] if self.autoencoder_shape is None else tuple(self.autoencoder_shape)

    def _by_channel(self, value: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32, device=device).reshape(-1, *[1] * (len(self.shape) - 1))


def _margins(source: tuple[int, ...], target: tuple[int, ...]) -> list[int]:
    """What takes spatial shape `source` to `target` about the centre, last axis first; negative margins crop.

    Padding is MONAI's SpatialPad, and cropping undoes it; MONAI's CenterSpatialCrop does so only where the difference of the sides is even.
    """
    margins: list[int] = []
    for have, want in zip(reversed(source), reversed(target), strict=True):
        before = (want - have) // 2 if want >= have else -((have - want) // 2)
        margins += [before, want - have - before]
    return margins
