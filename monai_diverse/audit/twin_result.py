"""From the measures of all checkpoints to curves with intervals, and the three stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.audit.distances import FLOOR
from monai_diverse.audit.stops import Curve, Stop, budget_stop, resample, strict_stop, utility_stop
from monai_diverse.audit.twin_measures import Measures
from monai_diverse.information.neighbours import DoubleArray
from monai_diverse.version import __version__

TWIN_LIMITS = (
    "No privacy guarantee: a bias within the tolerance is an average, and single patients can still be copied.",
    "Distances between images miss what membership attacks find (arXiv 2505.01524); run a suite of them, or train with differential privacy, where "
    "patients must be protected.",
    "The twins saw half of the patients each. A model of all patients learns them by heart later, so that their stops are cautious for it; "
    "audit that model itself with audit_model.",
)

FEW_PAIRS = {1: " (for these images; one pair says nothing of other trainings)", 2: " (for these trainings; two pairs say little of others)"}


@dataclass(frozen=True, kw_only=True, eq=False)
class TwinAudit:
    """Outcome of `audit_twins`.

    Attributes:
        summary: all figures, as JSON: checkpoints with intervals, stops, limits; `quality_real` and `gap_ratio_real` are those of real images.
        stops: `strict` (onset of biased generalization), `budget` (latest bias within the tolerance), `utility` (lowest test loss).
        quadruplets: by step of a stop, (rows, 4, c, *spatial): NN_A | A | B | NN_B.
    """

    summary: dict[str, Any]
    stops: dict[str, Stop]
    quadruplets: Mapping[int, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def advice(self) -> tuple[str, int] | None:
        """("budget", step) to train to; None where no checkpoint of passable quality keeps the tolerance."""
        advice = self.summary["advice"]
        return None if advice is None else (advice["name"], advice["step"])

    def as_json(self) -> dict[str, Any]:
        """The summary."""
        return self.summary


def conclude(
    steps: Sequence[int], found: Sequence[Sequence[Measures]], *, tolerance: float, floor: float, confidence: float, resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Stop]]:
    """Curves and stops.

    Args:
        steps: of the checkpoints.
        found: measures of each checkpoint, one a pair.
        tolerance: largest bias of the budget stop.
        floor: largest relative energy distance that passes.
        confidence: level of the intervals.
        resamples: of the bootstrap.
        seed: of the resamples.

    Returns:
        (JSON, stops by name).
    """

    def curve(of: Callable[[Measures], npt.NDArray[Any]], *, crossed: bool = False) -> Curve:
        values = np.array([[of(pair) for pair in checkpoint] for checkpoint in found], dtype=np.float64)
        return resample(values, resamples=resamples, confidence=confidence, seed=seed, crossed=crossed)

    curves = {
        "d_pair": curve(lambda m: 1 - m.similarity),
        "bias": curve(_bias),
        "own_nearer": curve(_own_nearer),
        "loss": curve(lambda m: m.test_losses.mean(0), crossed=True),
    }
    curves["ratio"] = Curve(value=np.exp(-curves["bias"].value), resampled=np.exp(-curves["bias"].resampled), confidence=confidence)
    quality = np.array([np.mean([pair.quality for pair in checkpoint]) for checkpoint in found])
    lowest, stops = _stops(steps, curves, tolerance, (quality <= floor).tolist(), len(found[0]))
    onset, budget = stops["strict"].step, stops["budget"].step
    summary = {
        "kind": "twins",
        "version": __version__,
        "confidence": confidence,
        "tolerance": tolerance,
        "checkpoints": [_checkpoint(i, step, curves, found[i], float(quality[i]), floor) for i, step in enumerate(steps)],
        "stops": {name: stop.as_json() for name, stop in stops.items()},
        "advice": None if budget is None else {"name": "budget", "step": budget},
        "phase": None if onset is None else [onset, steps[lowest]],
        "limits": list(TWIN_LIMITS),
    }
    return summary, stops


def _stops(
    steps: Sequence[int], curves: Mapping[str, Curve], tolerance: float, quality_ok: Sequence[bool], pairs: int
) -> tuple[int, dict[str, Stop]]:
    """(index of the utility stop, all stops)."""
    lowest, utility = utility_stop(steps, curves["loss"])
    sure, alone = utility.resolved, FEW_PAIRS.get(pairs, "")
    stops = {
        "strict": strict_stop(steps, curves["d_pair"], lowest, sure=sure),
        "budget": budget_stop(steps, curves["bias"], lowest, tolerance, quality_ok=quality_ok, sure=sure),
        "utility": utility,
    }
    passed: dict[int | None, bool | None] = {None: None, **dict(zip(steps, quality_ok, strict=True))}
    return lowest, {name: replace(stop, why=stop.why + alone, quality_ok=passed[stop.step]) for name, stop in stops.items()}


def _checkpoint(index: int, step: int, curves: Mapping[str, Curve], pairs: Sequence[Measures], quality: float, floor: float) -> dict[str, Any]:
    divergence = np.mean([pair.divergence.mean(1) for pair in pairs], axis=0)
    levels = zip(pairs[0].noise_ratios.tolist(), divergence.tolist(), strict=True)
    return {
        "step": step,
        **{name: {"value": float(curve.value[index]), "ci": curve.interval[:, index].tolist()} for name, curve in curves.items()},
        "loss_train": float(np.mean([pair.train_losses.mean() for pair in pairs])),
        "gap_ratio": float(np.mean([pair.copies for pair in pairs])),
        "quality": quality,
        "quality_ok": quality <= floor,
        "divergence": [{"noise_ratio": ratio, "value": value} for ratio, value in levels],
    }


def _bias(m: Measures) -> DoubleArray:
    """Log ratio of the distances to the other's and to the own training images.

    Mean over both twins of a noise, so that what one half of the patients has in common with all samples drops out.
    """
    ratios: DoubleArray = np.log(np.maximum(m.other, FLOOR) / np.maximum(m.own, FLOOR)).mean(0)
    return ratios


def _own_nearer(m: Measures) -> DoubleArray:
    nearer: DoubleArray = ((m.own < m.other) + 0.5 * (m.own == m.other)).mean(0)
    return nearer
