"""Public contracts: a new source, guide, gate or extractor inherits these tests, and only says what it is.

    class TestMyGate(GateContract):
        def gate(self):
            return MyGate()

        def worse(self, real):
            return ...  # views that it must reject

Any runner that collects `test_` methods works.
"""

from monai_diverse.testing.extractors import ExtractorContract
from monai_diverse.testing.gates import GateContract
from monai_diverse.testing.guides import GuideContract
from monai_diverse.testing.sources import SourceContract
from monai_diverse.testing.synthetic import TOLERANCE, synthetic_images, synthetic_real

__all__ = ["TOLERANCE", "ExtractorContract", "GateContract", "GuideContract", "SourceContract", "synthetic_images", "synthetic_real"]
