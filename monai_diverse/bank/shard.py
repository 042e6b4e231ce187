"""One shard: images and what is known of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.folder import BankFolder
from monai_diverse.bank.format import SCORE_PREFIX, BankHeader
from monai_diverse.bank.manifest import ShardRecord
from monai_diverse.bank.samples import COLUMNS, OPTIONAL, Samples, content_hash, place_of
from monai_diverse.bank.tensors import TensorFile


class Shard:
    """A shard, of which only what is asked for is read.

    Args:
        folder: the bank's.
        record: the line on it, in the manifest or in an index file.
        header: the bank's.
        pinned: see `TensorFile`.

    Raises:
        BankCorruptError: see `TensorFile`; or its tensors are not those of a shard of this bank.
    """

    def __init__(self, folder: BankFolder, record: ShardRecord, header: BankHeader, *, pinned: bool = False) -> None:
        self._record = record
        self._header = header
        self._file = TensorFile(folder, record, place_of(header, record.number), pinned=pinned)
        self._check_tensors()
        self._dtype = np.dtype(header.dtype).newbyteorder("<")

    def __len__(self) -> int:
        return self._record.count

    @property
    def record(self) -> ShardRecord:
        """The line on it."""
        return self._record

    @property
    def score_names(self) -> list[str]:
        """The scores that it holds, sorted."""
        return sorted(name.removeprefix(SCORE_PREFIX) for name in self._file.found if name.startswith(SCORE_PREFIX))

    def image(self, row: int) -> npt.NDArray[Any]:
        """One image (c, *spatial), as stored, in new memory; raises IndexError for a row that it has not."""
        if not 0 <= row < self._record.count:
            raise IndexError(f"expected a row below {self._record.count}, got {row}")
        image = np.empty(self._header.shape, self._dtype)
        self._file.read_into(image, "images", row * image.nbytes)
        return image

    def images(self) -> npt.NDArray[Any]:
        """All images (n, c, *spatial), as stored, in new memory."""
        return self._file.rows("images")

    def array(self, name: str) -> npt.NDArray[Any]:
        """A column by its name in the file: labels, seeds, scores.NAME, ...; its default where an earlier version wrote none.

        Raises:
            BankCorruptError: no such column, or labels, verdicts or origins that the bank does not know.
        """
        if name not in self._file.found and name in OPTIONAL:
            return np.full(len(self), OPTIONAL[name], COLUMNS[name])
        if name not in self._file.found:
            raise self._file.corrupt(f"expected a column {name} as in the other shards, got none")
        array = self._file.rows(name)
        self._file.check_values(name, array, self._header)
        return array

    def samples(self) -> Samples:
        """Everything in it, in memory."""
        columns = {name: self.array(name) for name in COLUMNS}
        return Samples(images=self.images(), **columns, scores={name: self.array(SCORE_PREFIX + name) for name in self.score_names})

    def verify(self) -> Samples:
        """Reads every byte and compares hashes, then values with what a bank may hold.

        Returns:
            Everything in it.

        Raises:
            BankCorruptError: something differs from what was written.
        """
        self._file.check_digest()
        samples = self.samples()
        if content_hash(samples, self._header) != self._record.content:
            raise self._file.corrupt("images, labels or seeds do not match the content hash")
        if samples.images.dtype.kind == "f" and not (np.isfinite(samples.images).all() and 0 <= samples.images.min() <= samples.images.max() <= 1):
            raise self._file.corrupt("expected finite pixels in [0, 1], got others")
        return samples

    def _check_tensors(self) -> None:
        count, found = self._record.count, self._file.found
        expected = {"images": (self._header.dtype, (count, *self._header.shape))}
        expected |= {name: (dtype, (count,)) for name, dtype in COLUMNS.items() if name in found or name not in OPTIONAL}
        expected |= {SCORE_PREFIX + name: ("float32", (count,)) for name in self.score_names}
        self._file.check(expected, f"images, labels, seeds, scores.* and perhaps {', '.join(OPTIONAL)}")
