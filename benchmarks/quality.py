"""How good are the shipped model's samples? Real images stand beside every figure.

python benchmarks/quality.py [--quick] [--json] [--card]

--card also writes the figures into the model's card. Test images are looked at here for the model's quality alone; nothing is tuned on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from prdc import compute_prdc
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_diverse import BuiltinSource
from monai_diverse.features import EfficientNetLite0
from monai_diverse.report.provenance import describe_environment
from monai_diverse.sources.builtin import ASSETS, builtin_data
from monai_diverse.storage import write_json
from monai_diverse.training import write_card

RESULTS = Path(__file__).parent / "results"
NOTE = (
    "Features of an ImageNet EfficientNet-Lite0. Real images to compare with: BreastMNIST's val and test splits (234), which the model never saw; "
    "{twins} of them have a near-duplicate (correlation > 0.95) in its official train split. "
    "Column 'real images': the model's training images in the model's place; for the nearest training image (mirrored ones count) "
    "calibration reals, and for recognition val and test. {count} samples, {steps} steps of DPM-Solver++ on Karras spacing, no guidance."
)


def kid(x: np.ndarray, y: np.ndarray, subsets: int, rng: np.random.Generator) -> tuple[float, float]:
    """Kernel inception distance x 1000: unbiased squared MMD with the cubic kernel (Binkowski et al. 2018); mean and deviation over subsets."""
    size, values = min(len(x), len(y), 200), []
    for _ in range(subsets):
        a, b = x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)]
        within = [
            (polynomial_kernel(v, degree=3, coef0=1).sum() - np.trace(polynomial_kernel(v, degree=3, coef0=1))) / (size * (size - 1)) for v in (a, b)
        ]
        values.append(sum(within) - 2 * polynomial_kernel(a, b, degree=3, coef0=1).mean())
    return 1e3 * float(np.mean(values)), 1e3 * float(np.std(values))


def nearest(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    return NearestNeighbors(n_neighbors=1).fit(points).kneighbors(queries)[0][:, 0]


def measure(count: int, subsets: int) -> dict[str, Any]:
    data, source, extract, rng = builtin_data(), BuiltinSource(), EfficientNetLite0(), np.random.default_rng(0)
    labels = rng.choice(data.generator_train.labels, count)
    samples = extract(source.sample(labels, 10**9 + np.arange(count)).numpy())
    train, calibration = extract(data.generator_train.images), extract(data.calibration.images)
    seen = np.concatenate([train, extract(np.ascontiguousarray(data.generator_train.images[..., ::-1]))])
    unseen = extract(np.concatenate([data.validation.images, data.test.images]))
    unseen_labels = np.concatenate([data.validation.labels, data.test.labels])
    size = min(count, len(train))
    quality = {who: compute_prdc(unseen, x[:size], nearest_k=5) for who, x in (("model", samples), ("real", train[rng.permutation(len(train))]))}
    distance = float(np.median(nearest(samples, seen))), float(np.median(nearest(calibration, seen)))
    classifier = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(
            Cs=np.logspace(-5, -1, 5),
            class_weight="balanced",
            max_iter=2000,
            scoring="balanced_accuracy",
            l1_ratios=(0,),
            use_legacy_attributes=False,
        ),
    )
    classifier.fit(train, data.generator_train.labels)
    accuracy = {
        who: [float((classifier.predict(x[y == c]) == c).mean()) for c in range(source.classes)]
        for who, x, y in (("model", samples, labels), ("real", unseen, unseen_labels))
    }
    known = np.concatenate([data.generator_train.group_ids, data.calibration.group_ids])
    return {
        "samples": count,
        "unseen_with_twins": int(np.isin(np.concatenate([data.validation.group_ids, data.test.group_ids]), known).sum()),
        "kid_x1000": {"model": kid(samples, unseen, subsets, rng), "real": kid(train, unseen, subsets, rng)},
        "precision": {who: float(found["precision"]) for who, found in quality.items()},
        "recall": {who: float(found["recall"]) for who, found in quality.items()},
        "density": {who: float(found["density"]) for who, found in quality.items()},
        "coverage": {who: float(found["coverage"]) for who, found in quality.items()},
        "nearest_training_distance": {"model": distance[0], "real": distance[1], "ratio": distance[0] / distance[1]},
        "accuracy_by_class": accuracy,
        "class_names": list(source.class_names),
    }


def for_card(found: dict[str, Any], steps: int) -> dict[str, Any]:
    def row(name: str, model: str, real: str, meaning: str) -> dict[str, str]:
        return {"name": name, "model": model, "real": real, "meaning": meaning}

    k, n, a = found["kid_x1000"], found["nearest_training_distance"], found["accuracy_by_class"]
    rows = [
        row(
            "KID x 1000",
            *(f"{k[w][0]:.2f} ± {k[w][1]:.2f}" for w in ("model", "real")),
            "distance to val and test, lower is better (mean ± standard deviation over random subsets of 200)",
        ),
        row("precision", *(f"{found['precision'][w]:.2f}" for w in ("model", "real")), "share within the real images' neighbourhoods (prdc, k = 5)"),
        row("recall", *(f"{found['recall'][w]:.2f}" for w in ("model", "real")), "share of real images within the samples' neighbourhoods"),
        row(
            "nearest training image",
            f"{n['model']:.2f}",
            f"{n['real']:.2f}",
            f"median distance; ratio {n['ratio']:.2f}: below 1, samples lie closer to the training images than new patients do",
        ),
        *(
            row(
                f"recognised as {name}",
                f"{a['model'][c]:.0%}",
                f"{a['real'][c]:.0%}",
                "by a classifier of real training images (logistic regression)",
            )
            for c, name in enumerate(found["class_names"])
        ),
    ]
    return {"note": NOTE.format(count=found["samples"], steps=steps, twins=found["unseen_with_twins"]), "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, meaning in (("--quick", "fewer samples"), ("--json", "one JSON object as the last line"), ("--card", "write the model's card")):
        parser.add_argument(flag, action="store_true", help=meaning)
    chosen = parser.parse_args()
    if chosen.quick and chosen.card:
        parser.error("a card takes the full measurement: leave out --quick")
    started = time.perf_counter()
    BuiltinSource()
    BuiltinSource()
    load = (time.perf_counter() - started) / 2
    found = measure(128 if chosen.quick else 1000, 10 if chosen.quick else 50)
    megabytes = sum(file.stat().st_size for file in (ASSETS / "unet").iterdir()) / 1e6
    bars = {
        "weights_mb": {"value": megabytes, "bar": 8.0, "holds": megabytes <= 8},
        "load_seconds": {"value": load, "bar": 2.0, "holds": load < 2},
    }
    outcome = {"bars": bars, "results": found, "environment": describe_environment()}
    if not chosen.quick:
        write_json(RESULTS / "quality.json", outcome)
    if chosen.card:
        write_json(ASSETS / "quality.json", for_card(found, 20))
        write_card(ASSETS)
    print(json.dumps(outcome) if chosen.json else json.dumps(found, indent=1))
    return 0 if all(bar["holds"] for bar in bars.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
