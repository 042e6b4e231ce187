"""Figures and one self-contained HTML page."""

from monai_diverse.report.borderline import Borderline
from monai_diverse.report.figures import Pictures, draw_figures
from monai_diverse.report.map import FeatureMap
from monai_diverse.report.page import BREASTMNIST_ATTRIBUTION, write_report

__all__ = ["BREASTMNIST_ATTRIBUTION", "Borderline", "FeatureMap", "Pictures", "draw_figures", "write_report"]
