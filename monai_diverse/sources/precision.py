"""How exactly and in which memory layout networks compute, and how many images at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from monai_diverse.errors import RecipeError

_WEIGHTS = ("float32", "float16", "bfloat16")
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
CPU_BATCH = 64
LARGEST_BATCH = 1024
"""Where the search for the largest batch that fits begins."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How networks compute. The sampler's own arithmetic stays float32 whatever is chosen here.

    Attributes:
        dtype: of the weights and of what the network is given: float32, float16 or bfloat16.
        autocast: float16 or bfloat16: float32 weights, with torch's choice of operations in the smaller type; None for none.
        channels_last: keep channels innermost in memory, which convolutions mostly like; None: `DiffusersSource` does, `MonaiSource` does not.
            On the CPU torch's GroupNorm is less exact so: errors of 1e-3 where a group's mean is ten times its deviation.
        compile: hand the network to torch.compile; needs a C++ compiler on the CPU, Triton on CUDA. The first batch of each shape is slow.

    Raises:
        RecipeError: another name, or half weights and autocast at once.
    """

    dtype: str = "float32"
    autocast: str | None = None
    channels_last: bool | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in _WEIGHTS:
            raise RecipeError(f"dtype: expected one of {', '.join(_WEIGHTS)}, got {self.dtype!r}")
        if self.autocast not in (None, *_WEIGHTS[1:]) or (self.autocast and self.dtype != "float32"):
            raise RecipeError(f"autocast: expected float16 or bfloat16, with float32 weights, got {self.autocast!r} with {self.dtype} weights")

    def prepare(self, module: nn.Module, device: torch.device | str) -> nn.Module:
        """Places a module: on the device, in this precision and layout, in evaluation mode, its weights frozen; in place."""
        # diffusers' own `to` logs a warning for every change of type
        nn.Module.to(module, device=device, dtype=getattr(torch, self.dtype)).eval().requires_grad_(False)
        for weight in module.parameters() if self.channels_last else ():
            if weight.ndim in _LAYOUTS:
                weight.data = weight.data.to(memory_format=_LAYOUTS[weight.ndim])
        if self.compile:
            module.compile()
        return module

    def run(self, call: Callable[..., Tensor], x: Tensor, *others: Tensor | dict[str, Tensor]) -> Tensor:
        """Calls `call(x, *others)` in this precision and gives float32 back.

        `x` and floating tensors in dictionaries are converted; timesteps and labels are not: bfloat16 cannot tell 999 from 1000.
        """
        x = self._laid_out(self._converted(x))
        given = [{name: self._converted(row) for name, row in other.items()} if isinstance(other, dict) else other for other in others]
        if self.autocast is None:
            return call(x, *given).float()
        with torch.autocast(x.device.type, dtype=getattr(torch, self.autocast)):
            return call(x, *given).float()

    def _converted(self, value: Tensor) -> Tensor:
        return value.to(getattr(torch, self.dtype)) if value.is_floating_point() else value

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=_LAYOUTS[x.ndim]) if self.channels_last and x.ndim in _LAYOUTS else x


@dataclass
class Batches:
    """Work in batches whose size is given or found: on CUDA the largest that fits, halved whenever memory runs out.

    Attributes:
        size: images at a time; None to find it.
        device: where the work is done; on the CPU nothing is searched and None is `CPU_BATCH`.
        limit: the size in use; kept from one call to the next.
    """

    size: int | None
    device: str
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        if self.size is not None and (not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1):
            raise RecipeError(f"batch_size: expected a whole number from 1, got {self.size!r}")
        self.limit = self.size or (LARGEST_BATCH if self._is_cuda else CPU_BATCH)

    @property
    def _is_cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def run(self, work: Callable[[slice], Tensor], count: int) -> Tensor:
        """Concatenates work(slice) over slices that cover 0..count-1; a batch that does not fit is done again in halves.

        Raises:
            RecipeError: the given size does not fit, or not even one image does.
        """
        parts: list[Tensor] = []
        start = 0
        while start < count:
            stop = min(start + self.limit, count)
            part = self._tried(work, slice(start, stop))
            if part is None:
                self.limit = (stop - start) // 2
                # the failed batch's memory is free only now, after its frames are gone
                torch.cuda.empty_cache()
            else:
                parts.append(part)
                start = stop
        return torch.cat(parts)

    def _tried(self, work: Callable[[slice], Tensor], part: slice) -> Tensor | None:
        try:
            return work(part)
        except torch.cuda.OutOfMemoryError as error:
            if self.size is None and part.stop - part.start > 1:
                return None
            size, reason = part.stop - part.start, str(error).splitlines()[0]
            remedy = "give a smaller one, or None to find it" if size > 1 else "use float16 weights or another device"
            raise RecipeError(f"batch_size: expected one that fits in the device's memory, got {size} ({reason}); {remedy}") from error
