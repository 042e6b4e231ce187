"""What every sample source promises."""

from __future__ import annotations

import numpy as np
import torch

from monai_diverse.errors import DataError
from monai_diverse.sources import SampleSource
from monai_diverse.testing.synthetic import TOLERANCE


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
