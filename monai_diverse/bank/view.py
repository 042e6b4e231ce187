"""A bank at one moment: what its manifest said then, and what has been read of it since."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.contents import Contents
from monai_diverse.bank.folder import BankFolder
from monai_diverse.bank.format import SCORE_PREFIX, VERDICTS, BankHeader, Origin
from monai_diverse.bank.images import LazyImages
from monai_diverse.bank.manifest import Manifest
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.storage import fingerprint_of


class BankView:
    """What `SampleBank` shows; it never changes, so that threads may read while the bank takes up what was added.

    Args:
        folder: the bank's.
        manifest: what it said.
        damages: what was left out of a damaged bank, a line each; None for a bank that was opened as a sound one.
    """

    def __init__(self, folder: BankFolder, manifest: Manifest, damages: tuple[str, ...] | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.damages = damages

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def header(self) -> BankHeader:
        """What all samples have in common."""
        return self.manifest.header

    def place(self, index: int) -> int:
        """The place that an index means, which may count from the end; raises IndexError if there is none."""
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        return place

    @property
    def progress(self) -> dict[str, Any]:
        """How far the work had come; a copy."""
        return self.manifest.with_progress(self.manifest.progress).progress

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The header's origins, or the bank itself as the only one."""
        own = self.header
        itself = Origin(
            recipe=own.recipe, recipe_fingerprint=own.recipe_fingerprint, source=own.source, features=own.features, progress=self.progress
        )
        return own.origins or (itself,)

    @cached_property
    def labels(self) -> IntArray:
        """int64 (n,)."""
        return self.column("labels")

    @cached_property
    def seeds(self) -> IntArray:
        """int64 (n,)."""
        return self.column("seeds")

    @cached_property
    def nearest(self) -> IntArray:
        """int64 (n,)."""
        return self.column("nearest")

    @cached_property
    def origin_numbers(self) -> npt.NDArray[np.int32]:
        """int32 (n,)."""
        return self.column("origins")

    @cached_property
    def verdicts(self) -> npt.NDArray[np.str_]:
        """Text (n,)."""
        return read_only(np.array(VERDICTS)[self.column("verdicts")])

    @cached_property
    def ids(self) -> npt.NDArray[np.str_]:
        """Text (n,)."""
        heads = [origin.recipe_fingerprint[:12] for origin in self.origins]
        return read_only(np.array([f"{heads[o]}-{s}" for o, s in zip(self.origin_numbers.tolist(), self.seeds.tolist(), strict=True)], dtype=np.str_))

    @cached_property
    def scores(self) -> Mapping[str, FloatArray]:
        """float32 (n,) each."""
        return {name: self.column(SCORE_PREFIX + name) for name in self.contents.score_names()}

    @cached_property
    def contents(self) -> Contents:
        """Its files."""
        return Contents(self.folder, self.manifest)

    @cached_property
    def images(self) -> LazyImages:
        """(n, c, *spatial)."""
        return LazyImages(self.contents, len(self), self.header.shape)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over recipe, source and the shards' contents; the same however often the work was interrupted."""
        contents = [record.content for record in self.contents.records()]
        return fingerprint_of([self.header.recipe_fingerprint, self.header.source["fingerprint"], contents])

    def verdict_counts(self) -> dict[str, int]:
        """How many samples have each verdict that occurs."""
        counts = sum((np.bincount(part, minlength=len(VERDICTS)) for part in self.contents.column("verdicts")), np.zeros(len(VERDICTS), np.int64))
        return {word: int(count) for word, count in sorted(zip(VERDICTS, counts, strict=True)) if count}

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column of all shards, read-only."""
        return read_only(np.concatenate(list(self.contents.column(name))))


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, locked."""
    array.flags.writeable = False
    return array
