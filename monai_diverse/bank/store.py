"""Reading a bank."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.format import BankHeader, Origin
from monai_diverse.bank.images import LazyImages
from monai_diverse.bank.manifest import Manifest
from monai_diverse.bank.salvage import intact
from monai_diverse.bank.view import BankView, follows, read_only
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import BankCorruptError, BankError, BankMismatchError


class SampleBank:
    """Samples on disk, as they were when the bank was opened: read lazily, never held in memory as a whole.

    A bank pickles as its path (a damaged one with what was intact), and a deep copy is the bank itself, so workers of a DataLoader, forked or
    spawned, read the same pages of the operating system's cache. A bank only ever grows at its end: sample i stays sample i while a `BankWriter`
    works on it.

    Use `SampleBank.open`.
    """

    def __init__(self, path: Path, manifest: Manifest, damages: tuple[str, ...] | None = None) -> None:
        self._view = BankView(path, manifest, damages)

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
        view = self._view
        if view.damages is None:
            return SampleBank.open, (str(view.path),)
        return SampleBank, (view.path, view.manifest, view.damages)

    def __copy__(self) -> SampleBank:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleBank:
        return self

    def __repr__(self) -> str:
        return f"SampleBank({str(self.path)!r}, {len(self)} samples of shape {self.header.shape})"

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Sample `index`: (image float32 (c, *spatial) in [0, 1], label)."""
        view = self._view
        return view.images[index], int(view.labels[index])

    def __iter__(self) -> Iterator[tuple[FloatArray, int]]:
        return (self[i] for i in range(len(self)))

    @property
    def path(self) -> Path:
        """The bank's folder, absolute."""
        return self._view.path

    @property
    def header(self) -> BankHeader:
        """What all samples have in common."""
        return self._view.header

    @property
    def progress(self) -> dict[str, Any]:
        """How far the work had come, as the writer put it; a copy."""
        return self._view.progress

    @property
    def class_counts(self) -> list[int]:
        """Samples of each class 0..classes-1."""
        return list(self._view.manifest.class_counts)

    @property
    def damages(self) -> tuple[str, ...]:
        """What was left out at opening with `skip_damaged`, a line each."""
        return self._view.damages or ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over recipe, source, images, labels and seeds; the same however often the work was interrupted, and whatever the scores' noise."""
        return self._view.manifest.fingerprint

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Where the samples came from, in the numbers of `origin_numbers`: the bank itself, or those that it was made of."""
        return self._view.origins

    @property
    def labels(self) -> IntArray:
        """int64 (n,), read-only."""
        return self._view.labels

    @property
    def seeds(self) -> IntArray:
        """int64 (n,), the seed that each image was sampled from; read-only."""
        return self._view.seeds

    @property
    def nearest(self) -> IntArray:
        """int64 (n,), index of the nearest real image as in `screening.Verdict`; -1 where it is not known; read-only."""
        return self._view.nearest

    @property
    def origin_numbers(self) -> npt.NDArray[np.int32]:
        """int32 (n,), which of `origins` each sample came from; read-only."""
        return self._view.origin_numbers

    @property
    def verdicts(self) -> npt.NDArray[np.str_]:
        """Text (n,): "accepted", "unscreened" or a screen's reason against it; read-only."""
        return self._view.verdicts

    @property
    def ids(self) -> npt.NDArray[np.str_]:
        """Text (n,): what names each sample in any bank, RECIPE-SEED with 12 digits of the recipe's fingerprint; read-only.

        A recipe draws each seed once, so a sample keeps its name when banks are merged or split, and no two samples share one.
        """
        return self._view.ids

    @property
    def scores(self) -> Mapping[str, FloatArray]:
        """Every score of the screen by name, float32 (n,) each, read-only."""
        return self._view.scores

    @property
    def images(self) -> LazyImages:
        """The images, float32 (n, c, *spatial) in [0, 1]; read from disk when indexed."""
        return self._view.images

    def indices_of(self, label: int) -> IntArray:
        """int64 (m,), sorted and read-only: which samples have this label; none for labels that the bank does not know. O(1) after the first call."""
        return self._view.by_label[label] if 0 <= label < self.header.classes else _EMPTY

    def reload(self) -> int:
        """Looks at the folder again, so that whoever holds this bank sees what a writer has added since it was opened.

        Safe beside threads that read. DataLoader workers that are running keep what they had.

        Returns:
            How many samples were gained.

        Raises:
            BankError: as `open`.
            BankMismatchError: another bank lies there now, or this one was grown anew.
        """
        before = self._view
        now = SampleBank.open(before.path, skip_damaged=before.damages is not None)._view
        if not follows(before.path, before.manifest, now.manifest):
            raise BankMismatchError(f"{before.path}: expected the bank that was opened, with the same first samples, got another; open it anew")
        if now.manifest != before.manifest:
            self._view = now
        return len(now) - len(before)

    def verify(self) -> None:
        """Reads every byte and compares it with what was written.

        Raises:
            BankCorruptError: names every shard that is missing, truncated, altered or foreign, or says what is off in the manifest.
        """
        manifest = Manifest.read(self.path)
        found, damages = intact(self.path)
        if damages:
            more = f" (and {len(damages) - 1} more shards: {'; '.join(damages[1:])})" if len(damages) > 1 else ""
            raise BankCorruptError(damages[0] + more)
        if found.count == manifest.count and found.class_counts != manifest.class_counts:
            raise BankCorruptError(
                f"{self.path}: the manifest counts {list(manifest.class_counts)} samples by class, the shards hold {list(found.class_counts)}"
            )


_EMPTY: IntArray = read_only(np.empty(0, np.int64))


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
