"""Hierarchical data with exact scores: held against enumeration of all trees, closed forms and statistics that must come out."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from monai_diverse.audit.hierarchy import (
    ExactDenoiser,
    Grammar,
    NoisyLeaves,
    divergence,
    levels_learned,
    loss_by_index,
    most_probable_ancestors,
    nearest_difference,
    neighbour_bias,
    oracle_loss,
    pair_distance,
    propagate,
    published_schedule,
    sample_leaves,
    split_loss,
    u_turn,
)
from monai_diverse.audit.hierarchy.propagation import MISREAD
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import NoiseSchedule

SCHEDULE = published_schedule()
SMALL = Grammar(depth=2, alphabet=4, allowed=2, seed=5)
CASES = [(alphabet, allowed, seed) for alphabet, allowed in ((2, 1), (2, 2), (3, 2), (4, 4), (6, 4)) for seed in (0, 1)]
INDICES = (0, 20, 90, 200, 499)


def draw(grammar: Grammar, leaves: torch.Tensor, index: int | torch.Tensor, seed: int = 0) -> NoisyLeaves:
    at = torch.full((len(leaves),), index) if isinstance(index, int) else index
    return NoisyLeaves.draw(grammar, SCHEDULE, leaves, at, torch.Generator().manual_seed(seed))


def joint(grammar: Grammar) -> np.ndarray:
    """P(root, left, right, four leaves) of every tree of depth 2."""
    m, root = grammar.transitions.numpy(), np.full(grammar.alphabet, 1 / grammar.alphabet)
    return np.einsum("a,abc,bde,cfg->abcdefg", root, m, m, m)


def likelihood(noisy: torch.Tensor, index: int) -> np.ndarray:
    """N(x; sqrt(abar) e_s, 1 - abar) of each leaf and symbol, up to a factor for each leaf; float64 (leaves, q)."""
    x, abar = noisy.double().numpy(), float(SCHEDULE.alphas_cumprod[index])
    distance = ((x[:, None, :] - np.sqrt(abar) * np.eye(x.shape[1])) ** 2).sum(-1)
    return np.exp(-(distance - distance.min(1, keepdims=True)) / (2 * (1 - abar)))


def marginals(weights: np.ndarray) -> list[np.ndarray]:
    """Distribution of each axis."""
    found = [weights.sum(tuple(other for other in range(weights.ndim) if other != axis)) for axis in range(weights.ndim)]
    return [m / m.sum() for m in found]


@pytest.mark.parametrize(("alphabet", "allowed", "seed"), CASES)
def test_belief_propagation_is_enumeration_of_all_trees(alphabet: int, allowed: int, seed: int) -> None:
    grammar = Grammar(depth=2, alphabet=alphabet, allowed=allowed, seed=seed)
    trees = joint(grammar)
    for index in INDICES:
        noisy = draw(grammar, grammar.sample(3, seed), index, seed).noisy
        abar = SCHEDULE.at(torch.tensor(index)).double()
        beliefs = propagate(grammar, noisy.double() * abar.sqrt() / (1 - abar))
        exact = ExactDenoiser(grammar=grammar, schedule=SCHEDULE)(noisy.double(), torch.full((3,), index))
        for row in range(3):
            expected = marginals(np.einsum("abcdefg,d,e,f,g->abcdefg", trees, *likelihood(noisy[row], index)))
            found = [beliefs[2][row, 0], *beliefs[1][row], *beliefs[0][row]]
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one.numpy(), other, atol=1e-9)
            np.testing.assert_allclose(exact[row].numpy(), beliefs[0][row].numpy(), atol=1e-12)


@pytest.mark.parametrize(("alphabet", "allowed", "seed"), CASES)
def test_level_one_knows_pairs_and_level_zero_single_leaves(alphabet: int, allowed: int, seed: int) -> None:
    grammar = Grammar(depth=2, alphabet=alphabet, allowed=allowed, seed=seed)
    leaves_alone = joint(grammar).sum((0, 1, 2))
    for index in INDICES:
        bank = draw(grammar, grammar.sample(3, seed), index, seed)
        levels = [bank.predict(ExactDenoiser(grammar=grammar, schedule=SCHEDULE, level=k)).numpy() for k in (0, 1, 2)]
        np.testing.assert_array_equal(levels[2], bank.predict(ExactDenoiser(grammar=grammar, schedule=SCHEDULE)).numpy())
        for row in range(3):
            seen = likelihood(bank.noisy[row], index)
            for leaf in range(4):
                single = marginals(leaves_alone)[leaf] * seen[leaf]
                np.testing.assert_allclose(levels[0][row, leaf], single / single.sum(), atol=1e-6)
            for first in (0, 2):
                others = tuple(axis for axis in range(4) if axis not in (first, first + 1))
                pair = marginals(leaves_alone.sum(others) * np.outer(seen[first], seen[first + 1]))
                np.testing.assert_allclose(levels[1][row, first : first + 2], pair, atol=1e-6)


def test_deep_trees_and_absurd_evidence_stay_finite() -> None:
    grammar = Grammar(depth=8, seed=2)
    trees = grammar.sample_trees(4, 0)
    sharp = ExactDenoiser(grammar=grammar, schedule=SCHEDULE)
    nonsense = torch.randn(4, 256, 6, generator=torch.Generator().manual_seed(0))
    for x in (grammar.one_hot(trees[0]), nonsense):
        said = sharp(x, torch.zeros(4, dtype=torch.int64))
        assert bool(torch.isfinite(said).all())
        torch.testing.assert_close(said.sum(-1), torch.ones(4, 256))
    found = most_probable_ancestors(grammar, trees[0])
    assert all(torch.equal(one, other) for one, other in zip(found, trees, strict=True))


def test_beliefs_are_the_same_for_any_batch() -> None:
    grammar = Grammar(seed=1)
    bank = draw(grammar, grammar.sample(5, 0), 90)
    exact = ExactDenoiser(grammar=grammar, schedule=SCHEDULE)
    one_by_one = torch.cat([exact(bank.noisy[i : i + 1], bank.index[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(exact(bank.noisy, bank.index), one_by_one, atol=1e-7, rtol=0)
    mixed = exact(bank.noisy, torch.tensor([90, 10, 90, 300, 90]))
    torch.testing.assert_close(mixed[2], one_by_one[2], atol=1e-7, rtol=0)
    assert not torch.allclose(mixed[1], one_by_one[1])


def test_grammar_deals_every_pair_out_once() -> None:
    for alphabet, allowed, seed in CASES:
        m = Grammar(alphabet=alphabet, allowed=allowed, seed=seed).transitions
        assert bool(((m > 0).sum(0) <= 1).all())  # no pair has two parents
        assert ((m > 0).sum((1, 2)) == allowed).all()
        torch.testing.assert_close(m.sum((1, 2)), torch.ones(alphabet, dtype=torch.float64))
    logits = torch.cat([Grammar(seed=seed).log_probabilities.flatten(1) for seed in range(200)])
    centred = logits - logits.mean(1, keepdim=True)  # softmax forgets the mean: variance 1 - 1/4
    assert float(centred.square().mean()) == pytest.approx(0.75, rel=0.05)


def test_sampled_leaves_have_the_frequencies_of_the_grammar() -> None:
    leaves, exact = SMALL.sample(20_000, 3), joint(SMALL).sum((0, 1, 2)).ravel()
    counts = np.bincount(np.ravel_multi_index(leaves.numpy().T, (4,) * 4), minlength=256)
    assert counts[exact == 0].sum() == 0
    assert stats.chisquare(counts[exact > 0], exact[exact > 0] * 20_000).pvalue > 1e-3
    for height in range(3):
        found = torch.nn.functional.one_hot(SMALL.sample_trees(20_000, 3)[height], 4).double().mean(0)
        torch.testing.assert_close(found, SMALL.priors(height), atol=0.02, rtol=0)


def test_likelihood_and_validity_are_those_of_enumeration() -> None:
    everything = torch.cartesian_prod(*[torch.arange(4)] * 4)
    exact = torch.from_numpy(joint(SMALL).sum((0, 1, 2)).ravel())
    torch.testing.assert_close(SMALL.log_likelihood(everything).exp(), exact, atol=1e-12, rtol=0)
    assert torch.equal(SMALL.is_valid(everything), exact > 0)
    assert 0 < int((exact > 0).sum()) < 256


def test_ancestors_of_any_leaves_are_those_of_enumeration_with_misread_leaves() -> None:
    everything, trees, eye = torch.cartesian_prod(*[torch.arange(4)] * 4), joint(SMALL), np.eye(4)
    found, possible = most_probable_ancestors(SMALL, everything), SMALL.is_valid(everything)
    misread = eye * (1 - MISREAD) + (1 - eye) * MISREAD / 3
    clear = 0
    for row, leaves in enumerate(everything.tolist()):
        expected = marginals(np.einsum("abcdefg,d,e,f,g->abcdefg", trees, *(misread[leaf] for leaf in leaves)))[:3]
        said = [found[2][row, 0], *found[1][row]]
        for symbol, belief in zip(said, expected, strict=True):
            assert belief[int(symbol)] == pytest.approx(belief.max(), rel=1e-9)
        clear += min(belief.max() for belief in expected) > 0.999
    assert torch.equal(found[0], everything)  # leaves are what they are
    assert int(possible.sum()) <= clear < 256  # what the grammar makes has one tree


def test_memorised_part_is_zero_on_unseen_leaves_and_a_wrong_split_is_not() -> None:
    grammar, rows = Grammar(), 6000
    bank = draw(grammar, grammar.sample(rows, 0), torch.arange(rows) % 150)
    by_level = [bank.predict(ExactDenoiser(grammar=grammar, schedule=SCHEDULE, level=k)) for k in range(5)]
    others = {"level 2": by_level[2], "flat": by_level[4] * 0.5 + 0.5 / 6, "sharp": torch.softmax(2 * by_level[4].log().clamp(min=-80), -1)}
    for predicted in others.values():
        split = split_loss(predicted, by_level[4], bank.leaves)
        torch.testing.assert_close(split.learned + split.memorised, split.total)
        assert abs(float(split.memorised.mean())) < 4 * float(split.memorised.std()) / rows**0.5
        wrong = split_loss(predicted, by_level[1], bank.leaves).memorised  # the posterior of an observer who knows less
        assert abs(float(wrong.mean())) > 6 * float(wrong.std()) / rows**0.5


def test_memorised_part_is_below_zero_for_one_who_knows_the_leaves() -> None:
    grammar = Grammar()
    bank = draw(grammar, grammar.sample(500, 0), 120)
    exact = bank.predict(ExactDenoiser(grammar=grammar, schedule=SCHEDULE))
    knows = 0.9 * exact + 0.1 * grammar.one_hot(bank.leaves)
    split = split_loss(knows, exact, bank.leaves)
    assert float(split.memorised.mean()) < -10 * float(split.memorised.std()) / 500**0.5


def test_split_of_a_prediction_of_zero_is_finite() -> None:
    sure = torch.tensor([[[1.0, 0.0]]])
    split = split_loss(sure, torch.tensor([[[0.5, 0.5]]]), torch.tensor([[1]]))
    assert float(split.total) == pytest.approx(-np.log(torch.finfo(torch.float32).tiny))
    assert float(split.learned) == pytest.approx(float(split.total) / 2)


def test_no_denoiser_is_better_than_the_exact_one() -> None:
    grammar, indices = Grammar(), [50, 80, 110]  # where 1500 rows tell neighbouring levels apart by 5 standard errors and more
    leaves = grammar.sample(1500, 1)
    oracle = oracle_loss(grammar, SCHEDULE, leaves, indices, seed=0)
    by_level = [oracle_loss(grammar, SCHEDULE, leaves, indices, seed=0, level=k) for k in range(5)]
    assert by_level[4] == oracle
    assert all(by_level[k][i] > by_level[k + 1][i] for k in range(4) for i in range(3))  # each level of knowledge tells
    exact = ExactDenoiser(grammar=grammar, schedule=SCHEDULE)
    for temperature in (0.7, 1.4):
        tempered = loss_by_index(
            lambda x, index, t=temperature: torch.softmax(exact(x, index).clamp(min=1e-30).log() / t, -1), grammar, SCHEDULE, leaves, indices, seed=0
        )
        assert all(worse > best for worse, best in zip(tempered, oracle, strict=True))
    posterior = draw(grammar, leaves, 80).predict(exact).double()
    entropy = -torch.special.xlogy(posterior, posterior).sum(-1).mean()
    assert oracle[1] == pytest.approx(float(entropy), rel=0.03)  # the oracle's loss is the entropy that is left
    assert oracle_loss(grammar, SCHEDULE, leaves, [0], seed=0)[0] < 1e-6
    alone = -torch.special.xlogy(grammar.priors(0), grammar.priors(0)).sum(-1).mean()
    assert oracle_loss(grammar, SCHEDULE, leaves, [499], seed=0)[0] == pytest.approx(float(alone), rel=0.02)


def test_levels_learned_tell_who_knows_what() -> None:
    grammar, rows = Grammar(), 3000
    bank = draw(grammar, grammar.sample(rows, 2), torch.arange(rows) % 60 + 50)
    by_level = [bank.predict(ExactDenoiser(grammar=grammar, schedule=SCHEDULE, level=k)) for k in range(5)]
    for knows, predicted in enumerate(by_level):
        for one in levels_learned(predicted, by_level):
            half = (one.ci95[1] - one.ci95[0]) / 2
            assert one.share == pytest.approx(float(one.level <= knows), abs=max(1.6 * half, 1e-6))  # three standard errors
            assert half < 0.2
    half_way = [one.share for one in levels_learned((by_level[2] + by_level[1]) / 2, by_level)]
    assert half_way[1] == pytest.approx(0.5)
    noise = torch.randn(by_level[4].shape, generator=torch.Generator().manual_seed(9)) * 0.1
    disturbed = [one.share for one in levels_learned(by_level[2] + noise, by_level)]
    assert disturbed[1] == pytest.approx(1, abs=0.03)


def test_interval_of_a_level_covers_as_often_as_it_says() -> None:
    grammar, covered = Grammar(depth=2), 0
    for seed in range(100):
        bank = draw(grammar, grammar.sample(200, seed), 60, seed)
        by_level = [bank.predict(ExactDenoiser(grammar=grammar, schedule=SCHEDULE, level=k)) for k in range(3)]
        low, high = levels_learned(by_level[0], by_level)[1].ci95  # truth: 0
        covered += low <= 0 <= high
    assert 88 <= covered <= 99


def test_divergence_is_what_the_learned_part_has_in_excess() -> None:
    grammar = Grammar()
    bank = draw(grammar, grammar.sample(50, 0), 90)
    exact, guess = (bank.predict(ExactDenoiser(grammar=grammar, schedule=SCHEDULE, level=k)) for k in (4, 1))
    excess = split_loss(guess, exact, bank.leaves).learned - split_loss(exact, exact, bank.leaves).learned
    torch.testing.assert_close(divergence(exact, guess), excess, atol=1e-6, rtol=1e-5)
    expected = stats.entropy(exact.double().numpy(), guess.double().numpy(), axis=-1).mean(-1)
    np.testing.assert_allclose(divergence(exact, guess).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert float(divergence(exact, exact).abs().max()) < 1e-12


def test_the_exact_denoiser_draws_the_grammar() -> None:
    rows = 1500
    exact = ExactDenoiser(grammar=SMALL, schedule=SCHEDULE)
    drawn = sample_leaves(exact, SMALL, SCHEDULE, range(rows), steps=125)
    assert float(SMALL.is_valid(drawn).double().mean()) > 0.995
    expected = joint(SMALL).sum((0, 1, 2)).ravel()
    found = np.bincount(np.ravel_multi_index(drawn.numpy().T, (4,) * 4), minlength=256) / rows
    likely = expected > 5 / rows
    assert stats.chisquare(*(np.append(f[likely], f[~likely].sum() + 1e-9) * rows for f in (found, expected / expected.sum()))).pvalue > 1e-3
    alone = sample_leaves(ExactDenoiser(grammar=SMALL, schedule=SCHEDULE, level=0), SMALL, SCHEDULE, range(300), steps=50)
    assert float(SMALL.is_valid(alone).double().mean()) < 0.7  # one who knows single leaves only does not


def test_samples_depend_on_their_own_seed_alone() -> None:
    grammar = Grammar(depth=2, seed=1)
    exact = ExactDenoiser(grammar=grammar, schedule=SCHEDULE)
    together = sample_leaves(exact, grammar, SCHEDULE, [5, 6, 7], steps=50)
    assert torch.equal(together, sample_leaves(exact, grammar, SCHEDULE, [5, 6, 7], steps=50))
    assert torch.equal(together[1:2], sample_leaves(exact, grammar, SCHEDULE, [6], steps=50))
    assert not torch.equal(together, sample_leaves(exact, grammar, SCHEDULE, [8, 9, 10], steps=50))
    assert sample_leaves(exact, grammar, SCHEDULE, [], steps=50).shape == (0, 4)


def test_u_turn_falls_from_one_to_chance() -> None:
    grammar, schedule, rows = Grammar(depth=3), NoiseSchedule.from_betas(torch.linspace(1e-3, 0.2, 100)), 250
    exact, leaves = ExactDenoiser(grammar=grammar, schedule=schedule), grammar.sample(rows, 0)
    turns = [u_turn(exact, grammar, schedule, leaves, index, seed=0) for index in (0, 10, 20, 99)]
    assert turns[0].overlap == [1.0] * 4
    for height in range(4):
        falling = [turn.overlap[height] for turn in turns]
        assert falling == sorted(falling, reverse=True)
        spread = 4 * (0.25 / rows) ** 0.5  # the nodes of a row depend on one another: rows count
        assert turns[3].overlap[height] == pytest.approx(turns[3].chance[height], abs=spread)
    assert turns[2].overlap[3] < turns[2].overlap[0]  # the root is lost before the leaves
    assert turns[1].overlap[3] > turns[1].chance[3] + 0.3
    for turn in turns[1:3]:  # who draws from the posterior agrees with the truth as often as with another such draw: sum of squared probabilities
        noisy = NoisyLeaves.draw(grammar, schedule, grammar.sample(2000, 1), torch.full((2000,), turn.index), torch.Generator().manual_seed(0)).noisy
        abar = float(schedule.alphas_cumprod[turn.index])
        posteriors = propagate(grammar, noisy * abar**0.5 / (1 - abar))
        assert turn.overlap[0] == pytest.approx(float(posteriors[0].square().sum(-1).mean()), abs=0.045)
        assert turn.overlap[3] == pytest.approx(float(posteriors[3].square().sum(-1).mean()), abs=spread)
    again = [u_turn(exact, grammar, schedule, leaves[:20], 10, seed=0).leaves for _ in range(2)]
    assert torch.equal(*again)


def test_chance_is_that_of_independent_draws() -> None:
    grammar = Grammar(seed=4)
    first, second = grammar.sample_trees(20_000, 0), grammar.sample_trees(20_000, 1)
    for height in range(5):
        assert float((first[height] == second[height]).double().mean()) == pytest.approx(grammar.chance(height), abs=0.012)
    assert grammar.chance(4) == pytest.approx(1 / 6)


def test_nearest_rows_are_those_of_brute_force() -> None:
    grammar = Grammar(depth=3)
    samples, rows = grammar.sample(1100, 1), grammar.sample(40, 2)  # more than one chunk
    expected = (samples[:, None] != rows[None]).double().mean(-1).min(1).values
    torch.testing.assert_close(nearest_difference(grammar, samples, rows), expected)
    other = grammar.sample(40, 3)
    far = (samples[:, None] != other[None]).double().mean(-1).min(1).values
    bias = neighbour_bias(grammar, samples, rows, other)
    assert bias.own == pytest.approx(float(expected.mean()))
    assert bias.ratio == pytest.approx(float(expected.mean() / far.mean()))
    assert bias.own_nearer == pytest.approx(float(((expected < far) + 0.5 * (expected == far)).double().mean()))
    assert bias.copies == pytest.approx(float((expected == 0).double().mean()))


def test_neighbour_bias_sees_copies_and_nothing_where_there_is_nothing() -> None:
    grammar = Grammar()
    own, other, fresh = grammar.sample(1500, 0).split([500, 500, 500])
    fair = neighbour_bias(grammar, fresh, own, other)
    assert fair.own_nearer == pytest.approx(0.5, abs=4 * (0.25 / 500) ** 0.5)
    leaky = neighbour_bias(grammar, torch.cat([fresh[:400], own[:100]]), own, other)
    assert leaky.own_nearer > fair.own_nearer + 0.05
    assert leaky.copies == pytest.approx(0.2, abs=0.01)
    assert leaky.ratio is not None
    assert fair.ratio is not None
    assert leaky.ratio < fair.ratio - 0.1
    assert neighbour_bias(grammar, own, own, own).ratio is None


def test_pairs_from_shared_noise_differ_less_than_independent_ones() -> None:
    grammar = Grammar(depth=2, seed=1)
    exact, half = ExactDenoiser(grammar=grammar, schedule=SCHEDULE), ExactDenoiser(grammar=grammar, schedule=SCHEDULE, level=1)
    first = sample_leaves(exact, grammar, SCHEDULE, range(200), steps=50)
    assert pair_distance(first, sample_leaves(exact, grammar, SCHEDULE, range(200), steps=50)) == 0
    shared = pair_distance(first, sample_leaves(half, grammar, SCHEDULE, range(200), steps=50))
    apart = pair_distance(first, sample_leaves(half, grammar, SCHEDULE, range(200, 400), steps=50))
    assert 0 < shared < apart - 0.2
    one_hot = [torch.nn.functional.normalize(grammar.one_hot(leaves).flatten(1), dim=1) for leaves in (first, first.flip(0))]
    assert pair_distance(first, first.flip(0)) == pytest.approx(1 - float((one_hot[0] * one_hot[1]).sum(1).mean()), abs=1e-6)


def test_seeds_decide_and_global_random_state_is_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert torch.equal(Grammar(seed=3).sample(50, 7), Grammar(seed=3).sample(50, 7))
    assert not torch.equal(Grammar(seed=3).sample(50, 7), Grammar(seed=3).sample(50, 8))
    assert not torch.equal(Grammar(seed=3).transitions, Grammar(seed=4).transitions)
    grammar = Grammar(depth=2)
    exact, leaves = ExactDenoiser(grammar=grammar, schedule=SCHEDULE), grammar.sample(5, 0)
    assert oracle_loss(grammar, SCHEDULE, leaves, [60], seed=1) == oracle_loss(grammar, SCHEDULE, leaves, [60], seed=1)
    assert oracle_loss(grammar, SCHEDULE, leaves, [60], seed=1) != oracle_loss(grammar, SCHEDULE, leaves, [60], seed=2)
    u_turn(exact, grammar, SCHEDULE, leaves, 20, seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_published_noise() -> None:
    betas = np.linspace(2e-4, 0.04, 500)
    np.testing.assert_allclose(SCHEDULE.alphas_cumprod.numpy(), np.cumprod(1 - betas), rtol=1e-4)


def test_benchmark_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    run, twin = (importlib.import_module(name) for name in ("hierarchy_run", "hierarchy_twin"))
    settings = twin.Settings(
        depth=2, per_twin=40, test=50, steps=12, first=3, checkpoints=3, batch=8, width=8, blocks=1, samples=8, sampling_steps=4, turn=9, turns=6
    )
    state = torch.get_rng_state()
    whole = run.run(tmp_path / "whole", settings)
    assert torch.equal(state, torch.get_rng_state())
    steps = run.run_steps(tmp_path / "parts", settings)
    assert next(steps)[0] == 3
    steps.close()
    parts = run.run(tmp_path / "parts", settings)
    assert {**whole, "cpu_seconds": 0} == {**parts, "cpu_seconds": 0}
    assert [row["step"] for row in whole["checkpoints"]] == [3, 6, 12]
    assert len({row["test"]["loss"]["mean"] for row in whole["checkpoints"]}) == 3
    json.dumps(whole, allow_nan=False)
    with pytest.raises(RecipeError, match="expected a run with the same settings"):
        run.run(tmp_path / "parts", replace(settings, seed=1))


GRAMMAR = Grammar(depth=2)
LEAVES = GRAMMAR.sample(3, 0)
EXACT = ExactDenoiser(grammar=GRAMMAR, schedule=SCHEDULE)
EVEN = torch.full((2, 4, 6), 1 / 6)


@pytest.mark.parametrize(
    ("error", "message", "act"),
    [
        (RecipeError, "depth: expected a whole number in 1..12, got 0", lambda: Grammar(depth=0)),
        (RecipeError, "depth: expected a whole number in 1..12, got 2.0", lambda: Grammar(depth=2.0)),
        (RecipeError, "alphabet: expected a whole number of at least 2, got 1", lambda: Grammar(alphabet=1, allowed=1)),
        (RecipeError, "allowed: expected a whole number in 1..6, got 7", lambda: Grammar(allowed=7)),
        (RecipeError, "seed: expected a whole number of at least 0, got -1", lambda: Grammar(seed=-1)),
        (RecipeError, "seed: expected a whole number of at least 0, got True", lambda: Grammar(seed=True)),
        (RecipeError, "count: expected at least 0, got -1", lambda: GRAMMAR.sample(-1, 0)),
        (RecipeError, "seed: expected at least 0, got -2", lambda: GRAMMAR.sample(1, -2)),
        (RecipeError, "seed: expected at least 0, got -3", lambda: oracle_loss(GRAMMAR, SCHEDULE, LEAVES, [1], seed=-3)),
        (RecipeError, "seed: expected at least 0, got -4", lambda: u_turn(EXACT, GRAMMAR, SCHEDULE, LEAVES, 1, seed=-4)),
        (RecipeError, "height: expected a height in 0..2, leaves to root, got 3", lambda: GRAMMAR.priors(3)),
        (RecipeError, "level: expected a height in 0..2, leaves to root, got 3", lambda: ExactDenoiser(grammar=GRAMMAR, schedule=SCHEDULE, level=3)),
        (RecipeError, "steps: expected at least 2, got 1", lambda: published_schedule(1)),
        (RecipeError, "steps: expected 1..500, got 501", lambda: sample_leaves(EXACT, GRAMMAR, SCHEDULE, [0], steps=501)),
        (RecipeError, "index: expected 0..499, got 500..500", lambda: u_turn(EXACT, GRAMMAR, SCHEDULE, LEAVES, 500, seed=0)),
        (RecipeError, "index: expected 0..499, got -1..-1", lambda: oracle_loss(GRAMMAR, SCHEDULE, LEAVES, [-1], seed=0)),
        (DataError, "leaves: expected int64 (n, 4), got float32 (3, 4)", lambda: GRAMMAR.is_valid(LEAVES.float())),
        (DataError, "leaves: expected int64 (n, 4), got int64 (3, 3)", lambda: GRAMMAR.is_valid(LEAVES[:, :3])),
        (
            DataError,
            "leaves: expected symbols 0..5, got 6..11",
            lambda: GRAMMAR.one_hot(torch.arange(4).remainder(6)[None] + torch.tensor([6, 6, 9, 8])),
        ),
        (DataError, "leaves: expected at least one row, got none", lambda: oracle_loss(GRAMMAR, SCHEDULE, LEAVES[:0], [1], seed=0)),
        (DataError, "leaves: expected at least one row, got none", lambda: u_turn(EXACT, GRAMMAR, SCHEDULE, LEAVES[:0], 1, seed=0)),
        (
            DataError,
            "index: expected one for each of 3 rows of leaves, got shape (2,)",
            lambda: draw(GRAMMAR, LEAVES, torch.zeros(2, dtype=torch.int64)),
        ),
        (DataError, "evidence: expected finite (n, 4, 6), got (1, 4, 5)", lambda: propagate(GRAMMAR, torch.zeros(1, 4, 5))),
        (DataError, "evidence: expected finite (n, 4, 6), got (1, 4, 6)", lambda: propagate(GRAMMAR, torch.full((1, 4, 6), torch.nan))),
        (DataError, "split: expected probabilities (n, leaves, q)", lambda: split_loss(torch.ones(1, 4, 6), torch.ones(1, 4, 5), LEAVES[:1])),
        (
            DataError,
            "levels: expected two or more of the prediction's shape, (2, 4, 6)",
            lambda: levels_learned(EVEN, [EVEN]),
        ),
        (DataError, "rows: expected at least one row of leaves, got none", lambda: nearest_difference(GRAMMAR, LEAVES, LEAVES[:0])),
        (DataError, "other: expected 3 rows, as many as the training set, got 2", lambda: neighbour_bias(GRAMMAR, LEAVES, LEAVES, LEAVES[:2])),
        (DataError, "samples: expected at least one row of leaves, got none", lambda: neighbour_bias(GRAMMAR, LEAVES[:0], LEAVES, LEAVES)),
        (DataError, "pairs: expected samples of two models from the same noises", lambda: pair_distance(LEAVES, LEAVES[:2])),
    ],
)
def test_mistakes_are_told_in_one_line(error: type[Exception], message: str, act) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        act()
    assert "\n" not in str(caught.value)
