"""Figures, and self-contained HTML pages: of a bank, of an audit, of a study."""

from monai_diverse.report.audit import write_audit
from monai_diverse.report.audit_figures import closest_figure, forest_figure, membership_figure
from monai_diverse.report.borderline import Borderline
from monai_diverse.report.figures import Pictures, draw_figures
from monai_diverse.report.map import FeatureMap
from monai_diverse.report.page import BREASTMNIST_ATTRIBUTION, write_report
from monai_diverse.report.study import study_markdown, write_study
from monai_diverse.report.study_figures import comparisons_figure, ratios_figure, recalls_figure, sizes_figure
from monai_diverse.report.twin_figures import divergence_figure, frontier_figure, lean_figure, phase_figure, quadruplets_figure

__all__ = [
    "BREASTMNIST_ATTRIBUTION",
    "Borderline",
    "FeatureMap",
    "Pictures",
    "closest_figure",
    "comparisons_figure",
    "divergence_figure",
    "draw_figures",
    "forest_figure",
    "frontier_figure",
    "lean_figure",
    "membership_figure",
    "phase_figure",
    "quadruplets_figure",
    "ratios_figure",
    "recalls_figure",
    "sizes_figure",
    "study_markdown",
    "write_audit",
    "write_report",
    "write_study",
]
