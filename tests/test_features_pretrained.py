"""Adapters of others' networks, through their real loading code where they are installed, and against stand-ins of the same interface everywhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standins
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from monai_diverse.errors import DataError, MissingExtraError, RecipeError
from monai_diverse.features import (
    DifferentiableExtractor,
    FeatureExtractor,
    HuggingFaceFeatures,
    MedicalNetFeatures,
    ModuleFeatures,
    SqueezeNetLogits,
    TimmFeatures,
    TorchXRayVisionFeatures,
)
from monai_diverse.features.medicalnet import PaddedShortcut, _network
from monai_diverse.testing import ExtractorContract

TIMM = "test_resnet.r160_in1k"
XRAY = "densenet121-res224-all"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(params=["installed", "stand-in"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Gives a package by name, real or not."""

    def get(name: str) -> Any:
        if request.param == "installed":
            return standins.installed(name)
        for module, made in getattr(standins, name)().items():
            monkeypatch.setitem(sys.modules, module, made)
        return sys.modules[name]

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield get


def drawn(*shape: int) -> Any:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def scaled(images: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (torch.from_numpy(images) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def settle(network: Any) -> Any:
    """Batch norms at rest give a random network nothing to tell images apart by; so they get statistics of their own."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture
def timm_file(package: Callable[[str], Any], tmp_path: Path) -> tuple[Any, Path]:
    """A classifier in timm's format, and its file."""
    network = settle(package("timm").create_model(TIMM, num_classes=10))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    return network, tmp_path / "model.safetensors"


class TestTimm:
    def test_pools_what_the_network_pools(self, timm_file: tuple[Any, Path], tmp_path: Path) -> None:
        network, file = timm_file
        given = sys.modules["timm"].data.resolve_model_data_config(network)
        images = drawn(3, 3, 160, 160)
        network.fc = nn.Identity()
        with torch.no_grad():
            expected = network(scaled(images, given["mean"], given["std"])).numpy()
        extractor = TimmFeatures(TIMM, path=file)
        np.testing.assert_allclose(extractor(images), expected, atol=1e-4)
        assert extractor.name == f"timm-{TIMM}"
        wrapped = {"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}, "epoch": 3}
        torch.save(wrapped, tmp_path / "wrapped.pth")
        again = TimmFeatures(TIMM, path=tmp_path / "wrapped.pth")
        np.testing.assert_array_equal(again(images), extractor(images))
        assert again.fingerprint == extractor.fingerprint

    def test_resizes_grey_slices_as_timm_does(self, timm_file: tuple[Any, Path]) -> None:
        network, file = timm_file
        given = sys.modules["timm"].data.resolve_model_data_config(network)
        volume = drawn(2, 1, 3, 20, 30)
        network.fc = nn.Identity()
        planes = torch.from_numpy(volume[:, 0, 1][:, None]).expand(-1, 3, -1, -1)
        resized = functional.interpolate(planes, (64, 64), mode=given["interpolation"], antialias=True).clamp(0, 1).numpy()
        with torch.no_grad():
            expected = network(scaled(resized, given["mean"], given["std"])).numpy()
        np.testing.assert_allclose(TimmFeatures(TIMM, path=file, size=64, slices=1)(volume), expected, atol=1e-4)

    def test_a_grey_network_takes_the_mean_of_its_statistics(self, package: Callable[[str], Any], tmp_path: Path) -> None:
        timm = package("timm")
        network = settle(timm.create_model(TIMM, num_classes=0, in_chans=1))
        save_file(network.state_dict(), tmp_path / "grey.safetensors")
        given = timm.data.resolve_model_data_config(network)
        images = drawn(2, 1, 160, 160)
        mean, std = (np.mean(given[key]).item() for key in ("mean", "std"))
        with torch.no_grad():
            expected = network(scaled(images, (mean,), (std,))).numpy()
        np.testing.assert_allclose(TimmFeatures(TIMM, path=tmp_path / "grey.safetensors", in_chans=1)(images), expected, atol=1e-4)

    def test_says_what_is_wrong(self, timm_file: tuple[Any, Path], tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="model: expected one of timm's"):
            TimmFeatures("no-such-model")
        with pytest.raises(DataError, match="its weights cannot be had here"):
            TimmFeatures(TIMM)
        with pytest.raises(DataError, match="cannot be read"):
            TimmFeatures(TIMM, path=tmp_path / "nowhere.pth")
        weights = {name: value for name, value in timm_file[0].state_dict().items() if name != "conv1.weight"}
        save_file({"another": torch.ones(1)} | weights, tmp_path / "other.safetensors")
        with pytest.raises(DataError, match="expected the weights of this"):
            TimmFeatures(TIMM, path=tmp_path / "other.safetensors")
        torch.save({"epoch": 3}, tmp_path / "none.pth")
        with pytest.raises(DataError, match="expected named tensors"):
            TimmFeatures(TIMM, path=tmp_path / "none.pth")


def test_no_code_in_a_weights_file_is_run(timm_file: tuple[Any, Path], tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pth")
    with pytest.raises(DataError, match="cannot be read"):
        TimmFeatures(TIMM, path=tmp_path / "pickled.pth")


class TestTimmContract(ExtractorContract):
    shapes = ((1, 40, 40), (2, 32, 40), (1, 3, 40, 40))

    @pytest.fixture(autouse=True)
    def place(self, timm_file: tuple[Any, Path]) -> None:
        self.file = timm_file[1]

    def extractor(self) -> FeatureExtractor:
        return TimmFeatures(TIMM, path=self.file, size=64, batch_size=3)

    def other(self) -> FeatureExtractor:
        return TimmFeatures(TIMM, path=self.file, size=96)


def test_a_network_of_one_size_takes_no_other(tmp_path: Path) -> None:
    network = standins.installed("timm").create_model("test_vit.r160_in1k")
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    assert TimmFeatures("test_vit.r160_in1k", path=tmp_path / "vit.safetensors")(drawn(2, 1, 30, 30)).shape == (2, network.num_features)
    with pytest.raises(RecipeError, match=r"takes planes of .* only, got 64"):
        TimmFeatures("test_vit.r160_in1k", path=tmp_path / "vit.safetensors", size=64)


def test_squeezenet_gives_all_logits(package: Callable[[str], Any], tmp_path: Path) -> None:
    models = package("torchvision").models
    network = models.squeezenet1_1(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "squeezenet1_1-b8a52dc0.pth")
    extractor = SqueezeNetLogits(path=tmp_path / "squeezenet1_1-b8a52dc0.pth", slices=1)
    images = drawn(2, 3, 224, 224)
    with torch.no_grad():
        expected = network(scaled(images, **IMAGENET)).numpy()
    assert expected.shape == (2, 1000)
    np.testing.assert_allclose(extractor(images), expected, atol=1e-4)
    grey = drawn(2, 1, 30, 40)
    resized = functional.interpolate(torch.from_numpy(grey), (224, 224), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = network(scaled(resized.numpy(), **IMAGENET)).numpy()
    np.testing.assert_allclose(extractor(grey), expected, atol=1e-4)
    np.testing.assert_array_equal(extractor(grey[:, :, None].repeat(3, 2)), extractor(grey))
    assert extractor.name == "squeezenet1_1-logits"


def test_squeezenet_without_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, made in standins.torchvision().items():
        monkeypatch.setitem(sys.modules, module, made)
    with pytest.raises(DataError, match=r"its weights cannot be had here .*no network.*; download them and give `path`"):
        SqueezeNetLogits()


@pytest.fixture
def xray_folder(package: Callable[[str], Any], tmp_path: Path) -> tuple[Any, Path]:
    """A random network in TorchXRayVision's format, where it looks for one."""
    models = package("torchxrayvision").models
    network = settle(models.DenseNet())
    torch.save(network, tmp_path / Path(models.model_urls[XRAY]["weights_url"]).name)
    return network, tmp_path


class TestTorchXRayVision:
    def test_equals_the_librarys_own_features(self, xray_folder: tuple[Any, Path], capsys: pytest.CaptureFixture[str]) -> None:
        network, folder = xray_folder
        extractor = TorchXRayVisionFeatures(folder=folder)
        images = drawn(2, 1, 224, 224)
        with torch.no_grad():
            expected = network.features2((2 * torch.from_numpy(images) - 1) * 1024).numpy()
        np.testing.assert_allclose(extractor(images), expected, rtol=1e-4, atol=1e-3)
        capsys.readouterr()
        extractor(np.zeros((1, 1, 30, 20), np.float32))
        assert capsys.readouterr().out == ""
        two = np.concatenate([images, images[::-1]], axis=1)
        np.testing.assert_allclose(extractor(two), np.repeat(extractor(images).mean(0)[None], 2, 0), rtol=1e-4, atol=1e-3)

    def test_reads_a_state_dict_instead(self, xray_folder: tuple[Any, Path]) -> None:
        network, folder = xray_folder
        save_file(network.state_dict(), folder / "weights.safetensors")
        images = drawn(2, 1, 60, 50)
        plain = TorchXRayVisionFeatures(path=folder / "weights.safetensors")
        np.testing.assert_array_equal(plain(images), TorchXRayVisionFeatures(folder=folder)(images))

    def test_says_what_is_wrong(self, package: Callable[[str], Any], tmp_path: Path) -> None:
        models = package("torchxrayvision").models
        with pytest.raises(RecipeError, match="weights: expected one of densenet121-res224-all"):
            TorchXRayVisionFeatures(weights="all")
        (tmp_path / Path(models.model_urls[XRAY]["weights_url"]).name).write_bytes(b"broken")
        with pytest.raises(DataError, match="its weights cannot be had here"):
            TorchXRayVisionFeatures(folder=tmp_path)

    def test_importing_it_leaves_warnings_on(self, package: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import warnings

        package("torchxrayvision")
        before = list(warnings.filters)
        for name in [name for name in sys.modules if name.startswith("torchxrayvision")]:
            if hasattr(sys.modules[name], "__spec__") and sys.modules[name].__spec__ is not None:
                monkeypatch.delitem(sys.modules, name)
        with pytest.raises(RecipeError):
            TorchXRayVisionFeatures(weights="none")
        assert list(warnings.filters) == before


def processor(folder: Path, **more: Any) -> dict[str, Any]:
    """Writes what an image processor of transformers writes."""
    content = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2,
        "rescale_factor": 1 / 255, "size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7],
    } | more  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def vit(package: Callable[[str], Any], tmp_path: Path) -> tuple[Any, Path]:
    """A small vision transformer, saved as transformers saves it."""
    transformers = package("transformers")
    if hasattr(transformers, "ViTConfig"):
        small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
        network = transformers.ViTModel(transformers.ViTConfig(**small)).eval()
        with torch.no_grad():
            network.pooler.dense.weight.mul_(20)  # else all is near 0 as drawn
    else:
        network = standins.ViTModel().eval()
    network.save_pretrained(tmp_path / "vit")
    processor(tmp_path / "vit")
    return network, tmp_path / "vit"


class TestHuggingFace:
    def test_gives_the_pooled_output(self, vit: tuple[Any, Path]) -> None:
        network, folder = vit
        images = drawn(3, 3, 32, 32)
        with torch.no_grad():
            expected = network(pixel_values=scaled(images, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))).pooler_output.numpy()
        extractor = HuggingFaceFeatures(folder=folder)
        np.testing.assert_allclose(extractor(images), expected, atol=1e-5)
        moved = folder.rename(folder.parent / "moved")
        assert HuggingFaceFeatures(folder=moved).fingerprint == extractor.fingerprint
        assert extractor.name == "huggingface-ViTModel"

    @pytest.mark.parametrize(
        ("settings", "mean", "std"),
        [
            ({"do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
            ({"rescale_factor": 2 / 255}, (0.25, 0.2, 0.15), (0.25, 0.3, 0.35)),
            ({"do_rescale": False}, (0.5 / 255, 0.4 / 255, 0.3 / 255), (0.5 / 255, 0.6 / 255, 0.7 / 255)),
            ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)),
        ],
    )
    def test_does_what_the_image_processor_says(self, vit: tuple[Any, Path], settings: dict[str, Any], mean: Any, std: Any) -> None:
        network, folder = vit
        processor(folder, **settings)
        images = drawn(2, 3, 32, 32)
        with torch.no_grad():
            expected = network(pixel_values=scaled(images, mean, std)).pooler_output.numpy()
        np.testing.assert_allclose(HuggingFaceFeatures(folder=folder)(images), expected, atol=1e-4)

    def test_averages_tokens_where_no_pooler_was_trained(self, vit: tuple[Any, Path]) -> None:
        network, folder = vit
        weights = {name: value for name, value in network.state_dict().items() if "pooler" not in name}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        images = drawn(2, 3, 32, 32)
        with torch.no_grad():
            tokens = network(pixel_values=scaled(images, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))).last_hidden_state
        state = torch.get_rng_state()
        extractor = HuggingFaceFeatures(folder=folder)
        assert torch.equal(torch.get_rng_state(), state)
        np.testing.assert_allclose(extractor(images), tokens.mean(1).numpy(), atol=1e-5)
        assert HuggingFaceFeatures(folder=folder).fingerprint == extractor.fingerprint

    def test_says_what_is_wrong(self, vit: tuple[Any, Path]) -> None:
        network, folder = vit
        for arguments in ({}, {"folder": folder, "model": "a/b"}):
            with pytest.raises(RecipeError, match="either a folder or a name on the hub"):
                HuggingFaceFeatures(**arguments)
        processor(folder, size={"longest_edge": 9})
        with pytest.raises(DataError, match="expected an image processor with a size"):
            HuggingFaceFeatures(folder=folder)
        processor(folder)
        weights = network.state_dict()
        dropped = next(name for name in weights if "embed" in name)
        save_file({name: value for name, value in weights.items() if name != dropped}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(DataError, match="but it lacks"):
            HuggingFaceFeatures(folder=folder)
        (folder / "preprocessor_config.json").unlink()
        with pytest.raises(DataError, match="expected a vision model"):
            HuggingFaceFeatures(folder=folder)
        with pytest.raises(DataError, match="expected a vision model"):
            HuggingFaceFeatures(model="nobody/nothing")


class TestHuggingFaceContract(ExtractorContract):
    shapes = ((1, 20, 20), (3, 12, 12), (1, 3, 20, 20))

    @pytest.fixture(autouse=True)
    def place(self, vit: tuple[Any, Path]) -> None:
        self.folder = vit[1]

    def extractor(self) -> FeatureExtractor:
        processor(self.folder)
        return HuggingFaceFeatures(folder=self.folder, batch_size=3)

    def other(self) -> FeatureExtractor:
        processor(self.folder, image_mean=[0.1, 0.1, 0.1])
        return HuggingFaceFeatures(folder=self.folder)


@pytest.mark.parametrize("kind", ["CLIP", "ResNet"])
def test_vision_parts_and_feature_maps_of_transformers(kind: str, tmp_path: Path) -> None:
    transformers = standins.installed("transformers")
    if kind == "CLIP":
        common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        text = common | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        network = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=common | {"image_size": 32, "patch_size": 8})).eval()
        vision = network.vision_model
    else:
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        network = vision = settle(transformers.ResNetModel(config))
    network.save_pretrained(tmp_path)
    processor(tmp_path)
    images = drawn(2, 3, 32, 32)
    with torch.no_grad():
        expected = vision(pixel_values=scaled(images, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))).pooler_output.flatten(1).numpy()
    np.testing.assert_allclose(HuggingFaceFeatures(folder=tmp_path)(images), expected, atol=1e-5)


@pytest.fixture(scope="module")
def medical(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A random ResNet-10 in a file such as MedicalNet's."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = settle(_network(10))
    file = tmp_path_factory.mktemp("medical") / "resnet_10_23dataset.pth"
    weights = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights | {"module.conv_seg.0.weight": torch.ones(1)}}, file)
    return network, file


class TestMedicalNet(ExtractorContract):
    shapes = ((1, 9, 10, 8), (2, 8, 8, 8))

    @pytest.fixture(autouse=True)
    def place(self, medical: tuple[nn.Module, Path]) -> None:
        self.network, self.file = medical

    def extractor(self) -> FeatureExtractor:
        return MedicalNetFeatures(path=self.file)

    def other(self) -> FeatureExtractor:
        return MedicalNetFeatures(path=self.file, size=(8, 12, 10))

    def test_standardises_the_foreground_and_pools(self) -> None:
        volume = drawn(2, 1, 9, 10, 8)
        volume[:, :, :3] = 0
        standard = np.zeros_like(volume)
        for i in range(2):
            inside = volume[i] > 0
            standard[i][inside] = (volume[i][inside] - volume[i][inside].mean()) / volume[i][inside].std()
        with torch.no_grad():
            expected = self.network(torch.from_numpy(standard)).numpy()
        assert expected.shape == (2, 512)
        np.testing.assert_allclose(MedicalNetFeatures(path=self.file)(volume), expected, atol=1e-4)

    def test_says_what_is_wrong(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="depth: expected one of 10, 18"):
            MedicalNetFeatures(depth=12)
        with pytest.raises(RecipeError, match="size: expected three sides"):
            MedicalNetFeatures(size=(3, 3))  # type: ignore[arg-type]
        with pytest.raises(DataError, match="expected the weights of this ResNet"):
            MedicalNetFeatures(depth=18, path=self.file)
        with pytest.raises(DataError, match="MedicalNet 10: its weights cannot be had here"):
            MedicalNetFeatures()
        with pytest.raises(DataError, match="expected 3D images"):
            MedicalNetFeatures(path=self.file)(drawn(1, 1, 8, 8))


def test_medicalnets_shortcuts_of_type_a_have_a_gradient() -> None:
    """The same values as MONAI's, which detaches them."""
    from monai.networks.nets import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        theirs = resnet18(n_input_channels=1, feed_forward=False, shortcut_type="A", bias_downsample=True).eval()
        ours = _network(18).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.from_numpy(drawn(1, 1, 17, 18, 19))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    assert sum(isinstance(part, PaddedShortcut) for part in ours.modules()) == 3
    volume = torch.from_numpy(drawn(2, 3, 5, 6, 4)).double().requires_grad_()
    assert torch.autograd.gradcheck(PaddedShortcut(planes=5, stride=2), volume)
    assert not any(isinstance(part, PaddedShortcut) for part in _network(10).modules())


def test_every_adapter_has_a_gradient(medical: tuple[nn.Module, Path]) -> None:
    extractor = MedicalNetFeatures(path=medical[1])
    assert isinstance(extractor, ModuleFeatures)
    assert isinstance(extractor, DifferentiableExtractor)
    volume = torch.from_numpy(drawn(1, 1, 8, 8, 8)).requires_grad_()
    extractor.differentiable(volume).sum().backward()
    assert volume.grad is not None
    assert float(volume.grad.abs().sum()) > 0


ADAPTERS: dict[str, Callable[[], FeatureExtractor]] = {
    "timm": lambda: TimmFeatures(TIMM),
    "torchvision": SqueezeNetLogits,
    "torchxrayvision": TorchXRayVisionFeatures,
    "transformers": lambda: HuggingFaceFeatures(model="a/b"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / name).is_dir()])
    with pytest.raises(MissingExtraError, match=f"needs {name}: pip install {name}"):
        ADAPTERS[name]()
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=f"needs {name}, which does not import here .operator torchvision::nms"):
        ADAPTERS[name]()
    (tmp_path / name / "__init__.py").write_text("import something_that_is_missing")
    with pytest.raises(MissingExtraError, match="No module named 'something_that_is_missing'"):
        ADAPTERS[name]()
