from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from monai_diverse.cli import main
from monai_diverse.data import FloatArray, LabelledImages, near_duplicate_groups
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import PixelFeatures
from monai_diverse.report.controls import TICKS, controls_figure
from monai_diverse.screening import REASONS, FittedScreen, NoveltyGate, NoveltyScreen, OutlierGate, RelevanceGate, Verdict, Yield
from monai_diverse.screening.control_cases import TWINS, fitted_to, near_known
from monai_diverse.screening.controls import ControlRow, Controls, control_rows, difference, drawn_row, judge_controls
from monai_diverse.screening.corruptions import ANGLES, BLUR, CORRUPTIONS, QUALITY, picks
from monai_diverse.testing import synthetic_images

PAGE = Path(__file__).resolve().parents[1] / "docs" / "screen.md"
BY_NAME = {corruption.name: corruption for corruption in CORRUPTIONS}
MADE = [c.name for c in CORRUPTIONS]
SHAPES = [(1, 12, 12), (3, 13, 10), (2, 12, 12), (1, 6, 9, 9), (3, 5, 8, 11)]
ROUNDING = 2e-6
"""Of float32 sums over some hundred pixels in [0, 1]."""


def picture(shape: tuple[int, ...], seed: int = 0) -> FloatArray:
    return synthetic_images(1, seed, shape=shape[1:], channels=shape[0]).images[0]


def made(name: str, image: FloatArray, variant: int = 0, seed: int = 0) -> FloatArray:
    return BY_NAME[name].apply(image, variant, np.random.default_rng(seed))


# ---- what is made of one image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MADE)
def test_every_corruption_makes_another_image_of_the_same_kind(name: str, shape: tuple[int, ...]) -> None:
    image = picture(shape)
    before = image.copy()
    result = made(name, image)
    assert (result.shape, result.dtype) == (image.shape, np.float32)
    assert result.min() >= 0
    assert result.max() <= 1
    assert not np.array_equal(result, image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(made(name, image), result)
    if BY_NAME[name].variants is None:
        assert not np.array_equal(made(name, image, seed=1), result)
    else:
        number = BY_NAME[name].variants(shape)
        assert len({made(name, image, variant).tobytes() for variant in range(number)}) == number


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["white noise", "smooth noise", "shuffled patches", "rotated by quarters"])
def test_what_only_moves_pixels_keeps_every_colour(name: str, shape: tuple[int, ...]) -> None:
    image = picture(shape)
    colours = [np.sort(np.ascontiguousarray(x.reshape(shape[0], -1).T), axis=0) for x in (image, made(name, image))]
    np.testing.assert_array_equal(*colours)
    whole = [sorted(map(tuple, x.reshape(shape[0], -1).T.tolist())) for x in (image, made(name, image))]
    assert whole[0] == whole[1]


def test_white_noise_is_white_and_smooth_noise_is_smooth() -> None:
    """Correlation of neighbouring pixels, over many."""

    def along(image: FloatArray) -> float:
        return float(np.corrcoef(image[0, :, :-1].ravel(), image[0, :, 1:].ravel())[0, 1])

    image = picture((1, 40, 40))
    error = 4 / np.sqrt(40 * 39)  # four standard errors of a correlation
    assert all(abs(along(made("white noise", image, seed=s))) < error for s in range(5))
    assert all(along(made("smooth noise", image, seed=s)) > 0.5 for s in range(5))
    # smooth, but not the image: two fields of one image have nothing in common
    fields = [made("smooth noise", image, seed=s).ravel() for s in range(6)]
    assert abs(np.mean(np.corrcoef(fields)[np.triu_indices(6, 1)])) < 0.3


def test_inversion_and_quarters_undo_themselves() -> None:
    image = picture((2, 9, 9))
    np.testing.assert_allclose(made("inverted", made("inverted", image)), image, atol=ROUNDING)
    np.testing.assert_allclose(made("inverted", image) + image, 1, atol=ROUNDING)
    for variant, inverse in ((0, 2), (1, 1), (2, 0)):
        back = made("rotated by quarters", made("rotated by quarters", image, variant), inverse)
        np.testing.assert_array_equal(back, image)
    np.testing.assert_array_equal(made("rotated by quarters", image, 0), np.rot90(image, 1, axes=(1, 2)))
    # a side of another length leaves the half turn
    assert BY_NAME["rotated by quarters"].variants((1, 5, 9)) == 1
    np.testing.assert_array_equal(made("rotated by quarters", image[:, :5], 0), image[:, :5][:, ::-1, ::-1])


def test_free_rotation_turns_about_the_middle_and_leaves_no_empty_corner() -> None:
    y, x = np.mgrid[:21, :21] - 10.0
    disc = (0.5 + 0.4 * np.exp(-(x**2 + y**2) / 18))[None].astype(np.float32)
    for seed in range(5):
        turned = made("rotated freely", disc, seed=seed)
        assert np.abs(turned - disc).max() < 0.03  # linear interpolation of a curve of this width
        assert turned.min() > 0.45
    assert ANGLES[0] > 0
    assert ANGLES[1] < 360


def test_shuffled_patches_are_the_patches() -> None:
    image = np.arange(1 * 8 * 8, dtype=np.float32).reshape(1, 8, 8) / 64
    result = made("shuffled patches", image, seed=3)
    cut = [{x[0, i : i + 2, j : j + 2].tobytes() for i in range(0, 8, 2) for j in range(0, 8, 2)} for x in (image, result)]
    assert cut[0] == cut[1]
    # what does not divide stays where it is
    odd = np.arange(1 * 9 * 8, dtype=np.float32).reshape(1, 9, 8) / 72
    np.testing.assert_array_equal(made("shuffled patches", odd)[:, 8:], odd[:, 8:])


@pytest.mark.parametrize("axes", [2, 3])
def test_shifts_are_all_moves_by_one_pixel_but_none(axes: int) -> None:
    image = np.random.default_rng(0).random((1, *[5] * axes), dtype=np.float32)
    number = BY_NAME["near-copy: 1 pixel shift"].variants(image.shape)
    assert number == 3**axes - 1
    padded = np.pad(image[0], 1, mode="edge")
    windows = {
        np.ascontiguousarray(padded[tuple(slice(s, s + 5) for s in start)]).tobytes() for start in np.ndindex(*[3] * axes) if start != (1,) * axes
    }
    assert {made("near-copy: 1 pixel shift", image, v)[0].tobytes() for v in range(number)} == windows


def test_jpeg_is_lossy_within_what_its_quality_leaves() -> None:
    assert (QUALITY, BLUR) == ((50, 90), (0.5, 1.0))
    for shape in SHAPES:
        image = picture(shape)
        lost = np.abs(made("near-copy: JPEG", image) - image)
        assert 0 < lost.mean() < 0.05
    # slice by slice: another slice changes nothing in this one
    volume = picture((1, 4, 16, 16))
    other = volume.copy()
    other[:, 2] = 0
    changed = (made("near-copy: JPEG", volume) != made("near-copy: JPEG", other)).any(axis=(0, 2, 3))
    assert changed.tolist() == [False, False, True, False]


@given(available=st.integers(1, 30), variants=st.one_of(st.none(), st.integers(1, 5)), count=st.integers(1, 80), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_picks_use_all_images_alike_and_no_pair_twice(available: int, variants: int | None, count: int, seed: int) -> None:
    source, variant = picks(available, variants, count, np.random.default_rng(seed))
    assert len(source) == len(variant) == (count if variants is None else min(count, available * variants))
    used = np.bincount(source, minlength=available)
    assert used.max() - used.min() <= 1
    if variants is not None:
        assert variant.max() < variants
        assert len(set(zip(source.tolist(), variant.tolist(), strict=True))) == len(source)


def test_images_of_another_modality_are_fitted_to_the_shape() -> None:
    rng = np.random.default_rng(0)
    assert fitted_to(rng.random((3, 3, 20, 16), dtype=np.float32), (1, 12, 12)).shape == (3, 1, 12, 12)
    assert fitted_to(rng.random((3, 1, 20, 16, 8), dtype=np.float32), (2, 5, 12, 12)).shape == (3, 2, 5, 12, 12)
    same = rng.random((2, 1, 12, 12), dtype=np.float32)
    np.testing.assert_array_equal(fitted_to(same, (1, 12, 12)), same)
    np.testing.assert_allclose(fitted_to(np.full((1, 1, 40, 40), 0.3, np.float32), (1, 12, 12)), 0.3, atol=1e-5)
    # smoothed first: the finest checks become grey, not stripes
    checks = np.broadcast_to((np.indices((64, 64)).sum(0) % 2).astype(np.float32), (1, 1, 64, 64))
    assert fitted_to(checks, (1, 12, 12)).std() < 0.05
    with pytest.raises(DataError, match="expected images of 2 spatial axes"):
        fitted_to(rng.random((3, 1, 6, 12, 12), dtype=np.float32), (1, 12, 12))


# ---- judged


@pytest.fixture(scope="module")
def sets() -> dict[str, LabelledImages]:
    data = synthetic_images(290, 0, views=1)
    return {"reference": data[np.arange(120)], "calibration": data[np.arange(120, 220)], "unseen": data[np.arange(220, 290)]}


@pytest.fixture(scope="module")
def screen(sets: dict[str, LabelledImages]) -> FittedScreen:
    reference = sets["reference"]
    return NoveltyScreen(extractor=PixelFeatures(), components=8).fit(reference, sets["calibration"], reference)


@pytest.fixture(scope="module")
def other() -> FloatArray:
    rng = np.random.default_rng(9)
    x = np.arange(20)
    return np.stack([np.broadcast_to((np.sin(x * f + p) > 0), (3, 30, 20)) for f, p in rng.uniform(0.5, 3, (25, 2))]).astype(np.float32)


@pytest.fixture(scope="module")
def controls(screen: FittedScreen, sets: dict[str, LabelledImages], other: FloatArray) -> Controls:
    return judge_controls(screen, sets["unseen"], generated=synthetic_images(40, 5), other=other, count=90, seed=3)


def test_rows_are_what_was_asked_for(controls: Controls) -> None:
    assert [row.name for row in controls.rows] == ["generated", "unseen real", *MADE, "other modality", "wrong label"]
    drawn = {row.name: row.result.drawn for row in controls.rows}
    fewer = {"generated": 40, "unseen real": 70, "inverted": 70, "other modality": 25, "wrong label": 70}
    assert drawn == dict.fromkeys(drawn, 90) | fewer
    assert {row.name for row in controls.rows if row.at_most == 0} == set(MADE) - {"rotated by quarters", "rotated freely"} | {"other modality"}
    # an average over calibration sets is no promise that one screen can break
    assert (controls["unseen real"].at_most, controls["unseen real"].on_average) == (None, NoveltyGate().alpha)
    assert all(row.on_average is None for row in controls.rows if row.name != "unseen real")
    assert all(controls[name].at_most is None for name in ("generated", "unseen real", "rotated by quarters", "rotated freely", "wrong label"))
    with pytest.raises(KeyError, match="got 'nothing'"):
        controls["nothing"]


def test_a_row_is_what_the_gates_say_duplicates_aside(controls: Controls, screen: FittedScreen, sets: dict[str, LabelledImages]) -> None:
    """Against the screen's own verdicts, given one by one so that no image can repeat another."""
    row, unseen = controls["unseen real"], sets["unseen"]
    verdicts = [screen.screen(unseen.images[i : i + 1], unseen.labels[i : i + 1])[0] for i in range(len(unseen))]
    assert row.result == Yield(drawn=70, accepted=sum(v.accepted for v in verdicts))
    assert row.first == {reason: sum(v.reason == reason for v in verdicts) for reason in Verdict.REASONS if reason != "duplicate"}
    alone = {reason: sum(v.scores[reason] > gate.threshold for v in verdicts) for reason, gate in screen.gates.items()}
    assert row.alone == alone
    assert sum(row.first.values()) + row.result.accepted == 70


def test_repeats_do_not_change_a_row(screen: FittedScreen, sets: dict[str, LabelledImages]) -> None:
    unseen = sets["unseen"]
    twice = LabelledImages(images=np.repeat(unseen.images, 2, 0), labels=np.repeat(unseen.labels, 2), groups=np.repeat(np.arange(70), 2))
    one, two = (next(control_rows(screen, data)) for data in (unseen, twice))
    assert (two.result.drawn, two.result.accepted) == (140, 2 * one.result.accepted)
    assert two.groups == one.groups == one.result
    assert screen.yield_of(twice).accepted < two.result.accepted or one.result.accepted == 0


def test_the_screen_rejects_what_it_must_and_the_row_says_by_which_gate(controls: Controls) -> None:
    for name in ("white noise", "near-copy: JPEG", "near-copy: blur", "near-copy: 1 pixel shift", "other modality"):
        row = controls[name]
        assert (row.result.accepted, row.too_many) == (0, False), name
        assert row.result.ci95[0] == 0
    assert controls["white noise"].alone["outlier"] == 90
    assert controls["other modality"].alone["outlier"] == 25
    assert controls["near-copy: JPEG"].alone["copy"] == 90
    assert controls["wrong label"].alone["irrelevant"] > 35
    assert controls["unseen real"].alone["irrelevant"] < 15


def test_a_screen_without_an_outlier_gate_is_found_out(sets: dict[str, LabelledImages]) -> None:
    """Controls must be able to fail."""
    boundless = {field.name: 1e9 for field in fields(OutlierGate) if field.name.endswith("_factor")}
    gates = {"outlier": OutlierGate(textures=None, **boundless), "novelty": NoveltyGate(alpha=0.9)}
    one_class = {name: replace(data, labels=np.zeros(len(data), int)) for name, data in sets.items()}
    open_to_all = NoveltyScreen(extractor=PixelFeatures(), components=8, **gates).fit(one_class["reference"], one_class["calibration"])
    row = judge_controls(open_to_all, one_class["unseen"], count=40)["shuffled patches"]
    assert row.result.accepted > 4
    assert row.too_many
    assert row.as_json()["too_many"] is True


def test_too_many_is_beyond_the_interval() -> None:
    def row(accepted: int, at_most: float | None) -> bool:
        result = Yield(drawn=100, accepted=accepted)
        return ControlRow(name="x", expected="", at_most=at_most, result=result, groups=None, first={}, alone=None).too_many

    assert [row(a, 0.05) for a in (5, 10, 11, 12)] == [bool(binomtest(a, 100).proportion_ci(0.95).low > 0.05) for a in (5, 10, 11, 12)]
    assert (row(10, 0.05), row(12, 0.05), row(1, 0), row(0, 0), row(100, None)) == (False, True, True, False, False)


def test_images_depend_on_the_seed_and_their_number_alone(
    screen: FittedScreen, sets: dict[str, LabelledImages], other: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = partial(judge_controls, screen, sets["unseen"], generated=synthetic_images(40, 5), other=other, count=30, seed=3)
    controls = judged()
    monkeypatch.setattr("monai_diverse.screening.controls.CHUNK_BYTES", 7 * 4 * 144)
    assert judged().as_json() == controls.as_json()
    rows = list(control_rows(screen, sets["unseen"], count=30, seed=4))
    assert any(row.alone != controls[row.name].alone for row in rows if row.name in MADE)


def test_near_copies_are_of_what_the_generator_saw_and_the_rest_of_unseen_images(sets: dict[str, LabelledImages]) -> None:
    """A generator trained on other images: its copies are known by that set, not by the reference."""
    trained = synthetic_images(60, 77)
    fitted = NoveltyScreen(extractor=PixelFeatures(), components=8).fit(sets["reference"], sets["calibration"], trained)
    found = judge_controls(fitted, sets["unseen"], count=60)
    assert found.against == {"novelty": "reference", "copies": "generator_train"}
    assert found["near-copy: blur"].alone["copy"] == 60
    assert found["near-copy: blur"].groups.drawn == 60
    assert found["inverted"].groups.drawn == 60
    assert found["near-copy: blur"].expected == "none: an image that the generator saw, hardly changed"


def test_near_copies_of_a_generator_that_is_unknown_are_of_the_reference(sets: dict[str, LabelledImages]) -> None:
    fitted = NoveltyScreen(extractor=PixelFeatures(), components=8).fit(sets["reference"], sets["calibration"])
    rows = {row.name: row for row in control_rows(fitted, sets["unseen"], count=2)}
    assert {row.expected for name, row in rows.items() if name.startswith("near-copy")} == {"none: an image of the reference, hardly changed"}


# ---- near-duplicates of what is known


def with_twins(sets: dict[str, LabelledImages], twins: LabelledImages, groups: list[int]) -> LabelledImages:
    """The unseen images after images that nearly repeat others, which have these groups."""
    unseen, rng = sets["unseen"], np.random.default_rng(1)
    near = np.clip(twins.images + rng.normal(0, 0.004, twins.images.shape), 0, 1).astype(np.float32)
    return LabelledImages(
        images=np.concatenate([near, unseen.images]),
        labels=np.concatenate([twins.labels, unseen.labels]),
        groups=np.concatenate([groups, 1000 + np.arange(len(unseen))]),
    )


@pytest.mark.parametrize("name", ["reference", "calibration", "generator_train"])
@pytest.mark.parametrize("at_a_time", [1000, 1])
def test_unseen_images_that_repeat_known_ones_are_a_row_of_their_own(
    sets: dict[str, LabelledImages], name: str, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_diverse.screening.control_cases.LEAST_COMPARED", at_a_time)
    known = sets | {"generator_train": synthetic_images(90, 77)}
    settings = NoveltyScreen(extractor=PixelFeatures(), components=8, relevance=RelevanceGate(inverse_strengths=(1e-2,)))
    fitted = settings.fit(*(known[n] for n in ("reference", "calibration", "generator_train")))
    alone = next(control_rows(fitted, sets["unseen"]))
    unseen = with_twins(sets, known[name][np.array([3, 80, 7])], [0, 1, 2])
    # the 6th image is of the patient of the second twin
    unseen.groups[5] = 1
    everything = [v.images for v in (fitted.real.reference, fitted.real.calibration, fitted.real.generator_train)]
    groups = near_duplicate_groups(np.concatenate([unseen.images, *everything]))
    expected = np.isin(groups[: len(unseen)], groups[len(unseen) :])
    assert np.flatnonzero(expected).tolist() == [0, 1, 2]
    assert np.flatnonzero(near_known(fitted, unseen)).tolist() == [0, 1, 2, 5]
    found = judge_controls(fitted, unseen, generated=synthetic_images(40, 5), count=75)
    assert (found["unseen real"].result.drawn, found[TWINS].result.drawn, found[TWINS].groups.drawn) == (69, 4, 3)
    assert found[TWINS].at_most is None
    assert found.excess == difference(found["generated"].result, found["unseen real"].result)
    assert abs(found["unseen real"].result.accepted - alone.result.accepted) <= 1
    assert found["inverted"].result.drawn == 69


def test_chains_of_near_duplicates_reach_the_known_image(screen: FittedScreen, sets: dict[str, LabelledImages]) -> None:
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.normal(0, 0.012, (4, 1, 12, 12)), axis=0)
    chain = np.clip(sets["reference"].images[5] + steps, 0, 1).astype(np.float32)
    r = np.corrcoef(np.concatenate([sets["reference"].images[5:6], chain]).reshape(5, -1))
    limit = float(np.diag(r, 1).min()) - 1e-4
    assert r[0, 4] < limit  # the last repeats the known one through the others alone
    unseen = LabelledImages(images=np.concatenate([chain, sets["unseen"].images]), labels=np.r_[[0] * 4, sets["unseen"].labels])
    assert np.flatnonzero(near_known(screen, unseen, limit)).tolist() == [0, 1, 2, 3]


def test_the_correlation_is_the_screens_own_unless_one_is_given(screen: FittedScreen, sets: dict[str, LabelledImages]) -> None:
    unseen = with_twins(sets, sets["reference"][np.array([3])], [0])
    strict = replace(screen, settings=screen.settings | {"twin_correlation": 0.99999})
    none = replace(screen, settings=screen.settings | {"twin_correlation": None})
    assert [int(near_known(s, unseen).sum()) for s in (screen, strict, none)] == [1, 0, 1]
    assert near_known(screen, unseen, 0.99999).sum() == 0
    assert TWINS not in [row.name for row in control_rows(screen, unseen, count=1, twin_correlation=0.99999)]


def test_nothing_but_near_duplicates_leaves_nothing_to_compare_with(screen: FittedScreen, sets: dict[str, LabelledImages]) -> None:
    twins = with_twins(sets, sets["reference"][np.arange(9)], list(range(9)))[np.arange(9)]
    found = judge_controls(screen, twins, generated=synthetic_images(5, 5), count=9)
    names = [row.name for row in found.rows]
    assert names[:2] == ["generated", TWINS]
    assert "unseen real" not in names
    assert found.excess is None
    assert found.as_json()["excess_per_10k"] is None
    assert "generated less" not in found.as_table()
    assert found["inverted"].result.drawn == 9


def test_patients_are_counted_beside_images(screen: FittedScreen, sets: dict[str, LabelledImages]) -> None:
    patients = replace(sets["unseen"], groups=np.arange(70) // 7)
    found = judge_controls(screen, patients, count=20)
    assert found["unseen real"].groups.drawn == 10
    assert found["unseen real"].groups.accepted <= found["unseen real"].result.accepted
    assert found["white noise"].groups.drawn <= 10


def test_one_class_has_no_wrong_label_and_three_classes_have_two(sets: dict[str, LabelledImages]) -> None:
    def of(classes: int) -> Controls:
        parts = {name: replace(data, labels=np.arange(len(data)) % classes) for name, data in sets.items()}
        relevance = RelevanceGate(inverse_strengths=(1e-2,))
        fitted = NoveltyScreen(extractor=PixelFeatures(), components=8, relevance=relevance).fit(parts["reference"], parts["calibration"])
        return judge_controls(fitted, parts["unseen"][np.arange(20)], count=60)

    assert "wrong label" not in [row.name for row in of(1).rows]
    assert of(3)["wrong label"].result.drawn == 40


def test_three_dimensional_images_have_controls() -> None:
    data = synthetic_images(130, 2, shape=(5, 10, 10))
    fitted = NoveltyScreen(extractor=PixelFeatures(), components=6).fit(data[np.arange(60)], data[np.arange(60, 110)])
    other = np.random.default_rng(0).random((4, 1, 8, 9, 10))
    found = judge_controls(fitted, data[np.arange(110, 130)], other=other, count=15)
    assert len(found.rows) == len(MADE) + 3
    assert found["white noise"].result.accepted == found["near-copy: JPEG"].result.accepted == 0
    assert found.against["copies"] == "reference"


def test_bad_input(screen: FittedScreen, sets: dict[str, LabelledImages]) -> None:
    unseen = sets["unseen"]
    for wrong, kind, message in (
        ({"count": 0}, RecipeError, "count: expected a whole number from 1, got 0"),
        ({"seed": -1}, RecipeError, "seed: expected a whole number from 0, got -1"),
        ({"seed": 0.5}, RecipeError, "seed: expected a whole number from 0, got 0.5"),
        ({"count": 2.0}, RecipeError, "count: expected a whole number from 1, got 2.0"),
        ({"twin_correlation": 1.5}, RecipeError, "twin_correlation: expected a share between 0 and 1, got 1.5"),
        ({"generated": unseen.images}, DataError, "generated: expected LabelledImages, got ndarray"),
        ({"other": np.zeros((2, 1, 4, 4, 4))}, DataError, "other: expected images of 2 spatial axes"),
        ({"other": np.full((2, 1, 4, 4), 7.0)}, DataError, "other: expected values in"),
    ):
        with pytest.raises(kind, match=message):
            judge_controls(screen, unseen, **{"count": 2} | wrong)
    for name in ("reference", "calibration"):
        with pytest.raises(DataError, match=f"unseen: expected images that {name} does not hold, got 3 in both"):
            judge_controls(screen, sets[name][np.arange(3)])
    for nothing in (unseen.images, None):
        with pytest.raises(DataError, match=f"unseen: expected LabelledImages, got {type(nothing).__name__}; give"):
            screen.controls(nothing)
    with pytest.raises(DataError, match=r"unseen: expected shape \(n, 1, 12, 12\) as the reference, got \(3, 1, 9, 12\)"):
        screen.controls(LabelledImages(images=np.zeros((3, 1, 9, 12)), labels=[0, 1, 0]))
    with pytest.raises(DataError, match="labels: expected classes"):
        judge_controls(screen, replace(unseen, labels=unseen.labels + 5))


# ---- figures and words


def test_difference_is_newcombes() -> None:
    """Newcombe (1998), table II, method 10: examples (a), (b), (c), (g) and (h)."""
    cases = [
        ((56, 70), (48, 80), 0.2, (0.0524, 0.3339)),
        ((9, 10), (3, 10), 0.6, (0.1705, 0.8090)),
        ((6, 7), (2, 7), 0.5714, (0.0582, 0.8062)),
        ((0, 10), (0, 20), 0.0, (-0.1611, 0.2775)),
        ((10, 10), (0, 10), 1.0, (0.6075, 1.0)),
    ]
    for one, other, middle, ends in cases:
        found = difference(*(Yield(drawn=n, accepted=a) for a, n in (one, other)))
        np.testing.assert_allclose(found, (middle, *ends), atol=1e-4)
    assert difference(Yield(drawn=0, accepted=0), Yield(drawn=5, accepted=5)) == (0, -1, 1)


def test_json_names_level_and_what_is_counted(controls: Controls) -> None:
    found = json.loads(json.dumps(controls.as_json(), allow_nan=False))
    assert found["confidence_level"] == 0.95
    assert found["interval"].startswith("Clopper-Pearson")
    assert "duplicate gate is ignored" in found["accepted"]
    for row in found["rows"]:
        assert row["ci95"] == pytest.approx(Yield(drawn=row["drawn"], accepted=row["accepted"]).ci95)
        assert sum(row["first_reason"].values()) + row["accepted"] == row["drawn"]
        assert all(row["rejected_alone"][reason] >= first for reason, first in row["first_reason"].items())
    unseen, generated = found["rows"][1], found["rows"][0]
    assert generated["groups"] is None
    assert found["excess_per_10k"]["value"] == pytest.approx(generated["per_10k"] - unseen["per_10k"])
    assert unseen["at_most_on_average"] == NoveltyGate().alpha
    assert unseen["at_most"] is None


def test_the_difference_repeats_what_its_interval_leaves_out(controls: Controls) -> None:
    (dependence,) = controls.caveats
    assert "guide's draws depend on one another" in dependence
    stopped = replace(controls, stopped_at_size=True)
    assert stopped.caveats[0] == dependence
    assert "a little too high" in stopped.caveats[1]
    for found in (controls, stopped):
        assert found.as_json()["excess_per_10k"]["caveats"] == list(found.caveats)
        lines = found.as_table().splitlines()
        place = next(i for i, line in enumerate(lines) if line.startswith("generated less unseen real"))
        assert [line.strip() for line in lines[place + 1 : place + 1 + len(found.caveats)]] == list(found.caveats)
        assert max(map(len, lines)) <= 150
    assert "a little too high" not in controls.as_table()


def test_table_says_what_the_json_says(controls: Controls) -> None:
    text = controls.as_table()
    assert "95 %, Clopper-Pearson" in text
    assert "duplicate gate is ignored" in text
    for row in controls.rows:
        first, second = (line for line in text.splitlines() if line.startswith(f"{row.name}  "))
        low, high = row.result.ci95
        assert f" {row.result.accepted} of {row.result.drawn} " in first
        assert f" {low:.0f} to {high:.0f} " in first
        assert first.endswith(row.expected)
        assert re.findall(r"(\d+) / (\d+)", second) == [(str(row.first[gate]), str(row.alone[gate])) for gate in row.first]
    assert "generated less unseen real" in text
    assert max(map(len, text.splitlines())) <= 150


def test_what_a_bank_counted_is_a_row() -> None:
    row = drawn_row(drawn=100, rejections={"copy": 5, "not_novel": 70, "irrelevant": 1, "outlier": 10, "duplicate": 4}, nfe=2000)
    assert row.result == Yield(drawn=100, accepted=14, nfe=2000)  # 10 in the bank, 4 that repeat them
    assert row.first == {"copy": 5, "not_novel": 70, "irrelevant": 1, "outlier": 10}
    assert (row.alone, row.groups) == (None, None)
    table = Controls(rows=(row,), count=1, seed=0, screen="", against={"novelty": "reference", "copies": "reference"})
    assert "5 / ?" in table.as_table()
    assert "unknown" in table.as_table()


def test_figure_has_a_dot_an_interval_and_a_count_for_every_row(controls: Controls) -> None:
    found = controls.as_json()
    figure = controls_figure(found)
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [row["name"] for row in found["rows"]]
    assert [text.get_text() for text in panel.texts] == [f"{row['accepted']:,} of {row['drawn']:,}" for row in found["rows"]]
    drawn = {(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in panel.lines}
    for position, row in enumerate(found["rows"]):
        assert (tuple(row["ci95"]), (position, position)) in drawn
        assert ((row["per_10k"],), (position,)) in drawn
        promises = [value for value in (row["at_most"], row["at_most_on_average"]) if value is not None]
        assert all(((1e4 * value,), (position,)) in drawn for value in promises)
        assert len(promises) == (row["name"] in {*MADE, "unseen real", "other modality"} - {"rotated by quarters", "rotated freely"})
    assert "95 % Clopper-Pearson" in panel.get_xlabel()
    assert [tick.get_text() for tick in panel.get_xticklabels()] == [f"{tick:,}" for tick in TICKS]
    figure.canvas.draw()


# ---- the page


def in_words(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(in_words, value))
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, int | float) else type(value).__name__


def test_the_page_names_every_setting_with_its_default() -> None:
    named = {name: value.strip() for name, value in re.findall(r"^\| `(\w+\.\w+)` \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)}
    there = {
        f"{type(settings).__name__}.{field.name}": in_words(getattr(settings, field.name))
        for settings in (*NoveltyScreen().gates, NoveltyScreen())
        for field in fields(settings)
        if field.name not in REASONS and field.name not in ("relevance", "novelty")
    }
    assert named == there


def test_the_pages_commands_and_code_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sets: dict[str, LabelledImages]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    text = PAGE.read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert lines
    for words in (shlex.split(line, comments=True) for line in lines):
        assert words[0] == "monai-diverse"
        assert main([words[1], "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words if word.startswith("--")), words
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    names: dict[str, object] = dict(sets)
    for block in blocks:
        exec(block, names)
    assert isinstance(names["controls"], Controls)
