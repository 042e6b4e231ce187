"""A coverage-guided fuzzer of what reads a bank: `python tests/fuzzing.py -runs=100000` (libFuzzer's options; needs atheris).

Whatever the bytes, a bank opens or raises `BankError`, and nothing outside its folder is read, written or run.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["monai_diverse.bank"]):
    from monai_diverse.bank import SampleBank
    from monai_diverse.bank.format import MANIFEST

from monai_diverse.errors import BankError
from monai_diverse.storage import fingerprint_of

SEED = Path(__file__).parent / "data" / "bank_v1"
TRACES = ("os.system", "subprocess.Popen", "os.exec", "os.remove", "os.rename", "pickle.find_class", "socket.connect")


def use(folder: Path) -> None:
    """Opens a bank in both ways and uses all of it."""
    for skip in (False, True):
        try:
            bank = SampleBank.open(folder, skip_damaged=skip)
            len(bank), bank.fingerprint, bank.class_counts, bank.progress, bank.origins, bank.header.class_name(0)
            bank.labels, bank.ids, bank.verdicts, bank.nearest, bank.scores, bank.images[:], bank.indices_of(0)
            bank.verify()
        except BankError:
            pass


def watched(folder: Path, found: list[str]) -> Callable[[str, Any], None]:
    """An audit hook that notes what a reader has no business to do."""

    def hook(event: str, arguments: Any) -> None:
        if event in TRACES:
            found.append(event)
        if event == "open" and isinstance(arguments[0], str | bytes) and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            found.append(f"open {arguments[0]!r} {arguments[1]}")

    return hook


def body_of(data: atheris.FuzzedDataProvider) -> bytes:
    """A manifest: raw bytes, or the real one with some values replaced and its hash made to fit."""
    if data.ConsumeBool():
        return bytes(data.ConsumeBytes(4096))
    body = json.loads((SEED / MANIFEST).read_text())
    for _ in range(data.ConsumeIntInRange(1, 4)):
        place: Any = body
        while isinstance(place, dict | list) and place:
            key = data.PickValueInList(sorted(place) if isinstance(place, dict) else list(range(len(place))))
            if data.ConsumeBool() or not isinstance(place[key], dict | list):
                try:
                    place[key] = json.loads(data.ConsumeUnicodeNoSurrogates(40))
                except ValueError:
                    place[key] = data.PickValueInList([None, -1, 0, 2**70, 1.5, True, "", "x", "..", [], {}, [[]], {"a": []}, float("inf")])
                break
            place = place[key]
    body.pop("sha256", None)
    try:
        body["sha256"] = fingerprint_of(body)
    except ValueError:
        body["sha256"] = "x"
    return json.dumps(body).encode()


def main() -> None:
    """Fuzzes a manifest before two real shards, of which one is damaged at times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bank"
        found: list[str] = []
        started = False
        hook = watched(folder, found)
        sys.addaudithook(lambda event, arguments: hook(event, arguments) if started else None)

        def one(raw: bytes) -> None:
            nonlocal started
            data = atheris.FuzzedDataProvider(raw)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(SEED, folder)
            if data.ConsumeBool():
                shard = sorted(folder.glob("shard-*"))[0]
                content = bytearray(shard.read_bytes())
                content[data.ConsumeIntInRange(0, len(content) - 1)] ^= data.ConsumeIntInRange(1, 255)
                shard.write_bytes(content)
            (folder / MANIFEST).write_bytes(body_of(data))
            started = True
            use(folder)
            started = False
            assert not found, found

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
