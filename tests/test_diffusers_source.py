"""Every kind of diffusers pipeline, from its object and from its folder, against diffusers' own loops on the same noise."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor

from monai_diverse import DiffusersSource
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import ClassifierFree
from monai_diverse.sampling.loop import generators_of, initial_noise
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.precision import Precision
from monai_diverse.testing import SourceContract

CLOSE = 1e-5
"""Largest difference from diffusers' own pipelines, in [0, 1]."""
SCHEDULE: dict[str, Any] = {"num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.2, "timestep_spacing": "trailing"}


def _unet(channels: int, **more: Any) -> UNet2DModel:
    return UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), **more,
    )  # fmt: skip


def _autoencoder(kind: type = AutoencoderKL, **more: Any) -> Any:
    return kind(
        in_channels=1, out_channels=1, latent_channels=4, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more,
    )  # fmt: skip


def _codebook() -> VQModel:
    model = _autoencoder(VQModel, num_vq_embeddings=8)
    # codes far apart: between two that nearly coincide the last bit of a latent decides
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


def _dit() -> DiTTransformer2DModel:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8, norm_num_groups=4
    )
    for name, weight in transformer.named_parameters():
        if "norm1.linear" in name or "proj_out" in name:  # a new DiT's blocks do nothing
            torch.nn.init.normal_(weight, std=0.1)
    return transformer


def _ddim(**more: Any) -> DDIMScheduler:
    # an untrained network's noise predictions would blow latents up
    return DDIMScheduler(**SCHEDULE | {"clip_sample": False, "prediction_type": "v_prediction"} | more)


class _TextPipeline(DiffusionPipeline):
    """As Stable Diffusion's, without the text encoder."""

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL, scheduler: DDIMScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)


def _text_pipeline() -> DiffusionPipeline:
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=6,
        attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return _TextPipeline(unet=unet, vae=_autoencoder(), scheduler=_ddim())


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {
    "pixels": lambda: DDPMPipeline(_unet(1), DDPMScheduler(**SCHEDULE)),
    "pixels v": lambda: DDIMPipeline(_unet(1), _ddim(clip_sample=True)),
    "classes": lambda: DDPMPipeline(_unet(1, num_class_embeds=3), DDPMScheduler(**SCHEDULE)),
    "flow": lambda: DiffusionPipelineOf(_unet(1), FlowMatchEulerDiscreteScheduler(shift=2.0)),
    "latents": lambda: LDMPipelineOfVae(_unet(4), _ddim(), _autoencoder()),
    "codebook": lambda: LDMPipeline(_codebook(), _unet(4), _ddim()),
    "transformer": lambda: DiTPipeline(_dit(), _autoencoder(), _ddim()),
    "text": _text_pipeline,
}
TEXT = Conditioning({"context": torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))}, {"context": 0.0})


class DiffusionPipelineOf(DiffusionPipeline):
    """A network and any scheduler; `DDPMPipeline` takes that of diffusion only."""

    def __init__(self, unet: UNet2DModel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)


class LDMPipelineOfVae(DiffusionPipeline):
    """An unconditional latent model with a variational autoencoder."""

    def __init__(self, unet: UNet2DModel, scheduler: Any, vae: AutoencoderKL) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)


def _made(kind: str) -> DiffusionPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pipeline = PIPELINES[kind]()
    pipeline.set_progress_bar_config(disable=True)
    for name in ("unet", "transformer", "vae", "vqvae"):
        if isinstance(module := getattr(pipeline, name, None), torch.nn.Module):
            module.eval()
    return pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each pipeline, written by its own `save_pretrained`."""
    home = tmp_path_factory.mktemp("pipelines")
    for kind in PIPELINES:
        _made(kind).save_pretrained(home / kind.replace(" ", "_"))
    return {kind: home / kind.replace(" ", "_") for kind in PIPELINES}


def _source(kind: str, folder: Any, **more: Any) -> DiffusersSource:
    return DiffusersSource(folder, **{"conditioning": TEXT if kind == "text" else None, "steps": 4} | more)


class TestFolders(SourceContract):
    @pytest.fixture(params=PIPELINES)
    def source(self, request: pytest.FixtureRequest, folders: dict[str, Path]) -> DiffusersSource:
        return _source(request.param, folders[request.param], batch_size=2)


@pytest.mark.parametrize("kind", PIPELINES)
def test_an_object_and_its_folder_are_the_same_source(kind: str, folders: dict[str, Path]) -> None:
    assert (folders[kind] / "model_index.json").is_file()
    of_folder, of_object = _source(kind, folders[kind]), _source(kind, _made(kind))
    assert of_folder.fingerprint == of_object.fingerprint
    assert of_folder.shape == of_object.shape == (1, 16, 16) if of_folder.model_shape == (4, 8, 8) else (1, 8, 8)
    labels = np.arange(3) % of_folder.classes
    torch.testing.assert_close(of_folder.sample(labels, range(3)), of_object.sample(labels, range(3)), atol=1e-6, rtol=0)
    assert of_object.name == type(_made(kind)).__name__


def test_what_each_is_read_as(folders: dict[str, Path]) -> None:
    sources = {kind: _source(kind, folder) for kind, folder in folders.items()}
    assert {kind: source.classes for kind, source in sources.items()} == dict.fromkeys(PIPELINES, 1) | {"classes": 3, "transformer": 1000, "text": 3}
    flows = {kind for kind, source in sources.items() if source._denoiser.schedule.flow}
    assert flows == {"flow"}
    assert sources["flow"]._denoiser.prediction_type == "flow"
    assert sources["flow"]._denoiser.schedule.shift == 2.0
    assert sources["pixels v"]._denoiser.prediction_type == "v_prediction"
    assert {kind for kind, source in sources.items() if source._denoiser.clip is None} == {"latents", "codebook", "transformer", "text"}


def _same_noise(monkeypatch: pytest.MonkeyPatch, module: str, count: int, shape: tuple[int, ...]) -> None:
    """Starts diffusers' pipeline from our noise of seeds 0, 1, ..."""
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: initial_noise(range(count), shape))


def _theirs(images: Any) -> Tensor:
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)


def test_ancestral_steps_are_those_of_diffusers_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = _made("pixels")
    _same_noise(monkeypatch, "diffusers.pipelines.ddpm.pipeline_ddpm", 3, (1, 8, 8))
    expected = _theirs(pipeline(3, generator=generators_of(range(3)), num_inference_steps=20, output_type="np").images)
    images = DiffusersSource(pipeline, scheduler="DDPMScheduler", steps=20).sample([0] * 3, range(3))
    assert float((images - expected).abs().max()) < CLOSE
    assert float(expected.std()) > 0.1


def test_ddim_steps_are_those_of_diffusers_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = _made("pixels v")
    _same_noise(monkeypatch, "diffusers.pipelines.ddim.pipeline_ddim", 3, (1, 8, 8))
    expected = _theirs(pipeline(3, num_inference_steps=20, use_clipped_model_output=True, output_type="np").images)
    images = DiffusersSource(pipeline, scheduler="DDIMScheduler", steps=20).sample([0] * 3, range(3))
    assert float((images - expected).abs().max()) < CLOSE
    assert float(expected.std()) > 0.1


def test_latent_steps_are_those_of_diffusers_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = _made("codebook")
    _same_noise(monkeypatch, LDMPipeline.__module__, 3, (4, 8, 8))
    expected = _theirs(pipeline(3, num_inference_steps=10, output_type="np").images)
    images = DiffusersSource(pipeline, scheduler="DDIMScheduler", steps=10).sample([0] * 3, range(3))
    assert float((images - expected).abs().max()) < CLOSE
    assert float(expected.std()) > 0.01


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_transformer_steps_are_those_of_diffusers_pipeline(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """With classifier-free guidance from the null class, and with predicted variances left out."""
    pipeline = _made("transformer")
    _same_noise(monkeypatch, "diffusers.pipelines.dit.pipeline_dit", 3, (4, 8, 8))
    expected = _theirs(pipeline([3, 999, 0], guidance_scale=scale, num_inference_steps=10, output_type="np").images)
    source = DiffusersSource(pipeline, scheduler="DDIMScheduler", steps=10, guidance=ClassifierFree(scale=scale))
    images = source.sample([3, 999, 0], range(3))
    assert float((images - expected).abs().max()) < CLOSE
    assert float(expected.std()) > 0.01
    assert source.nfe == 3 * 10 * (1 if scale == 1 else 2)


def test_flow_steps_are_those_of_diffusers_scheduler() -> None:
    pipeline = _made("flow")
    scheduler, x = pipeline.scheduler, initial_noise(range(3), (1, 8, 8))
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    source = DiffusersSource(pipeline, scheduler="FlowMatchEulerDiscreteScheduler", steps=10)
    source._denoiser.clip = None  # as their loop, which clips nothing on the way
    images = source.sample([0] * 3, range(3))
    assert float((images - ((x + 1) / 2).clamp(0, 1)).abs().max()) < CLOSE


def test_text_embeddings_reach_the_network(folders: dict[str, Path]) -> None:
    images = _source("text", folders["text"]).sample([0, 1, 0], [5, 5, 5])
    torch.testing.assert_close(images[0], images[2], atol=1e-5, rtol=0)
    assert float((images[0] - images[1]).abs().max()) > 1e-3
    guided = _source("text", folders["text"], guidance=ClassifierFree(scale=3.0)).sample([0], [5])
    assert float((images[0] - guided[0]).abs().max()) > 1e-3


def test_an_embedding_beyond_the_classes_is_the_null_class(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="null class"):
        DiffusersSource(folders["classes"], guidance=ClassifierFree(scale=2.0))
    shutil.copytree(folders["classes"], tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text(json.dumps({"classes": 2, "class_names": ["a", "b"]}))
    source = DiffusersSource(tmp_path / "m", guidance=ClassifierFree(scale=2.0))
    assert (source.classes, source.class_names) == (2, ("a", "b"))
    assert source._denoiser.conditioning.null == {"class_labels": 2}
    (tmp_path / "m" / "model.json").write_text(json.dumps({"classes": 4}))
    with pytest.raises(DataError, match=r"expected 1\.\.3 classes"):
        DiffusersSource(tmp_path / "m")
    chosen = Conditioning({"class_labels": torch.tensor([2, 0])}, {"class_labels": 1})
    images = DiffusersSource(folders["classes"], conditioning=chosen, steps=3).sample([0, 1], [0, 0])
    torch.testing.assert_close(images, DiffusersSource(folders["classes"], steps=3).sample([2, 0], [0, 0]), atol=1e-5, rtol=0)


def test_names_of_classes_are_read_from_the_index(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["classes"], tmp_path / "m")
    index = tmp_path / "m" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": {"10": "c", "2": "b", "0": "a"}}))
    assert DiffusersSource(tmp_path / "m").class_names == ("a", "b", "c")


def test_concat_channels_are_not_the_images(folders: dict[str, Path]) -> None:
    """A super-resolution or inpainting UNet takes more channels than it draws."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8, in_channels=3, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
    values = Conditioning({"concat": torch.tensor([[0.0, 0.0], [3.0, -3.0]])})
    source = DiffusersSource(DDPMPipeline(unet, DDPMScheduler(**SCHEDULE)), conditioning=values, steps=4)
    assert (source.shape, source.classes) == ((1, 8, 8), 2)
    images = source.sample([0, 1], [0, 0])
    assert float((images[0] - images[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["classes", "transformer", "text", "codebook"])
@pytest.mark.parametrize("precision", [Precision(dtype="bfloat16"), Precision(autocast="bfloat16")], ids=repr)
def test_lower_precision_stays_near_float32(kind: str, precision: Precision, folders: dict[str, Path]) -> None:
    exact, lower = _source(kind, folders[kind]), _source(kind, folders[kind], precision=precision)
    difference = (exact.sample([0, 0], [0, 1]) - lower.sample([0, 0], [0, 1])).abs()
    assert 0 < float(difference.mean()) < 0.02


def test_autoencoders_encode_what_they_decode(folders: dict[str, Path]) -> None:
    """The mean of the latents, scaled as the network was trained on."""
    source = _source("latents", folders["latents"])
    vae = AutoencoderKL.from_pretrained(folders["latents"] / "vae", local_files_only=True).eval()
    images = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        expected = vae.encode(images * 2 - 1).latent_dist.mean * vae.config.scaling_factor
        decoded = (vae.decode(expected / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(source.encode(images), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(source.decode(expected), decoded, atol=1e-5, rtol=1e-4)


def test_pipelines_of_another_kind_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    sizeless = _unet(1)
    sizeless.register_to_config(sample_size=None)
    with pytest.raises(DataError, match="expected conditioning for a UNet2DConditionModel"):
        DiffusersSource(folders["text"])
    with pytest.raises(DataError, match="expected conditioning for a UNet2DModel"):
        DiffusersSource(DDPMPipeline(_unet(1, class_embed_type="identity"), DDPMScheduler(**SCHEDULE)))
    with pytest.raises(DataError, match="scheduler: expected"):
        DiffusersSource(DiffusionPipelineOf(_unet(1), EDMEulerScheduler()))
    with pytest.raises(DataError, match="expected a pipeline with a unet or transformer"):
        DiffusersSource(DiffusionPipelineOf(None, _ddim()))
    with pytest.raises(DataError, match="expected sample_size"):
        DiffusersSource(DDPMPipeline(sizeless, DDPMScheduler(**SCHEDULE)))
    with pytest.raises(DataError, match="the network's 1 latent channels, got 4"):
        DiffusersSource(LDMPipelineOfVae(_unet(1), _ddim(), _autoencoder()))
    shutil.copytree(folders["latents"], tmp_path / "m")
    config = tmp_path / "m" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "AutoencoderTiny"}))
    with pytest.raises(DataError, match="expected AutoencoderKL or VQModel, got AutoencoderTiny"):
        DiffusersSource(tmp_path / "m")


@pytest.mark.parametrize(
    ("kind", "inputs", "null", "message"),
    [
        ("pixels", {"context": torch.zeros(2, 1, 6)}, None, "expected of class_labels, concat for a UNet2DModel, got context"),
        ("text", {"context": torch.zeros(2, 1, 7)}, None, r"expected context \(classes, tokens, 6\)"),
        ("classes", {"class_labels": torch.tensor([0, 3])}, None, r"expected class_labels 0\.\.2"),
        ("classes", {"class_labels": torch.tensor([0, 1])}, {"class_labels": 3}, r"expected class_labels 0\.\.2"),
        ("transformer", {"class_labels": torch.tensor([-1])}, None, r"expected class_labels 0\.\.1000"),
    ],
)
def test_conditions_that_the_network_does_not_take_are_refused(
    kind: str, inputs: dict[str, Tensor], null: dict[str, Any] | None, message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(DataError, match=message):
        DiffusersSource(folders[kind], conditioning=Conditioning(inputs, null))


def test_weights_in_several_files_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["pixels"], tmp_path / "m")
    (tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    _made("pixels").unet.save_pretrained(tmp_path / "m" / "unet", max_shard_size="10KB")
    assert len(list((tmp_path / "m" / "unet").glob("*.safetensors"))) > 1
    assert DiffusersSource(tmp_path / "m").fingerprint == DiffusersSource(folders["pixels"]).fingerprint


def test_pickled_weights_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["pixels"], tmp_path / "m")
    weights = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save(_unet(1).state_dict(), weights.with_suffix(".bin"))
    with pytest.raises(DataError, match="safetensors"):
        DiffusersSource(tmp_path / "m")
