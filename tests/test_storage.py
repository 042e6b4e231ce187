import errno
import os
from pathlib import Path

import pytest

from monai_diverse.errors import DataError, StorageError
from monai_diverse.storage import fingerprint_of, make_folder, read_json, sha256_of, write_atomic, write_json


def test_write_replaces_the_whole_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    write_atomic(file, b"old" * 1000)
    write_atomic(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    file = tmp_path / "a.bin"
    write_atomic(file, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if step == "fsync" else (Path, "replace", full)))
    with pytest.raises(StorageError, match="no space left"):
        write_atomic(file, b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_disk_that_becomes_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a.bin", b"old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError, match="Read-only"):
        write_atomic(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        make_folder(tmp_path / "a" / "b")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_of(b"abc") == sha256_of(tmp_path / "a") == known
    assert fingerprint_of({"b": 1, "a": [2]}) == fingerprint_of({"a": [2], "b": 1}) != fingerprint_of({"a": [3], "b": 1})


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a": ' * 100_000, "{", "", b"\xff", "[]"], ids=["lists", "objects", "cut", "empty", "bytes", "list"]
)
def test_json_that_cannot_be_read_is_said_in_one_line(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"a\.json: expected a JSON (file|object)") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
