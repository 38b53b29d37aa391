"""Extraction: the signals of masks in one pass over an image that is never held.

Covers: what is kept on the way (results, or the rows of the masks' voxels), and what that takes.
Does not cover: images that several calls share (``image``), the work itself (``masking``).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from sharedmask import loading, masking, segments, stores
from sharedmask.budget import MemoryBudget
from sharedmask.errors import ParameterError
from sharedmask.holding import geometry_of, load_shared, transposing_threads
from sharedmask.masking import Rows
from sharedmask.parameters import Parameters, Request, check_strategy
from sharedmask.regions import Grid, Regions
from sharedmask.sources import Source, open_source

Array = NDArray[Any]

_HELD_SHARE = 0.5  # of the limit: the union of all masks, for which the image is read once


def extract(
    source: Any,
    masks: Any,
    *,
    strategy: str | None = None,
    resampling_target: Literal["data"] | None = None,
    memory_limit: int | float | str | None = None,
    batch_size: int | None = None,
    on_batch: Callable[[dict[Any, Array]], object] | None = None,
    **parameters: Unpack[Parameters],
) -> Any:
    """The signals of masks, in one pass over the image, which is never held.

    The same numbers as ``SharedImage(source).mask_parallel(masks)``, or ``.reduce(masks,
    strategy)``, for a single call: memory holds the masks' voxels and nothing else of the image.

    Parameters
    ----------
    source : str, path, niimg, or list of those
        As for :class:`SharedImage`.
    masks : list, dict, glob pattern, 4D image, :class:`Regions`, or one mask
        As for :meth:`SharedImage.mask_parallel`; with a ``strategy`` one image is an atlas.
    strategy : str, optional
        None: the signals of all voxels. Else one value per region, as in
        :meth:`SharedImage.reduce`.
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
    opened = open_source(source)
    grid = Grid(opened.shape[:3], opened.affine)
    request = Request.checked(opened, **parameters)
    budget = MemoryBudget.here(memory_limit)
    _check_batches(strategy, batch_size, on_batch)
    if strategy is not None:
        check_strategy(strategy)
        regions = Regions.from_atlas_or_masks(masks, grid, resampling_target=resampling_target)
        with _union(opened, regions, request, budget, 0) as rows:
            return masking.reduce(rows, regions, strategy, request)
    regions = Regions.from_any(masks, grid, resampling_target=resampling_target)
    if on_batch is not None:
        return _in_batches(opened, regions, request, budget, batch_size, on_batch)
    if request.cleaning.needed:
        results = masking.projected(opened, regions, request)
        with _union(opened, regions, request, budget, results) as rows:
            return regions.pack(masking.mask(rows, regions, request))
    return regions.pack(_streamed(opened, regions, request, budget))


def _check_batches(strategy: str | None, batch_size: int | None, on_batch: object) -> None:
    number = isinstance(batch_size, int | np.integer) and batch_size > 0
    if batch_size is not None and (on_batch is None or not number):
        raise ParameterError(f"batch_size={batch_size!r}: give a number of masks, and on_batch to take them")
    if strategy is not None and on_batch is not None:
        raise ParameterError("on_batch takes signals of voxels: a strategy gives one small table")


def _in_batches(
    source: Source,
    regions: Regions,
    request: Request,
    budget: MemoryBudget,
    batch_size: int | None,
    on_batch: Callable[[dict[Any, Array]], object],
) -> dict[Any, tuple[int, ...]]:
    """Hand over the signals of some masks at a time; their shapes."""
    held = _union_bytes(source, regions)
    once = held <= budget.limit * _HELD_SHARE
    left = budget.limit - held if once else budget.limit // 2  # the rest holds the batch's own union
    size = batch_size or _fitting(source, regions, request, left)
    shapes: dict[Any, tuple[int, ...]] = {}
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(_union(source, regions, request, budget, 0)) if once else None
        for batch in regions.batches(size):
            signals = dict(zip(batch.keys, _of_batch(source, batch, request, budget, rows), strict=True))
            shapes |= {key: one.shape for key, one in signals.items()}
            on_batch(signals)
            del signals
    return shapes


def _of_batch(
    source: Source, batch: Regions, request: Request, budget: MemoryBudget, rows: Rows | None
) -> list[Array]:
    needed = masking.projected(source, batch, request)
    budget.require(f"extracting {len(batch)} masks from {source.name}", needed)
    if rows is not None:
        return masking.mask(rows, batch, request)
    with _union(source, batch, request, budget, needed) as own:
        return masking.mask(own, batch, request)


def _union_bytes(source: Source, regions: Regions) -> int:
    n_voxels = len(regions.union)
    return n_voxels * source.n_timepoints * source.dtype.itemsize + loading.buffer_bytes(source, n_voxels)


def _fitting(source: Source, regions: Regions, request: Request, nbytes: int) -> int:
    """How many masks go together: the largest takes no more than its share."""
    largest = max(masking.projected(source, one, request) for one in regions.batches(1))
    return max(1, int(nbytes // largest))


@contextlib.contextmanager
def _union(
    source: Source, regions: Regions, request: Request, budget: MemoryBudget, results: int
) -> Iterator[Rows]:
    """The rows of all regions' voxels, for one call; shared only if workers will read them."""
    union = regions.union
    budget.require(f"extracting from {source.name}", _union_bytes(source, regions) + results)
    if request.prefer == "processes" or (request.cleaning.needed and request.n_jobs > 1):
        nbytes = segments.projected(geometry_of(source, union))
        owned, rows = load_shared(source, union, source.name, budget, stores.choose("auto", nbytes)[0])
        try:
            yield rows
        finally:
            owned.release()
        return
    shape = (len(union), source.n_timepoints)
    array = np.empty(shape, source.dtype)
    finite = loading.load(source, array, select=union, n_threads=transposing_threads(source))
    yield Rows(source, array, finite, union)


def _streamed(source: Source, regions: Regions, request: Request, budget: MemoryBudget) -> list[Array]:
    """Signals of voxels, written on the way: each volume's values go straight to their results."""
    conversion = request.conversion(source)
    shape = (len(regions.indices), source.n_timepoints)
    nbytes = shape[0] * shape[1] * conversion.result.itemsize
    budget.require(f"extracting from {source.name}", nbytes + loading.buffer_bytes(source, shape[0]))
    rows = np.empty(shape, conversion.result)
    with masking.progress_to(request.progress, source.n_timepoints, "volume") as tell:
        loading.load(
            source,
            rows,
            select=regions.indices,
            conversion=conversion,
            n_threads=transposing_threads(source),
            on_volumes=tell,
        )
    return masking.reported(masking.split(rows, regions, source), regions, request)
