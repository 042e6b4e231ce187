"""Does the shipped model lean further towards its training images than earlier steps of the same training did?

python benchmarks/shipped_stop.py --snapshots FOLDER [--images N] [--card] [--json]

FOLDER is what the command in the model's card makes, with `--snapshot-every 250` added; the shipped weights are those of its step 2,500. All are
audited on the same labels and seeds, so that a difference in bias is measured image by image, which a single audit cannot do. Writes
results/shipped_stop.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from monai_diverse import BuiltinSource, DiffusersSource
from monai_diverse.audit.measures import Bench, Measured
from monai_diverse.audit.samplers import Draws, Sampler
from monai_diverse.audit.sets import AuditSets
from monai_diverse.cli.audit_inputs import find_sets
from monai_diverse.data import LabelledImages
from monai_diverse.features import PixelFeatures
from monai_diverse.report.provenance import describe_environment
from monai_diverse.sources import SampleSource
from monai_diverse.sources.builtin import ASSETS
from monai_diverse.storage import write_json
from monai_diverse.training import write_card
from monai_diverse.training.card import STEPS

RESULTS = Path(__file__).parent / "results"
SHIPPED = 2500
"""The step whose weights are shipped."""
TOLERANCE = 0.02


def measured(bench: Bench, source: SampleSource, images: int) -> Measured:
    """A model's samples, held against the real images."""
    draws, sampler = Draws.of(source, bench.sets.train.labels, images, bench.seed), Sampler(name="own")
    parts = list(draws.run(sampler.applied(source), sampler, bench.sets))
    return bench.measure(LabelledImages(images=np.concatenate(parts), labels=draws.labels))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--snapshots", type=Path, required=True, help="folder of the training that was repeated with --snapshot-every 250")
    parser.add_argument("--images", type=int, default=500, help="samples of each step")
    parser.add_argument("--card", action="store_true", help="write the figures into the model's card")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    started = time.perf_counter()
    given = find_sets("builtin", None, train=[], heldout=[], groups=None, twin_correlation=None)
    sets = AuditSets.of(given.train, given.heldout, given.groups, given.twin_correlation, mirrored=True)
    bench = Bench(sets=sets, features=PixelFeatures(), mirrored=True, permutations=999, seed=0)
    steps = sorted(int(folder.name) for folder in (chosen.snapshots / "snapshots").iterdir() if int(folder.name) % 500 == 0)
    models: dict[int, SampleSource] = {step: DiffusersSource(chosen.snapshots / "snapshots" / f"{step:06d}") for step in steps if step < SHIPPED}
    models[SHIPPED] = BuiltinSource()
    found = {step: measured(bench, source, chosen.images) for step, source in tqdm(models.items(), desc="steps")}
    shipped = found[SHIPPED].leaning
    rows: list[dict[str, Any]] = [
        {"step": step, "bias": own.leaning.effects()["bias"].as_json(), "last_minus_this": shipped.minus(own.leaning).as_json()}
        for step, own in found.items()
    ]
    result = {"images": chosen.images, "tolerance": TOLERANCE, "steps": rows, "seconds": time.perf_counter() - started}
    result |= {"environment": describe_environment()}
    write_json(RESULTS / "shipped_stop.json", result)
    if chosen.card:
        write_json(ASSETS / STEPS, {name: result[name] for name in ("images", "tolerance", "steps")})
        write_card(ASSETS)
    print(json.dumps(result, indent=None if chosen.json else 1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
