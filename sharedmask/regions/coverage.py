"""Coverage: which part of each region an image has, and which regions have enough.

Covers: regions cut to a brain mask, several atlases in one pass, columns for regions left out.
Does not cover: what regions are and the columns of their tables (``sets``), the file of a table
(``derivatives``), signals (``extraction``).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np

from sharedmask.errors import EmptyMaskError, ParameterError
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.regions.sets import RegionRow
from sharedmask.typing import Array, NDArray

T = TypeVar("T")


@dataclass(frozen=True)
class Coverage:
    """Atlases on one image: what is extracted in one pass, and each atlas's table."""

    regions: Regions
    """Those of all atlases that are covered enough, cut to the brain, in the order of the tables."""
    tables: tuple[list[RegionRow], ...]
    """One per atlas, every region of it. ``column`` is the region's place in its atlas's signals, where
    regions that are not covered enough hold NaN."""
    _taken: tuple[NDArray[np.intp], ...]

    @classmethod
    def from_atlases(cls, atlases: Sequence[Regions], brain: Array | None, least: float = 0.0) -> "Coverage":
        """Cut ``atlases``, which are on one grid, to the voxels of ``brain``, sorted numbers (None: all).

        Raises ParameterError: ``least``, the share of a region's voxels that must be inside, is none.
        Raises EmptyMaskError: no region is covered enough.
        """
        check_share(least)
        tables = tuple(atlas.table(brain) for atlas in atlases)
        taken = tuple(_enough(table, least) for table in tables)
        if not any(map(len, taken)):
            best = max((row.coverage for table in tables for row in table), default=0.0)
            raise EmptyMaskError(
                f"no region is covered enough: {least:g} is asked for, the best has {best:.3g}"
            )
        picked = [
            (atlas if brain is None else atlas.within(brain)).picked(_columns(table, rows))
            for atlas, table, rows in zip(atlases, tables, taken, strict=True)
            if len(rows)
        ]
        regions = replace(Regions.joined(picked), container="list")
        return cls(regions, tuple(map(_numbered, tables)), taken)

    def split(self, signals: Array) -> list[Array]:
        """The signals of :attr:`regions`, (n_timepoints, n_taken), as one array per atlas.

        (n_timepoints, n_rows): a column per row of its table, NaN for those that are not covered enough.
        """
        found = []
        for table, taken, span in zip(self.tables, self._taken, self.spans, strict=True):
            columns = np.full((len(signals), len(table)), np.nan, signals.dtype)
            columns[:, taken] = signals[:, slice(*span)]
            found.append(columns)
        return found

    def spread(self, matrices: Sequence[Array]) -> list[Array]:
        """Matrices of :attr:`parts` as those of the tables, NaN for regions that are not covered enough."""
        found = []
        for table, taken, matrix in zip(self.tables, self._taken, matrices, strict=True):
            if len(taken) == len(table):
                found.append(matrix)
                continue
            found.append(np.full((len(table),) * 2, np.nan))
            found[-1][np.ix_(taken, taken)] = matrix
        return found

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Where in :attr:`regions` each atlas begins and ends."""
        return list(pairwise(np.cumsum([0, *map(len, self._taken)]).tolist()))

    @property
    def parts(self) -> list[Regions]:
        """:attr:`regions`, atlas by atlas."""
        return [self.regions.part(start, stop) for start, stop in self.spans]

    def share(self, series: Sequence[T]) -> list[dict[str, T]]:
        """One thing per region of :attr:`regions` as one mapping per atlas, by the regions' names."""
        names = self.regions.names
        return [dict(zip(names[a:b], series[a:b], strict=True)) for a, b in self.spans]


def _columns(table: Sequence[RegionRow], rows: NDArray[np.intp]) -> list[int]:
    """Places of some regions in their atlas; each of them has voxels."""
    return [column for row in rows.tolist() if (column := table[row].column) is not None]


def check_share(least: float) -> None:
    """Refuse what is no share of a region's voxels."""
    if not 0 <= least <= 1:
        raise ParameterError(f"min_coverage={least} is no share: give a number from 0 to 1")


def _numbered(table: Sequence[RegionRow]) -> list[RegionRow]:
    return [row if row.column == n else row._replace(column=n) for n, row in enumerate(table)]


def _enough(table: Sequence[RegionRow], least: float) -> NDArray[np.intp]:
    """Rows of the table whose regions are covered: at least one voxel, whatever is asked."""
    covered = [row.n_voxels_in_mask > 0 and row.coverage >= least for row in table]
    return np.flatnonzero(covered)
