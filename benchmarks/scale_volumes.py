"""Memory and time of one sample of MAISI's size: counted, measured where it fits, and extrapolated from that.

python benchmarks/scale_volumes.py [--quick] [--json]

The networks are MAISI's (its published configuration, weights at random: they change neither time nor memory). Floating-point operations are
counted on the real sizes without computing anything; seconds and peak memory of one network evaluation and of one decoded window are measured in a
process of its own, for the sizes that this machine can hold. Writes results/scale_volumes.json and the table in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.data.utils import dense_patch_slices
from neighbours import peak_gib
from scale_references import put_between
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from monai_diverse.report.provenance import describe_environment
from monai_diverse.storage import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MARKS = ("<!-- volumes: benchmarks/scale_volumes.py -->", "<!-- end of volumes -->")
VOLUMES = ((64, 64, 64), (128, 128, 128), (256, 256, 256), (512, 512, 128), (512, 512, 512), (512, 512, 768))
SHRINK, WINDOW, OVERLAP = 4, 80, 0.4
"""Voxels of the image along a latent's side; latents in a window and the share by which windows overlap, as in the recipe for MAISI's bundles."""
STEPS = (30, 1000)
"""Network evaluations of MAISI's rectified flow and of its DDPM."""
MEASURED = {"network": (16, 32, 64), "decoder": (8, 16, 24)}
QUICK = {"network": (8, 16), "decoder": (4, 8)}
ASSUMED = 100e12
"""Operations a second that a large GPU is assumed to sustain in half precision."""


def network() -> nn.Module:
    return DiffusionModelUNetMaisi(
        spatial_dims=3,
        in_channels=4,
        out_channels=4,
        num_channels=[64, 128, 256, 512],
        attention_levels=[False, False, True, True],
        num_head_channels=[0, 0, 32, 32],
        num_res_blocks=2,
        include_top_region_index_input=True,
        include_bottom_region_index_input=True,
        include_spacing_input=True,
    )


def decoder() -> nn.Module:
    return AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        latent_channels=4,
        num_channels=[64, 128, 256],
        num_res_blocks=[2, 2, 2],
        norm_num_groups=32,
        norm_eps=1e-6,
        attention_levels=[False, False, False],
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        num_splits=1,
    )


def run(part: str, module: nn.Module, shape: tuple[int, ...], device: str) -> None:
    """One evaluation of the network, or one decoded window."""
    latents = torch.zeros(1, 4, *shape, device=device)
    with torch.no_grad():
        if part == "decoder":
            module.decode(latents)
            return
        region, spacing = torch.zeros(1, 4, device=device), torch.ones(1, 3, device=device)
        module(
            latents,
            timesteps=torch.zeros(1, device=device),
            top_region_index_tensor=region,
            bottom_region_index_tensor=region,
            spacing_tensor=spacing,
        )


def build(part: str, device: str) -> nn.Module:
    with torch.device(device):
        return (network() if part == "network" else decoder()).eval()


def operations(part: str, shape: tuple[int, ...]) -> int:
    """Floating-point operations, counted on tensors without content."""
    module = build(part, "meta")
    with FlopCounterMode(display=False) as counter:
        run(part, module, shape, "meta")
    return int(counter.get_total_flops())


def one_case(part: str, side: int) -> dict[str, Any]:
    """One cube of latents, in this process."""
    module = build(part, "cpu")
    before = peak_gib()
    began = time.perf_counter()
    run(part, module, (side,) * 3, "cpu")
    seconds = time.perf_counter() - began
    return {"part": part, "side": side, "seconds": seconds, "peak_gib": peak_gib(), "idle_gib": before, "operations": operations(part, (side,) * 3)}


def in_its_own_process(part: str, side: int) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--case", part, str(side)], stdout=subprocess.PIPE, text=True, check=True)
    case: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(case), file=sys.stderr, flush=True)
    return case


def windows(latents: tuple[int, ...]) -> int:
    """Windows in which such latents are decoded."""
    window = [min(WINDOW, side) for side in latents]
    step = [side if side == own else int(side * (1 - OVERLAP)) for side, own in zip(window, latents, strict=True)]
    return len(dense_patch_slices(latents, window, step))


def line(part_cases: list[dict[str, Any]]) -> tuple[float, float]:
    """GiB at no voxel, and GiB a latent, by least squares of peak memory over latents."""
    slope, start = np.polyfit([case["side"] ** 3 for case in part_cases], [case["peak_gib"] for case in part_cases], 1)
    return float(start), float(slope)


def volumes(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a sample of each size takes."""
    parts = {part: [case for case in cases if case["part"] == part] for part in ("network", "decoder")}
    rate = {part: found[-1]["operations"] / found[-1]["seconds"] for part, found in parts.items()}
    memory = {part: line(found) for part, found in parts.items()}
    rows = []
    for volume in VOLUMES:
        latents = tuple(side // SHRINK for side in volume)
        window = tuple(min(WINDOW, side) for side in latents)
        once, decoded = operations("network", latents), windows(latents) * operations("decoder", window)
        gib = {"network": memory["network"][0] + memory["network"][1] * np.prod(latents)}
        gib["decoder"] = memory["decoder"][0] + memory["decoder"][1] * np.prod(window)
        rows.append(
            {
                "volume": list(volume),
                "windows": windows(latents),
                "teraflop_an_evaluation": once / 1e12,
                "teraflop_decoding": decoded / 1e12,
                "network_measured": latents in {(case["side"],) * 3 for case in parts["network"]},
                "gib": gib,
                "seconds": {str(n): n * once / rate["network"] + decoded / rate["decoder"] for n in STEPS},
                "seconds_at_assumed_rate": {str(n): (n * once + decoded) / ASSUMED for n in STEPS},
                "stored_mib": {"uint8": float(np.prod(volume)) / 2**20, "float16": float(np.prod(volume)) / 2**19},
            }
        )
    return rows


def duration(seconds: float) -> str:
    """In the unit that suits."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| volume | windows | TFLOP an evaluation | TFLOP decoding | GiB, network | GiB, one window "
        "| 30 evaluations, these cores | 1,000, these cores | 30 at 100 TFLOP/s | 1,000 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        mark = "" if row["network_measured"] else " *"
        here = [f"{duration(row['seconds'][str(n)])} *" for n in STEPS]
        there = [f"{duration(row['seconds_at_assumed_rate'][str(n)])} *" for n in STEPS]
        size = " x ".join(map(str, row["volume"]))
        lines.append(
            f"| {size} | {row['windows']} | {row['teraflop_an_evaluation']:.2f} | {row['teraflop_decoding']:.1f} | {row['gib']['network']:.1f}{mark} "
            f"| {row['gib']['decoder']:.1f} * | {' | '.join(here)} | {' | '.join(there)} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small latents; nothing is written")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        print(json.dumps(one_case(chosen.case[0], int(chosen.case[1]))))
        return 0
    cases = [in_its_own_process(part, side) for part, sides in (QUICK if chosen.quick else MEASURED).items() for side in sides]
    rows = volumes(cases)
    result = {"measured": cases, "volumes": rows, "assumed_operations_a_second": ASSUMED, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "scale_volumes.json", result)
        put_between(MARKS, table(rows))
    print(json.dumps(result) if chosen.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
