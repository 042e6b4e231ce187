"""What adapters of others' networks share: importing what may not be installed, and reading weights without running code."""

from __future__ import annotations

import importlib
import pickle
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from monai_diverse.errors import DataError, MissingExtraError

WRAPPINGS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts store weights, the averaged ones first."""


def import_optional(module: str, needed_by: str) -> Any:
    """Imports a package that this one does not require.

    Raises:
        MissingExtraError: not installed, or it does not import beside this torch; the message names the pip command.
    """
    package = module.partition(".")[0]
    try:
        with warnings.catch_warnings():  # torchxrayvision turns every warning of the process off
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise MissingExtraError(f"{needed_by} needs {package}: pip install {package}") from error
        raise _broken(package, needed_by, error) from error
    except (ImportError, RuntimeError, OSError) as error:
        raise _broken(package, needed_by, error) from error


def build(make: Callable[[], nn.Module]) -> nn.Module:
    """Makes a network without touching the global random state."""
    # weights made in inference mode could never take part in a gradient
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        return make()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads weights from a `.safetensors` file, or from one of `torch.save`, without running any code in it.

    Weights that a training script wrapped (`state_dict`, `model`, ...) are unwrapped, `module.` before their names is dropped.

    Raises:
        DataError: no such file, a file of another kind, or one that holds something else than tensors.
    """
    file = Path(path)
    try:
        held: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{file}: expected weights (.safetensors, or a state dict of torch.save), but it cannot be read ({reason})") from error
    for key in WRAPPINGS:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
            break
    if not isinstance(held, dict) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise DataError(f"{file}: expected named tensors, got {type(held).__name__}; save the network's state_dict()")
    return {str(name).removeprefix("module."): value for name, value in held.items()}


def load_weights(network: nn.Module, weights: dict[str, Tensor], origin: str | Path, beside: Iterable[str] = ()) -> None:
    """Fills a network with weights, every one of them.

    Args:
        network: filled in place.
        weights: by name.
        origin: where they are from, for the message.
        beside: first parts of names that the weights may have and the network has not, such as its classifier's.

    Raises:
        DataError: weights that are missing, of another shape or of another network.
    """
    allowed = tuple(f"{part}." for part in beside)
    ours = {name: value for name, value in weights.items() if not name.startswith(allowed)} if allowed else weights
    try:
        network.load_state_dict(ours, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{origin}: expected the weights of this {type(network).__name__}, got others ({reason[:300]})") from error


def _broken(package: str, needed_by: str, error: Exception) -> MissingExtraError:
    reason = " ".join(str(error).split()) or type(error).__name__
    remedy = "install its own dependencies, and of torchvision the build that belongs to your torch"
    return MissingExtraError(f"{needed_by} needs {package}, which does not import here ({reason}): {remedy}: pip install {package}")
