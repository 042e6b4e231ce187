"""From seeds to images: the one sampling loop, and the guides that it can carry."""

from monai_diverse.sampling.branch import Branch, FittedBranch
from monai_diverse.sampling.condition import CADS, ClassifierFree, annealed
from monai_diverse.sampling.diverse import Diverse
from monai_diverse.sampling.early import EarlyChoice, FittedEarlyChoice
from monai_diverse.sampling.guides import Choice, Guide, GuideSettings, Start, Together
from monai_diverse.sampling.loop import State, sample_states
from monai_diverse.sampling.noise import Churn, FittedChurn, FittedPolish, Polish
from monai_diverse.sampling.particle import FittedParticle, Particle
from monai_diverse.sampling.passes import Passes
from monai_diverse.sampling.schedule import NoiseSchedule
from monai_diverse.sampling.schedulers import SCHEDULERS, build_scheduler
from monai_diverse.sampling.semantic import FittedSemantic, Semantic
from monai_diverse.sampling.shield import FittedShield, Shield
from monai_diverse.sampling.starts import BoostAndSkip, FittedBoostAndSkip

__all__ = [
    "CADS",
    "SCHEDULERS",
    "BoostAndSkip",
    "Branch",
    "Choice",
    "Churn",
    "ClassifierFree",
    "Diverse",
    "EarlyChoice",
    "FittedBoostAndSkip",
    "FittedBranch",
    "FittedChurn",
    "FittedEarlyChoice",
    "FittedParticle",
    "FittedPolish",
    "FittedSemantic",
    "FittedShield",
    "Guide",
    "GuideSettings",
    "NoiseSchedule",
    "Particle",
    "Passes",
    "Polish",
    "Semantic",
    "Shield",
    "Start",
    "State",
    "Together",
    "annealed",
    "build_scheduler",
    "sample_states",
]
