from __future__ import annotations

import copy
import itertools
import multiprocessing
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.apps import MedNISTDataset
from monai.data import CacheDataset, MetaTensor, PersistentDataset
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from monai.data.utils import list_data_collate
from monai.transforms import Compose, EnsureChannelFirst, RandFlipd, Randomizable, Resize, ScaleIntensity, ScaleIntensityd
from monai.transforms.traits import LazyTrait
from monai.utils import set_determinism
from monai.utils.enums import SpaceKeys
from torch.utils.data import DataLoader as TorchLoader

from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.dataset import DiverseDiffusionDataset, mixing_sampler
from monai_diverse.errors import BankError, DataError, RecipeError
from monai_diverse.transforms import RandDiverseMixd, RandDiverseReplace, RandDiverseReplaceD, RandDiverseReplaced, RandDiverseReplaceDict
from monai_diverse.transforms.labels import read_label, write_label

SHAPE = (1, 6, 5)
COUNT = 60
META = {"filename_or_obj": "patient-7.nii", "affine": torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64)), "PatientName": "Doe"}


def make_bank(path: Path, *, classes: int = 4, labels: Any = None, count: int = COUNT, shape: tuple[int, ...] = SHAPE, **source: Any) -> SampleBank:
    """Labels 0..2 (never 3); sample i has one pixel of level i / 255, the rest lies in [0.4, 1]."""
    rng = np.random.default_rng(0)
    images = rng.integers(102, 256, (count, *shape)).astype(np.float32) / 255
    images[(slice(None), *(0,) * len(shape))] = np.arange(count, dtype=np.float32) / 255
    header = BankHeader(recipe={}, recipe_fingerprint="r", source={"fingerprint": "s"} | source, features={}, shape=shape, classes=classes)
    with BankWriter.create_or_resume(path, header, resume=False) as writer:
        writer.append(images, np.arange(count) % 3 if labels is None else labels, np.arange(count), {}, {})
        return writer.bank


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    return make_bank(tmp_path / "bank")


@pytest.fixture(autouse=True)
def _no_determinism() -> Iterator[None]:
    torch_state = torch.get_rng_state()
    yield
    set_determinism(None)
    torch.set_rng_state(torch_state)


def forms(image: np.ndarray[Any, Any]) -> list[Any]:
    return [
        image.astype(np.float32),
        image.astype(np.float64),
        torch.tensor(image, dtype=torch.float32),
        torch.tensor(image, dtype=torch.float16),
        MetaTensor(torch.tensor(image, dtype=torch.float32), meta=dict(META), applied_operations=[{"class": "Patient"}]),
    ]


def real_image() -> np.ndarray[Any, Any]:
    return np.linspace(0, 1, 30).reshape(SHAPE)


LABELS = [
    1,
    np.int64(1),
    np.array(1, np.uint8),
    np.array([1], np.float32),
    np.array([0, 1, 0, 0]),
    torch.tensor(1),
    torch.tensor([[1]], dtype=torch.int16),
    torch.tensor([0.0, 1.0, 0.0, 0.0]),
    MetaTensor(torch.tensor([1.0]), meta=dict(META)),
]


def counts_for(policy: str, counts: Any = (0, 9)) -> dict[str, Any]:
    return {"class_counts": counts} if policy == "balance" else {}


def describe(value: Any) -> tuple[Any, ...]:
    return type(value), getattr(value, "dtype", None), tuple(getattr(value, "shape", ())), str(getattr(value, "device", None))


# --- one item


@pytest.mark.parametrize("form", range(5))
@pytest.mark.parametrize("label", LABELS, ids=repr)
@pytest.mark.parametrize("policy", ["match", "own", "balance"])
def test_items_keep_their_form(bank, form, label, policy):
    item = {"image": forms(real_image())[form], "label": copy.deepcopy(label), "age": 60, "class_name": "one"}
    before = copy.deepcopy(item)
    seen = set()
    for prob in (0.0, 1.0):
        transform = RandDiverseReplaced("image", bank, prob=prob, label_policy=policy, **counts_for(policy)).set_random_state(3)
        for _ in range(8):
            made = transform(item)
            seen.add(made["sample_source"].partition(":")[0])
            assert list(made) == [*item, "sample_source"]
            for key in item:
                assert describe(made[key]) == describe(item[key])
            assert made["image"] is not item["image"] or made["sample_source"] == "real"
            if made["sample_source"] == "real":
                assert all(made[key] is item[key] for key in item)
                continue
            index = int(made["sample_source"].partition(":")[2])
            expected = torch.as_tensor(bank.images[index]).to(torch.as_tensor(made["image"]).dtype)
            assert torch.equal(torch.as_tensor(np.asarray(made["image"])), expected)
            assert read_label(made["label"]) == bank.labels[index]
            assert policy == "own" or read_label(made["label"]) == 1
            assert made["class_name"] == ("one" if bank.labels[index] == 1 else f"class {bank.labels[index]}")
    assert seen == {"real", "synthetic"}
    assert "sample_source" not in item
    for key, value in before.items():
        np.testing.assert_array_equal(np.asarray(item[key]), np.asarray(value))


def test_nothing_of_the_patient_is_left(bank):
    image = forms(real_image())[4]
    label = MetaTensor(torch.tensor([1.0]), meta=dict(META))
    dictionary = RandDiverseReplaced("image", bank, prob=1, label_policy="own").set_random_state(0)
    made = [dictionary({"image": image, "label": label}) for _ in range(20)]
    array = RandDiverseReplace(bank, prob=1)
    images = [m["image"] for m in made] + [array(image)]
    changed = [m["label"] for m in made if m["label"] is not label]
    assert changed
    sources = [m["sample_source"] for m in made] + [f"synthetic:{array._index}"]
    assert [value.meta["filename_or_obj"] for value in images] == sources
    assert "filename_or_obj" not in dictionary({"image": MetaTensor(image.as_tensor()), "label": 1})["image"].meta
    for value in images + changed:
        assert isinstance(value, MetaTensor)
        assert set(value.meta) <= {"affine", "space", "filename_or_obj"}
        assert "Doe" not in str(value.meta)
        assert torch.equal(value.affine, torch.eye(4, dtype=torch.float64))
        assert value.applied_operations == []
        assert value.pending_operations == []
    assert image.meta["PatientName"] == "Doe"


def test_meta_dictionaries_beside_an_image_are_blank(bank):
    """What LoadImaged(image_only=False) leaves in an item."""
    meta = {"filename_or_obj": "doe.nii", "affine": np.eye(4) * 2, "PatientName": "Doe", "size": [6, 5], "space": SpaceKeys.RAS, "none": None}
    item = {"image": real_image(), "label": 1, "image_meta_dict": meta, "other_meta_dict": dict(meta)}
    for kind in (RandDiverseReplaced, RandDiverseMixd):
        made = kind("image", bank, prob=1)(item)
        blank = made["image_meta_dict"]
        assert list(blank) == list(meta)
        assert [type(value) for value in blank.values()] == [type(value) for value in meta.values()]
        assert (blank["filename_or_obj"], blank["PatientName"], blank["size"], blank["space"]) == ("", "", [0, 0], SpaceKeys.RAS)
        assert not blank["affine"].any()
        assert made["other_meta_dict"] == item["other_meta_dict"]
        assert kind("image", bank, prob=0)(item)["image_meta_dict"] is meta
    assert meta["PatientName"] == "Doe"


def test_samples_are_fresh_memory(bank):
    transform = RandDiverseReplace(bank, label=0, prob=1)
    for form in forms(real_image()):
        made = transform(form)
        index = transform._index
        made[...] = 0
        assert bank.images[index].max() > 0


def test_several_images_of_an_item_share_no_memory(bank):
    kept = real_image().astype(np.float32)
    for transform in (None, lambda sample: kept):  # a transform may hand out memory that it keeps
        made = RandDiverseReplaced(["a", "b"], bank, prob=1, sample_transform=transform)(
            {"a": real_image().astype(np.float32), "b": real_image().astype(np.float32), "label": 1}
        )
        assert not np.shares_memory(made["a"], made["b"])
        made["a"][:] = 7
        assert (made["b"] < 7).all()
        assert (kept <= 1).all()


def test_integer_images_are_rounded_and_warned_of(bank):
    for real in (np.full(SHAPE, 255, np.uint8), torch.full(SHAPE, 255, dtype=torch.uint8)):
        real[0, 0, 0] = 0
        transform = RandDiverseReplace(bank, prob=1, sample_transform=lambda x: x * 255)
        made = transform(real)
        assert made.dtype == real.dtype
        np.testing.assert_array_equal(np.asarray(made), np.rint(bank.images[transform._index] * 255).astype(np.uint8))
        with pytest.warns(UserWarning, match=r"\[0, 255\].*\[0, 1\]"):
            RandDiverseReplace(bank, prob=1)(real)


def test_what_overshoots_does_not_wrap_around_in_integers(bank):
    for real in (np.full(SHAPE, 255, np.uint8), torch.full(SHAPE, 255, dtype=torch.uint8)):
        real[0, 0, 0] = 0
        transform = RandDiverseReplace(bank, prob=1, sample_transform=lambda x: (x - 0.5) * 700)
        made = transform(real)
        levels = (bank.images[transform._index] - 0.5) * 700
        assert levels.min() < 0
        assert levels.max() > 255
        np.testing.assert_array_equal(np.asarray(made), np.clip(np.rint(levels), 0, 255))


def test_several_keys_get_the_same_sample(bank):
    item = {"a": real_image(), "b": torch.tensor(real_image()), "label": 2}
    made = RandDiverseReplaced(["a", "b"], bank, prob=1)(item)
    np.testing.assert_array_equal(made["a"].astype(np.float32), made["b"].float().numpy())
    assert not np.array_equal(made["a"], item["a"])


def test_array_transform(bank):
    image = real_image()
    transform = RandDiverseReplace(bank, label=2, prob=1).set_random_state(0)
    drawn = set()
    for _ in range(40):
        made = transform(image)
        assert isinstance(made, np.ndarray)  # never a tuple
        assert bank.labels[transform._index] == 2
        np.testing.assert_array_equal(transform(image, randomize=False), made)
        drawn.add(transform._index)
    assert len(drawn) > 10
    everything = RandDiverseReplace(str(bank.path), prob=1).set_random_state(0)
    everything_drawn = [everything(image) is not None and int(bank.labels[everything._index]) for _ in range(40)]
    assert set(everything_drawn) == {0, 1, 2}
    assert RandDiverseReplace(bank, prob=0)(image) is image


def test_probability_is_kept(bank):
    transform = RandDiverseReplaced("image", bank, prob=0.1).set_random_state(1)
    hits = sum(transform({"image": real_image(), "label": 0})["sample_source"] != "real" for _ in range(3000))
    assert abs(hits - 300) < 66  # four standard deviations


def test_nothing_eligible(bank, tmp_path):
    item = {"image": real_image(), "label": 3}
    transform = RandDiverseReplaced("image", bank, prob=1)
    made = transform(item)
    assert made["image"] is item["image"]
    assert (made["sample_source"], transform.ineligible) == ("real", 1)
    with pytest.warns(UserWarning, match="no samples of class 3"):
        array = RandDiverseReplace(bank, label=3, prob=1)
    assert array(item["image"]) is item["image"]
    assert array.ineligible == 1
    empty = make_bank(tmp_path / "empty", count=0)
    for kind in (RandDiverseReplaced, RandDiverseMixd):
        with pytest.warns(UserWarning, match=r"empty holds no samples") as caught:
            hopeless = kind("image", empty, prob=1, label_policy="own")
        assert len(caught) == 1
        assert hopeless(item)["sample_source"] == "real"
    with pytest.warns(UserWarning, match=r"empty holds no samples") as caught:
        RandDiverseReplace(empty, label=1)
    assert len(caught) == 1
    unlucky = RandDiverseReplaced("image", bank, prob=0)
    unlucky(item)
    assert unlucky.ineligible == 0


def test_balance_favours_what_is_rare(bank):
    transform = RandDiverseReplaced("image", bank, prob=1, label_policy="balance", class_counts=[90, 0, 30]).set_random_state(0)
    labels = [transform({"image": real_image(), "label": label})["label"] for label in (0, 1) * 200]
    assert set(labels) == {0, 2}  # class 1 is not in the data, whatever an item says
    assert abs(np.mean(np.asarray(labels) == 2) - 0.75) < 0.09


@pytest.mark.filterwarnings("ignore:label_policy")
def test_without_counts_balance_estimates_them(bank):
    transform = RandDiverseReplaced("image", bank, prob=0, label_policy="balance").set_random_state(0)
    for label in [0] * 9000 + [2] * 3000:
        transform.randomize({"label": label})
    transform.prob = 1.0
    labels = [transform({"image": real_image(), "label": 0})["label"] for _ in range(400)]
    assert set(labels) == {0, 2}  # class 1 was never seen
    assert abs(np.mean(np.asarray(labels) == 2) - 0.75) < 0.09
    transform.set_random_state(0)
    assert transform({"image": real_image(), "label": 1})["label"] == 1  # counts are forgotten with the state


@pytest.mark.parametrize("kind", [RandDiverseReplaced, RandDiverseMixd])
def test_class_counts_are_checked(bank, kind):
    with pytest.warns(UserWarning, match=r"each worker and epoch.*class_counts=np\.bincount\(labels\)") as caught:
        kind("image", bank, label_policy="balance")
    assert len(caught) == 1
    wrong: tuple[Any, ...] = ([], [0, 0], [-1, 2], [0.5, 1], "12", 3, [True, False], {0: 3}, [[1, 2]], [[1], [1, 2]], [None, 1], [float("nan")])
    for counts in wrong:
        with pytest.raises(RecipeError, match="class_counts: expected how many"):
            kind("image", bank, label_policy="balance", class_counts=counts)
    for policy in ("match", "own"):
        with pytest.raises(RecipeError, match=f"class_counts.*'{policy}'.*'balance' alone"):
            kind("image", bank, label_policy=policy, class_counts=[1, 2])
    for counts in ([0, 3], (1,), np.bincount([0, 2, 2, 7]), torch.tensor([4, 5])):
        kind("image", bank, label_policy="balance", class_counts=counts)


UNEVEN = [0] * 78 + [1] * 15 + [2] * 3


class Shuffled(MonaiDataset):
    """Items of uneven classes, through a Compose."""

    def __init__(self, transform: Any) -> None:
        super().__init__([{"image": torch.tensor(real_image()), "label": label} for label in UNEVEN], Compose([transform]))


def drawn_shares(bank: SampleBank, transform: Any, loader: Any, epochs: int) -> np.ndarray[Any, Any]:
    """Of each class among the samples that were drawn."""
    batches = loader(Shuffled(transform), num_workers=2, batch_size=24, shuffle=True)
    indices = [int(source.split(":")[1]) for _ in range(epochs) for source in sources(batches) if source != "real"]
    return np.bincount(bank.labels[indices], minlength=3) / len(indices)


@pytest.mark.parametrize("loader", [MonaiLoader, TorchLoader])
@pytest.mark.parametrize("kind", [RandDiverseReplaced, RandDiverseMixd])
def test_balance_in_workers_and_epochs(bank, kind, loader):
    torch.manual_seed(0)
    counts = np.bincount(UNEVEN)
    expected = (1 / counts) / (1 / counts).sum()
    tolerance = 4 * (expected * (1 - expected) / (6 * len(UNEVEN))) ** 0.5
    shares = drawn_shares(bank, kind("image", bank, prob=1, label_policy="balance", class_counts=counts), loader, epochs=6)
    assert (np.abs(shares - expected) < tolerance).all()


def test_estimated_counts_are_biased_in_workers(bank):
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="too seldom"):
        transform = RandDiverseReplaced("image", bank, prob=1, label_policy="balance")
    assert drawn_shares(bank, transform, TorchLoader, epochs=6)[2] < 0.7  # 0.81 is due


def test_class_names_come_from_the_source(tmp_path):
    bank = make_bank(tmp_path / "named", labels=np.full(COUNT, 2), class_names=["normal", "benign", "malignant", "other"])
    made = RandDiverseReplaced("image", bank, prob=1, label_policy="own")({"image": real_image(), "label": 0, "class_name": "normal"})
    assert (made["label"], made["class_name"]) == (2, "malignant")


NAMES = ["benign", "malignant", "normal", "other"]


@pytest.mark.parametrize("prob", [0.0, 1.0])
@pytest.mark.parametrize("kind", [RandDiverseReplaced, RandDiverseMixd])
def test_class_numbers_must_be_the_banks(tmp_path, kind, prob):
    transform = kind("image", make_bank(tmp_path / "named", class_names=NAMES), prob=prob)
    for label, name in ((0, "normal"), (2, "malignant"), (7, "normal")):
        with pytest.raises(DataError, match=f"class {label} is '{name}'.*'{name}' is class {NAMES.index(name)}.*0 benign, 1 malignant, 2 normal"):
            transform({"image": real_image(), "label": label, "class_name": name})
    for name in ("normal", "healthy", 2):  # a name that the bank does not know says nothing
        assert transform({"image": real_image(), "label": torch.tensor([2]), "class_name": name})["class_name"] == name


def test_chained_replacements_keep_the_source(bank):
    first, second = RandDiverseReplaced("image", bank, prob=1), RandDiverseReplaced("image", bank, prob=0)
    assert second(first({"image": real_image(), "label": 0}))["sample_source"].startswith("synthetic:")


# --- what does not fit


def test_missing_keys(bank):
    transform = RandDiverseReplaced(["image", "second"], bank, prob=1)
    with pytest.raises(KeyError, match="second"):
        transform({"image": real_image(), "label": 0})
    with pytest.raises(KeyError, match="label"):
        transform({"image": real_image(), "second": real_image()})
    lenient = RandDiverseReplaced(["image", "second"], bank, prob=1, allow_missing_keys=True)
    made = lenient({"image": real_image(), "label": 0})
    assert set(made) == {"image", "label", "sample_source"}
    assert made["sample_source"] != "real"
    assert lenient({"label": 0})["sample_source"] == "real"
    assert lenient({"image": real_image()})["sample_source"] == "real"


@pytest.mark.parametrize("prob", [0.5, 1.0])
def test_shapes_must_match_whatever_is_drawn(bank, prob):
    transform = RandDiverseReplaced("image", bank, prob=prob)
    for shape in ((1, 6, 6), (3, 6, 5), (6, 5)):
        with pytest.raises(DataError, match=r"sample_transform") as caught:
            transform({"image": np.zeros(shape), "label": 0})
        assert str(shape) in str(caught.value)
        assert str(SHAPE) in str(caught.value)
    wrong = RandDiverseReplace(bank, prob=1, sample_transform=lambda x: x[:, :3])
    with pytest.raises(DataError, match=r"\(1, 6, 5\).*\(1, 3, 5\)"):
        wrong(real_image())


def test_other_misuse(bank, tmp_path):
    with pytest.raises(RecipeError, match=r"prob.*1\.5"):
        RandDiverseReplaced("image", bank, prob=1.5)
    with pytest.raises(RecipeError, match="nan"):
        RandDiverseReplace(bank, prob=float("nan"))
    with pytest.raises(RecipeError, match=r"label_policy.*'any'"):
        RandDiverseReplaced("image", bank, label_policy="any")  # type: ignore[arg-type]
    with pytest.raises(BankError):
        RandDiverseReplace(tmp_path / "nowhere")
    for label in (4, -1, 0.5, "benign"):
        with pytest.raises(RecipeError, match=r"label.*0\.\.3"):
            RandDiverseReplace(bank, label=label)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"prob.*'0\.1'"):
        RandDiverseReplace(bank, prob="0.1")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="callable"):
        RandDiverseReplace(bank, sample_transform=3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"expected an array or tensor.*str"):
        RandDiverseReplaced("image", bank)({"image": "patient-7.nii", "label": 0})
    with pytest.raises(DataError, match="return an array or tensor, got list"):
        RandDiverseReplace(bank, prob=1, sample_transform=lambda x: x.tolist())(real_image())


@pytest.mark.parametrize("label", ["benign", None, 0.5, np.array([0.3, 0.7]), torch.tensor([1, 1, 0]), np.zeros((2, 2)), float("nan")])
def test_labels_that_are_none(label):
    with pytest.raises(DataError, match="whole number"):
        read_label(label)


@pytest.mark.parametrize("like", [True, np.array(0, np.int8), torch.tensor(0, dtype=torch.int8), np.array([0, 1, 0]), torch.tensor([1, 0])])
def test_labels_that_cannot_hold_the_class(like):
    with pytest.raises(DataError, match="hold class 300"):
        write_label(like, 300)


# --- intensities


@pytest.mark.parametrize(("scale", "shift"), [(255, 0), (6, -3), (2, -1), (0.004, 0)])
def test_range_mismatch_warns_once_with_both_ranges(bank, scale, shift):
    transform = RandDiverseReplaced("image", bank, prob=1)
    item = {"image": real_image() * scale + shift, "label": 0}
    with pytest.warns(UserWarning, match=r"\[0, 1\].*sample_transform") as caught:
        transform(item)
    assert f"[{shift:.4g}, {shift + scale:.4g}]" in str(caught[0].message)
    transform(item)  # a second warning would be an error


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (0.3, 0.1), (1.2, -0.1), (0.08, 0)])
def test_ordinary_ranges_do_not_warn(bank, scale, shift):
    item = RandDiverseReplaced("image", bank, prob=1)({"image": real_image() * scale + shift, "label": 0})  # a warning would be an error
    assert item["sample_source"].startswith("synthetic:")


def test_a_blank_image_does_not_use_the_check_up(bank):
    transform = RandDiverseReplace(bank, prob=1)
    transform(np.zeros(SHAPE))
    with pytest.warns(UserWarning, match="intensities"):
        transform(real_image() * 255)


@pytest.mark.parametrize("kind", ["numpy", "tensor", "meta"])
def test_sample_transform(bank, kind):
    stages = {
        "numpy": lambda x: np.kron(x, np.ones((1, 2, 2), np.float32)) * 255,
        "tensor": lambda x: torch.from_numpy(np.kron(x, np.ones((1, 2, 2), np.float32))).double() * 255,
        "meta": Compose([Resize((12, 10), mode="nearest"), ScaleIntensity(0, 255)]),
    }
    real = np.kron(real_image(), np.ones((1, 2, 2))) * 255
    transform = RandDiverseReplace(bank, prob=1, sample_transform=stages[kind])
    made = transform(real)
    assert describe(made) == describe(real)
    assert (made.min() < 255 * 0.5) & (made.max() > 200)
    if kind != "meta":
        np.testing.assert_allclose(made[:, ::2, ::2], bank.images[transform._index] * np.float32(255))


class Jitter(Randomizable):
    def __call__(self, image: Any) -> Any:
        return image * np.float32(self.R.uniform(0.5, 1))


def test_random_sample_transforms_are_seeded_along(bank):
    made = []
    for _ in range(2):
        transform = RandDiverseReplace(bank, prob=1, sample_transform=Compose([Jitter()])).set_random_state(5)
        made.append(np.stack([transform(real_image()) for _ in range(4)]))
    np.testing.assert_array_equal(made[0], made[1])


# --- MONAI's contracts


def test_traits_and_aliases(bank):
    assert RandDiverseReplaceD is RandDiverseReplaceDict is RandDiverseReplaced
    for transform in (RandDiverseReplace(bank), RandDiverseReplaced("image", bank)):
        assert isinstance(transform, Randomizable)
        assert not isinstance(transform, LazyTrait)
        assert transform.set_random_state(0) is transform


def items(count: int = 24, meta: bool = False) -> list[dict[str, Any]]:
    image = forms(real_image())[4 if meta else 2]
    return [{"image": copy.deepcopy(image), "label": i % 3, "id": i} for i in range(count)]


def sources(batches: Any) -> list[str]:
    return [source for batch in batches for source in batch["sample_source"]]


def test_random_state_decides(bank):
    made = {}
    for seed in (0, 0, 1):
        transform = RandDiverseReplaced("image", bank, prob=0.5, label_policy="balance", class_counts=[8, 8, 8]).set_random_state(seed)
        made.setdefault(seed, []).append([transform(item)["sample_source"] for item in items()])
    assert made[0][0] == made[0][1] != made[1][0]
    twice = RandDiverseReplaced("image", bank, prob=0.5)
    assert [twice.set_random_state(4)(item)["sample_source"] for item in items(3)] == [
        twice.set_random_state(4)(item)["sample_source"] for item in items(3)
    ]
    state = RandDiverseReplaced("image", bank, prob=0.5).set_random_state(state=np.random.RandomState(7))
    assert state.R.randint(1000) == np.random.RandomState(7).randint(1000)


@pytest.mark.parametrize("nested", [False, True])
def test_compose_seeds_it(bank, nested):
    def make() -> Compose:
        inner = RandDiverseReplaced("image", bank, prob=0.5)
        return Compose([ScaleIntensityd("image"), Compose([inner]) if nested else inner, RandFlipd("image", prob=0.5)])

    runs = [[pipeline.set_random_state(seed)(item)["sample_source"] for item in items(1) * 12] for seed in (0, 0, 1) for pipeline in [make()]]
    assert runs[0] == runs[1]
    streams = []
    for seed in (0, 0, 1):
        pipeline = make()
        pipeline.set_random_state(seed)
        streams.append([pipeline(item)["sample_source"] for item in items()])
    assert streams[0] == streams[1] != streams[2]
    assert 0 < sum(source == "real" for source in streams[0]) < 24


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["cache", "persistent"])
def test_caches_do_not_freeze_it(bank, tmp_path, nested, kind):
    inner: Any = RandDiverseReplaced("image", bank, prob=0.5)
    pipeline = Compose([ScaleIntensityd("image"), Compose([inner]) if nested else inner])
    if kind == "cache":
        data = CacheDataset(items(12), pipeline, progress=False)
    else:
        data = PersistentDataset(items(12), pipeline, cache_dir=tmp_path / "cache")
    epochs = [tuple(data[i]["sample_source"] for i in range(12)) for _ in range(4)]
    assert len(set(epochs)) == 4


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("policy", ["match", "own", "balance"])
def test_mixed_batches_collate(bank, meta, policy):
    transform = RandDiverseReplaced("image", bank, prob=0.5, label_policy=policy, **counts_for(policy)).set_random_state(0)
    for label in (1, np.array([1]), torch.tensor(1), torch.tensor([0.0, 1.0, 0.0])):
        batch = [transform(item | {"label": label}) for item in items(12, meta)]
        kinds = [entry["sample_source"] == "real" for entry in batch]
        assert 0 < sum(kinds) < 12
        for order in (sorted(range(12), key=lambda i: kinds[i]), sorted(range(12), key=lambda i: not kinds[i])):
            made = list_data_collate([batch[i] for i in order])
            assert made["image"].shape == (12, *SHAPE)
            assert type(made["image"]) is (MetaTensor if meta else torch.Tensor)
            assert len(made["sample_source"]) == len(made["label"]) == 12
            if meta:  # the key is there for all, whichever comes first
                names = ["patient-7.nii" if source == "real" else source for source in made["sample_source"]]
                assert made["image"].meta["filename_or_obj"] == names
                assert "Doe" not in str(made["image"].meta)


def test_copies_and_pickles_share_the_bank(bank):
    for transform in (RandDiverseReplace(bank), RandDiverseReplaced("image", bank)):
        assert bank.images[0] is not None  # mapped
        assert copy.deepcopy(transform).bank is bank
        data = pickle.dumps(Compose([transform.set_random_state(0)]))
        assert len(data) < 13_500 + len(str(bank.path))  # mostly the random states
        assert len(pickle.loads(data).transforms[0].bank) == COUNT


# --- workers


class Draws(torch.utils.data.Dataset[Any]):
    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        return self.transform({"image": torch.tensor(real_image()), "label": index % 3})


class Shielded(Randomizable, MonaiDataset):
    """As MedNISTDataset: MONAI's search for random transforms ends here."""


def workers_of(loader: Any) -> list[list[str]]:
    """What each of two workers drew; they take turns by batch."""
    drawn = [list(batch["sample_source"]) for batch in loader]
    return [list(itertools.chain.from_iterable(drawn[worker::2])) for worker in range(2)]


def shield(bank: SampleBank, seed: int | None = None) -> Shielded:
    transform = RandDiverseReplaced("image", bank, prob=0.7, label_policy="own")
    pipeline = Compose([transform])
    if seed is not None:
        pipeline.set_random_state(seed)
    return Shielded(items(96), pipeline)


LOADERS = {
    "monai": lambda bank: MonaiLoader(MonaiDataset(items(96), Compose([RandDiverseReplaced("image", bank, prob=0.7)])), num_workers=2, batch_size=24),
    "monai, shielded": lambda bank: MonaiLoader(shield(bank), num_workers=2, batch_size=24),
    "torch, in Compose": lambda bank: TorchLoader(shield(bank), num_workers=2, batch_size=24),
    "torch, bare": lambda bank: TorchLoader(Draws(RandDiverseReplaced("image", bank, prob=0.7)), num_workers=2, batch_size=24),
    "torch, seeded": lambda bank: TorchLoader(
        Draws(RandDiverseReplaced("image", bank, prob=0.7).set_random_state(3)), num_workers=2, batch_size=24, multiprocessing_context="fork"
    ),
    "persistent": lambda bank: TorchLoader(shield(bank, 3), num_workers=2, batch_size=24, persistent_workers=True),
}


def test_the_shield_is_what_mednist_does():
    assert MedNISTDataset.__mro__.index(Randomizable) < MedNISTDataset.__mro__.index(CacheDataset)


@pytest.mark.parametrize("kind", LOADERS)
def test_workers_and_epochs_draw_differently_and_reproducibly(bank, kind):
    runs = []
    for _ in range(2):
        set_determinism(11)
        loader = LOADERS[kind](bank)
        epochs = [workers_of(loader) for _ in range(2)]
        runs.append(epochs if kind != "torch, bare" else None)  # that one depends on its number as well: see the next test
        streams = [tuple(worker) for epoch in epochs for worker in epoch]
        assert len(set(streams)) == 4
        # the coins differ too, not only the samples
        assert len({tuple(s == "real" for s in stream) for stream in streams}) == 4
    assert runs[0] == runs[1]


def test_a_bare_transform_is_reproducible_with_the_torch_seed(bank):
    transform = RandDiverseReplaced("image", bank, prob=0.7)
    other = RandDiverseReplaced("image", bank, prob=0.7)
    runs = []
    for used in (transform, transform, other):
        torch.manual_seed(5)
        runs.append(workers_of(TorchLoader(Draws(used), num_workers=2, batch_size=24)))
    assert runs[0] == runs[1] != runs[2]


def test_seeds_of_transform_and_loader_both_count_in_workers(bank):
    runs = {}
    for own, loader in ((1, 1), (2, 1), (1, 2)):
        transform = RandDiverseReplaced("image", bank, prob=0.7).set_random_state(own)
        torch.manual_seed(loader)
        runs[own, loader] = str(workers_of(TorchLoader(Draws(transform), num_workers=2, batch_size=24)))
    assert len(set(runs.values())) == 3


def seed_worker(_: int) -> None:
    torch.utils.data.get_worker_info().dataset.transform.set_random_state(123)


def test_ones_own_worker_init_counts_as_meant(bank):
    loader = TorchLoader(Draws(RandDiverseReplaced("image", bank, prob=0.7)), num_workers=2, batch_size=24, worker_init_fn=seed_worker)
    first, second = workers_of(loader)
    assert first == second
    transform = RandDiverseReplaced("image", bank, prob=0.7).set_random_state(123)
    data = Draws(transform)
    assert [data[i]["sample_source"] for i in (*range(24), *range(48, 72))] == first


def test_main_process_draws_are_monais(bank):
    # no worker, no guard: with the same state as any transform of MONAI, the same stream
    transform = RandDiverseReplaced("image", bank, prob=0.5).set_random_state(9)
    rng = np.random.RandomState(9)
    for item in items(12):
        made = transform(item)["sample_source"]
        assert (made != "real") == (rng.random_sample() < 0.5)
        if made != "real":
            assert made == f"synthetic:{bank.indices_of(item['label'])[int(rng.random_sample() * 20)]}"


def test_spawned_workers(tmp_path):
    bank = make_bank(tmp_path / "bank", labels=np.arange(COUNT) % 2)  # none of class 2
    data = Draws(RandDiverseReplaced("image", bank, prob=0.7).set_random_state(3))
    drawn, lacking = {}, []
    for context in ("spawn", "fork"):
        torch.manual_seed(5)
        # one worker: importing torch and MONAI anew is what takes its time here
        drawn[context] = sources(TorchLoader(data, num_workers=1, batch_size=24, multiprocessing_context=context))
        lacking.append(data.transform.ineligible)
    assert 0 < lacking[0] < 32
    assert lacking[1] == 2 * lacking[0]
    assert drawn["spawn"] == drawn["fork"]
    assert 0 < drawn["spawn"].count("real") < 96
    assert drawn["spawn"] != [data[i]["sample_source"] for i in range(96)]


LOOKING = multiprocessing.Lock()


class Warned(Draws):
    """Says with each item whether it came with a warning, and is of a class that the bank lacks."""

    def __getitem__(self, index: int) -> Any:
        with LOOKING, warnings.catch_warnings(record=True) as caught:  # two that look at the very same time may both be first
            warnings.simplefilter("always")
            made = self.transform({"image": torch.tensor(real_image() * 255), "label": 3 * (index % 2)})
        return made | {"warned": len(caught)}


@pytest.mark.parametrize("kind", [RandDiverseReplaced, RandDiverseMixd])
def test_workers_warn_once_and_count_together(bank, kind):
    transform = kind("image", bank, prob=1)
    copied = copy.deepcopy(transform)
    loader = TorchLoader(Warned(transform), num_workers=2, batch_size=4, sampler=[0, 2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    epochs = [sum(int(batch["warned"].sum()) for batch in loader) for _ in range(3)]
    assert epochs == [1, 0, 0]
    assert transform.ineligible == copied.ineligible == 3 * 8
    assert transform({"image": torch.tensor(real_image() * 255), "label": 3})["sample_source"] == "real"  # a warning would be an error
    assert transform.ineligible == 25
    again = pickle.loads(pickle.dumps(transform))
    assert again.ineligible == 25
    again.ineligible = 0
    assert (again.ineligible, transform.ineligible) == (0, 25)


def test_array_transform_in_workers(bank):
    class Images(torch.utils.data.Dataset[Any]):
        transform = RandDiverseReplace(bank, prob=1)

        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> Any:
            return self.transform(torch.tensor(real_image()))

    batches = list(TorchLoader(Images(), num_workers=2, batch_size=12))
    assert not torch.equal(batches[0], batches[1])


def test_warnings_are_not_raised_by_ordinary_use(bank):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = Compose([EnsureChannelFirst(channel_dim="no_channel"), RandDiverseReplace(bank, prob=1)])
        assert pipeline(real_image()[0]).shape == SHAPE


# --- several processes


def draws_of_a_process(path: Path) -> dict[str, Any]:
    """What every process of a training draws if all run the same script."""
    bank = SampleBank.open(path)
    data = [{"image": torch.tensor(real_image()), "label": i % 3} for i in range(24)]
    replaced = Draws(RandDiverseReplaced("image", bank, prob=0.7).set_random_state(3))
    appended = DiverseDiffusionDataset(data, bank, mode="append", ratio=1)
    torch.manual_seed(5)
    return {
        "workers": workers_of(TorchLoader(replaced, num_workers=2, batch_size=24)),
        "dataset": [item["sample_source"] for item in DiverseDiffusionDataset(data, bank, prob=0.7)],
        "sampler": list(mixing_sampler(appended, share=0.3)),
        "appended": [appended.source_of(i) for i in range(48)],
        "later": replaced,
    }


def _process(rank: int, place: str, path: Path, early: Draws, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    made = draws_of_a_process(path)
    torch.manual_seed(5)
    made["early"] = workers_of(TorchLoader(early, num_workers=2, batch_size=24))
    early = pickle.loads(pickle.dumps(early))  # as for spawned workers
    torch.distributed.destroy_process_group()
    for key, data in (("later", made["later"]), ("pickled", early)):  # there is no group now: what was noted before counts
        torch.manual_seed(5)
        made[key] = workers_of(TorchLoader(data, num_workers=2, batch_size=24))
    answers.put((rank, made))


def test_ranks_draw_differently(bank, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    early = Draws(RandDiverseReplaced("image", bank, prob=0.7).set_random_state(3))
    place = str(tmp_path / "meeting")
    processes = [context.Process(target=_process, args=(rank, place, bank.path, early, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    alone = draws_of_a_process(bank.path)
    alone |= dict.fromkeys(("later", "early", "pickled"), alone["workers"])
    assert found[0] == alone
    for key in ("workers", "dataset", "sampler"):
        assert found[0][key] != found[1][key]
    assert found[1]["later"] == found[1]["early"] == found[1]["pickled"] == found[1]["workers"]
    assert found[0]["appended"] == found[1]["appended"]
