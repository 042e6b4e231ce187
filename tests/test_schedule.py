import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from monai_diverse.errors import DataError
from monai_diverse.sampling.schedule import SMALLEST, NoiseSchedule

COSINE = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_betas_are_diffusers_own(beta_schedule: str, rescale: bool) -> None:
    config = {"num_train_timesteps": 100, "beta_schedule": beta_schedule, "rescale_betas_zero_snr": rescale}
    theirs = DDPMScheduler(**config)
    ours = NoiseSchedule.from_diffusers(dict(theirs.config) | {"_class_name": "DDPMScheduler"})
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod.clamp(min=SMALLEST))
    assert torch.equal(NoiseSchedule.from_betas(theirs.betas).alphas_cumprod, ours.alphas_cumprod)
    assert len(ours) == 100
    assert float(ours.alphas_cumprod[-1]) > 0
    assert NoiseSchedule.from_alphas(theirs.alphas_cumprod).fingerprint == ours.fingerprint


def test_trained_betas_and_other_schedulers_configurations() -> None:
    betas = np.linspace(0.01, 0.3, 20).astype(np.float32)
    for kind in (DDPMScheduler, DDIMScheduler):
        schedule = NoiseSchedule.from_diffusers(kind(num_train_timesteps=20, trained_betas=betas))
        torch.testing.assert_close(schedule.alphas_cumprod, torch.from_numpy(np.cumprod(1 - betas)))


def test_whole_indices_are_exact_and_fractions_lie_between() -> None:
    schedule = NoiseSchedule.from_diffusers(COSINE)
    index = torch.arange(1000)
    assert torch.equal(schedule.at(index), schedule.alphas_cumprod)
    assert torch.equal(schedule.at(index.float()), schedule.alphas_cumprod)
    assert torch.equal(schedule.at(index.reshape(10, 100)), schedule.alphas_cumprod.reshape(10, 100))
    halves = schedule.at(index[:-1] + 0.5)
    assert (halves < schedule.alphas_cumprod[:-1]).all()
    assert (halves > schedule.alphas_cumprod[1:]).all()
    ratio = schedule.noise_ratio(index.float())
    torch.testing.assert_close(schedule.noise_ratio(index[:-1] + 0.5), (ratio[:-1] * ratio[1:]).sqrt(), rtol=1e-3, atol=0)
    assert torch.equal(schedule.network_timestep(index), index)
    assert torch.equal(schedule.network_scale(index), torch.ones(1000))


def test_a_schedule_without_noise_at_its_start_is_finite_between_indices() -> None:
    schedule = NoiseSchedule.from_alphas(torch.tensor([1.0, 0.5, 0.0]))
    found = schedule.at(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0]))
    assert torch.isfinite(found).all()
    assert (found.diff() < 0).all()
    assert found[-1] == SMALLEST


@given(s=st.floats(1e-3, 1.0), steps=st.sampled_from([10, 1000]))
def test_flows_are_variance_preserving_up_to_the_factor(s: float, steps: int) -> None:
    """Factor * (sqrt(abar) x0 + sqrt(1 - abar) eps) is (1 - s) x0 + s eps, and the network is told s T."""
    schedule = NoiseSchedule.from_flow(steps)
    index = torch.tensor([s * steps - 1])
    abar, factor = schedule.at(index), schedule.network_scale(index)
    assert float(factor * abar.sqrt()) == pytest.approx(1 - s, abs=4e-4)
    assert float(factor * (1 - abar).sqrt()) == pytest.approx(s, abs=4e-4)
    assert float(schedule.network_timestep(index)) == pytest.approx(s * steps, rel=1e-4)
    assert float(schedule.noise_ratio(index)) == pytest.approx(min(s / max(1 - s, 1e-12), 2.0**12), rel=2e-2)


def test_flows_tables_agree_with_the_formula() -> None:
    schedule = NoiseSchedule.from_flow(50, shift=3.0)
    index = torch.arange(50)
    torch.testing.assert_close(schedule.at(index), schedule.at(index.float()))
    assert torch.equal(schedule.network_timestep(index), index + 1)
    assert schedule.shift == 3.0
    assert float(schedule.alphas_cumprod[-1]) == SMALLEST


def test_flows_are_read_from_diffusers() -> None:
    flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=500, shift=2.5)
    read = NoiseSchedule.from_diffusers(flow)
    assert (read.flow, read.shift, len(read)) == (True, 2.5, 500)
    solver = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=4.0)
    read = NoiseSchedule.from_diffusers(solver)
    assert (read.flow, read.shift, len(read)) == (True, 4.0, 1000)
    assert not NoiseSchedule.from_diffusers(UniPCMultistepScheduler()).flow


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "without beta_schedule"),
        ({"beta_schedule": "no such"}, "diffusers knows"),
        ({"beta_schedule": "linear", "num_train_timesteps": "many"}, "diffusers knows"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "fixed shift"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "shift above 0"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": "x"}, "diffusers knows"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 0}, "falls within"),
    ],
)
def test_what_is_no_schedule_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        NoiseSchedule.from_diffusers(config)


@pytest.mark.parametrize("alphas", [[], [[0.5]], [0.1, 0.2], [1.5, 0.5], [0.5, -0.1], [float("nan")]])
def test_alphas_that_are_no_schedule_are_refused(alphas: list[float]) -> None:
    with pytest.raises(DataError, match="falls within"):
        NoiseSchedule.from_alphas(torch.tensor(alphas))


def test_shift_is_for_flows() -> None:
    with pytest.raises(DataError, match="no flow"):
        NoiseSchedule(alphas_cumprod=torch.tensor([0.9, 0.1]), shift=2.0)


def test_fingerprints_tell_schedules_apart() -> None:
    schedules = [
        NoiseSchedule.from_diffusers(COSINE),
        NoiseSchedule.from_diffusers(COSINE | {"beta_schedule": "linear"}),
        NoiseSchedule.from_diffusers(COSINE | {"num_train_timesteps": 500}),
        NoiseSchedule.from_flow(1000),
        NoiseSchedule.from_flow(1000, shift=2.0),
    ]
    assert len({s.fingerprint for s in schedules}) == len(schedules)
    assert NoiseSchedule.from_diffusers(COSINE).fingerprint == schedules[0].fingerprint
