"""What docs/sources.md tells people to type works, and what its tables list is what there is."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from bundles import brain, cxr
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from monai.networks.nets import DiffusionModelUNet
from PIL import Image

import monai_diverse
from monai_diverse import DiffusersSource, SampleSource
from monai_diverse.components import Component
from monai_diverse.sampling import SCHEDULERS
from monai_diverse.sources import RECIPES
from monai_diverse.sources.builtin import ASSETS

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "sources.md").read_text()
DIM = 16
"""Width of the small chest X-ray bundle's texts."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """Cells of the table whose first column has this heading."""
    table = re.search(rf"^\| {heading} \|.*\n\|[- |]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table is not None, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.group(1).splitlines()]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def text_model(folder: Path) -> None:
    """As Stable Diffusion's folder, without the text encoder."""
    small: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=DIM, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **small,
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **small
    ).save_pretrained(folder / "vae")
    DDIMScheduler().save_pretrained(folder / "scheduler")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models and pictures that the page names, all small."""
    brain(tmp_path / "brain_image_synthesis_latent_diffusion_model")
    cxr(tmp_path / "cxr_image_synthesis_latent_diffusion_model")
    shutil.copytree(tmp_path / "brain_image_synthesis_latent_diffusion_model", tmp_path / "our_brains")
    (tmp_path / "our_brains" / "configs" / "metadata.json").unlink()
    shutil.copytree(ASSETS, tmp_path / "model")
    text_model(tmp_path / "text-model")
    for name in ("benign", "malignant"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            grey = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(grey).save(tmp_path / "pictures" / name / f"{i}.png")
    unet = DiffusionModelUNet(
        spatial_dims=2, in_channels=1, out_channels=1, channels=(16, 32), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=8
    )
    torch.save(unet.state_dict(), tmp_path / "unet.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(names: dict[str, Any]) -> None:
    source, images = names.get("source"), names.get("images")
    if isinstance(source, SampleSource) and images is not None:
        assert images.shape[1:] == source.shape
        assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_python_and_recipes_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_models")
    names = vars(module)
    rng = torch.Generator().manual_seed(0)
    names |= {name: torch.randn(5, DIM, generator=rng) for name in ("clear", "effusion", "empty")}
    code = blocks("python")
    assert len(code) == 11
    for block in code:
        names.pop("images", None)
        names.pop("half", None)
        exec(block, names)
        check(names | ({"source": names["half"]} if "half" in names else {}))
    assert names["volume"].shape == (1, 1, 16, 16, 8) == (1, *names["volumes"].shape)
    assert names["nearly"].scale_factor == 0.9
    assert isinstance(names["half"], DiffusersSource)

    monkeypatch.setitem(sys.modules, "my_models", module)
    made = []
    for block in blocks("yaml"):
        made.append(Component(**yaml.safe_load(block)["source"]).build(place, ["my_models"]))
    assert [(source.name, source.classes) for source in made] == [("lesions", 1), ("brain_image_synthesis_latent_diffusion_model", 2)]


def test_the_table_lists_every_recipe_and_what_it_is_told() -> None:
    listed = rows("recipe")
    assert [quoted(row[0])[0] for row in listed] == list(RECIPES)
    for name, row in zip(RECIPES, listed, strict=True):
        recipe, said = RECIPES[name], set(quoted(row[2]))
        known = {key.split("::")[-1] for given in recipe.inputs for key in given.values}
        # MAISI's recipes know both a modality and a body region; a network takes one of them
        assert said <= known if "modality" in known else said == known
        assert row[3] == "none" or isinstance(recipe.guidance, str)
        numbers = [float(number) for number in re.findall(r"-?\d+", row[4])]
        assert numbers == list((recipe.intensity or ())[:2])


def test_the_table_of_keys_is_the_recipes() -> None:
    listed = {quoted(row[0])[0].removesuffix("..."): row[1:] for row in rows("of")}
    for name, recipe in RECIPES.items():
        (cells,) = [row for start, row in listed.items() if name.startswith(start)]
        network, weights, autoencoder, scheduler = (quoted(cell) for cell in cells[:4])
        assert (network, weights, scheduler) == ([recipe.network], [recipe.network_weights], [recipe.scheduler])
        assert autoencoder == ([] if recipe.autoencoder is None else [recipe.autoencoder_weights])
        assert (recipe.sample_shape or recipe.image_size).endswith(quoted(cells[4])[0])
        scale = re.match(r"[\d.]+", cells[5])
        assert recipe.autoencoder is None or (float(scale[0]) if scale else "scale_factor") == recipe.scale_factor


def test_samplers_and_classes_exist() -> None:
    (listed,) = re.findall(r"^- `sampler`: .*?(?=^- )", PAGE, re.MULTILINE | re.DOTALL)
    assert tuple(quoted(listed)[1:]) == SCHEDULERS
    sources = {name for row in rows("what you have") for name in quoted(row[1])}
    assert sources == {name for name in monai_diverse.__all__ if name.endswith("Source")} - {"SampleSource"}
