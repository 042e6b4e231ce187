"""Means over seeds with their intervals, and differences paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from monai_diverse.errors import DataError
from monai_diverse.study.metrics import METRICS
from monai_diverse.study.training import Run

CONFIDENCE = 0.95
"""Level of every interval of the study, which is why their keys are called ci95."""


def t_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and Student's 95 % t interval, mean ± t(n-1) s/√n.

    It covers what varies between seeds: initial weights, order, augmentation, replacements, and in a study which images the user has, where draws
    are several. The test images are the same for all seeds. It is not cut to [0, 1].

    Returns:
        JSON: {"mean", "ci95": [low, high]}. One value has no interval: [None, None]. Equal values: [mean, mean].

    Raises:
        DataError: no value.
    """
    if not values:
        raise DataError("interval: expected at least one value, got none")
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"mean": mean, "ci95": [None, None]}
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def summarise(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Each arm's metrics over its seeds.

    Returns:
        JSON, arms in order of first appearance: {arm: {metric: {"mean", "ci95"}, ..., "seeds": number of runs}}. Metrics
        are those that all runs have, `METRICS` first.

    Raises:
        DataError: a seed twice in one arm.
    """
    arms, names = dict.fromkeys(run.arm for run in runs), shared_metrics([run.metrics for run in runs])
    by_arm = {arm: [run.metrics for run in _by_seed(runs, arm).values()] for arm in arms}
    return {arm: over_seeds(values, names) | {"seeds": len(values)} for arm, values in by_arm.items()}


def compare(runs: Sequence[Run], arm: str, control: str) -> dict[str, Any]:
    """Differences arm minus control, seed by seed.

    Runs of one seed share initial weights, order and augmentation, so the differences vary less than the arms do.

    Returns:
        JSON: {metric: {"mean", "ci95"}, ..., "seeds": number of pairs}; `t_interval` of the differences. Metrics are those
        that all runs of both arms have, `METRICS` first.

    Raises:
        DataError: an arm without runs, or the two arms ran on different seeds.
    """
    ours, theirs = _by_seed(runs, arm), _by_seed(runs, control)
    if ours.keys() != theirs.keys():
        raise DataError(f"compare: expected {arm!r} and {control!r} on the same seeds, got {sorted(ours)} and {sorted(theirs)}")
    names = shared_metrics([run.metrics for run in (*ours.values(), *theirs.values())])
    differences = [{name: ours[seed].metrics[name] - theirs[seed].metrics[name] for name in names} for seed in ours]
    return over_seeds(differences, names) | {"seeds": len(differences)}


def _by_seed(runs: Sequence[Run], arm: str) -> dict[int, Run]:
    chosen = [run for run in runs if run.arm == arm]
    result = {run.seed: run for run in chosen}
    if not chosen:
        raise DataError(f"runs: expected some of arm {arm!r}, got only {sorted({run.arm for run in runs})}")
    if len(result) < len(chosen):
        raise DataError(f"runs: expected one run a seed of arm {arm!r}, got seeds {sorted(run.seed for run in chosen)}")
    return result


def shared_metrics(values: Sequence[dict[str, float]]) -> list[str]:
    """Names of the metrics that all runs have: the headline ones, then the others as the first run has them."""
    names = dict.fromkeys([*METRICS, *(name for metrics in values[:1] for name in metrics)])
    return [name for name in names if all(name in metrics for metrics in values)]


def over_seeds(values: Sequence[dict[str, float]], names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Mean and `t_interval` of each metric over runs: of those named, or of all that the runs share."""
    return {name: t_interval([metrics[name] for metrics in values]) for name in (shared_metrics(values) if names is None else names)}
