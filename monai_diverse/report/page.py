"""One self-contained HTML page: what was done, what came out, and what it does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_diverse.datasheet import audit_digest, audit_lines
from monai_diverse.errors import DataError
from monai_diverse.report.figures import MAX_PAIRS, Pictures, draw_figures
from monai_diverse.report.rendering import duration, encoded, png, render
from monai_diverse.report.style import METRIC_NAMES, REASON_NAMES, significant
from monai_diverse.report.words import (
    classifier_in_words,
    difference_in_words,
    nearest_in_words,
    parity_in_words,
    references_in_words,
    score_in_words,
    yields_in_words,
)
from monai_diverse.storage import make_folder, write_atomic

BREASTMNIST_ATTRIBUTION = (
    "BreastMNIST (MedMNIST v2), licence CC BY 4.0. Yang J, Shi R, Wei D, et al. MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D "
    "biomedical image classification. Scientific Data 10, 41 (2023), doi:10.1038/s41597-022-01721-8.",
    "Underlying images: Al-Dhabyani W, Gomaa M, Khaled H, Fahmy A. Dataset of breast ultrasound images. Data in Brief 28, 104863 (2020), "
    "doi:10.1016/j.dib.2019.104863.",
    "Changes made: real images are shown enlarged; generated images come from a diffusion model that was trained on them.",
)
REASON_MEANINGS = {
    "copy": "closer to a training image of the generator than nearly all of those are to one another",
    "not_novel": "no further from the real images than unseen real images of its class usually are",
    "irrelevant": "a classifier of the real images does not see the class that was asked for",
    "outlier": "outside the range of real images in a view that novelty was not judged in",
    "duplicate": "repeats a sample that was accepted before",
}
SCORE_NAMES = REASON_NAMES | {"information_gain": "information gain (nats)", "surprisal": "surprisal (nats)"}
INFORMATION_NAMES = {
    "information_gain": "information gain of an image",
    "information_gain_of_set": "information gain of all",
    "surprisal_excess": "surprisal of an image",
    "code_entropy": "entropy of clusters",
    "code_divergence": "divergence of clusters",
    "code_label_information": "information of cluster and class",
    "nearest_entropy": "entropy of nearest images",
    "nearest_images": "different nearest images",
    "vendi": "Vendi score",
    "rke": "RKE modes",
    "unseen_mass": "share in new clusters",
}
SET_NAMES = {"diverse": "diverse (accepted)", "random": "random (no guide), unscreened", "calibration": "calibration (real)"}
_REQUIRED = ("version", "seed", "quick", "seconds", "environment", "yield", "rejections", "classifier", "comparisons", "bank")
_OPTIONAL = ("recipe", "provenance", "rejections_random", "classifier_without_twins", "thresholds", "information")


def write_report(out: Path, summary: Mapping[str, Any], pictures: Pictures, *, attribution: Sequence[str] = BREASTMNIST_ATTRIBUTION) -> Path:
    """Writes `out/figures/*.png` and `out/report.html`, which holds all it needs and opens without a network.

    Args:
        out: folder; made if need be.
        summary: JSON value with the keys version, seed, quick, seconds, environment, yield (diverse, random, heldout_real), rejections,
            classifier (arm -> metric -> mean and ci95), comparisons (diverse_vs_CONTROL -> metric -> mean and ci95) and bank (path, size,
            fingerprint). Shown if there: rejections_random, classifier_without_twins (as classifier, and the number of test images in
            "images"), heldout_real_with_twins (in yield), references (see `references_in_words`), thresholds (of each gate by its
            reason), information (see `describe_information`), audit (the summary of `audit_model`), recipe and provenance. An interval may
            be [None, None].
        pictures: the images to show.
        attribution: one paragraph a source of data that must be named.

    Returns:
        The page's path.

    Raises:
        DataError: a key that the page needs is missing.
        StorageError: the disk refuses.
    """
    absent = [key for key in _REQUIRED if key not in summary]
    if absent:
        raise DataError(f"summary: expected the keys {', '.join(_REQUIRED)}, missing {', '.join(absent)}")
    folder = make_folder(make_folder(out) / "figures")
    shown: dict[str, str] = {}
    for name, figure in draw_figures(summary, pictures).items():
        content = png(figure)
        write_atomic(folder / f"{name}.png", content)
        shown[name] = encoded(content)
    page = out / "report.html"
    write_atomic(page, _render(summary, pictures, shown, attribution).encode())
    return page


def _render(summary: Mapping[str, Any], pictures: Pictures, figures: Mapping[str, str], attribution: Sequence[str]) -> str:
    yields = summary["yield"]
    pairs = (("diverse samples", "held-out real images", "heldout_real"), ("diverse samples", "unguided random samples", "random"))
    filters = {"yield_interval": _yield_interval, "words": difference_in_words, "information": score_in_words, "score": _score}
    return render(
        "page.html",
        filters,
        summary={key: {} for key in _OPTIONAL} | dict(summary),
        information_names=INFORMATION_NAMES,
        set_names=SET_NAMES,
        references=references_in_words(summary["references"], pictures.class_names) if "references" in summary else [],
        nearest=nearest_in_words(pictures.nearest_set),
        volumes=pictures.real.ndim == 5,
        share_shown=None if pictures.map is None else significant(100 * sum(pictures.map.variance), 2),
        figures=figures,
        pictures=pictures,
        attribution=attribution,
        metrics=METRIC_NAMES,
        reasons={name: (REASON_NAMES[name], meaning) for name, meaning in REASON_MEANINGS.items()},
        score_names=_score_names(pictures),
        shown=min(len(pictures.diverse), MAX_PAIRS),
        order=_order_of(pictures),
        parity=parity_in_words(yields["diverse"], yields["heldout_real"]),
        yield_words=[yields_in_words(yields["diverse"], yields[key], ours, theirs) for ours, theirs, key in pairs],
        audit=audit_lines(audit_digest(summary["audit"])) if summary.get("audit") else [],
        classifier_words=classifier_in_words(summary["comparisons"]),
        duration=duration(summary["seconds"]),
    )


def _order_of(pictures: Pictures) -> str:
    gains = [scores.get("information_gain") for scores in pictures.diverse_scores]
    if any(gain is None for gain in gains):
        return "in the order of the bank"
    return "those with the highest information gain first" if gains == sorted(gains, key=lambda gain: -(gain or 0.0)) else "in the order of the bank"


def _score_names(pictures: Pictures) -> dict[str, str]:
    present = dict.fromkeys(name for scores in pictures.diverse_scores for name in scores)
    known = [name for name in SCORE_NAMES if name in present]
    return {name: SCORE_NAMES.get(name, name.replace("_", " ")) for name in dict.fromkeys([*known, *present])}


def _yield_interval(ci95: Sequence[float]) -> str:
    low, high = ci95
    return f"{significant(low, 4)} to {significant(high, 4)}"


def _score(value: float | None) -> str:
    return "–" if value is None else significant(value, 3).replace("-", "−")
