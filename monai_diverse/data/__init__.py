"""Labelled real images: read, checked, grouped and split."""

from monai_diverse.data.files import available_splits, class_names, load_images, load_pictures
from monai_diverse.data.groups import near_duplicate_groups, split_by_group
from monai_diverse.data.labelled import FloatArray, IntArray, LabelledImages, check_images, check_labels, require_every_class
from monai_diverse.data.shares import label_shares, require_labels

__all__ = [
    "FloatArray",
    "IntArray",
    "LabelledImages",
    "available_splits",
    "check_images",
    "check_labels",
    "class_names",
    "label_shares",
    "load_images",
    "load_pictures",
    "near_duplicate_groups",
    "require_every_class",
    "require_labels",
    "split_by_group",
]
