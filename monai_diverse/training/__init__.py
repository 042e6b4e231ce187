"""Training a small class-conditional diffusion model on one's own images."""

from monai_diverse.training.card import write_card, write_model_json
from monai_diverse.training.config import TrainConfig
from monai_diverse.training.run import Progress, TrainingData, prepare, train

__all__ = ["Progress", "TrainConfig", "TrainingData", "prepare", "train", "write_card", "write_model_json"]
