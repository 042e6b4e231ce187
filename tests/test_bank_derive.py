"""Banks made from banks, files made from banks, banks made from files; the datasheet that travels along."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from monai.transforms import LoadImage
from PIL import Image
from test_bank import SHAPE, flip, grown, header, part, samples, shards_of

from monai_diverse.bank import BankWriter, SampleBank, export, import_images, merge, select, split_by_class
from monai_diverse.bank import format as bank_format
from monai_diverse.cli import main
from monai_diverse.data import load_images
from monai_diverse.datasheet import datasheet, write_datasheet, yields_of
from monai_diverse.errors import BankCorruptError, BankError, BankMismatchError, DataError, MissingExtraError, RecipeError
from monai_diverse.growth import grow
from monai_diverse.recipe import Recipe

NAMES = ["malignant", "normal / benign", "über"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(bank_format, "SHARD_IMAGES", 4)
    return 4


def source(**changes: Any) -> dict[str, Any]:
    return {"name": "toy", "fingerprint": "b" * 64, "licence": "CC0", "class_names": NAMES} | changes


def two(tmp_path: Path) -> tuple[SampleBank, SampleBank]:
    """Of other recipes, both with sample 0 of recipe a."""
    first = grown(tmp_path / "first", samples(9), source=source())
    other = samples(7, seed=1) | {"scores": {"copy": np.arange(7, dtype=np.float32)}}
    second = grown(tmp_path / "second", other, recipe_fingerprint="c" * 64, source=source(name="other", fingerprint="d" * 64, licence="MIT"))
    return first, second


# --- merge


def test_merge_keeps_all_that_a_sample_is(tmp_path):
    first, second = two(tmp_path)
    merged = merge([first, second], tmp_path / "merged")
    merged.verify()
    assert len(merged) == 16
    np.testing.assert_array_equal(merged.images[:], np.concatenate([first.images[:], second.images[:]]))
    for name in ("labels", "seeds", "verdicts", "nearest", "ids"):
        np.testing.assert_array_equal(getattr(merged, name), np.concatenate([getattr(first, name), getattr(second, name)]))
    assert set(merged.scores) == {"copy"}  # what both have
    np.testing.assert_array_equal(merged.scores["copy"], np.concatenate([first.scores["copy"], second.scores["copy"]]))
    assert merged.origin_numbers.tolist() == [0] * 9 + [1] * 7
    assert [origin.source["name"] for origin in merged.origins] == ["toy", "other"]
    assert [origin.progress for origin in merged.origins] == [{"drawn": 9}, {"drawn": 7}]
    assert merged.header.source["licence"] == "CC0 and MIT"
    assert merged.header.class_name(0) == "malignant"


def test_merged_banks_merge_again_and_no_sample_twice(tmp_path):
    first, second = two(tmp_path)
    merged = merge([first, second], tmp_path / "merged")
    longer = grown(tmp_path / "longer", samples(12, seed=3), source=source())  # recipe a again, other seeds
    again = merge([second, merged, longer, first], tmp_path / "again")
    again.verify()
    assert len(again) == len(set(again.ids.tolist())) == 28
    assert set(again.ids) == {*first.ids, *second.ids, *longer.ids}
    assert [origin.progress["drawn"] for origin in again.origins] == [7, 12]  # of recipe a the run that drew most
    assert merge([first, second], tmp_path / "same").fingerprint == merged.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float32"}, "dtype"),
        ({"shape": (1, 5, 4)}, "image shape"),
        ({"classes": 4}, "number of classes"),
        ({"source": source(class_names=["a", "b", "c"])}, "class names"),
    ],
)
def test_merge_refuses_what_does_not_fit(tmp_path, change, message):
    first = grown(tmp_path / "first", samples(3), source=source())
    other = grown(tmp_path / "second", samples(3, shape=change.get("shape", SHAPE)), **({"source": source()} | change))
    with pytest.raises(BankMismatchError, match=rf"second: expected the {message} of"):
        merge([first, other], tmp_path / "merged")
    with pytest.raises(BankError, match="at least one"):
        merge([], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_names_of_any_bank_count(tmp_path):
    unnamed, named, other = (
        grown(tmp_path / name, samples(3, seed=seed), recipe_fingerprint=name, source=source(class_names=names))
        for seed, (name, names) in enumerate((("u", None), ("n", NAMES), ("o", NAMES[::-1])))
    )
    assert merge([unnamed, named], tmp_path / "fine").header.class_name(0) == "malignant"
    with pytest.raises(BankMismatchError, match=r"o: expected the class names of .*n,"):
        merge([unnamed, named, other], tmp_path / "mixed")


def test_derived_banks_appear_whole_or_not_at_all(tmp_path):
    first, second = two(tmp_path)
    flip(shards_of(second.path)[-1])
    shards_of(second.path)[0].write_bytes(b"x")
    with pytest.raises(BankCorruptError):
        merge([first, second], tmp_path / "merged")
    assert {p.name for p in tmp_path.iterdir()} == {"first", "second"}
    with pytest.raises(BankError, match="expected a new or empty folder"):
        merge([first], second.path)
    (tmp_path / "empty").mkdir()
    assert len(merge([first], tmp_path / "empty")) == 9
    with pytest.raises(BankError, match="already holds"):  # a merged bank is a bank like any other, but its writer needs its own header
        BankWriter.create_or_resume(tmp_path / "empty", SampleBank.open(tmp_path / "empty").header, resume=False)


def test_empty_banks_merge(tmp_path):
    BankWriter.create_or_resume(tmp_path / "none", header(), resume=False).close()
    empty = SampleBank.open(tmp_path / "none")
    assert len(merge([empty, empty], tmp_path / "merged")) == 0
    filled = grown(tmp_path / "some", samples(3))
    assert set(merge([empty, filled], tmp_path / "both").scores) == set(filled.scores)


# --- split


def test_select_keeps_all_that_the_chosen_samples_are(tmp_path):
    bank = grown(tmp_path / "bank", samples(9), source=source())
    places = np.array([7, 0, 4, 2, 8])
    chosen = select(bank, places, tmp_path / "chosen")
    chosen.verify()
    np.testing.assert_array_equal(chosen.images[:], bank.images[:][places])
    for name in ("labels", "seeds", "verdicts", "nearest", "ids"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(bank, name)[places])
    for name, values in bank.scores.items():
        np.testing.assert_array_equal(chosen.scores[name], values[places])
    assert [origin.recipe_fingerprint for origin in chosen.origins] == [bank.header.recipe_fingerprint]
    assert len(select(bank, np.array([], dtype=int), tmp_path / "none")) == 0
    for wrong in ([9], [-1], [3, 3]):
        with pytest.raises(BankError, match=r"select: expected different indices 0\.\.8"):
            select(bank, np.array(wrong), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_split_by_class(tmp_path):
    bank = grown(tmp_path / "bank", samples(11) | {"labels": np.array([0, 2] * 5 + [2])}, source=source())
    parts = split_by_class(bank, tmp_path / "parts")
    assert [p.path.name for p in parts] == ["0_malignant", "2_ber"]
    for made, label in zip(parts, (0, 2), strict=True):
        made.verify()
        assert set(made.labels.tolist()) == {label}
        np.testing.assert_array_equal(made.seeds, bank.seeds[bank.labels == label])
        np.testing.assert_array_equal(made.scores["copy"], bank.scores["copy"][bank.labels == label])
        assert made.header.classes == 3
        assert made.origins[0].recipe_fingerprint == bank.header.recipe_fingerprint
    assert set(merge(parts, tmp_path / "whole").ids) == set(bank.ids)


# --- export, import


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(("dtype", "tolerance"), [("uint8", 0), ("float32", 0.5 / 65535 + 1e-7)])
def test_png(tmp_path, dtype, tolerance):
    bank = grown(tmp_path / "bank", samples(9) | {"labels": np.arange(9) % 3}, source=source(), dtype=dtype)
    folder = export(bank, tmp_path / "out", "png")
    rows = table_of(folder)
    assert [row["id"] for row in rows] == bank.ids.tolist()
    assert [int(row["label"]) for row in rows] == bank.labels.tolist()
    assert [row["class_name"] for row in rows] == [NAMES[label] for label in bank.labels]
    np.testing.assert_allclose([float(row["score_copy"]) for row in rows], bank.scores["copy"], rtol=1e-6)
    assert {row["verdict"] for row in rows} == {"accepted"}
    for place, row in enumerate(rows):
        levels = np.asarray(Image.open(folder / row["file"]), dtype=np.float64)
        np.testing.assert_allclose(levels / (255 if dtype == "uint8" else 65535), bank.images[place][0], atol=tolerance + 1e-7)
    # folders sort as labels do, for whoever reads no table
    assert sorted(load_images(folder).labels.tolist()) == sorted(bank.labels.tolist())
    back = import_images(folder, tmp_path / "back", licence="CC0", dtype=dtype)
    back.verify()
    np.testing.assert_allclose(back.images[:], bank.images[:], atol=tolerance + 1e-6)
    np.testing.assert_array_equal(back.labels, bank.labels)
    assert set(back.verdicts) == {"unscreened"}
    assert back.header.source["class_names"] == NAMES


def test_classes_keep_their_numbers_when_one_has_no_sample(tmp_path):
    bank = grown(tmp_path / "bank", samples(4) | {"labels": np.array([0, 2, 2, 0])}, source=source())
    back = import_images(export(bank, tmp_path / "out", "png"), tmp_path / "back", licence="CC0")
    assert back.labels.tolist() == [0, 2, 2, 0]
    assert (back.header.classes, back.class_counts) == (3, [2, 0, 2])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n../secret.png,0\n", "own folder"),
        ("file,label\n/etc/passwd,0\n", "own folder"),
        ("file,label\n", "own folder"),
        ("file,label\na/b.png,one\n", "columns file and label"),
        ("picture,label\na/b.png,1\n", "columns file and label"),
        ("file,label\na/b.png,1\n", "cannot be read"),
    ],
)
def test_bad_tables(tmp_path, table, message):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        import_images(tmp_path / "in", tmp_path / "bank", licence="CC0")


def test_colour_png(tmp_path):
    bank = grown(tmp_path / "bank", samples(3, shape=(3, 4, 5)), shape=(3, 4, 5))
    folder = export(bank, tmp_path / "out", "png")
    for place, row in enumerate(table_of(folder)):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / row["file"])), np.moveaxis(bank.images.stored(place), 0, -1))


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 5), (1, 6, 5, 7)])
def test_npz(tmp_path, shape):
    bank = grown(tmp_path / "bank", samples(9, shape=shape) | {"labels": np.arange(9) % 3}, shape=shape, source=source())
    folder = export(bank, tmp_path / "out", "npz")
    back = import_images(folder / "samples.npz", tmp_path / "back", licence="CC0", names=NAMES)
    np.testing.assert_array_equal(back.labels, bank.labels)
    np.testing.assert_array_equal(back.images[:], bank.images[:])
    with np.load(folder / "samples.npz", allow_pickle=False) as archive:
        assert archive["ids"].tolist() == bank.ids.tolist()
        assert archive["images"].dtype == np.uint8


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 3, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_nifti_as_monai_reads_it(tmp_path, shape, dtype):
    bank = grown(tmp_path / "bank", samples(3, shape=shape), shape=shape, dtype=dtype)
    folder = export(bank, tmp_path / "out", "nifti")
    for place, row in enumerate(table_of(folder)):
        image = LoadImage(image_only=True, ensure_channel_first=True)(folder / row["file"])
        np.testing.assert_array_equal(image.numpy(), bank.images[place])
        assert np.array_equal(nibabel.load(folder / row["file"]).affine, np.eye(4))


def test_export_refuses_what_a_format_cannot_hold(tmp_path, monkeypatch):
    flat = grown(tmp_path / "flat", samples(3))
    volume = grown(tmp_path / "volume", samples(3, shape=(2, 3, 4, 5)), shape=(2, 3, 4, 5))
    colour = grown(tmp_path / "colour", samples(3, shape=(3, 4, 5)), shape=(3, 4, 5), dtype="float32")
    slices = grown(tmp_path / "slices", samples(3, shape=(1, 6, 5, 3)), shape=(1, 6, 5, 3))  # would read as colours
    for bank, form in ((volume, "png"), (colour, "png"), (volume, "npz"), (slices, "npz"), (colour, "nifti")):
        with pytest.raises(RecipeError, match=f"format {form}: expected"):
            export(bank, tmp_path / "out", form)
    with pytest.raises(RecipeError, match="expected one of png, npz, nifti"):
        export(flat, tmp_path / "out", "bmp")  # type: ignore[arg-type]
    with pytest.raises(BankError, match="new or empty folder"):
        export(flat, volume.path, "png")
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(MissingExtraError, match=r"monai-diverse\[nifti\]"):
        export(flat, tmp_path / "out", "nifti")
    assert not (tmp_path / "out").exists()


def test_import_says_what_it_needs(tmp_path, blob_file):
    with pytest.raises(RecipeError, match="licence: expected"):
        import_images(blob_file, tmp_path / "bank", licence=" ", split="val")
    with pytest.raises(RecipeError, match="split: expected one of train, val, test"):
        import_images(blob_file, tmp_path / "bank", licence="CC0")
    with pytest.raises(RecipeError, match="names: expected 2"):
        import_images(blob_file, tmp_path / "bank", licence="CC0", split="val", names=["one"])
    bank = import_images(blob_file, tmp_path / "bank", licence="CC0", split="val")
    np.testing.assert_array_equal(bank.images[:], load_images(blob_file, "val").images)
    assert bank.header.source["licence"] == "CC0"
    assert import_images(blob_file, tmp_path / "again", licence="CC0", split="val").fingerprint == bank.fingerprint


# --- datasheet


def test_datasheet_of_a_grown_bank(recipe_file, tmp_path, capsys):
    control = {"path": json.loads(recipe_file.read_text())["reference"]["path"], "split": "test", "twin_correlation": 0.9999}
    recipe_file.write_text(json.dumps(json.loads(recipe_file.read_text()) | {"control": control}))
    bank = grow(Recipe.load(recipe_file), tmp_path / "bank")
    text = (bank.path / "datasheet.md").read_text()
    assert text == datasheet(bank)
    found = yields_of(bank.progress)
    assert found is not None
    assert found.accepted == len(bank)
    for piece in (bank.fingerprint, str(found), "unseen real images under the same screen: ", "CC0", bank.header.features["fingerprint"], "Not run"):
        assert piece in text
    assert "not known" not in text.partition("unseen real images")[2].partition("\n")[0]
    assert [f"| {c} | {bank.header.class_name(c)} | {n} |" in text for c, n in enumerate(bank.class_counts)] == [True, True]
    (bank.path / "audit.json").write_text("{}")
    assert "Run: see `audit.json`" in datasheet(bank)
    assert bank.verdicts.tolist() == ["accepted"] * len(bank)
    assert (bank.nearest >= 0).all()
    # commands that make banks of it
    assert main(["split", str(bank.path), "--out", str(tmp_path / "parts"), "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert sum(p["size"] for p in parts) == len(bank)
    assert main(["merge", *(p["path"] for p in parts), "--out", str(tmp_path / "merged")]) == 0
    assert f"{len(bank)} samples in" in capsys.readouterr().out
    assert str(found) in (tmp_path / "merged" / "datasheet.md").read_text()
    assert main(["inspect", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr().out
    assert f"from tiny: {len(bank)} samples; accepted {len(bank)} of {found.drawn} drawn" in said
    assert main(["verify", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    assert main(["export", str(bank.path), "--out", str(tmp_path / "files"), "--format", "npz"]) == 0
    assert "labels.csv" in capsys.readouterr().out
    assert (
        main(["import", str(tmp_path / "files" / "samples.npz"), "--out", str(tmp_path / "in"), "--licence", "CC0", "--name", "a", "--name", "b"])
        == 0
    )
    assert "not screened" in capsys.readouterr().out
    assert "not screened by this package" in (tmp_path / "in" / "datasheet.md").read_text()
    assert main(["inspect", str(tmp_path / "in")]) == 0
    assert f"verdict unscreened: {len(bank)}" in capsys.readouterr().out
    assert main(["export", str(bank.path), "--out", str(tmp_path / "files")]) == 2
    assert "expected a new or empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "progress",
    [{}, {"drawn": "many"}, {"drawn": 3, "rejections": [1]}, {"drawn": 3, "rejections": {"copy": 9}}, {"drawn": 9, "control": {"drawn": []}}],
)
def test_datasheet_of_a_bank_that_says_little(tmp_path, progress):
    names = ["a | b", "`rm -rf`\n# heading", 7]
    with BankWriter.create_or_resume(tmp_path, header(source=source(class_names=names), features={"sets": {"reference": 3}}), resume=False) as writer:
        writer.append(**part(samples(4), slice(0, 4)), progress=progress)
        text = write_datasheet(writer.bank).read_text()
    assert "not recorded" in text
    assert "| 0 | a / b |" in text
    assert not any(line.startswith("# heading") for line in text.splitlines())


def test_datasheet_takes_a_strangers_words_as_text(tmp_path, capsys):
    evil = "x\n# Licence: audited, safe for clinical use\n![](http://example.org/x.png)<script>\x1b[2J`"
    told = {"sets": {"reference": {"shape": [5], "class_counts": [2, 3]}, "calibration": {"shape": [evil], "class_counts": []}}, "fingerprint": evil}
    header_ = header(source=source(name=evil, fingerprint=evil, licence=evil), features=told, recipe={evil: evil})
    with BankWriter.create_or_resume(tmp_path / "bank", header_, resume=False) as writer:
        writer.append(**part(samples(4), slice(0, 4)), progress={"drawn": 9, "rejections": {"copy": 5}, "control": {"drawn": evil}})
        text = write_datasheet(writer.bank).read_text()
    assert "what the user had: 5 images, by class [2, 3]" in text
    assert "accepted: 4 of 9" in text
    assert "known, since the recipe named no control" in text
    outside = "".join(text.split("`")[::2])
    assert not any(mark in outside for mark in ("<script", "![", "](http", "\x1b"))
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Datasheet of the bank bank", "## What it holds", "## Where it comes from", "## Leakage audit", "## What it is for", "## How to check it",
    ]  # fmt: skip
    for progress in ({"drawn": "many"}, {"drawn": 9, "rejections": [1]}, {"drawn": 9, "rejections": {}, "control": 3}):
        path = tmp_path / f"odd-{len(str(progress))}"
        with BankWriter.create_or_resume(path, header(), resume=False) as writer:
            writer.append(**part(samples(4), slice(0, 4)), progress=progress)
        assert main(["inspect", str(path)]) == 0
        assert "4 samples" in capsys.readouterr().out
