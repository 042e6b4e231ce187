"""`monai-diverse inspect` and `monai-diverse verify`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from monai_diverse.bank import SampleBank
from monai_diverse.cli.controls import judge_bank, notes, refit, twins_of, write_controls
from monai_diverse.cli.main import app
from monai_diverse.datasheet import AUDIT, NO_AUDIT, audit_lines, audit_of, control_of, yields_of
from monai_diverse.errors import BankError, RecipeError
from monai_diverse.screening.calibrate import check_level, discoveries
from monai_diverse.storage import make_folder

Folder = Annotated[str, typer.Argument(help="Folder or URL of the bank.")]
STOPPED = "growth stopped at a full bank, not after a fixed number of draws"
APPROXIMATE = (
    "that rate holds for independent draws, a number of them fixed beforehand, and calibration with one image a group; it is approximate for a bank:"
    " a guide's draws depend on one another"
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("inspect")
def inspect(
    bank: Folder,
    fdr: Annotated[float | None, typer.Option(help="Say how many samples keep their novelty at this false discovery rate, such as 0.1.")] = None,
    controls: Annotated[bool, typer.Option("--controls", help="Fit the screen again; judge unseen reals, noise, copies and so on.")] = False,
    other: Annotated[Path | None, typer.Option(help="With --controls: images of another modality, .npz or folder.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="With --controls: images of each kind that is made, at most (500).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --controls: of all that is random (0).")] = None,
    recipe: Annotated[Path | None, typer.Option(help="With --controls: the recipe, if not the one in the bank.")] = None,
    folder: Annotated[Path | None, typer.Option(help="With --controls: where the relative paths of the bank's recipe start.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="With --controls: a package that the recipe may load classes from.")] = None,
    out: Annotated[Path | None, typer.Option(help="With --controls: folder for controls.json, controls.txt and controls.png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in a bank: yields with intervals, rejections by reason, provenance; with --controls also what its screen makes of known images."""
    options = {"other": other, "count": count, "seed": seed, "recipe": recipe, "folder": folder, "allow": allow or None, "out": out}
    _require_together(controls, options)
    opened = SampleBank.open(bank)
    found = _described(opened)
    if fdr is not None:
        found["false_discovery"] = _false_discovery(opened, fdr)
    table: list[str] = []
    if controls:
        if out is not None:
            make_folder(out)  # first, since judging takes long
        fitted = refit(opened, recipe=recipe, folder=folder, allow=allow or ())
        judged = judge_bank(opened, fitted, other=other, count=500 if count is None else count, seed=seed or 0)
        remarks = notes(fitted, judged)
        found["controls"] = judged.as_json() | {"same_screen": not fitted.differs, "twins": twins_of(judged), "notes": remarks}
        table = ["", judged.as_table(), *remarks]
        if out is not None:
            write_controls(out, judged, remarks)
    typer.echo(json.dumps(found) if as_json else "\n".join([*_in_words(bank, found), *table]))


@app.command("verify")
def verify(bank: Folder, as_json: AsJson = False) -> None:
    """Check every hash of a bank; exit 1 and name the file if anything is off."""
    opened = SampleBank.open(bank)
    opened.verify()
    if as_json:
        typer.echo(json.dumps({"path": bank, "ok": True, "size": len(opened), "fingerprint": opened.fingerprint}))
        return
    typer.echo(f"{bank}: {len(opened)} samples, every shard as written")


def _require_together(controls: bool, options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given and not controls:
        raise RecipeError(f"--{given[0]}: expected --controls beside it, got none; add it")
    if "recipe" in given and "folder" in given:
        raise RecipeError("--folder: expected only one of --recipe and --folder, got both; the paths of --recipe start at its own folder")


def _described(bank: SampleBank) -> dict[str, Any]:
    progress, grown, control = bank.progress, yields_of(bank.progress), control_of(bank.progress)
    rejections = progress.get("rejections")
    return {
        "size": len(bank),
        "shape": list(bank.header.shape),
        "class_counts": [int(c) for c in bank.class_counts],
        "verdicts": bank.verdict_counts,
        "origins": [_origin(bank, number) for number in range(len(bank.header.origins))],
        "yield": None if grown is None else grown.as_json(),
        "control": None if control is None else control.as_json(),
        "stopped": progress.get("stopped"),
        "rejections": rejections if grown is not None else {},
        "scores": {name: _range(values) for name, values in bank.scores.items()} if len(bank) else {},
        "audit": audit_of(bank),
        "source": bank.header.source,
        "features": bank.header.features,
        "recipe": bank.header.recipe,
        "fingerprint": bank.fingerprint,
    }


def _origin(bank: SampleBank, number: int) -> dict[str, Any]:
    """One of the banks that this one was made of: its share in this one, and what its own yield was."""
    origin = bank.origins[number]
    found, control = yields_of(origin.progress), control_of(origin.progress)
    return {
        "name": origin.source.get("name"),
        "size": int((bank.origin_numbers == number).sum()),
        "recipe_fingerprint": origin.recipe_fingerprint,
        "yield": None if found is None else found.as_json(),
        "control": None if control is None else control.as_json(),
    }


def _in_words(bank: str, found: dict[str, Any]) -> list[str]:
    lines = [f"{bank}: {found['size']} samples, shape {tuple(found['shape'])}, by class {found['class_counts']}"]
    rate = found["yield"]
    if rate is not None and rate["drawn"]:
        lines.append(f"yield: {_rate(rate)}")
        lines.append(f"unseen real images under the same screen: {_control(found['control'])}")
        if found["stopped"] == "size":
            lines.append(f"{STOPPED}: the yield is a little too high, its interval approximate")
    unscreened = {word: count for word, count in found["verdicts"].items() if word != "accepted"}
    lines += [f"verdict {word}: {count}" for word, count in unscreened.items()]
    for origin in found["origins"]:
        rate = origin["yield"]
        lines.append(f"from {origin['name']}: {origin['size']} samples; accepted {'not recorded' if rate is None else _rate(rate)}")
        lines.append(f"  unseen real images under the same screen: {_control(origin['control'])}")
    lines += [f"rejected as {reason}: {count}" for reason, count in found["rejections"].items()]
    lines += [f"score {name}: {s['min']:.3g} to {s['max']:.3g}, median {s['median']:.3g}" for name, s in found["scores"].items()]
    lines += _audit(found["audit"])
    if "false_discovery" in found:
        lines += [_discovered(found["false_discovery"]), *found["false_discovery"]["notes"]]
    lines.append(f"source: {found['source'].get('name')} (licence of its data: {found['source'].get('licence')})")
    return [*lines, *_references(found["features"]), f"fingerprint: {found['fingerprint']}"]


def _audit(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return [f"leakage audit: {NO_AUDIT[0].lower()}{NO_AUDIT[1:-1]}"]
    if found["kind"] is None:
        return [f"leakage audit: {AUDIT} cannot be read here"]
    return ["leakage audit:", *(f"  {line}" for line in audit_lines(found))]


def _rate(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return (
        f"{found['accepted']} of {found['drawn']} drawn = {found['per_10k']:.0f} per 10,000, 95 % interval {low:.0f} to {high:.0f} (Clopper-Pearson)"
    )


def _references(features: dict[str, Any]) -> list[str]:
    """Both references by name, and what stood in for one that is unknown."""
    if "sets" not in features or "against" not in features:
        return ["what the generator saw, what you have: not recorded in this bank"]
    lines = []
    roles = {"generator_train": ("what the generator saw", "copies"), "reference": ("what you have", "novelty")}
    for name, (title, judged) in roles.items():
        known, against = features["sets"].get(name), features["against"][judged]
        says = "unknown" if known is None else f"{known['shape'][0]} images, by class {known['class_counts']}"
        use = f"{judged} judged against it" if against == name else f"{judged} judged against {against}, which stood in"
        lines.append(f"{title} ({name}): {says}; {use}")
    return lines


def _false_discovery(bank: SampleBank, rate: float) -> dict[str, Any]:
    """How many accepted samples survive Benjamini-Hochberg among all that were drawn."""
    check_level("--fdr", rate)
    categories = bank.header.features.get("gates", {}).get("not_novel", {}).get("categories")
    if categories is None:
        raise BankError(f"{bank.location}: expected novelty scores that are conformal p-values, as NoveltyGate's, got a bank that does not say so")
    p_values, drawn = np.asarray(bank.scores.get("not_novel", ()), np.float64), int(bank.progress.get("drawn", len(bank)))
    # what was drawn and is not in the bank was rejected, whatever its p-value; a bank stores float32, which may have rounded up
    judged = np.concatenate([p_values * (1 - 2**-24), np.ones(drawn - len(p_values))])
    return {
        "rate": rate,
        "survive": int(discoveries(judged, rate).sum()),
        "accepted": len(bank),
        "tests": drawn,
        "smallest_p_possible": 1 / (max(c["calibration_groups"] for c in categories) + 1),
        "smallest_p": float(p_values.min()) if len(p_values) else None,
        "notes": [APPROXIMATE, f"{STOPPED}: the rate is approximate for that too"] if bank.progress.get("stopped") == "size" else [APPROXIMATE],
    }


def _discovered(found: dict[str, Any]) -> str:
    return (
        f"at a false discovery rate of {100 * found['rate']:g} % (Benjamini-Hochberg over the p-values of {found['tests']} drawn)"
        f" {found['survive']} of {found['accepted']} samples stay novel; calibration allows no p-value below {found['smallest_p_possible']:.2g}"
    )


def _control(control: dict[str, Any] | None) -> str:
    if control is None:
        return "unknown, since the recipe names no control images; without them the yield says little"
    low, high = control["ci95"]
    return f"{control['accepted']} of {control['drawn']} = {control['per_10k']:.0f} per 10,000, 95 % interval {low:.0f} to {high:.0f}"


def _range(values: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, float]:
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}
