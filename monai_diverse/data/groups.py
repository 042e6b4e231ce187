"""Groups of near-duplicates, and splits that keep them whole."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse import vstack as sparse_vstack
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from monai_diverse.data.labelled import FloatArray, IntArray, LabelledImages
from monai_diverse.errors import DataError


def near_duplicate_groups(images: FloatArray, threshold: float = 0.95) -> IntArray:
    """Groups of images that repeat one another: views of one lesion, copies, crops.

    Args:
        images: (n, channels, *spatial).
        threshold: Pearson correlation of two images' pixels from which on they count as one group (transitively).

    Returns:
        int64 (n,), group numbers from 0 in order of first appearance.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    # in rows, because all correlations of 100,000 images at once would take 40 GB
    rows = [csr_array(flat[start : start + 1000] @ flat.T > threshold) for start in range(0, len(flat), 1000)]
    _, groups = connected_components(sparse_vstack(rows), directed=False)
    return np.asarray(groups, dtype=np.int64)


def split_by_group(data: LabelledImages, parts: int, seed: int) -> tuple[IntArray, IntArray]:
    """Sets one of `parts` equal parts aside, keeping groups whole and class shares close.

    Returns:
        (kept, aside): sorted indices into `data`; `aside` is about 1/`parts` of it.

    Raises:
        DataError: fewer groups of some class than parts.
    """
    per_class = [len(np.unique(data.group_ids[data.labels == c])) for c in range(len(data.class_counts))]
    if min(per_class) < parts:
        raise DataError(f"split: expected at least {parts} groups of every class to set 1/{parts} aside, got {per_class} by class")
    folds = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=seed)
    kept, aside = next(iter(folds.split(data.labels, data.labels, data.group_ids)))
    return np.sort(kept).astype(np.int64), np.sort(aside).astype(np.int64)
