"""A bank at one moment: what its manifest said then, and what has been read of it since."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.format import SCORE_PREFIX, VERDICTS, BankHeader, Origin
from monai_diverse.bank.images import LazyImages
from monai_diverse.bank.manifest import Manifest, ShardRecord
from monai_diverse.bank.samples import COLUMNS, content_hash
from monai_diverse.bank.shard import Shard
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import BankCorruptError


class BankView:
    """What `SampleBank` shows; it never changes, so that threads may read while the bank takes up what was added.

    Args:
        path: the bank's folder.
        manifest: what it said.
        damages: what was left out of a damaged bank, a line each; None for a bank that was opened as a sound one.
    """

    def __init__(self, path: Path, manifest: Manifest, damages: tuple[str, ...] | None) -> None:
        self.path = path
        self.manifest = manifest
        self.damages = damages

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def header(self) -> BankHeader:
        """What all samples have in common."""
        return self.manifest.header

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
        names = self.shards[0].score_names if self.shards else []
        return {name: self.column(SCORE_PREFIX + name) for name in names}

    @cached_property
    def images(self) -> LazyImages:
        """(n, c, *spatial)."""
        starts = itertools.accumulate((len(shard) for shard in self.shards), initial=0)
        return LazyImages(self.shards, tuple(starts)[:-1], len(self), self.header.shape)

    @cached_property
    def by_label(self) -> tuple[IntArray, ...]:
        """Sorted indices, for each class."""
        order = read_only(np.argsort(self.labels, kind="stable").astype(np.int64))
        return tuple(np.split(order, np.searchsorted(self.labels[order], np.arange(1, self.header.classes))))

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, opened."""
        manifest = self.manifest
        while True:
            try:
                return _opened(self.path, manifest)
            except BankCorruptError:
                # a writer may have replaced the last shard since the manifest was read
                now = Manifest.read(self.path)
                if self.damages or now == manifest or not follows(self.path, self.manifest, now):
                    raise
                manifest = now

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column of all shards, read-only."""
        parts = [shard.array(name) for shard in self.shards]
        return read_only(np.concatenate([np.empty(0, COLUMNS.get(name, "float32")), *parts])[: len(self)])


def follows(folder: Path, before: Manifest, now: Manifest) -> bool:
    """Whether a bank has only grown since `before`: its first samples are still the same."""
    if now.header != before.header or now.count < before.count:
        return False
    *full, last = before.shards or (None,)
    if now.shards[: len(full)] != tuple(full) or last is None or last in now.shards:
        return now.shards[: len(full)] == tuple(full)
    return _prefix_hash(folder, now, now.shards[len(full)], last.count) == last.content


def _prefix_hash(folder: Path, manifest: Manifest, record: ShardRecord, count: int) -> str | None:
    try:
        return content_hash(Shard(folder, record, manifest.header).samples()[:count], manifest.header)
    except BankCorruptError:
        return None


def _opened(folder: Path, manifest: Manifest) -> tuple[Shard, ...]:
    # the last one first: a writer may replace it soon, and no other
    shards = [Shard(folder, record, manifest.header, pinned=record == manifest.shards[-1]) for record in reversed(manifest.shards)]
    return tuple(reversed(shards))


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, locked."""
    array.flags.writeable = False
    return array
