"""What a screen makes of images whose worth is known: unseen real ones, noise, near-copies, wrong labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from monai_diverse.data import LabelledImages
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.screening.control_cases import GENERATED, UNSEEN, YARDSTICK, Case, control_cases, require_unseen
from monai_diverse.screening.yields import Yield

if TYPE_CHECKING:
    from monai_diverse.screening.screen import FittedScreen

CONFIDENCE = 0.95
CHUNK_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class ControlRow:
    """What became of the images of one kind.

    An image is accepted if each gate that looks at it alone lets it pass: the duplicate gate is left out, so that rows of any length compare.

    Attributes:
        name: of the kind.
        expected: in words, what a screen should make of it.
        at_most: the share of images that a screen which does what it says accepts at most; None: nothing is promised.
        on_average: that share, where it is promised on average over calibration sets: any one valid screen may exceed it. None: nothing is.
        result: accepted of judged images, with the Clopper-Pearson interval of independent images.
        groups: the same of patients (groups): one counts as accepted if one of its images is; None: groups are unknown.
        first: how many images each gate was the first to reject, by its reason.
        alone: how many images each gate rejects, whatever the others do; None: unknown.
    """

    name: str
    expected: str
    at_most: float | None
    result: Yield
    groups: Yield | None
    first: dict[str, int]
    alone: dict[str, int] | None
    on_average: float | None = None

    @property
    def too_many(self) -> bool:
        """Whether even the lower end of the interval is above what the screen promises."""
        return self.at_most is not None and self.result.ci95[0] > 1e4 * self.at_most

    def as_json(self) -> dict[str, Any]:
        """Everything, intervals per 10,000."""
        return {
            "name": self.name,
            "expected": self.expected,
            "at_most": self.at_most,
            "at_most_on_average": self.on_average,
            "too_many": self.too_many,
            **self.result.as_json(),
            "groups": None if self.groups is None else self.groups.as_json(),
            "first_reason": self.first,
            "rejected_alone": self.alone,
        }


@dataclass(frozen=True, kw_only=True)
class Controls:
    """A screen's controls, in the order in which they are read.

    Attributes:
        rows: one a kind of image; those that cannot be made (one class, nothing generated, no other modality) are left out.
        count: images asked for, of each kind that is made.
        seed: that they were made from.
        screen: fingerprint of the screen.
        against: which set novelty and copies are judged against (`FittedScreen.against`).
        stopped_at_size: whether the generated images are a bank's that stopped when it was full.
    """

    rows: tuple[ControlRow, ...]
    count: int
    seed: int
    screen: str
    against: dict[str, str]
    stopped_at_size: bool = False

    def __getitem__(self, name: str) -> ControlRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"controls: expected one of {', '.join(row.name for row in self.rows)}, got {name!r}")

    @property
    def excess(self) -> tuple[float, float, float] | None:
        """Share of generated images accepted less that of unseen real ones, with both ends of its 95 % interval; None: either row is missing.

        Unseen real images that nearly repeat what the screen was fitted on are left out.
        """
        by_name = {row.name: row.result for row in self.rows}
        return difference(by_name[GENERATED], by_name[UNSEEN]) if {GENERATED, UNSEEN} <= by_name.keys() else None

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the interval of `excess` leaves out."""
        dependence = "it takes images as independent: a guide's draws depend on one another, and images of one patient do, so it is then too narrow"
        stopped = "the bank stopped at its size, not after a fixed number of draws: its yield, and so the difference, is a little too high"
        return (dependence, stopped) if self.stopped_at_size else (dependence,)

    def as_json(self) -> dict[str, Any]:
        """Everything, with what the figures mean."""
        return {
            "screen": self.screen,
            "against": self.against,
            "count": self.count,
            "seed": self.seed,
            "confidence_level": CONFIDENCE,
            "interval": "Clopper-Pearson, images taken as independent",
            "accepted": "by every gate that judges an image alone; the duplicate gate is ignored",
            "rows": [row.as_json() for row in self.rows],
            "excess_per_10k": self._excess_as_json(),
        }

    def as_table(self) -> str:
        """Two tables as text: what was accepted, and which gates rejected the rest."""
        return "\n".join([*_accepted_lines(self), "", *_gate_lines(self.rows)])

    def _excess_as_json(self) -> dict[str, Any] | None:
        if self.excess is None:
            return None
        value, low, high = (1e4 * part for part in self.excess)
        return {"value": value, "ci95": [low, high], "interval": "Newcombe 1998, method 10", "caveats": list(self.caveats)}


def judge_controls(
    screen: FittedScreen,
    unseen: LabelledImages,
    *,
    generated: LabelledImages | None = None,
    other: npt.ArrayLike | None = None,
    count: int = 500,
    seed: int = 0,
    twin_correlation: float | None = None,
) -> Controls:
    """Judges images whose worth is known; see `control_rows` for the arguments and for one row at a time."""
    rows = tuple(control_rows(screen, unseen, generated=generated, other=other, count=count, seed=seed, twin_correlation=twin_correlation))
    return Controls(rows=rows, count=count, seed=seed, screen=screen.fingerprint, against=screen.against)


def control_rows(
    screen: FittedScreen,
    unseen: LabelledImages,
    *,
    generated: LabelledImages | None = None,
    other: npt.ArrayLike | None = None,
    count: int = 500,
    seed: int = 0,
    twin_correlation: float | None = None,
) -> Iterator[ControlRow]:
    """Judges one kind of image after the other.

    Noise, inverted, rotated and mislabelled images and those of shuffled patches are made of the unseen ones; near-copies (JPEG, blur, a shift by one
    pixel) of what the generator saw, or of the reference where that is unknown. Image i of a kind depends on the seed and on i alone. Where a kind
    has fewer different images than `count`, as inverting has one of each, there are so many and no more.

    Unseen images that nearly repeat one that the screen was fitted on, and the rest of their groups, are a row of their own; nothing else is made of
    them unless there are no others.

    Args:
        screen: the fitted screen.
        unseen: real images that it was not fitted on and the generator did not see.
        generated: images as a generator drew them, before any screen.
        other: images of another modality (n, channels, *spatial) in [0, 1]; resized to the screen's, their channels averaged if they are not as many.
        count: images of each kind that is made, at most.
        seed: of all that is random, from 0.
        twin_correlation: pixels that correlate above this make near-duplicates; None: the screen's own, or .95 where it has none.

    Raises:
        RecipeError: a count below 1, a negative seed, fractions of either, or a correlation outside (0, 1).
        DataError: images that do not fit the screen, or unseen ones that it was fitted on.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if not isinstance(value, int | np.integer) or value < least:
            raise RecipeError(f"{name}: expected a whole number from {least}, got {value!r}")
    for name, data in (("unseen", unseen), ("generated", generated)):
        if not isinstance(data, LabelledImages) and (data is not None or name == "unseen"):
            raise DataError(f"{name}: expected LabelledImages, got {type(data).__name__}; give images with their labels")
    require_unseen(screen, unseen)
    for case in control_cases(screen, unseen, generated, other, count, seed, twin_correlation):
        yield _judge(screen, case)


def drawn_row(*, drawn: int, rejections: Mapping[str, int], nfe: int | None = None) -> ControlRow:
    """The row of generated images from what a bank counted while it grew.

    Args:
        drawn: images drawn.
        rejections: of them, how many by first reason. Those rejected as duplicates passed every other gate, so they count as accepted here.
        nfe: network evaluations.
    """
    first = {reason: int(number) for reason, number in rejections.items() if reason != "duplicate"}
    result = Yield(drawn=drawn, accepted=drawn - sum(first.values()), nfe=nfe)
    return ControlRow(name=GENERATED, expected=YARDSTICK, at_most=None, result=result, groups=None, first=first, alone=None)


def difference(one: Yield, other: Yield) -> tuple[float, float, float]:
    """Difference of two independent shares with its 95 % interval: Newcombe (1998), method 10, from the two Wilson intervals.

    Returns:
        (difference, lower end, upper end), in [-1, 1]; everything, (0, -1, 1), if either is a share of nothing.
    """
    if not one.drawn or not other.drawn:
        return 0.0, -1.0, 1.0
    shares = [y.accepted / y.drawn for y in (one, other)]
    wilson = [binomtest(y.accepted, y.drawn).proportion_ci(CONFIDENCE, method="wilson") for y in (one, other)]
    middle = shares[0] - shares[1]
    below = np.hypot(shares[0] - wilson[0].low, wilson[1].high - shares[1])
    above = np.hypot(wilson[0].high - shares[0], shares[1] - wilson[1].low)
    return middle, float(middle - below), float(middle + above)


def _judge(screen: FittedScreen, case: Case) -> ControlRow:
    count = len(case.labels)
    step = max(1, CHUNK_BYTES // (4 * int(np.prod(screen.embedding.shape))))
    parts = [_rejected(screen, case, start, min(start + step, count)) for start in range(0, count, step)]
    rejected = {reason: np.concatenate([part[reason] for part in parts]) if parts else np.zeros(0, bool) for reason in screen.gates}
    left, first = np.ones(count, bool), {}
    for reason, mask in rejected.items():
        first[reason] = int((mask & left).sum())
        left &= ~mask
    return ControlRow(
        name=case.name,
        expected=case.expected,
        at_most=case.at_most,
        result=Yield(drawn=count, accepted=int(left.sum())),
        groups=None if case.groups is None else Yield(drawn=len(np.unique(case.groups)), accepted=len(np.unique(case.groups[left]))),
        first=first,
        alone={reason: int(mask.sum()) for reason, mask in rejected.items()},
        on_average=case.on_average,
    )


def _rejected(screen: FittedScreen, case: Case, start: int, stop: int) -> dict[str, npt.NDArray[np.bool_]]:
    views = screen.embed(np.stack([case.image(number) for number in range(start, stop)]), case.labels[start:stop])
    return {reason: gate.score(views) > gate.threshold for reason, gate in screen.gates.items()}


def _accepted_lines(controls: Controls) -> list[str]:
    width = _width(controls.rows)
    lines = [
        f"accepted: by each gate that judges an image alone; the duplicate gate is ignored. Intervals: {100 * CONFIDENCE:g} %, Clopper-Pearson.",
        f"novelty against {controls.against['novelty']}, copies against {controls.against['copies']}; seed {controls.seed}",
        "",
        f"{'control':<{width}}{'accepted':>13}{'per 10,000':>12}{'interval':>15}   {'patients':<13}expected",
    ]
    for row in controls.rows:
        low, high = row.result.ci95
        patients = "unknown" if row.groups is None else f"{row.groups.accepted} of {row.groups.drawn}"
        counts = f"{f'{row.result.accepted} of {row.result.drawn}':>13}{row.result.per_10k:>12.0f}{f'{low:.0f} to {high:.0f}':>15}"
        lines.append(f"{row.name:<{width}}{counts} {'!' if row.too_many else ' '} {patients:<13}{row.expected}")
    if controls.excess is not None:
        value, low, high = (1e4 * part for part in controls.excess)
        lines.append(f"generated less unseen real: {value:+.0f} per 10,000 ({100 * CONFIDENCE:g} % interval {low:+.0f} to {high:+.0f}, Newcombe);")
        lines += [f"  {caveat}" for caveat in controls.caveats]
    lines.append(
        "!: more than the screen promises, beyond chance. patients: with an accepted image, of those behind the images. Images of one patient"
    )
    lines.append("depend on one another: where there are fewer patients than images, the interval is too narrow.")
    return lines


def _gate_lines(rows: tuple[ControlRow, ...]) -> list[str]:
    gates, width = list(rows[0].first) if rows else [], _width(rows)
    lines = ["rejected: first reason / by the gate alone", f"{'control':<{width}}" + "".join(f"{gate:>14}" for gate in gates)]
    for row in rows:
        cells = [f"{row.first.get(gate, 0)} / {'?' if row.alone is None else row.alone[gate]}" for gate in gates]
        lines.append(f"{row.name:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    return lines


def _width(rows: tuple[ControlRow, ...]) -> int:
    return 2 + max((len(row.name) for row in rows), default=24)
