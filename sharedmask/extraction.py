"""Extraction: the signals of masks in one pass over an image that is never held.

Covers: what is kept on the way (results, or the rows of the masks' voxels), and what that takes.
Does not cover: images that several calls share (``image``), the work itself (``masking``).
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from sharedmask import loading, masking, segments, stores
from sharedmask.budget import MemoryBudget
from sharedmask.holding import geometry_of, load_shared, transposing_threads
from sharedmask.masking import Rows
from sharedmask.parameters import Parameters, Request, check_strategy
from sharedmask.regions import Grid, Regions
from sharedmask.sources import Source, open_source

Array = NDArray[Any]


def extract(
    source: Any,
    masks: Any,
    *,
    strategy: str | None = None,
    resampling_target: Literal["data"] | None = None,
    memory_limit: int | float | str | None = None,
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

    Other parameters are those of :meth:`SharedImage.mask_parallel`.

    Returns
    -------
    list, dict or ndarray
        (n_timepoints, n_voxels) per mask, in the container given; with a ``strategy`` one
        (n_timepoints, n_regions) array.

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
    regions = regions_of(masks, grid, strategy, resampling_target)
    if strategy is not None:
        with _union(opened, regions, request, budget, 0) as rows:
            return masking.reduce(rows, regions, strategy, request)
    if request.cleaning.needed:
        results = masking.projected(opened, regions, request)
        with _union(opened, regions, request, budget, results) as rows:
            return regions.pack(masking.mask(rows, regions, request))
    return regions.pack(_streamed(opened, regions, request, budget))


def regions_of(
    masks: Any, grid: Grid, strategy: str | None, resampling_target: Literal["data"] | None
) -> Regions:
    """What :func:`extract` makes of ``masks``: with a ``strategy`` one image is an atlas."""
    if strategy is None:
        return Regions.from_any(masks, grid, resampling_target=resampling_target)
    check_strategy(strategy)
    return Regions.from_atlas_or_masks(masks, grid, resampling_target=resampling_target)


def projected(source: Source, regions: Regions, strategy: str | None, request: Request) -> int:
    """Bytes that :func:`extract` takes for these regions at its peak."""
    if strategy is None and not request.cleaning.needed:
        return _streaming_bytes(source, regions, request)
    results = 0 if strategy is not None else masking.projected(source, regions, request)
    return _union_bytes(source, regions) + results


def _streaming_bytes(source: Source, regions: Regions, request: Request) -> int:
    itemsize, n_rows = request.conversion(source).result.itemsize, len(regions.indices)
    return n_rows * source.n_timepoints * itemsize + loading.buffer_bytes(source, n_rows)


def _union_bytes(source: Source, regions: Regions) -> int:
    n_rows = len(regions.union)
    return n_rows * source.n_timepoints * source.dtype.itemsize + loading.buffer_bytes(source, n_rows)


@contextlib.contextmanager
def _union(
    source: Source, regions: Regions, request: Request, budget: MemoryBudget, results: int
) -> Iterator[Rows]:
    """The rows of all regions' voxels, for one call; shared only if workers will read them."""
    union = regions.union
    held = len(union) * source.n_timepoints * source.dtype.itemsize
    operation = f"extracting from {source.name}"
    budget.require(operation, held + loading.buffer_bytes(source, len(union)) + results)
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
