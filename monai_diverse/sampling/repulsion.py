"""What guides that push away from images share: low-passed space, the push, distances by class."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from monai_diverse.data import IntArray


def low_passed(images: Tensor, pool: int) -> Tensor:
    """Average-pools images (n, c, *spatial), two or three spatial axes, by `pool` along each."""
    if pool == 1:
        return images
    if images.ndim == 4:
        return F.adaptive_avg_pool2d(images, (max(1, images.shape[2] // pool), max(1, images.shape[3] // pool)))
    return F.adaptive_avg_pool3d(images, (max(1, images.shape[2] // pool), max(1, images.shape[3] // pool), max(1, images.shape[4] // pool)))


def push_out(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """sum_k relu(radii_ik / |points_i - centres_k| - 1) (points_i - centres_k), without an (n, m, p) array."""
    # in double precision: close to a centre the two terms below are large and nearly cancel
    x, z = points.double(), centres.double()
    distances = torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist").clamp_min(1e-6)
    weights = (radii / distances - 1).clamp_min(0)
    return (weights.sum(1, keepdim=True) * x - weights @ z).to(points.dtype)


def with_intensity_of(moved: Tensor, original: Tensor) -> Tensor:
    """`moved` (n, c, *spatial) with each image's mean and standard deviation as in `original`."""
    axes = tuple(range(1, moved.ndim))
    mean, deviation = original.mean(axes, keepdim=True), original.std(axes, keepdim=True)
    return mean + (moved - moved.mean(axes, keepdim=True)) * (deviation / moved.std(axes, keepdim=True).clamp_min(1e-6))


def upsampled(push: Tensor, like: Tensor) -> Tensor:
    """A low-passed push (n, c, *small) at the resolution of `like` (n, c, *spatial), linearly interpolated."""
    if push.shape == like.shape:
        return push
    return F.interpolate(push, size=like.shape[2:], mode="bilinear" if like.ndim == 4 else "trilinear", align_corners=False)


def nearest_by_class(queries: Tensor, query_labels: Tensor, points: Tensor, labels: Tensor, skip: int) -> Tensor:
    """Distance of each query to its nearest class-mate, after `skip` nearer ones; NaN where there is none."""
    out = torch.full((len(queries),), float("nan"))
    for c in _classes(query_labels):
        asked, mates = query_labels == c, labels == c
        if int(mates.sum()) > skip:
            index = NearestNeighbors(n_neighbors=skip + 1).fit(points[mates].numpy())
            out[asked] = torch.from_numpy(index.kneighbors(queries[asked].numpy())[0][:, skip]).float()
    return out


def quantile_by_class(values: Tensor, of: Tensor, wanted: Tensor, quantile: float) -> Tensor:
    """The quantile of `values` by class, for each of `wanted`; classes without a value take that of all."""
    overall = float(values.nanquantile(quantile))
    table = {c: float(values[of == c].nanquantile(quantile)) for c in _classes(of)}
    found = [table.get(int(c), overall) for c in wanted]
    return torch.tensor([overall if np.isnan(v) else v for v in found])


def _classes(labels: Tensor) -> IntArray:
    return np.unique(labels.numpy())
