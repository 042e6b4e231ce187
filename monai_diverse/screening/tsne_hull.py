"""The published filter for diverse samples, for reproduction: what lies outside the convex hull of the real images in a t-SNE map.

It judges by the shape of a two-dimensional map alone, without gates for copies, classes or outliers: it accepts noise. Its yield
says little beside what chance alone and unseen real images give, so it is always reported with both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn
from scipy.spatial import ConvexHull, QhullError
from sklearn.manifold import TSNE

from monai_diverse.data import IntArray, check_images
from monai_diverse.errors import DataError, MissingExtraError, RecipeError
from monai_diverse.features import FeatureExtractor, SqueezeNetLogits
from monai_diverse.screening.yields import Yield

BoolArray = npt.NDArray[np.bool_]
DoubleArray = npt.NDArray[np.float64]

PERPLEXITY = 30
"""Of t-SNE, scikit-learn's default; a map needs more images than that."""

TOLERANCE = 1e-9
"""A point this little outside the hull, in units of the map's largest coordinate, lies on it within rounding."""

NOTES = (
    "chance: judged images times hull vertices / (real images + 1), as if judged and real images were exchangeable (Efron 1965)",
    "all images share one map and one hull: their verdicts depend on one another, and the intervals are narrower than they should be",
)


def _published_extractor() -> FeatureExtractor:
    try:
        return SqueezeNetLogits()
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}; or pass another extractor: TsneHull(extractor=EfficientNetLite0())") from error


@dataclass(frozen=True, kw_only=True)
class TsneHull:
    """Settings of the published filter: Polamreddy & Li, "The Deficit of New Information in Diffusion Models: A Focus on Diverse Samples".

    As their `ds_sqnet.py` does it: features of real and judged images, `sklearn.manifold.TSNE(2, random_state=0)` of both together (all
    else scikit-learn's defaults, which since 1.2 are a start from principal components and an automatic learning rate; theirs do not name a
    version), `scipy.spatial.ConvexHull` of the real points. What lies outside is accepted. It departs in one respect: points on the hull
    itself, within rounding, are inside here and outside there.

    Attributes:
        extractor: turns images into features; the published one, `SqueezeNetLogits`, needs torchvision.
        random_state: of t-SNE; 0 as published.

    Raises:
        MissingExtraError: no extractor was passed, and torchvision does not import.
        DataError: no extractor was passed, and torchvision's weights cannot be had; pass `SqueezeNetLogits(path=...)`.
        RecipeError: a random state that scikit-learn does not take.
    """

    extractor: FeatureExtractor = field(default_factory=_published_extractor)
    random_state: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.random_state < 2**32:
            raise RecipeError(f"random_state: expected a whole number from 0 to 2**32 - 1, got {self.random_state}")

    def judge(self, real: npt.ArrayLike, generated: npt.ArrayLike, heldout: npt.ArrayLike | None = None) -> HullResult:
        """Runs the filter on generated images, and once more on held-out real ones in their place.

        Args:
            real: (n, channels, *spatial) in [0, 1]: what the generator was trained on.
            generated: (m, channels, *spatial) in [0, 1].
            heldout: (h, channels, *spatial) in [0, 1]: real images that are not among `real`, best as many as were generated; None: no control.

        Raises:
            DataError: images of several shapes or with wrong values, too few of them, or features that do not vary.
            MissingExtraError: the extractor's package is not installed.
        """
        named = {"real": real, "generated": generated} | ({} if heldout is None else {"heldout": heldout})
        images = {name: check_images(array, name) for name, array in named.items()}
        for name, array in images.items():
            if array.shape[1:] != images["real"].shape[1:]:
                raise DataError(f"{name}: expected images of shape {images['real'].shape[1:]} as the real ones, got {array.shape[1:]}; resize them")
        features = {name: self.extractor(array) for name, array in images.items()}
        maps = {name: HullMap.of(features["real"], features[name], random_state=self.random_state) for name in images if name != "real"}
        return HullResult(settings=self, generated=maps["generated"], heldout=maps.get("heldout"))


@dataclass(frozen=True, kw_only=True, eq=False)
class HullMap:
    """One run of the filter; coordinates have no unit, and mean nothing beyond this map.

    Attributes:
        real: (n, 2) coordinates of the real images.
        judged: (m, 2) of those that were judged.
        vertices: (v,) indices into `real` of the hull's corners, counter-clockwise.
        accepted: (m,) whether each judged image lies outside the hull.
    """

    real: DoubleArray
    judged: DoubleArray
    vertices: IntArray
    accepted: BoolArray

    @classmethod
    def of(cls, real: npt.ArrayLike, judged: npt.ArrayLike, *, random_state: int = 0) -> HullMap:
        """Maps features (n, d) and (m, d) to the plane together, and finds who lies outside the hull of the first.

        Raises:
            DataError: features of two widths, not finite or all alike, fewer than 3 real images, or 30 images or fewer in all.
        """
        features = [np.asarray(part, np.float32) for part in (real, judged)]
        if any(part.ndim != 2 or part.shape[1] != features[0].shape[-1] for part in features):
            raise DataError(f"t-SNE hull: expected features (n, d) and (m, d), got {features[0].shape} and {features[1].shape}")
        together = np.concatenate(features)
        if len(features[0]) < 3 or len(together) <= PERPLEXITY:
            counts = f"{len(features[0])} real and {len(features[1])} to judge"
            raise DataError(f"t-SNE hull: expected at least 3 real images and {PERPLEXITY + 1} in all, got {counts}; give more")
        if together.shape[1] < 2 or not np.isfinite(together).all() or not np.ptp(together, axis=0).any():
            raise DataError("t-SNE hull: expected at least 2 finite features that vary from image to image; check the extractor and the images")
        points = TSNE(n_components=2, random_state=random_state).fit_transform(together).astype(np.float64)
        return cls.of_points(points[: len(features[0])], points[len(features[0]) :])

    @classmethod
    def of_points(cls, real: DoubleArray, judged: DoubleArray) -> HullMap:
        """Finds which points (m, 2) lie outside the convex hull of points (n, 2).

        Raises:
            DataError: fewer than 3 real points, or all on one line.
        """
        try:
            hull = ConvexHull(real)
        except (QhullError, ValueError) as error:
            raise DataError(f"t-SNE hull: expected at least 3 real points that are not on one line, got {len(real)} without a hull") from error
        normals, offsets = hull.equations[:, :2], hull.equations[:, 2]
        beyond = (judged @ normals.T + offsets).max(axis=1)
        accepted = beyond > TOLERANCE * np.abs(real).max()
        return cls(real=real, judged=judged, vertices=hull.vertices.astype(np.int64), accepted=accepted)

    @property
    def counts(self) -> Yield:
        """Accepted of judged."""
        return Yield(drawn=len(self.judged), accepted=int(self.accepted.sum()))

    @property
    def expected(self) -> float:
        """Images that chance alone puts outside: M E[V] / (N + 1) (Efron 1965, "The convex hull of a random set of points").

        A point is outside the hull of N others if and only if it is a corner of the hull of all N + 1, and each of N + 1 exchangeable
        points is a corner with probability E[V(N + 1)] / (N + 1). t-SNE does not see who is real, so that points of one map are
        exchangeable wherever the images are. For E[V(N + 1)] stands V(N), the corners of this map's own real hull: an
        estimate from one draw. That it is N and not N + 1 matters little, since E[V] grows as log N to N^(1/3) (Renyi & Sulanke 1963).
        """
        return len(self.judged) * len(self.vertices) / (len(self.real) + 1)

    def as_json(self) -> dict[str, Any]:
        """The yield, what chance alone gives, and what that comes from."""
        null = {"accepted": self.expected, "per_10k": 1e4 * len(self.vertices) / (len(self.real) + 1)}
        return {**self.counts.as_json(), "expected_by_chance": null, "real": len(self.real), "hull_vertices": len(self.vertices)}

    def __str__(self) -> str:
        return f"{self.counts}; {self.expected:.1f} expected by chance ({len(self.vertices)} hull vertices of {len(self.real)} real images)"


@dataclass(frozen=True, kw_only=True, eq=False)
class HullResult:
    """What the published filter makes of generated images, beside its null expectation and its control.

    Attributes:
        settings: of the filter.
        generated: the map of real and generated images.
        heldout: the map of real and held-out real images; None: none were given.
    """

    settings: TsneHull
    generated: HullMap
    heldout: HullMap | None

    @property
    def accepted(self) -> BoolArray:
        """(m,) the generated images that the filter calls diverse."""
        return self.generated.accepted

    def as_json(self) -> dict[str, Any]:
        """Both yields with 95 % intervals (Clopper & Pearson), null expectations, settings and notes; `heldout` is None without a control."""
        extractor = self.settings.extractor
        return {
            "filter": "t-SNE hull",
            "extractor": {"name": extractor.name, "fingerprint": extractor.fingerprint},
            "random_state": self.settings.random_state,
            "scikit_learn": sklearn.__version__,
            "generated": self.generated.as_json(),
            "heldout": None if self.heldout is None else self.heldout.as_json(),
            "notes": list(NOTES),
        }

    def __str__(self) -> str:
        control = "no control: give held-out real images, or the yield above cannot be read" if self.heldout is None else str(self.heldout)
        return "\n".join([f"generated: {self.generated}", f"held-out real: {control}", *NOTES])
