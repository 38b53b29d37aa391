"""Requests on rows: the signals of regions, one value per region, a function on each region.

Covers: cutting work into blocks, threads or processes, outputs. Does not cover: what may be asked
(``parameters``), how rows came to be (``image``), which voxels make a region (``regions``), the
arithmetic (``kernels``), the processes (``pool``).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask import kernels, pool
from sharedmask.errors import OutsideImageError, ParameterError
from sharedmask.parameters import Progress, Request
from sharedmask.pool import Shared
from sharedmask.regions import Regions
from sharedmask.registry import Owned
from sharedmask.sources import Source

Array = NDArray[Any]

# Blocks do not depend on n_jobs, so neither do the numbers.
_BLOCK_BYTES = 8 * 2**20
_CLEAN_COLUMNS = 512
_CLEANING_MODULES = ("nilearn.signal",)


@dataclass(frozen=True)
class Rows:
    """The series of an image's voxels: where they are, and what their values mean."""

    source: Source
    array: Array
    finite: bool
    voxels: NDArray[np.intp] | None = None
    """Sorted numbers of the voxels held, one per row; None for all of the image's."""
    shared: Shared | None = None

    def positions(self, regions: Regions) -> NDArray[np.intp]:
        """Row numbers of all regions' voxels, one region after the other.

        Raises
        ------
        OutsideImageError
            Naming the first region with voxels that are not held, and how many.
        """
        wanted = regions.indices
        if self.voxels is None:
            return wanted
        found = np.searchsorted(self.voxels, wanted)
        found[found == len(self.voxels)] = 0
        outside = self.voxels[found] != wanted
        if outside.any():
            first = int(np.searchsorted(regions.offsets, np.argmax(outside), side="right")) - 1
            span = slice(regions.offsets[first], regions.offsets[first + 1])
            raise OutsideImageError(
                f"mask {regions.names[first]} has {int(outside[span].sum())} of its {regions.sizes[first]} "
                f"voxels outside of the mask_img with which {self.source.name} was loaded"
            )
        return found

    def argument(self, processes: bool) -> Array | Shared:
        return self.shared if processes and self.shared is not None else self.array


# --- outputs and blocks --------------------------------------------------------------------------


@contextlib.contextmanager
def _output(shape: tuple[int, int], dtype: np.dtype[Any], processes: bool) -> Iterator[tuple[Array, Any]]:
    """An array to return, and what a kernel gets for it.

    Workers write into a shared segment. Its name goes as soon as they are done; the bytes go with
    the last view, like those of any array.
    """
    if not processes:
        array = np.empty(shape, dtype)
        yield array, array
        return
    owned = Owned("output", {"out": (shape, dtype)})
    try:
        array = owned.segment.array("out")
        yield array, Shared(owned.share({}, writable=True), "out", writable=True)
    finally:
        owned.release()


def _in_processes(rows: Rows, request: Request) -> bool:
    """Copying rows is bound by memory and numpy leaves threads alone; nilearn's cleaning is not."""
    if request.prefer is not None:
        return request.prefer == "processes"
    heavy = request.cleaning.needed and rows.shared is not None
    return heavy and request.n_jobs > 1 and pool.can_start_processes()


def _blocks(index: NDArray[np.intp], rows_per_block: int) -> list[tuple[NDArray[np.intp], int]]:
    step = max(1, rows_per_block)
    return [(index[start : start + step], start) for start in range(0, len(index), step)]


def _run(
    request: Request, processes: bool, kernel: pool.Kernel, arguments: Any, items: Any, on_done: Any
) -> Any:
    if processes:
        preload = _CLEANING_MODULES if request.cleaning.needed else ()
        return pool.run_processes(kernel, arguments, items, request.n_jobs, on_done, preload)
    return pool.run_threads(kernel, arguments, items, request.n_jobs, on_done)


@contextlib.contextmanager
def progress_to(progress: Progress, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A function that takes how much is done: a bar, the caller's function or nothing."""
    if callable(progress):
        told = progress
        yield lambda done: told(done, total)
    elif progress:
        from tqdm.auto import tqdm

        with tqdm(total=total, unit=unit, leave=False) as bar:
            yield lambda done: bar.update(done - bar.n)
    else:
        yield lambda done: None


# --- the requests --------------------------------------------------------------------------------


def mask(rows: Rows, regions: Regions, request: Request) -> list[Array]:
    """One (n_timepoints, n_voxels) array per region; (n_voxels,) for a 3D image."""
    positions = rows.positions(regions)
    if not request.cleaning.needed:
        return _gathered(rows, regions, request, positions)
    union, inverse = np.unique(positions, return_inverse=True)
    disjoint = len(union) == len(positions)
    cleaned = _cleaned(rows, request, positions if disjoint else union)
    # Each voxel is cleaned once, however many masks contain it.
    spread = cleaned if disjoint else cleaned[inverse]
    return reported(split(spread, regions, rows.source), regions, request)


def _gathered(rows: Rows, regions: Regions, request: Request, positions: NDArray[np.intp]) -> list[Array]:
    processes = _in_processes(rows, request)
    conversion = request.conversion(rows.source)
    n_timepoints = rows.array.shape[1]
    items = _blocks(positions, _BLOCK_BYTES // (n_timepoints * conversion.result.itemsize))
    shape = (len(positions), n_timepoints)
    with _output(shape, conversion.result, processes) as (array, out):
        results = split(array, regions, rows.source)
        arguments = (rows.argument(processes), rows.finite, out, conversion)
        with _finished_regions(regions, request, items, results) as on_done:
            _run(request, processes, kernels.gather, arguments, items, on_done)
    return results


@contextlib.contextmanager
def _finished_regions(
    regions: Regions, request: Request, items: Sequence[Any], results: list[Array]
) -> Iterator[Callable[[int, Any], None]]:
    """Tells ``on_result`` and ``progress`` of regions as the last of their blocks is done."""
    left = regions.sizes.astype(np.int64)
    n_done = 0
    with progress_to(request.progress, len(regions), "mask") as tell:

        def on_done(number: int, _: object) -> None:
            nonlocal n_done
            index, start = items[number]
            first = int(np.searchsorted(regions.offsets, start, side="right")) - 1
            last = int(np.searchsorted(regions.offsets, start + len(index), side="left"))
            for region in range(first, last):
                low, high = regions.offsets[region], regions.offsets[region + 1]
                left[region] -= min(high, start + len(index)) - max(low, start)
                if left[region] == 0:
                    n_done += 1
                    tell(n_done)
                    if request.on_result is not None:
                        request.on_result(regions.keys[region], results[region])

        yield on_done


def reported(results: list[Array], regions: Regions, request: Request) -> list[Array]:
    if request.on_result is not None:
        for key, result in zip(regions.keys, results, strict=True):
            request.on_result(key, result)
    return results


def _cleaned(rows: Rows, request: Request, positions: NDArray[np.intp]) -> Array:
    """(n_positions, n_timepoints) cleaned rows."""
    cleaning = request.cleaning
    conversion = request.conversion(rows.source)
    kept = rows.array.shape[1] if cleaning.sample_mask is None else len(cleaning.sample_mask)
    items = _blocks(positions, _CLEAN_COLUMNS)
    processes = _in_processes(rows, request)
    with (
        _output((len(positions), kept), conversion.result, processes) as (array, out),
        progress_to(request.progress, len(items), "block") as tell,
    ):
        arguments = (rows.argument(processes), rows.finite, out, conversion, cleaning)
        count = iter(range(1, len(items) + 1))
        _run(request, processes, kernels.clean, arguments, items, lambda *_: tell(next(count)))
    cleaned: Array = request.finished(array)
    return cleaned


def split(rows: Array, regions: Regions, source: Source) -> list[Array]:
    """Views of rows in the order of the regions' voxels, as nilearn shapes signals."""
    parts = [rows[a:b] for a, b in zip(regions.offsets, regions.offsets[1:], strict=False)]
    return [part[:, 0] if source.ndim == 3 else part.T for part in parts]


def reduce(rows: Rows, regions: Regions, strategy: str, request: Request) -> Array:
    """(n_timepoints, n_regions), or (n_regions,) for a 3D image."""
    if strategy not in kernels.STRATEGIES:
        raise ParameterError(f"strategy={strategy!r} is none of {', '.join(kernels.STRATEGIES)}")
    conversion = request.reduction(rows.source)
    positions = rows.positions(regions)
    items = [(positions[a:b], column) for column, (a, b) in enumerate(_spans(regions))]
    processes = _in_processes(rows, request)
    shape = (len(regions), rows.array.shape[1])
    with (
        _output(shape, conversion.result, processes) as (array, out),
        progress_to(request.progress, len(items), "region") as tell,
    ):
        arguments = (rows.argument(processes), rows.finite, out, conversion, strategy)
        count = iter(range(1, len(items) + 1))
        _run(request, processes, kernels.reduce_region, arguments, items, lambda *_: tell(next(count)))
    signals = array.T
    if request.cleaning.needed:
        signals = request.finished(request.cleaning.apply(np.ascontiguousarray(signals)))
    signals = signals[0] if rows.source.ndim == 3 else signals
    reported(list(signals.T), regions, request)
    return signals


def _spans(regions: Regions) -> list[tuple[int, int]]:
    return list(zip(regions.offsets[:-1].tolist(), regions.offsets[1:].tolist(), strict=True))


def map_regions(
    rows: Rows, regions: Regions, function: Callable[[Array], Any], request: Request
) -> list[Any]:
    """``function`` of each region's array, in the order of the regions."""
    conversion = request.conversion(rows.source)
    positions = rows.positions(regions)
    items = [(positions[a:b],) for a, b in _spans(regions)]
    processes = _in_processes(rows, request) or (request.prefer is None and request.n_jobs > 1)
    with progress_to(request.progress, len(items), "mask") as tell:
        count = iter(range(1, len(items) + 1))

        def on_done(number: int, result: Any) -> None:
            tell(next(count))
            if request.on_result is not None:
                request.on_result(regions.keys[number], result)

        arguments = (rows.argument(processes), rows.finite, conversion, request.cleaning, function)
        answers: list[Any] = _run(request, processes, kernels.apply, arguments, items, on_done)
    return answers
