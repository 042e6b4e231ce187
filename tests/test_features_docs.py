"""What docs/features.md tells people to type works, and its table lists what there is."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standins
import torch
import yaml
from safetensors.torch import save_file

import monai_diverse.features
from monai_diverse import NoveltyScreen
from monai_diverse.components import Component
from monai_diverse.features import CachedFeatures, Ensemble, FeatureExtractor
from monai_diverse.features.medicalnet import _network

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "features.md").read_text()
PACKAGES = ("timm", "torchvision", "torchxrayvision", "transformers")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small files of the names on the page, and stand-ins of the optional packages that read them."""
    for package in PACKAGES:
        for name, made in getattr(standins, package)().items():
            monkeypatch.setitem(sys.modules, name, made)
    with torch.random.fork_rng(devices=[]):
        save_file(sys.modules["timm"].create_model("resnet18.a1_in1k").state_dict(), tmp_path / "resnet18.safetensors")
        torch.save(sys.modules["torchvision"].models.squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet1_1.pth")
        (tmp_path / "xray-models").mkdir()
        torch.save(standins.DenseNet(), tmp_path / "xray-models" / "densenet.pt")
        standins.ViTModel().save_pretrained(tmp_path / "vit")
    processor = {"size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(processor))
    torch.save({"state_dict": _network(10).state_dict()}, tmp_path / "resnet_10_23dataset.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(text: str) -> list[str]:
    return re.findall(r"print\(.*\)  # (.*)", text)


def test_python_and_recipes_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    code = blocks("python")
    assert len(code) == 6
    with torch.random.fork_rng(devices=[]):
        for block in code:
            exec(block, names)
            assert capsys.readouterr().out.splitlines() == printed(block)
    for name in ("timm", "xray", "vit", "logits"):
        features = names[name](names["images"])
        assert np.isfinite(features).all()
        assert len(features) == 4
    (recipe,) = blocks("yaml")
    screen = Component(**yaml.safe_load(recipe)["screen"]).build(place)
    assert isinstance(screen, NoveltyScreen)
    assert isinstance(screen.extractor, CachedFeatures)
    assert isinstance(screen.extractor.extractor, Ensemble)
    assert screen.extractor.folder == str(place / "features")


def test_the_table_lists_every_extractor() -> None:
    listed = re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
    public = [getattr(monai_diverse.features, name) for name in monai_diverse.features.__all__]
    kinds = [kind for kind in public if inspect.isclass(kind) and not getattr(kind, "_is_protocol", False)]
    assert sorted(listed) == sorted(kind.__name__ for kind in kinds if all(hasattr(kind, part) for part in ("name", "fingerprint", "__call__")))
    assert FeatureExtractor.__name__ not in listed


def test_packages_named_are_those_that_are_asked_for() -> None:
    assert set(re.findall(r"`pip install (\w+)`", PAGE)) == set(PACKAGES)
