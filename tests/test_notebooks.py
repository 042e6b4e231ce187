"""The notebooks run from the first cell to the last, in quick mode, and lie in git without outputs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from monai_diverse import SampleBank

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install 'monai-diverse[notebooks]'")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def execute(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a notebook in a folder of its own, by the interpreter that runs the tests."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'monai-diverse[notebooks]'")
    pytest.importorskip("ipykernel", reason="needs ipykernel: pip install 'monai-diverse[notebooks]'")
    kernel, work = folder / "jupyter" / "kernels" / "these-tests", folder / "work"
    for new in (kernel, work):
        new.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "JUPYTER_PATH": kernel.parents[1]}
    settings |= {name: folder / name for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")}
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    notebook = read(path)
    nbclient.NotebookClient(notebook, kernel_name=kernel.name, timeout=300, resources={"metadata": {"path": str(work)}}).execute()
    return notebook


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """Name, folder that it ran in, and the notebook with its outputs."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as monkeypatch:
        return request.param.stem, folder / "work", execute(request.param, folder, monkeypatch)


def printed(notebook: Any) -> str:
    """Everything that its cells printed, or displayed as text."""
    texts = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        data = output.get("data", {})
        texts.append(output["text"] if output.output_type == "stream" else data.get("text/markdown", data.get("text/plain", "")))
    return "\n".join(texts)


def pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_runs(executed: tuple[str, Path, Any]) -> None:
    name, work, notebook = executed
    assert not [cell for cell in notebook.cells if cell.cell_type == "code" and cell.execution_count is None]
    {"augment_a_monai_classifier": check_augmented, "grow_look_judge": check_judged}[name](work, notebook)


def check_augmented(work: Path, notebook: Any) -> None:
    text = printed(notebook)
    bank = SampleBank.open(work / "bank-quick")
    assert min(bank.class_counts) > 0
    assert f"| generated | {bank.progress['drawn']} | {len(bank)} |" in text
    assert f"| unseen real | {bank.progress['control']['drawn']} | {bank.progress['control']['accepted']} |" in text
    assert pictures(notebook) == 1
    counted = re.search(r"Counter\(\{'real': (\d+), 'synthetic': (\d+)\}\)", text)
    assert counted is not None
    assert 5 <= int(counted[2]) <= 40  # of 200, each with probability 0.1
    runs = re.findall(r"^\| (real only|with the bank) \| ([01]) \| (0\.\d{3}) \| (0\.\d{3}) \|$", text, re.MULTILINE)
    assert [run[:2] for run in runs] == [("real only", "0"), ("real only", "1"), ("with the bank", "0"), ("with the bank", "1")]
    assert len({run[2:] for run in runs}) == 4


def check_judged(work: Path, notebook: Any) -> None:
    text = printed(notebook)
    bank = SampleBank.open(work / "own-model-quick" / "bank")
    assert min(bank.class_counts) > 0
    assert f"yield: {len(bank)} of {bank.progress['drawn']} drawn" in text
    control = bank.progress["control"]
    assert control["drawn"] + control["near_known"] == 78
    assert f"unseen real images under the same screen: {control['accepted']} of {control['drawn']}" in text
    for control in ("generated", "unseen real", "white noise", "near-copy: blur", "wrong label"):
        assert re.search(rf"^{control} +\d+ of \d+", text, re.MULTILINE), control
    assert pictures(notebook) >= 4  # as they come, accepted, rejected for a reason or more, in the bank
    exported = list((work / "own-model-quick" / "export").rglob("*.png"))
    assert len(exported) == len(bank)
    assert f"{len(bank)} pictures" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_lies_in_git_without_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count is not None]
    assert [cell.source.partition("#")[0].strip() for cell in code if "parameters" in cell.metadata.get("tags", [])] == ["QUICK = True"]
    assert "parameters" in code[0].metadata.tags


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    links = [link for cell in read(path).cells if cell.cell_type == "markdown" for link in re.findall(r"\]\(([^)#\s]+)\)", cell.source)]
    assert links
    assert not [link for link in links if "://" not in link and not (path.parent / link).exists()]
