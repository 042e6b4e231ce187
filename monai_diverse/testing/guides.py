"""What every guide promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import FrozenInstanceError, fields

import numpy as np
import torch
from torch import Tensor

from monai_diverse.sampling import Guide, GuideSettings
from monai_diverse.testing.synthetic import TOLERANCE, synthetic_images

SIGMAS = (50.0, 3.0, 1.0, 0.3, 0.01)


class GuideContract(ABC):
    """What every guide promises; `settings` must be given."""

    shapes: tuple[tuple[int, ...], ...] = ((12, 12), (8, 9, 7))
    """Spatial shapes that it works in."""

    @abstractmethod
    def settings(self) -> GuideSettings:
        """The settings of the guide to test."""

    def guide(self, shape: tuple[int, ...]) -> Guide:
        """Fitted on small synthetic images in [-1, 1]; overridden where a guide must be calibrated on a model too."""
        train, heldout = synthetic_images(60, 0, shape=shape), synthetic_images(40, 1, shape=shape)
        return self.settings().fit(_model(train.images), torch.from_numpy(train.labels), _model(heldout.images), torch.from_numpy(heldout.labels))

    def test_settings_are_frozen(self) -> None:
        """A frozen dataclass, so that a recipe's fingerprint holds what the guide does."""
        settings = self.settings()
        try:
            setattr(settings, fields(settings)[0].name, 0)  # type: ignore[arg-type]
        except FrozenInstanceError:
            return
        raise AssertionError("settings can be changed")

    def test_moves_images_to_finite_ones_and_leaves_its_input_alone(self) -> None:
        """Shape and type are kept, at every noise level, for one image and for a copy of a training image too."""
        for shape in self.shapes:
            guide, x0, labels = self.guide(shape), *_batch(shape, 6, 0)
            for sigma in SIGMAS:
                for count in (6, 1):
                    before = x0[:count].clone()
                    moved = guide(x0[:count], labels[:count], sigma)
                    assert moved.shape == before.shape
                    assert moved.dtype == before.dtype
                    assert torch.isfinite(moved).all()
                    assert torch.equal(x0[:count], before)
                    assert 0 <= guide.refresh(sigma) <= 1

    def test_repeats(self) -> None:
        """The same images give the same push: no hidden state."""
        for shape in self.shapes:
            x0, labels = _batch(shape, 6, 2)
            first, second = self.guide(shape), self.guide(shape)
            torch.testing.assert_close(first(x0, labels, 1.0), second(x0, labels, 1.0), atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(first(x0, labels, 1.0), second(x0, labels, 1.0), atol=TOLERANCE, rtol=0)

    def test_what_was_accepted_makes_another_guide(self) -> None:
        """`given` leaves the guide as it was, and takes none or some samples."""
        for shape in self.shapes:
            guide, x0, labels = self.guide(shape), *_batch(shape, 6, 3)
            before, accepted = guide(x0, labels, 1.0), _batch(shape, 5, 4)
            informed = guide.given(*accepted)
            assert torch.isfinite(informed(x0, labels, 1.0)).all()
            torch.testing.assert_close(guide(x0, labels, 1.0), before, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(guide.given(accepted[0][:0], accepted[1][:0])(x0, labels, 1.0), before, atol=TOLERANCE, rtol=0)

    def test_starts_follow_from_labels_and_seeds_alone(self) -> None:
        """A mask of the batch with as many images as it marks, each image's own whatever the batch."""
        for shape in self.shapes:
            guide, seeds = self.guide(shape).given(*_batch(shape, 5, 4)), list(range(8))
            labels = torch.arange(8) % 2
            found = guide.start(labels, seeds)
            alone = [guide.start(labels[i : i + 1], seeds[i : i + 1]) for i in range(8)]
            if found is None:
                assert all(one is None for one in alone)
                continue
            mask, start = found
            assert mask.shape == (8,)
            assert mask.dtype == torch.bool
            assert start.sigma > 0
            assert mask.tolist() == [one is not None and bool(one[0]) for one in alone]
            assert all(one is not None for one in alone), "None for part of a batch lets another guide's start in, depending on the batch"
            assert len(start.images.expand(int(mask.sum()), 1, *shape)) == int(mask.sum())


def _batch(shape: tuple[int, ...], count: int, seed: int) -> tuple[Tensor, Tensor]:
    data = synthetic_images(count, 10 + seed, shape=shape)
    return _model(data.images), torch.from_numpy(data.labels)


def _model(images: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
    return torch.from_numpy(images) * 2 - 1
