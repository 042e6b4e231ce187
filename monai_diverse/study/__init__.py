"""The classifier study: does a bank help, against fair controls?"""

from monai_diverse.study.conduct import Study, StudyProgress, study_steps
from monai_diverse.study.config import Arm, ClassifierConfig, control_arms
from monai_diverse.study.controls import duplicates_bank, matched_bank
from monai_diverse.study.crew import Crew
from monai_diverse.study.inference import holm, paired_difference
from monai_diverse.study.metrics import METRICS, metrics_of
from monai_diverse.study.outcome import outcome
from monai_diverse.study.plan import Primary, StudyPlan
from monai_diverse.study.selection import Selection
from monai_diverse.study.statistics import compare, summarise
from monai_diverse.study.training import Run, restrict, run_study

__all__ = [
    "METRICS",
    "Arm",
    "ClassifierConfig",
    "Crew",
    "Primary",
    "Run",
    "Selection",
    "Study",
    "StudyPlan",
    "StudyProgress",
    "compare",
    "control_arms",
    "duplicates_bank",
    "holm",
    "matched_bank",
    "metrics_of",
    "outcome",
    "paired_difference",
    "restrict",
    "run_study",
    "study_steps",
    "summarise",
]
