"""Each guide alone against a plain reference, several together, and the passes that they ask for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import EfficientNetLite0, ModuleFeatures, PixelFeatures
from monai_diverse.sampling import (
    BoostAndSkip,
    Choice,
    Churn,
    EarlyChoice,
    Guide,
    NoiseSchedule,
    Particle,
    Passes,
    Polish,
    Semantic,
    Shield,
    Start,
    Together,
    build_scheduler,
)
from monai_diverse.sampling.loop import initial_noise, noise_levels
from monai_diverse.sampling.passes import POLISHING
from monai_diverse.sources import BuiltinSource

NOISE = NoiseSchedule.from_diffusers({"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"})
MEAN, STD = 0.4, 0.5
EMPTY = torch.empty(0)
DATA = (EMPTY, EMPTY, EMPTY, EMPTY)
RESTARTED = {"DDIMScheduler": 1e-5, "EulerDiscreteScheduler": 1e-4, "HeunDiscreteScheduler": 1e-4, "DPMSolverMultistepScheduler": 0.1}


@dataclass
class _Exact:
    """E[x0 | x] for pixels N(MEAN, STD^2); keeps what it was asked."""

    seen: list[tuple[Tensor, float]] = field(default_factory=list)

    def __call__(self, x: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        abar = NOISE.at(index).reshape(-1, *[1] * (x.ndim - 1))
        self.seen.append((x, float(NOISE.noise_ratio(index[0]))))
        return MEAN + STD**2 * abar.sqrt() * (x - abar.sqrt() * MEAN) / (STD**2 * abar + 1 - abar)

    @property
    def nfe(self) -> int:
        return sum(len(x) for x, _ in self.seen)


def _passes(steps: int = 10, scheduler: str = "DDIMScheduler", shape: tuple[int, ...] = (1, 6, 6)) -> tuple[Passes, _Exact]:
    exact = _Exact()
    karras = "Heun" in scheduler
    made = Passes(
        denoise=exact,
        scheduler=lambda top=None: build_scheduler(scheduler, NOISE, karras=karras, sigma_max=top),
        schedule=NOISE,
        shape=shape,
        steps=steps,
        device="cpu",
    )
    return made, exact


def _draw(guide: Guide | None, seeds: Sequence[int] = range(4), **more: object) -> Tensor:
    return _passes(**more)[0].draw(torch.zeros(len(seeds)).long(), list(seeds), guide)


def _images(count: int = 30, seed: int = 0, shape: tuple[int, ...] = (1, 8, 8)) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)), torch.arange(count) % 2


# starts


def test_boost_and_skip_starts_later_from_stronger_noise() -> None:
    passes, exact = _passes(steps=20)
    passes.draw(torch.zeros(64).long(), range(64), BoostAndSkip(gain=1.5, sigma=5.0).fit(*DATA))
    x, sigma = exact.seen[0]
    levels = [float(NOISE.noise_ratio(t)) for t in torch.arange(999, 0, -50)]
    assert sigma == pytest.approx(max(level for level in levels if level <= 5.0))
    torch.testing.assert_close(x, 1.5 * sigma / (1 + sigma**2) ** 0.5 * initial_noise(range(64), (1, 6, 6)), atol=1e-5, rtol=1e-4)
    assert len(exact.seen) == sum(level <= 5.0 for level in levels) < 20


def test_boosted_images_spread_more() -> None:
    plain, boosted = (float(_draw(BoostAndSkip(gain=gain, sigma=5.0).fit(*DATA), range(64), steps=20).std()) for gain in (1.0, 1.4))
    assert boosted > 1.2 * plain


@pytest.mark.parametrize("scheduler", RESTARTED)
def test_images_from_a_little_noise_are_near_where_they_started(scheduler: str) -> None:
    passes, exact = _passes(steps=50, scheduler=scheduler)
    clean = MEAN + STD * torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(9))
    labels, seeds = torch.zeros(64).long(), list(range(64))
    near, far = (passes.run(labels, seeds, start=Start(images=clean, sigma=sigma)) for sigma in (0.1, 20.0))
    assert float((near - clean).square().mean().sqrt()) < 0.15
    assert abs(float(np.corrcoef(far.flatten(), clean.flatten())[0, 1])) < 0.1
    for drawn in (near, far):
        assert float(drawn.std()) == pytest.approx(STD, abs=0.05)
    assert len(exact.seen) < 2 * (99 if "Heun" in scheduler else 50)


def test_a_start_below_the_last_step_is_refused() -> None:
    with pytest.raises(RecipeError, match="start: expected a noise-to-signal ratio of at least"):
        _passes(steps=4)[0].run(torch.zeros(1).long(), [0], start=Start(images=torch.zeros(1, 1, 6, 6), sigma=0.01))


@pytest.mark.parametrize("settings", [{"gain": 0.0}, {"gain": float("inf")}, {"sigma": 0.0}, {"gain": float("nan")}])
def test_boost_and_skip_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="boost and skip"):
        BoostAndSkip(**settings)


class _Some(Guide):
    """Starts images of odd seeds from zeros."""

    def start(self, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Start]:
        mask = torch.tensor([seed % 2 == 1 for seed in seeds])
        return mask, Start(images=torch.zeros(int(mask.sum()), 1, 6, 6), sigma=0.5)


def test_only_the_images_of_the_mask_start_elsewhere() -> None:
    passes, exact = _passes()
    drawn = passes.draw(torch.zeros(5).long(), [0, 1, 2, 3, 4], _Some())
    steps = len(exact.seen)
    torch.testing.assert_close(drawn[::2], _draw(None, [0, 2, 4]))
    torch.testing.assert_close(drawn[1::2], passes.run(torch.zeros(2).long(), [1, 3], start=Start(images=torch.zeros(2, 1, 6, 6), sigma=0.5)))
    assert sum(len(x) for x, _ in exact.seen[:steps]) == 3 * 10 + 2 * sum(sigma <= 0.5 for _, sigma in exact.seen[:10])


# noise


def test_churn_acts_in_its_interval() -> None:
    churn = Churn(share=0.4, sigma_min=0.1, sigma_max=2.0).fit(*DATA)
    assert [churn.refresh(sigma) for sigma in (0.05, 0.1, 1.0, 2.0, 3.0)] == [0.0, 0.4, 0.4, 0.4, 0.0]


def test_no_churn_changes_nothing() -> None:
    assert torch.equal(_draw(Churn(share=0.0).fit(*DATA)), _draw(None))
    assert torch.equal(_draw(Churn(sigma_min=1e5, sigma_max=1e6).fit(*DATA)), _draw(None))


@pytest.mark.parametrize("scheduler", RESTARTED)
def test_churned_images_have_the_right_distribution(scheduler: str) -> None:
    drawn = _draw(Churn(share=0.3).fit(*DATA), range(64), steps=50, scheduler=scheduler, shape=(1, 8, 8))
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(drawn.std()) == pytest.approx(STD, abs=0.03)
    assert not torch.allclose(drawn, _draw(None, range(64), steps=50, scheduler=scheduler, shape=(1, 8, 8)), atol=0.05)


def test_all_noise_drawn_anew_is_ddim_with_that_noise() -> None:
    """After the step, x is sqrt(abar) x0 + sqrt(1 - abar) fresh: nothing of the old noise is left."""
    passes, exact = _passes(steps=5)
    passes.draw(torch.zeros(256).long(), range(256), Churn(share=1.0, sigma_min=0.0, sigma_max=1e9).fit(*DATA))
    for (before, sigma), (after, next_sigma) in zip(exact.seen, exact.seen[1:], strict=False):
        a, s = 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5
        x0 = MEAN + STD**2 * a * (before - a * MEAN) / (STD**2 * a**2 + s**2)
        old, fresh = (before - a * x0) / s, (after - x0 / (1 + next_sigma**2) ** 0.5) * (1 + next_sigma**2) ** 0.5 / next_sigma
        assert abs(float(np.corrcoef(old.flatten(), fresh.flatten())[0, 1])) < 0.05
        assert float(fresh.std()) == pytest.approx(1, abs=0.03)


def test_polish_noises_finished_images_and_denoises_them_once_more() -> None:
    passes, exact = _passes(steps=20)
    labels, seeds = torch.zeros(3).long(), [5, 6, 7]
    polished = passes.draw(labels, seeds, Polish(sigma=0.5).fit(*DATA))
    finished = _draw(None, seeds, steps=20)
    x, sigma = exact.seen[20]
    assert sigma <= 0.5
    noise = (x * (1 + sigma**2) ** 0.5 - finished) / sigma
    torch.testing.assert_close(noise, initial_noise(seeds, (1, 6, 6), POLISHING), atol=1e-3, rtol=1e-3)
    first = initial_noise(seeds, (1, 6, 6))
    assert abs(float(np.corrcoef(noise.flatten(), first.flatten())[0, 1])) < 0.3
    assert len(exact.seen) == 20 + sum(level <= 0.5 for _, level in exact.seen[:20])
    assert 0.01 < float((polished - finished).square().mean().sqrt()) < 0.5


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Churn(share=1.1), "share of 0 to 1"),
        (lambda: Churn(share=-0.1), "share of 0 to 1"),
        (lambda: Churn(sigma_min=2.0, sigma_max=2.0), "sigma_min < sigma_max"),
        (lambda: Polish(sigma=0.0), "sigma above 0"),
        (lambda: Polish(sigma=float("inf")), "sigma above 0"),
        (lambda: Particle(strength=-1.0), "strength and sigma_min from 0"),
        (lambda: Particle(sigma_min=-1.0), "strength and sigma_min from 0"),
        (lambda: EarlyChoice(candidates=0), "candidates from 1"),
        (lambda: EarlyChoice(sigma=0.0), "sigma above 0"),
        (lambda: EarlyChoice(components=0), "components and neighbours"),
        (lambda: EarlyChoice(neighbours=()), "components and neighbours"),
        (lambda: Semantic(strength=-1.0), "strength, scale and distinct"),
        (lambda: Semantic(pool=0), "components and pool"),
        (lambda: Semantic(sigma_min=3.0), "below sigma_max"),
        (lambda: Semantic(extractor=_Opaque()), "`differentiable` method"),
    ],
)
def test_settings_out_of_range_are_refused(made: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        made()


# particles


def _particle_reference(x0: Tensor, labels: Tensor, sigma: float, strength: float) -> Tensor:
    moved = x0.double().clone()
    for i in range(len(x0)):
        others = [x0[i].double() - x0[j].double() for j in range(len(x0)) if j != i and labels[j] == labels[i]]
        if not others:
            continue
        median = sorted(float(d.norm()) for d in others)[(len(others) - 1) // 2]
        h = median**2 / np.log(max(len(others), 2))
        push = sum(2 * np.exp(-(float(d.norm()) ** 2) / h) * d / h for d in others)
        push = strength * sigma * sigma / np.sqrt(1 + sigma**2) * push
        moved[i] += push * min(1.0, median / float(push.norm()))
    return moved


@pytest.mark.parametrize(("count", "shape"), [(9, (1, 8, 8)), (4, (2, 3, 4, 5)), (3, (1, 8, 8)), (2, (1, 4, 4))])
@pytest.mark.parametrize(("sigma", "strength"), [(1.0, 0.5), (2.0, 1.0), (50.0, 2.0)])
def test_particles_repel_by_the_papers_sum(count: int, shape: tuple[int, ...], sigma: float, strength: float) -> None:
    x0, labels = _images(count, 1, shape)
    moved = Particle(strength=strength).fit(*DATA)(x0, labels, sigma)
    assert moved.dtype == x0.dtype
    torch.testing.assert_close(moved.double(), _particle_reference(x0, labels, sigma, strength), atol=1e-4, rtol=1e-4)


def test_distances_in_a_batch_grow() -> None:
    x0, _ = _images(8, 2)
    labels = torch.zeros(8).long()
    before, after = (torch.pdist(x.flatten(1)) for x in (x0, Particle(strength=1.0).fit(*DATA)(x0, labels, 2.0)))
    assert float((after - before).min()) > 0


def test_drawn_batches_are_more_spread_out() -> None:
    plain, repelled = (torch.pdist(_draw(guide, range(8), steps=20).flatten(1)).mean() for guide in (None, Particle(strength=3.0).fit(*DATA)))
    assert float(repelled) > 1.05 * float(plain)


def test_particles_that_have_nobody_or_are_told_not_to_stay() -> None:
    x0, labels = _images(2, 3)
    for guide, sigma in ((Particle(strength=0.0), 5.0), (Particle(sigma_min=1.0), 0.9), (Particle(), 5.0)):
        assert torch.equal(guide.fit(*DATA)(x0, labels, sigma), x0)
    alike = x0[:1].repeat(3, 1, 1, 1)
    assert torch.equal(Particle().fit(*DATA)(alike, torch.zeros(3).long(), 5.0), alike)


# early choice


class _Mean:
    """Two features: mean and spread of an image."""

    name, fingerprint = "mean", "0"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1)
        return np.stack([flat.mean(1), flat.std(1)], 1).astype(np.float32)


class _Opaque(_Mean):
    """Has no gradient."""


def _choice(**more: object) -> tuple[EarlyChoice, Tensor, Tensor]:
    train, labels = _images(40, 4, (1, 6, 6))
    return EarlyChoice(**{"extractor": PixelFeatures(standardise=False), "components": 10} | more), train * STD + MEAN, labels


def test_the_score_is_the_novelty_gates() -> None:
    settings, train, labels = _choice()
    guide = settings.fit(train, labels, train, labels)
    asked, of = _images(6, 5, (1, 6, 6))
    z, f = guide.space.train.astype(np.float64), guide.space(asked).astype(np.float64)
    for i, score in enumerate(guide.score(asked, of)):
        mates = z[(labels == of[i]).numpy()]
        excess = []
        for k in (1, 5):
            typical = np.median([np.sort(np.linalg.norm(mates - m, axis=1))[k] for m in mates])
            excess.append(np.log(np.sort(np.linalg.norm(mates - f[i], axis=1))[k - 1] / typical))
        assert float(score) == pytest.approx(min(excess), abs=1e-4)


def test_copies_score_low_and_strangers_high() -> None:
    settings, train, labels = _choice()
    guide = settings.fit(train, labels, train, labels)
    scores = guide.score(torch.stack([train[0] + 1e-4, train[0] + 3 * train.std() * _images(1, 6, (1, 6, 6))[0][0]]), labels[[0, 0]])
    assert float(scores[0]) < -3 < 0 < float(scores[1])


def test_a_class_with_few_training_images_is_compared_with_all() -> None:
    settings, train, labels = _choice()
    labels = labels.clone()
    labels[0] = 7
    guide = settings.fit(train, labels, train, labels)
    asked, _ = _images(3, 6, (1, 6, 6))
    of_all = settings.fit(train, torch.zeros(40).long(), train, labels).score(asked, torch.zeros(3).long())
    for unknown in (7, 9):
        torch.testing.assert_close(guide.score(asked, torch.full((3,), unknown)), of_all)
    with pytest.raises(DataError, match="two or more"):
        settings.fit(train[:1], labels[:1], train, labels)


def test_scores_do_not_depend_on_the_space_of_the_model() -> None:
    """Pixels in [0, 1] or [-1, 1], or latents of any scale: the training images' range is what the extractor sees as [0, 1]."""
    settings, train, labels = _choice()
    asked, of = _images(4, 7, (1, 6, 6))
    here = settings.fit(train, labels, train, labels).score(asked, of)
    there = settings.fit(train * 5 - 3, labels, train, labels).score(asked * 5 - 3, of)
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)


@dataclass(frozen=True)
class _Chooses(Guide):
    """Prefers bright previews."""

    candidates: int = 3
    sigma: float = 1.0

    @property
    def choice(self) -> Choice:  # type: ignore[override]
        return Choice(candidates=self.candidates, sigma=self.sigma, score=lambda x0, labels: x0.mean((1, 2, 3)))


@pytest.mark.parametrize("scheduler", RESTARTED)
def test_the_best_candidate_is_drawn_to_the_end_and_paid_for(scheduler: str) -> None:
    passes, exact = _passes(steps=12, scheduler=scheduler)
    labels, seeds = torch.zeros(6).long(), list(range(6))
    guide = _Chooses()
    drawn = passes.draw(labels, seeds, guide)
    paid = exact.nfe
    whole = torch.stack([passes.run(labels, seeds, stream=stream) for stream in range(3)])
    # the exact denoiser keeps the order of the previews' means
    best = whole.mean((2, 3, 4)).argmax(0)
    assert len(set(best.tolist())) > 1
    torch.testing.assert_close(drawn, whole[best, torch.arange(6)], atol=RESTARTED[scheduler], rtol=1e-4)
    assert [paid // 6] * 6 == passes.costs(labels, seeds, guide, lambda index: 1)
    assert 12 < paid // 6 < 3 * len(exact.seen)


@pytest.mark.parametrize("scheduler", RESTARTED)
def test_candidates_are_never_compared_before_the_first_step_and_paid_for(scheduler: str) -> None:
    passes, exact = _passes(steps=12, scheduler=scheduler)
    labels, seeds, guide = torch.zeros(2).long(), [0, 1], _Chooses(sigma=1e9)
    passes.draw(labels, seeds, guide)
    assert [exact.nfe // 2] * 2 == passes.costs(labels, seeds, guide, lambda index: 1)


def test_an_early_choice_takes_the_candidate_that_is_farther_from_the_training_images() -> None:
    settings, train, labels = _choice(candidates=4, sigma=0.5)
    guide = settings.fit(train, labels, train, labels)
    passes, exact = _passes(steps=12)
    drawn = passes.draw(labels[:8], list(range(8)), guide)
    above = sum(sigma > 0.5 for _, sigma in noise_levels(build_scheduler("DDIMScheduler", NOISE), NOISE, 12))
    assert 0 < above < 12
    assert exact.nfe == 8 * (4 * above + 12 - above)
    plain = passes.run(labels[:8], list(range(8)))
    assert float((guide.score(drawn, labels[:8]) - guide.score(plain, labels[:8])).mean()) > 0.05


def test_one_candidate_is_no_choice() -> None:
    settings, train, labels = _choice(candidates=1)
    assert torch.equal(_draw(settings.fit(train, labels, train, labels)), _draw(None))


# semantic


def _semantic(**more: object) -> tuple[Semantic, Tensor, Tensor, Tensor, Tensor]:
    settings = {"extractor": PixelFeatures(standardise=False), "components": 6, "distinct": 0.0, "pool": 1, "keep_intensity": False} | more
    train, labels = _images(40, 8)
    heldout, of = _images(20, 9)
    return Semantic(**settings), train, labels, heldout, of


def _nearest(queries: Tensor, of: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([(points[labels == c] - q).norm(dim=1).min() for q, c in zip(queries, of, strict=True)])


@pytest.mark.parametrize("distinct", [0.0, 2.0])
def test_the_push_is_pulled_back_by_the_jacobian(distinct: float) -> None:
    """With pixels as features the Jacobian is known: components over scale and range."""
    settings, train, labels, heldout, of = _semantic(scale=1.3, strength=0.7, distinct=distinct)
    guide = settings.fit(train, labels, heldout, of)
    pca, span = guide.space.pca, float(train.max() - train.min())
    x0, wanted = train[:5] * 0.9, torch.tensor([0, 1, 0, 1, 0])
    features = [torch.from_numpy(guide.space(images)).double() for images in (x0, train, heldout)]
    radius = {c: _nearest(features[2][of == c], of[of == c], features[1], labels).quantile(0.95) * 1.3 for c in (0, 1)}
    unit = float(_nearest(heldout.flatten(1), of, train.flatten(1), labels).sort().values[9])
    assert guide.unit == pytest.approx(unit, rel=1e-4)
    moved = guide(x0, wanted, 1.0)
    inside = 0
    for i, c in enumerate(wanted.tolist()):
        push, largest = torch.zeros(6, dtype=torch.double), max(float(radius[c]), guide.distinct_radius)
        balls = [(z, float(radius[c])) for z, k in zip(features[1], labels, strict=True) if k == c]
        balls += [(features[0][j], guide.distinct_radius) for j in range(5) if j != i and wanted[j] == c]
        for z, r in balls:
            away = features[0][i] - z
            push += max(r / float(away.norm()) - 1, 0) * away
        gradient = push @ torch.from_numpy(pca.components / pca.scale[:, None]) / span
        inside += bool(push.norm() > 0)
        step = 0.7 * unit * min(1, float(push.norm()) / largest) * gradient / gradient.norm().clamp_min(1e-12)
        torch.testing.assert_close((moved[i] - x0[i]).flatten().double(), step, atol=1e-3, rtol=1e-3)
    assert inside == 5


def test_an_encoders_features_move_away_from_the_training_images() -> None:
    settings, train, labels, heldout, of = _semantic(extractor=EfficientNetLite0(size=32), strength=0.1, pool=2, keep_intensity=True, distinct=0.3)
    guide = settings.fit(train, labels, heldout, of)
    x0 = train[:6] + 0.2 * heldout[:6]
    with torch.inference_mode():
        moved = guide(x0, labels[:6], 1.0)
    before, after = (_nearest(torch.from_numpy(guide.space(x)), labels[:6], torch.from_numpy(guide.space.train), labels) for x in (x0, moved))
    assert float((after - before).min()) > 0
    torch.testing.assert_close(moved.std((1, 2, 3)), x0.std((1, 2, 3)), atol=1e-5, rtol=1e-4)
    assert float((moved - x0).flatten(1).norm(dim=1).max()) < 0.1 * guide.unit * 1.2


def test_semantic_leaves_alone_what_is_far_or_of_another_class_or_outside_its_interval() -> None:
    settings, train, labels, heldout, of = _semantic(scale=0.3, keep_intensity=True)
    guide = settings.fit(train, labels, heldout, of)
    near = train[:1] * 0.99
    assert not torch.equal(guide(near, labels[:1], 1.0), near)
    assert torch.equal(guide(near, 1 - labels[:1], 1.0), near)
    assert torch.equal(guide(near, torch.tensor([5]), 1.0), near)
    for sigma in (0.1, 3.0):
        assert torch.equal(guide(near, labels[:1], sigma), near)
    none = Semantic(extractor=PixelFeatures(), strength=0.0).fit(train, labels, heldout, of)
    assert torch.equal(none(near, labels[:1], 1.0), near)


def test_semantic_knows_accepted_samples() -> None:
    settings, train, labels, heldout, of = _semantic(scale=0.0, distinct=1.0)
    guide = settings.fit(train, labels, heldout, of)
    x0 = heldout[:1]
    assert torch.equal(guide(x0, of[:1], 1.0), x0)
    known = guide.given(x0 * 0.99, of[:1])
    assert not torch.equal(known(x0, of[:1], 1.0), x0)
    assert len(guide.centres) == 40
    assert len(known.centres) == 41
    assert guide.given(x0[:0], of[:0]) is guide


def test_semantic_in_three_dimensions() -> None:
    train, labels = _images(12, 10, (2, 6, 8, 10))
    guide = Semantic(extractor=PixelFeatures(max_side=4), components=4, scale=3.0).fit(train[4:], labels[4:], train[:4], labels[:4])
    x0 = 0.9 * train[4:7] + 0.3 * train[:3]
    moved = guide(x0, labels[4:7], 1.0)
    assert moved.shape == (3, 2, 6, 8, 10)
    assert float((moved - x0).flatten(1).abs().amax(1).min()) > 0.01


def test_semantic_needs_images_to_calibrate_on() -> None:
    settings, train, labels, heldout, of = _semantic()
    with pytest.raises(DataError, match="held-out reals"):
        settings.fit(train, labels, heldout[:0], of[:0])
    with pytest.raises(DataError, match="training set's classes"):
        settings.fit(train, labels, heldout, of + 5)


def _extractors() -> list[object]:
    convolution = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh())
    return [
        EfficientNetLite0(size=32),
        PixelFeatures(),
        PixelFeatures(max_side=5, average_channels=True, standardise=False),
        ModuleFeatures(convolution, preprocess=lambda x: 2 * x - 1),
    ]


@pytest.mark.parametrize("which", range(4))
def test_differentiable_features_are_the_extractors_own(which: int) -> None:
    extractor = _extractors()[which]
    images = torch.rand(3, 1, 9, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.inference_mode():
        own = extractor(images.detach().numpy())
    features = extractor.differentiable(images)
    np.testing.assert_allclose(features.detach().numpy(), own, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(features[1].square().sum(), images)
    assert float(gradient[1].abs().max()) > 0
    assert float(gradient[[0, 2]].abs().max()) == 0


# together


class _Adds(Guide):
    """Moves by a number; doubles what came before if asked."""

    def __init__(self, number: float, **more: object) -> None:
        self.number = number
        for name, value in more.items():
            setattr(self, name, value)

    def __call__(self, x0: Tensor, labels: Tensor, sigma: float) -> Tensor:
        return x0 * 2 + self.number

    def given(self, accepted: Tensor, labels: Tensor) -> "_Adds":
        return _Adds(self.number + len(accepted), polish=self.polish, choice=self.choice)


@dataclass(frozen=True)
class _Settings:
    guide: Guide

    def fit(self, *data: Tensor) -> Guide:
        return self.guide


def test_together_pushes_in_turn() -> None:
    both = Together(guides=[_Settings(_Adds(1)), _Settings(_Adds(5))]).fit(*DATA)
    assert both(torch.tensor(3.0), EMPTY, 1.0).item() == (3 * 2 + 1) * 2 + 5
    assert both.given(torch.zeros(2, 1), torch.zeros(2))(torch.tensor(3.0), EMPTY, 1.0).item() == (3 * 2 + 3) * 2 + 7
    swapped = Together(guides=(_Settings(_Adds(5)), _Settings(_Adds(1)))).fit(*DATA)
    assert swapped(torch.tensor(3.0), EMPTY, 1.0).item() == (3 * 2 + 5) * 2 + 1


def test_together_takes_the_first_start_and_choice_the_most_polish_and_churn() -> None:
    first, second = _Chooses(candidates=2), _Chooses(candidates=5)
    churns, polishes = (Churn(share=0.2, sigma_max=9.0), Churn(share=0.5)), (Polish(sigma=0.2), Polish(sigma=0.4))
    guides = (*churns, BoostAndSkip(sigma=3.0), BoostAndSkip(sigma=4.0), *polishes)
    both = Together(guides=(*guides, _Settings(first), _Settings(second))).fit(*DATA)
    mask, start = both.start(torch.zeros(2).long(), [0, 1])
    assert mask.tolist() == [True, True]
    assert start.sigma == 3.0
    assert both.choice.candidates == 2
    assert both.polish == 0.4
    assert [both.refresh(sigma) for sigma in (1.0, 5.0, 10.0)] == [0.5, 0.2, 0.0]
    known = both.given(torch.zeros(1, 1, 6, 6), torch.zeros(1).long())
    assert (known.polish, known.choice.candidates, known.refresh(1.0)) == (0.4, 2, 0.5)


def test_nothing_together_is_brute_force() -> None:
    nothing = Together(guides=()).fit(*DATA)
    assert nothing.start(torch.zeros(1), [0]) is None
    assert torch.equal(_draw(nothing), _draw(None))
    with pytest.raises(RecipeError, match="settings with a fit method"):
        Together(guides=(0.3,))


def test_all_together_draw_images() -> None:
    train, labels = _images(30, 11, (1, 6, 6))
    guides = (Shield(), Semantic(extractor=PixelFeatures()), Particle(), Churn(), Polish(), EarlyChoice(extractor=PixelFeatures()))
    guide = Together(guides=guides).fit(train * STD + MEAN, labels, train[:8] * STD + MEAN + 0.3, labels[:8])
    drawn = _draw(guide, range(6), steps=20, scheduler="DPMSolverMultistepScheduler")
    assert torch.isfinite(drawn).all()
    assert float(drawn.std()) == pytest.approx(STD, abs=0.15)


# what every source promises, with guides that do not couple the batch


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("kind", ["churn", "polish", "early", "all"])
def test_an_image_depends_on_its_own_seed_alone(kind: str, scheduler: str) -> None:
    settings, train, labels = _choice()
    guides = {"churn": Churn(), "polish": Polish(), "early": settings}
    guide = Together(guides=tuple(guides.values()) if kind == "all" else (guides[kind],)).fit(train, labels, train, labels)
    seeds = [3, 2**33 + 3, 7, 11]
    together, others = (_draw(guide, s, scheduler=scheduler) for s in (seeds, [7, 3]))
    torch.testing.assert_close(together[[2, 0]], others, atol=1e-5, rtol=1e-4)
    assert len({tuple(row.flatten().tolist()) for row in together}) == 4


def test_the_shipped_models_images_depend_on_their_own_seeds_alone() -> None:
    source = BuiltinSource(steps=5, batch_size=3)
    data, labels = _images(24, 12, source.shape)
    settings = Together(guides=(EarlyChoice(extractor=PixelFeatures(), sigma=2.0), Churn(), Polish(sigma=1.0)))
    guide = settings.fit(data, labels, data, labels)
    asked, seeds = [0, 1, 1, 0], [5, 6, 7, 8]
    cost = source.costs(asked, seeds, guide=guide)
    drawn = source.sample(asked, seeds, guide=guide)
    assert source.nfe == cost.sum()
    torch.testing.assert_close(drawn[[2, 1]], source.sample([1, 1], [7, 6], guide=guide), atol=1e-4, rtol=0)
    assert not torch.allclose(drawn, source.sample(asked, seeds), atol=0.05)
