"""`monai-diverse merge`, `split`, `export`, `import` and `copy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from monai_diverse.bank import ExportFormat, SampleBank, copy_steps, export, import_images, merge, split_by_class
from monai_diverse.cli.main import app
from monai_diverse.datasheet import write_datasheet

Out = Annotated[Path, typer.Option(help="A new or empty folder; it appears when it is complete.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SkipDamaged = Annotated[bool, typer.Option("--skip-damaged", help="Leave damaged shards out and say which, instead of stopping.")]


@app.command("merge")
def merge_command(
    banks: Annotated[list[str], typer.Argument(help="Folders or URLs of banks; one is enough.")],
    out: Out,
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Make one bank of several, each sample once; with --skip-damaged also a sound bank of what is intact."""
    opened = _opened(banks, skip_damaged)
    made = merge(opened, out)
    write_datasheet(made)
    left_out = [line for bank in opened for line in bank.damages]
    found = {"path": str(out), "size": len(made), "of": sum(map(len, opened)), "fingerprint": made.fingerprint, "left_out": left_out}
    words = f"{len(made)} samples in {out}, of {found['of']} in {len(opened)} banks"
    typer.echo(json.dumps(found) if as_json else "\n".join([words, *(f"left out: {line}" for line in left_out)]))


@app.command("split")
def split_command(bank: Annotated[str, typer.Argument(help="Folder or URL of the bank.")], out: Out, as_json: AsJson = False) -> None:
    """Make a bank of each class's samples, in OUT/LABEL_NAME."""
    made = split_by_class(SampleBank.open(bank), out)
    for part in made:
        write_datasheet(part)
    found = [{"path": str(part.path), "size": len(part), "fingerprint": part.fingerprint} for part in made]
    typer.echo(json.dumps(found) if as_json else "\n".join(f"{len(part)} samples in {part.path}" for part in made))


@app.command("export")
def export_command(
    bank: Annotated[str, typer.Argument(help="Folder or URL of the bank.")],
    out: Out,
    file_format: Annotated[ExportFormat, typer.Option("--format", help="Pictures, one NumPy archive, or volumes.")] = "png",
    skip_damaged: SkipDamaged = False,
    as_json: AsJson = False,
) -> None:
    """Write the samples as files that other programs read, with labels.csv."""
    (opened,) = _opened([bank], skip_damaged)
    folder = export(opened, out, file_format)
    found = {"path": str(folder), "size": len(opened), "format": file_format, "left_out": list(opened.damages)}
    words = [f"{len(opened)} samples in {out}, see labels.csv there", *(f"left out: {line}" for line in opened.damages)]
    typer.echo(json.dumps(found) if as_json else "\n".join(words))


@app.command("import")
def import_command(
    images: Annotated[Path, typer.Argument(help="An .npz file, or a folder with a subfolder of pictures for each class.")],
    out: Out,
    licence: Annotated[str, typer.Option(help="Of the images, or of the data that their model saw.")],
    name: Annotated[list[str] | None, typer.Option(help="Of a class; once for each, in order.")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test, where the data are divided.")] = None,
    dtype: Annotated[str, typer.Option(help="How the bank stores images: uint8, float16 or float32.")] = "uint8",
    as_json: AsJson = False,
) -> None:
    """Make a bank of images from elsewhere, marked as unscreened; to screen them, use FolderSource in a recipe instead."""
    made = import_images(images, out, licence=licence, names=name or (), split=split, dtype=dtype)
    write_datasheet(made)
    found = {"path": str(out), "size": len(made), "class_counts": made.class_counts, "fingerprint": made.fingerprint}
    typer.echo(json.dumps(found) if as_json else f"{len(made)} samples in {out}, not screened, by class {made.class_counts}")


@app.command("copy")
def copy_command(
    source: Annotated[str, typer.Argument(help="Folder or URL of the bank.")],
    target: Annotated[str, typer.Argument(help="Folder or URL; an interrupted copy goes on, an earlier state of the bank is brought up to date.")],
    as_json: AsJson = False,
) -> None:
    """Copy a bank to a folder or URL such as s3://bucket/bank, every file compared with its hash, the manifest last."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} files, {elapsed}<{remaining}{postfix}"
    skipped = copied = 0
    with tqdm(desc="copy", bar_format=form) as bar:
        for progress in copy_steps(source, target):
            skipped, copied, bar.total = progress.skipped, progress.bytes, progress.total
            bar.update(progress.done - bar.n)
            bar.set_postfix_str(f"{copied / 2**20:.0f} MiB")
    made = SampleBank.open(target)
    found = {"path": target, "size": len(made), "skipped": skipped, "bytes": copied, "fingerprint": made.fingerprint}
    words = f"{len(made)} samples in {target}, {copied} bytes copied, {skipped} files were there"
    typer.echo(json.dumps(found) if as_json else words)


def _opened(banks: list[str], skip_damaged: bool) -> list[SampleBank]:
    return [SampleBank.open(bank, skip_damaged=skip_damaged) for bank in banks]
