"""Frames in a row: some of the frames of a store, in their order.

Covers: choosing frames, walking them one at a time, sums over them, leave-one-out and k-fold. Does not cover:
where frames live (``store``), opening and writing files (``dataset``), the arithmetic (``kernels``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from operator import index as as_index
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from sharedmask.compute.progress import Progress, progress_to
from sharedmask.errors import FrameIndexError, ParameterError
from sharedmask.frames import kernels
from sharedmask.frames.metadata import Metadata
from sharedmask.frames.store import FrameStore
from sharedmask.storage import mapped_file
from sharedmask.typing import Array, NDArray

Index = int | slice | range | list[Any] | Array
T = TypeVar("T")


class FrameSequence:
    """Some of the frames of a store, as a sequence; what a data set is, however it came to be."""

    _store: FrameStore
    _numbers: NDArray[np.intp]
    _is_selection: bool

    @classmethod
    def _from_store(cls, store: FrameStore, numbers: NDArray[np.intp], *, is_selection: bool = True) -> Self:
        made = cls.__new__(cls)
        made._store, made._numbers, made._is_selection = store, numbers, is_selection
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
        x, y, z, _ = self._store.facts.shape
        return x, y, z

    @property
    def size3d(self) -> int:
        """Voxels of a frame."""
        return self._store.facts.n_voxels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the frames' true values."""
        return self._store.dtype

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres, (4, 4)."""
        return self._store.facts.affine

    @property
    def t_r(self) -> float | None:
        """Repetition time in seconds, of the BIDS sidecar or the header."""
        return self._store.facts.t_r

    @property
    def datahdr(self) -> Any:
        """The image's header, a copy."""
        return self._store.header.copy()

    @property
    def brainmask(self) -> Array | None:
        """(X, Y, Z) bool, or None."""
        return self._store.metadata.brainmask

    @property
    def motion_affines(self) -> Array | None:
        """(N, 4, 4), or None as long as there are none."""
        return self._metadata.motion_affines

    @property
    def per_frame(self) -> dict[str, Array]:
        """(N, ...) arrays by name."""
        return dict(self._metadata.per_frame)

    @property
    def overall(self) -> dict[str, Array]:
        """Facts of the data set as a whole, by name."""
        return dict(self._store.metadata.overall)

    @property
    def store(self) -> tuple[str, str]:
        """Where the frames live, and why there."""
        return self._store.store

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._store.closed

    @property
    def _metadata(self) -> Metadata:
        return self._store.metadata.select(self._numbers)

    def __repr__(self) -> str:
        shape, state = "x".join(map(str, self.shape)), "closed" if self.closed else "open"
        names = ", ".join(("motion_affines",) * (self.motion_affines is not None) + (*self.per_frame,))
        run = f"{self._store.label} {shape} {self.dtype} {self.store[0]} {state}"
        return f"<{type(self).__name__} {run}: {names or 'no fields'}>"

    def __eq__(self, other: object) -> bool:
        """Whether frames, affine and fields are the same up to rounding, wherever they live."""
        if not isinstance(other, FrameSequence):
            return NotImplemented
        return (
            self.shape == other.shape
            and np.allclose(self.affine, other.affine)
            and self._metadata.is_close_to(other._metadata)
            and all(map(partial(np.allclose, equal_nan=True), self.frames(), other.frames()))
        )

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
        view = self._store.view(self._numbers)
        if view is None:
            said = "ds[:] copies them, frames() walks them"
            raise ParameterError(f"no view has the frames of {self!r}: {said}")
        return view

    @property
    def stored(self) -> Array:
        """The stored values of the original frames as one read-only (X, Y, Z, N) view; before scaling."""
        view = self._store.stored(self._numbers)
        if view is None:
            raise ParameterError(f"no view has the frames of {self!r}: they are not evenly spaced in the run")
        return view

    def __getitem__(self, index: Index) -> tuple[Any, ...]:
        chosen = self._chosen(index)
        number = self._numbers[chosen]
        data = self._store.frame(int(number)) if isinstance(chosen, int) else self._block(number)
        return data, *self._store.metadata.at(number)

    def _block(self, numbers: NDArray[np.intp]) -> Array:
        view = self._store.view(numbers)
        return self._store.copy(numbers) if view is None else view

    def _chosen(self, index: Index) -> int | NDArray[np.intp]:
        """The place, or the places, that ``index`` means among these frames."""
        try:
            if isinstance(index, slice):
                return np.arange(len(self))[index]
            if isinstance(index, bool | np.bool_):
                raise TypeError("it is no number")
            if isinstance(index, list | range | np.ndarray) and np.ndim(index) == 1:
                return np.arange(len(self))[np.asarray(index) if len(index) else []]
            return range(len(self))[as_index(index)]  # type: ignore[arg-type]
        except (IndexError, TypeError) as error:
            said = f"{self._store.label} has {len(self)} frames, no {index!r}"
            raise FrameIndexError(f"{said}: {error}") from error

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        metadata = self._metadata
        for place, frame in enumerate(self.frames()):
            yield frame, *metadata.at(place)

    def frames(self, *, progress: Progress = None) -> Iterator[Array]:
        """The frames one after the other, the next being read meanwhile.

        Pages that were looked at are let go, so that however long the run, no more than a frame
        counts as this process's.

        Parameters
        ----------
        progress : bool or callable, optional
            True draws a bar; a function is called with (done, total).

        Yields
        ------
        ndarray, (X, Y, Z)
            A read-only frame.
        """
        store, numbers = self._store, self._numbers.tolist()
        with progress_to(progress, len(numbers), "frame") as tell:
            for done, (number, following) in enumerate(zip_longest(numbers, numbers[1:]), 1):
                if following is not None:
                    mapped_file.will_need(store.row(following))
                yield store.frame(number)
                mapped_file.dont_need(store.row(number))
                tell(done)

    def select(self, index: slice | list[Any] | Array) -> Self:
        """Some of the frames, in their order, as a data set; nothing is copied.

        It shares this one's store, transforms included, and lives as long as this one is open.

        Parameters
        ----------
        index : slice, mask, or list of increasing numbers
            Of the frames that are kept.

        Returns
        -------
        FrameDataset
            The frames that were asked for.
        """
        chosen = self._chosen(index)
        if isinstance(chosen, int) or not len(chosen) or np.any(np.diff(chosen) <= 0):
            raise ParameterError(f"{index!r} selects no frames, or not each once in their order")
        return self._from_store(self._store, self._numbers[chosen])

    def original_index(self, index: int) -> int:
        """Which frame of the original run a frame of this data set is.

        Parameters
        ----------
        index : int
            A frame's number here.

        Returns
        -------
        int
            Its number in the run.
        """
        return int(self._store.metadata.numbers[self._numbers[self._place(index)]])

    def original(self, index: int) -> Array:
        """A frame as it was before any transform.

        Parameters
        ----------
        index : int
            As of ``ds[index]``.

        Returns
        -------
        ndarray, (X, Y, Z)
            True values.
        """
        return self._store.original(int(self._numbers[self._place(index)]))

    def set_transform(self, index: int, affine: Any, *, order: int = 3) -> None:
        """Resample a frame by a motion affine, from the original frame each time.

        The result goes to the data set's own copy of that frame, in a file without a name; the
        user's file is never written to. Workers and selections see it. The identity brings the
        original back.

        Parameters
        ----------
        index : int
            The frame's number.
        affine : array, (4, 4)
            From a place in the result to its place in the original frame, in millimetres.
        order : int
            Of the spline.
        """
        self._store.transform(int(self._numbers[self._place(index)]), affine, order)

    def _place(self, index: int) -> int:
        chosen = self._chosen(index)
        if not isinstance(chosen, int):
            raise FrameIndexError(f"{index!r} is not the number of one frame")
        return chosen

    # --- sums ---

    def sum(self) -> NDArray[np.float64]:
        """The sum of all frames, added up in their order, one frame at a time.

        Integers of up to 32 bits have exact sums, so the sum of most of a run is that of the whole
        run minus that of the frames left out; the numbers are the same.

        Returns
        -------
        ndarray, (X, Y, Z), float64
            Of true values.
        """
        store, all_of_them = self._store, np.arange(self._store.facts.n_timepoints)
        left_out = np.setdiff1d(all_of_them, self._numbers)
        if not kernels.is_exact(self.dtype) or len(left_out) >= len(self) or not store.is_owned:
            return kernels.total(self.frames(), self.shape3d)
        if store.total is None:
            store.total = kernels.total(self._from_store(store, all_of_them).frames(), self.shape3d)
        return store.total - kernels.total(self._from_store(store, left_out).frames(), self.shape3d)

    def mean(self) -> NDArray[np.float64]:
        """The mean frame: :meth:`sum` divided by the number of frames.

        Returns
        -------
        ndarray, (X, Y, Z), float64
            Of true values.
        """
        return self.sum() / len(self)

    def reduce(self, func: Callable[..., T], initial: T) -> T:
        """Go through all frames in turn with a state.

        Parameters
        ----------
        func : callable
            ``func(state, frame, affine, *per_frame)`` gives the next state.
        initial : object
            The first state.

        Returns
        -------
        object
            The last state.

        Examples
        --------
        >>> import nibabel as nib
        >>> from sharedmask import FrameDataset
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
            A row for each frame.

        Returns
        -------
        ndarray, (X, Y, Z, k), float64
            A coefficient of each column.
        """
        return kernels.coefficients(self.frames(), len(self), self.shape3d, design)

    def materialise(self) -> Array:
        """All frames in one fresh array, volume after volume in memory.

        Returns
        -------
        ndarray, (X, Y, Z, N)
            True values.
        """
        return self._store.copy(self._numbers)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        values = self.materialise() if copy else self._block(self._numbers)
        return values if dtype is None else values.astype(dtype, copy=False)

    # --- folds ---

    def leave_one_out(self) -> Iterator[tuple[int, Array, Self]]:
        """Each frame in turn, and the data set of all others; nothing is copied.

        Yields
        ------
        (index, frame, training)
            A frame's number, the frame, (X, Y, Z), and a FrameDataset.
        """
        self._check_folds(len(self))
        for index in range(len(self)):
            yield index, self[index][0], self.select(np.arange(len(self)) != index)

    def k_fold(self, k: int) -> Iterator[tuple[NDArray[np.intp], Self, Self]]:
        """Neighbouring frames in turn, and the data set of all others; nothing is copied.

        Parameters
        ----------
        k : int
            How many.

        Yields
        ------
        (indices, test, training)
            Numbers of frames, and two FrameDatasets.
        """
        self._check_folds(k)
        for part in np.array_split(np.arange(len(self)), k):
            others = np.ones(len(self), bool)
            others[part] = False
            yield part, self.select(part), self.select(others)

    def _check_folds(self, k: int) -> None:
        if not isinstance(k, int | np.integer) or not 2 <= k <= len(self):
            raise ParameterError(f"{len(self)} frames cannot be split into {k!r} folds")
