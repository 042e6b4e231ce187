from __future__ import annotations

import copy
import itertools
import os
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import CacheDataset, MetaTensor, ThreadDataLoader
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from monai.data.utils import set_rnd
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Randomizable, RandomizableTransform, RandTorchVision, ScaleIntensityd
from monai.transforms.traits import LazyTrait, RandomizableTrait
from monai.utils import set_determinism
from torch.utils.data import DataLoader as TorchLoader

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
A = pytest.importorskip("albumentations")

from test_transforms import META, describe, make_bank  # noqa: E402

from monai_diverse.errors import DataError, MissingExtraError, RecipeError  # noqa: E402
from monai_diverse.transforms.albumentations import BankReference  # noqa: E402
from monai_diverse.transforms.albumentations_adapter import Albumentations, AlbumentationsD, Albumentationsd, AlbumentationsDict  # noqa: E402

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "albumentations.md").read_text()
MODULE = "monai_diverse.transforms.albumentations_adapter"


@pytest.fixture(autouse=True)
def _no_determinism() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    set_determinism(None)
    torch.set_rng_state(state)


def ramp(*shape: int) -> np.ndarray[Any, Any]:
    return np.linspace(0, 1, int(np.prod(shape))).reshape(shape)


def forms(image: np.ndarray[Any, Any]) -> list[Any]:
    levels = np.rint(image * 255).astype(np.uint8)
    return [
        *(image.astype(dtype) for dtype in (np.float32, np.float64, np.float16)),
        levels,
        *(torch.tensor(image, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)),
        torch.tensor(levels),
        torch.tensor(image, dtype=torch.float32, requires_grad=True),
        MetaTensor(torch.tensor(image, dtype=torch.float32), meta=dict(META), applied_operations=[{"class": "Spacing"}]),
    ]


def plain(value: Any) -> np.ndarray[Any, Any]:
    tensor = torch.as_tensor(value).detach()
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)


# --- one image


@pytest.mark.parametrize("form", range(len(forms(ramp(1)))))
@pytest.mark.parametrize("shape", [(1, 6, 5), (2, 6, 5), (3, 6, 5), (6, 6, 5), (1, 4, 6, 5), (2, 4, 6, 5)])
def test_images_keep_their_form(form, shape):
    image = forms(ramp(*shape))[form]
    before = copy.deepcopy(image)
    made = Albumentations("HorizontalFlip", p=1)(image)
    assert describe(made) == describe(image)
    # floats pass through float32, which holds all of these but float64
    np.testing.assert_allclose(plain(made), plain(image)[..., ::-1], rtol=0, atol=1e-7)
    same = Albumentations(A.NoOp())(image)
    assert same is not image
    np.testing.assert_allclose(plain(same), plain(image), rtol=0, atol=1e-7)
    with torch.no_grad():
        same[...] = 0  # what was handed out is the caller's: the image may lie in a cache
    np.testing.assert_array_equal(plain(image), plain(before))


def test_the_meta_data_stay():
    image = forms(ramp(1, 6, 5))[-1]
    made = Albumentations("HorizontalFlip", p=1)(image)
    assert made.meta["PatientName"] == "Doe"
    assert torch.equal(made.affine, image.affine)
    assert made.applied_operations == [{"class": "Spacing"}]
    assert made.pending_operations == []


def test_shapes_may_change():
    for shape, new in (((1, 6, 5), (1, 12, 10)), ((2, 3, 6, 5), (2, 3, 12, 10))):
        made = Albumentations("Resize", height=12, width=10)(torch.tensor(ramp(*shape), dtype=torch.float32))
        assert made.shape == new
        assert made.is_contiguous()
    assert Albumentations("ToRGB")(ramp(1, 6, 5)).shape == (3, 6, 5)


def test_albumentations_may_change_the_dtype():
    levels = torch.tensor(np.rint(ramp(1, 6, 5) * 255).astype(np.uint8))
    made = Albumentations("Normalize", mean=0.5, std=0.25)(levels)
    assert made.dtype == torch.float32
    np.testing.assert_allclose(made, (levels / 255 - 0.5) / 0.25, rtol=0, atol=1e-5)
    half = Albumentations("Normalize", mean=0.5, std=0.25, max_pixel_value=1)(torch.tensor(ramp(1, 6, 5), dtype=torch.float16))
    assert half.dtype == torch.float16


def test_it_is_what_albumentations_does():
    """Pixels, against the same transform called by hand on channels last."""
    image = ramp(3, 16, 16).astype(np.float32)
    theirs = A.Compose([A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(1, 1), p=1), A.VerticalFlip(p=1)])
    expected = theirs(image=image.transpose(1, 2, 0))["image"].transpose(2, 0, 1)
    np.testing.assert_array_equal(Albumentations(theirs)(image), expected)


def test_every_call_draws_anew_unless_told_not_to():
    transform = Albumentations("GaussNoise", p=1).set_random_state(0)
    image = ramp(1, 8, 8).astype(np.float32)
    first, second = transform(image), transform(image)
    assert isinstance(first, np.ndarray)  # never a tuple
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(transform(image, randomize=False), second)


# --- several keys together


MOVES = {
    "flips": lambda: A.Compose([A.HorizontalFlip(), A.VerticalFlip(), A.Transpose()]),
    "one of": lambda: A.OneOf([A.HorizontalFlip(), A.RandomRotate90()], p=1),
    "crop": lambda: A.RandomCrop(12, 12),
    "rotate": lambda: A.Rotate(limit=(-45, 45), interpolation=0, p=1),  # OpenCV's nearest neighbour depends a little on the number of channels
    "elastic": lambda: A.ElasticTransform(alpha=60, sigma=4, interpolation=0, p=1),
}


@pytest.mark.parametrize("kind", MOVES)
@pytest.mark.parametrize("dims", [2, 3])
def test_images_and_masks_move_together(kind, dims):
    places = np.arange(1, 16 * 16 + 1).reshape(1, 16, 16)  # each pixel has a number, below 2**24 and above 255
    if dims == 3:
        places = np.stack([places, places + 300], 1)
    item = {
        "image": torch.tensor(places, dtype=torch.float32) / 1000,
        "other": MetaTensor(torch.tensor(np.concatenate([places, places]), dtype=torch.float32) / 1000),
        "seg": torch.tensor(places),
        "small": places.astype(np.int16),
        "edge": torch.tensor(places > 100),
        "label": 3,
    }
    before = copy.deepcopy(item)
    transform = Albumentationsd(["image", "other", "seg", "small", "edge"], MOVES[kind](), targets=dict.fromkeys(["seg", "small", "edge"], "mask"))
    transform.set_random_state(1)
    moved = 0
    for _ in range(6):
        made = transform(item)
        assert made["label"] == 3
        for key in ("image", "other", "seg", "small", "edge"):
            assert type(made[key]) is type(item[key])
            assert made[key].dtype == item[key].dtype
        numbers = np.rint(plain(made["image"]) * 1000).astype(int)
        for name, expected in {"other": np.concatenate([numbers, numbers]), "seg": numbers, "small": numbers, "edge": numbers > 100}.items():
            found = np.rint(plain(made[name]) * 1000) if name == "other" else plain(made[name])
            assert np.mean(found != expected) <= (0.02 if kind == "rotate" else 0), name
        moved += not np.array_equal(numbers, places)
    assert moved >= 3
    for key in item:
        np.testing.assert_array_equal(np.asarray(item[key]), np.asarray(before[key]))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16, np.int8, np.bool_, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_masks_of_any_dtype_keep_their_values(dtype, channels):
    values = np.array([0, 1]) if dtype == np.bool_ else np.array([-2, 0, 7]) if dtype in (np.int8, np.int64) else np.array([0, 3, 300])
    rng = np.random.default_rng(0)
    mask = rng.choice(values, (channels, 16, 16)).astype(dtype)
    transform = Albumentationsd(["image", "seg"], "Affine", targets={"seg": "mask"}, rotate=(20, 40), p=1).set_random_state(0)
    made = transform({"image": ramp(1, 16, 16), "seg": mask})["seg"]
    assert describe(made) == describe(mask)
    assert set(np.unique(made)) <= set(mask.ravel()) | {0}
    assert not np.array_equal(made, mask)


def test_intensities_of_masks_stay():
    item = {"image": ramp(1, 16, 16), "seg": np.eye(16)[None]}
    made = Albumentationsd(["image", "seg"], "GaussNoise", targets={"seg": "mask"}, p=1)(item)
    np.testing.assert_array_equal(made["seg"], item["seg"])
    assert not np.array_equal(made["image"], item["image"])


def test_masks_of_one_channel_have_none_for_albumentations():
    item = {"image": np.ones((2, 16, 16)), "seg": np.eye(16, dtype=np.int64)[None]}
    made = Albumentationsd(["image", "seg"], "MaskDropout", targets={"seg": "mask"}, p=1)(item)  # it takes (h, w) alone
    assert made["seg"].shape == (1, 16, 16)
    assert set(np.unique(made["image"])) == {0, 1}


def test_interpolated_masks_of_whole_numbers_are_rounded():
    mask = np.random.default_rng(0).integers(0, 1000, (1, 16, 16))
    settings = {"height": 24, "width": 40, "mask_interpolation": 1, "p": 1}
    made = Albumentationsd(["image", "seg"], "Resize", targets={"seg": "mask"}, **settings)({"image": ramp(1, 16, 16), "seg": mask})
    exact = A.Resize(**settings)(image=ramp(16, 16).astype(np.float32), mask=mask[0].astype(np.float32))["mask"]
    np.testing.assert_array_equal(made["seg"], np.rint(exact)[None])


def test_missing_keys():
    transform = Albumentationsd(["image", "seg"], "HorizontalFlip", targets={"seg": "mask"}, p=1)
    with pytest.raises(KeyError, match="seg"):
        transform({"image": ramp(1, 6, 5)})
    lenient = Albumentationsd(["image", "seg"], "HorizontalFlip", targets={"seg": "mask"}, allow_missing_keys=True, p=1)
    np.testing.assert_allclose(lenient({"image": ramp(1, 6, 5)})["image"], ramp(1, 6, 5)[..., ::-1], atol=1e-7)
    seg = np.eye(5)[None]
    assert lenient({"seg": seg})["seg"] is seg


# --- volumes


def test_slices_are_transformed_alike():
    volume = np.repeat(ramp(1, 1, 8, 8), 4, 1).astype(np.float32)
    for name in ("GaussNoise", "RandomBrightnessContrast", "ElasticTransform", "PixelDropout"):
        made = Albumentations(name, p=1).set_random_state(0)(volume)
        assert made.shape == volume.shape
        assert not np.array_equal(made, volume)
        for i in range(1, 4):
            np.testing.assert_array_equal(made[:, i], made[:, 0])


def test_three_dimensional_transforms():
    volume = ramp(2, 6, 8, 8).astype(np.float32)
    seg = torch.tensor(volume[:1] > 0.5)
    crop = Albumentationsd(["image", "seg"], A.Compose([A.RandomCrop3D(size=(3, 4, 4)), A.HorizontalFlip(p=1)]), targets={"seg": "mask"})
    made = crop.set_random_state(0)({"image": volume, "seg": seg})
    assert made["image"].shape == (2, 3, 4, 4)
    np.testing.assert_array_equal(made["seg"], made["image"][:1] > 0.5)
    assert made["seg"].dtype == torch.bool
    with pytest.raises(DataError, match=r"image: expected a volume.*RandomCrop3D.*\(2, 8, 8\)"):
        Albumentations("RandomCrop3D", size=(3, 4, 4))(volume[:, 0])
    mixed = Albumentations(A.Compose([A.CubicSymmetry(), A.GaussNoise(p=1)]))
    with pytest.raises(RecipeError, match=r"CubicSymmetry.*an Albumentationsd of their own"):
        mixed(volume)


# --- what does not fit


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint16, np.bool_])
def test_integers_that_albumentations_does_not_take(dtype):
    for value in (np.zeros((1, 6, 5), dtype), torch.tensor(np.zeros((1, 6, 5), dtype))):
        with pytest.raises(DataError, match=rf"seg: .*got {np.dtype(dtype)}; scale it to float.*targets=\{{'seg': 'mask'\}}"):
            Albumentationsd("seg", "HorizontalFlip")({"seg": value})


def test_other_data_that_do_not_fit():
    transform = Albumentations("HorizontalFlip")
    with pytest.raises(DataError, match="load the image first"):
        transform("patient-7.nii")
    for shape in ((6, 5), (1, 2, 3, 4, 5)):
        with pytest.raises(DataError, match=re.escape(str(shape))):
            transform(np.zeros(shape))
    with pytest.raises(DataError, match="renumber"):
        Albumentationsd(["image", "seg"], "HorizontalFlip", targets={"seg": "mask"})({"image": ramp(1, 2, 2), "seg": np.full((1, 2, 2), 2**25)})
    for shape in ((1, 6, 5), (1, 2, 6, 5)):
        with pytest.raises(DataError, match="leave ToTensorV2 out"):
            Albumentations("ToTensorV2")(ramp(*shape))
    with pytest.raises(ValueError, match="Height and Width"):
        Albumentationsd(["a", "b"], "HorizontalFlip")({"a": ramp(1, 6, 5), "b": ramp(1, 5, 6)})


def test_settings_are_checked():
    for wrong in ("HorizontalFlop", "Compose3", "np", 3, None, A.HorizontalFlip):
        with pytest.raises(RecipeError, match="transform: expected"):
            Albumentations(wrong)
    with pytest.raises(RecipeError, match=r"prob: expected arguments of HorizontalFlip: p$"):
        Albumentations("HorizontalFlip", prob=0.5)
    with pytest.raises(RecipeError, match=r"^HorizontalFlip: .*less than or equal to 1") as caught:
        Albumentations("HorizontalFlip", p=1.5)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="p: expected arguments only with the name"):
        Albumentations(A.HorizontalFlip(), p=0.5)
    for targets in ({"mask": "mask"}, {"image": "bboxes"}, {"image": "mask"}, ["mask"]):
        with pytest.raises(RecipeError, match="targets"):
            Albumentationsd("image", "HorizontalFlip", targets=targets)


def test_intensities_that_albumentations_would_clip_are_warned_of_once():
    scores = np.random.default_rng(0).normal(size=(1, 8, 8))
    transform = Albumentations("RandomBrightnessContrast", p=1)
    with pytest.warns(UserWarning, match=r"\[-\d.*clip to that"):
        transform(scores)
    transform(scores)  # a second warning would be an error
    for quiet in ("HorizontalFlip", "Affine", "Normalize"):
        Albumentations(quiet, p=1)(scores)
    np.testing.assert_allclose(Albumentations("HorizontalFlip", p=1)(scores), scores[..., ::-1], rtol=1e-6)  # as they are


def test_without_albumentations_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'monai-diverse[albumentations]'")):
        Albumentationsd("image", "HorizontalFlip")


# --- MONAI's contracts


def test_traits_and_aliases():
    assert AlbumentationsD is AlbumentationsDict is Albumentationsd
    for transform in (Albumentations("HorizontalFlip"), Albumentationsd("image", "HorizontalFlip")):
        assert isinstance(transform, RandomizableTransform)
        assert isinstance(transform, RandomizableTrait)
        assert not isinstance(transform, LazyTrait)
        assert transform.backend == ["numpy"]
        assert transform.set_random_state(0) is transform
    assert issubclass(RandTorchVision, RandomizableTrait)  # MONAI's own wrappers of other packages count as random, too


def test_what_is_passed_stays_the_callers():
    theirs = A.Compose([A.HorizontalFlip()], seed=1)
    expected = [theirs(image=ramp(4, 4, 1))["image"][0, 0, 0] for _ in range(12)]
    theirs.set_random_seed(1)
    transform = Albumentationsd(["image", "other"], theirs)
    for _ in range(12):
        transform({"image": ramp(1, 4, 4), "other": ramp(1, 4, 4)})
    assert theirs.additional_targets == {}
    assert [theirs(image=ramp(4, 4, 1))["image"][0, 0, 0] for _ in range(12)] == expected


def coded() -> Compose:
    """Draws that can be read from the result: four bits of flips, and noise."""
    flips = A.Compose([A.HorizontalFlip(), A.VerticalFlip(), A.RandomBrightnessContrast(p=1)], seed=1)
    return Compose([ScaleIntensityd("image"), Albumentationsd("image", flips)])


def read(item: Any) -> list[float]:
    return [round(float(value), 6) for value in np.asarray(item["image"]).reshape(-1)]


def items(count: int = 12) -> list[dict[str, Any]]:
    return [{"image": torch.tensor(ramp(1, 3, 4), dtype=torch.float32), "id": i} for i in range(count)]


def test_random_state_decides():
    runs = {}
    for seed in (0, 0, 1):
        pipeline = coded()
        pipeline.set_random_state(seed)
        runs.setdefault(seed, []).append([read(pipeline(item)) for item in items()])
    assert runs[0][0] == runs[0][1] != runs[1][0]
    assert len({tuple(made) for made in runs[0][0]}) == 12
    determined = []
    for _ in range(2):
        set_determinism(3)
        determined.append([read(coded()(item)) for item in items(1)])
    assert determined[0] == determined[1]


def test_transforms_of_one_compose_draw_different_numbers():
    transform = Albumentations(A.Compose([A.HorizontalFlip(), A.VerticalFlip()], seed=1)).set_random_state(0)
    outcomes = [tuple(transform(ramp(1, 3, 4)).reshape(-1)) for _ in range(200)]
    counts = [outcomes.count(outcome) for outcome in set(outcomes)]
    assert len(counts) == 4
    assert min(counts) > 25  # four standard deviations below 50


@pytest.mark.parametrize("nested", [False, True])
def test_caches_do_not_freeze_it(nested):
    inner = Albumentationsd("image", "GaussNoise", p=1)
    data = CacheDataset(items(4), Compose([ScaleIntensityd("image"), Compose([inner]) if nested else inner]), progress=False)
    epochs = [str([read(data[i]) for i in range(4)]) for _ in range(3)]
    assert len(set(epochs)) == 3
    assert read(data._cache[0]) == read(ScaleIntensityd("image")(items(1)[0]))


def test_threads():
    data = CacheDataset(items(8), coded(), progress=False)
    loader = ThreadDataLoader(data, batch_size=2, use_thread_workers=True, num_workers=2)
    assert sum(len(batch["id"]) for batch in loader) == 8
    threaded = Compose([Albumentationsd(["image", "seg"], "HorizontalFlip", targets={"seg": "mask"}, p=1)])
    image = ramp(1, 3, 4)
    made = threaded({"image": image, "seg": image}, threading=True)
    np.testing.assert_allclose(made["image"], image[..., ::-1], atol=1e-7)


@pytest.mark.parametrize(
    "config",
    [
        {"transform": "HorizontalFlip", "p": 1},
        {"transform": {"_target_": "albumentations.HorizontalFlip", "p": 1}},
        {"transform": {"_target_": "albumentations.Compose", "transforms": [{"_target_": "albumentations.HorizontalFlip", "p": 1}]}},
    ],
)
def test_bundles_configure_it(config):
    head = {"_target_": f"{MODULE}.Albumentationsd", "keys": ["image", "seg"], "targets": {"seg": "mask"}}
    parser = ConfigParser({"augment": {"_target_": "Compose", "transforms": [head | config]}})
    pipeline = parser.get_parsed_content("augment")
    image = ramp(1, 3, 4)
    made = pipeline({"image": image, "seg": image > 0.5})
    np.testing.assert_allclose(made["image"], image[..., ::-1], atol=1e-7)
    np.testing.assert_array_equal(made["seg"], image[..., ::-1] > 0.5)


def test_pickles():
    pipeline = coded()
    pipeline.set_random_state(4)
    pipeline(items(1)[0])
    again = pickle.loads(pickle.dumps(pipeline))
    assert [read(again(item)) for item in items()] == [read(pipeline(item)) for item in items()]


def test_references_from_a_bank_work_in_monai(tmp_path):
    bank = make_bank(tmp_path / "bank", shape=(1, 16, 16))
    transform = Albumentationsd("image", A.Compose([BankReference(bank), A.FDA(beta_limit=(0.3, 0.3), p=1)])).set_random_state(0)
    image = torch.tensor(ramp(1, 16, 16) * 0.3, dtype=torch.float32)
    made = [transform({"image": image})["image"] for _ in range(6)]
    assert all(float(each.mean()) > 0.5 for each in made)
    assert len({float(each.sum()) for each in made}) > 3


# --- workers


class Shielded(Randomizable, MonaiDataset):
    """As MedNISTDataset: MONAI's search for random transforms ends here."""


class Bare(torch.utils.data.Dataset[Any]):
    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Any:
        return self.transform(items(1)[0])


def seeded(seed: int) -> Any:
    pipeline = coded()
    pipeline.set_random_state(seed)
    return pipeline


LOADERS = {
    "monai": lambda: MonaiLoader(MonaiDataset(items(32), coded()), num_workers=2, batch_size=8),
    "monai, shielded": lambda: MonaiLoader(Shielded(items(32), seeded(1)), num_workers=2, batch_size=8),
    "torch": lambda: TorchLoader(MonaiDataset(items(32), seeded(1)), num_workers=2, batch_size=8),
    "torch, bare": lambda: TorchLoader(Bare(Albumentationsd("image", "GaussNoise", p=1).set_random_state(3)), num_workers=2, batch_size=8),
    "persistent": lambda: TorchLoader(MonaiDataset(items(32), seeded(1)), num_workers=2, batch_size=8, persistent_workers=True),
}


def workers_of(loader: Any) -> list[list[list[float]]]:
    drawn = [[read({"image": image}) for image in batch["image"]] for batch in loader]
    return [list(itertools.chain.from_iterable(drawn[worker::2])) for worker in range(2)]


@pytest.mark.parametrize("kind", LOADERS)
def test_workers_and_epochs_draw_differently_and_reproducibly(kind):
    runs = []
    for _ in range(2):
        set_determinism(11)
        loader = LOADERS[kind]()
        epochs = [workers_of(loader) for _ in range(2)]
        assert len({str(worker) for epoch in epochs for worker in epoch}) == 4
        assert len({str(image) for epoch in epochs for worker in epoch for image in worker}) == 64
        runs.append(epochs)
    assert runs[0] == runs[1]


def test_workers_that_get_all_by_pickle_draw_what_forked_ones_do(fresh_processes):
    """As spawned ones do, of which test_albumentations.py has one."""
    data = Bare(Albumentationsd("image", "GaussNoise", p=1).set_random_state(3))
    drawn = {}
    for name, context in (("pickle", fresh_processes), ("fork", "fork")):
        torch.manual_seed(5)
        # one worker: importing albumentations anew is what takes its time here
        loader = TorchLoader(data, num_workers=1, batch_size=8, multiprocessing_context=context)
        drawn[name] = [read({"image": image}) for batch in loader for image in batch["image"]]
    assert drawn["pickle"] == drawn["fork"]
    assert len({str(image) for image in drawn["pickle"]}) == 32


def test_the_page_runs(tmp_path, monkeypatch):
    make_bank(tmp_path / "bank", classes=3, shape=(1, 64, 64), count=6)
    monkeypatch.chdir(tmp_path)

    class Pictures(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> Any:
            return self.augment(image=np.rint(ramp(64, 64, 1) * 255).astype(np.uint8), label=index % 3)

    image = np.rint(ramp(64, 64, 1) * 255).astype(np.uint8)
    channel_first = torch.tensor(ramp(1, 64, 64), dtype=torch.float32)
    names: dict[str, Any] = {"image": image, "label": 1, "channel_first": channel_first, "seg": channel_first > 0.5, "dataset": Pictures()}
    with pytest.raises(TypeError, match="seed"):  # why the page advises against MONAI's DataLoader
        set_rnd(Bare(A.Compose([])), seed=0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 5
    exec(blocks[0], names)
    names["dataset"].augment = names["augment"]
    for block in blocks[1:]:
        exec(block, names)
    assert set(names["item"]) == {"image", "label", "sample_source"}
    assert names["adapted"].shape == names["matched"].shape == image.shape
    assert names["out"]["seg"].dtype == torch.bool
    first, second = ([list(batch["image"].flatten(1)[:, 0].tolist()) for batch in names["loader"]][worker::2] for worker in range(2))
    assert first != second
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    made = ConfigParser(yaml.safe_load(config)).get_parsed_content("augment")({"image": channel_first, "seg": channel_first > 0.5})
    assert made["image"].shape == channel_first.shape


def test_a_real_pipeline(tmp_path: Path):
    """Files to batches: load, scale, cache, augment, collate."""
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.rint(ramp(16, 16) * (200 + i)).astype(np.uint8))
    augment = A.Compose([A.Affine(rotate=(-20, 20), scale=(0.9, 1.1), p=1), A.RandomBrightnessContrast(p=1), A.CoarseDropout(p=0.5)])
    pipeline = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image", channel_dim="no_channel"),
            ScaleIntensityd("image"),
            Albumentationsd("image", augment),
        ]
    )
    data = CacheDataset([{"image": tmp_path / f"{i}.npy", "label": i % 2} for i in range(4)], pipeline, progress=False)
    batches = list(MonaiLoader(data, batch_size=2, num_workers=0))
    for batch in batches:
        assert type(batch["image"]) is MetaTensor
        assert batch["image"].shape == (2, 1, 16, 16)
        assert batch["image"].dtype == torch.float32
        assert [Path(name).suffix for name in batch["image"].meta["filename_or_obj"]] == [".npy", ".npy"]
        assert float(batch["image"].min()) >= 0
        assert float(batch["image"].max()) <= 1
