"""A coverage-guided fuzzer of what reads a bank: `python tests/fuzzing.py -runs=100000` (libFuzzer's options; needs atheris).

Whatever the bytes, a bank is used or raises `BankError`; nothing is run, nothing outside its folder is opened, and what is made of it lies where it
was asked to be.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["monai_diverse.bank", "monai_diverse.datasheet"]):
    from monai_diverse.bank import BankWriter, SampleBank, draw, export, merge
    from monai_diverse.bank import format as bank_format
    from monai_diverse.bank.format import MANIFEST
    from monai_diverse.datasheet import datasheet

from monai_diverse.errors import BankError, InputError
from monai_diverse.storage import fingerprint_of

ALLOWED = (sys.prefix, sys.base_prefix)  # modules that are imported late
OLD = Path(__file__).parent / "data" / "bank_v1"
TRACES = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "pickle.find_class",
    "socket.connect",
    "socket.bind",
    "ctypes.dlopen",
)
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "shutil.rmtree")


def use(folder: Path) -> None:
    """Opens a bank in both ways and uses all of it, as the package's tools do."""
    for skip in (False, True):
        shutil.rmtree(folder.parent / "made", ignore_errors=True)
        try:
            bank = SampleBank.open(folder, skip_damaged=skip)
            len(bank), bank.fingerprint, bank.class_counts, bank.progress, bank.origins, bank.header.class_name(0)
            bank.labels, bank.ids, bank.verdicts, bank.nearest, bank.scores, bank.images[:], bank.indices_of(0), bank.verdict_counts
            for index in range(min(len(bank), 3)):
                bank.images[-1 - index], bank.label_of(index), draw(bank, index, "match", np.random.RandomState(index))
            datasheet(bank).encode()
            for form in ("png", "npz"):
                with contextlib.suppress(InputError):  # a shape that this format does not hold
                    export(bank, folder.parent / "made" / form, form)
            datasheet(merge([bank], folder.parent / "made" / "merged")).encode()
            bank.verify()
        except BankError:
            pass


def watched(root: Path, found: list[str]) -> Callable[[str, Any], None]:
    """An audit hook that notes what a reader has no business to do."""

    def inside(path: Any) -> bool:
        text = path.decode() if isinstance(path, bytes) else str(path)
        # a plain name stands beside a descriptor of its folder, as shutil.rmtree uses them
        return isinstance(path, int) or text.startswith(str(root)) or ("/" not in text and text != "..")

    def hook(event: str, arguments: Any) -> None:
        if event.startswith(TRACES):
            found.append(event)
        elif event in CHANGES and arguments[0] is not None and not inside(arguments[0]):
            found.append(f"{event} {arguments[0]!r}")
        elif event == "open" and arguments[0] is not None and not inside(arguments[0]) and not str(arguments[0]).startswith(ALLOWED):
            found.append(f"open {arguments!r}")

    return hook


def seeds(folder: Path) -> list[Path]:
    """A bank of the first format version, and one of the present with an index file of two shards."""
    bank_format.SHARD_IMAGES = bank_format.INDEX_SHARDS = 2
    rng, header = np.random.default_rng(0), SampleBank.open(OLD).header
    with BankWriter.create_or_resume(folder, header, resume=False) as writer:
        labels, scores = rng.integers(0, header.classes, 5), {"copy": np.zeros(5)}
        writer.append(rng.random((5, *header.shape), np.float32), labels, np.arange(5), scores, {"drawn": 9})
    return [OLD, folder]


def body_of(data: atheris.FuzzedDataProvider, seed: Path) -> bytes:
    """A manifest: raw bytes, or the real one with some values replaced and its hash made to fit."""
    if data.ConsumeBool():
        return bytes(data.ConsumeBytes(4096))
    body = json.loads((seed / MANIFEST).read_text())
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
    """Fuzzes a manifest before real shards and an index file, of which one is damaged at times."""
    with tempfile.TemporaryDirectory() as name:
        folder, banks = Path(name) / "bank", seeds(Path(name) / "present")
        found: list[str] = []
        started = False
        hook = watched(Path(name), found)
        sys.addaudithook(lambda event, arguments: hook(event, arguments) if started else None)

        def one(raw: bytes) -> None:
            nonlocal started
            data = atheris.FuzzedDataProvider(raw)
            shutil.rmtree(folder, ignore_errors=True)
            seed = data.PickValueInList(banks)
            shutil.copytree(seed, folder)
            if data.ConsumeBool():
                file = data.PickValueInList(sorted(folder.glob("*.safetensors")))
                content = bytearray(file.read_bytes())
                content[data.ConsumeIntInRange(0, len(content) - 1)] ^= data.ConsumeIntInRange(1, 255)
                file.write_bytes(content)
            (folder / MANIFEST).write_bytes(body_of(data, seed) if data.ConsumeIntInRange(0, 15) else (seed / MANIFEST).read_bytes())
            started = True
            use(folder)
            started = False
            assert not found, found

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
