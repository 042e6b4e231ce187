"""All gates together: fit once on real images, then judge any others."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, overload

import numpy.typing as npt

from monai_diverse.data import LabelledImages, near_duplicate_groups
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import EfficientNetLite0, FeatureExtractor
from monai_diverse.information import InformationGain, Neighbours, Surprisal
from monai_diverse.screening.accepted import AcceptedViews
from monai_diverse.screening.assessment import Assessment, decide
from monai_diverse.screening.calibrate import check_level
from monai_diverse.screening.controls import Controls, judge_controls
from monai_diverse.screening.copies import CopyGate
from monai_diverse.screening.duplicates import DuplicateGate, FittedDuplicates
from monai_diverse.screening.embedding import Embedding
from monai_diverse.screening.gate import FittedGate, Gate
from monai_diverse.screening.novelty import NoveltyGate
from monai_diverse.screening.outliers import OutlierGate
from monai_diverse.screening.relevance import RelevanceGate
from monai_diverse.screening.sets import require_disjoint, summaries
from monai_diverse.screening.tables import Tables
from monai_diverse.screening.verdict import REASONS, Verdict
from monai_diverse.screening.views import FittedOn, Real, Views, check_fitted_on, require_known
from monai_diverse.screening.yields import Yield
from monai_diverse.storage import fingerprint_of

MAX_GROUPED = 20_000


@dataclass(frozen=True, kw_only=True)
class NoveltyScreen:
    """Settings of the screen.

    Attributes:
        extractor: turns images into features; best one that no sampler was guided by.
        components: whitened principal components of the features, at most.
        fitted_on: whose principal components: the `reference`'s, or those of `generator_train`, where that is known: a small reference has few.
        pixel_side: largest side of the low-resolution pixel view.
        copy: the gate for copies.
        novelty: the gate for what is not novel.
        relevance: the gate for what is not of its class.
        outlier: the gate for what is out of distribution.
        duplicate: the gate for repeats of accepted samples.
        gain_noise: noise variance of the process behind `information_gain`, relative to its prior.
        twin_correlation: images that are given without groups are grouped with those that they nearly repeat: pixels that correlate above this. None:
            every image is its own group; so it is in sets of more than 20,000, whose images are not compared with one another.
        folder: where features, pixels and indices of more than 50,000 real images are kept as files, found again by the images and the settings, and
            searched from there (needs the extra `faiss`); give images as a memory map then. Verdicts are the same; None: in memory. Nothing is ever
            deleted from it, and it may be deleted when no process uses it.
    """

    extractor: FeatureExtractor = field(default_factory=EfficientNetLite0)
    components: int = 48
    fitted_on: FittedOn = "reference"
    pixel_side: int = 32
    copy: Gate = field(default_factory=CopyGate)
    novelty: Gate = field(default_factory=NoveltyGate)
    relevance: Gate = field(default_factory=RelevanceGate)
    outlier: Gate = field(default_factory=OutlierGate)
    duplicate: DuplicateGate = field(default_factory=DuplicateGate)
    gain_noise: float = 0.1
    twin_correlation: float | None = 0.95
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        if self.components < 1:
            raise RecipeError(f"components: expected at least 1, got {self.components}")
        check_fitted_on(self.fitted_on)
        if self.pixel_side < 2:
            raise RecipeError(f"pixel_side: expected at least 2, got {self.pixel_side}")
        if not self.gain_noise > 0:
            raise RecipeError(f"gain_noise: expected above 0, got {self.gain_noise}")
        if self.twin_correlation is not None:
            check_level("twin_correlation", self.twin_correlation)
        for gate, reason in zip(self.gates, REASONS, strict=True):
            if not isinstance(gate, Gate):
                raise RecipeError(f"{reason}: expected a gate, got {gate!r}; in a recipe write target: with its class, and arguments:")
            if gate.reason != reason:
                raise RecipeError(f"gates: expected one with reason '{reason}', got {type(gate).__name__} with reason '{gate.reason}'")

    @property
    def gates(self) -> tuple[Gate, Gate, Gate, Gate, DuplicateGate]:
        """In the order of `REASONS`."""
        return self.copy, self.novelty, self.relevance, self.outlier, self.duplicate

    def settings(self) -> dict[str, Any]:
        """Everything that was chosen, as JSON."""
        gates = {gate.reason: {f.name: _plain(getattr(gate, f.name)) for f in fields(gate)} for gate in self.gates}
        numbers = {name: getattr(self, name) for name in ("components", "fitted_on", "pixel_side", "gain_noise", "twin_correlation")}
        return {"extractor": _plain(self.extractor), **numbers, "gates": gates}

    def fit(self, reference: LabelledImages | None, calibration: LabelledImages, generator_train: LabelledImages | None = None) -> FittedScreen:
        """Learns what is known and what unseen real images look like.

        Args:
            reference: what the user has; None: they have what the generator was trained on, and novelty is relative to that.
            calibration: real images of the same kind that neither the reference nor the generator's training holds, split off by
                patient or near-duplicate group.
            generator_train: what the generator was trained on, mirrored copies included if it was trained on those; None: unknown.

        Raises:
            DataError: neither reference nor `generator_train`, shapes that differ, labels that the reference lacks,
                calibration images that another set holds too, or too few images for the settings.
        """
        same = generator_train is reference
        reference, calibration = self._grouped(reference), self._grouped(calibration)
        generator_train = reference if same else self._grouped(generator_train)
        sets = {"reference": reference, "calibration": calibration, "generator_train": generator_train}
        reference = generator_train if reference is None else reference
        if reference is None:
            raise DataError("screen: expected a reference, or what the generator was trained on to stand in for it, got neither")
        require_disjoint(reference, calibration, generator_train)
        fitted_on = generator_train if self.fitted_on == "generator_train" and generator_train is not None else reference
        tables = Tables(None if self.folder is None else Path(self.folder))
        embedding, views = Embedding.fit(self.extractor, fitted_on, components=self.components, pixel_side=self.pixel_side, tables=tables)

        def seen_as(data: LabelledImages) -> Views:
            return views if data is fitted_on else embedding.views(data, tables)

        own = seen_as(reference)
        known = None if generator_train is None else own if generator_train is reference else seen_as(generator_train)
        real = Real(reference=own, calibration=embedding.views(calibration), generator_train=known, tables=tables)
        return FittedScreen(
            real=real,
            settings=self.settings(),
            sets=summaries(sets),
            embedding=embedding,
            classes=real.classes,
            gates={gate.reason: gate.fit(real) for gate in self.gates[:-1]},
            duplicates=self.duplicate.fit(real),
            gain=InformationGain(own.features, groups=own.groups, noise=self.gain_noise, folder=tables.folder),
            surprisal=Surprisal(own.features, real.calibration.features, groups=own.groups, folder=tables.folder),
            seen=Neighbours(real.seen.features, folder=tables.folder),
        )

    @overload
    def _grouped(self, data: LabelledImages) -> LabelledImages: ...
    @overload
    def _grouped(self, data: None) -> None: ...
    def _grouped(self, data: LabelledImages | None) -> LabelledImages | None:
        if data is None or data.groups is not None or self.twin_correlation is None or len(data) > MAX_GROUPED:
            return data
        return replace(data, groups=near_duplicate_groups(data.images, self.twin_correlation))


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedScreen:
    """Judges images; judging changes nothing in it. Made by `NoveltyScreen.fit`.

    Attributes:
        real: the images that it was fitted on, as gates see them.
        settings: what was chosen, as JSON.
        sets: hash and class counts of the images it was fitted on, as JSON; None for a `reference` or `generator_train` that is unknown.
        embedding: images to views.
        classes: the classes that can be judged.
        gates: the fitted gates by reason, duplicates aside.
        duplicates: the fitted gate that also looks at what was accepted.
        gain: the process observed at the reference.
        surprisal: relative to the calibration images.
        seen: features of `generator_train`, or of the reference where that is unknown.
    """

    real: Real
    settings: dict[str, Any]
    sets: dict[str, dict[str, Any] | None]
    embedding: Embedding
    classes: tuple[int, ...]
    gates: dict[str, FittedGate]
    duplicates: FittedDuplicates
    gain: InformationGain
    surprisal: Surprisal
    seen: Neighbours

    @property
    def fingerprint(self) -> str:
        """Changes with the extractor, any setting and any image, label or group that the screen was fitted on."""
        return fingerprint_of({"settings": self.settings, "sets": self.sets})

    @property
    def against(self) -> dict[str, str]:
        """Which set novelty and copies are judged against: `reference` and `generator_train`, or what stands in for one that is unknown."""
        known = {name: data is not None for name, data in self.sets.items()}
        return {
            "novelty": "reference" if known["reference"] else "generator_train",
            "copies": "generator_train" if known["generator_train"] else "reference",
        }

    def embed(self, images: npt.ArrayLike, labels: npt.ArrayLike) -> Views:
        """Views of images (n, channels, *spatial) in [0, 1] with labels (n,), n from 0.

        Raises:
            DataError: images of another shape than the reference's, wrong values, or labels that the reference lacks.
        """
        views = self.embedding.views_of(images, labels)
        require_known(views.labels, self.classes)
        return views

    def judge(self, views: Views, accepted: Views | AcceptedViews | None = None) -> list[Verdict]:
        """Judges images in order: each is compared with the accepted ones, and with those that are accepted before it.

        Args:
            views: what `embed` gave.
            accepted: views of samples that were accepted earlier; as `AcceptedViews` where these become more and more.

        Returns:
            One verdict an image; those of a batch and of its parts in turn are the same.
        """
        return self.decide(views, self.assess(views), accepted) if len(views) else []

    def assess(self, views: Views) -> Assessment:
        """The part of `judge` that looks at each of views (n from 1) alone, and so can be done anywhere, in any order."""
        scores = {reason: gate.score(views) for reason, gate in self.gates.items()}
        return Assessment(scores=scores, surprisal=self.surprisal.excess(views.features), nearest=self.seen.nearest(views.features))

    def decide(self, views: Views, assessment: Assessment, accepted: Views | AcceptedViews | None = None) -> list[Verdict]:
        """The part of `judge` that must be done in order: repeats and information gain, given what was accepted before.

        Gains are given the first `OBSERVED` accepted samples; where there are more, they are bounds from above.
        """
        known = AcceptedViews.of(accepted)
        gain = (self.gain if known.first is None else self.gain.given(known.first)).track(views.features)
        limits = {reason: gate.threshold for reason, gate in self.gates.items()}
        return decide(views, assessment, known, limits=limits, duplicates=self.duplicates, gain=gain)

    def screen(self, images: npt.ArrayLike, labels: npt.ArrayLike, accepted: Views | None = None) -> list[Verdict]:
        """`embed`, then `judge`."""
        return self.judge(self.embed(images, labels), accepted)

    def for_judging(self) -> FittedScreen:
        """The same screen without the images that it was fitted on, which may be large; `controls` then refuses."""
        nothing = self.real.reference[:0]
        return replace(self, real=Real(reference=nothing, calibration=nothing))

    def without(self, *reasons: str) -> FittedScreen:
        """The same screen without some of its gates, for ablations; verdicts then lack their scores.

        Raises:
            RecipeError: a reason that no gate has; duplicates are always rejected.
        """
        unknown = [reason for reason in reasons if reason not in self.gates]
        if unknown:
            raise RecipeError(f"without: expected some of {', '.join(self.gates)}, got {unknown[0]!r}")
        gates = {reason: gate for reason, gate in self.gates.items() if reason not in reasons}
        return replace(self, gates=gates, settings=self.settings | {"without": sorted(reasons)})

    def yield_of(self, images: LabelledImages) -> Yield:
        """What unseen real images would score, as a control: judged in order, duplicates among themselves rejected.

        Raises:
            DataError: as `embed`.
        """
        return Yield(drawn=len(images), accepted=sum(v.accepted for v in self.screen(images.images, images.labels)))

    def controls(
        self,
        unseen: LabelledImages,
        *,
        generated: LabelledImages | None = None,
        other: npt.ArrayLike | None = None,
        count: int = 500,
        seed: int = 0,
    ) -> Controls:
        """What the screen makes of images whose worth is known: unseen real ones, noise, near-copies, wrong labels; see `control_rows`."""
        return judge_controls(self, unseen, generated=generated, other=other, count=count, seed=seed)

    def describe(self) -> dict[str, Any]:
        """Settings, data, thresholds and what each gate found when it was fitted, as JSON."""
        gates: dict[str, FittedGate] = {**self.gates, "duplicate": self.duplicates}
        components = self.embedding.components
        return {
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "sets": self.sets,
            "against": self.against,
            # an index may miss a neighbour, so a verdict near a limit may differ from that of a machine without FAISS
            "neighbours": {"rows": len(self.seen), "exact": self.seen.exact, "recall": 1.0 if self.seen.exact else self.seen.recall()},
            "features": {"components": len(components.scale), "explained": components.explained},
            "gates": {reason: {"threshold": gate.threshold, **gate.notes()} for reason, gate in gates.items()},
            "information_gain": {"lengthscale": self.gain.lengthscale, "noise": self.gain.noise, "points": len(self.gain)},
            "surprisal": {"dimension": self.surprisal.dimension, "typical_distance": self.surprisal.typical},
        }


def _plain(value: Any) -> Any:
    """A setting as JSON: an extractor by its name and what its vectors follow from."""
    return {"name": value.name, "fingerprint": value.fingerprint} if isinstance(value, FeatureExtractor) else value
