"""What is intact of a damaged bank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from monai_diverse.bank.format import MANIFEST, SHARD_NAME, BankHeader
from monai_diverse.bank.manifest import Manifest, ShardRecord
from monai_diverse.bank.samples import content_hash
from monai_diverse.bank.shard import Shard, stated_place
from monai_diverse.errors import BankCorruptError, BankError, RecipeError
from monai_diverse.storage import sha256_of


def intact(folder: Path) -> tuple[Manifest, tuple[str, ...]]:
    """A table of contents of the shards that are as they were written, and what is wrong with the others, a line each.

    Reads every byte. Where the manifest itself is damaged or lost, the shards are what it is made of anew: each holds the bank's header, and its name
    its own hash. The progress (what was drawn, the yields) is lost then.

    Raises:
        BankError: there is no bank, a newer version wrote it, or nothing in it is intact.
    """
    try:
        manifest, damages = Manifest.read(folder), []
    except BankError as error:
        missing = not (folder / MANIFEST).exists()
        if not isinstance(error, BankCorruptError) and not missing:
            raise
        manifest, damages = _rebuilt(folder, error), [str(error)]
    kept: list[ShardRecord] = []
    counts = np.zeros(manifest.header.classes, np.int64)
    scores: list[str] | None = None
    for record in manifest.shards:
        try:
            shard = Shard(folder, record, manifest.header)
            labels = shard.verify().labels
        except BankCorruptError as error:
            damages.append(str(error))
            continue
        if scores is None:
            scores = shard.score_names
        if shard.score_names != scores:
            damages.append(f"{folder / record.file}: expected scores {scores} as in the shards before, got {shard.score_names}")
            continue
        kept.append(record)
        counts += np.bincount(labels, minlength=len(counts))
    if damages and not kept:
        raise BankCorruptError(f"{folder}: nothing in it is intact; {damages[0]}")
    return replace(manifest, shards=tuple(kept), class_counts=tuple(counts.tolist())), tuple(damages)


def _rebuilt(folder: Path, cause: BankError) -> Manifest:
    """A manifest made from the shards' own words; raises `cause` where there are none that say enough."""
    best: dict[int, tuple[ShardRecord, BankHeader]] = {}
    for path in _candidates(folder):
        with contextlib.suppress(BankCorruptError, RecipeError, SafetensorError, OSError, KeyError, TypeError, ValueError):
            record, header = _self_described(folder, path)
            # a crash may leave a shard beside the longer one that superseded it
            if record.number not in best or record.count > best[record.number][0].count:
                best[record.number] = record, header
    if not best:
        raise cause
    headers = [header for _, header in best.values()]
    header = max(headers, key=headers.count)
    records = tuple(best[number][0] for number in sorted(best) if best[number][1] == header)
    counts = (0,) * header.classes  # the caller counts what it finds intact
    return Manifest(header=header, progress={}, shards=records, class_counts=counts, capacity=header.capacity)


def _candidates(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(entry for entry in folder.iterdir() if SHARD_NAME.fullmatch(entry.name) and entry.resolve().parent == folder.resolve())


def _self_described(folder: Path, path: Path) -> tuple[ShardRecord, BankHeader]:
    with safe_open(path, framework="np") as file:
        stated = stated_place(file.metadata() or {}) or {}
        count = int(file.get_slice("labels").get_shape()[0])
    header = BankHeader.from_json(stated["header"])
    digest = sha256_of(path)
    record = ShardRecord(file=path.name, sha256=digest, content="", count=count, size=path.stat().st_size)
    return replace(record, content=content_hash(Shard(folder, record, header).samples(), header)), header
