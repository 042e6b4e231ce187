import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import SCHEDULERS, NoiseSchedule, Shield, State, balls, build_scheduler, sample_states
from monai_diverse.sampling.balls import Balls
from monai_diverse.sampling.loop import generators_of, initial_noise
from monai_diverse.sampling.repulsion import low_passed
from monai_diverse.sampling.schedulers import KARRAS, SIGMA_MAX, set_steps
from monai_diverse.sources.denoiser import Denoiser

SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
NOISE = NoiseSchedule.from_diffusers(SCHEDULE)
BETA_SCHEDULERS = [name for name in SCHEDULERS if "Flow" not in name]
MEAN, STD = 0.4, 0.5


def _gaussian(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """E[x0 | x] for data N(MEAN, STD^2): the exact denoiser."""
    abar = NOISE.at(timesteps).reshape(-1, *[1] * (x.ndim - 1))
    return MEAN + STD**2 * abar.sqrt() * (x - abar.sqrt() * MEAN) / (STD**2 * abar + 1 - abar)


def _states(scheduler: str, steps: int, shape: tuple[int, ...] = (1, 8, 8), count: int = 64, karras: bool = False) -> list[State]:
    made = build_scheduler(scheduler, NOISE, karras=karras)
    return list(sample_states(_gaussian, made, NOISE, shape, labels=torch.zeros(count).long(), seeds=range(count), steps=steps))


def _draw(scheduler: str, steps: int, shape: tuple[int, ...] = (1, 8, 8), count: int = 64, karras: bool = False) -> torch.Tensor:
    return _states(scheduler, steps, shape, count, karras)[-1].x


@pytest.mark.parametrize(
    ("scheduler", "karras", "steps", "tolerance"),
    [
        ("DDIMScheduler", False, 20, 0.03),
        ("DDIMScheduler", False, 100, 0.02),
        ("DDIMScheduler", False, 600, 0.02),
        ("DPMSolverMultistepScheduler", False, 10, 0.03),
        ("DPMSolverMultistepScheduler", False, 50, 0.02),
        ("DPMSolverMultistepScheduler", True, 20, 0.04),
        ("UniPCMultistepScheduler", False, 20, 0.03),
        ("UniPCMultistepScheduler", True, 20, 0.03),
        ("DDPMScheduler", False, 50, 0.1),  # ancestral steps lose variance at coarse strides
        ("DDPMScheduler", False, 250, 0.04),
        ("EulerDiscreteScheduler", False, 100, 0.05),
        ("EulerDiscreteScheduler", True, 100, 0.05),
        ("HeunDiscreteScheduler", True, 20, 0.04),
    ],
)
def test_exact_denoiser_gives_the_data_distribution(scheduler: str, karras: bool, steps: int, tolerance: float) -> None:
    x = _draw(scheduler, steps, karras=karras)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.std()) == pytest.approx(STD, abs=tolerance)


@pytest.mark.parametrize("scheduler", KARRAS)
def test_many_karras_steps_whose_first_timesteps_round_to_the_same(scheduler: str) -> None:
    x = _draw(scheduler, 100, karras=True)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.std()) == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("scheduler", KARRAS)
def test_a_karras_start_below_the_least_noise_is_refused(scheduler: str) -> None:
    with pytest.raises(RecipeError, match=r"start: expected a noise-to-signal ratio above 0\.00643"):
        build_scheduler(scheduler, NOISE, karras=True, sigma_max=0.005)


def test_a_karras_start_above_the_schedule_is_the_schedules_own() -> None:
    """Else the scheduler would believe in more noise than there is, and draw too little spread."""
    schedule = NoiseSchedule.from_diffusers({"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
    made = [build_scheduler("EulerDiscreteScheduler", schedule, karras=True, sigma_max=sigma) for sigma in (80.0, 1000.0)]
    assert made[0].config.sigma_max == made[1].config.sigma_max == pytest.approx(14.61, abs=0.01)


@pytest.mark.parametrize("steps", [7, 30, 50, 300])
def test_ddim_goes_to_the_next_timestep(steps: int) -> None:
    """With the right clean image each step ends where the noise of the next timestep is; 300 do not divide 1000."""
    scheduler = build_scheduler("DDIMScheduler", NOISE)
    set_steps(scheduler, steps)
    clean, noise = torch.full((4,), 0.3, dtype=torch.float64), torch.linspace(-2, 2, 4, dtype=torch.float64)
    alphas = scheduler.alphas_cumprod.double()  # type: ignore[attr-defined]
    times = [int(time) for time in scheduler.timesteps]
    x = alphas[times[0]].sqrt() * clean + (1 - alphas[times[0]]).sqrt() * noise
    for time, later in itertools.zip_longest(times, times[1:]):
        x = scheduler.step(clean, torch.tensor(time), x).prev_sample
        then = torch.ones((), dtype=torch.float64) if later is None else alphas[later]
        torch.testing.assert_close(x, then.sqrt() * clean + (1 - then).sqrt() * noise, atol=1e-4, rtol=0)


def test_every_scheduler_of_betas_is_tested() -> None:
    tested = {mark.args[1][i][0] for mark in test_exact_denoiser_gives_the_data_distribution.pytestmark for i in range(len(mark.args[1]))}
    assert tested == set(BETA_SCHEDULERS)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("scheduler", BETA_SCHEDULERS)
def test_schedulers_keep_the_training_schedule(scheduler: str, beta_schedule: str, rescale: bool) -> None:
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": beta_schedule, "rescale_betas_zero_snr": rescale}
    schedule = NoiseSchedule.from_diffusers(config)
    karras = "Heun" in scheduler
    torch.testing.assert_close(build_scheduler(scheduler, schedule, karras=karras).alphas_cumprod, schedule.alphas_cumprod, atol=1e-5, rtol=1e-3)
    assert torch.isfinite(_draw(scheduler, 10, count=2, karras=karras)).all()


def test_three_dimensions() -> None:
    x = _draw("DPMSolverMultistepScheduler", 10, shape=(1, 4, 6, 8), count=16)
    assert x.shape == (16, 1, 4, 6, 8)
    assert float(x.std()) == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loop_agrees_with_diffusers_own_steps(prediction_type: str) -> None:
    """The loop works on clean images; diffusers' DDIM on the raw prediction must end at the same image, where steps divide the schedule."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        ).eval()  # fmt: skip
    schedule = SCHEDULE | {"beta_schedule": "linear"}
    noise = NoiseSchedule.from_diffusers(schedule)
    denoiser = Denoiser(network=lambda x, t, _: unet(x, t).sample, schedule=noise, prediction_type=prediction_type)
    x = initial_noise(range(4), (1, 8, 8))
    theirs = DDIMScheduler(**schedule, prediction_type=prediction_type, clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(10)
    with torch.inference_mode():
        states = sample_states(
            lambda x, t: denoiser(x, t, torch.zeros(4).long()), build_scheduler("DDIMScheduler", noise), noise, (1, 8, 8),
            labels=torch.zeros(4).long(), seeds=range(4), steps=10,
        )  # fmt: skip
        ours = list(states)[-1].x
        for t in theirs.timesteps:
            x = theirs.step(unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)
    assert denoiser.nfe == 4 * 10


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler"])
def test_image_depends_on_its_own_seed_alone(scheduler: str) -> None:
    def draw(seeds: list[int]) -> torch.Tensor:
        states = sample_states(
            _gaussian, build_scheduler(scheduler, NOISE), NOISE, (1, 4, 4), labels=torch.zeros(len(seeds)).long(), seeds=seeds, steps=10
        )
        return list(states)[-1].x

    together = draw([3, 2**33 + 3, 7, 11])
    torch.testing.assert_close(together[[2, 0]], draw([7, 3]))
    assert len({tuple(row.flatten().tolist()) for row in together}) == 4


def test_seeds_beyond_32_bits_differ() -> None:
    first, second = initial_noise([5, 5 + 2**32], (1, 4, 4))
    assert not torch.equal(first, second)
    assert generators_of([5])[0].initial_seed() != generators_of([5 + 2**32])[0].initial_seed()


def test_streams_of_one_seed_are_independent() -> None:
    """What a second pass starts from or adds on the way is not what the first one did."""
    noises = torch.stack([initial_noise([5], (1, 32, 32), stream).flatten() for stream in range(3)])
    assert (noises.corrcoef() - torch.eye(3)).abs().max() < 0.15
    assert len({generators_of([5], stream)[0].initial_seed() for stream in range(3)}) == 3


def test_every_state_is_yielded_with_falling_noise() -> None:
    states = list(
        sample_states(_gaussian, build_scheduler("DDIMScheduler", NOISE), NOISE, (1, 4, 4), labels=torch.zeros(2).long(), seeds=[0, 1], steps=7)
    )
    assert [s.step for s in states] == list(range(7))
    sigmas = [s.sigma for s in states]
    assert sigmas == sorted(sigmas, reverse=True)


@pytest.mark.parametrize("name", ["NoSuchScheduler", "UNet2DModel", "PNDMScheduler"])
def test_unknown_scheduler(name: str) -> None:
    with pytest.raises(RecipeError, match="expected one of DDIMScheduler"):
        build_scheduler(name, NOISE)


def test_flows_are_stepped_on_an_even_grid_that_is_shifted_once() -> None:
    """s = .1 is shifted to .2 / 1.1; diffusers' own grid ends at the least noise trained on."""
    schedule = NoiseSchedule.from_flow(1000, shift=2.0)
    scheduler = build_scheduler("FlowMatchEulerDiscreteScheduler", schedule)
    set_steps(scheduler, 10)
    assert scheduler.timesteps[-1].item() == pytest.approx(1000 * 0.2 / 1.1, abs=0.01)
    expected = [1000 * 2 * s / (1 + s) for s in np.linspace(1, 0.1, 10)]
    np.testing.assert_allclose(scheduler.timesteps.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("scheduler", KARRAS)
def test_karras_spacing_is_that_of_the_paper(scheduler: str) -> None:
    """Equation 5 with rho 7, between the least noise of the schedule and 80."""
    sigmas = [s.sigma for s in _states(scheduler, 8, (1, 2, 2), 1, karras=True)]
    least, most = (float(NOISE.noise_ratio(torch.tensor(0))) ** (1 / 7), SIGMA_MAX ** (1 / 7))
    expected = (most + np.arange(8) / 7 * (least - most)) ** 7
    # multistep schedulers round to trained timesteps
    np.testing.assert_allclose(sorted(set(sigmas), reverse=True), expected, rtol=0.05 if "Multistep" in scheduler else 1e-2)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler"])
def test_karras_spacing_is_refused_where_it_does_not_work(scheduler: str) -> None:
    with pytest.raises(RecipeError, match="karras: expected one of"):
        build_scheduler(scheduler, NOISE, karras=True)
    with pytest.raises(RecipeError, match="karras: expected it with Heun"):
        build_scheduler("HeunDiscreteScheduler", NOISE)


def test_heun_can_be_left_between_its_steps_only() -> None:
    states = _states("HeunDiscreteScheduler", 4, count=2, karras=True)
    assert [s.whole for s in states] == [False, True, False, True, False, True, True]
    assert [s.sigma for s in states[1::2]] == [s.next_sigma for s in states[:-1:2]]
    assert all(s.whole for s in _states("DDIMScheduler", 4, count=2))


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(RecipeError, match=r"expected 1\.\.1000"):
        _draw("DDIMScheduler", steps)


def _shield(seed: int, count: int = 30, **more: float) -> tuple[Shield, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    train = torch.from_numpy(rng.normal(size=(count, 1, 8, 8)).astype(np.float32))
    return Shield(**{"keep_intensity": False, "bounded": False} | more), train, torch.arange(count) % 2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.5, 3), pool=st.sampled_from([1, 2]))
def test_push_is_the_papers_sum(seed: int, scale: float, pool: int) -> None:
    settings_, train, labels = _shield(seed, scale=scale, pool=pool, strength=0.7, distinct=0.5)
    shield = settings_.fit(train, labels, train + 0.3, labels)
    rng = np.random.default_rng(seed + 1)
    x0 = train[:5] + torch.from_numpy(rng.normal(size=(5, 1, 8, 8)).astype(np.float32)) * 0.3
    wanted = torch.tensor([0, 1, 0, 1, 0])
    low, centres = low_passed(x0, pool).flatten(1).double(), low_passed(train, pool).flatten(1).double()
    push = torch.zeros_like(low)
    for i in range(5):
        balls = [(centres[k], shield.balls.radii[k]) for k in range(len(train)) if labels[k] == wanted[i]]
        balls += [(low[j], shield.distinct_radius) for j in range(5) if j != i and wanted[j] == wanted[i]]
        for centre, radius in balls:
            distance = (low[i] - centre).norm()
            push[i] += max(float(radius / distance) - 1, 0) * (low[i] - centre)
    expected = low_passed(x0, pool).double() + 0.7 * push.reshape(low_passed(x0, pool).shape)
    moved = shield(x0, wanted, 1.0)
    if pool == 1:
        torch.testing.assert_close(moved.double(), expected, atol=1e-4, rtol=1e-3)
    else:  # the push is interpolated up, so only its direction survives exactly
        change = (moved - x0).flatten()
        upsampled = torch.nn.functional.interpolate(push.reshape(low_passed(x0, pool).shape).float(), size=(8, 8), mode="bilinear") * 0.7
        torch.testing.assert_close(change, upsampled.flatten(), atol=1e-4, rtol=1e-3)


def test_shield_leaves_alone_what_is_far_or_of_another_class_or_outside_its_interval() -> None:
    settings_, train, labels = _shield(0, distinct=0.0, scale=1.0)
    shield = settings_.fit(train, labels, train + 0.1, labels)
    far = train[:1] + 100
    assert torch.equal(shield(far, labels[:1], 1.0), far)
    near = train[:1] + 0.01
    assert torch.equal(shield(near, 1 - labels[:1], 1.0), near)
    for sigma in (0.01, 10.0):
        assert torch.equal(shield(near, labels[:1], sigma), near)
    moved = shield(near, labels[:1], 1.0)
    assert float((moved - train[0]).norm()) > float((near - train[0]).norm())


def test_intensity_is_kept() -> None:
    """A push away from the crowd raises the contrast; by default each image gets its mean and deviation back."""
    free, train, labels = _shield(0, scale=20.0)
    x0 = train[:6] * 0.5
    pushed = free.fit(train, labels, train + 0.1, labels)(x0, labels[:6], 1.0)
    kept = replace(free, keep_intensity=True).fit(train, labels, train + 0.1, labels)(x0, labels[:6], 1.0)
    assert not torch.allclose(pushed.std((1, 2, 3)), x0.std((1, 2, 3)), rtol=0.05)
    torch.testing.assert_close(kept.mean((1, 2, 3)), x0.mean((1, 2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.std((1, 2, 3)), x0.std((1, 2, 3)), atol=1e-5, rtol=1e-4)
    for moved, with_kept in zip(pushed, kept, strict=True):
        assert float(np.corrcoef(moved.flatten(), with_kept.flatten())[0, 1]) > 0.9999


def test_accepted_samples_repel_too() -> None:
    settings_, train, labels = _shield(0, scale=0.0)
    shield = settings_.fit(train, labels, train + 0.1, labels)
    x0 = train[:1] + 50
    assert torch.equal(shield(x0, labels[:1], 1.0), x0)
    known = shield.given(x0 + 0.01, labels[:1])
    assert not torch.equal(known(x0, labels[:1], 1.0), x0)
    assert len(shield.balls.centres) == 30


def test_radius_is_the_quantile_of_new_patients_distances_by_class() -> None:
    settings_, train, labels = _shield(0, scale=1.0, pool=1)
    heldout = torch.from_numpy(np.random.default_rng(9).normal(size=(40, 1, 8, 8)).astype(np.float32))
    of = torch.arange(40) % 2
    shield = settings_.fit(train, labels, heldout, of)
    for c in (0, 1):
        distances = torch.cdist(heldout[of == c].flatten(1), train[labels == c].flatten(1)).min(1).values
        assert float(shield.balls.radii[labels == c][0]) == pytest.approx(float(distances.quantile(0.95)), rel=1e-4)


def test_shield_needs_heldout_images() -> None:
    settings_, train, labels = _shield(0)
    with pytest.raises(DataError, match="held-out"):
        settings_.fit(train, labels, train[:0], labels[:0])
    with pytest.raises(RecipeError, match="strength"):
        Shield(strength=-1)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_balls_push_as_the_sum_says_whatever_the_chunk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres, points = (torch.from_numpy(rng.normal(size=(n, 5)).astype(np.float32)) for n in (60, 7))
    radii, of_centres, of_points = torch.from_numpy(rng.uniform(1, 4, 60)), torch.arange(60) % 3, torch.arange(7) % 4
    expected = torch.zeros(7, 5, dtype=torch.float64)
    for i in range(7):
        for k in range(60):
            if of_points[i] == of_centres[k]:
                away = (points[i] - centres[k]).double()
                expected[i] += max(float(radii[k] / away.norm()) - 1, 0) * away
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balls, "CHUNK", 7)
        pushed = Balls(centres=centres, radii=radii, labels=of_centres).push(points, of_points)[0]
    torch.testing.assert_close(pushed.double(), expected, atol=1e-4, rtol=1e-4)


def test_an_index_finds_nearly_all_centres_within_reach() -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(6, 24))
    centres = torch.from_numpy((rng.normal(size=(20_000, 6)) @ basis + 0.05 * rng.normal(size=(20_000, 24))).astype(np.float32))
    points = centres[:40] + 0.1
    labels, of_points = torch.zeros(20_000).long(), torch.zeros(40).long()
    radii = torch.full((20_000,), float(torch.cdist(points, centres).quantile(0.002, dim=1).median()))
    exact = Balls(centres=centres, radii=radii, labels=labels).push(points, of_points)[0]
    searched = Balls(centres=centres, radii=radii, labels=labels, index_from=1000)
    assert searched._indexes
    pushed = searched.push(points, of_points)[0]
    cosine = torch.nn.functional.cosine_similarity(pushed, exact, dim=1)
    assert float(cosine.median()) > 0.99
    assert float(((pushed - exact).norm(dim=1) / exact.norm(dim=1)).median()) < 0.05


def test_a_bounded_push_goes_no_farther_than_the_balls_surface_however_many_there_are() -> None:
    centre = torch.zeros(1, 1, 4, 4)
    crowd = centre + 0.01 * torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 1, 4, 4)).astype(np.float32))
    labels, heldout = torch.zeros(2000).long(), centre + 0.5
    x0 = centre + 0.2
    chosen = Shield(strength=0.3, distinct=0.0, pool=1, keep_intensity=False)
    bounded, free = (replace(chosen, bounded=b).fit(crowd, labels, heldout, torch.zeros(1).long()) for b in (True, False))
    depth = float((bounded.balls.radii[0] - (x0.flatten() - crowd.flatten(1)).norm(dim=1)).max())
    assert float((bounded(x0, labels[:1], 1.0) - x0).norm()) == pytest.approx(depth, rel=1e-3)
    assert float((free(x0, labels[:1], 1.0) - x0).norm()) > 50 * depth
    few = chosen.fit(crowd[:2], labels[:2], heldout, torch.zeros(1).long())
    assert float((few(x0, labels[:1], 1.0) - x0).norm()) < depth


def test_an_index_needs_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    found = Balls(centres=torch.zeros(5, 2), radii=torch.ones(5), labels=torch.zeros(5).long(), index_from=5)
    with pytest.raises(RecipeError, match=r"monai-diverse\[faiss\]"):
        found.push(torch.ones(1, 2), torch.zeros(1).long())
