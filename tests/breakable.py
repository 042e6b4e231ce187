"""A source that other processes can import, and that dies or fails where a test wants it to."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_diverse import DiffusersSource
from monai_diverse.errors import RecipeError


class BreakableSource(DiffusersSource):
    """The same model, and the same fingerprint. In the folder `path` it leaves its process's number, and finds files that say what to do at a sample:
    `kill-N` ends the process at sample number N once, `always-N` each time, `raise-N` raises an error of the package and `crash-N` one of its own."""

    def __init__(self, *, folder: str, path: str, steps: int = 5, device: str = "cpu") -> None:
        super().__init__(folder, steps=steps, device=device)
        self.place = Path(path)
        (self.place / f"pid-{os.getpid()}").write_text(f"{device} {torch.get_num_threads()}")

    def _draw(self, labels: Tensor, seeds: list[int], guide: Any, steps: int | None) -> Tensor:
        for number in (seed % 2**32 for seed in seeds):
            if (self.place / f"kill-{number}").exists():
                (self.place / f"kill-{number}").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if (self.place / f"always-{number}").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            if (self.place / f"raise-{number}").exists():
                with (self.place / "raised").open("a") as file:
                    file.write("once\n")
                raise RecipeError(f"sample {number}: expected nothing of the kind")
            if (self.place / f"crash-{number}").exists():
                raise Unsendable(number, "of no use")
        return super()._draw(labels, seeds, guide, steps)


class Unsendable(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"{number} is {reason}")
