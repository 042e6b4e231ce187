"""Reading a bank."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.contents import follows
from monai_diverse.bank.folder import BankFolder, folder_of
from monai_diverse.bank.format import BankHeader, Origin
from monai_diverse.bank.images import LazyImages
from monai_diverse.bank.manifest import Manifest
from monai_diverse.bank.salvage import intact
from monai_diverse.bank.view import BankView, read_only
from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import BankCorruptError, BankError, BankMismatchError


class SampleBank:
    """Samples on disk, as they were when the bank was opened: read lazily, never held in memory as a whole.

    A bank pickles as its path (a damaged one with what was intact), and a deep copy is the bank itself, so workers of a DataLoader, forked or
    spawned, read the same pages of the operating system's cache. A bank only ever grows at its end: sample i stays sample i while a `BankWriter`
    works on it. A bank behind a URL pickles as that, its cache's folder and the options of its file system: what these hold of credentials too.

    Opening, drawing and reading a sample take the same time and memory in a bank of any size; what is an array of all samples is read when it is
    asked for.

    Use `SampleBank.open`.
    """

    def __init__(self, folder: BankFolder, manifest: Manifest, damages: tuple[str, ...] | None = None) -> None:
        self._view = BankView(folder, manifest, damages)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        skip_damaged: bool = False,
        cache: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> SampleBank:
        """Opens a bank's folder, here or behind a URL; reads its manifest alone.

        Args:
            path: the folder; or a URL that fsspec knows, such as "s3://bucket/bank", of a bank that is read only.
            skip_damaged: read and check every byte now, and open what is intact, with consecutive indices; `damages` says what is left out.
            cache: of a bank behind a URL, where to keep the files that were needed, in a folder of its own; None:
                `$XDG_CACHE_HOME/monai_diverse/banks`, or `~/.cache/monai_diverse/banks`. Each is compared with its hash before it is used.
            storage_options: of a bank behind a URL, what fsspec's file system is to be told. Credentials are better left to the environment.

        Raises:
            BankError: there is no bank, or a newer version of this package wrote it, or the URL cannot be reached.
            BankCorruptError: the manifest is damaged or names files outside the folder; with `skip_damaged`, nothing in the bank is intact.
            MissingExtraError: the URL's file system is not installed.
        """
        folder = folder_of(path, cache, storage_options)
        if skip_damaged:
            return cls(folder, *intact(folder))
        return cls(folder, Manifest.read(folder))

    def __reduce__(self) -> tuple[Any, ...]:
        view = self._view
        if view.damages is None:
            return _reopened, view.folder.reopened_by
        return SampleBank, (view.folder, view.manifest, view.damages)

    def __copy__(self) -> SampleBank:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SampleBank:
        return self

    def __repr__(self) -> str:
        return f"SampleBank({self.location!r}, {len(self)} samples of shape {self.header.shape})"

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, index: int) -> tuple[FloatArray, int]:
        """Sample `index`: (image float32 (c, *spatial) in [0, 1], label)."""
        view = self._view
        return view.images[index], view.contents.label(view.place(index))

    def __iter__(self) -> Iterator[tuple[FloatArray, int]]:
        return (self[i] for i in range(len(self)))

    @property
    def path(self) -> Path:
        """The bank's folder, absolute; of a bank behind a URL the folder in the cache."""
        return self._view.folder.path

    @property
    def folder(self) -> BankFolder:
        """Where its files are asked for."""
        return self._view.folder

    @property
    def location(self) -> str:
        """What `open` finds the bank by: its absolute path, or its URL."""
        return self._view.folder.location

    @property
    def url(self) -> str | None:
        """Where a bank comes from that is not on this machine; it is read only."""
        return None if self.location == str(self.path) else self.location

    def beside(self, name: str) -> Path | None:
        """A file that lies beside the samples, such as `audit.json`, to read; None if there is none."""
        return self._view.folder.beside(name)

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
        return self._view.fingerprint

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

    @property
    def verdict_counts(self) -> dict[str, int]:
        """How many samples have each verdict that occurs; in constant memory."""
        return self._view.verdict_counts()

    def indices_of(self, label: int) -> IntArray:
        """int64 (m,), sorted and read-only: which samples have this label; none for labels that the bank does not know. Read when it is asked for."""
        return read_only(self._view.contents.of_label(label)) if 0 <= label < self.header.classes else _EMPTY

    def count_of(self, label: int) -> int:
        """How many samples have this label; 0 for labels that the bank does not know."""
        return self._view.manifest.class_counts[label] if 0 <= label < self.header.classes else 0

    def nth_of(self, label: int, number: int) -> int:
        """`indices_of(label)[number]`, in constant time and memory.

        Raises:
            IndexError: there are not so many of this label.
        """
        if not 0 <= number < self.count_of(label):
            raise IndexError(f"expected a number below {self.count_of(label)}, the samples of label {label}, got {number}")
        return self._view.contents.nth(label, number)

    def label_of(self, index: int) -> int:
        """`labels[index]`, in constant time and memory.

        Raises:
            IndexError: no such sample.
        """
        view = self._view
        return view.contents.label(view.place(index))

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
        folder = before.folder
        now = BankView(folder, Manifest.read(folder), None) if before.damages is None else BankView(folder, *intact(folder))
        if not follows(folder, before.manifest, now.manifest):
            raise BankMismatchError(f"{folder.location}: expected the bank that was opened, with the same first samples, got another; open it anew")
        if now.manifest != before.manifest:
            self._view = now
        return len(now) - len(before)

    def verify(self) -> None:
        """Reads every byte and compares it with what was written.

        Raises:
            BankCorruptError: names every shard and index file that is missing, truncated, altered or foreign, or says what is off in the manifest.
        """
        folder = self._view.folder
        manifest = Manifest.read(folder)
        with folder.anew() as fresh:
            found, damages = intact(fresh)
        if damages:
            more = f" (and {len(damages) - 1} more: {'; '.join(damages[1:])})" if len(damages) > 1 else ""
            raise BankCorruptError(damages[0] + more)
        if found.count == manifest.count and found.class_counts != manifest.class_counts:
            raise BankCorruptError(
                f"{folder.location}: the manifest counts {list(manifest.class_counts)} samples by class, the shards hold {list(found.class_counts)}"
            )


_EMPTY: IntArray = read_only(np.empty(0, np.int64))


def _reopened(*arguments: Any) -> SampleBank:
    path, cache, options = (*arguments, None, None)[:3]
    return SampleBank.open(path, cache=cache, storage_options=options)


def open_bank(bank: SampleBank | str | os.PathLike[str]) -> SampleBank:
    """The bank itself, or the one at a path or URL.

    Raises:
        BankError: neither a bank nor a path, or no bank there.
    """
    if isinstance(bank, SampleBank):
        return bank
    if not isinstance(bank, str | os.PathLike):
        raise BankError(f"bank: expected a SampleBank or the path or URL of one, got {type(bank).__name__}")
    return SampleBank.open(bank)
