"""What every gate promises."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np

from monai_diverse.data import FloatArray, LabelledImages
from monai_diverse.screening.embedding import Embedding
from monai_diverse.screening.gate import FittedGate, Gate
from monai_diverse.screening.verdict import REASONS
from monai_diverse.screening.views import Real, Views
from monai_diverse.testing.synthetic import TOLERANCE, synthetic_images, synthetic_real


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
