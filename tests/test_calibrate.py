"""What calibration refuses, in one line."""

from __future__ import annotations

import re

import numpy as np
import pytest

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.screening.calibrate import ClassConformal, Conformal, calibration_limit, discoveries

SCORES = np.array([0.0, 1.0, 2.0])
GROUPS = np.arange(3)


def fitted(labels: list[int]) -> ClassConformal:
    return ClassConformal.fit(SCORES, np.array(labels), GROUPS, classes=(0, 1), minimum=1)


def test_nan_is_no_p_value() -> None:
    """It would sort above every score, so it would be the most novel image there is."""
    says = "scores: expected a number an image, got NaN in 1 of 2; look for NaN"
    with pytest.raises(DataError, match=says):
        Conformal.fit(SCORES).p_values([0.5, np.nan])
    with pytest.raises(DataError, match=says):
        fitted([0, 1, 1]).p_values([0.5, np.nan], np.array([0, 1]))
    with pytest.raises(DataError, match="NaN in 1 of 3"):
        Conformal.fit([0.0, np.nan, 1.0])
    with pytest.raises(DataError, match="NaN in 1 of 3"):
        ClassConformal.fit([0.0, np.nan, 1.0], GROUPS, GROUPS, classes=(0, 1, 2), minimum=1)
    with pytest.raises(DataError, match="NaN in 1 of 3"):
        calibration_limit([0.0, np.nan, 1.0], 0.5)


def test_infinite_scores_are_the_strangest_and_the_least_strange() -> None:
    np.testing.assert_array_equal(Conformal.fit(SCORES).p_values([np.inf, -np.inf]), [0.25, 1])


@pytest.mark.parametrize("count", [2, 4])
def test_there_is_one_group_and_one_label_a_score(count: int) -> None:
    wrong = np.zeros(count, int)
    groups, labels = (re.escape(f"{name}: expected shape (3,), one a score, got ({count},)") for name in ("groups", "labels"))
    with pytest.raises(DataError, match=groups):
        Conformal.fit(SCORES, wrong)
    with pytest.raises(DataError, match=groups):
        calibration_limit(SCORES, 0.5, wrong)
    with pytest.raises(DataError, match=groups):
        ClassConformal.fit(SCORES, GROUPS, wrong, classes=(0, 1, 2), minimum=1)
    with pytest.raises(DataError, match=labels):
        ClassConformal.fit(SCORES, wrong, GROUPS, classes=(0, 1, 2), minimum=1)
    with pytest.raises(DataError, match=labels):
        fitted([0, 1, 1]).p_values(SCORES, wrong)


def test_scores_are_a_row_of_numbers() -> None:
    with pytest.raises(DataError, match=re.escape("got shape (1, 3)")):
        Conformal.fit(SCORES[None])


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (-0.1, "-0.1"), (np.nan, "nan")])
def test_discoveries_are_made_among_p_values(value: float, shown: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"p_values: expected values (m,) in [0, 1], got {shown} among 2; give one")):
        discoveries([0.01, value], 0.1)
    with pytest.raises(DataError, match=re.escape("got shape (1, 2)")):
        discoveries([[0.01, 0.02]], 0.1)
    with pytest.raises(RecipeError, match="rate: expected a share between 0 and 1, got nan"):
        discoveries([0.01], np.nan)
    assert discoveries([0.0, 1.0], 0.1).tolist() == [True, False]
