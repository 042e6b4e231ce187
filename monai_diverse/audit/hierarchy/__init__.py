"""Hierarchical data whose exact scores are known, so that what a model learned and what it memorised can be told apart.

After Garnier-Brun et al., 'Biased Generalization in Diffusion Models' (arXiv 2603.03469).
"""

from monai_diverse.audit.hierarchy.denoiser import ExactDenoiser, published_schedule
from monai_diverse.audit.hierarchy.grammar import Grammar
from monai_diverse.audit.hierarchy.losses import (
    LevelLearned,
    LossSplit,
    NoisyLeaves,
    divergence,
    levels_learned,
    loss_by_index,
    oracle_loss,
    split_loss,
)
from monai_diverse.audit.hierarchy.nearest import NeighbourBias, nearest_difference, neighbour_bias, pair_distance
from monai_diverse.audit.hierarchy.propagation import most_probable_ancestors, propagate
from monai_diverse.audit.hierarchy.walks import UTurn, sample_leaves, u_turn

__all__ = [
    "ExactDenoiser",
    "Grammar",
    "LevelLearned",
    "LossSplit",
    "NeighbourBias",
    "NoisyLeaves",
    "UTurn",
    "divergence",
    "levels_learned",
    "loss_by_index",
    "most_probable_ancestors",
    "nearest_difference",
    "neighbour_bias",
    "oracle_loss",
    "pair_distance",
    "propagate",
    "published_schedule",
    "sample_leaves",
    "split_loss",
    "u_turn",
]
