"""Nothing is lost: kills, full and read-only disks, damaged, foreign and hostile files; and earlier versions are read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bank import SHAPE, flip, garbage, grown, header, lengthen, link_out, part, samples, shards_of, swap, tamper, truncate

from monai_diverse.bank import BankWriter, SampleBank
from monai_diverse.bank import format as bank_format
from monai_diverse.bank.format import MANIFEST, VERDICTS, VERSION
from monai_diverse.bank.shard import Shard
from monai_diverse.cli import main
from monai_diverse.errors import BankCorruptError, BankError, BankMismatchError, StorageError
from monai_diverse.growth import grow_steps
from monai_diverse.job import Job
from monai_diverse.recipe import Recipe
from monai_diverse.screening.verdict import REASONS
from monai_diverse.testing.kills import strike

DATA = Path(__file__).parent / "data"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(bank_format, "SHARD_IMAGES", 4)
    return 4


# --- versions


def test_version_1_is_read_as_it_was_written():
    expected = np.load(DATA / "bank_v1_expected.npz")
    bank = SampleBank.open(DATA / "bank_v1")
    bank.verify()
    assert json.loads((bank.path / MANIFEST).read_text())["version"] == 1 < VERSION
    assert bank.fingerprint == str(expected["fingerprint"])
    np.testing.assert_array_equal(np.rint(bank.images[:] * 255), expected["images"])
    for name in ("labels", "seeds"):
        np.testing.assert_array_equal(getattr(bank, name), expected[name])
    for name in ("copy", "gain.nats"):
        np.testing.assert_array_equal(bank.scores[name], expected[f"score_{name}"])
    assert bank.verdicts.tolist() == ["accepted"] * 6
    assert bank.nearest.tolist() == [-1] * 6
    assert bank.ids.tolist() == [f"{'a' * 12}-{seed}" for seed in bank.seeds]


def test_version_1_grows_on_as_the_present_one(tmp_path):
    shutil.copytree(DATA / "bank_v1", tmp_path / "old")
    all_ = samples(6, seed=41)
    more = samples(7, seed=42)
    with BankWriter.create_or_resume(tmp_path / "old", header(), resume=True) as writer:
        before = writer.bank.fingerprint
        assert before == SampleBank.open(DATA / "bank_v1").fingerprint
        writer.append(**more, progress={"drawn": 70}, nearest=np.arange(7), verdicts=["unscreened"] * 7)
    bank = SampleBank.open(tmp_path / "old")
    bank.verify()
    assert json.loads((bank.path / MANIFEST).read_text())["version"] == VERSION
    np.testing.assert_array_equal(bank.seeds, np.concatenate([all_["seeds"], more["seeds"]]))
    assert bank.nearest.tolist() == [-1] * 6 + list(range(7))
    assert bank.verdicts.tolist() == ["accepted"] * 6 + ["unscreened"] * 7


def test_a_manifest_from_the_future_is_no_damage(tmp_path):
    grown(tmp_path, samples(3))
    tamper(tmp_path, lambda body: body.update(version=VERSION + 1))
    for skip in (False, True):
        with pytest.raises(BankError, match=rf"from 1 to {VERSION}, got {VERSION + 1}; upgrade") as caught:
            SampleBank.open(tmp_path, skip_damaged=skip)
        assert not isinstance(caught.value, BankCorruptError)
    with pytest.raises(BankError, match="upgrade"):
        BankWriter.create_or_resume(tmp_path, header(), resume=True)


def test_verdicts_are_those_of_the_screen():
    assert VERDICTS[2:] == REASONS


# --- kills


def keep_appending(path: Path, all_: dict[str, Any], steps: list[int]) -> Callable[[Callable[[int], None]], None]:
    def work(report: Callable[[int], None]) -> None:
        with BankWriter.create_or_resume(path, header(), resume=True) as writer:
            report(writer.count)
            for step in steps:
                end = min(writer.count + step, len(all_["labels"]))
                writer.append(**part(all_, slice(writer.count, end)), progress={"drawn": end})
                report(writer.count)

    return work


def test_100_kills_at_random_lose_nothing(tmp_path, small_shards):
    rng = np.random.default_rng(7)
    total = 3000
    all_ = samples(total)
    path = tmp_path / "bank"
    BankWriter.create_or_resume(path, header(), resume=False).close()
    struck, lengths, longest = 0, [], 0.1
    while struck < 100:
        known = len(SampleBank.open(path))
        killed = strike(keep_appending(path, all_, rng.integers(1, 4, 10).tolist()), rng.uniform(0, longest))
        struck += not killed.finished
        # however fast the machine is, most kills should strike while it appends
        longest *= 0.8 if killed.finished else 1.1 if killed.reported is None else 1
        bank = SampleBank.open(path)
        bank.verify()
        lengths.append(len(bank))
        # what was reported is there, and at most one append more, whole
        least = known if killed.reported is None else killed.reported
        assert least <= len(bank) <= least + 3
        assert bank.progress == ({"drawn": len(bank)} if len(bank) else {})
        np.testing.assert_array_equal(bank.seeds, all_["seeds"][: len(bank)])
        np.testing.assert_array_equal(bank.images[-3:], np.rint(all_["images"][: len(bank)][-3:] * 255).astype(np.float32) / 255)
        assert len(bank) < total
    assert len(set(lengths)) > 30  # the killer let some work through
    end = lengths[-1] + 50
    with BankWriter.create_or_resume(path, header(), resume=True) as writer:
        writer.append(**part(all_, slice(writer.count, end)), progress={"drawn": end})
    assert SampleBank.open(path).fingerprint == grown(tmp_path / "whole", part(all_, slice(end))).fingerprint
    assert not list(path.glob(".*.part"))


def test_growth_survives_kills_with_the_same_bank(recipe_file, tmp_path):
    job = Job.prepare(Recipe.load(recipe_file))
    began = time.perf_counter()
    list(grow_steps(job, tmp_path / "whole"))
    longest = (time.perf_counter() - began) * 0.6
    reference = SampleBank.open(tmp_path / "whole")
    assert len(reference) > 3
    path, rng, struck = tmp_path / "bank", np.random.default_rng(3), 0

    def work(report: Callable[[int], None]) -> None:
        for progress in grow_steps(job, path, resume=True):
            report(progress.accepted)

    while struck < 10:
        killed = strike(work, rng.uniform(0, longest))
        struck += not killed.finished
        if (path / MANIFEST).exists():
            bank = SampleBank.open(path)
            bank.verify()
            assert len(bank) >= (killed.reported or 0)
            np.testing.assert_array_equal(bank.seeds, reference.seeds[: len(bank)])
        if killed.finished:
            assert bank.fingerprint == reference.fingerprint
            shutil.rmtree(path)
    list(grow_steps(job, path, resume=True))
    assert SampleBank.open(path).fingerprint == reference.fingerprint
    assert (path / "datasheet.md").is_file()


# --- two writers


def test_a_child_neither_writes_nor_frees_its_parents_lock(tmp_path):
    all_ = samples(6)
    with BankWriter.create_or_resume(tmp_path, header(), resume=False) as writer:
        writer.append(**part(all_, slice(0, 2)), progress={})

        def child(report: Callable[[int], None]) -> None:
            with pytest.raises(BankError, match="got a child of it"):
                writer.append(**part(all_, slice(2, 4)), progress={})
            writer.close()
            report(1)

        assert strike(child, 1.0).reported == 1
        with pytest.raises(BankError, match="only writer"):
            BankWriter.create_or_resume(tmp_path, header(), resume=True)
        writer.append(**part(all_, slice(2, 6)), progress={})
    np.testing.assert_array_equal(SampleBank.open(tmp_path).seeds, all_["seeds"])


def test_a_writer_notices_that_its_folder_was_replaced(tmp_path):
    path = tmp_path / "bank"
    writer = BankWriter.create_or_resume(path, header(), resume=False)
    shutil.rmtree(path)
    with pytest.raises(BankError, match="was it removed meanwhile"):
        writer.append(**samples(2), progress={})
    with BankWriter.create_or_resume(path, header(), resume=False) as other:
        with pytest.raises(BankError, match="was it removed meanwhile"):
            writer.append(**samples(2), progress={})
        other.append(**samples(3), progress={})
    writer.close()
    assert len(SampleBank.open(path)) == 3


def test_readers_beside_a_writer_see_a_sound_bank(tmp_path, small_shards):
    all_ = samples(400)
    BankWriter.create_or_resume(tmp_path, header(), resume=False).close()

    def write(report: Callable[[int], None]) -> None:
        with BankWriter.create_or_resume(tmp_path, header(), resume=True) as writer:
            for start in range(0, 400, 3):
                writer.append(**part(all_, slice(start, min(start + 3, 400))), progress={})

    child = os.fork()
    if child == 0:
        write(lambda _: None)
        os._exit(0)
    checked = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        bank = SampleBank.open(tmp_path)
        bank.verify()
        rest = SampleBank.open(tmp_path, skip_damaged=True)
        assert not rest.damages
        for one in (bank, rest):
            np.testing.assert_array_equal(one.seeds, all_["seeds"][: len(one)])
        checked += 1
    assert checked > 3
    np.testing.assert_array_equal(SampleBank.open(tmp_path).seeds, all_["seeds"])


# --- disks


class Disk:
    """A file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small file system")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def test_a_really_full_disk_loses_nothing(tmp_path, small_shards, disk):
    all_ = samples(400)
    path = disk.folder / "bank"
    with BankWriter.create_or_resume(path, header(), resume=False) as writer:

        def fill() -> None:
            for start in range(0, 400, 5):
                writer.append(**part(all_, slice(start, start + 5)), progress={"drawn": start + 5})

        with pytest.raises(StorageError, match="no space left"):
            fill()
        held = writer.count
        assert 20 < held < 400
        before = writer.bank.fingerprint
        bank = SampleBank.open(path)
        bank.verify()
        assert (len(bank), bank.progress, bank.fingerprint) == (held, {"drawn": held}, before)
    disk.remount("size=4m")
    with BankWriter.create_or_resume(path, header(), resume=True) as writer:
        writer.append(**part(all_, slice(held, 400)), progress={"drawn": 400})
    assert SampleBank.open(path).fingerprint == grown(tmp_path / "whole", all_).fingerprint


def test_a_read_only_disk_is_read(disk, capsys):
    path = disk.folder / "bank"
    made = grown(path, samples(5))
    disk.remount("ro")
    try:
        bank = pickle.loads(pickle.dumps(SampleBank.open(path)))
        bank.verify()
        assert bank.fingerprint == made.fingerprint
        assert bank.images[4].shape == SHAPE
        with pytest.raises(BankError, match=r"cannot be locked \(Read-only file system\)"):
            BankWriter.create_or_resume(path, header(), resume=True)
        with pytest.raises(StorageError, match="Read-only"):
            BankWriter.create_or_resume(disk.folder / "new", header(), resume=False)
        assert main(["merge", str(path), "--out", str(disk.folder / "merged")]) == 2
        assert "Read-only file system" in capsys.readouterr().err
    finally:
        disk.remount("rw")


# --- damage: what is intact stays usable


@pytest.mark.parametrize("damage", [flip, truncate, lengthen, garbage, link_out, swap, Path.unlink], ids=lambda damage: damage.__name__)
def test_the_rest_of_a_damaged_bank_is_usable(tmp_path, small_shards, damage, capsys):
    all_ = samples(14)
    bank = grown(tmp_path / "bank", all_)
    victim = shards_of(bank.path)[1]
    damage(victim)
    with pytest.raises(BankCorruptError, match=victim.name):
        bank.verify()
    rest = SampleBank.open(bank.path, skip_damaged=True)
    kept = np.r_[0:4, 8:14]
    assert len(rest) == 10
    assert len(rest.damages) == 1
    assert victim.name in rest.damages[0]
    np.testing.assert_array_equal(rest.seeds, all_["seeds"][kept])
    np.testing.assert_array_equal(rest.images[:], np.rint(all_["images"][kept] * 255).astype(np.float32) / 255)
    assert rest.class_counts == np.bincount(all_["labels"][kept], minlength=3).tolist()
    assert sorted(np.concatenate([rest.indices_of(label) for label in range(3)])) == list(range(10))
    assert len(pickle.loads(pickle.dumps(rest))) == 10
    assert rest.reload() == 0
    # a sound bank of it, by the command that the error names
    assert main(["merge", str(bank.path), "--skip-damaged", "--out", str(tmp_path / "new"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["size"], len(found["left_out"])) == (10, 1)
    new = SampleBank.open(tmp_path / "new")
    new.verify()
    np.testing.assert_array_equal(new.seeds, rest.seeds)


def test_every_damaged_shard_is_named(tmp_path, small_shards):
    bank = grown(tmp_path, samples(14))
    victims = [shards_of(tmp_path)[i] for i in (0, 2)]
    for victim in victims:
        flip(victim)
    with pytest.raises(BankCorruptError) as caught:
        bank.verify()
    assert all(victim.name in str(caught.value) for victim in victims)
    assert "1 more" in str(caught.value)


@pytest.mark.parametrize("how", ["lost", "garbage", "altered", "link"])
def test_shards_outlive_their_manifest(tmp_path, small_shards, how):
    all_ = samples(14)
    bank = grown(tmp_path / "bank", all_, [6])
    fingerprint, path = bank.fingerprint, bank.path / MANIFEST
    if how == "lost":
        path.unlink()
    elif how == "garbage":
        path.write_bytes(b"\x00" * 100)
    elif how == "altered":
        tamper(bank.path, lambda body: body["header"]["recipe"].update(size=4), rehash=False)
    else:
        path.rename(tmp_path / "elsewhere.json")
        path.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BankError):
        SampleBank.open(bank.path)
    # a crash may have left the shard that the last one superseded
    with BankWriter.create_or_resume(tmp_path / "short", header(), resume=False) as writer:
        writer.append(**part(all_, slice(0, 13)), progress={})
    shutil.copy(shards_of(tmp_path / "short")[-1], bank.path)
    rest = SampleBank.open(bank.path, skip_damaged=True)
    np.testing.assert_array_equal(rest.seeds, all_["seeds"])
    assert rest.fingerprint == fingerprint
    assert rest.header == header()
    assert rest.progress == {}
    assert len(rest.damages) == 1


def test_a_score_that_one_shard_calls_otherwise(tmp_path, small_shards):
    bank = grown(tmp_path, samples(6))
    second = shards_of(tmp_path)[1]
    second.write_bytes(second.read_bytes().replace(b"scores.copy", b"scores.bopy"))
    with pytest.raises(BankCorruptError, match=second.name):
        bank.scores  # noqa: B018
    assert len(SampleBank.open(tmp_path, skip_damaged=True).scores["copy"]) == 4


def test_nothing_intact(tmp_path):
    bank = grown(tmp_path / "bank", samples(3))
    flip(shards_of(bank.path)[0])
    with pytest.raises(BankCorruptError, match="nothing in it is intact"):
        SampleBank.open(bank.path, skip_damaged=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BankError, match="no manifest"):
        SampleBank.open(tmp_path / "empty", skip_damaged=True)
    with pytest.raises(BankError, match="no manifest"):
        SampleBank.open(tmp_path / "nowhere", skip_damaged=True)


def test_a_foreign_shard_is_no_part_of_a_rebuilt_bank(tmp_path, small_shards):
    bank = grown(tmp_path / "bank", samples(10))
    other = grown(tmp_path / "other", samples(14, seed=1), recipe_fingerprint="f" * 64)
    shutil.copy(shards_of(other.path)[-1], bank.path)
    (bank.path / MANIFEST).unlink()
    np.testing.assert_array_equal(SampleBank.open(bank.path, skip_damaged=True).seeds, bank.seeds)


def test_a_rebuilt_bank_says_what_it_lacks(tmp_path, small_shards):
    all_ = samples(14)
    bank = grown(tmp_path / "bank", all_)
    other = grown(tmp_path / "other", samples(12, seed=1), recipe_fingerprint="f" * 64)
    shards = shards_of(bank.path)
    shutil.copy(shards_of(other.path)[2], bank.path)  # of the same number, and fuller
    truncate(shards[0])
    shards[1].unlink()
    (bank.path / MANIFEST).unlink()
    rest = SampleBank.open(bank.path, skip_damaged=True)
    np.testing.assert_array_equal(rest.seeds, all_["seeds"][8:])
    told = "\n".join(rest.damages)
    for piece in ("no manifest", shards[0].name, shards_of(other.path)[2].name, "shard 0 is missing", "shard 1 is missing"):
        assert piece in told
    assert len(rest.damages) == 5


def test_shards_of_version_1_are_rebuilt_beside_later_ones(tmp_path):
    path = tmp_path / "old"
    shutil.copytree(DATA / "bank_v1", path)
    with BankWriter.create_or_resume(path, header(), resume=True) as writer:  # shards of 4, as version 1 was written with
        writer.append(**samples(5, seed=42), progress={})
        seeds = writer.bank.seeds
    (path / MANIFEST).unlink()
    np.testing.assert_array_equal(SampleBank.open(path, skip_damaged=True).seeds, seeds)


def test_damage_while_it_is_read_is_named(tmp_path):
    bank = grown(tmp_path, samples(6))
    assert bank.images[0].shape == SHAPE
    with shards_of(tmp_path)[0].open("r+b") as stream:
        stream.truncate(600)
    with pytest.raises(BankCorruptError, match="truncated since it was opened"):
        bank.images[5]


def test_a_link_as_lock_is_not_followed(tmp_path):
    bank = grown(tmp_path / "bank", samples(3))
    (bank.path / ".lock").unlink()
    (bank.path / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(BankError, match="cannot be locked"):
        BankWriter.create_or_resume(bank.path, header(), resume=True)
    assert not (tmp_path / "made").exists()


# --- reload


def test_reload_sees_what_was_added(tmp_path, small_shards):
    all_ = samples(14)
    with BankWriter.create_or_resume(tmp_path, header(), resume=False) as writer:
        writer.append(**part(all_, slice(0, 6)), progress={"drawn": 6})
        bank = SampleBank.open(tmp_path)
        assert (len(bank.labels), len(bank.images), len(bank.ids), bank.scores["copy"].shape) == (6, 6, 6, (6,))
        assert sum(len(bank.indices_of(label)) for label in range(3)) == 6
        assert bank.reload() == 0
        writer.append(**part(all_, slice(6, 14)), progress={"drawn": 14})
    np.testing.assert_array_equal(bank.seeds, all_["seeds"][:6])
    assert bank.reload() == 8
    np.testing.assert_array_equal(bank.seeds, all_["seeds"])
    np.testing.assert_array_equal(bank.images[:], SampleBank.open(tmp_path).images[:])
    assert sum(len(bank.indices_of(label)) for label in range(3)) == 14
    shutil.rmtree(tmp_path)
    with pytest.raises(BankError, match="no manifest"):
        bank.reload()
    grown(tmp_path, samples(20), recipe_fingerprint="f" * 64)
    with pytest.raises(BankMismatchError, match="expected the bank that was opened"):
        bank.reload()


def test_reload_beside_a_reading_thread(tmp_path, small_shards, monkeypatch):
    """A thread that opens shards while the bank is reloaded must not leave old shards under the new length."""
    all_ = samples(14)
    with BankWriter.create_or_resume(tmp_path, header(), resume=False) as writer:
        writer.append(**part(all_, slice(0, 6)), progress={})
        bank = SampleBank.open(tmp_path)
        writer.append(**part(all_, slice(6, 14)), progress={})
    opening, reloaded, real = threading.Event(), threading.Event(), Shard.__init__

    def slow(self: Shard, *args: Any, **settings: Any) -> None:
        if threading.current_thread() is reader:
            opening.set()
            assert reloaded.wait(30)
        real(self, *args, **settings)

    seen: list[int] = []
    reader = threading.Thread(target=lambda: seen.extend((len(bank.images[:]), len(bank.labels))))
    monkeypatch.setattr(Shard, "__init__", slow)
    reader.start()
    assert opening.wait(30)
    assert bank.reload() == 8
    reloaded.set()
    reader.join()
    assert seen == [6, 14]
    assert (len(bank), len(bank.labels), len(bank.images)) == (14, 14, 14)
    np.testing.assert_array_equal(bank.images[:], SampleBank.open(tmp_path).images[:])


def test_a_bank_grown_anew_is_another(tmp_path, small_shards):
    grown(tmp_path, samples(6))
    untouched, read = SampleBank.open(tmp_path), SampleBank.open(tmp_path)
    assert len(read.labels) == 6
    shutil.rmtree(tmp_path)
    grown(tmp_path, samples(9, seed=5))
    with pytest.raises(BankMismatchError):
        read.reload()
    with pytest.raises(BankCorruptError):
        untouched.labels  # noqa: B018


def test_a_repaired_shard_is_read_anew(tmp_path):
    bank = grown(tmp_path, samples(6))
    (shard,) = shards_of(tmp_path)
    sound = shard.read_bytes()
    flip(shard)
    assert SampleBank.open(tmp_path).images[5].shape == SHAPE
    with pytest.raises(BankCorruptError):
        bank.verify()
    shard.unlink()
    shard.write_bytes(sound)
    again = SampleBank.open(tmp_path)
    again.verify()
    np.testing.assert_array_equal(again.images[:], np.rint(samples(6)["images"] * 255).astype(np.float32) / 255)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc/self/fd")
def test_no_file_stays_open(tmp_path, small_shards):
    grown(tmp_path, samples(300))
    before = open_files()
    bank = SampleBank.open(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bank.images[:].shape == (300, *SHAPE)
    assert open_files() - before <= 65  # of 75 shards
