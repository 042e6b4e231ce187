"""Where the program starts: errors become one line and an exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Annotated

import typer

from monai_diverse.errors import DiverseError
from monai_diverse.version import __version__

DEBUG = "MONAI_DIVERSE_DEBUG"
USAGE_ERROR: type[typer.BadParameter] = typer.BadParameter.__mro__[1]
"""Unknown options and commands; Typer has click's class but, from some version on, a copy of its own."""
INTERRUPTED = 130
INTERRUPTION = "interrupted: what was finished is on disk; run the same command again to go on (grow: with --resume)"
COMMANDS = ("demo", "train", "grow", "bank", "exchange", "audit", "study")

_interrupted = threading.Event()
app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show a traceback with errors; also {DEBUG}=1.")] = False,
) -> None:
    """Diverse synthetic training images for MONAI: sampled in one pass, screened, banked, audited."""
    if debug:
        os.environ[DEBUG] = "1"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: what follows the program's name; None for `sys.argv`.

    Returns:
        0 if all went well, 1 for a check that failed, 2 for bad input, 130 when interrupted.
    """
    try:
        for command in COMMANDS:
            importlib.import_module(f"monai_diverse.cli.{command}")
        code = int(app(args=arguments, standalone_mode=False) or 0)
    except DiverseError as error:
        return _fail(f"error: {error}", error.exit_code)
    except USAGE_ERROR as error:
        message = error.format_message()
        return _fail(f"error: {message}; see --help", 2) if message else 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except MemoryError:
        return _fail("error: out of memory: use smaller images, a smaller batch or fewer of them", 2)
    except Exception as error:
        if _interrupted.is_set():  # an extension module that is interrupted while it is imported makes an ImportError of it
            return _fail(INTERRUPTION, INTERRUPTED)
        return _fail(f"error: unexpected {type(error).__name__}: {error}; run again with --debug for a traceback, and please report it", 1)
    if code == INTERRUPTED:
        _fail(INTERRUPTION, code)
    return code


def _fail(message: str, code: int) -> int:
    if os.environ.get(DEBUG) == "1":
        traceback.print_exc()
    typer.echo(" ".join(message.split()), err=True)
    return code


def run() -> None:
    """The console script."""
    signal.signal(signal.SIGINT, _interrupt)
    sys.exit(main())


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    signal.default_int_handler(number, frame)
