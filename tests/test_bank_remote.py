"""Banks behind URLs: a local S3 server, and files in memory."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import uuid
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from test_bank import SHAPE, flip, grown, header, part, samples, shards_of

from monai_diverse import DiverseDiffusionDataset, RandDiverseReplaced
from monai_diverse.bank import BankWriter, SampleBank, copy_bank, copy_steps, draw, export, merge, open_bank
from monai_diverse.bank import format as bank_format
from monai_diverse.bank.format import MANIFEST
from monai_diverse.bank.remote import default_cache
from monai_diverse.cli import main
from monai_diverse.datasheet import audit_of, write_datasheet
from monai_diverse.errors import BankCorruptError, BankError, BankMismatchError, MissingExtraError, StorageError
from monai_diverse.handlers import BankRefreshHandler

COUNT = 47


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bank_format, "SHARD_IMAGES", 4)
    monkeypatch.setattr(bank_format, "INDEX_SHARDS", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "default-cache"))


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of a folder in memory."""
    name = f"banks-{uuid.uuid4().hex}"
    yield f"memory://{name}"
    system = fsspec.filesystem("memory")
    if system.exists(f"/{name}"):
        system.rm(f"/{name}", recursive=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """Storage options for a server of our own."""
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    pytest.importorskip("s3fs", reason="needs s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    options = {"key": "key", "secret": "secret", "endpoint_url": f"http://127.0.0.1:{port}"}
    fsspec.filesystem("s3", **options).mkdir("bucket")
    yield options
    server.stop()


def assert_same(bank: SampleBank, other: SampleBank) -> None:
    for name in ("labels", "seeds", "ids", "verdicts"):
        np.testing.assert_array_equal(getattr(bank, name), getattr(other, name))
    np.testing.assert_array_equal(bank.images[:], other.images[:])
    assert bank.fingerprint == other.fingerprint


def files_in(url: str, **options: Any) -> dict[str, bytes]:
    system, path = fsspec.core.url_to_fs(url, **options)
    system.invalidate_cache()
    return {name.rpartition("/")[2]: system.cat_file(name) for name in system.find(path)}


def cached(bank: SampleBank) -> set[str]:
    return {file.name for file in bank.path.iterdir()}


# --- S3


def read_some(bank: SampleBank, index: int) -> tuple[float, int]:
    return float(bank.images[index].sum()), bank.label_of(index)


def test_a_bank_on_s3(tmp_path, s3, monkeypatch, capsys):
    all_ = samples(COUNT)
    local = grown(tmp_path / "bank", part(all_, slice(0, 30)))
    url, cache = "s3://bucket/path/to/bank", tmp_path / "cache"
    first = copy_bank(local, url, target_options=s3)
    assert (first.url, first.location, len(first)) == (url, url, 30)
    bank = SampleBank.open(url, cache=cache, storage_options=s3)
    assert bank.path.parent == cache
    assert not bank.path.exists()  # the manifest is read from the server
    bank.images[13]
    assert {file.name for file in bank.path.iterdir()} == {
        json.loads((local.path / MANIFEST).read_text())["indexes"][1]["file"],
        shards_of(local.path)[3].name,
    }
    assert_same(bank, local)
    bank.verify()
    assert SampleBank.open(url, cache=cache, storage_options=s3, skip_damaged=True).damages == ()
    # processes of both kinds
    expected = [read_some(local, i) for i in range(30)]
    with get_context("fork").Pool(2) as pool:
        assert pool.starmap(read_some, [(bank, i) for i in range(30)]) == expected
    elsewhere = SampleBank.open(url, cache=tmp_path / "other", storage_options=s3)  # nothing there yet: children fetch the same files at once
    with get_context("fork").Pool(2) as pool:
        assert pool.starmap(read_some, [(elsewhere, i) for i in range(30)]) == expected
    assert_same(pickle.loads(pickle.dumps(elsewhere)), local)
    # growth
    with BankWriter.create_or_resume(local.path, header(), resume=True) as writer:
        writer.append(**part(all_, slice(30, COUNT)), progress={"drawn": COUNT})
    assert bank.reload() == 0
    copy_bank(local.path, url, target_options=s3)
    assert bank.reload() == COUNT - 30
    assert_same(bank, SampleBank.open(local.path))
    assert files_in(url, **s3).keys() == {file.name for file in local.path.iterdir()} - {".lock"}
    # by the command line, credentials from the environment
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("ENDPOINT_URL", s3["endpoint_url"])):
        monkeypatch.setenv(f"AWS_{name}", value)
    assert main(["inspect", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == COUNT
    assert main(["verify", url]) == 0
    assert f"{url}: {COUNT} samples" in capsys.readouterr().out
    assert main(["copy", url, str(tmp_path / "back"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == bank.fingerprint
    assert main(["verify", "s3://bucket/nowhere"]) == 2
    assert "s3://bucket/nowhere: expected a bank, but there is no manifest.json" in capsys.readouterr().err
    assert main(["copy", url, "s3://no-such-bucket/bank"]) == 2
    assert "make it first" in capsys.readouterr().err


def test_workers_of_a_loader_read_from_s3(tmp_path, s3):
    local = grown(tmp_path / "bank", samples(COUNT))
    url = "s3://bucket/loader"
    copy_bank(local, url, target_options=s3)
    bank = SampleBank.open(url, cache=tmp_path / "cache", storage_options=s3)
    data = [(torch.zeros(SHAPE), i % 3) for i in range(24)]
    dataset = DiverseDiffusionDataset(data, bank, prob=1.0)
    reference = DiverseDiffusionDataset(data, local, prob=1.0)
    ours, theirs = (
        list(
            torch.utils.data.DataLoader(each, batch_size=4, num_workers=2, multiprocessing_context="fork", generator=torch.Generator().manual_seed(1))
        )
        for each in (dataset, reference)
    )
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(ours, theirs, strict=True))
    assert sum(float(images.sum()) for images, _ in ours) > 0


def test_a_server_that_does_not_answer(tmp_path):
    pytest.importorskip("s3fs", reason="needs s3fs")
    options = {"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 1}}}
    with pytest.raises(BankError, match=r"s3://bucket/bank/manifest\.json: cannot be reached .*credentials") as caught:
        SampleBank.open("s3://bucket/bank", storage_options=options)
    assert "\n" not in str(caught.value)


# --- what does not need a server


def test_the_cache_is_checked_and_found_again(tmp_path, memory):
    local = grown(tmp_path / "bank", samples(COUNT))
    copy_bank(local, memory)
    bank = SampleBank.open(memory)
    assert bank.path.parent == default_cache() == tmp_path / "default-cache" / "monai_diverse" / "banks"
    assert_same(bank, local)
    kept = {file.name for file in local.path.iterdir()} - {".lock", MANIFEST}
    assert cached(bank) == kept
    system = fsspec.filesystem("memory")
    content = files_in(memory)
    for name in kept:
        system.rm_file(f"{memory}/{name}")
    assert_same(SampleBank.open(memory), local)  # by what is in the cache
    victim = bank.path / shards_of(local.path)[2].name
    flip(victim)
    with pytest.raises(BankCorruptError, match=f"{memory}/{victim.name}: the file is missing"):
        SampleBank.open(memory).images[8]
    system.pipe_file(f"{memory}/{victim.name}", content[victim.name])
    np.testing.assert_array_equal(SampleBank.open(memory).images[8], local.images[8])
    victim.unlink()
    outside = tmp_path / "outside"
    outside.write_bytes(content[victim.name])
    victim.symlink_to(outside)
    assert SampleBank.open(memory).images[8].shape == SHAPE
    assert not victim.is_symlink()


@pytest.mark.parametrize("wrong", [lambda c: c[:-1], lambda c: c + b"x", lambda c: c[:-1] + bytes([c[-1] ^ 1]), lambda c: b""])
def test_a_wrong_file_is_named_and_not_kept(tmp_path, memory, wrong):
    local = grown(tmp_path / "bank", samples(COUNT))
    copy_bank(local, memory)
    system, victims = fsspec.filesystem("memory"), [shards_of(local.path)[0].name, sorted(p.name for p in local.path.glob("index-*"))[1]]
    for name in victims:
        system.pipe_file(f"{memory}/{name}", wrong((local.path / name).read_bytes()))
    bank = SampleBank.open(memory)
    for name, ask in zip(victims, (lambda: bank.images[0], lambda: bank.label_of(13)), strict=True):
        with pytest.raises(BankCorruptError, match=f"{memory}/{name}"):
            ask()
        assert name not in cached(bank)
    assert not list(bank.path.glob(".*"))
    with pytest.raises(BankCorruptError, match=victims[0]):
        bank.verify()
    rest = SampleBank.open(memory, skip_damaged=True)
    assert len(rest) == COUNT - 4
    np.testing.assert_array_equal(rest.seeds, local.seeds[4:])
    with pytest.raises(BankError, match="with damages"):
        copy_bank(rest, tmp_path / "copy")
    assert len(merge([rest], tmp_path / "merged")) == COUNT - 4


def test_verify_looks_at_the_url_and_leaves_no_copy(tmp_path, memory):
    local = grown(tmp_path / "bank", samples(COUNT))
    copy_bank(local, memory)
    bank = SampleBank.open(memory)
    assert_same(bank, local)  # all in the cache, and sound there
    name = shards_of(local.path)[1].name
    fsspec.filesystem("memory").pipe_file(f"{memory}/{name}", b"x")
    with pytest.raises(BankCorruptError, match=f"{memory}/{name}"):
        bank.verify()
    assert [entry.name for entry in default_cache().iterdir()] == [bank.path.name]


def test_two_threads_fetch_the_same_file(tmp_path, memory):
    local = grown(tmp_path / "bank", samples(COUNT))
    copy_bank(local, memory)
    bank, barrier, seen = SampleBank.open(memory), threading.Barrier(4), []

    def read() -> None:
        barrier.wait()
        seen.append(bank.images[:].sum())

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [local.images[:].sum()] * 4


def test_a_url_wherever_a_bank_is_taken(tmp_path, memory, capsys):
    local = grown(tmp_path / "bank", samples(COUNT))
    copy_bank(local, memory)
    item = {"image": np.zeros(SHAPE, np.float32), "label": 1}
    for given in (memory, Path(memory), f"{memory}/"):  # a Path has lost a slash
        assert open_bank(given).location == memory
        made = [RandDiverseReplaced("image", bank, prob=1.0).set_random_state(2)(item) for bank in (given, local)]
        np.testing.assert_array_equal(made[0]["image"], made[1]["image"])
        assert made[0]["sample_source"] == made[1]["sample_source"]
    rng = np.random.RandomState
    assert [draw(open_bank(memory), 2, "match", rng(i)) for i in range(9)] == [draw(local, 2, "match", rng(i)) for i in range(9)]
    assert repr(open_bank(memory)).startswith(f"SampleBank('{memory}'")
    assert main(["verify", memory, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": memory, "ok": True, "size": COUNT, "fingerprint": local.fingerprint}
    assert main(["inspect", memory]) == 0
    assert memory in capsys.readouterr().out
    assert main(["merge", memory, "--out", str(tmp_path / "merged")]) == 0
    assert main(["export", memory, "--out", str(tmp_path / "npz"), "--format", "npz"]) == 0
    assert np.load(tmp_path / "npz" / "samples.npz")["ids"].tolist() == local.ids.tolist()
    file = (tmp_path / "bank").as_uri()
    assert open_bank(file).fingerprint == open_bank(Path(file)).fingerprint == local.fingerprint


def test_albumentations_writes_the_url(tmp_path, memory):
    albumentations = pytest.importorskip("albumentations")
    from monai_diverse import BankTransform

    copy_bank(grown(tmp_path / "bank", samples(COUNT)), memory)
    told = albumentations.to_dict(BankTransform(memory))
    assert told["transform"]["bank"] == memory
    assert albumentations.from_dict(told).bank.location == memory


def test_pickles_are_urls(tmp_path, memory, monkeypatch):
    copy_bank(grown(tmp_path / "bank", samples(COUNT)), memory)
    default, own = SampleBank.open(memory), SampleBank.open(memory, cache=tmp_path / "own", storage_options={"use_listings_cache": False})
    data = pickle.dumps(default), pickle.dumps(own)
    assert max(map(len, data)) < 400 + len(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "moved"))
    assert pickle.loads(data[0]).path.is_relative_to(tmp_path / "moved")  # another machine has another default
    again = pickle.loads(data[1])
    assert (again.path, again.location, again.fingerprint) == (own.path, memory, default.fingerprint)
    assert "secret" not in repr(SampleBank.open(memory, storage_options={"token": "secret"}).folder)


def test_urls_are_read_only(tmp_path, memory, capsys):
    local = grown(tmp_path / "bank", samples(COUNT))
    bank = copy_bank(local, memory)
    refusals = [
        lambda: BankWriter.create_or_resume(memory, header(), resume=True),
        lambda: BankWriter.create_or_resume(Path("s3://bucket/bank"), header(), resume=False),
        lambda: merge([local], f"{memory}/merged"),
        lambda: export(local, "s3://bucket/files", "npz"),
        lambda: write_datasheet(bank),
        lambda: BankRefreshHandler({}, bank, add=1, max_evaluations=10),
    ]
    for refused in refusals:
        with pytest.raises(BankError, match=r"expected a local folder to write .* copy_bank") as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert main(["grow", "recipe.yaml", "--out", "s3://bucket/bank"]) == 2
    assert "s3://bucket/bank: expected a local folder" in capsys.readouterr().err  # not that there is no recipe
    assert not Path("s3:").exists()


def test_what_is_wrong_with_a_url_is_said_in_one_line(tmp_path, memory, monkeypatch):
    with pytest.raises(BankError, match="no manifest"):
        SampleBank.open(memory)
    with pytest.raises(BankError, match="no manifest"):
        SampleBank.open(memory, skip_damaged=True)
    with pytest.raises(BankError, match="fsspec knows"):
        SampleBank.open("nonsense://bank")
    for name, value in (("cache", tmp_path), ("storage_options", {})):
        with pytest.raises(BankError, match=f"{name}: expected it beside a URL alone"):
            SampleBank.open(tmp_path, **{name: value})
    fsspec.filesystem("memory").pipe_file(f"{memory}/{MANIFEST}", b"[" * 100_000)
    with pytest.raises(BankCorruptError, match="expected JSON"):
        SampleBank.open(memory)
    monkeypatch.setattr("monai_diverse.bank.remote.LARGEST", 1000)
    with pytest.raises(BankCorruptError, match="do not trust"):
        SampleBank.open(memory)

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("monai_diverse.bank.remote.url_to_fs", missing)
    with pytest.raises(MissingExtraError, match="Install s3fs"):
        SampleBank.open("s3://bucket/bank")


def test_a_cache_that_cannot_be_written(tmp_path, memory):
    copy_bank(grown(tmp_path / "bank", samples(COUNT)), memory)
    (tmp_path / "file").touch()
    bank = SampleBank.open(memory, cache=tmp_path / "file")
    with pytest.raises(StorageError):
        bank.images[0]


def test_a_lost_manifest_or_index_file_behind_a_url(tmp_path, memory):
    local = grown(tmp_path / "bank", samples(COUNT))
    copy_bank(local, memory)
    system = fsspec.filesystem("memory")
    system.rm_file(f"{memory}/{sorted(p.name for p in local.path.glob('index-*'))[0]}")
    rest = SampleBank.open(memory, skip_damaged=True)
    assert len(rest.damages) == 1
    assert_same(rest, local)
    assert_same(pickle.loads(pickle.dumps(rest)), local)
    system.rm_file(f"{memory}/{MANIFEST}")
    assert_same(SampleBank.open(memory, skip_damaged=True), local)


def test_an_audit_beside_a_bank_travels(tmp_path, memory):
    local = grown(tmp_path / "bank", samples(COUNT))
    assert audit_of(copy_bank(local, memory)) is None
    (local.path / "audit.json").write_text("{}")
    write_datasheet(local)
    bank = copy_bank(local, memory)
    assert audit_of(bank) == {"kind": None}
    assert files_in(memory)["datasheet.md"] == (local.path / "datasheet.md").read_bytes()
    fsspec.filesystem("memory").rm_file(f"{memory}/audit.json")
    assert audit_of(bank) is None


def test_what_is_linked_from_elsewhere_does_not_travel(tmp_path, memory):
    local = grown(tmp_path / "bank", samples(COUNT))
    (tmp_path / "secret").write_text("not for others")
    for name in ("audit.json", "datasheet.md"):
        (local.path / name).unlink(missing_ok=True)
        (local.path / name).symlink_to(tmp_path / "secret")
    copy_bank(local, memory)
    assert not {"audit.json", "datasheet.md"} & set(files_in(memory))


# --- copying


@pytest.mark.parametrize("to_url", [True, False])
def test_an_interrupted_copy_goes_on(tmp_path, memory, to_url):
    local = grown(tmp_path / "bank", samples(COUNT))
    target = memory if to_url else str(tmp_path / "copy")
    url = target if to_url else Path(target).as_uri()
    steps = copy_steps(local, target)
    for _ in range(5):
        progress = next(steps)
    steps.close()
    assert (progress.done, progress.total, progress.skipped) == (5, 15, 0)
    with pytest.raises(BankError, match="no manifest"):
        SampleBank.open(target)
    system, path = fsspec.core.url_to_fs(url)
    content = files_in(url)
    victim = sorted(name for name in content if name.startswith("shard-"))[1]
    system.pipe_file(f"{path}/{victim}", content[victim][:-1] + b"?")  # of the right size
    *_, last = copy_steps(local, target)
    assert (last.done, last.total, last.skipped) == (15, 15, 4)
    made = SampleBank.open(target)
    made.verify()
    assert_same(made, local)
    *_, last = copy_steps(local, target)
    assert (last.skipped, last.bytes) == (15, 0)


def test_the_manifest_comes_last(tmp_path, memory):
    local = grown(tmp_path / "bank", samples(COUNT))
    order = []
    for _ in copy_steps(local, tmp_path / "copy"):
        order.append(sorted(p.name for p in (tmp_path / "copy").iterdir() if p.name != ".lock"))
    kinds = [(set(now) - set(before)).pop().split("-")[0] for before, now in zip([[], *order], order, strict=False)]
    assert kinds == ["shard"] * 12 + ["index"] * 3
    assert (tmp_path / "copy" / MANIFEST).read_bytes() == (local.path / MANIFEST).read_bytes()


def test_there_and_back_and_grown_on(tmp_path, memory):
    all_ = samples(COUNT)
    local = grown(tmp_path / "bank", part(all_, slice(0, 30)))
    copy_bank(local.path, memory)
    back = copy_bank(memory, tmp_path / "back")
    assert_same(back, local)
    with BankWriter.create_or_resume(back.path, header(), resume=True) as writer:
        with pytest.raises(BankError, match="another process is writing"):
            copy_bank(memory, back.path)
        writer.append(**part(all_, slice(30, COUNT)), progress={"drawn": COUNT})
    assert copy_bank(back.path, memory).fingerprint == SampleBank.open(back.path).fingerprint
    assert files_in(memory).keys() == {file.name for file in back.path.iterdir()} - {".lock"}
    with pytest.raises(BankMismatchError, match="earlier state"):
        copy_bank(local, memory)  # would lose what was added
    other = grown(tmp_path / "other", samples(COUNT, seed=1))
    for target in (memory, back.path):
        with pytest.raises(BankMismatchError, match="earlier state"):
            copy_bank(other, target)
    with pytest.raises(BankError, match="another place"):
        copy_bank(local, local.path)
    assert len(list(tmp_path.glob("default-cache/**/shard-*"))) == 0  # copies pass the cache by


def test_shards_of_a_bank_that_lost_its_manifest_are_not_mixed_with_a_copy(tmp_path, memory):
    local = grown(tmp_path / "bank", samples(COUNT))
    lost = grown(tmp_path / "lost", samples(COUNT, seed=1), recipe_fingerprint="c" * 64)
    copy_bank(lost, memory)
    fsspec.filesystem("memory").rm(f"{memory.removeprefix('memory:/')}/{MANIFEST}")
    (lost.path / MANIFEST).unlink()
    for target, held in ((memory, len(files_in(memory))), (lost.path, len(list(lost.path.iterdir())))):
        with pytest.raises(BankMismatchError, match=r"12 shards of another bank, which has no .* rescues"):
            copy_bank(local, target)
        assert len(files_in(str(target))) == held
    copy_bank(merge([SampleBank.open(lost.path, skip_damaged=True)], tmp_path / "rescued"), tmp_path / "elsewhere")


def test_an_interrupted_copy_of_a_bank_that_grew_meanwhile_goes_on(tmp_path):
    all_ = samples(COUNT)
    local = grown(tmp_path / "bank", part(all_, slice(0, 30)))
    next(copy_steps(local, tmp_path / "copy"))  # the last shard, half full
    with BankWriter.create_or_resume(local.path, header(), resume=True) as writer:
        writer.append(**part(all_, slice(30, COUNT)), progress={"drawn": COUNT})
    assert_same(copy_bank(local.path, tmp_path / "copy"), SampleBank.open(local.path))


def test_damage_is_not_copied(tmp_path, memory):
    local = grown(tmp_path / "bank", samples(COUNT))
    flip(shards_of(local.path)[4])
    with pytest.raises(BankCorruptError, match=shards_of(local.path)[4].name):
        copy_bank(local, memory)
    assert MANIFEST not in files_in(memory)


def test_a_copy_beside_a_writer(tmp_path, memory, monkeypatch):
    all_ = samples(COUNT)
    local = grown(tmp_path / "bank", part(all_, slice(0, 30)))
    steps = copy_steps(local, memory)
    with BankWriter.create_or_resume(local.path, header(), resume=True) as writer:
        # the copy has read the manifest, and finds the last shard replaced
        read = SampleBank.open(local.path).folder.manifest()
        writer.append(**part(all_, slice(30, COUNT)), progress={})
    real = type(local.folder).manifest
    answers = iter([read])
    monkeypatch.setattr(type(local.folder), "manifest", lambda self: next(answers, None) or real(self))
    for _ in steps:
        pass
    made = SampleBank.open(memory)
    made.verify()
    assert len(made) == COUNT
