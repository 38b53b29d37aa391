"""Extraction: the signals of masks in one pass over an image that is never held.

Covers: what is kept on the way (results, or the rows of the masks' voxels), what that takes; batches
of masks, handed over one after the other.
Does not cover: images that several calls share (``image``), the work itself (``signals``).
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from sharedmask.compute import plan as plans
from sharedmask.compute import progress, reduction
from sharedmask.compute import signals as masking
from sharedmask.compute.plan import Plan
from sharedmask.compute.request import Parameters, Request, check_strategy
from sharedmask.compute.signals import FEWER
from sharedmask.errors import MemoryLimitError, ParameterError
from sharedmask.image import results as recall
from sharedmask.regions import fit
from sharedmask.regions.masks import ResamplingTarget
from sharedmask.regions.regions import Regions
from sharedmask.sources import loader, transform
from sharedmask.sources.grid import Grid
from sharedmask.sources.source import Source, open_source
from sharedmask.storage.kept import Cache
from sharedmask.storage.rows import transposing_threads, union_bytes
from sharedmask.system import monitor
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array

OnBatch = Callable[[dict[Any, Array]], object]

_HELD_SHARE = 0.5  # of the limit: the union of all masks, for which the image is read once


def extract(
    source: Any,
    masks: Any,
    *,
    strategy: str | None = None,
    smoothing_fwhm: float | None = None,
    resampling_target: ResamplingTarget = None,
    memory: Any = None,
    memory_limit: int | float | str | None = None,
    batch_size: int | None = None,
    on_batch: OnBatch | None = None,
    **parameters: Unpack[Parameters],
) -> Any:
    """The signals of masks, in one pass over the image, which is never held.

    The same numbers as ``SharedImage(source).mask_parallel(masks)``, or ``.reduce(masks,
    strategy)``, for a single call: memory holds the masks' voxels and nothing else of the image;
    with a ``strategy`` a few volumes of them at a time ("pc1" needs their whole series).

    Parameters
    ----------
    source : str, path, niimg, or list of those
        As for :class:`SharedImage`.
    masks : list, dict, glob pattern, 4D image, :class:`Regions`, or one mask
        As for :meth:`SharedImage.mask_parallel`; with a ``strategy`` one image is an atlas.
    strategy : str, optional
        None: the signals of all voxels. Else one value per region, as in
        :meth:`SharedImage.reduce`.
    smoothing_fwhm : float, optional
        As for :class:`SharedImage`.
    resampling_target : {"data", "mask"}, optional
        As in :meth:`SharedImage.mask_parallel`; the image is smoothed before it is resampled.
    memory : str, path, joblib.Memory or False, optional
        Where results are kept, as in :meth:`SharedImage.mask_parallel`; with ``on_batch`` nowhere.
    memory_limit : int, float or str, optional
        Bytes, ``"8G"``, or a fraction of the RAM.
    batch_size : int, optional
        Masks per call of ``on_batch``; default: as many as fit.
    on_batch : callable, optional
        Called with ``{key: signals}``, batch after batch; then no signals are kept. The image is
        read once if the union of the masks fits in memory, else once per batch. What it raises
        ends the call.

    Other parameters are those of :meth:`SharedImage.mask_parallel`.

    Returns
    -------
    list, dict or ndarray
        (n_timepoints, n_voxels) per mask, in the container given; with a ``strategy`` one
        (n_timepoints, n_regions) array. With ``on_batch`` a dict of the signals' shapes.

    Examples
    --------
    >>> import nibabel as nib, numpy as np
    >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
    >>> atlas = nib.Nifti1Image(np.arange(24, dtype="int16").reshape(2, 3, 4) % 3, np.eye(4))
    >>> extract(bold, atlas, strategy="mean").shape
    (10, 2)
    """
    opened = transform.smoothed(open_source(source), smoothing_fwhm)
    grid = opened.grid
    request = Request.checked(opened, **parameters)
    _check_batches(strategy, memory, batch_size, on_batch)
    regions = regions_of(masks, grid, strategy, resampling_target)
    opened, regions = fit.align_to_masks(opened, regions)
    if on_batch is not None:
        return _in_batches(opened, regions, request, MemoryBudget.here(memory_limit), batch_size, on_batch)

    def compute() -> list[Array]:
        return _extracted(opened, regions, request, strategy, MemoryBudget.here(memory_limit))

    cache = Cache.of(memory)
    if cache is None:
        results = compute()
    else:
        asked = recall.Asked(opened, opened.fingerprint, regions, request, strategy)
        results = recall.get_or_compute(cache, asked, compute)
    return regions.pack(results) if strategy is None else results[0]


def regions_of(masks: Any, grid: Grid, strategy: str | None, target: ResamplingTarget) -> Regions:
    """What :func:`extract` makes of ``masks``: with a ``strategy`` one image is an atlas."""
    if strategy is None:
        return Regions.from_any(masks, grid, resampling_target=target)
    check_strategy(strategy)
    return Regions.from_atlas_or_masks(masks, grid, resampling_target=target)


def projected(
    source: Source, regions: Regions, strategy: str | None, request: Request, budget: MemoryBudget
) -> int:
    """Bytes that :func:`extract` takes for these regions at its peak.

    Raises
    ------
    MemoryLimitError
        They are more than may be used.
    """
    operation = f"extracting from {source.name}"
    if strategy is None and not request.cleaning.needed:
        return _streaming_bytes(source, regions, request)
    if strategy in reduction.BY_VOLUME:
        return _reducing_bytes(source, regions, request)
    if strategy is None:
        plan = plans.mask(source, regions, request, budget, operation)
    else:
        plan = plans.reduce(source, regions, strategy, request, budget, operation)
    return union_bytes(source, regions) + plan.needed


def _streaming_bytes(source: Source, regions: Regions, request: Request) -> int:
    itemsize, n_rows = request.conversion(source).result.itemsize, len(regions.indices)
    return n_rows * source.n_timepoints * itemsize + loader.buffer_bytes(source, n_rows)


def _reducing_bytes(source: Source, regions: Regions, request: Request) -> int:
    reading = loader.buffer_bytes(source, len(regions.indices))
    return reading + plans.reduce_volumes(source, regions, request)


def _extracted(
    source: Source, regions: Regions, request: Request, strategy: str | None, budget: MemoryBudget
) -> list[Array]:
    """The signals of each region; or, with a ``strategy``, a single array of all."""
    operation = f"extracting from {source.name}"
    if strategy in reduction.BY_VOLUME:
        return [_reduced(source, regions, strategy, request, budget)]
    if strategy is not None:
        plan = plans.reduce(source, regions, strategy, request, budget, operation)
        with masking.load_union(source, regions, plan, budget) as rows:
            return [masking.reduce(rows, regions, strategy, plan)]
    if request.cleaning.needed:
        plan = plans.mask(source, regions, request, budget, operation)
        with masking.load_union(source, regions, plan, budget) as rows:
            return masking.mask(rows, regions, plan)
    return _streamed(source, regions, request, budget)


def _streamed(source: Source, regions: Regions, request: Request, budget: MemoryBudget) -> list[Array]:
    """Signals of voxels, written on the way: each volume's values go straight to their results."""
    conversion, operation = request.conversion(source), f"extracting from {source.name}"
    shape = (len(regions.indices), source.n_timepoints)
    needed = _streaming_bytes(source, regions, request)
    budget.require(operation, needed, FEWER)
    with (
        monitor.operation("extract", operation, needed),
        progress.progress_to(request.progress, source.n_timepoints, "volume") as tell,
    ):
        rows = np.empty(shape, conversion.result)
        loader.load(
            source,
            rows,
            select=regions.indices,
            conversion=conversion,
            n_threads=transposing_threads(source),
            on_volumes=tell,
        )
    return masking.notify(masking.split(rows, regions, source), regions, request)


def _reduced(
    source: Source, regions: Regions, strategy: str, request: Request, budget: MemoryBudget
) -> Array:
    """One value per region and volume, made on the way."""
    operation, needed = f"extracting from {source.name}", _reducing_bytes(source, regions, request)
    budget.require(operation, needed, FEWER)
    with monitor.operation("extract", operation, needed):
        return masking.reduced_in_passing(source, source, regions, strategy, request)


# --- batches -------------------------------------------------------------------------------------


def _check_batches(
    strategy: str | None, memory: Any, batch_size: int | None, on_batch: OnBatch | None
) -> None:
    number = isinstance(batch_size, int | np.integer) and batch_size > 0
    if batch_size is not None and (on_batch is None or not number):
        raise ParameterError(f"batch_size={batch_size!r}: give a number of masks, and on_batch to take them")
    if on_batch is None:
        return
    if strategy is not None:
        raise ParameterError("on_batch takes signals of voxels: a strategy gives one small table")
    if memory not in (None, False):
        raise ParameterError(f"memory={memory!r} is to keep results, and with on_batch none are kept")


def _in_batches(
    source: Source,
    regions: Regions,
    request: Request,
    budget: MemoryBudget,
    batch_size: int | None,
    on_batch: OnBatch,
) -> dict[Any, tuple[int, ...]]:
    """Hand over the signals of some masks at a time; their shapes."""
    once = union_bytes(source, regions) <= budget.limit * _HELD_SHARE
    held = regions if once else None
    size = batch_size or _fitting(source, regions, request, budget, held)
    work = _planned(source, regions.batches(size), request, budget, held)
    if not once:
        return _handed_over(work, lambda batch, plan: _of_batch(source, batch, plan, budget), on_batch)
    most = max((plan for _, plan in work), key=lambda plan: plan.needed)  # workers read one union: one plan
    with masking.load_union(source, regions, most, budget) as rows:
        return _handed_over(work, lambda batch, _: masking.mask(rows, batch, most), on_batch)


def _planned(
    source: Source,
    batches: Iterable[Regions],
    request: Request,
    budget: MemoryBudget,
    held: Regions | None,
) -> list[tuple[Regions, Plan]]:
    """Each batch's plan, while the union of ``held``, or its own, is in memory."""

    def plan(batch: Regions) -> Plan:
        left = replace(budget, limit=budget.limit - union_bytes(source, held or batch))
        return plans.mask(source, batch, request, left, f"extracting {len(batch)} masks from {source.name}")

    return [(batch, plan(batch)) for batch in batches]


def _fitting(
    source: Source, regions: Regions, request: Request, budget: MemoryBudget, held: Regions | None
) -> int:
    """How many masks go together: at first what signals alone would allow, then half of it, and so on."""
    largest = max(plans.signals_bytes(source, one, request) for one in regions.batches(1))
    size = min(max(1, budget.limit // largest), len(regions))
    while size > 1:
        try:
            _planned(source, regions.batches(size), request, budget, held)
            break
        except MemoryLimitError:
            size //= 2
    return size


def _of_batch(source: Source, batch: Regions, plan: Plan, budget: MemoryBudget) -> list[Array]:
    with masking.load_union(source, batch, plan, budget) as rows:
        return masking.mask(rows, batch, plan)


def _handed_over(
    work: list[tuple[Regions, Plan]], signals_of: Callable[[Regions, Plan], list[Array]], on_batch: OnBatch
) -> dict[Any, tuple[int, ...]]:
    shapes: dict[Any, tuple[int, ...]] = {}
    for batch, plan in work:
        signals = dict(zip(batch.keys, signals_of(batch, plan), strict=True))
        shapes |= {key: one.shape for key, one in signals.items()}
        on_batch(signals)
        del signals  # before the next are made
    return shapes
