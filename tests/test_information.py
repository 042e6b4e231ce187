import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.metrics.pairwise import rbf_kernel

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information import InformationGain, Neighbours, Surprisal, intrinsic_dimension, rke, vendi_score
from monai_diverse.information.choice import LazyChoice


def points(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@given(n=st.integers(4, 40), m=st.integers(1, 10), groups=st.integers(2, 12), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_neighbours_equal_brute_force_with_groups_left_out(n: int, m: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, query, ids = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)), rng.integers(0, groups, n) * 7 - 3
    index = Neighbours(x, ids)
    np.testing.assert_allclose(index.distances(query, 2), np.sort(cdist(query, x))[:, :2], atol=1e-6)
    np.testing.assert_array_equal(index.nearest(query), cdist(query, x).argmin(1))
    own = cdist(x, x)
    own[ids[:, None] == ids] = np.inf
    assert index.most == np.isfinite(own).sum(1).min()
    for k in range(1, index.most + 1):
        np.testing.assert_allclose(index.within(k), np.sort(own)[:, :k], atol=1e-6)
    with pytest.raises(DataError, match="other rows to compare with"):
        index.within(index.most + 1)
    asked = rng.integers(0, groups, m) * 7 - 3
    apart = np.where(asked[:, None] == ids, np.inf, cdist(query, x))
    if index.most:
        np.testing.assert_allclose(index.distances(query, 1, leave_out=asked)[:, 0], apart.min(1), atol=1e-6)


def test_neighbours_across_chunks_and_bad_input() -> None:
    x = points(2500, 2)
    ids = np.arange(2500) // 2
    own = cdist(x, x)
    own[ids[:, None] == ids] = np.inf
    np.testing.assert_allclose(Neighbours(x, ids).within(3), np.sort(own)[:, :3], atol=1e-6)
    assert Neighbours(x).distances(np.zeros((0, 2)), 1).shape == (0, 1)
    assert Neighbours(x, ids).distances(np.zeros((0, 2)), 1, leave_out=ids[:0]).shape == (0, 1)
    for wrong in (np.zeros((0, 2)), np.zeros(3)):
        with pytest.raises(DataError, match="at least one row"):
            Neighbours(wrong)
    with pytest.raises(DataError, match="2500 group numbers"):
        Neighbours(x, ids[:3])
    with pytest.raises(DataError, match="rows of 2 features"):
        Neighbours(x).distances(np.zeros((1, 3)), 1)


def test_gain_of_one_reference_point_is_the_closed_form() -> None:
    noise, scale = 0.2, 1.5
    gain = InformationGain(np.zeros((1, 1)), lengthscale=scale, noise=noise)
    x = np.array([[0.0], [1.0], [100.0]])
    correlation = np.exp(-(x[:, 0] ** 2) / (2 * scale**2))
    expected = 0.5 * np.log(1 + (1 - correlation**2 / (1 + noise)) / noise)
    np.testing.assert_allclose(gain.gain(x), expected, rtol=1e-5)
    assert gain.gain(x)[2] == pytest.approx(0.5 * np.log(1 + 1 / noise), rel=1e-5)


def test_gain_is_the_posterior_of_a_gaussian_process() -> None:
    reference, x = points(40, 4), points(20, 4, 1)
    gain = InformationGain(reference, lengthscale=1.3, noise=0.05)
    theirs = GaussianProcessRegressor(RBF(1.3), alpha=0.05, optimizer=None).fit(reference, np.zeros(40))
    _, deviation = theirs.predict(x, return_std=True)
    np.testing.assert_allclose(gain.gain(x), 0.5 * np.log1p(deviation**2 / 0.05), rtol=1e-4)
    both = InformationGain(np.concatenate([reference, x[:5]]), lengthscale=1.3, noise=0.05)
    np.testing.assert_allclose(gain.given(x[:5]).gain(x), both.gain(x), rtol=1e-4)
    np.testing.assert_allclose(gain.given(x[:3]).given(x[3:5]).gain(x), both.gain(x), rtol=1e-4)
    assert len(gain) == 40
    np.testing.assert_allclose(gain.given(x[:0]).gain(x), gain.gain(x))


def test_gain_goes_on_from_its_last_answer_without_mixing_them_up() -> None:
    reference, x, query = points(20, 3), points(12, 3, 1), points(6, 3, 2)
    gain = InformationGain(reference, lengthscale=1.0)
    before = gain.gain(query)
    for picks in (range(4), range(9), range(9), (5, 1), (), range(3), (5, 1, 2)):
        chosen = x[list(picks)]
        fresh = InformationGain(np.concatenate([reference, chosen]), lengthscale=1.0)
        np.testing.assert_allclose(gain.given(chosen).gain(query), fresh.gain(query), rtol=1e-5)
        assert len(gain.given(chosen)) == 20 + len(chosen)
    np.testing.assert_array_equal(gain.gain(query), before)
    again = pickle.loads(pickle.dumps(gain))
    np.testing.assert_allclose(again.given(x).gain(query), gain.given(x).gain(query), rtol=1e-5)


@given(seed=st.integers(0, 10_000), n=st.integers(2, 15), m=st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_gain_is_submodular_and_adds_up_to_the_log_determinant(seed: int, n: int, m: int) -> None:
    reference, x = points(n, 2, seed), points(m, 2, seed + 1)
    gain = InformationGain(reference, lengthscale=0.8, noise=0.1)
    tracker = gain.track(x)
    before, total = tracker.gain, 0.0
    for i in range(m):
        total += float(tracker.gain[i])
        tracker.observe(i)
        assert (tracker.gain <= before + 1e-5).all()
        before = tracker.gain
    np.testing.assert_allclose(before, gain.given(x).gain(x), atol=1e-4)
    kernel = lambda a: np.linalg.slogdet(rbf_kernel(a, gamma=0.5 / 0.8**2) / 0.1 + np.eye(len(a)))[1]  # noqa: E731
    assert total == pytest.approx(0.5 * (kernel(np.concatenate([reference, x])) - kernel(reference)), abs=1e-3)


def test_greedy_takes_the_best_at_each_step_and_no_repeats() -> None:
    reference, x = points(10, 2), points(12, 2, 1)
    x[5] = x[4]
    gain = InformationGain(reference, lengthscale=1.0)
    order = gain.greedy(x, 12)
    assert sorted(order) == list(range(12))
    for step in range(11):
        now = gain.given(x[order[:step]]).gain(x)
        left = np.setdiff1d(np.arange(12), order[:step])
        assert now[order[step]] == pytest.approx(now[left].max(), rel=1e-4)
    assert len(gain.greedy(x, 3)) == 3
    assert len(gain.greedy(x[:0], 3)) == 0


@pytest.mark.parametrize(("n", "d", "scale"), [(300, 3, 0.7), (700, 8, 2.0), (50, 2, 5.0)])
def test_lazy_greedy_picks_what_eager_greedy_picks(n: int, d: int, scale: float) -> None:
    """Against the plain posterior variance, all of it computed anew after each pick."""
    reference, x = points(60, d), points(n, d, 1)
    order = InformationGain(reference, lengthscale=scale, noise=0.1).greedy(x, 45)
    covariance = rbf_kernel(np.concatenate([reference, x]), gamma=0.5 / scale**2)
    seen, eager = list(range(60)), []
    for _ in range(45):
        solved = np.linalg.solve(covariance[np.ix_(seen, seen)] + 0.1 * np.eye(len(seen)), covariance[np.ix_(seen, range(60, 60 + n))])
        variance = 1 - (covariance[np.ix_(seen, range(60, 60 + n))] * solved).sum(0)
        variance[eager] = -1
        eager.append(int(variance.argmax()))
        seen.append(60 + eager[-1])
    assert order.tolist() == eager


def test_lazy_greedy_computes_few_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    computed, visit = [], LazyChoice._visit

    def counted(self: LazyChoice, chosen: np.ndarray, count: int) -> None:
        computed.append(len(chosen))
        visit(self, chosen, count)

    monkeypatch.setattr(LazyChoice, "_visit", counted)
    InformationGain(points(50, 4)).greedy(points(2000, 4, 1), 100)
    # eager choice computes 2000 * 99
    assert sum(computed) < 0.1 * 2000 * 99


def test_default_lengthscale_leaves_groups_out_and_large_references_are_thinned_from_above() -> None:
    x = points(200, 2)
    ids = np.arange(200) // 2
    x[1::2] = x[::2] + 1e-6
    own = cdist(x, x)
    own[ids[:, None] == ids] = np.inf
    assert InformationGain(x, groups=ids).lengthscale == pytest.approx(np.median(own.min(1)), rel=1e-6)
    full, thin = InformationGain(x, lengthscale=0.5), InformationGain(x, lengthscale=0.5, max_points=60)
    query = points(50, 2, 1)
    assert len(thin) == 60
    assert (thin.gain(query) >= full.gain(query) - 1e-5).all()
    # of 100 pairs, sixty points chosen for their information miss little
    assert np.abs(thin.gain(query) - full.gain(query)).mean() < 0.2


def test_gain_says_what_is_wrong() -> None:
    for wrong in ({"noise": 0.0}, {"lengthscale": -1.0}, {"max_points": 0}, {"noise": float("nan")}):
        with pytest.raises(RecipeError, match=f"{next(iter(wrong))}: expected above 0"):
            InformationGain(points(5, 2), **wrong)
    with pytest.raises(DataError, match="group near-duplicates"):
        InformationGain(np.ones((5, 2)))


def test_intrinsic_dimension_closed_form_and_known_manifolds() -> None:
    # 1 / d = mean of log(T_k / T_j): distances 1, 2, 4 give (log 4 + log 2) / 2
    assert intrinsic_dimension([[1.0, 2.0, 4.0]]) == pytest.approx(2 / np.log(8))
    rng = np.random.default_rng(0)
    for dimension in (1, 2, 4):
        flat = rng.uniform(size=(3000, dimension)) @ np.linalg.qr(rng.normal(size=(10, 10)))[0][:dimension]
        assert intrinsic_dimension(Neighbours(flat).within(10)) == pytest.approx(dimension, rel=0.12)
    with pytest.raises(DataError, match="at least 2 neighbours"):
        intrinsic_dimension([[1.0]])
    with pytest.raises(DataError, match="equally far"):
        intrinsic_dimension([[1.0, 1.0]])


def test_surprisal_is_the_difference_of_log_densities() -> None:
    rng = np.random.default_rng(0)
    surprisal = Surprisal(rng.normal(size=(20_000, 2)), rng.normal(size=(500, 2)), neighbours=50, dimension_neighbours=50)
    assert surprisal.dimension == pytest.approx(2, rel=0.05)
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    excess = surprisal.excess(x)
    # -log p of a standard normal differs by |x|^2 / 2
    np.testing.assert_allclose(excess - excess[0], [0, 0.5, 2], atol=0.35)
    # the median of |x|^2 / 2 is log 2
    assert excess[0] == pytest.approx(-np.log(2), abs=0.3)


def test_surprisal_is_finite_for_copies_centred_and_checked() -> None:
    reference, calibration = points(60, 3), points(31, 3, 1)
    surprisal = Surprisal(reference, calibration, groups=np.arange(60) // 3)
    assert np.median(surprisal.excess(calibration)) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(Surprisal(reference, calibration, neighbours=1).excess(reference)).all()
    assert Surprisal(points(4, 1), calibration[:, :1]).dimension <= 1
    with pytest.raises(DataError, match="at least one calibration image"):
        Surprisal(reference, calibration[:0])
    with pytest.raises(RecipeError, match="dimension_neighbours: expected at least 2"):
        Surprisal(reference, calibration, dimension_neighbours=1)


@pytest.mark.parametrize("score", [vendi_score, rke])
def test_effective_numbers_count_equal_clusters(score: object) -> None:
    assert score(np.eye(7)) == pytest.approx(7)
    assert score(np.ones((7, 7))) == pytest.approx(1)
    blocks = np.kron(np.eye(3), np.ones((4, 4)))
    assert score(blocks) == pytest.approx(3)


@given(rho=st.floats(0, 0.99))
@settings(max_examples=25, deadline=None)
def test_effective_numbers_of_two_items(rho: float) -> None:
    kernel = np.array([[1, rho], [rho, 1]])
    a, b = (1 + rho) / 2, (1 - rho) / 2
    assert vendi_score(kernel) == pytest.approx(np.exp(-(a * np.log(a) + b * np.log(b))), rel=1e-6)
    assert rke(kernel) == pytest.approx(1 / (a**2 + b**2), rel=1e-9)
    assert rke(kernel) <= vendi_score(kernel) + 1e-9


@pytest.mark.parametrize("score", [vendi_score, rke])
@pytest.mark.parametrize("kernel", [np.zeros((0, 0)), np.ones((2, 3)), 2 * np.eye(2), np.array([[1, 0.5], [0.1, 1]])])
def test_effective_numbers_refuse_other_matrices(score: object, kernel: np.ndarray) -> None:
    with pytest.raises(DataError, match="kernel: expected"):
        score(kernel)


def test_vendi_refuses_indefinite_kernels() -> None:
    with pytest.raises(DataError, match="positive semi-definite"):
        vendi_score(np.array([[1, 2.0], [2.0, 1]]))
