"""Index files: what a bank of many full shards is opened, drawn from and listed by."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_bank import SHAPE, Killed, flip, garbage, grown, header, lengthen, link_out, part, samples, shards_of, tamper, truncate

from monai_diverse.bank import BankWriter, SampleBank, draw, merge
from monai_diverse.bank import format as bank_format
from monai_diverse.bank.format import MANIFEST, VERSION
from monai_diverse.bank.shard import Shard
from monai_diverse.errors import BankCorruptError, BankError
from monai_diverse.storage import sha256_of

DATA = Path(__file__).parent / "data"
COUNT = 47  # 11 full shards of 4, of which index files of 3 describe 9, and a last one of 3


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_format, "SHARD_IMAGES", 4)
    monkeypatch.setattr(bank_format, "INDEX_SHARDS", 3)


def manifest_of(path: Path) -> dict[str, Any]:
    return json.loads((path / MANIFEST).read_text())


def indexes_of(path: Path) -> list[Path]:
    return sorted(path.glob("index-*"))


def columns(bank: SampleBank) -> dict[str, Any]:
    found = {name: getattr(bank, name) for name in ("labels", "seeds", "nearest", "origin_numbers", "verdicts", "ids")}
    return found | {name: np.asarray(values) for name, values in bank.scores.items()} | {"images": bank.images[:]}


def assert_same(bank: SampleBank, other: SampleBank) -> None:
    ours, theirs = columns(bank), columns(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def plain(path: Path, all_: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> SampleBank:
    """The same samples in a bank without index files."""
    with monkeypatch.context() as patch:
        patch.setattr(bank_format, "INDEX_SHARDS", 10**9)
        return grown(path, all_)


# --- what is written


def test_an_index_file_is_independent_of_this_package(tmp_path):
    all_ = samples(COUNT)
    bank = grown(tmp_path, all_)
    body = manifest_of(tmp_path)
    assert body["version"] == VERSION == 3
    assert [record["file"] for record in body["indexes"]] == [path.name for path in indexes_of(tmp_path)]
    assert len(body["indexes"]) == 3
    assert [shard["count"] for shard in body["shards"]] == [4, 4, 3]
    record, rows = body["indexes"][1], slice(12, 24)
    assert record["file"] == f"index-000001-{sha256_of(tmp_path / record['file'])[:12]}.safetensors"
    assert (record["shards"], record["count"]) == (3, 12)
    assert record["class_counts"] == np.bincount(all_["labels"][rows], minlength=3).tolist()
    tensors = load_file(tmp_path / record["file"])
    for name in ("labels", "seeds"):
        np.testing.assert_array_equal(tensors[name], all_[name][rows])
    np.testing.assert_array_equal(tensors["scores.copy"], all_["scores"]["copy"][rows])
    np.testing.assert_array_equal(tensors["order"], np.argsort(all_["labels"][rows], kind="stable"))
    described = shards_of(tmp_path)[3:6]
    assert [bytes(row).hex() for row in tensors["shards.sha256"]] == [sha256_of(path) for path in described]
    assert tensors["shards.size"].tolist() == [path.stat().st_size for path in described]
    bank.verify()


def test_a_bank_says_the_same_with_and_without_index_files(tmp_path, monkeypatch):
    all_ = samples(COUNT)
    bank, other = grown(tmp_path / "bank", all_, [1, 5, 29]), plain(tmp_path / "plain", all_, monkeypatch)
    assert not indexes_of(other.path)
    assert_same(bank, other)
    assert bank.fingerprint == other.fingerprint
    assert [bank.label_of(i) for i in range(-COUNT, COUNT)] == [int(other.labels[i]) for i in range(-COUNT, COUNT)]
    assert [label for _, label in bank] == other.labels.tolist()
    assert bank.verdict_counts == {"accepted": COUNT}
    for label in range(-1, 4):
        np.testing.assert_array_equal(bank.indices_of(label), other.indices_of(label))
        assert bank.count_of(label) == len(other.indices_of(label))
        assert [bank.nth_of(label, k) for k in range(bank.count_of(label))] == other.indices_of(label).tolist()
        with pytest.raises(IndexError, match=f"samples of label {label}"):
            bank.nth_of(label, bank.count_of(label))
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError, match=f"below {COUNT}"):
            bank.label_of(index)


@pytest.mark.parametrize("policy", ["match", "own", "balance"])
@pytest.mark.parametrize("held", [0, 9])
def test_draws_are_those_of_a_list_of_candidates(tmp_path, policy, held, monkeypatch):
    monkeypatch.setattr("monai_diverse.bank.index._HELD", held)  # orders are read once, or a number at a time
    all_ = samples(COUNT)
    bank, counts = grown(tmp_path, all_), [5, 0, 40]
    ours, theirs = np.random.RandomState(3), np.random.RandomState(3)
    for turn in range(200):
        found = draw(bank, turn % 3, policy, ours, counts=counts)
        label = turn % 3
        if policy == "balance":  # the definition, with all samples in memory
            weights = np.array([1 / 5, 0, 1 / 40])
            label = int(np.searchsorted(np.cumsum(weights), theirs.random_sample() * weights.sum(), side="right"))
        candidates = np.arange(COUNT) if policy == "own" else np.flatnonzero(all_["labels"] == label)
        assert found == candidates[int(theirs.random_sample() * len(candidates))]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, COUNT), max_size=6).map(sorted), breaks=st.sets(st.integers(0, 6)))
def test_the_same_files_however_it_was_interrupted(tmp_path, cuts, breaks):
    all_ = samples(COUNT)
    path = tmp_path / "pieces"
    shutil.rmtree(path, ignore_errors=True)
    writer = BankWriter.create_or_resume(path, header(), resume=True)
    for step, (begin, end) in enumerate(itertools.pairwise([0, *cuts, COUNT])):
        writer.append(**part(all_, slice(begin, end)), progress={"drawn": end})
        if step in breaks:
            writer.close()
            writer = BankWriter.create_or_resume(path, header(), resume=True)
    writer.close()
    shutil.rmtree(tmp_path / "whole", ignore_errors=True)
    whole = grown(tmp_path / "whole", all_)
    assert {file.name for file in path.iterdir()} == {file.name for file in whole.path.iterdir()}
    assert (path / MANIFEST).read_bytes() == (whole.path / MANIFEST).read_bytes()
    SampleBank.open(path).verify()


@pytest.mark.parametrize("survivors", range(9))
def test_a_crash_between_any_two_writes_leaves_the_last_state(tmp_path, monkeypatch, survivors):
    all_ = samples(26)
    reference = grown(tmp_path / "whole", all_)
    path = tmp_path / "bank"
    before = grown(path, part(all_, slice(0, 10))).fingerprint
    writer = BankWriter.create_or_resume(path, header(), resume=True)
    with monkeypatch.context() as patch:
        left, replace = iter([True] * survivors), Path.replace

        def dying(self: Path, target: Path) -> Path:
            if not next(left, False):
                raise Killed
            return replace(self, target)

        patch.setattr(Path, "replace", dying)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # a kill does not tidy up
        killed = False
        try:
            writer.append(**part(all_, slice(10, 26)), progress={"drawn": 26})
        except Killed:
            killed = True
        writer.close()
    assert killed == (survivors < 8)  # 5 shards, 2 index files, the manifest
    bank = SampleBank.open(path)
    bank.verify()
    assert bank.fingerprint == (before if killed else reference.fingerprint)
    with BankWriter.create_or_resume(path, header(), resume=True) as again:
        body = manifest_of(path)
        described = [p.name for p in shards_of(reference.path)[: 3 * len(body["indexes"])]]
        named = {record["file"] for record in (*body["indexes"], *body["shards"])} | set(described)
        assert {p.name for p in path.iterdir()} == {MANIFEST, ".lock", *named}
        again.append(**part(all_, slice(again.count, 26)), progress={"drawn": 26})
    assert SampleBank.open(path).fingerprint == reference.fingerprint


def test_version_2_is_read_and_grows_on_as_the_present_one(tmp_path):
    expected = np.load(DATA / "bank_v2_expected.npz")
    old = SampleBank.open(DATA / "bank_v2")
    old.verify()
    assert manifest_of(old.path)["version"] == 2
    assert old.fingerprint == str(expected["fingerprint"])
    np.testing.assert_array_equal(np.rint(old.images[:] * 255), expected["images"])
    for name in ("labels", "seeds", "nearest", "verdicts"):
        np.testing.assert_array_equal(getattr(old, name), expected[name])
    shutil.copytree(DATA / "bank_v2", tmp_path / "bank")
    opened = SampleBank.open(tmp_path / "bank")
    with BankWriter.create_or_resume(tmp_path / "bank", header(), resume=True) as writer:
        writer.append(**samples(9, seed=52), progress={"drawn": 90})
    bank = SampleBank.open(tmp_path / "bank")
    bank.verify()
    assert manifest_of(bank.path)["version"] == VERSION
    assert len(indexes_of(bank.path)) == 1
    np.testing.assert_array_equal(bank.seeds, np.concatenate([expected["seeds"], samples(9, seed=52)["seeds"]]))
    assert opened.reload() == 9


# --- lazily, and in bounded memory


def test_what_is_not_needed_is_not_opened(tmp_path, monkeypatch):
    grown(tmp_path, samples(COUNT))
    opened: list[int] = []
    real = Shard.__init__

    def counted(self: Shard, folder: Any, record: Any, *args: Any, **settings: Any) -> None:
        opened.append(record.number)
        real(self, folder, record, *args, **settings)

    monkeypatch.setattr(Shard, "__init__", counted)
    bank, rng = SampleBank.open(tmp_path), np.random.RandomState(0)
    assert len(bank) == COUNT
    bank.images[13]
    assert opened == [3]
    bank.fingerprint, bank.class_counts, bank.label_of(5), bank.nth_of(1, 0), draw(bank, 0, "own", rng)
    assert opened == [3]
    for _ in range(50):
        draw(bank, 1, "match", rng)
    assert sorted(opened) == [3, 9, 10, 11]  # those that no index file describes, once
    for file in shards_of(tmp_path)[:9]:
        file.unlink()
    other = SampleBank.open(tmp_path)
    assert len(other.labels) == len(other.seeds) == len(other.ids) == len(other.scores["copy"]) == COUNT


def test_readers_beside_a_writer_that_seals(tmp_path):
    all_ = samples(COUNT)
    with BankWriter.create_or_resume(tmp_path, header(), resume=False) as writer:
        writer.append(**part(all_, slice(0, 11)), progress={})
        untouched, used = SampleBank.open(tmp_path), SampleBank.open(tmp_path)
        assert used.images[10].shape == SHAPE
        writer.append(**part(all_, slice(11, COUNT)), progress={})
    for bank in (untouched, used):  # the last shard of both was replaced, and an index file describes its successor
        assert len(bank) == 11
        np.testing.assert_array_equal(bank.labels, all_["labels"][:11])
        np.testing.assert_array_equal(bank.images[:], np.rint(all_["images"][:11] * 255).astype(np.float32) / 255)
        assert bank.reload() == COUNT - 11
        assert_same(bank, SampleBank.open(tmp_path))
    again = pickle.loads(pickle.dumps(untouched))
    assert_same(again, used)


# --- damage


@pytest.mark.parametrize("damage", [flip, truncate, lengthen, garbage, link_out, Path.unlink], ids=lambda damage: damage.__name__)
def test_a_damaged_index_file_is_made_anew_from_its_shards(tmp_path, damage):
    all_ = samples(COUNT)
    whole = grown(tmp_path / "whole", all_)
    bank = grown(tmp_path / "bank", all_)
    victim = indexes_of(bank.path)[1]
    content = victim.read_bytes()
    damage(victim)
    with pytest.raises(BankCorruptError, match=victim.name):
        SampleBank.open(bank.path).verify()
    rest = SampleBank.open(bank.path, skip_damaged=True)
    assert len(rest.damages) == 1
    assert victim.name in rest.damages[0]
    assert "made anew" in rest.damages[0]
    assert_same(rest, whole)
    assert [rest.nth_of(1, k) for k in range(rest.count_of(1))] == whole.indices_of(1).tolist()
    assert rest.fingerprint == whole.fingerprint
    made = merge([rest], tmp_path / "merged")
    made.verify()
    np.testing.assert_array_equal(made.seeds, whole.seeds)
    # a writer puts it back, since it can prove that it is the same
    BankWriter.create_or_resume(bank.path, header(), resume=True).close()
    assert victim.read_bytes() == content
    assert not victim.is_symlink()
    SampleBank.open(bank.path).verify()


def test_a_lost_index_file_and_a_damaged_shard(tmp_path):
    all_ = samples(COUNT)
    bank = grown(tmp_path, all_)
    indexes_of(tmp_path)[0].unlink()
    flip(shards_of(tmp_path)[1])
    shards_of(tmp_path)[2].unlink()
    rest = SampleBank.open(tmp_path, skip_damaged=True)
    np.testing.assert_array_equal(rest.seeds, np.r_[all_["seeds"][:4], all_["seeds"][12:]])
    told = "\n".join(rest.damages)
    for piece in ("index-000000", "shard-000001", "shard 2 is missing"):
        assert piece in told
    with pytest.raises(BankCorruptError):
        bank.verify()
    with pytest.raises(BankCorruptError):
        BankWriter.create_or_resume(tmp_path, header(), resume=True)


def forged(path: Path, number: int, change: Any) -> str:
    """An index file with other content and every hash made to fit; its new name."""
    old = indexes_of(path)[number]
    tensors = change(load_file(old))
    metadata = {"monai-diverse-bank": json.dumps({"recipe": "a" * 64, "source": "b" * 64, "index": number})}
    save_file(tensors, path / "new", metadata=metadata)
    digest = sha256_of(path / "new")
    name = f"index-{number:06d}-{digest[:12]}.safetensors"
    (path / "new").rename(path / name)
    size = (path / name).stat().st_size
    tamper(path, lambda body: body["indexes"][number].update(file=name, sha256=digest, size=size))
    return name


@pytest.mark.parametrize(
    ("change", "message", "lost"),
    [
        (lambda t: t | {"seeds": t["seeds"] + 1}, "says otherwise of the samples of shard-000005", 0),
        (lambda t: t | {"scores.copy": t["scores.copy"] * 2}, "says otherwise", 0),
        (
            lambda t: t | {"labels": t["labels"][::-1].copy(), "order": np.argsort(t["labels"][::-1], kind="stable").astype(np.uint32)},
            "says otherwise",
            0,
        ),
        (lambda t: t | {"labels": (t["labels"] + 1) % 3}, "as many of each class", 0),
        (lambda t: t | {"labels": t["labels"] + 3}, r"labels 0\.\.2", 0),
        (lambda t: t | {"order": t["order"][::-1].copy()}, "order is not that of its labels", 0),
        (lambda t: t | {"order": t["order"][:-1].copy()}, "order as uint32", 0),
        (lambda t: t | {"more": t["order"]}, "expected tensors", 0),
        (lambda t: {name: values for name, values in t.items() if name != "verdicts"}, "expected tensors", 0),
        (lambda t: t | {"shards.content": t["shards.content"][::-1].copy()}, "content hash", 8),
        (lambda t: t | {"shards.size": t["shards.size"] + 1}, "bytes, got", 12),
        (lambda t: t | {"shards.sha256": np.zeros_like(t["shards.sha256"])}, "shard-000005-000000000000.*missing", 12),
    ],
)
def test_verify_compares_index_files_with_their_shards(tmp_path, change, message, lost):
    grown(tmp_path, samples(COUNT))
    name = forged(tmp_path, 1, change)
    bank = SampleBank.open(tmp_path)
    with pytest.raises(BankCorruptError, match=message) as caught:
        bank.verify()
    assert name in str(caught.value) or lost
    # shards are the truth, but for what could not be told from a damaged one
    assert len(SampleBank.open(tmp_path, skip_damaged=True)) == COUNT - lost


@pytest.mark.parametrize("held", [0, 9])
def test_draws_from_an_index_file_that_lies_stay_inside_the_bank(tmp_path, held, monkeypatch):
    monkeypatch.setattr("monai_diverse.bank.index._HELD", held)
    grown(tmp_path, samples(COUNT))
    forged(tmp_path, 0, lambda t: t | {"order": np.full_like(t["order"], 2**32 - 1)})
    bank = SampleBank.open(tmp_path)
    with pytest.raises(BankCorruptError, match="rows below 12"):
        bank.nth_of(0, 0)
    with pytest.raises(BankCorruptError, match="rows below 12"):
        bank.indices_of(0)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["indexes"].pop(),
        lambda body: body["indexes"].reverse(),
        lambda body: body["indexes"][0].update(count=13),
        lambda body: body["indexes"][0].update(shards=0, count=0, class_counts=[0, 0, 0]),
        lambda body: body["indexes"][0].update(shards=2**60),
        lambda body: body["indexes"][0].update(class_counts=[12]),
        lambda body: body["indexes"][0].update(class_counts=[13, 0, -1]),
        lambda body: body["indexes"][0].update(class_counts=[12.0, 0, 0]),
        lambda body: body["indexes"][0].update(class_counts=7),
        lambda body: body["indexes"][0].update(size=3),
        lambda body: body["indexes"][0].update(sha256=5),
        lambda body: body["indexes"][0].update(file="../index-000000-0123456789ab.safetensors"),
        lambda body: body["indexes"][0].update(file="shard-000000-0123456789ab.safetensors"),
        lambda body: body["indexes"][0].update(surprise=1),
        lambda body: body.pop("indexes"),
        lambda body: body.update(indexes={}),
        lambda body: body.update(class_counts=[47, 0, 0]),
    ],
)
def test_manifests_that_contradict_themselves(tmp_path, change):
    grown(tmp_path, samples(COUNT))
    tamper(tmp_path, change)
    with pytest.raises(BankCorruptError):
        SampleBank.open(tmp_path)


def test_an_index_file_of_another_place_or_bank(tmp_path):
    grown(tmp_path / "bank", samples(COUNT))
    grown(tmp_path / "other", samples(COUNT, seed=1), recipe_fingerprint="c" * 64)
    for donor, message in ((indexes_of(tmp_path / "bank")[1], "written as index file 1, not 0"), (indexes_of(tmp_path / "other")[0], "another bank")):
        victim = indexes_of(tmp_path / "bank")[0]
        victim.write_bytes(donor.read_bytes())
        with pytest.raises(BankCorruptError, match=message):
            SampleBank.open(tmp_path / "bank").label_of(0)


def test_a_lost_manifest_costs_no_sample(tmp_path):
    bank = grown(tmp_path, samples(COUNT))
    whole = columns(bank)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(BankError, match="no manifest"):
        SampleBank.open(tmp_path)
    rest = SampleBank.open(tmp_path, skip_damaged=True)
    assert len(rest.damages) == 1
    for name, values in columns(rest).items():
        np.testing.assert_array_equal(values, whole[name])
