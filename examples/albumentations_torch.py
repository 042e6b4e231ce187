"""A plain PyTorch training with albumentations, on breast ultrasound; one line brings in a bank.

The line stands first in the Compose, before the random augmentation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from monai.networks.nets import DenseNet
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch.utils.data import DataLoader, Dataset

from monai_diverse.data import load_images
from monai_diverse.sources.builtin import DATA
from monai_diverse.transforms.albumentations import BankTransform


class BreastDataset(Dataset[Any]):
    """A split as uint8 images (height, width, channels) with labels."""

    def __init__(self, data: Path, split: str, transform: A.Compose, limit: int | None = None) -> None:
        found = load_images(data, split)
        self.images = np.round(np.moveaxis(found.images[:limit], 1, -1) * 255).astype(np.uint8)
        self.labels = found.labels[:limit]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        made = self.transform(image=self.images[index], label=self.labels[index])
        return made["image"], made["label"]


def evaluate(model: torch.nn.Module, loader: DataLoader[Any]) -> tuple[float, float]:
    """AUC (of several classes the mean of one-versus-rest) and balanced accuracy."""
    model.eval()
    with torch.no_grad():
        predicted, labels = zip(*((model(images), labels) for images, labels in loader), strict=True)
    probabilities, truth = torch.cat(predicted).softmax(dim=1).double().numpy(), torch.cat(labels).numpy()
    shares = probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities
    return roc_auc_score(truth, shares, multi_class="ovr"), balanced_accuracy_score(truth, probabilities.argmax(axis=1))


def train(args: argparse.Namespace) -> None:
    """Trains, then scores the epoch with the best validation AUC."""
    train_transform = A.Compose(
        [
            A.NoOp() if args.real_only else BankTransform(args.bank, label_key="label", p=0.1),  # the one changed line
            A.HorizontalFlip(p=0.5),
            A.Affine(scale=(0.9, 1.1), rotate=(-10, 10), p=0.5),
            A.RandomBrightnessContrast(p=0.3),
            A.ToFloat(max_value=255),
            ToTensorV2(),
        ],
        seed=args.seed,
    )
    plain_transform = A.Compose([A.ToFloat(max_value=255), ToTensorV2()])
    train_ds = BreastDataset(args.data, "train", train_transform, args.limit)
    train_loader = DataLoader(train_ds, batch_size=32, shuffle=True)
    val_loader = DataLoader(BreastDataset(args.data, "val", plain_transform), batch_size=64)
    test_loader = DataLoader(BreastDataset(args.data, "test", plain_transform), batch_size=64)

    classes, channels = int(train_ds.labels.max()) + 1, train_ds.images.shape[-1]
    model = DenseNet(spatial_dims=2, in_channels=channels, out_channels=classes, init_features=16, growth_rate=8, block_config=(2, 4, 2))
    loss_function = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    best_metric, best_weights = (-1.0, -1.0), {}
    for epoch in range(args.epochs):
        model.train()
        losses = []
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = loss_function(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        metric = evaluate(model, val_loader)
        print(f"epoch {epoch + 1}/{args.epochs}: average loss {np.mean(losses):.4f}, validation AUC {metric[0]:.3f}")
        if metric > best_metric:
            best_metric, best_weights = metric, {name: value.clone() for name, value in model.state_dict().items()}

    model.load_state_dict(best_weights)
    print("validation AUC {:.3f}, balanced accuracy {:.3f} (its best epoch)".format(*best_metric))
    print("test AUC {:.3f}, balanced accuracy {:.3f}".format(*evaluate(model, test_loader)))


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
    torch.manual_seed(args.seed)
    train(args)


if __name__ == "__main__":
    main()
