"""What does the sampler cost beside the network? Ratios within one run; times alone mean little on a busy machine.

python benchmarks/overhead.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from monai_diverse import BuiltinSource, DiffusersSource
from monai_diverse.report.provenance import describe_environment
from monai_diverse.sampling import Diverse
from monai_diverse.sampling.balls import Balls
from monai_diverse.sampling.guides import FittedTogether
from monai_diverse.sources import Precision
from monai_diverse.sources.builtin import builtin_data
from monai_diverse.storage import write_json

RESULTS = Path(__file__).parent / "results"
REFERENCES, STEPS = 5_000, 20


class Timed:
    """Adds up the time that a network's forward calls take."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.seconds, self._began = 0.0, 0.0
        network.register_forward_pre_hook(self._before, with_kwargs=True)
        network.register_forward_hook(self._after, with_kwargs=True)

    def _before(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _after(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began


def fitted(source: BuiltinSource) -> FittedTogether:
    """The default guide with 5,000 references, 200 accepted samples, and the noise that calibration finds for the shipped model."""
    data, rng = builtin_data(), np.random.default_rng(0)
    picks = rng.integers(len(data.generator_train), size=REFERENCES)
    noisy = data.generator_train.images[picks] + rng.normal(0, 0.05, (REFERENCES, *source.shape)).astype(np.float32)
    train, heldout = source.encode(torch.from_numpy(noisy.clip(0, 1))), source.encode(torch.from_numpy(data.calibration.images))
    labels = torch.from_numpy(data.generator_train.labels[picks])
    guide = Diverse().fit(train, labels, heldout, torch.from_numpy(data.calibration.labels)).calibrated(source.renoise)
    return guide.given(heldout.repeat(2, 1, 1, 1)[:200], torch.from_numpy(np.tile(data.calibration.labels, 2)[:200]))


def overheads(source: BuiltinSource, timed: Timed, guide: FittedTogether, batch: int, repeats: int) -> dict[str, Any]:
    """What sampling takes beyond the bare network, as a share of it, in each repeat: without a guide and with the default one.

    The bare network is timed in the same repeat, on whole batches; so the share holds what it costs that branches leave batches in two parts.
    """
    plain, guided, labels = [], [], np.arange(batch) % source.classes
    for repeat in range(repeats + 1):
        seeds = range(repeat * batch, (repeat + 1) * batch)
        timed.seconds, before = 0.0, source.nfe
        whole = elapsed(lambda s=seeds: source.sample(labels, s))
        bare = timed.seconds / (source.nfe - before)
        plain.append(whole / timed.seconds - 1)
        before = source.nfe
        both = elapsed(lambda s=seeds: source.sample(labels, s, guide=guide))
        guided.append(both / (bare * (source.nfe - before)) - 1)
    return {"without_guide": described(plain[1:]), "default_guide": described(guided[1:])}  # the first one warms up


def search(network_seconds: float, repeats: int) -> dict[str, Any]:
    """One push of 16 images against so many references of one class, over one evaluation of the network for 16 images."""
    found, rng = {}, np.random.default_rng(0)
    data = builtin_data().generator_train.images[:, 0].reshape(-1, 14, 2, 14, 2).mean((2, 4)).reshape(-1, 196)
    for count in (5_000, 50_000):
        noise = rng.normal(0, 0.05, (count, 196)).astype(np.float32)
        centres = torch.from_numpy(data[rng.integers(len(data), size=count)] + noise)
        for name, index_from in (("exact", None), ("index", 1)):
            balls = Balls(centres=centres, radii=torch.full((count,), 1.0), labels=torch.zeros(count).long(), index_from=index_from)
            points, labels = centres[:16] + 0.05, torch.zeros(16).long()
            balls.push(points, labels)  # builds the index
            found[f"{name}_{count}"] = described(
                [elapsed(lambda b=balls, p=points, c=labels: b.push(p, c)) / network_seconds for _ in range(repeats)]
            )
    return found


def against_diffusers(folder: Path, batch: int, repeats: int) -> list[float]:
    """Our time over that of diffusers' DDIMPipeline for the same network, batch and steps, in turn."""
    unet = UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 64, 128), norm_num_groups=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    pipeline = DDIMPipeline(unet, DDIMScheduler(clip_sample=True))
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    source = DiffusersSource(folder, scheduler="DDIMScheduler", steps=STEPS, precision=Precision())

    def ours() -> object:
        return source.sample(np.zeros(batch, dtype=np.int64), range(batch))

    def theirs() -> object:
        return pipeline(batch_size=batch, num_inference_steps=STEPS, output_type="np")

    return [elapsed(ours) / elapsed(theirs) for _ in range(repeats + 1)][1:]


def elapsed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def described(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": min(values), "highest": max(values), "repeats": len(values)}


def measure(repeats: int, folder: Path) -> dict[str, Any]:
    source = BuiltinSource(steps=STEPS)
    timed, guide = Timed(source._denoiser.network.args[0]), fitted(source)
    results: dict[str, Any] = {"references": REFERENCES, "steps": STEPS, "calibrated": guide.notes()}
    for batch in (16, 64):
        results[f"batch_{batch}"] = overheads(source, timed, guide, batch, repeats)
    timed.seconds = 0.0
    source.sample(np.zeros(16, dtype=np.int64), range(16))
    results["push_over_one_evaluation"] = search(timed.seconds / STEPS, 3)
    return results | {"time_over_diffusers_pipeline": described(against_diffusers(folder, 16, repeats))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(2 if chosen.quick else 4, Path(folder))
    checks = {f"overhead_batch_{b}": (found[f"batch_{b}"]["default_guide"]["median"], 0.05) for b in (16, 64)}
    checks["time_over_diffusers_pipeline"] = (found["time_over_diffusers_pipeline"]["median"], 1.0)
    bars = {name: {"value": value, "bar": bar, "holds": value <= bar} for name, (value, bar) in checks.items()}
    outcome = {"bars": bars, "results": found, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "overhead.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps(found | {"bars": bars}, indent=1))
    return 0 if all(bar["holds"] for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
