"""Sentences of a random grammar on a binary tree: data whose every probability is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from monai_diverse.errors import DataError, RecipeError

DEEPEST = 12
"""4096 leaves: beyond, nothing here fits in memory."""


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """A random grammar: every node of a binary tree holds a symbol, which says how probable each pair of children is.

    The ordered pairs of symbols are dealt out among the symbols, `alphabet` to each, so that a pair has one possible parent; `allowed` of a symbol's
    pairs occur. M[a, b, c] = P(children b, c | parent a) is the softmax of standard normal logits on the allowed pairs of a, zero elsewhere, and the
    same at all levels. The root is uniform. (Garnier-Brun et al., arXiv 2603.03469; the defaults are theirs.)

    A level of the tree is counted from the leaves: height 0 are the leaves, height `depth` is the root. Trees are lists of int64 tensors
    (n, nodes), one a height, nodes from left to right.

    Attributes:
        depth: levels above the leaves, 1..12; there are 2 ** depth leaves.
        alphabet: number q of symbols, from 2.
        allowed: pairs of each symbol that occur, 1..alphabet.
        seed: of the pairs and their probabilities, from 0.
    """

    depth: int = 4
    alphabet: int = 6
    allowed: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("depth", 1, DEEPEST), ("alphabet", 2, None), ("allowed", 1, self.alphabet), ("seed", 0, None)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
                bounds = f"of at least {low}" if high is None else f"in {low}..{high}"
                raise RecipeError(f"{name}: expected a whole number {bounds}, got {value!r}")

    @property
    def leaves(self) -> int:
        """Number of leaves."""
        return int(2**self.depth)

    @cached_property
    def pairs(self) -> Tensor:
        """int64 (q, allowed, 2): the allowed pairs of each symbol, left and right child."""
        numbers = np.random.default_rng([self.seed, 0]).permutation(self.alphabet**2)
        chosen = torch.from_numpy(numbers.reshape(self.alphabet, self.alphabet)[:, : self.allowed].copy())
        return torch.stack([chosen // self.alphabet, chosen % self.alphabet], -1)

    @cached_property
    def log_probabilities(self) -> Tensor:
        """float64 (q, allowed): logarithm of the probability of each allowed pair; each row's probabilities add up to 1."""
        logits = np.random.default_rng([self.seed, 1]).standard_normal((self.alphabet, self.allowed))
        return torch.log_softmax(torch.from_numpy(logits), -1)

    @cached_property
    def transitions(self) -> Tensor:
        """M, float64 (q, q, q): probability of the children b, c of a."""
        result = torch.zeros((self.alphabet,) * 3, dtype=torch.float64)
        parent = torch.arange(self.alphabet)[:, None].expand(-1, self.allowed)
        result[parent, self.pairs[..., 0], self.pairs[..., 1]] = self.log_probabilities.exp()
        return result

    @cached_property
    def _parent(self) -> Tensor:
        """(q, q): the symbol that a pair comes from, -1 for a pair that does not occur."""
        found = self.transitions.max(0)
        return torch.where(found.values > 0, found.indices, -1)

    def priors(self, height: int) -> Tensor:
        """float64 (nodes, q): the marginal distribution of each node at a height. Left and right children differ in theirs.

        Raises:
            RecipeError: no such height.
        """
        self.require_height("height", height)
        result = torch.full((1, self.alphabet), 1 / self.alphabet, dtype=torch.float64)
        for _ in range(self.depth - height):
            pairs = torch.einsum("na,abc->nbc", result, self.transitions)
            result = torch.stack([pairs.sum(2), pairs.sum(1)], 1).flatten(0, 1)
        return result

    def chance(self, height: int) -> float:
        """Probability that a node at a height, averaged over its nodes, agrees in two independent draws: sum of squared priors.

        Raises:
            RecipeError: no such height.
        """
        return float(self.priors(height).square().sum(1).mean())

    def sample(self, count: int, seed: int) -> Tensor:
        """Leaves int64 (count, leaves) of independent trees.

        Raises:
            RecipeError: a count or seed below 0.
        """
        return self.sample_trees(count, seed)[0]

    def sample_trees(self, count: int, seed: int) -> list[Tensor]:
        """Independent trees, all heights, leaves first; the leaves are those of `sample`.

        Raises:
            RecipeError: a count or seed below 0.
        """
        if count < 0:
            raise RecipeError(f"count: expected at least 0, got {count}")
        rng = np.random.default_rng([self.seed, 2, require_seed(seed)])
        tree = [torch.from_numpy(rng.integers(self.alphabet, size=(count, 1)))]
        edges = self.log_probabilities.exp().cumsum(-1)[:, :-1]  # the last edge is 1, up to rounding
        for _ in range(self.depth):
            level = torch.from_numpy(rng.random(tree[0].shape))
            choice = (level[..., None] > edges[tree[0]]).sum(-1)
            tree.insert(0, self.pairs[tree[0], choice].flatten(1))
        return tree

    def log_likelihood(self, leaves: Tensor) -> Tensor:
        """Logarithm (n,), float64, of the probability of each sequence of leaves; -inf where the grammar cannot make it.

        A pair has one possible parent, so leaves have one possible tree: its probability is theirs.

        Raises:
            DataError: not leaves of this grammar.
        """
        level, total = self.require_leaves(leaves), torch.full((len(leaves),), -math.log(self.alphabet), dtype=torch.float64)
        for _ in range(self.depth):
            left, right = level[:, ::2], level[:, 1::2]
            level = self._parent[left, right]
            known = level.clamp(min=0)
            total = total + torch.where(level < 0, -torch.inf, self.transitions[known, left, right].log()).sum(1)
            level = known
        return total

    def is_valid(self, leaves: Tensor) -> Tensor:
        """bool (n,): can the grammar make these leaves?

        Raises:
            DataError: not leaves of this grammar.
        """
        return torch.isfinite(self.log_likelihood(leaves))

    def one_hot(self, leaves: Tensor) -> Tensor:
        """Clean data x0, float32 (n, leaves, q), of leaves (n, leaves).

        Raises:
            DataError: not leaves of this grammar.
        """
        return torch.nn.functional.one_hot(self.require_leaves(leaves), self.alphabet).float()

    def require_leaves(self, leaves: Tensor) -> Tensor:
        """The leaves, if they are some.

        Raises:
            DataError: another type or shape, or symbols that are not in the alphabet.
        """
        if leaves.dtype != torch.int64 or leaves.ndim != 2 or leaves.shape[1] != self.leaves:
            raise DataError(f"leaves: expected int64 (n, {self.leaves}), got {str(leaves.dtype).removeprefix('torch.')} {tuple(leaves.shape)}")
        if len(leaves) and not 0 <= int(leaves.min()) <= int(leaves.max()) < self.alphabet:
            raise DataError(f"leaves: expected symbols 0..{self.alphabet - 1}, got {int(leaves.min())}..{int(leaves.max())}")
        return leaves

    def require_height(self, name: str, height: int) -> int:
        """The height, if the tree has it.

        Raises:
            RecipeError: it has not.
        """
        if not 0 <= height <= self.depth:
            raise RecipeError(f"{name}: expected a height in 0..{self.depth}, leaves to root, got {height}")
        return height


def require_seed(seed: int) -> int:
    """The seed, if it is one.

    Raises:
        RecipeError: it is below 0.
    """
    if seed < 0:
        raise RecipeError(f"seed: expected at least 0, got {seed}")
    return seed
