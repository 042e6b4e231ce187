"""Features kept on disk, so that images pass a slow extractor once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from monai_diverse.data import FloatArray
from monai_diverse.errors import RecipeError
from monai_diverse.features.base import BlockExtractor, DifferentiableExtractor, FeatureExtractor
from monai_diverse.storage import fingerprint_of, make_folder, sha256_of, write_atomic


@dataclass(frozen=True, kw_only=True)
class CachedFeatures:
    """An extractor whose vectors are kept in a folder, one file for every set of images that was asked for.

    A file is found by the SHA-256 of the images (bytes, shape, dtype) and the extractor's fingerprint, so that neither other images nor other weights
    find it. One that cannot be read, or whose content does not match its own hash, is computed anew. Files are written whole and renamed, so that
    any number of processes may share the folder; two that ask for the same images at once both compute them. Name and fingerprint are
    the extractor's own: a recipe stays the same with or without the cache, wherever the folder lies. Nothing is ever
    deleted from the folder, and it may be deleted at any time.

    Attributes:
        extractor: computes what is not there yet.
        folder: made if it is missing.
    """

    extractor: FeatureExtractor
    folder: str | Path

    def __post_init__(self) -> None:
        if not isinstance(self.extractor, FeatureExtractor):
            raise RecipeError(f"extractor: expected a feature extractor, got {type(self.extractor).__name__}")
        if isinstance(self.extractor, DifferentiableExtractor):
            # gradients are not cached
            object.__setattr__(self, "differentiable", self.extractor.differentiable)

    @property
    def name(self) -> str:
        """The extractor's."""
        return self.extractor.name

    @property
    def fingerprint(self) -> str:
        """The extractor's."""
        return self.extractor.fingerprint

    def __call__(self, images: FloatArray) -> FloatArray:
        """Turns (n, channels, *spatial) in [0, 1] into float32 (n, d), from the folder if they are there.

        Raises:
            StorageError: the folder cannot be written.
        """
        if not len(images):
            return self.extractor(images)
        file = Path(self.folder) / f"{self._key(images)}.safetensors"
        kept = _read(file, len(images))
        if kept is not None:
            return kept
        features = np.ascontiguousarray(self.extractor(images), np.float32)
        make_folder(file.parent)
        write_atomic(file, save({"features": features}, {"sha256": sha256_of(features.tobytes()), "extractor": self.name}))
        return features

    def widths(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The extractor's blocks, as `Ensemble.widths`; one block where it has none."""
        if isinstance(self.extractor, BlockExtractor):
            return self.extractor.widths(shape)
        return (self.extractor(np.zeros((0, *shape), np.float32)).shape[1],)

    def _key(self, images: FloatArray) -> str:
        data = hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
        return fingerprint_of({"data": data, "shape": images.shape, "dtype": images.dtype.str, "extractor": self.fingerprint})


def _read(file: Path, count: int) -> FloatArray | None:
    """The features in a file; None if there is none, or it is not what was written."""
    try:
        with safe_open(file, framework="numpy") as stored:
            features: FloatArray = stored.get_tensor("features")
            stated = (stored.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return features if features.shape[:1] == (count,) and sha256_of(features.tobytes()) == stated else None
