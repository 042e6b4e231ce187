"""The configuration of a MONAI bundle that is trusted: the one place where code of a bundle runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from monai_diverse.errors import DataError
from monai_diverse.sources.bundle_config import BundleConfig


class TrustedConfig(BundleConfig):
    """The same by MONAI's own parser, which runs the code in the bundle's files and scripts."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        super().__init__(folder, files)
        self._parser = ConfigParser(self._content)

    def value(self, key: str) -> Any:
        """The value of a key, whatever code it takes."""
        self.raw(key)
        return self._parsed(key)

    def build(self, key: str, switches: Mapping[str, bool], stand_ins: Mapping[str, str]) -> nn.Module:
        """Makes what a key defines, of whatever class."""
        definition = self.raw(key)
        if isinstance(definition, dict):
            definition |= {name: False for name, on in switches.items() if name in definition and not on}
            definition |= {"_target_": stand_ins[definition["_target_"]]} if definition.get("_target_") in stand_ins else {}
            self._parser = ConfigParser(self._content)
        made = self._parsed(key)
        if not isinstance(made, nn.Module):
            raise DataError(f"{self._name(key)}: expected a network or a scheduler, got {type(made).__name__}")
        return made

    def _parsed(self, key: str) -> Any:
        with _importing_from(self.folder):
            try:
                return self._parser.get_parsed_content(key)
            except Exception as error:  # the bundle's code may raise anything
                raise DataError(f"{self._name(key)}: its code failed: {' '.join(str(error.__cause__ or error).split())}") from error


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Makes the bundle's own packages importable, such as its `scripts`, and hides those that another bundle left."""
    own = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))}
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in own}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(aside)
