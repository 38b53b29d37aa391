"""Extraction: the signals of masks in one pass over an image that is never held.

Covers: what is kept on the way (results, or the rows of the masks' voxels), and what that takes.
Does not cover: images that several calls share (``image``), the work itself (``masking``).
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from sharedmask import loading, masking, monitor, plans, recall, segments, stores
from sharedmask.budget import MemoryBudget
from sharedmask.cache import Cache
from sharedmask.holding import geometry_of, load_shared, transposing_threads
from sharedmask.masking import Rows
from sharedmask.parameters import Parameters, Request, check_strategy
from sharedmask.plans import Plan
from sharedmask.regions import Grid, Regions
from sharedmask.sources import Source, open_source

Array = NDArray[Any]

_FEWER = "extract fewer masks at a time"


def extract(
    source: Any,
    masks: Any,
    *,
    strategy: str | None = None,
    resampling_target: Literal["data"] | None = None,
    memory: Any = None,
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
    memory : str, path, joblib.Memory or False, optional
        Where results are kept, as in :meth:`SharedImage.mask_parallel`.
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
    if strategy is None:
        regions = Regions.from_any(masks, grid, resampling_target=resampling_target)
    else:
        check_strategy(strategy)
        regions = Regions.from_atlas_or_masks(masks, grid, resampling_target=resampling_target)

    def compute() -> list[Array]:
        return _extracted(opened, regions, request, strategy, MemoryBudget.here(memory_limit))

    cache = Cache.of(memory)
    if cache is None:
        results = compute()
    else:
        asked = recall.Asked(opened, opened.fingerprint, regions, request, strategy)
        results = recall.through(cache, asked, compute)
    return regions.pack(results) if strategy is None else results[0]


def _extracted(
    source: Source, regions: Regions, request: Request, strategy: str | None, budget: MemoryBudget
) -> list[Array]:
    """The signals of each region; or, with a ``strategy``, a single array of all."""
    operation = f"extracting from {source.name}"
    if strategy is not None:
        plan = plans.reduce(source, regions, strategy, request, budget, operation)
        with _union(source, regions, plan, budget) as rows:
            return [masking.reduce(rows, regions, strategy, plan)]
    if request.cleaning.needed:
        plan = plans.mask(source, regions, request, budget, operation)
        with _union(source, regions, plan, budget) as rows:
            return masking.mask(rows, regions, plan)
    return _streamed(source, regions, request, budget)


@contextlib.contextmanager
def _union(source: Source, regions: Regions, plan: Plan, budget: MemoryBudget) -> Iterator[Rows]:
    """The rows of all regions' voxels, for one call; shared only if workers will read them."""
    union, operation = regions.union, plan.operation
    held = len(union) * source.n_timepoints * source.dtype.itemsize
    needed = held + loading.buffer_bytes(source, len(union)) + plan.needed
    budget.require(operation, needed, _FEWER)
    with monitor.operation("extract", operation, needed):
        if plans.in_processes(plan.request, heavy=plan.request.cleaning.needed):
            nbytes = segments.projected(geometry_of(source, union))
            store = stores.choose("auto", nbytes)[0]
            owned, rows = load_shared(source, union, source.name, budget, store)
            try:
                yield rows
            finally:
                owned.release()
            return
        array = np.empty((len(union), source.n_timepoints), source.dtype)
        finite = loading.load(source, array, select=union, n_threads=transposing_threads(source))
        yield Rows(source, array, finite, union)


def _streamed(source: Source, regions: Regions, request: Request, budget: MemoryBudget) -> list[Array]:
    """Signals of voxels, written on the way: each volume's values go straight to their results."""
    conversion, operation = request.conversion(source), f"extracting from {source.name}"
    shape = (len(regions.indices), source.n_timepoints)
    nbytes = shape[0] * shape[1] * conversion.result.itemsize
    needed = nbytes + loading.buffer_bytes(source, shape[0])
    budget.require(operation, needed, _FEWER)
    with (
        monitor.operation("extract", operation, needed),
        masking.progress_to(request.progress, source.n_timepoints, "volume") as tell,
    ):
        rows = np.empty(shape, conversion.result)
        loading.load(
            source,
            rows,
            select=regions.indices,
            conversion=conversion,
            n_threads=transposing_threads(source),
            on_volumes=tell,
        )
    return masking.reported(masking.split(rows, regions, source), regions, request)
