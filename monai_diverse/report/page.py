"""One self-contained HTML page: what was done, what came out, and what it does not show."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from monai_diverse.errors import DataError
from monai_diverse.report.figures import MAX_PAIRS, METRIC_NAMES, REASON_NAMES, Pictures, draw_figures
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
    "not_novel": "not further from the real images of its class than unseen real images usually are",
    "irrelevant": "a classifier of the real images does not see the class that was asked for",
    "outlier": "outside the range of real images in a view that novelty was not judged in",
    "duplicate": "repeats a sample that was accepted before",
}
SCORE_NAMES = REASON_NAMES | {"information_gain": "information gain (nats)", "surprisal": "surprisal (nats)"}
_REQUIRED = ("version", "seed", "quick", "seconds", "environment", "yield", "rejections", "classifier", "comparisons", "bank")


def write_report(out: Path, summary: Mapping[str, Any], pictures: Pictures, *, attribution: Sequence[str] = BREASTMNIST_ATTRIBUTION) -> Path:
    """Writes `out/figures/*.png` and `out/report.html`, which holds all it needs and opens without a network.

    Args:
        out: folder; made if need be.
        summary: JSON value with the keys version, seed, quick, seconds, environment, yield (diverse, random, heldout_real), rejections,
            classifier (arm -> metric -> mean and ci95), comparisons (diverse_vs_CONTROL -> metric -> mean and ci95) and bank (path, size,
            fingerprint). Shown if there: rejections_random, classifier_without_twins (as classifier, and the number of test images in
            "images"), heldout_real_with_twins (in yield), recipe and provenance. An interval may be [None, None].
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
    encoded: dict[str, str] = {}
    for name, figure in draw_figures(summary, pictures).items():
        content = _png(figure)
        write_atomic(folder / f"{name}.png", content)
        encoded[name] = base64.b64encode(content).decode()
    page = out / "report.html"
    write_atomic(page, _render(summary, pictures, encoded, attribution).encode())
    return page


def difference_in_words(value: Mapping[str, Any]) -> str:
    """What a difference (arm minus control) with its interval shows, in words."""
    low, high = value["ci95"]
    if low is None or high is None:
        return "one seed only, so no interval: nothing can be concluded"
    if low > 0:
        return "the interval lies above 0: better than the control"
    if high < 0:
        return "the interval lies below 0: worse than the control"
    return "the interval includes 0: no difference shown"


def classifier_in_words(comparisons: Mapping[str, Any]) -> str:
    """The outcome of all comparisons in one paragraph; a null result is called one."""
    words = [difference_in_words(c[m]) for c in comparisons.values() for m in METRIC_NAMES]
    total, better, worse = len(words), sum("above 0" in w for w in words), sum("below 0" in w for w in words)
    if not total:
        return "The classifier was not compared."
    if any("one seed" in w for w in words):
        return "The classifier was trained on one seed only: there is no interval, and nothing can be concluded."
    if not better and not worse:
        return (
            f"This is a null result: all {total} intervals of the differences between diverse samples and the controls include 0. "
            "No difference was shown, in either direction; a real but smaller difference is not excluded."
        )
    parts = [f"{better} favour diverse samples" if better else "", f"{worse} favour the control" if worse else ""]
    null = total - better - worse
    parts.append(f"{null} include 0 and show no difference" if null else "")
    text = f"Of the {total} intervals of the differences between diverse samples and the controls, {_listed([p for p in parts if p])}."
    return text + " About one interval in twenty excludes 0 by chance alone, so a single one is weak evidence."


def yields_in_words(ours: Mapping[str, Any], control: Mapping[str, Any], our_name: str, control_name: str) -> str:
    """Whether two yields differ, by their intervals; careful, since intervals may overlap although yields differ."""
    if ours["drawn"] == 0 or control["drawn"] == 0:
        return f"{our_name} and {control_name} cannot be compared: nothing was drawn for one of them."
    (low, high), (other_low, other_high) = ours["ci95"], control["ci95"]
    if low > other_high:
        return f"The interval of {our_name} lies above that of {control_name}: the yield is higher."
    if high < other_low:
        return f"The interval of {our_name} lies below that of {control_name}: the yield is lower."
    return f"The intervals of {our_name} and {control_name} overlap: this run does not show that the yields differ."


def parity_in_words(diverse: Mapping[str, Any], heldout: Mapping[str, Any]) -> str:
    """The ratio of the diverse yield to that of held-out real images, with the range that the two intervals allow."""
    if heldout["per_10k"] == 0 or diverse["drawn"] == 0:
        least = diverse["ci95"][0] / heldout["ci95"][1] if heldout["ci95"][1] and diverse["drawn"] else None
        beyond = "" if least is None else f"; from the two intervals it is at least {least:.2g}"
        return f"Parity cannot be computed: {heldout['accepted']:,} of {heldout['drawn']:,} held-out real images were accepted{beyond}."
    ratio, (low, high), (other_low, other_high) = diverse["per_10k"] / heldout["per_10k"], diverse["ci95"], heldout["ci95"]
    top = f"{high / other_low:.2g}" if other_low > 0 else "no upper limit"
    return f"Parity is {ratio:.2g}; dividing the ends of the two intervals gives a range from {low / other_high:.2g} to {top}."


def _render(summary: Mapping[str, Any], pictures: Pictures, figures: Mapping[str, str], attribution: Sequence[str]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "interval": _interval,
        "pretty": _pretty,
        "count": lambda n: f"{n:,}",
        "words": difference_in_words,
        "score": _score,
        "difference": _difference,
    }
    yields = summary["yield"]
    pairs = (("diverse samples", "held-out real images", "heldout_real"), ("diverse samples", "unguided random samples", "random"))
    page: str = environment.from_string(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")).render(
        summary={"recipe": {}, "provenance": {}, "rejections_random": {}, "classifier_without_twins": {}} | dict(summary),
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
        classifier_words=classifier_in_words(summary["comparisons"]),
        duration=_duration(summary["seconds"]),
    )
    return page


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def _order_of(pictures: Pictures) -> str:
    gains = [scores.get("information_gain") for scores in pictures.diverse_scores]
    if any(gain is None for gain in gains):
        return "in the order of the bank"
    return "those with the highest information gain first" if gains == sorted(gains, key=lambda gain: -(gain or 0.0)) else "in the order of the bank"


def _score_names(pictures: Pictures) -> dict[str, str]:
    present = dict.fromkeys(name for scores in pictures.diverse_scores for name in scores)
    return {name: SCORE_NAMES.get(name, name.replace("_", " ")) for name in present}


def _interval(ci95: Sequence[float | None], form: str = ".3f") -> str:
    low, high = ci95
    return "none" if low is None or high is None else f"{low:{form}} to {high:{form}}".replace("-", "−")


def _difference(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
