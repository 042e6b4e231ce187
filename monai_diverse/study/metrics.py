"""How well a classifier did, by scikit-learn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score, roc_auc_score

from monai_diverse.data import IntArray, check_labels, require_every_class
from monai_diverse.errors import DataError

METRICS = ("balanced_accuracy", "auc", "accuracy")
"""The headline metrics; higher is better."""
ECE_BINS = 15


def metrics_of(probabilities: npt.NDArray[np.float64], labels: IntArray) -> dict[str, float]:
    """Scores predicted class probabilities; the decision is the most probable class.

    Args:
        probabilities: (n, K), rows sum to 1.
        labels: (n,) true classes 0..K-1, each at least once.

    Returns:
        balanced_accuracy (mean recall of the classes), auc (area under the ROC curve; with more than two classes the
        unweighted mean of one-versus-rest areas), accuracy, recall_0, recall_1, ... of each class, and ece
        (`calibration_error`, lower is better), each in [0, 1].

    Raises:
        DataError: shapes that do not fit, NaN, or a class without an image: balanced accuracy and AUC would be undefined.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise DataError(f"probabilities: expected shape (n, classes) with two or more classes, got {probabilities.shape}")
    if not np.isfinite(probabilities).all():
        raise DataError("probabilities: expected finite values, got NaN or infinity; the training diverged, so lower its learning_rate")
    classes = probabilities.shape[1]
    labels = check_labels(labels, len(probabilities), classes)
    require_every_class(labels, classes, "images to score")
    decided = probabilities.argmax(axis=1)
    shares = probabilities[:, 1] if classes == 2 else probabilities
    return {
        "balanced_accuracy": float(balanced_accuracy_score(labels, decided)),
        "auc": float(roc_auc_score(labels, shares, multi_class="ovr", average="macro")),
        "accuracy": float(accuracy_score(labels, decided)),
        **{f"recall_{c}": float(recall) for c, recall in enumerate(recall_score(labels, decided, average=None))},
        "ece": calibration_error(probabilities, labels),
    }


def calibration_error(probabilities: npt.NDArray[np.float64], labels: IntArray) -> float:
    """Expected calibration error: mean over images of |accuracy - confidence| of the image's bin.

    Confidence is the largest predicted probability; the bins are `ECE_BINS` of equal width, open below and closed above
    (Guo et al., ICML 2017, equations 2, 3 and 5). It is biased upwards where bins hold few images, for all arms alike.

    Args:
        probabilities: (n, K), rows sum to 1.
        labels: (n,) true classes 0..K-1.

    Returns:
        A share in [0, 1]; 0 where confidence is accuracy.
    """
    confidence = probabilities.max(axis=1)
    excess = (probabilities.argmax(axis=1) == labels) - confidence
    bins = np.digitize(confidence, np.linspace(0, 1, ECE_BINS + 1)[1:-1], right=True)
    return float(np.abs(np.bincount(bins, weights=excess)).sum() / len(labels))
