"""The example scripts run, use the bank, and differ from themselves without it by one line."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import runpy
import sys
import tempfile
import warnings
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ScaleIntensity, ScaleIntensityd, Transpose
from PIL import Image

from monai_diverse import RandDiverseReplaced, Recipe
from monai_diverse.bank import BankHeader, BankWriter
from monai_diverse.transforms.insertion import Insertion

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
BUNDLE = EXAMPLES / "bundle" / "configs" / "train.yaml"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
MARK = "# the one changed line"
NEEDS = {"albumentations_torch": "albumentations", "ignite_trainer": "ignite", "lightning_module": "pytorch_lightning", "train": "ignite"}
SIDE, TRAIN, LIMIT = 28, 64, 48


def run_script(script: str, bank: str, data: str, folder: Path) -> None:
    """In a process of its own: imports the script, runs it twice with the bank and once without, and reports what it printed, how many samples
    it put in the place of images, and how far the worst of them was from its image."""
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / stream, os.O_WRONLY | os.O_CREAT, 0o666), number)
    os.chdir(folder / "here")
    torch.set_num_threads(1)
    os.environ |= {"TMPDIR": str(folder / "temporary"), "MPLCONFIGDIR": str(folder / "matplotlib")}
    tempfile.tempdir = None  # which was found out before
    warnings.filterwarnings("error", module="monai_diverse")
    put, distances = Insertion.put, []

    def counted(self: Insertion, sample: Any, real: Any, what: Any, source: Any) -> Any:
        distances.append(float(np.abs(np.asarray(sample, np.float64) - np.asarray(real, np.float64)).max()))
        return put(self, sample, real, what, source)

    def run(**options: Any) -> None:
        if script.endswith(".yaml"):
            monai.bundle.run(config_file=script, meta_file=script.replace("train.yaml", "metadata.json"), **options | {"data": Path(data)})
            return
        flags = ["--" + name.replace("_", "-") for name, value in options.items() if value is True]
        sys.argv = [script, *(f"--{name}={value}" for name, value in options.items() if value is not True), *flags]
        runpy.run_path(script, run_name="__main__")

    def printed() -> str:
        text = sys.stdout.getvalue()
        sys.stdout.seek(0)
        sys.stdout.truncate()
        return text

    Insertion.put = counted
    sys.stdout = io.StringIO()  # one for all runs: loggers keep the stream that they first got
    report: dict[str, Any] = {}
    if script.endswith(".py"):
        runpy.run_path(script, run_name="imported")
    report["imported"] = printed()
    for name, choice in (("bank", {"bank": bank}), ("again", {"bank": bank}), ("real", {"bank": "nowhere", "real_only": True})):
        distances.clear()
        run(data=data, epochs=1, seed=3, limit=LIMIT, **choice)
        report[name] = {"printed": printed(), "put": len(distances), "worst": max(distances, default=None)}
    (folder / "report.json").write_text(json.dumps(report))


def pattern(label: int) -> np.ndarray[Any, Any]:
    """A class's only image, uint8: neither symmetric nor as bright as can be."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    centre = (0.3, 0.6) if label == 0 else (0.7, 0.2)
    return np.round(180 * np.exp(-(((y - centre[0]) / 0.15) ** 2) - ((x - centre[1]) / 0.3) ** 2) + 20 * y).astype(np.uint8)


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "patterns.npz"
    arrays = {}
    for split, count in (("train", TRAIN), ("val", 12), ("test", 12)):
        labels = np.arange(count) % 2
        arrays |= {f"{split}_images": np.stack([pattern(label) for label in labels]), f"{split}_labels": labels[:, None].astype(np.uint8)}
    np.savez(file, **arrays)
    return file


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples that are the real images over again: whatever a script does to those, samples must come out alike."""
    folder = tmp_path_factory.mktemp("bank") / "bank"
    header = BankHeader(recipe={}, recipe_fingerprint="r", source={"fingerprint": "s"}, features={}, shape=(1, SIDE, SIDE), classes=2)
    labels = np.arange(8) % 2
    images = np.stack([pattern(label)[None] for label in labels]).astype(np.float32) / 255
    with BankWriter.create_or_resume(folder, header, resume=False) as writer:
        writer.append(images, labels, np.arange(8), {}, {})
    return folder


def metrics(printed: str) -> dict[str, tuple[float, float]]:
    found = re.findall(r"^(validation|test) AUC (\d\.\d{3}), balanced accuracy (\d\.\d{3})", printed, re.MULTILINE)
    return {name: (float(auc), float(accuracy)) for name, auc, accuracy in found}


def losses(printed: str) -> list[str]:
    return re.findall(r"loss:? (\d+\.\d+)", printed)


@pytest.mark.parametrize("script", [*SCRIPTS, BUNDLE], ids=lambda path: path.stem)
def test_runs_with_and_without_the_bank(script: Path, bank: Path, data_file: Path, tmp_path: Path, fresh_processes: BaseContext) -> None:
    package = NEEDS.get(script.stem, "monai")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    process = fresh_processes.Process(target=run_script, args=(str(script), str(bank), str(data_file), tmp_path))
    process.start()
    process.join(300)
    assert process.exitcode == 0, (tmp_path / "stderr").read_text()[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["imported"] == ""
    for run in ("bank", "again", "real"):
        scores = metrics(report[run]["printed"])
        assert set(scores) == {"validation", "test"}, report[run]["printed"]
        assert all(0 <= value <= 1 for pair in scores.values() for value in pair)
    assert metrics(report["bank"]["printed"]) == metrics(report["again"]["printed"])
    assert losses(report["bank"]["printed"]) == losses(report["again"]["printed"])
    assert report["bank"]["put"] == report["again"]["put"]
    assert 0 < report["bank"]["put"] < LIMIT / 2  # of each item with probability 0.1
    assert report["bank"]["worst"] < 1e-5
    assert report["real"]["put"] == 0
    assert not list((tmp_path / "here").iterdir())
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("script", [*SCRIPTS, BUNDLE], ids=lambda path: path.stem)
def test_one_line_makes_the_difference(script: Path) -> None:
    lines = script.read_text().splitlines()
    (marked,) = [line for line in lines if line.endswith(MARK)]
    switch, source = ("@real_only", "@bank") if script == BUNDLE else ("args.real_only", "args.bank")
    assert [line for line in lines if switch in line] == [marked]
    assert [line for line in lines if source in line] == [marked]
    (row,) = [
        line for line in (EXAMPLES / "README.md").read_text().splitlines() if line.startswith("|") and f"({script.relative_to(EXAMPLES)})" in line
    ]
    shown = row.split("|")[3].strip().strip("`")
    assert shown in marked
    name = re.search(r"\b(RandDiverseReplaced|DiverseDiffusionDataset|BankTransform)\b", shown)
    assert name is not None
    assert all(line == marked or line.startswith("from monai_diverse") for line in lines if name[0] in line)


def test_readmes_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", (EXAMPLES / "README.md").read_text())
    assert len(links) > len(SCRIPTS)
    assert not [link for link in links if not (EXAMPLES / link).exists()]


def test_recipe_is_one() -> None:
    recipe = Recipe.load(EXAMPLES / "recipe.yaml")
    assert recipe.guide is not None
    assert recipe.control is not None


def test_readme_says_how_to_follow_monais_defaults(bank: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"^With MONAI's defaults .*`(RandDiverseReplaced\(.*\))`", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    names = {"RandDiverseReplaced": RandDiverseReplaced, "Compose": Compose, "Transpose": Transpose, "ScaleIntensity": ScaleIntensity}
    Image.fromarray(pattern(1)).save(tmp_path / "one.png")
    loaded = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), ScaleIntensityd("image")])({"image": tmp_path / "one.png", "label": 1})
    upright = np.asarray(ScaleIntensity()(pattern(1)[None]))
    assert not np.allclose(loaded["image"], upright)
    np.testing.assert_allclose(np.asarray(loaded["image"])[0].T, upright[0], atol=1e-5)
    transform = eval(line.replace('"bank"', repr(str(bank))), names)
    transform.prob = 1.0
    made = transform(loaded)
    assert made["sample_source"] != "real"
    np.testing.assert_allclose(np.asarray(made["image"]), np.asarray(loaded["image"]), atol=1e-5)
