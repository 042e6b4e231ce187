"""`monai-diverse audit`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from monai_diverse.audit.one_model import AuditSettings, ModelAudit, audit_steps
from monai_diverse.audit.samplers import Sampler, default_samplers
from monai_diverse.audit.subject import Audited
from monai_diverse.bank import SampleBank
from monai_diverse.bank.folder import local_path
from monai_diverse.cli.audit_inputs import AuditSetsGiven, find_sets, find_source, read_groups
from monai_diverse.cli.main import app
from monai_diverse.datasheet import AUDIT, write_datasheet
from monai_diverse.errors import RecipeError
from monai_diverse.report.audit import REAL_PATIENTS, holds_patients, write_audit
from monai_diverse.report.audit_words import audit_in_words
from monai_diverse.report.provenance import describe_environment
from monai_diverse.sampling import SCHEDULERS, Shield
from monai_diverse.sources import DiffusionSource
from monai_diverse.storage import make_folder, write_json

TOLERANCE = 0.02
"""What words are measured by where no `--max-bias` is given."""
_SPLIT = "with :SPLIT where it is divided, such as images.npz:test; repeat for more"


@app.command("audit")
def command(
    source: Annotated[str, typer.Option(help="builtin, the folder of a diffusers model, a MONAI bundle or a bank, or images alone.")],
    train: Annotated[list[str] | None, typer.Option(help=f"What the model was trained on: .npz or folder, {_SPLIT}.")] = None,
    heldout: Annotated[list[str] | None, typer.Option(help=f"Like images of patients that it never saw: .npz or folder, {_SPLIT}.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Instead of both: what monai-diverse train was given; the model's split.json says the rest.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.html and audit.json; SOURCE-audit here, if not given.")] = None,
    bank: Annotated[Path | None, typer.Option(help="A bank that the outcome is put into: audit.json, and a new datasheet.")] = None,
    images: Annotated[int, typer.Option(min=2, help="Samples of each sampler.")] = 1000,
    own: Annotated[bool, typer.Option("--own", help="Only the model's own settings; by default others stand beside them.")] = False,
    guidance: Annotated[
        str, typer.Option(help="Scales of classifier-free guidance to compare, such as 1,2,4; instead of the default samplers.")
    ] = "",
    scheduler: Annotated[list[str] | None, typer.Option(help="A scheduler to compare; repeat for more; instead of the default samplers.")] = None,
    shield: Annotated[bool, typer.Option("--shield", help="Compare sampling under the shield; instead of the default samplers.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Inference steps of every sampler; the model's own, if not given.")] = None,
    max_bias: Annotated[float | None, typer.Option(help="Largest bias to tolerate, such as 0.02 (2 % nearer); exit 1 if it is beyond.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="With --max-bias: exit 1 too if it cannot be told.")] = False,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="Patients, .npy: a number or name an image; train first; with --data in its order, train, then val. Near-duplicates, if not given."
        ),
    ] = None,
    twin_correlation: Annotated[
        float | None, typer.Option(help="Correlation from which on images are near-duplicates; as in training, else 0.95, if not given.")
    ] = None,
    mirrored: Annotated[
        bool | None, typer.Option("--mirrored/--no-mirrored", help="Whether a mirrored image counts as the same; what the source says, if not given.")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Show the closest pairs, images of real patients, in the page.")] = True,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of samples, permutations and noises.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute, such as cpu or cuda:0.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Say whether a model leans towards its training patients: bias, membership, the closest pairs; exit 1 if beyond --max-bias."""
    if strict and max_bias is None:
        raise RecipeError("--strict: expected --max-bias beside it, got none; add it")
    into = None if bank is None else SampleBank.open(local_path(bank, "an audit"))
    patients = None if groups is None else read_groups(groups)
    audited = find_source(source, device)
    sets = find_sets(source, data, train or (), heldout or (), groups=patients, twin_correlation=twin_correlation)
    settings = AuditSettings(
        samplers=chosen_samplers(audited, own=own, guidance=guidance, schedulers=scheduler or (), shield=shield, steps=steps),
        images=images,
        tolerance=TOLERANCE if max_bias is None else max_bias,
        seed=seed,
        twin_correlation=sets.twin_correlation,
        mirrored=mirrored,
    )
    folder = make_folder(Path(f"{Path(source).name.split(':')[0].removesuffix('.npz')}-audit") if out is None else out)
    found = show_progress(audited, sets, settings)
    told = sets.told if sets.groups is not None else sets.told | {"twin_correlation": sets.twin_correlation}
    deliver(found.summary | {"inputs": told}, found.pictures if pictures else {}, out=folder, bank=into, as_json=as_json)
    word = found.verdict.word
    if max_bias is not None and (word == "beyond" or (strict and word != "within")):
        raise typer.Exit(1)


def deliver(summary: Mapping[str, Any], pictures: Mapping[str, Any], *, out: Path, bank: SampleBank | None, as_json: bool) -> None:
    """Writes page and JSON of an audit of a model, puts the JSON without its pairs into a bank if there is one, and prints what it came to."""
    whole = dict(summary) | {"environment": describe_environment()}
    page = write_audit(out, whole, pictures)
    if bank is not None:
        # banks are handed on, and the pairs say which samples to attack
        write_json(bank.path / AUDIT, {name: value for name, value in whole.items() if name != "pairs"})
        write_datasheet(SampleBank.open(bank.path))
    if holds_patients(whole, pictures):
        typer.echo(f"{page} {REAL_PATIENTS}", err=True)
    if as_json:
        typer.echo(json.dumps(whole))
        return
    typer.echo("\n".join([*audit_in_words(whole), f"page: {page}"]))


def chosen_samplers(source: Audited, *, own: bool, guidance: str, schedulers: Sequence[str], shield: bool, steps: int | None) -> tuple[Sampler, ...]:
    """The model's own sampler first, then those asked for; the default ones if none is asked for; none for images.

    Raises:
        RecipeError: what cannot be read, is not known, or asked of images that are drawn already.
    """
    options = {"own": own, "guidance": guidance, "scheduler": schedulers, "shield": shield, "steps": steps}
    given = [name for name, value in options.items() if value]
    if not isinstance(source, DiffusionSource):
        if given:
            raise RecipeError(f"--{given[0]}: expected a diffusion model as source, got images that are drawn already; leave it out")
        return ()
    if own and len(given) > 1 + (steps is not None):
        raise RecipeError(f"--own: expected no other sampler beside it, got --{next(name for name in given if name != 'own')}; leave one out")
    asked = [Sampler(name=f"guidance {scale:g}", guidance=scale) for scale in _scales(guidance)]
    for name in schedulers:
        if name not in SCHEDULERS:
            raise RecipeError(f"--scheduler: expected one of {', '.join(SCHEDULERS)}, got {name}")
        asked.append(Sampler(name=name.removesuffix("Scheduler"), scheduler=name))
    # alone in the batch, so that its images differ from the model's own by the shield only
    asked += [Sampler(name="shield", guide=Shield(distinct=0.0))] if shield else []
    chosen = (Sampler(name="own"),) if own else _own_first(source, asked) if asked else default_samplers(source)
    return tuple(replace(sampler, steps=steps) for sampler in chosen)


def show_progress(source: Audited, sets: AuditSetsGiven, settings: AuditSettings) -> ModelAudit:
    """Audits behind progress bars, one a stage: rate, time left."""
    reports = groupby(audit_steps(source, sets.train, sets.heldout, sets.groups, settings), key=lambda report: report.stage)
    for stage, progress in reports:
        report = next(progress)
        if report.audit is not None:
            return report.audit
        with tqdm(total=1.0, desc=stage, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}") as bar:
            for report in progress:
                bar.update(report.share - bar.n)
                if stage.startswith("sample"):
                    drawn = round(report.share * settings.images)
                    bar.set_postfix_str(f"{drawn} images ({drawn / max(bar.format_dict['elapsed'], 1e-9):.1f}/s)")
    raise AssertionError("an audit ends with its result")


def _own_first(source: DiffusionSource, asked: Sequence[Sampler]) -> tuple[Sampler, ...]:
    """The model's own sampler, or the one asked for that is the same, before the others."""
    same = [s for s in asked if s.guide is None and s.applied(source).fingerprint == source.fingerprint]
    first = same[0] if same else Sampler(name="own")
    return (first, *(sampler for sampler in asked if sampler not in same))


def _scales(text: str) -> list[float]:
    try:
        scales = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        scales = [-1.0]
    if any(not 0 <= scale < float("inf") for scale in scales) or len(set(scales)) < len(scales):
        raise RecipeError(f"--guidance: expected numbers from 0, each once, separated by commas, such as 1,2,4, got {text!r}")
    return scales
