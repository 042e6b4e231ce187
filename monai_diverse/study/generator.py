"""The generator of a study: given, or trained inside it on the images that the regime allows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_diverse.components import Component
from monai_diverse.data import IntArray, LabelledImages
from monai_diverse.errors import DataError
from monai_diverse.recipe import DataChoice
from monai_diverse.sources import SampleSource
from monai_diverse.sources.builtin import ASSETS
from monai_diverse.storage import fingerprint_of, make_folder, read_json, sha256_of, write_atomic
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.plan import StudyPlan
from monai_diverse.training import ModelCard, Progress, prepare, train

SPLIT = "split.json"


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A source, and which of the cohort's train images it saw.

    Attributes:
        source: makes it.
        described: its name, fingerprint and licence.
        class_names: one a class.
        seen: indices into the cohort's train images.
        aside: as `seen`, those that it never saw and that calibrate the screen.
        data: the file or folder that its split file divides.
        split_file: lists `generator_train` and `calibration` of `data`.
        trained: whether the study trained it.
        mirrored: whether it saw its images mirrored too.
        twin_correlation: as the plan's.
    """

    source: Component
    described: dict[str, str]
    class_names: tuple[str, ...]
    seen: IntArray
    aside: IntArray
    data: Path
    split_file: Path
    trained: bool
    mirrored: bool
    twin_correlation: float

    def choice(self, part: str, *, split_file: Path | None = None, mirrored: bool = False) -> DataChoice:
        """The images of a part, as a recipe names them."""
        file = (split_file or self.split_file).resolve()
        return DataChoice(path=str(self.data.resolve()), split_file=str(file), part=part, mirrored=mirrored, twin_correlation=self.twin_correlation)


def given_generator(plan: StudyPlan, cohort: Cohort) -> Generator:
    """The plan's source with what its split file says.

    Raises:
        DataError: a split file of other data.
        RecipeError: a source that cannot be made.
    """
    assert plan.source is not None
    file = ASSETS / SPLIT if plan.split_file is None else plan.folder / plan.split_file
    seen, aside = _listed(file, cohort)
    source: SampleSource = plan.source.build(plan.folder, plan.allow)
    return Generator(
        source=plan.source,
        described=_described(source),
        class_names=source.class_names,
        seen=seen,
        aside=aside,
        data=cohort.path,
        split_file=file,
        trained=False,
        mirrored=source.mirrored,
        twin_correlation=plan.twin_correlation,
    )


def training_of(plan: StudyPlan, cohort: Cohort, among: IntArray | None, out: Path) -> Iterator[Progress]:
    """Trains a generator in `generator_folder`, or takes up what is there, yielding progress.

    Args:
        plan: has the settings.
        cohort: the images.
        among: indices into its train images, the only ones that the generator may see; None: its train split as it is, with its val split to choose
            the weights.
        out: folder of the study.
    """
    folder = generator_folder(plan, cohort, among, out)
    data = _data_of(cohort, among, folder)
    names = len(cohort.train.class_counts)
    yield from train(prepare(data, plan.training), folder, plan.training, ModelCard(name=f"{plan.name}: generator", classes=names))


def trained_generator(plan: StudyPlan, cohort: Cohort, among: IntArray | None, out: Path) -> Generator:
    """What `training_of` with the same arguments has trained."""
    folder = generator_folder(plan, cohort, among, out)
    data = _data_of(cohort, among, folder)
    content = read_json(folder / SPLIT)
    places = np.arange(len(cohort.train), dtype=np.int64) if among is None else among
    component = Component(target="monai_diverse.DiffusersSource", arguments={"folder": str(folder.resolve())})
    source: SampleSource = component.build(plan.folder)
    return Generator(
        source=component,
        described=_described(source),
        class_names=source.class_names,
        seen=places[np.asarray(content["generator_train"], dtype=np.int64)],
        aside=places[np.asarray(content["calibration"], dtype=np.int64)],
        data=data,
        split_file=folder / SPLIT,
        trained=True,
        mirrored=plan.training.mirror,
        twin_correlation=plan.twin_correlation,
    )


def generator_folder(plan: StudyPlan, cohort: Cohort, among: IntArray | None, out: Path) -> Path:
    """Where a trained generator lies: named by all that decides its weights."""
    settings = {name: value for name, value in asdict(plan.training).items() if name not in ("snapshots", "device")}
    images = [cohort.train.sha256(), cohort.validation.sha256()] if among is None else cohort.train[among].sha256()
    return out / "generators" / fingerprint_of([settings | {"channels": list(plan.training.channels)}, images])[:16]


def _described(source: SampleSource) -> dict[str, str]:
    return {"name": source.name, "fingerprint": source.fingerprint, "licence": source.licence}


def _data_of(cohort: Cohort, among: IntArray | None, folder: Path) -> Path:
    """The data set that a training reads: the cohort's own, or a file with some of its train images and nothing else."""
    if among is None:
        return cohort.path
    file = make_folder(folder) / "data.npz"
    if not file.exists():
        write_atomic(file, _archived(cohort.train[among]))
    return file


def _archived(images: LabelledImages) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {"train_images": images.images[:, 0] if images.images.shape[1] == 1 else np.moveaxis(images.images, 1, -1)}
    np.savez_compressed(stream, **arrays, train_labels=images.labels[:, None])
    return stream.getvalue()


def _listed(file: Path, cohort: Cohort) -> tuple[IntArray, IntArray]:
    content = read_json(file)
    stated = content.get("data_sha256")
    if stated is not None and cohort.path.is_file() and stated != sha256_of(cohort.path):
        raise DataError(f"{file}: lists images of another file than {cohort.path}; use the file that the model was trained on")
    try:
        seen, aside = (np.asarray(content[part], dtype=np.int64).reshape(-1) for part in ("generator_train", "calibration"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: expected lists of indices generator_train and calibration, got {', '.join(content)}") from error
    both = np.concatenate([seen, aside])
    if not len(seen) or not len(aside) or both.min() < 0 or both.max() >= len(cohort.train) or len(np.unique(both)) < len(both):
        raise DataError(f"{file}: expected different indices 0..{len(cohort.train) - 1} of train images; is it the split of other data?")
    return seen, aside
