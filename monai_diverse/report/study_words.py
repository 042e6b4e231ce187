"""What a study found, in words and numbers; a null result is called one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from monai_diverse.report.rendering import interval, signed
from monai_diverse.report.style import METRIC_NAMES, significant
from monai_diverse.report.words import parity_in_words, yields_in_words

Outcome = Literal["better", "worse", "null", "open"]

ARM_MEANINGS = {
    "real": "the real images of the cell and nothing else; with augmentation this is standard practice",
    "balanced": "nothing but the real images, drawn so that all classes are shown equally often (in place of class weights in the loss)",
    "duplicates": "repeated real images in the place of generated ones: what it gains is owed to replacing as such",
    "random": "generated images as they come, without guide and screen: what it gains is owed to the generator",
    "relevant": "unguided images that passed the gate for relevance alone: what it gains is owed to right labels",
    "tsne_hull": "generated images outside the hull of the real ones in a t-SNE map: the published filter (where there are few, shown less often)",
    "diverse": "guided images that passed the screen",
    "diverse_ungated": "guided images that passed the screen without its gates for relevance and outliers",
    "brute_force": "unguided images that passed the screen",
    "extra_real": "further real images, each shown as often as one of the cell's own of its class: the ceiling",
}
TRAINING_MEANINGS = {
    "mixed": "each time an item is shown it is, with probability r / (1 + r) at ratio r, an added image in the place of a real one",
    "pretrain": "the first half of the steps shows added images alone, the second half real ones alone",
    "fade": "as mixed, but that probability falls in a straight line towards 0 at the end of the training",
    "balanced": "as mixed, but items of all classes are shown equally often (in place of class weights in the loss)",
}
CEILING = "extra_real"
_YIELD_NAMES = {"diverse": "diverse (guided)", "brute_force": "brute force (no guide)", "heldout_real": "held-out real"}
DEVELOPMENT = (
    "These are figures on development images: the method is still being chosen, and the test images were not touched. They are real images that the "
    "generator never saw, but that set the screen's thresholds (strict: that chose weights and ratio), so expect a little less elsewhere."
)


def percent(value: float | None) -> str:
    """A share in percent with one decimal, without the sign of percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}".replace("-", "−")


def points(value: float) -> str:
    """A difference of shares in points, with its sign and one decimal."""
    return signed(100 * value, 1)


def points_interval(ends: Sequence[float | None] | None) -> str:
    """An interval of a difference in points."""
    return interval(_hundredfold(ends), "+.1f")


def scored(value: Mapping[str, Any] | None) -> str:
    """A mean with its interval, both in percent; a dash where it was not measured."""
    return "–" if value is None else f"{percent(value['mean'])} ({interval(_hundredfold(value['ci95']), '.1f')})"


def gap_in_words(difference: Mapping[str, Any] | None) -> str:
    """A difference with its interval, both in points; a dash where it was not measured."""
    return "–" if difference is None else f"{points(difference['mean'])} ({points_interval(difference['ci95'])})"


def chance(p: float | None) -> str:
    """A p-value to two digits; a dash for None."""
    return "–" if p is None else "below 0.0001" if p < 1e-4 else significant(p, 2)


def level_of(study: Mapping[str, Any]) -> str:
    """The level of the intervals, such as "95 %"."""
    return f"{100 * study['confidence']:g} %"


def metric_name(metric: str, class_names: Sequence[str]) -> str:
    """What a metric is called; `recall_0` by the name of its class."""
    if metric == "ece":
        return "calibration error (ECE)"
    number = metric.removeprefix("recall_")
    if number != metric and number.isdecimal() and int(number) < len(class_names):
        return f"recall of {class_names[int(number)]}"
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def arm_name(arm: str) -> str:
    """What an arm is called in a text."""
    return "t-SNE hull" if arm == "tsne_hull" else arm.replace("_", " ")


def added_in_words(row: Mapping[str, Any]) -> str:
    """How many different images an arm could draw, and of which classes; a dash for none."""
    if not row.get("images"):
        return "–"
    by_class = row.get("by_class")
    parts = "" if not by_class else f" ({' + '.join(f'{count:,.0f}' for count in by_class)})"
    return f"{row['images']:,.0f}{parts}"


def size_in_words(cell: Mapping[str, Any]) -> str:
    """The size of a cell: its share of the real images, and how many these are."""
    return f"{100 * cell['size']:g} % ({cell['real']['images']:,} images)"


def arm_in_words(row: Mapping[str, Any], study: Mapping[str, Any], cell: Mapping[str, Any], name: str | None = None) -> str:
    """An arm's name, and in what it differs from how the primary comparison is made: augmentation, training, ratio.

    Args:
        row: an arm or a comparison.
        study: whose primary comparison is meant.
        cell: whose chosen ratio goes without saying.
        name: instead of the arm's own, as that of a comparison.
    """
    primary, notes = study["primary"], [arm_name(row["arm"]) if name is None else name]
    if row["augment"] != primary["augment"]:
        notes.append("augmented" if row["augment"] else "not augmented")
    if row["training"] != primary["training"] and row.get("asked", True):  # without added images there is one way of training
        notes.append(str(row["training"]))
    if row.get("ratio") is not None and row["ratio"] != cell.get("ratio"):
        notes.append(f"ratio {row['ratio']:g}")
    return ", ".join(notes)


def pair_in_words(comparison: Mapping[str, Any], study: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    """What a comparison compares, as "diverse − random"."""
    return arm_in_words(comparison, study, cell, f"{arm_name(comparison['arm'])} − {arm_name(comparison['control'])}")


def outcome_of(comparison: Mapping[str, Any]) -> Outcome:
    """What the interval of a difference shows of the arm; "null" where it contains 0, "open" without an interval."""
    low, high = comparison["difference"]["ci95"] or (None, None)
    if low is None or high is None:
        return "open"
    if low <= 0 <= high:
        return "null"
    return "better" if low > 0 else "worse"


def outcome_in_words(comparison: Mapping[str, Any]) -> str:
    """What the interval of a difference shows: on which side of 0 it lies, and what that means."""
    outcome, control = outcome_of(comparison), arm_name(comparison["control"])
    if outcome == "open":
        return "without an interval nothing can be concluded"
    if outcome == "null":
        return "the interval contains 0: a null result, neither a gain nor a loss is shown"
    side = "above" if comparison["difference"]["ci95"][0] > 0 else "below"
    return f"the interval lies {side} 0: {outcome} than {control}"


def comparison_in_words(comparison: Mapping[str, Any], cell: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """A comparison in one sentence: difference, interval, p, what the interval shows, and whether Holm's correction leaves it."""
    difference = comparison["difference"]
    corrected = difference.get("p_holm")
    name = f"{pair_in_words(comparison, study, cell)}, {metric_name(comparison['metric'], study['data']['class_names'])}"
    said = f"{name}: {_difference(difference, study)}{_area(comparison)}; {outcome_in_words(comparison)}"
    if outcome_of(comparison) in ("null", "open") or corrected is None:
        return f"{said}{'' if corrected is None else f' (p after Holm: {chance(corrected)})'}."
    return f"{said}; Holm's correction {'leaves' if _survives(corrected, study) else 'does not leave'} it (p after Holm: {chance(corrected)})."


def primary_of(cell: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The comparisons of a cell that were fixed before."""
    return [comparison for comparison in cell.get("comparisons", ()) if comparison["primary"]]


def exploratory_of(cell: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The other comparisons of a cell."""
    return [comparison for comparison in cell.get("comparisons", ()) if not comparison["primary"]]


def bar_holds(cell: Mapping[str, Any], study: Mapping[str, Any]) -> bool:
    """Whether the interval of every primary control was compared, and lies on the arm's side of 0."""
    found = _by_control(cell)
    return all(control in found and outcome_of(found[control]) == "better" for control in study["primary"]["controls"])


def bar_in_words(cell: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """Whether the bar of a size holds: the arm must beat every control, not just one."""
    primary, found, said = study["primary"], _by_control(cell), f"At {size_in_words(cell)}"
    arm, controls = arm_name(primary["arm"]), primary["controls"]
    absent = [control for control in controls if control not in found]
    if cell.get("untested"):
        return f"{said} nothing was tested: {cell['untested']}. A bank that lacks a class teaches that what looks generated is of another."
    if absent:
        return f"{said} the bar cannot be judged: {arm} was not compared with {_listed(absent)}."
    if not bar_holds(cell, study):
        short = [control for control in controls if outcome_of(found[control]) != "better"]
        beaten = [control for control in controls if control not in short]
        alone = f" It beats {_listed(beaten)}, which alone is not enough." if beaten else ""
        worse = [control for control in short if outcome_of(found[control]) == "worse"]
        loss = f" It is worse than {_listed(worse)}." if worse else ""
        return f"{said} the bar does not hold: {arm} was not shown to be better than {_listed(short, 'or')}.{alone}{loss}"
    said += f" the bar holds: {arm} is better than {_listed(controls)}, by {'both intervals' if len(controls) == 2 else 'every interval'}"
    corrected = [found[control]["difference"].get("p_holm") for control in controls]
    if any(p is None for p in corrected):
        return f"{said}; Holm's correction was not made for all of them."
    left = "leaves it" if all(_survives(p, study) for p in corrected) else "does not leave all of it: after correction the bar does not hold"
    return f"{said}; Holm's correction {left}."


def verdict_in_words(study: Mapping[str, Any]) -> str:
    """The outcome over all sizes that were fixed before."""
    primary = study["primary"]
    cells = [cell for cell in study["cells"] if primary_of(cell)]
    where = "On the development images, the bar" if study["scored_on"] == "development" else "The bar"
    bar = f"{where} ({arm_name(primary['arm'])} better than {_listed(primary['controls'])})"
    if not cells:
        return f"{bar} was not tested: there is no primary comparison."
    held = sum(bar_holds(cell, study) for cell in cells)
    outcomes = [outcome_of(comparison) for cell in cells for comparison in primary_of(cell)]
    null = " This is a null result: every primary interval contains 0." if all(outcome == "null" for outcome in outcomes) else ""
    return f"{bar} holds at {held} of {len(cells)} size{'s' * (len(cells) != 1)}.{null}{_missing_sizes(study, cells)}"


def beside_in_words(cell: Mapping[str, Any], study: Mapping[str, Any]) -> list[str]:
    """The primary arm against standard augmentation alone and against the ceiling, a sentence each, unless these are primary controls."""
    alone = "standard augmentation alone (real)" if study["primary"]["augment"] else "real images alone (real)"
    extra = f"from {cell['extra']:,} further real images" if cell.get("extra") else "further real images"
    names = {"real": alone, CEILING: f"the ceiling (extra real, {extra})"}
    words = []
    for control, name in names.items():
        if control in study["primary"]["controls"]:
            continue
        if control == CEILING and cell.get("extra") == 0:
            words.append("All real images are in this cell: there are no further ones, and no ceiling.")
            continue
        found = next((comparison for comparison in exploratory_of(cell) if comparison["control"] == control and _as_primary(comparison, study)), None)
        said = "not compared" if found is None else f"{_difference(found['difference'], study)}; {outcome_in_words(found)}"
        words.append(f"Against {name}: {said}{'' if found is None else ' (exploratory)'}.")
    return words


def yields_of(cell: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The yields of a cell that were recorded, by what was drawn."""
    found = (cell.get("yields") or {}).items()
    return [(_YIELD_NAMES.get(key, arm_name(key)), value) for key, value in found if value is not None]


def yields_of_cell_in_words(cell: Mapping[str, Any]) -> Iterator[str]:
    """Yields beside that of held-out real images, and guided beside unguided, as far as there are any with intervals."""
    yields = (cell.get("yields") or {}).items()
    known = {name: value for name, value in yields if value is not None and None not in (value["ci95"] or (None,))}
    ours, names = known.get("diverse"), {"heldout_real": "held-out real images", "brute_force": "unguided images"}
    for control, name in names.items():
        if ours is not None and control in known:
            yield yields_in_words(ours, known[control], "diverse images", name)
    if ours is not None and "heldout_real" in known and known["heldout_real"]["drawn"]:
        yield parity_in_words(ours, known["heldout_real"])


def regime_in_words(study: Mapping[str, Any]) -> str:
    """What the generator knew of the real images: whether a gain may come from images that the classifier was not given."""
    seen = study["generator"].get("images")
    if study["regime"] == "strict":
        return "Strict: the generator of a cell saw that cell's real images alone, so that it knows no more of the patients than the classifier."
    known = "an unknown number of" if seen is None else f"{seen:,}"
    return (
        f"Pretrained: the generator saw {known} images, the same at all sizes. In a cell with fewer real images it knows more patients than the"
        " classifier: what it adds there may be owed to those, not to diversity. The ceiling says what real images of them would give."
    )


def _hundredfold(ends: Sequence[float | None] | None) -> list[float | None] | None:
    return None if ends is None else [None if end is None else 100 * end for end in ends]


def _difference(difference: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    p = difference.get("p")
    within = (
        f"{level_of(study)} interval {points_interval(difference['ci95'])}{'' if p is None else f', p = {chance(p)}'.replace('= below', 'below')}"
    )
    return f"{points(difference['mean'])} points ({within})"


def _area(comparison: Mapping[str, Any]) -> str:
    """The same difference in AUC, where that was measured beside another metric and has an interval."""
    area = comparison.get("auc")
    if area is None or None in (area["ci95"] or (None,)) or comparison["metric"] == "auc":
        return ""
    return f"; in AUC {gap_in_words(area)}"


def _survives(corrected: float, study: Mapping[str, Any]) -> bool:
    return corrected <= round(1 - float(study["confidence"]), 12)


def _by_control(cell: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {comparison["control"]: comparison for comparison in primary_of(cell)}


def _as_primary(comparison: Mapping[str, Any], study: Mapping[str, Any]) -> bool:
    return all(comparison[key] == study["primary"][key] for key in ("arm", "metric", "augment", "training"))


def _missing_sizes(study: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    missing = [size for size in study["primary"]["sizes"] if not any(math.isclose(size, cell["size"]) for cell in cells)]
    return f" Fixed before, but not tested: {_listed([f'{100 * size:g} %' for size in missing])}." if missing else ""


def _listed(names: Sequence[str], word: str = "and") -> str:
    plain = [arm_name(name) for name in names]
    return plain[0] if len(plain) == 1 else f"{', '.join(plain[:-1])} {word} {plain[-1]}"
