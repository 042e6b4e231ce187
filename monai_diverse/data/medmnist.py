"""MedMNIST's data sets by name, fetched from where their authors keep them."""

from __future__ import annotations

from pathlib import Path

from monai.apps.utils import HashCheckError, download_url

from monai_diverse.errors import DataError

PREFIX = "medmnist:"
RECORD = "https://zenodo.org/records/10519652/files"
MD5 = {
    "breastmnist": "750601b1f35ba3300ea97c75c52ff8f6",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
}
"""Of the files at 28x28, as the package medmnist 3.0.2 states them."""


def medmnist_file(name: str, folder: Path) -> Path:
    """The `.npz` file of a data set; downloaded into the folder if it is not there, and checked.

    Args:
        name: such as `breastmnist`.
        folder: where the file is or comes to be; made if need be.

    Raises:
        DataError: a name that is not known here, no connection, or a file that is not the published one.
    """
    if name not in MD5:
        raise DataError(f"{PREFIX}{name}: expected one of {', '.join(MD5)}; download others yourself and give the file's path")
    file = folder / f"{name}.npz"
    try:
        download_url(f"{RECORD}/{name}.npz?download=1", file, hash_val=MD5[name], hash_type="md5", progress=False)
    except (HashCheckError, RuntimeError, OSError) as error:
        raise DataError(f"{PREFIX}{name}: expected the published file, but {error}; download it yourself and give its path") from error
    return file
