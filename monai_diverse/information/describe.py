"""All scores of a set of samples at once, each beside what unseen real images score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.data import IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information.cells import evenly_spaced
from monai_diverse.information.codebook import Codebook, FittedCodebook, require_seed
from monai_diverse.information.diversity import rke, vendi_score
from monai_diverse.information.entropy import grassberger_entropy, kl_divergence, mutual_information, plug_in_entropy
from monai_diverse.information.gain import InformationGain
from monai_diverse.information.neighbours import DoubleArray, Neighbours
from monai_diverse.information.surprisal import Surprisal
from monai_diverse.information.unseen import good_turing, unseen_mass

FITTED_ON = 20_000
"""Codebooks see so many rows of a set, evenly spaced, or all where there are fewer."""
QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}
MEANING = {
    "information_gain": "what observing an image tells about a Gaussian process observed at the reference; each image on its own",
    "information_gain_of_set": "the same of all `size` images together: repeats add nothing",
    "surprisal_excess": "how much rarer an image is than the median unseen real one, by the density of the reference",
    "code_entropy": "how evenly the images spread over clusters of the reference",
    "code_divergence": "how differently from the reference the images spread over its clusters (KL divergence)",
    "code_label_information": "mutual information of cluster and label",
    "nearest_entropy": "how evenly the images spread over the reference images nearest to them; 0: all are nearest to the same one",
    "nearest_images": "how many different reference images are nearest to one of the `size` images",
    "vendi": "effective number of different images among `size`",
    "rke": "effective number of modes among `size`",
    "unseen_mass": "share of images in clusters that hold no reference image; the clusters are those of all sets together",
}
UNITS = {"nearest_images": "images", "vendi": "images", "rke": "modes", "unseen_mass": "share"}
STATEMENT = (
    "New relative to the reference under these features. Samples of a model carry no more information about the true distribution than "
    "its training images (data-processing inequality)."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledFeatures:
    """Features of a set of images.

    Attributes:
        features: (n, d), n from 1, finite.
        labels: int (n,).
        groups: int (n,), images of a group are alike (one patient, near-duplicates); None: every image its own.
    """

    features: npt.NDArray[np.floating[Any]]
    labels: IntArray
    groups: IntArray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.features, np.ndarray) or self.features.dtype.kind not in "fiu":
            raise DataError(f"features: expected a NumPy array of numbers (n, d), got {_kind(self.features)}; convert it")
        if self.features.ndim != 2 or not len(self.features) or not np.isfinite(self.features).all():
            raise DataError(f"features: expected finite rows (n, d), n from 1, got shape {self.features.shape}; drop rows that are not finite")
        for name, values in (("labels", self.labels), ("groups", self.groups)):
            if values is None and name == "groups":
                continue
            if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
                raise DataError(f"{name}: expected a NumPy array of whole numbers (n,), got {_kind(values)}; convert it")
            if values.shape != (len(self.features),):
                raise DataError(f"{name}: expected one for each of {len(self.features)} rows, got shape {values.shape}")

    def __len__(self) -> int:
        return len(self.features)

    def apart(self, seed: int) -> LabelledFeatures:
        """One image of each group, in their order here, chosen at random by `seed`; all where there are no groups."""
        if self.groups is None:
            return self
        shuffled = np.random.default_rng(seed).permutation(len(self))
        kept = np.sort(shuffled[np.unique(self.groups[shuffled], return_index=True)[1]])
        return LabelledFeatures(features=self.features[kept], labels=self.labels[kept])


@dataclass(frozen=True, kw_only=True)
class InformationSettings:
    """How sets are described.

    Attributes:
        codes: of the codebook for entropy, divergence and labels; None: the square root of the reference's groups, 2 to 64.
        unseen_codes: of the codebook for the unseen mass; None: a third of the reference's groups, at most 1024.
        gain_noise: as `noise` of `InformationGain`.
        most: images of a set that are compared with one another, evenly spaced, or all where there are fewer.
        level: of all intervals.
        seed: of the codebooks, and of the choice of one image a group; 0 to 2^32 - 1.
    """

    codes: int | None = None
    unseen_codes: int | None = None
    gain_noise: float = 0.1
    most: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("codes", "unseen_codes", "most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name}: expected at least 1, got {value}")
        if not self.gain_noise > 0:
            raise RecipeError(f"gain_noise: expected above 0, got {self.gain_noise}")
        if not 0 < self.level < 1:
            raise RecipeError(f"level: expected between 0 and 1, got {self.level}")
        require_seed(self.seed)


def describe_information(
    samples: LabelledFeatures | Mapping[str, LabelledFeatures],
    reference: LabelledFeatures,
    calibration: LabelledFeatures,
    *,
    settings: InformationSettings | None = None,
) -> dict[str, Any]:
    """All scores of `samples`, each beside the same score of `calibration`, which tells what new real images would score.

    Scores of a set are taken over one image of each of its groups; those that grow with the number of images over equally many of
    every set (`size`). Scores of single images are taken of all of them.

    Args:
        samples: what is described; or several sets by name, to be compared with one another.
        reference: what novelty is relative to.
        calibration: real images that neither the reference nor the features' fit holds.
        settings: None: the defaults.

    Returns:
        JSON: `statement`, `size`, `counts` of the images of each set, `level` of the intervals, `intrinsic_dimension` of the reference,
        `good_turing` (the missing mass of the reference, a share) and `scores`, by name {`meaning`, `unit`, `samples` (or the names
        given), `calibration`}. Scores of single images are given by their mean and quantiles.

    Raises:
        DataError: features of different widths, too few of them, or a set named `reference` or `calibration`.
    """
    chosen = settings or InformationSettings()
    named = {"samples": samples} if isinstance(samples, LabelledFeatures) else dict(samples)
    taken = sorted({"reference", "calibration"} & set(named))
    if taken:
        raise DataError(f"information: expected samples of another name than the real sets', got {taken[0]!r}; rename it")
    sets = named | {"calibration": calibration}
    widths = {data.features.shape[1] for data in (*sets.values(), reference)}
    if len(widths) > 1:
        raise DataError(f"information: expected features of one width, got {sorted(widths)}; use one extractor for all sets")
    apart, known = {name: data.apart(chosen.seed) for name, data in sets.items()}, reference.apart(chosen.seed)
    size = min(chosen.most, *(len(data) for data in apart.values()))
    scorer = _Scorer.fit(reference, known, calibration, chosen)
    missing, unseen = _unseen(apart, known, chosen)
    values = {name: scorer.scores(data, apart[name], size) | {"unseen_mass": unseen[name]} for name, data in sets.items()}
    return {
        "statement": STATEMENT,
        "size": size,
        "counts": {name: len(data) for name, data in (named | {"reference": reference, "calibration": calibration}).items()},
        "level": chosen.level,
        "intrinsic_dimension": scorer.surprisal.dimension,
        "good_turing": missing,
        "scores": {
            score: {"meaning": meaning, "unit": UNITS.get(score, "nats"), **{name: values[name][score] for name in sets}}
            for score, meaning in MEANING.items()
        },
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scorer:
    """What is fitted on the reference once, for all sets."""

    gain: InformationGain
    surprisal: Surprisal
    codebook: FittedCodebook
    known: IntArray
    index: Neighbours

    @classmethod
    def fit(cls, reference: LabelledFeatures, apart: LabelledFeatures, calibration: LabelledFeatures, settings: InformationSettings) -> _Scorer:
        rows, groups = reference.features, reference.groups
        codebook = Codebook(codes=settings.codes, seed=settings.seed).fit(_thinned(apart.features))
        return cls(
            gain=InformationGain(rows, groups=groups, noise=settings.gain_noise),
            surprisal=Surprisal(rows, calibration.features, groups=groups),
            codebook=codebook,
            known=codebook.histogram(apart.features),
            index=Neighbours(rows),
        )

    def scores(self, data: LabelledFeatures, apart: LabelledFeatures, size: int) -> dict[str, Any]:
        few = evenly_spaced(len(apart), size)
        rows, labels = apart.features[few], apart.labels[few]
        kernel = self.gain.kernel(rows.astype(np.float64), rows.astype(np.float64))
        counts, nearest = self.codebook.histogram(rows), np.unique(self.index.nearest(rows), return_counts=True)[1]
        return {
            "information_gain": _spread(self.gain.gain(data.features)),
            "information_gain_of_set": self.gain.of_set(rows),
            "surprisal_excess": _spread(self.surprisal.excess(data.features)),
            "code_entropy": grassberger_entropy(counts),
            "code_divergence": kl_divergence(counts, self.known),
            "code_label_information": mutual_information(_table(self.codebook.assign(rows), labels)),
            "nearest_entropy": plug_in_entropy(nearest),
            "nearest_images": len(nearest),
            "vendi": vendi_score(kernel),
            "rke": rke(kernel),
        }


def _unseen(sets: dict[str, LabelledFeatures], reference: LabelledFeatures, settings: InformationSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Missing mass of the reference, and the unseen mass of each other set; one image a group, as Good-Turing supposes independent draws."""
    known, others = _thinned(reference.features), {name: _thinned(data.features) for name, data in sets.items()}
    codes = settings.unseen_codes or int(np.clip(len(known) // 3, 1, 1024))
    codebook = Codebook(codes=codes, seed=settings.seed).fit(np.concatenate([known, *others.values()]))
    counts = codebook.histogram(known)
    masses = {name: unseen_mass(codebook.histogram(rows), counts, level=settings.level).as_json() for name, rows in others.items()}
    return good_turing(counts, level=settings.level).as_json(), masses


def _thinned(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    few: npt.NDArray[Any] = rows[evenly_spaced(len(rows), FITTED_ON)]
    return few


def _table(codes: IntArray, labels: IntArray) -> IntArray:
    table = np.zeros((int(codes.max()) + 1, len(np.unique(labels))), np.int64)
    np.add.at(table, (codes, np.unique(labels, return_inverse=True)[1]), 1)
    return table


def _kind(value: object) -> str:
    return f"{value.dtype} values" if isinstance(value, np.ndarray) else type(value).__name__


def _spread(values: npt.NDArray[Any]) -> dict[str, float]:
    finite: DoubleArray = values.astype(np.float64)
    return {"mean": float(finite.mean())} | {name: float(np.quantile(finite, q)) for name, q in QUANTILES.items()}
