"""The shared image: where sources, segments and requests meet.

Covers: when an image is loaded, where its rows live, when it is closed; what each call projects
to take. Does not cover: the calls' parameters (``parameters``), their work (``masking``), the
filling of its store (``holding``), who cleans up after a crash (``registry``), a single pass that
holds no image (``extraction``).
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from sharedmask import masking, registry, segments, stores, wire
from sharedmask.budget import MemoryBudget, mib
from sharedmask.errors import (
    AttachError,
    ClosedImageError,
    MissingFileError,
    OutsideImageError,
    ParameterError,
)
from sharedmask.holding import geometry_of, load_shared
from sharedmask.masking import Rows
from sharedmask.parameters import Parameters, Request, check_strategy
from sharedmask.pool import Shared
from sharedmask.regions import Grid, Regions, matching
from sharedmask.registry import Owned
from sharedmask.segments import Handle
from sharedmask.sources import Facts, Source, open_source

if TYPE_CHECKING:
    from sharedmask.niimgs import SharedNifti

Array = NDArray[Any]
T = TypeVar("T")
_BATCH_SHARE = 0.5  # of the memory that is left: what a batch of masks may take
_log = logging.getLogger(__name__)


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
    store : {"auto", "shm", "memfd"}
        Where the bytes live: named shared memory, or sealed anonymous memory (Linux), of which no
        kill leaves anything. ``"auto"`` is the first, but the second in a batch job or where
        /dev/shm is too small; :attr:`store` tells which and why.
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

    _voxels: NDArray[np.intp] | None
    _memory_limit: int | float | str | None

    def __init__(
        self,
        source: Any,
        *,
        mask_img: Any = None,
        store: Literal["auto", "shm", "memfd"] = "auto",
        memory_limit: int | float | str | None = None,
        name: str | None = None,
    ) -> None:
        if store not in ("auto", *stores.KINDS):
            raise ParameterError(f"store={store!r} is none of 'auto', {', '.join(map(repr, stores.KINDS))}")
        self._source: Source | None = open_source(source)
        self._begin(self._source, name or os.path.basename(self._source.name))
        if mask_img is not None:
            self._voxels = Regions.from_any(mask_img, self._grid).union
        self._asked_store = store
        self._memory_limit = memory_limit

    def _begin(self, facts: Facts, name: str) -> None:
        """The state of an image, read from a file or attached, before it has rows."""
        self._facts = facts
        self._grid = Grid(facts.shape[:3], facts.affine)
        self._voxels = None
        self._asked_store = "auto"
        self._memory_limit = None
        self._name = name
        self._lock = threading.RLock()
        self._owned: Owned | None = None
        self._lease: socket.socket | None = None
        self._rows: Rows | None = None
        self._store: tuple[str, str] | None = None
        self._closed = False

    # --- facts ---

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(x, y, z, n_timepoints)."""
        return self._facts.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored values' dtype."""
        return self._facts.dtype

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres, (4, 4)."""
        return self._facts.affine

    @property
    def t_r(self) -> float | None:
        """Repetition time in seconds, of the BIDS sidecar or the header."""
        return self._facts.t_r

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept of the stored values; (1.0, 0.0) if they are the true ones."""
        return self._facts.slope, self._facts.inter

    @property
    def name(self) -> str:
        """What ``sharedmask ls`` calls it."""
        return self._name

    @property
    def nbytes(self) -> int:
        """Bytes that the image takes in its store."""
        return segments.projected(geometry_of(self._facts, self._voxels))

    @property
    def store(self) -> tuple[str, str]:
        """Where the bytes live or would live now, and why there."""
        return self._store or stores.choose(self._asked_store, self.nbytes)

    @property
    def closed(self) -> bool:
        return self._closed

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._rows else "not loaded"
        shape = "x".join(map(str, self.shape))
        store, reason = self.store
        return (
            f"<SharedImage {self._name} {shape} {self.dtype} {mib(self.nbytes)} {store} ({reason}) {state}>"
        )

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

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[Rows]:
        """The rows; if another thread closes the image before workers attach, that is what is said."""
        try:
            yield self._loaded()
        except AttachError as error:
            if self._closed:
                raise ClosedImageError(f"{self._name} was closed while it was in use") from error
            raise

    def _load(self) -> Rows:
        assert self._source is not None  # an attached image has its rows
        budget = MemoryBudget.here(self._memory_limit)
        store, reason = self.store
        _log.info("%s goes to %s: %s", self._name, store, reason)
        self._owned, rows = load_shared(self._source, self._voxels, self._name, budget, store)
        self._store = store, reason
        return rows

    def close(self) -> None:
        """Release the memory; results and views that are still in use keep theirs. Idempotent."""
        with self._lock:
            self._closed, self._rows = True, None
            if self._owned is not None:
                self._owned.release()
                self._owned = None
            if self._lease is not None:
                self._lease.close()
                self._lease = None

    def __enter__(self) -> "SharedImage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- sharing ---

    @property
    def handle(self) -> Handle:
        """What another process of this user needs to attach; see :meth:`attach`. Loads the image."""
        shared = self._loaded().shared
        assert shared is not None
        if self._owned is not None:
            self._owned.keep_record()
        return shared.handle

    def publish(self, name: str) -> Handle:
        """Load the image and let others find it by ``name`` (:meth:`attach`, ``sharedmask ls``)."""
        with self._lock:
            rows = self._loaded()
            if self._owned is None:
                raise ParameterError(f"{self._name} is another process's image: only its owner names it")
            handle = self._owned.rename(name)
            self._name = name
            self._rows = replace(rows, shared=Shared(handle, "rows"))
            return handle

    @classmethod
    def attach(cls, handle: Handle | str) -> "SharedImage":
        """The image that another process shares; nothing is loaded or copied.

        Parameters
        ----------
        handle : Handle or str
            Its :attr:`handle`, the handle as JSON, or the name under which it is published.

        Raises
        ------
        AttachError
            There is no such image, or the handle is of another machine, boot or user.
        """
        if isinstance(handle, str):
            handle = Handle.from_json(handle) if handle.lstrip().startswith("{") else registry.find(handle)
        rows = Rows.attached(segments.attach(handle))
        image = cls.__new__(cls)
        image._source = None
        image._begin(rows.facts, handle.label)
        image._voxels, image._rows = rows.voxels, rows
        image._store = handle.store, "its owner's choice"
        return image

    @classmethod
    def connect(cls, source: str | os.PathLike[str], *, start: bool = False) -> "SharedImage":
        """The image as this machine's coordinator holds it, loaded once for all who ask.

        The coordinator (``sharedmask serve``) keeps the image at least until :meth:`close`, or
        until this process ends. Where there is none, the image is loaded here, or attached if
        ``source`` is the name of a published one.

        Parameters
        ----------
        source : str or path
            A file, or the name of an image that is loaded already.
        start : bool
            Start a coordinator if there is none; it ends after half an hour without clients.

        Raises
        ------
        SharedMaskError
            What loading it raises, there or here.
        """
        path = os.path.abspath(os.path.expanduser(os.fspath(source)))
        asked = {"path": path} if os.path.exists(path) else {"name": os.fspath(source)}
        if "name" in asked and os.sep in asked["name"]:
            raise MissingFileError(f"{asked['name']} does not exist")
        lease = wire.connect()
        if lease is None and start:
            wire.start()
            lease = wire.connect()
        if lease is not None:
            try:
                handle = wire.ask(lease, "open", **asked)["handle"]
                if handle is not None:
                    image = cls.attach(handle)
                    image._lease = lease
                    return image
            except BaseException:
                lease.close()
                raise
            lease.close()
        return cls(path) if "path" in asked else cls.attach(asked["name"])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).attach, (self.handle.to_json(),)

    def as_nifti(self) -> "SharedNifti":
        """The image as a nibabel image that travels to other processes as a handle.

        Loops written for nibabel images share the one copy without a changed line:
        ``Parallel(n_jobs=20)(delayed(f)(image.as_nifti(), mask) for mask in masks)``. It is valid
        for as long as this image is open, or until its last view goes.
        """
        from sharedmask.niimgs import SharedNifti

        self._loaded()
        return SharedNifti.of(self.handle)

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
        request = Request.checked(self._facts, **parameters)
        regions = self._regions(masks, resampling_target)
        with self._in_use() as rows:
            budget = MemoryBudget.here(self._memory_limit, self.nbytes)
            needed = masking.projected(self._facts, regions, request)
            budget.require(f"masking {self._name} with {len(regions)} masks", needed)
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
        request = Request.checked(self._facts, **parameters)
        check_strategy(strategy)
        regions = Regions.from_atlas_or_masks(labels_img, self._grid, resampling_target=resampling_target)
        with self._in_use() as rows:
            return masking.reduce(rows, regions, strategy, request)

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
        request = Request.checked(self._facts, **parameters)
        regions = self._regions(masks, resampling_target)
        with self._in_use() as rows:
            return regions.pack(masking.map_regions(rows, regions, func, request))

    def iter_masks(
        self,
        masks: Any,
        *,
        batch_size: int | None = 20,
        resampling_target: Literal["data"] | None = None,
        **parameters: Unpack[Parameters],
    ) -> Iterator[tuple[Any, Array]]:
        """The signals of any number of masks, one mask after the other, in constant memory.

        Masks are opened, and their signals made, ``batch_size`` at a time.

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
        self, singles: Iterator[Any], target: Literal["data"] | None, request: Request
    ) -> Iterator[Regions]:
        """Masks, opened one by one, whose signals together take a share of the memory that is left."""
        self._loaded()
        room = MemoryBudget.here(self._memory_limit, self.nbytes).limit * _BATCH_SHARE
        batch, taken = list[Regions](), 0
        for single in singles:
            regions = self._regions(single, target)
            needed = masking.projected(self._facts, regions, request)
            if batch and taken + needed > room:
                yield Regions.joined(batch)
                batch, taken = [], 0
            batch.append(regions)
            taken += needed
        if batch:
            yield Regions.joined(batch)

    def _regions(self, masks: Any, resampling_target: Literal["data"] | None) -> Regions:
        return Regions.from_any(masks, self._grid, resampling_target=resampling_target)

    # --- the array ---

    @property
    def stored(self) -> Array:
        """The stored values as a read-only (x, y, z, n_timepoints) view; before scaling.

        Like :attr:`array` it travels to other processes as a handle, and so do its slices.
        """
        rows = self._loaded()
        if rows.voxels is not None:
            raise OutsideImageError(
                f"{self._name} holds the voxels of its mask_img only: use frame() or mask()"
            )
        return masking.stored_view(rows)

    @property
    def array(self) -> Array:
        """The image as a read-only (x, y, z, n_timepoints) view; no copy."""
        if self._facts.is_scaled:
            slope, inter = self.scaling
            raise ParameterError(
                f"the values of {self._name} are stored values times {slope:g} plus {inter:g}, "
                "so no view has them: use mask(), frame(), as_nifti(), or stored"
            )
        return self.stored

    def frame(self, t: int) -> Array:
        """Volume ``t``, (x, y, z), with true values; 0 outside of the ``mask_img``.

        A read-only view where the values are stored as they are, else a fresh array.
        """
        rows = self._loaded()
        if not isinstance(t, int | np.integer) or not -self.shape[3] <= t < self.shape[3]:
            raise ParameterError(f"{self._name} has {self.shape[3]} volumes, there is no volume {t!r}")
        if rows.voxels is None and not self._facts.is_scaled:
            return self.stored[..., t]
        return masking.volumes(rows, slice(t % self.shape[3], t % self.shape[3] + 1))[..., 0]


def _batches(masks: Any, grid: Grid, size: int, target: Literal["data"] | None) -> Iterator[Any]:
    """Dicts or regions of at most ``size`` masks, opened only when reached."""
    masks = matching(masks) or masks
    if isinstance(masks, str | os.PathLike | Regions) or hasattr(masks, "shape"):
        yield from Regions.from_any(masks, grid, resampling_target=target).batches(size)
        return
    items = iter(masks.items() if isinstance(masks, Mapping) else enumerate(masks))
    while batch := dict(islice(items, size)):
        yield batch
