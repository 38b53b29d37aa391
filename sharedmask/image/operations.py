"""Requests: what may be asked of an image that is held.

Covers: the calls and their parameters, for any image that has rows; which masks go together. Does
not cover: how an image comes to have rows and when it gives them up (``image``), checking parameters
(``request``), what a request takes (``plan``), the work itself (``signals``).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from sharedmask.compute import plan as plans
from sharedmask.compute import reduction
from sharedmask.compute import signals as masking
from sharedmask.compute.plan import Plan
from sharedmask.compute.request import Parameters, Request, check_strategy
from sharedmask.errors import ParameterError
from sharedmask.image import results
from sharedmask.regions import fit
from sharedmask.regions.masks import ResamplingTarget, matching
from sharedmask.regions.regions import Regions
from sharedmask.sources.grid import Grid
from sharedmask.sources.source import Facts, Source
from sharedmask.storage import rows as holding
from sharedmask.storage.kept import Cache
from sharedmask.storage.rows import Rows
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array

T = TypeVar("T")
_Planner = Callable[[Facts, Regions, Request, MemoryBudget, str], Plan]
_Work = Callable[[Rows, Regions, Plan], list[Any]]

_BATCH_SHARE = 0.5  # of the memory that is left: what the signals of a batch of masks may take


class Operations(ABC):
    """The calls of an image, on rows that it provides."""

    _facts: Facts
    _grid: Grid
    _name: str
    _source: Source | None
    _voxels: NDArray[np.intp] | None

    @abstractmethod
    def _in_use(self) -> AbstractContextManager[Rows]:
        """The rows, for the time of a call."""

    @abstractmethod
    def _budget(self) -> MemoryBudget:
        """What calls may take besides the image."""

    @abstractmethod
    def _read_as(self) -> str | None:
        """The fingerprint of the source whose values the rows have or will have; None if unknown."""

    def mask_parallel(
        self,
        masks: Any,
        *,
        resampling_target: ResamplingTarget = None,
        memory: Any = None,
        **parameters: Unpack[Parameters],
    ) -> Any:
        """The signals of all voxels of each mask.

        Parameters
        ----------
        masks : list, dict, glob pattern, 4D image, :class:`Regions`, or one mask
            Masks as paths, niimgs or 3D arrays, overlapping or not; non-zero is inside. Label
            atlases: ``Regions.from_labels(atlas)``.
        n_jobs : int, optional
            Workers, by joblib's convention (-1: every CPU).
        prefer : {"threads", "processes"}, optional
            By default rows are copied by threads, which memory limits and not the interpreter,
            and cleaned by processes.
        dtype : "auto", None or dtype
            ``"auto"``: as nilearn's NiftiMasker (floats keep theirs, integers become float32,
            scaled ones float64). None: as nibabel gives the values, untouched.
        nan_policy : {"zero", "propagate", "raise"}, optional
            Non-finite values: 0 as nilearn does (the default, unless ``dtype=None``), kept, or
            refused.
        standardize : {"zscore_sample", "psc"}, optional
        detrend : bool
        confounds : array (n_timepoints, n_confounds), data frame, path, or list of those, optional
        sample_mask : array of volume numbers or booleans, optional
            The volumes to keep.
        low_pass, high_pass : float, optional
            Cut-off frequencies in Hz.
        t_r : float, optional
            Repetition time in seconds; default: the image's.
            These seven are :func:`nilearn.signal.clean`'s; each voxel is cleaned once.
        resampling_target : {"data", "mask"}, optional
            ``"data"``: masks on another grid are resampled to the image, nearest neighbour.
            ``"mask"``, or ``"labels"``: the image is resampled to the one grid of all masks, cubic
            spline, as NiftiMasker does. That takes far longer than masking, at each call, and
            holds the masks' voxels besides their signals. By default masks on another grid are
            refused, unless axes are only flipped or permuted.
        memory : str, path, joblib.Memory or False, optional
            A directory in which results are kept: the same request of an unchanged image is then
            answered without reading it. Default: the setting ``cache_dir``; False: none. An
            attached image has no file to compare with, and its results are not kept.
        progress : bool or callable, optional
            True draws a bar; a function is called with (done, total).
        on_result : callable, optional
            Called with (key, signals) for each mask, in order of completion.

        Returns
        -------
        list, dict or ndarray
            (n_timepoints, n_voxels) arrays in the container given: a list for a list or 4D
            image; a dict for a dict, a glob pattern or an atlas; one array for one mask.
            Voxels are in the C order of the mask. (n_voxels,) for a 3D image.

        Raises
        ------
        GridMismatchError, EmptyMaskError, OutsideImageError, ParameterError, MemoryLimitError
            Each with the file or mask and the number that is wrong.
        ClosedImageError, WorkerError
        """
        request = Request.checked(self._facts, **parameters)
        regions = self._regions(masks, resampling_target)
        operation = f"masking {self._name} with {len(regions)} masks"

        def compute() -> list[Array]:
            passing = None if request.cleaning.needed else 0
            return self._carry_out(regions, request, operation, plans.mask, masking.mask, passing)

        return regions.pack(self._recalled(memory, compute, regions, request, None))

    def mask(
        self,
        mask: Any,
        *,
        resampling_target: ResamplingTarget = None,
        memory: Any = None,
        **parameters: Unpack[Parameters],
    ) -> Array:
        """The signals of one mask, (n_timepoints, n_voxels); parameters of :meth:`mask_parallel`."""
        found: dict[str, Array] = self.mask_parallel(
            {"mask": mask}, resampling_target=resampling_target, memory=memory, **parameters
        )
        return found["mask"]

    def reduce(
        self,
        labels_img: Any,
        strategy: str = "mean",
        *,
        resampling_target: ResamplingTarget = None,
        memory: Any = None,
        **parameters: Unpack[Parameters],
    ) -> Array:
        """One value per region and volume.

        Parameters
        ----------
        labels_img : atlas or masks
            A label image (path or niimg), :class:`Regions`, or masks as a list, dict, glob
            pattern or 4D image, which may overlap.
        strategy : str
            mean, median, sum, minimum, maximum, variance, standard_deviation (of the population,
            as nilearn's), or pc1: the first principal time course, scaled as SPM's eigenvariate.
        nan_policy : {"zero", "omit", "propagate", "raise"}, optional
            ``"omit"`` leaves non-finite values out; the default counts them as 0, as nilearn.
        dtype : "auto", None or dtype
            ``"auto"``: float32 for float32 images, else float64, as nilearn. Sums are in float64.

        Other parameters are those of :meth:`mask_parallel`; cleaning is applied to the regions'
        signals.

        Returns
        -------
        ndarray, (n_timepoints, n_regions)
            Columns in the order of the labels or masks; ``Regions.table()`` names them.
            (n_regions,) for a 3D image.
        """
        request = Request.checked(self._facts, **parameters)
        check_strategy(strategy)
        regions = Regions.from_atlas_or_masks(labels_img, self._grid, resampling_target=resampling_target)
        operation = f"reducing {self._name} to {len(regions)} regions"

        def plan(facts: Facts, regions: Regions, request: Request, budget: MemoryBudget, what: str) -> Plan:
            return plans.reduce(facts, regions, strategy, request, budget, what)

        def work(rows: Rows, regions: Regions, plan: Plan) -> list[Array]:
            return [masking.reduce(rows, regions, strategy, plan)]

        def compute() -> list[Array]:
            in_passing = strategy in reduction.BY_VOLUME
            passing = plans.reduce_volumes(self._facts, regions, request) if in_passing else None
            return self._carry_out(regions, request, operation, plan, work, passing)

        return self._recalled(memory, compute, regions, request, strategy)[0]

    def map(
        self,
        func: Callable[[Array], T],
        masks: Any,
        *,
        resampling_target: ResamplingTarget = None,
        **parameters: Unpack[Parameters],
    ) -> Any:
        """Call ``func`` on each region's (n_timepoints, n_voxels) array, where the data are.

        Workers attach to the image and send back only what ``func`` returns. Functions defined
        in scripts and notebooks, lambdas and closures are fine. Parameters as in
        :meth:`mask_parallel`; with ``n_jobs`` above 1 processes are the default.

        Returns
        -------
        list, dict or object
            What ``func`` returned, in the container of ``masks``.
        """
        request = Request.checked(self._facts, **parameters)
        regions = self._regions(masks, resampling_target)
        operation = f"calling a function on {len(regions)} masks of {self._name}"

        def work(rows: Rows, regions: Regions, plan: Plan) -> list[T]:
            return masking.map_regions(rows, regions, func, plan)

        return regions.pack(self._carry_out(regions, request, operation, plans.map_regions, work))

    def iter_masks(
        self,
        masks: Any,
        *,
        batch_size: int | None = 20,
        resampling_target: ResamplingTarget = None,
        **parameters: Unpack[Parameters],
    ) -> Iterator[tuple[Any, Array]]:
        """The signals of any number of masks, one mask after the other, in constant memory.

        Masks are opened, and their signals made, ``batch_size`` at a time. With
        ``resampling_target="mask"`` each batch resamples the image anew.

        Parameters
        ----------
        masks : list, dict, iterator, or what :meth:`mask_parallel` takes
        batch_size : int, optional
            None: as many as fit in memory.
        **parameters
            Those of :meth:`mask_parallel`.

        Yields
        ------
        (key, ndarray)
            The dict's key, the file's name, or the number in a list; (n_timepoints, n_voxels).
        """
        if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
            raise ParameterError(f"batch_size={batch_size!r} is no number of masks")
        batches = _batches(masks, self._grid, batch_size or 1, resampling_target)
        if batch_size is None:
            request = Request.checked(self._facts, **parameters)
            batches = self._fitting(batches, resampling_target, request)
        for batch in batches:
            signals = self.mask_parallel(batch, resampling_target=resampling_target, **parameters)
            yield from signals.items()

    def _fitting(
        self, singles: Iterator[Any], target: ResamplingTarget, request: Request
    ) -> Iterator[Regions]:
        """Masks, opened one by one, whose signals together take a share of the memory that is left."""
        with self._in_use():
            room = self._budget().limit * _BATCH_SHARE
        batch, taken = list[Regions](), 0
        for single in singles:
            regions = self._regions(single, target)
            needed = plans.signals_bytes(self._facts, regions, request)
            if batch and taken + needed > room:
                yield Regions.joined(batch)
                batch, taken = [], 0
            batch.append(regions)
            taken += needed
        if batch:
            yield Regions.joined(batch)

    # --- carrying out ---

    def _regions(self, masks: Any, resampling_target: ResamplingTarget) -> Regions:
        return Regions.from_any(masks, self._grid, resampling_target=resampling_target)

    def _carry_out(
        self,
        regions: Regions,
        request: Request,
        operation: str,
        planner: _Planner,
        work: _Work,
        passing: int | None = None,
    ) -> list[Any]:
        """Do the work on the image's rows, or on those of the image resampled to the masks' grid.

        ``passing`` is what it takes while volumes pass by; None: it needs rows.
        """
        with self._in_use() as rows:
            budget = self._budget()
            if not regions.fits(self._grid):
                source, regions = fit.align_to_masks(holding.as_source(rows), regions)
                plan = planner(source, regions, request, budget, operation)
                with masking.load_union(source, regions, plan, budget) as resampled:
                    return work(resampled, regions, plan)
            regions = regions.on(self._grid)
            plan = planner(self._facts, regions, request, budget, operation)
            plan = masking.with_pass(plan, rows, regions, budget, passing)
            with plan.running():
                return work(rows, regions, plan)

    def _recalled(
        self,
        memory: Any,
        compute: results.Computation,
        regions: Regions,
        request: Request,
        strategy: str | None,
    ) -> list[Array]:
        """What ``compute`` returns, or returned before for this image."""
        cache = Cache.of(memory)
        taken = None if cache is None else self._read_as()
        if cache is None or taken is None or self._source is None:
            return compute()
        asked = results.Asked(self._source, taken, regions, request, strategy, self._voxels)
        return results.get_or_compute(cache, asked, compute)


def _batches(masks: Any, grid: Grid, size: int, target: ResamplingTarget) -> Iterator[Any]:
    """Dicts or regions of at most ``size`` masks, opened only when reached."""
    masks = matching(masks) or masks
    if isinstance(masks, str | os.PathLike | Regions) or hasattr(masks, "shape"):
        yield from Regions.from_any(masks, grid, resampling_target=target).batches(size)
        return
    items = iter(masks.items() if isinstance(masks, Mapping) else enumerate(masks))
    while batch := dict(islice(items, size)):
        yield batch
