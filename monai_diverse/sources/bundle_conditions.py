"""The classes of a bundle: what each one tells the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from monai_diverse.errors import DataError, MissingExtraError, RecipeError
from monai_diverse.sources.bundle_config import BundleConfig
from monai_diverse.sources.bundle_recipes import NetworkInput
from monai_diverse.sources.conditioning import Conditioning

Conditions = Mapping[str, Mapping[str, Any]]
"""By class: what it says of configuration keys, such as {"old": {"age": 0.9}, "young": {"age": 0.1}}."""

NULL = "null"
"""The name in a file of embeddings of the one that stands for 'no condition'."""


class TextEmbeddings:
    """Embeddings (tokens, dim) of texts: read from a file, or computed by a CLIP text model in a local folder.

    Args:
        file: `.safetensors` with one tensor a class, by the class's name, and one named `null` where guidance needs it.
        encoder: folder with `tokenizer/` and `text_encoder/`, as Stable Diffusion's pipelines have; needs transformers.
    """

    def __init__(self, file: Path | str | None, encoder: Path | str | None) -> None:
        self._folder = None if encoder is None else Path(encoder)
        self._stored: dict[str, Tensor] = {} if file is None else _stored(Path(file))
        self._model: tuple[Any, Any] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that the file holds."""
        return tuple(name for name in self._stored if name != NULL)

    def __call__(self, name: str, text: str) -> Tensor:
        """The embedding of a class by its name, or of its text.

        Raises:
            RecipeError: neither a stored embedding nor a text model.
            MissingExtraError: transformers is not installed.
            DataError: no text model in that folder.
        """
        if name in self._stored:
            return self._stored[name]
        if self._folder is None:
            raise RecipeError(
                f"text {text!r}: expected embeddings=FILE.safetensors with a tensor {name!r} (tokens, dim), or text_encoder=FOLDER, got neither"
            )
        self._model = self._model or _text_model(self._folder)
        tokenizer, encoder = self._model
        tokens = tokenizer([text], padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        with torch.no_grad():
            embedding: Tensor = encoder(tokens.input_ids)[0][0]
        return embedding.float()


def conditioning_of(
    inputs: tuple[NetworkInput, ...],
    network: Any,
    config: BundleConfig,
    conditions: Conditions | None,
    embeddings: TextEmbeddings,
    *,
    guided: bool,
) -> tuple[Conditioning, tuple[str, ...]]:
    """What each class tells the network, and the classes' names; none for the configuration's own single class.

    Args:
        inputs: what a network of this kind may be told.
        network: the network; decides which of them it takes.
        config: the bundle's own values.
        conditions: the classes; None for one class with the bundle's values, or for those that `embeddings` holds.
        embeddings: of texts.
        guided: whether the null conditions are needed.

    Raises:
        RecipeError: conditions that the bundle does not know.
        DataError: values that are not numbers.
    """
    taken = [i for i in inputs if not i.when or getattr(network, i.when, None)]
    if embeddings.classes and not any(i.text for i in taken):
        raise RecipeError("embeddings: expected a network that is told a text, got one that is not; leave them out")
    if conditions and not taken:
        raise RecipeError(f"conditions: expected none for a network that is told nothing, got {', '.join(conditions)}; leave them out")
    keys = {key.split("::")[-1] for i in taken for key in i.values}
    names = tuple(conditions) if conditions else embeddings.classes
    classes: list[tuple[str, Mapping[str, Any]]] = [(name, (conditions or {}).get(name, {})) for name in names] or [("", {})]
    for name, said in classes:
        if not isinstance(said, Mapping) or not set(said) <= keys:
            raise RecipeError(f"conditions of {name!r}: expected a mapping with some of {', '.join(sorted(keys))}, got {said!r}")
    rows = {i.name: torch.stack([_row(i, name, said, config, embeddings) for name, said in classes]) for i in taken}
    null = {i.name: embeddings(NULL, str(i.null)) if i.text else i.null for i in taken if guided and i.null is not None}
    return Conditioning(inputs=rows, null=null or None), names  # type: ignore[arg-type]


def _row(given: NetworkInput, name: str, said: Mapping[str, Any], config: BundleConfig, embeddings: TextEmbeddings) -> Tensor:
    values = [_value(key, given, said, config) for key in given.values]
    if given.text:
        return embeddings(name, str(values[0]))
    numbers: list[float] = []
    for key, value in zip(given.values, values, strict=True):
        for item in value if isinstance(value, list | tuple) else [value]:
            item = given.words.get(item, item) if isinstance(item, str) else item
            if isinstance(item, bool) or not isinstance(item, int | float):
                raise DataError(f"{key}: expected {f'one of {sorted(given.words)} or ' if given.words else ''}numbers, got {item!r}")
            numbers.append(given.scale * item)
    if given.name == "class_labels":
        return torch.tensor(int(numbers[0]))
    row = torch.tensor(numbers, dtype=torch.float32)
    return row[None] if given.name == "context" else row


def _value(key: str, given: NetworkInput, said: Mapping[str, Any], config: BundleConfig) -> Any:
    short = key.split("::")[-1]
    if short in said:
        return said[short]
    return given.default if given.default is not None and key not in config else config.value(key)


def _stored(file: Path) -> dict[str, Tensor]:
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: expected a .safetensors file with an embedding a class, but it cannot be read ({error})") from error
    shapes = {tuple(value.shape) for value in stored.values()}
    if not stored or len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
        raise DataError(f"{file}: expected embeddings of one shape (tokens, dim), got {sorted(shapes)}")
    return {name: value.float() for name, value in stored.items()}


def _text_model(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import CLIPTextModel, CLIPTokenizer  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingExtraError("text_encoder needs transformers: pip install 'monai-diverse[text]', or give embeddings") from error
    parts = [folder / name for name in ("tokenizer", "text_encoder")]
    if not all(part.is_dir() for part in parts):
        raise DataError(f"{folder}: expected tokenizer/ and text_encoder/ of a CLIP text model, got a folder without them")
    try:
        return CLIPTokenizer.from_pretrained(parts[0], local_files_only=True), CLIPTextModel.from_pretrained(parts[1], local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: expected a CLIP text model, but it cannot be read ({' '.join(str(error).split())})") from error
