"""Which scheduler reaches the quality of 250 steps of DDPM in at most 20 evaluations? By kernel inception distance, on the shipped model.

python benchmarks/schedulers.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from quality import kid
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from monai_diverse import BuiltinSource
from monai_diverse.features import EfficientNetLite0
from monai_diverse.report.provenance import describe_environment
from monai_diverse.sources import Precision
from monai_diverse.sources.builtin import builtin_data
from monai_diverse.storage import write_json

RESULTS = Path(__file__).parent / "results"
REFERENCE = ("DDPMScheduler", 250, False)
CANDIDATES = (
    ("DPMSolverMultistepScheduler", 20, True),
    ("DPMSolverMultistepScheduler", 20, False),
    ("UniPCMultistepScheduler", 20, True),
    ("UniPCMultistepScheduler", 20, False),
    ("HeunDiscreteScheduler", 10, True),
    ("EulerDiscreteScheduler", 20, True),
    ("DDIMScheduler", 20, False),
    ("DDPMScheduler", 20, False),
    ("DPMSolverMultistepScheduler", 12, True),
    ("UniPCMultistepScheduler", 12, True),
)


def detail(images: np.ndarray) -> float:
    """Median energy above a Gaussian blur of one pixel: what too few steps smooth away."""
    return float(np.median([np.mean((image - gaussian_filter(image, 1)) ** 2) for image in images[:, 0]]))


def measure(count: int, of_reference: int, subsets: int) -> dict[str, Any]:
    data, extract = builtin_data(), EfficientNetLite0()
    real = data.train.images
    of_real = extract(real)
    labels = np.random.default_rng(0).choice(data.generator_train.labels, max(count, of_reference))
    features: dict[str, np.ndarray] = {}
    results: dict[str, Any] = {"real": {"detail": detail(real)}}
    for scheduler, steps, karras in tqdm((REFERENCE, *CANDIDATES), desc="schedulers"):
        size = of_reference if (scheduler, steps, karras) == REFERENCE else count
        source = BuiltinSource(scheduler=scheduler, steps=steps, karras=karras, precision=Precision(dtype="bfloat16", compile=True))
        images = source.sample(labels[:size], 2**40 + np.arange(size)).numpy()
        name = f"{scheduler}-{steps}{'-karras' if karras else ''}"
        features[name], rng = extract(images), np.random.default_rng(1)
        to_reference = kid(features[name], next(iter(features.values())), subsets, rng) if len(features) > 1 else None
        results[name] = {
            "evaluations": source.nfe // size, "samples": size, "detail": detail(images),
            "kid_x1000_to_real": kid(features[name], of_real, subsets, rng), "kid_x1000_to_ddpm_250": to_reference,
        }  # fmt: skip
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    found = measure(64, 32, 5) if chosen.quick else measure(512, 256, 50)
    default, reference = found["DPMSolverMultistepScheduler-20-karras"], found["DDPMScheduler-250"]
    value, bar = default["kid_x1000_to_real"][0], reference["kid_x1000_to_real"][0]
    bars = {"default_kid_to_real": {"value": value, "bar": bar, "holds": value <= bar}}
    outcome = {"bars": bars, "results": found, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "schedulers.json", outcome)
    print(json.dumps(outcome) if chosen.json else json.dumps(found, indent=1))
    return 0 if all(check["holds"] for check in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
