"""Stopping by bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from monai_diverse.audit.stopping import BiasMonitor, BiasRecord, Stopping
from monai_diverse.data import FloatArray, IntArray, LabelledImages
from monai_diverse.errors import RecipeError
from monai_diverse.features import FeatureExtractor
from monai_diverse.handlers.base import Handler

if TYPE_CHECKING:
    from ignite.engine import Engine

FIGURES = ("bias", "own_nearer", "within")


class PrivacyStopping(Handler):
    """Ends the training of a generative model, or marks its checkpoints, when its samples lean towards the training patients.

    At the end of every `every`-th epoch, or after every `every`-th iteration, it asks for samples and compares how near they lie to training images
    and to as many held-out ones (`BiasMonitor`). It logs one line, leaves the figures in the engine's state, `metrics["privacy_bias"]` and
    `["privacy_own_nearer"]`, and `metric_details["privacy"]`, the `BiasRecord`, and writes a scalar if there is a writer. At events without a look
    these are removed, so that none is taken for the present model's.

    MONAI's `CheckpointSaver`, attached after it, can choose by `metrics["privacy_bias"]` (with `key_metric_negative_sign=True`), or by
    `["privacy_within"]`, which is 1 where the bias is within the tolerance, else 0. It asks for its key metric at the end of every epoch and fails
    where there is none, so look then, with `every=1`.

    In distributed training the first process alone draws samples and looks, and all take its record, so that they decide alike; `sample` must
    therefore call the network itself, not the wrapper that waits for the other processes.

    Args:
        sample: called with the engine; gives samples (m, c, *spatial) in [0, 1] and their classes (m,), of the averaged weights if there are such.
            Fixed seeds make looks comparable; some hundred samples make intervals short enough for a tolerance of .02.
        train: what the model is trained on.
        heldout: what it never sees, of other patients.
        groups: patients over both, train first; None: see `audit_model`.
        tolerance: largest bias that is accepted; .02: samples are 2 % nearer to training images than to unseen ones.
        every: epochs, or iterations, between looks.
        by_epoch: count epochs; False: iterations.
        stop: end the training; False: only mark.
        patience: looks in a row that must be beyond the tolerance before it ends, since each look is a test that can err.
        mirrored: see `BiasMonitor`, as the rest.
        features: where distances are taken.
        permutations: over patients, at each look.
        summary_writer: a `SummaryWriter` of torch.utils.tensorboard or tensorboardX. It stays open.
        name: of the logger; None for the engine's own.

    Attributes:
        records: a `BiasRecord` of each look.
        latest_within: iteration or epoch of the latest look within the tolerance before any beyond it: the checkpoint to keep; None if there is none.

    Raises:
        MissingExtraError: pytorch-ignite is not installed.
        RecipeError: a setting out of range.
        DataError: sets that do not fit each other; (in training) samples that do not fit them.
    """

    def __init__(
        self,
        sample: Callable[[Engine], tuple[Tensor | FloatArray, Tensor | IntArray]],
        train: LabelledImages,
        heldout: LabelledImages,
        groups: IntArray | None = None,
        *,
        tolerance: float = 0.02,
        every: int = 1,
        by_epoch: bool = True,
        stop: bool = True,
        patience: int = 2,
        mirrored: bool = False,
        features: FeatureExtractor | None = None,
        permutations: int = 199,
        summary_writer: Any = None,
        name: str | None = "monai_diverse.handlers.PrivacyStopping",
    ) -> None:
        super().__init__(name)
        if not callable(sample):
            raise RecipeError(f"sample: expected a callable that gives samples and their classes, got {type(sample).__name__}")
        if every < 1:
            raise RecipeError(f"every: expected at least 1, got {every}")
        if summary_writer is not None and not callable(getattr(summary_writer, "add_scalar", None)):
            raise RecipeError(f"summary_writer: expected a SummaryWriter with add_scalar, got {type(summary_writer).__name__}")
        self._monitor = BiasMonitor(train, heldout, groups, tolerance=tolerance, mirrored=mirrored, features=features, permutations=permutations)
        self._sample, self._every, self._by_epoch, self._stop = sample, every, by_epoch, stop
        self._stopping, self._writer = Stopping(patience=patience), summary_writer

    @property
    def records(self) -> list[BiasRecord]:
        """A `BiasRecord` of each look."""
        return self._stopping.records

    @property
    def latest_within(self) -> int | None:
        """The checkpoint to keep; None if there is none."""
        return self._stopping.latest_within

    def functions(self) -> Mapping[Any, Callable[[Engine], None]]:
        """What to call at which event."""
        return {self._events.EPOCH_COMPLETED if self._by_epoch else self._events.ITERATION_COMPLETED: self._turn}

    def look(self, engine: Engine) -> None:
        """Measures, and ends the run if it is time."""
        step = self._count(engine)
        record = _agreed(lambda: self._record(engine, step))
        over = self._stopping.add(record)
        self._report(engine, record)
        if over and self._stop:
            kept = "none was within it" if self.latest_within is None else f"the latest within it is {self.latest_within}"
            if _is_first():
                self.logger.warning(f"{self._unit}[{step}] bias beyond the tolerance: training ends; {kept}")
            engine.terminate()

    def _turn(self, engine: Engine) -> None:
        if self._count(engine) % self._every == 0:
            self.look(engine)
            return
        for key in FIGURES:
            engine.state.metrics.pop(f"privacy_{key}", None)
        getattr(engine.state, "metric_details", {}).pop("privacy", None)

    def _record(self, engine: Engine, step: int) -> BiasRecord:
        images, labels = (np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value) for value in self._sample(engine))
        return self._monitor.look(step, images.astype(np.float32), labels.astype(np.int64))

    def _count(self, engine: Engine) -> int:
        return int(engine.state.epoch if self._by_epoch else engine.state.iteration)

    @property
    def _unit(self) -> str:
        return "Epoch" if self._by_epoch else "Iteration"

    def _report(self, engine: Engine, record: BiasRecord) -> None:
        values = (record.bias.value, record.own_nearer.value, float(record.verdict.word == "within"))
        figures = dict(zip(FIGURES, values, strict=True))
        engine.state.metrics.update({f"privacy_{key}": value for key, value in figures.items()})
        if not hasattr(engine.state, "metric_details"):
            engine.state.metric_details = {}
        engine.state.metric_details["privacy"] = record
        if not _is_first():
            return
        self.logger.info(f"{self._unit}[{record.step}] {record}")
        if self._writer is not None:
            for key, value in figures.items():
                self._writer.add_scalar(f"privacy/{key}", value, record.step)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _is_first() -> bool:
    return not _is_distributed() or dist.get_rank() == 0


def _agreed(look: Callable[[], BiasRecord]) -> BiasRecord:
    """The first process's record; what it raises, all raise, so that none waits for it in vain."""
    if not _is_distributed():
        return look()
    found: list[BiasRecord | Exception | None] = [None]
    if _is_first():
        try:
            found = [look()]
        except Exception as error:
            found = [error]
    dist.broadcast_object_list(found, src=0)
    if not isinstance(found[0], BiasRecord):
        raise found[0] or RuntimeError("privacy: expected the first process's record, got none")
    return found[0]
