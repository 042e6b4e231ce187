"""Summaries and pictures of audits that never ran, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

LIMITS = ["An audit is no privacy guarantee.", "Distance tests miss membership leakage (arXiv 2505.01524)."]


def scored(value: float, half: float | None) -> dict[str, Any]:
    return {"value": value, "ci": None if half is None else [value - half, value + half]}


def effect(value: float, half: float | None, chance: float = 0.001) -> dict[str, Any]:
    return scored(value, half) | {"p": chance}


def sampler(name: str, bias: float, half: float, difference: tuple[float, float] | None = None, **changes: Any) -> dict[str, Any]:
    authenticity = {"value": 0.61, "ci": [0.58, 0.64], "heldout": 0.7, "worse": "lower"}
    return {
        "name": name,
        "guidance": None,
        "scheduler": None,
        "steps": None,
        "guide": None,
        "images": 1000,
        "nfe": 20_000,
        "bias": effect(bias, half),
        "own_nearer": scored(0.5 + 2 * bias, 2 * half),
        "by_class": [
            {"label": label, "name": part, "images": 500, "bias": effect(bias + move, 2 * half), "own_nearer": scored(0.5 + bias, half)}
            for label, part, move in ((0, "malignant", 0.01), (1, "normal, benign", -0.01))
        ],
        "c_t": {"value": -1.2, "ci": None, "heldout": 0.3, "worse": "lower"},
        "authenticity": authenticity,
        "gap_ratio": {"value": 0.002, "ci": [0.0, 0.01], "heldout": 0.0, "worse": "higher"},
        "against_first": None if difference is None else {"bias": scored(*difference)},
    } | changes


def model_summary(bias: float = 0.05, half: float = 0.02, tolerance: float | None = 0.02, **changes: Any) -> dict[str, Any]:
    low, high = bias - half, bias + half
    limit = 0.02 if tolerance is None else tolerance
    word = "beyond" if bias > limit and low > 0 else "within" if high <= limit else "unresolved"
    return {
        "kind": "model",
        "version": "0.1.0",
        "seed": 3,
        "confidence": 0.95,
        "tolerance": tolerance,
        "seconds": 300.0,
        "environment": {"python": "3.11.2", "packages": {"torch": "2.13.0"}},
        "source": {"name": "a model", "fingerprint": "ab" * 32, "licence": "CC0"},
        "features": {"name": "pixels", "fingerprint": "cd" * 32},
        "sets": {
            "train": {"images": 425, "groups": 418, "by_class": [112, 313], "dropped": 12},
            "heldout": {"images": 172, "groups": 170, "by_class": [46, 126], "dropped": 15},
        },
        "class_names": ["malignant", "normal, benign"],
        "samplers": [
            sampler("own", bias, half),
            sampler("guidance 2", bias + 0.03, half, (0.03, 0.01), guidance=2.0),
            sampler("guidance 4", bias + 0.005, half, (0.005, 0.01), guidance=4.0),
            sampler("shield", bias - 0.03, half, (-0.03, 0.01), guide="Shield"),
        ],
        "control": {"images": 86, "bias": effect(0.004, 0.03, 0.4), "own_nearer": scored(0.503, 0.04)},
        "membership": {
            "draws": 8,
            "levels": [
                {
                    "noise_ratio": ratio,
                    "index": index,
                    "loss_train": 0.1,
                    "loss_heldout": 0.11,
                    "gap": scored(0.01 / (1 + ratio), 0.004),
                    "auc": scored(0.5 + 0.04 / (1 + ratio), 0.02),
                }
                for index, ratio in ((50, 0.1), (200, 0.4), (400, 1.0), (600, 2.5), (800, 8.0))
            ],
            "auc": scored(0.53, 0.02),
        },
        "pairs": [
            {
                "sampler": "own",
                "label": number % 2,
                "seed": 100 + number,
                "train_index": 7 * number,
                "distance": 0.2 + number / 100,
                "heldout_distance": 0.3,
            }
            for number in range(6)
        ],
        "verdict": {
            "word": word,
            "tolerance": limit,
            "sampler": "own",
            "bias": bias,
            "ci": [low, high],
            "p": 0.001,
            "text": f"The bias of own is {word} the tolerance.",
        },
        "limits": LIMITS,
    } | changes


def images(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def model_pictures(pairs: int = 6, shape: tuple[int, ...] = (1, 8, 8)) -> dict[str, Any]:
    return {name: images(pairs, *shape, seed=seed) for seed, name in enumerate(("samples", "train", "heldout"))}


def twin_summary(**changes: Any) -> dict[str, Any]:
    """A training whose bias grows from step 400 on, whose test loss is least at step 3200."""
    steps = [100, 200, 400, 800, 1600, 3200, 6400]
    bias = [0.0, 0.004, 0.01, 0.03, 0.06, 0.1, 0.16]
    loss = [0.3, 0.2, 0.16, 0.14, 0.125, 0.12, 0.128]
    d_pair = [0.09, 0.05, 0.028, 0.034, 0.042, 0.05, 0.065]
    return {
        "kind": "twins",
        "version": "0.1.0",
        "confidence": 0.95,
        "tolerance": 0.02,
        "recipe": {"steps": 6400, "batch_size": 64},
        "data": {"images": 600, "groups": 590, "per_twin": [240, 240, 240, 240, 240, 240], "test": 120},
        "pairs": 3,
        "checkpoints": [
            {
                "step": step,
                "d_pair": scored(d_pair[i], 0.003),
                "bias": scored(bias[i], 0.008),
                "own_nearer": scored(0.5 + 2 * bias[i], 0.02),
                "ratio": scored(float(np.exp(-bias[i])), 0.008),
                "loss": scored(loss[i], 0.004),
                "loss_train": loss[i] - bias[i] / 4,
                "gap_ratio": 0.0,
                "quality": 0.4 / (1 + i),
                "quality_ok": i > 1,
                "divergence": [{"noise_ratio": ratio, "value": (0.02 + bias[i]) * ratio / (1 + ratio)} for ratio in (0.1, 0.5, 2.0, 10.0)],
            }
            for i, step in enumerate(steps)
        ],
        "stops": {
            "strict": {"step": 400, "word": "resolved", "why": "the last significant minimum of D_pair", "quality_ok": True},
            "budget": {"step": 400, "word": "unresolved", "why": "the latest within 0.02 for sure", "quality_ok": True},
            "utility": {"step": 3200, "word": "resolved", "why": "the lowest test loss", "quality_ok": True},
        },
        "phase": [400, 3200],
        "limits": LIMITS,
    } | changes


def twin_pictures(rows: int = 3, shape: tuple[int, ...] = (1, 8, 8)) -> dict[str, Any]:
    return {"quadruplets": {step: images(rows, 4, *shape, seed=step) for step in (400, 3200)}}
