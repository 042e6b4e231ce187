"""Accepted samples on disk: safetensors shards, a hashed manifest, memory-mapped reads."""

from monai_diverse.bank.draw import LabelPolicy, check_policy, draw, eligible
from monai_diverse.bank.format import BankHeader
from monai_diverse.bank.store import LazyImages, SampleBank, open_bank
from monai_diverse.bank.writer import BankWriter

__all__ = ["BankHeader", "BankWriter", "LabelPolicy", "LazyImages", "SampleBank", "check_policy", "draw", "eligible", "open_bank"]
