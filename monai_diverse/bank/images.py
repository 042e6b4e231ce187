"""A bank's images as a sequence that reads what is indexed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from monai_diverse.bank.contents import Contents
from monai_diverse.bank.samples import dequantise
from monai_diverse.data import FloatArray

Index = slice | npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_] | list[int]


@dataclass(frozen=True)
class LazyImages:
    """A sequence of images that reads from disk what is indexed.

    An integer gives one image (c, *spatial); a slice, list, index array or mask a stack (m, c, *spatial); `np.asarray` all of them.
    Always float32 in [0, 1], always fresh memory. `stored` gives one image as it lies on disk.
    """

    _contents: Contents
    _count: int
    _image_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, c, *spatial)."""
        return (self._count, *self._image_shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[FloatArray]:
        return (self[i] for i in range(self._count))

    @overload
    def __getitem__(self, index: int) -> FloatArray: ...
    @overload
    def __getitem__(self, index: Index) -> FloatArray: ...
    def __getitem__(self, index: int | Index) -> FloatArray:
        if isinstance(index, int | np.integer):
            return dequantise(self.stored(index))
        if not (isinstance(index, slice) or (isinstance(index, list | np.ndarray) and np.ndim(index) == 1)):
            raise IndexError(f"expected one index, a slice, a list or a mask, got {index!r}")
        places = self._places(index)
        self._contents.open_all(places)
        result = np.empty((len(places), *self._image_shape), np.float32)
        for i, place in enumerate(places):
            result[i] = dequantise(self._contents.image(place))
        return result

    def stored(self, index: int | np.integer[Any]) -> npt.NDArray[Any]:
        """One image (c, *spatial) in the bank's own dtype, in fresh memory.

        Raises:
            IndexError: no such image.
        """
        place = int(index) + (self._count if index < 0 else 0)
        if not 0 <= place < self._count:
            raise IndexError(f"expected an index below {self._count}, got {index}")
        return self._contents.image(place)

    def _places(self, index: Index) -> Sequence[int]:
        """What an index names, in constant memory for a slice; raises IndexError as an array does."""
        if isinstance(index, slice):
            return range(*index.indices(self._count))
        chosen = np.asarray(index, dtype=None if len(index) else np.int64)
        if chosen.dtype == np.bool_:
            if len(chosen) != self._count:
                raise IndexError(f"expected a mask of {self._count}, got {len(chosen)}")
            return [int(place) for place in np.flatnonzero(chosen)]
        if chosen.dtype.kind not in "iu":
            raise IndexError(f"expected whole numbers or a mask as indices, got dtype {chosen.dtype}")
        if len(chosen) and not -self._count <= int(chosen.min()) <= int(chosen.max()) < self._count:
            raise IndexError(f"expected indices below {self._count}, got {int(chosen.min())}..{int(chosen.max())}")
        return [int(place) + (self._count if place < 0 else 0) for place in chosen]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("a bank's images are read from disk: they cannot become an array without a copy")
        return self[:].astype(dtype or np.float32, copy=False)
