"""The page of an audit, its figures and words, and what banks carry of it."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from audits import images, model_pictures, model_summary, scored, twin_pictures, twin_summary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.figure import Figure
from test_report import HOSTILE, Page, pictures, summary, text_of

from monai_diverse import demo
from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.bank.format import NONSENSE
from monai_diverse.cli import main
from monai_diverse.datasheet import NO_PATIENTS, audit_digest, audit_lines, audit_of, datasheet, read_audit
from monai_diverse.errors import DataError
from monai_diverse.report import audit as page_module
from monai_diverse.report import (
    closest_figure,
    divergence_figure,
    forest_figure,
    frontier_figure,
    lean_figure,
    membership_figure,
    phase_figure,
    quadruplets_figure,
    write_audit,
    write_report,
)
from monai_diverse.report import page as report_module
from monai_diverse.report.audit_words import (
    advice_in_words,
    audit_in_words,
    caveats_in_words,
    change_in_words,
    changes_in_words,
    control_in_words,
    copies_in_words,
    effect_in_words,
    lean_in_words,
    membership_in_words,
    phase_in_words,
    stop_in_words,
)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not turned into pixels, which takes most of the time."""
    for module in (page_module, report_module):
        monkeypatch.setattr(module, "png", lambda figure: b"a picture")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("audits")
    made = {"model": (model_summary(), model_pictures()), "twins": (twin_summary(), twin_pictures())}
    return {kind: write_audit(out / kind, *given) for kind, given in made.items()}


def shown(out: Path, value: dict[str, Any], drawn: dict[str, Any] | None = None) -> str:
    return text_of(write_audit(out, value, {} if drawn is None else drawn).read_text(encoding="utf-8"))


# --- pages


@pytest.mark.parametrize("kind", ["model", "twins"])
def test_a_page_holds_all_it_needs_and_loads_nothing(pages: dict[str, Path], kind: str) -> None:
    page = Page(pages[kind].read_text(encoding="utf-8"))
    assert len(page.loads) == {"model": 3, "twins": 5}[kind]
    assert all(load.startswith("data:image/png;base64,iVBOR") for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "max-width" in page.style
    assert "url(" not in page.style
    written = json.loads((pages[kind].parent / "audit.json").read_text())
    assert written == json.loads(json.dumps(model_summary() if kind == "model" else twin_summary()))
    assert sorted(p.name for p in pages[kind].parent.iterdir()) == ["audit.html", "audit.json"]


def test_the_page_of_a_model_says_what_was_found(pages: dict[str, Path]) -> None:
    text = text_of(pages["model"].read_text(encoding="utf-8"))
    for words in (
        "The bias of own is beyond the tolerance.",
        "bias +0.050 (95 % interval +0.030 to +0.070)",
        "a training image in 60.0 % of cases (95 % interval 56.0 to 64.0 %; 50 % is neutral)",
        "Guidance 2 instead of the model's own: the bias changes by +0.030 (95 % interval +0.020 to +0.040)",
        "the interval lies above 0: it amplifies the lean",
        "Guidance 4 instead of the model's own: the bias changes by +0.005 (95 % interval −0.005 to +0.015); the interval includes 0: undecided",
        "Shield (shield): the bias changes by −0.030 (95 % interval −0.040 to −0.020); the interval lies below 0: it reduces the lean",
        "with 86 held-out real images in the place of samples: +0.004",
        "12 training and 15 unseen images of patients",
        "AUC 0.530 (95 % interval 0.510 to 0.550), above 0.5",
        "arXiv 2505.01524",
        "lower is worse",
        "ab" * 32,
    ):
        assert words in text, words
    assert text.count("normal, benign") >= 4


def test_the_page_of_twins_says_what_was_found(pages: dict[str, Path]) -> None:
    text = text_of(pages["twins"].read_text(encoding="utf-8"))
    for words in (
        "From step 400 to step 3,200 the test loss still fell while the twins' samples already parted",
        "Strict stop (onset): step 400, bias +0.010 (95 % interval +0.002 to +0.018): the last significant minimum of D_pair.",
        "Budget stop (the latest whose bias is within the tolerance): step 400, bias +0.010 (95 % interval +0.002 to +0.018), unresolved: ",
        "Utility stop (least test loss): step 3,200, bias +0.100 (95 % interval +0.092 to +0.108)",
        "arXiv 2603.03469",
    ):
        assert words in text, words


def test_no_page_calls_anything_safe_and_no_unpublished_figure_is_quoted(pages: dict[str, Path], undrawn: None, tmp_path: Path) -> None:
    within = shown(tmp_path, model_summary(bias=0.0, half=0.01))
    for text in (*(text_of(page.read_text(encoding="utf-8")) for page in pages.values()), within):
        assert not re.search(r"\b(safe|safely|private|anonymous|10.15 ?%)\b", text)
        assert "no privacy guarantee" in text


@pytest.mark.parametrize(
    ("changes", "says", "never"),
    [
        ({"bias": 0.0, "half": 0.01}, "The bias of own is within the tolerance.", "beyond"),
        ({"bias": 0.02, "half": 0.03}, "The bias of own is unresolved the tolerance.", "is within"),
        ({"membership": None}, "this needs the network itself", "AUC of membership by noise level"),
        ({"control": None}, "there is no control: what unseen images score is not known", "held-out real images in the place"),
        ({"pairs": []}, "There are none to show", "Of each three"),
        ({"tolerance": None}, "held-out real", "unpublished"),
        ({"samplers": model_summary()["samplers"][:1]}, "a model (1,000)", "of each sampler"),
        ({"class_names": ["all"], "samplers": [model_summary()["samplers"][0] | {"by_class": []}]}, "Each sampler;", "below it its classes"),
    ],
)
def test_every_case_of_a_model_has_its_page(undrawn: None, tmp_path: Path, changes: dict[str, Any], says: str, never: str) -> None:
    text = shown(tmp_path, model_summary(**changes), model_pictures())
    assert says in text
    assert never not in text


def test_a_bank_alone(undrawn: None, tmp_path: Path) -> None:
    value = model_summary(membership=None, control=None)
    value["samplers"] = [value["samplers"][0] | {"name": "bank", "nfe": None, "images": 7}]
    value["verdict"] |= {"sampler": "bank"}
    for pair in value["pairs"]:
        pair |= {"sampler": "bank", "seed": None, "label": 5}
    for name in ("c_t", "authenticity", "gap_ratio"):
        value["samplers"][0][name] |= {"value": None if name == "c_t" else 0.5, "ci": None, "heldout": None}
    text = shown(tmp_path, value, model_pictures(shape=(1, 4, 8, 8)))
    assert "a model (7)" in text
    assert "class 5" in text
    assert "instead of" not in text
    assert "middle slice" in text


def test_twins_without_stops(undrawn: None, tmp_path: Path) -> None:
    value = twin_summary(phase=None, tolerance=None, pairs=1)
    value["stops"] = {
        "strict": {"step": None, "word": "unresolved", "why": "no minimum", "quality_ok": None},
        "budget": {"step": None, "word": "resolved", "why": "no checkpoint is within", "quality_ok": None},
        "utility": {"step": 6400, "word": "unresolved", "why": "the loss still falls", "quality_ok": True},
    }
    text = shown(tmp_path, value)
    assert "No phase of biased generalization was resolved" in text
    assert "Strict stop (onset): unresolved: no minimum." in text
    assert "within the tolerance): none: no checkpoint is within." in text
    assert "step 6,400, bias +0.160 (95 % interval +0.152 to +0.168), unresolved: the loss still falls." in text
    assert "So few pairs tell next to nothing of how much trainings differ" in text
    assert "There are none to show" in text


def test_intervals_may_be_missing(undrawn: None, tmp_path: Path) -> None:
    value = model_summary()
    value["samplers"][0]["bias"]["ci"] = value["samplers"][1]["against_first"]["bias"]["ci"] = value["control"]["bias"]["ci"] = None
    value["samplers"][0]["own_nearer"]["ci"] = [None, None]
    value["membership"]["levels"][0]["gap"]["ci"] = value["membership"]["auc"]["ci"] = None
    text = shown(tmp_path / "model", value, model_pictures())
    assert "no interval: nothing can be concluded" in text
    assert "without an interval nothing can be concluded" in text
    value = twin_summary()
    for row in value["checkpoints"]:
        row["bias"]["ci"] = row["loss"]["ci"] = None
    assert "interval none" in shown(tmp_path / "twins", value)


def test_hostile_text_is_shown_not_run(undrawn: None, tmp_path: Path, pages: dict[str, Path]) -> None:
    value = model_summary(class_names=[HOSTILE, HOSTILE], limits=[HOSTILE], version=HOSTILE, environment={HOSTILE: HOSTILE}, inputs=[HOSTILE])
    value["source"] = value["features"] = {"name": HOSTILE, "fingerprint": HOSTILE, "licence": HOSTILE}
    value["verdict"] |= {"text": HOSTILE, "sampler": HOSTILE}
    for row in value["samplers"]:
        row |= {"name": HOSTILE, "scheduler": HOSTILE, "guide": HOSTILE}
        for part in row["by_class"]:
            part["name"] = HOSTILE
    for pair in value["pairs"]:
        pair["sampler"] = HOSTILE
    page = Page(write_audit(tmp_path / "model", value, model_pictures()).read_text(encoding="utf-8"))
    forest_figure(value).draw_without_rendering()  # nor read as mathematics
    assert "script" not in page.tags
    assert page.text.count('<script>alert("x")</script>') > 20
    twins = twin_summary(limits=[HOSTILE], version=HOSTILE, recipe={HOSTILE: HOSTILE})
    for stop in twins["stops"].values():
        stop["why"] = HOSTILE
    page = Page(write_audit(tmp_path / "twins", twins, twin_pictures()).read_text(encoding="utf-8"))
    assert set(page.tags) == set(Page(pages["twins"].read_text(encoding="utf-8")).tags)


def test_what_is_no_audit_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="kind: expected model or twins, got 'bank'"):
        write_audit(tmp_path / "out", {"kind": "bank"}, {})
    with pytest.raises(DataError, match="missing verdict"):
        write_audit(tmp_path / "out", {key: value for key, value in model_summary().items() if key != "verdict"}, {})
    assert not (tmp_path / "out").exists()


# --- words


@pytest.mark.parametrize(("ends", "guided", "shielded", "other"), [
    ([0.01, 0.03], "above 0: it amplifies the lean", "above 0: it increases the lean", "above 0: it leans more"),
    ([-0.03, -0.01], "below 0: it weakens the lean", "below 0: it reduces the lean", "below 0: it leans less"),
    ([-0.01, 0.03], "includes 0: undecided", "includes 0: undecided", "includes 0: undecided"),
    ([0.0, 0.03], "includes 0: undecided", "includes 0: undecided", "includes 0: undecided"),
    ([-0.03, 0.0], "includes 0: undecided", "includes 0: undecided", "includes 0: undecided"),
    (None, "nothing can be concluded", "nothing can be concluded", "nothing can be concluded"),
])  # fmt: skip
def test_changes_are_named_by_their_interval_alone(ends: list[float] | None, guided: str, shielded: str, other: str) -> None:
    first = {"name": "own", "guidance": None, "guide": None, "against_first": None}
    # the value itself would say otherwise
    moved = {"against_first": {"bias": {"value": 0.0, "ci": ends}}}
    rows = [
        {"name": "g", "guidance": 2.0, "guide": None},
        {"name": "s", "guidance": None, "guide": "Shield"},
        {"name": "DDIM", "guidance": None, "guide": None},
    ]
    words = [change_in_words(row | moved, first, "95 %") for row in rows]
    assert [guided in words[0], shielded in words[1], other in words[2]] == [True] * 3
    assert "Guidance 2 instead of the model's own" in words[0]
    assert "Guidance 2 instead of 1" in change_in_words(rows[0] | moved, first | {"guidance": 1.0}, "95 %")
    assert "Shield (s)" in words[1]
    assert "DDIM instead of own" in words[2]
    assert changes_in_words([first], "95 %") == []
    assert len(changes_in_words([first, rows[0] | moved], "95 %")) == 1
    assert "by chance" in changes_in_words([first, *(row | moved for row in rows)], "95 %")[-1]


def test_leans_controls_and_membership_in_words() -> None:
    assert [lean_in_words(scored(value, 0.01)).split(":")[0] for value in (0.02, -0.02, 0.005)] == [
        "the interval lies above 0", "the interval lies below 0", "the interval includes 0",
    ]  # fmt: skip
    controls = [control_in_words({"images": 9, "bias": scored(value, 0.01)}, "95 %") for value in (0.02, -0.02, 0.005)]
    assert ["above 0: the two sets differ" in controls[0], "below 0: the two sets differ" in controls[1], "An unbiased source" in controls[2]] == [
        True
    ] * 3
    levels = [{"auc": scored(value, 0.01)} for value in (0.5, 0.52, 0.48, 0.53)] + [{"auc": scored(0.9, None)}]
    found = [membership_in_words({"auc": scored(value, 0.01), "levels": levels}, "90 %") for value in (0.52, 0.48, 0.505)]
    assert ["better than chance" in found[0], "have the higher loss" in found[1], "was not shown to tell" in found[2]] == [True] * 3
    assert all("90 % interval" in words for words in found)
    assert ["At 2 of 5 single noise levels" in words for words in found] == [False, False, True]
    words = effect_in_words({"bias": scored(-0.05, 0.01), "own_nearer": scored(0.4, 0.02)}, "95 %")
    assert "bias −0.050 (95 % interval −0.060 to −0.040)" in words
    assert "40.0 % of cases (95 % interval 38.0 to 42.0 %" in words


def test_phase_and_stops_in_words() -> None:
    value = twin_summary()
    value["stops"]["utility"]["word"] = "unresolved"
    assert "(where the least test loss lies is unresolved)" in phase_in_words(value)
    value["checkpoints"] = value["checkpoints"][:1]
    assert stop_in_words("strict", value, "95 %") == "Strict stop (onset): step 400: the last significant minimum of D_pair."
    lines = audit_in_words(twin_summary())
    assert len(lines) == 4
    lines = audit_in_words(model_summary(membership=None, control=None))
    assert lines[1] == "own: bias +0.050 (95 % interval +0.030 to +0.070), p = 0.001, P(own nearer) 0.600, 1,000 images"
    assert not any("held-out real" in line or "membership" in line for line in lines)


def with_new_keys() -> dict[str, Any]:
    value = model_summary(bias=0.02, half=0.08, mirrored=True)
    value["verdict"]["reasons"] = ["The interval of the control excludes 0."]
    value["sets"]["groups_from"] = "near-duplicates"
    value["sets"]["train"]["images_per_group"], value["sets"]["heldout"]["images_per_group"] = 1.25, 1.5
    value["samplers"][0] |= {"flat": 3, "concentration": {"value": 0.12, "heldout": 0.034}}
    return value


def test_what_must_be_known_of_a_verdict_stands_beside_it(undrawn: None, bank: SampleBank, tmp_path: Path) -> None:
    value = with_new_keys()
    text, lines, sheet = shown(tmp_path / "page", value, model_pictures()), audit_in_words(value), audited(bank, value)
    assert lines[1] == value["verdict"]["reasons"][0]
    assert lines[2] == f"By the end of its interval, samples may be as much as {100 * (1 - math.exp(-0.1)):.1f} % nearer to training images."
    assert lines[3] == NO_PATIENTS
    for words in (*lines[:4], "1.25", "images each", "a mirrored image counts as the same", "groups of near-duplicates"):
        assert words in text, words
    assert text.index(NO_PATIENTS) < text.index("What was done")
    assert [f"why: {lines[1]}" in sheet, NO_PATIENTS in sheet] == [True] * 2
    for words in ("3 of 1,000 samples are without any contrast", "at most 12.0 % of samples have their nearest training image"):
        assert words in text
        assert any(words in line for line in lines)
    assert "(held-out real images: 3.4 %)" in text
    assert re.search(r"concentration\s*0\.12\s*–\s*0\.034\s*largest share", text)
    # and none of it where it does not hold, or is not recorded
    value["sets"]["groups_from"] = "given"
    assert NO_PATIENTS not in shown(tmp_path / "given", value)
    assert NO_PATIENTS not in audited(bank, value)
    assert caveats_in_words(model_summary()) == []
    assert caveats_in_words(model_summary(bias=0.01, half=0.02)) == []  # the end is above the tolerance, but not far
    assert copies_in_words(model_summary()["samplers"]) == []
    assert "no-mirrored" not in shown(tmp_path / "old", model_summary())


def test_a_page_with_pictures_says_of_whom_they_are(undrawn: None, tmp_path: Path) -> None:
    told = "This page holds images of real patients: keep it where those may be kept."
    for kind, value, drawn in (("model", model_summary(), model_pictures()), ("twins", twin_summary(), twin_pictures())):
        with_pictures, without = shown(tmp_path / kind, value, drawn), shown(tmp_path / f"{kind}-without", value)
        assert with_pictures.index(told) < with_pictures.index("What was done")
        assert told not in without
    assert "#6" in shown(tmp_path / "model-without", model_summary())
    assert "Their images are left out of this page" in shown(tmp_path / "model-without", model_summary())


def test_a_drawing_that_fails_leaves_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(figure: Figure) -> bytes:
        raise MemoryError

    monkeypatch.setattr(page_module, "png", fails)
    with pytest.raises(MemoryError):
        write_audit(tmp_path, model_summary(), {})
    assert json.loads((tmp_path / "audit.json").read_text()) == json.loads(json.dumps(model_summary()))


def test_the_shields_reduction_is_told_with_its_catch() -> None:
    shield, other = model_summary()["samplers"][3], model_summary()["samplers"][3] | {"guide": "Diverse"}
    first = model_summary()["samplers"][0]
    catch = "calibrated on the held-out images that then measure it"
    assert [catch in change_in_words(row, first, "95 %") for row in (shield, other)] == [True, False]


def test_the_page_of_twins_says_which_stop_training_takes(undrawn: None, tmp_path: Path) -> None:
    words = "monai-diverse train --twin takes the budget stop: it trains the model itself up to step 1,600."
    value = twin_summary(advice={"name": "budget", "step": 1600})
    assert words in shown(tmp_path / "with", value)
    assert audit_in_words(value)[-1] == words
    assert advice_in_words(twin_summary()) is None
    assert "takes the" not in shown(tmp_path / "without", twin_summary())


# --- figures


def dots(figure: Figure, marker: str = "o") -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for panel in figure.axes
        for line in panel.get_lines()
        if line.get_marker() == marker and len(line.get_xdata()) == 1
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def uprights(figure: Figure) -> set[float]:
    return {float(line.get_xdata()[0]) for line in figure.axes[0].get_lines() if list(line.get_ydata()) == [0, 1]}


def test_the_forest_shows_each_sampler_class_and_the_control() -> None:
    value = model_summary()
    figure = forest_figure(value)
    expected = []
    for row in value["samplers"]:
        expected += [row["bias"]["value"], *(part["bias"]["value"] for part in row["by_class"])]
    assert [x for x, _ in dots(figure)] == pytest.approx([*expected, value["control"]["bias"]["value"]])
    assert uprights(figure) == {0.0, value["tolerance"]}
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[:3] == ["own", "malignant", "normal, benign"]
    assert names[-1] == "held-out real, in place of samples"
    assert uprights(forest_figure(model_summary(tolerance=None))) == {0.0}


def test_a_forest_of_many_rows_shows_samplers_then_classes_of_the_judged_one(undrawn: None, tmp_path: Path) -> None:
    value = model_summary()
    value["class_names"] = [f"class {c}" for c in range(60)]
    for number, row in enumerate(value["samplers"]):
        row["by_class"] = [row["by_class"][0] | {"label": c, "name": f"{number}-{c}"} for c in range(60)]
    value["verdict"]["sampler"] = "guidance 2"
    names = [label.get_text() for label in forest_figure(value).axes[0].get_yticklabels()]
    assert names == [row["name"] for row in value["samplers"]] + [f"1-{c}" for c in range(60)] + ["held-out real, in place of samples"]
    assert "180 more rows are left out" in forest_figure(value).axes[0].get_xlabel()
    assert "180 rows are left out here; the table has them all" in shown(tmp_path, value)
    value["samplers"] *= 30
    figure = forest_figure(value)
    assert len(figure.axes[0].get_yticklabels()) == 100
    assert f"{120 * 61 + 1 - 100} more rows" in figure.axes[0].get_xlabel()
    assert "left out" not in forest_figure(model_summary()).axes[0].get_xlabel()


def test_the_phase_is_shaded_between_onset_and_least_loss() -> None:
    figure = phase_figure(twin_summary())
    assert uprights(figure) == {400.0, 3200.0}
    (patch,) = figure.axes[0].patches
    assert (patch.get_x(), patch.get_x() + patch.get_width()) == (400, 3200)
    assert [text.get_text() for text in figure.axes[0].texts] == ["strict = budget (?)", "utility"]
    assert figure.axes[0].get_xscale() == "log"
    assert not phase_figure(twin_summary(phase=None)).axes[0].patches


def test_the_frontier_marks_the_stops_at_their_checkpoints() -> None:
    value = twin_summary()
    rows = {row["step"]: row for row in value["checkpoints"]}
    assert dots(frontier_figure(value), "D") == [(rows[s]["quality"], rows[s]["bias"]["value"]) for s in (400, 3200)]
    assert dots(frontier_figure(value)) == [(row["quality"], row["bias"]["value"]) for row in value["checkpoints"]]


def test_the_tolerance_of_a_ratio_is_that_of_its_logarithm() -> None:
    levels = [float(line.get_ydata()[0]) for line in lean_figure(twin_summary()).axes[0].get_lines() if list(line.get_xdata()) == [0, 1]]
    assert levels == pytest.approx([1.0, math.exp(-0.02)])


def test_step_0_is_left_out_of_logarithmic_axes() -> None:
    value = twin_summary()
    value["checkpoints"].insert(0, value["checkpoints"][0] | {"step": 0})
    for make in (phase_figure, lean_figure, divergence_figure):
        assert all(0 not in line.get_xdata() for line in make(value).axes[0].get_lines() if len(line.get_xdata()) > 2)


def test_figures_can_be_drawn_alone_and_leave_matplotlib_alone() -> None:
    before, open_figures = dict(mpl.rcParams), pyplot.get_fignums()
    made = [
        quadruplets_figure({400: images(2, 4, 3, 8, 8), 3200: images(1, 4, 3, 8, 8)}),
        quadruplets_figure({}),
        closest_figure(*(images(30, 1, 4, 8, 8, seed=s) for s in range(3)), titles=["$\\frac{"] * 30),
        membership_figure(model_summary()["membership"], 0.95),
        divergence_figure(twin_summary(checkpoints=[row | {"divergence": []} for row in twin_summary()["checkpoints"]])),
    ]
    for figure in made:
        figure.draw_without_rendering()
    assert sum(bool(panel.images) for panel in made[0].axes) == 12
    assert sum(bool(panel.images) for panel in made[2].axes) == 24
    assert dict(mpl.rcParams) == before
    assert pyplot.get_fignums() == open_figures


# --- banks and reports


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    header = BankHeader(recipe={}, recipe_fingerprint="0", source={"fingerprint": "ab" * 32}, features={}, shape=(1, 2, 2), classes=2)
    with BankWriter.create_or_resume(tmp_path / "bank", header, resume=False) as writer:
        writer.append(np.zeros((4, 1, 2, 2), np.float32), np.arange(4) % 2, np.arange(4), {}, {"drawn": 4, "rejections": {}})
    return SampleBank.open(tmp_path / "bank")


def audited(bank: SampleBank, value: Any) -> str:
    (bank.path / "audit.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return datasheet(bank)


def test_a_bank_carries_the_gist_of_its_audit(bank: SampleBank, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit_of(bank) is None
    assert main(["inspect", str(bank.path)]) == 0
    assert "leakage audit: not run: whether the generator leans towards its training patients is not known" in capsys.readouterr().out
    text = audited(bank, model_summary())
    wanted = (
        "Run: see `audit.json`",
        "its verdict: The bias of own is beyond the tolerance.",
        "bias of sampler own: +0.050 (95 % interval +0.030 to +0.070), p = 0.001; beyond at a tolerance of 0.02",
        "compared with 425 training images of 418 patients or groups, and 172 unseen ones of 170",
        "held-out real images in the place of samples: +0.004 (95 % interval -0.026 to +0.034)",
        "audited: the model that these samples come from, without this bank's guide and screen",
        "no privacy guarantee",
    )
    assert main(["inspect", str(bank.path)]) == 0
    told = capsys.readouterr().out
    for words in wanted:
        assert words in text
        assert words in told or words.startswith("Run")
    assert main(["inspect", str(bank.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["audit"]
    assert found["bias"] == {"value": 0.05, "ci": pytest.approx([0.03, 0.07]), "p": 0.001}
    assert (found["word"], found["subject"], found["train"]["groups"]) == ("beyond", "source", 418)
    assert main(["verify", str(bank.path)]) == 0


@pytest.mark.parametrize("about", ["bank", "other"])
def test_a_datasheet_says_what_was_audited(bank: SampleBank, about: str) -> None:
    value = model_summary()
    value["source"]["fingerprint"] = bank.fingerprint if about == "bank" else "ef" * 32
    assert ("the images of this bank as they are" if about == "bank" else "another model, other settings, or this bank before") in audited(
        bank, value
    )


@pytest.mark.parametrize("changed", [{"steps": 9}, {"guidance": 2.0}, {"scheduler": "DDIMScheduler"}, {"guide": "Shield"}, {}])
def test_an_audit_with_other_settings_is_of_another(bank: SampleBank, changed: dict[str, Any]) -> None:
    value = model_summary()
    value["samplers"][0] |= changed
    audited(bank, value)
    found = audit_of(bank)
    assert found is not None
    assert found["subject"] == ("other" if changed else "source")


@pytest.mark.parametrize(
    "change",
    [
        {"ci": [0.06, 0.07]},
        {"ci": [0.01, 0.04]},
        {"ci": [0.07, 0.03]},
        {"p": -0.1},
        {"p": 1.1},
        {"tolerance": -1.0},
        {"word": "within"},
        {"word": "beyond", "p": 0.3},
        {"word": "beyond", "tolerance": 0.05},
        {"word": "beyond", "tolerance": None},
    ],
)
def test_figures_that_contradict_one_another_are_nonsense(bank: SampleBank, change: dict[str, Any]) -> None:
    value = model_summary()
    audit_digest(value)
    with pytest.raises(ValueError, match=r"expected|but the bias"):
        audit_digest(value | {"verdict": value["verdict"] | change})
    assert "cannot be read" in audited(bank, value | {"verdict": value["verdict"] | change})


def test_levels_counts_and_controls_that_cannot_be_are_nonsense() -> None:
    value = model_summary()
    wrong = [{"confidence": 1.5}, {"confidence": -0.1}, {"control": {"bias": {"value": 1.0, "ci": [0.0, 0.5]}}}]
    wrong += [{"sets": value["sets"] | {"train": {"images": -1, "groups": 1}}}]
    for change in wrong:
        with pytest.raises(ValueError, match="expected"):
            audit_digest(value | change)
    assert "no control: what unseen images score is not known" in audit_lines(audit_digest(value | {"control": None}))
    told = audit_lines(audit_digest(value | {"control": {"bias": scored(0.01, None)}}))
    assert "held-out real images in the place of samples: +0.010 (no interval)" in told
    unresolved = value["verdict"] | {"word": "unresolved"}  # whatever the figures: the control may be off
    assert audit_digest(value | {"verdict": unresolved})["word"] == "unresolved"


@pytest.mark.parametrize(
    "content", ["{}", "[]", "no json", "", '{"kind": "model"}', '{"kind": "twins"}', "[" * 100_000, '{"kind": "model", "verdict": 1}']
)
def test_strange_audits_are_told_as_such(bank: SampleBank, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Run: see `audit.json`, whose figures cannot be read here." in audited(bank, content)
    assert main(["inspect", str(bank.path)]) == 0
    assert "leakage audit: audit.json cannot be read here" in capsys.readouterr().out
    assert main(["inspect", str(bank.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["audit"] == {"kind": None}
    assert main(["verify", str(bank.path)]) == 0


def test_a_huge_audit_is_not_read(bank: SampleBank) -> None:
    assert "cannot be read" in audited(bank, json.dumps(model_summary() | {"limits": ["x" * 2**24]}))


def test_a_strangers_audit_is_text(bank: SampleBank) -> None:
    evil = "x\n# Audited: harmless\n![](http://example.org/x.png)<script>\x1b[2J`" + "y" * 10_000
    value = model_summary()
    value["verdict"] |= {"text": evil, "sampler": evil, "word": evil}
    value["source"] |= {"name": evil, "fingerprint": evil}
    text = audited(bank, value)
    outside = "".join(text.split("`")[::2])
    assert not any(mark in outside for mark in ("<script", "![", "](http", "\x1b"))
    assert not any(line.startswith("# Audited") for line in text.splitlines())
    assert max(map(len, text.splitlines())) < 2000
    assert "no verdict at a tolerance" in text


def paths_in(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [before, *(path for key in keys for path in paths_in(value[key], (*before, key)))]


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.none(), max_size=2), st.dictionaries(st.text(), st.none())
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), odd=ODD)
def test_any_value_anywhere_in_an_audit(data: st.DataObject, odd: Any) -> None:
    value = copy.deepcopy(GIST)
    *way, last = data.draw(st.sampled_from(sorted(paths_in(value)[1:], key=str)))
    place: Any = value
    for key in way:
        place = place[key]
    place[last] = odd
    try:
        lines = audit_lines(audit_digest(value))
    except NONSENSE:
        return
    assert all("\n" not in line and "<" not in line and len(line) < 2000 for line in lines)
    "\n".join(lines).encode()


GIST = {key: model_summary()[key] for key in ("kind", "verdict", "sets", "source", "confidence")}


def test_a_demo_takes_the_audit_of_its_bank_or_of_the_shipped_model(bank: SampleBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ASSETS", tmp_path)
    assert demo._audit(bank) == {}
    (tmp_path / "audit.json").write_text(json.dumps(model_summary(version="shipped")))
    found = demo._audit(bank)["audit"]
    assert (found["version"], found["subject"], "pairs" in found) == ("shipped", "source", False)
    assert "audited: the model that these samples come from, without this bank's guide and screen" in audit_lines(audit_digest(found))
    audited(bank, model_summary(version="own"))
    assert demo._audit(bank)["audit"]["version"] == "own"
    for content in ("{}", "[" * 100_000, json.dumps(model_summary() | {"seed": math.nan})):
        audited(bank, content)
        assert demo._audit(bank)["audit"]["version"] == "shipped"
        assert read_audit(bank) is None


def test_a_report_carries_the_gist_too(undrawn: None, tmp_path: Path) -> None:
    plain = text_of(write_report(tmp_path / "plain", summary(), pictures()).read_text(encoding="utf-8"))
    assert "leakage audit" not in plain.lower()
    value = summary() | {"audit": model_summary()}
    text = text_of(write_report(tmp_path / "audited", value, pictures()).read_text(encoding="utf-8"))
    assert "Does the model lean towards its training patients?" in text
    assert "bias of sampler own: +0.050 (95 % interval +0.030 to +0.070)" in text
