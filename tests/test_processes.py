from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest
from conftest import alive, until

from monai_diverse import processes
from monai_diverse.audit import twin_training
from monai_diverse.distributed import processes as distributed_processes
from monai_diverse.processes import waiting_gives_way
from monai_diverse.study import crew


def _say_and_sleep(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def _study(folder: Path) -> None:
    list(crew.Crew(workers=2).each(int, (), _say_and_sleep, [folder, folder]))


def test_a_studys_workers_end_with_who_started_them(tmp_path: Path, fresh_processes: BaseContext) -> None:
    driver = fresh_processes.Process(target=_study, args=(tmp_path,))  # type: ignore[attr-defined]
    driver.start()
    assert until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(file.name) for file in tmp_path.iterdir()]
    assert all(alive(worker) for worker in workers)
    os.kill(driver.pid, signal.SIGKILL)
    driver.join()
    assert until(lambda: not any(alive(worker) for worker in workers), 10)


def test_waiting_gives_way_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with waiting_gives_way():
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with waiting_gives_way():
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_without_servers_processes_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert processes.fresh_processes("json").get_start_method() == "spawn"


def test_what_the_server_imports_leaves_gpus_alone() -> None:
    """A process that has asked for GPUs cannot be forked: its children could not use them."""
    modules = [*distributed_processes.IMPORTED, *crew.IMPORTED, twin_training.__name__]
    script = f"""
import torch
def asked(*_, **__):
    raise AssertionError("a GPU was asked for")
for name in ("is_available", "device_count", "current_device", "get_device_properties", "init", "_lazy_init"):
    setattr(torch.cuda, name, asked)
import {", ".join(modules)}
print("done")
"""
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "done\n"
