"""Sums of all regions of volumes that pass by, step by step: step n adds the n-th voxel of each region.

Covers: sums and what is made of them, for blocks of volumes, with the bits of ``reduction``. Does not cover:
other strategies, rows of an image that is held (``reduction``).

A region's voxels are added one after the other in any case. All regions side by side make that one addition
of long rows, of values as they lie in their volumes::

    columns   a0 b0 c0 | a1 b1 c1 | a2 b2 | a3 a4 a5 ...      regions a, b, c, the largest first
              step 0     step 1     step 2  the rest, one region after the other
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from sharedmask.compute.reduction import add_volumes, arithmetic, reduce_volumes, whole_sums
from sharedmask.compute.strategies import SQUARES, SUMS, added
from sharedmask.records import dataclass
from sharedmask.sources.values import PIECE_BYTES, Conversion, convert, pieces, scale
from sharedmask.sources.volumes import Volumes
from sharedmask.typing import Array, NDArray

_STEPPED = SUMS | SQUARES
_LEAST_VALUES = 256  # in a step; with fewer, a region at a time is faster
_VOLUMES = 32  # in a block: fewer make shorter steps, more leave the cache
_CONVERTED = 512  # values at a time: numpy is slower where several short rows fit
_WHOLE_VOLUMES = 4  # of those that are summed one by one
_LEAST_BYTES = 256 * 1024  # of small volumes: a block has its own price


@dataclass(frozen=True)
class Reducer:
    """One value per region of volumes that pass by, and in which order it takes their voxels."""

    conversion: Conversion
    offsets: NDArray[np.intp]
    sizes: NDArray[np.intp]
    weights: Array | None
    whole: Mapping[str, type[np.signedinteger[Any]]]
    """Strategies whose sums are exact in integers, and in which."""
    all_whole: bool
    steps: "Steps | None"
    ordered: bool
    """Whether voxels come in the order of the steps; else one region after the other."""

    @classmethod
    def of(
        cls,
        strategies: Iterable[str],
        dtype: np.dtype[Any],
        conversion: Conversion,
        offsets: NDArray[np.intp],
        weights: Array | None = None,
    ) -> "Reducer":
        found = {one: whole_sums(dtype, conversion, one, offsets) for one in strategies}
        whole = {one: integers for one, integers in found.items() if integers is not None}
        omits = conversion.nan_policy == "omit"
        stepped = frozenset() if omits else _STEPPED.intersection(strategies) - whole.keys()
        steps = Steps.of(offsets, _VOLUMES) if stepped else None
        ordered, all_whole = stepped.issuperset(strategies), len(whole) == len(found)
        return cls(conversion, offsets, np.diff(offsets), weights, whole, all_whole, steps, ordered)

    @property
    def order(self) -> NDArray[np.intp] | slice:
        """In which it wants the voxels that lie one region after the other."""
        return self.steps.order if self.steps is not None and self.ordered else slice(None)

    def most(self, volumes: Volumes) -> int:
        """Of the volumes at a time, so that more would not be faster."""
        volume_bytes = volumes.n_voxels * volumes.dtype.itemsize
        return max(_WHOLE_VOLUMES if self.all_whole else _VOLUMES, _LEAST_BYTES // volume_bytes)

    def reduce(self, volumes: Array, out: Array, strategy: str) -> bool:
        """``out[v, i]`` = one value of region ``i`` in volume ``v``; whether all true values are finite."""
        if (whole := self.whole.get(strategy)) is not None:
            add_volumes(volumes, out, strategy, self.offsets, self.sizes, whole)
            return True
        if self.steps is None or strategy not in _STEPPED:
            return reduce_volumes(volumes, out, self.conversion, strategy, self.offsets, self.weights)
        columns = volumes if self.ordered else volumes.take(self.steps.order, 1)
        return self.steps.reduce(columns, out, self.conversion, strategy)


@dataclass(frozen=True)
class Steps:
    """In which order voxels are added."""

    order: NDArray[np.intp]
    """(n_voxels,): which voxel of the regions, one region after the other, is which column."""
    edges: tuple[int, ...]
    """Where the columns of each step begin, and those of the rest."""
    ranks: NDArray[np.intp]
    """The regions, the largest first."""
    sizes: NDArray[np.intp]
    """Their numbers of voxels, in that order."""

    @classmethod
    def of(cls, offsets: NDArray[np.intp], n_volumes: int) -> "Steps":
        """For blocks of so many volumes; region ``i`` is ``offsets[i]:offsets[i + 1]``."""
        sizes = np.diff(offsets)
        ranks = np.argsort(-sizes, kind="stable")
        rank = np.repeat(np.argsort(ranks), sizes)
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
        counts = np.bincount(place)
        n_steps = int(np.count_nonzero(counts * n_volumes >= _LEAST_VALUES))
        order = np.lexsort((place, rank, np.minimum(place, n_steps)))
        edges = (0, *np.cumsum(counts[:n_steps]).tolist())
        return cls(order, edges, ranks, sizes[ranks])

    def reduce(self, columns: Array, out: Array, conversion: Conversion, strategy: str) -> bool:
        """``out[v, i]`` = one value of region ``i`` in volume ``v``, from its values in :attr:`order`.

        Returns whether all true values are finite.

        Examples
        --------
        >>> plain, out = Conversion(1.0, 0.0, np.dtype("f4"), np.dtype("f8")), np.empty((1, 2))
        >>> steps = Steps.of(np.array([0, 2, 5]), 1)
        >>> steps.reduce(np.array([[1, 2, 6, 7, 8]], "f4")[:, steps.order], out, plain, "mean")
        True
        >>> out
        array([[1.5, 7. ]])
        """
        with arithmetic(_CONVERTED):
            made, finite = self._made(columns, lambda stored: scale(stored, conversion), strategy), True
            if not np.isfinite(made).all():  # else all values are
                seen: list[bool] = []

                def true(stored: Array) -> Array:
                    values = np.empty(stored.shape)
                    seen.append(convert(stored, values, conversion))
                    return values

                made, finite = self._made(columns, true, strategy), all(seen)
        out[:, self.ranks] = made
        return finite

    def _made(self, columns: Array, true: Callable[[Array], Array], strategy: str) -> Array:
        totals = self._added(columns, true)
        if strategy != "sum":
            totals /= self.sizes
        if strategy in SQUARES:
            totals = self._added(columns, true, totals)
            totals /= self.sizes
        return np.sqrt(totals, out=totals) if strategy == "standard_deviation" else totals

    def _added(self, columns: Array, true: Callable[[Array], Array], means: Array | None = None) -> Array:
        """(n_volumes, n_regions) sums, the largest region first; with ``means`` of squared differences."""
        totals = np.zeros((len(columns), len(self.sizes)))
        for start, stop in zip(self.edges[:-1], self.edges[1:], strict=True):
            values, total = true(columns[:, start:stop]), totals[:, : stop - start]
            if means is not None:
                values = np.subtract(values, means[:, : stop - start], dtype=np.float64, casting="unsafe")
                np.square(values, out=values)
            np.add(total, values, out=total, dtype=np.float64, casting="unsafe")
        for region, span in self._rest(len(columns)):
            values = np.empty((1 + span.stop - span.start, len(columns)))
            values[0] = totals[:, region]
            np.copyto(values[1:], true(columns[:, span]).T, casting="unsafe")
            if means is not None:
                np.square(np.subtract(values[1:], means[:, region], out=values[1:]), out=values[1:])
            totals[:, region] = added(values)
        totals += 0.0  # no sum is -0.0
        return totals

    def _rest(self, n_volumes: int) -> Iterator[tuple[int, slice]]:
        """The regions that have more voxels than there are steps, and their columns, piece by piece."""
        start = self.edges[-1]
        for region, left in enumerate((self.sizes - (len(self.edges) - 1)).tolist()):
            for piece in pieces(left, 8 * n_volumes, PIECE_BYTES) if left > 0 else ():
                yield region, slice(start + piece.start, start + piece.stop)
            start += max(left, 0)
