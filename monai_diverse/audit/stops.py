"""Where to stop: three checkpoints of a training, with the certainty that the twins allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

from monai_diverse.information.neighbours import DoubleArray

FEWEST = 3
"""Pairs from which on their spread says something of other trainings."""
CENSORED = "the lowest test loss is unresolved"


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One quantity along a training, with bootstrap resamples that are shared by all checkpoints.

    Attributes:
        value: (checkpoints,).
        resampled: (resamples, checkpoints).
        confidence: level of the intervals.
    """

    value: DoubleArray
    resampled: DoubleArray
    confidence: float

    @property
    def interval(self) -> DoubleArray:
        """(2, checkpoints): percentile intervals."""
        return self._ends(self.resampled)

    @cached_property
    def band(self) -> DoubleArray:
        """(checkpoints, checkpoints): by how much it must be higher at the second than at the first, for any two at once.

        Max-t: the largest difference of any two checkpoints' deviations, each in its own standard deviations, is below this with `confidence`. So
        a curve that is flat has any difference beyond it with probability 1 - `confidence` at most, however the two are chosen.
        """
        deviations = self.resampled - self.value
        differences = deviations[:, None, :] - deviations[:, :, None]
        spread = differences.std(axis=0)
        largest = (differences / np.where(spread > 0, spread, np.inf)).max(axis=(1, 2))
        band: DoubleArray = float(np.quantile(largest, self.confidence)) * spread
        return band

    def rise(self, start: int, end: int) -> tuple[float, float]:
        """Interval of how much higher it is at `end` than at `start`; resamples are paired, so what both share drops out."""
        low, high = self._ends(self.resampled[:, end] - self.resampled[:, start])
        return float(low), float(high)

    def _ends(self, values: DoubleArray) -> DoubleArray:
        tail = (1 - self.confidence) / 2
        return np.quantile(values, [tail, 1 - tail], axis=0)


def resample(per_image: DoubleArray, *, resamples: int, confidence: float, seed: int, crossed: bool = False) -> Curve:
    """Bootstrap within and between pairs: pairs are drawn with replacement, and images within each of them.

    One seed gives the same draws for all quantities of one shape and all checkpoints.

    Percentiles of few pairs are too narrow: deviations of the drawn pairs' means are widened by sqrt(P / (P - 1)) t / z, with P pairs, and t and z
    the quantiles of Student's distribution of P - 1 degrees of freedom and of the normal at this confidence. That is 2.7 for three pairs and 1.4
    for eight. One pair tells nothing of other trainings, and two next to nothing (the factor would be 9.2, and no difference would ever be resolved):
    there intervals are not widened, and cover the choice of images rather than that of trainings.

    Args:
        per_image: (checkpoints, pairs, images).
        resamples: how many.
        confidence: level of the intervals.
        seed: of the draws.
        crossed: whether all pairs share the images, as test images with their noises, so that they are drawn once for all; False: each has its own.
    """
    _, pairs, images = per_image.shape
    rng = np.random.default_rng(seed)
    value, means, wider = per_image.mean(axis=(1, 2)), per_image.mean(axis=2), _wider(pairs, confidence)
    resampled = np.zeros((resamples, len(per_image)))
    for row in range(resamples):
        drawn = rng.integers(pairs, size=pairs)
        times = np.stack([np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(1 if crossed else pairs)])
        between = means[:, drawn].mean(axis=1)
        within = np.einsum("cpi,pi->c", per_image[:, drawn], np.broadcast_to(times, (pairs, images))) / (pairs * images) - between
        resampled[row] = value + wider * (between - value) + within
    return Curve(value=value, resampled=resampled, confidence=confidence)


def _wider(pairs: int, confidence: float) -> float:
    if pairs < FEWEST:
        return 1.0
    quantile = (1 + confidence) / 2
    return float(np.sqrt(pairs / (pairs - 1)) * stats.t.ppf(quantile, pairs - 1) / stats.norm.ppf(quantile))


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One place to stop.

    Attributes:
        step: of the training; None where there is none.
        resolved: whether the measurements tell it from its neighbourhood.
        why: in words.
        quality_ok: whether its samples pass the quality floor; None where there is no step.
    """

    step: int | None
    resolved: bool
    why: str
    quality_ok: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it; the word is `resolved` or `unresolved`."""
        return {"step": self.step, "word": "resolved" if self.resolved else "unresolved", "why": self.why, "quality_ok": self.quality_ok}


def utility_stop(steps: Sequence[int], loss: Curve) -> tuple[int, Stop]:
    """The minimum of the test loss: the usual stop.

    Resolved if checkpoints lie on both sides of it and the loss at the end is higher by more than the band of all differences (`Curve.band`).

    Returns:
        (index of the checkpoint, the stop).
    """
    lowest, last = int(np.argmin(loss.value)), len(steps) - 1
    if lowest == last:
        return lowest, Stop(step=steps[lowest], resolved=False, why="the test loss still falls at the end: its minimum may lie later; train longer")
    if lowest == 0:
        return lowest, Stop(step=steps[lowest], resolved=False, why="the test loss is lowest at the first checkpoint: its minimum may lie earlier")
    low, high = loss.rise(lowest, last)
    if loss.value[last] - loss.value[lowest] > loss.band[lowest, last]:
        return lowest, Stop(step=steps[lowest], resolved=True, why=f"the lowest test loss; at the end it is higher by {low:.2g} to {high:.2g}")
    why = f"the lowest test loss, but its rise at the end, by {low:.2g} to {high:.2g}, may be chance: it may be flat"
    return lowest, Stop(step=steps[lowest], resolved=False, why=why)


def strict_stop(steps: Sequence[int], d_pair: Curve, utility: int, *, sure: bool = True) -> Stop:
    """The onset of biased generalization: the last significant local minimum of D_pair before the utility stop (Garnier-Brun et al. 2026).

    A local minimum is significant if D_pair fell to it and rises from it by more than the band of all differences (`Curve.band`), before it goes
    lower. So neither noise nor the low value of untrained twins, whose samples are the shared noises, is taken for it.

    Args:
        steps: of the checkpoints.
        d_pair: mean distance between the twins' samples.
        utility: index of the utility stop.
        sure: whether the utility stop is resolved; if not, another minimum may lie behind it, and this one is not resolved either.
    """
    found = [i for i in range(utility) if _differs(d_pair, i, range(i + 1, utility + 1)) and _differs(d_pair, i, range(i - 1, -1, -1))]
    if found:
        why = "the last significant minimum of D_pair before the lowest test loss: twins part from here on"
        return Stop(step=steps[found[-1]], resolved=sure, why=why if sure else f"{why}; but {CENSORED}, so that another may follow")
    if utility == 0:
        return Stop(step=None, resolved=False, why="the lowest test loss is at the first checkpoint: nothing lies before it; begin earlier")
    return Stop(step=None, resolved=False, why="D_pair has no significant minimum before the lowest test loss; more pairs or samples may show one")


def budget_stop(
    steps: Sequence[int], bias: Curve, utility: int, tolerance: float, *, quality_ok: Sequence[bool] | None = None, sure: bool = True
) -> Stop:
    """The latest checkpoint, of passable quality, whose bias is within the tolerance with its whole interval.

    It lies before the first checkpoint that is beyond the tolerance with its whole interval, and not behind the utility stop. Resolved if it is
    the last before the one beyond, or the utility stop itself, and that is resolved.

    Args:
        steps: of the checkpoints.
        bias: mean log ratio of the distances to the other twin's and to the own training images; higher is worse.
        utility: index of the utility stop.
        tolerance: largest bias that is accepted.
        quality_ok: whether each checkpoint's samples pass the quality floor; None: all do.
        sure: whether the utility stop is resolved.
    """
    low, high = bias.interval
    beyond = next((i for i in range(utility + 1) if low[i] > tolerance), None)
    considered = range(utility + 1 if beyond is None else beyond)
    within = [i for i in considered if high[i] <= tolerance]
    passed = [i for i in within if quality_ok is None or quality_ok[i]]
    if not passed:
        return _no_budget(steps, within, tolerance, beyond)
    latest, after = passed[-1], f"the latest bias within {tolerance:g}"
    if latest == utility:
        why = f"the bias is within {tolerance:g} up to the lowest test loss"
        return Stop(step=steps[latest], resolved=sure, why=why if sure else f"{why}; but {CENSORED}")
    if beyond is not None and latest == beyond - 1:
        return Stop(step=steps[latest], resolved=True, why=f"{after}; at step {steps[beyond]} it is beyond")
    if latest < within[-1]:
        why = f"{after} with samples of passable quality; until step {steps[within[-1]]} the bias is within, but samples are poor"
        return Stop(step=steps[latest], resolved=False, why=why)
    until = f"until step {steps[beyond]}" if beyond is not None else "up to the lowest test loss"
    return Stop(step=steps[latest], resolved=False, why=f"{after} for sure; {until} it may be within or beyond")


def _no_budget(steps: Sequence[int], within: Sequence[int], tolerance: float, beyond: int | None) -> Stop:
    if within:
        where = f"{len(within)} up to step {steps[within[-1]]}"
        why = f"no checkpoint has both its bias within {tolerance:g} and samples of passable quality: {where} are within, but poor"
        return Stop(step=None, resolved=beyond is not None and within[-1] == beyond - 1, why=why)
    unclear = "" if beyond == 0 else " for sure; more samples may tell"
    return Stop(step=None, resolved=beyond == 0, why=f"no checkpoint has its bias within {tolerance:g}{unclear}")


def _differs(curve: Curve, index: int, others: range) -> bool:
    """Whether the curve is significantly higher somewhere among `others`, read in order, before it goes below its value at `index`."""
    for other in others:
        rise = curve.value[other] - curve.value[index]
        if rise < 0:
            return False
        if rise > curve.band[index, other]:
            return True
    return False
