"""Belief propagation on the tree of a grammar: exact posteriors of all its nodes, in one pass up and one down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from monai_diverse.audit.hierarchy.grammar import Grammar
from monai_diverse.errors import DataError

MISREAD = 1e-6
"""Probability with which a clean leaf counts as misread in `most_probable_ancestors`: leaves that no tree makes then have ancestors too."""


def propagate(grammar: Grammar, evidence: Tensor, level: int | None = None) -> list[Tensor]:
    """Posteriors of the nodes given evidence on each leaf, exact within subtrees of height `level`.

    Up: v_i(a) ~ sum_bc M[a,b,c] v_l(b) v_r(c). Down: u_l(b) ~ sum_ac u_i(a) M[a,b,c] v_r(c), and alike on the right, from the uniform root, or, below
    the full depth, from the prior marginal of each node at that height: what is known of a leaf is then what the leaves of its own subtree say. The
    marginal is ~ u v (Garnier-Brun et al., arXiv 2603.03469). In logarithms, so that neither depth nor sharp evidence underflows.

    Args:
        grammar: the tree.
        evidence: float (n, leaves, q), finite: logarithm of the likelihood of each symbol, up to a constant for each leaf.
        level: height k of the subtrees, 0..depth; None: the full depth.

    Returns:
        float64 (n, nodes, q) for each height from 0 to `level`, rows that add up to 1.

    Raises:
        DataError: evidence of another shape or not finite.
        RecipeError: no such level.
    """
    top = grammar.require_height("level", grammar.depth if level is None else level)
    if evidence.ndim != 3 or tuple(evidence.shape[1:]) != (grammar.leaves, grammar.alphabet) or not bool(torch.isfinite(evidence).all()):
        raise DataError(f"evidence: expected finite (n, {grammar.leaves}, {grammar.alphabet}), got {tuple(evidence.shape)}, perhaps not finite")
    rules = _rules(grammar)
    up = [evidence.double()]
    for _ in range(top):
        up.append(rules.parents(up[-1]))
    down = grammar.priors(top).log().expand(len(evidence), -1, -1)
    posteriors = [torch.softmax(up[top] + down, -1)]
    for height in reversed(range(top)):
        down = rules.children(down, up[height])
        posteriors.insert(0, torch.softmax(up[height] + down, -1))
    return posteriors


def most_probable_ancestors(grammar: Grammar, leaves: Tensor) -> list[Tensor]:
    """The most probable symbol of each node given clean leaves, int64 (n, nodes) for each height from 0; the leaves as given.

    Each leaf counts as misread, with probability `MISREAD`, as any other symbol: leaves that the grammar can make have their one tree, others the
    marginals of the trees that differ from them in the fewest leaves.

    Raises:
        DataError: not leaves of this grammar.
    """
    evidence = torch.where(grammar.one_hot(leaves) > 0, 1 - MISREAD, MISREAD / (grammar.alphabet - 1)).log()
    return [leaves, *(posterior.argmax(-1) for posterior in propagate(grammar, evidence)[1:])]


@dataclass(frozen=True, eq=False)
class _Rules:
    """The allowed triples (parent, left, right) as a list; for each symbol the places where it is the left one, the right one."""

    log: Tensor
    triples: Tensor
    by_parent: Tensor
    by_left: Tensor
    by_right: Tensor

    def parents(self, below: Tensor) -> Tensor:
        """Upward messages (n, nodes, q) from those of the children (n, 2 nodes, q)."""
        return _sums(self.log + below[:, ::2, self.triples[1]] + below[:, 1::2, self.triples[2]], self.by_parent)

    def children(self, above: Tensor, below: Tensor) -> Tensor:
        """Downward messages (n, 2 nodes, q), from the parents' (n, nodes, q) and the upward ones of the siblings."""
        from_parent = self.log + above[..., self.triples[0]]
        left = _sums(from_parent + below[:, 1::2, self.triples[2]], self.by_left)
        right = _sums(from_parent + below[:, ::2, self.triples[1]], self.by_right)
        return torch.stack([left, right], 2).flatten(1, 2)


@cache
def _rules(grammar: Grammar) -> _Rules:
    parents = torch.arange(grammar.alphabet).repeat_interleave(grammar.allowed)
    triples = torch.stack([parents, *grammar.pairs.flatten(0, 1).T])
    tables = [_places(row, grammar.alphabet) for row in triples]
    return _Rules(grammar.log_probabilities.flatten(), triples, *tables)


def _places(symbols: Tensor, alphabet: int) -> Tensor:
    """(q, most): where each symbol occurs in a list, filled up with the list's length."""
    places = [torch.nonzero(symbols == symbol)[:, 0] for symbol in range(alphabet)]
    return torch.nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=len(symbols))


def _sums(values: Tensor, places: Tensor) -> Tensor:
    """Logarithm (..., q) of the summed exponentials of values (..., rules) at the places of each symbol; -inf where there are none."""
    padded = torch.nn.functional.pad(values, (0, 1), value=-torch.inf)
    return torch.logsumexp(padded[..., places], -1)
