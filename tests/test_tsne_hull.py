from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from scipy.spatial import Delaunay
from sklearn.manifold import TSNE

from monai_diverse.data import LabelledImages
from monai_diverse.errors import DataError, MissingExtraError, RecipeError
from monai_diverse.features import EfficientNetLite0, PixelFeatures
from monai_diverse.screening import NoveltyScreen, tsne_hull
from monai_diverse.screening.tsne_hull import HullMap, HullResult, TsneHull
from monai_diverse.sources.builtin import builtin_data

NOISE = 40


@pytest.fixture(scope="module")
def noise() -> LabelledImages:
    images = np.random.default_rng(0).random((NOISE, 1, 28, 28), dtype=np.float32)
    return LabelledImages(images=images, labels=np.arange(NOISE) % 2)


@pytest.fixture(scope="module")
def known() -> LabelledImages:
    data = builtin_data().generator_train
    return data[np.arange(0, len(data), 3)]


@pytest.fixture(scope="module")
def result(known: LabelledImages, noise: LabelledImages) -> HullResult:
    data = builtin_data()
    unseen = data.validation.images[data.validation_unseen][:NOISE]
    return TsneHull(extractor=EfficientNetLite0()).judge(known.images, noise.images, unseen)


# ---- what it is good for


def test_it_accepts_noise(result: HullResult) -> None:
    """And far more of it than of real images that it has not seen, which are all that it should accept."""
    assert result.heldout is not None
    assert result.accepted.mean() > 0.5
    assert result.generated.counts.ci95[0] > result.heldout.counts.ci95[1]
    assert result.generated.counts.accepted > 5 * result.generated.expected


def test_the_screen_rejects_that_noise(known: LabelledImages, noise: LabelledImages) -> None:
    """With the same features and the same real images; the gate for outliers alone would do."""
    screen = NoveltyScreen(extractor=EfficientNetLite0()).fit(known, builtin_data().calibration)
    assert screen.yield_of(noise).accepted == 0
    outlying = [v.scores["outlier"] > screen.gates["outlier"].threshold for v in screen.screen(noise.images, noise.labels)]
    assert len(outlying) == NOISE
    assert all(outlying)


# ---- as published


def test_it_is_the_published_computation() -> None:
    """Written out: t-SNE of both together, the hull of the first, all that its polygon does not hold."""
    rng = np.random.default_rng(0)
    real = rng.normal(size=(60, 5)).astype(np.float32)
    judged = (1.5 * rng.normal(size=(40, 5))).astype(np.float32)
    points = TSNE(2, random_state=0).fit_transform(np.concatenate([real, judged]))
    found = HullMap.of(real, judged)
    np.testing.assert_array_equal(np.concatenate([found.real, found.judged]), points)
    polygon = Polygon(points[:60][found.vertices])
    outside = ~polygon.contains_points(points[60:])
    assert 0 < outside.sum() < 40
    np.testing.assert_array_equal(found.accepted, outside)


def test_the_random_state_is_passed_on() -> None:
    # wide enough for scikit-learn to start from randomised principal components
    features = np.random.default_rng(0).normal(size=(40, 600))
    maps = [HullMap.of(features[:20], features[20:], random_state=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(maps[0].judged, maps[1].judged)
    assert not np.array_equal(maps[0].judged, maps[2].judged)


def test_it_judges_with_the_published_extractor_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for it, since its weights are not here."""
    monkeypatch.setattr(tsne_hull, "SqueezeNetLogits", PixelFeatures)
    assert TsneHull().extractor == PixelFeatures()


def test_without_torchvision_it_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingExtraError, match=r"torchvision.*pass another extractor: TsneHull\(extractor=EfficientNetLite0\(\)\)"):
        TsneHull()


# ---- the hull


@given(seed=st.integers(0, 10_000), count=st.integers(3, 40), scale=st.sampled_from([1e-6, 1.0, 1e6]), offset=st.sampled_from([0.0, 3.0]))
@settings(max_examples=100, deadline=None)
def test_outside_is_in_no_triangle_of_the_real_points(seed: int, count: int, scale: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    real, judged = scale * (rng.normal(size=(count, 2)) + offset), scale * (1.5 * rng.normal(size=(50, 2)) + offset)
    found = HullMap.of_points(real, judged)
    np.testing.assert_array_equal(found.accepted, Delaunay(real).find_simplex(judged) < 0)


@given(seed=st.integers(0, 10_000), count=st.integers(3, 40), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=100, deadline=None)
def test_points_on_the_hull_are_inside_and_points_just_beyond_are_not(seed: int, count: int, scale: float) -> None:
    real = scale * np.random.default_rng(seed).normal(size=(count, 2))
    corners = real[HullMap.of_points(real, real).vertices]
    sides = np.linspace(corners, np.roll(corners, -1, axis=0), 7).reshape(-1, 2)
    assert not HullMap.of_points(real, np.concatenate([real, sides])).accepted.any()
    centre = corners.mean(axis=0)
    assert HullMap.of_points(real, corners + 1e-5 * (corners - centre)).accepted.all()


def test_corners_go_round_counter_clockwise() -> None:
    square = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    vertices = HullMap.of_points(square, square).vertices.tolist()
    assert vertices[vertices.index(0) :] + vertices[: vertices.index(0)] == [0, 2, 1, 4]


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_chance_alone_puts_as_many_outside_as_expected(kind: str) -> None:
    """Points drawn alike: over 500 maps, accepted and expected agree within 4 standard errors, which are small."""
    rng = np.random.default_rng(0)
    draw = rng.standard_normal if kind == "normal" else rng.random
    maps = [HullMap.of_points(draw((50, 2)), draw((60, 2))) for _ in range(500)]
    accepted = np.array([m.counts.accepted for m in maps])
    difference = accepted - np.array([m.expected for m in maps])
    error = difference.std() / np.sqrt(len(maps))
    assert error < 0.03 * accepted.mean()
    assert abs(difference.mean()) < 4 * error


# ---- what is said of it


def test_the_yield_comes_with_its_null_and_its_control(result: HullResult, known: LabelledImages) -> None:
    described = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert result.heldout is not None
    for name, found in (("generated", result.generated), ("heldout", result.heldout)):
        part = described[name]
        assert (part["drawn"], part["accepted"]) == (NOISE, int(found.accepted.sum()))
        assert part["expected_by_chance"]["accepted"] == pytest.approx(NOISE * len(found.vertices) / (len(known) + 1))
        assert part["expected_by_chance"]["per_10k"] == pytest.approx(1e4 * len(found.vertices) / (len(known) + 1))
        assert (part["real"], part["hull_vertices"]) == (len(known), len(found.vertices))
        assert len(found.real) == len(known)
        assert len(found.judged) == len(found.accepted) == NOISE
    assert described["extractor"]["name"] == "efficientnet-lite0"
    assert described["random_state"] == 0
    text = str(result)
    for name, found in (("generated", result.generated), ("held-out real", result.heldout)):
        assert f"{name}: {found.counts}; {found.expected:.1f} expected by chance" in text
    assert "Efron" in text


def test_a_missing_control_is_said(result: HullResult) -> None:
    alone = replace(result, heldout=None)
    assert "held-out real: no control" in str(alone)
    assert alone.as_json()["heldout"] is None


def test_three_dimensional_images_pass() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((50, 1, 4, 6, 5), dtype=np.float32)
    found = TsneHull(extractor=PixelFeatures()).judge(images[:30], images[30:])
    assert found.accepted.shape == (20,)
    assert found.heldout is None


# ---- what it refuses


def test_it_refuses_what_it_cannot_map() -> None:
    hull = TsneHull(extractor=PixelFeatures())
    rng = np.random.default_rng(0)
    images = rng.random((40, 1, 4, 4), dtype=np.float32)
    with pytest.raises(DataError, match="at least 3 real images and 31 in all, got 10 real and 20 to judge"):
        hull.judge(images[:10], images[10:30])
    with pytest.raises(DataError, match="at least 3 real images and 31 in all, got 2 real and 38 to judge"):
        hull.judge(images[:2], images[2:])
    with pytest.raises(DataError, match=r"heldout: expected images of shape \(1, 4, 4\) as the real ones, got \(1, 5, 5\)"):
        hull.judge(images[:20], images[20:], np.zeros((3, 1, 5, 5)))
    with pytest.raises(DataError, match="generated: expected values in"):
        hull.judge(images[:20], images[20:] + 5)
    with pytest.raises(DataError, match="finite features that vary"):
        hull.judge(np.zeros((20, 1, 4, 4)), np.zeros((20, 1, 4, 4)))
    with pytest.raises(DataError, match=r"expected features \(n, d\) and \(m, d\), got \(40, 3\) and \(40, 2\)"):
        HullMap.of(np.zeros((40, 3)), np.zeros((40, 2)))
    for real in (np.zeros((2, 2)), np.zeros((20, 2)), np.outer(np.arange(20.0), [1, 2])):
        with pytest.raises(DataError, match=f"not on one line, got {len(real)} without a hull"):
            HullMap.of_points(real, np.zeros((1, 2)))
    with pytest.raises(RecipeError, match=r"random_state: expected .* got -1"):
        TsneHull(extractor=PixelFeatures(), random_state=-1)
