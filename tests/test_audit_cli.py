"""`monai-diverse audit`: what it audits, against what, and how a pipeline learns of the outcome."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audits import model_pictures, model_summary
from conftest import blobs
from PIL import Image

import monai_diverse
from monai_diverse.audit.bias import Effect
from monai_diverse.audit.one_model import AuditProgress, AuditSettings, ModelAudit
from monai_diverse.audit.verdict import BiasVerdict
from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.cli import audit as module
from monai_diverse.cli import main
from monai_diverse.cli.audit_inputs import find_sets, find_source
from monai_diverse.data import LabelledImages, load_images
from monai_diverse.sampling import ClassifierFree
from monai_diverse.sources.builtin import DATA, builtin_data
from monai_diverse.storage import sha256_of

DOCS = (Path(__file__).resolve().parents[1] / "docs" / "audit.md").read_text()


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    header = BankHeader(recipe={}, recipe_fingerprint="0", source={"fingerprint": "ab" * 32}, features={}, shape=(1, 8, 8), classes=2)
    real = blobs(30, 9)
    with BankWriter.create_or_resume(tmp_path / "bank", header, resume=False) as writer:
        writer.append(real.images, real.labels, np.arange(30), {}, {"drawn": 30, "rejections": {}})
    return SampleBank.open(tmp_path / "bank")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Takes the audit's place: the outcome is what is given, the list what was asked for."""

    def prepare(bias: float = 0.05, half: float = 0.02) -> list[Any]:
        calls: list[Any] = []

        def steps(source: Any, train: LabelledImages, heldout: LabelledImages, groups: Any, settings: AuditSettings) -> Iterator[AuditProgress]:
            calls.extend([source, train, heldout, groups, settings])
            effect = Effect(value=bias, ci=(bias - half, bias + half), p=0.001)
            verdict = BiasVerdict.of(effect, settings.tolerance, "own")
            value = model_summary(bias, half, settings.tolerance) | {"verdict": verdict.as_json()}
            yield AuditProgress(stage="sample: own", share=0.0)
            yield AuditProgress(stage="sample: own", share=1.0)
            yield AuditProgress(stage="control", share=0.0)
            yield AuditProgress(stage="done", share=1.0, audit=ModelAudit(summary=value, verdict=verdict, pictures=model_pictures(1)))

        monkeypatch.setattr(module, "audit_steps", steps)
        monkeypatch.setattr("monai_diverse.report.audit.png", lambda figure: b"a picture")
        return calls

    return prepare


# --- for real


def test_a_model_of_train_is_audited_by_its_own_record(
    tiny_model: Path, blob_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["audit", "--source", str(tiny_model), "--data", str(blob_file), "--own", "--images", "24", "--steps", "2", "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found == json.loads((tmp_path / "tiny-audit" / "audit.json").read_text())
    split = json.loads((tiny_model / "split.json").read_text())
    sets = {name: found["sets"][name]["images"] + found["sets"][name]["dropped"] for name in ("train", "heldout")}
    assert sets == {"train": len(split["generator_train"]), "heldout": len(split["calibration"]) + 40}
    assert [(s["name"], s["steps"], s["nfe"]) for s in found["samplers"]] == [("own", 2, 48)]
    assert found["tolerance"] == 0.02
    assert found["class_names"] == ["top", "bottom"]
    assert found["environment"]["packages"]["torch"]
    assert found["inputs"]["train"]["from"] == ["blobs.npz, split.json"]
    assert str(tmp_path) not in captured.out
    assert "sample: own: 100%" in captured.err
    assert "24 images" in captured.err
    assert (tmp_path / "tiny-audit" / "audit.html").is_file()


def test_a_bank_is_audited_as_images_and_keeps_the_outcome(
    bank: SampleBank, blob_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "patients.npy", np.array([f"patient {i}" for i in range(190)]))
    arguments = ["audit", "--source", str(bank.path), "--train", f"{blob_file}:train", "--heldout", f"{blob_file}:val", "--bank", str(bank.path)]
    arguments += ["--groups", str(tmp_path / "patients.npy"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "bank: bias " in out
    assert f"page: {tmp_path / 'out' / 'audit.html'}" in out
    found = json.loads((bank.path / "audit.json").read_text())
    assert found["membership"] is None
    assert found["sets"]["train"]["groups"] == 150
    assert "audited: the images of this bank as they are" in (bank.path / "datasheet.md").read_text()
    assert main(["verify", str(bank.path)]) == 0
    assert main(["inspect", str(bank.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["audit"]["word"] == found["verdict"]["word"]
    # images of an .npz are audited just so
    assert main(["audit", "--source", f"{blob_file}:test", *arguments[3:7], "--groups", arguments[-3], "--out", str(tmp_path / "images")]) == 0
    assert json.loads((tmp_path / "images" / "audit.json").read_text())["source"]["name"] == "images"


# --- exit codes


@pytest.mark.parametrize(("bias", "half", "options", "code"), [
    (0.05, 0.02, [], 0),
    (0.05, 0.02, ["--max-bias", "0.02"], 1),
    (0.05, 0.02, ["--max-bias", "0.1"], 0),
    (0.05, 0.02, ["--max-bias", "0.06"], 0),  # unresolved
    (0.05, 0.02, ["--max-bias", "0.06", "--strict"], 1),
    (0.05, 0.02, ["--max-bias", "0.1", "--strict"], 0),
    (0.05, 0.02, ["--max-bias", "0.02", "--strict"], 1),
    (0.05, 0.02, ["--max-bias", "0"], 1),
])  # fmt: skip
def test_exit_codes(asked: Callable[..., list[Any]], tmp_path: Path, bias: float, half: float, options: list[str], code: int) -> None:
    calls = asked(bias, half)
    assert main(["audit", "--source", "builtin", "--out", str(tmp_path / "out"), *options]) == code
    assert calls[4].tolerance == (float(options[1]) if options else 0.02)
    assert (tmp_path / "out" / "audit.html").is_file()


def test_json_is_printed_whatever_the_exit_code(asked: Callable[..., list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked()
    assert main(["audit", "--source", "builtin", "--out", str(tmp_path / "out"), "--max-bias", "0.01", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"]["word"] == "beyond"


def test_words_lead_with_the_verdict(asked: Callable[..., list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked()
    assert main(["audit", "--source", "builtin", "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Beyond the tolerance of 0.02: on average, samples of 'own' lie 4.9 % nearer to training images")
    assert any(line.startswith("held-out real images in the place of samples: bias +0.004") for line in lines)
    assert any("it amplifies the lean" in line for line in lines)


# --- what is asked for


def test_the_shipped_model_needs_no_sets(asked: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, data = asked(), builtin_data()
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "--source", "builtin", "--images", "7", "--seed", "5"]) == 0
    source, train, heldout, groups, settings = calls
    assert isinstance(source, monai_diverse.BuiltinSource)
    assert (settings.images, settings.seed, groups) == (7, 5, None)
    np.testing.assert_array_equal(train.images, data.generator_train.images)
    np.testing.assert_array_equal(heldout.images, np.concatenate([data.calibration.images, data.validation.images, data.test.images]))
    assert (train.groups, heldout.groups) == (None, None)  # near-duplicates are no patients, and the audit finds them itself
    assert [s.name for s in settings.samplers] == ["own", "guidance 2", "guidance 4", "DDIM", "shield"]
    assert (tmp_path / "builtin-audit" / "audit.json").is_file()


def test_sets_that_are_named_take_the_place_of_recorded_ones(asked: Callable[..., list[Any]], tmp_path: Path) -> None:
    calls = asked()
    arguments = ["audit", "--source", "builtin", "--out", str(tmp_path), "--heldout", f"{DATA}:val", "--heldout", f"{DATA}:test"]
    assert main(arguments) == 0
    np.testing.assert_array_equal(calls[2].images, np.concatenate([load_images(DATA, "val").images, load_images(DATA, "test").images]))
    assert calls[1].groups is None
    found = json.loads((tmp_path / "audit.json").read_text())["inputs"]
    assert found["train"]["from"] == ["builtin, split.json"]
    assert found["heldout"]["from"] == ["breastmnist.npz:val", "breastmnist.npz:test"]
    assert found["heldout"]["sha256"] == sha256_of(calls[2].images.tobytes() + calls[2].labels.tobytes())


@pytest.mark.parametrize(("options", "expected"), [
    (["--own"], [("own", None, None, None)]),
    (["--guidance", "2,4"], [("own", None, None, None), ("guidance 2", 2.0, None, None), ("guidance 4", 4.0, None, None)]),
    (["--guidance", "1,2,4"], [("guidance 1", 1.0, None, None), ("guidance 2", 2.0, None, None), ("guidance 4", 4.0, None, None)]),
    (["--guidance", "2, 1"], [("guidance 1", 1.0, None, None), ("guidance 2", 2.0, None, None)]),
    (["--scheduler", "DDIMScheduler"], [("own", None, None, None), ("DDIM", None, "DDIMScheduler", None)]),
    (["--shield", "--guidance", "3"], [("own", None, None, None), ("guidance 3", 3.0, None, None), ("shield", None, None, "Shield")]),
])  # fmt: skip
def test_samplers(asked: Callable[..., list[Any]], tmp_path: Path, options: list[str], expected: list[tuple[Any, ...]]) -> None:
    calls = asked()
    assert main(["audit", "--source", "builtin", "--out", str(tmp_path), "--steps", "9", *options]) == 0
    rows = [s.as_json() for s in calls[4].samplers]
    assert [(r["name"], r["guidance"], r["scheduler"], r["guide"]) for r in rows] == expected
    assert {r["steps"] for r in rows} == {9}


def test_the_models_own_sampler_is_recognised(tiny_model: Path) -> None:
    source = monai_diverse.DiffusersSource(tiny_model, guidance=ClassifierFree(scale=3.0))
    chosen = module.chosen_samplers(source, own=False, guidance="1,3", schedulers=(), shield=False, steps=None)
    assert [s.name for s in chosen] == ["guidance 3", "guidance 1"]


# --- sets


def folder_of(images: LabelledImages, root: Path, names: tuple[str, str]) -> Path:
    for number, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(root / names[label] / f"{number}.png")
    return root


def test_a_record_of_a_folder_is_checked_by_its_images(tmp_path: Path) -> None:
    data = folder_of(blobs(12, 3), tmp_path / "data", ("a", "b"))
    real = load_images(data)
    split = {"generator_train": [0, 1, 2, 6, 7], "calibration": [3, 4, 5, 8], "validation": None, "twin_correlation": 0.9}
    (tmp_path / "model").mkdir()
    record = tmp_path / "model" / "split.json"
    record.write_text(json.dumps(split | {"data_sha256": sha256_of(real.images.tobytes() + real.labels.tobytes())}))
    found = find_sets(str(tmp_path / "model"), data, (), ())
    np.testing.assert_array_equal(found.train.images, real.images[[0, 1, 2, 6, 7]])
    np.testing.assert_array_equal(found.heldout.images, real.images[[3, 4, 5, 8]])
    assert found.twin_correlation == 0.9
    record.write_text(json.dumps(split | {"data_sha256": "0"}))
    with pytest.raises(monai_diverse.errors.DataError, match="by the hash in"):
        find_sets(str(tmp_path / "model"), data, (), ())


def test_sources_of_every_kind(tiny_model: Path, bank: SampleBank, blob_file: Path, tmp_path: Path) -> None:
    assert isinstance(find_source(str(tiny_model), "cpu"), monai_diverse.DiffusersSource)
    assert isinstance(find_source(str(bank.path), "cpu"), SampleBank)
    assert len(find_source(f"{blob_file}:test", "cpu")) == 40  # type: ignore[arg-type]
    assert len(find_source(str(folder_of(blobs(6, 3), tmp_path / "pictures", ("a", "b"))), "cpu")) == 6  # type: ignore[arg-type]


# --- bad input


def _bad(tmp_path: Path, blob_file: Path, tiny_model: Path, bank: SampleBank) -> dict[str, tuple[list[str], str]]:
    sets = ["--train", f"{blob_file}:train", "--heldout", f"{blob_file}:val"]
    model, of_bank, shipped = (["--source", source, "--out", str(tmp_path / "out")] for source in (str(tiny_model), str(bank.path), "builtin"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "broken" / "unet").mkdir(parents=True)
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "short.npy", np.arange(3))
    np.save(tmp_path / "square.npy", np.zeros((3, 3), int))
    np.savez(tmp_path / "larger.npz", images=np.zeros((4, 16, 16), np.uint8), labels=np.arange(4) % 2)
    stored = dict(np.load(blob_file))
    np.save(tmp_path / "many.npy", np.arange(1000))
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 no archive")
    np.savez(tmp_path / "changed.npz", **stored | {"train_images": stored["train_images"] ^ 1})
    first, second = (folder_of(blobs(4, 1), tmp_path / name, names) for name, names in (("first", ("a", "b")), ("second", ("b", "c"))))
    return {
        "no source": (["--source", str(tmp_path / "absent")], "which does not exist"),
        "empty folder": (["--source", str(tmp_path / "empty")], "which is none of them"),
        "unknown bundle": (["--source", str(tmp_path / "bundle"), *sets], "expected one of the bundles"),
        "broken model": (["--source", str(tmp_path / "broken"), *sets], "is missing"),
        "no sets": (model, "--train and --heldout: expected .npz files or folders of real images, got none; for a model"),
        "no held-out": ([*model, *sets[:2]], "--heldout: expected"),
        "no bank": ([*shipped, "--bank", str(tmp_path)], "manifest"),
        "data of another": ([*model, "--data", str(tmp_path / "changed.npz")], "expected the images that the model was trained on"),
        "no record": ([*of_bank, "--data", str(blob_file)], "split.json says what it saw"),
        "not divided": ([*model, *sets[:2], "--heldout", f"{tmp_path / 'larger.npz'}:val"], "got data that are not divided"),
        "which split": ([*model, *sets[:2], "--heldout", str(blob_file)], "expected one of the splits, such as"),
        "no such split": ([*model, "--train", str(tmp_path / "absent.npz"), *sets[2:]], "no such file"),
        "shapes": ([*model, *sets, "--heldout", str(tmp_path / "larger.npz")], "expected images of one shape"),
        "other shape": ([*model, *sets[:2], "--heldout", str(tmp_path / "larger.npz")], "expected images of train's shape"),
        "class names": ([*model, "--train", str(first), "--heldout", str(second)], "expected folders with the same classes"),
        "groups": ([*model, *sets, "--groups", str(tmp_path / "text.npy")], "expected an .npy file"),
        "groups count": ([*model, *sets, "--groups", str(tmp_path / "short.npy")], "groups: expected"),
        "groups shape": ([*model, *sets, "--groups", str(tmp_path / "square.npy")], "expected one number or name an image"),
        "groups archive": ([*model, *sets, "--groups", str(tmp_path / "zip.npy")], "expected an .npy file"),
        "groups of a record": ([*model, "--data", str(blob_file), "--groups", str(tmp_path / "many.npy")], "--groups: expected 190 with --data"),
        "groups of a mixture": (
            [*model, "--data", str(blob_file), *sets[2:], "--groups", str(tmp_path / "many.npy")], "expected --data alone or both"
        ),
        "groups of the shipped": ([*shipped, "--groups", str(tmp_path / "many.npy")], "whose order is not yours; leave it out"),
        "groups of half the shipped": ([*shipped, *sets[2:], "--groups", str(tmp_path / "many.npy")], "whose order is not yours"),
        "long name": (["--source", "x" * 5000], "--source: expected builtin"),
        "long set": ([*model, *sets[:2], "--heldout", "x" * 5000], "--train, --heldout: expected"),
        "long data": ([*model, "--data", "x" * 5000], "--data: expected"),
        "no name": (["--source", "a\0b"], "--source: expected builtin"),
        "twin correlation": ([*shipped, "--twin-correlation", "1.5"], "twin_correlation: expected between 0 and 1"),
        "guidance": ([*shipped, "--guidance", "1,x"], "--guidance: expected numbers from 0"),
        "guidance twice": ([*shipped, "--guidance", "2,2.0"], "each once"),
        "negative guidance": ([*shipped, "--guidance=-1"], "--guidance: expected numbers from 0"),
        "scheduler": ([*shipped, "--scheduler", "Fastest"], "--scheduler: expected one of"),
        "guided bank": ([*of_bank, *sets, "--guidance", "2"], "--guidance: expected a diffusion model as source"),
        "steps of a bank": ([*of_bank, *sets, "--steps", "2"], "--steps: expected a diffusion model as source"),
        "own and others": ([*shipped, "--own", "--shield"], "--own: expected no other sampler beside it, got --shield"),
        "strict alone": ([*shipped, "--strict"], "--strict: expected --max-bias beside it"),
        "negative tolerance": ([*shipped, "--max-bias=-1"], "tolerance: expected a bias from 0"),
        "tolerance": ([*shipped, "--max-bias", "nan"], "tolerance: expected a bias from 0"),
        "images": ([*shipped, "--images", "1"], "--images"),
        "device": ([*shipped, "--device", "nowhere"], "device: expected"),
    }  # fmt: skip


def test_bad_input_is_one_line_and_exit_2(
    tmp_path: Path, blob_file: Path, tiny_model: Path, bank: SampleBank, capsys: pytest.CaptureFixture[str]
) -> None:
    for case, (arguments, message) in _bad(tmp_path, blob_file, tiny_model, bank).items():
        capsys.readouterr()
        assert main(["audit", *arguments]) == 2, case
        captured = capsys.readouterr()
        lines = [line for line in captured.err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
        assert captured.out == "", case
        assert lines[-1].startswith("error: "), case
        assert message in lines[-1], (case, lines[-1])
        assert not any("Traceback" in line for line in lines), case


def test_a_failed_audit_changes_no_bank(asked: Callable[..., list[Any]], bank: SampleBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked()
    monkeypatch.setattr(module, "write_audit", lambda *_: (_ for _ in ()).throw(MemoryError()))
    before = sorted(p.name for p in bank.path.iterdir())
    assert main(["audit", "--source", "builtin", "--out", str(tmp_path / "out"), "--bank", str(bank.path)]) == 2
    assert sorted(p.name for p in bank.path.iterdir()) == before


@pytest.mark.parametrize("content", [
    '{"a": ' * 100_000, "[", "[]", '{"data_sha256": "HASH", "generator_train": [1' + "0" * 30 + '], "calibration": [1]}',
    '{"data_sha256": "HASH", "generator_train": [[1], 2], "calibration": [1]}', '{"data_sha256": "HASH", "generator_train": [0, 1]}',
    '{"data_sha256": "HASH", "generator_train": [0, 1], "calibration": null}', '{"twin_correlation": "x"}',
])  # fmt: skip
def test_strange_records_are_bad_input(tmp_path: Path, blob_file: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "split.json").write_text(content.replace("HASH", sha256_of(blob_file)))
    arguments = ["audit", "--source", f"{blob_file}:test", "--data", str(blob_file), "--out", str(tmp_path / "out")]
    with pytest.raises(monai_diverse.errors.InputError):
        find_sets(str(tmp_path / "model"), blob_file, (), ())
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refused)
    assert main(["audit", "--source", str(tmp_path)]) == 2
    captured = capsys.readouterr().err
    assert "--source: expected builtin" in captured
    assert "Permission denied" in captured


# --- patients, mirrors, pictures


def test_groups_of_a_record_follow_its_order(
    asked: Callable[..., list[Any]], tiny_model: Path, blob_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = asked()
    # each image's patient is named after its content, so that the audit's order can be compared with the file's
    stored = np.concatenate([load_images(blob_file, split).images for split in ("train", "val")])
    names = np.array([sha256_of(image.tobytes()) for image in stored])
    np.save(tmp_path / "patients.npy", names)
    arguments = ["audit", "--source", str(tiny_model), "--data", str(blob_file), "--groups", str(tmp_path / "patients.npy"), "--out", str(tmp_path)]
    assert main(arguments) == 0
    _, train, heldout, groups, _ = calls
    audited = [sha256_of(image.tobytes()) for image in np.concatenate([train.images, heldout.images])]
    assert len(audited) == len(groups) == len(stored)
    np.testing.assert_array_equal(np.unique(names)[groups], audited)
    assert "twin_correlation" not in json.loads((tmp_path / "audit.json").read_text())["inputs"]


def test_groups_of_a_record_without_a_val_split(tmp_path: Path) -> None:
    real = blobs(12, 3)
    np.savez(tmp_path / "data.npz", train_images=(real.images[:, 0] * 255).astype(np.uint8), train_labels=real.labels)
    split = {"generator_train": [7, 0, 1, 6], "calibration": [3, 9, 4], "validation": None, "data_sha256": sha256_of(tmp_path / "data.npz")}
    (tmp_path / "split.json").write_text(json.dumps(split))
    found = find_sets(str(tmp_path), tmp_path / "data.npz", (), (), groups=np.arange(12) * 10)
    assert found.groups is not None
    assert found.groups.tolist() == [70, 0, 10, 60, 30, 90, 40]


@pytest.mark.parametrize(("options", "mirrored", "correlation"), [
    ([], None, 0.95), (["--mirrored"], True, 0.95), (["--no-mirrored", "--twin-correlation", "0.8"], False, 0.8),
])  # fmt: skip
def test_mirrors_and_near_duplicates(
    asked: Callable[..., list[Any]], tmp_path: Path, options: list[str], mirrored: bool | None, correlation: float
) -> None:
    calls = asked()
    assert main(["audit", "--source", "builtin", "--out", str(tmp_path), *options]) == 0
    assert (calls[4].mirrored, calls[4].twin_correlation) == (mirrored, correlation)
    assert json.loads((tmp_path / "audit.json").read_text())["inputs"]["twin_correlation"] == correlation


@pytest.mark.parametrize("shown", [True, False])
def test_pictures_of_patients_are_told_or_left_out(
    asked: Callable[..., list[Any]], bank: SampleBank, tmp_path: Path, shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    asked()
    options = [] if shown else ["--no-pictures"]
    assert main(["audit", "--source", "builtin", "--out", str(tmp_path / "out"), "--bank", str(bank.path), "--json", *options]) == 0
    captured = capsys.readouterr()
    told = "holds images of real patients: keep it where those may be kept"
    page = (tmp_path / "out" / "audit.html").read_text()
    assert [told in text for text in (captured.err, page)] == [shown] * 2
    assert ("Samples beside their nearest training" in page) == shown
    assert "<td>#1</td>" in page
    assert len(json.loads(captured.out)["pairs"]) == len(json.loads((tmp_path / "out" / "audit.json").read_text())["pairs"]) > 0
    assert "pairs" not in json.loads((bank.path / "audit.json").read_text())


def test_a_page_that_cannot_be_drawn_loses_no_audit(asked: Callable[..., list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked()
    monkeypatch.setattr("monai_diverse.report.audit.png", lambda _: (_ for _ in ()).throw(MemoryError()))
    assert main(["audit", "--source", "builtin", "--out", str(tmp_path)]) == 2
    assert json.loads((tmp_path / "audit.json").read_text())["verdict"]["word"] == "beyond"


# --- docs


def test_the_docs_name_options_that_exist(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["audit", "--help"]) == 0
    text = capsys.readouterr().out
    blocks = re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    commands = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("monai-diverse audit")]
    assert len(commands) >= 4
    for option in {word for line in commands for word in re.findall(r"--[a-z-]+", line)} | set(re.findall(r"`(--[a-z-]+)`", DOCS)):
        assert option in text, option
