"""Training a small class-conditional diffusion model on one's own images."""

from monai_diverse.training.card import ModelCard, write_card, write_model_json
from monai_diverse.training.config import TrainConfig
from monai_diverse.training.run import Progress, train
from monai_diverse.training.split import TrainingData, prepare
from monai_diverse.training.team import is_first, launched_processes

__all__ = [
    "ModelCard",
    "Progress",
    "TrainConfig",
    "TrainingData",
    "is_first",
    "launched_processes",
    "prepare",
    "train",
    "write_card",
    "write_model_json",
]
