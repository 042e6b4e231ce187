from __future__ import annotations

import copy
import importlib
import itertools
import json
import multiprocessing
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Randomizable
from scipy import stats
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
A = pytest.importorskip("albumentations")

from test_transforms import COUNT, LABELS, describe, make_bank  # noqa: E402

from monai_diverse.bank import BankHeader, BankWriter, SampleBank  # noqa: E402
from monai_diverse.errors import BankError, DataError, MissingExtraError, RecipeError  # noqa: E402
from monai_diverse.transforms import albumentations_base  # noqa: E402
from monai_diverse.transforms.albumentations import BankReference, BankTransform  # noqa: E402
from monai_diverse.transforms.labels import read_label  # noqa: E402

SHAPE = (1, 6, 5)
KEYS = {"image", "label", "sample_source"}


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    return make_bank(tmp_path / "bank")


@pytest.fixture(autouse=True)
def _torch_state() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def real(dtype: Any = np.uint8, shape: tuple[int, ...] = (6, 5, 1)) -> np.ndarray[Any, Any]:
    ramp = np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
    return np.rint(ramp * 255).astype(np.uint8) if dtype == np.uint8 else ramp.astype(dtype)


def index_of(source: str) -> int | None:
    assert source == "real" or re.fullmatch(r"synthetic:\d+", source)
    return None if source == "real" else int(source.partition(":")[2])


def as_image(bank: SampleBank, index: int, dtype: Any) -> np.ndarray[Any, Any]:
    """What the sample is to albumentations, written without the code under test."""
    sample = bank.images[index].transpose(1, 2, 0)
    return (sample * 255).round().astype(np.uint8) if dtype == np.uint8 else sample.astype(dtype)


# --- one item


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_images_keep_their_form(tmp_path, dtype, channels):
    bank = make_bank(tmp_path / "bank", shape=(channels or 1, 6, 5))
    image = real(dtype, (6, 5, channels) if channels else (6, 5))
    before = image.copy()
    pipeline = A.Compose([BankTransform(bank, p=0.5)], seed=1)
    seen = set()
    for _ in range(12):
        made = pipeline(image=image, label=1)
        assert set(made) == KEYS
        assert describe(made["image"]) == describe(image)
        index = index_of(made["sample_source"])
        seen.add(index is None)
        expected = image if index is None else as_image(bank, index, dtype).reshape(image.shape)
        np.testing.assert_array_equal(made["image"], expected)
        if index is not None:
            made["image"][...] = 0  # what was handed out is the caller's
            assert bank.images[index].any()
    assert seen == {True, False}
    np.testing.assert_array_equal(image, before)


def test_finer_samples_are_rounded(tmp_path):
    header = BankHeader(recipe={}, recipe_fingerprint="r", source={"fingerprint": "s"}, features={}, shape=SHAPE, classes=1, dtype="float32")
    sample = np.random.default_rng(0).random((1, *SHAPE), dtype=np.float32)
    with BankWriter.create_or_resume(tmp_path / "fine", header, resume=False) as writer:
        writer.append(sample, [0], [0], {}, {})
    made = BankTransform(tmp_path / "fine", p=1)(image=real(), label=0)["image"]
    assert np.abs(made / 255 - sample[0].transpose(1, 2, 0)).max() <= 0.5 / 255 + 1e-7
    np.testing.assert_array_equal(BankTransform(tmp_path / "fine", p=1)(image=real(np.float32), label=0)["image"], sample[0].transpose(1, 2, 0))


@pytest.mark.parametrize("label", LABELS, ids=repr)
@pytest.mark.parametrize("policy", ["match", "own", "balance"])
def test_labels_stay_right_in_every_form(bank, label, policy):
    counts = {"class_counts": [0, 9]} if policy == "balance" else {}
    pipeline = A.Compose([BankTransform(str(bank.path), label_policy=policy, p=0.7, **counts), A.HorizontalFlip(p=0)], seed=3)
    given = copy.deepcopy(label)
    labels = set()
    for _ in range(20):
        made = pipeline(image=real(), label=label, class_name="one", age=60)
        assert set(made) == KEYS | {"class_name", "age"}
        assert describe(made["label"]) == describe(label)
        index = index_of(made["sample_source"])
        if index is None:
            assert made["label"] is label
            assert made["class_name"] == "one"
            continue
        told = made["image"][0, 0, 0]  # each sample has its number in one pixel
        assert told == index
        assert read_label(made["label"]) == bank.labels[told]
        assert made["class_name"] == ("one" if bank.labels[told] == 1 else f"class {bank.labels[told]}")
        labels.add(read_label(made["label"]))
    assert labels == ({0, 1, 2} if policy == "own" else {1})  # there is class 1 alone to balance
    np.testing.assert_array_equal(np.asarray(label), np.asarray(given))


def test_a_pipeline_of_any_kind_passes_the_keys_on(bank):
    pipeline = A.Compose(
        [A.Sequential([BankTransform(bank, label_key="y", source_key="from", p=1)], p=1), A.HorizontalFlip(p=1)], strict=True, seed=0
    )
    made = pipeline(image=real(), y=2)
    assert set(made) == {"image", "y", "from"}
    np.testing.assert_array_equal(made["image"], as_image(bank, index_of(made["from"]), np.uint8)[:, ::-1])
    with pytest.raises(ValueError, match="patient"):
        pipeline(image=real(), y=2, patient=7)


def test_chained_replacements_keep_the_source(bank):
    pipeline = A.Compose([BankTransform(bank, p=1), BankTransform(bank, p=0)])
    assert index_of(pipeline(image=real(), label=0)["sample_source"]) is not None
    again = A.Compose([BankTransform(bank, p=0)], strict=True)
    assert again(image=real(), label=0, sample_source="synthetic:3")["sample_source"] == "synthetic:3"


def test_additional_images_get_the_same_sample(bank):
    pipeline = A.Compose([BankTransform(bank, p=1)], additional_targets={"other": "image"})
    made = pipeline(image=real(), other=real(np.float32), label=0)
    index = index_of(made["sample_source"])
    np.testing.assert_array_equal(made["image"], as_image(bank, index, np.uint8))
    np.testing.assert_array_equal(made["other"], as_image(bank, index, np.float32))


def test_volumes(tmp_path):
    bank = make_bank(tmp_path / "bank", shape=(2, 3, 6, 5))
    made = A.Compose([BankTransform(bank, p=1)])(volume=real(np.float32, (3, 6, 5, 2)), label=1)
    expected = bank.images[index_of(made["sample_source"])].transpose(1, 2, 3, 0)
    np.testing.assert_array_equal(made["volume"], expected)
    with pytest.raises(DataError, match="image: expected volume and label alone"):
        BankTransform(bank)(image=real(), volume=real(np.float32, (3, 6, 5, 2)), label=1)


def test_probability_and_what_is_not_eligible(bank):
    pipeline = A.Compose([BankTransform(bank, p=0.1)], seed=5)
    hits = sum(pipeline(image=real(), label=0)["sample_source"] != "real" for _ in range(2000))
    assert abs(hits - 200) < 54  # four standard deviations
    assert pipeline[0].ineligible == 0
    lonely = BankTransform(bank, p=1)
    image = real()
    made = lonely(image=image, label=3)
    assert made["image"] is image
    assert (made["sample_source"], made["label"], lonely.ineligible) == ("real", 3, 1)


def test_balance_favours_what_is_rare(bank):
    pipeline = A.Compose([BankTransform(bank, label_policy="balance", class_counts=np.array([90, 0, 30]), p=1)], seed=0)
    pipeline = A.from_dict(json.loads(json.dumps(A.to_dict(pipeline))))
    pipeline.set_random_seed(0)
    labels = [pipeline(image=real(), label=label)["label"] for label in (0, 1) * 200]
    assert set(labels) == {0, 2}  # class 1 is not in the data, whatever an item says
    assert abs(np.mean(np.asarray(labels) == 2) - 0.75) < 0.09


@pytest.mark.filterwarnings("ignore:label_policy")
def test_without_counts_balance_estimates_them(bank):
    transform = BankTransform(bank, label_policy="balance", p=0)
    pipeline = A.Compose([transform], seed=0)
    for label in [0] * 900 + [2] * 300:
        pipeline(image=real(), label=label)
    transform.p = 1.0
    labels = [pipeline(image=real(), label=0)["label"] for _ in range(200)]
    assert set(labels) == {0, 2}  # class 1 was never seen
    assert abs(np.mean(np.asarray(labels) == 2) - 0.765) < 0.12
    pipeline.set_random_seed(0)
    assert pipeline(image=real(), label=1)["label"] == 1  # counts are forgotten with the seed


def test_class_counts_are_checked(bank):
    with pytest.warns(UserWarning, match=r"each worker and epoch.*class_counts=np\.bincount\(labels\)") as caught:
        BankTransform(bank, label_policy="balance")
    assert len(caught) == 1
    for counts in ([], [0, 0], [-1, 2], [0.5, 1], "12", [True, False]):
        with pytest.raises(RecipeError, match="class_counts: expected how many"):
            BankTransform(bank, label_policy="balance", class_counts=counts)
    with pytest.raises(RecipeError, match=r"class_counts.*'match'.*'balance' alone"):
        BankTransform(bank, class_counts=[1, 2])


def test_balance_in_workers_and_epochs(bank):
    torch.manual_seed(0)
    uneven = [0] * 78 + [1] * 15 + [2] * 3
    counts = np.bincount(uneven)
    pipeline = A.Compose([BankTransform(bank, label_policy="balance", class_counts=counts, p=1)], seed=0)

    class Uneven(Items):
        def __getitem__(self, index: int) -> Any:
            return self.pipeline(image=real(), label=uneven[index])

    loader = DataLoader(Uneven(pipeline), num_workers=2, batch_size=24, shuffle=True, multiprocessing_context="fork")
    labels = torch.cat([batch["label"] for _ in range(6) for batch in loader]).numpy()
    expected = (1 / counts) / (1 / counts).sum()
    shares = np.bincount(labels, minlength=3) / len(labels)
    assert (np.abs(shares - expected) < 4 * (expected * (1 - expected) / len(labels)) ** 0.5).all()


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_class_numbers_must_be_the_banks(tmp_path, p):
    transform = BankTransform(make_bank(tmp_path / "named", class_names=["benign", "malignant", "normal", "other"]), p=p)
    with pytest.raises(DataError, match=r"class 0 is 'normal'.*'normal' is class 2.*0 benign"):
        transform(image=real(), label=0, class_name="normal")
    assert transform(image=real(), label=2, class_name="normal")["class_name"] == "normal"
    assert transform(image=real(), label=2, class_name="healthy")["class_name"] == "healthy"


def test_an_empty_bank_is_warned_of(tmp_path):
    empty = make_bank(tmp_path / "empty", count=0)
    with pytest.warns(UserWarning, match="empty holds no samples"):
        transform = BankTransform(empty, p=1)
    assert transform(image=real(), label=0)["sample_source"] == "real"


def test_workers_warn_once_and_count_together(bank):
    looking = multiprocessing.Lock()

    class Warned(Items):
        def __getitem__(self, index: int) -> Any:
            with looking, warnings.catch_warnings(record=True) as caught:  # two that look at the very same time may both be first
                warnings.simplefilter("always")
                made = self.pipeline(image=real(np.float32) * 255, label=3 * (index % 2))
            return made | {"warned": sum("intensities" in str(warning.message) for warning in caught)}

    transform = BankTransform(bank, p=1)
    loader = DataLoader(
        Warned(A.Compose([transform])),
        num_workers=2,
        batch_size=4,
        sampler=[0, 2, 1, 3, 4, 5, 6, 7, *range(8, 16)],
        multiprocessing_context="fork",
    )
    assert [sum(int(batch["warned"].sum()) for batch in loader) for _ in range(2)] == [1, 0]
    assert transform.ineligible == 16


# --- what does not fit


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_annotations_of_the_real_image_are_refused_whatever_is_drawn(bank, p):
    boxes = {"bbox_params": A.BboxParams("pascal_voc", label_fields=["kinds"]), "keypoint_params": A.KeypointParams("xy")}
    pipeline = A.Compose([BankTransform(bank, p=p), A.HorizontalFlip()], additional_targets={"lesion": "mask"}, **boxes)
    nothing = {"bboxes": None, "kinds": [], "keypoints": None}
    with pytest.raises(DataError, match="mask: expected image and label alone"):
        BankTransform(bank, p=p)(image=real(), label=0, mask=np.zeros((6, 5)))
    for key, value in {"mask": np.zeros((6, 5)), "masks": [np.zeros((6, 5))], "lesion": np.zeros((6, 5))}.items():
        with pytest.raises(DataError, match=rf"^{key}: .*a sample has no {key}"):
            A.Compose([BankTransform(bank, p=p)], additional_targets={"lesion": "mask"})(image=real(), label=0, **{key: value})
    with pytest.raises(DataError, match=r"^bboxes: "):
        pipeline(image=real(), label=0, **(nothing | {"bboxes": [[0, 0, 3, 3]], "kinds": [1], "keypoints": []}))
    with pytest.raises(DataError, match=r"^keypoints: "):
        BankTransform(bank, p=p)(image=real(), label=0, keypoints=np.zeros((1, 2)))
    with pytest.raises(DataError, match=r"^images: "):
        BankTransform(bank, p=p)(image=real(), images=real()[None], label=0)
    assert set(BankTransform(bank, p=p)(image=real(), label=0, mask=None)) == KEYS | {"mask"}


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_images_and_labels_that_do_not_fit(bank, p):
    transform = BankTransform(bank, p=p)
    for shape in ((6, 6, 1), (6, 5, 3), (5, 6)):
        with pytest.raises(DataError, match=r"A\.Resize") as caught:
            transform(image=real(shape=shape), label=0)
        assert str(shape) in str(caught.value)
    for dtype in (np.int16, np.uint16, bool):
        with pytest.raises(DataError, match=rf"image: expected uint8.*got {np.dtype(dtype)}"):
            transform(image=np.zeros((6, 5, 1), dtype), label=0)
    with pytest.raises(DataError, match="ToTensorV2"):
        transform(image=torch.zeros(1, 6, 5), label=0)
    with pytest.raises(DataError, match=r"label: .*got \['image'\]"):
        transform(image=real())
    with pytest.raises(DataError, match=r"image: expected it in the call.*got \['label'\]"):
        transform(label=1)
    with pytest.raises(DataError, match="whole number"):
        transform(image=real(), label="benign")
    with pytest.raises(KeyError, match="named arguments"):
        transform(real())


def test_settings_are_checked(bank, tmp_path):
    with pytest.raises(RecipeError, match=r"^p: .*1\.5"):
        BankTransform(bank, p=1.5)
    with pytest.raises(RecipeError, match="label_policy"):
        BankTransform(bank, label_policy="any")
    with pytest.raises(RecipeError, match="callable"):
        BankTransform(bank, sample_transform=3)
    with pytest.raises(BankError):
        BankTransform(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="prob"):
        BankTransform(bank, prob=0.1)


def test_ranges_that_give_samples_away_are_warned_of(bank):
    with pytest.warns(UserWarning, match=r"\[0, 200\].*\[0, 1\]"):
        BankTransform(bank, p=1)(image=real(np.float32) * 200, label=0)
    BankTransform(bank, p=1)(image=real(), label=0)  # a warning would be an error
    BankTransform(bank, p=1)(image=real(np.float32), label=0)
    with pytest.warns(UserWarning, match=r"\[0, 2\].*\[0, 255\]"):
        BankTransform(bank, p=1)(image=real() // 100, label=0)


# --- what the images have been through


class Jitter(Randomizable):
    def __call__(self, image: Any) -> Any:
        return (image * self.R.uniform(0.5, 1)).astype(image.dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("kind", ["transform", "compose", "function"])
def test_sample_transform_gets_what_the_image_is(bank, dtype, kind):
    seen = []

    def double(image: Any) -> Any:
        seen.append(image)
        return np.repeat(np.repeat(image, 2, 0), 2, 1)

    stage = {"transform": A.Resize(12, 10, interpolation=0), "compose": A.Compose([A.Resize(12, 10, interpolation=0)]), "function": double}[kind]
    image = real(dtype, (12, 10, 1))
    made = A.Compose([BankTransform(bank, sample_transform=stage, p=1)])(image=image, label=2)
    assert describe(made["image"]) == describe(image)
    sample = as_image(bank, index_of(made["sample_source"]), dtype)
    np.testing.assert_array_equal(made["image"], np.kron(sample, np.ones((2, 2, 1), dtype)))
    for given in seen:
        np.testing.assert_array_equal(given, sample)
        assert given.dtype == dtype
    with pytest.raises(DataError, match=r"\(6, 5, 1\).*\(12, 10, 1\)"):
        BankTransform(bank, sample_transform=stage, p=1)(image=real(dtype), label=2)


def test_grey_banks_for_colour_images(bank):
    made = A.Compose([BankTransform(bank, sample_transform=A.ToRGB(), p=1)])(image=real(shape=(6, 5, 3)), label=0)
    sample = as_image(bank, index_of(made["sample_source"]), np.uint8)
    np.testing.assert_array_equal(made["image"], np.repeat(sample, 3, 2))


STAGES = [lambda: A.RandomBrightnessContrast(p=1), lambda: A.Compose([A.RandomBrightnessContrast(p=1)]), Jitter]


@pytest.mark.parametrize("stage", STAGES)
def test_random_sample_transforms_are_seeded_along(tmp_path, stage):
    bank = make_bank(tmp_path / "one", count=1)  # so that nothing else is drawn
    runs = []
    for seed in (3, 3, 4):
        pipeline = A.Compose([BankTransform(bank, sample_transform=stage(), p=1)], seed=seed)
        runs.append(np.stack([pipeline(image=real(), label=0)["image"] for _ in range(4)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert not np.array_equal(runs[0][0], runs[0][1])


def test_replaced_before_normalising_like_a_real_image(bank):
    """The order that the page recommends: no sample_transform is needed when what follows acts on both."""
    pipeline = A.Compose([BankTransform(bank, p=1), A.Normalize(mean=0.5, std=0.25)])
    made = pipeline(image=real(), label=0)
    expected = (bank.images[index_of(made["sample_source"])].transpose(1, 2, 0) - 0.5) / 0.25
    np.testing.assert_allclose(made["image"], expected, rtol=0, atol=1e-5)


# --- random numbers


def drawn(pipeline: Any, count: int = 24) -> list[str]:
    return [pipeline(image=real(), label=i % 3)["sample_source"] for i in range(count)]


def test_the_seed_of_the_compose_decides(bank):
    runs = [drawn(A.Compose([BankTransform(bank, p=0.5), A.HorizontalFlip()], seed=seed)) for seed in (1, 1, 2, None, None)]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) == 4
    pipeline = A.Compose([BankTransform(bank, p=0.5)], seed=1)
    first = drawn(pipeline)
    assert drawn(pipeline) != first  # the stream goes on
    pipeline.set_random_seed(1)
    assert drawn(pipeline) == first


def test_global_random_state_is_left_alone(bank):
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002  # that it stays is the point
    drawn(A.Compose([BankTransform(bank, p=0.5)]))
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002


def test_a_replacement_is_not_given_away_by_the_flip_that_follows(bank):
    """Under one seed all of albumentations' own transforms draw the same numbers."""
    marked = real()
    flips: dict[bool, list[bool]] = {True: [], False: []}
    pipeline = A.Compose([BankTransform(bank, p=0.4), A.HorizontalFlip(p=0.5)], seed=2)
    for _ in range(600):
        made = pipeline(image=marked, label=0)
        index = index_of(made["sample_source"])
        before = marked if index is None else as_image(bank, index, np.uint8)
        flips[index is not None].append(not np.array_equal(made["image"], before))
    for kind in flips.values():
        assert abs(np.mean(kind) - 0.5) < 0.13  # four standard deviations of the rarer kind
    theirs = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)], seed=2)
    outcomes = {tuple(theirs(image=marked)["image"].reshape(-1)) for _ in range(40)}
    assert len(outcomes) == 2  # of four: what this transform is kept out of


@pytest.mark.parametrize("change", [{"other": True}, {"label_policy": "own"}, {"source_key": "b"}, {"p": 0.31}])
def test_two_of_a_kind_in_one_pipeline_are_drawn_independently(bank, tmp_path, change):
    header = BankHeader(recipe={}, recipe_fingerprint="r2", source={"fingerprint": "s"}, features={}, shape=SHAPE, classes=4)
    with BankWriter.create_or_resume(tmp_path / "second", header, resume=False) as writer:
        writer.append(bank.images[:], bank.labels, np.arange(COUNT), {}, {})
        other = writer.bank
    settings = {"p": 0.3} | change
    pair = [BankTransform(bank, p=0.3), BankTransform(other if settings.pop("other", False) else bank, **settings)]
    A.Compose(pair, seed=0)
    coins = np.zeros((2, 2))
    same = 0
    for i in range(600):
        one, two = (index_of(made) for made in [t(image=real(), label=i % 3)[t.source_key] for t in pair])
        coins[int(one is not None), int(two is not None)] += 1
        same += one is not None and one == two
    assert stats.chi2_contingency(coins).pvalue > 0.001
    assert same < coins[1, 1] / 2


class Items(TorchDataset[Any]):
    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        return self.pipeline(image=real(), label=index % 3)


def workers_of(loader: Any) -> list[list[str]]:
    """What each of two workers drew; they take turns by batch."""
    batches = [list(batch["sample_source"]) for batch in loader]
    return [list(itertools.chain.from_iterable(batches[worker::2])) for worker in range(2)]


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_and_epochs_never_repeat(bank, seed, persistent):
    runs = []
    for _ in range(2):
        torch.manual_seed(11)
        pipeline = A.Compose([BankTransform(bank, p=0.7), A.HorizontalFlip()], seed=seed)
        loader = DataLoader(Items(pipeline), num_workers=2, batch_size=24, persistent_workers=persistent, multiprocessing_context="fork")
        epochs = [workers_of(loader) for _ in range(2)]
        streams = [tuple(worker) for epoch in epochs for worker in epoch]
        assert len(set(streams)) == 4
        # the coins differ too, not only the samples
        assert len({tuple(source == "real" for source in stream) for stream in streams}) == 4
        runs.append(epochs)
    assert (runs[0] == runs[1]) == (seed is not None)


def test_albumentations_itself_repeats_in_workers():
    class Flips(TorchDataset[Any]):
        pipeline = A.Compose([A.HorizontalFlip()])

        def __len__(self) -> int:
            return 96

        def __getitem__(self, index: int) -> Any:
            return {"sample_source": str(self.pipeline(image=real())["image"][0, 0, 0])}

    loader = DataLoader(Flips(), num_workers=2, batch_size=24, multiprocessing_context="fork")
    assert len({tuple(worker) for _ in range(2) for worker in workers_of(loader)}) == 1


def seed_worker(_: int) -> None:
    torch.utils.data.get_worker_info().dataset.pipeline.set_random_seed(123)


def test_ones_own_worker_init_counts_as_meant(bank):
    pipeline = A.Compose([BankTransform(bank, p=0.7)])
    loader = DataLoader(Items(pipeline), num_workers=2, batch_size=24, worker_init_fn=seed_worker, multiprocessing_context="fork")
    first, second = workers_of(loader)
    assert first == second
    pipeline.set_random_seed(123)
    items = Items(pipeline)
    assert [items[i]["sample_source"] for i in (*range(24), *range(48, 72))] == first


def test_seeds_of_compose_and_loader_both_count_in_workers(bank):
    runs = set()
    for own, loader in ((1, 1), (2, 1), (1, 2)):
        torch.manual_seed(loader)
        pipeline = A.Compose([BankTransform(bank, p=0.7)], seed=own)
        runs.add(str(workers_of(DataLoader(Items(pipeline), num_workers=2, batch_size=24, multiprocessing_context="fork"))))
    assert len(runs) == 3


def test_the_rank_counts_in_workers(bank, monkeypatch):
    runs = []
    for rank in (0, 0, 1):
        monkeypatch.setattr(albumentations_base, "process_rank", lambda rank=rank: rank)
        transform = BankTransform(bank, p=0.7)
        monkeypatch.setattr(albumentations_base, "process_rank", lambda: 0)  # as in a spawned worker
        torch.manual_seed(5)
        runs.append(workers_of(DataLoader(Items(A.Compose([transform], seed=1)), num_workers=2, batch_size=24, multiprocessing_context="fork")))
    assert runs[0] == runs[1]
    assert all(one != two for one, two in zip(runs[1], runs[2], strict=True))


def test_spawned_workers_draw_what_forked_ones_do(bank):
    data = Items(A.Compose([BankTransform(bank, p=0.7, sample_transform=A.Compose([A.Resize(6, 5)]))], seed=3))
    made = {}
    for context in ("spawn", "fork"):
        torch.manual_seed(5)
        # one worker: importing torch, MONAI and albumentations anew is what takes its time here
        loader = DataLoader(data, num_workers=1, batch_size=24, multiprocessing_context=context)
        made[context] = [source for batch in loader for source in batch["sample_source"]]
    assert made["spawn"] == made["fork"]
    assert 0 < made["spawn"].count("real") < 96


def test_mixed_batches_collate(bank):
    pipeline = A.Compose([BankTransform(bank, p=0.5, label_policy="own")], seed=0)
    batch = [pipeline(image=real(), label=torch.tensor(1)) for _ in range(12)]
    assert 0 < sum(item["sample_source"] == "real" for item in batch) < 12
    for order in (batch, sorted(batch, key=lambda item: item["sample_source"])):
        made = default_collate(order)
        assert made["image"].shape == (12, 6, 5, 1)
        assert made["label"].shape == (12,)


# --- saving


@pytest.mark.parametrize("stage", [None, A.Resize(12, 10), A.Compose([A.Resize(12, 10)])])
@pytest.mark.parametrize("data_format", ["json", "yaml"])
def test_pipelines_are_saved_by_the_banks_path(bank, tmp_path, stage, data_format):
    pipeline = A.Compose([BankTransform(bank, label_policy="own", p=0.6, sample_transform=stage, source_key="from"), A.HorizontalFlip()])
    A.save(pipeline, tmp_path / "pipeline", data_format=data_format)
    assert str(bank.path) in (tmp_path / "pipeline").read_text()
    loaded = A.load(tmp_path / "pipeline", data_format=data_format)
    assert A.to_dict(loaded) == A.to_dict(pipeline)
    image = real() if stage is None else real(shape=(12, 10, 1))
    runs = []
    for each in (pipeline, loaded):
        each.set_random_seed(4)
        runs.append([each(image=image, label=0) for _ in range(6)])
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        assert (ours["label"], ours["from"]) == (theirs["label"], theirs["from"])


def test_functions_cannot_be_saved(bank):
    transform = BankTransform(bank, sample_transform=np.copy)
    with pytest.raises(NotImplementedError, match="sample_transform must be a transform of albumentations"):
        A.to_dict(transform)
    assert str(bank.path) in repr(transform)


def test_replay(bank):
    pipeline = A.ReplayCompose([BankTransform(bank, p=0.5), A.HorizontalFlip()])
    pipeline.set_random_seed(1)
    kinds = set()
    for _ in range(8):
        made = pipeline(image=real(), label=1)
        recorded = json.loads(json.dumps(made["replay"]))
        again = A.ReplayCompose.replay(recorded, image=real(), label=1)
        np.testing.assert_array_equal(again["image"], made["image"])
        assert (again["label"], again["sample_source"]) == (1, made["sample_source"])
        kinds.add(made["sample_source"] == "real")
        other = A.ReplayCompose.replay(recorded, image=real(), label=2)
        assert other["label"] == (2 if made["sample_source"] == "real" else 1)  # the sample's class
    assert kinds == {True, False}


def test_applied_parameters_name_the_sample(bank):
    made = A.Compose([BankTransform(bank, p=1)], save_applied_params=True)(image=real(), label=1)
    ((name, params),) = made["applied_transforms"]
    assert (name, params["index"]) == ("BankTransform", index_of(made["sample_source"]))


def test_copies_and_pickles_share_the_bank(bank):
    assert bank.images[0] is not None  # mapped
    pipeline = A.Compose([BankTransform(bank, p=0.5), BankReference(bank)], seed=1)
    assert copy.deepcopy(pipeline)[0].bank is bank
    data = pickle.dumps(pipeline)
    assert len(data) < 40_000 + len(str(bank.path))  # mostly random states
    assert drawn(pickle.loads(data)) == drawn(copy.deepcopy(pipeline)) == drawn(pipeline)


@pytest.mark.parametrize("module", ["albumentations", "albumentations_base"])
def test_without_albumentations_the_extra_is_named(monkeypatch, module):
    for name in [name for name in sys.modules if name.startswith("monai_diverse.transforms.albumentations")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'monai-diverse[albumentations]'")):
        importlib.import_module(f"monai_diverse.transforms.{module}")


# --- references for other transforms


@pytest.fixture
def bright(tmp_path: Path) -> dict[int, SampleBank]:
    """Banks of one and three channels, whose samples are bright and have structure."""
    banks = {}
    for channels in (1, 3):
        banks[channels] = make_bank(tmp_path / f"bright{channels}", shape=(channels, 32, 28), count=6)
    return banks


def dark(dtype: Any, channels: int) -> np.ndarray[Any, Any]:
    image = np.random.default_rng(1).uniform(0, 0.3, (24, 30, channels))
    return np.rint(image * 255).astype(np.uint8) if dtype == np.uint8 else image.astype(dtype)


ADAPTERS = {
    "FDA": lambda key: A.FDA(beta_limit=(0.2, 0.2), metadata_key=key, p=1),
    "HistogramMatching": lambda key: A.HistogramMatching(blend_ratio=(1, 1), metadata_key=key, p=1),
    "PixelDistributionAdaptation": lambda key: A.PixelDistributionAdaptation(blend_ratio=(1, 1), metadata_key=key, p=1),
}


# but for PixelDistributionAdaptation of uint8, which albumentations 2.0.8 makes black: see the next test
ADAPTED = [(name, dtype) for name in ADAPTERS for dtype in (np.uint8, np.float32) if (name, dtype) != ("PixelDistributionAdaptation", np.uint8)]


@pytest.mark.parametrize(("name", "dtype"), ADAPTED)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_adapted_to_a_sample(bright, name, channels, dtype):
    bank, image = bright[channels], dark(dtype, channels)
    key = {"FDA": "fda_metadata", "HistogramMatching": "hm_metadata", "PixelDistributionAdaptation": "pda_metadata"}[name]
    pipeline = A.Compose([BankReference(bank, metadata_key=key), ADAPTERS[name](key)], seed=0, strict=True)
    made = pipeline(image=image)
    (reference,) = made[key]
    assert any(np.array_equal(reference, as_image(bank, i, dtype)) for i in range(len(bank)))
    assert describe(made["image"]) == describe(image)
    # the same as when the caller hands the sample over, and as bright as the sample
    directly = A.Compose([ADAPTERS[name](key)], seed=0)(image=image, **{key: [reference]})["image"]
    np.testing.assert_array_equal(made["image"], directly)
    scale = 255 if dtype == np.uint8 else 1
    assert made["image"].mean() / scale > image.mean() / scale + 0.3
    assert abs(made["image"].mean() - reference.mean()) / scale < 0.03


def test_pixel_distribution_adaptation_is_broken_for_uint8():
    given = {"image": dark(np.uint8, 1), "pda_metadata": [dark(np.uint8, 1) + 150]}
    assert A.Compose([A.PixelDistributionAdaptation(blend_ratio=(1, 1), p=1)])(**given)["image"].max() <= 1


def test_one_key_feeds_several_transforms(bright):
    choice = A.OneOf([make("references") for make in ADAPTERS.values()], p=1)
    pipeline = A.Compose([BankReference(bright[1], metadata_key="references"), choice], seed=0)
    image = dark(np.float32, 1)
    assert all(pipeline(image=image)["image"].mean() > image.mean() + 0.3 for _ in range(9))


def test_references_are_of_the_items_class_and_as_many_as_asked(bank):
    transform = BankReference(bank, count=3, label_key="label")
    pipeline = A.Compose([transform], seed=0, strict=True)
    for label in (0, 1, 2) * 4:
        made = pipeline(image=real(), label=label)
        assert set(made) == {"image", "label", "fda_metadata"}
        numbers = [reference[0, 0, 0] for reference in made["fda_metadata"]]
        assert [bank.labels[number] for number in numbers] == [label] * 3
        assert made["label"] is label
    any_class = A.Compose([BankReference(bank)], seed=0)
    assert {bank.labels[any_class(image=real())["fda_metadata"][0][0, 0, 0]] for _ in range(30)} == {0, 1, 2}
    image = real()
    (itself,) = pipeline(image=image, label=3)["fda_metadata"]
    np.testing.assert_array_equal(itself, image)
    assert transform.ineligible == 1


def test_references_take_masks_along_and_colours_by_sample_transform(bank):
    pipeline = A.Compose([BankReference(bank, sample_transform=A.ToRGB()), A.FDA(beta_limit=(0.5, 0.5), p=1)])
    image = real(shape=(6, 5, 3))
    mask = np.eye(6, 5, dtype=np.uint8)
    made = pipeline(image=image, mask=mask)
    assert not np.array_equal(made["image"], image)
    np.testing.assert_array_equal(made["mask"], mask)
    with pytest.raises(DataError, match=r"\(6, 5, 3\).*\(6, 5, 1\).*A\.ToRGB"):
        BankReference(bank)(image=image)
    with pytest.raises(DataError, match="float32"):
        BankReference(bank, sample_transform=A.ToFloat())(image=real())
    with pytest.raises(DataError, match="expected a NumPy array"):
        BankReference(bank)(label=1)


def test_reference_settings_are_checked(bank, tmp_path):
    for count in (0, 1.5, True):
        with pytest.raises(RecipeError, match="count"):
            BankReference(bank, count=count)
    with pytest.raises(RecipeError, match="p: expected 1"):
        BankReference(bank, p=0.5)
    with pytest.raises(RecipeError, match="bank: expected images"):
        BankReference(make_bank(tmp_path / "volumes", shape=(1, 2, 6, 5)))
    assert A.to_dict(A.from_dict(A.to_dict(BankReference(bank, count=2, label_key="y")))) == A.to_dict(BankReference(bank, count=2, label_key="y"))


def test_references_differ_between_workers_epochs_and_keys(bank):
    class References(Items):
        def __getitem__(self, index: int) -> Any:
            return {"sample_source": str(self.pipeline(image=real())["fda_metadata"][0][0, 0, 0])}

    pipeline = A.Compose([BankReference(bank), BankReference(bank, metadata_key="hm_metadata")], seed=1)
    loader = DataLoader(References(pipeline), num_workers=2, batch_size=24, multiprocessing_context="fork")
    assert len({tuple(worker) for _ in range(2) for worker in workers_of(loader)}) == 4
    both = [pipeline(image=real()) for _ in range(12)]
    assert [made["fda_metadata"][0][0, 0, 0] for made in both] != [made["hm_metadata"][0][0, 0, 0] for made in both]
    assert len({made["fda_metadata"][0][0, 0, 0] for made in both}) > 4
    assert COUNT > 12
