"""MONAI's networks, small and untrained but for their noise levels, against MONAI's own loops on the same noise."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.inferers import DiffusionInferer, LatentDiffusionInferer
from monai.networks.nets import VQVAE, AutoencoderKL, DiffusionModelUNet, SPADEDiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, RFlowScheduler
from torch import Tensor, nn

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import ClassifierFree
from monai_diverse.sampling.loop import generators_of, initial_noise
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.monai import MonaiSource, _identity
from monai_diverse.sources.precision import Precision
from monai_diverse.testing import SourceContract

SEEDS = [3, 4, 5]
RED = torch.Generator().manual_seed(7)
CONTEXT, TONES, MAPS = torch.randn(2, 3, 6, generator=RED), torch.randn(2, 2, generator=RED), torch.randn(2, 2, 8, 8, generator=RED)
SPACING = {"spacing_tensor": torch.tensor([[100.0, 120.0, 300.0]])}
REGIONS = {"top_region_index_tensor": torch.tensor([[100.0, 0, 0, 0]]), "bottom_region_index_tensor": torch.tensor([[0, 0, 100.0, 0]])}


def _built(kind: Callable[..., nn.Module], seed: int = 0, **settings: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = kind(**settings)
        for weight in module.parameters():
            if not weight.any():  # MONAI starts the last layer at zero
                nn.init.normal_(weight, std=0.1)
    return module.eval()


def _unet(seed: int = 0, dims: int = 2, channels: int = 1, appended: int = 0, **settings: Any) -> nn.Module:
    small = {"num_res_blocks": 1, "channels": (8, 16), "attention_levels": (False, True), "norm_num_groups": 8, "num_head_channels": 8}
    return _built(DiffusionModelUNet, seed, spatial_dims=dims, in_channels=channels + appended, **({"out_channels": channels} | small | settings))


def _maisi_unet(**settings: Any) -> nn.Module:
    small = {"num_res_blocks": 1, "num_channels": (8, 16), "attention_levels": (False, True), "norm_num_groups": 8, "num_head_channels": 8}
    return _built(DiffusionModelUNetMaisi, spatial_dims=3, in_channels=4, out_channels=4, **(small | settings))


def _autoencoder(seed: int = 0, dims: int = 2, channels: int = 3) -> nn.Module:
    small = {"channels": (8, 8), "norm_num_groups": 8, "attention_levels": (False, False), "num_res_blocks": 1}
    plain = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    return _built(AutoencoderKL, seed, spatial_dims=dims, in_channels=1, out_channels=1, latent_channels=channels, **small, **plain)


def _maisi_autoencoder(**settings: Any) -> nn.Module:
    small = {"num_channels": (8, 8), "norm_num_groups": 8, "attention_levels": (False, False), "num_res_blocks": (1, 1)}
    return _built(AutoencoderKlMaisi, spatial_dims=3, in_channels=1, out_channels=1, latent_channels=4, num_splits=1, **(small | settings))


def _vqvae() -> nn.Module:
    sides = {"downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}
    small = {"channels": (8, 8), "num_res_channels": (8, 8), "num_res_layers": 1, "num_embeddings": 16, "embedding_dim": 3}
    return _built(VQVAE, spatial_dims=2, in_channels=1, out_channels=1, **sides, **small)


class _Smallest(nn.Module):
    """A network that costs no time."""

    def __init__(self, channels: int = 1, weight: float = 0.5, heads: int = 1) -> None:
        super().__init__()
        self.weight, self.heads = nn.Parameter(torch.full((channels, 1, 1), weight)), heads

    def forward(self, x: Tensor, timesteps: Tensor, **others: Tensor) -> Tensor:
        return self.weight * x


def _ddim(steps: int, **settings: Any) -> DDIMScheduler:
    """MONAI's DDIM where it is right: with this offset its timesteps lie as far apart as its steps go."""
    scheduler = DDIMScheduler(schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195, steps_offset=1000 // steps - 1, **settings)
    scheduler.set_timesteps(steps)
    return scheduler


def _in_unit(images: Tensor, low: float, high: float) -> Tensor:
    return ((images - low) / (high - low)).clamp(0, 1)


class TestPixelSource(SourceContract):
    @pytest.fixture
    def source(self) -> MonaiSource:
        return MonaiSource(_unet(), sample_shape=(1, 8, 8), steps=5, batch_size=2)


class TestLatentSource(SourceContract):
    @pytest.fixture
    def source(self) -> MonaiSource:
        unet, scheduler = _unet(channels=3, num_class_embeds=3), _ddim(50, prediction_type="v_prediction")
        labels, scale = {"conditioning": {"class_labels": torch.arange(2)}, "null": {"class_labels": 2}}, ClassifierFree(scale=2.0)
        return MonaiSource(unet, scheduler, sample_shape=(3, 8, 8), autoencoder=_autoencoder(), scale_factor=0.7, guidance=scale, steps=4, **labels)


class TestVolumeSource(SourceContract):
    """Latents in three dimensions, context and concat at once, as the brain model of MONAI's zoo."""

    @pytest.fixture
    def source(self) -> MonaiSource:
        unet = _unet(dims=3, channels=3, appended=2, with_conditioning=True, cross_attention_dim=6)
        told = {"context": CONTEXT, "concat": TONES}
        scheduler = _ddim(50, prediction_type="v_prediction")
        return MonaiSource(unet, scheduler, sample_shape=(3, 4, 6, 4), autoencoder=_autoencoder(dims=3), conditioning=told, steps=3, batch_size=2)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spatial", [(8, 8), (6, 8, 4)])
def test_ddim_agrees_with_monai(spatial: tuple[int, ...], prediction_type: str) -> None:
    unet, scheduler = _unet(dims=len(spatial)), _ddim(20, prediction_type=prediction_type, clip_sample=False)
    theirs = DiffusionInferer(scheduler).sample(initial_noise(SEEDS, (1, *spatial)), unet, scheduler, verbose=False)
    reach = float(theirs.abs().max())  # an untrained network's noise takes images anywhere
    source = MonaiSource(unet, scheduler, sample_shape=(1, *spatial), output_range=(-reach, reach), sampler="DDIMScheduler")
    torch.testing.assert_close(source.sample([0, 0, 0], SEEDS), _in_unit(theirs, -reach, reach), atol=1e-5, rtol=0)
    assert source.nfe == 3 * 20


@pytest.mark.parametrize("spatial", [(8, 8), (4, 8, 4)])
def test_flow_agrees_with_monai(spatial: tuple[int, ...]) -> None:
    unet, scheduler = _unet(dims=len(spatial)), RFlowScheduler(num_train_timesteps=20)
    scheduler.set_timesteps(20)
    theirs = DiffusionInferer(scheduler).sample(initial_noise(SEEDS, (1, *spatial)), unet, scheduler, verbose=False)
    source = MonaiSource(unet, scheduler, sample_shape=(1, *spatial), output_range=(-9, 9), sampler="FlowMatchEulerDiscreteScheduler", steps=20)
    torch.testing.assert_close(source.sample([0, 0, 0], SEEDS), _in_unit(theirs, -9, 9), atol=1e-5, rtol=0)


def test_ancestral_steps_agree_with_monai() -> None:
    """With all the steps of the training MONAI's DDPM is right; noise on the way comes from the same generators, an image at a time."""
    unet, scheduler = _unet(), DDPMScheduler(num_train_timesteps=20, clip_sample_min=0.0, clip_sample_max=1.0, beta_start=0.01, beta_end=0.3)
    theirs = []
    for seed in SEEDS:
        x, (generator,) = initial_noise([seed], (1, 8, 8)), generators_of([seed])
        for t in scheduler.timesteps:
            with torch.no_grad():
                x, _ = scheduler.step(unet(x, torch.tensor([t])), int(t), x, generator)
        theirs.append(x.clamp(0, 1))
    source = MonaiSource(unet, scheduler, sample_shape=(1, 8, 8), sampler="DDPMScheduler", steps=20)
    torch.testing.assert_close(source.sample([0, 0, 0], SEEDS), torch.cat(theirs), atol=5e-5, rtol=0)


class _Gaussian(nn.Module):
    """The exact network for pixels of N(MEAN, STD^2): of the noise for betas, of x0 - eps for a flow."""

    MEAN, STD = 0.2, 0.5

    def __init__(self, alphas_cumprod: Tensor | None) -> None:
        super().__init__()
        self.alphas_cumprod = alphas_cumprod

    def forward(self, x: Tensor, timesteps: Tensor, context: None = None) -> Tensor:
        each = (-1, *[1] * (x.ndim - 1))
        if self.alphas_cumprod is None:
            noise = (timesteps / 1000).reshape(each)
            signal = 1 - noise
        else:
            abar = self.alphas_cumprod[timesteps.long()].reshape(each)
            signal, noise = abar.sqrt(), (1 - abar).sqrt()
        clean = self.MEAN + self.STD**2 * signal * (x - signal * self.MEAN) / (self.STD**2 * signal**2 + noise**2)
        predicted = (x - signal * clean) / noise
        return predicted if self.alphas_cumprod is not None else clean - predicted


@pytest.mark.parametrize(("sampler", "tolerance"), [("DPMSolverMultistepScheduler", 0.02), ("DDIMScheduler", 0.03), ("DDPMScheduler", 0.08)])
def test_few_steps_give_the_right_spread_where_monais_ddpm_does_not(sampler: str, tolerance: float) -> None:
    scheduler = DDPMScheduler(clip_sample=False)
    exact = _Gaussian(scheduler.alphas_cumprod)
    source = MonaiSource(exact, scheduler, sample_shape=(1, 16, 16), output_range=(-4, 4), sampler=sampler, steps=50)
    images = source.sample([0] * 32, range(32)) * 8 - 4
    assert float(images.std()) == pytest.approx(0.5, abs=tolerance)
    assert float(images.mean()) == pytest.approx(0.2, abs=0.02)
    scheduler.set_timesteps(50)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = DiffusionInferer(scheduler).sample(initial_noise(range(32), (1, 16, 16)), exact, scheduler, verbose=False)
    assert float(theirs.std()) > 0.85


@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"),
    [
        ("FlowMatchEulerDiscreteScheduler", 50, 0.03),
        ("FlowMatchEulerDiscreteScheduler", 250, 0.01),
        ("DPMSolverMultistepScheduler", 20, 0.01),
        ("DPMSolverMultistepScheduler", 50, 0.01),
    ],
)
def test_a_flow_maps_noise_to_its_gaussian(sampler: str, steps: int, tolerance: float) -> None:
    """The exact flow takes noise z to MEAN + STD z, whether it is followed in its own terms or in variance-preserving ones."""
    source = MonaiSource(_Gaussian(None), RFlowScheduler(), sample_shape=(1, 8, 8), output_range=(-4, 4), sampler=sampler, steps=steps)
    expected = _Gaussian.MEAN + _Gaussian.STD * initial_noise(range(8), (1, 8, 8))
    torch.testing.assert_close(source.sample([0] * 8, range(8)) * 8 - 4, expected, atol=3.5 * tolerance, rtol=0)


def _told(*names: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Settings of a network, arguments of its source, and the rows of classes 0, 1, 0 with and without condition."""
    labels = torch.tensor([0, 1, 0])
    rows = {"class_labels": torch.arange(2), "context": CONTEXT, "concat": MAPS, "tones": TONES}
    fills = {"class_labels": 2, "context": CONTEXT.mean(0), "concat": -1.0, "tones": torch.tensor([0.5, -0.5])}
    built = {"class_labels": {"num_class_embeds": 3}, "context": {"with_conditioning": True, "cross_attention_dim": 6}}
    key = {name: "concat" if name == "tones" else name for name in names}
    settings = {k: v for name in names for k, v in built.get(name, {"appended": 2}).items()}
    source = {"conditioning": {key[n]: rows[n] for n in names}, "null": {key[n]: fills[n] for n in names}}
    given = {key[n]: rows[n][labels] for n in names}
    without = {key[n]: torch.as_tensor(fills[n]).to(rows[n]).expand_as(rows[n][labels]) for n in names}
    return settings, source, given, without


def _called(unet: nn.Module, x: Tensor, t: Tensor, rows: dict[str, Tensor]) -> Tensor:
    concat = rows.get("concat")
    if concat is not None:
        x = torch.cat([x, (concat[..., None, None] if concat.ndim == 2 else concat).expand(-1, -1, *x.shape[2:])], 1)
    return unet(x, t.reshape(1), context=rows.get("context"), class_labels=rows.get("class_labels"))


@pytest.mark.parametrize(
    ("names", "scale"),
    [
        (("class_labels",), 2.5),
        (("context",), 2.5),
        (("concat",), 2.5),
        (("context", "tones"), 2.5),
        (("class_labels", "context", "tones"), 2.5),
        (("class_labels", "context", "tones"), 1.0),
    ],
)
def test_every_condition_agrees_with_a_loop_by_hand(names: tuple[str, ...], scale: float) -> None:
    settings, arguments, given, without = _told(*names)
    unet, scheduler = _unet(**settings), _ddim(5, prediction_type="v_prediction", clip_sample=False)
    x = initial_noise(SEEDS, (1, 8, 8))
    with torch.no_grad():
        for t in scheduler.timesteps:
            null = _called(unet, x, t, without)
            x, _ = scheduler.step(null + scale * (_called(unet, x, t, given) - null), int(t), x)
    source = MonaiSource(
        unet, scheduler, sample_shape=(1, 8, 8), output_range=(-6, 6), sampler="DDIMScheduler", guidance=ClassifierFree(scale=scale), **arguments
    )
    assert source.classes == 2
    images = source.sample([0, 1, 0], SEEDS)
    torch.testing.assert_close(images, _in_unit(x, -6, 6), atol=1e-5, rtol=0)
    assert source.nfe == 3 * 5 * (1 if scale == 1 else 2)
    for other in (source.sample([1, 0, 1], SEEDS), *_unguided(unet, scheduler, arguments, scale)):
        assert float((other - images).abs().mean()) > 1e-3


def _unguided(unet: nn.Module, scheduler: DDIMScheduler, arguments: dict[str, Any], scale: float) -> list[Tensor]:
    """Without guidance it is another image, and the same as the conditional alone: with no null given at all."""
    if scale == 1:
        return []
    plain = [
        MonaiSource(unet, scheduler, sample_shape=(1, 8, 8), output_range=(-6, 6), sampler="DDIMScheduler", **kept).sample([0, 1, 0], SEEDS)
        for kept in (arguments, {"conditioning": arguments["conditioning"]})
    ]
    assert torch.equal(*plain)
    return plain[:1]


@pytest.mark.parametrize(("name", "mode"), [("context", "crossattn"), ("concat", "concat")])
def test_guidance_agrees_with_monai_where_its_fill_is_the_null(name: str, mode: str) -> None:
    settings, arguments, given, _ = _told(name)
    unet, scheduler = _unet(**settings), _ddim(10, prediction_type="v_prediction", clip_sample=False)
    theirs = DiffusionInferer(scheduler).sample(
        initial_noise(SEEDS, (1, 8, 8)), unet, scheduler, conditioning=given[name], mode=mode, cfg=3.0, cfg_fill_value=-1.0, verbose=False
    )
    arguments["null"] = {name: -1.0}
    source = MonaiSource(
        unet, scheduler, sample_shape=(1, 8, 8), output_range=(-6, 6), sampler="DDIMScheduler", guidance=ClassifierFree(scale=3.0), **arguments
    )
    torch.testing.assert_close(source.sample([0, 1, 0], SEEDS), _in_unit(theirs, -6, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("spatial", "inner"), [((8, 8), None), ((8, 8), (6, 4)), ((8, 12), (8, 6)), ((4, 4, 4), (4, 2, 4))])
def test_latents_agree_with_monai(spatial: tuple[int, ...], inner: tuple[int, ...] | None) -> None:
    unet, autoencoder = _unet(dims=len(spatial), channels=3), _autoencoder(dims=len(spatial))
    scheduler = _ddim(10, prediction_type="v_prediction", clip_sample=False)
    inferer = LatentDiffusionInferer(scheduler, 0.7, list(spatial) if inner else None, inner and list(inner))
    theirs = inferer.sample(initial_noise(SEEDS, (3, *spatial)), autoencoder, unet, scheduler, verbose=False)
    low, high = float(theirs.min()), float(theirs.max())
    source = MonaiSource(
        unet, scheduler, sample_shape=(3, *spatial), autoencoder=autoencoder, scale_factor=0.7, autoencoder_latent_shape=inner,
        output_range=(low, high), sampler="DDIMScheduler",
    )  # fmt: skip
    assert source.shape == (1, *(2 * side for side in inner or spatial))
    torch.testing.assert_close(source.sample([0, 0, 0], SEEDS), _in_unit(theirs, low, high), atol=1e-4, rtol=0)


@pytest.mark.parametrize("inner", [(6, 4), (5, 7)])
def test_images_go_into_the_networks_space_and_back(inner: tuple[int, int]) -> None:
    """The mean latents, scaled, padded with zeros; back it is the autoencoder's reconstruction. MONAI's own crop misses its padding for odd sides."""
    autoencoder = _autoencoder()
    source = MonaiSource(
        _unet(channels=3), sample_shape=(3, 8, 8), autoencoder=autoencoder, scale_factor=torch.tensor(0.4), autoencoder_latent_shape=inner,
        output_range=(-1, 1),
    )  # fmt: skip
    images = torch.rand(2, *source.shape, generator=torch.Generator().manual_seed(1))
    latents = source.encode(images)
    assert latents.shape == (2, 3, 8, 8)
    with torch.no_grad():
        mean, _ = autoencoder.encode(images * 2 - 1)
        torch.testing.assert_close(source.decode(latents), _in_unit(autoencoder.decode(mean), -1, 1), atol=1e-5, rtol=0)
    inferer = LatentDiffusionInferer(_ddim(10), 0.4, [8, 8], list(inner))
    padded = torch.stack([inferer.ldm_resizer(one) for one in mean * 0.4])
    torch.testing.assert_close(latents, padded, atol=1e-6, rtol=0)
    cropped = torch.stack([inferer.autoencoder_resizer(one) for one in padded])
    assert torch.equal(cropped, mean * 0.4) == (inner == (6, 4))


def test_quantized_latents() -> None:
    autoencoder = _vqvae()
    source = MonaiSource(_unet(channels=3), sample_shape=(3, 8, 8), autoencoder=autoencoder, steps=3)
    assert source.shape == (1, 32, 32)
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(source.encode(images), autoencoder.encode_stage_2_inputs(images), atol=1e-5, rtol=0)
    states = initial_noise(SEEDS, (3, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(source.decode(states), autoencoder.decode_stage_2_outputs(states).clamp(0, 1), atol=1e-5, rtol=0)


def _maisi(**more: Any) -> MonaiSource:
    unet = _maisi_unet(num_class_embeds=4, include_spacing_input=True, include_top_region_index_input=True, include_bottom_region_index_input=True)
    settings = {"extra_inputs": SPACING | REGIONS, "conditioning": {"class_labels": torch.tensor([1, 3])}, "steps": 20, "output_range": (-6, 6)}
    sampler = "FlowMatchEulerDiscreteScheduler"
    return MonaiSource(unet, RFlowScheduler(num_train_timesteps=20), sample_shape=(4, 4, 4, 4), sampler=sampler, **(settings | more))


def test_extra_inputs_reach_maisis_network() -> None:
    source = _maisi()
    scheduler, unet, x = RFlowScheduler(num_train_timesteps=20), source._denoiser.network.args[0].unet, initial_noise(SEEDS, (4, 4, 4, 4))
    scheduler.set_timesteps(20)
    for t, following in zip(scheduler.timesteps, [*scheduler.timesteps[1:], 0], strict=True):
        extra = {name: value.repeat(3, 1) for name, value in (SPACING | REGIONS).items()}
        x, _ = scheduler.step(unet(x, t.reshape(1).repeat(3), class_labels=torch.tensor([3, 1, 1]), **extra), t, x, following)
    torch.testing.assert_close(source.sample([1, 0, 0], SEEDS), _in_unit(x, -6, 6), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [*SPACING, *REGIONS])
def test_every_extra_input_matters_and_may_differ_by_class(name: str) -> None:
    extra, plain = SPACING | REGIONS, _maisi(steps=5)
    images = plain.sample([0, 1], SEEDS[:2])
    changed = _maisi(extra_inputs=extra | {name: extra[name].flip(1) * 2}, steps=5)
    assert float((changed.sample([0, 1], SEEDS[:2]) - images).abs().max()) > 1e-3
    assert changed.fingerprint != plain.fingerprint
    rows = {"class_labels": torch.tensor([1, 3]), name: torch.cat([extra[name].flip(1) * 2, extra[name]])}
    of_class = _maisi(conditioning=rows, extra_inputs={key: value for key, value in extra.items() if key != name}, steps=5)
    mixed = torch.stack([changed.sample([0], SEEDS[:1])[0], images[1]])
    torch.testing.assert_close(of_class.sample([0, 1], SEEDS[:2]), mixed, atol=1e-4, rtol=0)


@pytest.mark.parametrize("by_class", [False, True])
def test_segmentations_reach_spades_network(by_class: bool) -> None:
    unet = _built(
        SPADEDiffusionModelUNet, spatial_dims=2, in_channels=1, out_channels=1, label_nc=2, num_res_blocks=1, channels=(8, 8), norm_num_groups=8,
        attention_levels=(False, False), spade_intermediate_channels=8,
    )  # fmt: skip
    scheduler = _ddim(2, prediction_type="v_prediction", clip_sample=False)
    x = initial_noise(SEEDS[:2], (1, 8, 8))
    maps = MAPS if by_class else MAPS[:1]
    theirs = DiffusionInferer(scheduler).sample(x, unet, scheduler, seg=maps.expand(2, -1, -1, -1), verbose=False)
    told = {"conditioning": {"seg": maps}} if by_class else {"extra_inputs": {"seg": maps}}
    source = MonaiSource(unet, scheduler, sample_shape=(1, 8, 8), output_range=(-6, 6), sampler="DDIMScheduler", **told)
    torch.testing.assert_close(source.sample([0, int(by_class)], SEEDS[:2]), _in_unit(theirs, -6, 6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("half", [False, True])
def test_maisis_autoencoder(half: bool) -> None:
    """NV-Generate's is built with norm_float16, which runs under autocast only."""
    precision = Precision(autocast="float16") if half else None
    source = MonaiSource(
        _maisi_unet(), RFlowScheduler(use_timestep_transform=True), sample_shape=(4, 8, 8, 8), autoencoder=_maisi_autoencoder(norm_float16=half),
        scale_factor=1.2, steps=2, precision=precision,
    )  # fmt: skip
    assert source.shape == (1, 16, 16, 16)
    image = source.sample([0], [1])
    assert image.shape == (1, 1, 16, 16, 16)
    assert source.encode(image).shape == (1, 4, 8, 8, 8)


def test_half_weights_take_their_extra_inputs_along() -> None:
    exact, half = _maisi().sample([0, 1], SEEDS[:2]), _maisi(precision=Precision(dtype="bfloat16")).sample([0, 1], SEEDS[:2])
    assert 0 < float((exact - half).abs().max()) < 0.02


def test_predicted_variances_are_left_out() -> None:
    unet, scheduler = _unet(out_channels=2), DDPMScheduler(variance_type="learned_range")
    source = MonaiSource(unet, scheduler, sample_shape=(1, 8, 8), steps=3)
    assert source.sample([0], [0]).shape == (1, 1, 8, 8)
    with pytest.raises(DataError, match="unet: expected 1 output channels for sample_shape"):
        MonaiSource(unet, DDPMScheduler(), sample_shape=(1, 8, 8))


@pytest.mark.parametrize(
    ("scheduler", "output_range", "clip"),
    [
        (None, (0, 1), (0, 1)),
        (None, (-2, 2), (-1, 1)),
        (DDPMScheduler(clip_sample=False), (0, 1), None),
        (RFlowScheduler(), (-1, 1), (-1, 1)),
    ],
)
def test_pixels_are_clipped_to_what_scheduler_and_range_allow(scheduler: Any, output_range: tuple[int, int], clip: tuple[int, int] | None) -> None:
    source = MonaiSource(_Smallest(), scheduler, sample_shape=(1, 8, 8), output_range=output_range)
    assert source._denoiser.clip == clip
    latent = MonaiSource(_Smallest(3), scheduler, sample_shape=(3, 8, 8), output_range=output_range, autoencoder=_autoencoder())
    assert latent._denoiser.clip is None


def test_steps_are_the_schedulers_or_twenty() -> None:
    chosen = _ddim(40)
    for scheduler, given, expected in ((None, None, 20), (DDPMScheduler(num_train_timesteps=9), None, 9), (chosen, None, 40), (chosen, 7, 7)):
        assert MonaiSource(_Smallest(), scheduler, sample_shape=(1, 8, 8), steps=given).cost() == expected


def test_fingerprints() -> None:
    def of(unet: nn.Module | None = None, scheduler: Any = None, **more: Any) -> str:
        return MonaiSource(_Smallest() if unet is None else unet, scheduler, sample_shape=(1, 8, 8), **more).fingerprint

    assert of() == of(unet=_Smallest()) == of(scheduler=DDPMScheduler())
    others = [
        of(unet=_Smallest(weight=0.6)),
        of(unet=_Smallest(heads=2)),  # the same weights
        of(unet=_Smallest().to(torch.bfloat16)),
        of(scheduler=DDPMScheduler(beta_end=0.03)),
        of(scheduler=DDPMScheduler(clip_sample=False)),
        of(prediction_type="v_prediction"),
        of(output_range=(-1, 1)),
        of(conditioning={"tone": TONES}),
        of(conditioning={"tone": TONES}, null={"tone": 0.0}),
        of(extra_inputs={"tone": TONES[:1]}),
        of(sampler="DDIMScheduler"),
        of(steps=21),
    ]
    assert len({of(), *others}) == 13
    assert _identity(_unet()) != _identity(_unet(num_head_channels=4))
    assert _identity(_unet(use_flash_attention=True)) == _identity(_unet())  # workers on GPUs have the source of a driver without one


def test_fingerprints_of_latent_models() -> None:
    variants = ((_autoencoder(), 1.0), (_autoencoder(seed=1), 1.0), (_autoencoder(), 0.5))
    sources = [MonaiSource(_Smallest(3), sample_shape=(3, 8, 8), autoencoder=autoencoder, scale_factor=scale) for autoencoder, scale in variants]
    assert len({source.fingerprint for source in sources}) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sample_shape": (1, 1, 1, 8, 8)}, DataError, r"sample_shape: expected \(c, \*spatial\)"),
        ({"sample_shape": (2, 8, 8)}, DataError, "unet: expected 1 output channels|unet: expected 1 input channels, got 2 of sample_shape"),
        ({"sample_shape": (1, 8, 8, 8)}, DataError, "unet: expected to take input"),
        ({"sample_shape": (1, 7, 8)}, DataError, "unet: expected to take input"),
        ({"conditioning": {"concat": TONES}}, DataError, "expected 1 input channels, got 1 of sample_shape and 2 of concat"),
        ({"conditioning": {"class_labels": torch.arange(2)}}, DataError, "expected no class_labels for a network without class embeddings"),
        ({"conditioning": {"context": CONTEXT}}, DataError, "expected no context for a network built without with_conditioning"),
        ({"conditioning": {"colour": TONES}}, DataError, "expected inputs that DiffusionModelUNet takes .*class_labels, context.* got colour"),
        ({"extra_inputs": SPACING}, DataError, "expected inputs that DiffusionModelUNet takes .* got spacing_tensor"),
        ({"null": {"class_labels": 1}}, DataError, "expected a null for some of the inputs"),
        ({"conditioning": Conditioning({"concat": TONES}), "null": {"concat": 0.0}}, RecipeError, "null: expected it inside the Conditioning"),
        ({"guidance": ClassifierFree(scale=2)}, RecipeError, "guidance scale 2"),
        ({"scale_factor": 0.3}, RecipeError, "scale_factor, autoencoder_latent_shape: expected an autoencoder"),
        ({"prediction_type": "noise"}, RecipeError, "prediction_type: expected one of"),
        ({"scheduler": DDPMScheduler(), "prediction_type": "sample"}, RecipeError, "prediction_type: expected epsilon"),
        ({"scheduler": DDPMScheduler(), "output_range": (-1000, -100)}, RecipeError, "output_range: expected one that the scheduler's clipping"),
        ({"output_range": (1, 0)}, DataError, "output_range: expected"),
        ({"sampler": "DDPM"}, RecipeError, "scheduler: expected one of"),
        ({"steps": 0}, RecipeError, "steps: expected"),
        ({"autoencoder": _autoencoder(channels=4)}, DataError, "autoencoder: expected to take input .* to have 4 channels"),
        ({"autoencoder": _autoencoder(channels=1), "autoencoder_latent_shape": (4,)}, DataError, "expected 2 sides"),
        ({"class_names": ("a", "b")}, DataError, "class_names: expected 1"),
    ],
)
def test_what_does_not_fit_is_refused_at_construction(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        MonaiSource(_unet(), **({"sample_shape": (1, 8, 8)} | arguments))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("conditioning", "null", "message"),
    [
        ({}, None, "expected class_labels for a network with 3 class embeddings, got none"),
        ({"context": CONTEXT}, None, "expected class_labels for a network with 3 class embeddings, got none"),
        ({"class_labels": torch.arange(2)}, None, r"expected context \(classes, tokens, 6\) for a network with cross-attention, got none"),
        ({"class_labels": torch.arange(2), "context": CONTEXT[..., :5]}, None, r"context \(classes, tokens, 6\) .* got \(2, 3, 5\)"),
        ({"class_labels": torch.arange(2), "context": CONTEXT[:, 0]}, None, r"context \(classes, tokens, 6\) .* got \(2, 6\)"),
        ({"class_labels": torch.tensor([1, 3]), "context": CONTEXT}, None, r"class_labels of whole numbers 0\.\.2, got \[1, 3\]"),
        ({"class_labels": torch.tensor([0.5, 1]), "context": CONTEXT}, None, r"class_labels of whole numbers 0\.\.2, got \[0.5"),
        ({"class_labels": torch.arange(2), "context": CONTEXT}, {"class_labels": 3}, r"a null class_labels of whole numbers 0\.\.2, got \[3\]"),
        ({"class_labels": torch.arange(3), "context": CONTEXT}, None, "one row a class in every input"),
        ({"class_labels": torch.arange(2), "context": CONTEXT, "concat": MAPS[..., :4]}, None, r"expected concat \(classes, channels\) or"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(conditioning: dict[str, Tensor], null: dict[str, Any] | None, message: str) -> None:
    unet = _unet(num_class_embeds=3, with_conditioning=True, cross_attention_dim=6)
    with pytest.raises(DataError, match=message):
        MonaiSource(unet, sample_shape=(1, 8, 8), conditioning=conditioning, null=null)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, DataError, "extra_inputs: expected spacing_tensor for a network built with include_spacing_input, got none"),
        ({"extra_inputs": SPACING | REGIONS}, DataError, "expected no top_region_index_tensor for a network built without"),
        ({"extra_inputs": {"spacing_tensor": torch.ones(3)}}, DataError, r"spacing_tensor of shape \(1, ...\), .* got \(3,\)"),
        ({"extra_inputs": {"spacing_tensor": torch.ones(1, 2)}}, DataError, "unet: expected to take input"),
        ({"conditioning": SPACING, "extra_inputs": SPACING}, DataError, "expected inputs that are not conditioning already"),
        ({"scheduler": None, "extra_inputs": SPACING}, RecipeError, "scheduler: expected that of the training"),
        (
            {"extra_inputs": SPACING, "autoencoder": _maisi_autoencoder(norm_float16=True)},
            RecipeError,
            r"Precision\(autocast='float16'\) for an autoencoder with norm_float16",
        ),
    ],
)
def test_maisi_networks_that_lack_something_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    unet = _maisi_unet(include_spacing_input=True)
    with pytest.raises(error, match=message):
        MonaiSource(unet, **({"scheduler": RFlowScheduler(), "sample_shape": (4, 4, 4, 4)} | arguments))


def test_checks_cost_little_at_any_size() -> None:
    """A forward pass of this network would take tens of gigabytes."""
    unet, autoencoder, scheduler = _maisi_unet(num_class_embeds=2), _maisi_autoencoder(), RFlowScheduler(use_timestep_transform=True)
    started = time.process_time()
    labels = {"conditioning": {"class_labels": torch.arange(2)}}
    source = MonaiSource(unet, scheduler, sample_shape=(4, 128, 128, 192), autoencoder=autoencoder, **labels)
    assert source.shape == (1, 256, 256, 384)
    assert time.process_time() - started < 3
