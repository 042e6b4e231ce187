"""What a bank is made of and what it is for, as a page that travels with it (after Gebru et al., Datasheets for Datasets, CACM 2021)."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from monai_diverse.bank import Origin, SampleBank
from monai_diverse.bank.folder import local_path
from monai_diverse.bank.format import AUDIT as AUDIT  # this module is where others look for it
from monai_diverse.bank.format import DATASHEET, NONSENSE
from monai_diverse.errors import DataError
from monai_diverse.screening import Yield
from monai_diverse.storage import read_json, write_atomic
from monai_diverse.version import __version__

NO_AUDIT = "Not run: whether the generator leans towards its training patients is not known."
NO_PATIENTS = "Patients were not given: near-duplicate images stand in for them. If patients have several images, p and intervals are too small."
_UNREADABLE = f"Run: see `{AUDIT}`, whose figures cannot be read here."
_SUBJECTS = {
    "bank": "the images of this bank as they are",
    "source": "the model that these samples come from, without this bank's guide and screen",
    "other": "another model, other settings, or this bank before it changed",
}
_DEPENDENT = "; draws under a guide depend on one another, so that interval is too narrow"
_NO_CONTROL = "not known, since the recipe named no control images; without them the yield says little"
_WORDS = ("within", "beyond", "unresolved")
_LONGEST = 500
_MOST_REASONS = 10
_ALPHA = 0.05
_SETTINGS = ("guidance", "scheduler", "steps", "guide")
_LARGEST_AUDIT = 2**24
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
        BankError: a bank behind a URL.
        StorageError: the disk refuses; the bank is intact.
    """
    path = local_path(bank.location, "a datasheet") / DATASHEET
    write_atomic(path, datasheet(bank).encode())
    return path


def datasheet(bank: SampleBank) -> str:
    """The page, in Markdown; it holds what the bank itself says, and so no more than whoever wrote the bank knew."""
    header = bank.header
    counts = [f"| {label} | {_cell(header.class_name(label))} | {count} |" for label, count in enumerate(bank.class_counts)]
    verdicts = ", ".join(f"{count} {word}" for word, count in bank.verdict_counts.items()) or "none"
    parts = [
        f"# Datasheet of the bank {_cell(PurePosixPath(bank.location).name)}",
        f"Written by monai_diverse {__version__} for {len(bank)} samples with fingerprint `{bank.fingerprint}`; a bank that grew since has another.",
        "## What it holds",
        f"{len(bank)} synthetic images of shape {header.shape} (channels, *spatial), stored as {header.dtype}. Verdicts of the screen: {verdicts}.",
        "\n".join(["| label | class | samples |", "| --- | --- | --- |", *counts]),
        "## Where it comes from",
        "\n".join(_origin(bank, number, origin) for number, origin in enumerate(bank.origins)),
        "## Leakage audit",
        _audit(bank),
        "## What it is for",
        _USE,
        "## How to check it",
        "`monai-diverse verify BANK` compares every byte with the hashes in `manifest.json`; `monai-diverse inspect BANK` prints the scores.",
    ]
    return "\n\n".join(parts) + "\n"


def audit_of(bank: SampleBank) -> dict[str, Any] | None:
    """What `audit.json` in a bank's folder says, as `audit_digest` takes it, with `subject`: whether it is about the bank, its source or another.

    Returns:
        None if there is none. Only {"kind": None} if it makes no sense.
    """
    file = bank.beside(AUDIT)
    if file is None:
        return None
    whole = read_audit(bank, file)
    return {"kind": None} if whole is None else audit_digest(whole)


def read_audit(bank: SampleBank, file: Path | None = None) -> dict[str, Any] | None:
    """The audit in a bank's folder, for those who show it beside the bank: without its pairs, with `subject` as `audit_of` has it.

    Args:
        bank: what the audit is shown beside.
        file: an audit elsewhere, such as that of the model that drew the bank.

    Returns:
        None if there is none, or one that makes no sense.
    """
    file = bank.beside(AUDIT) if file is None else file
    if file is None:
        return None
    try:
        if file.stat().st_size > _LARGEST_AUDIT:
            return None
        whole = read_json(file)
        found = audit_digest(whole)
        json.dumps(whole, allow_nan=False)  # it goes into other JSON files
    except (DataError, OSError, *NONSENSE):
        return None
    about = found["source"]["fingerprint"]
    sources = [origin.source.get("fingerprint") for origin in bank.origins]
    same = about in sources and not found["settings"]
    subject = "bank" if about == bank.fingerprint else "source" if same else "other"
    return {name: value for name, value in whole.items() if name != "pairs"} | {"subject": subject}


def audit_digest(audit: Mapping[str, Any]) -> dict[str, Any]:
    """The gist of an audit of a model as JSON, for those who do not read all of it; text in it has no markup.

    Args:
        audit: content of `audit.json`; a stranger may have written it. `subject` is kept if there, see `audit_of`.

    Raises:
        KeyError, TypeError, ValueError, and others of `bank.format.NONSENSE`: it is not as `audit_model` writes it, or its figures contradict
            one another.
    """
    if audit["kind"] != "model":
        raise ValueError(f"kind: expected model, got {audit['kind']!r}")
    verdict, sets, source = audit["verdict"], audit["sets"], audit["source"]
    p = None if verdict["p"] is None else _number(verdict["p"], 0, 1)
    tolerance = None if verdict["tolerance"] is None else _number(verdict["tolerance"], 0)
    bias = {**_figure({"value": verdict["bias"], "ci": verdict["ci"]}), "p": p}
    control, membership = audit.get("control"), audit.get("membership")
    judged = [row for row in audit.get("samplers", ()) if row["name"] == verdict["sampler"]]
    return {
        "kind": "model",
        "verdict": _cell(verdict["text"])[:_LONGEST],
        "word": _word(verdict["word"], bias, tolerance),
        "reasons": [_cell(reason)[:_LONGEST] for reason in list(verdict.get("reasons", ()))[:_MOST_REASONS]],
        "sampler": _cell(verdict["sampler"])[:_LONGEST],
        "settings": any(row.get(name) is not None for row in judged for name in _SETTINGS),
        "bias": bias,
        "control": None if control is None else _figure(control["bias"]),
        "membership": None if membership is None else _figure(membership["auc"]),
        "confidence": _number(audit["confidence"], 0, 1),
        "tolerance": tolerance,
        "patients": sets.get("groups_from") != "near-duplicates",
        "train": {name: int(_number(sets["train"][name], 0)) for name in ("images", "groups")},
        "heldout": {name: int(_number(sets["heldout"][name], 0)) for name in ("images", "groups")},
        "source": {name: _cell(source[name])[:_LONGEST] for name in ("name", "fingerprint")},
    } | ({"subject": audit["subject"]} if audit.get("subject") in _SUBJECTS else {})


def audit_lines(found: Mapping[str, Any]) -> list[str]:
    """What `audit_digest` or `audit_of` found, a sentence each."""
    bias, (train, heldout), level = found["bias"], (found["train"], found["heldout"]), f"{100 * found['confidence']:g} %"
    control = "no control: what unseen images score is not known"
    if found["control"] is not None:
        control = f"held-out real images in the place of samples: {_figure_in_words(found['control'], level)}"
    auc = found["membership"]
    known = (
        [] if auc is None else [f"the network's loss tells training images from unseen ones with AUC {_figure_in_words(auc, level)}; +0.5 is chance"]
    )
    test = "" if bias["p"] is None else f", p = {bias['p']:.2g}"
    tolerance = "no tolerance given" if found["tolerance"] is None else f"{found['word'] or 'no verdict'} at a tolerance of {found['tolerance']:g}"
    subject = [f"audited: {_SUBJECTS[found['subject']]}"] if "subject" in found else []
    return [
        f"its verdict: {found['verdict']}",
        *(f"why: {reason}" for reason in found["reasons"]),
        *([] if found["patients"] else [NO_PATIENTS]),
        f"bias of sampler {found['sampler']}: {_figure_in_words(bias, level)}{test}; {tolerance}; above 0 is nearer to training patients",
        control,
        *known,
        f"compared with {train['images']} training images of {train['groups']} patients or groups, and {heldout['images']} unseen ones of"
        f" {heldout['groups']}",
        *subject,
        f"source: {found['source']['name']}, fingerprint {found['source']['fingerprint']}",
        "this is no privacy guarantee",
    ]


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


def _audit(bank: SampleBank) -> str:
    found = audit_of(bank)
    if found is None:
        return NO_AUDIT
    return _UNREADABLE if found["kind"] is None else "\n".join([f"Run: see `{AUDIT}` beside this page.", "", *(f"- {x}" for x in audit_lines(found))])


def _number(value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"expected a number in [{least}, {most}], got {value!r}")
    return float(value)


def _figure(found: Mapping[str, Any]) -> dict[str, Any]:
    """A value within its interval, which may be missing."""
    value = _number(found["value"])
    if found["ci"] is None:
        return {"value": value, "ci": None}
    low, high = (_number(end) for end in found["ci"])
    if not low <= value <= high:
        raise ValueError(f"ci: expected ends around {value}, got {low} and {high}")
    return {"value": value, "ci": [low, high]}


def _figure_in_words(found: Mapping[str, Any], level: str) -> str:
    if found["ci"] is None:
        return f"{found['value']:+.3f} (no interval)"
    low, high = found["ci"]
    return f"{found['value']:+.3f} ({level} interval {low:+.3f} to {high:+.3f})"


def _word(word: Any, bias: Mapping[str, Any], tolerance: float | None) -> str | None:
    """The verdict's word; None for one that is not known."""
    if word not in _WORDS:
        return None
    if tolerance is None:
        raise ValueError(f"word: expected none without a tolerance, got {word}")
    if word == "beyond" and not (bias["value"] > tolerance and (bias["p"] is None or bias["p"] <= _ALPHA)):
        raise ValueError(f"word: beyond, but the bias is {bias['value']} and p {bias['p']}")
    if word == "within" and not (bias["ci"] is not None and bias["ci"][1] <= tolerance):
        raise ValueError(f"word: within, but the bias is {bias['value']} with the interval {bias['ci']}")
    return str(word)


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
