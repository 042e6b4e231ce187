"""Banks made from banks: merged, split by class, or what is intact of a damaged one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.bank.folder import local_path
from monai_diverse.bank.format import BankHeader, Origin, drawn_of
from monai_diverse.bank.store import SampleBank
from monai_diverse.bank.writer import BankWriter
from monai_diverse.data import IntArray
from monai_diverse.errors import BankError, BankMismatchError
from monai_diverse.storage import fingerprint_of, new_folder

Picks = Sequence[tuple[SampleBank, IntArray, IntArray]]
"""Banks, which samples of each, and the numbers that its origins have in the new bank."""


def merge(banks: Sequence[SampleBank], out: Path | str) -> SampleBank:
    """One bank with the samples of several, in their order; a sample that several hold (by its id) is taken once.

    Each sample keeps its seed, verdict, nearest image and id; of the scores those are kept that all banks have. The new bank's `origins` say what
    each was grown from. Merging is no screening: samples of two banks may resemble one another.

    Args:
        banks: at least one; of one image shape, dtype, number of classes and, where they name them, class names. Banks opened with `skip_damaged`
            give what is intact of them.
        out: a folder that does not exist yet, or is empty; the bank appears there when it is complete.

    Raises:
        BankError: no bank, or `out` holds something.
        BankMismatchError: banks that do not fit together.
        BankCorruptError: a bank is damaged.
        StorageError: the disk refuses.
    """
    if not banks:
        raise BankError("merge: expected at least one bank, got none")
    _require_alike(banks)
    origins, numbers = _origins_of(banks)
    seen: set[str] = set()
    picks = []
    for bank, renumbered in zip(banks, numbers, strict=True):
        places = [i for i, name in enumerate(bank.ids.tolist()) if name not in seen]
        seen.update(bank.ids.tolist())
        picks.append((bank, np.array(places, np.int64), renumbered))
    header = _derived(banks[0].header, {"merged": [bank.fingerprint for bank in banks]}, origins)
    return _written(out, header, picks)


def split_by_class(bank: SampleBank, out: Path | str) -> list[SampleBank]:
    """A bank for each class that has samples, in `out/LABEL_NAME`; labels stay as they are.

    Args:
        bank: the samples.
        out: a folder; made if there is none. The new banks' own folders must not hold anything yet.

    Raises:
        BankError, BankCorruptError, StorageError: as `merge`.
    """
    origins, (numbers,) = _origins_of([bank])
    made = []
    for label in (label for label, count in enumerate(bank.class_counts) if count):
        header = _derived(bank.header, {"split": bank.fingerprint, "label": label}, origins)
        made.append(_written(local_path(out) / class_folder(bank.header, label), header, [(bank, bank.indices_of(label), numbers)]))
    return made


def select(bank: SampleBank, indices: IntArray, out: Path | str) -> SampleBank:
    """A bank of some samples of another, in the order given.

    Each keeps what `merge` keeps; the new bank's `origins` say where they came from.

    Args:
        bank: the samples.
        indices: (m,) which of them; each at most once.
        out: as in `merge`.

    Raises:
        BankError: an index that the bank does not have, or has been given twice, or `out` holds something.
        BankCorruptError, StorageError: as `merge`.
    """
    places = np.asarray(indices, dtype=np.int64).reshape(-1)
    if len(places) and (places.min() < 0 or places.max() >= len(bank) or len(np.unique(places)) < len(places)):
        raise BankError(f"select: expected different indices 0..{len(bank) - 1}, got {len(places)} that are not all so")
    origins, (numbers,) = _origins_of([bank])
    chosen = {"selected": bank.fingerprint, "indices": fingerprint_of(places.tolist())}
    return _written(out, _derived(bank.header, chosen, origins), [(bank, places, numbers)])


def class_folder(header: BankHeader, label: int) -> str:
    """A folder name for a class: its label, so that folders sort as labels do, and its name."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", header.class_name(label)).strip("_")
    return f"{label:0{len(str(header.classes - 1))}d}_{name or 'class'}"


@contextlib.contextmanager
def fresh_bank(out: Path | str, header: BankHeader) -> Iterator[BankWriter]:
    """A writer of a new bank, which appears at `out` once the block has ended without an error.

    Raises:
        BankError: `out` holds something.
        StorageError: the disk refuses.
    """
    folder = local_path(out)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BankError(f"{folder}: expected a new or empty folder, got one that holds something; choose another")
    with new_folder(folder) as temporary, BankWriter.create_or_resume(temporary, header, resume=False) as writer:
        yield writer


def _require_alike(banks: Sequence[SampleBank]) -> None:
    asked: dict[str, Callable[[SampleBank], Any]] = {
        "image shape": lambda bank: bank.header.shape,
        "dtype": lambda bank: bank.header.dtype,
        "number of classes": lambda bank: bank.header.classes,
        "class names": lambda bank: bank.header.source.get("class_names") or None,
    }
    for name, value_of in asked.items():
        known = [bank for bank in banks if value_of(bank) is not None]  # not every source names its classes
        for bank in known[1:]:
            if value_of(bank) != value_of(known[0]):
                first, other = value_of(known[0]), value_of(bank)
                raise BankMismatchError(f"{bank.location}: expected the {name} of {known[0].location}, {first}, got {other}; banks must fit together")


def _origins_of(banks: Sequence[SampleBank]) -> tuple[tuple[Origin, ...], list[IntArray]]:
    """All origins once each, by recipe, and for each bank the numbers of its own among them; of one recipe, the progress that went farthest."""
    known: dict[str, Origin] = {}
    for origin in (origin for bank in banks for origin in bank.origins):
        before = known.setdefault(origin.recipe_fingerprint, origin)
        if drawn_of(origin.progress) > drawn_of(before.progress):
            known[origin.recipe_fingerprint] = origin
    places = {fingerprint: place for place, fingerprint in enumerate(known)}
    return tuple(known.values()), [np.array([places[o.recipe_fingerprint] for o in bank.origins], np.int64) for bank in banks]


def _derived(like: BankHeader, recipe: dict[str, Any], origins: tuple[Origin, ...]) -> BankHeader:
    sources = [origin.source for origin in origins]
    licences = sorted({str(source.get("licence", "unknown")) for source in sources})
    names = next((source["class_names"] for source in sources if source.get("class_names")), like.source.get("class_names"))
    source = {
        "name": " + ".join(sorted({str(source.get("name", "unnamed")) for source in sources})),
        "fingerprint": fingerprint_of([source["fingerprint"] for source in sources]),
        "licence": " and ".join(licences),
        "class_names": names,
    }
    return replace(like, recipe=recipe, recipe_fingerprint=fingerprint_of(recipe), source=source, features={}, origins=origins)


def _written(out: Path | str, header: BankHeader, picks: Picks) -> SampleBank:
    held = [set(bank.scores) for bank, places, _ in picks if len(places)]
    scores = sorted(set.intersection(*held)) if held else []
    with fresh_bank(out, header) as writer:
        for bank, places, numbers in picks:
            for start in range(0, len(places), header.capacity):
                part = places[start : start + header.capacity]
                writer.append(
                    bank.images[part],
                    bank.labels[part],
                    bank.seeds[part],
                    {name: bank.scores[name][part] for name in scores},
                    {},
                    verdicts=bank.verdicts[part].tolist(),
                    nearest=bank.nearest[part],
                    origins=numbers[bank.origin_numbers[part]],
                )
    return SampleBank.open(out)
