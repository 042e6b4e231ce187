"""Bank samples in any torch dataset, without touching its transforms, and how often they are drawn."""

from monai_diverse.dataset.diverse import DiverseDiffusionDataset
from monai_diverse.dataset.sampler import mixing_sampler

__all__ = ["DiverseDiffusionDataset", "mixing_sampler"]
