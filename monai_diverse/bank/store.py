"""Reading a bank."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.format import SCORE_PREFIX, VERDICTS, BankHeader, Origin
from monai_diverse.bank.images import LazyImages
from monai_diverse.bank.manifest import Manifest
from monai_diverse.bank.salvage import intact
from monai_diverse.bank.samples import COLUMNS
from monai_diverse.bank.shard import Shard
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import BankCorruptError, BankError, BankMismatchError


class SampleBank:
    """Samples on disk, as they were when the bank was opened: read lazily, never held in memory as a whole.

    A bank pickles as its path, and a deep copy is the bank itself, so workers of a DataLoader, forked or spawned, read the same pages of the
    operating system's cache. A bank only ever grows at its end: sample i stays sample i while a `BankWriter` works on it.

    Use `SampleBank.open`.
    """

    def __init__(self, path: Path, manifest: Manifest, damages: tuple[str, ...] | None = None) -> None:
        self._path = path
        self._manifest = manifest
        self._damages = damages

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, skip_damaged: bool = False) -> SampleBank:
        """Opens a bank's folder; reads its manifest alone.

        Args:
            path: the folder.
            skip_damaged: read and check every byte now, and open what is intact, with consecutive indices; `damages` says what is left out.

        Raises:
            BankError: there is no bank, or a newer version of this package wrote it.
            BankCorruptError: the manifest is damaged or names files outside the folder; with `skip_damaged`, nothing in the bank is intact.
        """
        folder = Path(path).absolute()
        if skip_damaged:
            return cls(folder, *intact(folder))
        return cls(folder, Manifest.read(folder))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (str(self._path), self._damages is not None)

    def __copy__(self) -> SampleBank:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleBank:
        return self

    def __repr__(self) -> str:
        return f"SampleBank({str(self._path)!r}, {len(self)} samples of shape {self.header.shape})"

    def __len__(self) -> int:
        return self._manifest.count

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Sample `index`: (image float32 (c, *spatial) in [0, 1], label)."""
        return self.images[index], int(self.labels[index])

    def __iter__(self) -> Iterator[tuple[FloatArray, int]]:
        return (self[i] for i in range(len(self)))

    @property
    def path(self) -> Path:
        """The bank's folder, absolute."""
        return self._path

    @property
    def header(self) -> BankHeader:
        """What all samples have in common."""
        return self._manifest.header

    @property
    def progress(self) -> dict[str, Any]:
        """How far the work had come, as the writer put it; a copy."""
        return self._manifest.with_progress(self._manifest.progress).progress

    @property
    def class_counts(self) -> list[int]:
        """Samples of each class 0..classes-1."""
        return list(self._manifest.class_counts)

    @property
    def damages(self) -> tuple[str, ...]:
        """What was left out at opening with `skip_damaged`, a line each."""
        return self._damages or ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over recipe, source, images, labels and seeds; the same however often the work was interrupted, and whatever the scores' noise."""
        return self._manifest.fingerprint

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Where the samples came from, in the numbers of `origin_numbers`: the bank itself, or those that it was made of."""
        own = self.header
        itself = Origin(
            recipe=own.recipe, recipe_fingerprint=own.recipe_fingerprint, source=own.source, features=own.features, progress=self.progress
        )
        return own.origins or (itself,)

    @cached_property
    def labels(self) -> IntArray:
        """int64 (n,), read-only."""
        return self._column("labels")

    @cached_property
    def seeds(self) -> IntArray:
        """int64 (n,), the seed that each image was sampled from; read-only."""
        return self._column("seeds")

    @cached_property
    def nearest(self) -> IntArray:
        """int64 (n,), index of the nearest real image as in `screening.Verdict`; -1 where it is not known; read-only."""
        return self._column("nearest")

    @cached_property
    def origin_numbers(self) -> npt.NDArray[np.int32]:
        """int32 (n,), which of `origins` each sample came from; read-only."""
        return self._column("origins")

    @cached_property
    def verdicts(self) -> npt.NDArray[np.str_]:
        """Text (n,): "accepted", "unscreened" or a screen's reason against it; read-only."""
        return _read_only(np.array(VERDICTS)[self._column("verdicts")])

    @cached_property
    def ids(self) -> npt.NDArray[np.str_]:
        """Text (n,): what names each sample in any bank, RECIPE-SEED with 12 digits of the recipe's fingerprint; read-only.

        A recipe draws each seed once, so a sample keeps its name when banks are merged or split, and no two samples share one.
        """
        heads = [origin.recipe_fingerprint[:12] for origin in self.origins]
        return _read_only(
            np.array([f"{heads[o]}-{s}" for o, s in zip(self.origin_numbers.tolist(), self.seeds.tolist(), strict=True)], dtype=np.str_)
        )

    @cached_property
    def scores(self) -> Mapping[str, FloatArray]:
        """Every score of the screen by name, float32 (n,) each, read-only."""
        names = self._shards[0].score_names if self._shards else []
        return {name: self._column(SCORE_PREFIX + name) for name in names}

    @cached_property
    def images(self) -> LazyImages:
        """The images, float32 (n, c, *spatial) in [0, 1]; read from disk when indexed."""
        starts = itertools.accumulate((len(shard) for shard in self._shards), initial=0)
        return LazyImages(self._shards, tuple(starts)[:-1], len(self), self.header.shape)

    def indices_of(self, label: int) -> IntArray:
        """int64 (m,), sorted and read-only: which samples have this label; none for labels that the bank does not know. O(1) after the first call."""
        return self._by_label[label] if 0 <= label < self.header.classes else _EMPTY

    def reload(self) -> int:
        """Looks at the folder again, so that whoever holds this bank sees what a writer has added since it was opened.

        DataLoader workers that are running keep what they had.

        Returns:
            How many samples were gained.

        Raises:
            BankError: as `open`.
            BankMismatchError: another bank lies there now.
        """
        before, now = self._manifest, SampleBank.open(self._path, skip_damaged=self._damages is not None)
        if now.header != before.header or len(now) < len(self):
            raise BankMismatchError(f"{self._path}: expected the bank that was opened, with at least {len(self)} samples, got another; open it anew")
        self._manifest, self._damages = now._manifest, now._damages
        # after the manifest: a thread that reads meanwhile must not keep what belonged to the old one
        for name in [name for name in vars(self) if isinstance(getattr(type(self), name, None), cached_property)]:
            vars(self).pop(name, None)
        return len(self) - before.count

    def verify(self) -> None:
        """Reads every byte and compares it with what was written.

        Raises:
            BankCorruptError: names every shard that is missing, truncated, altered or foreign, or says what is off in the manifest.
        """
        manifest = Manifest.read(self._path)
        found, damages = intact(self._path)
        if damages:
            more = f" (and {len(damages) - 1} more shards: {'; '.join(damages[1:])})" if len(damages) > 1 else ""
            raise BankCorruptError(damages[0] + more)
        if found.class_counts != manifest.class_counts:
            raise BankCorruptError(
                f"{self._path}: the manifest counts {list(manifest.class_counts)} samples by class, the shards hold {list(found.class_counts)}"
            )

    @cached_property
    def _shards(self) -> tuple[Shard, ...]:
        try:
            return _shards_of(self._path, self._manifest)
        except BankCorruptError:
            # a writer may have replaced the last shard since this bank was opened; what was there before is a prefix of what is there now
            now = Manifest.read(self._path)
            if self._damages is not None or now.shards == self._manifest.shards or now.header != self.header or now.count < len(self):
                raise
            return _shards_of(self._path, now)

    @cached_property
    def _by_label(self) -> tuple[IntArray, ...]:
        order = _read_only(np.argsort(self.labels, kind="stable").astype(np.int64))
        return tuple(np.split(order, np.searchsorted(self.labels[order], np.arange(1, self.header.classes))))

    def _column(self, name: str) -> npt.NDArray[Any]:
        parts = [shard.array(name) for shard in self._shards]
        return _read_only(np.concatenate([np.empty(0, COLUMNS.get(name, "float32")), *parts])[: len(self)])


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


_EMPTY: IntArray = _read_only(np.empty(0, np.int64))


def open_bank(bank: SampleBank | str | os.PathLike[str]) -> SampleBank:
    """The bank itself, or the one at a path.

    Raises:
        BankError: neither a bank nor a path, or no bank there.
    """
    if isinstance(bank, SampleBank):
        return bank
    if not isinstance(bank, str | os.PathLike):
        raise BankError(f"bank: expected a SampleBank or the path of one, got {type(bank).__name__}")
    return SampleBank.open(bank)


def _reopened(path: str, skip_damaged: bool) -> SampleBank:
    return SampleBank.open(path, skip_damaged=skip_damaged)


def _shards_of(folder: Path, manifest: Manifest) -> tuple[Shard, ...]:
    return tuple(Shard(folder, record, manifest.header, pinned=record == manifest.shards[-1]) for record in manifest.shards)
