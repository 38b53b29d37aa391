"""Coverage: which part of each region an image has, and which regions have enough.

Covers: regions cut to a brain mask, several atlases in one pass, columns for regions left out.
Does not cover: what regions are and the columns of their tables (``regions``), the file of a table
(``derivatives``), signals (``extraction``).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import EmptyMaskError, ParameterError
from sharedmask.records import dataclass
from sharedmask.regions.regions import Regions
from sharedmask.regions.sets import RegionRow
from sharedmask.spaces.space import Space
from sharedmask.typing import Array

T = TypeVar("T")


@dataclass(frozen=True)
class Coverage:
    """Atlases on one image: what is extracted in one pass, and each atlas's table.

    Attributes
    ----------
    regions : Regions
        Those of all atlases that are covered enough, cut to the brain, in the order of the tables.
    tables : tuple of list of RegionRow
        One per atlas, every region of it. ``column`` is the region's place in its atlas's signals,
        where regions that are not covered enough hold NaN.
    """

    regions: Regions
    tables: tuple[list[RegionRow], ...]
    _taken: tuple[NDArray[np.intp], ...]

    @classmethod
    def from_atlases(cls, atlases: Sequence[Regions], brain: Array | None, least: float = 0.0) -> "Coverage":
        """Cut ``atlases`` to ``brain``.

        Parameters
        ----------
        atlases : sequence of Regions
            On one grid.
        brain : ndarray of int, optional
            Sorted numbers of the voxels inside the brain mask; all by default.
        least : float
            Share of a region's voxels that must be inside, 0 to 1.

        Raises
        ------
        ParameterError
            If ``least`` is no share.
        EmptyMaskError
            If no region is covered enough.
        """
        check_share(least)
        tables = tuple(_numbered(regions.table(brain)) for regions in atlases)
        taken = tuple(_enough(table, least) for table in tables)
        if not any(map(len, taken)):
            best = max((row.coverage for table in tables for row in table), default=0.0)
            raise EmptyMaskError(
                f"no region is covered enough: {least:g} is asked for, the best has {best:.3g}"
            )
        atlas_rows = zip(atlases, tables, taken, strict=True)
        picked = [region for rows in atlas_rows for region in _picked(*rows, brain)]
        return cls(_joined(picked, atlases[0].grid), tables, taken)

    def split(self, signals: Array) -> list[Array]:
        """The signals of :attr:`regions`, (n_timepoints, n_taken), as one array per atlas.

        Returns
        -------
        list of ndarray, (n_timepoints, n_rows)
            One column per row of the atlas's table, NaN for those that are not covered enough.
        """
        found, start = [], 0
        for table, taken in zip(self.tables, self._taken, strict=True):
            columns = np.full((len(signals), len(table)), np.nan, signals.dtype)
            columns[:, taken] = signals[:, start : start + len(taken)]
            found.append(columns)
            start += len(taken)
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
        found, left = [], iter(zip(self.regions.names, series, strict=True))
        for taken in self._taken:
            found.append(dict(next(left) for _ in taken))
        return found


def check_share(least: float) -> None:
    """That it is a share of a region's voxels.

    Raises
    ------
    ParameterError
    """
    if not 0 <= least <= 1:
        raise ParameterError(f"min_coverage={least} is no share: give a number from 0 to 1")


def _numbered(table: Sequence[RegionRow]) -> list[RegionRow]:
    return [row if row.column == n else replace(row, column=n) for n, row in enumerate(table)]


def _enough(table: Sequence[RegionRow], least: float) -> NDArray[np.intp]:
    """Rows of the table whose regions are covered: at least one voxel, whatever is asked."""
    covered = [row.n_voxels_in_mask > 0 and row.coverage >= least for row in table]
    return np.flatnonzero(covered)


def _picked(
    regions: Regions, table: Sequence[RegionRow], rows: NDArray[np.intp], brain: Array | None
) -> list[tuple[int, str, Array, Array | None]]:
    """Label, name, voxels and their weights of the regions in these rows of the table."""
    numbers = {label: number for number, label in enumerate(regions.labels)}
    held = regions if brain is None else regions.within(brain)
    picked = []
    for row in (table[number] for number in rows):
        start, stop = held.offsets[numbers[row.index] :][:2]
        own = None if held.weights is None else held.weights[start:stop]
        picked.append((row.index, row.name, held.indices[start:stop], own))
    return picked


def _joined(picked: Sequence[tuple[int, str, Array, Array | None]], grid: Space) -> Regions:
    labels, names, voxels, weights = zip(*picked, strict=True)
    offsets = np.cumsum([0, *map(len, voxels)])
    joined = None if weights[0] is None else np.concatenate(weights)
    return Regions(grid, np.concatenate(voxels), offsets, names, labels, "list", weights=joined)
