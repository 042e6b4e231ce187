from __future__ import annotations

import copy
import errno
import hashlib
import itertools
import json
import math
import os
import pickle
import re
import shutil
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from monai_diverse.bank import BankHeader, BankWriter, SampleBank, check_policy, draw, eligible, open_bank
from monai_diverse.bank import format as bank_format
from monai_diverse.errors import BankCorruptError, BankError, BankMismatchError, DataError, RecipeError, StorageError
from monai_diverse.storage import fingerprint_of

SHAPE = (1, 4, 5)


def header(**changes: Any) -> BankHeader:
    values = {
        "recipe": {"size": 3},
        "recipe_fingerprint": "a" * 64,
        "source": {"name": "toy", "fingerprint": "b" * 64},
        "features": {"name": "pixels"},
        "shape": SHAPE,
        "classes": 3,
        "dtype": "uint8",
    }
    return BankHeader(**(values | changes))


def samples(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE, classes: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.random((count, *shape), np.float32),
        "labels": rng.integers(0, classes, count),
        "seeds": rng.integers(0, 2**62, count),
        "scores": {"copy": rng.random(count, np.float32), "gain.nats": rng.normal(size=count).astype(np.float32)},
    }


def part(all_: dict[str, Any], where: slice) -> dict[str, Any]:
    return {"scores": {k: v[where] for k, v in all_["scores"].items()}} | {k: all_[k][where] for k in ("images", "labels", "seeds")}


def grown(path: Path, all_: dict[str, Any], cuts: list[int] | None = None, **changes: Any) -> SampleBank:
    edges = [0, *(cuts or []), len(all_["labels"])]
    with BankWriter.create_or_resume(path, header(**changes), resume=False) as writer:
        for begin, end in itertools.pairwise(edges):
            writer.append(**part(all_, slice(begin, end)), progress={"drawn": end})
    return SampleBank.open(path)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(bank_format, "SHARD_IMAGES", 4)
    return 4


def shards_of(path: Path) -> list[Path]:
    return sorted(path.glob("shard-*"))


def tamper(path: Path, change: Any, *, rehash: bool = True) -> None:
    manifest = path / "manifest.json"
    body = json.loads(manifest.read_text())
    change(body)
    if rehash:
        body.pop("sha256")
        body["sha256"] = fingerprint_of(body)
    manifest.write_text(json.dumps(body))


# --- what goes in comes out


@pytest.mark.parametrize(("dtype", "error"), [("uint8", 0.5 / 255 + 1e-7), ("float16", 2**-11), ("float32", 0)])
@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 2, 2), (2, 2, 3, 4)])
def test_what_is_stored_is_read_back(tmp_path, small_shards, dtype, error, shape):
    all_ = samples(11, shape=shape)
    bank = grown(tmp_path / "bank", all_, [3, 9], dtype=dtype, shape=shape)
    assert len(shards_of(tmp_path / "bank")) == 3
    assert len(bank) == len(bank.images) == 11
    assert bank.images.shape == (11, *shape)
    read = np.asarray(bank.images)
    assert read.dtype == np.float32
    assert np.abs(read - all_["images"]).max() <= error
    np.testing.assert_array_equal(bank.labels, all_["labels"])
    np.testing.assert_array_equal(bank.seeds, all_["seeds"])
    assert bank.labels.dtype == bank.seeds.dtype == np.int64
    assert bank.scores.keys() == {"copy", "gain.nats"}
    np.testing.assert_array_equal(bank.scores["gain.nats"], all_["scores"]["gain.nats"])
    assert bank.class_counts == np.bincount(all_["labels"], minlength=3).tolist()
    assert bank.progress == {"drawn": 11}
    bank.verify()


def test_stored_images_are_what_was_judged(tmp_path):
    # 256 levels survive a second round unchanged, so a screen that judged rounded images judged the stored ones
    levels = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(1, 1, 16, 16)
    bank = grown(tmp_path, {"images": levels, "labels": [0], "seeds": [1], "scores": {}}, shape=(1, 16, 16))
    np.testing.assert_array_equal(bank.images[:], levels)


@pytest.mark.parametrize(
    "index", [0, -1, 10, slice(None), slice(2, 9, 3), slice(8, 2, -2), [3, 3, 0], [], np.array([10, -11]), np.arange(11) % 3 == 0, np.int64(5)]
)
def test_images_index_like_an_array(tmp_path, small_shards, index):
    bank = grown(tmp_path, samples(11))
    whole = np.asarray(bank.images)
    expected = whole[np.asarray(index, dtype=np.int64)] if isinstance(index, list) else whole[index]
    np.testing.assert_array_equal(bank.images[index], expected)
    assert bank.images[index].flags.writeable


def test_images_have_one_index(tmp_path):
    bank = grown(tmp_path, samples(3))
    for index in ((0, 0), [[0]]):
        with pytest.raises(IndexError, match="expected one index"):
            bank.images[index]
    for index in (3, -4):
        with pytest.raises(IndexError, match="below 3"):
            bank.images[index]


def test_sequences_end(tmp_path):
    bank = grown(tmp_path, samples(3))
    with pytest.raises(IndexError, match="3"):
        bank.images[3]
    with pytest.raises(IndexError):
        bank[-4]
    assert [label for _, label in bank] == bank.labels.tolist()
    assert len(list(bank.images)) == 3
    assert isinstance(bank[0][1], int)
    with pytest.raises(ValueError, match="copy"):
        np.array(bank.images, copy=False)


def test_empty_bank(tmp_path):
    with BankWriter.create_or_resume(tmp_path, header(), resume=True) as writer:
        assert writer.progress == {}
        writer.append(np.empty((0, *SHAPE)), [], [], {}, {"drawn": 64})
        assert writer.count == 0
    bank = SampleBank.open(tmp_path)
    bank.verify()
    assert (len(bank), bank.progress, bank.class_counts, dict(bank.scores)) == (0, {"drawn": 64}, [0, 0, 0], {})
    assert np.asarray(bank.images).shape == (0, *SHAPE)
    assert bank.images[:].shape == (0, *SHAPE)
    assert len(bank.indices_of(0)) == 0


def test_indices_of_each_label(tmp_path, small_shards):
    bank = grown(tmp_path, samples(23))
    for label in range(3):
        np.testing.assert_array_equal(bank.indices_of(label), np.flatnonzero(bank.labels == label))
    assert len(bank.indices_of(3)) == len(bank.indices_of(-1)) == 0


def test_columns_are_read_only(tmp_path):
    bank = grown(tmp_path, samples(3))
    for column in (bank.labels, bank.seeds, bank.scores["copy"], bank.indices_of(0), bank.indices_of(9)):
        with pytest.raises(ValueError, match="read-only"):
            column[...] = 0


# --- the fingerprint


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 14), max_size=6).map(sorted), breaks=st.sets(st.integers(0, 6)))
def test_fingerprint_is_the_same_however_it_was_interrupted(tmp_path, small_shards, cuts, breaks):
    all_ = samples(14)
    path = tmp_path / "pieces"
    shutil.rmtree(path, ignore_errors=True)
    writer = BankWriter.create_or_resume(path, header(), resume=True)
    edges = [0, *cuts, 14]
    for step, (begin, end) in enumerate(itertools.pairwise(edges)):
        writer.append(**part(all_, slice(begin, end)), progress={"drawn": end})
        if step in breaks:
            writer.close()
            writer = BankWriter.create_or_resume(path, header(), resume=True)
            assert writer.progress == {"drawn": end}
    writer.close()
    pieces = SampleBank.open(path)
    shutil.rmtree(tmp_path / "whole", ignore_errors=True)
    whole = grown(tmp_path / "whole", all_)
    assert pieces.fingerprint == whole.fingerprint
    assert len(shards_of(path)) == 4
    np.testing.assert_array_equal(pieces.images[:], whole.images[:])
    assert [p.name for p in shards_of(path)] == [p.name for p in shards_of(tmp_path / "whole")]
    pieces.verify()


def test_fingerprint_sees_content_but_not_scores(tmp_path):
    all_ = samples(5)
    base = grown(tmp_path / "0", all_).fingerprint
    noisy = all_ | {"scores": {name: values + 1e-6 for name, values in all_["scores"].items()}}
    assert grown(tmp_path / "1", noisy).fingerprint == base
    for number, change in enumerate(({"images": 1 - all_["images"]}, {"labels": (all_["labels"] + 1) % 3}, {"seeds": all_["seeds"] + 1})):
        assert grown(tmp_path / f"content{number}", all_ | change).fingerprint != base
    assert grown(tmp_path / "recipe", all_, recipe_fingerprint="c" * 64).fingerprint != base
    assert grown(tmp_path / "source", all_, source={"fingerprint": "c" * 64}).fingerprint != base


def test_a_shard_is_independent_of_this_package(tmp_path, small_shards):
    all_ = samples(6)
    bank = grown(tmp_path, all_)
    record = json.loads((tmp_path / "manifest.json").read_text())["shards"][1]
    tensors = load_file(tmp_path / record["file"])
    assert set(tensors) == {"images", "labels", "seeds", "verdicts", "nearest", "origins", "scores.copy", "scores.gain.nats"}
    np.testing.assert_array_equal(tensors["images"], np.rint(all_["images"][4:] * 255).astype(np.uint8))
    assert hashlib.sha256((tmp_path / record["file"]).read_bytes()).hexdigest() == record["sha256"]
    assert record["file"] == f"shard-000001-{record['sha256'][:12]}.safetensors"
    content = b"".join(tensors[name].tobytes() for name in ("images", "labels", "seeds"))
    assert hashlib.sha256(content).hexdigest() == record["content"]
    assert bank.fingerprint


# --- writers


def refusal(path: Path) -> str:
    try:
        BankWriter.create_or_resume(path, header(), resume=True).close()
    except BankError as error:
        return str(error)
    return "none"


def test_second_writer_is_refused_until_the_first_is_done(tmp_path):
    with BankWriter.create_or_resume(tmp_path, header(), resume=False):
        with pytest.raises(BankError, match="only writer"):
            BankWriter.create_or_resume(tmp_path, header(), resume=True)
        with get_context("fork").Pool(1) as pool:
            assert "another process" in pool.apply(refusal, [tmp_path])
    BankWriter.create_or_resume(tmp_path, header(), resume=True).close()


def test_a_writer_that_a_child_process_inherited_still_lets_go(tmp_path):
    writer = BankWriter.create_or_resume(tmp_path, header(), resume=False)
    context = get_context("fork")
    release = context.Event()
    child = context.Process(target=release.wait)
    child.start()
    try:
        writer.close()
        with BankWriter.create_or_resume(tmp_path, header(), resume=True) as second:
            second.append(**samples(1), progress={"drawn": 1})
    finally:
        release.set()
        child.join()
    assert len(SampleBank.open(tmp_path)) == 1


def test_existing_banks(tmp_path):
    grown(tmp_path, samples(3))
    with pytest.raises(BankError, match="3 samples; pass --resume"):
        BankWriter.create_or_resume(tmp_path, header(), resume=False)
    changes: list[dict[str, Any]] = [
        {"recipe_fingerprint": "c" * 64},
        {"source": {"fingerprint": "c" * 64}},
        {"shape": (1, 5, 5)},
        {"classes": 4},
        {"dtype": "float16"},
    ]
    for change in changes:
        with pytest.raises(BankMismatchError, match="another"):
            BankWriter.create_or_resume(tmp_path, header(**change), resume=True)
    BankWriter.create_or_resume(tmp_path, header(), resume=True).close()  # the refusals let go of the lock


def test_closed_writer(tmp_path):
    with BankWriter.create_or_resume(tmp_path, header(), resume=False) as writer:
        pass
    writer.close()
    with pytest.raises(BankError, match="closed"):
        writer.append(**samples(1), progress={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 1, 5, 5))}, r"images: expected shape \(n, 1, 4, 5\)"),
        ({"images": np.full((2, *SHAPE), 1.5)}, r"\[0, 1\]"),
        ({"images": np.full((2, *SHAPE), np.nan)}, "NaN"),
        ({"labels": [0, 3]}, "0..2"),
        ({"labels": [0]}, r"\(2,\)"),
        ({"labels": []}, r"\(2,\)"),
        ({"images": np.zeros((0, *SHAPE))}, "at least one image"),
        ({"seeds": [1]}, r"seeds: expected shape \(2,\)"),
        ({"seeds": [0.5, 1]}, "whole numbers"),
        ({"seeds": np.array([0, 2**63], np.uint64)}, "below 2"),
        ({"scores": {"copy": [1.0, 2.0]}}, "scores: expected"),
        ({"scores": {"copy": [1.0], "gain.nats": [1.0, 2.0]}}, r"copy: expected shape \(2,\)"),
    ],
)
def test_append_refuses_what_does_not_fit(tmp_path, change, message):
    with BankWriter.create_or_resume(tmp_path, header(), resume=False) as writer:
        writer.append(**samples(3), progress={"drawn": 3})
        with pytest.raises(DataError, match=message):
            writer.append(**(samples(2) | change), progress={"drawn": 5})
        assert (writer.count, writer.progress) == (3, {"drawn": 3})
        with pytest.raises(BankError, match="JSON"):
            writer.append(**samples(2), progress={"drawn": float("nan")})
        assert writer.count == 3
    SampleBank.open(tmp_path).verify()


def test_append_refuses_other_scores_when_the_last_shard_is_full(tmp_path, small_shards):
    with BankWriter.create_or_resume(tmp_path, header(), resume=False) as writer:
        writer.append(**samples(4), progress={})
        with pytest.raises(DataError, match="scores: expected"):
            writer.append(**(samples(2) | {"scores": {}}), progress={})


# --- crashes


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survivors", range(7))
def test_a_crash_between_any_two_writes_leaves_the_last_state(tmp_path, small_shards, monkeypatch, survivors):
    all_ = samples(14)
    reference = grown(tmp_path / "whole", all_)
    path = tmp_path / "bank"
    grown(path, part(all_, slice(0, 6)))
    before = SampleBank.open(path).fingerprint
    writer = BankWriter.create_or_resume(path, header(), resume=True)
    with monkeypatch.context() as patch:
        left = iter([True] * survivors)
        replace, unlink = Path.replace, Path.unlink

        def dying_replace(self: Path, target: Path) -> Path:
            if not next(left, False):
                raise Killed
            return replace(self, target)

        def dying_unlink(self: Path, missing_ok: bool = False) -> None:
            if self.name.startswith("shard-") and not next(left, False):
                raise Killed
            if self.suffix != ".part":  # a kill does not tidy up either
                unlink(self, missing_ok=missing_ok)

        patch.setattr(Path, "replace", dying_replace)
        patch.setattr(Path, "unlink", dying_unlink)
        killed = False
        try:
            writer.append(**part(all_, slice(6, 14)), progress={"drawn": 14})
        except Killed:
            killed = True
        writer.close()
    # 3 shards, the manifest, one removal: only then nothing can be lost
    assert killed == (survivors < 5)
    bank = SampleBank.open(path)
    bank.verify()
    assert bank.fingerprint == (before if survivors < 4 else reference.fingerprint)
    with BankWriter.create_or_resume(path, header(), resume=True) as again:
        names = {p.name for p in path.iterdir()}
        assert names == {"manifest.json", ".lock", *(s["file"] for s in json.loads((path / "manifest.json").read_text())["shards"])}
        again.append(**part(all_, slice(again.count, 14)), progress={"drawn": 14})
    assert SampleBank.open(path).fingerprint == reference.fingerprint


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("after", range(3))
def test_full_disk_loses_nothing(tmp_path, small_shards, monkeypatch, call, after):
    all_ = samples(12)
    reference = grown(tmp_path / "whole", all_)
    path = tmp_path / "bank"
    with BankWriter.create_or_resume(path, header(), resume=False) as writer:
        writer.append(**part(all_, slice(0, 6)), progress={"drawn": 6})
        before = writer.bank.fingerprint
        with monkeypatch.context() as patch:
            calls = iter(range(after + 1))
            owner = os if call == "fsync" else Path
            real = getattr(owner, call)

            def full(*args: Any) -> Any:
                if next(calls) == after:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*args)

            patch.setattr(owner, call, full)
            with pytest.raises(StorageError, match="no space left"):
                writer.append(**part(all_, slice(6, 12)), progress={"drawn": 12})
        assert (writer.count, writer.progress) == (6, {"drawn": 6})
        SampleBank.open(path).verify()
        assert SampleBank.open(path).fingerprint == writer.bank.fingerprint == before
        if call == "replace":  # the same writer may try again; with fsync, let another process do it
            writer.append(**part(all_, slice(6, 12)), progress={"drawn": 12})
    with BankWriter.create_or_resume(path, header(), resume=True) as writer:
        writer.append(**part(all_, slice(writer.count, 12)), progress={"drawn": 12})
    assert SampleBank.open(path).fingerprint == reference.fingerprint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_error_of_a_really_full_device(tmp_path, monkeypatch):
    with BankWriter.create_or_resume(tmp_path, header(), resume=False) as writer:
        monkeypatch.setattr("tempfile.mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / ".x.part")))
        with pytest.raises(StorageError, match="no space left"):
            writer.append(**samples(3), progress={})
        assert writer.count == 0


def test_shards_without_a_manifest_are_not_swept_away(tmp_path):
    grown(tmp_path, samples(3))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(BankCorruptError, match=r"1 shards, but no manifest\.json"):
        BankWriter.create_or_resume(tmp_path, header(), resume=True)
    assert len(shards_of(tmp_path)) == 1


def test_resume_does_not_launder_damage(tmp_path):
    grown(tmp_path, samples(3))
    flip(shards_of(tmp_path)[0])
    with pytest.raises(BankCorruptError, match="shard-000000"):
        BankWriter.create_or_resume(tmp_path, header(), resume=True)


def test_resume_leaves_foreign_files_alone(tmp_path):
    grown(tmp_path, samples(3))
    orphan = tmp_path / "shard-000007-0123456789ab.safetensors"
    for name in (orphan.name, ".shard-000001-0123456789ab.safetensors.x.part", ".manifest.json.y.part", "notes.txt", "other.part"):
        (tmp_path / name).write_text("x")
    SampleBank.open(tmp_path).verify()  # left-overs of a crash are no damage
    BankWriter.create_or_resume(tmp_path, header(), resume=True).close()
    assert {p.name for p in tmp_path.iterdir()} - {p.name for p in shards_of(tmp_path)} == {"manifest.json", ".lock", "notes.txt", "other.part"}
    assert not orphan.exists()


def test_a_reader_outlives_the_writer_next_to_it(tmp_path, small_shards):
    all_ = samples(9)
    with BankWriter.create_or_resume(tmp_path, header(), resume=False) as writer:
        writer.append(**part(all_, slice(0, 6)), progress={"drawn": 6})
        untouched, mapped = SampleBank.open(tmp_path), SampleBank.open(tmp_path)
        first = mapped.images[:]
        writer.append(**part(all_, slice(6, 9)), progress={"drawn": 9})
        assert len(writer.bank) == 9
    for bank in (untouched, mapped):  # one looks for its shards only now, when the last has been replaced
        assert len(bank) == len(bank.labels) == 6
        np.testing.assert_array_equal(bank.images[:], first)
        np.testing.assert_array_equal(bank.labels, all_["labels"][:6])
        np.testing.assert_array_equal(np.concatenate([bank.indices_of(c) for c in range(3)]), np.argsort(all_["labels"][:6], kind="stable"))


# --- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def link_out(path: Path) -> None:
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def swap(path: Path) -> None:
    other = shards_of(path.parent)[0]
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, "SHA-256"),
        (truncate, "truncated"),
        (lengthen, "longer"),
        (garbage, "cannot be read"),
        (Path.unlink, "missing"),
        (link_out, "link out"),
        (swap, "out of place"),
    ],
)
def test_verify_names_the_damaged_shard(tmp_path, small_shards, damage, message):
    bank = grown(tmp_path / "bank", samples(12))
    victim = shards_of(tmp_path / "bank")[1]
    damage(victim)
    for reader in (bank, SampleBank.open(tmp_path / "bank")):
        with pytest.raises(BankCorruptError, match=message) as caught:
            reader.verify()
        assert victim.name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_damage_shows_at_first_use_too(tmp_path, small_shards):
    grown(tmp_path, samples(12))
    shards_of(tmp_path)[1].unlink()
    bank = SampleBank.open(tmp_path)
    assert bank.images[0].shape == SHAPE  # other shards are not looked at
    for index in (4, slice(None)):
        with pytest.raises(BankCorruptError, match="missing"):
            bank.images[index]


def test_verify_names_a_shard_of_another_bank(tmp_path):
    grown(tmp_path / "bank", samples(3))
    grown(tmp_path / "other", samples(3), recipe_fingerprint="c" * 64)
    victim = shards_of(tmp_path / "bank")[0]
    shutil.copy(shards_of(tmp_path / "other")[0], victim)
    with pytest.raises(BankCorruptError, match=f"{re.escape(victim.name)}: it belongs to another bank"):
        SampleBank.open(tmp_path / "bank").verify()


def test_verify_names_a_shard_of_another_run(tmp_path):
    # same recipe, same size: only the hash tells
    grown(tmp_path / "bank", samples(3))
    grown(tmp_path / "other", samples(3, seed=1))
    victim = shards_of(tmp_path / "bank")[0]
    shutil.copy(shards_of(tmp_path / "other")[0], victim)
    with pytest.raises(BankCorruptError, match=rf"{victim.name}: expected SHA-256.*another file"):
        SampleBank.open(tmp_path / "bank").verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"images": t["images"].astype(np.float32)}, "images as uint8"),
        (lambda t: t | {"labels": t["labels"] + 3}, "labels"),
        (lambda t: t | {"seeds": t["seeds"] + 1}, "content hash"),
        (lambda t: t | {"more": t["seeds"]}, "expected tensors"),
        (lambda t: {k: v for k, v in t.items() if k != "seeds"}, "expected tensors"),
        (lambda t: t | {"seeds": t["seeds"][:-1]}, "seeds as int64"),
    ],
)
def test_verify_looks_behind_hashes_that_were_forged(tmp_path, change, message):
    grown(tmp_path, samples(3))
    old = shards_of(tmp_path)[0]
    tensors = change(load_file(old))
    metadata = {"monai-diverse-bank": json.dumps({"recipe": "a" * 64, "source": "b" * 64, "number": 0})}
    save_file(tensors, tmp_path / "new", metadata=metadata)
    digest = hashlib.sha256((tmp_path / "new").read_bytes()).hexdigest()
    name = f"shard-000000-{digest[:12]}.safetensors"
    (tmp_path / "new").rename(tmp_path / name)
    size = (tmp_path / name).stat().st_size

    def forge(body: dict[str, Any]) -> None:
        body["shards"][0] |= {"file": name, "sha256": digest, "size": size}
        if message == "labels":
            content = b"".join(tensors[key].tobytes() for key in ("images", "labels", "seeds"))
            body["shards"][0]["content"] = hashlib.sha256(content).hexdigest()

    tamper(tmp_path, forge)
    with pytest.raises(BankCorruptError, match=message):
        SampleBank.open(tmp_path).verify()


@pytest.mark.parametrize(
    "name", ["../shard-000000-{}.safetensors", "/etc/passwd", "a/shard-000000-{}.safetensors", "shard-000000-{}.safetensors\n", "..", 7]
)
@pytest.mark.parametrize("rehash", [True, False])
def test_manifest_cannot_lead_out_of_the_folder(tmp_path, name, rehash):
    grown(tmp_path / "bank", samples(3))
    shutil.copy(shards_of(tmp_path / "bank")[0], tmp_path)
    digest = shards_of(tmp_path / "bank")[0].name[13:25]
    evil = name.format(digest) if isinstance(name, str) else name
    tamper(tmp_path / "bank", lambda body: body["shards"][0].update(file=evil), rehash=rehash)
    with pytest.raises(BankCorruptError, match=r"manifest\.json"):
        SampleBank.open(tmp_path / "bank")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.update(version=0), "version from 1 to 3, got 0"),
        (lambda b: b.update(version=True), "version from 1 to 3, got True"),
        (lambda b: b["shards"].append(b["shards"][0]), "expected the entries"),
        (lambda b: b["header"].update(classes=10**9), "expected the entries"),
        (lambda b: b["header"].update(origins=[{}]), "expected the entries"),
        (lambda b: b.update(progress=3), "expected the entries"),
        (lambda b: b.update(format="zip"), "something else"),
        (lambda b: b.pop("shards"), "expected the entries"),
        (lambda b: b["header"].update(dtype="int3"), "expected the entries"),
        (lambda b: b["header"].update(surprise=1), "expected the entries"),
        (lambda b: b["shards"][0].update(count=4), "expected the entries"),
        (lambda b: b.update(class_counts=[3]), "expected the entries"),
        (lambda b: b.update(class_counts=[0, 0, 1]), "expected the entries"),
        (lambda b: b.update(capacity=2), "expected the entries"),
        (lambda b: b.update(capacity=0), "expected the entries"),
        (lambda b: b.update(capacity=1024.0), "expected the entries"),
    ],
)
def test_bad_manifests(tmp_path, change, message):
    grown(tmp_path, samples(3))
    tamper(tmp_path, change)
    with pytest.raises(BankCorruptError, match=message):
        SampleBank.open(tmp_path)


def test_altered_manifest(tmp_path):
    grown(tmp_path, samples(3))
    tamper(tmp_path, lambda b: b["header"]["recipe"].update(size=4), rehash=False)
    with pytest.raises(BankCorruptError, match="its own hash"):
        SampleBank.open(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(BankCorruptError, match="expected JSON"):
        SampleBank.open(tmp_path)


def test_verify_counts_classes(tmp_path):
    bank = grown(tmp_path, samples(3) | {"labels": [0, 0, 1]})
    tamper(tmp_path, lambda b: b.update(class_counts=[1, 1, 1]))
    with pytest.raises(BankCorruptError, match=r"\[1, 1, 1\].*\[2, 1, 0\]"):
        bank.verify()


def test_no_bank(tmp_path):
    with pytest.raises(BankError, match="no manifest"):
        SampleBank.open(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BankError, match="no manifest"):
        SampleBank.open(tmp_path / "file")
    with pytest.raises(BankError, match="expected a SampleBank or the path"):
        open_bank(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (4, 5)},
        {"shape": (1, 0, 5)},
        {"classes": 0},
        {"dtype": "float64"},
        {"recipe_fingerprint": ""},
        {"recipe_fingerprint": "../x"},
        {"recipe_fingerprint": "x" * 129},
        {"shape": (1, 10**12, 10)},
        {"recipe": {"x": "\ud800"}},
        {"source": {}},
        {"recipe": {"x": float("nan")}},
        {"features": {"x": object()}},
    ],
)
def test_bad_headers(change):
    with pytest.raises(RecipeError):
        header(**change)


@pytest.mark.parametrize(
    ("shape", "dtype", "capacity"), [((1, 28, 28), "uint8", 1024), ((1, 512, 512), "uint8", 64), ((1, 160, 224, 160), "float32", 1)]
)
def test_shards_stay_small(shape, dtype, capacity):
    assert header(shape=shape, dtype=dtype).capacity == capacity


# --- processes


def test_pickles_are_paths(tmp_path, monkeypatch):
    bank = grown(tmp_path / "bank", samples(200))
    assert bank.images[0].shape == SHAPE  # mapped by now
    monkeypatch.chdir(tmp_path)
    relative = SampleBank.open("bank")
    data = pickle.dumps(relative)
    assert len(data) < 300 + len(str(tmp_path))
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert again.fingerprint == bank.fingerprint
    np.testing.assert_array_equal(again.images[:], bank.images[:])
    assert copy.deepcopy(bank) is bank
    assert copy.copy(bank) is bank


def read_sum(bank: SampleBank, index: int) -> float:
    return float(bank.images[index].sum())


def test_forked_processes_share_the_mapping(tmp_path):
    bank = grown(tmp_path, samples(8))
    expected = [read_sum(bank, i) for i in range(8)]
    with get_context("fork").Pool(2) as pool:
        assert pool.starmap(read_sum, [(bank, i) for i in range(8)]) == expected


def read_so_far() -> int:
    """Bytes that this process has read by system calls."""
    return int(re.search(r"^rchar: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc/self/io")
def test_only_what_is_indexed_is_read(tmp_path):
    count, shape = 40, (1, 512, 512)
    with BankWriter.create_or_resume(tmp_path, header(shape=shape), resume=False) as writer:
        writer.append(np.zeros((count, *shape), np.float32), np.zeros(count, int), np.arange(count), {}, {})
    bank = SampleBank.open(tmp_path)
    assert len(bank.images) == count  # shards are known by now
    one = math.prod(shape)
    before = read_so_far()
    bank.labels, len(bank), bank.fingerprint
    assert read_so_far() - before < 8000
    before = read_so_far()
    bank[3]
    assert one <= read_so_far() - before < 1.1 * one
    assert bank.images[:].nbytes == count * 4 * one
    assert shards_of(tmp_path)[0].name not in Path("/proc/self/maps").read_text()


# --- drawing


def test_policies(tmp_path):
    bank = grown(tmp_path, samples(40) | {"labels": np.repeat([0, 2], [30, 10])})
    rng = np.random.RandomState(0)
    np.testing.assert_array_equal(eligible(bank, 2, "match"), np.arange(30, 40))
    assert len(eligible(bank, 1, "match")) == len(eligible(bank, 5, "match")) == 0
    assert len(eligible(bank, 1, "own")) == 40
    np.testing.assert_array_equal(eligible(bank, 0, "balance", counts=[0, 3, 9]), np.arange(30, 40))
    assert draw(bank, 1, "match", rng) is None
    assert {bank.labels[draw(bank, 2, "match", rng)] for _ in range(50)} == {2}
    # every sample of the class comes, equally often: chi-squared with 9 degrees of freedom stays below its 99.9 % quantile
    hits = np.bincount([draw(bank, 2, "match", rng) - 30 for _ in range(2000)], minlength=10)
    assert ((hits - 200) ** 2 / 200).sum() < 27.9
    own = np.mean([bank.labels[draw(bank, 1, "own", rng)] == 2 for _ in range(2000)])
    assert abs(own - 0.25) < 0.04
    balance = np.mean([bank.labels[draw(bank, 0, "balance", rng, counts=[90, 5, 30])] == 2 for _ in range(2000)])
    assert abs(balance - 0.75) < 0.04  # 1/30 against 1/90; class 1 has no samples
    assert draw(bank, 0, "balance", rng, counts=[0, 7]) is None
    with pytest.raises(RecipeError, match="class counts"):
        draw(bank, 0, "balance", rng)
    with pytest.raises(RecipeError, match="'mine'"):
        check_policy("mine")


def test_drawing_from_an_empty_bank(tmp_path):
    BankWriter.create_or_resume(tmp_path, header(), resume=False).close()
    bank, rng = SampleBank.open(tmp_path), np.random.RandomState(0)
    assert draw(bank, 0, "match", rng) is None
    assert draw(bank, 0, "own", rng) is None
    assert draw(bank, 0, "balance", rng, counts=[1, 1, 1]) is None


def test_global_random_state_is_left_alone(tmp_path):
    bank = grown(tmp_path, samples(5))
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    draw(bank, 0, "own", np.random.RandomState(0))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
