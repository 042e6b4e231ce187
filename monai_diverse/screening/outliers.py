"""Could it be an image of this kind at all? Judged in other views than novelty, or the two would be one axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.covariance import LedoitWolf

from monai_diverse.data import FloatArray
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.features.pca import PCA, FittedPCA
from monai_diverse.information.neighbours import DoubleArray, Neighbours
from monai_diverse.screening.calibrate import calibration_limit, check_level
from monai_diverse.screening.profiles import intensity_profile, spectral_profile
from monai_diverse.screening.views import Real, Views

SMALLEST = 1e-9


@dataclass(frozen=True, kw_only=True)
class OutlierGate:
    """Rejects what leaves the range of the real images, times a factor, in any of five measures.

    All are squared distances. `mahalanobis`: from the mean in the principal components of the pixel view, covariance shrunk (Ledoit & Wolf
    2004). `residual`: from the plane of those components. `leftover`: of the deep features from the plane of *their* components, so
    of just what the novelty gate cannot see (as in ViM, Wang et al. CVPR 2022). `intensity` and `spectrum`: of the intensity histogram
    and of the radial power spectrum from the k-th nearest of the reference. Each is compared with its `quantile` on the calibration images.

    Attributes:
        components: principal components of the pixel view, at most.
        quantile: of the calibration images, in each measure.
        mahalanobis_factor: how many times the quantile is admissible (of squared distances).
        residual_factor: likewise.
        leftover_factor: likewise.
        intensity_factor: likewise.
        spectrum_factor: likewise.
        neighbours: k of the histogram and spectrum distances, lowered where the reference is smaller.
        intensity_bins: of the histogram.
        spectrum_bins: rings of the spectrum.
        spectrum_floor: relative power below which spectra count as equal; 1e-4 is about what rounding to 8 bits leaves.
    """

    reason: ClassVar[str] = "outlier"
    components: int = 32
    quantile: float = 0.995
    mahalanobis_factor: float = 1.5
    residual_factor: float = 1.25
    leftover_factor: float = 1.25
    intensity_factor: float = 1.25
    spectrum_factor: float = 1.25
    neighbours: int = 5
    intensity_bins: int = 32
    spectrum_bins: int = 16
    spectrum_floor: float = 1e-4

    def __post_init__(self) -> None:
        check_level("quantile", self.quantile)
        for name in ("components", "neighbours", "intensity_bins", "spectrum_bins"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("mahalanobis_factor", "residual_factor", "leftover_factor", "intensity_factor", "spectrum_factor", "spectrum_floor"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name}: expected above 0, got {getattr(self, name)}")

    def fit(self, real: Real) -> FittedOutliers:
        """Fits the measures on the reference and reads their limits off the calibration images.

        Raises:
            DataError: a reference of fewer than two images or of equal ones, or no calibration images.
        """
        measures = _Measures.fit(self, real.reference)
        on_calibration = measures.of(real.calibration)
        limits = {
            name: max(SMALLEST, getattr(self, f"{name}_factor") * calibration_limit(values, self.quantile, real.calibration.group_ids))
            for name, values in on_calibration.items()
        }
        return FittedOutliers(measures=measures, limits=limits)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measures:
    settings: OutlierGate
    plane: FittedPCA
    covariance: LedoitWolf
    intensities: Neighbours
    spectra: Neighbours

    @classmethod
    def fit(cls, settings: OutlierGate, reference: Views) -> _Measures:
        plane = PCA(n_components=settings.components, whiten=False).fit(reference.pixels)
        return cls(
            settings=settings,
            plane=plane,
            covariance=LedoitWolf().fit(plane.transform(reference.pixels).astype(np.float64)),
            intensities=Neighbours(intensity_profile(reference.images, settings.intensity_bins)),
            spectra=Neighbours(spectral_profile(reference.images, settings.spectrum_bins, settings.spectrum_floor)),
        )

    def of(self, views: Views) -> dict[str, DoubleArray]:
        s, k = self.settings, min(self.settings.neighbours, len(self.spectra))
        values = {
            "mahalanobis": self._mahalanobis(views),
            "residual": self.plane.residual(views.pixels).astype(np.float64) ** 2,
            "intensity": self.intensities.distances(intensity_profile(views.images, s.intensity_bins), k)[:, -1] ** 2,
            "spectrum": self.spectra.distances(spectral_profile(views.images, s.spectrum_bins, s.spectrum_floor), k)[:, -1] ** 2,
        }
        return values if views.residual is None else values | {"leftover": views.residual.astype(np.float64) ** 2}

    def _mahalanobis(self, views: Views) -> DoubleArray:
        if not len(views):
            return np.zeros(0)
        squared: DoubleArray = self.covariance.mahalanobis(self.plane.transform(views.pixels).astype(np.float64))
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
