"""Balls to keep out of: exact in chunks, by an index where there are very many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from monai_diverse.errors import RecipeError
from monai_diverse.information.cells import Cells, faiss_installed

CHUNK = 4096
"""Centres that are compared at a time, so that memory stays bounded."""
PROBES = 16
"""One in so many cells of the index is searched."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Balls:
    """Balls with a class; a point is pushed out of those of its own class.

    push_i = sum_k relu(r_k / |x_i - z_k| - 1) (x_i - z_k) (SPELL, Kirchhof et al. 2025).

    Attributes:
        centres: (m, p).
        radii: (m,).
        labels: (m,) their classes.
        index_from: class-mates from which on a FAISS index finds those within reach; it misses few of them. None: never.
    """

    centres: Tensor
    radii: Tensor
    labels: Tensor
    index_from: int | None = None

    def push(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pushes points (n, p) of classes (n,).

        Returns:
            The pushes (n, p), and how deep each point lies in the ball that it is deepest in (n,), 0 outside all.

        Raises:
            RecipeError: an index is wanted, but FAISS is not installed.
        """
        out, depth = torch.zeros_like(points), points.new_zeros(len(points))
        for c in np.unique(labels.cpu().numpy()).tolist():
            rows, index = labels == c, self._indexes.get(c)
            if c not in self._by_class:
                continue
            centres, radii = self._by_class[c]
            if index is None:
                out[rows], depth[rows] = _exact(points[rows], centres, radii)
            else:
                out[rows], depth[rows] = _within_reach(points[rows], centres, radii, index)
        return out, depth

    @cached_property
    def _by_class(self) -> Mapping[int, tuple[Tensor, Tensor]]:
        kept = {c: self.labels == c for c in np.unique(self.labels.cpu().numpy()).tolist()}
        # in double precision: close to a centre the two terms of the push are large and nearly cancel
        return {c: (self.centres[rows].double(), self.radii[rows].double()) for c, rows in kept.items()}

    @cached_property
    def _indexes(self) -> Mapping[int, Cells]:
        least = float("inf") if self.index_from is None else self.index_from
        large = {c: centres for c, (centres, _) in self._by_class.items() if len(centres) >= least}
        if not large:
            return {}
        if not faiss_installed():
            raise RecipeError(f"index_from {least}: expected FAISS: pip install 'monai-diverse[faiss]', or set it to null")
        return {c: _indexed(centres) for c, centres in large.items()}


def _exact(points: Tensor, centres: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    x, total = points.double(), torch.zeros(points.shape, dtype=torch.float64, device=points.device)
    depth = total.new_zeros(len(points))
    for start in range(0, len(centres), CHUNK):
        z, r = centres[start : start + CHUNK].to(x.device), radii[start : start + CHUNK].to(x.device)
        distances = torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(1e-6)
        weights = (r / distances - 1).clamp_min(0)
        total += weights.sum(1, keepdim=True) * x - weights @ z
        depth = torch.maximum(depth, (r - distances).amax(1))
    return total.to(points.dtype), depth.to(points.dtype)


def _within_reach(points: Tensor, centres: Tensor, radii: Tensor, index: Cells) -> tuple[Tensor, Tensor]:
    """The same sum over the centres that the index finds within the largest radius."""
    found = index.within_reach(points.detach().cpu().numpy(), float(radii.max()))
    out, depth = torch.zeros_like(points), points.new_zeros(len(points))
    for i, indices in enumerate(found):
        if len(indices):
            near = torch.from_numpy(indices)
            out[i : i + 1], depth[i : i + 1] = _exact(points[i : i + 1], centres[near], radii[near])
    return out, depth


def _indexed(centres: Tensor) -> Cells:
    cells = Cells.fit(centres.cpu().numpy())
    return replace(cells, probes=max(1, cells.count // PROBES))
