"""What the figures of a summary say, in words; a null result is called one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai_diverse.report.style import METRIC_NAMES, significant


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


def references_in_words(references: Mapping[str, Any], class_names: Sequence[str]) -> list[str]:
    """What the generator was trained on and what the user has, a sentence each; what is not known is called unknown.

    Args:
        references: `sets` with the summaries of reference, generator_train and calibration (shape, class_counts, and mirrored if known), None
            for what is unknown; `against` with the sets that novelty and copies were judged against (see `FittedScreen`).
        class_names: one a class.
    """
    sets, against = references["sets"], references["against"]
    if sets["generator_train"] is None:
        seen = "unknown. Copies were looked for among what the user has instead: a copy of another training image would not be noticed."
    else:
        seen = f"{_counted(sets['generator_train'], class_names)}. Copies were looked for among these."
    if against["novelty"] == "generator_train":
        held = "not given, so taken to be what the generator was trained on. Novelty and information gain are relative to that."
    else:
        held = f"{_counted(sets['reference'], class_names)}. Novelty and information gain are relative to these."
    apart = f"{_counted(sets['calibration'], class_names)}, which neither of the two holds."
    return [f"What the generator was trained on: {seen}", f"What the user has (the reference): {held}", f"Real images for calibration: {apart}"]


def nearest_in_words(nearest_set: str | None) -> str:
    """What a diverse sample's nearest image is, by the set that it comes from."""
    if nearest_set == "generator_train":
        return "the image most like it of those that the generator was trained on"
    if nearest_set == "reference":
        return "the image most like it of those that the user has (what the generator was trained on is unknown)"
    return "the training image most like it"


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
        beyond = "" if least is None else f"; from the two intervals it is at least {significant(least, 2)}"
        return f"Parity cannot be computed: {heldout['accepted']:,} of {heldout['drawn']:,} held-out real images were accepted{beyond}."
    ratio, (low, high), (other_low, other_high) = diverse["per_10k"] / heldout["per_10k"], diverse["ci95"], heldout["ci95"]
    bottom, top = significant(low / other_high, 2), significant(high / other_low, 2) if other_low > 0 else "no upper limit"
    return f"Parity is {significant(ratio, 2)}; dividing the ends of the two intervals gives a range from {bottom} to {top}."


def score_in_words(value: float | Mapping[str, Any] | None) -> str:
    """A score of `describe_information`: a number, a share with its interval, or the median of single images with their quantiles."""
    if value is None:
        return "–"
    if not isinstance(value, Mapping):
        return _rounded(value)
    middle, low, high = ("value", "low", "high") if "value" in value else ("median", "q05", "q95")
    return f"{_rounded(value[middle])} ({_rounded(value[low])} to {_rounded(value[high])})"


def _rounded(value: float) -> str:
    # a difference of entropies scatters about 0: digits beyond the hundredths say nothing
    text = significant(value, 3) if isinstance(value, int) or abs(value) >= 10 else f"{value:.2f}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "−")


def _counted(summary: Mapping[str, Any], class_names: Sequence[str]) -> str:
    counts = ", ".join(f"{count:,} {name}" for count, name in zip(summary["class_counts"], class_names, strict=False))
    mirrored = "; mirrored copies included" if summary.get("mirrored") else ""
    return f"{summary['shape'][0]:,} images ({counts}{mirrored})"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
