"""A Ray cluster: the one that runs, or a new one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from monai_diverse.errors import MissingExtraError, RecipeError

AUTO = "auto"


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Gives the module `ray`, connected; where it is connected already, as it is.

    Args:
        address: of a cluster; `auto`: the one that runs (`RAY_ADDRESS`, or one on this machine), or a new one on this machine; `local`: a new one.

    Raises:
        MissingExtraError: Ray is not installed.
        RecipeError: no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("Ray is not installed; install it with: pip install 'monai-diverse[ray]'") from error
    if ray.is_initialized():  # whoever did that ends it
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=None if address == AUTO else address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"ray: expected the address of a running cluster, auto or local, got {address!r} ({reason})") from error
    try:
        yield ray
    finally:
        ray.shutdown()
