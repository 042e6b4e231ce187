"""Weights of a bundle: plain tensors from .pt, .pth or .safetensors, in today's names or in those of GenerativeModels."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils.enums import TraceKeys
from safetensors.torch import load_file
from torch import Tensor, nn

from monai_diverse.errors import DataError

_STATES = ("unet_state_dict", "autoencoder_state_dict", "state_dict", "model_state_dict", "model", "network")
_UNUSED = ".proj_attn."
"""GenerativeModels stored a projection that its attention did not apply."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a weights file holds.

    Attributes:
        path: the file.
        state: the weights by name.
        others: what lies beside them, such as a scale factor.
    """

    path: Path
    state: dict[str, Tensor]
    others: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Reads a file of tensors; nothing in it is run.

        Raises:
            DataError: missing, corrupt, other content, or pickled code.
        """
        content = _read(path)
        state, others = content, {}
        if not _is_state(content):
            found = next((key for key in _STATES if _is_state(content.get(key))), None)
            if found is None:
                raise DataError(
                    f"{path}: expected weights by name, or such under {', '.join(_STATES)}, got {', '.join(map(str, content)) or 'nothing'}"
                )
            state, others = content[found], {key: value for key, value in content.items() if key != found}
        state = dict(state)
        if all(name.startswith("module.") for name in state):
            state = {name.removeprefix("module."): value for name, value in state.items()}
        # a flat file, such as .safetensors, holds its scale among the weights
        others |= {name: state.pop(name) for name in [n for n in state if n == "scale_factor"]}
        return cls(path=path, state=state, others=others)

    def load_into(self, module: nn.Module) -> None:
        """Copies the weights into a module, which must take all of them and be filled by them.

        Raises:
            DataError: weights of another network.
        """
        own = module.state_dict()
        if own.keys() == self.state.keys() or not hasattr(module, "load_old_state_dict"):
            self._load(module)
        else:
            self._load_old(module)

    def _load(self, module: nn.Module) -> None:
        try:
            module.load_state_dict(self.state)
        except RuntimeError as error:
            raise self._foreign(module, " ".join(str(error).split("\n\t")[1:2]) or str(error)) from error

    def _load_old(self, module: nn.Module) -> None:
        left = dict(self.state)
        with torch.no_grad():
            # MONAI's method leaves what it does not find as it was, without a word
            for parameter in module.parameters():
                parameter.fill_(torch.nan)
        try:
            module.load_old_state_dict(left)  # type: ignore[operator]
        except KeyError as error:
            raise self._foreign(module, f"{error} is missing") from error
        except RuntimeError as error:
            raise self._foreign(module, " ".join(str(error).split("\n\t")[1:2]) or str(error)) from error
        empty = [name for name, value in module.named_parameters() if bool(value.isnan().any())]
        unknown = [name for name in left if _UNUSED not in name]
        if empty or unknown:
            raise self._foreign(module, f"{empty[0]} is missing" if empty else f"{unknown[0]} is unknown")

    def _foreign(self, module: nn.Module, reason: str) -> DataError:
        return DataError(f"{self.path}: expected the weights of the bundle's own {type(module).__name__}, but {' '.join(reason.split())}")


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise DataError(f"{path}: expected the bundle's weights, but there is no such file; download the bundle's large files")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # some checkpoints keep the scale in MONAI's tensor with metadata: enumerations of text, nothing that runs
        with torch.serialization.safe_globals([MetaTensor, TraceKeys]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # malformed files make the readers raise anything
        code = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise DataError(f"{path}: expected tensors alone, got pickled code ({code[1]}), which is never run; ask for a file of tensors") from error
        raise DataError(f"{path}: expected weights, but the file cannot be read ({type(error).__name__}); is it a complete download?") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected weights by name, got {type(content).__name__}")
    return content


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
