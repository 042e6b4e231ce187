"""Codes, entropies, mutual information and unseen mass, each against a closed form, scipy or scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, entropy
from sklearn.cluster import KMeans
from sklearn.feature_selection import mutual_info_regression
from sklearn.metrics import mutual_info_score

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information import (
    Codebook,
    InformationGain,
    InformationSettings,
    LabelledFeatures,
    codebook,
    describe_information,
    good_turing,
    grassberger_entropy,
    kl_divergence,
    ksg_mutual_information,
    miller_madow_entropy,
    mutual_information,
    plug_in_entropy,
    unseen_mass,
)

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(lambda c: sum(c) > 0)
ENTROPIES = (plug_in_entropy, miller_madow_entropy, grassberger_entropy)


def normal(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@given(counts=COUNTS)
@settings(max_examples=60, deadline=None)
def test_entropies_of_counts(counts: list[int]) -> None:
    plain = plug_in_entropy(counts)
    assert plain == pytest.approx(entropy(counts), abs=1e-12)
    occurring = sum(c > 0 for c in counts)
    assert miller_madow_entropy(counts) == pytest.approx(plain + (occurring - 1) / (2 * sum(counts)), abs=1e-12)
    # by recursion: G(1) = -gamma - log 2, G(2) = 2 - gamma - log 2, G(2n+1) = G(2n), G(2n+2) = G(2n) + 2 / (2n + 1)
    g = {1: -np.euler_gamma - np.log(2), 2: 2 - np.euler_gamma - np.log(2)}
    for n in range(3, 51):
        g[n] = g[n - 1] if n % 2 else g[n - 2] + 2 / (n - 1)
    expected = np.log(sum(counts)) - sum(c * g[c] for c in counts if c) / sum(counts)
    assert grassberger_entropy(counts) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("estimate", ENTROPIES)
def test_entropies_approach_the_truth(estimate: Callable[[object], float]) -> None:
    share = np.array([0.5, 0.25, 0.125, 0.125])
    assert estimate(np.random.default_rng(0).multinomial(10**6, share)) == pytest.approx(1.75 * np.log(2), abs=3e-3)
    for wrong in ([], [0, 0], [1, -1, 2], [0.5, 0.5]):
        with pytest.raises(DataError, match="counts: expected whole numbers"):
            estimate(wrong)


def chao_shen(counts: np.ndarray) -> float:
    n = counts[counts > 0].astype(float)
    adjusted = (1 - min((n == 1).sum(), n.sum() - 1) / n.sum()) * n / n.sum()
    return float(-(adjusted * np.log(adjusted) / (1 - (1 - adjusted) ** n.sum())).sum())


def test_why_grassbergers_entropy_is_the_default() -> None:
    """The simulation that the module's docstring reports, where there are more draws than codes."""
    rng, methods = np.random.default_rng(0), (grassberger_entropy, miller_madow_entropy, chao_shen)
    worst = {"zipf": np.zeros(3), "others": np.zeros(3)}
    for codes, draws in ((16, 30), (16, 100), (64, 100), (64, 500), (256, 500)):
        for name in ("uniform", "dirichlet", "zipf", "quarter"):
            errors = []
            for _ in range(250):
                share = {
                    "uniform": np.ones(codes),
                    "dirichlet": rng.dirichlet(np.full(codes, 0.5)),
                    "zipf": 1 / np.arange(1, codes + 1),
                    "quarter": (np.arange(codes) < codes // 4).astype(float),
                }[name]
                share = share / share.sum()
                counts = rng.multinomial(draws, share)
                errors.append([method(counts) - entropy(share) for method in methods])
            kind = "zipf" if name == "zipf" else "others"
            worst[kind] = np.maximum(worst[kind], np.abs(np.mean(errors, axis=0)))
    grassberger, miller_madow, chao = np.maximum(*worst.values())
    # .03 and .07, and the Monte-Carlo error of a mean of 250
    assert worst["others"][0] < 0.045
    assert grassberger < 0.09
    assert miller_madow > 1.5 * grassberger
    assert chao > worst["others"][0]


def test_divergence_closed_form_and_bias() -> None:
    rng = np.random.default_rng(0)
    s, r = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    drawn, known = rng.multinomial(400_000, s), rng.multinomial(400_000, r)
    assert kl_divergence(drawn, known) == pytest.approx(entropy(s, r), abs=5e-3)
    # smoothing by hand
    expected = -np.log((3 + 0.5) / (4 + 1)) - grassberger_entropy([6, 0])
    assert kl_divergence([6, 0], [3, 1]) == pytest.approx(expected, abs=1e-12)
    assert np.isfinite(kl_divergence([0, 5], [5, 0]))
    share = rng.dirichlet(np.ones(20))
    known = rng.multinomial(10**6, share)
    same = [rng.multinomial(60, share) for _ in range(400)]
    assert np.mean([kl_divergence(c, known) for c in same]) == pytest.approx(0, abs=0.02)
    assert np.mean([entropy(c, known) for c in same]) > 0.1
    with pytest.raises(RecipeError, match="smoothing: expected above 0"):
        kl_divergence([1], [1], smoothing=0)
    with pytest.raises(DataError, match="counts of the same codes"):
        kl_divergence([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="whole numbers"):
        kl_divergence([1, 2], [0, 0])


def test_mutual_information_of_a_table() -> None:
    rng = np.random.default_rng(0)
    joint = rng.dirichlet(np.ones(12)).reshape(3, 4)
    table = rng.multinomial(500_000, joint.ravel()).reshape(3, 4)
    plain = plug_in_entropy(table.sum(0)) + plug_in_entropy(table.sum(1)) - plug_in_entropy(table)
    assert plain == pytest.approx(mutual_info_score(None, None, contingency=table), abs=1e-9)
    assert mutual_information(table) == pytest.approx(plain, abs=1e-3)
    assert mutual_information(np.diag([5000, 5000])) == pytest.approx(np.log(2), abs=1e-3)
    independent = [rng.multinomial(60, np.full(16, 1 / 16)).reshape(8, 2) for _ in range(400)]
    assert np.mean([mutual_information(t) for t in independent]) == pytest.approx(0, abs=0.02)
    assert np.mean([mutual_info_score(None, None, contingency=t) for t in independent]) > 0.05
    with pytest.raises(DataError, match="table of counts"):
        mutual_information([1, 2])


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("d", [1, 3])
def test_ksg_is_the_closed_form_of_gaussians(rho: float, d: int) -> None:
    x, e = normal(4000, d), normal(4000, d, 1)
    y = rho * x + np.sqrt(1 - rho**2) * e
    # standard error about .03; in 3 dimensions a strong dependence is underestimated
    assert ksg_mutual_information(x, y) == pytest.approx(-d / 2 * np.log(1 - rho**2), abs=0.06 if d == 1 else 0.17)


@given(seed=st.integers(0, 1000), n=st.integers(12, 300), k=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_ksg_is_scikit_learns_in_one_dimension(seed: int, n: int, k: int) -> None:
    x = normal(n, 1, seed)
    y = x[:, 0] + normal(n, 1, seed + 1)[:, 0]
    x, y = x / x.std(), y / y.std()
    theirs = mutual_info_regression(x, y, n_neighbors=k, random_state=0)[0]
    assert max(0, ksg_mutual_information(x, y[:, None], k)) == pytest.approx(theirs, abs=1e-6)


def test_ksg_is_symmetric_and_checked() -> None:
    x, y = normal(200, 2), normal(200, 3, 1) + normal(200, 1)
    assert ksg_mutual_information(x, y) == pytest.approx(ksg_mutual_information(y, x))
    for a, b, k in ((x[:, 0], y, 3), (x, y[:5], 3), (x, y, 0), (x, y, 200)):
        with pytest.raises(DataError, match="n above k"):
            ksg_mutual_information(a, b, k)
    with pytest.raises(DataError, match="10 with 3 or more repeats"):
        ksg_mutual_information(np.concatenate([x, np.zeros((10, 2))]), np.concatenate([y, np.zeros((10, 3))]))


def test_codebook_assigns_the_nearest_centre() -> None:
    x = normal(300, 4)
    fitted = Codebook(codes=9, seed=3).fit(x)
    np.testing.assert_allclose(fitted.centres, KMeans(9, n_init=3, random_state=3).fit(x).cluster_centers_)
    query = normal(50, 4, 1)
    np.testing.assert_array_equal(fitted.assign(query), np.linalg.norm(query[:, None] - fitted.centres, axis=2).argmin(1))
    np.testing.assert_array_equal(fitted.histogram(query), np.bincount(fitted.assign(query), minlength=9))
    groups = np.arange(50) // 10
    once = {(c, g) for c, g in zip(fitted.assign(query).tolist(), groups.tolist(), strict=True)}
    np.testing.assert_array_equal(fitted.histogram(query, groups), np.bincount([c for c, _ in once], minlength=9))
    assert fitted.histogram(query[:0]).tolist() == [0] * 9


def test_codebook_sizes_and_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(Codebook().fit(normal(100, 2))) == 10
    assert len(Codebook().fit(normal(10_000, 2))) == 64
    assert len(Codebook().fit(np.repeat(normal(3, 2), 20, axis=0))) == 3
    monkeypatch.setattr(codebook, "IN_BATCHES_FROM", 500)
    fitted = Codebook(codes=4, seed=1).fit(np.concatenate([normal(500, 2, i) * 0.01 + i for i in range(4)]))
    np.testing.assert_allclose(np.sort(fitted.centres[:, 0]), range(4), atol=0.05)
    with pytest.raises(RecipeError, match="codes: expected at least 1"):
        Codebook(codes=0)
    with pytest.raises(DataError, match="at least one row"):
        Codebook().fit(np.zeros((0, 2)))
    with pytest.raises(DataError, match="rows of 2 features"):
        fitted.assign(np.zeros((1, 3)))


def test_good_turing_is_unbiased_and_its_interval_covers() -> None:
    rng, share = np.random.default_rng(0), 1 / np.arange(1, 201)
    share /= share.sum()
    truth, found = [], []
    for _ in range(400):
        counts = rng.multinomial(300, share)
        truth.append(share[counts == 0].sum())
        found.append(good_turing(counts))
    assert np.mean([f.value for f in found]) == pytest.approx(np.mean(truth), abs=0.005)
    covered = np.mean([f.low <= t <= f.high for f, t in zip(found, truth, strict=True)])
    assert 0.92 <= covered <= 0.98
    by_hand = good_turing([1, 2, 2, 5], level=0.9)
    assert by_hand.value == pytest.approx(0.1)
    assert by_hand.high - 0.1 == pytest.approx(1.6448536 * np.sqrt(1 + 4 - 0.1) / 10, rel=1e-6)


def test_good_turing_is_not_certain_where_no_code_or_every_one_occurs_once() -> None:
    none, every = good_turing(np.full(100, 10), level=0.9), good_turing(np.ones(1000), level=0.9)
    half = (1 + np.sqrt(2)) * np.sqrt(np.log(20) / 1000) + 0.001
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(half))
    assert (every.value, every.low, every.high) == (1, pytest.approx(1 - half), 1)
    assert none.method == every.method == "McAllester-Ortiz"
    for few in ([5, 5, 5], [1, 1, 1], [1]):
        assert (good_turing(few).low, good_turing(few).high) == (0, 1)


@pytest.mark.parametrize("tail", [0.02, 0.1, 0.3])
def test_good_turings_bound_covers_where_normal_theory_is_sure_of_a_wrong_value(tail: float) -> None:
    """A few common codes, and a tail of very many that none or all of the draws may meet once."""
    rng, common, rare = np.random.default_rng(1), 4, 10**6
    found = []
    for n in (5, 20, 80):
        for _ in range(300):
            in_tail = rng.binomial(n, tail)
            tails = np.unique(rng.integers(0, rare, in_tail), return_counts=True)[1]
            counts = np.concatenate([rng.multinomial(n - in_tail, np.full(common, 1 / common)), tails])
            missing = tail * (1 - len(tails) / rare) + (1 - tail) / common * (counts[:common] == 0).sum()
            if (counts == 1).sum() in (0, n):
                share = good_turing(counts)
                found.append(share.low <= missing <= share.high)
    assert len(found) > 20
    assert np.mean(found) >= 0.95


def test_unseen_mass_counts_codes_that_the_reference_lacks() -> None:
    mass = unseen_mass([3, 1, 0, 6], [5, 0, 0, 2], level=0.9)
    interval = binomtest(1, 10).proportion_ci(0.9, method="exact")
    assert (mass.value, mass.low, mass.high) == pytest.approx((0.1, interval.low, interval.high))
    assert "90 % interval, Clopper-Pearson" in str(mass)
    assert mass.as_json()["level"] == 0.9
    with pytest.raises(DataError, match="the same codes, got 2 and 3"):
        unseen_mass([1, 1], [1, 1, 1])
    with pytest.raises(DataError, match="samples: expected counts"):
        unseen_mass([0, 0], [1, 1])
    with pytest.raises(RecipeError, match="level: expected between 0 and 1"):
        good_turing([1], level=1)


def test_unseen_mass_of_the_same_distribution_is_good_turings() -> None:
    """With codes fitted on all sets together, blind to which is which."""
    found = []
    for seed in range(30):
        reference, others = normal(200, 4, seed), normal(100, 4, seed + 1000)
        fitted = Codebook(codes=70, seed=seed).fit(np.concatenate([reference, others]))
        known = fitted.histogram(reference)
        found.append([good_turing(known).value, unseen_mass(fitted.histogram(others), known).value])
    missing, unseen = np.mean(found, axis=0)
    assert unseen == pytest.approx(missing, abs=0.015)
    assert missing > 0.02


def patients(seed: int, count: int, images: int) -> LabelledFeatures:
    """Patients of one law with some nearly equal images each."""
    rng, groups = np.random.default_rng(seed), np.repeat(np.arange(count), images)
    return labelled(rng.normal(size=(count, 4))[groups] + 0.05 * rng.normal(size=(count * images, 4)), groups)


def test_unseen_mass_of_new_patients_is_good_turings_where_patients_repeat() -> None:
    """TOLERANCE: .03, three standard errors of the mean of 40 shares, each of 60 patients."""
    found = []
    for seed in range(40):
        samples = labelled(patients(seed + 2000, 60, 1).features)
        described = describe_information(samples, patients(seed, 120, 4), patients(seed + 1000, 60, 3), settings=InformationSettings(seed=seed))
        mass = described["scores"]["unseen_mass"]
        found.append([described["good_turing"]["value"], mass["samples"]["value"], mass["calibration"]["value"]])
    missing, samples_mass, calibration_mass = np.mean(found, axis=0)
    assert missing > 0.05
    assert samples_mass == pytest.approx(missing, abs=0.03)
    assert calibration_mass == pytest.approx(missing, abs=0.03)


def test_sets_are_compared_by_one_image_a_group() -> None:
    reference, calibration = patients(0, 60, 2), patients(1, 20, 5)
    apart = calibration.apart(7)
    assert len(apart) == 20
    rows = [np.flatnonzero((calibration.features == row).all(1)).item() for row in apart.features]
    assert sorted(calibration.groups[rows].tolist()) == list(range(20))  # type: ignore[index]
    np.testing.assert_array_equal(apart.labels, calibration.labels[rows])
    assert rows != [np.flatnonzero((calibration.features == row).all(1)).item() for row in calibration.apart(8).features]
    one = describe_information(apart, reference, calibration, settings=InformationSettings(seed=7))
    assert one["size"] == 20
    for name in set(one["scores"]) - {"information_gain", "surprisal_excess"}:
        assert one["scores"][name]["samples"] == one["scores"][name]["calibration"], name


def test_gain_of_a_set_is_the_log_determinant() -> None:
    gain, x = InformationGain(normal(30, 3), lengthscale=1.1, noise=0.2), normal(12, 3, 1)
    tracker, total = gain.track(x), 0.0
    for i in range(12):
        total += float(tracker.gain[i])
        tracker.observe(i)
    assert gain.of_set(x) == pytest.approx(total, rel=1e-5)
    assert gain.of_set(x[:1]) == pytest.approx(float(gain.gain(x[:1])[0]), rel=1e-5)
    assert gain.of_set(x[:0]) == 0


def labelled(features: np.ndarray, groups: np.ndarray | None = None) -> LabelledFeatures:
    return LabelledFeatures(features=features, labels=(features[:, 0] > 0).astype(np.int64), groups=groups)


def test_description_tells_novel_samples_copies_and_new_patients_apart() -> None:
    reference, calibration = labelled(normal(300, 4)), labelled(normal(80, 4, 1))
    sets = {
        "patients": labelled(normal(80, 4, 2)),
        "copies": labelled(reference.features[:80] + 0.01 * normal(80, 4, 3)),
        "far": labelled(normal(80, 4, 4) + np.array([6.0, 0, 0, 0])),
        "repeated": labelled(np.repeat(normal(1, 4, 5), 80, axis=0)),
    }
    found = {name: describe_information(data, reference, calibration) for name, data in sets.items()}
    value = {name: {score: cell["samples"] for score, cell in f["scores"].items()} for name, f in found.items()}
    control = {score: cell["calibration"] for score, cell in found["far"]["scores"].items()}
    for score in ("information_gain", "surprisal_excess"):
        medians = {name: v[score]["median"] for name, v in value.items()}
        assert medians["copies"] < medians["patients"] < medians["far"]
    assert value["patients"]["surprisal_excess"]["median"] == pytest.approx(0, abs=0.7)
    assert value["far"]["code_divergence"] > 1 > abs(value["patients"]["code_divergence"])
    assert value["repeated"]["code_entropy"] < 0.2 < value["patients"]["code_entropy"]
    assert value["repeated"]["vendi"] == pytest.approx(1, abs=1e-3)
    assert (value["repeated"]["nearest_images"], value["repeated"]["nearest_entropy"]) == (1, 0)
    assert (value["copies"]["nearest_images"], value["copies"]["nearest_entropy"]) == (80, pytest.approx(np.log(80)))
    assert 1 < value["far"]["nearest_images"] < control["nearest_images"] < 80
    assert 0 < value["far"]["nearest_entropy"] < control["nearest_entropy"] < np.log(80)
    assert value["far"]["unseen_mass"]["low"] > max(control["unseen_mass"]["value"], found["far"]["good_turing"]["value"])
    assert value["copies"]["unseen_mass"]["value"] == 0
    assert value["repeated"]["information_gain_of_set"] < value["patients"]["information_gain_of_set"] / 5


def test_description_is_json_with_units_of_equally_many() -> None:
    reference = labelled(normal(120, 3), np.arange(120) // 2)
    found = describe_information(labelled(normal(30, 3, 1)), reference, labelled(normal(70, 3, 2)), settings=InformationSettings(most=25, level=0.9))
    assert json.loads(json.dumps(found)) == found
    assert found["size"] == 25
    assert found["counts"] == {"samples": 30, "reference": 120, "calibration": 70}
    assert "data-processing inequality" in found["statement"]
    assert {cell["unit"] for cell in found["scores"].values()} == {"nats", "images", "modes", "share"}
    assert found["good_turing"]["level"] == found["level"] == 0.9
    assert all(1 <= found["scores"][name][s] <= 25 for name in ("vendi", "rke") for s in ("samples", "calibration"))


def test_several_sets_are_described_side_by_side() -> None:
    reference, calibration, one, other = (labelled(normal(n, 3, seed)) for n, seed in ((120, 0), (40, 1), (30, 2), (50, 3)))
    both = describe_information({"one": one, "other": other}, reference, calibration)
    assert both["size"] == 30
    assert both["counts"] == {"one": 30, "other": 50, "reference": 120, "calibration": 40}
    assert all(list(cell)[2:] == ["one", "other", "calibration"] for cell in both["scores"].values())
    alone = describe_information(one, reference, calibration)
    for name in set(alone["scores"]) - {"unseen_mass"}:  # whose codebook is fitted on all sets together
        assert both["scores"][name]["one"] == alone["scores"][name]["samples"]
    with pytest.raises(DataError, match="another name than the real sets', got 'reference'"):
        describe_information({"reference": one}, reference, calibration)


def test_description_says_what_is_wrong() -> None:
    few = labelled(normal(10, 3))
    with pytest.raises(DataError, match="one width, got"):
        describe_information(labelled(normal(10, 2)), few, few)
    with pytest.raises(DataError, match="features: expected finite rows"):
        labelled(np.full((3, 2), np.nan))
    with pytest.raises(DataError, match="groups: expected one for each of 10 rows"):
        labelled(normal(10, 2), np.arange(3))
    for features, labels in (([[1.0]], np.zeros(1, np.int64)), (np.array([["a"]]), np.zeros(1, np.int64))):
        with pytest.raises(DataError, match="features: expected a NumPy array of numbers"):
            LabelledFeatures(features=features, labels=labels)  # type: ignore[arg-type]
    for labels in ([0], np.array([0.5]), None):
        with pytest.raises(DataError, match="labels: expected a NumPy array of whole numbers"):
            LabelledFeatures(features=np.ones((1, 1)), labels=labels)  # type: ignore[arg-type]
    for seed in (-1, 2**32, 0.5):
        with pytest.raises(RecipeError, match="seed: expected a whole number from 0"):
            Codebook(seed=seed)  # type: ignore[arg-type]
    for wrong in ({"most": 0}, {"gain_noise": 0.0}, {"level": 1.5}, {"seed": -1}):
        with pytest.raises(RecipeError, match=f"{next(iter(wrong))}: expected"):
            InformationSettings(**wrong)
