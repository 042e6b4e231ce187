"""Handlers for trainers of MONAI and Ignite: what batches were made of, epochs for curricula, banks that grow between epochs, stopping by bias.

Each is attached as MONAI's handlers are: in a trainer's `train_handlers`, or by `attach(engine)`.
"""

from monai_diverse.handlers.curriculum import CurriculumHandler
from monai_diverse.handlers.privacy import PrivacyStopping
from monai_diverse.handlers.refresh import BankRefreshHandler
from monai_diverse.handlers.stats import EpochStats, ItemCounts, SyntheticStatsHandler

__all__ = ["BankRefreshHandler", "CurriculumHandler", "EpochStats", "ItemCounts", "PrivacyStopping", "SyntheticStatsHandler"]
