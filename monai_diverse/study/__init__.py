"""The classifier study: does a bank help, against fair controls?"""

from monai_diverse.study.config import Arm, ClassifierConfig, control_arms
from monai_diverse.study.controls import duplicates_bank, matched_bank
from monai_diverse.study.metrics import METRICS, metrics_of
from monai_diverse.study.statistics import compare, summarise
from monai_diverse.study.training import Run, restrict, run_study

__all__ = [
    "METRICS",
    "Arm",
    "ClassifierConfig",
    "Run",
    "compare",
    "control_arms",
    "duplicates_bank",
    "matched_bank",
    "metrics_of",
    "restrict",
    "run_study",
    "summarise",
]
