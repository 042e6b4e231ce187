"""What the batches of an epoch were made of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.handlers.base import Handler

if TYPE_CHECKING:
    from ignite.engine import Engine

_FIGURES = ("share", "mixed_share", "different")


@dataclass(frozen=True, kw_only=True)
class ItemCounts:
    """How many items were what.

    Attributes:
        real: as they came.
        synthetic: samples of a bank.
        mixed: real images mixed with samples.
        different: how many different samples the synthetic and mixed items came from.
    """

    real: int
    synthetic: int
    mixed: int
    different: int

    @property
    def items(self) -> int:
        """All of them."""
        return self.real + self.synthetic + self.mixed

    @property
    def share(self) -> float:
        """Synthetic items of all, in [0, 1]."""
        return self.synthetic / self.items if self.items else 0.0

    @property
    def mixed_share(self) -> float:
        """Mixed items of all, in [0, 1]."""
        return self.mixed / self.items if self.items else 0.0

    def __str__(self) -> str:
        mixed = f" and {self.mixed} mixed ({self.mixed_share:.1%})" if self.mixed else ""
        return f"{self.synthetic} synthetic ({self.share:.1%}){mixed} of {self.items}"


@dataclass(frozen=True, kw_only=True)
class EpochStats:
    """What the batches of one epoch were made of.

    Attributes:
        epoch: its number, from 1.
        total: over all classes.
        by_class: of each class that had items, in ascending order.
    """

    epoch: int
    total: ItemCounts
    by_class: Mapping[int, ItemCounts]

    def scalars(self, tag: str = "synthetic") -> dict[str, float]:
        """The figures by name: TAG/share, TAG/mixed_share, TAG/different, and for each class TAG/class_K/share and so on."""
        parts = {tag: self.total} | {f"{tag}/class_{label}": counts for label, counts in self.by_class.items()}
        return {f"{prefix}/{name}": float(getattr(counts, name)) for prefix, counts in parts.items() for name in _FIGURES}

    def __str__(self) -> str:
        classes = "; ".join(f"class {label}: {counts}" for label, counts in self.by_class.items())
        return f"Epoch[{self.epoch}] items -- {self.total}, from {self.total.different} different samples; {classes}"


class SyntheticStatsHandler(Handler):
    """Counts, epoch by epoch and class by class, how many items that a trainer saw were real, synthetic or mixed.

    It looks at batches as the loader gave them, before the trainer decollates or postprocesses them. In distributed training each process counts
    its own items. At the end of each epoch it logs one line, writes scalars if there is a writer (`EpochStats.scalars`, with the epoch's number as
    step), and leaves in the engine's state `metrics["synthetic_share"]`, `["synthetic_mixed_share"]` and `["synthetic_different"]`, for handlers that
    are attached later, such as MONAI's `StatsHandler`, and `metric_details["synthetic"]`, the `EpochStats`.

    Args:
        source_key: of the items' origin in a batch, as `RandDiverseReplaced` and `DiverseDiffusionDataset` write it.
        label_key: of class labels in a batch: whole numbers, one-hot or soft. A soft label counts for the class of its largest entry, the first
            of equals.
        batch_transform: takes `engine.state.batch` and returns (sources, labels); instead of the two keys, for batches that are not dicts.
        summary_writer: a `SummaryWriter` of torch.utils.tensorboard or tensorboardX. It stays open.
        tag: what the names of scalars begin with.
        name: of the logger; None for the engine's own, which keeps to warnings unless it is set up otherwise.

    Attributes:
        history: an `EpochStats` for each completed epoch.

    Raises:
        MissingExtraError: pytorch-ignite is not installed.
        RecipeError: a `summary_writer` that is none, a `batch_transform` that cannot be called.
        DataError: (in training) a batch without sources or labels, or with something else in their place.
    """

    def __init__(
        self,
        *,
        source_key: str = "sample_source",
        label_key: str = "label",
        batch_transform: Callable[[Any], tuple[Sequence[str], Any]] | None = None,
        summary_writer: Any = None,
        tag: str = "synthetic",
        name: str | None = "monai_diverse.handlers.SyntheticStatsHandler",
    ) -> None:
        super().__init__(name)
        if batch_transform is not None and not callable(batch_transform):
            raise RecipeError(f"batch_transform: expected a callable, got {type(batch_transform).__name__}")
        if summary_writer is not None and not callable(getattr(summary_writer, "add_scalar", None)):
            raise RecipeError(f"summary_writer: expected a SummaryWriter with add_scalar, got {type(summary_writer).__name__}")
        self.source_key, self.label_key = source_key, label_key
        self.batch_transform = batch_transform or self._by_keys
        self.summary_writer = summary_writer
        self.tag = tag
        self.history: list[EpochStats] = []
        self._tally = _Tally()

    def functions(self) -> Mapping[Any, Callable[[Engine], None]]:
        """What to call at which event."""
        events = self._events
        return {
            events.EPOCH_STARTED: self.epoch_started,
            events.ITERATION_STARTED: self.iteration_started,
            events.EPOCH_COMPLETED: self.epoch_completed,
        }

    def epoch_started(self, engine: Engine) -> None:
        """Begins to count anew."""
        self._tally = _Tally()

    def iteration_started(self, engine: Engine) -> None:
        """Counts a batch."""
        sources, labels = self.batch_transform(engine.state.batch)
        self._tally.add(sources, labels)

    def epoch_completed(self, engine: Engine) -> None:
        """Logs, writes and keeps the epoch's figures."""
        stats = self._tally.stats(engine.state.epoch)
        self.history.append(stats)
        self.logger.info(str(stats))
        engine.state.metrics.update({f"synthetic_{name}": getattr(stats.total, name) for name in _FIGURES})
        if not hasattr(engine.state, "metric_details"):  # Ignite's own engine has none
            engine.state.metric_details = {}
        engine.state.metric_details["synthetic"] = stats
        if self.summary_writer is not None:
            for name, value in stats.scalars(self.tag).items():
                self.summary_writer.add_scalar(name, value, stats.epoch)
            self.summary_writer.flush()

    def _by_keys(self, batch: Any) -> tuple[Sequence[str], Any]:
        items = batch if isinstance(batch, list | tuple) else [batch]  # a list of items is a batch too, as MONAI decollates it
        for item in items:
            missing = [key for key in (self.source_key, self.label_key) if not isinstance(item, Mapping) or key not in item]
            if missing:
                found = sorted(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
                raise DataError(
                    f"batch: expected a dict with {self.source_key!r} and {self.label_key!r}, got {found}; set the keys, or batch_transform"
                )
        if items is not batch:
            return batch[self.source_key], batch[self.label_key]
        return [item[self.source_key] for item in items], [item[self.label_key] for item in items]


class _Tally:
    def __init__(self) -> None:
        self._items: Counter[tuple[int, str]] = Counter()
        self._samples: defaultdict[int, set[int]] = defaultdict(set)

    def add(self, sources: Sequence[str], labels: Any) -> None:
        classes = _classes(labels)
        if isinstance(sources, str) or len(sources) != len(classes):
            raise DataError(f"batch: expected a source for each of {len(classes)} labels, got {sources!r}")
        for source, label in zip(sources, classes, strict=True):
            kind, index = _parsed(source)
            self._items[label, kind] += 1
            if index is not None:
                self._samples[label].add(index)

    def stats(self, epoch: int) -> EpochStats:
        classes = sorted({label for label, _ in self._items})
        return EpochStats(epoch=epoch, total=self._counts(classes), by_class={label: self._counts([label]) for label in classes})

    def _counts(self, classes: Sequence[int]) -> ItemCounts:
        real, synthetic, mixed = (sum(self._items[label, kind] for label in classes) for kind in ("real", "synthetic", "mixed"))
        return ItemCounts(real=real, synthetic=synthetic, mixed=mixed, different=len(set().union(*(self._samples[label] for label in classes))))


def _parsed(source: Any) -> tuple[str, int | None]:
    """What an item's source says: its kind, and the sample's index in the bank."""
    kind, _, rest = source.partition(":") if isinstance(source, str) else ("", "", "")
    index = rest.partition(":")[0]
    if kind == "real" and not rest:
        return kind, None
    if kind in ("synthetic", "mixed") and index.isdecimal():
        return kind, int(index)
    raise DataError(f"batch: expected sources 'real', 'synthetic:INDEX' or 'mixed:INDEX:WEIGHT', got {source!r}")


def _classes(labels: Any) -> list[int]:
    """The class of each item of a batch."""
    try:
        rows = labels if isinstance(labels, torch.Tensor | np.ndarray) else torch.stack([torch.as_tensor(label) for label in labels])
        rows = torch.as_tensor(rows).detach().cpu().as_subclass(torch.Tensor).double()
        flat = rows.reshape(len(rows), -1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"batch: expected class labels as numbers or vectors, got {type(labels).__name__}: {error}") from error
    if flat.shape[1] != max(rows.shape[1:], default=1):
        raise DataError(f"batch: expected class labels, one number or vector an item, got shape {tuple(rows.shape)}")
    if flat.shape[1] > 1:
        flat = flat.argmax(1, keepdim=True).double()
    if not bool(((flat >= 0) & (flat == flat.round())).all()):
        raise DataError(f"batch: expected class labels, whole numbers from 0, got {flat[:, 0].tolist()}")
    return [int(label) for label in flat[:, 0].tolist()]
