"""What a result was computed with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("torch", "monai", "diffusers", "numpy", "scipy", "scikit-learn", "safetensors")


def describe_environment() -> dict[str, Any]:
    """Versions of Python and of the packages that matter, and the machine, as JSON.

    `instructions` are the vector instructions that torch uses: with others the last bits differ, and trainings end in other weights.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
