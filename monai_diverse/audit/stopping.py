"""Stopping by bias while a model trains: not at the lowest loss, but before samples lean towards the training patients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.audit.bias import Contrast, Effect
from monai_diverse.audit.distances import embedded
from monai_diverse.audit.sets import AuditSets
from monai_diverse.audit.verdict import BiasVerdict, check_tolerance
from monai_diverse.data import FloatArray, IntArray, LabelledImages, check_images, check_labels
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import FeatureExtractor, PixelFeatures
from monai_diverse.sources import DiffusersSource
from monai_diverse.storage import read_json, sha256_of, write_json
from monai_diverse.training import Progress, TrainConfig

RECORDS, WEIGHTS = "privacy.json", "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class BiasRecord:
    """The bias of a model in training, at one step.

    Attributes:
        step: of the training.
        verdict: see `BiasVerdict`: `within`, `beyond` or `unresolved`.
        own_nearer: chance that the nearest real image is a training image; .5 is neutral.
    """

    step: int
    verdict: BiasVerdict
    own_nearer: Effect

    @property
    def bias(self) -> Effect:
        """See `BiasVerdict`."""
        return self.verdict.bias

    def as_json(self) -> dict[str, Any]:
        """Figures with intervals, and the word."""
        return {"step": self.step, "word": self.verdict.word, "bias": self.bias.as_json(), "own_nearer": self.own_nearer.as_json()}

    def __str__(self) -> str:
        low, high = self.bias.ci
        return f"bias {self.bias.value:.4f} (95 % interval {low:.4f} to {high:.4f}, p = {self.bias.p:.2g}): {self.verdict.word}"


class BiasMonitor:
    """Holds samples of a model in training against its training images and held-out ones.

    Each look is a test of its own: over many looks some are `beyond` by chance, so `PrivacyStopping` waits for `patience` of them in a row.

    Args:
        train: what the model is trained on.
        heldout: what it never sees, of other patients. Its validation images serve, if they choose nothing else.
        groups: see `audit_model`.
        tolerance: largest bias that is accepted.
        mirrored: whether a mirrored image counts as the same, for models that are trained on mirrored images.
        features: see `audit_model`.
        permutations: over patients, at each look.
        twin_correlation: see `audit_model`.
        seed: of permutations and blocks.

    Raises:
        DataError: sets that do not fit each other, or too few groups of a class.
        RecipeError: a setting out of range.
    """

    def __init__(
        self,
        train: LabelledImages,
        heldout: LabelledImages,
        groups: IntArray | None = None,
        *,
        tolerance: float = 0.02,
        mirrored: bool = False,
        features: FeatureExtractor | None = None,
        permutations: int = 199,
        twin_correlation: float = 0.95,
        seed: int = 0,
    ) -> None:
        check_tolerance(tolerance)
        self.tolerance, self.mirrored, self.features = tolerance, mirrored, features or PixelFeatures()
        self._random = {"permutations": permutations, "seed": seed}
        self.sets = AuditSets.of(train, heldout, groups, twin_correlation, mirrored=mirrored)
        self.contrast: Contrast = self.sets.contrast(self.features, permutations, seed)
        self.contrast.require(np.unique(train.labels))

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides a look beside the samples, but for the tolerance, as JSON."""
        hashes = [part.sha256(groups=True) for part in (self.sets.train, self.sets.heldout)]
        return {"data_sha256": hashes, "features": self.features.fingerprint, "mirrored": self.mirrored, **self._random}

    def look(self, step: int, images: FloatArray, labels: IntArray) -> BiasRecord:
        """The bias of samples (m, c, *spatial) in [0, 1] of these classes (m,).

        Raises:
            DataError: images of another shape or range, or classes that the training images have none of.
        """
        checked, shape = check_images(images, "samples"), self.sets.train.images.shape[1:]
        if checked.shape[1:] != shape:
            raise DataError(f"samples: expected images of the training images' shape {shape}, got {checked.shape[1:]}")
        known = check_labels(labels, len(checked), int(self.sets.train.labels.max()) + 1, "samples' classes")
        effects = self.contrast.of(embedded(self.features, checked, mirrored=self.mirrored), known).effects()
        return BiasRecord(step=step, verdict=BiasVerdict.of(effects["bias"], self.tolerance, f"step {step}"), own_nearer=effects["own_nearer"])


@dataclass
class Stopping:
    """Decides from look to look.

    Attributes:
        patience: looks in a row that must be `beyond` before training ends.
        records: of all looks, in order.
    """

    patience: int = 2
    records: list[BiasRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise RecipeError(f"patience: expected at least 1 look, got {self.patience}")

    def add(self, record: BiasRecord) -> bool:
        """Takes a look into account; True once training should end."""
        self.records.append(record)
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` looks were all `beyond`."""
        last = self.records[-self.patience :]
        return len(last) == self.patience and all(record.verdict.word == "beyond" for record in last)

    @property
    def latest_within(self) -> int | None:
        """Step of the latest look that was `within` before the first that was `beyond`; None if there is none."""
        step = None
        for record in self.records:
            if record.verdict.word == "beyond":
                break
            step = record.step if record.verdict.word == "within" else step
        return step


def watch(
    steps: Iterator[Progress],
    out: Path,
    config: TrainConfig,
    monitor: BiasMonitor,
    *,
    images: int = 500,
    patience: int = 2,
    draw: Callable[[Path, IntArray, IntArray], FloatArray] | None = None,
) -> Iterator[tuple[Progress, BiasRecord | None]]:
    """Runs `training.train` and looks at the bias of each of its snapshots; ends when `patience` of them in a row are beyond the tolerance.

    Looks are kept in `privacy.json` beside the model, so that a training that is taken up again does not repeat them; looks at other weights, or
    against other images, are dropped.

    Args:
        steps: `train(data, out, config)`, whose `config.snapshots` say when to look.
        out: its folder.
        config: its settings.
        monitor: what the bias is measured against.
        images: samples a look, with classes by the training set's shares.
        patience: see `Stopping`.
        draw: (folder of the snapshot, labels, seeds) -> images (n, c, *spatial) in [0, 1]; None: `DiffusersSource` in 20 steps.

    Yields:
        (progress, record), the record where there was a look.

    Raises:
        RecipeError: no snapshots, or outside the training; or a model that is trained on mirrored images and a monitor that is not told so.
        DataError: see `BiasMonitor.look`; or looks that cannot be read.
    """
    _check(config, monitor)
    train = monitor.sets.train.labels
    labels = np.sort(train)[((np.arange(images) + 0.5) * len(train) / images).astype(np.int64)]
    looks = _Looks.of(out, monitor, images)
    stopping, draw = Stopping(patience=patience), draw or partial(_draw, config.device)
    begun = False
    for progress in steps:
        if not begun:  # looks of an earlier run
            for step in sorted(step for step in looks.kept if step < progress.step):
                earlier = looks.at(step)
                stopping.records += [] if earlier is None else [earlier]
            begun = True
        record = None
        if progress.step in config.snapshots:
            record = looks.at(progress.step)
            if record is None:
                record = monitor.look(progress.step, draw(looks.folder(progress.step), labels, np.arange(images)), labels)
            stopping.add(record)
            looks.keep(stopping)
        yield progress, record
        if stopping.exhausted:
            return


def _check(config: TrainConfig, monitor: BiasMonitor) -> None:
    if not config.snapshots:
        raise RecipeError("snapshots: expected the steps at which to look at the bias, got none; set TrainConfig.snapshots")
    if min(config.snapshots) < 1 or max(config.snapshots) > config.steps:
        raise RecipeError(f"snapshots: expected steps in 1..{config.steps}, got {min(config.snapshots)}..{max(config.snapshots)}")
    if config.mirror != monitor.mirrored:
        raise RecipeError(f"mirrored: expected {config.mirror}, as TrainConfig.mirror, got {monitor.mirrored}; give BiasMonitor the same")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Looks:
    """The looks that `privacy.json` holds."""

    out: Path
    monitor: BiasMonitor
    identity: dict[str, Any]
    kept: dict[int, dict[str, Any]]

    @classmethod
    def of(cls, out: Path, monitor: BiasMonitor, images: int) -> _Looks:
        identity = monitor.identity | {"images": images}
        if not (out / RECORDS).exists():
            return cls(out=out, monitor=monitor, identity=identity, kept={})
        content = read_json(out / RECORDS)
        try:
            kept = {look["step"]: look for look in content["looks"]}
            for look in kept.values():
                _record(look, monitor.tolerance)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{out / RECORDS}: expected looks at a training's bias, but it cannot be read; delete it to look again") from error
        same = content.get("monitor") == identity
        return cls(out=out, monitor=monitor, identity=identity, kept=kept if same else {})

    def folder(self, step: int) -> Path:
        return self.out / "snapshots" / f"{step:06d}"

    def at(self, step: int) -> BiasRecord | None:
        """An earlier look at the weights that are there now."""
        look = self.kept.get(step)
        return None if look is None or look.get("weights") != self._weights(step) else _record(look, self.monitor.tolerance)

    def keep(self, stopping: Stopping) -> None:
        for record in stopping.records:
            self.kept[record.step] = record.as_json() | {"weights": self._weights(record.step)}
        looks = [self.kept[record.step] for record in stopping.records]
        about = {"monitor": self.identity, "tolerance": self.monitor.tolerance, "latest_within": stopping.latest_within}
        write_json(self.out / RECORDS, about | {"looks": looks})

    def _weights(self, step: int) -> str | None:
        file = self.folder(step) / "unet" / WEIGHTS
        return sha256_of(file) if file.exists() else None


def _draw(device: str, folder: Path, labels: IntArray, seeds: IntArray) -> FloatArray:
    return DiffusersSource(folder, device=device).sample(labels, seeds).numpy()


def _record(look: dict[str, Any], tolerance: float) -> BiasRecord:
    bias, nearer = (Effect(value=e["value"], ci=(e["ci"][0], e["ci"][1]), p=e.get("p")) for e in (look["bias"], look["own_nearer"]))
    return BiasRecord(step=look["step"], verdict=BiasVerdict.of(bias, tolerance, f"step {look['step']}"), own_nearer=nearer)
