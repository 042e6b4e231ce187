import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter, shift
from scipy.stats import beta

from monai_diverse.data import FloatArray, LabelledImages, load_images, near_duplicate_groups, split_by_group
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import EfficientNetLite0, PixelFeatures
from monai_diverse.screening import (
    REASONS,
    AcceptedViews,
    ClassConformal,
    Conformal,
    CopyGate,
    DuplicateGate,
    FittedGate,
    FittedScreen,
    Gate,
    NoveltyGate,
    NoveltyScreen,
    OutlierGate,
    Real,
    RelevanceGate,
    Verdict,
    Views,
    Yield,
    calibration_limit,
    count_reasons,
)
from monai_diverse.screening.calibrate import groups_needed
from monai_diverse.screening.embedding import Embedding
from monai_diverse.screening.profiles import intensity_profile, spectral_profile
from monai_diverse.testing import GateContract, synthetic_images, synthetic_real


class TestCopies(GateContract):
    def gate(self) -> Gate:
        return CopyGate()

    def worse(self, real: Real, embedding: Embedding) -> Views:
        seen = real.seen.images
        moved = shift(seen, (0, 0, 1, -1), order=1, mode="nearest")
        brighter = np.clip(seen * 0.8 + 0.1, 0, 1)
        images = np.concatenate([seen, moved, brighter, gaussian_filter(seen, (0, 0, 0.4, 0.4))])
        return embedding.views(LabelledImages(images=images, labels=np.tile(real.seen.labels, 4)))


class TestNovelty(GateContract):
    def gate(self) -> Gate:
        return NoveltyGate()

    def worse(self, real: Real, embedding: Embedding) -> Views:
        noisy = real.reference.images + 0.005 * np.random.default_rng(0).normal(size=real.reference.images.shape)
        images = np.concatenate([real.reference.images, np.clip(noisy, 0, 1)])
        return embedding.views(LabelledImages(images=images, labels=np.tile(real.reference.labels, 2)))


class TestRelevance(GateContract):
    def gate(self) -> Gate:
        return RelevanceGate()

    def worse(self, real: Real, embedding: Embedding) -> Views:
        return replace(real.reference, labels=1 - real.reference.labels)


class TestOutliers(GateContract):
    def gate(self) -> Gate:
        return OutlierGate()

    def worse(self, real: Real, embedding: Embedding) -> Views:
        rng = np.random.default_rng(0)
        uniform = rng.random((10, 1, 12, 12))
        gauss = np.clip(rng.normal(0.5, 0.2, (10, 1, 12, 12)), 0, 1)
        flat = np.full((3, 1, 12, 12), 0.5)
        checks = np.broadcast_to((np.indices((12, 12)).sum(0) % 2).astype(float), (2, 1, 12, 12))
        shuffled = rng.permuted(real.reference.images[:10].reshape(10, -1), axis=1).reshape(10, 1, 12, 12)
        images = np.concatenate([uniform, gauss, flat, checks, shuffled]).astype(np.float32)
        return embedding.views(LabelledImages(images=images, labels=np.zeros(len(images), int)))


class TestDuplicates(GateContract):
    def gate(self) -> Gate:
        return DuplicateGate()

    def score(self, fitted: FittedGate, views: Views) -> FloatArray:
        return fitted.score(views, self.picked())

    def picked(self) -> Views:
        return synthetic_real()[1].views(synthetic_images(15, 20))

    def worse(self, real: Real, embedding: Embedding) -> Views:
        return self.picked()

    # what was picked is two-dimensional here
    def test_scores_are_finite_float32_one_an_image(self) -> None:
        real, embedding = synthetic_real(shape=(8, 9, 7))
        fitted = DuplicateGate().fit(real)
        views = embedding.views(synthetic_images(20, 5, shape=(8, 9, 7)))
        for picked in (None, views[:0], views[:3]):
            scores = fitted.score(views, picked)
            assert scores.dtype == np.float32
            assert np.isfinite(scores).all()
            assert scores.shape == (20,)
            assert (scores[:3] > 1).all() == (picked is not None and len(picked) > 0)


# ---- calibration: exact statements


values = st.lists(st.integers(0, 6), min_size=2, max_size=25)


@given(scores=values)
@settings(max_examples=200, deadline=None)
def test_of_any_exchangeable_points_at_most_a_share_alpha_has_p_below_alpha(scores: list[int]) -> None:
    """The permutation argument itself: each point in turn is the new one, ties and all; no luck is involved."""
    x = np.array(scores, float)
    n = len(x)
    p = np.array([Conformal.fit(np.delete(x, i)).p_values(x[i : i + 1])[0] for i in range(n)])
    naive = np.array([(1 + (np.delete(x, i) >= x[i]).sum()) / n for i in range(n)])
    np.testing.assert_allclose(p, naive)
    for k in range(1, n + 1):
        assert (p <= k / n + 1e-12).sum() <= k
    if len(np.unique(x)) == n:
        np.testing.assert_allclose(np.sort(p), np.arange(1, n + 1) / n)


@given(groups=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=2, max_size=10))
@settings(max_examples=200, deadline=None)
def test_groups_of_any_size_keep_the_level_when_a_new_group_is_drawn(groups: list[list[int]]) -> None:
    """Each group in turn is the new one, and a member of it is drawn at random."""
    k = len(groups)
    drawn: list[tuple[float, float]] = []
    for i, own in enumerate(groups):
        rest = [(s, j) for j, g in enumerate(groups) if j != i for s in g]
        fitted = Conformal.fit(np.array([s for s, _ in rest], float), np.array([j for _, j in rest]))
        assert fitted.groups == k - 1
        drawn += [(p, 1 / len(own) / k) for p in fitted.p_values(np.array(own, float))]
    for alpha in np.unique([p for p, _ in drawn]):
        assert sum(w for p, w in drawn if p <= alpha + 1e-12) <= alpha + 1e-9


def test_a_repeated_calibration_image_counts_once_and_near_ties_count_against() -> None:
    once = Conformal.fit([1.0, 2.0, 3.0])
    repeated = Conformal.fit([1.0, 2.0, 2.0, 2.0, 3.0], np.array([0, 1, 1, 1, 2]))
    x = [0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
    np.testing.assert_array_equal(repeated.p_values(x), once.p_values(x))
    np.testing.assert_array_equal(once.p_values([3.0 + 1e-8]), once.p_values([3.0]))
    np.testing.assert_array_equal(Conformal.fit([]).p_values([1.0]), [1.0])


@given(n=st.integers(1, 400), share=st.floats(0.5, 0.999), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_calibration_limit_is_the_split_conformal_quantile(n: int, share: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=n)
    rank = int(np.ceil((n + 1) * share - 1e-9))
    assert calibration_limit(x, share) == np.sort(x)[min(rank, n) - 1]
    twice = calibration_limit(np.repeat(x, 2), share, np.repeat(np.arange(n), 2))
    assert twice == calibration_limit(x, share)


def test_calibration_limit_of_nothing() -> None:
    with pytest.raises(DataError, match="at least one image"):
        calibration_limit([], 0.9)


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    minimum=st.integers(1, 40),
)
@settings(max_examples=100, deadline=None)
def test_categories_hold_every_class_once_and_are_large_enough_unless_all_are_pooled(sizes: list[int], minimum: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    fitted = ClassConformal.fit(np.zeros(len(labels)), labels, np.arange(len(labels)), classes=range(len(sizes)), minimum=minimum)
    assert sorted(c for m in fitted.members for c in m) == list(range(len(sizes)))
    if len(fitted.members) > 1:
        assert fitted.smallest >= minimum
    for members in fitted.members:
        pooled = len(members) > 1
        assert not pooled or min(sizes[c] for c in members) < minimum
    assert sum(c.groups for c in fitted.conformal) == len(labels)


def test_categories_are_calibrated_apart() -> None:
    labels = np.array([0] * 30 + [1] * 30)
    scores = np.concatenate([np.arange(30), np.arange(30) + 100.0])
    fitted = ClassConformal.fit(scores, labels, np.arange(60), classes=(0, 1), minimum=20)
    np.testing.assert_allclose(fitted.p_values([50.0, 50.0], np.array([0, 1])), [1 / 31, 1])
    pooled = ClassConformal.fit(scores, labels, np.arange(60), classes=(0, 1), minimum=31)
    np.testing.assert_allclose(pooled.p_values([50.0, 50.0], np.array([0, 1])), [31 / 61, 31 / 61])


@given(level=st.floats(0.005, 0.9))
def test_groups_needed_is_the_first_number_that_reaches_the_level(level: float) -> None:
    reach, pass_ = groups_needed(level, reaching=True), groups_needed(level, reaching=False)
    assume(abs(1 / level - round(1 / level)) > 1e-6)
    assert 1 / (reach + 1) <= level
    assert reach == 1 or 1 / reach > level
    assert pass_ == reach
    assert (groups_needed(0.05, reaching=True), groups_needed(0.05, reaching=False)) == (19, 20)


# ---- gates: coverage of the whole procedure


def vectors(rng: np.random.Generator, groups: int, views: int, first: int) -> Views:
    """Feature vectors of two classes of different spread; images of one group lie close together."""
    labels = np.repeat(rng.integers(0, 2, groups), views)
    centre = np.repeat(rng.normal(size=(groups, 3)), views, axis=0) * (1 + labels[:, None])
    features = (centre + 0.05 * rng.normal(size=centre.shape) + labels[:, None]).astype(np.float32)
    blank = np.zeros((len(labels), 1, 2, 2), np.float32)
    return Views(images=blank, labels=labels, groups=np.repeat(first + np.arange(groups), views), pixels=features, features=features)


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize(
    ("gate", "share"), [(NoveltyGate(alpha=0.1, min_per_class=60), 0.1), (RelevanceGate(level=0.1, inverse_strengths=(1.0,)), 0.1)]
)
def test_unseen_reals_pass_or_fail_at_the_stated_rate(gate: Gate, share: float, views: int) -> None:
    """Fitted from scratch again and again: the rate over all is at most the level, and not far below it."""
    rates = []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        real = Real(reference=vectors(rng, 40, views, 0), calibration=vectors(rng, 60, views, 100))
        fitted = gate.fit(real)
        score = fitted.score(vectors(rng, 40, views, 1000))
        rates.append(float(((score <= fitted.threshold) if gate.reason == "not_novel" else (score > fitted.threshold)).mean()))
    error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) <= share + 3 * error
    assert np.mean(rates) >= 0.7 * share - 3 * error


def test_nothing_is_fitted_on_the_calibration_images() -> None:
    """Other calibration images change thresholds only: the order of the samples by score stays."""
    real, embedding = synthetic_real()
    other = replace(real, calibration=embedding.views(synthetic_images(60, 99)))
    views = embedding.views(synthetic_images(200, 4))
    for gate in (CopyGate(), DuplicateGate()):
        np.testing.assert_array_equal(gate.fit(real).score(views), gate.fit(other).score(views))
    a, b = NoveltyGate().fit(real), NoveltyGate().fit(other)
    np.testing.assert_array_equal(a.distances.excess(views), b.distances.excess(views))
    a, b = RelevanceGate().fit(real), RelevanceGate().fit(other)
    np.testing.assert_array_equal(a.classifier.coef_, b.classifier.coef_)
    a, b = OutlierGate().fit(real), OutlierGate().fit(other)
    for name, ratio in a.ratios(views).items():
        np.testing.assert_allclose(ratio * a.limits[name], b.ratios(views)[name] * b.limits[name], rtol=1e-5)


def test_novelty_is_the_distance_to_the_reference_between_groups() -> None:
    rng = np.random.default_rng(3)
    real = Real(reference=vectors(rng, 30, 3, 0), calibration=vectors(rng, 50, 1, 100))
    fitted = NoveltyGate(neighbours=(2,)).fit(real)
    x = vectors(rng, 20, 1, 1000)
    r = real.reference
    to = np.sort(np.linalg.norm(r.features - x.features[:, None], axis=2), axis=1)[:, 1]
    between = np.linalg.norm(r.features[:, None] - r.features, axis=2)
    between[r.groups[:, None] == r.groups] = np.inf
    second = np.sort(between)[:, 1]
    owner = r.labels[np.linalg.norm(r.features - x.features[:, None], axis=2).argmin(axis=1)]
    typical = np.array([np.median(second[r.labels == c]) for c in (0, 1)])[owner]
    np.testing.assert_allclose(fitted.distances.excess(x), np.log(to / typical), atol=1e-4)
    both, one, five = (NoveltyGate(neighbours=k).fit(real).distances.excess(x) for k in ((1, 5), (1,), (5,)))
    np.testing.assert_allclose(both, np.minimum(one, five))


def test_an_ordinary_image_under_a_wrong_label_is_not_novel() -> None:
    """Two classes far apart: what is new to its class alone would let every wrong label pass."""
    rng = np.random.default_rng(0)
    real = Real(reference=vectors(rng, 200, 1, 0), calibration=vectors(rng, 200, 1, 1000))
    apart = Real(reference=_classes_apart(real.reference), calibration=_classes_apart(real.calibration))
    unseen = _classes_apart(vectors(rng, 400, 1, 5000))
    wrong = NoveltyGate().fit(apart).score(replace(unseen, labels=1 - unseen.labels))
    assert (wrong <= 0.05).mean() < 0.1


def _classes_apart(views: Views) -> Views:
    return replace(views, features=views.features + 50 * views.labels[:, None].astype(np.float32))


def test_a_copy_of_an_isolated_reference_image_is_not_novel() -> None:
    rng = np.random.default_rng(0)
    real = Real(reference=vectors(rng, 40, 1, 0), calibration=vectors(rng, 60, 1, 100))
    far = real.reference.features.copy()
    far[0] += 40
    real = replace(real, reference=replace(real.reference, features=far))
    copy = replace(real.reference[:1], features=far[:1] + 0.3)
    assert NoveltyGate().fit(real).score(copy)[0] > 0.5
    assert NoveltyGate(neighbours=(5,)).fit(real).score(copy)[0] <= 0.05


def test_groups_are_left_out_of_the_classifiers_cross_validation() -> None:
    """With labels that are noise but repeated in groups, only group-blind folds favour a weakly regularised fit."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(40, 20)), 5, axis=0) + 0.01 * rng.normal(size=(200, 20))
    labels, groups = np.repeat(rng.integers(0, 2, 40), 5), np.repeat(np.arange(40), 5)
    views = Views(images=np.zeros((200, 1, 2, 2), np.float32), labels=labels, groups=groups, pixels=features, features=features.astype(np.float32))
    calibration = vectors(rng, 100, 1, 500)
    calibration = replace(calibration, features=rng.normal(size=(100, 20)).astype(np.float32))
    grouped = RelevanceGate().fit(Real(reference=views, calibration=calibration))
    blind = RelevanceGate().fit(Real(reference=replace(views, groups=None), calibration=calibration))
    assert grouped.strength < blind.strength


def test_relevance_can_learn_from_what_the_generator_saw() -> None:
    """A reference whose labels are swapped misleads a classifier of its own; the right labels of what the generator saw do not."""
    rng = np.random.default_rng(3)
    known, unseen = _classes_apart(vectors(rng, 60, 1, 0)), _classes_apart(vectors(rng, 60, 1, 100))
    real = Real(reference=replace(known, labels=1 - known.labels), calibration=unseen, generator_train=known)
    candidates = _classes_apart(vectors(rng, 40, 1, 200))
    for gate, right in ((RelevanceGate(level=0.3, fitted_on="generator_train"), True), (RelevanceGate(level=0.3), False)):
        fitted = gate.fit(real)
        doubts = fitted.score(candidates), fitted.score(replace(candidates, labels=1 - candidates.labels))
        assert (np.median(doubts[0]) < np.median(doubts[1])) == right
    without = RelevanceGate(fitted_on="generator_train").fit(Real(reference=known, calibration=unseen))
    np.testing.assert_array_equal(without.score(candidates), RelevanceGate().fit(Real(reference=known, calibration=unseen)).score(candidates))


def test_one_class_is_never_irrelevant() -> None:
    real, _ = synthetic_real()
    single = Real(reference=replace(real.reference, labels=np.zeros(90, int)), calibration=replace(real.calibration, labels=np.zeros(60, int)))
    fitted = RelevanceGate().fit(single)
    assert not fitted.score(single.calibration).any()
    assert fitted.threshold > 0


def test_copies_of_mirrored_training_images_need_the_mirrored_images() -> None:
    real, embedding = synthetic_real()
    mirrored = LabelledImages(images=real.reference.images[..., ::-1], labels=real.reference.labels, groups=real.reference.group_ids)
    views = embedding.views(mirrored)
    # unless they are known, mirrored images are like any other
    assert (CopyGate().fit(real).score(views) > 1).mean() < 0.1
    both = replace(real, generator_train=Views.concat(replace(real.reference, groups=real.reference.group_ids), views))
    assert (CopyGate().fit(both).score(views) > 1e3).all()


def test_copies_in_a_training_set_that_repeats_itself_are_still_copies() -> None:
    real, _ = synthetic_real()
    twice = Views.concat(real.reference, real.reference)
    fitted = CopyGate().fit(replace(real, generator_train=twice))
    assert fitted.admissible == pytest.approx(0.1)
    assert (fitted.score(real.reference) > 1).all()
    assert fitted.notes()["against"] == "generator_train"
    assert CopyGate().fit(replace(real, generator_train=None)).notes()["against"] == "reference"


def test_copy_threshold_leaves_groups_out_and_samples_evenly() -> None:
    real, _ = synthetic_real(views=3)
    fitted = CopyGate(max_shift=0, quantile=0.25).fit(real)
    pixels = PixelFeatures()(real.reference.images).astype(float)
    between = np.linalg.norm(pixels[:, None] - pixels, axis=2)
    between[real.reference.groups[:, None] == real.reference.groups] = np.inf
    assert fitted.admissible == pytest.approx(np.quantile(between.min(1), 0.25), rel=1e-5)
    rows = np.round(np.linspace(0, 89, 30)).astype(int)
    assert CopyGate(max_shift=0, quantile=0.25, sample=30).fit(real).admissible == pytest.approx(np.quantile(between.min(1)[rows], 0.25), rel=1e-5)


def test_outlier_measures_equal_their_formulae() -> None:
    real, embedding = synthetic_real()
    views = embedding.views(synthetic_images(10, 3))
    fitted = OutlierGate(components=200, neighbours=2).fit(real)
    measures = fitted.measures.of(views)
    x, r = views.pixels.astype(float), real.reference.pixels.astype(float)
    plane = np.linalg.svd(r - r.mean(0))[2][:89]
    centred = x - r.mean(0)
    np.testing.assert_allclose(measures["residual"], (centred**2).sum(1) - ((centred @ plane.T) ** 2).sum(1), atol=1e-4)
    np.testing.assert_allclose(measures["leftover"], views.residual.astype(float) ** 2)
    near = np.sort(np.linalg.norm(intensity_profile(views.images, 32)[:, None] - intensity_profile(real.reference.images, 32), axis=2))[:, 1]
    np.testing.assert_allclose(measures["intensity"], near**2, atol=1e-6)
    with pytest.raises(DataError, match="leftover"):
        fitted.score(replace(views, residual=None))


def test_intensity_profile_is_a_cumulative_histogram_by_channel() -> None:
    images = np.random.default_rng(0).random((4, 2, 5, 6), dtype=np.float32)
    images[0, 0, 0, 0], images[1, 1, 0, 0] = 0, 1
    expected = [[np.cumsum(np.histogram(c, bins=8, range=(0, 1))[0]) / 30 for c in image] for image in images]
    np.testing.assert_allclose(intensity_profile(images, 8) * np.sqrt(8), np.reshape(expected, (4, 16)), atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20), (12, 10, 14)])
def test_spectral_profile_finds_a_wave_and_ignores_brightness(shape: tuple[int, ...]) -> None:
    wave = 0.5 + 0.4 * np.cos(2 * np.pi * 0.25 * np.arange(shape[0])).reshape(-1, *[1] * (len(shape) - 1)) * np.ones(shape)
    profile = spectral_profile(wave[None, None].astype(np.float32), 5, 1e-4)[0]
    edges = np.linspace(0, 0.5, 6)
    assert profile.argmax() == np.flatnonzero((edges[:-1] < 0.25) & (edges[1:] >= 0.25))[0]
    noise = np.random.default_rng(0).random((1, 1, *shape), dtype=np.float32)
    np.testing.assert_allclose(spectral_profile(noise * 0.5 + 0.2, 5, 1e-4), spectral_profile(noise, 5, 1e-4), atol=1e-4)
    flat = spectral_profile(np.full((1, 1, *shape), 0.3, np.float32), 5, 1e-4)
    np.testing.assert_allclose(flat * np.sqrt(5), -4)
    # white noise has the same power in every ring
    many = spectral_profile(np.random.default_rng(1).normal(size=(300, 1, *shape)).astype(np.float32), 5, 1e-4)
    np.testing.assert_allclose(10 ** (many * np.sqrt(5)).mean(0), 1, atol=0.45)


def test_gates_and_screen_check_their_settings() -> None:
    wrong = [
        (CopyGate, {"quantile": 0.0}),
        (CopyGate, {"floor": 3.0}),
        (CopyGate, {"max_shift": -1}),
        (NoveltyGate, {"alpha": 1.0}),
        (NoveltyGate, {"neighbours": ()}),
        (NoveltyGate, {"neighbours": (0,)}),
        (RelevanceGate, {"level": -0.1}),
        (RelevanceGate, {"folds": 1}),
        (RelevanceGate, {"fitted_on": "calibration"}),
        (NoveltyScreen, {"fitted_on": "calibration"}),
        (RelevanceGate, {"inverse_strengths": (0.0,)}),
        (OutlierGate, {"quantile": 2.0}),
        (OutlierGate, {"mahalanobis_factor": 0.0}),
        (OutlierGate, {"components": 0}),
        (DuplicateGate, {"share": 0.0}),
        (NoveltyScreen, {"components": 0}),
        (NoveltyScreen, {"pixel_side": 1}),
        (NoveltyScreen, {"gain_noise": 0.0}),
    ]
    for kind, arguments in wrong:
        with pytest.raises(RecipeError, match=f"{next(iter(arguments))}: expected"):
            kind(**arguments)
    with pytest.raises(RecipeError, match="expected one with reason 'copy', got NoveltyGate"):
        NoveltyScreen(copy=NoveltyGate())


def test_gates_say_what_data_they_lack() -> None:
    real, _ = synthetic_real()
    few = replace(real, calibration=real.calibration[np.arange(15)])
    with pytest.raises(DataError, match=r"novelty at alpha 0\.05: expected at least 19 calibration images"):
        NoveltyGate().fit(few)
    with pytest.raises(DataError, match=r"relevance at level 0\.05: expected at least 20"):
        RelevanceGate().fit(few)
    foreign = replace(real, calibration=replace(real.calibration, labels=real.calibration.labels + 1))
    for gate in (NoveltyGate(), RelevanceGate()):
        with pytest.raises(DataError, match=r"labels: expected classes of the reference \[0, 1\], got 2"):
            gate.fit(foreign)
    one_group = replace(real.reference, groups=np.full(90, 999))
    with pytest.raises(DataError, match=r"at least 2 groups, got 90 image\(s\) of one"):
        NoveltyGate().fit(replace(real, reference=one_group))
    with pytest.raises(DataError, match="expected 90 labels"):
        replace(real.reference, labels=np.zeros(3, int))


def test_views_are_indexed_and_joined_together() -> None:
    real, _ = synthetic_real(views=2)
    views = real.reference
    for joined in (Views.concat(views[:30], views[30:]), views[:30].concat(views[30:40], views[40:])):
        for name in ("images", "labels", "groups", "pixels", "features", "residual"):
            np.testing.assert_array_equal(getattr(joined, name), getattr(views, name))
    assert views[:3].concat(replace(views[3:5], groups=None, residual=None)).groups is None
    picked = views[np.array([4, 2])]
    np.testing.assert_array_equal(picked.features, views.features[[4, 2]])
    assert len(views[views.labels == 0]) == (views.labels == 0).sum()


# ---- the screen


@pytest.fixture(scope="module")
def screen() -> FittedScreen:
    data = synthetic_images(300, 0)
    return NoveltyScreen(extractor=PixelFeatures(), components=8, novelty=NoveltyGate(alpha=0.2)).fit(data[np.arange(150)], data[np.arange(150, 300)])


def test_the_first_reason_counts_and_every_score_is_kept(screen: FittedScreen) -> None:
    unseen, noise = synthetic_images(200, 5), np.random.default_rng(0).random((5, 1, 12, 12), dtype=np.float32)
    copies = synthetic_images(300, 0)[np.arange(5)]
    images = np.concatenate([unseen.images, noise, copies.images])
    labels = np.concatenate([unseen.labels, np.zeros(5, int), copies.labels])
    verdicts = screen.screen(images, labels)
    thresholds = {reason: gate.threshold for reason, gate in screen.gates.items()} | {"duplicate": 1.0}
    for v in verdicts:
        assert set(v.scores) == {*REASONS, "information_gain", "surprisal"}
        assert np.isfinite(list(v.scores.values())).all()
        failed = [r for r in REASONS if v.scores[r] > thresholds[r]]
        assert v.reason == (failed[0] if failed else None)
        assert v.accepted == (not failed)
    assert [v.reason for v in verdicts[-5:]] == ["copy"] * 5
    assert [v.nearest for v in verdicts[-5:]] == list(range(5))
    assert not any(v.accepted for v in verdicts[200:])
    accepted = sum(v.accepted for v in verdicts[:200])
    assert 0 < accepted <= 0.3 * 200
    counts = count_reasons(verdicts)
    assert list(counts) == ["accepted", *REASONS]
    assert sum(counts.values()) == 210
    assert counts["accepted"] == accepted
    assert Verdict.REASONS == REASONS


def test_a_batch_is_judged_as_its_parts_in_turn(screen: FittedScreen) -> None:
    data = synthetic_images(120, 6)
    # every image twice: the second of an accepted pair must be a duplicate
    views = screen.embed(np.concatenate([data.images] * 2), np.concatenate([data.labels] * 2))
    together = screen.judge(views)
    accepted, as_views, turns = AcceptedViews(), None, []
    for start in range(0, 240, 40):
        part = views[start : start + 40]
        verdicts = screen.judge(part, accepted)
        assert [v.reason for v in verdicts] == [v.reason for v in screen.judge(part, as_views)]
        new = part[np.array([v.accepted for v in verdicts])]
        accepted = accepted.plus(new)
        as_views = new if as_views is None else Views.concat(as_views, new)
        turns += verdicts
    assert [v.reason for v in turns] == [v.reason for v in together]
    assert sum(v.accepted for v in together) == len(accepted) > 3
    for a, b in zip(turns, together, strict=True):
        assert a.scores == pytest.approx(b.scores, rel=1e-3, abs=1e-4)
    for first, second in zip(together[:120], together[120:], strict=True):
        if first.accepted:
            assert second.reason == "duplicate"
            assert second.scores["information_gain"] < first.scores["information_gain"]


def test_gains_given_some_of_many_accepted_are_bounds(screen: FittedScreen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank of a million must not need a process of a million points."""
    data, fresh = synthetic_images(60, 6), synthetic_images(30, 7)
    held, asked = screen.embed(data.images, data.labels), screen.embed(fresh.images, fresh.labels)
    exact = screen.judge(asked, held)
    monkeypatch.setattr("monai_diverse.screening.accepted.OBSERVED", 20)
    some = AcceptedViews.of(held)
    assert len(some) == 60
    assert some.first is not None
    np.testing.assert_array_equal(some.first, held.features[:20])
    bounds = screen.judge(asked, some)
    assert [v.reason for v in bounds] == [v.reason for v in exact], "repeats are looked for among all"
    gains = np.array([[v.scores["information_gain"] for v in verdicts] for verdicts in (bounds, exact)])
    assert (gains[0] >= gains[1] - 1e-6).all()
    assert (gains[0] > gains[1] + 1e-4).any()


def test_nothing_in_gives_nothing_out(screen: FittedScreen) -> None:
    for none in (np.zeros((0, 1, 12, 12)), []):
        assert screen.screen(none, []) == []
    views = screen.embed(np.zeros((0, 1, 12, 12)), [])
    assert len(views) == 0
    assert screen.judge(views, screen.embed(synthetic_images(3, 1).images, [0, 1, 0])) == []
    some = screen.embed(synthetic_images(3, 1).images, [0, 1, 0])
    assert [v.reason for v in screen.judge(some, views)] == [v.reason for v in screen.judge(some)]


def test_judging_is_deterministic_and_changes_nothing(screen: FittedScreen) -> None:
    data = synthetic_images(30, 6)
    before, fingerprint = screen.screen(data.images, data.labels), screen.fingerprint
    screen.screen(synthetic_images(30, 7).images, data.labels)
    assert screen.screen(data.images, data.labels) == before
    assert screen.fingerprint == fingerprint
    again = pickle.loads(pickle.dumps(screen))
    assert again.screen(data.images, data.labels) == before
    assert again.fingerprint == fingerprint


def test_fingerprint_follows_settings_and_data() -> None:
    data = synthetic_images(120, 0)
    reference, calibration = data[np.arange(60)], data[np.arange(60, 120)]
    base = NoveltyScreen(extractor=PixelFeatures(), components=4)
    prints = {
        base.fit(reference, calibration).fingerprint,
        base.fit(reference, calibration, reference).fingerprint,
        base.fit(calibration, reference).fingerprint,
        base.fit(replace(reference, groups=np.arange(60) // 2), calibration).fingerprint,
        replace(base, components=5).fit(reference, calibration).fingerprint,
        replace(base, duplicate=DuplicateGate(share=0.4)).fit(reference, calibration).fingerprint,
        replace(base, extractor=PixelFeatures(standardise=False)).fit(reference, calibration).fingerprint,
    }
    assert len(prints) == 7
    assert base.fit(reference, calibration).fingerprint in prints


def test_without_gates_what_they_alone_reject_is_accepted(screen: FittedScreen) -> None:
    rng = np.random.default_rng(11)
    images, labels = rng.random((20, 1, 12, 12)).astype(np.float32), np.arange(20) % 2
    views = screen.embed(images, labels)
    before = screen.judge(views)
    open_to_all = screen.without("copy", "not_novel", "irrelevant", "outlier")
    assert {verdict.reason for verdict in before} - {None, "duplicate"}
    assert {verdict.reason for verdict in open_to_all.judge(views)} <= {None, "duplicate"}
    assert open_to_all.fingerprint != screen.fingerprint
    kept = screen.without("outlier")
    for verdict, now in zip(before, kept.judge(views), strict=True):
        assert set(verdict.scores) - set(now.scores) == {"outlier"}
        assert verdict.reason == now.reason or verdict.reason in ("outlier", "duplicate", None)
    with pytest.raises(RecipeError, match="without: expected some of copy, not_novel, irrelevant, outlier, got 'duplicate'"):
        screen.without("duplicate")


def test_components_can_be_those_of_what_the_generator_saw() -> None:
    many, few, unseen = synthetic_images(120, 1), synthetic_images(12, 1), synthetic_images(60, 5)
    asked = NoveltyScreen(extractor=PixelFeatures(), components=40, relevance=RelevanceGate(level=0.2), novelty=NoveltyGate(alpha=0.2))
    own = asked.fit(few, unseen, many)
    wide = replace(asked, fitted_on="generator_train").fit(few, unseen, many)
    assert own.real.reference.features.shape[1] < len(few) < wide.real.reference.features.shape[1] == 40
    assert own.fingerprint != wide.fingerprint
    alone = replace(asked, fitted_on="generator_train").fit(few, unseen)
    np.testing.assert_array_equal(alone.real.reference.features, asked.fit(few, unseen).real.reference.features)


def test_describe_is_json_and_names_what_copies_were_judged_against(screen: FittedScreen) -> None:
    described = json.loads(json.dumps(screen.describe(), allow_nan=False))
    assert set(described["gates"]) == set(REASONS)
    assert described["gates"]["copy"]["against"] == "reference"
    assert described["sets"]["generator_train"] is None
    assert described["sets"]["reference"]["class_counts"] == [75, 75]
    assert described["settings"]["gates"]["not_novel"]["alpha"] == 0.2


def test_copies_and_nearest_refer_to_what_the_generator_saw() -> None:
    data = synthetic_images(240, 1)
    parts = [data[np.arange(80) + 80 * i] for i in range(3)]
    fitted = NoveltyScreen(extractor=PixelFeatures(), components=4).fit(*parts)
    verdicts = fitted.screen(parts[2].images, parts[2].labels)
    assert {v.reason for v in verdicts} == {"copy"}
    assert [v.nearest for v in verdicts] == list(range(80))


def test_the_screen_refuses_what_it_cannot_judge(screen: FittedScreen) -> None:
    data = synthetic_images(90, 0)
    with pytest.raises(DataError, match="calibration: expected images that reference does not hold, got 30 in both"):
        NoveltyScreen(extractor=PixelFeatures()).fit(data, data[np.arange(30)])
    with pytest.raises(DataError, match="calibration: expected images that generator_train does not hold, got 10 in both"):
        NoveltyScreen(extractor=PixelFeatures()).fit(data[np.arange(30)], data[np.arange(30, 90)], data[np.arange(20, 40)])
    with pytest.raises(DataError, match="expected images of one shape"):
        NoveltyScreen(extractor=PixelFeatures()).fit(data, synthetic_images(40, 1, shape=(10, 10)))
    with pytest.raises(DataError, match=r"images: expected shape \(n, 1, 12, 12\) as the reference, got \(2, 1, 9, 9\)"):
        screen.screen(np.zeros((2, 1, 9, 9)), [0, 1])
    with pytest.raises(DataError, match="labels: expected classes"):
        screen.screen(np.zeros((2, 1, 12, 12)), [0, 7])
    with pytest.raises(DataError, match="NaN"):
        screen.screen(np.full((2, 1, 12, 12), np.nan), [0, 1])


def test_three_dimensional_images_pass_the_whole_screen() -> None:
    data = synthetic_images(70, 2, shape=(6, 20, 20), channels=2)
    fitted = NoveltyScreen(extractor=EfficientNetLite0(size=32, slices=2), components=10).fit(data[np.arange(40)], data[np.arange(40, 70)])
    noise = np.random.default_rng(0).random((5, 2, 6, 20, 20), dtype=np.float32)
    assert not any(v.accepted for v in fitted.screen(noise, [0] * 5))
    assert {v.reason for v in fitted.screen(data.images[:5], data.labels[:5])} == {"copy"}
    assert fitted.yield_of(data[np.arange(40)]).accepted == 0


# ---- yields


@given(drawn=st.integers(1, 3000), share=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_intervals_are_clopper_pearson(drawn: int, share: float) -> None:
    accepted = int(share * drawn)
    result = Yield(drawn=drawn, accepted=accepted, nfe=drawn * 20)
    low = beta.ppf(0.025, accepted, drawn - accepted + 1) if accepted else 0.0
    high = beta.ppf(0.975, accepted + 1, drawn - accepted) if accepted < drawn else 1.0
    np.testing.assert_allclose(result.ci95, (1e4 * low, 1e4 * high), rtol=1e-6, atol=1e-6)
    assert result.per_10k == pytest.approx(1e4 * accepted / drawn)
    assert result.accepted_per_1k_nfe == pytest.approx(1000 * accepted / (20 * drawn))
    assert json.loads(json.dumps(result.as_json(), allow_nan=False))["ci95"] == list(result.ci95)


def test_yields_at_the_edges() -> None:
    none = Yield(drawn=0, accepted=0)
    assert (none.per_10k, none.ci95, none.accepted_per_1k_nfe) == (0.0, (0.0, 1e4), None)
    assert str(Yield(drawn=1000, accepted=2)) == "2 of 1000: 20 in 10,000 (95 % interval 2 to 72)"
    for wrong in ({"drawn": 1, "accepted": 2}, {"drawn": 1, "accepted": -1}, {"drawn": 1, "accepted": 1, "nfe": -1}):
        with pytest.raises(RecipeError):
            Yield(**wrong)


# ---- real images


def jpeg(image: FloatArray) -> FloatArray:
    buffer = io.BytesIO()
    Image.fromarray((image[0] * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer), np.float32)[None] / 255


def test_breast_ultrasound_controls(shared_data) -> None:
    """Copies and noise never pass; unseen patients pass at about alpha."""
    real = load_images(shared_data / "breastmnist.npz", "train")
    real = replace(real, groups=near_duplicate_groups(real.images))
    kept, aside = split_by_group(real, 5, 0)
    reference = real[kept]
    both = np.concatenate([reference.images, reference.images[..., ::-1]])
    trained = LabelledImages(images=both, labels=np.tile(reference.labels, 2), groups=np.tile(reference.groups, 2))
    fitted = NoveltyScreen().fit(reference, real[aside], trained)
    some = reference[np.arange(0, len(reference), 5)]
    rng = np.random.default_rng(0)
    controls = {
        "mirrored": some.images[..., ::-1],
        "shifted": shift(some.images, (0, 0, 1, -1), order=1, mode="nearest"),
        "blurred": gaussian_filter(some.images, (0, 0, 0.5, 0.5)),
        "jpeg": np.stack([jpeg(x) for x in some.images]),
        "noise": rng.random(some.images.shape),
        "shuffled": rng.permuted(some.images.reshape(len(some), -1), axis=1).reshape(some.images.shape),
    }
    for name, images in controls.items():
        accepted = fitted.yield_of(replace(some, images=np.clip(images, 0, 1))).accepted
        assert accepted == 0, name
    unseen = load_images(shared_data / "breastmnist.npz", "val")
    assert fitted.yield_of(unseen).ci95[0] <= 500
