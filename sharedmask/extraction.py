"""Extraction: the signals of masks in one pass over an image that is never held.

Covers: what is kept on the way (results, or the rows of the masks' voxels), and what that takes.
Does not cover: images that several calls share (``image``), the work itself (``masking``).
"""

from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from sharedmask import loading, masking, monitor, plans, recall, steps
from sharedmask.budget import MemoryBudget
from sharedmask.cache import Cache
from sharedmask.holding import FEWER, transposing_threads, union, union_bytes
from sharedmask.parameters import Parameters, Request, check_strategy
from sharedmask.regions import Grid, Regions, ResamplingTarget
from sharedmask.sources import Source, open_source

Array = NDArray[Any]


def extract(
    source: Any,
    masks: Any,
    *,
    strategy: str | None = None,
    smoothing_fwhm: float | None = None,
    resampling_target: ResamplingTarget = None,
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
    smoothing_fwhm : float, optional
        As for :class:`SharedImage`.
    resampling_target : {"data", "mask"}, optional
        As in :meth:`SharedImage.mask_parallel`; the image is smoothed before it is resampled.
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
    opened = steps.smoothed(open_source(source), smoothing_fwhm)
    grid = Grid(opened.shape[:3], opened.affine)
    request = Request.checked(opened, **parameters)
    regions = regions_of(masks, grid, strategy, resampling_target)
    opened, regions = steps.fitted(opened, regions)

    def compute() -> list[Array]:
        return _extracted(opened, regions, request, strategy, MemoryBudget.here(memory_limit))

    cache = Cache.of(memory)
    if cache is None:
        results = compute()
    else:
        asked = recall.Asked(opened, opened.fingerprint, regions, request, strategy)
        results = recall.through(cache, asked, compute)
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
    if strategy is None:
        plan = plans.mask(source, regions, request, budget, operation)
    else:
        plan = plans.reduce(source, regions, strategy, request, budget, operation)
    return union_bytes(source, regions) + plan.needed


def _streaming_bytes(source: Source, regions: Regions, request: Request) -> int:
    itemsize, n_rows = request.conversion(source).result.itemsize, len(regions.indices)
    return n_rows * source.n_timepoints * itemsize + loading.buffer_bytes(source, n_rows)


def _extracted(
    source: Source, regions: Regions, request: Request, strategy: str | None, budget: MemoryBudget
) -> list[Array]:
    """The signals of each region; or, with a ``strategy``, a single array of all."""
    operation = f"extracting from {source.name}"
    if strategy is not None:
        plan = plans.reduce(source, regions, strategy, request, budget, operation)
        with union(source, regions, plan, budget) as rows:
            return [masking.reduce(rows, regions, strategy, plan)]
    if request.cleaning.needed:
        plan = plans.mask(source, regions, request, budget, operation)
        with union(source, regions, plan, budget) as rows:
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
