"""What does it cost to judge more candidates, and to judge one when more samples were accepted before?

python benchmarks/scale_candidates.py [--quick] [--json]

The screen of `monai-diverse demo`, on the shipped model's images. Candidates are those images with noise; so are the accepted samples, as vectors.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from neighbours import elapsed
from scale_references import exponent

from monai_diverse import NoveltyScreen
from monai_diverse.report.provenance import describe_environment
from monai_diverse.screening import AcceptedViews, Views
from monai_diverse.sources.builtin import builtin_data
from monai_diverse.storage import write_json

RESULTS = Path(__file__).parent / "results"
CANDIDATES, QUICK_CANDIDATES = (64, 256, 1024, 4096), (64, 256)
ACCEPTED, QUICK_ACCEPTED = (100, 1_000, 10_000, 100_000), (100, 1_000)
BATCH, BLOCK = 64, 5_000
LINEAR = 1.1
"""Largest exponent that counts as proportional."""


def candidates(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Real images with noise, and their labels."""
    real = builtin_data().generator_train
    chosen = rng.integers(len(real), size=count)
    noisy = real.images[chosen] + 0.05 * rng.standard_normal((count, *real.images.shape[1:]), np.float32)
    return np.clip(noisy, 0, 1), real.labels[chosen]


def grown(like: Views, count: int, rng: np.random.Generator) -> AcceptedViews:
    """So many accepted samples, as vectors around those of `like`."""
    accepted = AcceptedViews()
    for start in range(0, count, BLOCK):
        part = like[rng.integers(len(like), size=min(BLOCK, count - start))]
        near = {name: getattr(part, name) + 0.3 * rng.standard_normal(getattr(part, name).shape, np.float32) for name in ("features", "pixels")}
        accepted = accepted.plus(Views(images=part.images, labels=part.labels, **near))
    return accepted


def judged(quick: bool) -> dict[str, Any]:
    """Seconds by number of candidates and of accepted samples, and fitted exponents."""
    rng, data = np.random.default_rng(0), builtin_data()
    screen = NoveltyScreen().fit(data.generator_train, data.calibration, data.generator_train)
    found: dict[str, Any] = {"seconds_of_candidates": {}, "seconds_a_candidate_after": {}}
    for count in QUICK_CANDIDATES if quick else CANDIDATES:
        images, labels = candidates(count, rng)
        found["seconds_of_candidates"][count] = elapsed(lambda images=images, labels=labels: screen.assess(screen.embed(images, labels)))
    views = screen.embed(*candidates(BATCH, rng))
    assessment = screen.assess(views)
    for count in QUICK_ACCEPTED if quick else ACCEPTED:
        accepted = grown(views, count, rng)
        screen.decide(views, assessment, accepted)  # the gains of the first accepted samples are found once
        seconds = min(elapsed(lambda accepted=accepted: screen.decide(views, assessment, accepted)) for _ in range(3))
        found["seconds_a_candidate_after"][count] = seconds / BATCH
    found["exponents"] = {name: exponent(list(by), list(by.values())) for name, by in found.items()}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer; nothing is written to results")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    chosen = parser.parse_args()
    found = judged(chosen.quick)
    bars = {f"exponent of {name}": {"value": value, "bar": LINEAR, "holds": value <= LINEAR} for name, value in found["exponents"].items()}
    result = {"bars": bars, "results": found, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "scale_candidates.json", result)
    print(json.dumps(result) if chosen.json else json.dumps(found | {"bars": bars}, indent=1))
    return 0 if all(bar["holds"] for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
