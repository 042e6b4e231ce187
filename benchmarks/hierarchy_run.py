"""Twins on hierarchical data with exact scores (Garnier-Brun et al., arXiv 2603.03469): what is learned in which order, and when memorising starts.

python benchmarks/hierarchy_run.py FOLDER

A run that was interrupted goes on with the checkpoint in FOLDER; the result is FOLDER/result.json.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hierarchy_twin import SCHEDULE, Data, Settings, Twin
from torch import Tensor
from tqdm import tqdm

from monai_diverse.audit.hierarchy import (
    ExactDenoiser,
    Grammar,
    divergence,
    levels_learned,
    nearest_difference,
    neighbour_bias,
    sample_leaves,
    u_turn,
)
from monai_diverse.audit.stops import resample, strict_stop, utility_stop
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.storage import make_folder, write_atomic, write_json

CLAIMS = {
    "order": "levels of the hierarchy are learned one after another, from the leaves up",
    "onset": "twins' samples part (D_pair rises) before the test loss is lowest",
    "nearer": "where the test loss is lowest, samples lie nearer to the own training rows than to as many unseen ones",
    "memorised": "the memorised part of the training loss is below zero before the test loss is lowest",
}
NORMAL = 1.96
"""Standard errors to either end of a 95 % interval."""
RESAMPLES = 1000


def known(data: Data) -> dict[str, Any]:
    """What is known without training: losses, samples and U-turns of the denoisers of each level, and the same figures of unseen rows."""
    settings, grammar = data.settings, data.grammar
    found: dict[str, Any] = {"levels": []}
    for level, predicted in enumerate(data.test_bank.by_level):
        denoise = ExactDenoiser(grammar=grammar, level=level)
        drawn = sample_leaves(denoise, grammar, SCHEDULE, range(settings.samples), steps=settings.sampling_steps)
        row = {"level": level, "test_loss": float(data.test_bank.split_of(predicted)["loss"].mean())}
        found["levels"].append(row | {"valid": _share(grammar.is_valid(drawn))})
    exact = ExactDenoiser(grammar=grammar)
    turned = u_turn(exact, grammar, SCHEDULE, data.test[: settings.turns], settings.turn, seed=settings.seed)
    unseen = data.test[: settings.samples]
    nearest = nearest_difference(grammar, unseen, data.halves[0]), nearest_difference(grammar, unseen, data.halves[1])
    return found | {
        "u_turn": {"overlap": turned.overlap, "chance": turned.chance},
        "first_half_nearer_to_unseen_rows": _interval(_nearer(*nearest)),  # cancels in means over both twins: what is own to one is other to one
        "d_pair_of_unrelated": 1 - grammar.chance(0),
    }


def measure(settings: Settings, data: Data, twins: list[Twin]) -> tuple[dict[str, Any], Tensor, Tensor]:
    """A checkpoint's figures, means over both twins, intervals over rows or samples; D_pair of each sample; the loss of each test row."""
    said = [data.test_bank.noisy.predict(twin.denoise) for twin in twins]
    of_test = [data.test_bank.split_of(predicted) for predicted in said]
    of_train = [bank.split_of(bank.noisy.predict(twin.denoise)) for bank, twin in zip(data.train_banks, twins, strict=True)]
    test = {name: _interval((of_test[0][name] + of_test[1][name]) / 2) for name in of_test[0]}  # the same rows
    train = {name: _interval(torch.cat([of_train[0][name], of_train[1][name]])) for name in of_train[0]}
    drawn = [sample_leaves(twin.denoise, data.grammar, SCHEDULE, range(settings.samples), steps=settings.sampling_steps) for twin in twins]
    apart = (drawn[0] != drawn[1]).double().mean(1)
    by_level, both = [data.test_bank.by_row(level) for level in data.test_bank.by_level], (said[0] + said[1]) / 2
    record = {
        "test": test,
        "train": train,
        "divergence_from_level": [float(sum(divergence(level, p).mean() for p in said)) / 2 for level in data.test_bank.by_level],
        "levels_learned": [asdict(level) for level in levels_learned(data.test_bank.by_row(both), by_level)],
        "d_pair": _interval(apart),
        "denoisers_apart": float((said[0] - said[1]).abs().sum(-1).mean()) / 2,
        "nearest": _nearest(data.grammar, drawn, twins),
        "valid": float(sum(data.grammar.is_valid(samples).double().mean() for samples in drawn)) / 2,
        "u_turn": {"train": _turned(settings, twins, [twin.own for twin in twins]), "test": _turned(settings, twins, [data.test, data.test])},
    }
    return record, apart, (of_test[0]["loss"] + of_test[1]["loss"]) / 2


def _nearest(grammar: Grammar, drawn: list[Tensor], twins: list[Twin]) -> dict[str, Any]:
    found = [neighbour_bias(grammar, samples, twin.own, twin.other) for samples, twin in zip(drawn, twins, strict=True)]
    nearer = [
        _nearer(nearest_difference(grammar, samples, twin.own), nearest_difference(grammar, samples, twin.other))
        for samples, twin in zip(drawn, twins, strict=True)
    ]
    own, other = sum(bias.own for bias in found) / 2, sum(bias.other for bias in found) / 2
    copies = {name: sum(getattr(bias, name) for bias in found) / 2 for name in ("copies", "copies_of_other")}
    return {"ratio": own / other, "own_nearer": _interval((nearer[0] + nearer[1]) / 2), **copies}


def _nearer(own: Tensor, other: Tensor) -> Tensor:
    return (own < other).double() + 0.5 * (own == other).double()


def _turned(settings: Settings, twins: list[Twin], rows: list[Tensor]) -> list[float]:
    """Overlap by height, leaves first."""
    turns = [
        u_turn(twin.denoise, twin.grammar, SCHEDULE, start[: settings.turns], settings.turn, seed=settings.seed)
        for twin, start in zip(twins, rows, strict=True)
    ]
    return [(a + b) / 2 for a, b in zip(turns[0].overlap, turns[1].overlap, strict=True)]


def _interval(values: Tensor) -> dict[str, Any]:
    """Mean with its 95 % interval, normal over rows."""
    mean, half = float(values.mean()), NORMAL * float(values.double().std()) / math.sqrt(len(values))
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def summarise(records: list[dict[str, Any]], apart: list[Tensor], losses: list[Tensor]) -> dict[str, Any]:
    """Where levels are learned, where the audit would stop, and from where on l~ of the training rows is below zero.

    Stops are those of `audit_twins`, with one pair of twins: their intervals cover samples and rows, not other trainings.
    """
    steps = [record["step"] for record in records]
    shares = np.array([[level["share"] for level in record["levels_learned"]] for record in records])
    d_pair, loss = (resample(_stacked(each), resamples=RESAMPLES, confidence=0.95, seed=0) for each in (apart, losses))
    lowest, utility = utility_stop(steps, loss)
    strict = strict_stop(steps, d_pair, lowest, sure=utility.resolved)
    onset = None if strict.step is None else steps.index(strict.step)
    return {
        "closest_level": [int(np.argmin(record["divergence_from_level"])) for record in records],
        "levels_half_learned_at_step": [_first(steps, level >= 0.5) for level in shares.T],
        "levels_learned_at_lowest_loss": records[lowest]["levels_learned"],
        "stops": {"strict": strict.as_json(), "utility": utility.as_json()},
        "d_pair_rise": None if onset is None else _interval(apart[lowest] - apart[onset]),
        "memorised_below_zero_from_step": _since(steps, [record["train"]["memorised"]["ci95"][1] < 0 for record in records]),
        "own_nearer_from_step": _since(steps, [record["nearest"]["own_nearer"]["ci95"][0] > 0.5 for record in records]),
    }


def _stacked(values: list[Tensor]) -> npt.NDArray[np.float64]:
    """(checkpoints, one pair of twins, samples)."""
    return torch.stack(values)[:, None].double().numpy()


def _first(steps: list[int], flags: npt.NDArray[np.bool_]) -> int | None:
    return steps[int(flags.argmax())] if flags.any() else None


def _since(steps: list[int], flags: list[bool]) -> int | None:
    """The step from which on all flags are set."""
    return next((steps[i] for i in range(len(flags)) if all(flags[i:])), None)


def claims_of(records: list[dict[str, Any]], seen: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Each published claim beside what was seen."""
    strict, utility = seen["stops"]["strict"], seen["stops"]["utility"]
    lowest = next(record for record in records if record["step"] == utility["step"])
    nearer, memorised = lowest["nearest"], lowest["train"]["memorised"]
    order = [f"{step}" if step else "never" for step in seen["levels_half_learned_at_step"]]
    onset = f"lowest at step {strict['step']}, {_told(seen['d_pair_rise'])} higher" if strict["step"] else "without a significant minimum before,"
    since = seen["memorised_below_zero_from_step"]
    return {
        CLAIMS["order"]: {"seen": f"of what levels 1, 2, … add, half is learned by steps {', '.join(order)}"},
        CLAIMS["onset"]: {"seen": f"test loss lowest at step {utility['step']}; D_pair {onset} there"},
        CLAIMS["nearer"]: {"seen": f"with probability {_told(nearer['own_nearer'])}, own/other distance {nearer['ratio']:.3f}"},
        CLAIMS["memorised"]: {"seen": f"below zero from step {since} on; {_told(memorised)} at the lowest test loss"},
    }


def _told(value: dict[str, Any]) -> str:
    return f"{value['mean']:.3f} (95 % interval {value['ci95'][0]:.3f} to {value['ci95'][1]:.3f})"


def run_steps(folder: Path, settings: Settings) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trains and measures, yielding (step, result so far) after each checkpoint; what is yielded is on disk.

    Raises:
        RecipeError: the folder holds a run with other settings.
        DataError: the folder's checkpoint cannot be read.
    """
    started, data = time.process_time(), Data(settings)
    twins = [Twin(settings, data, number) for number in (0, 1)]
    file = make_folder(folder) / "checkpoint.pt"
    state = _stored(file, settings) or {
        "settings": asdict(settings),
        "step": 0,
        "records": [],
        "apart": [],
        "losses": [],
        "seconds": 0.0,
        "known": known(data),
    }
    if state["step"]:
        for twin, stored in zip(twins, state["twins"], strict=True):
            twin.load(stored)
        yield state["step"], _result(state)
    before = state["seconds"]
    for goal in [step for step in settings.steps_to_measure() if step > state["step"]]:
        for twin in twins:
            for step in range(state["step"] + 1, goal + 1):
                twin.train_step(step)
        record, apart, losses = measure(settings, data, twins)
        state |= {"step": goal, "records": [*state["records"], {"step": goal, **record}]}
        state |= {"apart": [*state["apart"], apart], "losses": [*state["losses"], losses]}
        state |= {"twins": [twin.state() for twin in twins], "seconds": before + time.process_time() - started}
        content = io.BytesIO()
        torch.save(state, content)
        write_atomic(file, content.getvalue())
        yield goal, _result(state)


def run(folder: Path, settings: Settings | None = None) -> dict[str, Any]:
    """The whole experiment behind a progress bar, going on where the folder's checkpoint stands; JSON."""
    chosen = settings or Settings()
    with tqdm(total=chosen.steps, desc="hierarchy") as bar:
        for step, last in run_steps(folder, chosen):
            bar.update(step - bar.n)
            result = last
    return result


def _stored(file: Path, settings: Settings) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, weights_only=True)
    except Exception as error:  # whatever torch says of a damaged file
        raise DataError(f"{file}: expected a checkpoint of this benchmark, but it cannot be read ({error}); remove it") from error
    if state["settings"] != asdict(settings):
        raise RecipeError(f"{file}: expected a run with the same settings, got another one's; remove it or choose another folder")
    return state


def _result(state: dict[str, Any]) -> dict[str, Any]:
    seen = summarise(state["records"], state["apart"], state["losses"])
    return {
        "settings": state["settings"],
        "known": state["known"],
        "checkpoints": state["records"],
        "seen": seen,
        "claims": claims_of(state["records"], seen),
        "cpu_seconds": state["seconds"],
    }


def main() -> int:
    """Runs it alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the checkpoint and the result")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    result = run(folder)
    write_json(folder / "result.json", result)
    for claim, told in result["claims"].items():
        print(f"published: {claim}; seen: {told['seen']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
