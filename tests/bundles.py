"""Writes small bundles in the real format: the keys, classes and file names of the real ones, with few channels and small shapes.

Weights are random but not trivial: layers that start at zero get values, and groups of channels that are normalised together hold several, so
that what the network is told matters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.data import MetaTensor
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from torch import Tensor, nn

Config = dict[str, Any]
SCALE = 0.8
"""Of the MAISI checkpoints."""

SHARED: Config = {
    "bundle_root": ".",
    "model_dir": "$@bundle_root + '/models'",
    "output_dir": "$@bundle_root + '/output'",
    "create_output_dir": "$Path(@output_dir).mkdir(exist_ok=True)",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fills all weights, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
            if name.endswith("_layer.0.weight"):  # of MAISI's spacing and region, which come times 100
                spread /= 100
            value.copy_(torch.randn(value.shape, generator=generator) * spread + (1 if name.endswith("norm.weight") else 0))
        *_, weight, bias = [value for name, value in module.named_parameters() if name.startswith("decoder.")] or [None, None]
        if weight is not None:
            weight.mul_(4)
            bias.fill_(0.5)
    return module


def in_old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that GenerativeModels gave the same weights; its attention blocks also stored a projection that they did not apply."""
    old = {}
    for name, value in state.items():
        name = name.replace(".postconv.", ".conv.").replace(".attn.to_", ".to_").replace(".attn.out_proj.", ".proj_attn.")
        old[name.replace(".out_proj.", ".to_out.0.") if "transformer_blocks" in name else name] = value
    blocks = [name.removesuffix(".to_q.weight") for name in old if name.endswith(".to_q.weight") and "transformer_blocks" not in name]
    for block in blocks:
        side = old[f"{block}.to_q.weight"].shape[0]
        old.setdefault(f"{block}.proj_attn.weight", torch.ones(side, side))
        old.setdefault(f"{block}.proj_attn.bias", torch.ones(side))
    return old


def made(kind: type[nn.Module], definition: Config, references: Config, **changes: Any) -> nn.Module:
    """The module of a definition whose references are given."""
    arguments = {name: references.get(value[1:], value) if isinstance(value, str) else value for name, value in definition.items()}
    return kind(**{name: value for name, value in (arguments | changes).items() if name != "_target_"})


def written(folder: Path, config: Config, metadata: Config, weights: dict[str, Any], name: str = "inference.json") -> Path:
    for part in ("configs", "models"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config) if name.endswith("yaml") else json.dumps(config, indent=1)
    (folder / "configs" / name).write_text(text)
    if metadata:
        (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "1.0.0", "monai_version": "1.4.0"} | metadata))
    for file, content in weights.items():
        torch.save(content, folder / "models" / file)
    return folder


def brats(folder: Path, dims: int = 2, *, generative: bool = False) -> Path:
    """BraTS, axial slices or volumes; `generative` writes its first versions, of the GenerativeModels package."""
    package = "generative.networks" if generative else "monai.networks"
    channels = "num_channels" if generative else "channels"
    today = {} if generative else {"include_fc": False}
    autoencoder = {
        "_target_": f"{package}.nets.AutoencoderKL" if generative else f"{package}.nets.autoencoderkl.AutoencoderKL",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@image_channels",
        "out_channels": "@image_channels",
        "latent_channels": "@latent_channels",
        channels: [8, 8, 8],
        "num_res_blocks": 1,
        "norm_num_groups": 4,
        "norm_eps": 1e-06,
        "attention_levels": [False, False, False],
        "with_encoder_nonlocal_attn": dims == 2,
        "with_decoder_nonlocal_attn": dims == 2,
    } | today
    network = {
        "_target_": f"{package}.nets.DiffusionModelUNet" if generative else f"{package}.nets.diffusion_model_unet.DiffusionModelUNet",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@latent_channels",
        "out_channels": "@latent_channels",
        channels: [16, 16],
        "attention_levels": [False, True],
        "num_head_channels": [0, 8],
        "num_res_blocks": 1,
        "norm_num_groups": 8,
    } | (today | {"use_combined_linear": False} if today else {})
    latent = 1 if dims == 2 else 2
    load = "load_state_dict" if generative else "load_old_state_dict"
    config = SHARED | {
        "imports": ["$import torch", "$from scripts.utils import visualize_2d_image"],
        "spatial_dims": dims,
        "image_channels": 1,
        "latent_channels": latent,
        "latent_shape": ["@latent_channels", *[8, 8, 4][:dims]],
        "autoencoder_def": autoencoder,
        "network_def": network,
        "load_autoencoder_path": "$@bundle_root + '/models/model_autoencoder.pt'",
        "load_autoencoder": f"$@autoencoder_def.{load}(torch.load(@load_autoencoder_path))",
        "autoencoder": "$@autoencoder_def.to(@device)",
        "load_diffusion_path": "$@model_dir + '/model.pt'",
        "load_diffusion": f"$@network_def.{load}(torch.load(@load_diffusion_path))",
        "diffusion": "$@network_def.to(@device)",
        "noise_scheduler": {
            "_target_": f"{package}.schedulers.DDIMScheduler" if generative else f"{package}.schedulers.ddim.DDIMScheduler",
            "_requires_": ["@load_diffusion", "@load_autoencoder"],
            "num_train_timesteps": 1000,
            "beta_start": 0.0015,
            "beta_end": 0.0195,
            **({"beta_schedule": "scaled_linear"} if generative else {"schedule": "scaled_linear_beta"}),
            "clip_sample": False,
        },
        "noise": "$torch.randn([1]+@latent_shape).to(@device)",
        "set_timesteps": "$@noise_scheduler.set_timesteps(num_inference_steps=50)",
        "inferer": {"_target_": "scripts.ldm_sampler.LDMSampler", "_requires_": "@set_timesteps"},
        "run": ["$@create_output_dir"],
    }
    references = {"spatial_dims": dims, "image_channels": 1, "latent_channels": latent}

    def weights(kind: type[nn.Module], definition: Config, **changes: Any) -> dict[str, Tensor]:
        plain = {"channels" if name == "num_channels" else name: value for name, value in definition.items()}
        return in_old_names(randomised(made(kind, plain, references, include_fc=False, **changes)).state_dict())

    files = {"model_autoencoder.pt": weights(AutoencoderKL, autoencoder), "model.pt": weights(DiffusionModelUNet, network, use_combined_linear=False)}
    kind = "image" if dims == 3 else "axial slices"
    return written(folder, config, {"name": f"BraTS MRI {kind} latent diffusion generation", "task": f"BraTS MRI {kind} synthesis"}, files)


def _kings(dims: int, channels: int, context: int, latent: list[int]) -> Config:
    """What the brain's and the chest's bundle share: both come from GenerativeModels' zoo."""
    return SHARED | {
        "imports": ["$import torch", "$from datetime import datetime"],
        "load_old": 1,
        "autoencoder_def": {
            "_target_": "monai.networks.nets.AutoencoderKL",
            "spatial_dims": dims,
            "in_channels": 1,
            "out_channels": 1,
            "latent_channels": 3,
            "channels": [8, 8, 8, 8],
            "num_res_blocks": 1,
            "norm_num_groups": 4,
            "norm_eps": 1e-06,
            "attention_levels": [False] * 4,
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
        },
        "load_autoencoder_path": "$@model_dir + '/autoencoder.pt'",
        "load_autoencoder_func": "$@autoencoder_def.load_old_state_dict if bool(@load_old) else @autoencoder_def.load_state_dict",
        "load_autoencoder": "$@load_autoencoder_func(torch.load(@load_autoencoder_path))",
        "diffusion_def": {
            "_target_": "monai.networks.nets.DiffusionModelUNet",
            "spatial_dims": dims,
            "in_channels": channels,
            "out_channels": 3,
            "channels": [8, 8, 16],
            "num_res_blocks": 1,
            "attention_levels": [False, True, True],
            "norm_num_groups": 4,
            "norm_eps": 1e-06,
            "resblock_updown": dims == 3,
            "num_head_channels": [0, 8, 16],
            "with_conditioning": True,
            "transformer_num_layers": 1,
            "cross_attention_dim": context,
        }
        | ({"upcast_attention": True, "use_flash_attention": False} if dims == 3 else {}),
        "load_diffusion_path": "$@model_dir + '/model.pt'",
        "load_diffusion_func": "$@diffusion_def.load_old_state_dict if bool(@load_old) else @diffusion_def.load_state_dict",
        "load_diffusion": "$@load_diffusion_func(torch.load(@load_diffusion_path))",
        "scheduler": {
            "_target_": "monai.networks.schedulers.DDIMScheduler",
            "_requires_": ["@load_diffusion", "@load_autoencoder"],
            "beta_start": 0.0015,
            "beta_end": 0.0205,
            "num_train_timesteps": 1000,
            "schedule": "scaled_linear_beta",
            "clip_sample": False,
        }
        | ({"prediction_type": "v_prediction"} if dims == 2 else {}),
        "noise": f"$torch.randn({(1, *latent)}).to(@device)",
        "set_timesteps": "$@scheduler.set_timesteps(num_inference_steps=50)",
        "sampler": {"_target_": "scripts.sampler.Sampler", "_requires_": "@set_timesteps"},
    }


def _kings_weights(config: Config) -> dict[str, Any]:
    kinds = {"autoencoder.pt": (AutoencoderKL, "autoencoder_def"), "model.pt": (DiffusionModelUNet, "diffusion_def")}
    return {file: in_old_names(randomised(made(kind, config[key], {})).state_dict()) for file, (kind, key) in kinds.items()}


def brain(folder: Path) -> Path:
    """Four covariates, by cross-attention and as channels."""
    config = _kings(3, 7, 4, [3, 4, 4, 4]) | {
        "gender": 0.0,
        "age": 0.1,
        "ventricular_vol": 0.2,
        "brain_vol": 0.4,
        "conditioning": "$torch.tensor([[@gender, @age, @ventricular_vol, @brain_vol]]).to(@device).unsqueeze(1)",
        "network_def": "@autoencoder_def",
    }
    return written(folder, config, {"task": "Brain image synthesis"}, _kings_weights(config))


def cxr(folder: Path) -> Path:
    """Told a text by the embedding of a CLIP model, here 16 wide."""
    config = _kings(2, 3, 16, [3, 8, 8]) | {
        "prompt": "Big right-sided pleural effusion",
        "prompt_list": "$['', @prompt]",
        "guidance_scale": 7.0,
        "tokenizer": '$CLIPTokenizer.from_pretrained("stabilityai/stable-diffusion-2-1-base", subfolder="tokenizer")',
        "network_def": "@diffusion_def",
    }
    return written(folder, config, {"task": "Chest X-ray image synthesis"}, _kings_weights(config))


def mednist(folder: Path) -> Path:
    """Pixels, YAML, and weights in today's names."""
    network = {
        "_target_": "monai.networks.nets.DiffusionModelUNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [16, 16, 16],
        "attention_levels": [False, True, True],
        "num_res_blocks": 1,
        "num_head_channels": 16,
        "norm_num_groups": 8,
    }
    config = {
        "imports": ["$import os", "$import scripts"],
        "rank": "$dist.get_rank() if @is_dist else 0",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "bundle_root": ".",
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "image_dim": 16,
        "image_size": [1, "@image_dim", "@image_dim"],
        "num_train_timesteps": 1000,
        "scheduler": {"_target_": "monai.networks.schedulers.DDPMScheduler", "num_train_timesteps": "@num_train_timesteps"},
        "inferer": {"_target_": "monai.inferers.DiffusionInferer", "scheduler": "@scheduler"},
        "noise": "$torch.rand(1,1,@image_dim,@image_dim)",
        "sample": "$lambda x: @inferer.sample(input_noise=x, diffusion_model=@network, scheduler=@scheduler)",
        "load_state": "$@network.load_state_dict(torch.load(@ckpt_path, weights_only = True))",
    }
    weights = randomised(made(DiffusionModelUNet, network, {})).state_dict()
    return written(folder, config, {"task": "MedNIST Hand Generation"}, {"model.pt": weights}, "inference.yaml")


def _maisi_definitions(*, flow: bool) -> Config:
    region: Any = not flow
    network = {
        "_target_": "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi.DiffusionModelUNetMaisi",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@latent_channels",
        "out_channels": "@latent_channels",
        "num_channels": [16, 16, 16, 16],
        "attention_levels": [False, False, True, True],
        "num_head_channels": [0, 0, 8, 8],
        "num_res_blocks": 1,
        "norm_num_groups": 8,
        "use_flash_attention": True,
        "include_top_region_index_input": region,
        "include_bottom_region_index_input": region,
        "include_spacing_input": True,
        **({"num_class_embeds": 128} if flow else {}),
        "resblock_updown": flow,
        "include_fc": flow,
    }
    autoencoder = {
        "_target_": "monai.apps.generation.maisi.networks.autoencoderkl_maisi.AutoencoderKlMaisi",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@image_channels",
        "out_channels": "@image_channels",
        "latent_channels": "@latent_channels",
        "num_channels": [8, 8, 8],
        "num_res_blocks": [1, 1, 1],
        "norm_num_groups": 4,
        "norm_eps": 1e-06,
        "attention_levels": [False, False, False],
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
        "use_checkpointing": False,
        "use_convtranspose": False,
        "norm_float16": True,
        "num_splits": 2,
        "dim_split": 1,
    }
    return {"spatial_dims": 3, "image_channels": 1, "latent_channels": 4, "autoencoder_def": autoencoder, "diffusion_unet_def": network}


def _maisi_weights(config: Config) -> tuple[dict[str, Tensor], Config]:
    """Of the autoencoder, and the checkpoint of the network as NVIDIA's training writes it, with a scale that carries metadata."""
    autoencoder = randomised(made(AutoencoderKlMaisi, config["autoencoder_def"], config, norm_float16=False))
    network = randomised(made(DiffusionModelUNetMaisi, config["diffusion_unet_def"], config, use_flash_attention=False))
    scale = MetaTensor(torch.tensor(SCALE, dtype=torch.float16), meta={"space": "RAS"})
    return autoencoder.state_dict(), {
        "epoch": 3,
        "loss": 0.5,
        "num_train_timesteps": 1000,
        "scale_factor": scale,
        "unet_state_dict": network.state_dict(),
    }


DDPM: Config = {
    "_target_": "monai.networks.schedulers.ddpm.DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "schedule": "scaled_linear_beta",
    "clip_sample": False,
}


def maisi(folder: Path, *, flow: bool = True) -> Path:
    """The zoo's MAISI: version 1 is a flow that is told the modality, the versions before diffusion that is told the body region."""
    schedule = {
        "_target_": "scripts.rectified_flow.RFlowScheduler",
        "num_train_timesteps": 1000,
        "use_discrete_timesteps": False,
        "use_timestep_transform": True,
        "sample_method": "logit-normal",
        "scale": 1.2,
    }
    config = (
        SHARED
        | _maisi_definitions(flow=flow)
        | {
            "imports": ["$import torch", "$import scripts"],
            "trained_autoencoder_path": "$@model_dir + '/autoencoder_epoch273.pt'",
            "trained_diffusion_path": "$@model_dir + '/diff_unet_ckpt_epoch19350.pt'",
            "num_inference_steps": 30 if flow else 1000,
            "output_size_xy": 32,
            "output_size_z": 64,
            "output_size": ["@output_size_xy", "@output_size_xy", "@output_size_z"],
            "spacing_xy": 1.5,
            "spacing": ["@spacing_xy", "@spacing_xy", 2.0],
            "latent_shape": ["@latent_channels", *(f"$@output_size[{axis}]//4" for axis in range(3))],
            "autoencoder": "$@autoencoder_def.to(@device)",
            "checkpoint_autoencoder": "$torch.load(@trained_autoencoder_path, weights_only=True)",
            "load_autoencoder": "$@autoencoder.load_state_dict(@checkpoint_autoencoder)",
            "diffusion_unet": "$@diffusion_unet_def.to(@device)",
            "checkpoint_diffusion_unet": "$torch.load(@trained_diffusion_path, weights_only=False)",
            "load_diffusion": "$@diffusion_unet.load_state_dict(@checkpoint_diffusion_unet['unet_state_dict'])",
            "scale_factor": "$@checkpoint_diffusion_unet['scale_factor'].to(@device)",
            "noise_scheduler": schedule if flow else DDPM,
            **({"modality": "ct"} if flow else {"body_region": ["abdomen"]}),
        }
    )
    autoencoder, network = _maisi_weights(config)
    weights = {"autoencoder_epoch273.pt": autoencoder, "diff_unet_ckpt_epoch19350.pt": network}
    return written(folder, config, {"name": "CT image latent diffusion generation", "task": "CT image synthesis"}, weights)


def nv_generate(folder: Path, version: str = "rflow-mr", modality: int = 9, guidance: float = 15) -> Path:
    """NVIDIA's repository: three configuration files for a version, no metadata."""
    flow = version.startswith("rflow")
    config = _maisi_definitions(flow=flow) | {"include_body_region": not flow}
    config["noise_scheduler"] = DDPM
    if flow:
        config["noise_scheduler"] = {
            "_target_": "monai.networks.schedulers.rectified_flow.RFlowScheduler",
            "num_train_timesteps": 1000,
            "use_discrete_timesteps": False,
            "use_timestep_transform": True,
            "sample_method": "uniform",
            "scale": 1.4,
        }
    autoencoder, network = _maisi_weights(config)
    for switch in ("include_top_region_index_input", "include_bottom_region_index_input"):
        config["diffusion_unet_def"][switch] = "@include_body_region"
    environment = {
        "model_dir": "./models",
        "model_filename": f"diff_unet_3d_{version}.pt",
        "trained_autoencoder_path": "models/autoencoder_v2.pt",
        "existing_ckpt_filepath": None,
    }
    inference = {
        "dim": [32, 32, 64],
        "spacing": [1.25, 1.0, 1.0],
        "top_region_index": [0, 1, 0, 0],
        "bottom_region_index": [0, 0, 1, 0],
        "random_seed": 0,
        "num_inference_steps": 30,
        "modality": modality,
        "cfg_guidance_scale": guidance,
    }
    weights = {"autoencoder_v2.pt": {"unet_state_dict": autoencoder}, f"diff_unet_3d_{version}.pt": network}
    written(folder, config, {}, weights, f"config_network_{version.split('-')[0]}.json")
    written(folder, environment, {}, {}, f"environment_maisi_diff_model_{version}.json")
    return written(folder, {"diffusion_unet_inference": inference}, {}, {}, f"config_maisi_diff_model_{version}.json")


WRITERS: dict[str, Callable[[Path], Path]] = {
    "brats_mri_axial_slices_generative_diffusion": brats,
    "brats_mri_generative_diffusion": lambda folder: brats(folder, 3),
    "brain_image_synthesis_latent_diffusion_model": brain,
    "cxr_image_synthesis_latent_diffusion_model": cxr,
    "mednist_ddpm": mednist,
    "maisi_ct_generative": maisi,
    "nv_generate_ct_rflow": lambda folder: nv_generate(folder, "rflow-ct", 1, 0),
    "nv_generate_ct_ddpm": lambda folder: nv_generate(folder, "ddpm-ct", 1, 0),
    "nv_generate_mr": nv_generate,
    "nv_generate_mr_brain": lambda folder: nv_generate(folder, "rflow-mr-brain", 31, 10),
}
