import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs

import monai_diverse
from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.bank.format import drawn_of
from monai_diverse.cli import main
from monai_diverse.errors import BankError
from monai_diverse.study import duplicates_bank
from monai_diverse.training import TrainConfig


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


def test_grow_warns_of_a_class_that_was_asked_for_and_is_not_there(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = tmp_path / "bank"
    assert main(["grow", str(recipe_file), "--out", str(bank), "--size", "1"]) == 0
    there, names = int(SampleBank.open(bank).labels[0]), SampleBank.open(bank).header.source["class_names"]
    (warning,) = _lines(capsys)[1]
    assert warning.startswith(f"warning: no sample of class {names[1 - there]!r} was accepted; trained on such a bank,")
    assert main(["grow", str(recipe_file), "--out", str(bank), "--size", "96", "--resume"]) == 0
    assert min(SampleBank.open(bank).class_counts) > 0
    assert _lines(capsys)[1] == []
    shares = [1.0 * (label == there) for label in range(2)]
    recipe_file.write_text(json.dumps(json.loads(recipe_file.read_text()) | {"labels": shares}))
    assert main(["grow", str(recipe_file), "--out", str(tmp_path / "one"), "--size", "1"]) == 0
    assert _lines(capsys)[1] == []


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


def test_train_says_before_it_starts_that_too_few_images_are_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for count, aside in ((95, 19), (100, 20)):
        np.savez(tmp_path / f"{count}.npz", images=np.random.default_rng(0).random((count, 8, 8)), labels=np.arange(count) % 2)
        arguments = ["train", "--data", str(tmp_path / f"{count}.npz"), "--out", str(tmp_path / f"{count}"), "--steps", "1", "--batch-size", "8"]
        assert main(arguments) == 0
        said = f"warning: {aside} different images (patients) are set aside, and the default screen needs 20" in capsys.readouterr().err
        assert said == (aside < 20)


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
        "side": (["train", "--data", str(tmp_path / "odd.npz"), "--out", out], "multiple of 4 (patch 1, halved 2 times for channels 32,64,128)"),
        "channels": (["train", "--data", str(tmp_path / "odd.npz"), "--out", out, "--channels", "64;128"], "such as 64,128, got '64;128'"),
        "odd channels": (["train", "--data", str(tmp_path / "odd.npz"), "--out", out, "--channels", "64,100"], "multiples of 16, got (64, 100)"),
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
    *("missing data", "corrupt data", "nan", "side", "channels", "odd channels", "empty class"),
    *("val label", "val size", "seed", "device", "cut checkpoint"),
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
    # Python may end itself by the signal, which shells report as 130 too
    assert process.returncode in (130, -signal.SIGINT), errors
    assert "Traceback" not in errors


SMALL = {"channels": (16, 32), "check_every": 40, "validation_draws": 1}
"""A network that is soon trained, looked at often."""

TRAIN_SMALL = f"""
import runpy
from functools import partial
from monai_diverse.cli import train
train.TrainConfig = partial(train.TrainConfig, **{SMALL})
runpy.run_module("monai_diverse", run_name="__main__")
"""


def test_ctrl_c_in_training_keeps_the_checkpoint(blob_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", "--data", str(blob_file), "--out", str(tmp_path / "m"), "--batch-size", "2", "--steps"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", TRAIN_SMALL, *arguments, "100000"], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "m" / "training.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    steps = json.loads((tmp_path / "m" / "training.json").read_text())["steps"]
    assert steps >= SMALL["check_every"]
    monkeypatch.setattr("monai_diverse.cli.train.TrainConfig", partial(TrainConfig, **SMALL))
    assert main([*arguments, str(steps)]) == 0
    assert (tmp_path / "m" / "CARD.md").exists()


def test_ctrl_c_exits_130_and_growth_resumes(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real process, a real signal, once the bank says that the first samples are on disk; a shard is there before it does."""
    bank, whole = tmp_path / "bank", tmp_path / "whole"

    def drawn() -> int:
        try:
            return drawn_of(monai_diverse.SampleBank.open(bank).progress)
        except BankError:  # not there yet
            return 0

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "monai_diverse", "grow", str(recipe_file), "--out", str(bank), "--max-evaluations", "100000"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not drawn() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert main(["verify", str(bank)]) == 0
    assert drawn() > 0
    more = str(5 * (drawn() + 32))
    assert main(["grow", str(recipe_file), "--out", str(bank), "--max-evaluations", more, "--resume"]) == 0
    assert main(["grow", str(recipe_file), "--out", str(whole), "--max-evaluations", more]) == 0
    assert monai_diverse.SampleBank.open(bank).fingerprint == monai_diverse.SampleBank.open(whole).fingerprint


# ---- inspect: references, false discoveries, controls


@pytest.fixture
def bank_with_controls(recipe_file: Path, blob_file: Path, tmp_path: Path) -> Path:
    recipe_file.write_text(
        json.dumps(json.loads(recipe_file.read_text()) | {"control": {"path": str(blob_file), "split": "test", "twin_correlation": 0.9999}})
    )
    assert main(["grow", str(recipe_file), "--out", str(tmp_path / "bank")]) == 0
    return tmp_path / "bank"


def test_inspect_names_both_references(bank_with_controls: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bank_with_controls)]) == 0
    out, _ = _lines(capsys)
    assert "what the generator saw (generator_train): 240 images" in out
    assert "copies judged against it" in out
    assert "what you have (reference): 120 images" in out
    assert "novelty judged against it" in out
    for missing, says in (
        ("generator_train", "what the generator saw (generator_train): unknown; copies judged against reference, which stood in"),
        ("reference", "what you have (reference): unknown; novelty judged against generator_train, which stood in"),
    ):
        content = json.loads(recipe_file.read_text())
        (tmp_path / f"{missing}.yaml").write_text(json.dumps({name: value for name, value in content.items() if name != missing}))
        assert main(["grow", str(tmp_path / f"{missing}.yaml"), "--out", str(tmp_path / missing), "--size", "1"]) == 0
        capsys.readouterr()
        assert main(["inspect", str(tmp_path / missing)]) == 0
        assert says in _lines(capsys)[0]


def test_inspect_counts_what_survives_false_discovery_control(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five samples of ten drawn: at a rate of 10 % the k-th p-value must be at most .01 k (Benjamini & Hochberg 1995)."""
    categories = [{"classes": [0], "calibration_groups": 39}, {"classes": [1], "calibration_groups": 19}]
    header = BankHeader(
        recipe={},
        recipe_fingerprint="0",
        source={"fingerprint": "0"},
        features={"gates": {"not_novel": {"categories": categories}}},
        shape=(1, 2, 2),
        classes=2,
    )
    # .05 is larger in float32: a tie must stay one
    p_values = np.array([0.045, 0.045, 0.045, 0.045, 0.05], np.float32)
    with BankWriter.create_or_resume(tmp_path / "bank", header, resume=False) as writer:
        images, labels = np.zeros((5, 1, 2, 2), np.float32), np.arange(5) % 2
        writer.append(images, labels, np.arange(5), {"not_novel": p_values}, {"drawn": 10, "rejections": {"copy": 5}})
    for rate, survive in ((0.1, 5), (0.099, 0), (0.5, 5)):
        assert main(["inspect", str(tmp_path / "bank"), "--fdr", str(rate), "--json"]) == 0
        found = json.loads(_lines(capsys)[0])["false_discovery"]
        assert (found["survive"], found["accepted"], found["tests"], found["rate"]) == (survive, 5, 10, rate)
        assert found["smallest_p_possible"] == 1 / 40
    assert main(["inspect", str(tmp_path / "bank"), "--fdr", "0.1"]) == 0
    out, _ = _lines(capsys)
    assert "5 of 5 samples stay novel; calibration allows no p-value below 0.025" in out
    assert "that rate holds for independent draws" in out
    assert "the rate is approximate for that too" not in out
    assert main(["inspect", str(tmp_path / "bank"), "--fdr", "5"]) == 2
    assert "--fdr: expected a share between 0 and 1, got 5" in _lines(capsys)[1][-1]


def test_a_bank_that_stopped_when_full_says_so_beside_every_figure_that_suffers(
    bank_with_controls: Path, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = str(tmp_path / "full")
    assert main(["grow", str(recipe_file), "--out", full, "--size", "1"]) == 0
    for bank, times in ((full, 1), (str(bank_with_controls), 0)):
        capsys.readouterr()
        assert main(["inspect", bank, "--fdr", "0.1", "--controls", "--count", "2"]) == 0
        out, _ = _lines(capsys)
        for says in ("the yield is a little too high", "the rate is approximate for that too", "and so the difference, is a little too high"):
            assert out.count(says) == times, says
    assert main(["inspect", full, "--fdr", "0.1", "--json"]) == 0
    assert any("stopped at a full bank" in note for note in json.loads(_lines(capsys)[0])["false_discovery"]["notes"])


def test_inspect_controls(bank_with_controls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    np.savez(tmp_path / "other.npz", images=np.random.default_rng(0).random((30, 12, 10)), labels=np.zeros(30, np.uint8))
    arguments = ["inspect", str(bank_with_controls), "--controls", "--count", "25", "--other", str(tmp_path / "other.npz")]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(_lines(capsys)[0])
    controls = found["controls"]
    assert controls["same_screen"] is True
    assert controls["screen"] == found["features"]["fingerprint"]
    rows = {row["name"]: row for row in controls["rows"]}
    assert rows["generated"]["drawn"] == 96
    assert rows["generated"]["accepted"] == found["size"] + found["rejections"]["duplicate"]
    assert rows["generated"]["nfe"] == found["yield"]["nfe"]
    assert rows["unseen real"]["drawn"] == 40
    assert rows["unseen real"]["accepted"] >= found["control"]["accepted"]
    assert rows["near-copy: JPEG"]["drawn"] == rows["other modality"]["drawn"] == 25
    assert json.loads((tmp_path / "out" / "controls.json").read_text())["rows"] == controls["rows"]
    assert (tmp_path / "out" / "controls.png").read_bytes()[:4] == b"\x89PNG"
    assert main(arguments) == 0
    out, _ = _lines(capsys)
    assert (tmp_path / "out" / "controls.txt").read_text().strip() in out
    assert "by class" in out
    assert "generated less unseen real" in out
    assert "unseen in name only" not in out


def test_inspect_controls_says_if_the_screen_is_another(
    bank_with_controls: Path, recipe_file: Path, blob_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    content = json.loads(recipe_file.read_text())
    content["generator_train"] |= {"mirrored": False}
    # half of the control images nearly repeat what the screen was fitted on
    stored = dict(np.load(blob_file))
    twins = np.concatenate([stored["test_images"][:20], np.clip(stored["train_images"][:20], 1, 254) + 1]).astype(np.uint8)
    np.savez(tmp_path / "twins.npz", test_images=twins, test_labels=np.tile([[0], [1]], (20, 1)).astype(np.uint8))
    content["control"] = {"path": "twins.npz", "split": "test", "twin_correlation": 0.9999}
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps(content))
    assert main(["inspect", str(bank_with_controls), "--controls", "--count", "5", "--recipe", str(other), "--json"]) == 0
    controls = json.loads(_lines(capsys)[0])["controls"]
    assert controls["same_screen"] is False
    assert controls["notes"][0].startswith("the screen was fitted again, but is not the bank's: other generator_train;")
    assert "generated" not in [row["name"] for row in controls["rows"]]
    assert controls["twins"] == 20
    assert controls["notes"][1].startswith("20 of 40 control images nearly repeat")
    assert controls["notes"][1].endswith("they are a row of their own, and no part of the unseen ones")
    rows = {row["name"]: row["drawn"] for row in controls["rows"]}
    assert (rows["unseen real"], rows["unseen real, near-duplicates of known ones"]) == (20, 20)
    np.savez(tmp_path / "twins.npz", test_images=twins[20:], test_labels=np.tile([[0], [1]], (10, 1)).astype(np.uint8))
    assert main(["inspect", str(bank_with_controls), "--controls", "--count", "5", "--recipe", str(other)]) == 0
    assert "20 of 20 control images nearly repeat" in (out := _lines(capsys)[0])
    assert "no image is left to compare with" in out
    content["screen"]["arguments"]["components"] = 5
    other.write_text(json.dumps(content))
    assert main(["inspect", str(bank_with_controls), "--controls", "--count", "5", "--recipe", str(other)]) == 0
    assert "not the bank's: other settings and generator_train;" in _lines(capsys)[0]


def test_inspect_controls_finds_moved_images_or_says_what_is_missing(
    recipe_file: Path, blob_file: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    content = json.loads(recipe_file.read_text())
    for name in ("reference", "calibration", "generator_train"):
        content[name] |= {"path": "blobs.npz", "split_file": "split.json"}
    (home / "recipe.yaml").write_text(json.dumps(content))
    (home / "blobs.npz").write_bytes(blob_file.read_bytes())
    (home / "split.json").write_bytes((tiny_model / "split.json").read_bytes())
    bank = str(tmp_path / "bank")
    assert main(["grow", str(home / "recipe.yaml"), "--out", bank, "--size", "1"]) == 0
    capsys.readouterr()

    def error(*arguments: str) -> str:
        assert main(["inspect", bank, *arguments]) == 2
        out, errors = _lines(capsys)
        assert out == ""
        return errors[-1]

    assert "expected control images in the recipe, got none" in error("--controls")
    (home / "recipe.yaml").write_text(json.dumps(content | {"control": {"path": "blobs.npz", "split": "test"}}))
    few = ["--controls", "--count", "2"]
    assert main(["inspect", bank, *few, "--recipe", str(home / "recipe.yaml")]) == 0
    assert main(["grow", str(home / "recipe.yaml"), "--out", str(tmp_path / "second"), "--size", "1"]) == 0
    bank = str(tmp_path / "second")
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    assert "--folder DIR" in error(*few)
    assert main(["inspect", bank, *few, "--folder", str(home)]) == 0
    capsys.readouterr()
    (home / "split.json").unlink()
    assert "split.json: expected the recipe's images there" in error(*few, "--folder", str(home))
    options = (("count", "5"), ("seed", "0"), ("allow", "os"), ("folder", "x"), ("recipe", "x"), ("out", "x"), ("other", "x"))
    for name, value in options:
        assert f"--{name}: expected --controls beside it, got none; add it" in error(f"--{name}", value)
    assert not (tmp_path / "x").exists()
    assert "only one of --recipe and --folder" in error(*few, "--folder", "x", "--recipe", "y")


def test_a_folder_that_cannot_be_made_is_known_before_anything_is_judged(
    bank_with_controls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("monai_diverse.cli.bank.refit", judged)
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    assert main(["inspect", str(bank_with_controls), "--controls", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write" in _lines(capsys)[1][-1]


def test_inspect_controls_of_a_bank_that_no_recipe_made(bank_with_controls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    duplicates_bank(tmp_path / "control", blobs(40, 0), monai_diverse.SampleBank.open(bank_with_controls), seed=0)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "control"), "--controls"]) == 2
    assert "expected a bank with the recipe that it was grown by" in _lines(capsys)[1][-1]
    assert main(["inspect", str(tmp_path / "control"), "--fdr", "0.1"]) == 2
    assert "conformal p-values" in _lines(capsys)[1][-1]
    assert main(["inspect", str(tmp_path / "control")]) == 0
    assert "not recorded in this bank" in _lines(capsys)[0]
