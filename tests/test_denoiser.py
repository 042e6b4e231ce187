"""Conversions against exact denoisers, classifier-free guidance, and every way of conditioning."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import SCHEDULERS, ClassifierFree, NoiseSchedule, build_scheduler, sample_states
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.denoiser import PREDICTION_TYPES, Denoiser

BETAS = {"num_train_timesteps": 1000, "beta_schedule": "linear"}
DIFFUSION, FLOW = NoiseSchedule.from_diffusers(BETAS), NoiseSchedule.from_flow(1000)
FLOW_ONLY = "FlowMatchEulerDiscreteScheduler"
FIRST_ORDER = ("DDIMScheduler", "EulerDiscreteScheduler", FLOW_ONLY)
MODES = {"gaussian": ([0.4], 0.5, [1.0]), "mixture": ([-1.0, 1.0], 0.3, [0.3, 0.7])}
# how far the standard deviation may be off after 10, 50, 250 steps. Coarse first-order and ancestral steps lose variance by
# their nature; the rest is the 4608 draws' own error, 1 %
SPREAD = {"first": (0.14, 0.035, 0.015), "second": (0.1, 0.015, 0.015), "ancestral": (0.18, 0.06, 0.04), "heun": (0.14, 0.015, 0.015)}
STEPS = (10, 50, 250)


def _flow(prediction_type: str) -> bool:
    return prediction_type in ("flow", "rflow")


def _factors(timesteps: Tensor, flow: bool) -> tuple[Tensor, Tensor]:
    """(a, b) of the network's own x = a x0 + b eps, from what the network is told."""
    if flow:
        s = timesteps.double() / 1000
        return 1 - s, s
    abar = DDPMScheduler(**BETAS).alphas_cumprod.double()[timesteps.long()]
    return abar.sqrt(), (1 - abar).sqrt()


def _target(prediction_type: str, x0: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return {"epsilon": eps, "v_prediction": a * eps - b * x0, "sample": x0, "flow": eps - x0, "rflow": x0 - eps}[prediction_type]


def _exact_network(prediction_type: str, modes: str, flow: bool) -> Callable[..., Tensor]:
    """What a perfectly trained network gives, for pixels drawn from a Gaussian mixture."""
    means, std, weights = MODES[modes]
    m, w = torch.tensor(means, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)

    def network(x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        a, b = (v.reshape(-1, *[1] * (x.ndim - 1)) for v in _factors(timesteps, flow))
        variance, off = (std * a) ** 2 + b**2, x[..., None] - a[..., None] * m
        share = (w.log() - off**2 / (2 * variance[..., None])).softmax(-1)
        x0 = (share * (m + std**2 * (a / variance)[..., None] * off)).sum(-1)
        return _target(prediction_type, x0, (x - a * x0) / b, a, b).float()

    return network


def _draw(scheduler: str, steps: int, denoiser: Denoiser, shape: tuple[int, ...] = (1, 24, 24)) -> Tensor:
    labels = torch.zeros(8).long()
    *_, last = sample_states(
        lambda x, index: denoiser(x, index, labels),
        build_scheduler(scheduler, denoiser.schedule, karras="Heun" in scheduler),  # the spacing that it was made for
        denoiser.schedule, shape, labels=labels, seeds=range(8), steps=steps,
    )  # fmt: skip
    return last.x


def _exact(prediction_type: str, modes: str = "gaussian") -> Denoiser:
    flow = _flow(prediction_type)
    return Denoiser(network=_exact_network(prediction_type, modes, flow), schedule=FLOW if flow else DIFFUSION, prediction_type=prediction_type)


def _spread(scheduler: str) -> tuple[float, ...]:
    if scheduler in FIRST_ORDER:
        return SPREAD["first"]
    return SPREAD[{"DDPMScheduler": "ancestral", "HeunDiscreteScheduler": "heun"}.get(scheduler, "second")]


PAIRS = [(s, p) for s in SCHEDULERS for p in PREDICTION_TYPES if s != FLOW_ONLY or _flow(p)]


@pytest.mark.parametrize(("scheduler", "prediction_type"), PAIRS)
def test_a_gaussian_is_drawn_with_its_mean_and_spread(scheduler: str, prediction_type: str) -> None:
    for steps, tolerance in zip(STEPS, _spread(scheduler), strict=True):
        x = _draw(scheduler, steps, _exact(prediction_type))
        assert float(x.mean()) == pytest.approx(0.4, abs=0.02)
        assert float(x.std()) == pytest.approx(0.5, abs=tolerance)


@pytest.mark.parametrize(("scheduler", "prediction_type"), PAIRS)
def test_a_mixture_is_drawn_with_its_modes(scheduler: str, prediction_type: str) -> None:
    """Share, place and width of the larger mode."""
    for steps, tolerance in zip(STEPS, _spread(scheduler), strict=True):
        x = _draw(scheduler, steps, _exact(prediction_type, "mixture"))
        upper = x[x > 0]
        assert len(upper) / x.numel() == pytest.approx(0.7, abs=0.04 if steps == 10 else 0.015)
        assert float(upper.mean()) == pytest.approx(1.0, abs=0.11 if steps == 10 else 0.02)
        assert float(upper.std()) == pytest.approx(0.3, abs=tolerance)


@pytest.mark.parametrize(("trained", "taken"), [("epsilon", "v_prediction"), ("v_prediction", "sample"), ("sample", "epsilon"), ("flow", "rflow")])
def test_a_wrong_conversion_misses_these_tolerances(trained: str, taken: str) -> None:
    flow = _flow(taken)
    wrong = Denoiser(network=_exact_network(trained, "gaussian", flow), schedule=FLOW if flow else DIFFUSION, prediction_type=taken)
    x = _draw("DPMSolverMultistepScheduler", 50, wrong)
    assert abs(float(x.mean()) - 0.4) > 0.02 or not abs(float(x.std()) - 0.5) < 0.1


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("shape", [(2, 6, 5), (1, 3, 4, 5)])
def test_the_clean_image_is_recovered_from_what_a_network_learns(prediction_type: str, shape: tuple[int, ...]) -> None:
    """At every noise level, in two and three dimensions, from the training target itself."""
    flow = _flow(prediction_type)
    schedule = FLOW if flow else DIFFUSION
    generator = torch.Generator().manual_seed(0)
    for j in (0, 3, 250, 500, 990):
        index = torch.full((3,), j)
        clean, eps = (torch.randn(3, *shape, generator=generator) for _ in range(2))
        a, b = (float(v[0]) for v in _factors(index + 1 if flow else index, flow))
        seen = []

        def network(x: Tensor, timesteps: Tensor, rows: dict[str, Tensor], seen=seen, c=clean, e=eps, a=a, b=b) -> Tensor:  # type: ignore[no-untyped-def]
            seen.append((x, timesteps))
            return _target(prediction_type, c, e, torch.tensor(a), torch.tensor(b))

        denoiser = Denoiser(network=network, schedule=schedule, prediction_type=prediction_type)
        found = denoiser((a * clean + b * eps) / (a**2 + b**2) ** 0.5, index, torch.zeros(3).long())
        ((x, timesteps),) = seen
        torch.testing.assert_close(x, a * clean + b * eps, atol=1e-5, rtol=1e-5)
        assert timesteps.tolist() == [j + flow] * 3
        torch.testing.assert_close(found, clean, atol=2e-4, rtol=1e-3)


def test_three_dimensions() -> None:
    x = _draw("DPMSolverMultistepScheduler", 50, _exact("v_prediction"), (2, 6, 8, 10))
    assert x.shape == (8, 2, 6, 8, 10)
    assert float(x.std()) == pytest.approx(0.5, abs=0.015)


def test_predictions_are_clipped_to_both_bounds() -> None:
    denoiser = Denoiser(network=lambda x, t, rows: x, schedule=DIFFUSION, prediction_type="sample", clip=(0.0, 2.0))
    x = torch.tensor([-1.0, 0.5, 3.0]).reshape(3, 1, 1, 1)
    assert denoiser(x, torch.full((3,), 5), torch.zeros(3).long()).flatten().tolist() == [0.0, 0.5, 2.0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prediction_type": "noise"}, "prediction_type: expected one of epsilon"),
        ({"prediction_type": "flow"}, "flow's schedule"),
        ({"prediction_type": "rflow"}, "flow's schedule"),
        ({"guidance": ClassifierFree(scale=2)}, "null class"),
    ],
)
def test_what_does_not_belong_together_is_refused(more: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Denoiser(**{"network": lambda x, t, rows: x, "schedule": DIFFUSION, "prediction_type": "sample"} | more)


class _Told:
    """A network whose prediction is a weighted sum of all that it is told; it keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def __call__(self, x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        self.calls.append((x, timesteps, rows))
        total = x[:, 1:].flatten(1).sum(1) if x.shape[1] > 1 else torch.zeros(len(x))
        for weight, name in enumerate(sorted(rows), start=1):
            total = total + weight * rows[name].float().flatten(1).sum(1) if rows[name].ndim > 1 else total + weight * rows[name]
        return x[:, :1] + total.reshape(-1, *[1] * (x.ndim - 1))


GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(3)
CONTEXT = torch.randn(3, 2, 4, generator=GENERATOR)
VALUES = torch.randn(3, 2, generator=GENERATOR)
MAPS = torch.randn(3, 1, 4, 4, generator=GENERATOR)
EMPTY = torch.randn(2, 4, generator=GENERATOR)
WAYS = {
    "class_labels": Conditioning({"class_labels": LABELS}, {"class_labels": 9}),
    "context": Conditioning({"context": CONTEXT}, {"context": EMPTY}),
    "context fill": Conditioning({"context": CONTEXT}, {"context": -1.0}),
    "concat": Conditioning({"concat": VALUES}, {"concat": 0.0}),
    "concat maps": Conditioning({"concat": MAPS}, {"concat": -1.0}),
    "both": Conditioning({"context": CONTEXT, "concat": VALUES}, {"context": EMPTY, "concat": -1.0}),
    "labels with spacing": Conditioning({"class_labels": LABELS, "spacing": torch.ones(3, 3)}, {"class_labels": 0}),
}


def _told(way: str, scale: float = 1.0, **more: float) -> tuple[_Told, Denoiser]:
    network = _Told()
    return network, Denoiser(
        network=network, schedule=DIFFUSION, prediction_type="sample", conditioning=WAYS[way], guidance=ClassifierFree(scale=scale, **more)
    )


def _call(denoiser: Denoiser, labels: Tensor, index: int = 500) -> Tensor:
    noise = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1)).repeat(len(labels), 1, 1, 1)
    return denoiser(noise, torch.full((len(labels),), index), labels)


@pytest.mark.parametrize("way", WAYS)
def test_the_condition_reaches_the_network_and_changes_the_result(way: str) -> None:
    network, denoiser = _told(way)
    labels = torch.tensor([2, 0, 2])
    out = _call(denoiser, labels)
    torch.testing.assert_close(out[0], out[2])
    assert not torch.allclose(out[0], out[1], atol=1e-3)
    ((x, _, rows),) = network.calls
    given = WAYS[way].inputs
    assert rows.keys() == given.keys() - {"concat"}
    for name in rows:
        torch.testing.assert_close(rows[name], given[name][labels])
    if "concat" in given:
        expected = given["concat"][labels]
        expected = expected if expected.ndim == 4 else expected[:, :, None, None].expand(3, 2, 4, 4)
        torch.testing.assert_close(x[:, 1:], expected)


@pytest.mark.parametrize("way", WAYS)
def test_guidance_extrapolates_from_the_true_null(way: str) -> None:
    """null + w (cond - null), the null condition being a label, an embedding or a fill; what has no null keeps its class's row."""
    labels = torch.tensor([1, 0, 2])
    network, guided = _told(way, 3.0)
    out = _call(guided, labels)
    conditional = _call(_told(way)[1], labels)
    conditioning = WAYS[way]
    rows = {name: value[labels] for name, value in conditioning.inputs.items()}
    nulls = {name: torch.as_tensor(value).to(rows[name]).expand(rows[name].shape) for name, value in conditioning.null.items()}
    null = _call(Denoiser(network=_Told(), schedule=DIFFUSION, prediction_type="sample", conditioning=Conditioning(rows | nulls)), torch.arange(3))
    torch.testing.assert_close(out, null + 3.0 * (conditional - null), atol=1e-5, rtol=1e-5)
    ((x, timesteps, told),) = network.calls
    assert (len(x), len(timesteps)) == (6, 6)
    torch.testing.assert_close(x[:3, :1], x[3:, :1])
    for name, value in told.items():
        torch.testing.assert_close(value[:3], rows[name])
        torch.testing.assert_close(value[3:], (rows | nulls)[name])


@pytest.mark.parametrize("way", WAYS)
def test_without_guidance_the_conditional_alone_is_evaluated(way: str) -> None:
    labels = torch.tensor([1, 0])
    network, plain = _told(way, 1.0)
    bare = Denoiser(network=_Told(), schedule=DIFFUSION, prediction_type="sample", conditioning=Conditioning(WAYS[way].inputs))
    assert torch.equal(_call(plain, labels), _call(bare, labels))
    assert len(network.calls) == 1
    assert plain.nfe == bare.nfe == 2


def test_guidance_interval_saves_evaluations() -> None:
    network, interval = _told("class_labels", 3.0, sigma_min=0.5, sigma_max=2.0)
    labels = torch.tensor([1])
    for index in (10, 300, 990):
        _call(interval, labels, index)
    assert [len(x) for x, _, _ in network.calls] == [1, 2, 1]
    assert interval.nfe == 1 + 2 + 1
    assert [interval.evaluations(torch.tensor(index)) for index in (10, 300, 990)] == [1, 2, 1]


def test_guidance_costs_two_evaluations_an_image() -> None:
    _, guided = _told("both", 2.0)
    _call(guided, LABELS)
    assert guided.nfe == 6


def test_unconditional_networks_are_told_nothing() -> None:
    network = _Told()
    denoiser = Denoiser(network=network, schedule=DIFFUSION, prediction_type="sample")
    _call(denoiser, torch.zeros(2).long())
    assert network.calls[0][2] == {}
    assert denoiser.conditioning.classes == 1


def test_conditioning_knows_its_classes_and_itself() -> None:
    assert {way: conditioning.classes for way, conditioning in WAYS.items()} == dict.fromkeys(WAYS, 3)
    prints = [conditioning.fingerprint for conditioning in (*WAYS.values(), Conditioning(), Conditioning({"class_labels": LABELS}))]
    assert len(set(prints)) == len(prints)
    assert Conditioning({"context": CONTEXT.clone()}, {"context": EMPTY.clone()}).fingerprint == WAYS["context"].fingerprint
    with pytest.raises(DataError, match="null condition"):
        Conditioning({"class_labels": LABELS}).null_rows(LABELS)


@pytest.mark.parametrize(
    ("inputs", "null", "message"),
    [
        ({"class_labels": LABELS, "context": CONTEXT[:2]}, None, "one row a class"),
        ({"class_labels": torch.tensor(1)}, None, "one row a class"),
        ({"class_labels": LABELS[:0]}, None, "one row a class"),
        ({"class_labels": LABELS}, {"context": 0.0}, "null for some of the inputs"),
        ({"class_labels": LABELS}, {}, "null for some of the inputs"),
        ({"context": CONTEXT}, {"context": torch.zeros(2, 3)}, "broadcasts to a row"),
        ({"context": CONTEXT}, {"context": torch.zeros(1, 1, 2, 4)}, "broadcasts to a row"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(inputs: dict[str, Tensor], null: dict[str, object] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Conditioning(inputs, null)
