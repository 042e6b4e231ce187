"""Stopping by bias: the monitor, the handler for Ignite, the watch over `train`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs
from ignite.engine import Engine

from monai_diverse.audit import BiasMonitor, BiasRecord, BiasVerdict, Effect, TwinRecipe, UNetTrainer, watch
from monai_diverse.audit.stopping import Stopping
from monai_diverse.cli.main import main
from monai_diverse.data import FloatArray, IntArray, LabelledImages
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.handlers import PrivacyStopping
from monai_diverse.sources import DiffusersSource
from monai_diverse.training import Progress, TrainConfig, prepare, train
from monai_diverse.training.checkpoint import save_unet

TRAIN, HELDOUT, FRESH = (blobs(120, seed) for seed in (0, 1, 2))
PATIENTS = np.arange(240)


def copies(share: float, count: int = 120) -> tuple[FloatArray, IntArray]:
    """Fresh images, a share of them replaced by training images with a little noise."""
    images, labels = FRESH.images[:count].copy(), FRESH.labels[:count]
    copied = np.random.default_rng(3).permutation(count)[: round(share * count)]
    images[copied] = np.clip(TRAIN.images[copied] + np.random.default_rng(4).normal(0, 0.01, TRAIN.images[copied].shape), 0, 1)
    return images.astype(np.float32), labels


@pytest.fixture(scope="module")
def monitor() -> BiasMonitor:
    return BiasMonitor(TRAIN, HELDOUT, PATIENTS, tolerance=0.05)


def _record(step: int, word: str) -> BiasRecord:
    bias = Effect(value=0.0, ci=(0.0, 0.0), p=1.0)
    return BiasRecord(step=step, verdict=BiasVerdict(word=word, tolerance=0.02, sampler="", bias=bias), own_nearer=bias)


def test_copies_are_beyond_and_fresh_images_are_not(monitor: BiasMonitor) -> None:
    fresh, some, all_ = (monitor.look(1, *copies(share)) for share in (0.0, 0.2, 1.0))
    assert fresh.verdict.word != "beyond"
    assert all_.verdict.word == "beyond"
    assert fresh.bias.value < some.bias.value < all_.bias.value
    assert all_.own_nearer.value > 0.95
    assert "beyond" in str(all_)


def test_samples_that_do_not_fit_are_refused(monitor: BiasMonitor) -> None:
    images, labels = copies(0)
    with pytest.raises(DataError, match=r"samples: expected images of the training images' shape \(1, 8, 8\), got \(1, 4, 4\)"):
        monitor.look(1, images[..., :4, :4], labels)
    with pytest.raises(DataError, match="samples: expected values in"):
        monitor.look(1, images * 2 - 1, labels)
    with pytest.raises(DataError, match="samples' classes"):
        monitor.look(1, images, labels + 1)


def test_training_ends_after_so_many_looks_in_a_row() -> None:
    stopping = Stopping(patience=2)
    words = ["within", "beyond", "unresolved", "beyond", "beyond"]
    assert [stopping.add(_record(step, word)) for step, word in enumerate(words, 1)] == [False, False, False, False, True]
    assert stopping.latest_within == 1
    with pytest.raises(RecipeError, match="patience"):
        Stopping(patience=0)


def test_the_checkpoint_to_keep_lies_before_any_that_is_beyond() -> None:
    stopping = Stopping()
    assert stopping.latest_within is None
    for step, word in enumerate(["unresolved", "within", "unresolved", "within", "beyond", "within"], 1):
        stopping.add(_record(step, word))
    assert stopping.latest_within == 4


def _run(handler: PrivacyStopping, epochs: int, batches: int = 2) -> Engine:
    engine = Engine(lambda engine, batch: None)
    handler.attach(engine)
    engine.run(range(batches), max_epochs=epochs)
    return engine


def _drifting(engine: Engine) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = copies(0.0 if engine.state.epoch < 3 else 1.0)
    return torch.from_numpy(images), torch.from_numpy(labels)


def test_the_handler_ends_a_training_that_drifts() -> None:
    handler = PrivacyStopping(_drifting, TRAIN, HELDOUT, PATIENTS, tolerance=0.05)
    engine = _run(handler, epochs=8)
    assert engine.state.epoch == 4  # two looks in a row
    assert [record.step for record in handler.records] == [1, 2, 3, 4]
    assert [record.verdict.word == "beyond" for record in handler.records] == [False, False, True, True]
    assert engine.state.metrics["privacy_bias"] == handler.records[-1].bias.value > 0.05
    assert engine.state.metrics["privacy_within"] == 0.0
    assert engine.state.metric_details["privacy"] is handler.records[-1]


def test_the_handler_only_marks_if_asked_and_counts_iterations() -> None:
    written: list[tuple[str, float, int]] = []
    writer = SimpleNamespace(add_scalar=lambda *scalar: written.append(scalar))
    handler = PrivacyStopping(
        _drifting, TRAIN, HELDOUT, PATIENTS, tolerance=0.05, stop=False, by_epoch=False, every=3, permutations=19, summary_writer=writer
    )
    engine = _run(handler, epochs=6)
    assert engine.state.epoch == 6
    assert [record.step for record in handler.records] == [3, 6, 9, 12]
    assert [step for name, _, step in written if name == "privacy/bias"] == [3, 6, 9, 12]


def test_the_handler_serves_checkpoints_as_a_metric(tmp_path: Path) -> None:
    from monai.handlers import CheckpointSaver

    handler = PrivacyStopping(_drifting, TRAIN, HELDOUT, PATIENTS, tolerance=0.05, stop=False, permutations=19)
    saver = CheckpointSaver(
        save_dir=str(tmp_path),
        save_dict={"net": torch.nn.Linear(1, 1)},
        save_key_metric=True,
        key_metric_name="privacy_bias",
        key_metric_negative_sign=True,
    )
    engine = Engine(lambda engine, batch: None)
    engine.state.key_metric_name = "privacy_bias"
    handler.attach(engine)
    saver.attach(engine)
    engine.run(range(1), max_epochs=4)
    (kept,) = tmp_path.glob("*.pt")
    assert f"key_metric={-handler.records[0].bias.value:.4f}"[:15] in kept.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": 3}, "sample: expected a callable"),
        ({"every": 0}, "every: expected at least 1"),
        ({"patience": 0}, "patience: expected at least 1"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"summary_writer": 3}, "summary_writer"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"sample": _drifting, "train": TRAIN, "heldout": HELDOUT, "groups": PATIENTS} | changes
    with pytest.raises(RecipeError, match=message):
        PrivacyStopping(**settings)


def _steps(config: TrainConfig, first: int = 1) -> Iterator[Progress]:
    yield from (Progress(step, 0.1, None, 0) for step in range(first, config.steps + 1))


def _by_folder(folder: Path, labels: IntArray, seeds: IntArray) -> FloatArray:
    images, classes = copies(0.0 if int(folder.name) < 30 else 1.0)
    return np.stack([images[classes == label][seed % 40] for label, seed in zip(labels, seeds, strict=True)])


def test_a_watched_training_ends_when_it_leans_and_keeps_its_looks(tmp_path: Path, monitor: BiasMonitor) -> None:
    config = TrainConfig(steps=60, snapshots=(10, 20, 30, 40, 50), mirror=False)
    seen = list(watch(_steps(config), tmp_path, config, monitor, images=80, draw=_by_folder))
    assert seen[-1][0].step == 40
    assert [record.step for _, record in seen if record] == [10, 20, 30, 40]
    kept = json.loads((tmp_path / "privacy.json").read_text())
    assert [look["word"] == "beyond" for look in kept["looks"]] == [False, False, True, True]

    def never(folder: Path, labels: IntArray, seeds: IntArray) -> FloatArray:
        raise AssertionError("it looked again")

    again = list(watch(_steps(config, 36), tmp_path, config, monitor, images=80, draw=never))
    assert again[-1][0].step == 40  # the look at step 30 counts
    assert again[-1][1] is not None
    assert again[-1][1].bias == seen[-1][1].bias  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match="snapshots: expected the steps at which to look"):
        next(watch(_steps(config), tmp_path, replace(config, snapshots=()), monitor))
    assert kept["latest_within"] in (None, 10, 20)
    with pytest.raises(RecipeError, match=r"snapshots: expected steps in 1..60, got 10..61"):
        next(watch(_steps(config), tmp_path, replace(config, snapshots=(10, 61)), monitor))
    with pytest.raises(RecipeError, match="mirrored: expected True"):
        next(watch(_steps(config), tmp_path, replace(config, mirror=True), monitor))
    with pytest.raises(AssertionError, match="it looked again"):  # other samples than those of the looks
        list(watch(_steps(config), tmp_path, config, monitor, images=81, draw=never))
    weights = tmp_path / "snapshots" / "000010" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"another model")
    with pytest.raises(AssertionError, match="it looked again"):
        list(watch(_steps(config), tmp_path, config, monitor, images=80, draw=never))
    lax = BiasMonitor(TRAIN, HELDOUT, PATIENTS, tolerance=9.0)
    weights.unlink()
    told = [
        record for _, record in watch(_steps(replace(config, steps=40)), tmp_path, replace(config, snapshots=(30, 40)), lax, images=80, draw=never)
    ]
    assert [record.verdict.word for record in told if record] == ["within", "within"]
    (tmp_path / "privacy.json").write_text('{"looks": 3, "monitor": 1}')
    with pytest.raises(DataError, match="expected looks at a training's bias"):
        next(watch(_steps(config), tmp_path, config, monitor, draw=never))


def test_a_watched_training_looks_at_its_own_snapshots(tmp_path: Path, blob_file: Path, tiny_config: TrainConfig) -> None:
    config = replace(tiny_config, steps=20, check_every=10, snapshots=(10, 20), mirror=False)
    data = prepare(blob_file, config)
    seen = LabelledImages(images=data.seen.images, labels=data.seen.labels)
    unseen = LabelledImages(images=data.calibration.images, labels=data.calibration.labels)
    monitor = BiasMonitor(seen, unseen, np.arange(len(seen) + len(unseen)), permutations=19)
    records = [record for _, record in watch(train(data, tmp_path, config), tmp_path, config, monitor, images=20) if record]
    assert [record.step for record in records] == [10, 20]
    assert records[0].bias != records[1].bias


def test_train_with_a_twin_stops_where_the_twins_say(
    tmp_path: Path, blob_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    floor = [9.0]

    def small(**settings: Any) -> TwinRecipe:
        trainer = UNetTrainer(config=replace(settings["trainer"].config, channels=(16, 32), check_every=4, validation_draws=1), sampling_steps=2)
        return TwinRecipe(
            **settings | {"trainer": trainer, "checkpoints": 3, "images": 8, "resamples": 100, "twin_correlation": 0.99999, "quality_floor": floor[0]}
        )

    monkeypatch.setattr("monai_diverse.cli.train.TwinRecipe", small)
    arguments = ["train", "--data", str(blob_file), "--out", str(tmp_path / "m"), "--steps", "8", "--batch-size", "4", "--twin", "--max-bias", "0.5"]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "m" / "twins" / "audit.json").read_text())
    assert summary["kind"] == "twins"
    assert summary["tolerance"] == 0.5
    step = summary["advice"]["step"]
    said = capsys.readouterr().err
    assert f"stopping at step {step}, the budget stop" in said
    assert "quality passable" in said
    assert json.loads((tmp_path / "m" / "training.json").read_text())["steps"] == step
    assert (tmp_path / "m" / "twins" / "audit.html").stat().st_size > 10_000
    assert DiffusersSource(tmp_path / "m", steps=2).sample([0], [0]).shape == (1, 1, 8, 8)
    capsys.readouterr()
    assert main([*arguments[:6], "9", *arguments[7:]]) == 2
    assert "--steps: expected 8, to which the twins" in capsys.readouterr().err
    floor[0] = 1e-9  # no samples are passable
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "--max-bias: expected a tolerance that some checkpoint" in said
    assert json.loads((tmp_path / "m" / "twins" / "audit.json").read_text())["advice"] is None
    shutil.rmtree(tmp_path / "m" / "twins")
    assert main(arguments) == 2
    assert "--twin: expected a folder without a model" in capsys.readouterr().err
    assert main(["train", "--data", str(blob_file), "--out", str(tmp_path / "n"), "--max-bias", "0.5"]) == 2
    assert "--max-bias: expected --twin beside it" in capsys.readouterr().err


def test_a_training_killed_while_it_keeps_a_snapshot_makes_it_later_and_fewer_steps_are_refused(
    tmp_path: Path, blob_file: Path, tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_config, steps=4, check_every=2, snapshots=(4,))
    data, weights = prepare(blob_file, config), tmp_path / "snapshots" / "000004" / "unet" / "diffusion_pytorch_model.safetensors"

    def once(unet: Any, folder: Path) -> None:
        if "snapshots" in folder.parts:
            raise KeyboardInterrupt
        save_unet(unet, folder)

    with monkeypatch.context() as patched:
        patched.setattr("monai_diverse.training.run.save_unet", once)
        with pytest.raises(KeyboardInterrupt):
            list(train(data, tmp_path, config))
    assert not weights.exists()
    assert [progress.step for progress in train(data, tmp_path, config)] == [3, 4]
    assert weights.exists()
    with pytest.raises(RecipeError, match="steps: expected at least 4"):
        next(train(data, tmp_path, replace(config, steps=3, snapshots=())))


def test_figures_are_removed_where_there_was_no_look() -> None:
    handler = PrivacyStopping(_drifting, TRAIN, HELDOUT, PATIENTS, tolerance=0.05, stop=False, every=2, permutations=19)
    engine = _run(handler, epochs=3, batches=1)
    assert [record.step for record in handler.records] == [2]
    assert "privacy_bias" not in engine.state.metrics
    assert "privacy" not in engine.state.metric_details


def test_the_first_of_several_processes_looks_and_all_decide_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def broadcast(objects: list[Any], src: int) -> None:
        if rank[0] == 0:
            sent.append(objects[0])
        else:
            objects[0] = sent[len(followers)]
            followers.append(objects[0])

    rank, followers = [0], []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank[0])
    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    first = PrivacyStopping(_drifting, TRAIN, HELDOUT, PATIENTS, tolerance=0.05, permutations=19, name=None)
    ended = _run_alone(first)
    rank[0] = 1
    second = PrivacyStopping(lambda engine: pytest.fail("it looked"), TRAIN, HELDOUT, PATIENTS, tolerance=0.05, permutations=19, name=None)
    assert _run_alone(second) == ended == 4
    assert second.records == first.records


def _run_alone(handler: PrivacyStopping) -> int:
    """Calls it as an engine would, whose own start waits for all processes."""
    engine = SimpleNamespace(state=SimpleNamespace(epoch=0, metrics={}), ended=False)
    engine.terminate = lambda: setattr(engine, "ended", True)
    while not engine.ended:
        engine.state.epoch += 1
        handler.look(engine)  # type: ignore[arg-type]
    return engine.state.epoch
