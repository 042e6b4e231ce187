from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import CacheDataset
from monai.data import DataLoader as MonaiLoader
from monai.transforms import Compose, OneOf, RandFlipd
from monai.transforms.compose import execute_compose
from torch.utils.data import ConcatDataset, DistributedSampler, Subset
from torch.utils.data import DataLoader as TorchLoader

from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.dataset import DiverseDiffusionDataset
from monai_diverse.errors import RecipeError
from monai_diverse.transforms import LinearRamp, RandDiverseMixd, RandDiverseReplace, RandDiverseReplaced, Steps, set_epoch

SHAPE = (1, 4, 3)
SWITCH = Steps(probs=(0, 1, 0), milestones=(1, 2))
"""Nothing in epoch 0, everything in epoch 1, nothing from epoch 2 on."""


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    header = BankHeader(recipe={}, recipe_fingerprint="r", source={"fingerprint": "s"}, features={}, shape=SHAPE, classes=2)
    with BankWriter.create_or_resume(tmp_path / "bank", header, resume=False) as writer:
        writer.append(np.random.default_rng(0).random((20, *SHAPE), np.float32), np.arange(20) % 2, np.arange(20), {}, {})
        return writer.bank


def items(count: int = 8) -> list[dict[str, Any]]:
    return [{"image": torch.linspace(0, 1, 12).reshape(SHAPE), "label": i % 2} for i in range(count)]


def made_of(batches: Any) -> float:
    """The share of items that are not real."""
    sources = [source for batch in batches for source in batch["sample_source"]]
    return sum(source != "real" for source in sources) / len(sources)


# --- the functions


@given(start=st.floats(0, 1), stop=st.floats(0, 1), epochs=st.integers(1, 100), epoch=st.integers(0, 300))
def test_linear_ramp(start, stop, epochs, epoch):
    prob = LinearRamp(start=start, stop=stop, epochs=epochs)(epoch)
    assert prob == pytest.approx(np.interp(epoch, [0, epochs], [start, stop]), abs=1e-12)
    assert 0 <= prob <= 1


@given(milestones=st.sets(st.integers(1, 40), max_size=5).map(sorted), epoch=st.integers(0, 50), data=st.data())
def test_steps(milestones, epoch, data):
    probs = data.draw(st.lists(st.floats(0, 1), min_size=len(milestones) + 1, max_size=len(milestones) + 1))
    steps = Steps(probs=probs, milestones=milestones)
    assert steps(epoch) == probs[np.searchsorted(milestones, epoch, side="right")]
    assert hash(steps) == hash(Steps(probs=tuple(probs), milestones=tuple(milestones)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearRamp(stop=1.5, epochs=3), r"stop.*1\.5"),
        (lambda: LinearRamp(start=-0.1, stop=1, epochs=3), r"start.*-0\.1"),
        (lambda: LinearRamp(stop=1, epochs=0), "epochs.*from 1, got 0"),
        (lambda: LinearRamp(stop=1, epochs=2.5), r"epochs.*2\.5"),
        (lambda: LinearRamp(stop=1, epochs=True), "epochs.*True"),
        (lambda: Steps(probs=(0.1, 1.1), milestones=(3,)), r"probs.*1\.1"),
        (lambda: Steps(probs=(0.1,), milestones=(3,)), "probs.*expected 2"),
        (lambda: Steps(probs=(0.1, 0.2, 0.3), milestones=(3, 3)), r"milestones.*\[3, 3\]"),
        (lambda: Steps(probs=(0.1, 0.2, 0.3), milestones=(4, 3)), r"milestones.*\[4, 3\]"),
        (lambda: Steps(probs=(0.1, 0.2), milestones=(0,)), r"milestones.*\[0\]"),
        (lambda: Steps(probs=(0.1, 0.2), milestones=(1.5,)), r"milestones.*\[1\.5\]"),
        (lambda: Steps(probs=(0.1, 0.2), milestones=("a",)), r"milestones.*\['a'\]"),
        (lambda: Steps(probs=0.1, milestones=()), r"probs.*list, got 0\.1"),
        (lambda: Steps(probs=(0.1, 0.2), milestones="3"), "milestones.*list, got '3'"),
    ],
)
def test_functions_are_checked(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


# --- who has one

HOLDERS: dict[str, Callable[..., Any]] = {
    "array": lambda bank, prob: RandDiverseReplace(bank, prob=prob),
    "replace": lambda bank, prob: RandDiverseReplaced("image", bank, prob=prob),
    "mix": lambda bank, prob: RandDiverseMixd("image", bank, prob=prob),
    "dataset": lambda bank, prob: DiverseDiffusionDataset(items(), bank, prob=prob),
}


@pytest.fixture(params=HOLDERS)
def make(request, bank):
    return lambda prob: HOLDERS[request.param](bank, prob)


def test_the_probability_in_force(make):
    holder = make(LinearRamp(start=0.2, stop=0.6, epochs=4))
    assert holder.prob == 0.2
    for epoch, prob in ((1, 0.3), (4, 0.6), (9, 0.6), (0, 0.2)):
        holder.set_epoch(epoch)
        assert holder.prob == pytest.approx(prob)
        assert isinstance(holder.prob, float)
    holder.set_epoch(np.int64(2))
    holder.prob = 0.7
    holder.set_epoch(1)
    assert holder.prob == 0.7
    holder.prob = lambda epoch: epoch / 10
    assert holder.prob == 0
    constant = make(0.3)
    constant.set_epoch(5)
    assert constant.prob == 0.3


def test_it_decides(make, bank):
    holder = make(SWITCH)
    for epoch, share in ((0, 0), (1, 1), (2, 0)):
        holder.set_epoch(epoch)
        if isinstance(holder, RandDiverseReplace):
            made = [holder(item["image"]) is not item["image"] for item in items()]
        else:
            made = [(holder[i] if isinstance(holder, DiverseDiffusionDataset) else holder(items()[i]))["sample_source"] != "real" for i in range(8)]
        assert np.mean(made) == share


@pytest.mark.parametrize("epoch", [-1, 0.5, "1", None, True])
def test_epochs_are_checked(make, epoch):
    for holder in (make(0.1), make(SWITCH)):
        with pytest.raises(RecipeError, match=r"epoch.*whole number from 0"):
            holder.set_epoch(epoch)
        with pytest.raises(RecipeError, match=r"epoch.*whole number from 0"):
            set_epoch([holder], epoch)


@pytest.mark.parametrize("wrong", [1.2, -0.1, float("nan"), None, "0.1", torch.tensor(0.5)])
def test_what_the_function_returns_is_checked(make, wrong):
    with pytest.raises(RecipeError, match=r"prob.*\[0, 1\].*in epoch 0"):
        make(lambda epoch: wrong)
    holder = make(lambda epoch: wrong if epoch == 7 else 0.5)
    with pytest.raises(RecipeError, match=r"prob.*\[0, 1\].*in epoch 7, got"):
        holder.set_epoch(7)
    assert holder.prob == 0.5


def test_copies_share_it_and_pickles_carry_it(make):
    holder = make(SWITCH)
    copied = copy.deepcopy(holder)
    holder.set_epoch(1)
    assert copied.prob == copy.copy(holder).prob == 1
    again = pickle.loads(pickle.dumps(holder))
    assert again.prob == 1
    again.set_epoch(2)
    assert (again.prob, holder.prob) == (0, 1)
    holder.set_epoch(0)
    again.set_epoch(1)
    assert (again.prob, holder.prob) == (1, 0)
    assert again._prob._cell.is_shared()


def test_threads_of_compose_share_it(bank):
    transform = RandDiverseReplaced("image", bank, prob=SWITCH)
    transform.set_epoch(1)
    made = execute_compose(items(1)[0], [transform], threading=True)
    assert made["sample_source"] != "real"


# --- the search


def test_set_epoch_finds_what_is_nested(bank):
    found = [RandDiverseReplaced("image", bank, prob=SWITCH) for _ in range(4)]
    pipeline = Compose([RandFlipd("image"), Compose([found[0]]), OneOf([found[1], found[2]])])
    data = CacheDataset(items(), pipeline, progress=False)
    assert set_epoch(Subset(ConcatDataset([data, CacheDataset(items(), found[3], progress=False)]), [0, 1]), 1) == 4
    assert [transform.prob for transform in found] == [1] * 4
    assert set_epoch(MonaiLoader(data), 2) == 3
    assert [transform.prob for transform in found] == [0, 0, 0, 1]
    sampler = DistributedSampler(data, num_replicas=1, rank=0)
    assert set_epoch([sampler, pipeline, pipeline, RandDiverseReplaced, np, None, "text"], 3) == 4
    assert sampler.epoch == 3


def test_set_epoch_ends_in_circles():
    class Node:
        pass

    node = Node()
    node.__dict__.update(me=node, all=[node])
    assert set_epoch(node, 1) == 0


def test_the_dataset_passes_it_on(bank):
    before, after = (RandDiverseReplaced("image", bank, prob=SWITCH) for _ in range(2))
    inner = DiverseDiffusionDataset(CacheDataset(items(), Compose([before]), progress=False), bank, prob=SWITCH)
    outer = DiverseDiffusionDataset(inner, bank, mode="append", transform=Compose([after]))
    outer.set_epoch(1)
    assert before.prob == after.prob == inner.prob == 1
    assert outer.prob == 0.1
    with pytest.raises(RecipeError, match="epoch"):
        outer.set_epoch(-1)


def test_a_bundle_configuration_makes_it(bank):
    ramps = {
        "one": {"_target_": "monai_diverse.transforms.LinearRamp", "start": 1, "stop": 0, "epochs": 4},
        "two": {"_target_": "monai_diverse.transforms.Steps", "probs": [0.5, 0], "milestones": [3]},
    }
    for ramp, expected in zip(ramps.values(), ([1, 0.75, 0.5, 0.25, 0], [0.5, 0.5, 0.5, 0, 0]), strict=True):
        config = {"t": {"_target_": "monai_diverse.transforms.RandDiverseReplaced", "keys": "image", "bank": str(bank.path), "prob": ramp}}
        transform = ConfigParser(config).get_parsed_content("t")
        assert not isinstance(transform._prob, float)
        for epoch, prob in enumerate(expected):
            transform.set_epoch(epoch)
            assert transform.prob == prob


# --- workers


def cached(bank: SampleBank) -> Any:
    return CacheDataset(items(), Compose([Compose([RandDiverseReplaced("image", bank, prob=SWITCH)])]), progress=False)


def wrapped(bank: SampleBank) -> Any:
    return DiverseDiffusionDataset(items(), bank, prob=SWITCH)


@pytest.mark.parametrize("loader", [MonaiLoader, TorchLoader])
@pytest.mark.parametrize("data", [cached, wrapped])
@pytest.mark.parametrize("persistent", [False, True])
def test_forked_workers_see_it(bank, loader, data, persistent):
    batches = loader(data(bank), num_workers=2, batch_size=2, persistent_workers=persistent, multiprocessing_context="fork")
    for epoch, share in ((0, 0), (1, 1), (2, 0), (1, 1)):
        set_epoch(batches, epoch)
        assert made_of(batches) == share


def test_copies_from_pickles_reach_their_own_workers(bank):
    data = pickle.loads(pickle.dumps(cached(bank)))
    batches = TorchLoader(data, num_workers=1, batch_size=4, persistent_workers=True)
    for epoch, share in ((0, 0), (1, 1)):
        set_epoch(batches, epoch)
        assert made_of(batches) == share


def test_spawned_workers_see_it(bank):
    # one worker: importing torch and MONAI anew is what takes its time here
    data = ConcatDataset([cached(bank), wrapped(bank)])
    batches = TorchLoader(data, num_workers=1, batch_size=4, persistent_workers=True, multiprocessing_context="spawn")
    for epoch, share in ((0, 0), (1, 1), (2, 0)):
        assert set_epoch(batches, epoch) == 2
        assert made_of(batches) == share


def test_the_function_is_asked_in_the_main_process_alone(bank):
    asked = []

    def prob(epoch: int) -> float:
        asked.append(epoch)
        return float(len(asked) > 1)  # what a worker's copy of the list would not know

    data = DiverseDiffusionDataset(items(), bank, prob=prob)
    batches = TorchLoader(data, num_workers=1, batch_size=4, persistent_workers=True)
    assert made_of(batches) == 0
    data.set_epoch(3)
    assert made_of(batches) == 1
    assert asked == [0, 3]
