"""Classes and settings out of YAML: a component by dotted path, dataclasses of plain values."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from monai_diverse.errors import RecipeError

ALLOWED_PACKAGES = ("monai_diverse",)
PATH_ARGUMENTS = ("folder", "path", "bundle_dir", "embeddings", "text_encoder")


@dataclass(frozen=True, kw_only=True)
class Component:
    """A class by dotted path, with its keyword arguments.

    Attributes:
        target: such as `monai_diverse.BuiltinSource`.
        arguments: keyword arguments; a mapping with `target` becomes a component of its own.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.target, str):
            raise RecipeError(f"target: expected the dotted path of a class, got {self.target!r}")
        if not isinstance(self.arguments, Mapping):
            raise RecipeError(f"{self.target}: arguments: expected a mapping, got {self.arguments!r}")

    def build(self, folder: Path, allow: Sequence[str] = ()) -> Any:
        """Imports the class and makes it.

        Args:
            folder: where relative paths in arguments named `folder` or `path` start.
            allow: packages to load classes from, beside this one: loading and making them runs their code.

        Raises:
            RecipeError: a package that is not allowed, no such class, or arguments that it does not take.
        """
        kind = self.imported(allow)
        arguments = {key: _resolved(key, value, folder, allow) for key, value in self.arguments.items()}
        try:
            return kind(**arguments)
        except TypeError as error:
            raise RecipeError(f"{self.target}: its arguments do not fit: {error}") from error

    def imported(self, allow: Sequence[str] = ()) -> type:
        """The class itself; arguments and errors as `build`'s."""
        allowed = (*ALLOWED_PACKAGES, *allow)
        package, _, name = self.target.rpartition(".")
        refusal = f"{self.target}: expected a class from {', '.join(allowed)}; making one runs code: allow others by name (--allow PACKAGE)"
        if package.split(".")[0] not in allowed:
            raise RecipeError(refusal)
        try:
            kind = getattr(importlib.import_module(package), name)
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"{self.target}: expected an importable class, but {error}") from error
        if not isinstance(kind, type):
            raise RecipeError(f"{self.target}: expected a class, got {type(kind).__name__}")
        if kind.__module__.split(".")[0] not in allowed:  # a module's own imports are not its classes
            raise RecipeError(refusal)
        return kind


def from_mapping(kind: type, values: Any, name: str, hidden: Sequence[str] = ()) -> Any:
    """Makes a dataclass of plain values.

    Args:
        kind: the dataclass.
        values: keyword arguments.
        name: as messages call it.
        hidden: fields that plain values must not set.

    Raises:
        RecipeError: not a mapping, unknown or missing keys.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"{name}: expected a mapping, got {values!r}")
    known = [f.name for f in fields(kind) if f.init and f.name not in hidden]
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise RecipeError(f"{name}: unknown key {unknown[0]!r}; expected some of {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{name}: {error}") from error


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Reads a mapping from YAML.

    Args:
        path: the file.
        what: as messages call what it should hold.

    Raises:
        RecipeError: no such file, not YAML, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise RecipeError(f"{path}: expected {what}, but it cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected YAML, but {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a mapping, {what}, got {type(content).__name__}")
    return content


def _resolved(name: str, value: Any, folder: Path, allow: Sequence[str]) -> Any:
    if isinstance(value, list | tuple):
        return [_resolved(name, part, folder, allow) for part in value]
    if isinstance(value, Mapping) and "target" in value:
        return from_mapping(Component, value, str(value["target"])).build(folder, allow)
    return str(folder / value) if name in PATH_ARGUMENTS and isinstance(value, str) else value
