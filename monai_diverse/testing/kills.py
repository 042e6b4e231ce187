"""A killer for tests of what survives `kill -9`."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

NUMBER = 8


@dataclass(frozen=True, kw_only=True)
class Strike:
    """What became of a process that was to be killed.

    Attributes:
        reported: the last number that it reported; None if it did not come that far.
        finished: whether it had ended by itself before.
    """

    reported: int | None
    finished: bool


def strike(work: Callable[[Callable[[int], None]], None], seconds: float) -> Strike:
    """Runs some work in a forked process and kills it, as the kernel does when memory runs out: no handler, no clean-up.

    Args:
        work: is given a function that reports a number, such as how many samples are stored by now.
        seconds: when to kill.

    Raises:
        RuntimeError: the work failed by itself.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            work(lambda number: _report(writer, number))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)  # a process that has ended is there until it is waited for
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the work failed before it was killed; its traceback was printed")
    last = len(told) // NUMBER * NUMBER
    reported = int.from_bytes(told[last - NUMBER : last], "little") if last else None
    return Strike(reported=reported, finished=os.WIFEXITED(status))


def _report(pipe: int, number: int) -> None:
    os.write(pipe, number.to_bytes(NUMBER, "little"))
