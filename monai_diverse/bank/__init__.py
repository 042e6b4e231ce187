"""Accepted samples on disk: safetensors shards, a hashed manifest, reads by position; and banks behind URLs."""

from monai_diverse.bank.derive import merge, select, split_by_class
from monai_diverse.bank.draw import LabelPolicy, check_policy, draw, eligible
from monai_diverse.bank.exchange import ExportFormat, export, import_images
from monai_diverse.bank.format import BankHeader, Origin
from monai_diverse.bank.images import LazyImages
from monai_diverse.bank.store import SampleBank, open_bank
from monai_diverse.bank.transfer import CopyProgress, copy_bank, copy_steps
from monai_diverse.bank.writer import BankWriter

__all__ = [
    "BankHeader",
    "BankWriter",
    "CopyProgress",
    "ExportFormat",
    "LabelPolicy",
    "LazyImages",
    "Origin",
    "SampleBank",
    "check_policy",
    "copy_bank",
    "copy_steps",
    "draw",
    "eligible",
    "export",
    "import_images",
    "merge",
    "open_bank",
    "select",
    "split_by_class",
]
