"""Nearest neighbours among rows that become more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monai_diverse.information.neighbours import INDEX_FROM, DoubleArray, Neighbours


@dataclass(frozen=True, eq=False)
class GrowingNeighbours:
    """The distance to the nearest of some rows, to which others are added; adding makes a new value, and leaves this one as it is.

    Rows lie in tables, each more than twice as large as the next, so that a row is copied once for each doubling (the logarithmic method, Bentley &
    Saxe 1980). Tables are `Neighbours`: exact, and from `index_from` rows on an index.

    Attributes:
        tables: from the largest to the smallest.
        index_from: as `Neighbours`'s.
    """

    tables: tuple[Neighbours, ...] = ()
    index_from: int | None = INDEX_FROM

    def __len__(self) -> int:
        return sum(len(table) for table in self.tables)

    def plus(self, rows: npt.ArrayLike) -> GrowingNeighbours:
        """These rows and others (m, d), m from 0.

        Raises:
            DataError: rows that are not finite.
        """
        added = np.asarray(rows)
        if not len(added):
            return self
        kept = list(self.tables)
        parts = [added]
        count = len(added)
        while kept and len(kept[-1]) <= 2 * count:
            table = kept.pop()
            parts.append(table.rows())
            count += len(table)
        merged = Neighbours(np.concatenate(parts[::-1]), index_from=self.index_from)
        return GrowingNeighbours((*kept, merged), self.index_from)

    def nearest(self, query: npt.ArrayLike) -> DoubleArray:
        """Distance (m,) of each of (m, d) to the nearest row; infinite where there is none.

        Raises:
            DataError: queries of another width or not finite.
        """
        points = np.asarray(query)
        best = np.full(len(points), np.inf)
        for table in self.tables:
            best = np.minimum(best, table.distances(points, 1)[:, 0])
        return best
