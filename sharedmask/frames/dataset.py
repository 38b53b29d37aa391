"""Frames: a run as a data set of volumes, of which no more than one is held.

Covers: the data set's face (frames, fields, selections, transforms), walking it, leave-one-out and
k-fold, files. Does not cover: where frames live (``store``), sums over them (``kernels``), the HDF5
file (``nfdh5``), time series of voxels (``image``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from operator import index as as_index
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sharedmask.compute import pool
from sharedmask.compute.progress import Progress, progress_to
from sharedmask.compute.request import OnResult, Prefer
from sharedmask.errors import FrameIndexError, ParameterError
from sharedmask.frames import convert, kernels, nfdh5
from sharedmask.frames.convert import open_frames
from sharedmask.frames.metadata import Metadata
from sharedmask.frames.nfdh5 import Nfdh5Source, open_nfdh5
from sharedmask.frames.store import FrameStore
from sharedmask.regions.regions import Regions
from sharedmask.sources.source import Source
from sharedmask.storage import mapped_file
from sharedmask.system import process, settings
from sharedmask.typing import Array

Index = int | slice | list[Any] | Array
T = TypeVar("T")


class FrameDataset:
    """A run volume by volume: each frame a contiguous read-only view, nothing held besides.

    ``ds[i]`` is ``(frame, motion_affine, *per_frame)``: a frame (X, Y, Z), its (4, 4) motion affine or
    None, and its value of each per-frame field. Slices, lists and masks give (X, Y, Z, k) arrays, and
    the fields of those frames. Frames are views where a view has their values, else fresh arrays (of
    scaled images, of transformed frames among others, of frames that are not evenly spaced).

    A data set pickles as a handle: other processes of this machine see the same frames.

    Parameters
    ----------
    source : str, path, niimg, list of those, or an ``.h5`` file
        What :class:`SharedImage` takes, or a file of :meth:`to_filename` or of nifreeze.
    mask_img : mask, optional
        The brain, carried along as :attr:`brainmask`; frames stay whole.
    affines : array, (N, 4, 4), optional
        Motion affines, carried along; :meth:`set_transform` is what resamples.
    per_frame : dict of arrays, (N, ...) each, optional
        Gradients, timing and the like, in the order in which ``ds[i]`` gives them.
    overall : dict of arrays, optional
        Facts of the data set as a whole.
    store : {"auto", "file", "memfd", "shm", "disk"}
        Where the frames live. ``"file"``: the user's uncompressed file, mapped as it is, nothing is
        loaded. ``"shm"``, ``"memfd"``: shared memory, as in :class:`SharedImage`. ``"disk"``: a file
        without a name in ``$SHAREDMASK_TMPDIR``, else ``$TMPDIR``, else /var/tmp. ``"auto"`` is the
        first of these that is possible.
    memory_limit : int, float or str, optional
        What the frames may take in shared memory; see :class:`SharedImage`.

    Raises
    ------
    ImageError, MaskError, ParameterError, MemoryLimitError, SegmentError
        Each with the file or field and what is wrong; nothing is left behind.

    Examples
    --------
    >>> import nibabel as nib
    >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
    >>> with FrameDataset(bold, per_frame={"time": np.arange(10) * 2.0}) as ds:
    ...     frame, affine, time = ds[3]
    ...     means = [training.mean() for _, _, training in ds.leave_one_out()]
    >>> frame.shape, affine, float(time), len(means)
    ((2, 3, 4), None, 6.0, 10)
    """

    _film: FrameStore
    _numbers: NDArray[np.intp]

    def __init__(
        self,
        source: Any,
        *,
        mask_img: Any = None,
        affines: Any = None,
        per_frame: Mapping[str, Any] | None = None,
        overall: Mapping[str, Any] | None = None,
        store: Literal["auto", "file", "memfd", "shm", "disk"] = "auto",
        memory_limit: int | float | str | None = None,
    ) -> None:
        opened = open_frames(source)
        brain = None if mask_img is None else _brain(mask_img, opened)
        given = Metadata.checked(
            opened.shape, brainmask=brain, motion_affines=affines, per_frame=per_frame, overall=overall
        )
        fields = opened.fields.updated(given) if isinstance(opened, Nfdh5Source) else given
        self._film = FrameStore.opened(opened, fields, store, memory_limit)
        self._numbers = np.arange(opened.n_timepoints)
        self._is_selection = False

    @classmethod
    def _of(cls, film: FrameStore, numbers: NDArray[np.intp], *, is_selection: bool = True) -> FrameDataset:
        made = cls.__new__(cls)
        made._film, made._numbers, made._is_selection = film, numbers, is_selection
        return made

    # --- facts ---

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(X, Y, Z, N)."""
        return (*self.shape3d, len(self))

    @property
    def shape3d(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        return self._film.facts.shape[:3]

    @property
    def size3d(self) -> int:
        """Voxels of a frame."""
        return self._film.facts.n_voxels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the frames' true values."""
        return self._film.dtype

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres, (4, 4)."""
        return self._film.facts.affine

    @property
    def t_r(self) -> float | None:
        """Repetition time in seconds, of the BIDS sidecar or the header."""
        return self._film.facts.t_r

    @property
    def datahdr(self) -> Any:
        """The image's header, a copy."""
        return self._film.header.copy()

    @property
    def brainmask(self) -> Array | None:
        """(X, Y, Z) bool, or None."""
        return self._film.fields.brainmask

    @property
    def motion_affines(self) -> Array | None:
        """(N, 4, 4), or None as long as there are none."""
        return self._fields.motion_affines

    @property
    def per_frame(self) -> dict[str, Array]:
        """(N, ...) arrays by name."""
        return dict(self._fields.per_frame)

    @property
    def overall(self) -> dict[str, Array]:
        """Facts of the data set as a whole, by name."""
        return dict(self._film.fields.overall)

    @property
    def store(self) -> tuple[str, str]:
        """Where the frames live, and why there."""
        return self._film.reel.store

    @property
    def closed(self) -> bool:
        return self._film.closed

    @property
    def _fields(self) -> Metadata:
        return self._film.fields.of(self._numbers)

    def __repr__(self) -> str:
        shape, (store, _) = "x".join(map(str, self.shape)), self.store
        state = "closed" if self.closed else "open"
        fields = ", ".join(("motion_affines",) * (self.motion_affines is not None) + (*self.per_frame,))
        return (
            f"<FrameDataset {self._film.label} {shape} {self.dtype} {store} {state}: {fields or 'no fields'}>"
        )

    def __eq__(self, other: object) -> bool:
        """Whether frames, affine and fields are the same up to rounding, wherever they live."""
        if not isinstance(other, FrameDataset):
            return NotImplemented
        return (
            self.shape == other.shape
            and np.allclose(self.affine, other.affine)
            and self._fields.is_close_to(other._fields)
            and all(map(_close, self.frames(), other.frames()))
        )

    # --- life ---

    def close(self) -> None:
        """Release what the data set made; views keep their bytes. Idempotent.

        Its selections end with it. To close one of them does nothing.
        """
        if not self._is_selection:
            self._film.close()

    def __enter__(self) -> FrameDataset:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        chosen = np.zeros(self._film.facts.n_timepoints, bool)
        chosen[self._numbers] = True
        return _attached, (self._film.handle, np.packbits(chosen).tobytes())

    # --- frames ---

    @property
    def dataobj(self) -> Array:
        """All frames as one read-only (X, Y, Z, N) view.

        Raises
        ------
        ParameterError
            No view has them: the image is scaled, frames were transformed, or they are not evenly
            spaced in the run. ``ds[:]`` gives a copy.
        """
        view = self._film.view(self._numbers)
        if view is None:
            raise ParameterError(
                f"no view has the frames of {self!r}: ds[:] copies them, frames() walks them"
            )
        return view

    @property
    def stored(self) -> Array:
        """The stored values of the original frames as one read-only (X, Y, Z, N) view; before scaling."""
        view = self._film.stored(self._numbers)
        if view is None:
            raise ParameterError(f"no view has the frames of {self!r}: they are not evenly spaced in the run")
        return view

    def __getitem__(self, index: Index) -> tuple[Any, ...]:
        chosen = self._chosen(index)
        number = self._numbers[chosen]
        data = self._film.frame(int(number)) if isinstance(chosen, int) else self._block(number)
        fields = self._film.fields.of(number)
        return data, fields.motion_affines, *fields.per_frame.values()

    def _block(self, numbers: NDArray[np.intp]) -> Array:
        view = self._film.view(numbers)
        return self._film.copy(numbers) if view is None else view

    def _chosen(self, index: Index) -> int | NDArray[np.intp]:
        """The place, or the places, that ``index`` means among these frames."""
        places = np.arange(len(self))
        try:
            if isinstance(index, slice):
                return places[index]
            if isinstance(index, (list, np.ndarray)) and np.ndim(index) == 1:
                return places[np.asarray(index) if len(index) else []]
            return int(places[as_index(index)])  # type: ignore[arg-type]
        except (IndexError, TypeError) as error:
            raise FrameIndexError(
                f"{self._film.label} has {len(self)} frames, no {index!r}: {error}"
            ) from error

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        fields = self._fields
        for place, frame in enumerate(self.frames()):
            known = fields.of(place)
            yield frame, known.motion_affines, *known.per_frame.values()

    def frames(self, *, progress: Progress = None) -> Iterator[Array]:
        """The frames one after the other, the next being read meanwhile.

        Pages that were looked at are let go, so that however long the run, no more than a frame
        counts as this process's.

        Parameters
        ----------
        progress : bool or callable, optional
            True draws a bar; a function is called with (done, total).
        """
        film, numbers = self._film, self._numbers.tolist()
        with progress_to(progress, len(numbers), "frame") as tell:
            for done, (number, following) in enumerate(zip(numbers, [*numbers[1:], None], strict=True), 1):
                if following is not None:
                    mapped_file.will_need(film.row(following))
                yield film.frame(number)
                mapped_file.dont_need(film.row(number))
                tell(done)

    def select(self, index: slice | list[Any] | Array) -> FrameDataset:
        """Some of the frames, in their order, as a data set; nothing is copied.

        It shares this one's store, transforms included, and lives as long as this one is open.

        Parameters
        ----------
        index : slice, mask, or list of increasing numbers
        """
        chosen = self._chosen(index)
        if isinstance(chosen, int) or not len(chosen) or np.any(np.diff(chosen) <= 0):
            raise ParameterError(f"{index!r} selects no frames, or not each once in their order")
        return self._of(self._film, self._numbers[chosen])

    def original_index(self, index: int) -> int:
        """Which frame of the original run frame ``index`` of this data set is."""
        return int(self._film.fields.numbers[self._numbers[self._place(index)]])

    def original(self, index: int) -> Array:
        """Frame ``index`` of this data set as it was before any transform, (X, Y, Z)."""
        return self._film.original(int(self._numbers[self._place(index)]))

    def set_transform(self, index: int, affine: Any, *, order: int = 3) -> None:
        """Resample a frame by a motion affine, from the original frame each time.

        The result goes to the data set's own copy of that frame, in a file without a name; the
        user's file is never written to. Workers and selections see it. The identity brings the
        original back.

        Parameters
        ----------
        index : int
        affine : array, (4, 4)
            From a place in the result to its place in the original frame, in millimetres.
        order : int
            Of the spline.
        """
        self._film.transform(int(self._numbers[self._place(index)]), affine, order)

    def _place(self, index: int) -> int:
        chosen = self._chosen(index)
        if not isinstance(chosen, int):
            raise FrameIndexError(f"{index!r} is not the number of one frame")
        return chosen

    # --- sums ---

    def sum(self) -> NDArray[np.float64]:
        """The sum of all frames, (X, Y, Z), added up in their order, one frame at a time.

        Integers of up to 32 bits have exact sums, so the sum of most of a run is that of the whole
        run minus that of the frames left out; the numbers are the same.
        """
        film, all_of_them = self._film, np.arange(self._film.facts.n_timepoints)
        left_out = np.setdiff1d(all_of_them, self._numbers)
        if not kernels.is_exact(self.dtype) or len(left_out) >= len(self) or not film.is_owned:
            return kernels.total(self.frames(), self.shape3d)
        if film.total is None:
            film.total = kernels.total(self._of(film, all_of_them).frames(), self.shape3d)
        return film.total - kernels.total(self._of(film, left_out).frames(), self.shape3d)

    def mean(self) -> NDArray[np.float64]:
        """The mean frame, (X, Y, Z): :meth:`sum` divided by the number of frames."""
        return self.sum() / len(self)

    def reduce(self, func: Callable[..., T], initial: T) -> T:
        """``func(state, frame, affine, *per_frame)`` of all frames in turn, ``state`` its last result.

        Examples
        --------
        >>> import nibabel as nib
        >>> bold = nib.Nifti1Image(np.arange(240, dtype="int16").reshape(2, 3, 4, 10), np.eye(4))
        >>> with FrameDataset(bold) as ds:
        ...     highest = ds.reduce(lambda state, frame, affine: np.maximum(state, frame), np.int16(0))
        >>> int(highest[0, 0, 0])
        9
        """
        state = initial
        for item in self:
            state = func(state, *item)
        return state

    def regress(self, design: Any) -> NDArray[np.float64]:
        """The least-squares coefficients of ``design`` in each voxel, one frame at a time.

        Parameters
        ----------
        design : array, (N, k)

        Returns
        -------
        ndarray, (X, Y, Z, k)
        """
        return kernels.coefficients(self.frames(), len(self), self.shape3d, design)

    def materialise(self) -> Array:
        """All frames in one fresh array, (X, Y, Z, N), volume after volume in memory."""
        return self._film.copy(self._numbers)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        values = self.materialise() if copy else self._block(self._numbers)
        return values if dtype is None else values.astype(dtype, copy=False)

    # --- folds ---

    def leave_one_out(self) -> Iterator[tuple[int, Array, FrameDataset]]:
        """Each frame in turn, and the data set of all others; nothing is copied.

        Yields
        ------
        (index, frame, training)
        """
        self._check_folds(len(self))
        for index in range(len(self)):
            yield index, self[index][0], self.select(np.arange(len(self)) != index)

    def k_fold(self, k: int) -> Iterator[tuple[NDArray[np.intp], FrameDataset, FrameDataset]]:
        """``k`` runs of neighbouring frames in turn, and the data set of all others; nothing is copied.

        Yields
        ------
        (indices, test, training)
        """
        self._check_folds(k)
        for part in np.array_split(np.arange(len(self)), k):
            others = np.ones(len(self), bool)
            others[part] = False
            yield part, self.select(part), self.select(others)

    def _check_folds(self, k: int) -> None:
        if not isinstance(k, int | np.integer) or not 2 <= k <= len(self):
            raise ParameterError(f"{len(self)} frames cannot be split into {k!r} folds")

    # --- work ---

    def map(
        self,
        func: Callable[[Array], T],
        *,
        n_jobs: int | None = None,
        prefer: Prefer = None,
        progress: Progress = None,
        on_result: OnResult = None,
    ) -> list[T]:
        """Call ``func`` on each frame; workers attach to the frames and send back what it returns.

        A function that needs more takes the data set itself along, which travels as a handle:
        ``Parallel(n_jobs=4)(delayed(fit)(ds, i) for i in range(len(ds)))``.

        Parameters
        ----------
        func : callable
            Of a read-only (X, Y, Z) array. Lambdas, closures and functions of scripts are fine.
        n_jobs : int, optional
            Workers, by joblib's convention (-1: every CPU).
        prefer : {"processes", "threads"}, optional
            Processes are the default.
        progress : bool or callable, optional
            True draws a bar; a function is called with (done, total).
        on_result : callable, optional
            Called with (index, result), in order of completion.

        Raises
        ------
        WorkerError
            A worker died. What ``func`` raises is raised here.
        """
        jobs = process.effective_n_jobs(n_jobs)
        alone = jobs == 1 or not settings.current().shared_memory
        run = pool.run_threads if prefer == "threads" or alone else pool.run_processes
        with progress_to(progress, len(self), "frame") as tell:
            count = iter(range(1, len(self) + 1))

            def on_done(index: int, result: Any) -> None:
                tell(next(count))
                if on_result is not None:
                    on_result(index, result)

            return run(_call, (self, func), [(index,) for index in range(len(self))], jobs, on_done)

    # --- files ---

    @classmethod
    def from_filename(cls, filename: str | os.PathLike[str], **options: Any) -> FrameDataset:
        """The data set in an NFDH5 file, whatever the file is called; ``options`` as for the class.

        Raises
        ------
        ImageError
            Another format or version; :class:`DamagedImageError` if it is no complete HDF5 file.
        """
        return cls(open_nfdh5(filename), **options)

    def to_filename(
        self,
        filename: str | os.PathLike[str],
        compression: str | None = None,
        compression_opts: Any = None,
    ) -> Path:
        """Write an NFDH5 file, one frame at a time: true values, fields and header, all bits of them.

        The file has its name when it is complete; until then an old one stays as it is.

        Parameters
        ----------
        filename : str or path
            ``.h5`` is appended where it is missing.
        compression, compression_opts
            h5py's, such as ``"gzip", 1``: each frame is one chunk. Uncompressed frames can be mapped
            as they are.

        Returns
        -------
        Path
            Of the file.

        Raises
        ------
        ParameterError
            The file is one whose frames are mapped, or HDF5 has no such compression.
        """
        path = Path(filename)
        path = path if nfdh5.is_nfdh5(path) else path.with_name(f"{path.name}.h5")
        film = self._film
        writer = convert.Writer(film.facts, self._fields, film.header, self.dtype)
        writer.write_h5(path, self.frames(), compression, compression_opts)
        return path

    def to_nifti(self, filename: str | os.PathLike[str]) -> Path:
        """Write the frames as they are now, true values, to a ``.nii`` or ``.nii.gz``, one at a time.

        Raises
        ------
        ParameterError
            Another ending, values that NIfTI cannot hold, or a file whose frames are mapped.
        """
        path = Path(filename)
        film = self._film
        convert.Writer(film.facts, self._fields, film.header, self.dtype).write_nifti(path, self.frames())
        return path


# --- what workers run ----------------------------------------------------------------------------


def _attached(handle: str, chosen: bytes) -> FrameDataset:
    """A data set again, in another process."""
    film = FrameStore.attached(handle)
    flags = np.unpackbits(np.frombuffer(chosen, np.uint8), count=film.facts.n_timepoints)
    return FrameDataset._of(film, np.flatnonzero(flags), is_selection=False)


def _call(dataset: FrameDataset, func: Callable[[Array], T], index: int) -> T:
    return func(dataset[index][0])


# --- small helpers -------------------------------------------------------------------------------


def _brain(mask: Any, source: Source) -> Array:
    inside = np.zeros(source.n_voxels, bool)
    inside[Regions.from_any(mask, source.grid).union] = True
    return inside.reshape(source.shape[:3], order="F")


def _close(one: Array, other: Array) -> bool:
    return bool(np.allclose(one, other, equal_nan=True))
