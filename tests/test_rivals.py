from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from monai_diverse.errors import DataError

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "rivals.py"
TOLERANCE = 1e-6
LINE = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [7.0, 0.0]])


@pytest.fixture(scope="module")
def rivals() -> ModuleType:
    """Benchmarks are scripts, not a package."""
    spec = importlib.util.spec_from_file_location("rivals", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_neighbour_distance_by_hand(rivals: ModuleType) -> None:
    """Corners at x = +-1, y = +-10: variances 4/3 and 400/3, so that both axes are alike once whitened."""
    corners = np.array([[-1.0, -10.0], [-1.0, 10.0], [1.0, -10.0], [1.0, 10.0]])
    unit = np.sqrt(3 / 4)
    query = [[1, 10], [0, 0], [3, 10], [1, 30]]
    # to the second nearest corner, whitened: one side of the square; half its diagonal; a side and a half to the right; and as far up
    expected = unit * np.array([2, np.sqrt(2), np.hypot(2, 2), np.hypot(2, 2)])
    np.testing.assert_allclose(rivals.neighbour_distance(corners, query, k=2), expected, rtol=TOLERANCE)
    np.testing.assert_allclose(rivals.neighbour_distance(corners, query, k=1), unit * np.array([0, np.sqrt(2), 2, 2]), rtol=TOLERANCE, atol=TOLERANCE)


def test_neighbour_distance_takes_as_many_components_as_asked(rivals: ModuleType) -> None:
    corners = np.array([[-1.0, -10.0], [-1.0, 10.0], [1.0, -10.0], [1.0, 10.0]])
    along = rivals.neighbour_distance(corners, [[50, 10], [0, 30]], k=1, components=1)
    np.testing.assert_allclose(along, np.sqrt(3 / 4) * np.array([0, 2]), atol=TOLERANCE)


def test_rarity_by_hand(rivals: ModuleType) -> None:
    """On a line at 0, 1, 3, 7 with k = 1 the balls have radii 1, 1, 2, 4."""
    query = np.array([[x, 0.0] for x in (0.5, 1.5, 2.5, 4.5, 5.5, 12.0, -1.0, 3.0)])
    #          in the balls of: 0 and 1, 1 and 3, 3, 3 and 7, 7, none, none (on the border of 0's), 3 (7 ends there)
    np.testing.assert_allclose(rivals.rarity_score(LINE, query, k=1), [1, 1, 2, 2, 4, 0, 0, 2], rtol=TOLERANCE)
    # with k = 3 they have radii 7, 6, 4, 7
    np.testing.assert_allclose(rivals.rarity_score(LINE, [[2.0, 0.0], [-2.0, 0.0], [-5.5, 0.0]]), [4, 6, 7], rtol=TOLERANCE)


def test_rarity_is_what_its_definition_says(rivals: ModuleType) -> None:
    rng = np.random.default_rng(0)
    reference, query = rng.normal(size=(60, 4)), 1.5 * rng.normal(size=(40, 4))
    radii = np.sort(cdist(reference, reference), axis=1)[:, 3]
    expected = [min((r for r, x in zip(radii, reference, strict=True) if np.linalg.norm(g - x) < r), default=0.0) for g in query]
    assert 0 < np.count_nonzero(expected) < 40
    np.testing.assert_allclose(rivals.rarity_score(reference, query), expected, rtol=TOLERANCE)


def test_authenticity_by_hand(rivals: ModuleType) -> None:
    """On a line at 0, 1, 3, 7 the nearest others are at distances 1, 1, 2, 4."""
    query = np.array([[x, 0.0] for x in (0.0, -0.75, -1.5, 3.5, 4.9, 12.0)])
    np.testing.assert_allclose(rivals.authenticity(LINE, query), [-1, -0.25, 0.5, -1.5, -0.1, 1], rtol=TOLERANCE)
    np.testing.assert_array_equal(rivals.authentic(LINE, query), [False, False, True, False, False, True])


def test_authenticity_decides_as_the_authors_do(rivals: ModuleType) -> None:
    rng = np.random.default_rng(0)
    reference, query = rng.normal(size=(50, 3)), rng.normal(size=(80, 3))
    index = NearestNeighbors(n_neighbors=2).fit(reference)
    own = index.kneighbors(reference)[0][:, 1]
    distance, nearest = (part[:, 0] for part in index.kneighbors(query))
    expected = own[nearest] < distance
    assert 0 < expected.sum() < 80
    np.testing.assert_array_equal(rivals.authentic(reference, query), expected)


def test_a_repeated_reference_makes_everything_but_its_copy_authentic(rivals: ModuleType) -> None:
    twice = np.array([[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]])
    np.testing.assert_array_equal(rivals.authentic(twice, [[0.0, 0.0], [0.1, 0.0]]), [False, True])


def test_too_few_references(rivals: ModuleType) -> None:
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        rivals.authenticity([[0.0, 0.0]], [[1.0, 0.0]])
    with pytest.raises(DataError, match="at least 4 images, got 3"):
        rivals.rarity_score(LINE[:3], [[1.0, 0.0]])
    with pytest.raises(DataError, match="at least 5 images, got 4"):
        rivals.neighbour_distance(LINE, [[1.0, 0.0]])
