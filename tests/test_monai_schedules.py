import diffusers
import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler, RFlowScheduler
from monai.networks.schedulers.rectified_flow import timestep_transform

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling.schedule import SMALLEST, NoiseSchedule
from monai_diverse.sources.monai_schedules import trained_with

PLANE, VOLUME = (16, 16), (16, 16, 8)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195},
        {"schedule": "sigmoid_beta", "num_train_timesteps": 400},
        {"schedule": "cosine", "num_train_timesteps": 100},
    ],
)
def test_noise_is_monais(kind: type, options: dict[str, object]) -> None:
    scheduler = kind(**options)
    schedule = trained_with(scheduler, PLANE).schedule
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod.clamp(min=SMALLEST))
    assert (schedule.flow, len(schedule)) == (False, scheduler.num_train_timesteps)


def test_training_in_half_precision_does_not_coarsen_the_noise() -> None:
    """MONAI's add_noise leaves its table in the type of what it noised."""
    scheduler = DDPMScheduler()
    exact = scheduler.alphas_cumprod.clone()
    scheduler.add_noise(torch.zeros(1, 1, 2, 2).half(), torch.zeros(1, 1, 2, 2).half(), torch.tensor([3]))
    assert scheduler.alphas_cumprod.dtype == torch.float16
    assert torch.equal(trained_with(scheduler, PLANE).schedule.alphas_cumprod, exact)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_prediction_type_is_the_schedulers(kind: type, prediction_type: str) -> None:
    if kind is PNDMScheduler and prediction_type == "sample":
        with pytest.raises(ValueError, match="member of PNDM"):
            kind(prediction_type=prediction_type)
        return
    for given in (None, prediction_type):
        assert trained_with(kind(prediction_type=prediction_type), PLANE, given).prediction_type == prediction_type


@pytest.mark.parametrize(
    ("scheduler", "clip"),
    [
        (DDPMScheduler(), (-1.0, 1.0)),
        (DDIMScheduler(clip_sample_min=0, clip_sample_max=2), (0.0, 2.0)),
        (DDPMScheduler(clip_sample=False), (-float("inf"), float("inf"))),
        (PNDMScheduler(), None),
        (RFlowScheduler(), None),
    ],
)
def test_clipping(scheduler: object, clip: tuple[float, float] | None) -> None:
    assert trained_with(scheduler, PLANE).clip == clip


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler, RFlowScheduler])
def test_steps_are_those_that_were_chosen(kind: type) -> None:
    scheduler = kind()
    assert trained_with(scheduler, PLANE).steps is None
    scheduler.set_timesteps(1000)
    assert trained_with(scheduler, PLANE).steps is None
    scheduler.set_timesteps(30)
    assert trained_with(scheduler, PLANE).steps == len(scheduler.timesteps)


def test_learned_variance() -> None:
    assert trained_with(DDPMScheduler(variance_type="learned_range"), PLANE).learned_variance
    assert not trained_with(DDPMScheduler(variance_type="fixed_large"), PLANE).learned_variance


@pytest.mark.parametrize("steps", [1000, 250])
def test_flow_noise_is_monais(steps: int) -> None:
    """The variance-preserving state, scaled, is what MONAI trained on, and the network is told MONAI's timestep."""
    scheduler = RFlowScheduler(num_train_timesteps=steps)
    trained = trained_with(scheduler, PLANE)
    assert (trained.prediction_type, trained.schedule.flow, len(trained.schedule)) == ("rflow", True, steps)
    clean, noise = torch.randn(2, 7, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.5, 1, 10.25, steps / 2, steps / 2 + 0.3, steps - 1, steps - 0.5])
    index = times - 1
    abar = trained.schedule.at(index).reshape(-1, 1, 1, 1)
    ours = trained.schedule.network_scale(index).reshape(-1, 1, 1, 1) * (abar.sqrt() * clean + (1 - abar).sqrt() * noise)
    torch.testing.assert_close(ours, scheduler.add_noise(clean, noise, times), atol=2e-5, rtol=0)
    torch.testing.assert_close(trained.schedule.network_timestep(index), times)


@pytest.mark.parametrize(("spatial", "base"), [((64, 64, 32), 32**3), ((16, 16, 8), 32**3), ((48, 32), 24 * 24)])
def test_shift_is_monais_timestep_transform(spatial: tuple[int, ...], base: int) -> None:
    scheduler = RFlowScheduler(use_timestep_transform=True, base_img_size_numel=base, spatial_dim=len(spatial), use_discrete_timesteps=False)
    shift = trained_with(scheduler, spatial).schedule.shift
    voxels = int(torch.tensor(spatial).prod())
    s = torch.linspace(1, 0.05, 20, dtype=torch.float64)
    theirs = timestep_transform(s * 1000, voxels, base, num_train_timesteps=1000, spatial_dim=len(spatial))
    torch.testing.assert_close(1000 * shift * s / (1 + (shift - 1) * s), theirs)
    scheduler.set_timesteps(20, input_img_size_numel=voxels)
    torch.testing.assert_close(scheduler.timesteps.double(), theirs, atol=0.5, rtol=0)  # MONAI keeps them in half precision


def test_shift_leaves_out_what_monai_leaves_out() -> None:
    """`transform_scale` is an argument of MONAI's scheduler that neither its training nor its sampling reads."""
    plain, scaled = (RFlowScheduler(use_timestep_transform=True, transform_scale=scale) for scale in (1.0, 3.0))
    for scheduler in (plain, scaled):
        scheduler.set_timesteps(10, input_img_size_numel=64**3)
    assert torch.equal(plain.timesteps, scaled.timesteps)
    assert trained_with(scaled, (64, 64, 64)).schedule.shift == trained_with(plain, (64, 64, 64)).schedule.shift == pytest.approx(2)
    assert trained_with(RFlowScheduler(), (64, 64, 64)).schedule.shift == 1


def test_nothing_given_is_monais_default() -> None:
    default = trained_with(None, PLANE)
    assert torch.equal(default.schedule.alphas_cumprod, DDPMScheduler().alphas_cumprod)
    assert (default.prediction_type, default.clip) == ("epsilon", (-1.0, 1.0))
    assert trained_with(None, PLANE, "v_prediction").prediction_type == "v_prediction"
    for kind in ("flow", "rflow"):
        assert trained_with(None, PLANE, kind).schedule.flow
        assert trained_with(None, PLANE, kind).prediction_type == kind


def test_schedulers_of_others() -> None:
    theirs = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    trained = trained_with(theirs, PLANE)
    assert torch.equal(trained.schedule.alphas_cumprod, theirs.alphas_cumprod.clamp(min=SMALLEST))
    assert trained.prediction_type == "v_prediction"
    flow = trained_with(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), PLANE)
    assert (flow.schedule.flow, flow.schedule.shift, flow.prediction_type) == (True, 3.0, "flow")
    own = NoiseSchedule.from_betas(torch.linspace(0.001, 0.1, 50))
    assert trained_with(own, PLANE).schedule is own
    assert trained_with(own, PLANE).prediction_type == "epsilon"
    assert trained_with(NoiseSchedule.from_flow(100), PLANE).prediction_type == "rflow"


def test_sign_of_a_flow_can_be_said() -> None:
    """MONAI's scheduler and diffusers' train alike, up to the sign of what the network learns."""
    for scheduler in (RFlowScheduler(), diffusers.FlowMatchEulerDiscreteScheduler()):
        assert {trained_with(scheduler, PLANE, kind).prediction_type for kind in ("flow", "rflow")} == {"flow", "rflow"}
    assert trained_with(RFlowScheduler(), PLANE, "v_prediction").prediction_type == "rflow"  # MONAI's own name for it


@pytest.mark.parametrize(
    ("scheduler", "given", "error", "message"),
    [
        (DDPMScheduler(), "v_prediction", RecipeError, "prediction_type: expected epsilon, which the scheduler says, got v_prediction"),
        (DDIMScheduler(prediction_type="sample"), "flow", RecipeError, "expected sample, .* got flow"),
        (RFlowScheduler(), "epsilon", RecipeError, "expected rflow or flow, .* got epsilon"),
        (diffusers.FlowMatchEulerDiscreteScheduler(), "v_prediction", RecipeError, "expected rflow or flow"),
        (NoiseSchedule.from_flow(10), "epsilon", RecipeError, "expected rflow or flow"),
        (None, "noise", RecipeError, "expected one of epsilon, v_prediction, sample, rflow, flow, got 'noise'"),
        ("DDPMScheduler", None, DataError, "scheduler: expected a scheduler of MONAI or diffusers or a NoiseSchedule, got str"),
        (diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), None, DataError, "fixed shift"),
    ],
)
def test_contradictions_are_refused(scheduler: object, given: str | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trained_with(scheduler, VOLUME, given)
