"""Public contracts: a new source, gate or extractor inherits these tests, and only says what it is.

    class TestMyGate(GateContract):
        def gate(self):
            return MyGate()

        def worse(self, real):
            return ...  # views that it must reject

Any runner that collects `test_` methods works.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from monai_diverse.data import FloatArray, LabelledImages
from monai_diverse.errors import DataError
from monai_diverse.features import FeatureExtractor, PixelFeatures
from monai_diverse.screening.embedding import Embedding
from monai_diverse.screening.gate import FittedGate, Gate
from monai_diverse.screening.verdict import REASONS
from monai_diverse.screening.views import Real, Views
from monai_diverse.sources import SampleSource

TOLERANCE = 1e-4


def synthetic_images(count: int, seed: int, *, shape: tuple[int, ...] = (12, 12), channels: int = 1, views: int = 1) -> LabelledImages:
    """Smooth images of two classes, bright towards one side (0) or the other (1) of the last axis; any two of one class are exchangeable.

    Args:
        count: images.
        seed: decides everything.
        shape: two or three spatial sides.
        channels: each with the same structure and its own noise.
        views: images that share a group: the same structure with other noise.
    """
    rng = np.random.default_rng(seed)
    owner = np.arange(count) // views
    labels = owner % 2
    ramp = np.linspace(-1, 1, shape[-1]) * np.where(labels, 1, -1).reshape(-1, *[1] * len(shape))
    structure = gaussian_filter(rng.normal(size=(owner[-1] + 1, *shape)), (0, *[1.5] * len(shape)))[owner]
    noise = rng.normal(size=(count, channels, *shape))
    images = 0.5 + 0.15 * ramp[:, None] + 0.4 * structure[:, None] + 0.02 * noise
    return LabelledImages(images=np.clip(images, 0, 1).astype(np.float32), labels=labels, groups=owner if views > 1 else None)


def synthetic_real(seed: int = 0, *, shape: tuple[int, ...] = (12, 12), views: int = 1) -> tuple[Real, Embedding]:
    """90 reference and 60 calibration images as gates see them, generator_train being the reference, and what embeds others alike."""
    data = synthetic_images(150, seed, shape=shape, views=views)
    reference, calibration = data[np.arange(90)], data[np.arange(90, 150)]
    embedding, seen = Embedding.fit(PixelFeatures(), reference, components=8, pixel_side=32)
    return Real(reference=seen, calibration=embedding.views(calibration), generator_train=seen), embedding


class GateContract(ABC):
    """What every gate promises; `gate` and `worse` must be given."""

    @abstractmethod
    def gate(self) -> Gate:
        """The gate to test, fitted here on small synthetic images."""

    @abstractmethod
    def worse(self, real: Real, embedding: Embedding) -> Views:
        """Views that it must reject, every one."""

    def score(self, fitted: FittedGate, views: Views) -> FloatArray:
        """The scores of `views`; overridden where a gate needs more than the views."""
        return fitted.score(views)

    def test_is_a_gate_with_a_reason_and_frozen_settings(self) -> None:
        """The settings are a frozen dataclass, and the reason is a known one."""
        gate = self.gate()
        assert isinstance(gate, Gate)
        assert gate.reason in REASONS
        try:
            setattr(gate, fields(gate)[0].name, 0)
        except FrozenInstanceError:
            return
        raise AssertionError("settings can be changed")

    def test_scores_are_finite_float32_one_an_image(self) -> None:
        """In two and three dimensions, and for no image at all."""
        for shape in ((12, 12), (8, 9, 7)):
            real, embedding = synthetic_real(shape=shape)
            fitted = self.gate().fit(real)
            views = embedding.views(synthetic_images(20, 5, shape=shape))
            scores = self.score(fitted, views)
            assert scores.shape == (20,)
            assert scores.dtype == np.float32
            assert np.isfinite(scores).all()
            assert np.isfinite(fitted.threshold)
            assert self.score(fitted, views[:0]).shape == (0,)

    def test_extreme_images_have_finite_scores(self) -> None:
        """Flat images and exact copies."""
        real, embedding = synthetic_real()
        flat = np.stack([np.full((1, 12, 12), v) for v in (0.0, 0.5, 1.0)]).astype(np.float32)
        copies = real.reference.images[:3]
        views = embedding.views(LabelledImages(images=np.concatenate([flat, copies]), labels=np.array([0, 1, 0, 1, 0, 1])))
        assert np.isfinite(self.score(self.gate().fit(real), views)).all()

    def test_a_score_depends_on_its_image_alone(self) -> None:
        """Neither on the order nor on the rest of the batch."""
        real, embedding = synthetic_real()
        fitted = self.gate().fit(real)
        views = embedding.views(synthetic_images(30, 6))
        together = self.score(fitted, views)
        order = np.random.default_rng(0).permutation(30)
        np.testing.assert_allclose(self.score(fitted, views[order]), together[order], rtol=TOLERANCE)
        alone = np.concatenate([self.score(fitted, views[i : i + 1]) for i in range(30)])
        np.testing.assert_allclose(alone, together, rtol=TOLERANCE)

    def test_fit_does_not_change_its_input_and_repeats(self) -> None:
        """Fitting is a function of its input."""
        real, embedding = synthetic_real(views=2)
        before = pickle.dumps([real.reference, real.calibration])
        views = embedding.views(synthetic_images(20, 7))
        first = self.score(self.gate().fit(real), views)
        assert pickle.dumps([real.reference, real.calibration]) == before
        np.testing.assert_array_equal(self.score(self.gate().fit(real), views), first)

    def test_the_worse_is_rejected_and_most_unseen_reals_are_less_bad(self) -> None:
        """Higher is worse, and the threshold lies below the worse."""
        real, embedding = synthetic_real()
        fitted = self.gate().fit(real)
        worse = self.score(fitted, self.worse(real, embedding))
        assert len(worse)
        assert (worse > fitted.threshold).all()
        unseen = self.score(fitted, embedding.views(synthetic_images(100, 8)))
        assert np.median(unseen) <= worse.min()

    def test_everything_works_without_groups_or_generator_train(self) -> None:
        """The reference stands in for an unknown `generator_train`."""
        real, embedding = synthetic_real()
        views = embedding.views(synthetic_images(20, 9))
        fitted = self.gate().fit(replace(real, generator_train=None))
        # the reference stands in for what the generator saw, and here is the same
        np.testing.assert_array_equal(self.score(fitted, views), self.score(self.gate().fit(real), views))


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


class SourceContract:
    """What every sample source promises.

    A test class inherits it and gives the source as a fixture or a method named `source`.
    """

    def test_gives_images_of_its_shape_in_range(self, source: SampleSource) -> None:
        """Float32, finite, in [0, 1], one for each seed; none for no seed."""
        images = source.sample(np.arange(3) % source.classes, [4, 5, 6])
        assert images.shape == (3, *source.shape)
        assert images.dtype == torch.float32
        assert torch.isfinite(images).all()
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
        assert source.sample([], []).shape == (0, *source.shape)

    def test_an_image_depends_on_its_seed_and_label_alone(self, source: SampleSource) -> None:
        """Neither on the batch that it came in nor on the order, within the stated tolerance."""
        labels = np.arange(5) % source.classes
        together = source.sample(labels, range(10, 15))
        alone = torch.cat([source.sample(labels[i : i + 1], [10 + i]) for i in (4, 0, 2)])
        torch.testing.assert_close(together[[4, 0, 2]], alone, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(source.sample(labels, range(10, 15)), together, atol=TOLERANCE, rtol=0)

    def test_other_seeds_give_other_images(self, source: SampleSource) -> None:
        """Also for seeds that differ beyond 32 bits."""
        images = source.sample([0, 0, 0], [1, 2, 1 + 2**32])
        assert not torch.allclose(images[0], images[1], atol=1e-2)
        assert not torch.allclose(images[0], images[2], atol=1e-2)

    def test_evaluations_are_counted(self, source: SampleSource) -> None:
        """In proportion to the images drawn."""
        start = source.nfe
        source.sample([0], [0])
        one = source.nfe - start
        source.sample([0, 0, 0], [0, 1, 2])
        assert source.nfe - start == 4 * one

    def test_bad_requests_are_refused(self, source: SampleSource) -> None:
        """Unknown classes, counts that differ, negative seeds."""
        for labels, seeds in (([source.classes], [0]), ([0, 0], [0]), ([0], [-1]), ([-1], [0])):
            try:
                source.sample(labels, seeds)
            except DataError:
                continue
            raise AssertionError(f"expected a DataError for labels {labels} and seeds {seeds}")

    def test_it_says_what_it_is(self, source: SampleSource) -> None:
        """Names, a licence, a fingerprint, and a space for guides."""
        assert len(source.class_names) == source.classes
        assert source.name
        assert source.licence
        assert len(source.fingerprint) == 64
        assert len(source.encode(torch.zeros(2, *source.shape))) == 2
