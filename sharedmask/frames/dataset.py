"""Frames: a run as a data set of volumes, of which no more than one is held.

Covers: opening a run, its life, work on its frames by workers, files. Does not cover: choosing and walking
frames (``sequence``), where they live (``store``), the HDF5 file (``nfdh5``), time series of voxels
(``image``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import numpy as np

from sharedmask.compute.plan import check_bound, per_process
from sharedmask.compute.progress import Progress, counted
from sharedmask.compute.request import OnResult, Prefer
from sharedmask.errors import ParameterError
from sharedmask.frames import acquisition, convert, nfdh5
from sharedmask.frames.metadata import Metadata
from sharedmask.frames.nfdh5 import Nfdh5Source, open_frames, open_nfdh5
from sharedmask.frames.sequence import FrameSequence
from sharedmask.frames.store import FrameStore
from sharedmask.regions.alignment import brain_voxels
from sharedmask.sources.source import Source
from sharedmask.system import monitor, process, settings
from sharedmask.system.budget import MemoryBudget, within
from sharedmask.typing import Array
from sharedmask.workers import pool, threaded
from sharedmask.workers.streams import Streams

if TYPE_CHECKING:
    import nibabel as nib

T = TypeVar("T")


class FrameDataset(FrameSequence):
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
    store : {"auto", "file", "memfd", "shm", "disk", "private"}
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

    def __init__(
        self,
        source: Any,
        *,
        mask_img: Any = None,
        affines: Any = None,
        per_frame: Mapping[str, Any] | None = None,
        overall: Mapping[str, Any] | None = None,
        store: Literal["auto", "file", "memfd", "shm", "disk", "private"] = "auto",
        memory_limit: int | float | str | None = None,
    ) -> None:
        with within(memory_limit):
            opened = open_frames(source)
            brain = None if mask_img is None else _brain(mask_img, opened)
        given = Metadata.checked(
            opened.shape, brainmask=brain, motion_affines=affines, per_frame=per_frame, overall=overall
        )
        metadata = opened.metadata.updated(given) if isinstance(opened, Nfdh5Source) else given
        self._store = FrameStore.open(opened, metadata, store, memory_limit)
        self._numbers = np.arange(opened.n_timepoints)
        self._is_selection = False

    @classmethod
    def diffusion(
        cls,
        source: Any,
        gradients: Any = None,
        *,
        bvec_file: Any = None,
        bval_file: Any = None,
        bzero: Any = None,
        **options: Any,
    ) -> FrameDataset:
        """The weighted volumes of a diffusion run, with their gradients, as nifreeze's ``DWI`` has them.

        Parameters
        ----------
        source : what the class takes
            The run.
        gradients : array, (N, 4) or (4, N), or path of a table, optional
            Direction and b of each volume; a direction that is not of length 1 is scaled to it, b by that.
        bvec_file, bval_file : path, optional
            FSL's files, instead.
        bzero : array, (X, Y, Z), optional
            Default: the volume of b up to 50, or the median of several; none if there is none.
        **options
            As for the class.

        Returns
        -------
        FrameDataset
            ``ds[i]`` is frame, motion affine and gradient; ``ds.overall["bzero"]``, ``ds.shells()``.
            ``ds.original_index(i)`` counts the volumes without weighting, too.

        Raises
        ------
        ParameterError
            Gradients that are none, or do not fit.
        """
        if gradients is None or isinstance(gradients, str | os.PathLike):
            gradients = acquisition.read_gradients(gradients, bvec_file=bvec_file, bval_file=bval_file)
        opened = open_frames(source)
        table = acquisition.checked_gradients(gradients, opened.n_timepoints)
        whole = cls(opened, per_frame={"gradients": table}, **options)
        try:
            return whole._weighted(table[:, 3] <= acquisition.LOW_B, bzero)
        except BaseException:
            whole.close()
            raise

    def _weighted(self, low: Array, bzero: Any) -> FrameDataset:
        if bzero is None and low.any():
            block = np.asarray(self.select(low))
            bzero = block[..., 0] if block.shape[3] == 1 else np.median(block, axis=3)
        if bzero is not None:
            if np.shape(bzero) != self.shape3d:
                raise ParameterError(f"bzero has shape {np.shape(bzero)} where {self.shape3d} is needed")
            self._store.describe({"bzero": bzero})
        return self._from_store(self._store, np.flatnonzero(~low), is_selection=False)

    def shells(self, gap: float = 100.0) -> list[tuple[float, Array]]:
        """The median b of each shell, and its frames.

        Parameters
        ----------
        gap : float
            Those closer than this go together.

        Returns
        -------
        list of (float, ndarray)
            The median b of each shell, and the numbers of its frames.
        """
        if "gradients" not in self.per_frame:
            raise ParameterError(f"{self._store.label} has no gradients: open it with FrameDataset.diffusion")
        return acquisition.shells(self.per_frame["gradients"][:, 3], gap)

    @classmethod
    def pet(
        cls,
        source: Any,
        midframe: Any = None,
        total_duration: float | None = None,
        *,
        temporal_file: Any = None,
        **options: Any,
    ) -> FrameDataset:
        """A PET run with the middle of each frame, in seconds, as nifreeze's ``PET`` has it.

        Parameters
        ----------
        source : what the class takes
            The run.
        midframe : array, (N,), optional
            Default: of ``FrameTimesStart`` and ``FrameDuration`` in the sidecars, by BIDS inheritance.
        total_duration : float, optional
            The end of the last frame; given with ``midframe``.
        temporal_file : path, optional
            A JSON file, instead of the sidecars.
        **options
            As for the class.

        Returns
        -------
        FrameDataset
            ``ds[i]`` is frame, motion affine and middle; ``ds.overall["total_duration"]``.

        Raises
        ------
        ParameterError
            No timing is known, or it is none of this run.
        """
        if midframe is None:
            midframe, end = acquisition.read_timing(source, temporal_file)
            total_duration = end if total_duration is None else total_duration
        middles = np.array(midframe, np.float64)
        if not np.isfinite(middles).all() or (np.diff(middles) <= 0).any():
            raise ParameterError("midframe must be finite and increase from frame to frame")
        if total_duration is None or not total_duration > middles[-1]:
            raise ParameterError(
                f"total_duration={total_duration} must be beyond the last midframe, {middles[-1]:g}"
            )
        timing = {"total_duration": float(total_duration)}
        return cls(source, per_frame={"midframe": middles}, overall=timing, **options)

    # --- life ---

    def close(self) -> None:
        """Release what the data set made; views keep their bytes. Idempotent.

        Its selections end with it. To close one of them does nothing.
        """
        if not self._is_selection:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        chosen = np.zeros(self._store.facts.n_timepoints, bool)
        chosen[self._numbers] = True
        return _attached, (self._store.handle, np.packbits(chosen).tobytes())

    # --- work ---

    def map(
        self,
        func: Callable[[Array], T],
        *,
        n_jobs: int | None = None,
        prefer: Prefer = None,
        random_state: Any = None,
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
        random_state : int, SeedSequence, Generator or RandomState, optional
            As in :meth:`SharedImage.map`: each frame has random numbers of its own.
        progress : bool or callable, optional
            True draws a bar; a function is called with (done, total).
        on_result : callable, optional
            Called with (index, result), in order of completion.

        Returns
        -------
        list
            What ``func`` returned of each frame.

        Raises
        ------
        MemoryLimitError
            The frames that are worked on at a time do not fit.
        WorkerError
            A worker died. What ``func`` raises is raised here.
        """
        jobs, in_threads = process.effective_n_jobs(n_jobs), prefer == "threads"
        if not in_threads and jobs > 1 and not (settings.current().shared_memory and self._store.is_shared):
            jobs = 1
        run = threaded.run_threads if in_threads or jobs == 1 else pool.run_processes
        what = f"calling a function on {len(self)} frames of {self._store.label}"
        needed = self._fitting(what, min(jobs, len(self)), run is threaded.run_threads)
        with monitor.operation("map", what, needed), counted(progress, len(self), "frame") as tell:

            def on_done(index: int, result: Any) -> None:
                tell()
                if on_result is not None:
                    on_result(index, result)

            items = [(index,) for index in range(len(self))]
            with Streams(func, random_state, callable(progress) or on_result is not None) as streams:
                return run(_call, (self, func), items, jobs, on_done=on_done, streams=streams)

    def _fitting(self, what: str, jobs: int, in_this_process: bool) -> int:
        """What the frames worked on at a time take, which has to fit."""
        budget, each = MemoryBudget.here(self._store.memory_limit), self._store.frame_bytes
        needed = jobs * each
        check_bound(what, needed if in_this_process else each, per_process(jobs, budget))
        budget.require(what, needed, "fewer jobs take less")
        return needed

    # --- files ---

    @classmethod
    def from_filename(cls, filename: str | os.PathLike[str], **options: Any) -> FrameDataset:
        """The data set in an NFDH5 file, whatever the file is called.

        Parameters
        ----------
        filename : str or path
            An HDF5 file as :meth:`to_filename` or nifreeze writes it.
        **options
            As for the class.

        Returns
        -------
        FrameDataset
            One that reads frames of the file when they are asked for.

        Raises
        ------
        ImageError
            Another format or version; DamagedImageError if it is no complete HDF5 file.
        """
        return cls(open_nfdh5(filename), **options)

    def to_filename(
        self,
        filename: str | os.PathLike[str],
        compression: str | None = None,
        compression_opts: Any = None,
        version: int = 1,
    ) -> Path:
        """Write an NFDH5 file, one frame at a time: true values, fields and header, all bits of them.

        The file has its name when it is complete; until then an old one stays as it is.

        Parameters
        ----------
        filename : str or path
            ``.h5`` is appended where it is missing.
        compression, compression_opts : str and object, optional
            As h5py has them, such as ``"gzip", 1``: each frame is one chunk. Uncompressed frames can be
            mapped as they are.
        version : {1, 2}
            1: the frames' axis last, as nifreeze writes and reads it. 2: first.

        Returns
        -------
        Path
            Of the file.

        Raises
        ------
        ParameterError
            The file is one whose frames are mapped, or HDF5 has no such compression.
        """
        path = Path(filename).expanduser()
        path = path if nfdh5.is_nfdh5(path) else path.with_name(f"{path.name}.h5")
        store = self._store
        writer = convert.Writer(store.facts, self._metadata, store.header, self.dtype)
        writer.write_h5(path, self.frames(), nfdh5.Packing(version, compression, compression_opts))
        return path

    @overload
    def to_nifti(self) -> nib.Nifti1Image: ...
    @overload
    def to_nifti(self, filename: str | os.PathLike[str]) -> Path: ...

    def to_nifti(self, filename: str | os.PathLike[str] | None = None) -> Any:
        """Write the frames as they are now, true values, to a ``.nii`` or ``.nii.gz``, one at a time.

        Parameters
        ----------
        filename : str or path, optional
            Without a name an image of all frames in memory is returned.

        Returns
        -------
        Path or nibabel.Nifti1Image
            Of the file, or the image.

        Raises
        ------
        ParameterError
            Another ending, values that NIfTI cannot hold, or a file whose frames are mapped.
        """
        store = self._store
        writer = convert.Writer(store.facts, self._metadata, store.header, self.dtype)
        if filename is None:
            return writer.image(self.materialise())
        path = Path(filename).expanduser()
        writer.write_nifti(path, self.frames())
        return path


# --- what workers run ----------------------------------------------------------------------------


def _attached(handle: str, chosen: bytes) -> FrameDataset:
    """A data set again, in another process."""
    store = FrameStore.attach(handle)
    flags = np.unpackbits(np.frombuffer(chosen, np.uint8), count=store.facts.n_timepoints)
    return FrameDataset._from_store(store, np.flatnonzero(flags), is_selection=False)


def _call(dataset: FrameDataset, func: Callable[[Array], T], index: int) -> T:
    return func(dataset[index][0])


# --- small helpers -------------------------------------------------------------------------------


def _brain(mask: Any, source: Source) -> Array:
    inside = np.zeros(source.n_voxels, bool)
    inside[brain_voxels(mask, source.grid)] = True
    return inside.reshape(source.shape[:3], order="F")
