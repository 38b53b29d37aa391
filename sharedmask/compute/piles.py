"""Piles: regions side by side in one array, so that one call reduces all of them.

Covers: which regions make a pile, where their voxels are in it, sums and extremes of all. Does not cover:
where rows come from, what is made of sums (``reduction``).

Threads leave the interpreter for each call and wait for each other where they come back: with a call per
region two of them are hardly faster than one.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sharedmask.compute.strategies import EXTREMES, SQUARES, squares_of
from sharedmask.typing import Array, NDArray


class Pile(NamedTuple):
    """Regions of like size, as if each had as many voxels as the largest."""

    regions: NDArray[np.intp]
    """Their numbers, (n_regions,)."""
    sizes: NDArray[np.intp]
    """Their voxels, (n_regions, 1)."""
    places: NDArray[np.intp]
    """Of the voxels, (n_regions * most voxels,): a region's last one takes the places that are left."""
    left: NDArray[np.bool_]
    """Which places those are."""

    def of(self, values: Array) -> Array:
        """Values at ``places``, (n_regions, most voxels, n_volumes)."""
        return values.reshape(len(self.sizes), -1, values.shape[1])

    def reduce(self, values: Array, strategy: str, out: Array) -> None:
        """Sums, of values or of squared differences from the mean, or extremes; values are overwritten."""
        rows = self.of(values)
        if strategy in EXTREMES:
            EXTREMES[strategy].reduce(rows, axis=1, out=out)
            return
        is_uneven = self.sizes[-1, 0] < self.sizes[0, 0]
        if is_uneven:
            values[self.left] = 0
        np.add.reduce(rows, axis=1, dtype=np.float64, out=out)
        if strategy in SQUARES:
            out /= self.sizes
            squares_of(rows, out[:, None], rows)
            if is_uneven:
                values[self.left] = 0
            np.add.reduce(rows, axis=1, out=out)


class Stack(NamedTuple):
    """Piles as they travel: what each has, one after the other."""

    numbers: NDArray[np.intp]
    """Of all regions, the largest first, (n_regions,)."""
    sizes: NDArray[np.intp]
    places: NDArray[np.intp]
    left: NDArray[np.bool_]
    counts: NDArray[np.intp]
    """How many regions each pile has, (n_piles,)."""

    def piles(self) -> Iterator[Pile]:
        sizes, region, place = self.sizes.tolist(), 0, 0
        for n_regions in self.counts.tolist():
            mine = slice(region, region + n_regions)
            span = slice(place, place + n_regions * sizes[region])
            yield Pile(self.numbers[mine], self.sizes[mine, None], self.places[span], self.left[span])
            region, place = mine.stop, span.stop

    def parts(self, n_parts: int) -> "Iterator[Stack]":
        """So many at most, of whole piles and about as many places each."""
        regions = np.append(0, np.cumsum(self.counts))
        heights = self.sizes[regions[:-1]]
        places = np.append(0, np.cumsum(heights * self.counts))
        cuts = np.arange(1, n_parts) * places[-1] // max(1, n_parts)
        bounds = np.unique([0, *np.searchsorted(places, cuts), len(self.counts)])
        for first, last in pairwise(bounds.tolist()):
            mine, span = slice(*regions[[first, last]]), slice(*places[[first, last]])
            counts = self.counts[first:last]
            yield Stack(self.numbers[mine], self.sizes[mine], self.places[span], self.left[span], counts)


def stacked(offsets: NDArray[np.intp], most: int) -> Stack:
    """All regions, ``offsets[i]:offsets[i + 1]`` each, in piles of so many voxels; larger ones alone.

    Examples
    --------
    >>> for pile in stacked(np.array([0, 2, 3, 7]), 4).piles():
    ...     print(pile.regions, pile.places, pile.left.sum())
    [2] [3 4 5 6] 0
    [0 1] [0 1 2 2] 1
    """
    sizes = np.diff(offsets)
    order = np.argsort(-sizes, kind="stable")
    sizes = sizes[order]
    tall, counts = np.array(_cut(sizes.tolist(), most), np.intp).reshape(-1, 2).T
    heights = np.repeat(tall, counts)
    ends = np.cumsum(heights)
    steps, last = np.arange(heights.sum()) - np.repeat(ends - heights, heights), np.repeat(sizes - 1, heights)
    places, left = np.repeat(offsets[order], heights) + np.minimum(steps, last), steps > last
    return Stack(order, sizes, places, left, counts)


def _cut(sizes: list[int], most: int) -> list[tuple[int, int]]:
    """The largest size and the number of regions of each pile; sizes are sorted, largest first."""
    tall, first = [], 0
    while first < len(sizes):
        n_regions = min(max(1, most // sizes[first]), len(sizes) - first)
        tall.append((sizes[first], n_regions))
        first += n_regions
    return tall
