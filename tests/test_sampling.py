from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import SCHEDULERS, ClassifierFree, Shield, alphas_of, build_scheduler, sample_states
from monai_diverse.sampling.loop import generators_of, initial_noise
from monai_diverse.sampling.shield import low_passed
from monai_diverse.sources.denoiser import Denoiser

SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
ALPHAS = DDPMScheduler(**SCHEDULE).alphas_cumprod
MEAN, STD = 0.4, 0.5


def _gaussian(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """E[x0 | x] for data N(MEAN, STD^2): the exact denoiser."""
    abar = ALPHAS[timesteps.long()].reshape(-1, *[1] * (x.ndim - 1))
    return MEAN + STD**2 * abar.sqrt() * (x - abar.sqrt() * MEAN) / (STD**2 * abar + 1 - abar)


def _draw(scheduler: str, steps: int, shape: tuple[int, ...] = (1, 8, 8), count: int = 64, **more: object) -> torch.Tensor:
    states = sample_states(
        _gaussian, build_scheduler(scheduler, ALPHAS), ALPHAS, shape, labels=torch.zeros(count).long(), seeds=range(count), steps=steps, **more
    )
    return list(states)[-1].x


@pytest.mark.parametrize(
    ("scheduler", "steps", "tolerance"),
    [
        ("DDIMScheduler", 20, 0.03),
        ("DDIMScheduler", 100, 0.02),
        ("DPMSolverMultistepScheduler", 10, 0.03),
        ("DPMSolverMultistepScheduler", 50, 0.02),
        ("UniPCMultistepScheduler", 20, 0.03),
        ("DDPMScheduler", 50, 0.1),  # ancestral steps lose variance at coarse strides
        ("DDPMScheduler", 250, 0.04),
        ("EulerDiscreteScheduler", 100, 0.05),
    ],
)
def test_exact_denoiser_gives_the_data_distribution(scheduler: str, steps: int, tolerance: float) -> None:
    x = _draw(scheduler, steps)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.std()) == pytest.approx(STD, abs=tolerance)


def test_every_scheduler_offered_is_tested() -> None:
    tested = {mark.args[1][i][0] for mark in test_exact_denoiser_gives_the_data_distribution.pytestmark for i in range(len(mark.args[1]))}
    assert tested == set(SCHEDULERS)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_keep_the_training_schedule(scheduler: str, beta_schedule: str, rescale: bool) -> None:
    config = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": beta_schedule, "rescale_betas_zero_snr": rescale}
    alphas = alphas_of(config)
    torch.testing.assert_close(build_scheduler(scheduler, alphas).alphas_cumprod, alphas, atol=1e-5, rtol=1e-3)
    assert torch.isfinite(_draw(scheduler, 10, count=2)).all()


@pytest.mark.parametrize("config", [{"_class_name": "FlowMatchEulerDiscreteScheduler"}, {}, {"beta_schedule": "no such"}])
def test_schedules_without_betas_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(DataError, match="scheduler: expected"):
        alphas_of(config)


def test_three_dimensions() -> None:
    x = _draw("DPMSolverMultistepScheduler", 10, shape=(1, 4, 6, 8), count=16)
    assert x.shape == (16, 1, 4, 6, 8)
    assert float(x.std()) == pytest.approx(STD, abs=0.03)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_loop_agrees_with_diffusers_own_steps(prediction_type: str) -> None:
    """The loop works on clean images; diffusers' DDIM on the raw prediction must end at the same image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        ).eval()  # fmt: skip
    schedule = SCHEDULE | {"beta_schedule": "linear"}
    alphas = DDPMScheduler(**schedule).alphas_cumprod
    denoiser = Denoiser(network=lambda x, t, _: unet(x, t).sample, alphas_cumprod=alphas, prediction_type=prediction_type, clip=None)
    x = initial_noise(range(4), (1, 8, 8))
    theirs = DDIMScheduler(**schedule, prediction_type=prediction_type, clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(12)
    with torch.inference_mode():
        states = sample_states(
            lambda x, t: denoiser(x, t, None), build_scheduler("DDIMScheduler", alphas), alphas, (1, 8, 8),
            labels=torch.zeros(4).long(), seeds=range(4), steps=12,
        )  # fmt: skip
        ours = list(states)[-1].x
        for t in theirs.timesteps:
            x = theirs.step(unet(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)
    assert denoiser.nfe == 4 * 12


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler"])
def test_image_depends_on_its_own_seed_alone(scheduler: str) -> None:
    def draw(seeds: list[int]) -> torch.Tensor:
        states = sample_states(
            _gaussian, build_scheduler(scheduler, ALPHAS), ALPHAS, (1, 4, 4), labels=torch.zeros(len(seeds)).long(), seeds=seeds, steps=10
        )
        return list(states)[-1].x

    together = draw([3, 2**33 + 3, 7, 11])
    torch.testing.assert_close(together[[2, 0]], draw([7, 3]))
    assert len({tuple(row.flatten().tolist()) for row in together}) == 4


def test_seeds_beyond_32_bits_differ() -> None:
    first, second = initial_noise([5, 5 + 2**32], (1, 4, 4))
    assert not torch.equal(first, second)
    assert generators_of([5])[0].initial_seed() != generators_of([5 + 2**32])[0].initial_seed()


def test_every_state_is_yielded_with_falling_noise() -> None:
    states = list(
        sample_states(_gaussian, build_scheduler("DDIMScheduler", ALPHAS), ALPHAS, (1, 4, 4), labels=torch.zeros(2).long(), seeds=[0, 1], steps=7)
    )
    assert [s.step for s in states] == list(range(7))
    sigmas = [s.sigma for s in states]
    assert sigmas == sorted(sigmas, reverse=True)


@pytest.mark.parametrize("name", ["NoSuchScheduler", "UNet2DModel", "HeunDiscreteScheduler"])
def test_unknown_scheduler(name: str) -> None:
    with pytest.raises(RecipeError, match="expected one of DDIMScheduler"):
        build_scheduler(name, ALPHAS)


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(RecipeError, match=r"expected 1\.\.1000"):
        _draw("DDIMScheduler", steps)


def _denoiser(scale: float, **more: object) -> Denoiser:
    return Denoiser(
        network=lambda x, t, labels: labels.float().reshape(-1, 1, 1, 1).expand(x.shape),
        alphas_cumprod=ALPHAS, prediction_type="sample", null=9, clip=None, guidance=ClassifierFree(scale=scale, **more),
    )  # fmt: skip


def test_classifier_free_guidance_extrapolates_from_null() -> None:
    x, t, labels = torch.zeros(3, 1, 2, 2), torch.full((3,), 500), torch.tensor([0, 1, 2])
    guided, plain = _denoiser(3.0), _denoiser(1.0)
    torch.testing.assert_close(guided(x, t, labels)[:, 0, 0, 0], 9 + 3.0 * (labels - 9.0))
    torch.testing.assert_close(plain(x, t, labels)[:, 0, 0, 0], labels.float())
    assert (guided.nfe, plain.nfe) == (6, 3)


def test_guidance_interval_saves_evaluations() -> None:
    x, labels = torch.zeros(1, 1, 2, 2), torch.tensor([1])
    interval = _denoiser(3.0, sigma_min=0.5, sigma_max=2.0)
    for step in (10, 500, 990):
        interval(x, torch.full((1,), step), labels)
    assert interval.nfe == 1 + 2 + 1


def test_guidance_needs_a_null_class() -> None:
    with pytest.raises(RecipeError, match="null class"):
        Denoiser(network=lambda x, t, y: x, alphas_cumprod=ALPHAS, prediction_type="sample", guidance=ClassifierFree(scale=2))
    with pytest.raises(RecipeError, match="prediction_type"):
        Denoiser(network=lambda x, t, y: x, alphas_cumprod=ALPHAS, prediction_type="flow")


def _shield(seed: int, count: int = 30, **more: float) -> tuple[Shield, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    train = torch.from_numpy(rng.normal(size=(count, 1, 8, 8)).astype(np.float32))
    return Shield(**{"keep_intensity": False} | more), train, torch.arange(count) % 2


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
        balls = [(centres[k], shield.radii[k]) for k in range(len(train)) if labels[k] == wanted[i]]
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
    assert len(shield.centres) == 30


def test_radius_is_the_quantile_of_new_patients_distances_by_class() -> None:
    settings_, train, labels = _shield(0, scale=1.0, pool=1)
    heldout = torch.from_numpy(np.random.default_rng(9).normal(size=(40, 1, 8, 8)).astype(np.float32))
    of = torch.arange(40) % 2
    shield = settings_.fit(train, labels, heldout, of)
    for c in (0, 1):
        distances = torch.cdist(heldout[of == c].flatten(1), train[labels == c].flatten(1)).min(1).values
        assert float(shield.radii[labels == c][0]) == pytest.approx(float(distances.quantile(0.95)), rel=1e-4)


def test_shield_needs_heldout_images() -> None:
    settings_, train, labels = _shield(0)
    with pytest.raises(DataError, match="held-out"):
        settings_.fit(train, labels, train[:0], labels[:0])
    with pytest.raises(RecipeError, match="strength"):
        Shield(strength=-1)
