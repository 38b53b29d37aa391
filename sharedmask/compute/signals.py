"""Signals: of regions, one value per region, a function on each region; of rows and of volumes that pass by.

Covers: cutting work into blocks, threads or processes, outputs.
Does not cover: what may be asked (``request``), the size of blocks and what they take (``plan``), how
rows came to be (``rows``), which voxels make a region (``regions``), the arithmetic (``kernels``,
``reduction``), the processes (``pool``).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.compute import kernels, pool, reduction
from sharedmask.compute import plan as plans
from sharedmask.compute.plan import Plan
from sharedmask.compute.progress import progress_to
from sharedmask.compute.request import Request
from sharedmask.regions.regions import Regions
from sharedmask.sources import loader
from sharedmask.sources.source import Facts, Source, Volumes
from sharedmask.sources.values import Conversion
from sharedmask.storage import rows as picking
from sharedmask.storage.registry import OwnedSegment
from sharedmask.storage.rows import Rows
from sharedmask.storage.segment import Shared
from sharedmask.system import monitor, process
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array

_CLEANING_MODULES = ("nilearn.signal",)
FEWER = "extract fewer masks at a time"


# --- outputs and blocks --------------------------------------------------------------------------


@contextlib.contextmanager
def _output(
    shape: tuple[int, int], dtype: np.dtype[Any], shared: Shared | None
) -> Iterator[tuple[Array, Any]]:
    """An array to return, and what a kernel gets for it.

    Workers write into a shared segment, in a store like that of the rows they read. It is given up
    as soon as they are done; the bytes go with the last view, like those of any array.
    """
    if shared is None:
        array = np.empty(shape, dtype)
        yield array, array
        return
    owned = OwnedSegment("output", {"out": (shape, dtype)}, shared.handle.store)
    try:
        array = owned.segment.array("out")
        yield array, Shared(owned.share({}, writable=True), "out", writable=True)
    finally:
        owned.release()


def _for_workers(rows: Rows, request: Request, heavy: bool) -> Shared | None:
    """The rows as worker processes get them; None if threads of the caller do the work."""
    return rows.shared if plans.in_processes(request, heavy) else None


def _blocks(index: NDArray[np.intp], rows_per_block: int) -> list[tuple[NDArray[np.intp], int]]:
    return [(index[start : start + rows_per_block], start) for start in range(0, len(index), rows_per_block)]


def _run(request: Request, kernel: pool.Kernel, arguments: pool.Item, items: Any, on_done: Any) -> Any:
    """Where the arguments can go: shared ones to processes, arrays to threads."""
    if any(isinstance(argument, Shared) for argument in arguments):
        preload = _CLEANING_MODULES if request.cleaning.needed else ()
        return pool.run_processes(kernel, arguments, items, request.n_jobs, on_done, preload)
    return pool.run_threads(kernel, arguments, items, request.n_jobs, on_done)


@contextlib.contextmanager
def load_union(source: Source, regions: Regions, plan: Plan, budget: MemoryBudget) -> Iterator[Rows]:
    """The rows of all regions' voxels, for one call; shared only if workers will read them."""
    needed = picking.union_bytes(source, regions) + plan.needed
    budget.require(plan.operation, needed, FEWER)
    in_processes = plans.in_processes(plan.request, heavy=plan.request.cleaning.needed)
    with (
        monitor.operation("extract", plan.operation, needed),
        picking.load_union(source, regions.union, in_processes, budget) as rows,
    ):
        yield rows


# --- images that are mapped by volumes -----------------------------------------------------------


def with_pass(plan: Plan, rows: Rows, regions: Regions, budget: MemoryBudget, passing: int | None) -> Plan:
    """The plan, and what a pass over volumes takes besides, if the image lies volume by volume.

    That is ``passing`` where results are made on the way; None: rows are copied first.

    Raises
    ------
    MemoryLimitError
        It is more than may be used.
    """
    if rows.volumes is None:
        return plan
    row_bytes = rows.facts.n_timepoints * rows.facts.dtype.itemsize
    kept = len(regions.union) * row_bytes if passing is None else passing
    taken = kept + picking.buffer_bytes(rows.volumes, len(regions.indices))
    budget.require(plan.operation, plan.needed + taken)
    return replace(plan, needed=plan.needed + taken)


@contextlib.contextmanager
def _at_hand(rows: Rows, regions: Regions, request: Request, heavy: bool) -> Iterator[Rows]:
    """Rows that kernels can pick from: out of volumes those asked for are copied, in one pass."""
    if rows.volumes is None:
        yield rows
        return
    shape = (len(regions.union), rows.facts.n_timepoints)
    with _output(shape, rows.facts.dtype, _for_workers(rows, request, heavy)) as (array, out):
        finite = picking.pick(rows.volumes, regions.union, array, None, process.n_cpus())
        shared = out if isinstance(out, Shared) else None
        yield Rows(rows.facts, array, finite, regions.union, shared)


def _picked(rows: Rows, volumes: Array, regions: Regions, request: Request) -> list[Array]:
    """Signals straight from the volumes."""
    conversion = request.conversion(rows.facts)
    shape = (len(regions.indices), rows.facts.n_timepoints)
    array = np.empty(shape, conversion.result)
    with progress_to(request.progress, shape[1], "volume") as tell:
        picking.pick(volumes, regions.indices, array, conversion, process.n_cpus(), tell)
    return notify(split(array, regions, rows.facts), regions, request)


# --- the requests --------------------------------------------------------------------------------


def mask(rows: Rows, regions: Regions, plan: Plan) -> list[Array]:
    """One (n_timepoints, n_voxels) array per region; (n_voxels,) for a 3D image."""
    if rows.volumes is not None and not plan.request.cleaning.needed:
        return _picked(rows, rows.volumes, regions, plan.request)
    with _at_hand(rows, regions, plan.request, heavy=True) as rows:
        return _masked(rows, regions, plan)


def _masked(rows: Rows, regions: Regions, plan: Plan) -> list[Array]:
    positions, request = rows.positions(regions), plan.request
    if not request.cleaning.needed:
        return _gathered(rows, regions, plan, positions)
    union, inverse = np.unique(positions, return_inverse=True)
    disjoint = len(union) == len(positions)
    cleaned = _cleaned(rows, plan, positions if disjoint else union)
    # Each voxel is cleaned once, however many masks contain it.
    spread = cleaned if disjoint else cleaned[inverse]
    return notify(split(spread, regions, rows.facts), regions, request)


def _gathered(rows: Rows, regions: Regions, plan: Plan, positions: NDArray[np.intp]) -> list[Array]:
    request = plan.request
    shared = _for_workers(rows, request, heavy=False)
    conversion = request.conversion(rows.facts)
    items = _blocks(positions, plan.rows)
    shape = (len(positions), rows.array.shape[1])
    with _output(shape, conversion.result, shared) as (array, out):
        results = split(array, regions, rows.facts)
        arguments = (shared or rows.array, rows.finite, out, conversion)
        with _finished_regions(regions, request, items, results) as on_done:
            _run(request, kernels.gather, arguments, items, on_done)
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


def notify(results: list[Array], regions: Regions, request: Request) -> list[Array]:
    if request.on_result is not None:
        for key, result in zip(regions.keys, results, strict=True):
            request.on_result(key, result)
    return results


def _cleaned(rows: Rows, plan: Plan, positions: NDArray[np.intp]) -> Array:
    """(n_positions, n_timepoints) cleaned rows."""
    request = plan.request
    cleaning = request.cleaning
    conversion = request.conversion(rows.facts)
    kept = rows.array.shape[1] if cleaning.sample_mask is None else len(cleaning.sample_mask)
    items = _blocks(positions, plan.rows)
    shared = _for_workers(rows, request, heavy=True)
    with (
        _output((len(positions), kept), conversion.result, shared) as (array, out),
        progress_to(request.progress, len(items), "block") as tell,
    ):
        arguments = (shared or rows.array, rows.finite, out, conversion, cleaning)
        count = iter(range(1, len(items) + 1))
        _run(request, kernels.clean, arguments, items, lambda *_: tell(next(count)))
    cleaned: Array = request.finished(array)
    return cleaned


def split(rows: Array, regions: Regions, facts: Facts) -> list[Array]:
    """Views of rows in the order of the regions' voxels, as nilearn shapes signals."""
    parts = [rows[a:b] for a, b in zip(regions.offsets, regions.offsets[1:], strict=False)]
    return [part[:, 0] if facts.ndim == 3 else part.T for part in parts]


def reduce(rows: Rows, regions: Regions, strategy: str, plan: Plan) -> Array:
    """(n_timepoints, n_regions), or (n_regions,) for a 3D image."""
    if rows.volumes is not None and strategy in reduction.BY_VOLUME:
        return reduced_in_passing(picking.Span(rows.volumes), rows.facts, regions, strategy, plan.request)
    with _at_hand(rows, regions, plan.request, heavy=False) as rows:
        return _reduced(rows, regions, strategy, plan)


def reduced_in_passing(
    volumes: Volumes, facts: Facts, regions: Regions, strategy: str, request: Request
) -> Array:
    """One value per region and volume, as of :func:`reduce`, of volumes that nobody holds."""
    with progress_to(request.progress, facts.n_timepoints, "volume") as tell:
        signals, _ = reduced(volumes, regions, strategy, request.reduction(facts), tell)
        return _table(signals, facts, regions, request)


def _reduced(rows: Rows, regions: Regions, strategy: str, plan: Plan) -> Array:
    request = plan.request
    conversion = request.reduction(rows.facts)
    positions = rows.positions(regions)
    items = [(positions[a:b], column) for column, (a, b) in enumerate(_spans(regions))]
    shared = _for_workers(rows, request, heavy=False)
    shape = (len(regions), rows.array.shape[1])
    with (
        _output(shape, conversion.result, shared) as (array, out),
        progress_to(request.progress, len(items), "region") as tell,
    ):
        arguments = (shared or rows.array, rows.finite, out, conversion, strategy)
        count = iter(range(1, len(items) + 1))
        _run(request, reduction.reduce_region, arguments, items, lambda *_: tell(next(count)))
    return _table(array.T, rows.facts, regions, request)


def _table(signals: Array, facts: Facts, regions: Regions, request: Request) -> Array:
    """Values of regions, (n_timepoints, n_regions), cleaned as asked, and told."""
    if request.cleaning.needed:
        signals = request.finished(request.cleaning.apply(np.ascontiguousarray(signals)))
    signals = signals[0] if facts.ndim == 3 else signals
    notify(list(signals.T), regions, request)
    return signals


def _spans(regions: Regions) -> list[tuple[int, int]]:
    return list(zip(regions.offsets[:-1].tolist(), regions.offsets[1:].tolist(), strict=True))


def map_regions(rows: Rows, regions: Regions, function: Callable[[Array], Any], plan: Plan) -> list[Any]:
    """``function`` of each region's array, in the order of the regions."""
    with _at_hand(rows, regions, plan.request, heavy=True) as rows:
        return _mapped(rows, regions, function, plan)


def _mapped(rows: Rows, regions: Regions, function: Callable[[Array], Any], plan: Plan) -> list[Any]:
    request = plan.request
    conversion = request.conversion(rows.facts)
    positions = rows.positions(regions)
    items = [(positions[a:b],) for a, b in _spans(regions)]
    shared = _for_workers(rows, request, heavy=True)
    with progress_to(request.progress, len(items), "mask") as tell:
        count = iter(range(1, len(items) + 1))

        def on_done(number: int, result: Any) -> None:
            tell(next(count))
            if request.on_result is not None:
                request.on_result(regions.keys[number], result)

        arguments = (shared or rows.array, rows.finite, conversion, request.cleaning, function)
        answers: list[Any] = _run(request, kernels.apply, arguments, items, on_done)
    return answers


def reduced(
    source: Volumes,
    regions: Regions,
    strategy: str,
    conversion: Conversion,
    on_volumes: Callable[[int], None] = lambda _: None,
) -> tuple[Array, bool]:
    """One value per volume and region, (n_timepoints, n_regions), and whether all values are finite.

    Parameters
    ----------
    source : Source
    regions : Regions
    strategy : str
        One of ``kernels.BY_VOLUME``.
    conversion : Conversion
    on_volumes : callable
        Told how many volumes are done.
    """
    table = np.empty((source.n_timepoints, len(regions)), conversion.result)
    finite = True
    with loader.blocks(source, regions.indices) as blocks:
        for start, block in blocks:
            out = table[start : start + len(block)]
            finite = reduction.reduce_volumes(block, out, conversion, strategy, regions.offsets) and finite
            on_volumes(start + len(block))
    return table, finite
