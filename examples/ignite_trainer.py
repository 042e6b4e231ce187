"""A trainer of monai.engines with handlers, on breast ultrasound in a CacheDataset; one line brings in a bank.

The line stands after the deterministic transforms, which the cache keeps, and before the random ones.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.metrics import Recall
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ROCAUC, CheckpointLoader, CheckpointSaver, StatsHandler, ValidationHandler, from_engine
from monai.inferers import SimpleInferer
from monai.networks.nets import DenseNet
from monai.transforms import Activationsd, AsDiscreted, Compose, CopyItemsd, EnsureTyped, Identityd, RandFlipd, RandGaussianNoised, RandZoomd
from monai.utils import set_determinism

from monai_diverse import RandDiverseReplaced
from monai_diverse.data import load_images
from monai_diverse.sources.builtin import DATA


def items(data: Path, split: str, limit: int | None = None) -> list[dict[str, Any]]:
    """A split as MONAI's list of data."""
    found = load_images(data, split)
    return [{"image": image, "label": int(label)} for image, label in zip(found.images[:limit], found.labels, strict=False)]


def stacked(*keys: str) -> Callable[[Sequence[dict[str, Any]]], tuple[torch.Tensor, ...]]:
    """These keys of an engine's decollated output as batches, which ignite's own metrics take."""
    return lambda output: tuple(torch.stack([torch.as_tensor(value) for value in part]) for part in from_engine(list(keys))(output))


def evaluator_of(network: torch.nn.Module, loader: DataLoader, classes: int, handlers: Sequence[Any]) -> SupervisedEvaluator:
    """An evaluator with AUC and balanced accuracy, the mean recall of the classes."""
    postprocessing = Compose([Activationsd("pred", softmax=True), CopyItemsd("label", names="onehot"), AsDiscreted("onehot", to_onehot=classes)])
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=network,
        inferer=SimpleInferer(),
        postprocessing=postprocessing,
        key_val_metric={"AUC": ROCAUC(output_transform=from_engine(["pred", "onehot"]))},
        additional_metrics={"balanced accuracy": Recall(average="macro", output_transform=stacked("pred", "label"))},
        val_handlers=list(handlers),
    )


def train(args: argparse.Namespace, folder: Path) -> None:
    """Sets the engines up and runs them."""
    train_files, val_files, test_files = items(args.data, "train", args.limit), items(args.data, "val"), items(args.data, "test")
    classes, channels = max(item["label"] for item in train_files) + 1, train_files[0]["image"].shape[0]

    train_transforms = Compose(
        [
            EnsureTyped("image"),
            Identityd("image") if args.real_only else RandDiverseReplaced("image", args.bank, prob=0.1),  # the one changed line
            RandFlipd("image", prob=0.5, spatial_axis=-1),
            RandZoomd("image", prob=0.5, min_zoom=0.9, max_zoom=1.1),
            RandGaussianNoised("image", prob=0.2, std=0.02),
        ]
    )
    val_transforms = Compose([EnsureTyped("image")])
    train_loader = DataLoader(CacheDataset(train_files, train_transforms, progress=False), batch_size=32, shuffle=True)
    val_loader = DataLoader(CacheDataset(val_files, val_transforms, progress=False), batch_size=64)
    test_loader = DataLoader(CacheDataset(test_files, val_transforms, progress=False), batch_size=64)

    net = DenseNet(spatial_dims=2, in_channels=channels, out_channels=classes, init_features=16, growth_rate=8, block_config=(2, 4, 2))
    saver = CheckpointSaver(save_dir=str(folder), save_dict={"net": net}, save_key_metric=True, key_metric_filename="best.pt")
    validator = evaluator_of(net, val_loader, classes, [StatsHandler(name="train_log", output_transform=lambda _: None), saver])
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=args.epochs,
        train_data_loader=train_loader,
        network=net,
        optimizer=torch.optim.Adam(net.parameters(), 1e-3),
        loss_function=torch.nn.CrossEntropyLoss(),
        inferer=SimpleInferer(),
        train_handlers=[
            ValidationHandler(validator=validator, interval=1, epoch_level=True),
            StatsHandler(name="train_log", tag_name="train_loss", output_transform=from_engine(["loss"], first=True)),
        ],
    )
    trainer.run()

    for name, loader in (("validation", val_loader), ("test", test_loader)):
        best = evaluator_of(net, loader, classes, [CheckpointLoader(load_path=str(folder / "best.pt"), load_dict={"net": net})])
        best.run()
        print("{} AUC {:.3f}, balanced accuracy {:.3f}".format(name, *(best.state.metrics[key] for key in ("AUC", "balanced accuracy"))))


def main() -> None:
    """Trains and scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", default="bank", help="folder of the bank")
    parser.add_argument("--data", type=Path, default=DATA, help="2D images in MedMNIST's layout, .npz")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="train on the first so many images only")
    parser.add_argument("--real-only", action="store_true", help="without the changed line")
    args = parser.parse_args()
    set_determinism(seed=args.seed)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        train(args, Path(folder))


if __name__ == "__main__":
    main()
