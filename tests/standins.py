"""Small modules with the interfaces of timm, torchvision, TorchXRayVision and transformers that the adapters use, where those do not import."""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def installed(name: str) -> Any:
    """The real package; skips the test where it is not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def torchvision() -> dict[str, ModuleType]:
    """SqueezeNet alone, and no weights to download."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 4, 7, stride=4), nn.ReLU())
            self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(4, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.features(x)).flatten(1)

    class Weights:
        def get_state_dict(self, *, progress: bool, check_hash: bool) -> dict[str, Tensor]:
            raise OSError("no network")

    models = ModuleType("torchvision.models")
    models.squeezenet1_1 = lambda weights: Net()  # type: ignore[attr-defined]
    models.SqueezeNet1_1_Weights = SimpleNamespace(IMAGENET1K_V1=Weights())  # type: ignore[attr-defined]
    package = ModuleType("torchvision")
    package.models = models  # type: ignore[attr-defined]
    return {"torchvision": package, "torchvision.models": models}


def timm() -> dict[str, ModuleType]:
    """One network, with a configuration as timm's."""

    class Net(nn.Module):
        def __init__(self, num_classes: int, in_chans: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(in_chans, 8, 3, stride=2)
            self.fc = nn.Linear(8, num_classes) if num_classes else nn.Identity()
            self.pretrained_cfg = {"classifier": "fc", "fixed_input_size": False}

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv1(x).relu().mean((2, 3)))

    def create_model(name: str, *, pretrained: bool = False, num_classes: int = 10, in_chans: int = 3) -> Net:
        if pretrained:
            raise RuntimeError("no network")
        return Net(num_classes, in_chans)

    package = ModuleType("timm")
    package.is_model = lambda name: name in ("test_resnet.r160_in1k", "resnet18.a1_in1k")  # type: ignore[attr-defined]
    package.create_model = create_model  # type: ignore[attr-defined]
    config = {"input_size": (3, 160, 160), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic"}
    package.data = SimpleNamespace(resolve_model_data_config=lambda model: config)  # type: ignore[attr-defined]
    return {"timm": package}


class DenseNet(nn.Module):
    """As TorchXRayVision's, which is stored pickled; at the top of a module, so that it can be."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 7, stride=4), nn.BatchNorm2d(6))
        self.classifier = nn.Linear(6, 18)

    def features2(self, x: Tensor) -> Tensor:
        return self.features(x).relu().mean((2, 3))


def torchxrayvision() -> dict[str, ModuleType]:
    """Its one DenseNet, read from a folder."""
    urls = {"densenet121-res224-all": {"weights_url": "https://x/densenet.pt", "input_resolution": 224}, "all": {}}

    def get_model(weights: str, *, cache_dir: str | None) -> DenseNet:
        if cache_dir is None or not (Path(cache_dir) / "densenet.pt").is_file():
            raise ConnectionError("no network")
        network: DenseNet = torch.load(Path(cache_dir) / "densenet.pt", weights_only=False)
        return network

    models = ModuleType("torchxrayvision.models")
    models.model_urls, models.get_model, models.DenseNet = urls, get_model, DenseNet  # type: ignore[attr-defined]
    package = ModuleType("torchxrayvision")
    package.models = models  # type: ignore[attr-defined]
    return {"torchxrayvision": package, "torchxrayvision.models": models}


class ViTModel(nn.Module):
    """Tokens and a pooled vector, as transformers' networks give them."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_channels=3)
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.pooler: nn.Module | None = nn.Linear(8, 8)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        tokens = self.embed(pixel_values).flatten(2).transpose(1, 2)
        return SimpleNamespace(last_hidden_state=tokens, pooler_output=None if self.pooler is None else self.pooler(tokens[:, 0]))

    def save_pretrained(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")


def transformers() -> dict[str, ModuleType]:
    """Reads folders of `ViTModel` alone; there is no hub."""

    def model(origin: str, *, use_safetensors: bool, output_loading_info: bool, **where: Any) -> tuple[ViTModel, dict[str, Any]]:
        assert use_safetensors
        assert output_loading_info
        network = ViTModel()
        if not (Path(origin) / "model.safetensors").is_file():
            raise OSError(f"{origin} has no model.safetensors")
        missing = network.load_state_dict(load_file(Path(origin) / "model.safetensors"), strict=False).missing_keys
        return network, {"missing_keys": set(missing)}

    def processor(origin: str, **where: Any) -> Any:
        file = Path(origin) / "preprocessor_config.json"
        if not file.is_file():
            raise OSError(f"{origin} has no preprocessor_config.json")
        return SimpleNamespace(to_dict=lambda: json.loads(file.read_text()))

    package = ModuleType("transformers")
    package.AutoModel = SimpleNamespace(from_pretrained=model)  # type: ignore[attr-defined]
    package.AutoImageProcessor = SimpleNamespace(from_pretrained=processor)  # type: ignore[attr-defined]
    return {"transformers": package}
