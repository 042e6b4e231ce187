"""What the README and the docs tell people to type exists and works."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs

from monai_diverse import Recipe, grow
from monai_diverse.cli import main
from monai_diverse.job import Job

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not broken


def test_commands_and_options_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    lines = [line for block in _blocks("bash") for line in block.splitlines()] + re.findall(r"`(monai-diverse [^`]+)`", README)
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("monai-diverse")]
    assert {words[1] for words in commands} == {"demo", "train", "grow", "inspect", "verify", "export", "audit", "study"}
    for words in commands:
        assert main([words[1], "--help"]) == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words if word.startswith("--")), words


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for block in _blocks("bash") for line in block.splitlines() if line.startswith("make ")}
    assert {"demo", "test"} <= named <= targets


def test_recipe_works_beside_a_trained_model(tmp_path: Path, tiny_model: Path, blob_file: Path) -> None:
    """The README's recipe, on files of the names that its commands give them."""
    (block,) = _blocks("yaml")
    (tmp_path / "recipe.yaml").write_text(block)
    shutil.copy(blob_file, tmp_path / "images.npz")
    shutil.copytree(tiny_model, tmp_path / "model")
    job = Job.prepare(Recipe.load(tmp_path / "recipe.yaml"))
    assert job.guide is not None
    assert Job.prepare(Recipe.load(tmp_path / "recipe.yaml")).fingerprint == job.fingerprint  # what is fitted again continues the same bank
    labels, seeds = job.asked(0, 4)
    images = job.draw(labels, seeds, job.guide)
    assert len(job.screen.screen(images, labels)) == 4


def test_python_runs(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(Recipe.load(recipe_file), tmp_path / "bank")
    monkeypatch.chdir(tmp_path)
    real = blobs(20, 0)
    names: dict[str, object] = {
        "image": real.images[0],
        "data": [{"image": x, "label": int(y)} for x, y in zip(real.images, real.labels, strict=True)],
    }
    blocks = _blocks("python")
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["item"]["image"].shape == (1, 8, 8)  # type: ignore[index]
    dataset = names["dataset"]
    assert len(dataset) == 24  # type: ignore[arg-type]
    assert np.shape(dataset[23]["image"]) == (1, 8, 8)  # type: ignore[index]
