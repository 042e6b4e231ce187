"""What decides the output of a network or a function, as JSON, so that it can take part in a fingerprint."""

from __future__ import annotations

import contextlib
import dis
from collections.abc import Iterator
from enum import Enum
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_diverse.errors import RecipeError
from monai_diverse.storage import sha256_of

LIBRARIES = ("torch", "numpy", "scipy", "monai")
"""Their functions count by name: what they compute does not change with how they are written."""

NOT_OUTPUT = {*vars(nn.Module()), "name_or_path", "_is_hf_initialized", "pretrained_cfg", "default_cfg"}
"""Attributes that do not decide the output: torch's own, and where transformers and timm have the network from."""

SCALARS = (str, bytes, bool, int, float, complex, EllipsisType, type(None), torch.dtype, slice, range, np.generic)


def identity_of(part: Any) -> Any:
    """What decides the output of a network or a function.

    Of a network count its weights and buffers, its printed structure, and among the attributes of each of its parts the numbers, strings, None,
    arrays, functions, and lists, tuples, sets and dictionaries of those; of a function its module, qualified name, `__name__`, bytecode,
    constants and defaults, and what it reads from around it. Functions of torch, numpy, scipy and MONAI count by name.

    Raises:
        RecipeError: something else, such as `functools.partial` or a bound method, or a function that reads such a thing.
    """
    if not isinstance(part, nn.Module | FunctionType | BuiltinFunctionType):
        raise _refused(part)
    return _identity(part, frozenset())


def _identity(value: Any, above: frozenset[int]) -> Any:
    if isinstance(value, Enum):
        return {"name": f"{type(value).__qualname__}.{value.name}"}
    if isinstance(value, type):
        return {"name": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, SCALARS):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray):
        return _tensor(value)
    if isinstance(value, ModuleType):
        return {"name": value.__name__}
    if id(value) in above:
        return "a part that holds this one"
    above |= {id(value)}
    if isinstance(value, list | tuple):
        return [_identity(item, above) for item in value]
    if isinstance(value, dict | set | frozenset):
        items = value.items() if isinstance(value, dict) else value
        return {type(value).__name__: sorted((_identity(item, above) for item in items), key=repr)}
    if isinstance(value, nn.Module):
        return _network(value, above)
    if isinstance(value, FunctionType):
        return _function(value, above)
    if isinstance(value, CodeType):
        return _code(value, above)
    # a bound method of a built-in type has its object there
    if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, ModuleType | None):
        return {"name": f"{value.__module__}.{value.__qualname__}"}
    raise _refused(value)


def _network(network: nn.Module, above: frozenset[int]) -> dict[str, Any]:
    # buffers that are not stored take part in the output too
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    attributes = {}
    for path, part in network.named_modules():
        for key in vars(part).keys() - NOT_OUTPUT:
            # published networks hold their configuration, statistics of use and much else
            with contextlib.suppress(RecipeError):
                attributes[f"{path}.{key}"] = _identity(vars(part)[key], above)
    return {"structure": repr(network), "attributes": attributes, "tensors": {name: _tensor(value) for name, value in tensors.items()}}


def _function(function: FunctionType, above: frozenset[int]) -> dict[str, Any]:
    names = {"module": function.__module__, "qualified": function.__qualname__, "name": function.__name__}
    # where it was written: a wrapper bears the module of what it wraps
    if function.__globals__.get("__name__", "").partition(".")[0] in LIBRARIES:
        return names
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    read = {name: function.__globals__[name] for name in _globals_read(function.__code__) if name in function.__globals__}
    around = read | {name: cell.cell_contents for name, cell in cells}
    return {
        **names,
        "code": _code(function.__code__, above),
        "defaults": _identity([function.__defaults__, function.__kwdefaults__], above),
        "around": {name: _identity(value, above) for name, value in around.items()},
    }


def _code(code: CodeType, above: frozenset[int]) -> list[Any]:
    return [sha256_of(code.co_code), list(code.co_names), list(code.co_freevars), [_identity(constant, above) for constant in code.co_consts]]


def _globals_read(code: CodeType) -> Iterator[str]:
    yield from (step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_read(constant)


def _tensor(value: Tensor | np.ndarray[Any, Any]) -> str:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise _refused(value)
        return f"{value.dtype} {value.shape} {sha256_of(value.tobytes())}"
    if value.is_meta or value.is_quantized or value.layout != torch.strided:
        raise _refused(value)
    content = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)} {sha256_of(content)}"


def _refused(value: Any) -> RecipeError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return RecipeError(
        f"preprocess: expected an nn.Module, or a function that reads only values, tensors, nn.Modules and such functions, got one of {kind}, "
        "which cannot be hashed; write a function or an nn.Module that holds it"
    )
