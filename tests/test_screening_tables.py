"""A screen of many real images, made block by block and searched from a folder."""

import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_diverse import NoveltyScreen, Processes, Recipe, grow
from monai_diverse.components import Component
from monai_diverse.data import FloatArray, LabelledImages, check_images, labelled
from monai_diverse.errors import DataError, MissingExtraError
from monai_diverse.features import Ensemble, PixelFeatures
from monai_diverse.information import InformationGain, Neighbours
from monai_diverse.information import tables as information_tables
from monai_diverse.job import Job
from monai_diverse.screening import FittedScreen, NoveltyGate, OutlierGate, RelevanceGate, Verdict, relevance, tables
from monai_diverse.screening.copies import CopyGate, _middle
from monai_diverse.screening.profiles import foreground_share, intensity_profile, otsu_threshold, spectral_profile
from monai_diverse.screening.tables import Tables
from tests.conftest import SIDE, blobs

pytest.importorskip("faiss")
FOUND = [(324, -4.231), (400, -4.374), (32, 52.861), (10, -25.874), (1, 1.15)]
MANY = 400
"""Images that count as many here."""


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LARGE", MANY)
    monkeypatch.setattr(relevance, "LARGE", MANY)
    monkeypatch.setattr(tables, "BLOCK", 64 * SIDE**2)
    monkeypatch.setitem(Neighbours.__init__.__kwdefaults__, "index_from", MANY)


def settings(folder: Path | None, **changes: Any) -> NoveltyScreen:
    gates = {
        "novelty": NoveltyGate(alpha=0.3),
        "relevance": RelevanceGate(fitted_on="generator_train"),
        "outlier": OutlierGate(textures=PixelFeatures(max_side=4)),
    }
    return NoveltyScreen(**{"extractor": PixelFeatures(), **gates, "twin_correlation": None, "folder": folder} | changes)


def mapped(data: LabelledImages, file: Path) -> LabelledImages:
    np.save(file, data.images)
    return replace(data, images=np.load(file, mmap_mode="r"))


def judged(screen: FittedScreen) -> list[Verdict]:
    near = blobs(60, 0)
    return screen.screen(
        np.concatenate([blobs(60, 5).images, near.images, 1 - near.images[:5]]), np.concatenate([near.labels] * 2 + [near.labels[:5]])
    )


def is_mapped(array: Any) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("blocks", [False, True])
def test_a_folder_changes_no_verdict(tmp_path: Path, blocks: bool) -> None:
    reference, calibration, seen = blobs(MANY + 70, 0), blobs(80, 1), blobs(MANY + 130, 2)
    extractor = Ensemble(extractors=(PixelFeatures(max_side=5), PixelFeatures(max_side=8))) if blocks else PixelFeatures()
    inside = settings(None, extractor=extractor).fit(reference, calibration, seen)
    on_disk = (mapped(reference, tmp_path / "reference.npy"), calibration, mapped(seen, tmp_path / "seen.npy"))
    outside = settings(tmp_path / "tables", extractor=extractor).fit(*on_disk)
    assert outside.fingerprint == inside.fingerprint
    assert outside.describe() == inside.describe()
    verdicts = judged(outside)
    assert verdicts == judged(inside)
    assert 0 < sum(verdict.accepted for verdict in verdicts) < len(verdicts)
    for views in (outside.real.reference, outside.real.seen):
        assert all(is_mapped(part) for part in (views.images, views.features, views.pixels, views.residual))
        assert not any(is_mapped(part) for part in (inside.real.reference.features, inside.real.reference.pixels))
    unseen = blobs(50, 9)
    assert outside.controls(unseen, count=20).as_json() == inside.controls(unseen, count=20).as_json()


@pytest.mark.usefixtures("few_are_many")
def test_many_images_are_judged_as_all_at_once_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fitted on some of the images differs from what is fitted on all by little, and where all are taken not at all."""
    reference, calibration = blobs(2 * MANY, 0), blobs(80, 1)
    some = settings(None).fit(reference, calibration, reference)
    monkeypatch.setattr(tables, "LARGE", 10 * MANY)
    everything = settings(None).fit(reference, calibration, reference)
    same = [a.accepted == b.accepted for a, b in zip(judged(some), judged(everything), strict=True)]
    assert np.mean(same) > 0.95
    np.testing.assert_allclose(some.gates["copy"].score(some.embed(*probe())), everything.gates["copy"].score(everything.embed(*probe())), rtol=1e-5)


def probe() -> tuple[FloatArray, Any]:
    data = blobs(30, 11)
    return data.images, data.labels


class Counted:
    """Pixels, and how many images they were asked for."""

    name, fingerprint = "counted", "counted"

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: FloatArray) -> FloatArray:
        self.images += len(images)
        return PixelFeatures()(images)


@pytest.mark.usefixtures("few_are_many")
def test_tables_are_found_again(tmp_path: Path) -> None:
    reference, calibration = blobs(MANY + 1, 0), blobs(80, 1)
    first, second = Counted(), Counted()
    verdicts = judged(settings(tmp_path, extractor=first).fit(reference, calibration, reference))
    names = {entry.name for entry in tmp_path.iterdir()}
    assert judged(settings(tmp_path, extractor=second).fit(reference, calibration, reference)) == verdicts
    assert {entry.name for entry in tmp_path.iterdir()} == names
    assert not any(name.startswith(".") for name in names)
    assert first.images - second.images >= MANY + 1, "the table should have been read"
    other = replace(reference, images=np.clip(reference.images + 0.01, 0, 1))
    settings(tmp_path).fit(other, calibration, other)
    assert len({entry.name for entry in tmp_path.iterdir()}) > len(names), "other images have other tables"


def test_few_images_need_no_folder(tmp_path: Path) -> None:
    reference, calibration = blobs(100, 0), blobs(80, 1)
    screen = settings(tmp_path / "tables").fit(reference, calibration, reference)
    assert judged(screen) == judged(settings(None).fit(reference, calibration, reference))
    assert not (tmp_path / "tables").exists()


@pytest.mark.usefixtures("few_are_many")
def test_what_is_on_disk_does_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information_tables, "MOST_PROBED", 1.0)  # so that every table has an index
    calibration, sizes = blobs(80, 1), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(InformationGain.__init__.__kwdefaults__, "max_points", 64)
    for count in (500, 1000):
        reference = blobs(count, 0)
        screen = settings(Path("tables")).fit(reference, calibration, reference)
        measures = screen.gates["outlier"].measures
        indices = (screen.seen, screen.gates["copy"].index, screen.gates["not_novel"].distances._index, measures.intensities, measures.spectra)
        assert not any(index.exact for index in indices)
        sent = pickle.dumps(screen.for_judging())
        sizes.append(len(sent))
    assert 0 < (sizes[1] - sizes[0]) / 500 < 12, "of each image its label is sent, and no row of a table"
    monkeypatch.chdir(tmp_path.parent)
    assert judged(pickle.loads(sent)) == judged(screen)
    shutil.rmtree(tmp_path / "tables")
    with pytest.raises(DataError, match="give every machine the same folder"):
        pickle.loads(sent)


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("damage", ["short", "other", "gone"])
def test_a_table_that_cannot_be_read_is_one_line(tmp_path: Path, damage: str) -> None:
    images = blobs(MANY + 5, 0).images
    asked = (images, {"pixels": 1}, PixelFeatures())
    whole = Tables(tmp_path).of(*asked)
    np.testing.assert_array_equal(whole, Tables().of(*asked))
    (file,) = tmp_path.glob("table-*/rows.npy")
    if damage == "short":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "other":
        np.save(file, np.zeros((3, 3), np.float32))
    else:
        file.unlink()
    with pytest.raises(DataError, match=r"expected a table of .*delete the folder, and it is made anew$") as caught:
        Tables(tmp_path).of(*asked)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("few_are_many")
def test_an_interrupted_table_is_not_there(tmp_path: Path) -> None:
    images = blobs(MANY + 5, 0).images
    left = iter(range(3))

    def interrupted(part: FloatArray) -> FloatArray:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return PixelFeatures()(part)

    with pytest.raises(KeyboardInterrupt):
        Tables(tmp_path).of(images, {"pixels": 1}, interrupted)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("few_are_many")
def test_of_two_that_make_a_table_at_once_one_is_kept(tmp_path: Path) -> None:
    images = blobs(MANY + 5, 0).images
    asked = (images, {"pixels": 1})

    def overtaken(part: FloatArray) -> FloatArray:
        if len(part) > 1 and not list(tmp_path.glob("table-*")):
            Tables(tmp_path).of(*asked, PixelFeatures())
        return PixelFeatures()(part)

    np.testing.assert_array_equal(Tables(tmp_path).of(*asked, overtaken), PixelFeatures()(images))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("few_are_many")
def test_a_rare_class_and_groups_count_among_many(tmp_path: Path) -> None:
    """Evenly spaced images could miss a class of 15; what is learnt of labels does not, and groups stay whole."""
    many, calibration = blobs(6 * MANY, 0), blobs(120, 1)
    labels = many.labels.copy()
    rare = np.flatnonzero(labels == 1)
    keep = np.sort(np.concatenate([np.flatnonzero(labels == 0), rare[:15]]))
    reference = LabelledImages(images=many.images[keep], labels=labels[keep], groups=np.arange(len(keep)) // 3)
    for folder in (None, tmp_path):
        screen = settings(folder).fit(reference, calibration, reference)
        gate = screen.gates["irrelevant"]
        right, wrong = (
            gate.score(screen.embed(calibration.images, labels)) > gate.threshold for labels in (calibration.labels, 1 - calibration.labels)
        )
        assert wrong.mean() > 0.5 > right.mean()
    known = relevance._Known.of(screen.real.reference)
    assert (known.labels == 1).sum() == 15
    assert len(known.labels) <= MANY
    place = np.flatnonzero((reference.images == reference.images[0]).all(axis=(1, 2, 3)))
    assert known.groups[0] == reference.groups[place[0]]


def test_rows_are_taken_in_equal_shares_of_the_classes() -> None:
    labels = np.repeat([0, 1, 2], [900, 5, 95])[np.random.default_rng(0).permutation(1000)]
    rows = tables.class_rows(labels, 300)
    assert np.bincount(labels[rows]).tolist() == [100, 5, 95]
    assert (np.diff(rows) > 0).all()
    assert tables.class_rows(labels, 1000).tolist() == list(range(1000))
    assert np.bincount(labels[tables.class_rows(labels, 3)]).tolist() == [2, 2, 2]


def test_a_screen_for_judging_has_no_controls() -> None:
    reference, calibration = blobs(100, 0), blobs(80, 1)
    screen = settings(None).fit(reference, calibration, reference).for_judging()
    assert judged(screen)
    with pytest.raises(DataError, match="controls: expected the screen as it was fitted"):
        screen.controls(blobs(30, 7), count=5)


@pytest.mark.usefixtures("few_are_many")
def test_without_faiss_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    reference, calibration = blobs(MANY + 1, 0), blobs(80, 1)
    with pytest.raises(MissingExtraError, match=r"pip install 'monai-diverse\[faiss\]'"):
        settings(tmp_path).fit(reference, calibration, reference)
    assert judged(settings(None).fit(reference, calibration, reference))


def test_what_tables_hold_is_what_their_format_says() -> None:
    """Another view of the same images must be found under another name: raise FORMAT where these numbers change."""
    images = blobs(7, 0, side=20).images
    views = (
        _middle(images, CopyGate()),
        PixelFeatures(max_side=32, average_channels=True)(images),
        intensity_profile(images, 32),
        spectral_profile(images, 16, 1e-4),
        foreground_share(images, 0.3),
    )
    weights = [np.linspace(1, 2, view.shape[1]) for view in views]
    found = [(view.shape[1], round(float((view @ weight).sum()), 3)) for view, weight in zip(views, weights, strict=True)]
    assert (tables.FORMAT, found) == (1, FOUND)


@pytest.mark.usefixtures("fresh_processes")
def test_a_recipe_with_a_folder_grows_the_same_bank(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LARGE", 50)
    monkeypatch.setattr(relevance, "LARGE", 50)
    monkeypatch.setitem(Neighbours.__init__.__kwdefaults__, "index_from", 50)
    recipe = Recipe.load(recipe_file)
    with_folder = replace(recipe, screen=Component(target=recipe.screen.target, arguments={**recipe.screen.arguments, "folder": "tables"}))
    assert Job.prepare(with_folder).fingerprint == Job.prepare(recipe).fingerprint
    assert (recipe.folder / "tables").is_dir()
    plain, mapped_bank = grow(recipe, tmp_path / "plain"), grow(with_folder, tmp_path / "mapped", workers=Processes(devices=("cpu", "cpu")))
    assert mapped_bank.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(mapped_bank.images[:], plain.images[:])


def test_the_threshold_of_the_foreground_is_that_of_all_images() -> None:
    images = blobs(700, 3).images
    parts = [otsu_threshold(images[np.random.default_rng(seed).permutation(700)]) for seed in range(3)]
    assert len(set(parts)) == 1, "the order does not matter, whatever is looked at together"


def test_every_block_of_images_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "BLOCK", 10)
    images = blobs(35, 0).images
    images[[12, 34], 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="in 2 of 35, first at index 12"):
        check_images(images)
