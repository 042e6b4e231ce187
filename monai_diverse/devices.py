"""Where torch computes."""

from __future__ import annotations

import torch

from monai_diverse.errors import RecipeError


def require_device(name: str) -> str:
    """Returns `name` if torch can compute there.

    Raises:
        RecipeError: no such device here.
    """
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"device: expected one that torch can use here, such as 'cpu', got {name!r} ({reason})") from error
    return name
