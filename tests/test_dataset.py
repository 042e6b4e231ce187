from __future__ import annotations

import copy
import multiprocessing
import pickle
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, DistributedWeightedRandomSampler, MetaTensor
from monai.data import DataLoader as MonaiLoader
from monai.data.utils import list_data_collate
from monai.transforms import Compose, RandFlipd, Randomizable
from monai.utils import set_determinism
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import default_collate

from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.dataset import DiverseDiffusionDataset, mixing_sampler
from monai_diverse.dataset.quotas import levelled, shared
from monai_diverse.dataset.weights import mixing_weights
from monai_diverse.errors import BankError, DataError, RecipeError

SHAPE = (1, 3, 4)


def make_bank(path: Path, labels: list[int], classes: int = 3, **source: Any) -> SampleBank:
    """Sample i is i / 255 in its first pixel."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), *SHAPE)).astype(np.float32) / 255
    images[:, 0, 0, 0] = np.arange(len(labels), dtype=np.float32) / 255
    header = BankHeader(recipe={}, recipe_fingerprint="r", source={"fingerprint": "s"} | source, features={}, shape=SHAPE, classes=classes)
    with BankWriter.create_or_resume(path, header, resume=False) as writer:
        writer.append(images, labels, np.arange(len(labels)), {}, {})
        return writer.bank


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    return make_bank(tmp_path / "bank", [0] * 10 + [1] * 30)


@pytest.fixture(autouse=True)
def _no_determinism() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    set_determinism(None)
    torch.set_rng_state(state)


def real(i: int) -> torch.Tensor:
    image = torch.linspace(0, 1, 12).reshape(SHAPE)
    image[0, 0, 0] = 0.5 + i / 1000
    return image


def dicts(labels: list[int]) -> list[dict[str, Any]]:
    return [{"image": real(i), "label": label, "age": 60.0, "name": "Doe", "site": np.array([1, 2])} for i, label in enumerate(labels)]


def tuples(labels: list[int]) -> list[tuple[Any, ...]]:
    return [(real(i), torch.tensor(label), "Doe") for i, label in enumerate(labels)]


def index_of(image: Any) -> int:
    return round(float(np.asarray(image)[0, 0, 0]) * 255)


def is_sample(bank: SampleBank, image: Any) -> bool:
    index = index_of(image)
    return index < len(bank) and np.array_equal(np.asarray(image), bank.images[index])


class Item(NamedTuple):
    image: Any
    label: Any
    weight: float


# --- replace


def test_replace_dicts(bank):
    data = dicts([0, 1] * 50)
    before = copy.deepcopy(data)
    made = list(DiverseDiffusionDataset(data, bank, prob=0.5))
    assert len(made) == 100
    for old, new in zip(data, made, strict=True):
        assert list(new) == [*old, "sample_source"]
        if new["sample_source"] == "real":
            assert new["image"] is old["image"]
        else:
            index = int(new["sample_source"].removeprefix("synthetic:"))
            np.testing.assert_array_equal(new["image"].numpy(), bank.images[index])
            assert new["label"] == old["label"] == bank.labels[index]
            assert type(new["label"]) is int
    assert 25 < sum(item["sample_source"] != "real" for item in made) < 75
    assert default_collate(made)["image"].shape == (100, *SHAPE)
    for old, new in zip(before, data, strict=True):
        assert old.keys() == new.keys()
        assert torch.equal(old["image"], new["image"])


@pytest.mark.parametrize("kind", [tuple, list, Item])
def test_replace_sequences(bank, kind):
    data = [Item(real(i), torch.tensor(i % 2), 0.5) if kind is Item else kind([real(i), torch.tensor(i % 2), 0.5]) for i in range(60)]
    made = list(DiverseDiffusionDataset(data, bank, prob=0.5, label_policy="own"))
    samples = [item for item in made if is_sample(bank, item[0])]
    assert 10 < len(samples) < 50
    for item in made:
        assert type(item) is kind
        assert len(item) == 3
        assert (type(item[0]), type(item[1]), item[1].dtype, item[2]) == (torch.Tensor, torch.Tensor, torch.int64, 0.5)
    for item in samples:
        assert item[1] == bank.labels[index_of(item[0])]
    assert len(default_collate(made)) == 3


@pytest.mark.parametrize(("policy", "share"), [("match", 0.8), ("own", 0.75), ("balance", 0.2)])
def test_replace_policies(bank, policy, share):
    data = DiverseDiffusionDataset(tuples([0] * 20 + [1] * 80), bank, prob=1, label_policy=policy)
    labels = [int(data[i][1]) for _ in range(8) for i in range(100)]
    assert abs(np.mean(labels) - share) < 0.06
    assert data.ineligible == 0


def test_what_has_no_sample_stays_real(bank):
    data = DiverseDiffusionDataset(dicts([2, 2, 0]), bank, prob=1)
    assert [data[i]["sample_source"].partition(":")[0] for i in range(3)] == ["real", "real", "synthetic"]
    assert data.ineligible == 2


def test_replace_is_reproducible_and_differs_between_epochs(bank):
    runs = []
    for seed in (0, 0, 1):
        data = DiverseDiffusionDataset(dicts([0, 1] * 20), bank, prob=0.5, seed=seed)
        runs.append([[item["sample_source"] for item in data] for _ in range(2)])
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


# --- append


@pytest.mark.parametrize("form", [dicts, tuples])
def test_append(bank, form):
    data = form([0] * 15 + [1] * 35)
    made = DiverseDiffusionDataset(data, bank, mode="append", ratio=0.4)
    assert len(made) == 70
    items = list(made)
    key, label_key = ("image", "label") if form is dicts else (0, 1)
    for old, new in zip(data, items, strict=False):
        assert new[key] is old[key]
    for item in items[50:]:
        assert is_sample(bank, item[key])
        assert int(item[label_key]) == bank.labels[index_of(item[key])]
        assert type(item[label_key]) is type(items[0][label_key])
        if form is dicts:
            assert item["sample_source"] == f"synthetic:{index_of(item[key])}"
            assert (item["age"], item["name"], item["site"].tolist()) == (0.0, "", [0, 0])
        else:
            assert item[2] == ""
    assert Counter(int(item[label_key]) for item in items[50:]) == {0: 6, 1: 14}  # 30 and 70 %
    assert len({index_of(item[key]) for item in items[50:]}) == 20
    assert default_collate(items)[key].shape == (70, *SHAPE)
    assert torch.equal(made[-1][key], items[-1][key])
    with pytest.raises(IndexError, match="below 70"):
        made[70]
    with pytest.raises(IndexError):
        made[-71]


def test_append_is_drawn_once_from_the_seed(bank):
    def picked(seed: int) -> list[int]:
        data = DiverseDiffusionDataset(tuples([0, 1] * 20), bank, mode="append", ratio=0.5, seed=seed)
        first = [index_of(data[i][0]) for i in range(40, 60)]
        data.set_random_state(99)
        assert first == [index_of(data[i][0]) for i in range(40, 60)]
        return first

    assert picked(0) == picked(0) != picked(1)


@pytest.mark.parametrize(
    ("policy", "counts", "ratio", "expected"),
    [
        ("match", [10, 30], 1, [10, 30]),
        ("own", [30, 10], 1, [10, 30]),
        ("balance", [40, 10], 1, [10, 40]),
        ("balance", [40, 10], 0.2, [0, 10]),
        ("balance", [0, 10], 1, [0, 10]),  # classes that the data lack are not appended
    ],
)
def test_append_policies(bank, policy, counts, ratio, expected):
    labels = [0] * counts[0] + [1] * counts[1]
    made = list(DiverseDiffusionDataset(dicts(labels), bank, mode="append", ratio=ratio, label_policy=policy))[len(labels) :]
    assert np.bincount([item["label"] for item in made], minlength=2).tolist() == expected
    uses = Counter(item["sample_source"] for item in made)
    held = dict(enumerate(bank.class_counts))
    for source, times in uses.items():  # all of a class before one comes again
        label = int(bank.labels[int(source.partition(":")[2])])
        assert times in (expected[label] // held[label], -(-expected[label] // held[label]))


def test_append_says_what_is_lacking(bank):
    with pytest.warns(UserWarning, match=r"10 of 20 samples .*\[10, 30, 0\]"):
        data = DiverseDiffusionDataset(dicts([0, 2] * 10), bank, mode="append", ratio=1)
    assert (len(data), data.ineligible) == (30, 10)


@pytest.mark.parametrize(("counts", "expected"), [([40, 10], [0, 30]), ([10, 40], [30, 0]), ([25, 25], [0, 0]), ([0, 10], [0, 0])])
def test_append_as_many_as_even_out_the_classes(bank, counts, expected):
    labels = [0] * counts[0] + [1] * counts[1]
    data = DiverseDiffusionDataset(dicts(labels), bank, mode="append", ratio=None, label_policy="balance")
    made = [item["label"] for item in data]
    assert np.bincount(made[len(labels) :], minlength=2).tolist() == expected
    assert data.ineligible == 0


def test_evening_out_says_what_is_lacking(bank):
    labels = [0] * 6 + [1] * 2 + [2] * 4 + [4] * 1  # of 2 and 4 the bank has none, 4 it does not even know, 3 nobody has
    with pytest.warns(UserWarning, match=r"append: 7 of 11 samples .*\[10, 30, 0\]"):
        data = DiverseDiffusionDataset(dicts(labels), bank, mode="append", ratio=None, label_policy="balance")
    assert data.ineligible == 7
    assert [item["label"] for item in data][13:] == [1] * 4
    assert len(DiverseDiffusionDataset([], bank, mode="append", ratio=None, label_policy="balance")) == 0


@pytest.mark.parametrize("form", [dicts, tuples])
def test_source_of(bank, form):
    data = DiverseDiffusionDataset(form([0, 1] * 5), bank, mode="append", ratio=0.5)
    assert [data.source_of(i) for i in range(10)] == ["real"] * 10
    for i in range(10, 15):
        image = data[i]["image" if form is dicts else 0]
        assert data.source_of(i) == data.source_of(i - 15) == f"synthetic:{index_of(image)}"
    with pytest.raises(IndexError):
        data.source_of(15)
    with pytest.raises(RecipeError, match=r"source_of.*'append'.*'replace'"):
        DiverseDiffusionDataset(form([0]), bank).source_of(0)


@settings(max_examples=100, deadline=None)
@given(shares=st.lists(st.integers(0, 1000), min_size=1, max_size=8), total=st.integers(0, 500))
def test_shares(shares, total):
    quotas = shared(np.asarray(shares), total)
    assert quotas.sum() == (total if sum(shares) else 0)
    if sum(shares):
        assert (np.abs(quotas - np.asarray(shares) / sum(shares) * total) < 1 + 1e-9).all()
        assert (quotas[np.asarray(shares) == 0] == 0).all()


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=6), total=st.integers(0, 200))
def test_levels(counts, total):
    usable = np.asarray(counts) > 0
    quotas = levelled(np.asarray(counts), usable, total)
    assert quotas.sum() == (total if usable.any() else 0)
    filled = (np.asarray(counts) + quotas)[usable & (quotas > 0)]
    if len(filled):  # whoever got some ends within one of the lowest
        assert filled.max() - (np.asarray(counts) + quotas)[usable].min() <= 1


def test_labels_of_medmnist_and_one_hot(bank):
    for label in (np.array([1], np.uint8), torch.tensor([0.0, 1.0])):
        data = [{"image": real(i).numpy(), "label": label} for i in range(4)]
        made = DiverseDiffusionDataset(data, bank, mode="append", ratio=1)
        assert len(made) == 8
        for item in made:
            assert type(item["label"]) is type(label)
            assert item["label"].dtype == label.dtype
            assert item["label"].tolist() == label.tolist()
            assert item["image"].dtype == np.float32


def test_class_names_follow_labels(bank):
    data = [entry | {"class_name": ["normal", "tumour"][entry["label"]]} for entry in dicts([0] * 10 + [1] * 5)]
    made = list(DiverseDiffusionDataset(data, bank, mode="append", ratio=1))
    assert {(item["label"], item["class_name"]) for item in made} == {(0, "normal"), (1, "tumour")}
    replaced = list(DiverseDiffusionDataset(data, bank, prob=1, label_policy="balance"))
    assert {(item["label"], item["class_name"]) for item in replaced} == {(0, "normal"), (1, "tumour")}


@pytest.mark.parametrize("settings", [{}, {"label_policy": "balance"}, {"mode": "append"}, {"mode": "append", "label_policy": "own"}])
def test_class_numbers_must_be_the_banks(tmp_path, settings):
    bank = make_bank(tmp_path / "named", [0, 1, 2], class_names=["benign", "malignant", "normal"])
    right = [entry | {"class_name": ["benign", "malignant", "normal"][entry["label"]]} for entry in dicts([0, 1, 2, 0, 1, 2])]
    assert len(list(DiverseDiffusionDataset(right, bank, **settings))) >= 6
    wrong = [entry | {"class_name": ["normal", "benign", "malignant"][entry["label"]]} for entry in dicts([0, 1, 2, 0, 1, 2])]
    with pytest.raises(DataError, match=r"class 0 is 'normal'.*'normal' is class 2"):
        list(DiverseDiffusionDataset(wrong, bank, **settings))
    late = DiverseDiffusionDataset([*right[:3], *wrong[3:]], bank, prob=0)
    assert late[2]["label"] == 2
    with pytest.raises(DataError, match="'normal' is class 2"):
        late[3]


def test_meta_dictionaries_beside_an_image_are_blank(bank):
    data = [entry | {"image_meta_dict": {"filename_or_obj": "doe.nii", "size": 3}} for entry in dicts([0, 1])]
    for made in (DiverseDiffusionDataset(data, bank, prob=1)[0], DiverseDiffusionDataset(data, bank, mode="append", ratio=1)[3]):
        assert made["image_meta_dict"] == {"filename_or_obj": "", "size": 0}
    assert DiverseDiffusionDataset(data, bank, prob=0)[0]["image_meta_dict"]["filename_or_obj"] == "doe.nii"


def test_appended_items_share_no_memory(bank):
    data = [entry | {"mask": torch.ones(3), "boxes": [np.ones(2)]} for entry in dicts([0, 1] * 3)]
    made = DiverseDiffusionDataset(data, bank, mode="append", ratio=1)
    first, second = made[6], made[7]
    assert not np.shares_memory(first["site"], second["site"])
    first["site"] += 5
    first["mask"] += 5
    first["boxes"][0] += 5
    first["boxes"].append(3)
    for later in (second, made[6], made[8]):
        assert (later["site"].tolist(), later["mask"].tolist(), np.asarray(later["boxes"]).tolist()) == ([0, 0], [0, 0, 0], [[0, 0]])
    pairs = DiverseDiffusionDataset([(real(0), 0, np.ones(2))], bank, mode="append", ratio=2)
    assert not np.shares_memory(pairs[1][2], pairs[2][2])


def test_meta_is_clean(bank):
    meta = {"filename_or_obj": "patient-7.nii", "affine": torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))}
    data = [{"image": MetaTensor(real(i), meta=dict(meta)), "label": 0, "mask": MetaTensor(real(i), meta=dict(meta))} for i in range(6)]
    made = DiverseDiffusionDataset(data, bank, mode="append", ratio=1)
    for i in range(6, 12):
        for value in (made[i]["image"], made[i]["mask"]):
            assert isinstance(value, MetaTensor)
            assert value.meta["filename_or_obj"] in ("", made[i]["sample_source"])
            assert "patient" not in str(value.meta)
            assert torch.equal(value.affine, torch.eye(4, dtype=torch.float64))
        assert not made[i]["mask"].any()
    batch = list_data_collate([made[i] for i in (7, 0, 8, 1)])
    assert batch["image"].shape == (4, *SHAPE)
    assert batch["image"].meta["filename_or_obj"] == [name if name != "real" else "patient-7.nii" for name in batch["sample_source"]]


# --- transform, workers


def test_transform_sees_the_final_item(bank):
    def stamp(item: dict[str, Any]) -> dict[str, Any]:
        return item | {"seen": item["sample_source"], "sum": float(item["image"].sum())}

    for mode in ("replace", "append"):
        data = DiverseDiffusionDataset(dicts([0, 1] * 10), bank, mode=mode, prob=0.5, ratio=0.5, transform=stamp)
        made = list(data)
        assert {item["seen"] == "real" for item in made} == {True, False}
        assert all(item["sum"] == float(item["image"].sum()) for item in made)
    pairs = DiverseDiffusionDataset(tuples([0, 1]), bank, prob=0, transform=lambda item: (item[0] * 2, *item[1:]))
    assert torch.equal(pairs[1][0], real(1) * 2)


class Number(Randomizable):
    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return item | {"number": int(self.R.randint(2**31))}


def numbers_of(data: Any, key: str) -> list[Any]:
    return [item[key] for item in data]


def test_monais_seeding_reaches_data_and_transform_through_it(bank):
    made = []
    for seed in (1, 1, 2):
        inner = CacheDataset(dicts([0, 1] * 4), Compose([Number(), RandFlipd("image", prob=0.5)]), progress=False)
        data = DiverseDiffusionDataset(inner, bank, prob=0.5)
        outer = DiverseDiffusionDataset(inner, bank, prob=0.5, transform=Compose([Number()]))
        made.append((numbers_of(data.set_random_state(seed), "number"), numbers_of(outer.set_random_state(seed), "number")))
    assert made[0] == made[1]
    assert made[0][0] != made[2][0]
    assert made[0][1] != made[2][1]


def test_construction_leaves_the_state_of_data_alone(bank):
    number = Number()
    number.set_random_state(5)
    inner = CacheDataset(dicts([0, 1]), Compose([Number()]), progress=False)
    inner.transform.set_random_state(5)
    expected = copy.deepcopy(inner.transform.transforms[0].R).randint(2**31)
    data = DiverseDiffusionDataset(inner, bank, prob=0, transform=number)
    assert inner[0]["number"] == expected
    assert data[0]["number"] == np.random.RandomState(5).randint(2**31)


@pytest.mark.parametrize("loader", [MonaiLoader, TorchLoader])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_and_epochs_draw_differently_and_reproducibly(bank, loader, persistent):
    runs = []
    for _ in range(2):
        set_determinism(7)
        data = DiverseDiffusionDataset(dicts([0, 1] * 48), bank, prob=0.7)
        batches = loader(data, num_workers=2, batch_size=48, persistent_workers=persistent)
        runs.append([batch["sample_source"] for _ in range(2) for batch in batches])
        assert len({tuple(stream) for stream in runs[-1]}) == 4
        assert len({tuple(source == "real" for source in stream) for stream in runs[-1]}) == 4
    assert runs[0] == runs[1]


def test_pickles_stay_small_where_the_data_are(bank):
    data = DiverseDiffusionDataset(tuples([0]), bank, mode="append", ratio=200)
    assert bank.images[0] is not None
    assert len(pickle.dumps(data)) < 12_000
    again = pickle.loads(pickle.dumps(data))
    assert [index_of(again[i][0]) for i in range(1, 201)] == [index_of(data[i][0]) for i in range(1, 201)]


# --- sampling


def appended(bank: SampleBank, policy: str = "match", labels: Any = (0,) * 30 + (1,) * 10, ratio: float | None = 0.5) -> DiverseDiffusionDataset:
    return DiverseDiffusionDataset(dicts(list(labels)), bank, mode="append", ratio=ratio, label_policy=policy)


def shares_of(data: DiverseDiffusionDataset, weights: torch.Tensor) -> tuple[float, list[float]]:
    """Of synthetic items, and of each class, by adding up over the items themselves."""
    made = list(data)
    synthetic = sum(float(w) for w, item in zip(weights, made, strict=True) if item["sample_source"] != "real")
    classes = sorted({item["label"] for item in made})
    return synthetic, [sum(float(w) for w, item in zip(weights, made, strict=True) if item["label"] == label) for label in classes]


@pytest.mark.parametrize("share", [0, 0.05, 0.3, 0.95, 1])
def test_mixing_weights(bank, share):
    data = appended(bank)
    weights = data.mixing_weights(share)
    assert (weights.dtype, weights.shape) == (torch.float64, (len(data),))
    synthetic, _ = shares_of(data, weights)
    assert synthetic == pytest.approx(share)
    assert float(weights.sum()) == pytest.approx(1)
    assert len(set(weights[:40].tolist())) == len(set(weights[40:].tolist())) == 1
    assert shares_of(data, data.mixing_weights())[0] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("policy", "labels", "ratio", "shares"),
    [
        ("match", [0] * 30 + [1] * 10, 0.5, [0, 0.3, 1]),
        ("balance", [0] * 30 + [1] * 10, None, [0, 0.3, 0.5]),  # class 0 has no synthetic items
        ("own", [0] * 30 + [2] * 10, 1, [1 / 3, 0.5, 2 / 3]),  # class 1 has synthetic items alone, class 2 real ones alone
        ("balance", [0] * 12, 1, [0, 0.4, 1]),
    ],
)
def test_class_balanced_mixing_weights(bank, policy, labels, ratio, shares):
    data = appended(bank, policy, labels, ratio)
    for share in shares:
        synthetic, classes = shares_of(data, data.mixing_weights(share, class_balanced=True))
        assert synthetic == pytest.approx(share)
        assert classes == pytest.approx([1 / len(classes)] * len(classes))
    for share in {0, 0.01, 0.99, 1}:
        if not min(shares) <= share <= max(shares):
            with pytest.raises(RecipeError, match=f"share: expected {min(shares):.4g} to {max(shares):.4g}"):
                data.mixing_weights(share, class_balanced=True)


@settings(max_examples=100, deadline=None)
@given(
    real=st.lists(st.integers(0, 4), min_size=1, max_size=30), synthetic=st.lists(st.integers(0, 4), min_size=1, max_size=30), place=st.floats(0, 1)
)
def test_balanced_weights_wherever_there_are_any(real, synthetic, place):
    classes = {*real, *synthetic}
    low = len({*synthetic} - {*real}) / len(classes)
    high = len({*synthetic}) / len(classes)
    share = min(low + place * (high - low), 1)
    weights = mixing_weights(np.asarray(real), np.asarray(synthetic), share)
    assert (weights >= 0).all()
    assert weights[len(real) :].sum() == pytest.approx(share, abs=1e-9)
    for label in classes:
        assert weights[np.asarray(real + synthetic) == label].sum() == pytest.approx(1 / len(classes), abs=1e-9)


def test_mixing_weights_refuse_what_cannot_be(bank):
    with pytest.raises(RecipeError, match=r"mixing_weights.*'append'.*'replace'"):
        DiverseDiffusionDataset(dicts([0]), bank).mixing_weights()
    for wrong in (-0.1, 1.1, float("nan"), "0.3"):
        with pytest.raises(RecipeError, match=r"share.*\[0, 1\]"):
            appended(bank).mixing_weights(wrong)
    none = appended(bank, ratio=0)
    for balanced in (False, True):
        with pytest.raises(RecipeError, match=r"share: expected 0 .* got 0.3"):
            none.mixing_weights(0.3, class_balanced=balanced)
    assert none.mixing_weights(0).tolist() == [1 / 40] * 40
    assert appended(bank, labels=[]).mixing_weights(0).shape == (0,)


def drawn_shares(data: DiverseDiffusionDataset, places: list[int]) -> tuple[float, float]:
    """Of synthetic items and of class 1."""
    made = [data[i] for i in range(len(data))]
    return np.mean([made[i]["sample_source"] != "real" for i in places]), np.mean([made[i]["label"] == 1 for i in places])


@pytest.mark.parametrize(("balanced", "ones"), [(False, 0.25), (True, 0.5)])
def test_mixing_sampler(bank, balanced, ones):
    data = appended(bank)
    epochs = []
    for seed in (3, 3, 4):
        sampler = mixing_sampler(data, share=0.3, num_samples=4000, class_balanced=balanced, seed=seed)
        assert len(sampler) == 4000
        epochs.append([list(sampler) for _ in range(2)])
        torch.rand(1)
    assert epochs[0] == epochs[1] != epochs[2]
    assert epochs[0][0] != epochs[0][1]
    for places in (*epochs[0], *epochs[2]):
        synthetic, class_one = drawn_shares(data, places)
        assert abs(synthetic - 0.3) < 4 * (0.21 / 4000) ** 0.5
        assert abs(class_one - ones) < 4 * (0.25 / 4000) ** 0.5
    assert len(mixing_sampler(data, share=0.3)) == len(data) == 60
    batch = next(iter(MonaiLoader(data, batch_size=16, sampler=mixing_sampler(data, share=1), num_workers=1)))
    assert "real" not in batch["sample_source"]


def test_monais_distributed_sampler_takes_the_weights(bank):
    data = appended(bank, labels=[0] * 300 + [1] * 100)
    drawn = []
    for rank in range(2):
        sampler = DistributedWeightedRandomSampler(
            data, data.mixing_weights(0.3), num_samples_per_rank=2000, num_replicas=2, rank=rank, generator=torch.Generator().manual_seed(rank)
        )
        drawn.append(list(sampler))
        assert len(drawn[-1]) == 2000
    assert not {*drawn[0]} & {*drawn[1]}
    assert abs(drawn_shares(data, drawn[0] + drawn[1])[0] - 0.3) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "num_samples.*got 0"),
        ({"num_samples": 2.5}, "num_samples.*2.5"),
        ({"num_samples": True}, "num_samples.*True"),
        ({"seed": -1}, "seed.*-1"),
        ({"share": 2}, "share.*2"),
    ],
)
def test_bad_samplers(bank, change, message):
    with pytest.raises(RecipeError, match=message):
        mixing_sampler(appended(bank), **({"share": 0.3} | change))


# --- misuse


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "add"}, "mode.*'add'"),
        ({"prob": -0.1}, "prob.*-0.1"),
        ({"prob": float("nan")}, "prob.*nan"),
        ({"ratio": -1}, "ratio.*-1"),
        ({"prob": "0.1"}, "prob.*'0.1'"),
        ({"ratio": "0.1"}, "ratio.*'0.1'"),
        ({"ratio": float("inf")}, "ratio.*inf"),
        ({"ratio": None}, "ratio.*None.*'replace' and 'match'"),
        ({"ratio": None, "mode": "append"}, "ratio.*None.*'append' and 'match'"),
        ({"ratio": None, "mode": "append", "label_policy": "own"}, "ratio.*None.*'append' and 'own'"),
        ({"ratio": None, "label_policy": "balance"}, "ratio.*None.*'replace' and 'balance'"),
        ({"label_policy": "any"}, "label_policy.*'any'"),
        ({"transform": 3}, "transform.*int"),
        ({"seed": -1}, "seed.*-1"),
        ({"seed": 0.5}, "seed.*0.5"),
        ({"seed": True}, "seed.*True"),
    ],
)
def test_bad_settings(bank, change, message):
    with pytest.raises(RecipeError, match=message):
        DiverseDiffusionDataset(dicts([0]), bank, **change)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.zeros(SHAPE), "Tensor"),
        ((torch.zeros(SHAPE),), "tuple"),
        ({"image": torch.zeros(SHAPE)}, "'label'"),
        ({"image": torch.zeros(3, 3, 3), "label": 0}, r"\(3, 3, 3\).*\(1, 3, 4\)"),
        ({"image": torch.zeros(SHAPE), "label": "benign"}, "whole number"),
        ({"image": torch.zeros(SHAPE), "label": -1}, "classes from 0"),
        ({"image": torch.zeros(SHAPE), "label": 0, "when": object()}, "object in 'when'"),
        ({"image": "a.png", "label": 0}, "str"),
    ],
)
def test_bad_items(bank, item, message):
    with pytest.raises(DataError, match=message):
        DiverseDiffusionDataset([item], bank, mode="append", ratio=1)


def test_bad_images_show_in_replace_mode_whatever_is_drawn(bank):
    with pytest.raises(DataError, match="shape"):
        DiverseDiffusionDataset([(np.zeros((1, 9, 9)), 0)], bank, prob=0.01)[0]


def test_edges(bank, tmp_path):
    with pytest.raises(BankError):
        DiverseDiffusionDataset([], tmp_path / "nowhere")
    for mode in ("replace", "append"):
        assert len(DiverseDiffusionDataset([], bank, mode=mode)) == 0
    assert len(DiverseDiffusionDataset(dicts([0, 1]), str(bank.path), mode="append", ratio=0)) == 2
    empty = make_bank(tmp_path / "empty", [])
    with pytest.warns(UserWarning, match="empty holds no samples") as caught:
        assert DiverseDiffusionDataset(dicts([0]), empty, prob=1, label_policy="own")[0]["sample_source"] == "real"
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="2 of 2"), pytest.warns(UserWarning, match="empty holds no samples"):
        assert len(DiverseDiffusionDataset(dicts([0, 1]), empty, mode="append", ratio=1, label_policy="own")) == 2


def test_range_mismatch_warns(bank):
    bright = [(real(i) * 255, 0) for i in range(3)]
    with pytest.warns(UserWarning, match=r"\[0, 255\]"):
        DiverseDiffusionDataset([(torch.linspace(0, 255, 12).reshape(SHAPE), 0)], bank, prob=1)[0]
    data = DiverseDiffusionDataset(bright, bank, mode="append", ratio=1)
    with pytest.warns(UserWarning, match="intensities"):
        data[3]
    data[4]


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_samples_go_through_what_images_went_through(bank, mode):
    real = [{"image": item["image"] * 6 - 3, "label": item["label"]} for item in dicts([0, 1] * 15)]
    settings = {"mode": mode, "prob": 1, "ratio": 1}
    with pytest.warns(UserWarning, match="pass a sample_transform"):
        DiverseDiffusionDataset(real, bank, **settings)[-1]
    data = DiverseDiffusionDataset(real, bank, sample_transform=lambda sample: sample * 6 - 3, **settings)
    item = data[len(data) - 1]
    index = int(item["sample_source"].partition(":")[2])
    np.testing.assert_allclose(np.asarray(item["image"]), bank.images[index] * 6 - 3, rtol=1e-6)
    resized = DiverseDiffusionDataset(
        [{"image": item["image"][:, :2, :2], "label": item["label"]} for item in dicts([0, 1] * 15)],
        bank,
        sample_transform=lambda s: s[:, :2, :2],
        **settings,
    )
    assert resized[len(resized) - 1]["image"].shape == (1, 2, 2)


class Shift(Randomizable):
    def __call__(self, sample: Any) -> Any:
        return sample * self.R.uniform(0.9, 1)


def test_a_random_sample_transform_is_seeded_along(bank):
    def levels(seed: int) -> list[float]:
        data = DiverseDiffusionDataset(dicts([0, 1] * 6), bank, prob=1, sample_transform=Shift(), seed=seed)
        return [float(data[i]["image"].max()) for i in range(12)]

    assert levels(1) == levels(1) != levels(2)


@pytest.mark.parametrize("loader", [MonaiLoader, TorchLoader])
@pytest.mark.parametrize("mode", ["replace", "append"])
def test_a_random_sample_transform_differs_in_workers_and_epochs(bank, mode, loader):
    runs = []
    for _ in range(2):
        set_determinism(7)
        data = DiverseDiffusionDataset(dicts([0, 1] * 8), bank, mode=mode, prob=1, ratio=1, sample_transform=Shift())
        batches = loader(data, num_workers=2, batch_size=8, sampler=range(len(data) - 16, len(data)))
        # the factor, whichever sample it was
        runs.append(
            [
                tuple(
                    round(float(image.max()) / float(bank.images[int(source.partition(":")[2])].max()), 4)
                    for image, source in zip(batch["image"], batch["sample_source"], strict=True)
                )
                for _ in range(2)
                for batch in batches
            ]
        )
        assert len({*runs[-1]}) == 4
    assert runs[0] == runs[1]


LOOKING = multiprocessing.Lock()


class Noted(DiverseDiffusionDataset):
    def __getitem__(self, index: int) -> Any:
        with LOOKING, warnings.catch_warnings(record=True) as caught:  # two that look at the very same time may both be first
            warnings.simplefilter("always")
            made = super().__getitem__(index)
        return made | {"warned": len(caught)}


def test_workers_warn_once_and_count_together(bank):
    data = [entry | {"image": entry["image"] * 255} for entry in dicts([0, 2] * 8)]
    made = Noted(data, bank, prob=1)
    loader = TorchLoader(made, num_workers=2, batch_size=4, sampler=[0, 1, 2, 3, 5, 4, *range(6, 16)])
    assert [sum(int(batch["warned"].sum()) for batch in loader) for _ in range(2)] == [1, 0]
    assert made.ineligible == 16
