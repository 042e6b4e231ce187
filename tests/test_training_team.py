import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from monai_diverse.errors import RecipeError
from monai_diverse.training import TrainConfig, prepare, train
from monai_diverse.training.team import Team

STEPS = 12
SCRIPT = """
import json, sys
from pathlib import Path
from monai_diverse.training import TrainConfig, prepare, train

data, out, steps, settings = Path(sys.argv[1]), Path(sys.argv[2]), [int(n) for n in sys.argv[3].split(",")], json.loads(sys.argv[4])
for until in steps:
    config = TrainConfig(**settings | {"channels": tuple(settings["channels"]), "steps": until})
    for _ in train(prepare(data, config), out, config):
        pass
"""
SETTINGS = {
    "batch_size": 7,  # so that the two processes have different shares
    "channels": [16, 32],
    "check_every": 4,
    "validation_draws": 3,
    "dropout": 0.0,
    "warmup": 2,
    "learning_rate": 2e-3,
    "twin_correlation": 0.9999,
}


def _losses(folder: Path) -> list[tuple[float, float]]:
    return [(row["train_loss"], row["validation_loss"]) for row in json.loads((folder / "training.json").read_text())["losses"]]


def _launch(processes: int, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("accelerate")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def test_two_processes_train_the_model_of_one(tmp_path: Path, blob_file: Path) -> None:
    """Interrupted on the way, and gone on with by both."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = _launch(2, script, blob_file, tmp_path / "two", f"4,{STEPS}", json.dumps(SETTINGS))
    assert done.returncode == 0, done.stderr
    config = TrainConfig(**SETTINGS | {"channels": (16, 32), "steps": STEPS})
    for _ in train(prepare(blob_file, config), tmp_path / "one", config):
        pass
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert len(two) == 3
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-4, atol=0)
    assert one[0][0] != pytest.approx(one[1][0], rel=1e-3), "losses of different steps should differ by more than what is tolerated"
    # Adam's step is the sign of a gradient: random where that is nothing but rounding, as for a bias before a normalisation
    weights = [load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("one", "two")]
    first, second = (torch.cat([w[name].float().ravel() for name in sorted(w) if w[name].ndim > 1]) for w in weights)
    assert (second - first).norm() < 5e-3 * first.norm()
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_command_speaks_once(tmp_path: Path, blob_file: Path) -> None:
    out = tmp_path / "model"
    done = _launch(2, "-m", "monai_diverse", "train", "--data", blob_file, "--out", out, "--steps", 1, "--batch-size", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model: ") == 1
    assert done.stderr.count("images to train on") == 1
    assert (out / "CARD.md").exists()


@pytest.mark.parametrize(("device", "batch", "words"), [("cuda:1", 8, "without a number"), ("cpu", 1, "at least 2, an image a process")])
def test_what_several_processes_cannot_do(monkeypatch: pytest.MonkeyPatch, device: str, batch: int, words: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecipeError, match=words):
        Team.here(device, batch)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(RecipeError, match=r"monai-diverse\[accelerate\]"):
        Team.here("cpu", 8)


def test_count_without_a_rank_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert Team.here("cpu", 1) == Team(device="cpu")
