"""Images to the views that gates compare."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monai_diverse.data import FloatArray, IntArray, LabelledImages, check_images, check_labels
from monai_diverse.errors import DataError
from monai_diverse.features import PCA, BlockExtractor, FeatureExtractor, FittedPCA, PixelFeatures
from monai_diverse.screening.tables import IN_MEMORY, Tables, fitted_rows, large
from monai_diverse.screening.views import Views


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """The extractor with principal components of the reference, and the low-resolution pixel view.

    Attributes:
        extractor: deep features.
        components: principal components of the reference's deep features, of each block on its own if the extractor has blocks.
        pixels: the pixel view.
        shape: (channels, *spatial) of every image.
    """

    extractor: FeatureExtractor
    components: FittedPCA
    pixels: PixelFeatures
    shape: tuple[int, ...]

    @classmethod
    def fit(
        cls, extractor: FeatureExtractor, reference: LabelledImages, *, components: int, pixel_side: int, tables: Tables = IN_MEMORY
    ) -> tuple[Embedding, Views]:
        """Fits the components on the reference; the reference's own views come with it.

        A large reference is not held in features: components are fitted on some of it (`fitted_rows`).

        Raises:
            DataError: a reference of fewer than two images, or of images that the extractor cannot tell apart.
        """
        raw = tables.of(reference.images, {"raw": extractor.fingerprint}, extractor, fitted_rows(len(reference)))
        shape = reference.images.shape[1:]
        blocks = extractor.widths(shape) if isinstance(extractor, BlockExtractor) else None
        embedding = cls(
            extractor=extractor,
            components=PCA(n_components=components, whiten=True).fit(raw, blocks),
            pixels=PixelFeatures(max_side=pixel_side, average_channels=True),
            shape=shape,
        )
        return embedding, embedding.views(reference, tables) if large(len(reference)) else embedding._views(reference, raw)

    def views(self, data: LabelledImages, tables: Tables = IN_MEMORY) -> Views:
        """Views of labelled images, groups kept; of a large set the pixels and features are where `tables` keeps them."""
        if not large(len(data)):
            return self._views(data, self.extractor(data.images))
        features = tables.of(data.images, {"features": self.extractor.fingerprint, "components": self._components_hash()}, self._features)
        return Views(
            images=data.images,
            labels=data.labels,
            groups=data.groups,
            pixels=tables.of(data.images, {"pixels": self.pixels.fingerprint}, self.pixels),
            features=features[:, :-1],
            residual=features[:, -1],
        )

    def views_of(self, images: npt.ArrayLike, labels: npt.ArrayLike) -> Views:
        """Views of images (n, channels, *spatial) in [0, 1] with labels (n,), n from 0.

        Raises:
            DataError: images of another shape than the reference's, or wrong values or labels.
        """
        count = np.shape(images)[0] if np.ndim(images) else 0
        if count == 0:
            # checked here, since a set of labelled images is never empty
            empty = np.zeros((0, *self.shape), np.float32)
            return self._assemble(empty, check_labels(labels, 0), None, self.extractor(empty))
        checked = check_images(images)
        if checked.shape[1:] != self.shape:
            raise DataError(f"images: expected shape (n, {', '.join(map(str, self.shape))}) as the reference, got {checked.shape}; resize them")
        return self.views(LabelledImages(images=checked, labels=check_labels(labels, count)))

    def _features(self, images: FloatArray) -> FloatArray:
        """Coordinates (n, k) and, in a last column, residuals."""
        raw = self.extractor(images)
        return np.column_stack([self.components.transform(raw), self.components.residual(raw)])

    def _components_hash(self) -> str:
        parts = (self.components.mean, self.components.components, self.components.scale, self.components.units)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts if part is not None)).hexdigest()

    def _views(self, data: LabelledImages, raw: FloatArray) -> Views:
        return self._assemble(data.images, data.labels, data.groups, raw)

    def _assemble(self, images: FloatArray, labels: IntArray, groups: IntArray | None, raw: FloatArray) -> Views:
        return Views(
            images=images,
            labels=labels,
            groups=groups,
            pixels=self.pixels(images),
            features=self.components.transform(raw),
            residual=self.components.residual(raw),
        )
