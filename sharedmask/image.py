"""The shared image, and extraction in one pass: where sources, segments and requests meet.

Covers: when an image is loaded, where its rows live, when it is closed; what each call projects
to take. Does not cover: the calls' parameters (``parameters``), their work (``masking``), the
decoding pipeline (``loading``), who cleans up after a crash (``registry``).
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Literal, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from sharedmask import kernels, loading, masking, pool, segments
from sharedmask.budget import MemoryBudget, mib
from sharedmask.errors import ClosedImageError, OutsideImageError, ParameterError
from sharedmask.masking import Rows
from sharedmask.parameters import Parameters, Request
from sharedmask.pool import Shared
from sharedmask.regions import Grid, Regions
from sharedmask.registry import Owned
from sharedmask.sources import Source, open_source

Array = NDArray[Any]
T = TypeVar("T")

# What a worker process takes for itself: an interpreter forked from one that has numpy.
_WORKER_BYTES = 10 * 2**20


class SharedImage:
    """One fMRI run, decoded once into shared memory, for any number of masks.

    The image is loaded when it is first used (or by :meth:`load`) and its memory is released by
    :meth:`close`, by leaving the ``with`` block, or when the process ends in whatever way.

    Parameters
    ----------
    source : str, path, niimg, or list of those
        A NIfTI or Analyze file, compressed or not; a list or glob pattern of 3D volumes; a
        nibabel image.
    mask_img : mask, optional
        Keep only the voxels inside it (a brain is about a third of its box). Masks that reach
        outside are refused.
    store : {"auto", "shm"}
        Where the bytes live: ``"shm"`` is named shared memory. ``"auto"`` chooses.
    memory_limit : int, float or str, optional
        What this image and the results of a call may take together: bytes, ``"8G"``, or a
        fraction of the RAM. Free RAM and control groups limit it anyway.
    name : str, optional
        For messages and ``sharedmask ls``; default: the file's name.

    Examples
    --------
    >>> import nibabel as nib, numpy as np
    >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
    >>> left, right = np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool)
    >>> left[0], right[1] = True, True
    >>> with SharedImage(bold) as image:
    ...     signals = image.mask_parallel({"left": left, "right": right})
    >>> signals["left"].shape
    (10, 12)
    """

    def __init__(
        self,
        source: Any,
        *,
        mask_img: Any = None,
        store: Literal["auto", "shm"] = "auto",
        memory_limit: int | float | str | None = None,
        name: str | None = None,
    ) -> None:
        if store not in ("auto", "shm"):
            raise ParameterError(f"store={store!r} is none of 'auto' and 'shm'")
        self._source = open_source(source)
        self._grid = Grid(self._source.shape[:3], self._source.affine)
        self._voxels = None if mask_img is None else Regions.from_any(mask_img, self._grid).union
        self._memory_limit = memory_limit
        self._name = name or os.path.basename(self._source.name)
        self._lock = threading.RLock()
        self._owned: Owned | None = None
        self._rows: Rows | None = None
        self._closed = False

    # --- facts ---

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(x, y, z, n_timepoints)."""
        return self._source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored values' dtype."""
        return self._source.dtype

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres, (4, 4)."""
        return self._source.affine

    @property
    def t_r(self) -> float | None:
        """Repetition time in seconds, of the BIDS sidecar or the header."""
        return self._source.t_r

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept of the stored values; (1.0, 0.0) if they are the true ones."""
        return self._source.slope, self._source.inter

    @property
    def nbytes(self) -> int:
        """Bytes that the image takes in its store."""
        return segments.projected(_geometry(self._source, self._voxels))

    @property
    def closed(self) -> bool:
        return self._closed

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._rows else "not loaded"
        shape = "x".join(map(str, self.shape))
        return f"<SharedImage {self._name} {shape} {self.dtype} {mib(self.nbytes)} shm {state}>"

    # --- life ---

    def load(self) -> "SharedImage":
        """Decode the image now, instead of at its first use.

        Raises
        ------
        MemoryLimitError
            Before anything is allocated.
        DamagedImageError
            The file is truncated or its checksum is wrong; nothing is left behind.
        """
        self._loaded()
        return self

    def _loaded(self) -> Rows:
        with self._lock:
            if self._closed:
                raise ClosedImageError(f"{self._name} is closed: open it again with SharedImage(...)")
            if self._rows is None:
                self._rows = self._load()
            return self._rows

    def _load(self) -> Rows:
        budget = MemoryBudget.here(self._memory_limit)
        self._owned, rows = _load_shared(self._source, self._voxels, self._name, budget)
        return rows

    def close(self) -> None:
        """Release the memory; results and views that are still in use keep theirs. Idempotent."""
        with self._lock:
            self._closed, self._rows = True, None
            if self._owned is not None:
                self._owned.release()
                self._owned = None

    def __enter__(self) -> "SharedImage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- requests ---

    def mask_parallel(
        self,
        masks: Any,
        *,
        resampling_target: Literal["data"] | None = None,
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
        resampling_target : {"data"}, optional
            ``"data"``: masks on another grid are resampled to the image, nearest neighbour. By
            default they are refused, unless axes are only flipped or permuted.
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
        request = Request.checked(self._source, **parameters)
        regions = self._regions(masks, resampling_target)
        rows = self._loaded()
        self._require(f"masking {self._name} with {len(regions)} masks", regions, request)
        return regions.pack(masking.mask(rows, regions, request))

    def mask(self, mask: Any, **parameters: Unpack[Parameters]) -> Array:
        """The signals of one mask, (n_timepoints, n_voxels); parameters of :meth:`mask_parallel`."""
        found: Array = self.mask_parallel({"mask": mask}, **parameters)["mask"]
        return found

    def reduce(
        self,
        labels_img: Any,
        strategy: str = "mean",
        *,
        resampling_target: Literal["data"] | None = None,
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
        request = Request.checked(self._source, **parameters)
        regions = atlas_or_masks(labels_img, self._grid, resampling_target)
        return masking.reduce(self._loaded(), regions, strategy, request)

    def map(
        self,
        func: Callable[[Array], T],
        masks: Any,
        *,
        resampling_target: Literal["data"] | None = None,
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
        request = Request.checked(self._source, **parameters)
        regions = self._regions(masks, resampling_target)
        return regions.pack(masking.map_regions(self._loaded(), regions, func, request))

    def iter_masks(
        self, masks: Any, *, batch_size: int = 20, **parameters: Unpack[Parameters]
    ) -> Iterator[tuple[Any, Array]]:
        """The signals of any number of masks, one mask after the other, in constant memory.

        Masks are opened, and their signals made, ``batch_size`` at a time.

        Parameters
        ----------
        masks : list, dict, iterator, or what :meth:`mask_parallel` takes
        batch_size : int
        **parameters
            Those of :meth:`mask_parallel`.

        Yields
        ------
        (key, ndarray)
            The dict's key, the file's name, or the number in a list; (n_timepoints, n_voxels).
        """
        if batch_size < 1:
            raise ParameterError(f"batch_size={batch_size} is no number of masks")
        for batch in _batches(masks, self._grid, batch_size):
            yield from self.mask_parallel(batch, **parameters).items()

    def _regions(self, masks: Any, resampling_target: Literal["data"] | None) -> Regions:
        return Regions.from_any(masks, self._grid, resampling_target=resampling_target)

    def _require(self, operation: str, regions: Regions, request: Request) -> None:
        itemsize = request.conversion(self._source).result.itemsize
        outputs = len(regions.indices) * self._source.n_timepoints * itemsize
        workers = _WORKER_BYTES * request.n_jobs if request.prefer == "processes" else 0
        MemoryBudget.here(self._memory_limit, self.nbytes).require(operation, outputs + workers)

    # --- the array ---

    @property
    def stored(self) -> Array:
        """The stored values as a read-only (x, y, z, n_timepoints) view; before scaling."""
        rows = self._loaded()
        if rows.voxels is not None:
            raise OutsideImageError(
                f"{self._name} holds the voxels of its mask_img only: use frame() or mask()"
            )
        x, y, z, n_timepoints = self.shape
        return rows.array.reshape(z, y, x, n_timepoints).transpose(2, 1, 0, 3)

    @property
    def array(self) -> Array:
        """The image as a read-only (x, y, z, n_timepoints) view; no copy."""
        if self.scaling != (1.0, 0.0):
            slope, inter = self.scaling
            raise ParameterError(
                f"the values of {self._name} are stored values times {slope:g} plus {inter:g}, "
                "so no view has them: use mask(), frame(), or stored"
            )
        return self.stored

    def frame(self, t: int) -> Array:
        """Volume ``t``, (x, y, z), with true values; 0 outside of the ``mask_img``.

        A read-only view where the values are stored as they are, else a fresh array.
        """
        rows = self._loaded()
        if not -self.shape[3] <= t < self.shape[3]:
            raise ParameterError(f"{self._name} has {self.shape[3]} volumes, there is no volume {t}")
        conversion = kernels.Conversion(
            self._source.slope, self._source.inter, self._source.scaled_dtype, self._source.scaled_dtype
        )
        if rows.voxels is None:
            return kernels.scale(self.stored[..., t], conversion)
        volume = np.zeros(self._source.n_voxels, self._source.scaled_dtype)
        volume[rows.voxels] = kernels.scale(rows.array[:, t], conversion)
        return volume.reshape(self.shape[:3], order="F")


def atlas_or_masks(
    given: Any, grid: Grid | None, resampling_target: Literal["data"] | None = None
) -> Regions:
    """Regions to reduce: one image is a label atlas, several are masks."""
    several = isinstance(given, list | tuple | Mapping | Regions) or _is_pattern(given)
    if several or len(getattr(given, "shape", ())) == 4:
        return Regions.from_any(given, grid, resampling_target=resampling_target)
    return Regions.from_labels(given, grid, resampling_target=resampling_target)


def _is_pattern(given: Any) -> bool:
    return isinstance(given, str) and any(c in given for c in "*?[") and not os.path.exists(given)


def _batches(masks: Any, grid: Grid, size: int) -> Iterator[Any]:
    """Dicts or regions of at most ``size`` masks, opened only when reached."""
    if isinstance(masks, str | os.PathLike | Regions) or hasattr(masks, "shape"):
        yield from Regions.from_any(masks, grid).batches(size)
        return
    items = iter(masks.items() if isinstance(masks, Mapping) else enumerate(masks))
    while batch := dict(islice(items, size)):
        yield batch


def _transposing_threads(source: Source) -> int:
    """Next to decompression one thread keeps pace; a plain file is read faster than that."""
    return 1 if source.compressed else pool.n_cpus()


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
    if strategy is not None:
        regions = atlas_or_masks(masks, grid, resampling_target)
        with _union(opened, regions, request, budget) as rows:
            return masking.reduce(rows, regions, strategy, request)
    regions = Regions.from_any(masks, grid, resampling_target=resampling_target)
    if request.cleaning.needed:
        with _union(opened, regions, request, budget) as rows:
            return regions.pack(masking.mask(rows, regions, request))
    return regions.pack(_streamed(opened, regions, request, budget))


# --- loading -------------------------------------------------------------------------------------


def _geometry(source: Source, voxels: NDArray[np.intp] | None) -> segments.Geometry:
    n_rows = source.n_voxels if voxels is None else len(voxels)
    rows = ((n_rows, source.n_timepoints), source.dtype)
    return {"rows": rows} if voxels is None else {"rows": rows, "voxels": (voxels.shape, voxels.dtype)}


def _load_shared(
    source: Source, voxels: NDArray[np.intp] | None, label: str, budget: MemoryBudget
) -> tuple[Owned, Rows]:
    """The series of ``voxels`` (None: all) in a shared segment; all of it or nothing."""
    geometry = _geometry(source, voxels)
    buffers = loading.buffer_bytes(source, geometry["rows"][0][0])
    budget.require(f"loading {label}", segments.projected(geometry) + buffers)
    owned = Owned(label, geometry)
    try:
        if voxels is not None:
            owned.segment.array("voxels")[:] = voxels
        finite = loading.load(
            source, owned.segment.array("rows"), select=voxels, n_threads=_transposing_threads(source)
        )
        handle = owned.share({"finite": finite})
    except BaseException:
        owned.release()
        raise
    arrays = segments.attach(handle).arrays
    return owned, Rows(source, arrays["rows"], finite, arrays.get("voxels"), Shared(handle, "rows"))


@contextlib.contextmanager
def _union(source: Source, regions: Regions, request: Request, budget: MemoryBudget) -> Iterator[Rows]:
    """The rows of all regions' voxels, for one call; shared only if workers will read them."""
    union = regions.union
    if request.n_jobs > 1 and (request.cleaning.needed or request.prefer == "processes"):
        owned, rows = _load_shared(source, union, source.name, budget)
        try:
            yield rows
        finally:
            owned.release()
        return
    shape = (len(union), source.n_timepoints)
    nbytes = shape[0] * shape[1] * source.dtype.itemsize
    budget.require(f"extracting from {source.name}", nbytes + loading.buffer_bytes(source, len(union)))
    array = np.empty(shape, source.dtype)
    finite = loading.load(source, array, select=union, n_threads=_transposing_threads(source))
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
            n_threads=_transposing_threads(source),
            on_volumes=tell,
        )
    return masking.reported(masking.split(rows, regions, source), regions, request)
