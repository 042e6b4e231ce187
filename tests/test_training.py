import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from monai_diverse.errors import DataError, RecipeError, StorageError
from monai_diverse.sources import DiffusersSource
from monai_diverse.storage import write_json
from monai_diverse.training import TrainConfig, prepare, train, write_card
from monai_diverse.training.config import build_scheduler, build_unet
from monai_diverse.training.objective import bank_loss, draw_batch, generator_for, validation_bank


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_loss_falls_and_the_best_weights_are_kept(tiny_model: Path) -> None:
    training = json.loads((tiny_model / "training.json").read_text())
    losses = {row["step"]: row["validation_loss"] for row in training["losses"]}
    assert list(losses) == [80, 160, 240]
    assert losses[240] < 0.8 * losses[80]
    assert losses[training["best_step"]] == min(losses.values())


def test_weights_load_with_diffusers_alone(tiny_model: Path) -> None:
    unet = UNet2DModel.from_pretrained(tiny_model / "unet", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    assert unet.config.num_class_embeds == 3
    assert all(value.dtype == torch.float16 for value in _weights(tiny_model).values())


def test_interrupted_training_gives_the_same_model(tmp_path: Path, blob_file: Path, tiny_config: TrainConfig) -> None:
    config = replace(tiny_config, steps=24, check_every=8, batch_size=8)
    data = prepare(blob_file, config)
    assert [p.step for p in train(data, tmp_path / "whole", config)] == list(range(1, 25))
    steps = train(data, tmp_path / "m", config)
    seen = [next(steps).step for _ in range(10)]
    steps.close()
    assert seen == list(range(1, 11))
    assert [p.step for p in train(data, tmp_path / "m", config)] == list(range(9, 25))
    whole, resumed = _weights(tmp_path / "whole"), _weights(tmp_path / "m")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    best = json.loads((tmp_path / "m" / "training.json").read_text())["best_step"]
    assert best > 10, "the weights that are kept should be of after the interruption for this test to mean anything"


def test_folder_of_another_training_is_refused(tiny_model: Path, blob_file: Path, tiny_config: TrainConfig) -> None:
    before = (tiny_model / "training.json").read_bytes()
    other = replace(tiny_config, learning_rate=1e-4)
    with pytest.raises(RecipeError, match="other data or settings"):
        next(train(prepare(blob_file, other), tiny_model, other))
    assert (tiny_model / "training.json").read_bytes() == before


def test_global_random_state_is_left_alone(tmp_path: Path, blob_file: Path, tiny_config: TrainConfig) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    next(train(prepare(blob_file, tiny_config), tmp_path / "m", tiny_config))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_split_is_disjoint_and_recorded(tiny_model: Path, blob_file: Path, tiny_config: TrainConfig) -> None:
    split = json.loads((tiny_model / "split.json").read_text())
    assert sorted(split["generator_train"] + split["calibration"]) == list(range(150))
    assert abs(len(split["calibration"]) - 30) <= 3
    data = prepare(blob_file, tiny_config)
    np.testing.assert_array_equal(data.seen.labels, prepare(blob_file, tiny_config).seen.labels)
    assert len(data.validation) == 40


def test_validation_holds_no_twin_of_a_train_image(tmp_path: Path, blob_file: Path, tiny_config: TrainConfig) -> None:
    """A validation image that the model nearly saw would favour a stop at which it memorises."""
    stored = dict(np.load(blob_file))
    stored["val_images"][[3, 17]] = stored["train_images"][[8, 140]]
    np.savez(tmp_path / "twins.npz", **stored)
    data = prepare(tmp_path / "twins.npz", tiny_config)
    assert data.split["validation"] == [i for i in range(40) if i not in (3, 17)]
    assert len(data.validation) == 38
    np.savez(tmp_path / "all.npz", **stored | {"val_images": stored["train_images"][:40], "val_labels": stored["train_labels"][:40]})
    with pytest.raises(DataError, match="near-duplicates only"):
        prepare(tmp_path / "all.npz", tiny_config)


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, blob_file: Path, tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(tiny_config, check_every=5, steps=20)
    steps = train(prepare(blob_file, config), tmp_path / "m", config)
    seen = [next(steps).step for _ in range(7)]

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left"):
            list(steps)
    assert seen[-1] == 7
    assert [p.step for p in train(prepare(blob_file, config), tmp_path / "m", config)] == list(range(6, 21))


def test_diverging_loss_is_refused(tmp_path: Path, blob_file: Path, tiny_config: TrainConfig) -> None:
    config = replace(tiny_config, learning_rate=1e30, check_every=5)
    with pytest.raises(RecipeError, match="lower the learning rate"):
        list(train(prepare(blob_file, config), tmp_path / "m", config))
    assert not (tmp_path / "m" / "checkpoint.pt").exists()


def test_classes_of_a_folder_name_themselves(tmp_path: Path, tiny_config: TrainConfig) -> None:
    for name, row in (("benign", 2), ("malignant", 6)):
        (tmp_path / name).mkdir()
        for i in range(8):
            picture = np.random.default_rng(i + 10 * row).integers(0, 60, (8, 8), dtype=np.uint8)
            picture[row] = 200
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    data = prepare(tmp_path, replace(tiny_config, calibration_parts=4))
    assert data.class_names == ("benign", "malignant")
    assert data.split["validation"] is None
    np.testing.assert_array_equal(data.validation.images, data.calibration.images)


def test_card_names_data_hash_command_and_losses(tiny_model: Path) -> None:
    card = (tiny_model / "CARD.md").read_text()
    split = json.loads((tiny_model / "split.json").read_text())
    assert split["data_sha256"] in card
    assert "0 top, 1 bottom" in card
    assert "--patch" not in card
    assert (tiny_model / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_card_holds_earlier_steps_beside_the_kept_one(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    rows = [
        {"step": step, "bias": {"value": bias, "ci": [0, 0.5]}, "last_minus_this": {"value": 0.03 - bias, "ci": [-0.5, 0.25]}}
        for step, bias in ((80, 0.01), (240, 0.03))
    ]
    write_json(folder / "steps.json", {"images": 7, "tolerance": 0.02, "steps": rows})
    write_card(folder)
    card = (folder / "CARD.md").read_text()
    assert "| 80 | +1.00% (+0.00% to +50.00%) | +2.00% (-50.00% to +25.00%) |" in card
    assert "| 240, these weights | +3.00% (+0.00% to +50.00%) | |" in card


def test_validation_bank_is_fixed_and_covers_the_schedule(blob_file: Path, tiny_config: TrainConfig) -> None:
    data = prepare(blob_file, tiny_config).validation
    first, again = (validation_bank(data, build_scheduler(), draws=4, seed=1) for _ in range(2))
    assert all(torch.equal(a.noisy, b.noisy) for a, b in zip(first, again, strict=True))
    timesteps = torch.stack([batch.timesteps for batch in first], 1)
    assert torch.equal(timesteps.sort(1).values // 250, torch.arange(4).expand(len(data), 4))


def test_target_is_the_velocity(blob_file: Path, tiny_config: TrainConfig) -> None:
    """A network that answers with v = alpha eps - sigma x0 has no loss; one that answers 0 has the target's variance."""
    data = prepare(blob_file, tiny_config).validation
    scheduler = build_scheduler()
    batch = validation_bank(data, scheduler, draws=1, seed=0)[0]
    clean = torch.from_numpy(data.images) * 2 - 1
    abar = scheduler.alphas_cumprod[batch.timesteps].reshape(-1, 1, 1, 1)
    noise = (batch.noisy - abar.sqrt() * clean) / (1 - abar).sqrt()

    class Answer(torch.nn.Module):
        def __init__(self, value: torch.Tensor) -> None:
            super().__init__()
            self.value = torch.nn.Parameter(value)

        def forward(self, *_: object, **__: object) -> object:
            return type("Out", (), {"sample": self.value})

    velocity = abar.sqrt() * noise - (1 - abar).sqrt() * clean
    assert bank_loss(Answer(velocity), [batch]) < 1e-6
    assert bank_loss(Answer(torch.zeros_like(clean)), [batch]) == pytest.approx(float(velocity.square().mean()), rel=1e-4)


def test_batches_drop_labels_and_mirror() -> None:
    images = torch.zeros(2, 1, 4, 4)
    images[..., 0] = 1
    batch = draw_batch(
        images, torch.tensor([0, 1]), build_scheduler(), size=4000, null=2, label_dropout=0.25, mirror=True, generator=generator_for(0)
    )
    assert float((batch.labels == 2).float().mean()) == pytest.approx(0.25, abs=0.03)
    early = batch.timesteps < 50
    left = batch.noisy[early][..., 0].mean((1, 2)) > batch.noisy[early][..., 3].mean((1, 2))
    assert float(left.float().mean()) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 0), ("label_dropout", 1.0), ("learning_rate", 0), ("calibration_parts", 1), ("channels", (10, 20))]
)
def test_bad_settings(key: str, value: object) -> None:
    with pytest.raises(RecipeError, match=key):
        TrainConfig(**{key: value})


def test_images_that_the_network_cannot_halve() -> None:
    with pytest.raises(DataError, match="multiple of 4"):
        build_unet(TrainConfig(), image_channels=1, size=(30, 30), classes=2)


def test_snapshots_are_models_and_the_last_is_what_training_ends_with(tmp_path: Path, blob_file: Path, tiny_config: TrainConfig) -> None:
    config = replace(tiny_config, steps=20, check_every=10, patch=2, snapshots=(5, 20), mirror=False)
    for _ in train(prepare(blob_file, config), tmp_path / "m", config):
        pass
    whole, early, late = (DiffusersSource(folder, steps=2) for folder in (tmp_path / "m", *sorted((tmp_path / "m" / "snapshots").iterdir())))
    assert whole.shape == early.shape == (1, 8, 8)
    assert not whole.mirrored
    images = [source.sample([0, 1], [0, 1]) for source in (whole, early, late)]
    assert torch.equal(images[0], images[2])  # the loss still falls, so that the last weights are the best
    assert not torch.allclose(images[0], images[1], atol=1e-3)


def test_patches_are_taken_apart_and_put_together(tmp_path: Path, blob_file: Path, tiny_config: TrainConfig) -> None:
    config = replace(tiny_config, steps=10, check_every=10, patch=2)
    data = prepare(blob_file, config)
    for _ in train(data, tmp_path / "m", config):
        pass
    unet = UNet2DModel.from_pretrained(tmp_path / "m" / "unet", torch_dtype=torch.float32, low_cpu_mem_usage=False).eval()
    assert (unet.config.in_channels, unet.config.sample_size) == (4, 4)
    batch = validation_bank(data.validation, build_scheduler(), draws=1, seed=0, patch=2)[0]
    recorded = json.loads((tmp_path / "m" / "training.json").read_text())["losses"][-1]["validation_loss"]
    assert bank_loss(unet, validation_bank(data.validation, build_scheduler(), draws=4, seed=config.seed, patch=2)) == pytest.approx(
        recorded, rel=1e-2
    )
    write_card(tmp_path / "m")
    assert "--seed 0 --patch 2 --channels 16,32 --calibration-parts" in (tmp_path / "m" / "CARD.md").read_text()
    source = DiffusersSource(tmp_path / "m")
    states = torch.nn.functional.pixel_shuffle(batch.noisy, 2)
    index = int(batch.timesteps[0])
    same = batch.timesteps == index
    guess = source.denoise(states[same], batch.labels[same], index)
    with torch.no_grad():
        velocity = unet(batch.noisy[same], batch.timesteps[same], class_labels=batch.labels[same]).sample
    abar = build_scheduler().alphas_cumprod[index]
    assert torch.allclose(guess, abar.sqrt() * states[same] - (1 - abar).sqrt() * torch.nn.functional.pixel_shuffle(velocity, 2), atol=1e-4)
    (tmp_path / "m" / "model.json").write_text((tmp_path / "m" / "model.json").read_text().replace('"patch": 2', '"patch": 3'))
    with pytest.raises(DataError, match="expected a patch whose square divides"):
        DiffusersSource(tmp_path / "m")
