"""What a bank is made of and what it is for, as a page that travels with it (after Gebru et al., Datasheets for Datasets, CACM 2021)."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_diverse.bank import Origin, SampleBank
from monai_diverse.bank.format import NONSENSE
from monai_diverse.screening import Yield
from monai_diverse.storage import write_atomic
from monai_diverse.version import __version__

FILE = "datasheet.md"
AUDIT = "audit.json"
_NO_AUDIT = "Not run: whether the generator leans towards its training patients is not known."
_DEPENDENT = "; draws under a guide depend on one another, so that interval is too narrow"
_NO_CONTROL = "not known, since the recipe named no control images; without them the yield says little"
_PLAIN = {"|": "/", "`": "'", "<": "(", ">": ")", "[": "(", "]": ")", "!": "."}
_USE = """\
- For training and for studying image classifiers, beside real images of the same kind. Compare every gain with control arms of
  equal count.
- Not for clinical use, not for testing a classifier, and not as evidence about patients: samples carry no information about the true
  distribution beyond what the generator learned from its training images.
- Not an anonymised data set: a generator can leak its training patients. The copy gate is no privacy guarantee."""


def write_datasheet(bank: SampleBank) -> Path:
    """Writes `datasheet.md` into the bank's folder, atomically.

    Raises:
        StorageError: the disk refuses; the bank is intact.
    """
    path = bank.path / FILE
    write_atomic(path, datasheet(bank).encode())
    return path


def datasheet(bank: SampleBank) -> str:
    """The page, in Markdown; it holds what the bank itself says, and so no more than whoever wrote the bank knew."""
    header = bank.header
    counts = [f"| {label} | {_cell(header.class_name(label))} | {count} |" for label, count in enumerate(bank.class_counts)]
    verdicts = ", ".join(f"{count} {word}" for word, count in sorted(Counter(bank.verdicts.tolist()).items())) or "none"
    parts = [
        f"# Datasheet of the bank {_cell(bank.path.name)}",
        f"Written by monai_diverse {__version__} for {len(bank)} samples with fingerprint `{bank.fingerprint}`; a bank that grew since has another.",
        "## What it holds",
        f"{len(bank)} synthetic images of shape {header.shape} (channels, *spatial), stored as {header.dtype}. Verdicts of the screen: {verdicts}.",
        "\n".join(["| label | class | samples |", "| --- | --- | --- |", *counts]),
        "## Where it comes from",
        "\n".join(_origin(bank, number, origin) for number, origin in enumerate(bank.origins)),
        "## Leakage audit",
        f"Run: see `{AUDIT}` beside this page." if (bank.path / AUDIT).is_file() else _NO_AUDIT,
        "## What it is for",
        _USE,
        "## How to check it",
        "`monai-diverse verify BANK` compares every byte with the hashes in `manifest.json`; `monai-diverse inspect BANK` prints the scores.",
    ]
    return "\n\n".join(parts) + "\n"


def yields_of(progress: Mapping[str, Any]) -> Yield | None:
    """The yield that a bank's progress speaks of; None if it does not, or makes no sense."""
    try:
        drawn, rejections = progress["drawn"], progress["rejections"]
        return _sensible(Yield(drawn=drawn, accepted=drawn - sum(rejections.values()), nfe=progress.get("nfe")))
    except NONSENSE:
        return None


def control_of(progress: Mapping[str, Any]) -> Yield | None:
    """The yield of unseen real images that a bank's progress speaks of; None if it does not, or makes no sense."""
    try:
        return _sensible(Yield(drawn=progress["control"]["drawn"], accepted=progress["control"]["accepted"]))
    except NONSENSE:
        return None


def _sensible(found: Yield) -> Yield:
    found.as_json()  # numbers that are none show here
    return found


def _origin(bank: SampleBank, number: int, origin: Origin) -> str:
    count = int((bank.origin_numbers == number).sum())
    source, found = origin.source, yields_of(origin.progress)
    control = control_of(origin.progress)
    lines = [
        f"- **{_cell(source.get('name', 'unnamed'))}**: {count} samples",
        f"  - source fingerprint `{_code(source['fingerprint'])}`, recipe fingerprint `{origin.recipe_fingerprint}`",
        f"  - licence of the source's data: {_cell(source.get('licence', 'unknown'))}",
        f"  - screen: {_screen(origin.features)}",
        f"  - accepted: {'not recorded' if found is None else found}{_DEPENDENT if found and origin.recipe.get('guide') else ''}",
        f"  - unseen real images under the same screen: {_NO_CONTROL if control is None else control}",
        *(f"  - {line}" for line in _sets(origin.features)),
        f"  - recipe: `{_code(json.dumps(origin.recipe, sort_keys=True))}`",
    ]
    return "\n".join(lines)


def _screen(features: Mapping[str, Any]) -> str:
    if not features:
        return "none recorded; these images were not screened by this package, or the screen's record is lost"
    return f"features fingerprint `{_code(features.get('fingerprint', 'not recorded'))}`"


def _sets(features: Mapping[str, Any]) -> list[str]:
    titles = {"generator_train": "what the generator saw", "reference": "what the user had", "calibration": "what set the thresholds"}
    told = []
    for name, title in titles.items():
        with contextlib.suppress(*NONSENSE):
            held = features["sets"][name]
            told.append(
                f"{title}: " + ("unknown" if held is None else f"{int(held['shape'][0])} images, by class {list(map(int, held['class_counts']))}")
            )
    return told


def _cell(value: Any) -> str:
    """Text from a bank as text and nothing else: one line, no markup."""
    return "".join(_PLAIN.get(letter, letter) for letter in _line(value))


def _code(value: Any) -> str:
    """Text from a bank, to stand between backticks."""
    return _line(value).replace("`", "'")


def _line(value: Any) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
