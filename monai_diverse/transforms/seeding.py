"""Random states that differ between the workers of a DataLoader, whoever forgot to seed them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch.distributed as dist
from monai.transforms import Randomizable
from torch.utils.data import get_worker_info

_instances = itertools.count()


class WorkerSeeded(Randomizable):  # type: ignore[misc]  # MONAI has no type information
    """A `Randomizable` that notices when a DataLoader's worker got a mere copy of its random state.

    MONAI seeds the copies in `worker_init_fn`, but its search for them ends at the first object that has `set_random_state`, such as a
    `MedNISTDataset`, and torch's own DataLoader seeds none. Such copies would draw the same in every worker and in every epoch. So each
    drawing asks first where it is:

    1. In the main process, or in a worker where `set_random_state` was called (by MONAI's DataLoader, or by one's own `worker_init_fn`): the state is
       used as it is. Reproducible with `set_random_state`, or with `set_determinism` and MONAI's DataLoader, as with any transform of MONAI.
    2. In a worker where it was not: a new state is derived, once a worker, from the state that came from the main process and from the
       worker's seed, which torch draws for each worker and epoch. Reproducible where both are: after `set_determinism` (or
       `torch.manual_seed`) for the worker's seed, and `set_random_state` (or `set_determinism` *before* the `Compose` was made) for the
       state. With `persistent_workers` the state just runs on.
    3. In such a worker, with a state that was never seeded anywhere: from the worker's seed and the number of the object (in order of
       construction), since MONAI's shared class-wide state is never reproducible.

    In distributed training the process's rank counts in 2 and 3 as well, as it is in the worker or was when the object was made (or pickled), so that
    ranks draw differently; rank 0 draws as without distribution.

    What cannot be told apart: a `set_random_state` call in a worker with a seed that is the same in every worker. It counts as meant. Neither do
    processes that are no DataLoader workers (a `multiprocessing.Pool`) show that they are copies: call `set_random_state` there.
    """

    _seeded_in: int | None = None

    def __init__(self) -> None:
        self._number = next(_instances)
        self._rank = process_rank()

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker is in no process group
        return vars(self) | {"_rank": self._rank or process_rank()}

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> WorkerSeeded:
        """Sets the random state as MONAI does, and remembers in which worker; arguments as MONAI's."""
        super().set_random_state(seed, state)
        self._seeded_in = _worker_seed()
        return self

    def random_state(self) -> np.random.RandomState:
        """The random state to draw from, here and now."""
        worker = _worker_seed()
        if worker is not None and worker != self._seeded_in:
            self._reseed(self._derived(worker))
        state: np.random.RandomState = self.R
        return state

    def _reseed(self, seed: int) -> None:
        self.set_random_state(seed=seed)

    def _derived(self, worker: int) -> int:
        if "R" in vars(self):
            _, key, position, *_ = self.R.get_state(legacy=True)
            inherited = [1, *np.asarray(key).tolist(), int(position)]
        else:
            inherited = [0, self._number]
        return ranked(worker, *inherited, rank=self._rank or process_rank())


def process_rank() -> int:
    """The rank of this process in torch's default process group; 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def ranked(*entropy: int, rank: int) -> int:
    """A seed from all numbers; rank 0 counts for nothing."""
    return int(np.random.SeedSequence([*entropy, *([rank] if rank else [])]).generate_state(1)[0])


def _worker_seed() -> int | None:
    info = get_worker_info()
    return None if info is None else int(info.seed)
