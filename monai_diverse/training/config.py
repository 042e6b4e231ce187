"""What can be chosen when a diffusion model is trained, and the network that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import DDPMScheduler, UNet2DModel

from monai_diverse.devices import require_device
from monai_diverse.errors import DataError, RecipeError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `train`; together with the data they decide the model.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step.
        learning_rate: Adam's, after a linear warm-up of `warmup` steps.
        warmup: steps of linear warm-up.
        ema_decay: of the exponential moving average of the weights, which is what is kept; it rises to this as (1 + n) / (10 + n).
        label_dropout: share of images whose label is replaced by the null class, for classifier-free guidance.
        mirror: mirror images left-right at random. The copy gate then needs mirrored training images too.
        channels: feature maps at each resolution; each further entry halves the resolution.
        patch: squares of so many pixels become channels before the network sees them (space to depth), and back behind it; 2 makes
            steps about four times cheaper.
        layers: residual blocks a resolution.
        dropout: inside the residual blocks.
        calibration_parts: one in so many training images (by group) is set aside, unseen, to calibrate the screen.
        twin_correlation: images whose pixels correlate above this count as one group.
        validation_draws: fixed (timestep, noise) pairs for each validation image.
        check_every: steps between looks at the validation bank, where progress is kept too.
        snapshots: steps whose averaged weights are kept in `snapshots/STEP`.
        seed: decides split, initial weights, batches, timesteps and noise; 0 to 2**31 - 1.
        device: where to compute.
    """

    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float = 4e-4
    warmup: int = 200
    ema_decay: float = 0.999
    label_dropout: float = 0.1
    mirror: bool = True
    channels: tuple[int, ...] = (32, 64, 128)
    patch: int = 1
    layers: int = 1
    dropout: float = 0.1
    calibration_parts: int = 5
    twin_correlation: float = 0.95
    validation_draws: int = 16
    check_every: int = 250
    snapshots: tuple[int, ...] = ()
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "check_every", "validation_draws", "patch", "layers"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("ema_decay", "label_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            raise RecipeError(f"seed: expected 0..{2**31 - 1}, got {self.seed}")
        require_device(self.device)
        if self.learning_rate <= 0:
            raise RecipeError(f"learning_rate: expected above 0, got {self.learning_rate}")
        if self.calibration_parts < 2:
            raise RecipeError(f"calibration_parts: expected at least 2, got {self.calibration_parts}")
        if len(self.channels) < 2 or any(c % 16 for c in self.channels):
            raise RecipeError(f"channels: expected two or more multiples of 16, got {self.channels}")


def build_unet(config: TrainConfig, *, image_channels: int, size: tuple[int, ...], classes: int) -> UNet2DModel:
    """A diffusers UNet with attention at its lowest resolution; class `classes` is the null class.

    Raises:
        DataError: images that are not 2D squares, or whose side the network cannot halve often enough.
    """
    levels = len(config.channels)
    multiple = config.patch * 2 ** (levels - 1)
    if len(size) != 2 or size[0] != size[1] or size[0] % multiple:
        why = f"patch {config.patch}, halved {levels - 1} times for channels {','.join(map(str, config.channels))}"
        mend = "pad or resize them, or take a smaller patch or fewer channels"
        raise DataError(f"images: expected 2D squares whose side is a multiple of {multiple} ({why}), got {size}; {mend}")
    return UNet2DModel(
        sample_size=size[0] // config.patch,
        in_channels=image_channels * config.patch**2,
        out_channels=image_channels * config.patch**2,
        layers_per_block=config.layers,
        block_out_channels=config.channels,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=16,
        attention_head_dim=32,
        num_class_embeds=classes + 1,
        dropout=config.dropout,
    )


def build_scheduler() -> DDPMScheduler:
    """1000 steps, cosine schedule (Nichol & Dhariwal 2021), v-prediction (Salimans & Ho 2022)."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
