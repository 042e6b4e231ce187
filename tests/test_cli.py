import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import monai_diverse
from monai_diverse.cli import main


def _lines(capsys: pytest.CaptureFixture[str]) -> tuple[str, list[str]]:
    """Standard output, and the lines of standard error that are not a progress bar."""
    captured = capsys.readouterr()
    return captured.out, [line for line in captured.err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]


def test_grow_inspect_verify(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = tmp_path / "bank"
    assert main(["grow", str(recipe_file), "--out", str(bank), "--json"]) == 0
    grown = json.loads(_lines(capsys)[0])
    assert grown["drawn"] == 96
    assert grown["size"] > 0
    assert main(["inspect", str(bank), "--json"]) == 0
    found = json.loads(_lines(capsys)[0])
    assert (found["size"], found["fingerprint"]) == (grown["size"], grown["fingerprint"])
    assert found["yield"]["ci95"][0] < found["yield"]["per_10k"] < found["yield"]["ci95"][1]
    assert sum(found["rejections"].values()) + found["size"] == 96
    assert main(["inspect", str(bank)]) == 0
    assert "Clopper-Pearson" in _lines(capsys)[0]
    assert main(["verify", str(bank)]) == 0
    assert "every shard as written" in _lines(capsys)[0]


def test_verify_names_the_broken_shard(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = tmp_path / "bank"
    main(["grow", str(recipe_file), "--out", str(bank), "--size", "2"])
    shard = next(bank.glob("shard-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", str(bank)]) == 1
    _, errors = _lines(capsys)
    assert len(errors) == 1
    assert shard.name in errors[0]


def test_train_then_use(blob_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    arguments = ["train", "--data", str(blob_file), "--out", str(out), "--batch-size", "8", "--class-names", "top,bottom", "--licence", "CC0"]
    assert main([*arguments, "--steps", "2"]) == 0
    assert main([*arguments, "--steps", "3"]) == 0
    assert "model:" in _lines(capsys)[0]
    card = (out / "CARD.md").read_text()
    assert "monai-diverse train --data blobs.npz --out MODEL --steps 3 --batch-size 8 --seed 0" in card
    assert "--licence CC0 --class-names top,bottom" in card
    assert str(tmp_path) not in card
    assert monai_diverse.DiffusersSource(out, steps=2).sample([0, 1], [0, 1]).shape == (2, 1, 8, 8)


def _bad(tmp_path: Path, blob_file: Path, recipe_file: Path) -> dict[str, tuple[list[str], str]]:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "nan.npz", images=np.full((20, 8, 8), np.nan), labels=np.arange(20) % 2)
    np.savez(tmp_path / "odd.npz", images=np.random.default_rng(0).random((40, 9, 9)), labels=np.arange(40) % 2)
    np.savez(tmp_path / "gap.npz", images=np.random.default_rng(0).random((40, 8, 8)), labels=np.arange(40) % 2 * 2)
    (tmp_path / "typo.yaml").write_text(json.dumps(json.loads(recipe_file.read_text()) | {"sed": 1}))
    (tmp_path / "a-file").write_text("")
    stored = dict(np.load(blob_file))
    np.savez(tmp_path / "label.npz", **stored | {"val_labels": stored["val_labels"] + 1})
    np.savez(tmp_path / "size.npz", **stored | {"val_images": np.zeros((40, 16, 16), dtype=np.uint8)})
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "checkpoint.pt").write_bytes(b"PK no checkpoint")
    (tmp_path / "folder" / "checkpoint.pt").mkdir(parents=True)
    (tmp_path / "code.yaml").write_text(json.dumps(json.loads(recipe_file.read_text()) | {"source": {"target": "os.system"}}))
    out = str(tmp_path / "out")
    return {
        "missing data": (["train", "--data", str(tmp_path / "absent.npz"), "--out", out], "no such file"),
        "corrupt data": (["train", "--data", str(tmp_path / "text.npz"), "--out", out], "expected an .npz"),
        "nan": (["train", "--data", str(tmp_path / "nan.npz"), "--out", out], "NaN"),
        "side": (["train", "--data", str(tmp_path / "odd.npz"), "--out", out], "multiple of 4"),
        "empty class": (["train", "--data", str(tmp_path / "gap.npz"), "--out", out], "none of class 1"),
        "val label": (["train", "--data", str(tmp_path / "label.npz"), "--out", out], "val labels: expected classes 0..1, got 2"),
        "val size": (["train", "--data", str(tmp_path / "size.npz"), "--out", out], "expected val images of the train images' shape"),
        "seed": (["train", "--data", str(blob_file), "--out", out, "--seed", "-1"], "seed: expected 0.."),
        "device": (["train", "--data", str(blob_file), "--out", out, "--device", "nowhere"], "device: expected"),
        "cut checkpoint": (["train", "--data", str(blob_file), "--out", str(tmp_path / "cut")], "delete it to begin again"),
        "checkpoint folder": (["train", "--data", str(blob_file), "--out", str(tmp_path / "folder")], "delete it to begin again"),
        "file for out": (["train", "--data", str(blob_file), "--out", str(tmp_path / "a-file")], "cannot write"),
        "code in recipe": (["grow", str(tmp_path / "code.yaml"), "--out", out], "--allow"),
        "setting": (["train", "--data", str(blob_file), "--out", out, "--steps", "0"], "steps: expected at least 1"),
        "names": (["train", "--data", str(blob_file), "--out", out, "--steps", "100000", "--class-names", "one"], "expected 2, one a class"),
        "missing recipe": (["grow", str(tmp_path / "absent.yaml"), "--out", out], "cannot be read"),
        "typo in recipe": (["grow", str(tmp_path / "typo.yaml"), "--out", out], "unknown key 'sed'"),
        "no bank": (["inspect", str(tmp_path)], "manifest"),
        "file in the way": (["grow", str(recipe_file), "--out", str(tmp_path / "a-file" / "bank")], "cannot write"),
        "no such option": (["grow", str(recipe_file), "--out", out, "--colour"], "No such option"),
        "no command": (["nothing"], "No such command"),
    }


CASES = [
    *("missing data", "corrupt data", "nan", "side", "empty class", "val label", "val size", "seed", "device", "cut checkpoint"),
    *("checkpoint folder", "file for out", "code in recipe", "setting", "names", "missing recipe", "typo in recipe", "no bank"),
    *("file in the way", "no such option", "no command"),
]


def test_every_case_is_run(tmp_path: Path, blob_file: Path, recipe_file: Path) -> None:
    assert set(_bad(tmp_path, blob_file, recipe_file)) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_exit_2(case: str, tmp_path: Path, blob_file: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = _bad(tmp_path, blob_file, recipe_file)[case]
    assert main(arguments) == 2
    out, errors = _lines(capsys)
    assert out == ""
    assert errors[-1].startswith("error: ")
    assert message in errors[-1]
    assert not any("Traceback" in line for line in errors)


def test_bank_of_another_recipe(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["grow", str(recipe_file), "--out", str(tmp_path / "bank"), "--size", "1"]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "--resume" in _lines(capsys)[1][-1]
    recipe_file.write_text(json.dumps(json.loads(recipe_file.read_text()) | {"seed": 8}))
    assert main([*arguments, "--resume"]) == 2
    assert "recipe" in _lines(capsys)[1][-1]
    assert main(["verify", str(tmp_path / "bank")]) == 0


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONAI_DIVERSE_DEBUG", raising=False)
    monkeypatch.setenv("MONAI_DIVERSE_DEBUG", "0")
    assert main(["--debug", "inspect", str(tmp_path)]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert _lines(capsys)[0].strip() == monai_diverse.__version__
    assert main(["--help"]) == 0
    text = _lines(capsys)[0]
    assert all(command in text for command in ("demo", "train", "grow", "inspect", "verify"))


def test_unforeseen_errors_are_one_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(monai_diverse.SampleBank, "open", broken)
    assert main(["inspect", str(tmp_path)]) == 1
    _, errors = _lines(capsys)
    assert errors == ["error: unexpected ZeroDivisionError: division by zero; run again with --debug for a traceback, and please report it"]


@pytest.mark.parametrize("seconds", [0.6, 2.0])
def test_ctrl_c_at_the_start_is_one_line(tmp_path: Path, seconds: float) -> None:
    """Imports take seconds; an impatient user interrupts those."""
    process = subprocess.Popen([sys.executable, "-m", "monai_diverse", "demo", "--out", str(tmp_path / "x")], stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_ctrl_c_in_training_keeps_the_checkpoint(blob_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai_diverse", "train", "--data", str(blob_file), "--out", str(tmp_path / "m"), "--steps", "100000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--batch-size", "2"], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "m" / "training.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    steps = json.loads((tmp_path / "m" / "training.json").read_text())["steps"]
    assert steps >= 250
    assert main([*command[3:-1], str(steps), "--batch-size", "2"]) == 0
    assert (tmp_path / "m" / "CARD.md").exists()


def test_ctrl_c_exits_130_and_growth_resumes(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real process, a real signal, once the first samples are on disk."""
    bank, whole = tmp_path / "bank", tmp_path / "whole"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "monai_diverse", "grow", str(recipe_file), "--out", str(bank), "--max-evaluations", "100000"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(bank.glob("shard-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert main(["verify", str(bank)]) == 0
    drawn = monai_diverse.SampleBank.open(bank).progress["drawn"]
    more = str(5 * (drawn + 32))
    assert main(["grow", str(recipe_file), "--out", str(bank), "--max-evaluations", more, "--resume"]) == 0
    assert main(["grow", str(recipe_file), "--out", str(whole), "--max-evaluations", more]) == 0
    assert monai_diverse.SampleBank.open(bank).fingerprint == monai_diverse.SampleBank.open(whole).fingerprint
