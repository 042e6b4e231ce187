"""A bank from a stranger can do nothing but hold images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from test_bank import grown, samples, shards_of

from monai_diverse.bank import SampleBank, draw
from monai_diverse.bank import format as bank_format
from monai_diverse.bank.format import FORMAT, MANIFEST
from monai_diverse.datasheet import datasheet
from monai_diverse.errors import BankError
from monai_diverse.storage import fingerprint_of, sha256_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["../x", "/etc/passwd", "uint8", 2**64, -1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
MANY = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def bank(tmp_path: Path) -> SampleBank:
    return grown(tmp_path / "bank", samples(5), source={"name": "toy", "fingerprint": "b" * 64, "class_names": ["a", "b", "c"]})


def paths_in(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    if before:
        yield before
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths_in(value[key], (*before, key))


def use(folder: Path) -> None:
    """Uses all of a bank; `BankError` is the only way out."""
    for skip in (False, True):
        try:
            bank = SampleBank.open(folder, skip_damaged=skip)
            assert bank.images[:].shape[0] == len(bank) == len(bank.labels) == len(bank.ids) == len(bank.verdicts)
            assert bank.images[:].size == 0 or 0 <= bank.images[:].min() <= bank.images[:].max() <= 1
            assert all(0 <= draw(bank, label, "match", np.random.RandomState(0)) < len(bank) for label, n in enumerate(bank.class_counts) if n)
            assert isinstance(datasheet(bank).encode(), bytes)
            bank.verify()
        except BankError:
            pass


@MANY
@given(data=st.data())
def test_any_value_anywhere_in_a_manifest(bank, data):
    whole = json.loads((bank.path / MANIFEST).read_text())
    original = json.dumps(whole)
    try:
        *way, last = data.draw(st.sampled_from(sorted(paths_in(whole), key=str)))
        place = whole
        for key in way:
            place = place[key]
        if isinstance(place, dict) and data.draw(st.booleans()):
            del place[last]
        else:
            place[last] = data.draw(JSON)
        whole.pop("sha256", None)
        try:
            whole["sha256"] = fingerprint_of(whole)
        except ValueError:  # NaN
            whole["sha256"] = "0" * 64
        (bank.path / MANIFEST).write_text(json.dumps(whole))
        use(bank.path)
    finally:
        (bank.path / MANIFEST).write_text(original)


@MANY
@given(content=st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_as_a_manifest(bank, content):
    original = (bank.path / MANIFEST).read_bytes()
    try:
        (bank.path / MANIFEST).write_bytes(content)
        use(bank.path)
    finally:
        (bank.path / MANIFEST).write_bytes(original)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b'{"format": "monai-diverse-bank", "version": 1e400}'])
def test_bombs(bank, content):
    (bank.path / MANIFEST).write_bytes(content)
    with pytest.raises(BankError):
        SampleBank.open(bank.path)
    assert len(SampleBank.open(bank.path, skip_damaged=True)) == 5


def odd_manifest(folder: Path, kind: str) -> None:
    path = folder / MANIFEST
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as stream:
            stream.truncate(20 * 2**30)  # takes no space


@pytest.mark.parametrize("kind", ["pipe", "link to itself", "folder", "huge"])
def test_manifests_that_are_no_files(bank, kind):
    try:
        odd_manifest(bank.path, kind)
    except OSError:
        pytest.skip(f"the file system has no such thing: {kind}")
    with pytest.raises(BankError):
        SampleBank.open(bank.path)


def test_paths_that_cannot_be():
    with pytest.raises(BankError):
        SampleBank.open("x" * 5000)


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(capacity=2**70, class_counts=[2**70, 0, 0]) or body["shards"][0].update(count=2**70, size=2**71),
        lambda body: body["header"].update(shape=[10**30, 2, 2]) or body.update(shards=[], class_counts=[0, 0, 0]),
        lambda body: body.update(progress={"class_names": "\ud800"}),
        lambda body: body["header"].update(recipe_fingerprint="../../evil/x"),
        lambda body: body["header"].update(recipe_fingerprint="/tmp/x"),
    ],
)
def test_values_that_no_bank_holds(bank, change):
    body = json.loads((bank.path / MANIFEST).read_text())
    change(body)
    body.pop("sha256")
    (bank.path / MANIFEST).write_text(json.dumps(body | {"sha256": fingerprint_of(body)}))
    with pytest.raises(BankError):
        SampleBank.open(bank.path)


@pytest.mark.parametrize("place", ["progress", "header.recipe"])
def test_a_bomb_inside_a_manifest_with_a_right_hash(bank, place):
    body = json.loads((bank.path / MANIFEST).read_text())
    deep: Any = {}
    for _ in range(600):
        deep = {"a": deep}
    if place == "progress":
        body["progress"] = deep
    else:
        body["header"]["recipe"] = deep
    body.pop("sha256")
    body["sha256"] = fingerprint_of(body)
    (bank.path / MANIFEST).write_text(json.dumps(body))
    with pytest.raises(BankError):
        SampleBank.open(bank.path)
    use(bank.path)


@MANY
@given(place=st.integers(0), flip=st.integers(1, 255), rehash=st.booleans())
def test_any_flipped_byte_in_a_shard(bank, place, flip, rehash):
    (shard,) = shards_of(bank.path)
    original, manifest = shard.read_bytes(), (bank.path / MANIFEST).read_text()
    content = bytearray(original)
    content[place % len(content)] ^= flip
    try:
        shard.write_bytes(content)
        with pytest.raises(BankError):
            SampleBank.open(bank.path).verify()
        if rehash:  # whoever flipped it also forged every hash of the file
            body = json.loads(manifest)
            digest = sha256_of(bytes(content))
            body["shards"][0] |= {"sha256": digest, "file": f"shard-000000-{digest[:12]}.safetensors"}
            body.pop("sha256")
            (bank.path / MANIFEST).write_text(json.dumps(body | {"sha256": fingerprint_of(body)}))
            shard.rename(shard.with_name(body["shards"][0]["file"]))
        use(bank.path)
    finally:
        for other in shards_of(bank.path):
            other.unlink()
        shard.write_bytes(original)
        (bank.path / MANIFEST).write_text(manifest)


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SampleBank:
    """A bank of five shards, of which an index file describes four."""
    monkeypatch.setattr(bank_format, "SHARD_IMAGES", 2)
    monkeypatch.setattr(bank_format, "INDEX_SHARDS", 2)
    return grown(tmp_path / "bank", samples(9))


@settings(MANY, max_examples=150)
@given(place=st.integers(0), flip=st.integers(1, 255), rehash=st.booleans())
def test_any_flipped_byte_in_an_index_file(sealed, place, flip, rehash):
    index = sorted(sealed.path.glob("index-*"))[0]
    original, manifest = index.read_bytes(), (sealed.path / MANIFEST).read_text()
    content = bytearray(original)
    content[place % len(content)] ^= flip
    try:
        index.write_bytes(content)
        with pytest.raises(BankError):
            SampleBank.open(sealed.path).verify()
        rest = SampleBank.open(sealed.path, skip_damaged=True)
        assert (len(rest), len(rest.damages)) == (9, 1)  # the shards are the truth
        if rehash:
            body = json.loads(manifest)
            digest = sha256_of(bytes(content))
            body["indexes"][0] |= {"sha256": digest, "file": f"index-000000-{digest[:12]}.safetensors"}
            body.pop("sha256")
            (sealed.path / MANIFEST).write_text(json.dumps(body | {"sha256": fingerprint_of(body)}))
            index.rename(index.with_name(body["indexes"][0]["file"]))
        use(sealed.path)
    finally:
        for other in sealed.path.glob("index-000000-*"):
            other.unlink()
        index.write_bytes(original)
        (sealed.path / MANIFEST).write_text(manifest)


@settings(MANY, max_examples=150)
@given(data=st.data())
def test_any_value_in_the_line_on_an_index_file(sealed, data):
    original = (sealed.path / MANIFEST).read_text()
    body = json.loads(original)
    *way, last = data.draw(st.sampled_from(sorted(paths_in({"indexes": body["indexes"]}), key=str)))
    place = body
    for key in way:
        place = place[key]
    place[last] = data.draw(JSON | st.integers(0, 9))
    body.pop("sha256")
    try:
        body["sha256"] = fingerprint_of(body)
    except ValueError:  # NaN
        body["sha256"] = "0" * 64
    try:
        (sealed.path / MANIFEST).write_text(json.dumps(body))
        use(sealed.path)
    finally:
        (sealed.path / MANIFEST).write_text(original)


@pytest.mark.parametrize(
    "stated", ["x", "[]", "{}", json.dumps({"header": 3}), json.dumps({"header": {}}), json.dumps({"header": {"classes": 10**30}})]
)
def test_shards_that_say_nonsense_of_themselves(bank, stated):
    (bank.path / MANIFEST).unlink()
    content = save({"labels": np.zeros(3, np.int64), "images": np.zeros((3, 1, 4, 5), np.uint8)}, metadata={FORMAT: stated})
    (bank.path / f"shard-000001-{sha256_of(content)[:12]}.safetensors").write_bytes(content)
    assert len(SampleBank.open(bank.path, skip_damaged=True)) == 5


def test_atheris_finds_nothing(tmp_path):
    pytest.importorskip("atheris", reason="needs the fuzzer atheris, which is for Linux")
    script = Path(__file__).parent / "fuzzing.py"
    options = ("-runs=2000", "-seed=1", "-timeout=20", "-len_control=0", "-max_len=600")
    # in memory where that is possible: its files are gone at once, and waiting for a disk takes longer than all else
    environment = os.environ | ({"TMPDIR": "/dev/shm"} if os.access("/dev/shm", os.W_OK) else {})
    done = subprocess.run([sys.executable, str(script), *options], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 2000 runs" in done.stderr
