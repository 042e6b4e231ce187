"""MONAI's densenet_training_dict (dictionaries, a Compose, a DenseNet121) on breast ultrasound; one line brings in a bank.

The line stands where images are of the bank's size and not yet augmented at random. Its `sample_transform` repeats what the real images have been
through by then: here the grey levels were stretched image by image.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import DataLoader, decollate_batch
from monai.metrics import ROCAUCMetric
from monai.transforms import (
    Activations,
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    Identityd,
    LoadImaged,
    RandRotate90d,
    Resized,
    ScaleIntensity,
    ScaleIntensityd,
)
from monai.utils import set_determinism
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from monai_diverse import RandDiverseReplaced
from monai_diverse.data import load_images
from monai_diverse.sources.builtin import DATA


def write_pngs(data: Path, split: str, folder: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Writes a split as pictures, as a hospital's export might lie there, and returns the list of data."""
    found = load_images(data, split)
    files = []
    for i, (image, label) in enumerate(zip(found.images[:limit], found.labels, strict=False)):
        file = folder / f"{split}-{i:05d}.png"
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(file)
        files.append({"img": file, "label": label})
    return files


def evaluate(model: torch.nn.Module, loader: DataLoader, classes: int) -> tuple[float, float]:
    """AUC and balanced accuracy."""
    post_pred = Compose([Activations(softmax=True)])
    post_label = Compose([AsDiscrete(to_onehot=classes)])
    auc_metric = ROCAUCMetric()
    y_pred = torch.tensor([], dtype=torch.float32)
    y = torch.tensor([], dtype=torch.long)
    model.eval()
    with torch.no_grad():
        for batch_data in loader:
            y_pred = torch.cat([y_pred, model(batch_data["img"])], dim=0)
            y = torch.cat([y, batch_data["label"]], dim=0)
    y_onehot = [post_label(i) for i in decollate_batch(y, detach=False)]
    y_pred_act = [post_pred(i) for i in decollate_batch(y_pred)]
    auc_metric(y_pred_act, y_onehot)
    return auc_metric.aggregate(), balanced_accuracy_score(y, y_pred.argmax(dim=1))


def train(args: argparse.Namespace, folder: Path) -> None:
    """The tutorial, from the list of data on."""
    train_files = write_pngs(args.data, "train", folder, args.limit)
    val_files, test_files = write_pngs(args.data, "val", folder), write_pngs(args.data, "test", folder)
    classes = int(max(file["label"] for file in train_files)) + 1

    # Define transforms for image; rows first, as load_images read the pictures for the bank: MONAI's default is columns first
    train_transforms = Compose(
        [
            LoadImaged("img", reader="PILReader", reverse_indexing=False),
            EnsureChannelFirstd("img"),
            ScaleIntensityd("img"),
            Identityd("img") if args.real_only else RandDiverseReplaced("img", args.bank, sample_transform=ScaleIntensity()),  # the one changed line
            Resized("img", spatial_size=(64, 64)),
            RandRotate90d("img", prob=0.8, spatial_axes=(0, 1)),
        ]
    )
    val_transforms = Compose(
        [
            LoadImaged("img", reader="PILReader", reverse_indexing=False),
            EnsureChannelFirstd("img"),
            ScaleIntensityd("img"),
            Resized("img", spatial_size=(64, 64)),
        ]
    )

    train_ds = monai.data.Dataset(data=train_files, transform=train_transforms)
    train_loader = DataLoader(train_ds, batch_size=32, shuffle=True)
    val_loader = DataLoader(monai.data.Dataset(data=val_files, transform=val_transforms), batch_size=64)
    test_loader = DataLoader(monai.data.Dataset(data=test_files, transform=val_transforms), batch_size=64)

    # A narrow DenseNet121, CrossEntropyLoss and Adam optimizer
    model = monai.networks.nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=classes, init_features=16, growth_rate=8)
    loss_function = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    # start a typical PyTorch training
    best_file = folder / "best_metric_model.pth"
    best_metric = (-1.0, -1.0)
    for epoch in range(args.epochs):
        model.train()
        epoch_loss = 0.0
        for batch_data in train_loader:
            inputs, labels = batch_data["img"], batch_data["label"]
            optimizer.zero_grad()
            loss = loss_function(model(inputs), labels)
            loss.backward()
            optimizer.step()
            epoch_loss += loss.item()
        metric = evaluate(model, val_loader, classes)
        print(f"epoch {epoch + 1}/{args.epochs}: average loss {epoch_loss / len(train_loader):.4f}, validation AUC {metric[0]:.3f}")
        if metric > best_metric:
            best_metric = metric
            torch.save(model.state_dict(), best_file)

    model.load_state_dict(torch.load(best_file, weights_only=True))
    print("validation AUC {:.3f}, balanced accuracy {:.3f} (its best epoch)".format(*best_metric))
    print("test AUC {:.3f}, balanced accuracy {:.3f}".format(*evaluate(model, test_loader, classes)))


def main() -> None:
    """Trains and scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", default="bank", help="folder of the bank")
    parser.add_argument("--data", type=Path, default=DATA, help="grey 2D images in MedMNIST's layout, .npz")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="train on the first so many images only")
    parser.add_argument("--real-only", action="store_true", help="without the changed line")
    args = parser.parse_args()
    set_determinism(seed=args.seed)
    with tempfile.TemporaryDirectory() as folder:
        train(args, Path(folder))


if __name__ == "__main__":
    main()
