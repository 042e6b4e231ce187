"""What is audited: a model, a bank, or images alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_diverse.bank import SampleBank
from monai_diverse.data import LabelledImages
from monai_diverse.errors import DataError
from monai_diverse.sources import SampleSource

Audited = SampleSource | SampleBank | LabelledImages


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What the audit needs to know of it.

    Attributes:
        about: "name", "fingerprint", "licence".
        mirrored: whether a mirrored training image counts as the same.
        classes: how many it knows; None: not known.
        class_names: as far as known.
    """

    about: dict[str, Any]
    mirrored: bool
    classes: int | None
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, source: Audited, mirrored: bool | None) -> Subject:
        """Reads it off; `mirrored` overrides what the source says.

        Raises:
            DataError: neither a source, nor a bank, nor images; an empty bank.
        """
        if isinstance(source, SampleSource):
            about = {"name": source.name, "fingerprint": source.fingerprint, "licence": source.licence}
            found, classes, names = source.mirrored, source.classes, source.class_names
        elif isinstance(source, SampleBank):
            if not len(source):
                raise DataError(f"{source.location}: expected a bank with samples, got an empty one")
            header = source.header
            about = {"name": header.source.get("name", "bank"), "fingerprint": source.fingerprint, "licence": header.source.get("licence", "unknown")}
            found = any((origin.recipe.get("generator_train") or {}).get("mirrored", False) for origin in source.origins)
            classes, names = header.classes, tuple(header.source.get("class_names") or ())
        elif isinstance(source, LabelledImages):
            about = {"name": "images", "fingerprint": source.sha256(), "licence": "unknown"}
            found, classes, names = False, None, ()
        else:
            raise DataError(f"source: expected a SampleSource, a SampleBank or LabelledImages, got {type(source).__name__}")
        return cls(about=about, mirrored=found if mirrored is None else mirrored, classes=classes, class_names=names)

    def names(self, count: int) -> list[str]:
        """Names of at least so many classes."""
        return [self.class_names[c] if c < len(self.class_names) else f"class {c}" for c in range(max(count, len(self.class_names)))]


def stored(source: SampleBank | LabelledImages, count: int) -> tuple[LabelledImages, list[int] | None]:
    """So many images of a bank or of a set, evenly spaced, and their seeds where they have some."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(np.int64))
    if isinstance(source, LabelledImages):
        return source[chosen], None
    return LabelledImages(images=source.images[chosen], labels=np.array(source.labels[chosen])), [int(s) for s in source.seeds[chosen]]
