"""What a network is told beside the noisy image and the time: by class, with a true null condition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from monai_diverse.errors import DataError
from monai_diverse.sources.weights import hash_of_tensors

Null = Tensor | float


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the network is told beside x and t, by class: the name of a network input -> one row a class.

    Attributes:
        inputs: (classes, ...) tensors; row c is class c's. `class_labels` (classes,) whole numbers; `context` (classes, tokens, dim) for
            cross-attention; `concat` (classes, ch) or (classes, ch, *spatial), appended to the channels of x, spread over space where it
            has none; any other name goes to the network as it is. Empty: an unconditional network, one class.
        null: what stands for 'no condition': by name a label, a fill value, or a tensor that broadcasts to a row. Inputs that it leaves out
            keep their class's row. None: the network was not trained without its condition, so no classifier-free guidance.

    Raises:
        DataError: rows that differ in number, a null for no input or of another shape.
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    null: Mapping[str, Null] | None = None

    def __post_init__(self) -> None:
        rows = {name: tuple(torch.as_tensor(value).shape) for name, value in self.inputs.items()}
        if len({shape[:1] for shape in rows.values()}) > 1 or any(not shape or shape[0] < 1 for shape in rows.values()):
            raise DataError(f"conditioning: expected one row a class in every input, got {rows}")
        if self.null is not None and (not self.null or not self.null.keys() <= rows.keys()):
            raise DataError(f"conditioning: expected a null for some of the inputs {sorted(rows)}, got {sorted(self.null)}")
        for name, value in (self.null or {}).items():
            row, shape = rows[name][1:], tuple(torch.as_tensor(value).shape)
            if shape and (len(shape) > len(row) or any(a not in (1, b) for a, b in zip(shape[::-1], row[::-1], strict=False))):
                raise DataError(f"conditioning: expected a null {name} that broadcasts to a row {row}, got {shape}")
        object.__setattr__(self, "inputs", {name: torch.as_tensor(value) for name, value in self.inputs.items()})

    @property
    def classes(self) -> int:
        """Number of classes; 1 for an unconditional network."""
        return next((len(value) for value in self.inputs.values()), 1)

    @property
    def embeds_labels(self) -> bool:
        """Whether there are class labels that the network embeds, whole numbers as they are."""
        labels = self.inputs.get("class_labels")
        return labels is not None and not labels.is_floating_point()

    def rows(self, labels: Tensor) -> dict[str, Tensor]:
        """The inputs (n, ...) of classes (n,)."""
        return {name: value[labels] for name, value in self.inputs.items()}

    def null_rows(self, labels: Tensor) -> dict[str, Tensor]:
        """The inputs (n, ...) without condition; those that `null` leaves out are the classes' own.

        Raises:
            DataError: the network knows no null condition.
        """
        if self.null is None:
            raise DataError("conditioning: expected a null condition, got none")
        rows = self.rows(labels)
        fills = {name: torch.as_tensor(value).to(rows[name]) for name, value in self.null.items()}
        return rows | {name: fill.expand(rows[name].shape).clone() for name, fill in fills.items()}

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on a device."""
        null = None if self.null is None else {name: v.to(device) if isinstance(v, Tensor) else v for name, v in self.null.items()}
        return replace(self, inputs={name: value.to(device) for name, value in self.inputs.items()}, null=null)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all rows and nulls."""
        given = {f"inputs {name}": value for name, value in self.inputs.items()}
        return hash_of_tensors(given | {f"null {name}": torch.as_tensor(value) for name, value in (self.null or {}).items()})
