"""How processes of this machine begin and end."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext

WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of workers: threads that wait for others must not keep those from a core, where workers have more threads than there are cores."""


def fresh_processes(*imported: str) -> BaseContext:
    """Starts processes that know only what they are given, from a server that has imported what takes long where there are such servers.

    Args:
        imported: modules that the processes will need. The first call decides: there is one server, which all later processes come from.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(imported))
    return context


@contextmanager
def waiting_gives_way() -> Iterator[None]:
    """Processes that are started in the block have the environment `WAITING`, unless this one's says otherwise."""
    added = {name: value for name, value in WAITING.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, even by a kill: a pool's would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only for processes that multiprocessing started"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
