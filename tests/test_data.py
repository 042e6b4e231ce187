import hashlib
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from PIL import Image

from monai_diverse.data import (
    LabelledImages,
    available_splits,
    check_images,
    check_labels,
    class_names,
    load_images,
    near_duplicate_groups,
    require_every_class,
    split_by_group,
)
from monai_diverse.errors import DataError


def test_npz_of_medmnist_layout(blob_file: Path) -> None:
    data = load_images(blob_file, "val")
    stored = np.load(blob_file)
    assert data.images.shape == (40, 1, 8, 8)
    assert data.images.dtype == np.float32
    np.testing.assert_allclose(data.images[:, 0] * 255, stored["val_images"], atol=1e-4)
    np.testing.assert_array_equal(data.labels, stored["val_labels"].ravel())
    assert available_splits(blob_file) == ("train", "val", "test")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 6, 6), (4, 1, 6, 6)), ((4, 6, 6, 3), (4, 3, 6, 6)), ((4, 5, 6, 7), (4, 1, 5, 6, 7))],
)
def test_npz_axes(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).random(shape), labels=[0, 1, 0, 1])
    data = load_images(tmp_path / "a.npz")
    assert data.images.shape == expected
    assert available_splits(tmp_path / "a.npz") == ()


def test_pictures_of_other_byte_order_and_of_several_pages(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    deep = np.array([[0, 65535], [32768, 256]], dtype=np.uint16)
    Image.frombytes("I;16B", (2, 2), deep.astype(">u2").tobytes()).save(tmp_path / "a" / "0.tif")
    np.testing.assert_allclose(load_images(tmp_path).images[0, 0] * 65535, deep, atol=0.01)
    pages = [Image.fromarray(np.full((2, 2), grey, dtype=np.uint8)) for grey in (10, 20)]
    pages[0].save(tmp_path / "a" / "0.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"0\.tif: expected one picture, got 2 pages"):
        load_images(tmp_path)


def test_groups_may_be_names_of_patients() -> None:
    images, labels = np.zeros((4, 1, 4, 4)), [0, 1, 0, 1]
    names = np.array(["p7", "p2", "p7", "p10"], dtype=object)
    data = LabelledImages(images=images, labels=labels, groups=names)
    assert data.group_ids.tolist() == [2, 1, 2, 0]
    assert data.group_ids.dtype == np.int64
    assert LabelledImages(images=images, labels=labels, groups=[3, 3, 4, 5]).group_ids.tolist() == [3, 3, 4, 5]
    for wrong in (["p1", None, "p2", "p3"], [0.5, 1.0, 2.0, 3.0]):
        with pytest.raises(DataError, match="groups: expected whole numbers or text"):
            LabelledImages(images=images, labels=labels, groups=np.array(wrong, dtype=object))


def test_undivided_images_have_no_val_split(tmp_path: Path) -> None:
    """Else images to compare with would be those that were trained on."""
    _pictures(tmp_path / "folder", benign=10, malignant=20)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4)), labels=[0, 1])
    for name, expected in (("folder", "a subfolder val"), ("a.npz", "arrays 'val_images' and 'val_labels'")):
        assert len(load_images(tmp_path / name)) == 2
        with pytest.raises(DataError, match=f"{name}: expected {expected}, got images that are not divided"):
            load_images(tmp_path / name, "val")
    np.savez(tmp_path / "both.npz", images=np.zeros((2, 4, 4)), labels=[0, 1], train_images=np.ones((3, 4, 4)), train_labels=[0, 1, 1])
    assert len(load_images(tmp_path / "both.npz")) == 3
    with pytest.raises(DataError, match=r"both\.npz: expected arrays 'val_images' and 'val_labels', got only train"):
        load_images(tmp_path / "both.npz", "val")


def test_folder_gives_what_the_pictures_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored = []
    for name in ("benign", "malignant"):
        (tmp_path / name).mkdir()
        for i in range(2):
            stored.append(rng.integers(0, 256, (5, 7), dtype=np.uint8))
            Image.fromarray(stored[-1]).save(tmp_path / name / f"{i}.png")
    data = load_images(tmp_path)
    np.testing.assert_allclose(data.images[:, 0] * 255, stored, atol=1e-4)
    assert data.labels.tolist() == [0, 0, 1, 1]


def _pictures(folder: Path, **grey: int) -> None:
    for name, value in grey.items():
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), value, dtype=np.uint8)).save(folder / name / "0.png")


def test_classes_have_one_number_over_all_splits(tmp_path: Path) -> None:
    _pictures(tmp_path / "train", benign=10, malignant=20, normal=30)
    _pictures(tmp_path / "val", benign=10, normal=30)
    assert class_names(tmp_path) == ("benign", "malignant", "normal")
    assert load_images(tmp_path).labels.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"val.malignant: expected images"):
        load_images(tmp_path, "val")
    _pictures(tmp_path / "val", malignant=20)
    np.testing.assert_allclose(load_images(tmp_path, "val").images[:, 0, 0, 0] * 255, [10, 20, 30], atol=1e-4)
    with pytest.raises(DataError, match="expected a subfolder test"):
        load_images(tmp_path, "test")


def test_sixteen_bit_and_colour_pictures(tmp_path: Path) -> None:
    (tmp_path / "deep" / "a").mkdir(parents=True)
    (tmp_path / "colour" / "a").mkdir(parents=True)
    deep = np.array([[0, 65535], [32768, 1]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep" / "a" / "0.png")
    np.testing.assert_allclose(load_images(tmp_path / "deep").images[0, 0] * 65535, deep, atol=0.01)
    colour = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    Image.fromarray(colour).save(tmp_path / "colour" / "a" / "0.png")
    np.testing.assert_allclose(load_images(tmp_path / "colour").images[0] * 255, colour.transpose(2, 0, 1), atol=1e-4)


def _write(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "bad.npz", **arrays)
    return folder / "bad.npz"


def test_bad_files_are_named(tmp_path: Path, blob_file: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_images(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match=r"expected an \.npz archive"):
        load_images(tmp_path / "text.npz")
    (tmp_path / "half.npz").write_bytes(blob_file.read_bytes()[:3000])
    with pytest.raises(DataError, match="complete download"):
        load_images(tmp_path / "half.npz")
    broken = bytearray(blob_file.read_bytes())
    broken[200:260] = b"\0" * 60
    (tmp_path / "broken.npz").write_bytes(broken)
    with pytest.raises(DataError, match="complete download"):
        load_images(tmp_path / "broken.npz")
    with pytest.raises(DataError, match="expected arrays 'train_images'"):
        load_images(_write(tmp_path, pictures=np.zeros((2, 4, 4))))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        load_images(tmp_path / "one.npy")


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_images(_write(tmp_path, images=np.array([{}], dtype=object), labels=[0]))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.full((2, 4, 4), np.nan), [0, 1], "NaN"),
        (np.full((2, 4, 4), 7.0), [0, 1], r"values in \[0, 1\]"),
        (np.zeros((2, 4, 4), dtype=np.int16), [0, 1], "dtype int16"),
        (np.zeros((2, 4)), [0, 1], "expected images"),
        (np.zeros((0, 4, 4)), [], "at least one image of"),
        (np.zeros((2, 4, 4)), [0, 1, 1], r"expected shape \(2,\)"),
        (np.zeros((2, 4, 4)), [0, -1], "classes from 0"),
        (np.zeros((2, 4, 4)), [0, 0.5], "whole numbers"),
        (np.zeros((2, 4, 4)), [0, 10**10], "patient's number"),
        (np.zeros((2, 9, 9, 4)), [0, 1], "expected images"),
        (np.zeros((2, 1, 9, 9)), [0, 1], "expected images"),
        (np.zeros((2, 0, 9)), [0, 1], "at least one pixel"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, images: np.ndarray, labels: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_images(_write(tmp_path, images=images, labels=labels))


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="subfolder"):
        load_images(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="every split needs every class"):
        load_images(tmp_path)
    (tmp_path / "a" / "x.png").write_text("no picture")
    with pytest.raises(DataError, match="expected an image"):
        load_images(tmp_path)
    for name, side in (("x", 4), ("y", 5)):
        Image.fromarray(np.zeros((side, side), dtype=np.uint8)).save(tmp_path / "a" / f"{name}.png")
    with pytest.raises(DataError, match="one size"):
        load_images(tmp_path)


def test_checks() -> None:
    with pytest.raises(DataError, match="2 or 3 spatial axes"):
        check_images(np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match=r"classes 0\.\.1, got 2"):
        check_labels([0, 2], 2, classes=2)
    with pytest.raises(DataError, match="none of class 1"):
        require_every_class(np.array([0, 2]), 3, "reference")
    with pytest.raises(DataError, match="groups"):
        LabelledImages(images=np.zeros((2, 1, 4, 4)), labels=[0, 1], groups=np.zeros(3))


def test_near_duplicates_are_grouped_transitively() -> None:
    images = np.random.default_rng(0).random((6, 1, 8, 8)).astype(np.float32)
    noise = np.random.default_rng(1).normal(0, 0.01, images[0].shape)
    images[3] = images[0] + noise
    images[5] = images[3] * 0.5 + 0.2  # contrast and brightness do not matter to a correlation
    assert near_duplicate_groups(images).tolist() == [0, 1, 2, 0, 3, 0]


def test_groups_do_not_depend_on_the_chunks() -> None:
    """More images than one chunk holds, with twins far apart."""
    images = np.random.default_rng(0).random((2300, 1, 5, 5)).astype(np.float32)
    images[2250] = images[3]
    images[1100] = images[2250]
    groups = near_duplicate_groups(images, 0.999)
    assert groups[3] == groups[1100] == groups[2250]
    assert len(np.unique(groups)) == 2298


def test_split_keeps_groups_whole_and_classes_close() -> None:
    data = blobs(200, 0)
    grouped = LabelledImages(images=data.images, labels=data.labels, groups=np.arange(200) // 4)
    kept, aside = split_by_group(grouped, 5, seed=1)
    assert sorted([*kept, *aside]) == list(range(200))
    assert not set(grouped.groups[kept]) & set(grouped.groups[aside])
    assert abs(len(aside) - 40) <= 4
    assert abs(grouped.labels[aside].mean() - 0.5) < 0.1
    assert split_by_group(grouped, 5, seed=1)[1].tolist() == aside.tolist()
    assert split_by_group(grouped, 5, seed=2)[1].tolist() != aside.tolist()


def test_split_needs_enough_groups() -> None:
    data = blobs(6, 0)
    with pytest.raises(DataError, match="at least 5 groups"):
        split_by_group(data, 5, seed=0)


def test_the_hash_is_of_the_content_whatever_its_layout() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.random((4, 1, 3, 5), dtype=np.float32), np.array([0, 1, 0, 1])
    plain = LabelledImages(images=images, labels=labels)
    turned = LabelledImages(images=np.asfortranarray(images), labels=np.repeat(labels, 2)[::2])
    assert plain.sha256() == turned.sha256() == hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert len({plain.sha256(), plain.sha256(groups=True), LabelledImages(images=images, labels=1 - labels).sha256()}) == 3
    grouped = LabelledImages(images=images, labels=labels, groups=np.array([0, 0, 1, 1]))
    assert grouped.sha256() == plain.sha256()
    assert grouped.sha256(groups=True) != plain.sha256(groups=True)
