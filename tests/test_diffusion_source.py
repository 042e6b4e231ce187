"""What all diffusion sources share: pixels and latents, precision, batches that fit, in two and three dimensions."""

import shutil
from collections.abc import Callable

import pytest
import torch
from monai.transforms import CenterSpatialCrop, SpatialPad
from torch import Tensor, nn

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import ClassifierFree, NoiseSchedule
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.sources.latent import Latent
from monai_diverse.sources.precision import CPU_BATCH, LARGEST_BATCH, Batches, Precision
from monai_diverse.sources.weights import hash_of_tensors
from monai_diverse.testing import SourceContract

SCHEDULE = NoiseSchedule.from_diffusers({"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"})


class Tiny(nn.Module):
    """A convolution that sees time and class: enough to have weights, shapes and a condition."""

    def __init__(self, channels: int = 1, dimensions: int = 2, more: int = 0) -> None:
        super().__init__()
        kind = nn.Conv2d if dimensions == 2 else nn.Conv3d
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = kind(channels + more, 6, 3, padding=1), kind(6, channels, 3, padding=1)
            self.classes, self.time = nn.Embedding(4, 6), nn.Linear(1, 6)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        self.seen.append(x)
        told = self.time(torch.log1p(timesteps.float()).to(x.dtype)[:, None])
        told = told + self.classes(rows["class_labels"]) if "class_labels" in rows else told
        return self.last(torch.tanh(self.first(x) + told.reshape(*told.shape, *[1] * (x.ndim - 2))))


class Halving(nn.Module):
    """An autoencoder: two by two pixels to four channels, exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def encode(self, images: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(images, 2) * self.gain

    def decode(self, latents: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(latents, 2) / self.gain


LABELLED = Conditioning({"class_labels": torch.arange(3)}, {"class_labels": 3})


def _pixel(**more: object) -> DiffusionSource:
    given = {
        "network": Tiny(), "schedule": SCHEDULE, "shape": (1, 8, 8), "prediction_type": "v_prediction", "conditioning": LABELLED, "steps": 4,
        "name": "tiny", "identity": ["tiny"],
    }  # fmt: skip
    given |= more
    return DiffusionSource(given.pop("network"), given.pop("schedule"), **given)


def _latent(**more: object) -> Latent:
    module = Halving()
    given = {"autoencoder": module, "encoder": module.encode, "decoder": module.decode, "shape": (4, 4, 4), "scale_factor": 0.5, "shift": 0.1}
    return Latent(**given | more)


def _of_latents(**more: object) -> DiffusionSource:
    return _pixel(**{"network": Tiny(4), "latent": _latent()} | more)


class TestPixels(SourceContract):
    @pytest.fixture
    def source(self) -> DiffusionSource:
        return _pixel(batch_size=2)


class TestLatents(SourceContract):
    @pytest.fixture
    def source(self) -> DiffusionSource:
        return _of_latents(batch_size=2)


class TestVolumes(SourceContract):
    @pytest.fixture
    def source(self) -> DiffusionSource:
        return _pixel(network=Tiny(2, 3), shape=(2, 4, 6, 8), guidance=ClassifierFree(scale=2.0), batch_size=3)


class TestFlow(SourceContract):
    @pytest.fixture
    def source(self) -> DiffusionSource:
        return _pixel(schedule=NoiseSchedule.from_flow(1000), prediction_type="rflow", scheduler="FlowMatchEulerDiscreteScheduler", conditioning=None)


@pytest.mark.parametrize("make", [_pixel, _of_latents])
def test_encode_and_decode_undo_each_other(make: Callable[..., DiffusionSource]) -> None:
    source = make(output_range=(0.0, 1.0), batch_size=2)
    images = torch.rand(5, 1, 8, 8)
    codes = source.encode(images)
    assert codes.shape == (5, *source.model_shape)
    torch.testing.assert_close(source.decode(codes), images, atol=1e-6, rtol=0)
    assert source.encode(images[:0]).shape == (0, *source.model_shape)
    assert source.decode(codes[:0]).shape == (0, 1, 8, 8)


def test_latents_are_scaled_and_shifted() -> None:
    images = torch.rand(2, 1, 8, 8)
    own = nn.functional.pixel_unshuffle(images * 2 - 1, 2) * 2
    torch.testing.assert_close(_of_latents().encode(images), (own - 0.1) * 0.5)
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0])
    by_channel = _of_latents(latent=_latent(scale_factor=scales, shift=0.0)).encode(images)
    torch.testing.assert_close(by_channel, own * scales.reshape(-1, 1, 1))


def test_the_range_of_the_models_images_becomes_0_to_1() -> None:
    source = _pixel(output_range=(-1000.0, 500.0))
    values = torch.tensor([-2000.0, -1000.0, -250.0, 500.0]).reshape(4, 1, 1, 1)
    torch.testing.assert_close(source.decode(values).flatten(), torch.tensor([0.0, 0.0, 0.5, 1.0]))
    torch.testing.assert_close(source.encode(torch.tensor([0.5]).reshape(1, 1, 1, 1)).flatten(), torch.tensor([-250.0]))


@pytest.mark.parametrize(("inner", "outer"), [((6, 5, 4), (8, 8, 8)), ((5, 4), (7, 8)), ((6, 6), (6, 6))])
def test_latents_are_padded_as_monai_does_and_cropped_back(inner: tuple[int, ...], outer: tuple[int, ...]) -> None:
    latent = Latent(autoencoder=nn.Identity(), encoder=lambda x: x, decoder=lambda z: z, shape=(2, *outer), autoencoder_shape=inner)
    own = torch.randn(3, 2, *inner)
    padded = latent.encode(own)
    torch.testing.assert_close(padded, torch.stack([torch.as_tensor(SpatialPad(outer)(one)) for one in own]))
    torch.testing.assert_close(latent.decode(padded), own)
    if all((b - a) % 2 == 0 for a, b in zip(inner, outer, strict=True)):
        torch.testing.assert_close(latent.decode(padded), torch.stack([torch.as_tensor(CenterSpatialCrop(inner)(one)) for one in padded]))


def test_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="scale_factor: expected positive"):
        _latent(scale_factor=0.0)
    with pytest.raises(DataError, match="autoencoder_shape: expected 2 sides"):
        _latent(autoencoder_shape=(4, 4, 4))
    with pytest.raises(DataError, match=r"expected latents \(4, 3, 3\)"):
        _latent(autoencoder_shape=(3, 3)).encode(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("more", "kind", "message"),
    [
        ({"steps": 0}, RecipeError, "steps: expected"),
        ({"steps": True}, RecipeError, "steps: expected"),
        ({"batch_size": 0}, RecipeError, "batch_size: expected a whole number from 1"),
        ({"batch_size": 2.0}, RecipeError, "batch_size: expected a whole number from 1"),
        ({"device": "nowhere"}, RecipeError, "device: expected"),
        ({"scheduler": "Nothing"}, RecipeError, "scheduler: expected"),
        ({"output_range": (1.0, 0.0)}, DataError, "output_range"),
        ({"output_range": (0.0, float("nan"))}, DataError, "output_range"),
        ({"class_names": ("one",)}, DataError, "class_names: expected 3"),
        ({"guidance": 2.0}, RecipeError, "guidance: expected a ClassifierFree, got 2.0"),
        ({"conditioning": None, "guidance": ClassifierFree(scale=2.0)}, RecipeError, "null class"),
    ],
)
def test_settings_out_of_range_are_refused(more: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        _pixel(**more)


def test_fingerprints_follow_whatever_changes_the_images() -> None:
    settings = [
        {}, {"steps": 5}, {"scheduler": "DDIMScheduler"}, {"output_range": (0.0, 1.0)}, {"prediction_type": "epsilon"}, {"identity": ["other"]},
        {"guidance": ClassifierFree(scale=2.0)}, {"precision": Precision(dtype="bfloat16")}, {"precision": Precision(autocast="bfloat16")},
        {"conditioning": Conditioning({"class_labels": torch.arange(3)})}, {"schedule": NoiseSchedule.from_alphas(SCHEDULE.alphas_cumprod[:50])},
        {"network": Tiny(4), "latent": _latent()}, {"network": Tiny(4), "latent": _latent(scale_factor=0.6)},
    ]  # fmt: skip
    prints = [_pixel(**more).fingerprint for more in settings]
    assert len(set(prints)) == len(prints)
    alike = _pixel(batch_size=7, class_names=("a", "b", "c"), precision=Precision(channels_last=False))
    assert alike.fingerprint == prints[0]


def test_weights_are_told_apart_by_name_type_shape_and_value() -> None:
    a = {"w": torch.arange(6.0), "b": torch.tensor(1)}
    others = [{"w": a["w"]}, a | {"w": a["w"].reshape(2, 3)}, a | {"w": a["w"].half()}, a | {"w": a["w"] + 1}, {"v": a["w"], "b": a["b"]}]
    prints = {hash_of_tensors(one) for one in (a, *others)}
    assert len(prints) == 6
    assert hash_of_tensors(dict(reversed(a.items()))) == hash_of_tensors(a)
    strided = torch.arange(12.0).reshape(6, 2)[:, 0] / 2
    assert hash_of_tensors(a | {"w": strided}) == hash_of_tensors(a)
    assert hash_of_tensors({"w": torch.zeros(3, dtype=torch.bfloat16)}) != hash_of_tensors({"w": torch.ones(3, dtype=torch.bfloat16)})


def test_modules_are_taken_over() -> None:
    network = Tiny()
    network.train()
    _pixel(network=network)
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    assert network.first.weight.is_contiguous(memory_format=torch.channels_last)


PRECISE = (Precision(dtype="bfloat16"), Precision(autocast="bfloat16"), Precision(dtype="float16"), Precision(autocast="float16"))


@pytest.mark.parametrize("precision", PRECISE, ids=repr)
@pytest.mark.parametrize("make", [_pixel, _of_latents])
def test_lower_precision_stays_near_float32(make: Callable[..., DiffusionSource], precision: Precision) -> None:
    exact = make(guidance=ClassifierFree(scale=1.5)).sample([0, 1, 2], [0, 1, 2])
    lower = make(guidance=ClassifierFree(scale=1.5), precision=precision)
    images = lower.sample([0, 1, 2], [0, 1, 2])
    assert images.dtype == torch.float32
    assert 0 < float((images - exact).abs().max()) < 0.05
    assert lower.encode(images).dtype == torch.float32


def test_half_weights_are_given_half_inputs_and_exact_times() -> None:
    """bfloat16 cannot tell timestep 999 from 1000."""
    seen = []

    def network(x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        seen.append((x.dtype, timesteps.dtype, {name: row.dtype for name, row in rows.items()}))
        return x

    conditioning = Conditioning({"class_labels": torch.arange(2), "context": torch.ones(2, 1, 3)})
    _pixel(network=network, conditioning=conditioning, precision=Precision(dtype="bfloat16")).sample([0], [0])
    assert {x for x, _, _ in seen} == {torch.bfloat16}
    assert {t for _, t, _ in seen} <= {torch.int64, torch.float32}
    assert seen[0][2] == {"class_labels": torch.int64, "context": torch.bfloat16}


@pytest.mark.parametrize(("shape", "dimensions"), [((2, 8, 8), 2), ((2, 4, 6, 8), 3)])
def test_the_memory_layout_is_the_networks_and_changes_nothing_else(shape: tuple[int, ...], dimensions: int) -> None:
    images = []
    for channels_last in (True, False):
        network = Tiny(2, dimensions)
        images.append(_pixel(network=network, shape=shape, precision=Precision(channels_last=channels_last)).sample([0, 1], [0, 1]))
        layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
        assert network.seen[-1].is_contiguous(memory_format=layout) == channels_last
        assert network.first.weight.is_contiguous(memory_format=layout) == channels_last
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)


class Plain(nn.Module):
    """One convolution: compiled in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        nn.init.constant_(self.convolution.weight, 0.1)
        nn.init.zeros_(self.convolution.bias)

    def forward(self, x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.convolution(x)
        return out


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from inside torch.compile
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_networks_draw_the_same() -> None:
    network = Plain()
    compiled = _pixel(network=network, conditioning=None, precision=Precision(compile=True)).sample([0, 0], [0, 1])
    assert network._compiled_call_impl is not None
    torch.testing.assert_close(compiled, _pixel(network=Plain(), conditioning=None).sample([0, 0], [0, 1]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dtype": "float8"}, "dtype: expected"),
        ({"autocast": "float32"}, "autocast: expected"),
        ({"dtype": "float16", "autocast": "float16"}, "with fl"),
    ],
)
def test_precisions_that_do_not_exist_are_refused(more: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Precision(**more)


class _Memory:
    """Raises what CUDA raises when more than `room` images are worked on at a time."""

    def __init__(self, room: int) -> None:
        self.room, self.tried = room, []

    def __call__(self, part: slice) -> Tensor:
        self.tried.append(part.stop - part.start)
        if part.stop - part.start > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return torch.arange(part.start, part.stop)


def test_the_largest_batch_that_fits_is_found_and_kept() -> None:
    batches, memory = Batches(None, "cuda"), _Memory(30)
    assert batches.limit == LARGEST_BATCH
    assert torch.equal(batches.run(memory, 200), torch.arange(200))
    assert memory.tried[:4] == [200, 100, 50, 25]
    assert set(memory.tried[4:]) == {25}
    memory.tried.clear()
    assert torch.equal(batches.run(memory, 60), torch.arange(60))
    assert memory.tried == [25, 25, 10]


@pytest.mark.parametrize(("size", "room", "message"), [(8, 4, "got 8 .CUDA out of memory.*give a smaller one"), (None, 0, "got 1 .*float16")])
def test_batches_that_cannot_fit_are_told(size: int | None, room: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Batches(size, "cuda").run(_Memory(room), 20)


def test_on_the_cpu_nothing_is_searched() -> None:
    memory = _Memory(10**6)
    Batches(None, "cpu").run(memory, 100)
    assert memory.tried == [CPU_BATCH, 100 - CPU_BATCH]


def _short_of_memory(source: DiffusionSource, network: Tiny, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Makes the CPU behave as CUDA with room for so many images."""
    forward = network.forward

    def crowded(x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        if len(x) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(x, timesteps, rows)

    monkeypatch.setattr(network, "forward", crowded)
    monkeypatch.setattr(source._batches, "limit", LARGEST_BATCH)


def test_images_and_counts_do_not_depend_on_the_batch_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Tiny()
    source = _pixel(network=network, batch_size=None)
    expected = source.sample([0] * 11, range(11))
    spent = source.nfe
    _short_of_memory(source, network, monkeypatch, 3)
    torch.testing.assert_close(source.sample([0] * 11, range(11)), expected, atol=1e-5, rtol=0)
    assert source.nfe == 2 * spent == 2 * 11 * source.cost()
    assert max(len(x) for x in network.seen[-8:]) <= 3


def test_decoding_searches_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder that takes fewer images at a time than the network does not cost samples twice."""
    latent = _latent()
    decoded = []

    def decoder(latents: Tensor) -> Tensor:
        if len(latents) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        decoded.append(len(latents))
        return latent.autoencoder.decode(latents)

    expected = _of_latents().sample([0] * 8, range(8))
    source = _of_latents(latent=_latent(decoder=decoder, autoencoder=latent.autoencoder, encoder=latent.encoder), batch_size=None)
    torch.testing.assert_close(source.sample([0] * 8, range(8)), expected, atol=1e-5, rtol=0)
    assert decoded == [2] * 4
    assert source.nfe == 8 * source.cost()


def test_cost_is_what_sampling_takes_with_flows_too() -> None:
    guidance = ClassifierFree(scale=2.0, sigma_min=0.2, sigma_max=2.0)
    for scheduler in ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"):
        source = _pixel(schedule=NoiseSchedule.from_flow(1000), prediction_type="flow", scheduler=scheduler, guidance=guidance)
        source.sample([0, 1, 2], [0, 1, 2], steps=9)
        assert source.nfe == 3 * source.cost(9)
        assert 9 < source.cost(9) < 18


def test_a_variant_is_the_source_made_with_its_settings() -> None:
    plain, seeds = _pixel(), torch.arange(3)
    guided = plain.variant(guidance=ClassifierFree(scale=2.0), scheduler="DDIMScheduler")
    made = _pixel(guidance=ClassifierFree(scale=2.0), scheduler="DDIMScheduler")
    assert guided.fingerprint == made.fingerprint != plain.fingerprint
    assert torch.equal(guided.sample([0, 1, 2], seeds), made.sample([0, 1, 2], seeds))
    assert plain.nfe == 0
    assert guided.nfe == made.nfe > 0
    assert plain.variant().fingerprint == plain.fingerprint
    with pytest.raises(RecipeError, match="expected one of"):
        plain.variant(scheduler="NoScheduler")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_guess_at_the_clean_image_is_the_networks_own(kind: str) -> None:
    source = _pixel(prediction_type=kind, guidance=ClassifierFree(scale=3.0))
    states, labels = 3 * torch.randn((5, 1, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    guess = source.denoise(states, labels, 60)
    network = Tiny().eval()
    with torch.no_grad():
        out = network(states, torch.full((5,), 60), {"class_labels": labels})
    abar = SCHEDULE.alphas_cumprod[60]
    expected = {
        "epsilon": (states - (1 - abar).sqrt() * out) / abar.sqrt(),
        "v_prediction": abar.sqrt() * states - (1 - abar).sqrt() * out,
        "sample": out,
    }
    assert torch.allclose(guess, expected[kind], atol=1e-5)
    assert source.nfe == 5
    with pytest.raises(RecipeError, match=r"index: expected 0\.\.99"):
        source.denoise(states, labels, 100)
