"""Could it be an image of this kind at all? Judged in other views than novelty, or the two would be one axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from sklearn.covariance import LedoitWolf

from monai_diverse.data import FloatArray, IntArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features import PCA, BlockExtractor, EfficientNetTextures, FeatureExtractor, FittedPCA
from monai_diverse.information.neighbours import DoubleArray, Neighbours
from monai_diverse.screening.calibrate import calibration_limit, check_level
from monai_diverse.screening.profiles import foreground_share, intensity_profile, otsu_threshold, spectral_profile
from monai_diverse.screening.tables import IN_MEMORY, Compute, Tables, fitted_rows
from monai_diverse.screening.views import Real, Views

SMALLEST = 1e-9
ROUNDING = 1e-4
"""Standard deviation, relative to the largest of a block, up to which a column of it is float32 rounding."""
FACTORS = ("mahalanobis", "residual", "leftover", "intensity", "spectrum", "foreground")
"""Measures with a factor of their own; the limits of textures are the calibration images' quantiles as they are."""


@dataclass(frozen=True, kw_only=True)
class OutlierGate:
    """Rejects what leaves the range of the real images in any of several measures.

    All are squared distances. `texture_*`: Mahalanobis distance of the early layers of a network from the mean, a measure each block (Lee et
    al., NeurIPS 2018), covariance shrunk (Ledoit & Wolf 2004). `mahalanobis`: the same in the principal components of the pixel view.
    `residual`: from the plane of those components. `leftover`: of the deep features from the plane of *their* components, so of just
    what the novelty gate cannot see (as in ViM, Wang et al. CVPR 2022). `intensity`, `spectrum` and `foreground`: of the intensity histogram,
    of the radial power spectrum and of the area (or volume) of the foreground mask from the k-th nearest of the reference.

    Each is compared with its quantile on the calibration images, times a factor.

    Attributes:
        textures: extractor of the texture measures; None: without them.
        texture_quantile: of the calibration images, in each block: the share of unseen real images that stay within it, at least.
        components: principal components of the pixel view, at most.
        quantile: of the calibration images, in each other measure.
        mahalanobis_factor: how many times the quantile is admissible (of squared distances).
        residual_factor: likewise.
        leftover_factor: likewise.
        intensity_factor: likewise.
        spectrum_factor: likewise.
        foreground_factor: likewise.
        neighbours: k of the histogram, spectrum and foreground distances, lowered where the reference is smaller.
        intensity_bins: of the histogram.
        spectrum_bins: rings of the spectrum.
        spectrum_floor: relative power below which spectra count as equal; 1e-4 is about what rounding to 8 bits leaves.
    """

    reason: ClassVar[str] = "outlier"
    textures: FeatureExtractor | None = field(default_factory=EfficientNetTextures)
    texture_quantile: float = 0.99
    components: int = 32
    quantile: float = 0.995
    mahalanobis_factor: float = 1.5
    residual_factor: float = 1.25
    leftover_factor: float = 1.25
    intensity_factor: float = 1.25
    spectrum_factor: float = 1.25
    foreground_factor: float = 1.25
    neighbours: int = 5
    intensity_bins: int = 32
    spectrum_bins: int = 16
    spectrum_floor: float = 1e-4

    def __post_init__(self) -> None:
        check_level("quantile", self.quantile)
        check_level("texture_quantile", self.texture_quantile)
        for name in ("components", "neighbours", "intensity_bins", "spectrum_bins"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in (*(f"{measure}_factor" for measure in FACTORS), "spectrum_floor"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name}: expected above 0, got {getattr(self, name)}")

    def fit(self, real: Real) -> FittedOutliers:
        """Fits the measures on the reference and reads their limits off the calibration images.

        Raises:
            DataError: a reference of fewer than two images or of equal ones, or no calibration images.
        """
        measures = _Measures.fit(self, real.reference, real.tables)
        groups = real.calibration.group_ids
        limits = {name: max(SMALLEST, self._limit(name, values, groups)) for name, values in measures.of(real.calibration).items()}
        return FittedOutliers(measures=measures, limits=limits)

    def _limit(self, name: str, values: DoubleArray, groups: IntArray) -> float:
        if name not in FACTORS:
            return calibration_limit(values, self.texture_quantile, groups)
        factor: float = getattr(self, f"{name}_factor")
        return factor * calibration_limit(values, self.quantile, groups)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measures:
    settings: OutlierGate
    textures: tuple[_Texture, ...]
    plane: FittedPCA
    covariance: LedoitWolf
    intensities: Neighbours
    spectra: Neighbours
    foreground: float
    areas: Neighbours

    @classmethod
    def fit(cls, settings: OutlierGate, reference: Views, tables: Tables) -> _Measures:
        images, rows = reference.images, fitted_rows(len(reference))
        pixels = reference.pixels if rows is None else reference.pixels[rows]
        plane = PCA(n_components=settings.components, whiten=False).fit(pixels)
        threshold = otsu_threshold(images)

        def index(name: str, how: list[float], compute: Compute) -> Neighbours:
            return Neighbours(tables.of(images, {name: how}, compute), folder=tables.folder)

        return cls(
            settings=settings,
            textures=tuple(_Texture.fit(block) for block in _blocks(settings.textures, images, tables, rows)),
            plane=plane,
            covariance=LedoitWolf().fit(plane.transform(pixels).astype(np.float64)),
            intensities=index("intensity", [settings.intensity_bins], lambda part: intensity_profile(part, settings.intensity_bins)),
            spectra=index(
                "spectrum",
                [settings.spectrum_bins, settings.spectrum_floor],
                lambda part: spectral_profile(part, settings.spectrum_bins, settings.spectrum_floor),
            ),
            foreground=threshold,
            areas=index("foreground", [threshold], lambda part: foreground_share(part, threshold)),
        )

    def of(self, views: Views) -> dict[str, DoubleArray]:
        s, k = self.settings, min(self.settings.neighbours, len(self.spectra))
        blocks = _blocks(s.textures, views.images)
        values = {f"texture_{i}": texture(block) for i, (texture, block) in enumerate(zip(self.textures, blocks, strict=True))}
        values |= {
            "mahalanobis": _mahalanobis(self.covariance, self.plane.transform(views.pixels)),
            "residual": self.plane.residual(views.pixels).astype(np.float64) ** 2,
            "intensity": self.intensities.distances(intensity_profile(views.images, s.intensity_bins), k)[:, -1] ** 2,
            "spectrum": self.spectra.distances(spectral_profile(views.images, s.spectrum_bins, s.spectrum_floor), k)[:, -1] ** 2,
            "foreground": self.areas.distances(foreground_share(views.images, self.foreground), k)[:, -1] ** 2,
        }
        return values if views.residual is None else values | {"leftover": views.residual.astype(np.float64) ** 2}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Texture:
    """Squared Mahalanobis distance of one block of vectors, each column divided by its standard deviation first.

    Columns that hardly vary are left out: a network's colour channels see nothing but rounding in grey images.
    """

    columns: IntArray
    mean: DoubleArray
    scale: DoubleArray
    covariance: LedoitWolf

    @classmethod
    def fit(cls, block: FloatArray) -> _Texture:
        deviation = block.std(axis=0, dtype=np.float64)
        columns = np.flatnonzero(deviation > ROUNDING * deviation.max())
        if not len(columns):
            raise DataError(f"outlier textures: expected reference images that differ, got {len(block)} alike; drop repeats or set textures to None")
        mean, scale = block[:, columns].mean(axis=0, dtype=np.float64), deviation[columns]
        return cls(columns=columns, mean=mean, scale=scale, covariance=LedoitWolf().fit((block[:, columns] - mean) / scale))

    def __call__(self, block: FloatArray) -> DoubleArray:
        return _mahalanobis(self.covariance, (block[:, self.columns] - self.mean) / self.scale)


def _blocks(extractor: FeatureExtractor | None, images: FloatArray, tables: Tables = IN_MEMORY, rows: IntArray | None = None) -> list[FloatArray]:
    if extractor is None:
        return []
    vectors = tables.of(images, {"textures": extractor.fingerprint}, extractor, rows)
    widths = extractor.widths(images.shape[1:]) if isinstance(extractor, BlockExtractor) else (vectors.shape[1],)
    return np.split(vectors, np.cumsum(widths)[:-1], axis=1)


def _mahalanobis(covariance: LedoitWolf, rows: FloatArray | DoubleArray) -> DoubleArray:
    if not len(rows):
        return np.zeros(0)
    squared: DoubleArray = covariance.mahalanobis(rows.astype(np.float64))
    return squared


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedOutliers:
    """Score: the largest of the measures, each relative to its limit.

    Attributes:
        measures: what is measured.
        limits: the largest admissible value of each measure.
    """

    measures: _Measures
    limits: Mapping[str, float]
    threshold: float = 1.0

    def ratios(self, views: Views) -> dict[str, FloatArray]:
        """Each measure (n,) relative to its limit; above 1 is out of distribution."""
        values = self.measures.of(views)
        missing = set(self.limits) - set(values)
        if missing:
            raise DataError(f"outliers: expected views with {sorted(missing)} as when the gate was fitted, got none; embed them alike")
        return {name: (values[name] / limit).astype(np.float32) for name, limit in self.limits.items()}

    def score(self, views: Views) -> FloatArray:
        """Scores (n,); above 1 is an outlier."""
        worst: FloatArray = np.max(list(self.ratios(views).values()), axis=0)
        return worst

    def notes(self) -> dict[str, Any]:
        """The limits, and how much of the reference's variance the plane holds."""
        return {"limits": dict(self.limits), "components": len(self.measures.plane.scale), "explained": self.measures.plane.explained}
