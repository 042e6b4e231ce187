"""Condition-annealed sampling: the paper's formula, whose noise it is, and every way of conditioning."""

from collections.abc import Callable

import diffusers
import pytest
import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from monai_diverse.errors import RecipeError
from monai_diverse.features import PixelFeatures
from monai_diverse.sampling import CADS, ClassifierFree, EarlyChoice, NoiseSchedule, annealed
from monai_diverse.sources import BuiltinSource, MonaiSource
from monai_diverse.sources.annealing import Annealing, class_embeddings
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.denoiser import Denoiser
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.sources.precision import Precision

SCHEDULE = NoiseSchedule.from_diffusers({"num_train_timesteps": 1000, "beta_schedule": "linear"})
GENERATOR = torch.Generator().manual_seed(0)
CONTEXT, VALUES = (2 + 3 * torch.randn(3, *shape, generator=GENERATOR) for shape in ((2, 4), (5,)))
LABELS = torch.tensor([2, 0, 2])
EARLY, MIDDLE, LATE = 950, 749, 400
ALL_NOISE = CADS(tau1=0.05, tau2=0.1)


@pytest.mark.parametrize("mixing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [0.2, 0.5, 0.65, 0.8, 0.95, 1.0])
def test_annealed_is_the_papers_formula(t: float, mixing: float) -> None:
    settings = CADS(tau1=0.5, tau2=0.8, noise=0.7, mixing=mixing)
    noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1))
    gamma = 1.0 if t <= 0.5 else 0.0 if t >= 0.8 else (0.8 - t) / 0.3
    found = annealed(CONTEXT, t, noise, settings)
    for y, n, given in zip(CONTEXT.flatten(1), noise.flatten(1), found.flatten(1), strict=True):
        mixed = gamma**0.5 * y + 0.7 * (1 - gamma) ** 0.5 * n
        rescaled = (mixed - mixed.mean()) / mixed.std() * y.std() + y.mean()
        torch.testing.assert_close(given, mixing * rescaled + (1 - mixing) * mixed, atol=1e-5, rtol=1e-4)


def test_conditions_are_clean_in_the_end_and_a_single_number_is_not_rescaled() -> None:
    assert annealed(CONTEXT, 0.6, torch.ones_like(CONTEXT), CADS()) is CONTEXT
    y = torch.tensor([[3.0], [4.0]])
    torch.testing.assert_close(annealed(y, 1.0, torch.tensor([[1.0], [-1.0]]), CADS(noise=0.5)), torch.tensor([[0.5], [-0.5]]))


@pytest.mark.parametrize(
    "settings", [{"tau1": 0.9, "tau2": 0.9}, {"tau1": -0.1}, {"tau2": 1.1}, {"noise": -1.0}, {"noise": float("nan")}, {"mixing": 1.1}]
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="cads: expected"):
        CADS(**settings)


class _Told(nn.Module):
    """Keeps what it is told; embeds class labels."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Embedding(10, 6)
        self.calls: list[tuple[Tensor, dict[str, Tensor]]] = []

    def forward(self, x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        rows = rows | ({"class_labels": self.class_embedding(rows["class_labels"])} if "class_labels" in rows else {})
        self.calls.append((x, rows))
        return x[:, :1]


WAYS = {
    "context": Conditioning({"context": CONTEXT}, {"context": -1.0}),
    "concat": Conditioning({"concat": VALUES}, {"concat": 0.0}),
    "class_labels": Conditioning({"class_labels": torch.arange(3)}, {"class_labels": 9}),
    "both": Conditioning({"context": CONTEXT, "concat": VALUES}, {"context": 0.0}),
}


def _told(way: str, scale: float = 1.0, settings: CADS | None = None) -> tuple[_Told, Denoiser]:
    network = _Told().requires_grad_(False)
    made = Denoiser(
        network=network, schedule=SCHEDULE, prediction_type="sample", conditioning=WAYS[way], guidance=ClassifierFree(scale=scale),
        cads=settings or CADS(), embeddings=class_embeddings(network),
    )  # fmt: skip
    return network, made


def _call(denoiser: Denoiser, index: int, seeds: tuple[int, ...] = (5, 6, 7), labels: Tensor = LABELS, stream: int = 0) -> Tensor:
    return denoiser.seeded(seeds, stream)(torch.zeros(len(seeds), 1, 4, 4), torch.full((len(seeds),), index), labels)


def _given(network: _Told) -> dict[str, Tensor]:
    x, rows = network.calls[-1]
    return rows | ({"concat": x[:, 1:].mean((2, 3))} if x.shape[1] > 1 else {})


def _clean(way: str, network: _Told, labels: Tensor = LABELS) -> dict[str, Tensor]:
    rows = WAYS[way].rows(labels)
    return rows | ({"class_labels": network.class_embedding(rows["class_labels"])} if "class_labels" in rows else {})


@pytest.mark.parametrize("way", WAYS)
def test_each_image_is_told_its_own_noise_early_and_the_truth_late(way: str) -> None:
    network, denoiser = _told(way)
    clean = _clean(way, network)
    _call(denoiser, LATE)
    for name, rows in _given(network).items():
        torch.testing.assert_close(rows, clean[name])
    _call(denoiser, EARLY)
    early = _given(network)
    _call(denoiser, EARLY, (7, 5), LABELS[[2, 0]])
    for name, rows in _given(network).items():
        torch.testing.assert_close(rows, early[name][[2, 0]])
        assert not torch.allclose(early[name], clean[name], atol=0.1)
        assert not torch.allclose(early[name][0], early[name][2], atol=0.1)  # one class, two seeds
        torch.testing.assert_close(early[name].flatten(1).mean(1), clean[name].flatten(1).mean(1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(early[name].flatten(1).std(1), clean[name].flatten(1).std(1), atol=1e-4, rtol=1e-4)
    for index, stream in ((EARLY + 1, 0), (EARLY, 1)):
        _call(denoiser, index, stream=stream)
        for name, rows in _given(network).items():
            assert not torch.allclose(rows, early[name], atol=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_in_between_it_is_annealed_at_the_steps_time(way: str) -> None:
    """At index 749 of 1000 the time is .75, halfway from tau2 to tau1."""
    settings = CADS(noise=0.4, mixing=0.5)
    network, denoiser = _told(way, settings=settings)
    _call(denoiser, MIDDLE)
    for name, clean in _clean(way, network).items():
        noise = Annealing(settings=CADS(tau1=0, tau2=0.1, noise=1, mixing=0), seeds=(5, 6, 7), stream=0)(name, torch.zeros_like(clean), MIDDLE, 1.0)
        torch.testing.assert_close(_given(network)[name], annealed(clean, 0.75, noise, settings))


@pytest.mark.parametrize("way", WAYS)
def test_the_null_condition_is_not_noised(way: str) -> None:
    network, guided = _told(way, 3.0)
    _call(guided, EARLY)
    told = _given(network)
    assert guided.nfe == 6
    null = WAYS[way].null_rows(LABELS)
    if "class_labels" in null:
        null["class_labels"] = network.class_embedding(null["class_labels"])
    alone, plain = _told(way)
    alone.load_state_dict(network.state_dict())
    _call(plain, EARLY)
    for name, rows in told.items():
        torch.testing.assert_close(rows[3:], null[name])
        torch.testing.assert_close(rows[:3], _given(alone)[name])


def test_hooks_do_not_stay() -> None:
    network, denoiser = _told("class_labels")
    _call(denoiser, EARLY)
    assert not network.class_embedding._forward_hooks


def test_what_cannot_be_noised_is_refused() -> None:
    network, denoiser = _told("context")
    with pytest.raises(RecipeError, match="images' seeds"):
        denoiser(torch.zeros(3, 1, 4, 4), torch.full((3,), EARLY), LABELS)
    more = {"network": network, "schedule": SCHEDULE, "prediction_type": "sample", "cads": CADS()}
    with pytest.raises(RecipeError, match="expected a network that is told"):
        Denoiser(**more)
    with pytest.raises(RecipeError, match="modules that embed"):
        Denoiser(**more, conditioning=WAYS["class_labels"])
    with pytest.raises(RecipeError, match="with a module class_embedding"):
        class_embeddings(nn.Conv2d(1, 1, 1))
    with pytest.raises(RecipeError, match="with a module class_embedding"):
        class_embeddings(lambda x: x)


def _unet() -> nn.Module:
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4, num_class_embeds=3,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip


def _dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=2, sample_size=8, patch_size=4,
        num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip


def _monai() -> nn.Module:
    return DiffusionModelUNet(
        spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 8), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4,
        num_head_channels=4, num_class_embeds=3,
    )  # fmt: skip


class _Called(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        out = self.model(x, timesteps, **rows)
        return out if isinstance(out, Tensor) else out.sample


def _source(make: Callable[[], nn.Module], **more: object) -> DiffusionSource:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
        for parameter in model.parameters():  # fresh output layers are zero
            nn.init.normal_(parameter, std=0.2)
        for embedding in class_embeddings(model):
            for parameter in embedding.parameters():
                nn.init.normal_(parameter, std=4.0)
    return DiffusionSource(
        _Called(model), SCHEDULE, shape=(1, 8, 8), prediction_type="v_prediction", conditioning=Conditioning({"class_labels": torch.arange(3)}),
        steps=4, name="tiny", identity=["tiny"], **more,
    )  # fmt: skip


@pytest.mark.parametrize("make", [_unet, _dit, _monai])
def test_class_labels_of_real_networks_are_noised(make: Callable[[], nn.Module]) -> None:
    plain, weak, strong = (_source(make, cads=cads) for cads in (None, CADS(), ALL_NOISE))
    asked, seeds = [0, 1, 0], [5, 6, 7]
    brute, noised = plain.sample(asked, seeds), strong.sample(asked, seeds)
    assert float((noised - brute).abs().amax((1, 2, 3)).min()) > 1e-3
    torch.testing.assert_close(strong.sample([0, 1], [7, 6]), noised[[2, 1]], atol=1e-4, rtol=0)
    assert strong.nfe == 3 * 4 + 2 * 4
    assert len({source.fingerprint for source in (plain, weak, strong)}) == 3


def test_half_precision_embeddings_are_noised() -> None:
    source = _source(_unet, cads=ALL_NOISE, precision=Precision(dtype="bfloat16"))
    plain = _source(_unet, precision=Precision(dtype="bfloat16"))
    assert float((source.sample([0], [1]) - plain.sample([0], [1])).abs().max()) > 0.02


def test_compiled_class_labels_are_refused() -> None:
    with pytest.raises(RecipeError, match="not compiled"):
        _source(_unet, cads=CADS(), precision=Precision(compile=True))


def test_sources_take_it() -> None:
    shipped, plain = BuiltinSource(steps=4, cads=CADS(noise=0.2)), BuiltinSource(steps=4)
    assert shipped.fingerprint != plain.fingerprint
    asked, seeds = [0, 1], [3, 4]
    drawn = shipped.sample(asked, seeds)
    assert not torch.allclose(drawn, plain.sample(asked, seeds), atol=1e-2)
    torch.testing.assert_close(drawn[1:], shipped.sample([1], [4]), atol=1e-4, rtol=0)
    monai = MonaiSource(_monai(), sample_shape=(1, 8, 8), conditioning={"class_labels": torch.arange(3)}, steps=4, cads=CADS())
    assert monai.sample([0], [0]).shape == (1, 1, 8, 8)


def test_candidates_are_told_noise_of_their_own() -> None:
    """Each pass of an image has its own stream, so an early choice still depends on the image's seed alone."""
    source = BuiltinSource(steps=4, cads=CADS(noise=0.2))
    data = torch.randn(12, *source.shape, generator=torch.Generator().manual_seed(0))
    guide = EarlyChoice(extractor=PixelFeatures(), sigma=3.0).fit(data, torch.arange(12) % 2, data, torch.arange(12) % 2)
    drawn = source.sample([0, 1, 1], [3, 4, 5], guide=guide)
    torch.testing.assert_close(drawn[[2]], source.sample([1], [5], guide=guide), atol=1e-4, rtol=0)
