"""Do samples lie closer to the leaves that their model was trained on than to as many others?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_diverse.audit.hierarchy.grammar import Grammar
from monai_diverse.errors import DataError

CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class NeighbourBias:
    """Nearest neighbours of samples in two sets of the same size.

    Attributes:
        own: mean share of leaves in which a sample differs from its nearest training row, in [0, 1].
        other: the same to the nearest row of the other set.
        ratio: own / other; 1 without bias, below 1 where samples lean towards their training set; None where `other` is 0.
        own_nearer: probability that the training set has the nearer row, ties counted half; .5 without bias.
        copies: share of samples that are a training row.
        copies_of_other: share of samples that are a row of the other set; what `copies` would be by chance.
    """

    own: float
    other: float
    ratio: float | None
    own_nearer: float
    copies: float
    copies_of_other: float


def nearest_difference(grammar: Grammar, samples: Tensor, rows: Tensor) -> Tensor:
    """Share of leaves in which each sample (m, leaves) differs from the row (n, leaves) that is nearest in that sense; float64 (m,).

    Raises:
        DataError: not leaves of this grammar, or no rows.
    """
    if not len(rows):
        raise DataError("rows: expected at least one row of leaves, got none")
    table = grammar.one_hot(rows).flatten(1).T
    asked = grammar.one_hot(samples).flatten(1)
    agree = torch.cat(
        [(asked[start : start + CHUNK] @ table).amax(1) for start in range(0, max(1, len(asked)), CHUNK)]
    ).double()  # whole numbers, exact in float32
    return 1 - agree / grammar.leaves


def neighbour_bias(grammar: Grammar, samples: Tensor, own: Tensor, other: Tensor) -> NeighbourBias:
    """Compares samples (m, leaves) with their training set and with another of the same size (n, leaves), disjoint from it.

    Raises:
        DataError: not leaves of this grammar, no samples, or sets of different sizes: the larger one is nearer whatever it holds.
    """
    if len(own) != len(other):
        raise DataError(f"other: expected {len(own)} rows, as many as the training set, got {len(other)}; take a part of the larger one")
    if not len(samples):
        raise DataError("samples: expected at least one row of leaves, got none")
    near, far = nearest_difference(grammar, samples, own), nearest_difference(grammar, samples, other)
    mean = float(far.mean())
    return NeighbourBias(
        own=float(near.mean()),
        other=mean,
        ratio=float(near.mean()) / mean if mean else None,
        own_nearer=float(((near < far).double() + 0.5 * (near == far).double()).mean()),
        copies=float((near == 0).double().mean()),
        copies_of_other=float((far == 0).double().mean()),
    )


def pair_distance(first: Tensor, second: Tensor) -> float:
    """D_pair of leaves (n, leaves): share in which the samples of two models from the same noises differ, in [0, 1].

    It is 1 - mean_j <phi(x_A^j), phi(x_B^j)> with phi the one-hot leaves, scaled to length 1 (arXiv 2603.03469).

    Raises:
        DataError: shapes that differ, or no samples.
    """
    if first.shape != second.shape or not len(first):
        raise DataError(f"pairs: expected samples of two models from the same noises, got shapes {tuple(first.shape)} and {tuple(second.shape)}")
    return float((first != second).double().mean())
