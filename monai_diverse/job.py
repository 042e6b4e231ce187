"""A recipe with everything that it names made and fitted: model, screen, guide, images."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from monai_diverse.bank import BankHeader
from monai_diverse.components import Component
from monai_diverse.data import FloatArray, IntArray, LabelledImages, class_names, label_shares, require_every_class
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.recipe import Recipe
from monai_diverse.sampling import Guide
from monai_diverse.screening import FittedScreen, NoveltyScreen
from monai_diverse.screening.control_cases import near_known, require_unseen
from monai_diverse.sources import SampleSource
from monai_diverse.storage import fingerprint_of


@dataclass(frozen=True, kw_only=True)
class Job:
    """A recipe with everything that it names made and fitted.

    Attributes:
        recipe: the choices.
        source: the generative model.
        screen: fitted to reference and calibration reals.
        guide: fitted; None for brute force.
        guide_settings: what the guide was fitted with, in words.
        label_shares: (classes,) probabilities with which classes are drawn.
        data_hashes: by part, for the fingerprint.
        control: yield of held-out real images under the same screen, near-duplicates of known ones left out; None if the recipe has none.
        real: the real images by part.
    """

    recipe: Recipe
    source: SampleSource
    screen: FittedScreen
    guide: Guide | None
    guide_settings: str
    label_shares: FloatArray
    data_hashes: dict[str, str]
    control: dict[str, Any] | None
    real: dict[str, LabelledImages]

    @classmethod
    def prepare(cls, recipe: Recipe) -> Job:
        """Loads the model and the images, fits screen and guide.

        Raises:
            RecipeError: a component that is not what its place needs.
            DataError: images that do not fit the model, an empty class, control images that are known.
        """
        source = recipe.source.build(recipe.folder, recipe.allow)
        screen = recipe.screen.build(recipe.folder, recipe.allow)
        settings = None if recipe.guide is None else recipe.guide.build(recipe.folder, recipe.allow)
        for value, kind, name in ((source, SampleSource, "source"), (screen, NoveltyScreen, "screen")):
            if not isinstance(value, kind):
                raise RecipeError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
        real = _real_images(recipe, source)
        fitted = screen.fit(real.get("reference"), real["calibration"], real.get("generator_train"))
        return cls(
            recipe=recipe,
            source=source,
            screen=fitted,
            guide=_fit_guide(settings, recipe, source, real),
            guide_settings=_in_words(settings),
            label_shares=label_shares(recipe.labels, fitted.real.reference.labels, source.classes),
            data_hashes={name: images.sha256() for name, images in real.items()},
            control=_control(fitted, real["control"], recipe) if "control" in real else None,
            real=real,
        )

    def without_guide(self) -> Job:
        """The same model and screen by brute force."""
        return self.with_guide(None)

    def with_guide(self, guide: Component | None) -> Job:
        """The same model and screen with another guide, calibrated anew."""
        recipe = replace(self.recipe, guide=guide)
        settings = None if guide is None else guide.build(recipe.folder, recipe.allow)
        return replace(self, recipe=recipe, guide=_fit_guide(settings, recipe, self.source, self.real), guide_settings=_in_words(settings))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which samples the bank holds."""
        parts = {name: value for name, value in self.data_hashes.items() if name != "control"}
        parts |= {"source": self.source.fingerprint, "screen": self.screen.fingerprint, "guide": self.guide_settings}
        parts["calibrated"] = fingerprint_of({} if self.guide is None else self.guide.notes())  # another device may find other noise
        return self.recipe.fingerprint(parts)

    def header(self) -> BankHeader:
        """What a bank of this job says of itself."""
        return BankHeader(
            recipe=self.recipe.as_json() | {"data": self.data_hashes, "calibrated": {} if self.guide is None else self.guide.notes()},
            recipe_fingerprint=self.fingerprint,
            source={
                "name": self.source.name,
                "fingerprint": self.source.fingerprint,
                "licence": self.source.licence,
                "class_names": list(self.source.class_names),
            },
            features=self.screen.describe(),
            shape=self.source.shape,
            classes=self.source.classes,
            dtype=self.recipe.dtype,
        )

    def asked(self, first: int, count: int) -> tuple[IntArray, IntArray]:
        """What samples number `first` to `first + count - 1` of the recipe are drawn with: (labels, seeds); fewer where the source has no more."""
        if self.source.size is not None:
            count = max(0, min(count, self.source.size - first))
        seeds = self.recipe.seed * 2**32 + np.arange(first, first + count, dtype=np.int64)
        held = self.source.labels_of(seeds)
        return np.array([self._label_of(int(seed)) for seed in seeds], dtype=np.int64) if held is None else held, seeds

    def costs(self, labels: IntArray, seeds: IntArray, guide: Guide | None) -> IntArray:
        """Network evaluations (n,) of each of them."""
        return self.source.costs(labels, seeds, guide=guide, steps=self.recipe.steps)

    def draw(self, labels: IntArray, seeds: IntArray, guide: Guide | None) -> FloatArray:
        """Draws images (n, c, *spatial) in [0, 1], as a bank stores them."""
        return as_stored(self.source.sample(labels, seeds, guide=guide, steps=self.recipe.steps).numpy(), self.recipe.dtype)

    def _label_of(self, seed: int) -> int:
        # a stream of its own, apart from the noise's
        stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        return int(stream.choice(len(self.label_shares), p=self.label_shares))


def as_stored(images: FloatArray, dtype: str) -> FloatArray:
    """Rounds images in [0, 1] to what a bank of `dtype` gives back, so that what is judged is what is stored."""
    if dtype == "uint8":
        return (np.round(images * 255) / 255).astype(np.float32)
    return images.astype(dtype).astype(np.float32)


def to_model(source: SampleSource, images: FloatArray, labels: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, c, *spatial) in [0, 1] and labels (n,), as guides take them."""
    return source.encode(torch.from_numpy(images)), torch.from_numpy(labels)


def _real_images(recipe: Recipe, source: SampleSource) -> dict[str, LabelledImages]:
    choices = {name: getattr(recipe, name) for name in ("reference", "calibration", "generator_train", "control")}
    real = {name: choice.load(recipe.folder) for name, choice in choices.items() if choice is not None}
    for name, images in real.items():
        _require_fit(source, images, name)
    _require_one_naming({name: class_names(recipe.folder / choice.path) for name, choice in choices.items() if choice is not None}, source)
    if source.mirrored and recipe.generator_train is not None and not recipe.generator_train.mirrored:
        raise RecipeError("generator_train: expected mirrored: true, since the model was trained on mirrored images too and may copy those")
    return real


def _require_one_naming(folders: dict[str, tuple[str, ...]], source: SampleSource) -> None:
    """Folders number their classes by name; a model that knows the same names in another order numbers them otherwise."""
    named = {part: names for part, names in folders.items() if names}
    said = "; ".join(f"{part}: {', '.join(names)}" for part, names in named.items())
    if len(set(named.values())) > 1:
        raise DataError(f"recipe: expected folders with the same classes, since their order numbers them, got {said}")
    for names in named.values():
        if names != source.class_names and sorted(names) == sorted(source.class_names):
            raise DataError(f"recipe: expected classes in the source's order, {', '.join(source.class_names)}, got {said}; number them alike")


def _control(screen: FittedScreen, control: LabelledImages, recipe: Recipe) -> dict[str, Any]:
    require_unseen(screen, control, "control")
    near = near_known(screen, control, None if recipe.control is None else recipe.control.repeats)
    if near.all():
        raise DataError("control: expected images that do not nearly repeat known ones, got such alone; take others, or leave it out")
    return screen.yield_of(control[~near]).as_json() | {"near_known": int(near.sum())}


def _fit_guide(settings: Any, recipe: Recipe, source: SampleSource, real: dict[str, LabelledImages]) -> Guide | None:
    if settings is None:
        return None
    if not hasattr(settings, "fit"):
        raise RecipeError(f"guide: expected settings with a fit method, such as monai_diverse.sampling.Shield, got {type(settings).__name__}")
    train, calibration = _known(real), real["calibration"]
    guide: Guide = settings.fit(*to_model(source, train.images, train.labels), *to_model(source, calibration.images, calibration.labels))
    return guide.calibrated(partial(source.renoise, steps=recipe.steps))


def _known(real: dict[str, LabelledImages]) -> LabelledImages:
    """What samples must not repeat: what the generator saw, where that is known, and what the user has, each image once."""
    sets = [real[name] for name in ("generator_train", "reference") if name in real]
    if len(sets) == 1:
        return sets[0]
    seen, reference = sets
    held = {image.tobytes() for image in seen.images}
    more = np.flatnonzero([image.tobytes() not in held for image in reference.images])
    return LabelledImages(images=np.concatenate([seen.images, reference.images[more]]), labels=np.concatenate([seen.labels, reference.labels[more]]))


def _in_words(settings: Any) -> str:
    """As `repr`, with the fingerprint in place of what has one: an extractor's repr may hold its address, and not its weights."""
    if hasattr(settings, "fingerprint"):
        return f"{type(settings).__qualname__}({settings.fingerprint})"
    if isinstance(settings, tuple):
        return f"({', '.join(_in_words(part) for part in settings)})"
    if not is_dataclass(settings):
        return repr(settings)
    return f"{type(settings).__qualname__}({', '.join(f'{f.name}={_in_words(getattr(settings, f.name))}' for f in fields(settings))})"


def _require_fit(source: SampleSource, images: LabelledImages, name: str) -> None:
    if images.images.shape[1:] != source.shape:
        raise DataError(f"{name}: expected images of the model's shape {source.shape}, got {images.images.shape[1:]}; resize or crop them")
    if images.labels.max() >= source.classes:
        raise DataError(f"{name}: expected the model's classes 0..{source.classes - 1}, got {images.labels.max()}")
    require_every_class(images.labels, source.classes, name)
