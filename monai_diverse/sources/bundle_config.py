"""The configuration of a MONAI bundle, read without running any of the bundle's code."""

from __future__ import annotations

import ast
import importlib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from monai_diverse.errors import DataError, RecipeError

SAFE_MODULES = (
    "monai.networks.nets.autoencoderkl",
    "monai.networks.nets.diffusion_model_unet",
    "monai.networks.nets.vqvae",
    "monai.networks.schedulers",
    "monai.apps.generation.maisi.networks",
)
"""Where a definition's class may come from: making one of these runs MONAI's own code on plain numbers. Other networks of MONAI can fetch
weights from an address that the definition gives."""

_REFERENCE = re.compile(r"@(\w+(?:(?:::|#)\w+)*)")
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_TENSORS = ("randn", "rand", "zeros", "ones")
_PLACEMENTS = ("to", "half", "float", "cuda")
_RESERVED = ("_target_", "_requires_", "_desc_", "_disabled_", "_mode_")


class BundleConfig:
    """What the configuration files of a bundle say, as plain values.

    `@key` references are followed. Of `$` expressions, which are Python code, only arithmetic on references and literals is worked out, such as
    `$@bundle_root + '/models/model.pt'`; `$torch.randn(...)` gives a tensor without content, for its shape. Definitions are made only of classes
    of MONAI's own networks and schedulers.

    Args:
        folder: the bundle.
        files: configuration files, later ones overriding earlier ones.

    Raises:
        DataError: a file that is missing or no configuration.
    """

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.folder = folder
        self._content: dict[str, Any] = {}
        for file in files:
            self._content |= _read(file)
        self._content["bundle_root"] = str(folder)

    def __contains__(self, key: str) -> bool:
        return key.split("::")[0] in self._content

    def value(self, key: str) -> Any:
        """The plain value of a key; `a::b` is b inside a.

        Raises:
            DataError: no such key, or a circle of references.
            RecipeError: it takes the bundle's code to know.
        """
        return self._resolved(self.raw(key), (key,))

    def build(self, key: str, switches: Mapping[str, bool], stand_ins: Mapping[str, str]) -> nn.Module:
        """Makes the network or scheduler that a key defines.

        Args:
            key: of a definition with `_target_`, or of a reference to one.
            switches: arguments that stay on only where they are on here too.
            stand_ins: MONAI's classes that replace classes of the bundle's own code.

        Raises:
            DataError: no such key, or arguments that the class does not take.
            RecipeError: a class of other code.
        """
        definition, path = self.raw(key), [key]
        while isinstance(definition, str) and _REFERENCE.fullmatch(definition):
            path.append(definition[1:])
            if path[-1] in path[:-1]:
                raise DataError(f"{self._name(key)}: expected references that end, got a circle at {definition}")
            definition = self.raw(path[-1])
        if not isinstance(definition, Mapping) or "_target_" not in definition:
            raise DataError(f"{self._name(key)}: expected a definition with _target_, got {definition!r}")
        target = str(definition["_target_"])
        arguments = {name: self._resolved(value, (f"{key}::{name}",)) for name, value in definition.items() if name not in _RESERVED}
        kind = self._class_of(stand_ins.get(target, target), key)
        arguments = _modernised(target, arguments)
        arguments |= {name: bool(arguments[name]) and on for name, on in switches.items() if name in arguments}
        try:
            made = kind(**arguments)
        except (TypeError, ValueError, KeyError, NotImplementedError) as error:
            raise DataError(f"{self._name(key)}: expected arguments that {target} takes, but {' '.join(str(error).split())}") from error
        return made

    def _name(self, key: str) -> str:
        return f"{self.folder.name}: {key}"

    def raw(self, key: str) -> Any:
        """What the configuration says of a key, as it is written."""
        value: Any = self._content
        for part in key.replace("#", "::").split("::"):
            try:
                value = value[int(part)] if isinstance(value, list) else value[part]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise DataError(f"{self._name(key)}: expected this key in the configuration, got none; is it another kind of bundle?") from error
        return value

    def _resolved(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            if "_target_" in value:
                raise self._needs_code(path[0], value["_target_"])
            return {name: self._resolved(item, path) for name, item in value.items()}
        if isinstance(value, list):
            return [self._resolved(item, path) for item in value]
        if not isinstance(value, str) or value[:1] not in ("$", "@", "%"):
            return value
        if _REFERENCE.fullmatch(value):
            return self._referred(value[1:], path)
        if value[0] != "$":
            raise self._needs_code(path[0], value)
        return self._worked_out(value, path)

    def _referred(self, key: str, path: tuple[str, ...]) -> Any:
        if key in path:
            raise DataError(f"{self._name(path[0])}: expected references that end, got a circle at @{key}")
        return self._resolved(self.raw(key), (*path, key))

    def _worked_out(self, value: str, path: tuple[str, ...]) -> Any:
        keys: list[str] = []

        def numbered(match: re.Match[str]) -> str:
            keys.append(match.group(1))
            return f"_reference_{len(keys) - 1}"

        source = _REFERENCE.sub(numbered, value[1:])
        try:
            return _evaluated(
                ast.parse(source.strip(), mode="eval").body, lambda name: self._referred(keys[int(name.removeprefix("_reference_"))], path)
            )
        except (SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError, RuntimeError) as error:
            if isinstance(error, (DataError, RecipeError)):
                raise
            raise self._needs_code(path[0], value) from error

    def _needs_code(self, key: str, value: Any) -> RecipeError:
        return RecipeError(f"{self._name(key)}: expected a plain value, got code {value!r}; trust_code=True runs the bundle's code")

    def _class_of(self, target: str, key: str) -> type[nn.Module]:
        package, _, name = re.sub("^generative[.]", "monai.", target).rpartition(".")
        for place in (package,) if package else ("monai.networks.nets", "monai.networks.schedulers"):
            if not place.startswith(("monai.networks", "monai.apps.generation")):
                continue
            try:
                kind = getattr(importlib.import_module(place), name, None)
            except ImportError:
                continue
            if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith(SAFE_MODULES):
                return kind
        raise RecipeError(
            f"{self._name(key)}: expected a class of MONAI's diffusion networks, autoencoders or schedulers, got {target!r}; "
            "trust_code=True makes any, with the bundle's code"
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = ConfigParser.load_config_file(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: expected a configuration in JSON or YAML, but it cannot be read ({' '.join(str(error).split())})") from error
    except Exception as error:  # of the YAML parser
        raise DataError(f"{file}: expected a configuration in JSON or YAML, but {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a configuration with keys, got {type(content).__name__}")
    return content


def _evaluated(node: ast.expr, referred: Callable[[str], Any]) -> Any:
    """Arithmetic on literals and references; anything else raises ValueError."""
    match node:
        case ast.Constant(value=value) if isinstance(value, (int, float, str, bool)) or value is None:
            return value
        case ast.Name(id=name) if name.startswith("_reference_"):
            return referred(name)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_evaluated(item, referred) for item in items]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluated(operand, referred)
        case ast.Subscript(value=value, slice=index):
            return _evaluated(value, referred)[_evaluated(index, referred)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _evaluated(left, referred), _evaluated(right, referred)
            if not isinstance(op, ast.Add) and not (isinstance(a, (int, float)) and isinstance(b, (int, float))):
                raise ValueError("only numbers can be multiplied here: a repeated list may fill the memory")
            return _OPERATORS[type(op)](a, b)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name), args=args, keywords=[]) if name in _TENSORS:
            return torch.empty(*(_evaluated(arg, referred) for arg in args), device="meta")
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in _PLACEMENTS:
            made = _evaluated(value, referred)
            if isinstance(made, Tensor):
                return made
    raise ValueError(f"{type(node).__name__} is code")


def _modernised(target: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the GenerativeModels package, the forerunner of MONAI's own networks, as MONAI's networks take them."""
    if not target.startswith("generative."):
        return arguments
    names = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}
    renamed = {names.get(name, name): value for name, value in arguments.items()}
    if "beta_schedule" in renamed:
        kind = renamed.pop("beta_schedule")
        renamed["schedule"] = kind if kind == "cosine" else f"{kind}_beta"
    if "channels" in renamed:
        # its attention blocks had an output projection that they did not apply; its transformers applied theirs
        renamed |= {"include_fc": bool(renamed.get("with_conditioning", False)), "use_combined_linear": False}
    return renamed
