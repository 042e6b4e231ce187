"""Handlers, in real trainers of MONAI, on real banks."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing
import os
import pickle
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.data.utils import list_data_collate
from monai.engines import SupervisedTrainer
from monai.handlers import StatsHandler
from monai.transforms import Compose, Lambdad
from monai.utils import set_determinism
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from test_transforms import SHAPE, make_bank

from monai_diverse import DiverseDiffusionDataset, RandDiverseReplaced, Recipe, SampleBank, grow
from monai_diverse.errors import BankError, BankMismatchError, DataError, MissingExtraError, RecipeError
from monai_diverse.handlers import BankRefreshHandler, CurriculumHandler, ItemCounts, SyntheticStatsHandler
from monai_diverse.job import Job
from monai_diverse.transforms import RandDiverseMixd, Steps

COST = 160
"""Network evaluations of one batch of `recipe_file`: 32 samples in 5 steps; its budget is three."""


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    return make_bank(tmp_path / "bank")


def items(count: int = 24, shape: tuple[int, ...] = SHAPE, classes: int = 3) -> list[dict[str, Any]]:
    return [{"image": torch.linspace(0, 1, int(np.prod(shape))).reshape(shape), "label": i % classes} for i in range(count)]


def trainer_of(loader: Any, handlers: list[Any], *, epochs: int = 2, shape: tuple[int, ...] = SHAPE, **settings: Any) -> SupervisedTrainer:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(shape)), 4))
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.01),
        loss_function=torch.nn.CrossEntropyLoss(),
        train_handlers=handlers,
        **settings,
    )


class Recorder:
    """Keeps every item that a loader hands out, in the loader's own collate function."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def __call__(self, batch: list[dict[str, Any]]) -> Any:
        self.items += batch
        return list_data_collate(batch)


class Lines(logging.Handler):
    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.levels: list[int] = []
        self.tracebacks = 0
        self.logger = logger
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.levels.append(record.levelno)
        self.tracebacks += bool(record.exc_info)


@pytest.fixture
def lines_of() -> Iterator[Any]:
    made: list[Lines] = []

    def of(logger: logging.Logger) -> Lines:
        made.append(Lines(logger))
        return made[-1]

    yield of
    for handler in made:
        handler.logger.removeHandler(handler)


# --- what batches were made of


def counted(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """By hand, from the items themselves."""
    kinds = Counter((int(item["label"]), item["sample_source"].partition(":")[0]) for item in seen)
    indices = {(int(item["label"]), item["sample_source"]) for item in seen if item["sample_source"] != "real"}
    return {"kinds": kinds, "different": Counter(label for label, _ in indices), "all": len({source for _, source in indices})}


@pytest.mark.parametrize("policy", ["match", "own"])
def test_counts_are_what_the_loader_handed_out(bank, policy):
    recorder, handler = Recorder(), SyntheticStatsHandler()
    data = Dataset(items(), Compose([RandDiverseReplaced("image", bank, prob=0.4, label_policy=policy).set_random_state(1)]))
    trainer_of(DataLoader(data, batch_size=5, collate_fn=recorder), [handler], epochs=3).run()
    assert [stats.epoch for stats in handler.history] == [1, 2, 3]
    assert len({str(stats) for stats in handler.history}) == 3
    for epoch, stats in enumerate(handler.history):
        expected = counted(recorder.items[24 * epoch : 24 * (epoch + 1)])
        assert stats.total.items == 24
        assert stats.total.real == sum(n for (_, kind), n in expected["kinds"].items() if kind == "real")
        assert 0 < stats.total.synthetic == 24 - stats.total.real
        assert stats.total.different == expected["all"] > 0
        assert stats.total.share == stats.total.synthetic / 24
        assert list(stats.by_class) == [0, 1, 2]
        for label, counts in stats.by_class.items():
            assert (counts.real, counts.synthetic, counts.mixed) == tuple(expected["kinds"][label, kind] for kind in ("real", "synthetic", "mixed"))
            assert counts.different == expected["different"][label]
    with pytest.raises(FrozenInstanceError):
        handler.history[0].epoch = 9  # type: ignore[misc]


def test_mixed_items_count_for_the_class_of_the_largest_share(bank):
    recorder, handler = Recorder(), SyntheticStatsHandler()
    data = Dataset(items(), Compose([RandDiverseMixd("image", bank, prob=0.6, label_policy="own").set_random_state(3)]))
    trainer_of(DataLoader(data, batch_size=6, collate_fn=recorder), [handler], epochs=1).run()
    (stats,) = handler.history
    mixed = [item for item in recorder.items if item["sample_source"].startswith("mixed:")]
    assert 0 < stats.total.mixed == len(mixed) < 24
    assert stats.total.synthetic == 0
    assert stats.total.different == len({item["sample_source"].split(":")[1] for item in mixed})
    by_hand = Counter(int(np.argmax(item["label"])) for item in mixed)
    assert by_hand != Counter(int(item["label"]) for item in items())  # some took the sample's class
    assert {label: counts.mixed for label, counts in stats.by_class.items()} == {label: by_hand[label] for label in stats.by_class}
    assert stats.total.mixed_share == len(mixed) / 24
    assert f"{len(mixed)} mixed" in str(stats)


SOURCES = ["real", "synthetic:4", "synthetic:4", "mixed:7:0.25"]


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 2, 2, 1]),
        torch.tensor([[0], [2], [2], [1]], dtype=torch.uint8),
        torch.tensor([0.0, 2.0, 2.0, 1.0], dtype=torch.bfloat16),
        MetaTensor(torch.tensor([0, 2, 2, 1])),
        np.array([0, 2, 2, 1]),
        [0, 2, 2, 1],
        (np.int64(0), np.int64(2), np.int64(2), np.int64(1)),
        torch.eye(3)[[0, 2, 2, 1]],
        torch.eye(3, dtype=torch.bool)[[0, 2, 2, 1]],
        torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4], [0.2, 0.4, 0.4]]),
        torch.eye(3)[[0, 2, 2, 1]][:, :, None, None],
        [torch.eye(3)[label] for label in (0, 2, 2, 1)],
    ],
    ids=lambda labels: f"{type(labels).__name__} {getattr(labels, 'dtype', '')} {np.shape(labels)}",
)
@pytest.mark.parametrize("form", ["collated", "decollated", "tuple"])
def test_labels_and_batches_of_any_form(labels, form):
    batch: Any = {"sample_source": SOURCES, "label": labels}
    settings: dict[str, Any] = {}
    if form == "decollated":
        batch = [{"sample_source": source, "label": label} for source, label in zip(SOURCES, labels, strict=True)]
    if form == "tuple":
        batch, settings = (None, labels, SOURCES), {"batch_transform": lambda batch: (batch[2], batch[1])}
    handler = SyntheticStatsHandler(**settings)
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run([batch, batch])
    (stats,) = handler.history
    assert stats.total == ItemCounts(real=2, synthetic=4, mixed=2, different=2)
    assert stats.by_class == {
        0: ItemCounts(real=2, synthetic=0, mixed=0, different=0),
        1: ItemCounts(real=0, synthetic=0, mixed=2, different=1),
        2: ItemCounts(real=0, synthetic=4, mixed=0, different=1),
    }
    assert engine.state.metric_details["synthetic"] is stats


def test_keys_are_the_callers_choice(bank):
    transform = RandDiverseReplaced("scan", bank, prob=1, label_key="disease", source_key="origin")
    data = Dataset([{"scan": item["image"], "disease": item["label"]} for item in items()], transform)
    handler = SyntheticStatsHandler(source_key="origin", label_key="disease")
    trainer_of(DataLoader(data, batch_size=4), [handler], epochs=1, prepare_batch=lambda batch, *_, **__: (batch["scan"], batch["disease"])).run()
    assert handler.history[0].total.share == 1


def test_what_the_trainer_does_to_a_batch_changes_nothing(bank):
    """Postprocessing acts on the batch in place, before an iteration is completed."""
    spoil = Lambdad("sample_source", lambda _: "real")
    for settings in ({"postprocessing": spoil}, {"decollate": False}):
        handler = SyntheticStatsHandler()
        data = Dataset(items(), Compose([RandDiverseReplaced("image", bank, prob=1)]))
        trainer_of(DataLoader(data, batch_size=4), [handler], epochs=1, **settings).run()
        assert {label: counts.synthetic for label, counts in handler.history[0].by_class.items()} == {0: 8, 1: 8, 2: 8}


def test_a_dataset_counts_as_well(bank):
    handler = SyntheticStatsHandler()
    trainer_of(DataLoader(DiverseDiffusionDataset(items(), bank, mode="append", ratio=0.5), batch_size=9), [handler], epochs=1).run()
    assert handler.history[0].total == ItemCounts(real=24, synthetic=12, mixed=0, different=12)


def test_attached_twice_or_stopped_within_an_epoch(bank):
    data = Dataset(items(), Compose([RandDiverseReplaced("image", bank, prob=1)]))
    handler = SyntheticStatsHandler()
    trainer = trainer_of(DataLoader(data, batch_size=4), [handler, handler], epochs=9)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=8), lambda engine: engine.terminate())
    trainer.run()
    assert [stats.total.items for stats in handler.history] == [24]  # the second epoch was cut short


def read_events(folder: Path) -> list[tuple[str, int, float]]:
    """The scalars of TensorBoard's event files: length, its checksum, record, its checksum."""
    found = []
    for file in folder.iterdir():
        content, place = file.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += length + 16
    return found


def test_scalars_can_be_read_back(bank, tmp_path):
    writer = SummaryWriter(str(tmp_path / "events"))
    handler = SyntheticStatsHandler(summary_writer=writer, tag="bank")
    data = Dataset(items(), Compose([RandDiverseReplaced("image", bank, prob=0.5).set_random_state(2)]))
    trainer_of(DataLoader(data, batch_size=4), [handler]).run()
    writer.add_scalar("mine", 1, 1)  # the writer is still open
    writer.close()
    found = {(tag, step): value for tag, step, value in read_events(tmp_path / "events") if tag != "mine"}
    assert len(found) == 2 * 3 * (1 + 3)
    for stats in handler.history:
        assert found["bank/share", stats.epoch] == pytest.approx(stats.total.synthetic / 24)
        assert found["bank/mixed_share", stats.epoch] == 0
        assert found["bank/different", stats.epoch] == stats.total.different
        for label in range(3):
            assert found[f"bank/class_{label}/share", stats.epoch] == pytest.approx(stats.by_class[label].synthetic / stats.by_class[label].items)
            assert found[f"bank/class_{label}/different", stats.epoch] == stats.by_class[label].different


def test_one_line_an_epoch_and_figures_for_other_handlers(bank, lines_of, capsys):
    data = Dataset(items(), Compose([RandDiverseReplaced("image", bank, prob=1)]))
    ours, monais = SyntheticStatsHandler(name="test.ours"), StatsHandler(iteration_log=False, name="test.monai")
    own, others = lines_of(ours.logger), lines_of(monais.logger)
    trainer = trainer_of(DataLoader(data, batch_size=4), [ours, monais])
    trainer.run()
    different = ours.history[1].total.different
    assert len(own.lines) == 2
    assert own.lines[1].startswith(
        f"Epoch[2] items -- 24 synthetic (100.0%) of 24, from {different} different samples; class 0: 8 synthetic (100.0%) of 8;"
    )
    assert own.lines[1] in capsys.readouterr().out  # as MONAI's handlers, without any set-up
    assert "synthetic_share: 1.0000" in others.lines[-1]
    assert {name: trainer.state.metrics[name] for name in trainer.state.metrics} == {
        "synthetic_share": 1.0,
        "synthetic_mixed_share": 0.0,
        "synthetic_different": different,
    }
    assert trainer.state.metric_details["synthetic"] is ours.history[1]


def test_the_engines_own_logger(bank, lines_of):
    data = Dataset(items(), Compose([RandDiverseReplaced("image", bank, prob=1)]))
    handler = SyntheticStatsHandler(name=None)
    trainer = trainer_of(DataLoader(data, batch_size=4), [handler])
    trainer.logger = logging.getLogger("test.engine")
    trainer.logger.setLevel(logging.INFO)
    handler.attach(trainer)
    lines = lines_of(trainer.logger)
    trainer.run()
    assert sum(" items -- " in line for line in lines.lines) == 2


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": 1, "label": torch.zeros(2)}, r"'sample_source' and 'label', got \['image', 'label'\]"),
        ({"sample_source": ["real"]}, r"'label', got \['sample_source'\]"),
        ((torch.zeros(2), torch.zeros(2)), "got Tensor; set the keys, or batch_transform"),
        (torch.zeros(2), "got Tensor"),
        ({"sample_source": ["real"] * 3, "label": torch.zeros(2)}, "a source for each of 2 labels"),
        ({"sample_source": "real", "label": torch.zeros(4)}, "a source for each of 4 labels, got 'real'"),
        ({"sample_source": ["real", "fake"], "label": torch.zeros(2)}, "'mixed:INDEX:WEIGHT', got 'fake'"),
        ({"sample_source": ["real", "synthetic:"], "label": torch.zeros(2)}, "got 'synthetic:'"),
        ({"sample_source": ["real", 3], "label": torch.zeros(2)}, "got 3"),
        ({"sample_source": ["real"] * 2, "label": torch.zeros(2, 1, 5, 5)}, r"one number or vector an item, got shape \(2, 1, 5, 5\)"),
        ({"sample_source": ["real"] * 2, "label": torch.tensor([0.5, 1])}, r"whole numbers from 0, got \[0.5, 1.0\]"),
        ({"sample_source": ["real"] * 2, "label": torch.tensor([-1, 1])}, "whole numbers from 0"),
        ({"sample_source": ["real"] * 2, "label": ["benign", "malignant"]}, "numbers or vectors, got list"),
        ({"sample_source": ["real"], "label": torch.tensor(1)}, "numbers or vectors, got Tensor"),
    ],
)
def test_batches_that_say_nothing(batch, message):
    engine = Engine(lambda engine, batch: None)
    SyntheticStatsHandler().attach(engine)
    with pytest.raises(DataError, match=message):
        engine.run([batch])


def test_settings_of_the_stats(bank):
    with pytest.raises(RecipeError, match=r"summary_writer: expected a SummaryWriter with add_scalar, got str"):
        SyntheticStatsHandler(summary_writer="runs")
    with pytest.raises(RecipeError, match="batch_transform: expected a callable, got str"):
        SyntheticStatsHandler(batch_transform="label")  # type: ignore[arg-type]


def test_without_ignite(bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "ignite.engine", None)
    for make in (SyntheticStatsHandler, lambda: CurriculumHandler(RandDiverseReplaced("image", bank)), lambda: BankRefreshHandler("r", bank, add=1)):
        with pytest.raises(MissingExtraError, match=r"pip install 'monai-diverse\[ignite\]'"):
            make()


# --- curricula


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("given", ["transform", "compose", "dataset", "loader", "nothing"])
def test_every_epoch_has_its_own_probability(bank, workers, given):
    transform = RandDiverseReplaced("image", bank, prob=Steps(probs=(0, 1, 0), milestones=(1, 2)))
    compose = Compose([Compose([transform])])
    data = Dataset(items(), compose)
    loader = DataLoader(data, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    parts = {"transform": [transform], "compose": [compose], "dataset": [data], "loader": [loader], "nothing": []}
    stats = SyntheticStatsHandler()
    trainer_of(loader, [CurriculumHandler(*parts[given]), stats], epochs=4).run()
    loader._iterator = None  # ends persistent workers now: in a garbage collection, two such loaders take torch 20 seconds
    assert [epoch.total.share for epoch in stats.history] == [0, 1, 0, 0]


def test_all_parts_are_told_counting_from_zero(bank):
    class Part:
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    parts = [Part(), Part()]
    engine = Engine(lambda engine, batch: None)
    CurriculumHandler(*parts).attach(engine)
    told = [list(part.epochs) for part in parts]
    engine.run([0], max_epochs=3)
    assert [part.epochs[len(before) :] for part, before in zip(parts, told, strict=True)] == [[0, 1, 2]] * 2
    assert {epoch for before in told for epoch in before} <= {0}


def test_nothing_to_tell():
    with pytest.raises(RecipeError, match=r"expected something with set_epoch\(epoch\), or that holds it, got Compose"):
        CurriculumHandler(Compose([]))
    engine = Engine(lambda engine, batch: None)
    CurriculumHandler().attach(engine)
    with pytest.raises(RecipeError, match="set_epoch"):
        engine.run([0])


# --- banks that grow


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return Recipe.load(recipe_file)


@pytest.fixture
def job(recipe: Recipe) -> Job:
    return Job.prepare(recipe)


@pytest.fixture
def young(recipe: Recipe, tmp_path: Path) -> SampleBank:
    """A bank of one batch; the recipe's budget allows three."""
    return grow(replace(recipe, max_evaluations=COST), tmp_path / "young")


def loader_of(bank: SampleBank | str, workers: int = 0, recorder: Any = list_data_collate, **settings: Any) -> DataLoader:
    data = Dataset(items(40, (1, 8, 8), 2), Compose([RandDiverseReplaced("image", bank, prob=1)]))
    return DataLoader(data, batch_size=20, num_workers=workers, collate_fn=recorder, **settings)


class Sizes:
    """Which samples each epoch drew, and how large the bank was when it ended."""

    def __init__(self, bank: SampleBank) -> None:
        self.bank = bank
        self.drawn: list[set[int]] = []
        self.sizes: list[int] = []

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.drawn.append(set()))
        engine.add_event_handler(Events.ITERATION_STARTED, self.seen)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: self.sizes.append(len(self.bank)))

    def seen(self, engine: Any) -> None:
        self.drawn[-1] |= {int(source.partition(":")[2]) for source in engine.state.batch["sample_source"]}


@pytest.mark.parametrize("workers", [0, 2])
def test_later_epochs_draw_what_was_grown(recipe, young, tmp_path, workers, lines_of):
    whole = grow(recipe, tmp_path / "whole")
    handler, sizes = BankRefreshHandler(recipe, young, add=1), Sizes(young)
    lines = lines_of(handler.logger)
    first = len(young)
    trainer_of(loader_of(young, workers), [handler, sizes], epochs=5, shape=(1, 8, 8)).run()
    assert sizes.sizes[0] > first
    assert sizes.sizes[1] > sizes.sizes[0]
    assert sizes.sizes[1:] == [len(whole)] * 4
    for drawn, size in zip(sizes.drawn, (first, *sizes.sizes), strict=False):  # what one epoch draws was there when it began
        assert max(drawn) < size
    assert max(sizes.drawn[1]) >= first
    assert max(sizes.drawn[2]) >= sizes.sizes[0]
    assert young.fingerprint == whole.fingerprint
    assert handler.stopped == "the recipe's 480 network evaluations are spent"
    assert [line.partition(" -- ")[2] for line in lines.lines] == [
        f"{sizes.sizes[0] - first} samples gained, {sizes.sizes[0]} now, 320 network evaluations spent",
        f"{len(whole) - sizes.sizes[0]} samples gained, {len(whole)} now, 480 network evaluations spent",
        f"0 samples gained, {len(whole)} now, 480 network evaluations spent",
        "grows no more: the recipe's 480 network evaluations are spent",
    ]


def test_spawned_workers_open_the_bank_anew(young, recipe):
    """Without spawning one: what reaches it is a pickle."""
    loader = loader_of(young)
    before = pickle.dumps(loader.dataset)
    trainer_of(loader, [BankRefreshHandler(recipe, young, add=1)], shape=(1, 8, 8)).run()
    assert len(pickle.loads(before).transform.transforms[0].bank) == len(young)


def test_one_refresh_is_bounded(job, young):
    handler, sizes = BankRefreshHandler(job, young, add=10_000, max_evaluations=COST + 1), Sizes(young)
    trainer_of(loader_of(young), [handler, sizes], epochs=2, shape=(1, 8, 8)).run()
    assert young.progress["nfe"] == 2 * COST
    assert handler.stopped is None
    unbounded = BankRefreshHandler(job, young, add=10_000)
    trainer_of(loader_of(young), [unbounded], epochs=2, shape=(1, 8, 8)).run()
    assert young.progress["nfe"] == 3 * COST


def test_every_other_epoch_and_not_after_the_last(job, young, monkeypatch):
    opened, prepared = [], []
    reload = SampleBank.reload
    monkeypatch.setattr(SampleBank, "reload", lambda bank: opened.append(bank) or reload(bank))
    monkeypatch.setattr(Job, "prepare", lambda recipe: prepared.append(recipe) or job)
    other = SampleBank.open(young.path)
    handler, sizes = BankRefreshHandler(job.recipe, [young, other], add=1, every=2), Sizes(young)
    first = len(young)
    trainer_of(loader_of(young), [handler, sizes], epochs=4, shape=(1, 8, 8)).run()
    assert sizes.sizes[0] == first < sizes.sizes[1] == sizes.sizes[3] == len(other)
    assert opened == [young, other]
    assert len(prepared) == 1


def test_training_survives_a_full_disk(job, young, monkeypatch, lines_of):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    handler, sizes, first = BankRefreshHandler(job, young, add=1), Sizes(young), len(young)
    lines = lines_of(handler.logger)
    trainer = trainer_of(loader_of(young), [handler, sizes], epochs=3, shape=(1, 8, 8))
    with monkeypatch.context() as patch:
        trainer.add_event_handler(Events.EPOCH_STARTED(once=2), lambda engine: patch.undo())
        patch.setattr(os, "fsync", full)
        trainer.run()
    assert sizes.sizes[0] == first < sizes.sizes[1]  # and the next refresh went well
    assert trainer.state.epoch == 3
    assert lines.levels[0] == logging.WARNING
    assert f"could not be grown, training goes on with {first} samples: " in lines.lines[0]
    assert "no space left" in lines.lines[0]
    assert not lines.tracebacks
    young.verify()


def test_training_survives_what_nobody_foresaw(job, young, monkeypatch, lines_of):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    handler = BankRefreshHandler(job, young, add=1)
    lines = lines_of(handler.logger)
    monkeypatch.setattr("monai_diverse.handlers.refresh.grow_steps", broken)
    monkeypatch.setattr(SampleBank, "reload", broken)
    trainer = trainer_of(loader_of(young), [handler], epochs=2, shape=(1, 8, 8))
    trainer.run()
    assert trainer.state.epoch == 2
    assert [("grown" in line, "reloaded" in line) for line in lines.lines] == [(True, False), (False, True)]
    assert lines.tracebacks == 2


def test_a_source_without_more_images(recipe, tmp_path, lines_of):
    seen = blobs(40, 7)
    np.savez(tmp_path / "more.npz", train_images=np.round(seen.images[:, 0] * 255).astype(np.uint8), train_labels=seen.labels)
    content = recipe.as_json() | {"source": {"target": "monai_diverse.FolderSource", "arguments": {"folder": str(tmp_path / "more.npz")}}}
    content |= {"max_evaluations": 1000, "batch_size": 16}
    file = tmp_path / "folder.yaml"
    file.write_text(json.dumps(content))
    bank = grow(replace(Recipe.load(file), max_evaluations=16), tmp_path / "bank")
    handler = BankRefreshHandler(file, bank, add=10_000)
    lines = lines_of(handler.logger)
    trainer_of(loader_of(bank), [handler], epochs=4, shape=(1, 8, 8)).run()
    assert bank.progress["drawn"] == 40
    assert handler.stopped == "its source has no more images"
    assert sum("no more images" in line for line in lines.lines) == 1
    assert len(lines.lines) == 2


def test_growing_leaves_the_training_as_it_is(job, young):
    """Weights after two epochs are the same with and without a growth in between, as far as the loader draws the same."""
    weights = []
    for handlers in ([], [BankRefreshHandler(job, young, add=1)]):
        data = Dataset(items(40, (1, 8, 8), 2))
        torch.manual_seed(5)
        loader = DataLoader(data, batch_size=20, shuffle=True)
        trainer = trainer_of(loader, handlers, epochs=3, shape=(1, 8, 8))
        trainer.run()
        weights.append(torch.cat([parameter.detach().reshape(-1) for parameter in trainer.network.parameters()]))
    assert young.progress["nfe"] > COST
    assert torch.equal(weights[0], weights[1])


def test_persistent_workers_are_warned_of(job, young):
    handler, sizes, first = BankRefreshHandler(job, young, add=1), Sizes(young), len(young)
    loader = loader_of(young, 1, persistent_workers=True)
    trainer = trainer_of(loader, [handler, sizes], epochs=3, shape=(1, 8, 8))
    with pytest.warns(UserWarning, match="persistent_workers=False") as caught:
        trainer.run()
    loader._iterator = None
    assert sum("persistent" in str(warning.message) for warning in caught) == 1
    assert len(young) > first > max(max(drawn) for drawn in sizes.drawn)  # which is why


def test_settings_of_the_refresh(job, recipe, young, tmp_path):
    for setting, value in (("add", 0), ("add", 1.5), ("every", True), ("every", -1), ("max_evaluations", "many")):
        with pytest.raises(RecipeError, match=rf"{setting}: expected a whole number from 1, got {value!r}"):
            BankRefreshHandler(job, young, **({"add": 1} | {setting: value}))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"at least one batch of 32 samples, 160, got 159"):
        BankRefreshHandler(job, young, add=1, max_evaluations=COST - 1)
    for banks in (str(young.path), [], [young, "bank"], None):
        with pytest.raises(BankError, match=r"banks: expected the bank that a transform or dataset holds"):
            BankRefreshHandler(job, banks, add=1)  # type: ignore[arg-type]
    with pytest.raises(BankError, match=r"objects of one bank.*one handler for each"):
        BankRefreshHandler(job, [young, make_bank(tmp_path / "other")], add=1)
    with pytest.raises(BankMismatchError, match="was grown by another recipe"):
        BankRefreshHandler(replace(recipe, seed=99), young, add=1)
    with pytest.raises(RecipeError, match="cannot be read"):
        BankRefreshHandler(tmp_path / "nowhere.yaml", young, add=1)


def test_a_budget_that_was_spent_before(job, young):
    spent = replace(job, recipe=replace(job.recipe, max_evaluations=2 * COST - 1))
    with pytest.warns(UserWarning, match=r"the recipe's 319 network evaluations are spent, so no refresh will add"):
        handler = BankRefreshHandler(spent, young, add=1)
    first = len(young)
    trainer_of(loader_of(young), [handler], shape=(1, 8, 8)).run()
    assert len(young) == first


def _process(rank: int, place: str, job: Job, path: Path, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    bank = SampleBank.open(path)
    first, prepared = len(bank), []
    Job.prepare = lambda recipe: prepared.append(recipe) or job  # type: ignore[method-assign]
    handler = BankRefreshHandler(job.recipe, bank, add=1)
    sizes = Sizes(bank)
    trainer_of(loader_of(bank), [handler, sizes], epochs=5, shape=(1, 8, 8)).run()
    answers.put((rank, first, sizes.sizes, len(prepared)))
    torch.distributed.destroy_process_group()


def test_one_of_several_processes_grows_and_all_see_it(job, young, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_process, args=(rank, str(tmp_path / "meeting"), job, young.path, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert [prepared for *_, prepared in found] == [1, 0]
    assert found[0][2] == found[1][2]
    assert found[0][1] < found[0][2][0] < found[0][2][-1]


# --- what the docs tell people to type

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "trainers.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_docs_run(recipe, recipe_file, tmp_path, monkeypatch, capsys):
    bank = grow(replace(recipe, max_evaluations=COST), tmp_path / "bank")
    first = len(bank)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"data": items(40, (1, 8, 8), 2)}
    with torch.random.fork_rng(devices=[]):
        try:
            for block in blocks("python"):
                capsys.readouterr()
                exec(block, names)
                printed = [line for line in capsys.readouterr().out.splitlines() if " - INFO - " not in line]
                assert printed == re.findall(r"print\(.*\)  # (.*)", block)
        finally:
            set_determinism(None)
    assert [stats.epoch for stats in names["stats"].history] == [1, 2, 3, 4, 5, 6]
    assert names["replace"].prob == 0  # the ramp has come to its end
    assert len(names["replace"].bank) == len(SampleBank.open("bank")) > first
    line = re.search(r"^    (Epoch.*)$", PAGE, re.MULTILINE)
    assert line is not None
    assert re.sub(r"\d+", "N", line[1]) == re.sub(r"\d+", "N", str(names["stats"].history[0]))


def test_docs_bundle(young, tmp_path, monkeypatch):
    young.path.rename(tmp_path / "bank")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("json")
    parser = ConfigParser(json.loads(block))
    transform = parser.get_parsed_content("train#transform")
    assert transform(items(1, (1, 8, 8))[0])["sample_source"]
    assert transform.transforms[1].prob == 0.1
    assert isinstance(parser.get_parsed_content("train#handlers")[0], SyntheticStatsHandler)
