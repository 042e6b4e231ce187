"""Keeps workers busy, gives their batches back in order, and replaces those that die."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from monai_diverse.batches import Drawn, Known, Order
from monai_diverse.distributed.worker import Failed, Ready, Reply, Task
from monai_diverse.errors import WorkerError
from monai_diverse.sampling import Guide

DEATHS = 3
"""So often may a batch be in work when its worker dies, or may workers die before they are ready, until that is an error."""
HELD = 2
"""Batches that a worker holds: one in work, and one to go on with while the first is judged."""

REMEDY = (
    "look for want of memory (fewer workers, a smaller batch_size of the source) or a model that crashes; "
    "what was accepted is kept, go on with --resume"
)


class Handle(Protocol):
    """One worker, from outside."""

    def send(self, task: Task) -> None:
        """Gives it a batch; of a worker that is dead, `Fleet.hear` tells."""
        ...

    def stop(self) -> str:
        """Ends it at once; says how it died, if it was dead."""
        ...


H = TypeVar("H", bound=Handle)


class Fleet(Protocol[H]):
    """Where workers come from."""

    @property
    def size(self) -> int:
        """How many there shall be."""
        ...

    def hire(self, place: int) -> H:
        """Starts worker number `place`, in 0..size-1; its first reply is `Ready` or `Failed`."""
        ...

    def hear(self, handles: Sequence[H]) -> list[tuple[H, Reply | None]]:
        """Waits until some have something to say: replies in the order of each one's tasks, None for one that is dead."""
        ...


@dataclass(eq=False)
class _Post(Generic[H]):
    """The place of a worker, whoever fills it."""

    place: int
    handle: H | None = None
    ready: bool = False
    told: int = 0
    tasks: deque[int] = field(default_factory=deque)


class Pool(Generic[H]):
    """Draws batches with a fleet.

    Args:
        fleet: where workers come from.
        first_seed: of the recipe, for messages: sample number i has seed `first_seed + i`.
        batch_size: of the recipe, for messages.
    """

    def __init__(self, fleet: Fleet[H], *, first_seed: int, batch_size: int) -> None:
        self._fleet, self._first_seed, self._batch_size = fleet, first_seed, batch_size
        self._posts: list[_Post[H]] = [_Post(place) for place in range(fleet.size)]
        self._orders: dict[int, Order] = {}
        self._queue: deque[int] = deque()
        self._done: dict[int, Drawn] = {}
        self._deaths: Counter[int] = Counter()
        self._still_born, self._asked, self._given = 0, 0, 0
        self._known: Known = ()

    @property
    def capacity(self) -> int:
        """As many batches as the workers hold."""
        return HELD * len(self._posts)

    def submit(self, order: Order, known: Known, guide: Guide | None) -> None:
        """Puts a batch in the queue; the worker makes the guide again."""
        self._orders[self._asked], self._known = order, known
        self._queue.append(self._asked)
        self._asked += 1
        self._assign()

    def receive(self) -> Drawn:
        """Waits for the next batch in order.

        Raises:
            WorkerError: workers die again and again.
            Exception: what the job raised on a worker.
        """
        while self._given not in self._done:
            filled = [(post.handle, post) for post in self._posts if post.handle is not None]
            posts = {id(handle): post for handle, post in filled}
            for handle, reply in self._fleet.hear([handle for handle, _ in filled]):
                self._take(posts[id(handle)], reply)
            self._assign()
        drawn = self._done.pop(self._given)
        del self._orders[self._given]
        self._given += 1
        return drawn

    def close(self) -> None:
        """Ends all workers."""
        for post in self._posts:
            if post.handle is not None:
                post.handle.stop()
                post.handle = None

    def _take(self, post: _Post[H], reply: Reply | None) -> None:
        if reply is None:
            self._bury(post)
        elif isinstance(reply, Failed):
            reply.reraise()
        elif isinstance(reply, Ready):
            post.ready, self._still_born = True, 0
        else:
            self._done[post.tasks.popleft()] = reply

    def _bury(self, post: _Post[H]) -> None:
        """Takes a dead worker's batches back; the first of them was in work."""
        assert post.handle is not None
        cause = post.handle.stop()
        if post.tasks:
            self._deaths[post.tasks[0]] += 1
            if self._deaths[post.tasks[0]] == DEATHS:
                raise WorkerError(f"{self._named(self._orders[post.tasks[0]])}: {DEATHS} workers died while they drew them ({cause}); {REMEDY}")
        elif not post.ready:
            self._still_born += 1
            if self._still_born == DEATHS:
                raise WorkerError(f"workers: {DEATHS} died, one after another, before they were ready ({cause}); {REMEDY}")
        self._queue = deque(sorted([*post.tasks, *self._queue]))
        post.handle, post.ready, post.told = None, False, 0
        post.tasks.clear()

    def _assign(self) -> None:
        for post in self._posts:
            if post.handle is None:
                post.handle = self._fleet.hire(post.place)
        idle = [post for post in self._posts if post.ready and not post.tasks]
        # a second batch only where no other worker could take it soon
        second = [post for post in self._posts if len(post.tasks) == 1] if all(post.ready for post in self._posts) else []
        for post in (*idle, *second)[: len(self._queue)]:
            self._hand(post, self._queue.popleft())

    def _hand(self, post: _Post[H], number: int) -> None:
        assert post.handle is not None
        news, post.told = self._known[post.told :], len(self._known)
        post.tasks.append(number)
        post.handle.send(Task(order=self._orders[number], news=news))

    def _named(self, order: Order) -> str:
        first = self._first_seed + order.first
        return f"samples of seeds {first} to {first + self._batch_size - 1}"
