"""Items of a dataset: dicts, or tuples and lists that begin (image, label, ...)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from monai_diverse.errors import DataError
from monai_diverse.transforms.blank import blank
from monai_diverse.transforms.insertion import CLASS_NAME_KEY


class Items(Protocol):
    """What can be wrapped: anything with a length that gives items by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def image_and_label(item: Any, image_key: str, label_key: str) -> tuple[Any, Any]:
    """An item's image and label.

    Raises:
        DataError: it has none, or is no item.
    """
    if isinstance(item, Mapping):
        if image_key not in item or label_key not in item:
            raise DataError(f"data: expected items with keys {image_key!r} and {label_key!r}, got {sorted(map(str, item))}")
        return item[image_key], item[label_key]
    if isinstance(item, tuple | list) and len(item) >= 2:
        return item[0], item[1]
    raise DataError(f"data: expected items that are dicts, or tuples or lists (image, label, ...), got {type(item).__name__}")


def sequence_like(item: Any, values: list[Any]) -> Any:
    """A tuple, named tuple or list of the type of `item`."""
    return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)


def blanked(item: Any, image_key: str, label_key: str) -> Any:
    """An item with everything blank, in memory of its own, but image, label and class name.

    Raises:
        DataError: something in it has no blank form.
    """
    if isinstance(item, Mapping):
        return {key: value if key in (image_key, label_key, CLASS_NAME_KEY) else blank(value, str(key)) for key, value in item.items()}
    return sequence_like(item, [*item[:2], *(blank(value, str(place)) for place, value in enumerate(item[2:], 2))])
