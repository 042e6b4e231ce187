"""MONAI's MedNIST tutorial (lists of files and labels, array transforms, tuples) on breast ultrasound; one line brings in a bank.

The line stands between the deterministic and the random transforms, so that random augmentation acts on real and synthetic images alike. Its
`sample_transform` repeats what the real images have been through by then: here the grey levels were stretched image by image.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, decollate_batch
from monai.metrics import ROCAUCMetric
from monai.networks.nets import DenseNet
from monai.transforms import Activations, AsDiscrete, Compose, EnsureChannelFirst, LoadImage, RandFlip, RandRotate, RandZoom, ScaleIntensity
from monai.utils import set_determinism
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from torch.utils.data import Dataset

from monai_diverse import DiverseDiffusionDataset
from monai_diverse.data import load_images
from monai_diverse.sources.builtin import DATA


class MedNISTDataset(Dataset[Any]):
    """Image files and labels as (image, label)."""

    def __init__(self, image_files: list[Path], labels: list[int], transforms: Compose) -> None:
        self.image_files = image_files
        self.labels = labels
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.image_files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transforms(self.image_files[index]), self.labels[index]


class AugmentedDataset(Dataset[Any]):
    """Another dataset's (image, label) with random transforms on the image."""

    def __init__(self, dataset: Any, transforms: Compose) -> None:
        self.dataset = dataset
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.dataset[index]
        return self.transforms(image), label


def write_pngs(data: Path, split: str, folder: Path, limit: int | None = None) -> tuple[list[Path], list[int]]:
    """Writes a split as pictures, as a hospital's export might lie there, and returns their paths and labels."""
    found = load_images(data, split)
    files = [folder / f"{split}-{i:05d}.png" for i in range(len(found))][:limit]
    for file, image in zip(files, found.images, strict=False):
        Image.fromarray(np.round(image[0] * 255).astype(np.uint8)).save(file)
    return files, found.labels.tolist()[:limit]


def evaluate(model: torch.nn.Module, loader: DataLoader, classes: int) -> tuple[float, float]:
    """AUC and balanced accuracy."""
    y_pred_trans = Compose([Activations(softmax=True)])
    y_trans = Compose([AsDiscrete(to_onehot=classes)])
    auc_metric = ROCAUCMetric()
    model.eval()
    with torch.no_grad():
        predicted, labels = zip(*((model(images), labels) for images, labels in loader), strict=True)
    y_pred, y = torch.cat(predicted), torch.cat(labels)
    auc_metric([y_pred_trans(i) for i in decollate_batch(y_pred)], [y_trans(i) for i in decollate_batch(y, detach=False)])
    return auc_metric.aggregate(), balanced_accuracy_score(y, y_pred.argmax(dim=1))


def train(args: argparse.Namespace, folder: Path) -> None:
    """The tutorial, from the file lists on."""
    train_x, train_y = write_pngs(args.data, "train", folder, args.limit)
    val_x, val_y = write_pngs(args.data, "val", folder)
    test_x, test_y = write_pngs(args.data, "test", folder)
    num_class = max(train_y) + 1

    # Rows first, as load_images read the pictures for the bank; MONAI's default is columns first.
    load_transforms = Compose([LoadImage(reader="PILReader", image_only=True, reverse_indexing=False), EnsureChannelFirst(), ScaleIntensity()])
    train_transforms = Compose(
        [RandRotate(range_x=np.pi / 12, prob=0.5, keep_size=True), RandFlip(spatial_axis=1, prob=0.5), RandZoom(min_zoom=0.9, max_zoom=1.1, prob=0.5)]
    )

    train_ds: Any = MedNISTDataset(train_x, train_y, load_transforms)
    train_ds = train_ds if args.real_only else DiverseDiffusionDataset(train_ds, args.bank, sample_transform=ScaleIntensity())  # the one changed line
    train_ds = AugmentedDataset(train_ds, train_transforms)
    train_loader = DataLoader(train_ds, batch_size=32, shuffle=True)
    val_loader = DataLoader(MedNISTDataset(val_x, val_y, load_transforms), batch_size=64)
    test_loader = DataLoader(MedNISTDataset(test_x, test_y, load_transforms), batch_size=64)

    model = DenseNet(spatial_dims=2, in_channels=1, out_channels=num_class, init_features=16, growth_rate=8, block_config=(2, 4, 2))
    loss_function = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    best_file = folder / "best_metric_model.pth"
    best_metric = (-1.0, -1.0)
    for epoch in range(args.epochs):
        model.train()
        epoch_loss = 0.0
        for inputs, labels in train_loader:
            optimizer.zero_grad()
            loss = loss_function(model(inputs), labels)
            loss.backward()
            optimizer.step()
            epoch_loss += loss.item()
        metric = evaluate(model, val_loader, num_class)
        print(f"epoch {epoch + 1}/{args.epochs}: average loss {epoch_loss / len(train_loader):.4f}, validation AUC {metric[0]:.3f}")
        if metric > best_metric:
            best_metric = metric
            torch.save(model.state_dict(), best_file)

    model.load_state_dict(torch.load(best_file, weights_only=True))
    print("validation AUC {:.3f}, balanced accuracy {:.3f} (its best epoch)".format(*best_metric))
    print("test AUC {:.3f}, balanced accuracy {:.3f}".format(*evaluate(model, test_loader, num_class)))


def main() -> None:
    """Trains and scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bank", default="bank", help="folder of the bank")
    parser.add_argument("--data", type=Path, default=DATA, help="grey 2D images in MedMNIST's layout, .npz")
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
