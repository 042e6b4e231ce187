"""From seeds to images: the one sampling loop, and the guides that it can carry."""

from monai_diverse.sampling.condition import ClassifierFree
from monai_diverse.sampling.guides import Guide, GuideSettings
from monai_diverse.sampling.loop import SCHEDULERS, State, alphas_of, build_scheduler, sample_states
from monai_diverse.sampling.shield import FittedShield, Shield

__all__ = [
    "SCHEDULERS",
    "ClassifierFree",
    "FittedShield",
    "Guide",
    "GuideSettings",
    "Shield",
    "State",
    "alphas_of",
    "build_scheduler",
    "sample_states",
]
