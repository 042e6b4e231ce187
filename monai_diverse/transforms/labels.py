"""Class labels in whatever form a data set holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from monai_diverse.errors import DataError


def read_label(value: Any) -> int:
    """The class that a label stands for.

    Args:
        value: a whole number: Python's, NumPy's, or an array or tensor with one element; or a one-hot array or tensor.

    Raises:
        DataError: anything else, such as soft labels or names.
    """
    if type(value) is int:
        return value
    array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    if array.dtype.kind in "iufb":
        if array.size == 1 and float(array.item()).is_integer():
            return int(array.item())
        if array.size > 1 and max(array.shape) == array.size and np.count_nonzero(array) == 1 and array.max() == 1:
            return int(array.argmax())
    raise DataError(f"label: expected a whole number, or a one-hot array, got {value!r}; convert labels before this transform")


def write_label(like: Any, label: int) -> Any:
    """Class `label` in the form of `like`: same type, dtype, shape and device.

    Raises:
        DataError: the form cannot hold this class.
    """
    try:
        written = _written(like, label)
        if read_label(written) == label:
            return written
    except (DataError, IndexError, OverflowError, RuntimeError, TypeError, ValueError):
        pass  # each type refuses in its own way what it cannot hold
    raise DataError(f"label: expected a form that can hold class {label}, got {like!r}; widen the labels, or use label_policy='match'")


def soft_label(like: Any, shares: Mapping[int, float], classes: int) -> Any:
    """The share of each class, float32 (classes,), whatever form the label had.

    Args:
        like: the item's label: a tensor (or MetaTensor) gives a tensor on its device, anything else a NumPy array.
        shares: class -> share, together 1.
        classes: how many there are.

    Raises:
        DataError: a class beyond `classes`, or a one-hot label of another length.
    """
    unknown = [label for label in shares if not 0 <= label < classes]
    if unknown:
        raise DataError(f"label: expected classes 0..{classes - 1}, got {unknown[0]}; set num_classes to how many classes your labels have")
    size = int(np.prod(np.shape(like), dtype=np.int64))
    if size not in (1, classes):
        raise DataError(f"label: expected one-hot labels of num_classes={classes} entries, got {size}; set num_classes to how many they have")
    vector = np.zeros(classes, np.float64)
    for label, share in shares.items():
        vector[label] = share
    soft = vector.astype(np.float32)
    return torch.from_numpy(soft).to(like.device) if isinstance(like, torch.Tensor) else soft


def _written(like: Any, label: int) -> Any:
    if isinstance(like, torch.Tensor):
        tensor = torch.zeros(tuple(like.shape), dtype=like.dtype, device=like.device)
        _fill(tensor.view(-1), label)
        return MetaTensor(tensor) if isinstance(like, MetaTensor) else tensor
    if isinstance(like, np.ndarray):
        array = np.zeros(like.shape, like.dtype)
        _fill(array.reshape(-1), label)
        return array
    return type(like)(label)


def _fill(flat: Any, label: int) -> None:
    """Writes into a vector: the class itself if there is one element, else a one."""
    if len(flat) == 1:
        flat[0] = label
    else:
        flat[label] = 1
