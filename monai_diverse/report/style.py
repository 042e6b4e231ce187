"""What the figures and the page of a report share: colours, names, numbers, and how an image becomes a picture."""

from __future__ import annotations

import numpy as np

from monai_diverse.data import FloatArray

# Okabe and Ito's palette: told apart with any colour vision, and by lightness in grey print
ORANGE, BLUE, GREEN, GREY, INK, SOFT = "#D55E00", "#0072B2", "#009E73", "#8A8A8A", "#222222", "#555555"
METRIC_NAMES = {"balanced_accuracy": "balanced accuracy", "auc": "AUC", "accuracy": "accuracy"}
REASON_NAMES = {"copy": "copy", "not_novel": "not novel", "irrelevant": "irrelevant", "outlier": "outlier", "duplicate": "duplicate"}


def significant(value: float, digits: int) -> str:
    """A number to so many significant digits, never with an exponent."""
    return np.format_float_positional(value, precision=digits, unique=False, fractional=False, trim="-")


def picture(image: FloatArray) -> FloatArray:
    """An image (c, *spatial) in [0, 1] as RGB (h, w, 3): the middle slice of a volume, the first channel unless there are three."""
    flat = image[:, image.shape[1] // 2] if image.ndim == 4 else image
    channels = flat if len(flat) == 3 else np.repeat(flat[:1], 3, axis=0)
    return np.clip(np.moveaxis(channels, 0, -1), 0, 1).astype(np.float32)
