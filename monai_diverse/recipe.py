"""Every choice that made a bank, as one frozen value: YAML in, fingerprint out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.components import Component, from_mapping, read_yaml
from monai_diverse.data import LabelledImages, load_images, near_duplicate_groups, require_labels
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sources.builtin import ASSETS, DATA
from monai_diverse.storage import fingerprint_of, read_json, sha256_of

BUILTIN = "builtin"
EXACT = 1 - 1e-6
"""Correlation of images that repeat one another up to rounding."""
DIVERSE = "diverse"


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Which real images play a part.

    Attributes:
        path: an `.npz` file or a folder (see `load_images`), or `builtin` for the shipped BreastMNIST.
        split: train, val or test, where the data are divided.
        split_file: JSON with lists of indices, as `monai-diverse train` writes; for `builtin` the shipped one.
        part: the list in `split_file` to take; None for the whole split.
        mirrored: add each image mirrored left-right: for what a generator saw that was trained with mirroring.
        twin_correlation: images whose pixels correlate above this count as one group, directly or through others. None: each is its own, for
            images that are alike without being repeats, such as aligned slices.

    Raises:
        RecipeError: values that cannot be meant.
    """

    path: str
    split: str = "train"
    split_file: str | None = None
    part: str | None = None
    mirrored: bool = False
    twin_correlation: float | None = 0.95

    def __post_init__(self) -> None:
        for name in ("path", "split"):
            if not isinstance(getattr(self, name), str):
                raise RecipeError(f"{name}: expected text, got {getattr(self, name)!r}")
        if not isinstance(self.mirrored, bool):
            raise RecipeError(f"mirrored: expected true or false, got {self.mirrored!r}")
        correlation = self.twin_correlation
        if correlation is not None and not (isinstance(correlation, int | float) and 0 < correlation < 1):
            raise RecipeError(f"twin_correlation: expected between 0 and 1, or null, got {correlation!r}")
        if self.part is not None and self.split != "train":
            raise RecipeError(f"part {self.part!r}: expected split train, whose indices split files list, got {self.split!r}")

    @property
    def repeats(self) -> float:
        """From which correlation on an image repeats another; nearly 1 where images are not grouped."""
        return EXACT if self.twin_correlation is None else self.twin_correlation

    def load(self, folder: Path) -> LabelledImages:
        """Reads the images, with groups of near-duplicates.

        Raises:
            DataError: unreadable data, or a part that does not fit them.
        """
        data = load_images(DATA if self.path == BUILTIN else folder / self.path, self.split)
        if self.part is not None:
            data = data[self._indices(folder, data)]
        images, labels = data.images, data.labels
        correlation = self.twin_correlation
        groups = np.arange(len(images), dtype=np.int64) if correlation is None else near_duplicate_groups(images, correlation)
        if self.mirrored:
            images, labels, groups = np.concatenate([images, images[..., ::-1]]), np.tile(labels, 2), np.tile(groups, 2)
        return LabelledImages(images=images, labels=labels, groups=groups)

    def _indices(self, folder: Path, images: LabelledImages) -> np.ndarray[Any, np.dtype[np.int64]]:
        if self.path != BUILTIN and self.split_file is None:
            raise RecipeError(f"{self.path}: part {self.part!r} needs split_file, the JSON that lists it")
        file = ASSETS / "split.json" if self.split_file is None else folder / self.split_file
        content = read_json(file)
        try:
            indices = np.asarray(content[str(self.part)], dtype=np.int64).reshape(-1)
        except KeyError as error:
            raise DataError(f"{file}: expected a list of indices {self.part!r}, got {', '.join(content)}") from error
        except (ValueError, TypeError, OverflowError) as error:
            raise DataError(f"{file}: {self.part}: expected a list of indices, got what cannot be one ({error})") from error
        data, count = DATA if self.path == BUILTIN else folder / self.path, len(images)
        held = sha256_of(data) if data.is_file() else images.sha256()
        if content.get("data_sha256", held) != held:
            raise DataError(f"{file}: lists images of other data than {data} holds now; use what the model was trained on, none added or left out")
        if not len(indices) or indices.min() < 0 or indices.max() >= count:
            raise DataError(f"{file}: {self.part}: expected indices 0..{count - 1}, got {len(indices)} of them; is it the split of other data?")
        return indices


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `grow` needs to know.

    Attributes:
        source: the generative model.
        calibration: reals that neither the model nor the reference holds; they set the screen's thresholds.
        reference: what the user has; novelty and information gain are relative to it. None: they have what the generator saw.
        generator_train: what the model saw, for copies and the shield; None where it is not known.
        control: reals that neither model, reference nor calibration hold, to see how many of them the screen accepts: the figure that a
            yield stands beside. None: there is none, and reports say so.
        guide: settings of a guide, such as `monai_diverse.sampling.Shield`; `diverse` for the default one; None for brute force.
        screen: settings of `NoveltyScreen`.
        labels: `reference` draws classes with the reference's shares, `balanced` with equal ones; a list gives the shares.
        size: stop at so many accepted samples; None for no bound.
        max_evaluations: stop before more network evaluations than this, counted for the samples that were judged.
        steps: inference steps; None for the source's own number.
        batch_size: samples a round; a guide that couples the batch makes it part of the recipe.
        ahead: batches that may be drawn before earlier ones are judged: a batch's guide knows what was accepted up to so many batches before its
            predecessor. Several workers need it; one process obeys it too, so that the bank is the same. Without a guide it changes nothing.
        dtype: how the bank stores images: uint8, float16 or float32.
        seed: of the whole bank.
    """

    source: Component
    calibration: DataChoice
    reference: DataChoice | None = None
    generator_train: DataChoice | None = None
    control: DataChoice | None = None
    guide: Component | None = None
    screen: Component = field(default_factory=lambda: Component(target="monai_diverse.NoveltyScreen"))
    labels: str | tuple[float, ...] = "reference"
    size: int | None = None
    max_evaluations: int = 100_000
    steps: int | None = None
    batch_size: int = 64
    ahead: int = 0
    dtype: str = "uint8"
    seed: int = 0
    folder: Path = field(default=Path(), compare=False)
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kinds = {"source": Component, "screen": Component, "calibration": DataChoice}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise RecipeError(f"{name}: expected a {kind.__name__}, got {getattr(self, name)!r}")
        if self.reference is None and self.generator_train is None:
            raise RecipeError("reference: expected images that the user has, or generator_train to stand in for them, got neither")
        for name, least in (("max_evaluations", 1), ("batch_size", 1), ("size", 1), ("steps", 1), ("ahead", 0)):
            value = getattr(self, name)
            optional = value is None and name in ("size", "steps")
            if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise RecipeError(f"{name}: expected a whole number from {least}, got {value!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise RecipeError(f"seed: expected a whole number in 0..{2**31 - 1}, got {self.seed!r}")
        if self.dtype not in ("uint8", "float16", "float32"):
            raise RecipeError(f"dtype: expected uint8, float16 or float32, got {self.dtype!r}")
        require_labels(self.labels)

    @classmethod
    def load(cls, path: Path | str, allow: Sequence[str] = ()) -> Recipe:
        """Reads a recipe from YAML; its relative paths start at the file's folder.

        Raises:
            RecipeError: no such file, not YAML, unknown or missing keys.
        """
        path = Path(path)
        content = read_yaml(path, "a recipe with source, reference and calibration")
        return replace(cls.from_json(content), folder=path.parent, allow=tuple(allow))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Recipe:
        """Makes a recipe of plain values; the inverse of `as_json`."""
        values = dict(content)
        kinds: dict[str, type] = {"source": Component, "guide": Component, "screen": Component}
        kinds |= dict.fromkeys(("reference", "calibration", "generator_train", "control"), DataChoice)
        if values.get("guide") == DIVERSE:
            values["guide"] = {"target": "monai_diverse.sampling.Diverse"}
        for key, kind in kinds.items():
            if values.get(key) is not None:
                values[key] = from_mapping(kind, values[key], key)
            elif key == "screen":
                values.pop(key, None)
        if isinstance(values.get("labels"), list):
            values["labels"] = tuple(values["labels"])
        recipe: Recipe = from_mapping(cls, values, "recipe", hidden=("folder", "allow"))
        return recipe

    def as_json(self) -> dict[str, Any]:
        """Plain values, without where the file lay."""
        values = asdict(self)
        values.pop("folder")
        values.pop("allow")
        if not self.ahead:  # recipes had none at first, and their banks grow on
            values.pop("ahead")
        return values | {"labels": self.labels if isinstance(self.labels, str) else list(self.labels)}

    def fingerprint(self, parts: Mapping[str, str]) -> str:
        """SHA-256 of all that decides which samples a bank holds, but not how many, nor where files lie.

        Args:
            parts: fingerprints of what the recipe names: source, screen, guide and images, with their defaults.
        """
        names = ("labels", "steps", "batch_size", "dtype", "seed", *(() if self.guide is None else ("ahead",)))
        values = {name: value for name, value in self.as_json().items() if name in names}
        return fingerprint_of({"recipe": values, "parts": dict(parts)})
