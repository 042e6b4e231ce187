"""Who sees what in an audit by twins: kept beside them, so that a later version, which may divide otherwise, reads the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.audit.halves import Halves, halves, test_part
from monai_diverse.data import IntArray, LabelledImages
from monai_diverse.errors import DataError
from monai_diverse.storage import read_json, write_json

DIVISION = "division.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Division:
    """Indices into the data.

    Attributes:
        test: what no twin sees.
        rest: what twins may see.
        pairs: what the twins of each pair see.
    """

    test: IntArray
    rest: IntArray
    pairs: list[Halves]

    @classmethod
    def of(cls, data: LabelledImages, test_parts: int, seed: int) -> Division:
        """Test images set aside, and no pair yet.

        Raises:
            DataError: fewer groups of a class than `test_parts`.
        """
        rest, test = test_part(data, test_parts, seed)
        return cls(test=test, rest=rest, pairs=[])

    @classmethod
    def read(cls, folder: Path, data: LabelledImages) -> Division:
        """What `write` wrote of this data.

        Raises:
            DataError: it cannot be read, or is of other data: patients would be in two parts.
        """
        content, count = read_json(folder / DIVISION), len(data)
        try:
            test, rest = (_indices(content[name], count) for name in ("test", "rest"))
            pairs = [Halves(a=_indices(pair["a"], count), b=_indices(pair["b"], count)) for pair in content["pairs"]]
            for pair in pairs:
                _require_apart(data.group_ids, test, pair)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder / DIVISION}: expected who sees what of {count} images, but it cannot be read ({error}); use another folder"
            ) from error
        return cls(test=test, rest=rest, pairs=pairs)

    def extended(self, data: LabelledImages, pairs: int, per_twin: int | None, seed: int) -> Division:
        """With at least so many pairs.

        Raises:
            DataError: see `halves`.
        """
        more = [halves(data, self.rest, pair, per_twin, seed) for pair in range(len(self.pairs), pairs)]
        return Division(test=self.test, rest=self.rest, pairs=self.pairs + more)

    def write(self, folder: Path) -> None:
        """Keeps it, atomically."""
        write_json(folder / DIVISION, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """All indices."""
        pairs = [{"a": pair.a.tolist(), "b": pair.b.tolist()} for pair in self.pairs]
        return {"test": self.test.tolist(), "rest": self.rest.tolist(), "pairs": pairs}


def _require_apart(groups: IntArray, test: IntArray, pair: Halves) -> None:
    parts = [np.unique(groups[indices]) for indices in (test, pair.a, pair.b)]
    if len(np.unique(np.concatenate(parts))) < sum(len(part) for part in parts):
        raise ValueError("patients in two parts")


def _indices(values: Any, count: int) -> IntArray:
    indices = np.asarray(values)
    if indices.ndim != 1 or indices.dtype.kind != "i" or not len(indices) or indices.min() < 0 or indices.max() >= count:
        raise ValueError(f"not indices below {count}")
    return indices.astype(np.int64)
