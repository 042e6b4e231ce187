"""Exact and indexed search are one interface with one answer."""

from __future__ import annotations

import pickle
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from monai_diverse.errors import DataError
from monai_diverse.information import GrowingNeighbours, Neighbours, cells, neighbours, tables
from monai_diverse.information.cells import Cells, evenly_spaced

TOLERANCE = 1e-6
"""Of distances, relative to the largest norm of a row: rows are kept in single precision."""


def manifold(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Points near six dimensions of d."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 6)) @ np.random.default_rng(99).normal(size=(6, d)) + 0.05 * rng.normal(size=(n, d))


def apart(query: np.ndarray, x: np.ndarray, left_out: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.where(left_out[:, None] == ids, np.inf, cdist(query, x))


def test_index_and_exact_agree() -> None:
    pytest.importorskip("faiss")
    x, query = manifold(20_000, 32), manifold(300, 32, 1)
    ids = np.arange(20_000) // 3
    exact, index = Neighbours(x, ids, index_from=None), Neighbours(x, ids, index_from=20_000)
    assert exact.exact
    assert not index.exact
    assert len(index) == len(exact) == 20_000
    assert index.most == exact.most
    allowed = TOLERANCE * np.linalg.norm(x, axis=1).max()
    for ours, true in (
        (index.distances(query, 5), exact.distances(query, 5)),
        (index.distances(query, 5, leave_out=ids[:300]), exact.distances(query, 5, leave_out=ids[:300])),
        (index.within(5, 300), exact.within(5, 300)),
    ):
        close = np.abs(ours - true) < allowed
        assert close.mean() > 0.97
        # a neighbour that is missed is replaced by one that is farther
        assert (ours[~close] > true[~close]).all()
        assert (np.diff(ours, axis=1) >= 0).all()
    assert (index.nearest(query) == exact.nearest(query)).mean() > 0.97


def test_recall_is_measured_and_kept() -> None:
    pytest.importorskip("faiss")
    x, query = manifold(20_000, 32), manifold(400, 32, 1)
    index = Neighbours(x, index_from=1)
    true = np.sort(cdist(query, x))[:, :5]
    by_hand = (index.distances(query, 5) <= true[:, -1:] * (1 + TOLERANCE)).mean()
    assert index.recall(query=query) == pytest.approx(by_hand)
    assert index.recall(sample=400) > 0.97
    assert Neighbours(x, index_from=None).recall() == 1
    few = Neighbours(x, index_from=1)
    object.__setattr__(few._rows, "cells", Cells(index=few._rows.cells.index, probes=1))
    assert few.recall(query=query) < by_hand


def test_index_is_the_same_each_time_and_survives_pickling() -> None:
    pytest.importorskip("faiss")
    x, query = manifold(6000, 8), manifold(50, 8, 1)
    first = Neighbours(x, index_from=1)
    np.random.default_rng(5).normal(size=1000)
    for other in (Neighbours(x, index_from=1), pickle.loads(pickle.dumps(first))):
        assert not other.exact
        np.testing.assert_array_equal(other.distances(query, 7), first.distances(query, 7))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(30, 400), groups=st.integers(2, 40), seed=st.integers(0, 10_000), copies=st.booleans())
def test_index_leaves_groups_out_however_large(n: int, groups: int, seed: int, copies: bool) -> None:
    """Also where a query's own group fills every cell that is searched."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, groups, n)
    x = rng.normal(size=(groups, 3))[ids] * 5 + (0 if copies else 0.1) * rng.normal(size=(n, 3))
    index = Neighbours(x, ids, index_from=1)
    assert index.most == min((ids != g).sum() for g in ids)
    if not index.most:
        return
    k = min(3, index.most)
    within, true = index.within(k), np.sort(apart(x, x, ids, ids))[:, :k]
    assert np.isfinite(within).all()
    # never nearer than the truth: no row of the own group is ever counted
    assert (within >= true - 1e-4).all()
    farthest = np.sort(apart(x, x, ids, ids))[:, index.most - 1]
    np.testing.assert_allclose(index.within(index.most)[:, -1], farthest, atol=TOLERANCE * np.linalg.norm(x, axis=1).max())


def test_without_faiss_the_search_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    x, query = manifold(3000, 8), manifold(40, 8, 1)
    monkeypatch.setitem(sys.modules, "faiss", None)
    plain = Neighbours(x, np.arange(3000) // 2, index_from=1000)
    assert plain.exact
    assert plain.recall() == 1
    allowed = TOLERANCE * np.linalg.norm(x, axis=1).max()
    np.testing.assert_allclose(plain.distances(query, 4), np.sort(cdist(query, x))[:, :4], atol=allowed)
    np.testing.assert_array_equal(plain.nearest(query), cdist(query, x).argmin(1))


def test_features_without_structure_are_searched_exactly() -> None:
    x = np.random.default_rng(0).normal(size=(2000, 256))
    found = Neighbours(x, index_from=1)
    assert found.exact
    np.testing.assert_allclose(found.distances(x[:20], 3), np.sort(cdist(x[:20], x))[:, :3], atol=TOLERANCE * np.linalg.norm(x, axis=1).max())


def test_within_takes_evenly_spaced_rows_where_there_are_very_many() -> None:
    x = manifold(900, 4)
    index = Neighbours(x)
    whole = index.within(2)
    assert whole.shape == (900, 2)
    np.testing.assert_array_equal(index.within(2, 10), whole[evenly_spaced(900, 10)])
    np.testing.assert_array_equal(index.within(2, None), whole)
    assert Neighbours(manifold(10_007, 2)).within(1).shape == (10_000, 1)
    np.testing.assert_array_equal(evenly_spaced(900, 3), [0, 450, 899])
    np.testing.assert_array_equal(evenly_spaced(4, 9), np.arange(4))


def test_small_sets_and_one_row_can_be_indexed() -> None:
    pytest.importorskip("faiss")
    for n in (1, 2, 5):
        x = manifold(n, 3)
        found = Neighbours(x, index_from=1)
        np.testing.assert_allclose(found.distances(x, n), np.sort(cdist(x, x)), atol=1e-5)


def test_rows_may_lie_in_a_file_and_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    x = manifold(3000, 4).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    whole = Neighbours(x, index_from=1)
    monkeypatch.setattr(cells, "BLOCK", 4 * 700)
    monkeypatch.setattr(tables, "GATHERED", 50)
    monkeypatch.setattr(neighbours, "CHUNK", 13)
    mapped = Neighbours(np.load(tmp_path / "x.npy", mmap_mode="r"), index_from=1)
    assert not mapped.exact
    np.testing.assert_allclose(mapped.within(3, 100), whole.within(3, 100), atol=1e-6)
    assert mapped.recall() == pytest.approx(whole.recall())


def test_the_index_says_what_is_wrong() -> None:
    pytest.importorskip("faiss")
    x = manifold(300, 4)
    index = Neighbours(x, index_from=1)
    with pytest.raises(DataError, match="rows of 4 features"):
        index.distances(x[:, :3], 1)
    with pytest.raises(DataError, match="other rows to compare with"):
        index.distances(x, 301)
    broken = x.copy()
    broken[7, 2] = np.nan
    for searched in (index, Neighbours(x)):
        with pytest.raises(DataError, match="finite features"):
            searched.distances(broken[7:8], 1)
    for index_from in (1, None):
        with pytest.raises(DataError, match="finite features"):
            Neighbours(broken, index_from=index_from)


def test_index_on_disk_answers_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(cells, "SHARD", 32 * 7_000)
    monkeypatch.setattr(cells, "BLOCK", 32 * 2_048)
    x, query = manifold(20_000, 32).astype(np.float32), manifold(200, 32, 1)
    inside, outside = Neighbours(x, index_from=1), Neighbours(x, index_from=1, folder=tmp_path / "index")
    assert capfd.readouterr().out == "", "standard output may be a caller's JSON"
    np.testing.assert_array_equal(outside.distances(query, 5), inside.distances(query, 5))
    np.testing.assert_array_equal(outside.nearest(query), inside.nearest(query))
    assert not outside.exact
    (folder,) = (tmp_path / "index").iterdir()
    assert {file.name for file in folder.iterdir()} == {cells.CELLS, cells.INDEX}, "shards should be gone"

    made: list[int] = []
    monkeypatch.setattr(cells, "_write", lambda rows, folder: made.append(len(rows)))
    again = Neighbours(x, index_from=1, folder=tmp_path / "index")
    assert not made, "the index that is there should be used"
    np.testing.assert_array_equal(again.distances(query, 5), inside.distances(query, 5))


def test_blocks_are_as_large_as_their_numbers_allow() -> None:
    assert [part.stop - part.start for part in cells.blocks(10, 3, 12)] == [4, 4, 2]
    assert [part.stop - part.start for part in cells.blocks(3, 100, 12)] == [1, 1, 1], "a row is not divided"
    assert list(cells.blocks(0, 3)) == []


def test_an_index_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As on a machine to which the folder was not given."""
    pytest.importorskip("faiss")
    sent = pickle.dumps(Neighbours(manifold(3_000, 8), index_from=1, folder=tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(DataError, match="found none; give every machine the same folder"):
        pickle.loads(sent)


def test_index_of_other_rows_is_another(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    x = manifold(3_000, 8)
    for rows in (x, x + 1):
        own = Neighbours(rows, index_from=1, folder=tmp_path)
        np.testing.assert_allclose(own.distances(rows[:5], 1), 0, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2


def test_memory_map_is_indexed_where_it_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    np.save(tmp_path / "rows.npy", manifold(3_000, 8).astype(np.float32))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    inside = Neighbours(rows, index_from=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.npy"], "nothing should appear beside somebody's file unasked"
    outside = Neighbours(rows, index_from=1, folder=tmp_path / "cells")
    np.testing.assert_array_equal(outside.distances(rows[:50], 5), inside.distances(rows[:50], 5))


@pytest.mark.parametrize("name", ["cells.ivfdata", "index.faiss"])
def test_damaged_index_is_named(tmp_path: Path, name: str) -> None:
    pytest.importorskip("faiss")
    x = manifold(3_000, 8)
    Neighbours(x, index_from=1, folder=tmp_path)
    (folder,) = tmp_path.iterdir()
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="delete the folder"):
        Neighbours(x, index_from=1, folder=tmp_path)


@given(st.lists(st.integers(0, 40), max_size=25), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_growing_rows_are_searched_as_all_at_once(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, found, rows = rng.normal(size=(7, 3)), GrowingNeighbours(), np.empty((0, 3))
    for size in sizes:
        fresh = rng.normal(size=(size, 3))
        before, last = found.nearest(query), found
        rows, found = np.concatenate([rows, fresh]), found.plus(fresh)
        np.testing.assert_array_equal(last.nearest(query), before, err_msg="adding should leave what there was as it is")
        expected = cdist(query, rows).min(axis=1) if len(rows) else np.full(7, np.inf)
        np.testing.assert_allclose(found.nearest(query), expected, rtol=1e-9)
        assert len(found) == len(rows)
        counts = [len(table) for table in found.tables]
        assert all(large > 2 * small for large, small in pairwise(counts)), "so that there are few tables"


def test_many_growing_rows_are_indexed() -> None:
    pytest.importorskip("faiss")
    x, query = manifold(9_000, 8), manifold(200, 8, 1)
    found = GrowingNeighbours(index_from=4_000)
    for start in range(0, len(x), 1_000):
        found = found.plus(x[start : start + 1_000])
    assert not found.tables[0].exact
    assert found.tables[-1].exact
    true = cdist(query, x).min(axis=1)
    close = np.isclose(found.nearest(query), true, rtol=1e-5)
    assert close.mean() > 0.97
    assert (found.nearest(query)[~close] > true[~close]).all()
