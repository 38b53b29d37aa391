"""Arrays of any kind in shared memory, for anybody's workers.

Covers: sharing a NumPy array, and an output whose parts workers fill. Does not cover: images
(``rows``), views and how they travel (``views``), what happens when the owner dies (``registry``).
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from sharedmask.errors import ClosedImageError, ParameterError
from sharedmask.storage import container
from sharedmask.storage.registry import OwnedSegment, publish
from sharedmask.storage.segment import Handle, attach
from sharedmask.storage.views import DTYPE, SharedArray
from sharedmask.system.budget import MemoryBudget
from sharedmask.typing import Array

Store = Literal["auto", "shm", "memfd"]

_NAME = "array"


class ArrayOwner:
    """An array in shared memory, until it is closed; a context manager.

    Made by :func:`share` and :func:`share_output`. The memory is given back by :meth:`close`, by
    garbage collection, at exit, or by the next process of this user if this one is killed.
    """

    def __init__(self, owned: OwnedSegment, handle: Handle, order: str, *, is_output: bool) -> None:
        self._owned, self._handle, self._order, self._is_output = owned, handle, order, is_output
        self._closed = False

    @property
    def array(self) -> SharedArray:
        """The array, which pickles as a few hundred bytes; read-only, unless it is an output not yet sealed.

        Raises
        ------
        ClosedImageError
        """
        if self._closed:
            raise ClosedImageError(f"{self._owned.label} is closed")
        view = attach(self._handle, writable=self._is_output).view(_NAME)
        return view.T if self._order == "F" else view

    def seal(self) -> SharedArray:
        """Let nobody write to the output any more; the same array, read-only.

        Raises
        ------
        SegmentError
            Somebody still has it for writing, a worker or a variable: let go of ``.array`` first.
        """
        if self._is_output:
            self._owned.seal()
            self._is_output = False
        return self.array

    def close(self) -> None:
        """Give the memory back, which goes with the last array that looks at it. Idempotent."""
        self._closed = True
        self._owned.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._owned.segment.store.kind
        return f"<{type(self).__name__} {self._owned.label} {state}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} stays with its process: pass its .array to others")


def share(
    array: ArrayLike, *, store: Store = "auto", memory_limit: int | float | str | None = None, label: str = ""
) -> ArrayOwner:
    """Copy an array into shared memory, once, for all processes that are to read it.

    What ``multiprocessing.shared_memory.SharedMemory`` lacks: the memory is reserved before it is
    written to, sealed when it is complete, recorded, and removed when its owner dies in whatever way;
    ``.array`` is a read-only array that multiprocessing, joblib and Dask pass on as a handle.

    Parameters
    ----------
    array : array_like
        Of booleans, integers, real or complex numbers, of any shape; the order of memory stays.
    store : {"auto", "shm", "memfd"}
        As in :class:`SharedImage`.
    memory_limit : int, float or str, optional
        As in :class:`SharedImage`.
    label : str
        The name in messages and in ``sharedmask ls``; by default the shape and dtype.

    Returns
    -------
    ArrayOwner
        A context manager, whose ``.array`` is the shared one.

    Raises
    ------
    ParameterError
        Structured values, objects, text or dates; a masked array.
    MemoryLimitError, SegmentError
        There is no room for it; nothing is left behind.

    Examples
    --------
    >>> from multiprocessing import Pool
    >>> betas = np.arange(12.0).reshape(3, 4)
    >>> with share(betas) as shared, Pool(2) as pool:
    ...     sums = pool.map(np.sum, [shared.array[i] for i in range(3)])
    >>> [float(total) for total in sums]
    [6.0, 22.0, 38.0]
    """
    if isinstance(array, np.ma.MaskedArray):
        raise ParameterError("a masked array is two arrays: share its data and its mask")
    values = np.asarray(array)
    order = "F" if values.flags.f_contiguous and not values.flags.c_contiguous else "C"
    values = values.T if order == "F" else values
    geometry, label = _planned(values.shape, values.dtype, label, memory_limit)

    def fill(arrays: dict[str, Array]) -> None:
        arrays[_NAME][...] = values

    owned, attachment = publish(label, geometry, fill, store)
    return ArrayOwner(owned, attachment.handle, order, is_output=False)


def share_output(
    shape: int | tuple[int, ...],
    dtype: DTypeLike = np.float64,
    *,
    order: Literal["C", "F"] = "C",
    store: Store = "auto",
    memory_limit: int | float | str | None = None,
    label: str = "",
) -> ArrayOwner:
    """Room in shared memory for an array of zeros whose parts workers fill.

    Workers write to ``.array``, each to a part of its own; its ``seal`` ends that.

    Parameters
    ----------
    shape : int or tuple of int
        Of the array.
    dtype : dtype
        Booleans, integers, real or complex numbers.
    order : {"C", "F"}
        Of memory.
    store, memory_limit, label : optional
        As in :func:`share`.

    Returns
    -------
    ArrayOwner
        To be sealed, and closed.

    Raises
    ------
    ParameterError, MemoryLimitError, SegmentError
        As :func:`share` does.

    Examples
    --------
    >>> from multiprocessing import Pool
    >>> with share_output((3, 2)) as results, Pool(2) as pool:
    ...     _ = pool.starmap(np.copyto, [(results.array[i], i) for i in range(3)])
    ...     results.seal().tolist()
    [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    """
    extent = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if any(n < 0 for n in extent):
        raise ParameterError(f"an array of shape {extent} has a negative length")
    extent = extent[::-1] if order == "F" else extent
    geometry, label = _planned(extent, np.dtype(dtype), label, memory_limit)
    owned = OwnedSegment(label, geometry, store)
    try:
        handle = owned.share({}, writable=True)
    except BaseException:
        owned.release()
        raise
    return ArrayOwner(owned, handle, order, is_output=True)


def _planned(
    shape: tuple[int, ...], dtype: np.dtype[Any], label: str, memory_limit: int | float | str | None
) -> tuple[container.Geometry, str]:
    if not DTYPE.fullmatch(dtype.str):
        raise ParameterError(
            f"an array of {dtype} cannot be shared: only booleans, integers, real and complex numbers can"
        )
    geometry = {_NAME: (shape, dtype)}
    label = label or f"{'x'.join(map(str, shape)) or 'scalar'} {dtype}"
    MemoryBudget.here(memory_limit).require(f"sharing {label}", container.projected(geometry))
    return geometry, label
