"""All scores of a set of samples at once, each beside what unseen real images score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

from monai_diverse.data import IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.information.cells import evenly_spaced
from monai_diverse.information.codebook import Codebook, FittedCodebook
from monai_diverse.information.diversity import rke, vendi_score
from monai_diverse.information.entropy import grassberger_entropy, kl_divergence, mutual_information
from monai_diverse.information.gain import InformationGain
from monai_diverse.information.ksg import ksg_mutual_information
from monai_diverse.information.neighbours import DoubleArray, Neighbours
from monai_diverse.information.surprisal import Surprisal
from monai_diverse.information.unseen import good_turing, unseen_mass

FITTED_ON = 20_000
"""Codebooks and components see so many rows of a set, evenly spaced, or all where there are fewer."""
QUANTILES = {"q05": 0.05, "median": 0.5, "q95": 0.95}
MEANING = {
    "information_gain": "what observing a sample tells about a Gaussian process observed at the reference; each sample on its own",
    "information_gain_of_set": "the same of `size` samples together: repeats add nothing",
    "surprisal_excess": "how much rarer a sample is than the median unseen real image, by the density of the reference",
    "code_entropy": "entropy of the codes; the codebook is fitted on the reference",
    "code_divergence": "KL divergence of the samples' codes from the reference's",
    "code_label_information": "mutual information of code and label",
    "nearest_information": "mutual information of an image and its nearest reference image, in the leading components; copies have most",
    "vendi": "effective number of different images among `size`",
    "rke": "effective number of modes among `size`",
    "unseen_mass": "share of images with a code that the reference lacks; the codebook is fitted on all three sets together",
}
UNITS = {"vendi": "images", "rke": "modes", "unseen_mass": "share"}
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
        if self.features.ndim != 2 or not len(self.features) or not np.isfinite(self.features).all():
            raise DataError(f"features: expected finite rows (n, d), n from 1, got shape {self.features.shape}; drop rows that are not finite")
        for name, values in (("labels", self.labels), ("groups", self.groups)):
            if values is not None and values.shape != (len(self.features),):
                raise DataError(f"{name}: expected one for each of {len(self.features)} rows, got shape {values.shape}")

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True, kw_only=True)
class InformationSettings:
    """How sets are described.

    Attributes:
        codes: of the codebook for entropy, divergence and labels; None: the square root of the reference's size.
        unseen_codes: of the codebook for the unseen mass; None: a third of the reference's groups, at most 1024.
        ksg_components: leading principal components of the reference in which mutual information is estimated.
        ksg_neighbours: k of that estimate.
        gain_noise: as `noise` of `InformationGain`.
        most: images of a set that are compared with one another, evenly spaced, or all where there are fewer.
        level: of all intervals.
        seed: of the codebooks.
    """

    codes: int | None = None
    unseen_codes: int | None = None
    ksg_components: int = 3
    ksg_neighbours: int = 3
    gain_noise: float = 0.1
    most: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("codes", "unseen_codes", "ksg_components", "ksg_neighbours", "most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name}: expected at least 1, got {value}")
        if not self.gain_noise > 0:
            raise RecipeError(f"gain_noise: expected above 0, got {self.gain_noise}")
        if not 0 < self.level < 1:
            raise RecipeError(f"level: expected between 0 and 1, got {self.level}")


def describe_information(
    samples: LabelledFeatures, reference: LabelledFeatures, calibration: LabelledFeatures, *, settings: InformationSettings | None = None
) -> dict[str, Any]:
    """All scores of `samples`, each beside the same score of `calibration`, which tells what new real images would score.

    Scores that grow with the number of images are taken over equally many of both sets (`size`).

    Args:
        samples: what is described.
        reference: what novelty is relative to.
        calibration: real images that neither the reference nor the features' fit holds.
        settings: None: the defaults.

    Returns:
        JSON: `statement`, `size`, `counts` of the sets, `level` of the intervals, `intrinsic_dimension` of the reference, `good_turing` (the missing
        mass of the reference, a share) and `scores`, by name {`meaning`, `unit`, `samples`, `calibration`}. Scores of single images are
        given by their mean and quantiles. A score that cannot be computed is None.

    Raises:
        DataError: features of different widths, or too few of them.
    """
    chosen = settings or InformationSettings()
    widths = {data.features.shape[1] for data in (samples, reference, calibration)}
    if len(widths) > 1:
        raise DataError(f"information: expected features of one width, got {sorted(widths)}; use one extractor for all sets")
    size = min(len(samples), len(calibration), chosen.most)
    scorer = _Scorer.fit(reference, calibration, chosen)
    missing, unseen = _unseen(samples, reference, calibration, chosen)
    sets = {"samples": samples, "calibration": calibration}
    values = {name: scorer.scores(data, size) | {"unseen_mass": unseen[name]} for name, data in sets.items()}
    return {
        "statement": STATEMENT,
        "size": size,
        "counts": {"samples": len(samples), "reference": len(reference), "calibration": len(calibration)},
        "level": chosen.level,
        "intrinsic_dimension": scorer.surprisal.dimension,
        "good_turing": missing,
        "scores": {
            score: {"meaning": MEANING[score], "unit": UNITS.get(score, "nats"), **{name: values[name][score] for name in sets}} for score in MEANING
        },
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scorer:
    """What is fitted on the reference once, for both sets."""

    settings: InformationSettings
    gain: InformationGain
    surprisal: Surprisal
    codebook: FittedCodebook
    known: IntArray
    index: Neighbours
    reference: npt.NDArray[Any]
    components: PCA

    @classmethod
    def fit(cls, reference: LabelledFeatures, calibration: LabelledFeatures, settings: InformationSettings) -> _Scorer:
        rows, groups = reference.features, reference.groups
        few = rows[evenly_spaced(len(rows), FITTED_ON)]
        codebook = Codebook(codes=settings.codes, seed=settings.seed).fit(few)
        components = min(settings.ksg_components, *few.shape)
        return cls(
            settings=settings,
            gain=InformationGain(rows, groups=groups, noise=settings.gain_noise),
            surprisal=Surprisal(rows, calibration.features, groups=groups),
            codebook=codebook,
            known=codebook.histogram(rows),
            index=Neighbours(rows),
            reference=rows,
            components=PCA(components, whiten=True, random_state=settings.seed).fit(few),
        )

    def scores(self, data: LabelledFeatures, size: int) -> dict[str, Any]:
        few = evenly_spaced(len(data), size)
        rows, labels = data.features[few], data.labels[few]
        kernel = self.gain.kernel(rows.astype(np.float64), rows.astype(np.float64))
        counts = self.codebook.histogram(rows)
        return {
            "information_gain": _spread(self.gain.gain(data.features)),
            "information_gain_of_set": self.gain.of_set(rows),
            "surprisal_excess": _spread(self.surprisal.excess(data.features)),
            "code_entropy": grassberger_entropy(counts),
            "code_divergence": kl_divergence(counts, self.known),
            "code_label_information": mutual_information(_table(self.codebook.assign(rows), labels)),
            "nearest_information": self._nearest_information(rows),
            "vendi": vendi_score(kernel),
            "rke": rke(kernel),
        }

    def _nearest_information(self, rows: npt.NDArray[Any]) -> float | None:
        nearest = self.reference[self.index.nearest(rows)]
        try:
            return ksg_mutual_information(self.components.transform(rows), self.components.transform(nearest), self.settings.ksg_neighbours)
        except DataError:  # too few images, or repeats among them
            return None


def _unseen(
    samples: LabelledFeatures, reference: LabelledFeatures, calibration: LabelledFeatures, settings: InformationSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Missing mass of the reference, and the unseen mass of both other sets."""
    samples, reference, calibration = (_thinned(data) for data in (samples, reference, calibration))
    groups = len(reference) if reference.groups is None else len(np.unique(reference.groups))
    codes = settings.unseen_codes or int(np.clip(groups // 3, 1, 1024))
    together = np.concatenate([reference.features, calibration.features, samples.features])
    codebook = Codebook(codes=codes, seed=settings.seed).fit(together)
    known = codebook.histogram(reference.features, reference.groups)
    masses = {
        name: unseen_mass(codebook.histogram(data.features, data.groups), known, level=settings.level).as_json()
        for name, data in (("samples", samples), ("calibration", calibration))
    }
    return good_turing(known, level=settings.level).as_json(), masses


def _thinned(data: LabelledFeatures) -> LabelledFeatures:
    kept = evenly_spaced(len(data), FITTED_ON)
    return LabelledFeatures(features=data.features[kept], labels=data.labels[kept], groups=None if data.groups is None else data.groups[kept])


def _table(codes: IntArray, labels: IntArray) -> IntArray:
    table = np.zeros((int(codes.max()) + 1, len(np.unique(labels))), np.int64)
    np.add.at(table, (codes, np.unique(labels, return_inverse=True)[1]), 1)
    return table


def _spread(values: npt.NDArray[Any]) -> dict[str, float]:
    finite: DoubleArray = values.astype(np.float64)
    return {"mean": float(finite.mean())} | {name: float(np.quantile(finite, q)) for name, q in QUANTILES.items()}
