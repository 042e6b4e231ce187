"""Planes, ensembles and their principal components, the cache, and what a module's fingerprint holds."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from torch import Tensor, nn
from torch.nn import functional

from monai_diverse.components import Component
from monai_diverse.data import FloatArray, LabelledImages
from monai_diverse.errors import DataError, RecipeError, StorageError
from monai_diverse.features import (
    PCA,
    BlockExtractor,
    CachedFeatures,
    DifferentiableExtractor,
    EfficientNetLite0,
    Ensemble,
    FeatureExtractor,
    ModuleFeatures,
    Normalise,
    PixelFeatures,
    Planes,
)
from monai_diverse.features.efficientnet import lite0_network
from monai_diverse.sampling import Semantic
from monai_diverse.screening import NoveltyScreen
from monai_diverse.testing import ExtractorContract


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def rgb_network() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)))


@dataclass(frozen=True)
class Counting:
    """An extractor without a gradient that remembers how often it worked."""

    passes: list[int] = field(default_factory=list, compare=False)
    width: int = 3
    name: str = "counting"
    fingerprint: str = "counting-1"

    def __call__(self, images: FloatArray) -> FloatArray:
        self.passes.append(len(images))
        flat = images.reshape(len(images), int(np.prod(images.shape[1:])))
        return np.ascontiguousarray(flat[:, : self.width], np.float32)


class TestModuleOnPlanes(ExtractorContract):
    shapes = ((1, 12, 12), (3, 12, 10), (2, 12, 12), (1, 9, 12, 10), (4, 3, 10, 12))

    def extractor(self) -> ModuleFeatures:
        preprocess = Normalise(size=(14, 14), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
        return ModuleFeatures(rgb_network(), preprocess=preprocess, planes=Planes(slices=4), batch_size=3)

    def other(self) -> ModuleFeatures:
        return ModuleFeatures(rgb_network(), planes=Planes(slices=4))


class TestEnsemble(ExtractorContract):
    shapes = ((1, 12, 12), (3, 12, 10))

    def extractor(self) -> Ensemble:
        return Ensemble(extractors=(PixelFeatures(max_side=4), ModuleFeatures(rgb_network(), planes=Planes())))

    def other(self) -> Ensemble:
        return Ensemble(extractors=(ModuleFeatures(rgb_network(), planes=Planes()), PixelFeatures(max_side=4)))


class TestCached(ExtractorContract):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "not" / "there"

    def extractor(self) -> CachedFeatures:
        return CachedFeatures(extractor=PixelFeatures(max_side=5), folder=self.folder)

    def other(self) -> CachedFeatures:
        return CachedFeatures(extractor=PixelFeatures(max_side=4), folder=self.folder)


@pytest.mark.parametrize(
    ("arguments", "fingerprint"),
    [
        ({}, "82fd3bad72428a23c814b1e5831ac551ce95f158e4fa07d14b7c3f0f484808a8"),
        ({"slices": 4, "slice_axis": 2}, "f471de11ecfccd3007207da8555c3c1d037a9fe63240ec9068ed3c0fcb4d6bb5"),
        ({"size": 32}, "c4a0732588b71f66afa54346fd8e029b3bd0f933a7b17a8bcf4ae040431084d7"),
    ],
)
def test_efficientnet_is_what_banks_were_grown_with(arguments: dict[str, int], fingerprint: str) -> None:
    """Fingerprints as version 0.1.0 gave them, and its formula to the bit."""
    extractor = EfficientNetLite0(**arguments)
    assert extractor.fingerprint == fingerprint
    for shape in ((2, 1, 20, 24), (2, 3, 20, 24), (2, 2, 20, 20), (2, 1, 9, 20, 11), (2, 4, 3, 20, 20)):
        images = torch.from_numpy(np.random.default_rng(0).random(shape, dtype=np.float32))
        planes = images
        if images.ndim == 5:
            axis = 2 + extractor.slice_axis
            count = min(extractor.slices, shape[axis])
            middles = [int((i + 0.5) * shape[axis] / count) for i in range(count)]
            planes = torch.stack([images.select(axis, middle) for middle in middles], 1).flatten(0, 1)
        if planes.shape[1] not in (1, 3):
            planes = planes.flatten(0, 1)[:, None]
        planes = functional.interpolate(planes, size=(extractor.size,) * 2, mode="bilinear", antialias=True)
        with torch.no_grad():
            maps = lite0_network(extractor.size).extract_features((planes.expand(-1, 3, -1, -1) * 255 - 127) / 128)
        expected = maps.mean((2, 3)).view(2, -1, 1280).mean(1).numpy()
        np.testing.assert_array_equal(extractor(images.numpy()), expected)


def test_planes_average_slices_and_channels() -> None:
    extractor = ModuleFeatures(rgb_network(), planes=Planes(slices=4), batch_size=5)
    volume = np.random.default_rng(0).random((3, 1, 8, 10, 12), dtype=np.float32)
    by_slice = np.mean([extractor(volume[:, :, depth]) for depth in (1, 3, 5, 7)], axis=0)
    np.testing.assert_allclose(extractor(volume), by_slice, atol=1e-5)
    turned = np.ascontiguousarray(np.moveaxis(volume, 2, 4))
    along = ModuleFeatures(rgb_network(), planes=Planes(slices=4, slice_axis=2))
    np.testing.assert_allclose(along(turned), by_slice, atol=1e-5)
    two = volume[:, 0, :2]
    np.testing.assert_allclose(extractor(two), (extractor(two[:, :1]) + extractor(two[:, 1:])) / 2, atol=1e-5)
    whole = ModuleFeatures(rgb_network())
    np.testing.assert_allclose(extractor(two[:, :1]), whole(np.repeat(two[:, :1], 3, axis=1)), atol=1e-5)
    np.testing.assert_allclose(extractor(volume[:, 0, :3]), whole(volume[:, 0, :3]), atol=1e-5)


def test_planes_of_a_3d_network_are_channels() -> None:
    network = seeded(lambda: nn.Conv3d(1, 4, 3))
    extractor = ModuleFeatures(network, planes=Planes(slices=None, channels=1))
    volume = np.random.default_rng(0).random((2, 3, 6, 7, 8), dtype=np.float32)
    by_channel = np.mean([ModuleFeatures(network)(volume[:, c : c + 1]) for c in range(3)], axis=0)
    np.testing.assert_allclose(extractor(volume), by_channel, atol=1e-5)


@given(channels=st.integers(1, 5), depth=st.integers(1, 9), slices=st.integers(1, 9), axis=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_planes_are_as_many_as_they_say(channels: int, depth: int, slices: int, axis: int) -> None:
    planes = Planes(slices=slices, slice_axis=axis)
    shape = np.insert([4, 5], axis, depth)
    cut = planes.cut(torch.zeros(2, channels, *shape.tolist()))
    assert len(cut) == 2 * planes.per_image((channels, *shape.tolist()))
    assert tuple(cut.shape[2:]) == (4, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Planes(slices=0), "slices: expected at least 1"),
        (lambda: Planes(channels=0), "channels: expected at least 1"),
        (lambda: Planes(slice_axis=3), "slice_axis: expected"),
        (lambda: Normalise(size=(3,), mean=(0,), std=(1,)), "size: expected"),
        (lambda: Normalise(size=None, mean=(0, 0), std=(1,)), "expected a mean and a positive std"),
        (lambda: Normalise(size=None, mean=(0,), std=(0,)), "expected a mean and a positive std"),
        (lambda: Normalise(size=None, mean=(0,), std=(1,), mode="nearest"), "mode: expected"),
        (lambda: Ensemble(extractors=(PixelFeatures(),)), "two or more extractors"),
        (lambda: Ensemble(extractors=(PixelFeatures(), nn.Identity())), "two or more extractors"),
        (lambda: CachedFeatures(extractor=nn.Identity(), folder="x"), "extractor: expected a feature extractor"),
    ],
)
def test_wrong_settings(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_normalise_repeats_grey_and_resizes_whole_planes() -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((2, 1, 8, 6), dtype=np.float32))
    out = Normalise(size=None, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))(image)
    torch.testing.assert_close(out[:, 2:], (image - 0.3) / 4)
    steps = torch.tensor([0.0, 1.0]).repeat_interleave(4).expand(1, 1, 8, 8)
    small = Normalise(size=(4, 4), mean=(0,), std=(1,), mode="bicubic")(steps)
    assert small.shape == (1, 1, 4, 4)
    assert 0 <= float(small.min()) < 0.1
    assert 0.9 < float(small.max()) <= 1


class Stretch(nn.Module):
    """A preprocess with a weight, a number and a flag."""

    def __init__(self, factor: float = 2.0, power: int = 1, invert: bool = False) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor), persistent=False)
        self.power, self.invert = power, invert

    def forward(self, x: Tensor) -> Tensor:
        return (1 - x if self.invert else x) ** self.power * self.factor


def test_a_preprocess_that_is_a_module_is_hashed_and_copied() -> None:
    def features(**settings: Any) -> ModuleFeatures:
        return ModuleFeatures(rgb_network(), preprocess=Stretch(**settings))

    changed = [features(factor=3.0), features(power=2), features(invert=True), ModuleFeatures(rgb_network())]
    assert features().fingerprint == features().fingerprint
    assert len({extractor.fingerprint for extractor in [features(), *changed]}) == 5
    stretch = Stretch()
    extractor = ModuleFeatures(rgb_network(), preprocess=stretch)
    images = np.random.default_rng(0).random((2, 3, 6, 6), dtype=np.float32)
    before = extractor(images)
    stretch.factor.fill_(0)
    np.testing.assert_array_equal(extractor(images), before)
    sizes = {ModuleFeatures(rgb_network(), preprocess=Normalise(size=(s, s), mean=(0,), std=(1,))).fingerprint for s in (8, 9)}
    assert len(sizes) == 2
    assert ModuleFeatures(rgb_network(), planes=Planes()).fingerprint != ModuleFeatures(rgb_network(), planes=Planes(slices=3)).fingerprint


def test_numbers_that_a_network_does_not_print_are_hashed() -> None:
    from monai.networks.nets import resnet10

    network = seeded(lambda: resnet10(spatial_dims=2, n_input_channels=1, feed_forward=False))
    pooled = ModuleFeatures(network).fingerprint
    network.no_max_pool = True
    assert ModuleFeatures(network).fingerprint != pooled


def test_an_ensemble_is_its_members_side_by_side() -> None:
    images = np.random.default_rng(0).random((4, 1, 12, 12), dtype=np.float32)
    members = (PixelFeatures(max_side=4), ModuleFeatures(rgb_network(), planes=Planes()), Counting())
    both = Ensemble(extractors=members[:2])
    np.testing.assert_array_equal(both(images), np.hstack([members[0](images), members[1](images)]))
    assert both.widths((1, 12, 12)) == (16, 5)
    assert both.name == "pixels-4+Sequential"
    assert isinstance(both, DifferentiableExtractor)
    torch.testing.assert_close(both.differentiable(torch.from_numpy(images)), torch.from_numpy(both(images)), atol=1e-5, rtol=1e-4)
    mixed = Ensemble(extractors=members[1:])
    assert isinstance(mixed, FeatureExtractor)
    assert not isinstance(mixed, DifferentiableExtractor)
    for again in (pickle.loads(pickle.dumps(both)), copy.deepcopy(both)):
        assert again.fingerprint == both.fingerprint
        np.testing.assert_allclose(again.differentiable(torch.from_numpy(images)).numpy(), both(images), atol=1e-5)
    guide = Semantic(extractor=both, components=4)
    assert guide.extractor is both


@given(seed=st.integers(0, 1000), n=st.integers(6, 40), widths=st.lists(st.integers(1, 6), min_size=2, max_size=4), whiten=st.booleans())
@settings(max_examples=40, deadline=None)
def test_blocks_of_principal_components_have_an_equal_say(seed: int, n: int, widths: list[int], whiten: bool) -> None:
    """TOLERANCE 1e-3 relative: coordinates are float32."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-3, 4, len(widths))
    parts = [rng.normal(size=(n, width)) * size for width, size in zip(widths, sizes, strict=True)]
    x = np.hstack(parts)
    settings_ = PCA(n_components=3, whiten=whiten)
    fitted, alone = settings_.fit(x, widths), [settings_.fit(part) for part in parts]
    counts = [len(part.scale) for part in alone]
    np.testing.assert_allclose(fitted.components @ fitted.components.T, np.eye(sum(counts)), atol=1e-8)
    ends = np.cumsum(counts)
    coordinates = np.split(fitted.transform(x), ends[:-1], axis=1)
    # mean squared distance of pairs, block by block: 2 k_max / B whitened; twice the explained share / B unwhitened
    means = [float((pdist(part) ** 2).mean()) for part in coordinates]
    expected = [2 * max(counts) / len(widths) if whiten else 2 * part.explained / len(widths) for part in alone]
    np.testing.assert_allclose(means, expected, rtol=1e-3)
    assert fitted.explained == pytest.approx(np.mean([part.explained for part in alone]))
    totals = [np.sqrt(part.var(axis=0, ddof=1).sum()) for part in parts]
    squares = [(one.residual(part) / total) ** 2 for one, part, total in zip(alone, parts, totals, strict=True)]
    np.testing.assert_allclose(fitted.residual(x) ** 2, np.sum(squares, axis=0), rtol=1e-3, atol=1e-6)


def test_one_block_is_no_block_and_wrong_blocks_are_refused() -> None:
    x = np.random.default_rng(0).normal(size=(20, 6))
    plain, one = PCA(n_components=3).fit(x), PCA(n_components=3).fit(x, (6,))
    np.testing.assert_array_equal(one.transform(x), plain.transform(x))
    np.testing.assert_array_equal(one.residual(x), plain.residual(x))
    for wrong in ((3, 2), (6, 0), (7, -1)):
        with pytest.raises(DataError, match="expected blocks from 1 that sum to 6"):
            PCA().fit(x, wrong)
    with pytest.raises(DataError, match="rows that differ"):
        PCA().fit(np.hstack([x, np.ones((20, 2))]), (6, 2))


def shares(extractor: FeatureExtractor, data: LabelledImages) -> list[float]:
    """Of the two members in the mean squared distance of the screen's features."""
    fitted = NoveltyScreen(extractor=extractor, components=6).fit(data[np.arange(100)], data[np.arange(100, 200)])
    features = fitted.real.reference.features.astype(float)
    distances = [float((pdist(features[:, columns]) ** 2).mean()) for columns in (slice(0, 6), slice(6, 12))]
    assert features.shape[1] == 12
    return [distance / sum(distances) for distance in distances]


def test_the_screen_gives_every_member_an_equal_say(tmp_path: Path) -> None:
    """However large its numbers are; through the cache too. TOLERANCE 1e-3."""
    loud = seeded(lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()))
    with torch.no_grad():
        loud[0].weight.mul_(1000)
    extractor = Ensemble(extractors=(ModuleFeatures(loud), PixelFeatures()))
    data = blobs(200, 0)
    np.testing.assert_allclose(shares(extractor, data), [0.5, 0.5], atol=1e-3)
    np.testing.assert_allclose(shares(CachedFeatures(extractor=extractor, folder=tmp_path), data), [0.5, 0.5], atol=1e-3)


def test_the_cache_asks_once_and_knows_images_shape_dtype_and_extractor(tmp_path: Path) -> None:
    inner = Counting()
    cached = CachedFeatures(extractor=inner, folder=tmp_path)
    images = np.random.default_rng(0).random((4, 1, 6, 6), dtype=np.float32)
    first = cached(images)
    np.testing.assert_array_equal(cached(images), first)
    np.testing.assert_array_equal(CachedFeatures(extractor=inner, folder=str(tmp_path))(images.copy()), first)
    assert inner.passes == [4]
    changed = images.copy()
    changed[3, 0, 5, 5] = np.nextafter(changed[3, 0, 5, 5], np.float32(2))
    for other in (changed, images.reshape(4, 1, 4, 9), images[:3], images[::-1], images.astype(np.float64)):
        cached(other)
    assert len(inner.passes) == 6
    CachedFeatures(extractor=Counting(inner.passes, fingerprint="counting-2"), folder=tmp_path)(images)
    assert len(inner.passes) == 7
    assert len(list(tmp_path.glob("*.safetensors"))) == 7
    assert (cached.name, cached.fingerprint) == (inner.name, inner.fingerprint)
    assert cached.widths((1, 6, 6)) == (3,)


def test_the_cache_computes_broken_files_anew(tmp_path: Path) -> None:
    inner = Counting()
    cached = CachedFeatures(extractor=inner, folder=tmp_path)
    images = np.random.default_rng(0).random((4, 1, 6, 6), dtype=np.float32)
    expected = cached(images)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    for passes, broken in enumerate((b"", good[: len(good) // 2], flipped, b"\xff" * 100), start=2):
        file.write_bytes(broken)
        np.testing.assert_array_equal(cached(images), expected)
        np.testing.assert_array_equal(cached(images), expected)
        assert len(inner.passes) == passes
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        CachedFeatures(extractor=inner, folder=tmp_path / "file")(images)


def test_the_cache_is_differentiable_if_its_extractor_is(tmp_path: Path) -> None:
    plain, deep = (CachedFeatures(extractor=extractor, folder=tmp_path) for extractor in (Counting(), PixelFeatures(standardise=False)))
    assert not isinstance(plain, DifferentiableExtractor)
    assert isinstance(deep, DifferentiableExtractor)
    assert isinstance(deep, BlockExtractor)
    x = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    deep.differentiable(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def fill(folder: Path) -> None:
    warnings.simplefilter("error")
    cached = CachedFeatures(extractor=PixelFeatures(), folder=folder)
    for seed in range(40):
        images = np.random.default_rng(seed).random((20, 1, 16, 16), dtype=np.float32)
        assert (cached(images) == PixelFeatures()(images)).all()


def test_two_processes_share_a_cache(tmp_path: Path, fresh_processes: BaseContext) -> None:
    both = [fresh_processes.Process(target=fill, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 40


def test_recipes_name_ensembles_and_caches(tmp_path: Path) -> None:
    pixels = {"target": "monai_diverse.features.PixelFeatures", "arguments": {"max_side": 8}}
    members = [pixels, {"target": "monai_diverse.features.EfficientNetLite0"}]
    ensemble = {"target": "monai_diverse.features.Ensemble", "arguments": {"extractors": members}}
    built = Component(target="monai_diverse.features.CachedFeatures", arguments={"extractor": ensemble, "folder": "cache"}).build(tmp_path)
    assert built == CachedFeatures(extractor=Ensemble(extractors=(PixelFeatures(max_side=8), EfficientNetLite0())), folder=str(tmp_path / "cache"))
    assert NoveltyScreen(extractor=built).extractor is built
