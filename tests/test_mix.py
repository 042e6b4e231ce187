from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import CacheDataset, Dataset, MetaTensor, decollate_batch
from monai.data import DataLoader as MonaiLoader
from monai.data.utils import list_data_collate
from monai.transforms import Compose, RandFlipd, Randomizable
from monai.utils import set_determinism
from scipy import stats
from torch.utils.data import DataLoader as TorchLoader

from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.errors import BankError, DataError, RecipeError
from monai_diverse.handlers import SyntheticStatsHandler
from monai_diverse.transforms import LinearRamp, RandDiverseMixD, RandDiverseMixd, RandDiverseMixDict, RandDiverseReplaced
from monai_diverse.transforms.labels import soft_label

SHAPE = (1, 6, 5)
COUNT = 60
META = {"filename_or_obj": "patient-7.nii", "affine": torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64)), "PatientName": "Doe"}


def make_bank(path: Path, *, classes: int = 4, count: int = COUNT, **source: Any) -> SampleBank:
    """Labels 0..2 (never 3)."""
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE)).astype(np.float32) / 255
    header = BankHeader(recipe={}, recipe_fingerprint="r", source={"fingerprint": "s"} | source, features={}, shape=SHAPE, classes=classes)
    with BankWriter.create_or_resume(path, header, resume=False) as writer:
        writer.append(images, np.arange(count) % 3, np.arange(count), {}, {})
        return writer.bank


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    return make_bank(tmp_path / "bank")


@pytest.fixture(autouse=True)
def _no_determinism() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    set_determinism(None)
    torch.set_rng_state(state)


def real_image() -> np.ndarray[Any, Any]:
    return np.linspace(0, 1, 30).reshape(SHAPE)


def meta_image() -> MetaTensor:
    return MetaTensor(torch.tensor(real_image(), dtype=torch.float32), meta=dict(META), applied_operations=[{"class": "Patient"}])


FORMS = {
    "float32": lambda: real_image().astype(np.float32),
    "float64": real_image,
    "float16": lambda: real_image().astype(np.float16),
    "tensor": lambda: torch.tensor(real_image(), dtype=torch.float32),
    "half": lambda: torch.tensor(real_image(), dtype=torch.float16),
    "bfloat16": lambda: torch.tensor(real_image(), dtype=torch.bfloat16),
    "double": lambda: torch.tensor(real_image()),
    "meta": meta_image,
}

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


def counts_for(policy: str) -> dict[str, Any]:
    return {"class_counts": [0, 9]} if policy == "balance" else {}


def parts_of(source: str) -> tuple[int, float]:
    kind, index, weight = source.split(":")
    assert kind == "mixed"
    assert len(weight.partition(".")[2]) == 4
    return int(index), float(weight)


# --- one item


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", ["match", "own", "balance"])
def test_images_are_blended_in_their_own_form(bank, form, policy):
    item = {"image": FORMS[form](), "label": 1, "age": 60}
    before = copy.deepcopy(item)
    rounding = {"float16": 1e-3, "half": 1e-3, "bfloat16": 1e-2}.get(form, 1e-6)
    for prob in (0.0, 1.0):
        transform = RandDiverseMixd("image", bank, prob=prob, alpha=1, label_policy=policy, **counts_for(policy)).set_random_state(3)
        for _ in range(8):
            made = transform(item)
            assert list(made) == [*item, "sample_source"]
            image = made["image"]
            assert (type(image), image.dtype, tuple(image.shape)) == (type(item["image"]), item["image"].dtype, SHAPE)
            if prob == 0:
                assert made["sample_source"] == "real"
                assert image is item["image"]
                continue
            index, shown = parts_of(made["sample_source"])
            weight = transform._weight
            assert abs(weight - shown) <= 5e-5 + 1e-12
            expected = (1 - weight) * real_image() + weight * bank.images[index]
            np.testing.assert_allclose(np.asarray(torch.as_tensor(image).double()), expected, atol=rounding)
            assert image is not item["image"]
    np.testing.assert_array_equal(np.asarray(torch.as_tensor(item["image"]).double()), np.asarray(torch.as_tensor(before["image"]).double()))
    assert item.keys() == before.keys()


@pytest.mark.parametrize("label", LABELS, ids=repr)
@pytest.mark.parametrize("policy", ["match", "own", "balance"])
def test_labels_are_soft_whether_mixed_or_not(bank, label, policy):
    item = {"image": real_image(), "label": copy.deepcopy(label)}
    kind = torch.Tensor if isinstance(label, torch.Tensor) else np.ndarray
    others = 0
    for prob in (0.0, 1.0):
        transform = RandDiverseMixd("image", bank, prob=prob, alpha=1, label_policy=policy, **counts_for(policy)).set_random_state(3)
        for _ in range(8):
            made = transform(item)
            soft = made["label"]
            assert type(soft) is kind
            assert soft.dtype in (torch.float32, np.float32)
            assert tuple(soft.shape) == (4,)
            assert float(soft.sum()) == pytest.approx(1, abs=1e-6)
            if prob == 0 or policy != "own":
                assert soft.tolist() == [0, 1, 0, 0]
                continue
            index, _ = parts_of(made["sample_source"])
            expected = np.zeros(4)
            expected[1] += 1 - transform._weight
            expected[bank.labels[index]] += transform._weight
            np.testing.assert_allclose(np.asarray(soft), expected, atol=1e-6)
            others += bank.labels[index] != 1
    assert (others > 0) == (policy == "own")
    assert type(item["label"]) is type(label)
    np.testing.assert_array_equal(np.asarray(item["label"]), np.asarray(label))


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 9), data=st.data())
def test_soft_labels_sum_to_one(classes, data):
    own, other = (data.draw(st.integers(0, classes - 1)) for _ in range(2))
    weight = data.draw(st.floats(0, 1))
    soft = soft_label(0, {own: 1.0} if own == other else {own: 1 - weight, other: weight}, classes)
    assert soft.sum() == pytest.approx(1, abs=1e-6)
    assert soft[other] == np.float32(1 if own == other else weight)
    assert np.count_nonzero(soft) <= 2


def test_integer_images_are_rounded(bank):
    for real in (np.full(SHAPE, 255, np.uint8), torch.full(SHAPE, 255, dtype=torch.uint8), np.full(SHAPE, 10**9, np.int32)):
        real[0, 0, 0] = 0
        scale = int(real.max())
        transform = RandDiverseMixd("image", bank, prob=1, alpha=1, sample_transform=lambda x, scale=scale: x.astype(np.float64) * scale)
        made = transform({"image": real, "label": 0})
        assert made["image"].dtype == real.dtype
        exact = (1 - transform._weight) * np.asarray(real, np.float64) + transform._weight * bank.images[transform._index].astype(np.float64) * scale
        assert np.abs(np.asarray(made["image"], np.float64) - exact).max() <= 0.5 + 1e-6


def test_nothing_of_the_patient_is_left(bank):
    item = {"image": meta_image(), "label": MetaTensor(torch.tensor([1.0]), meta=dict(META))}
    for policy in ("match", "own"):
        made = RandDiverseMixd("image", bank, prob=1, label_policy=policy)(item)
        assert set(made["image"].meta) <= {"affine", "space", "filename_or_obj"}
        assert made["image"].meta["filename_or_obj"] == made["sample_source"]
        assert parts_of(made["sample_source"])
        assert torch.equal(made["image"].affine, torch.eye(4, dtype=torch.float64))
        assert made["image"].applied_operations == []
        assert not hasattr(made["label"], "meta")
    assert item["image"].meta["PatientName"] == "Doe"


def test_several_keys_get_the_same_sample_and_weight(bank):
    item = {"a": real_image(), "b": torch.tensor(real_image()) * 0.5, "label": 2}
    transform = RandDiverseMixd(["a", "b"], bank, prob=1, alpha=1).set_random_state(0)
    made = transform(item)
    keep = 1 - transform._weight
    np.testing.assert_allclose(made["a"] - keep * item["a"], made["b"].numpy() - keep * item["b"].numpy(), atol=1e-6)


def test_class_names_name_the_larger_share(tmp_path):
    bank = make_bank(tmp_path / "named", class_names=["zero", "one", "two", "three"])
    transform = RandDiverseMixd("image", bank, prob=1, alpha=1, label_policy="own").set_random_state(0)
    seen = set()
    for _ in range(60):
        made = transform({"image": real_image(), "label": 1, "class_name": "one"})
        assert made["class_name"] == ["zero", "one", "two"][int(made["label"].argmax())]
        seen.add(made["class_name"])
    assert seen == {"zero", "one", "two"}


def test_nothing_eligible(bank):
    transform = RandDiverseMixd("image", bank, prob=1)
    item = {"image": real_image(), "label": torch.tensor(3)}
    made = transform(item)
    assert made["image"] is item["image"]
    assert (made["sample_source"], made["label"].tolist(), transform.ineligible) == ("real", [0, 0, 0, 1], 1)


def test_balance_favours_what_is_rare(bank):
    transform = RandDiverseMixd("image", bank, prob=1, alpha=1, label_policy="balance", class_counts=[90, 0, 30]).set_random_state(0)
    others = []
    for _ in range(400):
        made = transform({"image": real_image(), "label": 0})
        others.append(int(bank.labels[parts_of(made["sample_source"])[0]]))
    assert set(others) == {0, 2}
    assert abs(np.mean(np.asarray(others) == 2) - 0.75) < 0.09


def test_after_a_replacement(bank):
    both = Compose([RandDiverseReplaced("image", bank, prob=1), RandDiverseMixd("image", bank, prob=0)])
    made = both({"image": real_image(), "label": 0})
    assert made["sample_source"].startswith("synthetic:")
    assert made["label"].tolist() == [1, 0, 0, 0]


def test_no_real_image_is_left_in_what_was_replaced_before(bank):
    both = Compose([RandDiverseReplaced("image", bank, prob=1), RandDiverseMixd("image", bank, prob=0.5, alpha=1)]).set_random_state(0)
    items = [{"image": meta_image(), "label": i % 3} for i in range(40)]
    stats_handler = SyntheticStatsHandler()
    engine = Engine(lambda *_: None)
    stats_handler.attach(engine)
    engine.run(MonaiLoader(Dataset(items, both), batch_size=10))
    total = stats_handler.history[0].total
    assert (total.real, total.synthetic, total.mixed) == (0, 40, 0)
    blended = 0
    for item in items:
        made = both(item)
        first = int(made["sample_source"].removeprefix("synthetic:"))
        assert made["image"].meta["filename_or_obj"] == made["sample_source"]
        assert bank.labels[first] == item["label"]
        blended += not np.array_equal(np.asarray(made["image"]), bank.images[first])
    assert 8 < blended < 32


# --- the weight


@pytest.mark.parametrize("alpha", [0.2, 1, 4.0])
def test_weights_follow_the_beta_distribution(bank, alpha):
    transform = RandDiverseMixd("image", bank, prob=0.5, alpha=alpha, label_policy="own").set_random_state(0)
    weights = []
    for _ in range(4000):
        transform.randomize({"label": 0})
        if transform._index is not None:
            weights.append(transform._weight)
    assert abs(len(weights) - 2000) < 130  # four standard deviations
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert stats.kstest(weights, stats.beta(2 * alpha, 2 * alpha).cdf).pvalue < 1e-6  # the test can tell


# --- batches and losses


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize("label", [1, np.int64(1), np.array([1]), torch.tensor(1), torch.tensor([0.0, 1.0, 0.0, 0.0]), np.eye(4)[1]], ids=repr)
def test_mixed_batches_collate_and_come_apart(bank, meta, label):
    transform = RandDiverseMixd("image", bank, prob=0.5, alpha=1, label_policy="own").set_random_state(0)
    batch = [transform({"image": FORMS["meta" if meta else "tensor"](), "label": copy.deepcopy(label)}) for _ in range(12)]
    kinds = [entry["sample_source"] == "real" for entry in batch]
    assert 0 < sum(kinds) < 12
    for order in (sorted(range(12), key=lambda i: kinds[i]), sorted(range(12), key=lambda i: not kinds[i])):
        made = list_data_collate([batch[i] for i in order])
        assert type(made["image"]) is (MetaTensor if meta else torch.Tensor)
        assert made["image"].shape == (12, *SHAPE)
        assert type(made["label"]) is torch.Tensor
        assert (made["label"].dtype, made["label"].shape) == (torch.float32, (12, 4))
        apart = decollate_batch(made)
        for place, i in enumerate(order):
            assert apart[place]["sample_source"] == batch[i]["sample_source"]
            assert torch.equal(torch.as_tensor(apart[place]["label"]), torch.as_tensor(batch[i]["label"]))
            assert torch.equal(torch.as_tensor(apart[place]["image"]), torch.as_tensor(batch[i]["image"]))


def test_cross_entropy_takes_the_labels(bank):
    transform = RandDiverseMixd("image", bank, prob=0.7, alpha=1, label_policy="own").set_random_state(0)
    made = [(transform({"image": real_image(), "label": i % 4}), transform._index, transform._weight) for i in range(16)]
    batch = list_data_collate([item for item, _, _ in made])
    logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = torch.nn.CrossEntropyLoss()(logits, batch["label"])
    loss.backward()
    own = torch.arange(16) % 4
    other = torch.tensor([own[i] if index is None else int(bank.labels[index]) for i, (_, index, _) in enumerate(made)])
    weight = torch.tensor([w for _, _, w in made])
    hard = torch.nn.CrossEntropyLoss(reduction="none")
    expected = ((1 - weight) * hard(logits, own) + weight * hard(logits, other)).mean()  # as the MixUp paper writes it
    torch.testing.assert_close(loss, expected.to(loss.dtype))
    assert logits.grad is not None
    assert logits.grad.any()


# --- what does not fit


def test_missing_keys(bank):
    transform = RandDiverseMixd(["image", "second"], bank, prob=1)
    with pytest.raises(KeyError, match="second"):
        transform({"image": real_image(), "label": 0})
    with pytest.raises(KeyError, match="label"):
        transform({"image": real_image(), "second": real_image()})
    lenient = RandDiverseMixd(["image", "second"], bank, prob=1, allow_missing_keys=True)
    made = lenient({"image": real_image(), "label": 0})
    assert set(made) == {"image", "label", "sample_source"}
    parts_of(made["sample_source"])
    made = lenient({"label": 0})
    assert (made["label"].tolist(), made["sample_source"]) == ([1, 0, 0, 0], "real")
    assert lenient({"image": real_image()})["sample_source"] == "real"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0}, "alpha.*above 0, got 0"),
        ({"alpha": -1}, "alpha.*-1"),
        ({"alpha": float("nan")}, "alpha.*nan"),
        ({"alpha": float("inf")}, "alpha.*inf"),
        ({"alpha": "1"}, "alpha.*'1'"),
        ({"alpha": True}, "alpha.*True"),
        ({"num_classes": 3}, "num_classes.*from 4.*got 3"),
        ({"num_classes": 4.5}, "num_classes.*4.5"),
        ({"prob": 1.5}, r"prob.*1\.5"),
        ({"label_policy": "any"}, "label_policy.*'any'"),
        ({"sample_transform": 3}, "callable"),
    ],
)
def test_bad_settings(bank, change, message):
    with pytest.raises(RecipeError, match=message):
        RandDiverseMixd("image", bank, **change)


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_bad_items_whatever_is_drawn(bank, prob):
    transform = RandDiverseMixd("image", bank, prob=prob, label_policy="own")
    for item, message in [
        ({"image": np.zeros((1, 6, 6)), "label": 0}, "sample_transform"),
        ({"image": "patient-7.nii", "label": 0}, "expected an array or tensor.*str"),
        ({"image": real_image(), "label": "benign"}, "whole number"),
        ({"image": real_image(), "label": np.array([0.3, 0.7, 0, 0])}, "whole number"),
        ({"image": real_image(), "label": 4}, r"0\.\.3.*got 4.*num_classes"),
        ({"image": real_image(), "label": -1}, r"0\.\.3.*got -1"),
        ({"image": real_image(), "label": np.array([0, 1, 0])}, "num_classes=4 entries, got 3"),
    ]:
        with pytest.raises(DataError, match=message):
            transform(item)
    wider = RandDiverseMixd("image", bank, prob=prob, num_classes=6)
    assert wider({"image": real_image(), "label": 5})["label"].tolist() == [0, 0, 0, 0, 0, 1]


def test_other_misuse(bank, tmp_path):
    with pytest.raises(BankError):
        RandDiverseMixd("image", tmp_path / "nowhere")
    with pytest.raises(DataError, match="whole numbers to blend, got bool"):
        RandDiverseMixd("image", bank, prob=1)({"image": np.arange(30).reshape(SHAPE) > 3, "label": 0})
    with pytest.warns(UserWarning, match=r"\[0, 255\].*\[0, 1\]"):
        RandDiverseMixd("image", bank, prob=1)({"image": real_image() * 255, "label": 0})


# --- MONAI's contracts


def test_traits_and_aliases(bank):
    assert RandDiverseMixD is RandDiverseMixDict is RandDiverseMixd
    transform = RandDiverseMixd("image", bank)
    assert isinstance(transform, Randomizable)
    assert transform.set_random_state(0) is transform
    assert copy.deepcopy(transform).bank is bank
    again = pickle.loads(pickle.dumps(Compose([transform])))
    assert (again.transforms[0].num_classes, again.transforms[0].alpha) == (4, transform.alpha)


def items(count: int) -> list[dict[str, Any]]:
    return [{"image": torch.tensor(real_image()), "label": i % 3} for i in range(count)]


def test_compose_seeds_it_and_caches_do_not_freeze_it(bank):
    def epochs(seed: int) -> list[list[str]]:
        pipeline = Compose([Compose([RandDiverseMixd("image", bank, prob=0.5)]), RandFlipd("image", prob=0.5)])
        data = CacheDataset(items(12), pipeline, progress=False)
        pipeline.set_random_state(seed)
        return [[data[i]["sample_source"] for i in range(12)] for _ in range(2)]

    first = epochs(0)
    assert first == epochs(0) != epochs(1)
    assert first[0] != first[1]


@pytest.mark.parametrize("loader", [MonaiLoader, TorchLoader])
def test_workers_and_epochs_draw_differently_and_reproducibly(bank, loader):
    runs = []
    for _ in range(2):
        set_determinism(11)
        data = CacheDataset(items(96), Compose([RandDiverseMixd("image", bank, prob=0.7, alpha=1)]), progress=False)
        batches = loader(data, num_workers=2, batch_size=48)
        runs.append([tuple(batch["sample_source"]) for _ in range(2) for batch in batches])
        assert len(set(runs[-1])) == 4
        weights = [{source.partition(":")[2].partition(":")[2] for source in stream} for stream in runs[-1]]
        assert all(len(a & b) < 8 for i, a in enumerate(weights) for b in weights[:i])
    assert runs[0] == runs[1]


def test_a_bundle_configuration_makes_it(bank):
    parser = ConfigParser(
        {
            "mix": {
                "_target_": "monai_diverse.transforms.RandDiverseMixd",
                "keys": "image",
                "bank": str(bank.path),
                "alpha": 0.2,
                "prob": {"_target_": "monai_diverse.transforms.LinearRamp", "stop": 0.4, "epochs": 10},
            }
        }
    )
    transform = parser.get_parsed_content("mix")
    transform.set_epoch(5)
    assert transform.prob == LinearRamp(stop=0.4, epochs=10)(5) == 0.2


def test_warnings_are_not_raised_by_ordinary_use(bank):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RandDiverseMixd("image", bank, prob=1)({"image": meta_image(), "label": 0})
