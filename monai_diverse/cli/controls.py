"""What `monai-diverse inspect --controls` does: refit the bank's screen and judge images whose worth is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_diverse.bank import SampleBank
from monai_diverse.data import LabelledImages, load_images
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.recipe import BUILTIN, DataChoice, Recipe
from monai_diverse.report.controls import controls_figure
from monai_diverse.screening import FittedScreen, NoveltyScreen
from monai_diverse.screening.control_cases import TWINS
from monai_diverse.screening.controls import Controls, control_rows, drawn_row
from monai_diverse.storage import make_folder, write_atomic, write_json

SETS = ("reference", "calibration", "generator_train", "control")
_NOT_OF_THE_RECIPE = ("data", "calibrated")
"""What a bank's header adds to its recipe."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Refit:
    """The screen of a bank, fitted again.

    Attributes:
        screen: fitted on the recipe's images.
        unseen: the recipe's control images.
        twin_correlation: pixels that correlate above this make near-duplicates among them.
        differs: what is not as in the bank's screen; empty if it is the same.
    """

    screen: FittedScreen
    unseen: LabelledImages
    twin_correlation: float
    differs: tuple[str, ...]


def refit(bank: SampleBank, *, recipe: Path | None, folder: Path | None, allow: Sequence[str]) -> Refit:
    """Fits the bank's screen again.

    Args:
        bank: its header holds the recipe that it was grown by.
        recipe: that recipe as a file; None: the one in the header.
        folder: where the relative paths of the header's recipe start; None: the current folder.
        allow: packages that the recipe may load classes from.

    Raises:
        RecipeError: no recipe, or one without control images.
        DataError: images that are not where the recipe says.
    """
    chosen = _recipe_of(bank, folder, allow) if recipe is None else Recipe.load(recipe, allow)
    if chosen.control is None:
        raise RecipeError(
            "controls: expected control images in the recipe, got none; add 'control', real images that nothing else used, and pass --recipe"
        )
    choices = {name: getattr(chosen, name) for name in SETS if getattr(chosen, name) is not None}
    for choice in choices.values():
        _require_there(choice, chosen.folder)
    settings = chosen.screen.build(chosen.folder, chosen.allow)
    if not isinstance(settings, NoveltyScreen):
        raise RecipeError(f"screen: expected a NoveltyScreen, got {type(settings).__name__}")
    real = {name: choice.load(chosen.folder) for name, choice in choices.items()}
    unseen = real.pop("control")
    screen = settings.fit(real.get("reference"), real["calibration"], real.get("generator_train"))
    return Refit(screen=screen, unseen=unseen, twin_correlation=chosen.control.repeats, differs=_differences(bank, screen))


def judge_bank(bank: SampleBank, found: Refit, *, other: Path | None, count: int, seed: int) -> Controls:
    """The controls of a bank's screen, behind a progress bar; what the bank counted as it grew is the row of generated images.

    That row is left out where the screen is not the bank's.
    """
    foreign = None if other is None else load_images(other).images
    progress = bank.progress
    rows = []
    if not found.differs and progress.get("drawn"):
        rows.append(drawn_row(drawn=progress["drawn"], rejections=progress["rejections"], nfe=progress.get("nfe")))
    judged = control_rows(found.screen, found.unseen, other=foreign, count=count, seed=seed, twin_correlation=found.twin_correlation)
    with tqdm(desc="controls", bar_format="{desc}: {n_fmt} kinds, {elapsed}{postfix}") as bar:
        for row in judged:
            rows.append(row)
            bar.update()
            bar.set_postfix_str(row.name)
    return Controls(
        rows=tuple(rows),
        count=count,
        seed=seed,
        screen=found.screen.fingerprint,
        against=found.screen.against,
        stopped_at_size=progress.get("stopped") == "size",
    )


def twins_of(controls: Controls) -> int:
    """Control images that nearly repeat an image that the screen was fitted on, with the rest of their groups."""
    return sum(row.result.drawn for row in controls.rows if row.name == TWINS)


def notes(found: Refit, controls: Controls) -> list[str]:
    """What a reader of the controls must know of how they came about."""
    lines = []
    if found.differs:
        what = " and ".join(found.differs)
        lines.append(f"the screen was fitted again, but is not the bank's: other {what}; so what the bank drew is no row here")
    twins = twins_of(controls)
    if twins:
        who = f"{twins} of {len(found.unseen)} control images nearly repeat an image that the screen was fitted on"
        rest = "no image is left to compare with" if twins == len(found.unseen) else "they are a row of their own, and no part of the unseen ones"
        lines.append(f"{who}: unseen in name only; {rest}")
    return lines


def write_controls(out: Path, controls: Controls, remarks: Sequence[str]) -> None:
    """Leaves `controls.json`, `controls.txt` and `controls.png` in a folder.

    Raises:
        StorageError: the disk refuses.
    """
    make_folder(out)
    write_json(out / "controls.json", controls.as_json() | {"notes": list(remarks)})
    write_atomic(out / "controls.txt", "\n".join([controls.as_table(), *remarks, ""]).encode())
    controls_figure(controls.as_json()).savefig(out / "controls.png", dpi=120)


def _recipe_of(bank: SampleBank, folder: Path | None, allow: Sequence[str]) -> Recipe:
    content = {name: value for name, value in bank.header.recipe.items() if name not in _NOT_OF_THE_RECIPE}
    try:
        recipe = Recipe.from_json(content)
    except RecipeError as error:
        raise RecipeError(f"{bank.location}: expected a bank with the recipe that it was grown by, but {error}; pass one with --recipe") from error
    return replace(recipe, folder=Path() if folder is None else folder, allow=tuple(allow))


def _require_there(choice: DataChoice, folder: Path) -> None:
    names = [name for name in (None if choice.path == BUILTIN else choice.path, choice.split_file) if name is not None]
    absent = [folder / name for name in names if not (folder / name).exists()]
    if absent:
        hint = "the bank's recipe names files relative to its own folder: say where that is with --folder DIR or --recipe RECIPE.yaml"
        raise DataError(f"{absent[0]}: expected the recipe's images there, got no such file or folder; {hint}")


def _differences(bank: SampleBank, screen: FittedScreen) -> tuple[str, ...]:
    """What of a refitted screen is not as the bank's header says."""
    before: dict[str, Any] = bank.header.features
    if before.get("fingerprint") == screen.fingerprint:
        return ()
    settings = json.loads(json.dumps(screen.settings))  # as a header holds them: lists for tuples
    found = ["settings"] if before.get("settings") != settings else []
    sets = before.get("sets", {})
    found += [name for name, now in screen.sets.items() if sets.get(name) != now]
    return tuple(found) or ("version of the package",)
