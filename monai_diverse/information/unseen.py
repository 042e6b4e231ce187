"""How much of a set lies where the reference has nothing, beside how much must be expected there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm

from monai_diverse.errors import DataError, RecipeError


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share between 0 and 1 with its interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end.
        level: of the interval, .95 is 95 %.
        method: what the interval rests on.
    """

    value: float
    low: float
    high: float
    level: float
    method: str

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, {100 * self.level:g} % interval, {self.method})"


def good_turing(reference: npt.ArrayLike, *, level: float = 0.95) -> Share:
    """Missing mass of the reference: the share of new images of its kind whose code it lacks, N1 / n (Good 1953).

    N1 is the number of codes that occur once. Interval: N1 / n +- z sqrt(N1 + 2 N2 - N1^2 / n) / n (Esty, Ann. Stat. 1983), within [0, 1].
    That is normal theory, of width 0 where no code or every one occurs once. There: N1 / n +- ((1 + sqrt 2) sqrt(log(2 / (1 - level)) / n) + 1 / n),
    which holds at any n, for any distribution, and is wide: within sqrt(log(2 / a) / n) the missing mass is near its mean (McAllester & Ortiz, JMLR
    2003) and within sqrt(2 log(2 / a) / n) N1 / n is near its own (McDiarmid 1989), each but for a share a / 2; the means differ by at most 1 / n.

    Args:
        reference: counts (codes,), not all 0; of groups rather than images, where images of a group are alike.
        level: of the interval.

    Raises:
        DataError: other counts.
        RecipeError: a level that is not between 0 and 1.
    """
    _check(level)
    counts = _counts("reference", reference)
    n, once, twice = int(counts.sum()), int((counts == 1).sum()), int((counts == 2).sum())
    if once in (0, n):
        half, method = (1 + 2**0.5) * np.sqrt(np.log(2 / (1 - level)) / n) + 1 / n, "McAllester-Ortiz"
    else:
        half, method = norm.ppf(0.5 + level / 2) * np.sqrt(max(once + 2 * twice - once**2 / n, 0)) / n, "Esty"
    value = once / n
    return Share(value=value, low=max(0.0, value - float(half)), high=min(1.0, value + float(half)), level=level, method=method)


def unseen_mass(samples: npt.ArrayLike, reference: npt.ArrayLike, *, level: float = 0.95) -> Share:
    """The share of samples whose code the reference lacks; exact interval (Clopper & Pearson 1934).

    Compare it with `good_turing(reference)` and with the same share of unseen real images. A codebook that was fitted on the reference alone has no
    code without a reference image: fit it on all sets together, as `describe_information` does.

    Args:
        samples: counts (codes,), not all 0; drawn independently, or the interval is too narrow.
        reference: counts (codes,), not all 0.
        level: of the interval.

    Raises:
        DataError: other counts, or of different lengths.
        RecipeError: a level that is not between 0 and 1.
    """
    _check(level)
    drawn, known = _counts("samples", samples), _counts("reference", reference)
    if drawn.shape != known.shape:
        raise DataError(f"unseen mass: expected counts of the same codes, got {len(drawn)} and {len(known)}")
    found = binomtest(int(drawn[known == 0].sum()), int(drawn.sum()))
    interval = found.proportion_ci(level, method="exact")
    value, low, high = float(found.statistic), float(interval.low), float(interval.high)
    return Share(value=value, low=low, high=high, level=level, method="Clopper-Pearson")


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise RecipeError(f"level: expected between 0 and 1, got {level}")


def _counts(name: str, counts: npt.ArrayLike) -> npt.NDArray[np.int64]:
    given = np.asarray(counts)
    if given.ndim != 1 or not given.sum() > 0 or (given < 0).any() or (given != np.round(given)).any():
        raise DataError(f"{name}: expected counts (codes,) from 0, not all 0, got shape {given.shape} that sums to {given.sum():g}")
    return given.astype(np.int64)
