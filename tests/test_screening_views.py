"""The views of the outlier gate, what discoveries mean, and repeats that features do not see."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, shift
from sklearn.covariance import LedoitWolf

from monai_diverse.data import LabelledImages
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import BlockExtractor, EfficientNetTextures, FeatureExtractor, PixelFeatures
from monai_diverse.screening import Conformal, CopyGate, DuplicateGate, NoveltyGate, NoveltyScreen, OutlierGate, Real, Views
from monai_diverse.screening.calibrate import discoveries
from monai_diverse.screening.profiles import foreground_share, otsu_threshold
from monai_diverse.testing import ExtractorContract, synthetic_images, synthetic_real


class TestTextures(ExtractorContract):
    def extractor(self) -> FeatureExtractor:
        return EfficientNetTextures(slices=4)

    def other(self) -> FeatureExtractor:
        return EfficientNetTextures(layers=(1, 3), slices=4)


def test_textures_are_the_maps_that_the_network_passes_on() -> None:
    import torch

    from monai_diverse.features.efficientnet import lite0_network

    images = np.random.default_rng(0).random((3, 1, 64, 64), dtype=np.float32)
    network, caught = lite0_network(64), []
    layers = [network._bn0, network._blocks[2], network._blocks[4]]
    handles = [layer.register_forward_hook(lambda _m, _i, output: caught.append(output)) for layer in layers]
    with torch.no_grad():
        network.extract_features((torch.from_numpy(images).expand(-1, 3, -1, -1) * 255 - 127) / 128)
    for handle in handles:
        handle.remove()
    extractor = EfficientNetTextures()
    assert isinstance(extractor, BlockExtractor)
    assert extractor.widths((1, 64, 64)) == tuple(maps.shape[1] for maps in caught)
    expected = np.concatenate([maps.mean((2, 3)).numpy() for maps in caught], axis=1)
    np.testing.assert_allclose(extractor(images), expected, atol=1e-4)


@pytest.mark.parametrize("settings", [{"layers": ()}, {"layers": (3, 0)}, {"layers": (0, 17)}, {"batch_size": 0}, {"size": 8}, {"slices": 0}])
def test_textures_check_their_settings(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(settings))):
        EfficientNetTextures(**settings)


@pytest.mark.parametrize("shape", [(24, 24), (12, 16, 16)])
def test_each_texture_is_a_mahalanobis_distance_of_its_block(shape: tuple[int, ...]) -> None:
    real, embedding = synthetic_real(shape=shape)
    views, extractor = embedding.views(synthetic_images(6, 3, shape=shape)), EfficientNetTextures(slices=2)
    fitted = OutlierGate(textures=extractor).fit(real)
    stem = extractor.widths((1, *shape))[0]
    known, asked = (extractor(v.images)[:, :stem].astype(float) for v in (real.reference, views))
    varying = known.std(0) > 1e-4 * known.std(0).max()
    assert 0 < (~varying).sum() < 10  # colour channels see nothing in grey images
    known, asked = known[:, varying], asked[:, varying]
    mean, deviation = known.mean(0), known.std(0)
    covariance = LedoitWolf().fit((known - mean) / deviation)
    expected = covariance.mahalanobis((asked - mean) / deviation)
    measures = fitted.measures.of(views)
    np.testing.assert_allclose(measures["texture_0"], expected, rtol=1e-4)
    assert {"texture_0", "texture_1", "texture_2", "foreground"} <= set(measures)


def test_one_block_extractors_and_none_serve_as_textures_too() -> None:
    real, embedding = synthetic_real()
    views = embedding.views(synthetic_images(6, 3))
    assert "texture_0" not in OutlierGate(textures=None).fit(real).limits
    own = OutlierGate(textures=PixelFeatures(max_side=4)).fit(real)
    assert {"texture_0"} == {name for name in own.limits if name.startswith("texture")}
    assert np.isfinite(own.score(views)).all()


def test_inverted_smoothed_and_reordered_images_leave_the_range_of_textures() -> None:
    """At 40 pixels a side, against unseen images of the same kind: the other measures alone let some pass."""
    real, embedding = synthetic_real(shape=(40, 40))
    unseen = synthetic_images(60, 5, shape=(40, 40))
    gate = OutlierGate().fit(real)

    def rejected(images: np.ndarray) -> float:
        return float((gate.score(embedding.views(LabelledImages(images=images.astype(np.float32), labels=unseen.labels))) > 1).mean())

    assert rejected(unseen.images) < 0.2
    assert rejected(gaussian_filter(unseen.images, (0, 0, 2, 2))) == 1
    quarters = [unseen.images[..., i : i + 20, j : j + 20] for i, j in ((20, 20), (20, 0), (0, 20), (0, 0))]
    shuffled = np.concatenate([np.concatenate(quarters[:2], axis=3), np.concatenate(quarters[2:], axis=3)], axis=2)
    assert rejected(shuffled) > 3 * rejected(unseen.images)


@pytest.mark.parametrize("shape", [(10, 12), (6, 8, 10)])
def test_foreground_is_what_lies_above_otsus_threshold(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((5, 1, *shape)) < np.array([0.1, 0.3, 0.5, 0.7, 0.9]).reshape(5, 1, *[1] * len(shape))
    images = np.where(mask, rng.uniform(0.6, 0.9, mask.shape), rng.uniform(0.0, 0.3, mask.shape)).astype(np.float32)
    threshold = otsu_threshold(images)
    assert 0.3 <= threshold <= 0.6
    np.testing.assert_allclose(foreground_share(images, threshold)[:, 0], mask.reshape(5, -1).mean(1), atol=1e-6)


def test_otsu_maximises_the_variance_between_both_parts() -> None:
    images = np.random.default_rng(1).beta(2, 5, (4, 2, 9, 9)).astype(np.float32)
    grey = images.mean(1).ravel()

    def between(t: float) -> float:
        low, high = grey[grey <= t], grey[grey > t]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0

    best = max(between(t) for t in np.linspace(0, 1, 257))
    assert between(otsu_threshold(images)) == pytest.approx(best, rel=1e-2)
    assert otsu_threshold(np.full((2, 1, 4, 4), 0.25, np.float32)) == 0.5


def test_an_area_far_from_all_others_is_an_outlier() -> None:
    real, embedding = synthetic_real()
    gate = OutlierGate(textures=None).fit(real)
    bright = np.clip(synthetic_images(5, 3).images + 0.4, 0, 1)
    ratios = gate.ratios(embedding.views(LabelledImages(images=bright, labels=np.zeros(5, int))))
    assert (ratios["foreground"] > 1).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_discoveries_follow_the_step_up_rule(p: list[float], rate: float) -> None:
    order = np.argsort(p, kind="stable")
    below = np.flatnonzero(np.array(p)[order] <= rate * np.arange(1, len(p) + 1) / len(p) + 1e-12)
    limit = np.array(p)[order][below[-1]] if len(below) else -1.0
    np.testing.assert_array_equal(discoveries(p, rate), np.array(p) <= limit)


def test_discoveries_bound_the_share_of_false_ones() -> None:
    """300 batches of 60 ordinary and 20 novel scores: on average at most a fifth of what is kept is ordinary."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(300):
        conformal = Conformal.fit(rng.normal(size=200))
        kept = discoveries(conformal.p_values(np.concatenate([rng.normal(size=60), rng.normal(3.5, 1, size=20)])), 0.2)
        shares.append(kept[:60].sum() / max(1, kept.sum()))
    assert 0.08 < np.mean(shares) <= 0.2 * 60 / 80 + 0.02
    assert len(discoveries([], 0.1)) == 0
    with pytest.raises(RecipeError, match=r"rate: expected a share between 0 and 1, got 1\.5"):
        discoveries([0.5], 1.5)


def test_samples_that_look_alike_are_duplicates_whatever_their_features() -> None:
    real, embedding = synthetic_real()
    picked = embedding.views(synthetic_images(10, 20))
    again = replace(picked, features=picked.features + 100)
    assert (DuplicateGate().fit(real).score(again, picked) > 1).all()
    other = embedding.views(synthetic_images(10, 30))
    assert (DuplicateGate().fit(real).score(replace(other, features=other.features + 100), picked) <= 1).all()


def test_without_a_reference_novelty_is_relative_to_what_the_generator_saw() -> None:
    data = synthetic_images(200, 0)
    seen, aside = data[np.arange(120)], data[np.arange(120, 200)]
    screen = NoveltyScreen(extractor=PixelFeatures(), components=6)
    alone, both = screen.fit(None, aside, seen), screen.fit(seen, aside, seen)
    new = synthetic_images(30, 4)
    assert [v.scores for v in alone.screen(new.images, new.labels)] == [v.scores for v in both.screen(new.images, new.labels)]
    assert alone.against == {"novelty": "generator_train", "copies": "generator_train"}
    assert both.against == {"novelty": "reference", "copies": "generator_train"}
    assert screen.fit(seen, aside).against == {"novelty": "reference", "copies": "reference"}
    assert alone.describe()["sets"]["reference"] is None
    with pytest.raises(DataError, match="expected a reference, or what the generator was trained on"):
        screen.fit(None, aside)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_coverage_is_exact_on_exchangeable_images(alpha: float) -> None:
    """Calibration and unseen images in random order: the accepted share is floor(alpha (n + 1)) / (n + 1), whatever the reference."""
    rng, accepted = np.random.default_rng(0), []
    for _ in range(400):
        features = rng.standard_t(3, size=(40 + 39 + 1, 3)).astype(np.float32)
        views = [
            Views(images=np.zeros((len(f), 1, 2, 2), np.float32), labels=np.zeros(len(f), int), pixels=f, features=f)
            for f in (features[:40], features[40:79], features[79:])
        ]
        gate = NoveltyGate(alpha=alpha).fit(Real(reference=views[0], calibration=views[1]))
        accepted.append(gate.score(views[2])[0] <= gate.threshold)
    exact = np.floor(alpha * 40) / 40
    error = 3.3 * np.sqrt(exact * (1 - exact) / 400)  # 99.9 %
    assert abs(np.mean(accepted) - exact) < error


def _textured(count: int, side: int, seed: int) -> LabelledImages:
    rng = np.random.default_rng(seed)
    images = np.clip(0.5 + gaussian_filter(rng.normal(size=(count, 1, side, side)), (0, 0, side / 20, side / 20)) * side / 12, 0, 1)
    return LabelledImages(images=images.astype(np.float32), labels=np.arange(count) % 2)


@pytest.mark.parametrize("side", [28, 48, 64, 100])
def test_copies_moved_by_any_part_of_a_pixel_are_copies(side: int) -> None:
    """Up to one low-resolution pixel, in any direction, whatever moves in at the border."""
    data, rng = _textured(60, side, 0), np.random.default_rng(1)
    fitted = CopyGate().fit(_real(data, _textured(40, side, 7)))
    cell = max(1.0, side / 32)
    for move in rng.uniform(-cell, cell, (12, 2)):
        moved = shift(data.images, (0, 0, *move), order=1, mode="constant", cval=float(rng.random()))
        views = _blank(LabelledImages(images=np.clip(moved, 0, 1).astype(np.float32), labels=data.labels))
        assert (fitted.score(views) > 1).mean() > 0.95
    assert (fitted.score(_blank(_textured(60, side, 2))) > 1).mean() < 0.1


def test_whole_windows_are_compared_not_repeated_edges() -> None:
    data = _textured(50, 28, 3)
    fitted = CopyGate().fit(_real(data, _textured(40, 28, 7)))
    moved = np.random.default_rng(0).random(data.images.shape, dtype=np.float32)
    moved[..., 1:, :-1] = data.images[..., :-1, 1:]
    exact = fitted.score(_blank(LabelledImages(images=moved, labels=data.labels)))
    assert (exact > 1e3).all()


def test_images_without_groups_are_grouped_by_near_duplicates() -> None:
    data, aside = _textured(60, 28, 0), _textured(40, 28, 1)
    twins = LabelledImages(
        images=np.concatenate([data.images, np.clip(data.images + 0.02 * np.random.default_rng(0).normal(size=data.images.shape), 0, 1)]),
        labels=np.tile(data.labels, 2),
    )
    screen = NoveltyScreen(extractor=PixelFeatures(), components=6)
    told = LabelledImages(images=twins.images, labels=twins.labels, groups=np.tile(np.arange(60), 2))
    own, given = screen.fit(twins, aside), screen.fit(told, aside)
    assert own.gates["copy"].admissible == pytest.approx(given.gates["copy"].admissible)
    assert own.real.reference.groups is not None
    alone = replace(screen, twin_correlation=None).fit(twins, aside)
    assert alone.gates["copy"].admissible < 0.5 * own.gates["copy"].admissible
    with pytest.raises(RecipeError, match="twin_correlation"):
        NoveltyScreen(twin_correlation=1.5)


def test_a_gate_given_as_a_mapping_is_explained() -> None:
    with pytest.raises(RecipeError, match=r"not_novel: expected a gate, got \{'alpha': 0.1\}; in a recipe write target"):
        NoveltyScreen(novelty={"alpha": 0.1})  # type: ignore[arg-type]


def _blank(data: LabelledImages) -> Views:
    """Views for gates that look at images alone."""
    none = np.zeros((len(data), 1), np.float32)
    return Views(images=data.images, labels=data.labels, groups=data.groups, pixels=none, features=none)


def _real(reference: LabelledImages, calibration: LabelledImages) -> Real:
    return Real(reference=_blank(reference), calibration=_blank(calibration))
