"""Transforms and dataset wherever MONAI's users put them: every mode of Compose, every cache, every loader, every trainer."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import (
    ArrayDataset,
    CacheDataset,
    CacheNTransDataset,
    DataLoader,
    Dataset,
    LMDBDataset,
    MetaTensor,
    PersistentDataset,
    SmartCacheDataset,
    ThreadDataLoader,
    decollate_batch,
    pad_list_data_collate,
    set_track_meta,
)
from monai.data.utils import list_data_collate, pickle_hashing
from monai.engines import SupervisedTrainer
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    Flipd,
    Identityd,
    Invertd,
    InvertibleTransform,
    OneOf,
    RandFlipd,
    RandomOrder,
    RandSpatialCropSamplesd,
    Rotate90d,
    ScaleIntensityd,
    SomeOf,
    allow_missing_keys_mode,
)
from monai.transforms.compose import execute_compose
from monai.transforms.croppad.batch import PadListDataCollate
from monai.utils import set_determinism
from test_transforms import make_bank
from torch.utils.data import DataLoader as TorchLoader

from monai_diverse import DiverseDiffusionDataset, RandDiverseReplace, RandDiverseReplaced, SampleBank

SHAPE = (1, 6, 5)
COUNT = 48
CLASSES = 3


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    return make_bank(tmp_path / "bank", shape=SHAPE)


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    set_determinism(None)
    set_track_meta(True)
    torch.set_rng_state(state)


def picture(number: int) -> np.ndarray[Any, Any]:
    """Real image `number`: its first pixel, and only it, says which."""
    image = np.linspace(0, 1, 30, dtype=np.float32).reshape(SHAPE)
    image[0, 0, 0] = number / 1000
    return image


def items(count: int = COUNT, kind: Any = torch.tensor) -> list[dict[str, Any]]:
    return [{"image": kind(picture(i)), "label": i % CLASSES, "id": i} for i in range(count)]


def meta(image: np.ndarray[Any, Any]) -> MetaTensor:
    return MetaTensor(torch.tensor(image), meta={"filename_or_obj": "patient-7.nii"})


def ours(bank: SampleBank | str, prob: float = 0.5, **settings: Any) -> RandDiverseReplaced:
    return RandDiverseReplaced("image", bank, prob=prob, **settings)


def unchanged(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return image


def check(bank: SampleBank, item: dict[str, Any], after: Callable[[Any], Any] = unchanged, before: Callable[[Any], Any] = unchanged) -> str:
    """An item is what its source says: pixels and label of that sample, or of the real image of its number. Returns the source."""
    source, image = item["sample_source"], np.asarray(item["image"])
    if source == "real":
        np.testing.assert_allclose(image, after(before(picture(int(item["id"])))), atol=1e-5)
    else:
        index = int(source.removeprefix("synthetic:"))
        np.testing.assert_allclose(image, after(bank.images[index]), atol=1e-5)
        assert int(item["label"]) == bank.labels[index]
    assert int(item["label"]) == int(item["id"]) % CLASSES  # "match"
    return source


def check_all(bank: SampleBank, made: list[dict[str, Any]], **functions: Any) -> list[str]:
    sources = [check(bank, item, **functions) for item in made]
    assert 0 < sources.count("real") < len(sources), "the test means nothing unless both kinds occur"
    return sources


# --- every mode of Compose


@pytest.mark.parametrize("lazy", [False, True, None])
@pytest.mark.parametrize("log_stats", [False, True, "test.compose"])
@pytest.mark.parametrize("map_items", [True, False, 2])
def test_modes_of_compose_change_nothing(bank, map_items, log_stats, lazy):
    settings = {"map_items": map_items, "log_stats": log_stats, "lazy": lazy}
    plain, other = Compose([ours(bank)]), Compose([ours(bank)], **settings)
    runs = [[check(bank, compose(item)) for item in items()] for compose in (plain.set_random_state(5), other.set_random_state(5))]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 10


def test_unpacked_items(bank):
    """Arrays that come as a tuple of arguments; what leaves is an array, so that the next transform gets one."""
    transform = RandDiverseReplace(bank, label=1, prob=1)
    made = Compose([transform, np.negative], map_items=False, unpack_items=True)((picture(0),))
    np.testing.assert_array_equal(made, -bank.images[transform._index])
    kept = Compose([transform], map_items=False, unpack_items=True)((picture(0), False))  # randomize=False: the same again
    np.testing.assert_array_equal(kept, -made)


def crops(item: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(item) for _ in range(3)]


@pytest.mark.parametrize("levels", [1, 2])
def test_several_items_out_of_one_each_draw_for_themselves(bank, levels):
    compose = Compose([crops] * levels + [ours(bank)], map_items=levels).set_random_state(1)
    differ = []
    for item in items(6):
        made = compose(item)
        flat = list(itertools.chain.from_iterable(made)) if levels == 2 else made
        assert len(flat) == 3**levels
        for part in flat:
            check(bank, part)
        differ.append(len({part["sample_source"] for part in flat}) > 1)
    assert any(differ)


def test_crops_of_real_images_take_samples_of_their_size(bank):
    """As MONAI's detection and patch pipelines: one large image, several crops, of which some become samples; they collate flat."""
    large = np.tile(picture(0), (1, 3, 3))
    data = Dataset([{"image": torch.tensor(large), "label": i % CLASSES} for i in range(8)], Compose([crop_samples(), ours(bank)]))
    (batch,) = DataLoader(data, batch_size=8, collate_fn=list_data_collate)
    assert batch["image"].shape == (32, *SHAPE)
    sources = batch["sample_source"]
    assert 0 < sources.count("real") < 32
    for place, source in enumerate(sources):
        if source != "real":
            index = int(source.partition(":")[2])
            assert torch.equal(torch.as_tensor(batch["image"][place]), torch.from_numpy(bank.images[index]))
            assert batch["label"][place] == bank.labels[index] == place // 4 % CLASSES


def crop_samples() -> RandSpatialCropSamplesd:
    return RandSpatialCropSamplesd("image", roi_size=SHAPE[1:], num_samples=4, random_size=False)


@pytest.mark.parametrize("lazy", [False, True, None])
def test_lazy_transforms_before_and_after(bank, lazy):
    """What is pending is carried out before a sample takes the image's place, and what follows acts on the sample."""
    compose = Compose(
        [Rotate90d("image", k=1, lazy=lazy is None), ours(bank), Flipd("image", spatial_axis=1, lazy=lazy is None)], lazy=lazy
    ).set_random_state(2)
    turned = [{"image": meta(np.rot90(picture(i), -1, (1, 2)).copy()), "label": i % CLASSES, "id": i} for i in range(24)]
    made = [compose(item) for item in turned]
    check_all(bank, made, after=lambda image: image[:, :, ::-1])
    for item in made:
        assert item["image"].pending_operations == []
        assert len(item["image"].applied_operations) == (2 if item["sample_source"] == "real" else 1)


def test_threading_copies_the_transform_but_not_the_bank(bank):
    """As MONAI's own random transforms: each call is made by a copy, so the state does not advance."""
    for transform, key in ((ours(bank, 1.0), "sample_source"), (RandFlipd("image", prob=0.5), "image")):
        compose = Compose([transform]).set_random_state(4)
        first, second = (execute_compose(items(1)[0], compose.transforms, threading=True)[key] for _ in range(2))
        assert np.array_equal(np.asarray(first), np.asarray(second))
        assert np.array_equal(np.asarray(compose(items(1)[0])[key]), np.asarray(first))
    compose = Compose([ours(bank, 1.0)])
    size = len(pickle.dumps(compose))
    for item in items():
        check(bank, compose(item, threading=True))
    assert copy.deepcopy(compose).transforms[0].bank is bank
    assert len(pickle.dumps(compose)) == size


def test_start_and_end(bank):
    compose = Compose([ScaleIntensityd("image", minv=0, maxv=2), ScaleIntensityd("image"), ours(bank), Flipd("image", spatial_axis=0)])
    compose.set_random_state(3)
    whole = [compose(item) for item in items()]
    compose.set_random_state(3)
    for expected, item in zip(whole, items(), strict=True):
        early = compose(item, end=2)
        assert "sample_source" not in early
        late = compose(compose(early, start=2, end=3), start=3)
        assert torch.equal(late["image"], expected["image"])
        assert late["sample_source"] == expected["sample_source"]


@pytest.mark.parametrize("kind", [torch.tensor, meta])
@pytest.mark.parametrize(
    "make",
    [
        lambda transform: Compose([Compose([Compose([transform])]), Identityd("image")]),
        lambda transform: RandomOrder([transform, Identityd("image")]),
        lambda transform: SomeOf([transform, Identityd("image")], num_transforms=2),
        lambda transform: OneOf([transform, Compose([transform, Identityd("image")])]),
        lambda transform: Compose([OneOf([transform, Identityd("image")]), ours(transform.bank, 0.0)]),
        lambda transform: Compose([SomeOf([transform, Identityd("image")], num_transforms=1), ours(transform.bank, 0.0)]),
    ],
    ids=["nested", "order", "some", "one", "one, then named", "some, then named"],
)
def test_compositions(bank, make, kind):
    """Where a choice may leave the transform out, another with probability 0 behind it names the items that had none, so that all collate."""
    runs = []
    for seed in (0, 0, 1):
        compose = make(ours(bank)).set_random_state(seed)
        made = [compose(item) for item in items(kind=kind)]
        runs.append(check_all(bank, made))
        assert list_data_collate(made)["image"].shape == (COUNT, *SHAPE)
    assert runs[0] == runs[1] != runs[2]


def test_a_choice_alone_leaves_items_without_source(bank):
    compose = OneOf([ours(bank), Identityd("image")]).set_random_state(0)
    assert {"sample_source" in compose(item) for item in items()} == {True, False}


@pytest.mark.parametrize("touch", [len, bool, Compose.flatten, lambda compose: compose.inverse({})], ids=["len", "bool", "flatten", "inverse"])
def test_monai_seeds_a_compose_anew_when_it_is_measured(bank, touch):
    """With `set_determinism`, to the same state each time: `if self.transform:` before each item freezes every random transform in it."""
    set_determinism(7)
    flip = RandFlipd("image", prob=0.5, spatial_axis=1, allow_missing_keys=True)
    compose = Compose([ours(bank), flip, Flipd("image", allow_missing_keys=True)])
    item, made = items(1)[0], []
    for _ in range(8):
        touch(compose)
        result = compose(item)
        made.append((result["sample_source"], result["image"].numpy().tobytes()))
    assert len(set(made)) == 1
    assert len({compose(item)["sample_source"] for _ in range(8)}) > 1


# --- inverse


def geometry(bank: SampleBank, prob: float) -> Compose:
    return Compose([Flipd(["image", "mask"], spatial_axis=0), ours(bank, prob), RandFlipd(["image", "mask"], prob=1, spatial_axis=1)])


def with_mask() -> dict[str, Any]:
    return {"image": meta(picture(1)), "mask": meta(picture(2)), "label": 1, "id": 1}


def test_real_items_are_inverted_as_if_nothing_was_there(bank):
    compose = geometry(bank, 0.0)
    made = compose(with_mask())
    back = compose.inverse(copy.deepcopy(made))  # it takes the operations off the tensors' lists
    for key, number in (("image", 1), ("mask", 2)):
        np.testing.assert_array_equal(np.asarray(back[key]), picture(number))
        assert back[key].applied_operations == []
    invert = Invertd("pred", compose, orig_keys="image", nearest_interp=False, to_tensor=True)
    predicted = invert(made | {"pred": made["image"].clone() * 2})["pred"]
    np.testing.assert_allclose(np.asarray(predicted), picture(1) * 2, atol=1e-6)


def test_other_keys_of_replaced_items_are_inverted(bank):
    compose = geometry(bank, 1.0)
    made = compose(with_mask())
    assert made["sample_source"] != "real"
    with allow_missing_keys_mode(compose):
        back = compose.inverse({"mask": made["mask"]})
    np.testing.assert_array_equal(np.asarray(back["mask"]), picture(2))


def test_samples_are_inverted_to_where_they_came_in(bank):
    """A sample never went through what lies before: MONAI says that there is nothing to undo."""
    compose = geometry(bank, 1.0)
    made = compose(with_mask())
    index = int(made["sample_source"].partition(":")[2])
    back = made
    for transform in reversed(compose.transforms[2:]):
        if isinstance(transform, InvertibleTransform):
            back = transform.inverse(back)
    np.testing.assert_array_equal(np.asarray(back["image"]), bank.images[index])
    with pytest.raises(RuntimeError, match="Flipd") as caught:
        compose.inverse(compose(with_mask()))
    assert "empty 'applied_operations'" in str(caught.value.__cause__)


def test_inverting_one_by_one_leaves_the_draws_alone(bank):
    """Another Compose of the same transforms would seed them anew each time, and freeze the augmentation."""
    set_determinism(0)
    compose = Compose([EnsureTyped("image"), ours(bank, 1.0), RandFlipd("image", prob=0.5, spatial_axis=1)])
    runs = []
    for invert in (False, True):
        compose.set_random_state(4)
        runs.append([])
        for _ in range(12):
            made = compose({"image": meta(picture(1)), "label": 1, "id": 1})
            index = int(made["sample_source"].partition(":")[2])
            runs[-1].append((index, np.array_equal(np.asarray(made["image"]), bank.images[index])))
            if invert:
                for transform in reversed(compose.transforms[2:]):
                    if isinstance(transform, InvertibleTransform):
                        made = transform.inverse(made)
                np.testing.assert_array_equal(np.asarray(made["image"]), bank.images[index])
    assert runs[0] == runs[1]
    assert {flipped for _, flipped in runs[0]} == {True, False}


# --- caches and loaders

SCALE = ScaleIntensityd("image", minv=0, maxv=1, channel_wise=False)


def tensors(item: dict[str, Any]) -> dict[str, Any]:
    return item | {"image": torch.as_tensor(item["image"])}


def pipeline(bank: SampleBank) -> Compose:
    return Compose([EnsureTyped("image"), ours(bank)])


def lmdb(bank: SampleBank, place: Path) -> LMDBDataset:
    return LMDBDataset(items(), pipeline(bank), cache_dir=place / "cache", progress=False, lmdb_kwargs={"map_size": 2**22})


DATASETS: dict[str, Callable[[SampleBank, Path], Any]] = {
    "Dataset": lambda bank, _: Dataset(items(), pipeline(bank)),
    "CacheDataset": lambda bank, _: CacheDataset(items(), pipeline(bank), progress=False),
    "CacheDataset, half": lambda bank, _: CacheDataset(items(), pipeline(bank), cache_rate=0.5, progress=False),
    "CacheDataset, no copies": lambda bank, _: CacheDataset(items(), pipeline(bank), copy_cache=False, progress=False),
    "CacheDataset, at runtime": lambda bank, _: CacheDataset(items(), pipeline(bank), runtime_cache=True, progress=False),
    "PersistentDataset": lambda bank, place: PersistentDataset(items(), pipeline(bank), cache_dir=place / "cache"),
    "PersistentDataset, hashed": lambda bank, place: PersistentDataset(
        items(), pipeline(bank), cache_dir=place / "cache", hash_transform=pickle_hashing
    ),
    "PersistentDataset, meta": lambda bank, place: PersistentDataset(
        items(kind=meta), pipeline(bank), cache_dir=place / "cache", track_meta=True, weights_only=False
    ),
    "CacheNTransDataset, before": lambda bank, place: CacheNTransDataset(items(), pipeline(bank), cache_n_trans=1, cache_dir=place / "cache"),
    "LMDBDataset": lmdb,
    "ours over Dataset": lambda bank, _: DiverseDiffusionDataset(Dataset(items(), Compose([EnsureTyped("image")])), bank, prob=0.5),
    "ours over CacheDataset": lambda bank, _: DiverseDiffusionDataset(
        CacheDataset(items(), Compose([EnsureTyped("image")]), progress=False), bank, prob=0.5
    ),
}

LOADERS: dict[str, Callable[[Any], Any]] = {
    "MONAI, 0": partial(DataLoader, num_workers=0, batch_size=6),
    "MONAI, 2": partial(DataLoader, num_workers=2, batch_size=6),
    "MONAI, 4": partial(DataLoader, num_workers=4, batch_size=6),
    "MONAI, persistent": partial(DataLoader, num_workers=2, batch_size=6, persistent_workers=True),
    "torch, 0": partial(TorchLoader, num_workers=0, batch_size=6),
    "torch, 2": partial(TorchLoader, num_workers=2, batch_size=6),
    "torch, persistent": partial(TorchLoader, num_workers=2, batch_size=6, persistent_workers=True),
    "thread, 0": partial(ThreadDataLoader, num_workers=0, batch_size=6),
    "thread, 2": partial(ThreadDataLoader, num_workers=2, batch_size=6),
}

CASES = [(data, loader) for data in DATASETS for loader in ("MONAI, 0", "MONAI, 2")]
CASES += [("CacheDataset", loader) for loader in LOADERS if not loader.startswith("MONAI, 0")]


def streams_of(bank: SampleBank, loader: Any, *, epochs: int = 2) -> list[tuple[str, ...]]:
    """What every worker drew in every epoch, each item checked; workers take turns by batch."""
    streams = []
    for _ in range(epochs):
        batches = [checked_batch(bank, batch) for batch in loader]
        assert sum(map(len, batches)) == COUNT
        workers = max(1, loader.num_workers)
        streams += [tuple(itertools.chain.from_iterable(batches[worker::workers])) for worker in range(workers)]
    loader._iterator = None  # ends persistent workers now: in a garbage collection, two such loaders take torch 20 seconds
    return streams


def checked_batch(bank: SampleBank, batch: dict[str, Any]) -> list[str]:
    assert batch["image"].shape[1:] == SHAPE
    rows = [{key: values[i] for key, values in batch.items()} for i in range(len(batch["sample_source"]))]
    return [check(bank, row) for row in rows]


def assert_no_two_alike(streams: list[tuple[str, ...]]) -> None:
    """Neither the samples nor the coins: a copied random state would give the same of both."""
    assert len(set(streams)) == len(streams)
    coins = [tuple(source == "real" for source in stream) for stream in streams]
    assert len(set(coins)) == len(coins)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # fewer cores than that
@pytest.mark.parametrize(("data", "loader"), CASES, ids=[" | ".join(case) for case in CASES])
def test_caches_and_loaders(bank, tmp_path, data, loader):
    runs = []
    for run in range(2):
        set_determinism(7)
        (tmp_path / str(run)).mkdir()
        made = LOADERS[loader](DATASETS[data](bank, tmp_path / str(run)))
        runs.append(streams_of(bank, made))
        assert_no_two_alike(runs[-1])
    assert runs[0] == runs[1]


def test_threads_as_workers(bank):
    """Threads share one transform, so whose draw is whose is not reproducible; but every item is what it says, and nothing repeats."""
    loader = ThreadDataLoader(Dataset(items(), pipeline(bank)), num_workers=2, batch_size=6, use_thread_workers=True)
    assert_no_two_alike(streams_of(bank, loader, epochs=3))


def test_threads_do_not_mix_up_each_others_draws(bank, monkeypatch):
    """Both have drawn before either takes its sample: each must still take its own."""
    transform = ours(bank, 1.0)
    barrier, check_image = threading.Barrier(2), transform.insertion.check

    def met(*arguments: Any) -> None:
        barrier.wait(timeout=30)
        check_image(*arguments)

    monkeypatch.setattr(transform.insertion, "check", met)
    with ThreadPool(2) as pool:
        for item in pool.map(transform, items(24), chunksize=12):
            check(bank, item)


def test_workers_of_monais_loader_that_get_all_by_pickle(bank, fresh_processes):
    """As spawned ones do, of which test_transforms.py has one."""
    loader = DataLoader(CacheDataset(items(), pipeline(bank), progress=False), num_workers=2, batch_size=6, multiprocessing_context=fresh_processes)
    assert_no_two_alike(streams_of(bank, loader, epochs=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_smart_cache(bank, workers):
    """Its `set_random_state` hides the transform from MONAI's seeding of workers, as MedNISTDataset's does."""
    runs = []
    for _ in range(2):
        set_determinism(7)
        data = SmartCacheDataset(items(), pipeline(bank), replace_rate=0.5, cache_num=24, progress=False)
        loader = DataLoader(data, num_workers=workers, batch_size=6)
        streams, numbers = [], []
        data.start()
        for _ in range(3):
            batches = list(loader)
            numbers.append([int(i) for batch in batches for i in batch["id"]])
            drawn = [checked_batch(bank, batch) for batch in batches]
            streams += [tuple(itertools.chain.from_iterable(drawn[w :: max(1, workers)])) for w in range(max(1, workers))]
            data.update_cache()
        data.shutdown()
        assert_no_two_alike(streams)
        assert len({tuple(epoch) for epoch in numbers}) == 3
        runs.append(streams)
    if workers == 0:  # with workers the order in which items are cached does not matter either, but the first epoch's seed does
        assert runs[0] == runs[1]


def test_array_dataset(bank):
    """Arrays do not know their label: one transform a class."""
    numbers = [i for i in range(COUNT) if i % CLASSES == 1]
    transform = RandDiverseReplace(bank, label=1, prob=0.5)
    data = ArrayDataset([torch.tensor(picture(i)) for i in numbers], Compose([transform]), labels=[1] * len(numbers))
    streams = []
    for _ in range(2):
        batches = [image for image, _ in DataLoader(data, num_workers=2, batch_size=4)]
        streams += [tuple(row.numpy().tobytes() for batch in batches[worker::2] for row in batch) for worker in range(2)]
    assert len(set(streams)) == 4
    known = {torch.tensor(picture(i)).numpy().tobytes() for i in numbers} | {bank.images[int(i)].tobytes() for i in bank.indices_of(1)}
    assert {image for stream in streams for image in stream} <= known


def test_what_lies_within_n_is_frozen_and_tossed_once_for_all(bank, tmp_path):
    """CacheNTransDataset caches random transforms too, each item drawn by a copy of one state; MONAI's own fare no better."""
    epochs = {}
    for name, transform in (("ours", ours(bank, 0.5, label_policy="own")), ("monai", RandFlipd("image", prob=0.5, spatial_axis=1))):
        compose = Compose([EnsureTyped("image"), transform]).set_random_state(0)
        data = CacheNTransDataset(items(12), compose, cache_n_trans=2, cache_dir=tmp_path / name)
        epochs[name] = [
            [(data[i].get("sample_source"), bool(data[i]["image"][0, -1, 0] > data[i]["image"][0, -1, -1])) for i in range(12)] for _ in range(3)
        ]
    for made in epochs.values():
        assert made[0] == made[1] == made[2]
        assert len(set(made[0])) == 1


# --- batches


@pytest.mark.parametrize("kind", [torch.tensor, meta, np.array])
@pytest.mark.parametrize("collate", [list_data_collate, pad_list_data_collate])
def test_decollated_batches_are_the_items_again(bank, kind, collate):
    compose = Compose([ours(bank)]).set_random_state(1)
    made = [compose(item | {"age": 60.5}) for item in items(12, kind)]
    back = decollate_batch(collate(made))
    assert [item["sample_source"] for item in back] == [item["sample_source"] for item in made]
    check_all(bank, back)
    for item in back:
        assert set(item) == {"image", "label", "id", "age", "sample_source"}
        assert "patient" not in str(getattr(item["image"], "meta", "")) or item["sample_source"] == "real"


def test_padding_when_sizes_differ_later(bank):
    """Crops behind the transform may differ in size; padding takes real and synthetic items alike, and both can be unpadded."""
    compose = Compose([ours(bank)]).set_random_state(1)
    made = [compose(item) for item in items(6, meta)]
    check_all(bank, made)
    cut = [item["image"][:, : 3 + i % 3] for i, item in enumerate(made)]
    batch = pad_list_data_collate([item | {"image": image.clone()} for item, image in zip(made, cut, strict=True)])
    assert batch["image"].shape == (6, 1, 5, 5)
    for i, (item, image) in enumerate(zip(decollate_batch(batch), cut, strict=True)):
        assert item["sample_source"] == made[i]["sample_source"]
        assert torch.equal(PadListDataCollate.inverse(item)["image"].as_tensor(), image.as_tensor())


# --- meta data on and off


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("track", [True, False])
def test_meta_tracking(bank, track, workers):
    set_track_meta(track)
    raw = [{"image": picture(i)[0], "label": i % CLASSES, "id": i} for i in range(COUNT)]
    compose = Compose([EnsureChannelFirstd("image", channel_dim="no_channel"), ours(bank), EnsureTyped("image")]).set_random_state(3)
    batches = list(DataLoader(Dataset(raw, compose), num_workers=workers, batch_size=12))
    assert {type(batch["image"]) for batch in batches} == {MetaTensor if track else torch.Tensor}
    drawn = [source for batch in batches for source in checked_batch(bank, batch)]
    assert 0 < drawn.count("real") < COUNT


def test_meta_tensors_made_before_tracking_was_turned_off(bank):
    data = items(12, meta)
    set_track_meta(False)
    made = [Compose([ours(bank)])(item) for item in data * 4]
    check_all(bank, made)
    assert {type(item["image"]) for item in made} == {MetaTensor}
    assert list_data_collate(made)["image"].shape == (COUNT, *SHAPE)


# --- bundles


CONFIG = """
{
  "imports": ["$import torch"],
  "bank": "BANK",
  "epochs": 2,
  "prob": "$1 / 2",
  "data": "$[{'image': torch.linspace(0, 1, 30).reshape(1, 6, 5), 'label': i % 3} for i in range(24)]",
  "train": {
    "deterministic": [{"_target_": "ScaleIntensityd", "keys": "image"}],
    "random": [
      {
        "_target_": "monai_diverse.RandDiverseReplaced",
        "keys": "image",
        "bank": "@bank",
        "prob": "@prob",
        "label_policy": "own",
        "sample_transform": {"_target_": "Compose", "transforms": "$[lambda image: image * 0.5]"}
      },
      {"_target_": "RandFlipd", "keys": "image", "prob": 0.5}
    ],
    "transform": {"_target_": "Compose", "transforms": "$@train#deterministic + @train#random"},
    "dataset": {"_target_": "CacheDataset", "data": "@data", "transform": "@train#transform", "progress": false},
    "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 6},
    "handlers": [
      {"_target_": "monai_diverse.handlers.SyntheticStatsHandler", "name": "test.bundle"},
      {"_target_": "monai_diverse.handlers.CurriculumHandler", "_disabled_": true}
    ],
    "trainer": {
      "_target_": "SupervisedTrainer",
      "device": "cpu",
      "max_epochs": "@epochs",
      "train_data_loader": "@train#dataloader",
      "network": "@network",
      "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.01},
      "loss_function": {"_target_": "torch.nn.CrossEntropyLoss"},
      "train_handlers": "@train#handlers"
    }
  },
  "network": "$torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 4))",
  "run": ["$@train#trainer.run()"]
}
"""


def test_bundle_config(bank):
    parser = ConfigParser(json.loads(CONFIG.replace("BANK", str(bank.path))))
    parser.get_parsed_content("run")
    transform = parser.get_parsed_content("train#random#0")
    assert isinstance(transform, RandDiverseReplaced)
    assert (transform.prob, transform.label_policy, transform.bank.path) == (0.5, "own", bank.path)
    (stats,) = (handler for handler in parser.get_parsed_content("train#handlers") if handler is not None)
    assert [epoch.total.items for epoch in stats.history] == [24, 24]
    assert all(0 < epoch.total.synthetic < 24 for epoch in stats.history)
    made = [parser.get_parsed_content("train#transform")(parser.get_parsed_content("data")[0]) for _ in range(20)]
    assert {item["sample_source"] == "real" for item in made} == {True, False}
    assert all(item["image"].max() <= 0.5 for item in made if item["sample_source"] != "real")


# --- trainers


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, CLASSES + 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_supervised_trainer(bank, workers):
    net, losses, sources = network(), [], []
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=DataLoader(CacheDataset(items(), pipeline(bank), progress=False), num_workers=workers, batch_size=12, shuffle=True),
        network=net,
        optimizer=torch.optim.SGD(net.parameters(), 0.05),
        loss_function=torch.nn.CrossEntropyLoss(),
    )

    @trainer.on("ITERATION_COMPLETED")
    def keep(engine: Any) -> None:
        losses.append(float(engine.state.output[0]["loss"]))
        for item in engine.state.batch:  # decollated
            sources.append(check(bank, item))

    trainer.run()
    assert len(losses) == 8
    assert np.isfinite(losses).all()
    assert len(sources) == 2 * COUNT
    assert 0 < sources.count("real") < 2 * COUNT
    assert sources[:COUNT] != sources[COUNT:]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_lightning(bank, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    made: list[tuple[int, float, list[str]]] = []

    class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: dict[str, Any], number: int) -> torch.Tensor:
            loss = torch.nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])
            made.append((self.current_epoch, float(loss.detach()), checked_batch(bank, batch)))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.05)

    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Classifier(), DataLoader(Dataset(items(), pipeline(bank)), num_workers=2, batch_size=12))
    assert [epoch for epoch, *_ in made] == [0] * 4 + [1] * 4
    assert np.isfinite([loss for _, loss, _ in made]).all()
    batches = [sources for *_, sources in made]
    assert_no_two_alike([tuple(a + b) for a, b in ((batches[e + w], batches[e + w + 2]) for e in (0, 4) for w in (0, 1))])
