"""Any network as a feature extractor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_diverse.data import FloatArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features.identity import identity_of
from monai_diverse.features.planes import Planes
from monai_diverse.storage import fingerprint_of


class ModuleFeatures:
    """A frozen copy of an `nn.Module`, in evaluation mode, its output averaged over space.

    The module is copied, so that training it further changes neither the features nor their fingerprint. It runs on the
    device that its parameters are on. Feature maps (n, c, *spatial) are averaged over space, token sequences (n, tokens, c) over tokens, and
    vectors (n, c) are kept.

    Args:
        module: takes a float tensor (n, channels, *spatial).
        layer: dotted name of the submodule whose output is taken, as in `module.get_submodule`; None: the module's own.
        preprocess: applied to the float32 batch in [0, 1] before the module: normalisation, resizing. An `nn.Module`, such as
            `Normalise`, is copied and hashed as the module is, a function is hashed with its code and what it reads, both when they are given.
        planes: for a 2D module: how slices and channels of other images become what it takes; None: images go in as they are.
        batch_size: images (with `planes`: planes) at a time.
        name: what reports call it; None: the module's class and the layer.

    Raises:
        RecipeError: unknown layer, a batch size below 1, or a `preprocess` that cannot be hashed: `functools.partial`, a bound method, an
            object that is called.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        layer: str | None = None,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        planes: Planes | None = None,
        batch_size: int = 64,
        name: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"batch_size: expected at least 1, got {batch_size}")
        names = [name for name, _ in module.named_modules() if name]
        if layer is not None and layer not in names:
            raise RecipeError(f"layer: expected a submodule of {type(module).__name__} such as {names[:5]}, got {layer!r}")
        self._module = _frozen(module)
        self._layer = layer
        self._identity = {"module": identity_of(self._module), "preprocess": None if preprocess is None else identity_of(preprocess)}
        self._preprocess = _frozen(preprocess).to(self._device) if isinstance(preprocess, nn.Module) else preprocess
        self._planes = planes
        self._batch_size = batch_size
        self._name = name

    @property
    def name(self) -> str:
        """The name given, or the module's class, and the layer if one was chosen."""
        kind = self._name or type(self._module).__name__
        return kind if self._layer is None else f"{kind}.{self._layer}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides the vectors: module, layer, `preprocess`, `planes`.

        What counts of a module and of a function says `identity_of`; an attribute of another kind must show in the module's `extra_repr`.
        """
        planes = None if self._planes is None else asdict(self._planes)
        return fingerprint_of({"extractor": self.name, "planes": planes, **self._identity})

    def __call__(self, images: FloatArray) -> FloatArray:
        """Turns (n, channels, *spatial) in [0, 1] into float32 (n, d).

        Raises:
            DataError: the module gives something else than one tensor (n, ...), or non-finite values.
        """
        if not len(images):
            # the width of the vectors is only known from a pass
            probe = self._run(torch.zeros(1, *images.shape[1:]))
            return np.zeros((0, probe.shape[1]), np.float32)
        step = self._batch_size if self._planes is None else max(1, self._batch_size // self._planes.per_image(images.shape[1:]))
        batches = torch.split(torch.from_numpy(np.array(images, np.float32)), step)
        features = torch.cat([self._run(batch) for batch in batches]).numpy()
        if not np.isfinite(features).all():
            raise DataError(f"{self.name}: expected finite features, got NaN or infinity; check the weights and `preprocess`")
        return features

    def differentiable(self, batch: Tensor) -> Tensor:
        """The same of a float32 tensor, all at once, with its gradient; on the module's device and in its precision."""
        count = len(batch)
        batch = batch.to(self._device)
        if self._planes is not None:
            batch = self._planes.cut(batch)
        if self._preprocess is not None:
            batch = self._preprocess(batch)
        if self._planes is None:
            return self._passed(batch)
        return self._planes.pooled(self._passed(self._planes.expanded(batch)), count)

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self._module.parameters()), torch.device("cpu"))

    def _passed(self, batch: Tensor) -> Tensor:
        caught: list[Any] = []
        chosen = self._module if self._layer is None else self._module.get_submodule(self._layer)
        handle = chosen.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
        try:
            self._module(batch)
        finally:
            handle.remove()
        return _pooled(caught, len(batch), self.name)

    @torch.no_grad()
    def _run(self, batch: Tensor) -> Tensor:
        return self.differentiable(batch).to("cpu", torch.float32)


def _frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).eval().requires_grad_(False)


def _pooled(caught: list[Any], count: int, name: str) -> Tensor:
    if len(caught) != 1 or not isinstance(caught[0], Tensor) or caught[0].ndim < 2 or len(caught[0]) != count:
        kinds = [tuple(c.shape) if isinstance(c, Tensor) else type(c).__name__ for c in caught]
        raise DataError(f"{name}: expected one tensor of {count} rows and at least 2 axes, got {kinds}; choose another `layer`")
    output: Tensor = caught[0]
    if output.ndim == 3:
        return output.mean(1)
    return output.flatten(2).mean(2) if output.ndim > 3 else output
