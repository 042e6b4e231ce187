"""Small real things that several tests share: images with structure, and a diffusion model in diffusers' layout."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# small arrays are slower on several threads than on one: BLAS reads this when it is loaded, and so do the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from monai_diverse.cluster import ray_cluster
from monai_diverse.data import LabelledImages
from monai_diverse.training import ModelCard, TrainConfig, prepare, train, write_card, write_model_json

LONGEST = (
    "test_demo",
    "test_notebooks",
    "test_twins",
    "test_examples",
    "test_bank_damage",
    "test_bank_fuzz",
    "test_cli",
    "test_tsne_hull",
    "test_study_conduct",
)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SIDE = 8
OUTLIER_FACTORS = ("mahalanobis_factor", "residual_factor", "leftover_factor", "intensity_factor", "spectrum_factor", "foreground_factor")


def blobs(count: int, seed: int, side: int = SIDE) -> LabelledImages:
    """Images of two classes, alike when mirrored: a bright blob above (0) or below (1), of random place and width."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    y, x = np.mgrid[:side, :side] / side
    centre = np.stack([rng.uniform(0.05, 0.35, count) + 0.5 * labels, rng.uniform(0.2, 0.8, count)], 1)
    width = rng.uniform(0.08, 0.25, count)
    squared = (y - centre[:, :1, None]) ** 2 + (x - centre[:, 1:, None]) ** 2
    images = np.exp(-squared / (2 * width[:, None, None] ** 2)) * 0.8 + rng.uniform(0, 0.1, (count, side, side))
    return LabelledImages(images=images[:, None].astype(np.float32), labels=labels)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process ends with one of them while another waits."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which lies beside the project's own checkout only")
    return SHARED


@pytest.fixture(scope="session")
def blob_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz in MedMNIST's layout."""
    file = tmp_path_factory.mktemp("blobs") / "blobs.npz"
    arrays = {}
    for split, count, seed in (("train", 150, 1), ("val", 40, 2), ("test", 40, 3)):
        data = blobs(count, seed)
        arrays[f"{split}_images"] = np.round(data.images[:, 0] * 255).astype(np.uint8)
        arrays[f"{split}_labels"] = data.labels[:, None].astype(np.uint8)
    np.savez(file, **arrays)
    return file


@pytest.fixture(scope="session")
def tiny_config() -> TrainConfig:
    return TrainConfig(
        steps=240,
        batch_size=32,
        channels=(16, 32),
        check_every=80,
        validation_draws=4,
        ema_decay=0.97,
        warmup=5,
        learning_rate=2e-3,
        twin_correlation=0.9999,
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, blob_file: Path, tiny_config: TrainConfig) -> Path:
    """A model trained for seconds by the package itself, once for all processes of pytest-xdist, whose folders lie in one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "CARD.md").exists():
            for _ in train(prepare(blob_file, tiny_config), folder, tiny_config):
                pass
            write_model_json(folder, ModelCard(name="tiny", classes=2, class_names=("top", "bottom"), licence="CC0", mirror=True))
            write_card(folder)
    return folder


def alive(number: int) -> bool:
    """Whether a process still runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def until(true: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


@pytest.fixture(scope="session")
def fresh_processes() -> BaseContext:
    """Starts processes that know only what they are given, as spawned ones do, but have PyTorch and MONAI imported, which takes spawned ones long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["monai.bundle", "monai.networks.nets", "monai_diverse.study.workers", "monai_diverse.transforms"])
    return context


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray cluster of this machine, one for the tests of a file: to start one takes long. Not for all files: others' tests fork."""
    pytest.importorskip("ray", reason="needs ray, the extra `ray`")
    with ray_cluster("local"):
        yield


@pytest.fixture
def recipe_file(tmp_path: Path, tiny_model: Path, blob_file: Path) -> Path:
    """A recipe whose every part is small; pixels are its features."""
    real = {"path": str(blob_file), "split_file": str(tiny_model / "split.json"), "twin_correlation": 0.9999}
    content = {
        "source": {"target": "monai_diverse.DiffusersSource", "arguments": {"folder": str(tiny_model), "steps": 5}},
        "reference": real | {"part": "generator_train"},
        "calibration": real | {"part": "calibration"},
        "generator_train": real | {"part": "generator_train", "mirrored": True},
        "screen": {
            "target": "monai_diverse.NoveltyScreen",
            "arguments": {
                "extractor": {"target": "monai_diverse.features.PixelFeatures"},
                "novelty": {"target": "monai_diverse.screening.NoveltyGate", "arguments": {"alpha": 0.9}},
                "relevance": {"target": "monai_diverse.screening.RelevanceGate", "arguments": {"level": 0.034}},
                "outlier": {"target": "monai_diverse.screening.OutlierGate", "arguments": {"textures": None, **dict.fromkeys(OUTLIER_FACTORS, 50.0)}},
            },
        },
        "max_evaluations": 5 * 96,
        "batch_size": 32,
        "seed": 3,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content))
    return file


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors are slower on several threads than on one."""
    torch.set_num_threads(1)
