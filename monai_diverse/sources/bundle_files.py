"""What belongs to a bundle folder: its recipe, its configuration files, its weights."""

from __future__ import annotations

from pathlib import Path

from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sources.bundle_config import BundleConfig
from monai_diverse.sources.bundle_recipes import RECIPES, BundleRecipe
from monai_diverse.storage import read_json

_SUFFIXES = (".json", ".yaml", ".yml")


def recipe_for(folder: Path, recipe: BundleRecipe | str | None) -> BundleRecipe:
    """The recipe given, named, or recognised by the bundle's folder, metadata or files.

    Raises:
        RecipeError: an unknown name, or a bundle that is not in the table.
        DataError: not a bundle.
    """
    if isinstance(recipe, BundleRecipe):
        return recipe
    if recipe is not None:
        if recipe not in RECIPES:
            raise RecipeError(f"recipe: expected a BundleRecipe or one of {', '.join(RECIPES)}, got {recipe!r}")
        return RECIPES[recipe]
    if not (folder / "configs").is_dir():
        raise DataError(f"{folder}: expected a MONAI bundle with configs/ and models/, got no folder configs")
    if folder.name in RECIPES:
        return RECIPES[folder.name]
    names = _metadata_names(folder)
    known = [r for r in RECIPES.values() if names & set(r.known_as)] or [r for r in RECIPES.values() if not r.known_as and _has_all(folder, r)]
    if len(known) != 1:
        found = f"one that may be any of {', '.join(r.name for r in known)}" if known else "another one"
        raise RecipeError(
            f"{folder}: expected one of the bundles {', '.join(RECIPES)}, got {found}; give recipe, one of these names or a BundleRecipe"
        )
    return known[0]


def config_files(folder: Path, recipe: BundleRecipe) -> list[Path]:
    """The configuration files, or the same configuration in the other format."""
    alike = [[folder / name, *((folder / name).with_suffix(suffix) for suffix in _SUFFIXES)] for name in recipe.files]
    return [next((file for file in files if file.is_file()), files[0]) for files in alike]


def weights_file(config: BundleConfig, named: str) -> Path:
    """The file that a key or the recipe names, or the same converted to safetensors."""
    path = str(config.value(named)) if named in config else named
    places = (config.folder / path, config.folder / "models" / path)
    alike = [file for place in places for file in (place, place.with_suffix(".safetensors"))]
    return next((file for file in alike if file.is_file()), places[0])


def _metadata_names(folder: Path) -> set[str]:
    file = folder / "configs" / "metadata.json"
    content = read_json(file) if file.is_file() else {}
    return {str(content.get(key, "")).lower() for key in ("name", "task")}


def _has_all(folder: Path, recipe: BundleRecipe) -> bool:
    """Whether configuration and weights are there: NVIDIA's repository has the configuration of every version, and weights of some."""
    files = config_files(folder, recipe)
    return all(file.is_file() for file in files) and weights_file(BundleConfig(folder, files), recipe.network_weights).is_file()
