"""A pretrained model, whoever made it, as one `SampleSource`."""

from monai_diverse.sources.base import SampleSource
from monai_diverse.sources.builtin import BuiltinSource
from monai_diverse.sources.diffusers import DiffusersSource

__all__ = ["BuiltinSource", "DiffusersSource", "SampleSource"]
