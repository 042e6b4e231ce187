"""Banks for the control arms: as many images of each class as another bank, but not diverse ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.data import IntArray, LabelledImages
from monai_diverse.errors import DataError
from monai_diverse.storage import fingerprint_of


def duplicates_bank(path: Path, train: LabelledImages, like: SampleBank, *, seed: int, resume: bool = False) -> SampleBank:
    """Writes the bank of the control 'duplicates': real training images, as many of each class as `like` holds.

    Images are drawn without replacement; a class with fewer real images than asked starts over once all are used. The
    sample's seed is the image's index in `train`.

    Args:
        path: folder of the new bank.
        train: the real images.
        like: the bank whose class counts, shape and dtype to match; if it is empty, so is the result.
        seed: decides which images.
        resume: return the bank in `path` if it is this one already.

    Raises:
        DataError: a class of `like` without any real image.
        BankError: `path` holds a bank and `resume` is off, or another process writes it.
        BankMismatchError: `path` holds another bank.
    """
    picks = _matching_picks(train.labels, like, np.random.default_rng(seed), repeat=True)
    source = {"name": "repeated real training images", "fingerprint": train.sha256()}
    return _write(path, train, picks, like, recipe={"control": "duplicates", "seed": seed}, source=source, resume=resume)


def matched_bank(
    path: Path, generated: LabelledImages, like: SampleBank, *, seed: int, source: dict[str, Any] | None = None, resume: bool = False
) -> SampleBank:
    """Writes the bank of the control 'random': generated images taken blindly, as many of each class as `like` holds.

    Args:
        path: folder of the new bank.
        generated: unscreened images of the same generator.
        like: the bank whose class counts, shape and dtype to match; if it is empty, so is the result.
        seed: decides which images; drawn without replacement.
        source: what the manifest says of the generator: name, licence and so on.
        resume: return the bank in `path` if it is this one already.

    Raises:
        DataError: fewer generated images of a class than `like` holds.
        BankError: `path` holds a bank and `resume` is off, or another process writes it.
        BankMismatchError: `path` holds another bank.
    """
    picks = _matching_picks(generated.labels, like, np.random.default_rng(seed), repeat=False)
    origin = {"name": "generated images"} | (source or {}) | {"fingerprint": generated.sha256()}
    return _write(path, generated, picks, like, recipe={"control": "random", "seed": seed}, source=origin, resume=resume)


def _matching_picks(labels: IntArray, like: SampleBank, rng: np.random.Generator, *, repeat: bool) -> IntArray:
    picks: list[npt.NDArray[np.int64]] = []
    for label, wanted in enumerate(np.bincount(like.labels)):
        own = np.flatnonzero(labels == label)
        if len(own) < (min(wanted, 1) if repeat else wanted):
            raise DataError(f"control bank: expected at least {1 if repeat else wanted} images of class {label} to match the bank, got {len(own)}")
        rounds = -(-wanted // max(len(own), 1))
        picks += [np.concatenate([rng.permutation(own) for _ in range(rounds)])[:wanted]] if wanted else []
    return rng.permutation(np.concatenate(picks)) if picks else np.empty(0, dtype=np.int64)


def _write(
    path: Path, images: LabelledImages, picks: IntArray, like: SampleBank, *, recipe: dict[str, Any], source: dict[str, Any], resume: bool
) -> SampleBank:
    if images.images.shape[1:] != tuple(like.header.shape):
        raise DataError(f"control bank: expected images of shape {tuple(like.header.shape)} as in the bank, got {images.images.shape[1:]}")
    recipe = recipe | {"like": like.fingerprint}
    header = BankHeader(
        recipe=recipe,
        recipe_fingerprint=fingerprint_of([recipe, source]),
        source=source,
        features={},
        shape=like.header.shape,
        classes=like.header.classes,
        dtype=like.header.dtype,
    )
    with BankWriter.create_or_resume(path, header, resume=resume) as writer:
        if writer.count < len(picks):
            # all in one append: an interrupted write leaves an empty bank, never a part
            writer.append(images.images[picks], images.labels[picks], picks, {}, {"count": len(picks)}, verdicts=["unscreened"] * len(picks))
        return writer.bank
