"""What docs/information.md tells people to type works, and what it states of constants and names is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from monai_diverse import information
from monai_diverse.information import InformationGain, good_turing, neighbours, tables

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "information.md").read_text()


def test_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    assert all(score in printed for score in ("information_gain nats", "vendi images", "unseen_mass share"))
    assert "True 1.0" in printed


def test_every_score_is_on_the_page() -> None:
    returned = {"FittedCodebook", "GainTracker", "Share"}
    assert [name for name in information.__all__ if name not in PAGE] == sorted(returned)
    listed = re.findall(r"^\| `([\w.]+)`", PAGE, re.MULTILINE)
    assert len(listed) == 15
    for name in listed:
        owner, _, method = name.partition(".")
        assert hasattr(getattr(information, owner), method or "__doc__"), name


def test_constants_are_as_stated() -> None:
    assert (neighbours.INDEX_FROM, neighbours.SAMPLE) == (50_000, 10_000)
    assert (tables.RECALL, tables.RECALL_K, tables.RECALL_SAMPLE, tables.MOST_PROBED) == (0.99, 5, 128, 0.25)
    assert round(good_turing([2] * 500).high, 2) == 0.15
    far = InformationGain(np.zeros((1, 1)), lengthscale=1.0).gain([[100.0]])
    assert float(far[0]) == pytest.approx(1.2, abs=0.01)


def test_measured_figures_are_the_benchmarks() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "neighbours.json").read_text())["results"]
    cases = {(c["rows"], c["width"], c["way"]): c for c in found["cases"]}
    table = re.search(r"^\| rows \|.*\n\|[- |]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table is not None
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.group(1).splitlines()]
    assert len(lines) == 6
    for rows, width, exact, made, asked, first, fifth, memory in lines:
        n, d = int(rows.replace(",", "")), int(width)
        case = cases[n, d, "index"]
        values = cases[n, d, "exact"]["queries_seconds"], case["made_seconds"], case["queries_seconds"]
        assert [exact, made, asked] == [f"{v:.2g}" if v < 10 else f"{v:.0f}" for v in values]
        assert [first, fifth, memory] == [f"{case['recall_at_1']:.3f}", f"{case['recall_at_5']:.3f}", f"{case['peak_gib']:.1f}"]
    lazy, longer, eager = re.search(r"500 picks take ([\d.]+) s and 1,000 take ([\d.]+) s .* 500 take ([\d.]+) s", PAGE).groups()  # type: ignore[union-attr]
    assert [float(lazy), float(longer), float(eager)] == [round(found["greedy_seconds"][name], 1) for name in ("lazy_500", "lazy_1000", "eager_500")]
    assert found["index_from"] == {
        "48": {"1000_queries": 300_000, "10000_queries": 10_000},
        "512": {"1000_queries": 100_000, "10000_queries": 10_000},
    }
