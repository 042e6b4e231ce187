"""A LightningModule and a LightningDataModule with MONAI's transforms, on breast ultrasound; one line brings in a bank.

The line stands in the Compose of the training images, before the random transforms.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from monai.data import CacheDataset, DataLoader
from monai.networks.nets import DenseNet
from monai.transforms import Compose, EnsureTyped, Identityd, RandFlipd, RandZoomd
from monai.utils import set_determinism
from pytorch_lightning.callbacks import ModelCheckpoint
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAUROC, MulticlassRecall

from monai_diverse import RandDiverseReplaced
from monai_diverse.data import load_images
from monai_diverse.sources.builtin import DATA


class BreastData(pl.LightningDataModule):
    """Train, val and test of an .npz file."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        train_transforms = Compose(
            [
                EnsureTyped("image"),
                Identityd("image") if args.real_only else RandDiverseReplaced("image", args.bank, prob=0.1),  # the one changed line
                RandFlipd("image", prob=0.5, spatial_axis=-1),
                RandZoomd("image", prob=0.5, min_zoom=0.9, max_zoom=1.1),
            ]
        )
        self.transforms = {"train": train_transforms, "val": EnsureTyped("image"), "test": EnsureTyped("image")}

    def dataset(self, split: str) -> CacheDataset:
        """Items of a split, with its transforms."""
        found = load_images(self.args.data, split)
        items = [{"image": image, "label": int(label)} for image, label in zip(found.images, found.labels, strict=True)]
        return CacheDataset(items[: self.args.limit if split == "train" else None], self.transforms[split], progress=False)

    def train_dataloader(self) -> DataLoader:
        """Shuffled."""
        return DataLoader(self.dataset("train"), batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """In order."""
        return DataLoader(self.dataset("val"), batch_size=64)

    def test_dataloader(self) -> DataLoader:
        """In order."""
        return DataLoader(self.dataset("test"), batch_size=64)


class Classifier(pl.LightningModule):
    """A small DenseNet; balanced accuracy is the mean recall of the classes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.net = DenseNet(spatial_dims=2, in_channels=channels, out_channels=classes, init_features=16, growth_rate=8, block_config=(2, 4, 2))
        self.loss = torch.nn.CrossEntropyLoss()
        metrics: Any = {"AUC": MulticlassAUROC(num_classes=classes), "balanced accuracy": MulticlassRecall(num_classes=classes, average="macro")}
        self.val_metrics = MetricCollection(metrics, prefix="validation ")
        self.test_metrics = MetricCollection(metrics, prefix="test ")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """The loss of a batch."""
        loss: torch.Tensor = self.loss(self.net(batch["image"]), batch["label"])
        self.log("train_loss", loss, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Counts a batch in."""
        self.val_metrics.update(self.net(batch["image"]).softmax(dim=1).as_tensor(), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Logs the scores."""
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Counts a batch in."""
        self.test_metrics.update(self.net(batch["image"]).softmax(dim=1).as_tensor(), batch["label"])

    def on_test_epoch_end(self) -> None:
        """Logs the scores."""
        self.log_dict(self.test_metrics.compute())
        self.test_metrics.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 1e-3)


def train(args: argparse.Namespace, folder: Path) -> None:
    """Fits, then scores the epoch with the best validation AUC."""
    data = BreastData(args)
    first = load_images(args.data, "train")
    model = Classifier(channels=first.images.shape[1], classes=len(first.class_counts))
    best = ModelCheckpoint(dirpath=folder, monitor="validation AUC", mode="max")
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        callbacks=[best],
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, data)
    model.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    (validated,) = trainer.validate(model, data, verbose=False)
    (tested,) = trainer.test(model, data, verbose=False)
    for name, scores in (("validation", validated), ("test", tested)):
        print("{} AUC {:.3f}, balanced accuracy {:.3f}".format(name, *(scores[f"{name} {key}"] for key in ("AUC", "balanced accuracy"))))


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
    with tempfile.TemporaryDirectory() as folder:
        train(args, Path(folder))


if __name__ == "__main__":
    main()
