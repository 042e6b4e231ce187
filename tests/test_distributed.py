import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from breakable import BreakableSource
from conftest import SIDE, alive, until

from monai_diverse import Processes, RayActors, Recipe, SampleBank, grow
from monai_diverse.batches import Accepted, Drawn, Here, Order, guide_of
from monai_diverse.cli import main
from monai_diverse.cli.main import app
from monai_diverse.components import Component
from monai_diverse.distributed.pool import Pool
from monai_diverse.distributed.worker import READY, Commission, Failed, Reply, Task
from monai_diverse.errors import MissingExtraError, RecipeError, WorkerError
from monai_diverse.growth import grow_steps
from monai_diverse.job import Job
from monai_diverse.sampling import Guide
from monai_diverse.threads import Threads

TWO = Processes(devices=("cpu", "cpu"))
SHIELD = Component(target="monai_diverse.sampling.Shield")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the source is told to die, and tells of its processes."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture
def recipe(recipe_file: Path, place: Path, fresh_processes: BaseContext) -> Recipe:
    """Five batches by brute force."""
    plain = Recipe.load(recipe_file)
    arguments = {**plain.source.arguments, "path": str(place)}
    return replace(
        plain, source=Component(target="breakable.BreakableSource", arguments=arguments), allow=("breakable",), batch_size=24, max_evaluations=5 * 120
    )


@pytest.fixture
def guided(recipe: Recipe) -> Recipe:
    """Batches that depend on those before the last."""
    return replace(recipe, guide=SHIELD, ahead=1)


def pids(place: Path) -> set[int]:
    return {int(file.name.removeprefix("pid-")) for file in place.glob("pid-*")} - {os.getpid()}


def assert_same(bank: SampleBank, other: SampleBank) -> None:
    assert bank.fingerprint == other.fingerprint
    assert bank.progress == other.progress
    np.testing.assert_array_equal(bank.images[:], other.images[:])
    np.testing.assert_array_equal(bank.labels, other.labels)
    np.testing.assert_array_equal(bank.seeds, other.seeds)


def test_two_processes_grow_the_bank_of_one_and_one_may_die(recipe: Recipe, place: Path, tmp_path: Path) -> None:
    whole = grow(recipe, tmp_path / "one")
    (place / "kill-50").touch()
    bank = grow(recipe, tmp_path / "two", workers=TWO)
    assert_same(bank, whole)
    bank.verify()
    assert len(pids(place)) >= 2
    assert not (place / "kill-50").exists()
    assert not any(alive(number) for number in pids(place))


def test_guided_batches_a_full_bank_and_a_larger_one(guided: Recipe, place: Path, tmp_path: Path) -> None:
    """The replaced worker must be told all that was accepted before; batches in work when the bank is full must leave no trace."""
    whole = grow(guided, tmp_path / "one")
    size = int(np.flatnonzero(np.array(whole.seeds) % 2**32 >= 48)[2]) + 1
    part = grow(replace(guided, size=size), tmp_path / "part")
    assert part.progress["drawn"] % 24, "the bound should fall inside a batch for this test to mean anything"
    assert_same(grow(replace(guided, size=size), tmp_path / "two", workers=TWO), part)
    (place / "kill-100").touch()
    assert_same(grow(guided, tmp_path / "two", resume=True, workers=TWO), whole)
    assert not (place / "kill-100").exists()
    waiting = grow(replace(guided, ahead=0), tmp_path / "waiting")
    assert waiting.fingerprint != whole.fingerprint


def test_ahead_is_part_of_a_guided_recipe_alone(recipe: Recipe, guided: Recipe) -> None:
    assert "ahead" not in recipe.as_json()
    assert guided.as_json()["ahead"] == 1
    assert Recipe.from_json(guided.as_json()).ahead == 1
    assert guided.fingerprint({}) != replace(guided, ahead=0).fingerprint({}) != replace(guided, ahead=2).fingerprint({})
    assert recipe.fingerprint({}) == replace(recipe, ahead=3).fingerprint({})
    for wrong in (-1, 1.5, True, None):
        with pytest.raises(RecipeError, match="ahead: expected a whole number from 0"):
            replace(recipe, ahead=wrong)


@pytest.mark.parametrize(("ahead", "told"), [(0, 48), (1, 24), (2, 0), (9, 0)])
def test_guide_knows_what_was_accepted_ahead_batches_before(guided: Recipe, ahead: int, told: int) -> None:
    class Listening(Guide):
        def given(self, accepted: torch.Tensor, labels: torch.Tensor) -> Any:
            return len(accepted), labels.tolist()

    job = replace(Job.prepare(replace(guided, ahead=ahead)), guide=Listening())
    known = []
    for first in (0, 24, 48):
        labels, seeds = job.asked(first, 24)
        known += Accepted.of(job, np.zeros((24, 1, SIDE, SIDE), np.float32), labels, seeds)
    assert guide_of(job, Order(first=48), known) == (told, job.asked(0, told)[0].tolist())


def test_a_batch_that_kills_every_worker_is_named(recipe: Recipe, place: Path, tmp_path: Path) -> None:
    (place / "always-30").touch()
    base = 3 * 2**32
    with pytest.raises(WorkerError, match=rf"samples of seeds {base + 24} to {base + 47}: 3 workers died while they drew them \(signal 9\)"):
        grow(recipe, tmp_path / "bank", workers=Processes(devices=("cpu",), count=1))
    assert len(pids(place)) == 3
    kept = SampleBank.open(tmp_path / "bank")
    kept.verify()
    assert kept.progress["drawn"] == 24
    (place / "always-30").unlink()
    assert_same(grow(recipe, tmp_path / "bank", resume=True, workers=Processes(devices=("cpu",))), grow(recipe, tmp_path / "whole"))


def test_errors_of_the_job_are_raised_as_they_are_and_once(recipe: Recipe, place: Path, tmp_path: Path) -> None:
    one = Processes(devices=("cpu",))
    (place / "raise-30").touch()
    with pytest.raises(RecipeError, match="sample 30: expected nothing of the kind") as caught:
        grow(recipe, tmp_path / "bank", workers=one)
    assert "breakable.py" in caught.value.__notes__[0]
    assert (place / "raised").read_text() == "once\n"
    (place / "raise-30").unlink()
    (place / "crash-30").touch()
    with pytest.raises(RuntimeError, match="Unsendable: 30 is of no use"):
        grow(recipe, tmp_path / "bank", resume=True, workers=one)
    assert SampleBank.open(tmp_path / "bank").progress["drawn"] == 24


def test_source_that_ends(recipe: Recipe, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(40):
        folder = tmp_path / "pictures" / ("a", "b")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    source = Component(target="monai_diverse.FolderSource", arguments={"folder": str(tmp_path / "pictures")})
    held = replace(recipe, source=source, generator_train=None, batch_size=16)
    whole = grow(held, tmp_path / "one")
    assert whole.progress["drawn"] == 40
    assert_same(grow(held, tmp_path / "two", workers=Processes(devices=("cpu",))), whole)


def _grow_on_two(recipe: Recipe, out: Path) -> None:
    grow(recipe, out, workers=TWO)


def test_driver_that_is_killed_leaves_no_process_and_can_go_on(guided: Recipe, place: Path, tmp_path: Path, fresh_processes: BaseContext) -> None:
    whole = grow(guided, tmp_path / "one")
    driver = fresh_processes.Process(target=_grow_on_two, args=(guided, tmp_path / "two"))  # type: ignore[attr-defined]
    driver.start()

    def begun() -> bool:
        return (tmp_path / "two" / "manifest.json").exists() and SampleBank.open(tmp_path / "two").progress.get("drawn", 0) > 0

    assert until(begun)
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    assert len(pids(place)) >= 2  # the driver makes a source too
    assert until(lambda: not any(alive(number) for number in pids(place)), 10)
    part = SampleBank.open(tmp_path / "two")
    part.verify()
    assert_same(grow(guided, tmp_path / "two", resume=True), whole)


def test_ray_actors_grow_the_bank_of_one_process_and_one_may_die(guided: Recipe, place: Path, tmp_path: Path, ray_here: None) -> None:
    whole = grow(guided, tmp_path / "one")
    (place / "kill-50").touch()
    assert_same(grow(guided, tmp_path / "two", workers=RayActors(count=2)), whole)
    assert not (place / "kill-50").exists()
    assert len(pids(place)) >= 2
    assert until(lambda: not any(alive(number) for number in pids(place)), 10)


def test_ray_on_the_command_line_by_brute_force_up_to_a_size(
    recipe: Recipe, tmp_path: Path, ray_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = grow(replace(recipe, size=9), tmp_path / "one")
    (tmp_path / "plain.yaml").write_text(json.dumps(recipe.as_json()))
    arguments = ["grow", str(tmp_path / "plain.yaml"), "--out", str(tmp_path / "two"), "--size", "9", "--allow", "breakable", "--json"]
    assert main([*arguments, "--ray", "auto", "--workers", "1"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["fingerprint"] == whole.fingerprint
    assert "warning" not in printed.err
    assert_same(SampleBank.open(tmp_path / "two"), whole)


class Fake:
    """A worker of `FakeFleet`."""

    def __init__(self, place: int) -> None:
        self.place, self.asked, self.known, self.stopped = place, [None], [], False

    def send(self, task: Task) -> None:
        self.asked.append(task)

    def stop(self) -> str:
        self.stopped = True
        return "by chance"


class FakeFleet:
    """Workers that answer in a random order, and die at random."""

    def __init__(self, size: int, seed: int, death: float = 0.0, born: bool = True) -> None:
        self.size, self.death, self.born = size, death, born
        self.rng, self.hired, self.drawn = np.random.default_rng(seed), [], []

    def hire(self, place: int) -> Fake:
        self.hired.append(Fake(place))
        return self.hired[-1]

    def hear(self, handles: Sequence[Fake]) -> list[tuple[Fake, Reply | None]]:
        assert not any(handle.stopped for handle in handles)
        handle = self.rng.choice([handle for handle in handles if handle.asked])
        if not self.born or self.rng.random() < self.death:
            return [(handle, None)]
        task = handle.asked.pop(0)
        if task is None:
            return [(handle, READY)]
        handle.known += [part.seeds[0] for part in task.news]
        self.drawn.append(task.order.first)
        return [(handle, Drawn(views=(task.order.first, tuple(handle.known)), assessment=None))]


@pytest.mark.parametrize("seed", range(40))
def test_pool_gives_batches_back_in_order_and_tells_each_worker_all_once(seed: int) -> None:
    fleet = FakeFleet(1 + seed % 4, seed, death=0.1 * (seed % 3 == 0), born=True)
    pool = Pool(fleet, first_seed=0, batch_size=1)
    known: tuple[Accepted, ...] = ()
    asked = 0
    assert pool.capacity == 2 * fleet.size
    for number in range(50):
        while asked < min(50, number + pool.capacity):
            pool.submit(Order(first=asked), known, None)
            asked += 1
        first, heard = pool.receive().views
        assert first == number
        assert heard == tuple(range(len(heard))), "each piece of news once, in order"
        assert len(heard) >= number - pool.capacity + 1 or seed % 3 == 0, "all that was accepted when the batch was handed out"
        assert max(len([t for t in worker.asked if t is not None]) for worker in fleet.hired if not worker.stopped) <= 2
        known = (*known, Accepted(states=torch.zeros(1), labels=torch.zeros(1), seeds=np.array([number])))
    if seed % 3:
        assert sorted(fleet.drawn) == list(range(50)), "no batch is drawn twice for nothing"
    pool.close()
    assert all(worker.stopped for worker in fleet.hired)


def test_pool_gives_up_on_workers_that_die_at_birth() -> None:
    fleet = FakeFleet(2, 0, born=False)
    pool = Pool(fleet, first_seed=0, batch_size=1)
    pool.submit(Order(first=0), (), None)
    with pytest.raises(WorkerError, match=r"3 died, one after another, before they were ready \(by chance\)"):
        pool.receive()


def test_here_draws_in_order(recipe: Recipe) -> None:
    job = Job.prepare(recipe)
    drawer = Here(job)
    drawer.submit(Order(first=24, skip=20), (), None)
    drawn = drawer.receive()
    labels, seeds = job.asked(24, 24)
    np.testing.assert_array_equal(drawn.views.images, job.draw(labels, seeds, None)[20:])
    together = job.screen.judge(drawn.views)
    assert job.screen.decide(drawn.views, drawn.assessment) == together


def test_workers_compute_as_the_driver_does(recipe: Recipe, place: Path, tmp_path: Path) -> None:
    """With its threads, on the device that they are given; a device that the recipe names is no part of its fingerprint."""
    job = Job.prepare(recipe)
    arguments = {**recipe.source.arguments, "device": "cpu"}
    assert Job.prepare(replace(recipe, source=replace(recipe.source, arguments=arguments))).fingerprint == job.fingerprint
    before = Threads.here()
    try:
        torch.set_num_threads(2)
        commission = Commission.of(job)
    finally:
        before.take()
    assert commission.threads.torch == 2
    made = replace(commission, threads=before).job("cpu")
    assert isinstance(made.source, BreakableSource)
    assert made.fingerprint == job.fingerprint
    assert made.screen.describe() == job.screen.describe()
    with pytest.raises(RecipeError, match="device: expected one that torch can use here"):
        replace(commission, threads=before).job("cuda:77")
    other = replace(recipe.source, arguments={**recipe.source.arguments, "steps": 4})
    with pytest.raises(RecipeError, match=r"another one from .* on a worker"):
        replace(commission, threads=before, recipe=replace(recipe, source=other)).job(None)


def test_what_cannot_be_sent(recipe: Recipe) -> None:
    class Local(Guide):
        pass

    job = replace(Job.prepare(recipe), guide=Local())
    with pytest.raises(RecipeError, match="can be sent to another process"), Processes(devices=("cpu",)).start(job):
        pass
    assert isinstance(Failed.of(ValueError("x")).error, ValueError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "cpu", "--ray", "auto"], "--devices for processes of this machine or --ray for a cluster, got both"),
        (["--devices", "cpu,nowhere"], "device: expected one that torch can use here, such as 'cpu', got 'nowhere'"),
        (["--devices", "cpu,,"], "devices: expected names such as cuda:0 or cpu"),
        (["--devices", "cpu", "--workers", "0"], "workers: expected a whole number from 1, got 0"),
    ],
)
def test_wrong_flags(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["grow", str(recipe_file), "--out", str(tmp_path / "bank"), *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "bank").exists(), "so that the right command needs no --resume"


def test_workers_that_would_take_turns(guided: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monai_diverse.cli.grow.show_progress", lambda *_, **__: sys.exit(7))
    for ahead, count, warned in ((0, "2", True), (0, "1", False), (1, "2", False)):
        (tmp_path / "guided.yaml").write_text(json.dumps(replace(guided, ahead=ahead).as_json()))
        arguments = ["grow", str(tmp_path / "guided.yaml"), "--out", str(tmp_path / "bank"), "--allow", "breakable", "--devices", "cpu"]
        with pytest.raises(SystemExit, match="7"):
            app([*arguments, "--workers", count])
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith("warning: ") and "`ahead`" in line] == lines[: int(warned)] == lines


def test_settings() -> None:
    assert Processes(devices=("cpu", "cuda:1"), count=3).chosen() == ("cpu", "cuda:1", "cpu")
    assert len(Processes(count=2).chosen()) == 2
    for wrong in ({"devices": "cpu"}, {"devices": ()}, {"count": 0}, {"count": True}):
        with pytest.raises(RecipeError):
            Processes(**wrong)
    with pytest.raises(RecipeError, match="workers: expected a whole number from 1"):
        RayActors(count=0)


def test_missing_ray_names_the_extra(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'monai-diverse\[ray\]'"):
        list(grow_steps(Job.prepare(recipe), tmp_path / "bank", workers=RayActors()))
