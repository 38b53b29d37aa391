"""Sets of voxels: numbers on one grid, one set after the other, and their names.

Covers: the sets themselves, some of them, several joined, one result for each, the region table. Does not
cover: reading masks and atlases, another grid (``regions``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from sharedmask import errors
from sharedmask.records import dataclass
from sharedmask.regions.masks import Container
from sharedmask.spaces.space import Space
from sharedmask.system.process import cached_property
from sharedmask.typing import Array, Numbers

T = TypeVar("T")


class RegionRow(NamedTuple):
    """One row of the region table; ``column`` is the region's position, None for a region without voxels."""

    index: int  # type: ignore[assignment]  # as the column is called, instead of the method of tuples
    name: str
    n_voxels: int
    n_voxels_in_mask: int
    coverage: float
    column: int | None


@dataclass(frozen=True, eq=False)
class Sets:
    """Sets of voxels on one grid; :class:`Regions` says what its fields are."""

    grid: Space
    indices: Numbers
    offsets: Numbers
    names: tuple[str, ...]
    labels: tuple[int, ...]
    container: Container
    keys: tuple[Hashable, ...] = ()
    missing: tuple[tuple[int, str], ...] = ()
    weights: Array | None = None

    def __post_init__(self) -> None:
        for field in ("indices", "offsets"):
            view = np.asarray(getattr(self, field), dtype=np.intp).view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)
        object.__setattr__(self, "keys", self.keys or self.names)
        self._check()

    def _check(self) -> None:
        """Refuse numbers that name no voxel: those of other voxels would be taken."""
        count, ends = len(self.indices), self.offsets
        each = len(self.names), len(self.labels), len(self.keys)
        if set(each) != {len(ends) - 1} or [*ends[[0, -1]]] != [0, count] or (np.diff(ends) < 0).any():
            raise errors.MaskError(
                f"offsets do not cut {count} voxels into {each[0]} regions, each with a label"
            )
        if self.weights is not None and len(self.weights) != count:
            raise errors.MaskError(f"{len(self.weights)} weights are given for {count} voxels")
        if count and not 0 <= self.indices.min() <= self.indices.max() < self.grid.n_voxels:
            beyond = self.indices[(self.indices < 0) | (self.indices >= self.grid.n_voxels)]
            raise errors.MaskError(f"there is no voxel {beyond[0]}: the grid has {self.grid.n_voxels}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Numbers:
        i = range(len(self))[i]
        return self.indices[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[Numbers]:
        return (self[i] for i in range(len(self)))

    @property
    def sizes(self) -> Numbers:
        """Number of voxels of each region."""
        return np.diff(self.offsets)

    @cached_property
    def union(self) -> Numbers:
        """Numbers of the voxels that are in any region, sorted, each once."""
        inside = np.zeros(self.grid.n_voxels, bool)
        inside[self.indices] = True
        union = np.flatnonzero(inside)
        union.flags.writeable = False
        return union

    @cached_property
    def in_order(self) -> Numbers:
        """``indices`` with those of each region sorted."""
        region = np.repeat(np.arange(len(self)) * self.grid.n_voxels, self.sizes)
        return np.sort(region + self.indices) - region

    @cached_property
    def digest(self) -> str:
        """Hexadecimal digest of grid, voxels, names and labels."""
        heading = json.dumps([self.grid.shape, self.names, self.labels, len(self.indices)])
        digest = hashlib.blake2b(heading.encode(), digest_size=16)
        digest.update(self.grid.identity)
        digest.update(self.indices.astype("<i8", copy=False).tobytes())
        digest.update(self.offsets.astype("<i8", copy=False).tobytes())
        digest.update(b"" if self.weights is None else self.weights.astype("<f8", copy=False).tobytes())
        return digest.hexdigest()

    def pack(self, results: Sequence[T]) -> T | list[T] | dict[Any, T]:
        """Put one result per region into the caller's container.

        Parameters
        ----------
        results : sequence
            One per region.

        Returns
        -------
        object, list or dict
            Those results.
        """
        if len(results) != len(self):
            raise errors.ParameterError(f"{len(results)} results for {len(self)} regions")
        if self.container == "single":
            return results[0]
        return list(results) if self.container == "list" else dict(zip(self.keys, results, strict=True))

    def batches(self, size: int) -> Iterator[Self]:
        """The same regions, some at a time, as dicts.

        Parameters
        ----------
        size : int
            The most at a time.

        Yields
        ------
        Regions
            The next.
        """
        for start in range(0, len(self), size):
            yield self.part(start, start + size)

    def within(self, voxels: Numbers) -> Self:
        """What of each region is among some voxels.

        Parameters
        ----------
        voxels : ndarray of int
            Numbers of voxels of the grid.

        Returns
        -------
        Regions
            As many; one of which nothing is among them has no voxels.
        """
        return self._where(self._are_among(voxels))

    def _are_among(self, voxels: Numbers) -> Array:
        """Of each voxel of the regions whether it is one of those; by a table, which needs no sorting."""
        there = np.zeros(self.grid.n_voxels, bool)
        there[voxels] = True
        return there[self.indices]

    def _where(self, here: Array) -> Self:
        offsets = np.append(0, np.cumsum(here))[self.offsets]
        weights = None if self.weights is None else self.weights[here]
        return replace(self, indices=self.indices[here], offsets=offsets, weights=weights)

    def without_empty(self) -> Self:
        """Those that have voxels.

        Returns
        -------
        Regions
            In their order; perhaps none.
        """
        return self.picked(np.flatnonzero(self.sizes).tolist())

    def picked(self, numbers: Sequence[int]) -> Self:
        """Some of the regions.

        Parameters
        ----------
        numbers : sequence of int
            In the order that is wanted.

        Returns
        -------
        Regions
            Those; themselves if they are all.
        """
        if list(numbers) == list(range(len(self))):
            return self
        voxels = np.concatenate([np.empty(0, np.intp), *(self._span(number) for number in numbers)])
        return replace(
            self,
            indices=self.indices[voxels],
            offsets=np.append(0, np.cumsum(self.sizes[list(numbers)])),
            names=tuple(self.names[number] for number in numbers),
            labels=tuple(self.labels[number] for number in numbers),
            keys=tuple(self.keys[number] for number in numbers),
            weights=None if self.weights is None else self.weights[voxels],
        )

    def _span(self, number: int) -> Numbers:
        return np.arange(self.offsets[number], self.offsets[number + 1])

    def part(self, start: int, stop: int) -> Self:
        """Some of the regions, as a dict.

        Parameters
        ----------
        start, stop : int
            From this number up to, and without, that one.

        Returns
        -------
        Regions
            Those.
        """
        part, offsets = slice(start, stop), self.offsets[start : stop + 1]
        voxels = slice(offsets[0], offsets[-1])
        return replace(
            self,
            indices=self.indices[voxels],
            offsets=offsets - offsets[0],
            names=self.names[part],
            labels=self.labels[part],
            keys=self.keys[part],
            container="dict",
            weights=None if self.weights is None else self.weights[voxels],
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The regions of several on one grid, as a dict: the opposite of :meth:`batches`.

        Parameters
        ----------
        parts : sequence of Regions
            At least one.

        Returns
        -------
        Regions
            All of them.
        """
        names, labels, keys = (
            tuple(item for part in parts for item in getattr(part, what))
            for what in ("names", "labels", "keys")
        )
        indices = np.concatenate([part.indices for part in parts])
        offsets = np.cumsum([0, *(size for part in parts for size in part.sizes)])
        weights = None
        if any(part.weights is not None for part in parts):
            each = [np.ones(len(part.indices)) if part.weights is None else part.weights for part in parts]
            weights = np.concatenate(each)
        return cls(parts[0].grid, indices, offsets, names, labels, "dict", keys, weights=weights)

    def table(self, stored: Numbers | None = None) -> list[RegionRow]:
        """One row per region, those in ``missing`` included.

        Parameters
        ----------
        stored : ndarray, (n,), optional
            Numbers of the voxels that an image holds (its ``mask_img``); all by default.

        Returns
        -------
        list of RegionRow
            In the order of the labels where some are missing; ``coverage`` is the share of the region's
            voxels that are among those held.
        """
        inside = np.ones(len(self.indices), bool) if stored is None else self._are_among(stored)
        held = np.diff(np.cumsum(np.append(False, inside))[self.offsets])
        columns = zip(self.labels, self.names, self.sizes.tolist(), held.tolist(), strict=True)
        # Each of very many runs has hundreds of them.
        rows = [RegionRow(k, name, n, m, m / n if n else 0.0, i) for i, (k, name, n, m) in enumerate(columns)]
        absent = [RegionRow(index, name, 0, 0, 0.0, None) for index, name in self.missing]
        return sorted(rows + absent, key=lambda row: row.index) if absent else rows
