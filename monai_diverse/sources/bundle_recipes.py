"""What the configuration of a diffusion bundle does not say by itself, for the bundles of the MONAI model zoo and NVIDIA's NV-Generate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from monai_diverse.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """One thing that a network is told beside x and t.

    Attributes:
        name: `class_labels`, `context` (cross-attention), `concat` (appended channels), or any other keyword of the network's forward.
        values: configuration keys whose numbers, one after another, make it; a class may give its own.
        scale: what the numbers are multiplied by.
        null: what stands for 'no condition' (text where `text` is set); None if the network was not trained without this one.
        text: `values` names a key with text, and its embedding is the input.
        when: name of the network's attribute without which it does not take this input; empty: it always does.
        words: words that may stand for numbers.
        default: what to take where neither the class nor the configuration says it.
    """

    name: str
    values: tuple[str, ...]
    scale: float = 1.0
    null: float | str | None = None
    text: bool = False
    when: str = ""
    words: Mapping[str, int] = field(default_factory=dict)
    default: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class BundleRecipe:
    """How to make a source of one kind of bundle; write one for a bundle that the table does not hold.

    Keys are those of the bundle's configuration; `a::b` is b inside a.

    Attributes:
        name: of the bundle; for reports.
        network: key of the diffusion network's definition.
        network_weights: key of the path of its weights, or that path in the bundle.
        autoencoder: key of the autoencoder's definition; None for a pixel model.
        autoencoder_weights: likewise.
        scheduler: key of the definition of the scheduler: its noise counts, not how it would sample.
        sample_shape: (c, *spatial) of what the network sees; a key of it or of a noise tensor, or the numbers. None: by `image_size`.
        image_size: key of the image's spatial size, `shrink` times that of the latents.
        shrink: see `image_size`.
        scale_factor: what latents were multiplied by before the network saw them; a key of the network's checkpoint, else of the
            configuration, or the number.
        inputs: what the network is told.
        prediction_type: where the scheduler does not say it.
        output_range: values of black and white in the images.
        intensity: what black and white mean, and in which unit; None where they have no unit.
        guidance: scale of classifier-free guidance, or the key of it; 1 for none.
        window: spatial size of latents from which on an image is decoded in overlapping windows, to bound memory; None: always at once.
        overlap: share by which windows overlap.
        files: configuration files, later ones overriding earlier ones.
        stand_ins: MONAI's classes that do the same as classes of the bundle's own code.
        known_as: names and tasks in the metadata of such bundles.
        licence: of the data that it was trained on.
    """

    name: str
    network: str = "network_def"
    network_weights: str = "models/model.pt"
    autoencoder: str | None = None
    autoencoder_weights: str = "models/autoencoder.pt"
    scheduler: str = "noise_scheduler"
    sample_shape: str | tuple[int, ...] | None = "latent_shape"
    image_size: str = ""
    shrink: int = 1
    scale_factor: float | str = 1.0
    inputs: tuple[NetworkInput, ...] = ()
    prediction_type: str | None = None
    output_range: tuple[float, float] = (0.0, 1.0)
    intensity: tuple[float, float, str] | None = None
    guidance: float | str = 1.0
    window: tuple[int, ...] | None = None
    overlap: float = 0.4
    files: tuple[str, ...] = ("configs/inference.json",)
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    known_as: tuple[str, ...] = ()
    licence: str = "unknown"

    def __post_init__(self) -> None:
        if self.sample_shape is None and not (self.image_size and self.shrink >= 1):
            raise RecipeError(f"{self.name}: expected sample_shape, or image_size and shrink, got neither")
        if not self.files:
            raise RecipeError(f"{self.name}: expected at least one configuration file, got none")


_BRATS = BundleRecipe(
    name="brats_mri_generative_diffusion",
    network_weights="load_diffusion_path",
    autoencoder="autoencoder_def",
    autoencoder_weights="load_autoencoder_path",
    # training multiplies latents by 1 / std of its first batch, which is stored nowhere; the bundle's own sampler does not divide
    scale_factor=1.0,
    known_as=("brats mri image latent diffusion generation", "brats mri latent diffusion generation", "brats mri image synthesis"),
    licence="CC BY-SA 4.0",
)

_COVARIATES = ("gender", "age", "ventricular_vol", "brain_vol")

_BRAIN = replace(
    _BRATS,
    name="brain_image_synthesis_latent_diffusion_model",
    network="diffusion_def",
    scheduler="scheduler",
    sample_shape="noise",
    inputs=(NetworkInput(name="context", values=_COVARIATES), NetworkInput(name="concat", values=_COVARIATES)),
    known_as=("brain image synthesis",),
    licence="UK Biobank's terms of access",
)

_CXR = replace(
    _BRAIN,
    name="cxr_image_synthesis_latent_diffusion_model",
    scale_factor=0.3,  # a default of the sampler in the bundle's scripts
    inputs=(NetworkInput(name="context", values=("prompt",), text=True, null=""),),
    guidance="guidance_scale",
    known_as=("chest x-ray image synthesis", "chest x-ray latent diffusion synthesis"),
    licence="PhysioNet Credentialed Health Data License",
)

_MEDNIST = BundleRecipe(
    name="mednist_ddpm",
    network_weights="ckpt_path",
    scheduler="scheduler",
    sample_shape="image_size",
    files=("configs/inference.yaml",),
    known_as=("mednist hand generation",),
    licence="CC BY-SA 4.0",
)

_MODALITIES = {
    "unknown": 0,
    "ct": 1,
    "ct_wo_contrast": 2,
    "ct_contrast": 3,
    "mri": 8,
    "mri_t1": 9,
    "mri_t2": 10,
    "mri_flair": 11,
    "mri_pd": 12,
    "mri_dwi": 13,
    "mri_adc": 14,
    "mri_ssfp": 15,
    "mri_mra": 16,
    "mri_swi": 20,
    "mri_t1_skull_stripped": 29,
    "mri_t2_skull_stripped": 30,
    "mri_flair_skull_stripped": 31,
    "mri_swi_skull_stripped": 32,
}


def _maisi_inputs(place: str) -> tuple[NetworkInput, ...]:
    """Modality (rectified flow) or body region (DDPM), and spacing in mm; `place` is where their keys lie."""
    top, bottom = (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)
    region = "region_index"
    return (
        NetworkInput(name="class_labels", values=(f"{place}modality",), null=0, when="num_class_embeds", words=_MODALITIES),
        NetworkInput(name="spacing_tensor", values=(f"{place}spacing",), scale=100, when="include_spacing_input"),
        NetworkInput(name="top_region_index_tensor", values=(f"{place}top_{region}",), scale=100, when="include_top_region_index_input", default=top),
        NetworkInput(
            name="bottom_region_index_tensor",
            values=(f"{place}bottom_{region}",),
            scale=100,
            when="include_bottom_region_index_input",
            default=bottom,
        ),
    )


_MAISI = BundleRecipe(
    name="maisi_ct_generative",
    network="diffusion_unet_def",
    network_weights="trained_diffusion_path",
    autoencoder="autoencoder_def",
    autoencoder_weights="trained_autoencoder_path",
    scale_factor="scale_factor",
    inputs=_maisi_inputs(""),
    intensity=(-1000.0, 1000.0, "HU"),
    window=(80, 80, 80),
    stand_ins={"scripts.rectified_flow.RFlowScheduler": "monai.networks.schedulers.RFlowScheduler"},
    known_as=("ct image latent diffusion generation", "ct image synthesis"),
)


def _nv_generate(name: str, network: str, version: str, licence: str) -> BundleRecipe:
    mr = version.startswith("rflow-mr")
    return replace(
        _MAISI,
        name=name,
        network_weights="model_filename",
        sample_shape=None,
        image_size="diffusion_unet_inference::dim",
        shrink=4,
        inputs=_maisi_inputs("diffusion_unet_inference::"),
        intensity=(0.0, 1000.0, "arbitrary") if mr else _MAISI.intensity,
        guidance="diffusion_unet_inference::cfg_guidance_scale",
        files=(
            f"configs/config_network_{network}.json",
            f"configs/environment_maisi_diff_model_{version}.json",
            f"configs/config_maisi_diff_model_{version}.json",
        ),
        known_as=(),
        licence=f"several public sets; weights: {licence}",
    )


RECIPES: dict[str, BundleRecipe] = {
    recipe.name: recipe
    for recipe in (
        _BRATS,
        replace(
            _BRATS,
            name="brats_mri_axial_slices_generative_diffusion",
            known_as=("brats mri axial slices latent diffusion generation", "brats mri axial slices synthesis"),
        ),
        _BRAIN,
        _CXR,
        _MEDNIST,
        _MAISI,
        _nv_generate("nv_generate_ct_rflow", "rflow", "rflow-ct", "NVIDIA Open Model License"),
        _nv_generate("nv_generate_ct_ddpm", "ddpm", "ddpm-ct", "NVIDIA Open Model License"),
        _nv_generate("nv_generate_mr", "rflow", "rflow-mr", "NVIDIA Non-Commercial License"),
        _nv_generate("nv_generate_mr_brain", "rflow", "rflow-mr-brain", "NVIDIA Open Model License"),
    )
}
"""The bundles that need nothing said about them, by name."""
