"""What every extractor promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from monai_diverse.data import FloatArray
from monai_diverse.features import FeatureExtractor


class ExtractorContract(ABC):
    """What every extractor promises; `extractor` must be given."""

    shapes: tuple[tuple[int, ...], ...] = ((1, 12, 12), (3, 12, 12), (1, 8, 12, 12))
    """Shapes (channels, *spatial) that it takes."""

    @abstractmethod
    def extractor(self) -> FeatureExtractor:
        """The extractor to test."""

    @abstractmethod
    def other(self) -> FeatureExtractor:
        """One whose features differ, so that its fingerprint must too."""

    def images(self, shape: tuple[int, ...], count: int = 5) -> FloatArray:
        """Images (count, *shape) to try it on."""
        return np.random.default_rng(0).random((count, *shape), dtype=np.float32)

    def test_is_an_extractor_with_a_stable_fingerprint(self) -> None:
        """Equal settings give equal fingerprints, other features another one."""
        extractor = self.extractor()
        assert isinstance(extractor, FeatureExtractor)
        assert extractor.name
        assert extractor.fingerprint == self.extractor().fingerprint
        assert extractor.fingerprint != self.other().fingerprint
        images = self.images(self.shapes[0])
        features, others = extractor(images), self.other()(images)
        assert features.shape != others.shape or not np.allclose(features, others)

    def test_gives_finite_float32_rows(self) -> None:
        """For every shape, for a black image and for no image at all."""
        extractor = self.extractor()
        for shape in self.shapes:
            features = extractor(self.images(shape))
            assert features.ndim == 2
            assert len(features) == 5
            assert features.dtype == np.float32
            assert np.isfinite(features).all()
            none = extractor(self.images(shape, 0))
            assert none.shape == (0, features.shape[1])
            assert none.dtype == np.float32
            assert np.isfinite(extractor(np.zeros((1, *shape), np.float32))).all()

    def test_a_row_depends_on_its_image_alone(self) -> None:
        """Neither on the order nor on the rest of the batch."""
        extractor = self.extractor()
        for shape in self.shapes:
            images = self.images(shape)
            together = extractor(images)
            alone = np.concatenate([extractor(images[i : i + 1]) for i in range(len(images))])
            np.testing.assert_allclose(alone, together, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(extractor(images[::-1]), together[::-1], rtol=1e-3, atol=1e-4)

    def test_does_not_change_its_input(self) -> None:
        """The input may be read-only, and a second pass gives the same."""
        images = self.images(self.shapes[0])
        before = images.copy()
        images.flags.writeable = False
        features = self.extractor()(images)
        np.testing.assert_array_equal(images, before)
        np.testing.assert_array_equal(self.extractor()(images), features)

    def test_different_images_have_different_rows(self) -> None:
        """Features tell images apart."""
        features = self.extractor()(self.images(self.shapes[0]))
        assert len(np.unique(features, axis=0)) == len(features)
