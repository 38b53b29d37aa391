"""Signals: what requests ask for, of rows that are held and of volumes that pass by.

Covers: cutting work into blocks, threads or processes, outputs. Does not cover: what may be asked
(``request``), the size of blocks and what they take (``plan``), how rows came to be (``rows``), which
voxels make a region (``regions``), the arithmetic (``kernels``, ``reduction``), the processes (``pool``).

===============================  ======================  ==========================
what is asked                    of rows                 of volumes that pass by
===============================  ======================  ==========================
signals                          gathered                one pass into the result
cleaned signals, a function,     blocks of rows          rows of the regions' voxels
pc1                                                      first, then as on the left
other statistics                 groups of regions       one pass, volume by volume; sums of
                                                         rows by row, others as in the third
===============================  ======================  ==========================
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from nibabel.volumeutils import apply_read_scaling

from sharedmask.compute import kernels, reduction
from sharedmask.compute.cleaning import CLEANING_MODULES, is_cleaning
from sharedmask.compute.plan import Plan, passes_by
from sharedmask.compute.progress import counted, progress_to
from sharedmask.compute.request import Request
from sharedmask.compute.row_sums import ROWS_BEFORE, RowSums
from sharedmask.compute.steps import Reducer
from sharedmask.regions.regions import Regions
from sharedmask.sources import loader
from sharedmask.sources.by_row import RowSource
from sharedmask.sources.source import Facts, Source
from sharedmask.sources.values import convert, pieces
from sharedmask.storage import rows
from sharedmask.storage.registry import OwnedSegment
from sharedmask.storage.rows import Rows, Series
from sharedmask.storage.segment import Shared
from sharedmask.system import monitor, process, settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array, NDArray
from sharedmask.workers import idle

if TYPE_CHECKING:
    from sharedmask.workers.streams import Streams
    from sharedmask.workers.threaded import Options
    from sharedmask.workers.worker import Item, Kernel

_PART_BYTES = 4 * 2**20  # of regions that are reduced as one piece of work, at least
_PARTS = 4  # of regions for each worker
_SENT_BYTES = 512 * 1024  # at most, to each worker: a segment has its own price


class Signals(NamedTuple):
    """What a request gives."""

    values: list[Any]
    """One array per region, (n_timepoints, n_voxels), or what the function made of it; of strategies
    an (n_timepoints, n_regions) array each. Without the first axis for a 3D image."""
    finite: bool
    """Whether all values that were looked at are finite."""


def run(series: Series, plan: Plan, budget: MemoryBudget) -> Signals:
    """Carry out a request as planned."""
    request = plan.request
    with monitor.operation(request.label, request.operation, plan.needed):
        if isinstance(series, Rows):
            return _of_rows(series, plan)
        if passes_by(series, request):
            return _of_volumes(series, request)
        union = request.regions.union
        if request.probes is not None:
            union = np.union1d(union, request.probes)
        try:
            with rows.load_union(series, union, plan.in_processes, budget) as held:
                return _of_rows(held, plan)
        finally:
            idle.let_go()


def _of_volumes(source: Source, request: Request) -> Signals:
    with progress_to(request.progress, source.n_timepoints, "volume") as tell:
        if request.strategy is not None:
            if isinstance(source, RowSource):
                return _summed_by_row(source, request, tell)
            return _reduced_in_passing(source, request, tell)
        conversion = request.conversion(source)
        out = np.empty((len(request.regions.indices), source.n_timepoints), conversion.result)
        finite = rows.fill(source, out, request.regions.indices, conversion, tell)
    return Signals(notify(_split(out, request.regions, source), request), finite)


def _of_rows(held: Rows, plan: Plan) -> Signals:
    request, positions = plan.request, held.positions(plan.request.regions)
    held.will_need(positions)
    if request.function is not None:
        values = _mapped(held, plan, positions)
    elif request.strategy is not None:
        values = _reduced(held, plan, positions)
    elif request.cleaning.needed:
        values = _cleaned(held, plan, positions)
    else:
        values = _gathered(held, plan, positions)
    if request.probes is not None:
        places = request.probes if held.voxels is None else np.searchsorted(held.voxels, request.probes)
        values.append(_true(held.array[places].T, held.facts))
    return Signals(values, held.finite)


def _true(stored: Array, facts: Facts) -> Array:
    """Values of probes."""
    return np.asarray(apply_read_scaling(stored, facts.slope, facts.inter), np.float32)


def by_volume(series: Series, plan: Plan) -> Array:
    """The signals of all voxels as one C-contiguous (n_timepoints, n_voxels) array, as nilearn has them."""
    request, facts = plan.request, series.facts
    index, conversion = request.regions.indices, request.conversion(facts)
    out = np.empty((facts.n_timepoints, len(index)), conversion.result)
    with monitor.operation(request.label, request.operation, plan.needed):
        # Seen as rows the output has volumes side by side, as they arrive: nothing is transposed.
        if isinstance(series, Source):
            rows.fill(series, out.T, index, conversion)
            return out
        positions = series.positions(request.regions)
        for piece in pieces(len(index), facts.n_timepoints * facts.dtype.itemsize):
            convert(series.array[positions[piece]], out.T[piece], conversion)
    return out


def notify(results: list[Array], request: Request) -> list[Array]:
    """Tell the caller's function of each region's result."""
    if request.on_result is not None:
        for key, result in zip(request.regions.keys, request.per_region(results), strict=True):
            request.on_result(key, result)
    return results


# --- outputs and blocks --------------------------------------------------------------------------


@contextlib.contextmanager
def _output(
    shape: tuple[int, ...], dtype: np.dtype[Any], shared: Shared | None
) -> Iterator[tuple[Array, Any]]:
    """An array to return, and what a kernel gets for it.

    Workers write into a shared segment, in a store like that of the rows they read. It is given up
    as soon as they are done; the bytes go with the last view, like those of any array.
    """
    if shared is None:
        array = np.empty(shape, dtype)
        yield array, array
        return
    with OwnedSegment("output", {"out": (shape, dtype)}, shared.handle.store) as owned:
        array = owned.segment.array("out")
        yield array, Shared(owned.share({}, writable=True), "out", writable=True)


@contextlib.contextmanager
def _sent(array: Array, shared: Shared | None) -> Iterator[Any]:
    """What a kernel gets for an array that all items need: many bytes are not sent to each worker."""
    if shared is None or array.nbytes <= _SENT_BYTES:
        yield array
        return
    with _output(array.shape, array.dtype, shared) as (copy, out):
        copy[:] = array
        yield out


def _narrow(positions: NDArray[np.intp], n_rows: int) -> NDArray[Any]:
    """As they travel, while other workers wait, and as they are sorted soonest."""
    return positions.astype(np.min_scalar_type(n_rows))


def begin_workers(asked: Mapping[str, Any]) -> None:
    """Start what the workers of a function come from, by the parameters of its call, while masks are read."""
    from sharedmask.workers import pool

    prefer, many = asked.get("prefer"), process.effective_n_jobs(asked.get("n_jobs")) > 1
    unasked = prefer is None and many and pool.can_start_processes()
    if settings.current().shared_memory and (unasked or prefer == "processes"):
        pool.begin(CLEANING_MODULES if is_cleaning(asked) else ())


def _for_workers(held: Rows, plan: Plan) -> Shared | None:
    """The rows as worker processes get them; None if threads of the caller do the work."""
    return held.shared if plan.in_processes else None


def _blocks(index: NDArray[np.intp], rows_per_block: int) -> list[tuple[NDArray[np.intp], int]]:
    return [(index[start : start + rows_per_block], start) for start in range(0, len(index), rows_per_block)]


def _run(
    request: Request,
    kernel: "Kernel",
    arguments: "Item",
    items: Any,
    on_done: Any,
    streams: "Streams | None" = None,
) -> Any:
    """Where the arguments can go: shared ones to processes, arrays to threads."""
    from sharedmask.workers import pool, threaded

    preload = CLEANING_MODULES if request.cleaning.needed else ()
    options: Options = {"on_done": on_done, "preload": preload, "streams": streams}
    if any(isinstance(argument, Shared) for argument in arguments):
        return pool.run_processes(kernel, arguments, items, request.n_jobs, **options)
    # Threads that nobody asked for would draw random numbers as it comes.
    jobs = 1 if streams is not None and request.prefer != "threads" else request.n_jobs
    with kernels.one_blas_thread() if request.has_products else contextlib.nullcontext():
        return threaded.run_threads(kernel, arguments, items, jobs, **options)


def _split(array: Array, regions: Regions, facts: Facts) -> list[Array]:
    """Views of rows in the order of the regions' voxels, as nilearn shapes signals."""
    parts = [array[a:b] for a, b in _spans(regions)]
    return [part.T if facts.is_series else part[:, 0] for part in parts]


def _spans(regions: Regions) -> list[tuple[int, int]]:
    return list(zip(regions.offsets[:-1].tolist(), regions.offsets[1:].tolist(), strict=True))


# --- signals of voxels ---------------------------------------------------------------------------


def _gathered(held: Rows, plan: Plan, positions: NDArray[np.intp]) -> list[Array]:
    request, shared = plan.request, _for_workers(held, plan)
    conversion = request.conversion(held.facts)
    items = _blocks(positions, plan.rows)
    shape = (len(positions), held.array.shape[1])
    with _output(shape, conversion.result, shared) as (array, out):
        results = _split(array, request.regions, held.facts)
        arguments = (shared or held.array, held.finite, out, conversion)
        with _finished_regions(request, items, results) as tell:

            def on_done(number: int, result: Any) -> None:
                held.let_go()
                tell(number, result)

            _run(request, kernels.gather, arguments, items, on_done)
    return results


@contextlib.contextmanager
def _finished_regions(
    request: Request, items: Sequence[Any], results: list[Array]
) -> Iterator[Callable[[int, Any], None]]:
    """Tells ``on_result`` and ``progress`` of regions as the last of their blocks is done."""
    regions = request.regions
    left = regions.sizes.astype(np.int64)
    with counted(request.progress, len(regions), "mask") as tell:

        def on_done(number: int, _: object) -> None:
            index, start = items[number]
            first = int(np.searchsorted(regions.offsets, start, side="right")) - 1
            last = int(np.searchsorted(regions.offsets, start + len(index), side="left"))
            for region in range(first, last):
                low, high = regions.offsets[region], regions.offsets[region + 1]
                left[region] -= min(high, start + len(index)) - max(low, start)
                if left[region] == 0:
                    tell()
                    if request.on_result is not None:
                        request.on_result(regions.keys[region], results[region])

        yield on_done


def _cleaned(held: Rows, plan: Plan, positions: NDArray[np.intp]) -> list[Array]:
    """Each voxel is cleaned once, however many masks contain it."""
    request, shared = plan.request, _for_workers(held, plan)
    cleaning, conversion = request.cleaning, request.conversion(held.facts)
    kept = held.array.shape[1] if cleaning.sample_mask is None else len(cleaning.sample_mask)
    items = _spread(positions, len(held.array), plan.rows)
    with (
        _output((len(positions), kept), conversion.result, shared) as (array, out),
        counted(request.progress, len(items), "block") as tell,
    ):
        arguments = (shared or held.array, held.finite, out, conversion, cleaning)
        begun = _run(request, kernels.clean, arguments, items, tell)
        if cleaning.looks_at_all:
            before = np.empty(len(array), array.dtype)
            for (_, to, _), means in zip(items, begun, strict=True):
                before[to] = means
            for first, last in _spans(request.regions):
                cleaning.end(array[first:last], before[first:last])
    return notify(_split(request.cast_result(array), request.regions, held.facts), request)


def _spread(positions: NDArray[np.intp], n_rows: int, rows_per_block: int) -> list["Item"]:
    """Blocks of distinct rows, where each goes, and which of the block that is."""
    wanted = np.zeros(n_rows, bool)
    wanted[positions] = True
    union = np.flatnonzero(wanted)  # several times as fast as sorting them
    if len(union) == len(positions):
        union, places = positions, np.arange(len(positions))
    else:
        places = (np.cumsum(wanted) - 1)[positions]
    order = np.argsort(_narrow(places, len(union)), kind="stable")
    ends = np.append(0, np.cumsum(np.bincount(places)))
    items = []
    for index, start in _blocks(union, rows_per_block):
        to = order[ends[start] : ends[start + len(index)]]
        items.append((index, to, places[to] - start))
    return items


# --- one value per region and volume -------------------------------------------------------------


def _reduced(held: Rows, plan: Plan, positions: NDArray[np.intp]) -> list[Array]:
    request, shared = plan.request, _for_workers(held, plan)
    conversion, regions, n_timepoints = request.reduction(held.facts), request.regions, held.array.shape[1]
    count, strategies = len(regions), request.strategies
    nbytes = len(positions) * n_timepoints * held.array.itemsize
    n_parts = max(1, min(_PARTS * request.n_jobs, nbytes // _PART_BYTES))
    with (
        _output((len(strategies) * count, n_timepoints), conversion.result, shared) as (array, out),
        counted(request.progress, len(strategies) * count, "region") as tell,
    ):
        for place, strategy in enumerate(strategies):
            asked = (held.array, held.finite, conversion, strategy, positions, regions.offsets)
            parts = list(reduction.parts(*asked, regions.weights, n_parts))

            def on_done(number: int, _: object, parts: list[Any] = parts) -> None:
                held.let_go()
                for _ in parts[number].numbers:
                    tell()

            arguments = (shared or held.array, held.finite, out, conversion, strategy, place * count)
            _run(request, reduction.reduce_part, arguments, [(part,) for part in parts], on_done)
    tables = [array[start : start + count].T for start in range(0, len(array), count)]
    return _tables(tables, held.facts, request)


def _reduced_in_passing(source: Source, request: Request, tell: Callable[[int], None]) -> Signals:
    """Nothing of the image is kept: values are made of blocks of volumes as they are decoded."""
    regions, conversion, probes = request.regions, request.reduction(source), request.probes
    reducer = Reducer.of(request.strategies, source.dtype, conversion, regions.offsets, regions.weights)
    # Sums that are exact in any order are made in that of the volumes, in which values are found faster.
    ordered = regions.in_order if reducer.all_whole else regions.indices
    wanted, n_voxels = ordered[reducer.order], len(ordered)
    if probes is not None:
        wanted = np.concatenate([wanted, probes])
    probed = np.empty((source.n_timepoints, len(wanted) - n_voxels), source.dtype)
    tables = np.empty((len(request.strategies), source.n_timepoints, len(regions)), conversion.result)
    finite = True
    volumes, select = source.narrowed(wanted)
    step = min(loader.block_volumes(len(wanted), source.dtype, source.n_timepoints), reducer.most(source))
    with loader.blocks(volumes, select, step) as blocks:
        for start, block in blocks:
            probed[start : start + len(block)] = block[:, n_voxels:]
            for table, strategy in zip(tables, request.strategies, strict=True):
                out = table[start : start + len(block)]
                finite = reducer.reduce(block[:, :n_voxels], out, strategy) and finite
            tell(start + len(block))
    values = _tables(list(tables), source, request)
    return Signals(values if probes is None else [*values, _true(probed, source)], finite)


def _summed_by_row(source: RowSource, request: Request, tell: Callable[[int], None]) -> Signals:
    """Rows go to the sums of their regions as they are read."""
    regions, conversion = request.regions, request.reduction(source)
    sums, finite = RowSums.of(regions, source.n_timepoints, source.dtype, conversion), True
    with contextlib.closing(source.blocks(sums.wanted, sums.block_bytes, ROWS_BEFORE)) as blocks:
        for start, rows in blocks:
            finite = sums.add(start, rows) and finite
    tell(source.n_timepoints)
    by_name = {"sum": sums.totals, "mean": sums.totals / regions.sizes[:, None]}
    tables = [by_name[strategy].T.astype(conversion.result) for strategy in request.strategies]
    return Signals(_tables(tables, source, request), finite)


def _tables(tables: list[Array], facts: Facts, request: Request) -> list[Array]:
    """Values of regions, (n_timepoints, n_regions) by each strategy, cleaned as asked, and told."""
    if request.cleaning.needed:
        apply = request.cleaning.apply
        tables = [request.cast_result(apply(np.ascontiguousarray(table))) for table in tables]
    return notify(tables if facts.is_series else [table[0] for table in tables], request)


# --- the caller's function -----------------------------------------------------------------------


def _mapped(held: Rows, plan: Plan, positions: NDArray[np.intp]) -> list[Any]:
    from sharedmask.workers.streams import Streams

    request, shared = plan.request, _for_workers(held, plan)
    given = request.given or [()] * len(request.regions)
    items = [(*span, *more) for span, more in zip(_spans(request.regions), given, strict=True)]
    with (
        _sent(positions if shared is None else _narrow(positions, len(held.array)), shared) as sent,
        counted(request.progress, len(items), "mask") as tell,
    ):

        def on_done(number: int, result: Any) -> None:
            tell()
            if request.on_result is not None:
                request.on_result(request.regions.keys[number], result)

        conversion = request.conversion(held.facts)
        series = (shared or held.array, held.finite, conversion)
        arguments = (*series, request.cleaning, request.function, sent)
        watched = callable(request.progress) or request.on_result is not None
        told = on_done if watched or request.progress else None
        of_arrays = not request.given and not request.cleaning.needed
        with Streams(request.function, request.random_state, watched, of_arrays) as streams:
            answers: list[Any] = _run(request, kernels.apply, arguments, items, told, streams)
    return answers
