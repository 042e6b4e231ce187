from __future__ import annotations

import base64
import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from PIL import Image
from scipy.stats import binomtest

from monai_diverse.errors import DataError
from monai_diverse.information import LabelledFeatures, describe_information
from monai_diverse.report import BREASTMNIST_ATTRIBUTION, Borderline, FeatureMap, Pictures, draw_figures, write_report
from monai_diverse.report.figures import MAX_PAIRS
from monai_diverse.report.map import MOST
from monai_diverse.report.page import INFORMATION_NAMES
from monai_diverse.report.style import significant
from monai_diverse.report.words import (
    classifier_in_words,
    difference_in_words,
    nearest_in_words,
    parity_in_words,
    references_in_words,
    score_in_words,
    yields_in_words,
)

HOSTILE = '<script>alert("x")</script> & "$\\frac{" $_{'
METRICS = ("balanced_accuracy", "auc", "accuracy")


class Page(HTMLParser):
    """What a browser would load and show."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.style = ""
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster", "background")]
        self.style += " ".join(value or "" for name, value in attrs if name == "style")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style" and not self.style:
            self.style = data
        else:
            self.text += data + " "


def yields(accepted: int, drawn: int, nfe: int | None = None) -> dict[str, Any]:
    interval = binomtest(accepted, drawn).proportion_ci(0.95)
    value = {"drawn": drawn, "accepted": accepted, "per_10k": 1e4 * accepted / drawn, "ci95": [1e4 * interval.low, 1e4 * interval.high]}
    return value | ({} if nfe is None else {"nfe": nfe, "accepted_per_1k_nfe": 1e3 * accepted / nfe})


def scores(mean: float, half: float | None) -> dict[str, Any]:
    return {metric: {"mean": mean, "ci95": [None, None] if half is None else [mean - half, mean + half]} for metric in METRICS} | {"seeds": 5}


def summary(*, accepted: int = 7, difference: float = 0.01, half: float | None = 0.03) -> dict[str, Any]:
    return {
        "version": "0.1.0",
        "seed": 3,
        "quick": False,
        "seconds": 600.0,
        "environment": {"python": "3.11.2", "torch": "2.13.0", "cpu": "a processor"},
        "yield": {"diverse": yields(accepted, 1000, 20000), "random": yields(1, 1000, 20000), "heldout_real": yields(2, 156)},
        "rejections": {"copy": 11, "not_novel": 700, "irrelevant": 82, "outlier": 1000 - 11 - 700 - 82 - 13 - accepted, "duplicate": 13},
        "rejections_random": {"copy": 20, "not_novel": 900, "irrelevant": 50, "outlier": 29, "duplicate": 0},
        "classifier": {arm: scores(0.8, half) for arm in ("real", "standard", "duplicates", "random", "diverse")},
        "comparisons": {f"diverse_vs_{control}": scores(difference, half) for control in ("duplicates", "random", "standard")},
        "bank": {"path": "bank", "size": accepted, "fingerprint": "ab" * 32},
        "recipe": {"guide": "shield", "steps": 20},
        "provenance": {"model": {"name": "a model"}, "note": "some note"},
    }


def pictures(diverse: int = 7, shape: tuple[int, ...] = (1, 8, 8), names: tuple[str, ...] = ("malignant", "benign")) -> Pictures:
    rng = np.random.default_rng(0)

    def some(count: int) -> np.ndarray:
        return rng.uniform(size=(count, *shape)).astype(np.float32)

    labels = np.arange(40, dtype=np.int64) % len(names)
    return Pictures(
        real=some(20),
        real_labels=labels[:20],
        random=some(9),
        random_labels=labels[:9],
        diverse=some(diverse),
        diverse_labels=labels[:diverse],
        nearest=some(diverse),
        diverse_scores=[{"copy": 0.5, "information_gain": 1.25 + index} for index in range(diverse)],
        class_names=names,
    )


def references(*, seen: bool = True, held: bool = True) -> dict[str, Any]:
    def some(count: int) -> dict[str, Any]:
        return {"shape": [count, 1, 8, 8], "class_counts": [count - 5, 5], "sha256": "ab" * 32}

    return {
        "sets": {
            "reference": some(437) if held else None,
            "calibration": some(109),
            "generator_train": some(1874) | {"mirrored": True} if seen else None,
        },
        "against": {"novelty": "reference" if held else "generator_train", "copies": "generator_train" if seen else "reference"},
    }


def edge(gate: str = "copy", scores: tuple[float, ...] = (0.2, 0.9, 1.4), shape: tuple[int, ...] = (1, 8, 8), threshold: float = 1.0) -> Borderline:
    images = np.random.default_rng(1).uniform(size=(len(scores), *shape)).astype(np.float32)
    verdicts = [None if score <= threshold else gate for score in scores]
    return Borderline.among(images, np.arange(len(scores)) % 2, scores, verdicts, gate=gate, threshold=threshold)


def features(seed: int, count: int = 20, at: float = 0.0) -> np.ndarray:
    return (at + np.random.default_rng(seed).normal(size=(count, 6))).astype(np.float32)


@pytest.fixture(scope="module")
def feature_map() -> FeatureMap:
    return FeatureMap.of(real=features(1), generated=features(2), accepted=features(3, at=30))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("report")
    page = write_report(out, summary(), pictures())
    return out, page.read_text(encoding="utf-8")


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but not turned into pixels, which takes most of the time: for words beside figures that other tests paint."""
    monkeypatch.setattr("monai_diverse.report.page.png", lambda figure: b"a picture")


def text_of(source: str) -> str:
    return " ".join(Page(source).text.split())


def test_every_figure_is_in_the_page_and_in_its_folder(written: tuple[Path, str]) -> None:
    out, source = written
    files = sorted((out / "figures").iterdir())
    assert [f.name for f in files] == [f"{n}.png" for n in ("classifier", "differences", "pairs", "rejections", "samples", "yields")]
    embedded = [base64.b64decode(load.removeprefix("data:image/png;base64,")) for load in Page(source).loads]
    assert sorted(embedded) == sorted(f.read_bytes() for f in files)
    for file in files:
        with Image.open(file) as image:
            assert image.width > 800


def test_the_page_loads_nothing_from_elsewhere(written: tuple[Path, str]) -> None:
    page = Page(written[1])
    assert page.loads
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "max-width" in page.style
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_the_page_says_what_there_is_to_say(written: tuple[Path, str]) -> None:
    text = text_of(written[1])
    assert "7 diverse samples were accepted from 1,000 drawn: 70 per 10,000" in text
    low, high = summary()["yield"]["diverse"]["ci95"]
    assert f"{low:.4g} to {high:.4g}" in text
    for wanted in ("ab" * 32, "shield", "2.13.0", "a processor", "CC BY 4.0", "Not for clinical use", "accepts by mistake"):
        assert wanted in text
    for paragraph in BREASTMNIST_ATTRIBUTION:
        assert " ".join(paragraph.split()) in text
    for count in (700, 900, 13):
        assert str(count) in text
    assert "8.25" not in text  # seven samples: their gains run from 1.25 to 7.25
    assert "7.25" in text


def test_a_report_repeats_byte_for_byte(written: tuple[Path, str], tmp_path: Path) -> None:
    assert write_report(tmp_path, summary(), pictures()).read_text(encoding="utf-8") == written[1]


def test_matplotlibs_global_state_is_left_alone(tmp_path: Path) -> None:
    before, open_figures = dict(mpl.rcParams), pyplot.get_fignums()
    draw_figures(summary(), pictures())["samples"].savefig(tmp_path / "samples.png")
    assert dict(mpl.rcParams) == before
    assert pyplot.get_fignums() == open_figures


def test_hostile_text_is_shown_not_run(written: tuple[Path, str], tmp_path: Path) -> None:
    value = summary()
    value["version"] = value["bank"]["path"] = value["bank"]["fingerprint"] = HOSTILE
    value["environment"] = {HOSTILE: HOSTILE}
    value["recipe"] = {HOSTILE: [HOSTILE]}
    value["provenance"] = {HOSTILE: HOSTILE, "nested": {HOSTILE: HOSTILE}}
    value["classifier"][HOSTILE] = value["classifier"].pop("random")
    value["comparisons"][f"diverse_vs_{HOSTILE}"] = value["comparisons"].pop("diverse_vs_random")
    shown = pictures(names=(HOSTILE, "benign"))
    shown = Pictures(**{**vars(shown), "diverse_scores": [{HOSTILE: 1.0}] * 7, "borderline": (edge(HOSTILE),)})
    value["references"], value["thresholds"] = references(), {HOSTILE: 1.0}
    source = write_report(tmp_path, value, shown, attribution=[HOSTILE]).read_text(encoding="utf-8")
    page = Page(source)
    assert "script" not in page.tags
    assert page.text.count('<script>alert("x")</script>') >= 10
    assert set(page.tags) == set(Page(written[1]).tags) | {"h3"}


def test_an_empty_bank_is_reported_as_such(tmp_path: Path) -> None:
    page = write_report(tmp_path, summary(accepted=0), pictures(0))
    text = text_of(page.read_text(encoding="utf-8"))
    assert "No sample was accepted from 1,000 drawn" in text
    assert "There is no diverse sample to show" in text
    assert not (tmp_path / "figures" / "pairs.png").exists()


def test_one_seed_and_no_classifier(tmp_path: Path) -> None:
    text = text_of(write_report(tmp_path / "one", summary(half=None), pictures()).read_text(encoding="utf-8"))
    assert "nothing can be concluded" in text
    assert "null result" not in text
    value = summary() | {"classifier": {}, "comparisons": {}}
    text = text_of(write_report(tmp_path / "none", value, pictures()).read_text(encoding="utf-8"))
    assert "No classifier was trained" in text
    assert not (tmp_path / "none" / "figures" / "classifier.png").exists()


def test_optional_keys_may_be_missing(unpainted: None, tmp_path: Path) -> None:
    value = summary()
    for key in ("recipe", "provenance", "rejections_random"):
        del value[key]
    text = text_of(write_report(tmp_path, value, pictures()).read_text(encoding="utf-8"))
    assert "Recipe" not in text
    with pytest.raises(DataError, match="missing yield, bank"):
        write_report(tmp_path, {k: v for k, v in value.items() if k not in ("yield", "bank")}, pictures())


# --- words


def test_the_page_tells_a_gain_from_a_null_result(written: tuple[Path, str], unpainted: None, tmp_path: Path) -> None:
    null, gain = text_of(written[1]), text_of(write_report(tmp_path, summary(difference=0.05), pictures()).read_text(encoding="utf-8"))
    assert "null result" in null
    assert "the interval includes 0: no difference shown" in null
    assert "null result" not in gain
    assert "no difference shown" not in gain
    assert "9 favour diverse samples" in gain


@pytest.mark.parametrize(
    ("difference", "wanted"),
    [(0.01, "null result"), (-0.01, "null result"), (0.0, "null result"), (0.05, "9 favour diverse samples"), (-0.05, "9 favour the control")],
)
def test_a_null_result_is_called_one_and_nothing_else_is(difference: float, wanted: str) -> None:
    words = classifier_in_words(summary(difference=difference)["comparisons"])
    assert wanted in words
    assert ("null result" in words) == (wanted == "null result")


def test_negative_numbers_have_a_minus_sign(written: tuple[Path, str]) -> None:
    assert "−0.020 to +0.040" in text_of(written[1])
    assert "+0.010" in text_of(written[1])


def test_runs_without_twins_and_held_out_images_with_twins_are_shown(tmp_path: Path) -> None:
    value = summary()
    value["classifier_without_twins"] = {"images": 123} | {arm: scores(0.654, 0.01) for arm in value["classifier"]}
    value["yield"]["heldout_real_with_twins"] = yields(5, 78)
    text = text_of(write_report(tmp_path, value, pictures()).read_text(encoding="utf-8"))
    assert "The same runs on the 123 test images" in text
    assert text.count("0.654") == 15
    assert "with near-duplicates of other real images 78 5" in text


def test_mixed_results_are_counted() -> None:
    comparisons = copy.deepcopy(summary()["comparisons"])
    comparisons["diverse_vs_random"]["auc"] = {"mean": 0.05, "ci95": [0.01, 0.09]}
    comparisons["diverse_vs_random"]["accuracy"] = {"mean": -0.05, "ci95": [-0.09, -0.01]}
    words = classifier_in_words(comparisons)
    assert "1 favour diverse samples, 1 favour the control and 7 include 0" in words
    assert "null result" not in words


@given(st.floats(-1, 1), st.floats(0, 1))
def test_words_follow_the_interval(mean: float, half: float) -> None:
    low, high = mean - half, mean + half
    words = difference_in_words({"mean": mean, "ci95": [low, high]})
    assert ("includes 0" in words) == (low <= 0 <= high)
    assert ("better" in words) == (low > 0)
    assert ("worse" in words) == (high < 0)


@given(st.integers(0, 300), st.integers(0, 300))
def test_yields_are_compared_by_their_intervals(ours: int, theirs: int) -> None:
    one, other = yields(ours, 300), yields(theirs, 300)
    words = yields_in_words(one, other, "these", "those")
    overlap = max(one["ci95"][0], other["ci95"][0]) <= min(one["ci95"][1], other["ci95"][1])
    assert ("overlap" in words) == overlap
    assert ("higher" in words) == (not overlap and ours > theirs)
    assert ("lower" in words) == (not overlap and ours < theirs)


def test_parity_is_the_ratio_and_its_range() -> None:
    diverse, heldout = yields(30, 1000), yields(4, 400)
    words = parity_in_words(diverse, heldout)
    assert "Parity is 3;" in words
    assert "Parity is 170;" in parity_in_words(yields(1700, 10000), yields(1, 1000))
    assert f"{diverse['ci95'][0] / heldout['ci95'][1]:.2g} to {diverse['ci95'][1] / heldout['ci95'][0]:.2g}" in words
    words = parity_in_words(diverse, yields(0, 400))
    assert "cannot be computed: 0 of 400" in words
    assert "at least" in words
    assert "no upper limit" not in words


@given(st.floats(1e-6, 1e8), st.integers(1, 6))
def test_numbers_are_rounded_to_significant_digits_without_an_exponent(value: float, digits: int) -> None:
    text = significant(value, digits)
    assert re.fullmatch(r"\d+(\.\d*[1-9])?", text)
    assert float(text) == pytest.approx(value, rel=0.5000001 * 10.0 ** (1 - digits))


def test_a_screen_that_accepts_all_shows_no_exponent(tmp_path: Path) -> None:
    """Figures of ten thousand are the largest that a yield can have."""
    value = summary()
    value["yield"]["heldout_real"] = yields(40, 40)
    assert "10000" in text_of(write_report(tmp_path, value, pictures()).read_text(encoding="utf-8"))
    labels = [text.get_text() for text in draw_figures(value, pictures())["yields"].axes[0].texts]
    assert "10000   (40 of 40)" in labels


def test_guided_draws_are_said_to_depend_on_one_another(written: tuple[Path, str]) -> None:
    text = text_of(written[1])
    assert "started most passes from an accepted sample" in text
    assert text.count("too narrow") == 2
    assert "claims more certainty than there is" in text


def test_both_references_are_named_or_called_unknown() -> None:
    seen, held, apart = references_in_words(references(), ("malignant", "benign"))
    assert seen.startswith("What the generator was trained on: 1,874 images (1,869 malignant, 5 benign; mirrored copies included).")
    assert held.startswith("What the user has (the reference): 437 images (432 malignant, 5 benign).")
    assert "109 images" in apart
    seen, held, _ = references_in_words(references(seen=False), ("malignant", "benign"))
    assert "trained on: unknown" in seen
    assert "437" in held
    seen, held, _ = references_in_words(references(held=False), ("malignant", "benign"))
    assert "1,874" in seen
    assert "not given" in held


def test_the_page_says_which_set_the_nearest_images_come_from(unpainted: None, tmp_path: Path) -> None:
    for nearest_set in ("generator_train", "reference", None):
        shown = Pictures(**{**vars(pictures()), "nearest_set": nearest_set})
        value = summary() | {"references": references(seen=nearest_set == "generator_train")}
        text = text_of(write_report(tmp_path, value, shown).read_text(encoding="utf-8"))
        assert f"Right: {nearest_in_words(nearest_set)}, by the screen's features." in text
        assert ("trained on: unknown" in text) == (nearest_set != "generator_train")
    assert len({nearest_in_words(name) for name in ("generator_train", "reference", None)}) == 3


def information(accepted: int = 30, names: tuple[str, ...] = ("diverse", "random")) -> dict[str, Any]:
    def some(seed: int, count: int) -> LabelledFeatures:
        return LabelledFeatures(features=features(seed, count), labels=np.arange(count, dtype=np.int64) % 2)

    return describe_information({name: some(i, accepted) for i, name in enumerate(names)}, some(5, 60), some(6, 40))


def test_information_scores_are_shown_beside_those_of_real_images(written: tuple[Path, str], unpainted: None, tmp_path: Path) -> None:
    found = information()
    text = text_of(write_report(tmp_path / "many", summary() | {"information": found}, pictures()).read_text(encoding="utf-8"))
    row = found["scores"]["vendi"]
    shown = " ".join(score_in_words(row[name]) for name in ("diverse", "random", "calibration"))
    assert f"Vendi score images {shown} effective number of different images among 30" in text
    assert f"surprisal of an image nats {score_in_words(found['scores']['surprisal_excess']['diverse'])}" in text
    assert f"Of new patients, {score_in_words(found['good_turing'])} are to be expected" in text
    for key in found["scores"]:
        assert f"{INFORMATION_NAMES[key]} {found['scores'][key]['unit']}" in text
    assert found["statement"] in text
    assert "what is said of sets means little" not in text
    assert "How much the samples add" not in text_of(written[1])
    few = information(1, ("diverse", HOSTILE))
    source = write_report(tmp_path / "few", summary() | {"information": few}, pictures()).read_text(encoding="utf-8")
    assert "With 1 image of each set, what is said of sets means little" in text_of(source)
    assert "script" not in Page(source).tags


def test_every_information_score_has_a_name() -> None:
    assert list(INFORMATION_NAMES) == list(information()["scores"])


def test_information_scores_in_words() -> None:
    assert score_in_words({"mean": 9.0, "q05": -1.234, "median": 0.5, "q95": 12.345}) == "0.50 (−1.23 to 12.3)"
    assert score_in_words({"value": 0.1, "low": 0.0, "high": 0.256, "level": 0.95, "method": "exact"}) == "0.10 (0.00 to 0.26)"
    assert [score_in_words(value) for value in (-0.001, 1.0, 12.345, 7, 80, None)] == ["0.00", "1.00", "12.3", "7", "80", "–"]


def test_thresholds_stand_above_the_scores(unpainted: None, tmp_path: Path) -> None:
    value = summary() | {"thresholds": {"copy": 1.0625}}
    assert "rejected above 1.06 – #1 malignant 0.5 1.25" in text_of(write_report(tmp_path, value, pictures()).read_text(encoding="utf-8"))


def test_scores_stand_in_the_order_of_the_gates(tmp_path: Path) -> None:
    scored = [dict.fromkeys(("surprisal", "information_gain", "mine", "outlier", "copy", "duplicate", "not_novel", "irrelevant"), 1.0)] * 7
    text = text_of(write_report(tmp_path, summary(), Pictures(**{**vars(pictures()), "diverse_scores": scored})).read_text(encoding="utf-8"))
    assert "copy not novel irrelevant outlier duplicate information gain (nats) surprisal (nats) mine" in text


def test_nothing_drawn_is_not_compared() -> None:
    nothing = {"drawn": 0, "accepted": 0, "per_10k": 0.0, "ci95": [0.0, 10000.0]}
    assert "cannot be compared" in yields_in_words(nothing, yields(1, 10), "these", "those")
    assert "cannot be computed" in parity_in_words(nothing, yields(1, 10))
    assert "cannot be computed" in parity_in_words(yields(1, 10), nothing)


# --- figures


def test_images_are_shown_true(written: tuple[Path, str]) -> None:
    shown = pictures()
    figures = draw_figures(summary(), shown)
    panel = figures["samples"].axes[0]
    (image,) = panel.get_images()
    assert image.get_clim() == (0, 1)
    assert image.get_interpolation() == "nearest"
    first = shown.real[shown.real_labels == 0][0, 0]
    np.testing.assert_array_equal(np.asarray(image.get_array())[:8, :8, 0], first)
    (pair,) = figures["pairs"].axes[3].get_images()
    np.testing.assert_array_equal(np.asarray(pair.get_array())[:, :8, 0], shown.diverse[3, 0])
    np.testing.assert_array_equal(np.asarray(pair.get_array())[:, -8:, 0], shown.nearest[3, 0])


def test_bars_are_what_is_left_after_each_gate() -> None:
    value = summary()
    panels = draw_figures(value, pictures())["rejections"].axes
    for panel, rejections in zip(panels, (value["rejections"], value["rejections_random"]), strict=True):
        lost = np.cumsum([0, *rejections.values()])
        assert [bar.get_width() for bar in panel.patches] == (1000 - lost).tolist()


def test_intervals_are_drawn_where_they_are() -> None:
    value = summary()
    panel = draw_figures(value, pictures())["yields"].axes[0]
    lines = [np.asarray(line.get_xdata(), dtype=float).tolist() for line in panel.get_lines()]
    for yielded in value["yield"].values():
        assert yielded["ci95"] in lines
        assert [yielded["per_10k"]] in lines


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 8, 8), (2, 8, 8)])
def test_colour_volumes_and_several_channels(shape: tuple[int, ...]) -> None:
    shown = pictures(shape=shape)
    (image,) = draw_figures(summary(), shown)["samples"].axes[0].get_images()
    first = shown.real[0]
    expected = {3: first, 1: first[:, first.shape[1] // 2], 2: first}[shape[0]]
    np.testing.assert_array_equal(np.asarray(image.get_array())[:8, :8, 0], expected[0])
    if shape[0] == 3:
        np.testing.assert_array_equal(np.asarray(image.get_array())[:8, :8, 2], expected[2])


def test_volumes_are_said_to_be_shown_by_a_slice(written: tuple[Path, str], tmp_path: Path) -> None:
    text = text_of(write_report(tmp_path, summary(), pictures(shape=(1, 6, 8, 8))).read_text(encoding="utf-8"))
    assert "middle slice along their first axis" in text
    assert "middle slice" not in text_of(written[1])


def test_a_long_list_of_pairs_is_cut_and_says_so(tmp_path: Path) -> None:
    shown = pictures(MAX_PAIRS + 5)
    text = text_of(write_report(tmp_path, summary(accepted=MAX_PAIRS + 5), shown).read_text(encoding="utf-8"))
    assert f"The first {MAX_PAIRS} of {MAX_PAIRS + 5} diverse samples" in text
    assert f"#{MAX_PAIRS}" in text
    assert f"#{MAX_PAIRS + 1}" not in text


def test_pictures_are_checked() -> None:
    good = vars(pictures())
    for change, message in (
        ({"real": good["real"] * 2}, "real: expected values"),
        ({"real_labels": good["real_labels"][:-1]}, "real_labels: expected shape"),
        ({"diverse_labels": good["diverse_labels"] + 5}, "diverse_labels: expected classes"),
        ({"nearest": good["nearest"][:-1]}, "nearest: expected one for each of 7"),
        ({"diverse_scores": []}, "diverse_scores: expected one for each of 7"),
        ({"nearest_set": "calibration"}, "nearest_set: expected generator_train, reference or None, got 'calibration'"),
        ({"borderline": (Borderline(**{**vars(edge()), "labels": np.full(3, 2)}),)}, "borderline copy labels: expected classes 0..1"),
    ):
        with pytest.raises(DataError, match=message):
            Pictures(**{**good, **change})


# --- at the thresholds


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]), max_size=20), st.integers(1, 4))
def test_borderline_images_are_the_nearest_to_the_threshold_on_both_sides(values: list[float], each: int) -> None:
    count = len(values)
    images = (np.arange(count, dtype=np.float32) / 100).reshape(count, 1, 1, 1)
    verdicts = [f"reason {i}" for i in range(count)]
    found = Borderline.among(images, np.arange(count), values, verdicts, gate="copy", threshold=1.0, each=each)
    numbered = list(enumerate(values))
    below = sorted((n for n in numbered if n[1] <= 1), key=lambda n: (-n[1], n[0]))[:each]
    above = sorted((n for n in numbered if n[1] > 1), key=lambda n: (n[1], n[0]))[:each]
    wanted = below[::-1] + above
    assert found.passed == len(below)
    assert found.scores.tolist() == [score for _, score in wanted]
    assert found.labels.tolist() == [index for index, _ in wanted]
    assert found.verdicts == tuple(f"reason {index}" for index, _ in wanted)
    np.testing.assert_array_equal(found.images, images[[index for index, _ in wanted]])


def test_borderline_images_are_checked() -> None:
    good = vars(edge())
    for change, message in (
        ({"images": good["images"] * 3}, "borderline copy images: expected values"),
        ({"labels": good["labels"][:-1]}, "borderline copy labels: expected shape"),
        ({"scores": good["scores"][:-1]}, "borderline copy: expected 3 scores"),
        ({"verdicts": ()}, "borderline copy: expected 3 verdicts"),
        ({"scores": good["scores"][::-1]}, "borderline copy: expected ascending scores"),
    ):
        with pytest.raises(DataError, match=message):
            Borderline(**{**good, **change})


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 6, 8, 4)])
def test_what_passed_stands_left_of_the_line_and_what_did_not_right(tmp_path: Path, shape: tuple[int, ...]) -> None:
    edges = (
        edge("copy", (0.2, 0.9, 1.4), shape),
        edge("outlier", (0.5,), shape),
        edge("duplicate", (2.0, 3.0), shape),
        edge("irrelevant", (), shape),
    )
    shown = Pictures(**{**vars(pictures()), "borderline": edges})
    figure = draw_figures(summary(), shown)["borderline"]
    for row, found in zip(figure.subfigs, edges, strict=True):
        panels = row.axes
        assert len(panels) == 9
        (line,) = panels[4].get_lines()
        assert line.get_xdata() == [0.5, 0.5]
        places = [*range(4 - found.passed, 4), *range(5, 5 + len(found.scores) - found.passed)]
        assert [i for i, panel in enumerate(panels) if panel.get_images()] == places
        for place, image, score, verdict in zip(places, found.images, found.scores, found.verdicts, strict=True):
            middle = image[0, len(image[0]) // 2] if image.ndim == 4 else image[0]
            np.testing.assert_array_equal(np.asarray(panels[place].get_images()[0].get_array())[..., 0], middle)
            assert panels[place].get_title() == significant(score, 4)
            assert ("passes all gates" if verdict is None else "fails: ") in panels[place].get_xlabel()
        texts = [text.get_text() for panel in panels for text in panel.texts]
        wanted = ["none of these\nkept"] * (found.passed == 0) + ["none of these\nrejected"] * (found.passed == len(found.scores))
        assert texts == wanted
    page = write_report(tmp_path, summary(), shown)
    assert "At the thresholds" in text_of(page.read_text(encoding="utf-8"))
    assert (tmp_path / "figures" / "borderline.png").exists()


# --- the map


def test_principal_components_are_those_of_all_points(feature_map: FeatureMap) -> None:
    """Against a singular value decomposition; TOLERANCE: 1e-4, float32 coordinates of up to a hundred."""
    rows = np.concatenate([features(1), features(2), features(3, at=30)]).astype(np.float64)
    left, singular, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    placed = np.concatenate([feature_map.principal[name] for name in ("real", "generated", "accepted")])
    np.testing.assert_allclose(np.abs(placed), np.abs(left[:, :2] * singular[:2]), atol=1e-4)
    np.testing.assert_allclose(feature_map.variance, (singular**2 / (singular**2).sum())[:2], rtol=1e-6)


def test_what_lies_apart_is_placed_apart(feature_map: FeatureMap) -> None:
    for points in (feature_map.principal, feature_map.embedded):
        others = np.concatenate([points["real"], points["generated"]])
        between = np.linalg.norm(points["accepted"][:, None] - others, axis=2).min()
        spread = np.linalg.norm(others[:, None] - others, axis=2)
        np.fill_diagonal(spread, np.inf)
        assert between > spread.min(axis=1).max()


def test_the_map_shows_every_set_and_its_share_of_variance(feature_map: FeatureMap, tmp_path: Path) -> None:
    shown = Pictures(**{**vars(pictures()), "map": feature_map})
    figure = draw_figures(summary(), shown)["map"]
    for panel, points in zip(figure.axes, (feature_map.principal, feature_map.embedded), strict=True):
        for drawn, name in zip(panel.collections, ("real", "generated", "accepted"), strict=True):
            np.testing.assert_allclose(np.asarray(drawn.get_offsets()), points[name])
    first, second = (significant(100 * share, 2) for share in feature_map.variance)
    assert figure.axes[0].get_xlabel() == f"first component ({first} % of the variance)"
    assert second in figure.axes[0].get_ylabel()
    text = text_of(write_report(tmp_path, summary(), shown).read_text(encoding="utf-8"))
    assert f"they hold {significant(100 * sum(feature_map.variance), 2)} % of the variance in 6 dimensions" in text
    assert "distances, gaps and sizes of clusters in it mean little" in text


def test_of_a_large_set_some_are_placed_and_the_figure_says_so() -> None:
    found = FeatureMap.of(real=features(1, MOST + 40), generated=features(2, 3), accepted=features(3, 0))
    assert {name: len(points) for name, points in found.principal.items()} == {"real": MOST, "generated": 3, "accepted": 0}
    (legend,) = draw_figures(summary(), Pictures(**{**vars(pictures()), "map": found}))["map"].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [f"real (reference): {MOST} of {MOST + 40}", "generated, unscreened: 3", "diverse (accepted): 0"]


def test_a_single_feature_is_a_line_and_equal_ones_are_no_map() -> None:
    found = FeatureMap.of(real=features(1)[:, :1], generated=features(2)[:, :1], accepted=features(3)[:, :1])
    assert found.variance == pytest.approx((1, 0))
    with pytest.raises(DataError, match="at least 4 images whose features differ, got 8"):
        FeatureMap.of(real=np.ones((4, 3), np.float32), generated=np.ones((4, 3), np.float32), accepted=np.ones((0, 3), np.float32))
    with pytest.raises(DataError, match="got 3"):
        FeatureMap.of(real=features(1, 2), generated=features(2, 1), accepted=features(3, 0))


def test_the_summary_of_the_tests_is_json() -> None:
    """The page must do with what survives a round trip: lists, not tuples; None, not NaN."""
    assert json.loads(json.dumps(summary(), allow_nan=False)) == summary()
    assert re.fullmatch(r"[0-9a-f]{64}", summary()["bank"]["fingerprint"])
