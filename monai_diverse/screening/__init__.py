"""Vectors to verdicts: is a sample more than a copy, new, of its class, in distribution, and unlike those already accepted?"""

from monai_diverse.screening.accepted import AcceptedViews
from monai_diverse.screening.assessment import Assessment
from monai_diverse.screening.calibrate import ClassConformal, Conformal, calibration_limit, discoveries
from monai_diverse.screening.controls import ControlRow, Controls, control_rows
from monai_diverse.screening.copies import CopyGate
from monai_diverse.screening.duplicates import DuplicateGate
from monai_diverse.screening.gate import FittedGate, Gate
from monai_diverse.screening.novelty import NoveltyGate
from monai_diverse.screening.outliers import OutlierGate
from monai_diverse.screening.relevance import RelevanceGate
from monai_diverse.screening.screen import FittedScreen, NoveltyScreen
from monai_diverse.screening.tsne_hull import HullMap, HullResult, TsneHull
from monai_diverse.screening.verdict import REASONS, Verdict, count_reasons
from monai_diverse.screening.views import Real, Views
from monai_diverse.screening.yields import Yield

__all__ = [
    "REASONS",
    "AcceptedViews",
    "Assessment",
    "ClassConformal",
    "Conformal",
    "ControlRow",
    "Controls",
    "CopyGate",
    "DuplicateGate",
    "FittedGate",
    "FittedScreen",
    "Gate",
    "HullMap",
    "HullResult",
    "NoveltyGate",
    "NoveltyScreen",
    "OutlierGate",
    "Real",
    "RelevanceGate",
    "TsneHull",
    "Verdict",
    "Views",
    "Yield",
    "calibration_limit",
    "control_rows",
    "count_reasons",
    "discoveries",
]
