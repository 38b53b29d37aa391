"""Requests on rows: the signals of regions, one value per region, a function on each region.

Covers: cutting work into blocks, threads or processes, outputs. Does not cover: what may be asked
(``parameters``), the size of blocks and what they take (``plans``), how rows came to be
(``image``), which voxels make a region (``regions``), the arithmetic (``kernels``), the processes
(``pool``).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask import kernels, picking, plans, pool, reductions
from sharedmask.budget import MemoryBudget
from sharedmask.errors import AttachError, OutsideImageError
from sharedmask.kernels import Conversion
from sharedmask.loading import Volumes
from sharedmask.parameters import Progress, Request
from sharedmask.plans import Plan
from sharedmask.pool import Shared
from sharedmask.regions import Regions
from sharedmask.registry import Owned
from sharedmask.segments import Attachment
from sharedmask.sources import Facts

Array = NDArray[Any]

_CLEANING_MODULES = ("nilearn.signal",)


@dataclass(frozen=True)
class Rows:
    """The series of an image's voxels: where they are, and what their values mean."""

    facts: Facts
    array: Array
    finite: bool
    voxels: NDArray[np.intp] | None = None
    """Sorted numbers of the voxels held, one per row; None for all of the image's."""
    shared: Shared | None = None
    attachment: Attachment | None = None
    """Where they are attached; without it a view could not be made once the owner is gone."""
    volumes: Array | None = None
    """(n_timepoints, n_voxels), of an image that is mapped volume by volume; ``array`` is a view of it."""

    @classmethod
    def attached(cls, attachment: Attachment) -> "Rows":
        """The rows of a shared image.

        Raises
        ------
        AttachError
            What is shared is no image.
        """
        handle, arrays = attachment.handle, attachment.arrays
        try:
            facts, finite = Facts.from_dict(attachment.meta["facts"]), bool(attachment.meta["finite"])
            if "volumes" in arrays:
                by_volume, shared = arrays["volumes"], Shared(handle, "volumes")
                return cls(facts, by_volume.T, finite, None, shared, attachment, by_volume)
            shared = Shared(handle, "rows")
            return cls(facts, arrays["rows"], finite, arrays.get("voxels"), shared, attachment)
        except (KeyError, TypeError, ValueError) as error:
            raise AttachError(f"{handle.label} is no shared image: {error!r}") from error

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
                f"voxels outside of the mask_img with which {self.facts.name} was loaded"
            )
        return found


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
    owned = Owned("output", {"out": (shape, dtype)}, shared.handle.store)
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
        finite = picking.pick(rows.volumes, regions.union, array, None, pool.n_cpus())
        shared = out if isinstance(out, Shared) else None
        yield Rows(rows.facts, array, finite, regions.union, shared)


def _picked(rows: Rows, volumes: Array, regions: Regions, request: Request) -> list[Array]:
    """Signals straight from the volumes."""
    conversion = request.conversion(rows.facts)
    shape = (len(regions.indices), rows.facts.n_timepoints)
    array = np.empty(shape, conversion.result)
    with progress_to(request.progress, shape[1], "volume") as tell:
        picking.pick(volumes, regions.indices, array, conversion, pool.n_cpus(), tell)
    return reported(split(array, regions, rows.facts), regions, request)


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
    return reported(split(spread, regions, rows.facts), regions, request)


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


def reported(results: list[Array], regions: Regions, request: Request) -> list[Array]:
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
    if rows.volumes is not None and strategy in kernels.BY_VOLUME:
        return reduced_in_passing(picking.Span(rows.volumes), rows.facts, regions, strategy, plan.request)
    with _at_hand(rows, regions, plan.request, heavy=False) as rows:
        return _reduced(rows, regions, strategy, plan)


def reduced_in_passing(
    volumes: Volumes, facts: Facts, regions: Regions, strategy: str, request: Request
) -> Array:
    """One value per region and volume, as of :func:`reduce`, of volumes that nobody holds."""
    with progress_to(request.progress, facts.n_timepoints, "volume") as tell:
        signals, _ = reductions.reduced(volumes, regions, strategy, request.reduction(facts), tell)
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
        _run(request, kernels.reduce_region, arguments, items, lambda *_: tell(next(count)))
    return _table(array.T, rows.facts, regions, request)


def _table(signals: Array, facts: Facts, regions: Regions, request: Request) -> Array:
    """Values of regions, (n_timepoints, n_regions), cleaned as asked, and told."""
    if request.cleaning.needed:
        signals = request.finished(request.cleaning.apply(np.ascontiguousarray(signals)))
    signals = signals[0] if facts.ndim == 3 else signals
    reported(list(signals.T), regions, request)
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


def stored_view(rows: Rows) -> Array:
    """The stored values of all voxels as a read-only (x, y, z, n_timepoints) view that travels."""
    x, y, z, n_timepoints = rows.facts.shape
    if rows.volumes is not None:
        assert rows.attachment is not None
        by_volume = rows.attachment.view("volumes")
        return by_volume.reshape(n_timepoints, z, y, x).transpose(3, 2, 1, 0)
    view = rows.array if rows.attachment is None else rows.attachment.view("rows")
    return view.reshape(z, y, x, n_timepoints).transpose(2, 1, 0, 3)


def volumes(rows: Rows, span: slice) -> Array:
    """Volumes of an image with true values, (x, y, z, n); a fresh array, 0 where no voxel is held."""
    facts = rows.facts
    conversion = Conversion(facts.slope, facts.inter, facts.scaled_dtype, facts.scaled_dtype)
    stored = rows.array[:, span]
    values = np.zeros((facts.n_voxels, stored.shape[1]), facts.scaled_dtype)
    inside = slice(None) if rows.voxels is None else rows.voxels
    values[inside] = kernels.scale(stored, conversion)
    return values.reshape(*facts.shape[:3], -1, order="F")
