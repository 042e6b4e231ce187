"""The page, figures, words and tables of a study."""

from __future__ import annotations

import base64
import copy
import itertools
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from test_report import HOSTILE, Page, text_of

from monai_diverse.errors import DataError
from monai_diverse.report import comparisons_figure, ratios_figure, recalls_figure, sizes_figure, study_markdown, write_study
from monai_diverse.report import study as module
from monai_diverse.report.study_figures import MAX_CLASSES
from monai_diverse.report.study_words import (
    ARM_MEANINGS,
    DEVELOPMENT,
    TRAINING_MEANINGS,
    added_in_words,
    arm_in_words,
    bar_holds,
    bar_in_words,
    beside_in_words,
    chance,
    comparison_in_words,
    metric_name,
    percent,
    points,
    points_interval,
    regime_in_words,
    scored,
    verdict_in_words,
    yields_of_cell_in_words,
)

METRICS = ("balanced_accuracy", "auc", "accuracy", "ece", "recall_0", "recall_1")
ARMS = ("real", "duplicates", "random", "diverse", "extra_real")
REALS = {0.1: [12, 32], 0.25: [30, 79], 1.0: [115, 322]}


def value(mean: float, half: float | None) -> dict[str, Any]:
    return {"mean": mean, "ci95": [None, None] if half is None else [mean - half, mean + half]}


def metrics(mean: float, half: float | None = 0.02) -> dict[str, Any]:
    found = {name: value(mean + 0.013 * number, half) for number, name in enumerate(METRICS[:3])}
    return found | {"ece": value(0.11, half), "recall_0": value(mean - 0.1, half), "recall_1": value(mean + 0.1, half)}


def arm(name: str, mean: float, **changes: Any) -> dict[str, Any]:
    banked = name not in ("real", "balanced")
    return {
        "arm": name,
        "augment": True,
        "training": "mixed",
        "ratio": 2.0 if banked else None,
        "asked": 88 if banked else 0,
        "images": 71.4 if banked else 0,
        "seeds": 10,
        "metrics": metrics(mean),
        "without_twins": metrics(mean - 0.017),
        "validation": metrics(mean + 0.021),
    } | changes


def comparison(control: str, mean: float = 0.021, half: float | None = 0.03, **changes: Any) -> dict[str, Any]:
    """Diverse against a control; `p_holm` of a primary one."""
    primary = changes.get("primary", control in ("random", "duplicates"))
    difference = value(mean, half) | {
        "seeds_ci95": value(mean, None if half is None else half / 2)["ci95"],
        "p": 0.0123,
        "p_holm": 0.049 if primary else None,
    }
    return {
        "arm": "diverse",
        "control": control,
        "augment": True,
        "training": "mixed",
        "ratio": 2.0,
        "metric": "balanced_accuracy",
        "primary": primary,
        "difference": difference,
        "auc": value(mean + 0.011, half),
        "without_twins": value(mean - 0.008, half),
    } | changes


def cell(size: float = 0.1, **changes: Any) -> dict[str, Any]:
    rise = 0.06 * float(np.log10(size) + 1)
    sweep = itertools.product(("diverse", "random", "duplicates"), (0.5, 1.0, 2.0, 4.0))
    return {
        "size": size,
        "real": {"images": sum(REALS[size]), "by_class": REALS[size]},
        "subsets": 10,
        "extra": sum(REALS[1.0]) - sum(REALS[size]),
        "ratio": 2.0,
        "ratios": [
            {"arm": name, "ratio": ratio, "validation": metrics(0.7 + rise - 0.01 * (ratio - 2) ** 2), "scores": metrics(0.69 + rise + 0.004 * ratio)}
            for name, ratio in sweep
        ],
        "arms": [arm(name, 0.68 + rise + 0.012 * number) for number, name in enumerate(ARMS) if name != "extra_real" or size < 1],
        "comparisons": [comparison("random"), comparison("duplicates"), comparison("real", 0.03), comparison("extra_real", -0.04)][
            : 4 if size < 1 else 3
        ],
        "yields": {
            "diverse": {"drawn": 20_000, "accepted": 900, "per_10k": 450.0, "ci95": [421.0, 480.0], "nfe": 400_000},
            "brute_force": {"drawn": 20_000, "accepted": 70, "per_10k": 35.0, "ci95": [27.3, 44.2], "nfe": 400_000},
            "heldout_real": {"drawn": 109, "accepted": 3, "per_10k": 275.2, "ci95": [57.1, 783.0], "nfe": None},
        },
        "seconds": 1234.0,
    } | changes


def study(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "study",
        "name": "breast-28 pretrained",
        "version": "0.1.0",
        "regime": "pretrained",
        "confidence": 0.95,
        "seconds": 5400.0,
        "scored_on": "test",
        "data": {
            "name": "BreastMNIST",
            "sha256": "ab" * 32,
            "class_names": ["malignant", "normal, benign"],
            "images": {"train": 546, "validation": 78, "test": 156},
            "test_without_twins": 140,
        },
        "generator": {
            "name": "breast-ultrasound-28",
            "fingerprint": "cd" * 32,
            "images": 437,
            "trained": True,
            "command": "monai-diverse train --data x.npz",
        },
        "plan": {"sizes": [0.1, 1.0], "seeds": 10},
        "environment": {"python": "3.11.2"},
        "primary": {
            "metric": "balanced_accuracy",
            "arm": "diverse",
            "controls": ["random", "duplicates"],
            "sizes": [0.1, 1.0],
            "training": "mixed",
            "augment": True,
            "text": "Diverse images raise balanced accuracy above that of random and of duplicated images.",
        },
        "cells": [cell(0.1), cell(1.0)],
    } | changes


def with_difference(control: str, ends: tuple[float | None, float | None], **changes: Any) -> dict[str, Any]:
    """A comparison whose mean says nothing: the interval alone decides."""
    found = comparison(control, 0.0, None)
    found["difference"] |= {"ci95": list(ends)} | changes
    return found


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not turned into pixels, which takes most of the time."""
    monkeypatch.setattr(module, "png", lambda figure: b"a picture")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), study())


def shown(out: Path, found: dict[str, Any]) -> str:
    return text_of(write_study(out, found).read_text(encoding="utf-8"))


# --- page


def test_a_page_holds_all_it_needs_and_its_figures_lie_beside_it(page: Path) -> None:
    parsed = Page(page.read_text(encoding="utf-8"))
    files = sorted((page.parent / "figures").iterdir())
    assert [file.name for file in files] == [f"study-{name}.png" for name in ("comparisons", "ratios", "recalls", "sizes")]
    assert sorted(base64.b64decode(load.removeprefix("data:image/png;base64,")) for load in parsed.loads) == sorted(map(Path.read_bytes, files))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert page.name == "study.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["figures", "study.html"]


def test_the_page_keeps_the_honest_order(page: Path) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", page.read_text(encoding="utf-8"))
    assert headings == [
        "What was fixed before, and its outcome",
        "All arms",
        "Exploratory comparisons",
        "How many images to add",
        "Recall of each class, and calibration",
        "What the banks cost",
        "Without test images that resemble a training image",
        "Limits",
        "Plan and provenance",
    ]
    text = text_of(page.read_text(encoding="utf-8"))
    assert text.index("Fixed before: Diverse images raise balanced accuracy") < text.index("All arms")
    assert "not corrected for their number" in text[text.index("Exploratory comparisons") :]
    assert text.index("holds at 0 of 2 sizes") < text.index("What was fixed before")


def test_numbers_on_the_page_and_in_markdown_are_those_of_the_study(undrawn: None, tmp_path: Path) -> None:
    found = study()
    rng, expected, tabled = np.random.default_rng(0), [], []
    for each in found["cells"]:
        for row in each["arms"]:
            for key, scores in itertools.product(("metrics", "without_twins", "validation"), METRICS):
                mean, half = rng.uniform(0.3, 0.8), rng.uniform(0.01, 0.09)
                row[key][scores] = value(mean, half)
                ends = f"({100 * (mean - half):.1f} to {100 * (mean + half):.1f})"
                if key == "metrics" or scores == "balanced_accuracy":
                    expected.append((f"{100 * mean:.1f} {ends}", key == "metrics" and scores in METRICS[:3]))
        for compared in each["comparisons"]:
            mean, half, narrow, p = rng.uniform(-0.2, 0.2), rng.uniform(0.05, 0.09), rng.uniform(0.01, 0.04), rng.uniform(0.1, 0.9)
            compared["difference"] |= value(mean, half) | {"seeds_ci95": value(mean, narrow)["ci95"], "p": p}
            others = [rng.uniform(-0.2, 0.2) for _ in range(2)]
            compared["auc"], compared["without_twins"] = (value(other, half) for other in others)
            gaps = [f"{100 * m:+.1f} ({100 * (m - half):+.1f} to {100 * (m + half):+.1f})".replace("-", "−") for m in others]
            expected += [(gap, compared["primary"]) for gap in gaps]
            ends, seeds = (f"{100 * (mean - width):+.1f} to {100 * (mean + width):+.1f}" for width in (half, narrow))
            expected.append((f"{100 * mean:+.1f} {ends} {seeds} {p:.2g}".replace("-", "−"), False))
            if compared["primary"]:
                tabled.append(f"| {100 * mean:+.1f} | {ends} | {p:.2g} | 0.049 | {' | '.join(gaps)} |".replace("-", "−"))
        for yielded in each["yields"].values():
            drawn = int(rng.integers(10_000, 90_000))
            yielded["drawn"] = drawn
            expected.append((f"{drawn:,}", True))
    text, markdown = shown(tmp_path, found), study_markdown(found)
    assert len(expected) == 9 * 8 + 3 * 7 + 6
    assert [number for number, _ in expected if number not in text] == []
    assert [number for number, in_markdown in expected if in_markdown and number not in markdown] == []
    assert len(tabled) == 4
    assert [row for row in tabled if row not in markdown] == []


def test_a_size_without_a_bank_is_not_a_null_result(undrawn: None, tmp_path: Path) -> None:
    bare = cell(0.1, comparisons=[], ratios=[], ratio=None, untested="no sample of class 1 was accepted for 8 of 10 users", arms=[arm("real", 0.7)])
    found = study(cells=[bare])
    for text in (shown(tmp_path, found), study_markdown(found)):
        assert "was not tested: there is no primary comparison." in text
        assert "At 10 % (44 images) nothing was tested: no sample of class 1 was accepted for 8 of 10 users. A bank that lacks a class" in text
        assert "null result" not in text


def test_an_arm_and_a_way_to_train_of_one_name_are_both_explained(undrawn: None, tmp_path: Path) -> None:
    few = cell(0.1)
    arms = [*few["arms"], arm("balanced", 0.7), arm("diverse", 0.75, training="balanced")]
    page = shown(tmp_path, study(cells=[few | {"arms": arms}]))
    assert ARM_MEANINGS["balanced"] in page
    assert TRAINING_MEANINGS["balanced"] in page


def test_added_images_are_shown_by_class() -> None:
    assert added_in_words(arm("diverse", 0.7, images=1234.2, by_class=[1000.2, 234.0])) == "1,234 (1,000 + 234)"
    assert added_in_words(arm("diverse", 0.7)) == "71"
    assert added_in_words(arm("real", 0.7)) == "–"


def test_development_figures_are_called_so_in_the_first_line(undrawn: None, tmp_path: Path, page: Path) -> None:
    found = study(scored_on="development")
    body = write_study(tmp_path, found).read_text(encoding="utf-8").partition("<body>")[2]
    assert text_of(f"<p>{body}").startswith(DEVELOPMENT)
    assert study_markdown(found).startswith(f"{DEVELOPMENT}\n")
    assert "test images were not touched" in DEVELOPMENT
    assert "on test images" not in body
    assert "test images remain" not in body
    assert "balanced accuracy on validation</th>" in body  # the images that choose the ratio are others here
    for row in itertools.chain(*(each["arms"] for each in found["cells"])):
        row["validation"] = row["metrics"]
    assert "balanced accuracy on validation</th>" not in write_study(tmp_path, found).read_text(encoding="utf-8")
    assert DEVELOPMENT not in page.read_text(encoding="utf-8") + study_markdown(study())
    assert verdict_in_words(found).startswith("On the development images, the bar")


def bare() -> dict[str, Any]:
    """All that is optional left out, intervals too, and one arm only."""
    found = study(cells=[cell(0.1)], regime="strict")
    for key in ("seconds", "plan", "environment"):
        del found[key]
    found["generator"] = {"name": "g", "fingerprint": "f", "images": None, "trained": False, "command": None}
    only = arm("diverse", 0.7, without_twins=None, metrics=metrics(0.7, None), validation=metrics(0.7, None))
    found["cells"] = [{"size": 0.1, "real": {"images": 44, "by_class": [12, 32]}, "arms": [only]}]
    return found


def test_what_is_missing_is_said_to_be_missing(undrawn: None, tmp_path: Path) -> None:
    text, markdown = shown(tmp_path / "bare", bare()), study_markdown(bare())
    for words in (
        "was not tested: there is no primary comparison",
        "There are none.",
        "No ratios were tried",
        "No yields were recorded.",
        "Not scored apart",
        "70.0 (none)",
        "The generator was there before this study.",
        "Against standard augmentation alone (real): not compared.",
    ):
        assert words in text, words
    assert "It was made with" not in text
    assert markdown.count("None.") == 2
    assert "70.0 (none)" in markdown
    assert [file.name for file in sorted((tmp_path / "bare" / "figures").iterdir())] == ["study-recalls.png", "study-sizes.png"]


def test_intervals_and_chances_may_be_missing(undrawn: None, tmp_path: Path) -> None:
    found = study()
    for each in found["cells"]:
        for row in [*each["arms"], *each["ratios"]]:
            for scores in row.values():
                for name in METRICS if isinstance(scores, dict) else ():
                    scores[name]["ci95"] = [None, None]
        for difference in each["comparisons"]:
            difference |= {"without_twins": None, "auc": None}
            difference["difference"] |= {"ci95": [None, None], "seeds_ci95": [None, None], "p": None, "p_holm": None}
        for yielded in each["yields"].values():
            yielded["ci95"] = [None, None]
    text = shown(tmp_path, found)
    assert "+2.1 points (95 % interval none); without an interval nothing can be concluded." in text
    assert "Parity" not in text
    assert "null result" not in text


def test_hostile_names_are_shown_not_run(tmp_path: Path, page: Path) -> None:
    found = study(name=HOSTILE, version=HOSTILE, environment={HOSTILE: HOSTILE}, plan={HOSTILE: HOSTILE}, cells=[cell(0.1)])
    found["data"] |= {"class_names": [HOSTILE, HOSTILE], "name": HOSTILE}
    found["generator"] |= {"name": HOSTILE, "command": HOSTILE}
    found["primary"] |= {"text": HOSTILE, "metric": "recall_0"}
    for each in found["cells"]:
        for difference in each["comparisons"]:
            difference["metric"] = "recall_0"
        each["arms"][0]["arm"] = each["arms"][0]["training"] = HOSTILE
    parsed = Page(write_study(tmp_path, found).read_text(encoding="utf-8"))  # draws the names too: nothing is read as mathematics
    assert set(parsed.tags) == set(Page(page.read_text(encoding="utf-8")).tags)
    assert parsed.text.count('<script>alert("x")</script>') > 20
    markdown = study_markdown(found | {"data": found["data"] | {"class_names": ["a|b\nc", "<b>"]}})
    assert "<b>" not in markdown
    assert "recall of a\\|b c" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {10, 9, 7}


def test_what_is_no_study_is_refused_and_nothing_written(tmp_path: Path) -> None:
    for changes, says in (
        ({"kind": "twins"}, "kind: expected study, got 'twins'"),
        ({"regime": "loose"}, "regime: expected pretrained or strict, got 'loose'"),
        ({"scored_on": "train"}, "scored_on: expected test or development"),
        ({"cells": []}, "cells: expected one or more"),
        ({"cells": [cell(arms=[])]}, "missing arms"),
        ({"cells": [cell(arms=[arm("real", 0.7, metrics={})])]}, "balanced_accuracy of every arm, missing for real"),
    ):
        for refused in (lambda given: write_study(tmp_path / "out", given), study_markdown):
            with pytest.raises(DataError, match=says):
                refused(study(**changes))
    with pytest.raises(DataError, match="missing primary"):
        study_markdown({key: given for key, given in study().items() if key != "primary"})
    assert not (tmp_path / "out").exists()


# --- words


@pytest.mark.parametrize(("ends", "corrected", "says", "never"), [
    ((0.01, 0.03), 0.05, "the interval lies above 0: better than random; Holm's correction leaves it (p after Holm: 0.05)", "null"),
    ((0.01, 0.03), 0.051, "above 0: better than random; Holm's correction does not leave it (p after Holm: 0.051)", "null"),
    ((-0.03, -0.01), 0.02, "the interval lies below 0: worse than random; Holm's correction leaves it (p after Holm: 0.02)", "better"),
    ((-0.01, 0.03), 0.3, "the interval contains 0: a null result, neither a gain nor a loss is shown (p after Holm: 0.3).", "leave"),
    ((0.0, 0.03), 0.3, "contains 0: a null result", "better"),
    ((-0.03, 0.0), 0.3, "contains 0: a null result", "worse"),
    ((0.01, 0.03), None, "the interval lies above 0: better than random.", "Holm"),
    ((None, None), None, "without an interval nothing can be concluded.", "null"),
])  # fmt: skip
def test_a_comparison_is_told_by_its_interval_alone(ends: tuple[Any, Any], corrected: float | None, says: str, never: str) -> None:
    words = comparison_in_words(with_difference("random", ends, p_holm=corrected), cell(), study())
    assert words.startswith("diverse − random, balanced accuracy: +0.0 points (95 % interval ")
    assert says in words
    assert never not in words
    assert words.endswith(".")


ABOVE, BELOW, ACROSS = (0.01, 0.03), (-0.03, -0.01), (-0.01, 0.03)


@pytest.mark.parametrize(("random", "duplicates", "holds", "says"), [
    (ABOVE, ABOVE, True, "the bar holds: diverse is better than random and duplicates, by both intervals; Holm's correction leaves it."),
    (ABOVE, ACROSS, False, "the bar does not hold: diverse was not shown to be better than duplicates. It beats random, which alone is not enough."),
    (ACROSS, ABOVE, False, "not shown to be better than random. It beats duplicates, which alone is not enough."),
    (ACROSS, ACROSS, False, "the bar does not hold: diverse was not shown to be better than random or duplicates."),
    (ABOVE, BELOW, False, "better than duplicates. It beats random, which alone is not enough. It is worse than duplicates."),
    ((None, None), ABOVE, False, "not shown to be better than random. It beats duplicates"),
    (ABOVE, None, False, "the bar cannot be judged: diverse was not compared with duplicates."),
])  # fmt: skip
def test_a_bar_holds_only_if_every_control_is_beaten(random: Any, duplicates: Any, holds: bool, says: str) -> None:
    given = {"random": random, "duplicates": duplicates}
    each = cell(comparisons=[with_difference(control, ends, p_holm=0.04) for control, ends in given.items() if ends is not None])
    assert bar_holds(each, study()) is holds
    words = bar_in_words(each, study())
    assert words.startswith("At 10 % (44 images) the bar")
    assert says in words
    assert f"holds at {int(holds)} of 1 size." in verdict_in_words(study(cells=[each]))


def test_an_exploratory_win_does_not_fill_in_for_a_primary_one() -> None:
    each = cell(comparisons=[with_difference("random", ABOVE), with_difference("duplicates", ABOVE) | {"primary": False}])
    assert not bar_holds(each, study())
    assert "cannot be judged" in bar_in_words(each, study())


def test_holm_is_heard_where_the_bar_holds() -> None:
    pairs = [(0.04, 0.04), (0.04, 0.06), (0.04, None)]
    compared = [{"random": one, "duplicates": other} for one, other in pairs]
    cells = [cell(comparisons=[with_difference(control, ABOVE, p_holm=p) for control, p in found.items()]) for found in compared]
    endings = ("correction leaves it.", "does not leave all of it: after correction the bar does not hold.", "was not made for all of them.")
    assert all(bar_in_words(each, study()).endswith(ending) for each, ending in zip(cells, endings, strict=True))
    assert "after correction the bar does not hold" in bar_in_words(cells[0], study(confidence=0.99))


def test_the_verdict_counts_sizes_calls_a_null_null_and_names_what_was_not_run() -> None:
    held = cell(0.1, comparisons=[with_difference(control, ABOVE) for control in ("random", "duplicates")])
    null = cell(1.0, comparisons=[with_difference(control, ACROSS) for control in ("random", "duplicates")])
    assert verdict_in_words(study(cells=[held, null])) == "The bar (diverse better than random and duplicates) holds at 1 of 2 sizes."
    assert "holds at 0 of 2 sizes. This is a null result: every primary interval contains 0." in verdict_in_words(study(cells=[null, null]))
    assert verdict_in_words(study(cells=[held])).endswith("Fixed before, but not tested: 100 %.")
    lost = cell(1.0, comparisons=[with_difference("random", BELOW), with_difference("duplicates", ACROSS)])
    assert "null result" not in verdict_in_words(study(cells=[lost]))


def test_standard_augmentation_and_the_ceiling_stand_beside() -> None:
    each = cell(comparisons=[with_difference("real", ABOVE), with_difference("extra_real", BELOW)])
    standard, ceiling = beside_in_words(each, study())
    assert standard.startswith("Against standard augmentation alone (real): +0.0 points (95 % interval +1.0 to +3.0")
    assert "lies above 0: better than real (exploratory)" in standard
    assert ceiling.startswith("Against the ceiling (extra real, from 393 further real images): ")
    assert "lies below 0: worse than extra real" in ceiling
    # not taken for it: without augmentation, trained otherwise, another metric
    for other in ({"augment": False}, {"training": "pretrain"}, {"metric": "auc"}, {"arm": "random"}):
        assert beside_in_words(cell(comparisons=[with_difference("real", ABOVE) | other]), study())[0].endswith("(real): not compared.")
    assert "no ceiling" in beside_in_words(cell(1.0), study())[1]
    plain = study(primary=study()["primary"] | {"augment": False, "controls": ["extra_real"]})
    assert beside_in_words(each, plain) == ["Against real images alone (real): not compared."]


def test_names_tell_what_differs_from_the_primary_comparison() -> None:
    row, each = arm("tsne_hull", 0.7), cell()
    changed = [{}, {"augment": False}, {"training": "pretrain"}, {"ratio": 4.0}, {"asked": 0, "ratio": None, "training": "pretrain"}]
    names = [arm_in_words(row | changes, study(), each) for changes in changed]
    assert names == ["t-SNE hull", "t-SNE hull, not augmented", "t-SNE hull, pretrain", "t-SNE hull, ratio 4", "t-SNE hull"]
    classes = study()["data"]["class_names"]
    assert [metric_name(name, classes) for name in ("auc", "ece", "recall_1", "recall_7", "f_1")] == [
        *("AUC", "calibration error (ECE)", "recall of normal, benign", "recall 7", "f 1"),
    ]  # fmt: skip


def test_numbers_as_text() -> None:
    assert [percent(0.8125), percent(None), points(-0.0214), points(0.0)] == ["81.2", "–", "−2.1", "+0.0"]
    assert [points_interval([-0.01, 0.0345]), points_interval([None, None]), points_interval(None)] == ["−1.0 to +3.5", "none", "none"]
    assert [scored(value(0.5, 0.125)), scored(value(0.5, None)), scored(None)] == ["50.0 (37.5 to 62.5)", "50.0 (none)", "–"]
    assert [chance(0.0123), chance(0.00001), chance(None), chance(1.0)] == ["0.012", "below 0.0001", "–", "1"]
    found = with_difference("random", ABOVE, p=0.0)
    assert ", p below 0.0001)" in comparison_in_words(found, cell(), study())


def test_regimes_and_yields_in_words() -> None:
    assert "the generator saw 437 images, the same at all sizes" in regime_in_words(study())
    assert "knows no more of the patients than the classifier" in regime_in_words(study(regime="strict"))
    assert "an unknown number of images" in regime_in_words(study(generator={"images": None}))
    assert [words.split(":")[0] for words in yields_of_cell_in_words(cell())][:2] == [
        "The intervals of diverse images and held-out real images overlap",
        "The interval of diverse images lies above that of unguided images",
    ]
    assert list(yields_of_cell_in_words(cell(yields={"heldout_real": None, "diverse": cell()["yields"]["diverse"]}))) == []
    assert list(yields_of_cell_in_words({})) == []


# --- figures


def dots(panel: Axes) -> list[Line2D]:
    return [line for line in panel.get_lines() if line.get_marker() not in ("None", None, "")]


def named(panel: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in panel.get_lines() if not str(line.get_label()).startswith("_")}


def test_the_forest_has_a_dot_and_a_line_a_comparison_filled_where_fixed_before() -> None:
    found = study(cells=[cell(0.1), cell(0.25), cell(1.0)])
    found["cells"][0]["comparisons"].append(comparison("real", 0.5, metric="auc"))  # of another metric: not in this figure
    found["cells"][1]["comparisons"][0]["difference"]["ci95"] = [None, None]
    panels = comparisons_figure(found).axes
    assert [panel.get_title() for panel in panels] == ["10 % (44 images)", "25 % (109 images)", "100 % (437 images)"]
    for panel, each in zip(panels, found["cells"], strict=True):
        drawn = [row for row in each["comparisons"] if row["metric"] == "balanced_accuracy"]
        assert [line.get_xdata()[0] for line in dots(panel)] == [100 * row["difference"]["mean"] for row in drawn]
        assert [to_hex(line.get_markerfacecolor()) == "#ffffff" for line in dots(panel)] == [not row["primary"] for row in drawn]
        intervals = [list(line.get_xdata()) for line in panel.get_lines() if line.get_marker() == "None"][1:]  # the first is the line at 0
        ends = [[100 * end for end in row["difference"]["ci95"]] for row in drawn if row["difference"]["ci95"][0] is not None]
        assert intervals == ends
        assert [text.get_text() for text in panel.texts] == [points(row["difference"]["mean"]) for row in drawn]
    labels = panels[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["diverse − random", "diverse − duplicates", "diverse − real", "diverse − extra real"]
    assert [label.get_fontweight() for label in labels] == ["bold", "bold", "normal", "normal"]


def test_sizes_have_a_line_an_arm_and_a_dashed_ceiling() -> None:
    found = study()
    found["cells"].reverse()  # drawn in order of size, however they come
    found["cells"][0]["arms"].append(arm("real", 0.6, augment=False))
    (panel,) = sizes_figure(found).axes
    lines = named(panel)
    assert set(lines) == {*ARMS, "real, not augmented", "extra real"} - {"extra_real"}
    rows = [row for each in (cell(0.1), cell(1.0)) for row in each["arms"]]
    means = {name: [100 * row["metrics"]["balanced_accuracy"]["mean"] for row in rows if row["arm"] == name] for name in ARMS}
    for name in ARMS:
        assert list(lines[name.replace("_", " ")].get_ydata()) == means[name]
    assert [name for name, line in lines.items() if line.get_linestyle() == "--"] == ["extra real"]
    intervals = [line for line in panel.get_lines() if str(line.get_label()).startswith("_")]
    assert len(intervals) == sum(len(each["arms"]) for each in found["cells"])
    assert [label.get_text() for label in panel.get_xticklabels()] == ["10 % (44 images)", "100 % (437 images)"]
    places = [line.get_xdata()[0] for line in intervals]
    assert len(set(places)) == len(places)  # none hides another
    assert len(sizes_figure(study(cells=[cell(0.25)])).axes) == 1


def test_sweeps_show_validation_and_test_and_the_chosen_ratio() -> None:
    found = study(cells=[cell(0.1), cell(0.25, ratio=0.5), cell(1.0, ratios=[])])
    panels = ratios_figure(found).axes
    assert len(panels) == 6
    for panel, (key, each) in zip(panels, itertools.product(("validation", "scores"), found["cells"]), strict=True):
        lines = named(panel)
        assert set(lines) == ({"diverse", "random", "duplicates"} if each["ratios"] else set())
        assert panel.get_xscale() == "log"
        for name, line in lines.items():
            rows = [row for row in each["ratios"] if row["arm"] == name]
            assert list(line.get_ydata()) == [100 * row[key]["balanced_accuracy"]["mean"] for row in rows]
            np.testing.assert_allclose(line.get_xdata(), [row["ratio"] for row in rows], rtol=0.1)
        shaded = [np.sqrt(patch.get_x() * (patch.get_x() + patch.get_width())) for patch in panel.patches]
        assert shaded == pytest.approx([each["ratio"]] if each["ratios"] else [])
    # in development other images than those that choose the ratio may be scored, or the same
    panels = ratios_figure(study(scored_on="development")).axes
    assert [panel.get_ylabel() for panel in panels[::2]] == ["validation images, %", "scored images, %"]
    found = study(scored_on="development")
    for row in itertools.chain(*(each["ratios"] for each in found["cells"])):
        row["scores"] = copy.deepcopy(row["validation"])
    assert len(ratios_figure(found).axes) == 2


def test_recalls_have_a_panel_a_class_and_size_and_a_row_an_arm() -> None:
    found = study()
    panels = recalls_figure(found).axes
    assert [panel.get_title().split("\n")[0] for panel in panels] == ["malignant", "malignant", "normal, benign", "normal, benign"]
    for panel, (number, each) in zip(panels, itertools.product((0, 1), found["cells"]), strict=True):
        assert [line.get_xdata()[0] for line in dots(panel)] == [100 * row["metrics"][f"recall_{number}"]["mean"] for row in each["arms"]]
        assert len(panel.get_lines()) == 2 * len(each["arms"])
    many = study(data=found["data"] | {"class_names": [f"class {number}" for number in range(MAX_CLASSES + 3)]})
    assert len(recalls_figure(many).axes) == 2 * MAX_CLASSES


def test_titles_of_recalls_do_not_run_into_one_another() -> None:
    long = "atelectasis with consolidation and pleural effusion"
    data = study()["data"] | {"class_names": [long, "normal or benign"]}
    figure = recalls_figure(study(cells=[cell(size) for size in (0.1, 0.25, 1.0)], data=data))
    figure.canvas.draw()
    titles = [panel.title.get_window_extent() for panel in figure.axes]
    assert len(titles) == 6
    for left, right in itertools.combinations(titles, 2):
        assert not left.overlaps(right)


def test_panels_of_a_size_without_a_bank_say_so() -> None:
    bare = cell(0.1, comparisons=[], ratios=[], ratio=None, untested="no sample of class 1 was accepted", arms=[arm("real", 0.7)])
    found = study(cells=[bare, cell(1.0)])
    for panels in (comparisons_figure(found).axes, ratios_figure(found).axes):
        assert len(panels) in (2, 4)
        for place, panel in enumerate(panels):
            assert ("not tested" in [text.get_text() for text in panel.texts]) == (place % 2 == 0)


def test_many_sizes_go_below_one_another() -> None:
    found = study(cells=[copy.deepcopy(cell(0.1)) | {"size": size} for size in (0.1, 0.2, 0.3, 0.4)])
    panels = comparisons_figure(found).axes
    assert [panel.get_title().split()[0] for panel in panels if panel.axison] == ["10", "20", "30", "40"]
    assert sum(not panel.axison for panel in panels) == 2
    assert len([panel for panel in recalls_figure(found).axes if panel.axison]) == 8


def test_drawing_changes_nothing_outside(undrawn: None, tmp_path: Path) -> None:
    found = study()
    kept, before, open_figures = copy.deepcopy(found), dict(mpl.rcParams), pyplot.get_fignums()
    write_study(tmp_path, found)
    assert found == kept
    assert dict(mpl.rcParams) == before
    assert pyplot.get_fignums() == open_figures
