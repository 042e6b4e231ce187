"""What the figures of an audit say, in words; what they do not decide is called undecided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from monai_diverse.datasheet import NO_PATIENTS
from monai_diverse.report.rendering import interval, signed

STOP_NAMES = {
    "strict": "Strict stop (onset)",
    "budget": "Budget stop (the latest whose bias is within the tolerance)",
    "utility": "Utility stop (least test loss)",
}


FAR = 2.0
"""An interval's end so many times the tolerance is told in words."""


def caveats_in_words(summary: Mapping[str, Any]) -> list[str]:
    """What must be known of a verdict on a model before it is used: why it is open, how large the bias may be, whether patients were given."""
    verdict = summary["verdict"]
    words = [str(reason) for reason in verdict.get("reasons", ())]
    high, tolerance = (verdict["ci"] or (None, None))[1], verdict["tolerance"]
    if verdict["word"] == "unresolved" and tolerance is not None and high is not None and high > FAR * tolerance:
        words.append(f"By the end of its interval, samples may be as much as {100 * -math.expm1(-high):.1f} % nearer to training images.")
    if summary["sets"].get("groups_from") == "near-duplicates":
        words.append(NO_PATIENTS)
    return words


def copies_in_words(samplers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each sampler how many samples have nothing on them, and how many crowd around one patient, where that was measured."""
    words = []
    for sampler in samplers:
        if sampler.get("flat"):
            words.append(f"{sampler['name']}: {sampler['flat']:,} of {sampler['images']:,} samples are without any contrast.")
        found = sampler.get("concentration")
        if found is not None and found["value"] is not None:
            value, heldout = (None if found.get(key) is None else f"{100 * found[key]:.1f} %" for key in ("value", "heldout"))
            words.append(
                f"{sampler['name']}: at most {value} of samples have their nearest training image with one and the same patient"
                f" (held-out real images: {'not known' if heldout is None else heldout})."
            )
    return words


def ends(value: Mapping[str, Any]) -> tuple[float, float] | None:
    """The interval of a value; None if it has none."""
    low, high = value["ci"] or (None, None)
    return None if low is None or high is None else (low, high)


def effect_in_words(found: Mapping[str, Any], level: str) -> str:
    """A bias in its own unit, and how often the training image is the nearer one, with intervals.

    Args:
        found: with bias and own_nearer.
        level: of the intervals, such as "95 %".
    """
    bias, nearer = found["bias"], found["own_nearer"]
    return (
        f"As the figures below put it: bias {signed(bias['value'])} ({level} interval {interval(bias['ci'], '+.3f')}). Of equally many training and"
        f" unseen real images the nearest is a training image in {100 * nearer['value']:.1f} % of cases ({level} interval {_percent(nearer)};"
        " 50 % is neutral)."
    )


def lean_in_words(bias: Mapping[str, Any]) -> str:
    """What the interval of a bias shows."""
    found = ends(bias)
    if found is None:
        return "no interval: nothing can be concluded"
    if found[0] > 0:
        return "the interval lies above 0: nearer to the training images"
    if found[1] < 0:
        return "the interval lies below 0: further from the training images"
    return "the interval includes 0: no lean shown, none excluded"


def change_in_words(sampler: Mapping[str, Any], first: Mapping[str, Any], level: str) -> str:
    """Whether a sampler leans more or less than the first one, by the interval of the paired difference alone."""
    guidance, guide = sampler["guidance"], sampler["guide"]
    if guide:
        subject, higher, lower = f"{guide} ({sampler['name']})", "it increases the lean", "it reduces the lean"
    elif guidance is not None and guidance != first["guidance"]:
        before = "the model's own" if first["guidance"] is None else f"{first['guidance']:g}"
        subject, higher, lower = f"Guidance {guidance:g} instead of {before}", "it amplifies the lean", "it weakens the lean"
    else:
        subject, higher, lower = f"{sampler['name']} instead of {first['name']}", "it leans more", "it leans less"
    difference = sampler["against_first"]["bias"]
    found = ends(difference)
    lower += "; it is calibrated on the held-out images that then measure it, so the reduction may look too good" if guide == "Shield" else ""
    said = f"{subject}: the bias changes by {signed(difference['value'])} ({level} interval {interval(difference['ci'], '+.3f')})"
    if found is None:
        return f"{said}; without an interval nothing can be concluded."
    if found[0] > 0:
        return f"{said}; the interval lies above 0: {higher}."
    if found[1] < 0:
        return f"{said}; the interval lies below 0: {lower}."
    return f"{said}; the interval includes 0: undecided."


def changes_in_words(samplers: Sequence[Mapping[str, Any]], level: str) -> list[str]:
    """A sentence for each sampler that was compared with the first, and a warning if they are several."""
    words = [change_in_words(sampler, samplers[0], level) for sampler in samplers[1:] if sampler["against_first"] is not None]
    many = ["Each of these intervals stands for itself: of many, some exclude 0 by chance."] if len(words) > 1 else []
    return words + many


def control_in_words(control: Mapping[str, Any] | None, level: str) -> str:
    """What held-out reals in the place of samples score: what an unbiased source would."""
    if control is None:
        return (
            "There were too few held-out images to put some in the place of samples, so there is no control: what unseen images score is not known."
        )
    bias, found = control["bias"], ends(control["bias"])
    said = (
        f"The same measure with {control['images']:,} held-out real images in the place of samples:"
        f" {signed(bias['value'])} ({level} interval {interval(bias['ci'], '+.3f')})"
    )
    if found is None or found[0] <= 0 <= found[1]:
        return f"{said}. An unbiased source would score 0 on average; the interval says how well this could be told."
    side = "above" if found[0] > 0 else "below"
    return f"{said}. This lies {side} 0: the two sets differ in more than what the model saw, so the bias of samples cannot be read alone."


def membership_in_words(membership: Mapping[str, Any] | None, level: str) -> str:
    """Whether the network's own loss tells its training images from unseen ones."""
    if membership is None:
        return "Not measured: this needs the network itself, and only images were given."
    auc, found = membership["auc"], ends(membership["auc"])
    said = f"AUC {auc['value']:.3f} ({level} interval {interval(auc['ci'])})"
    if found is None:
        return f"{said}: without an interval nothing can be concluded."
    if found[0] > 0.5:
        return f"{said}, above 0.5: the network's loss tells training images from unseen ones better than chance. Membership leaks through it."
    if found[1] < 0.5:
        return f"{said}, below 0.5: training images have the higher loss. The two sets differ in something else than membership."
    levels = [ends(level["auc"]) for level in membership["levels"]]
    above = sum(level is not None and level[0] > 0.5 for level in levels)
    single = f" At {above} of {len(levels)} single noise levels the interval lies above 0.5; of many, some do by chance." if above else ""
    return (
        f"{said} includes 0.5: over all noise levels the loss was not shown to tell training images from unseen ones.{single} Stronger attacks may."
    )


def phase_in_words(summary: Mapping[str, Any]) -> str:
    """The phase of biased generalization, if it was resolved, and whether its end was."""
    phase = summary["phase"]
    if phase is None:
        return "No phase of biased generalization was resolved: none in which the test loss still falls while the twins' samples already part."
    end = "" if summary["stops"]["utility"]["word"] == "resolved" else " (where the least test loss lies is unresolved)"
    return (
        f"From step {phase[0]:,} to step {phase[1]:,}{end} the test loss still fell while the twins' samples already parted: biased generalization."
        " A training that stops at the least test loss stops at the end of this phase."
    )


def stop_in_words(name: str, summary: Mapping[str, Any], level: str) -> str:
    """Where a stop lies and what the bias is there; whether it is resolved, and why."""
    stop = summary["stops"][name]
    doubt, why = "" if stop["word"] == "resolved" else ", unresolved", f": {stop['why']}" if stop.get("why") else ""
    if stop["step"] is None:
        return f"{STOP_NAMES[name]}: {'none' if not doubt else 'unresolved'}{why}."
    row = next((row for row in summary["checkpoints"] if row["step"] == stop["step"]), None)
    bias = "" if row is None else f", bias {signed(row['bias']['value'])} ({level} interval {interval(row['bias']['ci'], '+.3f')})"
    return f"{STOP_NAMES[name]}: step {stop['step']:,}{bias}{doubt}{why}."


def _percent(value: Mapping[str, Any]) -> str:
    found = ends(value)
    return "none" if found is None else f"{interval([100 * end for end in found], '.1f')} %"


def audit_in_words(summary: Mapping[str, Any]) -> list[str]:
    """The outcome of an audit of either kind, a line each."""
    level = f"{100 * summary['confidence']:g} %"
    if summary["kind"] == "twins":
        advice = advice_in_words(summary)
        stops = [stop_in_words(name, summary, level) for name in STOP_NAMES]
        return [phase_in_words(summary), *stops, *([] if advice is None else [advice])]
    rows = [f"{sampler['name']}: {_row_in_words(sampler, level)}" for sampler in summary["samplers"]]
    control = [] if summary["control"] is None else [f"held-out real images in the place of samples: {_row_in_words(summary['control'], level)}"]
    membership = [] if summary["membership"] is None else [f"membership by the loss: {membership_in_words(summary['membership'], level)}"]
    lead = [summary["verdict"]["text"], *caveats_in_words(summary)]
    return [*lead, *rows, *control, *changes_in_words(summary["samplers"], level), *copies_in_words(summary["samplers"]), *membership]


def advice_in_words(summary: Mapping[str, Any]) -> str | None:
    """At which stop `monai-diverse train --twin` ends the training of the model itself; None where that is not recorded."""
    advice = summary.get("advice")
    if advice is None:
        return None
    return f"monai-diverse train --twin takes the {advice['name']} stop: it trains the model itself up to step {advice['step']:,}."


def _row_in_words(found: Mapping[str, Any], level: str) -> str:
    bias = found["bias"]
    test = "" if bias["p"] is None else f", p = {bias['p']:.2g}"
    nearer = f"P(own nearer) {found['own_nearer']['value']:.3f}"
    return f"bias {signed(bias['value'])} ({level} interval {interval(bias['ci'], '+.3f')}){test}, {nearer}, {found['images']:,} images"
