"""Views that travel: arrays that pickle as a text and a place in shared bytes.

Covers: telling views from copies, making a view again. Does not cover: what is attached to (``segment``,
``mapped_file``).
"""

import mmap
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from sharedmask.errors import AttachError
from sharedmask.typing import Array

DTYPE = re.compile(r"[<>|=][biufc]\d+")


class Origin(ABC):
    """Bytes that this process maps read-only, and whose views travel as a text and a place in them."""

    def __init__(self, buffer: mmap.mmap | memoryview | bytes) -> None:
        self._bytes = np.frombuffer(buffer, np.uint8)
        self._start: int = self._bytes.__array_interface__["data"][0]  # a fourth of what `ctypes.data` takes

    @property
    @abstractmethod
    def name(self) -> str:
        """For messages."""

    @abstractmethod
    def reopened_by(self) -> tuple[Callable[..., "SharedArray"], str]:
        """The function that makes a view again in another process, and the text that it takes first."""

    def place(self, array: Array) -> int | None:
        """Where the first element of ``array`` lies in the bytes; None if it is not a view of them."""
        offset = int(array.ctypes.data) - self._start
        return offset if 0 <= offset < len(self._bytes) + (not array.size) else None

    def at(
        self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]
    ) -> "SharedArray":
        """The view of that place; the opposite of :meth:`place`."""
        if not DTYPE.fullmatch(dtype.str):
            raise AttachError(f"no array of {self.name} has the dtype {dtype}")
        # The buffer is an array on the map, not the map, so the map lives as long as the view.
        return self.tagged(np.ndarray(shape, dtype, self._bytes, offset, strides))

    def tagged(self, array: Array, travels: bool = True) -> "SharedArray":
        """A view of these bytes as one that travels."""
        shared = array.view(SharedArray)
        shared.origin = self if travels else None
        return shared


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array in shared memory, read-only but for outputs, that pickles as a few hundred bytes.

    Slices, transposes and other views do too, and arrive as views of the same memory. What is
    computed from it, or picked out of it by a list or a mask, is an ordinary array.
    """

    origin: Origin | None = None
    """The bytes that this is a view of; None for a copy."""

    def __array_finalize__(self, parent: Any) -> None:
        # A copy is no view: it must neither hold the segment nor travel as its handle.
        origin = parent.origin if isinstance(parent, SharedArray) else None
        self.origin = origin if origin is not None and origin.place(self) is not None else None

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __reduce_ex__(self, protocol: Any) -> Any:
        offset = self.origin.place(self) if self.origin is not None and self.size else None
        if offset is None or self.origin is None:
            return np.array(self, subok=False).__reduce_ex__(protocol)
        reopen, text = self.origin.reopened_by()
        return reopen, (text, offset, self.shape, self.strides, self.dtype.str)
