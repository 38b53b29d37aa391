"""Operations: what may be asked of an image that is held.

Covers: the calls and their parameters, for any image that has rows; which masks go together. Does
not cover: how an image comes to have rows and when it gives them up (``image``), checking parameters
(``request``), what a request takes (``plan``), the work itself (``signals``).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

import numpy as np

from sharedmask.compute import signals
from sharedmask.compute.plan import plan_for, signals_bytes
from sharedmask.compute.progress import Progress
from sharedmask.compute.request import Parameters, Request, checked_strategy, is_weighted
from sharedmask.errors import ParameterError
from sharedmask.image.facts import Described
from sharedmask.image.results import Cache, Lookup, get_or_compute
from sharedmask.regions.alignment import align_to_masks
from sharedmask.regions.masks import ResamplingTarget, matching, spread
from sharedmask.regions.regions import Regions
from sharedmask.remote.addresses import absolute
from sharedmask.storage.rows import Held, Series, as_source
from sharedmask.system import settings
from sharedmask.system.budget import MemoryBudget, within
from sharedmask.system.settings import Settings
from sharedmask.typing import Array, NDArray

if TYPE_CHECKING:  # else imported by who asks for it
    from sharedmask.image.glm import FittedModel, NoiseModel

K = TypeVar("K")
T = TypeVar("T")
Listed = list[Any] | tuple[Any, ...]


class Asked(Parameters, total=False):
    """Of each call that may find its results kept."""

    resampling_target: ResamplingTarget
    memory: Any


class Drawing(Parameters, total=False):
    """Of a call of the user's function."""

    resampling_target: ResamplingTarget
    random_state: Any


_BATCH_SHARE = 0.5  # of the memory that is left: what the signals of a batch of masks may take


class Operations(Described):
    """The calls of an image; what it has to provide is declared here."""

    _voxels: NDArray[np.intp] | None
    _memory_limit: int | float | str | None

    if TYPE_CHECKING:

        def _in_use(self, knobs: Settings) -> AbstractContextManager[tuple[Held, MemoryBudget]]:
            """The image, loaded, for the time of a call; and what the call may take besides."""

        def _lookup(self, request: Request) -> Lookup | None:
            """Under which results are kept; None if the image cannot be told from others."""

    @overload
    def mask_parallel(self, masks: Listed, **asked: Unpack[Asked]) -> list[Array]: ...
    @overload
    def mask_parallel(self, masks: Mapping[K, Any], **asked: Unpack[Asked]) -> dict[K, Array]: ...
    @overload
    def mask_parallel(self, masks: Any, **asked: Unpack[Asked]) -> Any: ...
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
            By default rows are copied, reduced and cleaned by threads, which memory limits and not the
            interpreter; from five CPUs on processes clean.
        dtype : "auto", None or dtype
            ``"auto"``: as nilearn's NiftiMasker (floats keep theirs, integers become float32,
            scaled ones float64). None: as nibabel gives the values, untouched.
        nan_policy : {"zero", "propagate", "raise"}, optional
            Non-finite values: 0 as nilearn does (the default, unless ``dtype=None``), kept, or
            refused.
        standardize : {"zscore_sample", "psc"}, optional
            To unit variance, or per cent of the mean.
        detrend : bool
            Remove linear trends.
        confounds : array (n_timepoints, n_confounds), data frame, path, or list of those, optional
            Series that are regressed out.
        sample_mask : array of volume numbers or booleans, optional
            The volumes to keep.
        low_pass, high_pass : float, optional
            Cut-off frequencies in Hz.
        t_r : float, optional
            Repetition time in seconds; default: the image's. These seven are :func:`nilearn.signal.clean`'s
            [1]_; each voxel is cleaned once.
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
            The image was closed; a worker died.

        References
        ----------
        .. [1] M. A. Lindquist et al. (2019). Modular preprocessing pipelines can reintroduce artifacts into
           fMRI data. Human Brain Mapping 40, 2358-2376: why filters and confounds go in one step.
        """
        regions = self._regions(masks, resampling_target)
        operation = f"masking {self._name} with {len(regions)} masks"
        request = self._request(regions, "mask", operation, **parameters)
        return request.pack(self._results(request, memory))

    def mask(
        self,
        mask: Any,
        *,
        resampling_target: ResamplingTarget = None,
        memory: Any = None,
        **parameters: Unpack[Parameters],
    ) -> Array:
        """The signals of one mask.

        Parameters
        ----------
        mask : path, niimg or 3D array
            Non-zero is inside.
        resampling_target, memory, **parameters : optional
            As in :meth:`mask_parallel`.

        Returns
        -------
        ndarray, (n_timepoints, n_voxels)
            (n_voxels,) for a 3D image.
        """
        found: dict[str, Array] = self.mask_parallel(
            {"mask": mask}, resampling_target=resampling_target, memory=memory, **parameters
        )
        return found["mask"]

    @overload
    def reduce(self, labels_img: Any, strategy: str = "mean", **asked: Unpack[Asked]) -> Array: ...
    @overload
    def reduce(
        self, labels_img: Any, strategy: Sequence[str], **asked: Unpack[Asked]
    ) -> dict[str, Array]: ...
    def reduce(
        self,
        labels_img: Any,
        strategy: str | Sequence[str] = "mean",
        *,
        resampling_target: ResamplingTarget = None,
        memory: Any = None,
        **parameters: Unpack[Parameters],
    ) -> Any:
        """One value per region and volume.

        Parameters
        ----------
        labels_img : atlas or masks
            A label image (path or niimg), :class:`Regions`, or masks as a list, dict, glob
            pattern or 4D image, which may overlap.
        strategy : str, or sequence of str
            One of mean, median, sum, minimum, maximum, variance, standard_deviation (of the population,
            as nilearn's), or pc1: the first principal time course, scaled as SPM's eigenvariate [1]_;
            weighted_mean, of one 4D image of weights (a probabilistic atlas). Several are made in one pass.
        nan_policy : {"zero", "omit", "propagate", "raise"}, optional
            ``"omit"`` leaves non-finite values out; the default counts them as 0, as nilearn.
        dtype : "auto", None or dtype
            ``"auto"``: float32 for float32 images, else float64, as nilearn. Sums are in float64.
        resampling_target, memory, **parameters : optional
            As in :meth:`mask_parallel`; cleaning is applied to the regions' signals.

        Returns
        -------
        ndarray, (n_timepoints, n_regions), or dict of those
            Columns in the order of the labels or masks; ``Regions.table()`` names them.
            (n_regions,) for a 3D image. Of several strategies an array by each one's name.

        References
        ----------
        .. [1] K. J. Friston et al. (2006). A critique of functional localisers. NeuroImage 30, 1077-1087; the
           computation is that of ``spm_regions``.
        """
        regions = self._reducible(labels_img, strategy, resampling_target)
        operation = f"reducing {self._name} to {len(regions)} regions"
        request = self._request(regions, "reduce", operation, strategy=strategy, **parameters)
        return request.pack(self._results(request, memory))

    @overload
    def map(self, func: Callable[[Array], T], masks: Listed, **asked: Unpack[Drawing]) -> list[T]: ...
    @overload
    def map(
        self, func: Callable[[Array], T], masks: Mapping[K, Any], **asked: Unpack[Drawing]
    ) -> dict[K, T]: ...
    @overload
    def map(self, func: Callable[[Array], T], masks: Any, **asked: Unpack[Drawing]) -> Any: ...
    def map(
        self,
        func: Callable[[Array], T],
        masks: Any,
        *,
        random_state: Any = None,
        resampling_target: ResamplingTarget = None,
        **parameters: Unpack[Parameters],
    ) -> Any:
        """Call ``func`` on each region's (n_timepoints, n_voxels) array, where the data are.

        Workers attach to the image and send back only what ``func`` returns. Functions defined
        in scripts and notebooks, lambdas and closures are fine, and see the caller's working directory,
        environment and modules as they are.

        Parameters
        ----------
        func : callable
            Of an array.
        masks : list, dict, glob pattern, 4D image, :class:`Regions`, or one mask
            As for :meth:`mask_parallel`.
        random_state : int, SeedSequence, Generator or RandomState, optional
            Each region has random numbers of its own, the same for every ``n_jobs``, in the global
            generators of NumPy, Python and torch and in those that ``func`` holds. They hang on this,
            or on the state of each generator at the call. Threads (``prefer="threads"``) draw from
            the caller's generators as it comes, or one after the other if this is given.
        resampling_target, **parameters : optional
            As in :meth:`mask_parallel`; with ``n_jobs`` above 1 processes are the default.

        Returns
        -------
        list, dict or object
            What ``func`` returned, in the container of ``masks``.
        """
        if not callable(func):
            raise ParameterError(f"func={func!r} is no function")
        signals.begin_workers(parameters)
        regions = self._regions(masks, resampling_target)
        operation = f"calling a function on {len(regions)} masks of {self._name}"
        request = self._request(
            regions, "map", operation, function=func, random_state=random_state, **parameters
        )
        return regions.pack(self.carry_out(request, settings.current()))

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
            Opened when their turn comes.
        batch_size : int, optional
            None: as many as fit in memory.
        resampling_target, **parameters : optional
            As in :meth:`mask_parallel`.

        Returns
        -------
        iterator of (key, ndarray)
            The dict's key, the file's name, or the number in a list; (n_timepoints, n_voxels).
        """
        if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
            raise ParameterError(f"batch_size={batch_size!r} is no number of masks")
        for name in {"confounds", "memory"} & parameters.keys():
            parameters[name] = _absolute(parameters[name])  # type: ignore[literal-required]
        return self._in_batches(_absolute(masks), batch_size, resampling_target, parameters)

    def _in_batches(
        self, masks: Any, batch_size: int | None, resampling_target: ResamplingTarget, parameters: Parameters
    ) -> Iterator[tuple[Any, Array]]:
        regions_of = partial(self._regions, resampling_target=resampling_target)
        batches = _batches(masks, regions_of, batch_size or 1)
        if batch_size is None:
            batches = self._fitting(batches, resampling_target, parameters)
        for batch in batches:
            signals = self.mask_parallel(batch, resampling_target=resampling_target, **parameters)
            yield from signals.items()

    def _fitting(
        self, singles: Iterator[Any], target: ResamplingTarget, parameters: Parameters
    ) -> Iterator[Regions]:
        """Masks, opened one by one, whose signals together take a share of the memory that is left."""
        with self._in_use(settings.current()) as (_, budget):
            room = budget.limit * _BATCH_SHARE
        batch, taken, request = list[Regions](), 0, None
        for single in singles:
            regions = self._regions(single, target)
            # The first one checks the parameters.
            request = request or self._request(regions, "mask", self._name, **parameters)
            needed = signals_bytes(self._facts, replace(request, regions=regions))
            if batch and taken + needed > room:
                yield Regions.joined(batch)
                batch, taken = [], 0
            batch.append(regions)
            taken += needed
        if batch:
            yield Regions.joined(batch)

    def fit_glm(
        self,
        design: Any,
        masks: Any = None,
        *,
        contrasts: Mapping[Any, Any] | Sequence[Any] | None = None,
        noise_model: "NoiseModel" = "ols",
        trials: Sequence[Any] | None = None,
        in_per_cent: bool = False,
        resampling_target: ResamplingTarget = None,
        n_jobs: int | None = None,
        progress: Progress = None,
    ) -> "FittedModel":
        """Fit a linear model to each voxel, in blocks, as nilearn's ``run_glm`` does.

        Parameters
        ----------
        design : data frame, array (n_timepoints, n_regressors) or path
            With a constant, if there is to be one.
        masks : what :meth:`mask_parallel` takes, optional
            The voxels; default: all voxels that the image holds.
        contrasts : dict of name -> contrast, or list of regressors' names, optional
            A contrast is the name of a regressor, a vector (for t) or a matrix (for F).
        noise_model : {"ols", "ar1"}
            Ordinary least squares, or autoregressive noise of order 1.
        trials : list of regressors, optional
            Estimate each of these alone, in a model with all other trials as one regressor (least squares
            separate). A design with a regressor for each trial is least squares all.
        in_per_cent : bool
            Of each voxel's mean, as ``FirstLevelModel(signal_scaling=0)``.
        resampling_target, n_jobs, progress : optional
            As in :meth:`mask_parallel`; jobs are threads.

        Returns
        -------
        FittedModel
            ``estimates`` (n_regressors, n_voxels), ``contrasts``, ``rho``; ``to_nifti`` makes maps of them,
            ``by_region`` means.

        Raises
        ------
        ParameterError, MemoryLimitError
            A design, contrast or trial that does not fit; nothing was read.

        Examples
        --------
        >>> import nibabel as nib, numpy as np
        >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
        >>> design = np.column_stack([np.arange(10), np.ones(10)])
        >>> from sharedmask import SharedImage
        >>> with SharedImage(bold) as image:
        ...     model = image.fit_glm(design, contrasts={"slope": [1, 0]})
        >>> model.to_nifti(model.contrasts["slope"].effect).dataobj[0, 0, :2].round(3).tolist()
        [1.0, 1.0]
        """
        from sharedmask.image.glm import Question, fit

        question = Question.checked(self._facts, design, contrasts, noise_model, trials, in_per_cent)
        given = self._inside() if masks is None else masks
        regions = self._regions(given, resampling_target)
        operation = f"fitting a linear model to {len(regions.indices)} voxels of {self._name}"
        request = self._request(regions, "glm", operation, n_jobs=n_jobs, progress=progress)
        with self._in_use(settings.current()) as (held, budget):
            return fit(held, question, request, budget)

    def _inside(self) -> Array:
        """Where voxels are held, in the shape of a volume."""
        inside = np.full(self._facts.n_voxels, self._voxels is None)
        inside[self._voxels if self._voxels is not None else slice(0)] = True
        return inside.reshape(self._grid.shape, order="F")

    # --- checked, found or computed, loaded, planned, done ---

    def _regions(self, masks: Any, resampling_target: ResamplingTarget) -> Regions:
        with within(self._memory_limit):
            return Regions.from_any(masks, self._grid, resampling_target=resampling_target)

    def _reducible(self, labels_img: Any, strategy: Any, target: ResamplingTarget) -> Regions:
        weighted = is_weighted(checked_strategy(strategy))
        with within(self._memory_limit):
            return Regions.from_atlas_or_masks(
                labels_img, self._grid, weighted=weighted, resampling_target=target
            )

    def _request(self, regions: Regions, label: str, operation: str, **asked: Any) -> Request:
        return Request.checked(self._facts, regions, label=label, operation=operation, **asked)

    def _results(self, request: Request, memory: Any) -> list[Array]:
        """What the request gives, or gave before for this image."""
        knobs = settings.current()
        cache = Cache.of(memory, knobs)
        lookup = None if cache is None else self._lookup(request)
        if cache is None or lookup is None:
            return self.carry_out(request, knobs)
        return get_or_compute(cache, lookup, lambda: self.carry_out(request, knobs))

    def carry_out(self, request: Request, knobs: Settings) -> list[Any]:
        """What a checked request gives.

        Parameters
        ----------
        request : Request
            Made for this image.
        knobs : Settings
            As they are now.

        Returns
        -------
        list
            One result per region, or of a strategy one table.
        """
        with self._in_use(knobs) as (held, budget):
            series, request = _on_one_grid(held, request)
            return signals.run(series, plan_for(series, request, budget), budget).values


def _on_one_grid(held: Held, request: Request) -> tuple[Series, Request]:
    """The image as it is, or resampled to the masks; and the masks there."""
    grid, regions = held.facts.grid, request.regions
    if regions.fits(grid):
        return held, replace(request, regions=regions.on(grid))
    source, regions = align_to_masks(as_source(held), regions)
    return source, replace(request, regions=regions)


def _absolute(given: Any) -> Any:
    """Paths as they are meant now: they are opened later, wherever the caller is then."""
    if isinstance(given, str | os.PathLike):
        return absolute(given)
    if isinstance(given, list | tuple):
        return [_absolute(one) for one in given]
    if type(given) is dict:
        return {name: _absolute(one) for name, one in given.items()}
    return given


def _batches(masks: Any, regions_of: Callable[[Any], Regions], size: int) -> Iterator[Any]:
    """Dicts or regions of at most ``size`` masks, opened only when reached."""
    masks = spread(masks) if isinstance(masks, (list, tuple)) else matching(masks) or masks
    if isinstance(masks, str | os.PathLike | Regions) or hasattr(masks, "shape"):
        yield from regions_of(masks).batches(size)
        return
    items = iter(masks.items() if isinstance(masks, Mapping) else enumerate(masks))
    while batch := dict(islice(items, size)):
        yield batch
