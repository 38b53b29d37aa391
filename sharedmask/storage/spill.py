"""A file of our own without a name: nothing is left of it, whatever happens to its owner.

Covers: arrays in such a file, written piece by piece, and the handle with which others map them.
Does not cover: attaching (``mapped_file``), files that stay for the next run (``disk``), shared memory
(``memory``).
"""

import os
import secrets
import tempfile
import weakref
from typing import Any

import numpy as np

from sharedmask.errors import SegmentError
from sharedmask.storage import container
from sharedmask.storage.mapped_file import FileHandle, FileIdentity, FileMap, attach_file
from sharedmask.storage.views import SharedArray
from sharedmask.system import process
from sharedmask.system.files import spill_folder
from sharedmask.system.units import format_bytes
from sharedmask.typing import Array

Spec = dict[str, Any]


class Spill:
    """Arrays in a file without a name, so that nothing is left of it whatever happens to its owner.

    Only what was written takes room. Other processes attach through this one's descriptor.
    """

    def __init__(self, label: str, geometry: container.Geometry) -> None:
        self.specs, nbytes = container.layout(geometry)
        """Where the arrays lie, for :func:`array_in` elsewhere."""
        self._fd = _nameless_file(label, nbytes)
        self._closed = weakref.finalize(self, os.close, self._fd)
        token = secrets.token_hex(16)
        os.pwrite(self._fd, token.encode(), 0)
        identity = FileIdentity.of(f"/proc/{os.getpid()}/fd/{self._fd}", self._fd, ours=True)
        self.handle = FileHandle(identity, label, token, process.boot_id())

    def write(self, name: str, number: int, values: Array) -> None:
        """Write item ``number`` of the array ``name``; its maps see it at once."""
        spec = self.specs[name]
        nbytes = values.nbytes
        place = spec["offset"] + number * nbytes
        left = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        try:
            while left:
                left = left[os.pwrite(self._fd, left, place + nbytes - len(left)) :]
        except OSError as error:
            raise self._no_room(format_bytes(nbytes), error) from error

    def reserve(self) -> None:
        """Take the room for everything now.

        Raises
        ------
        SegmentError
            There is not enough of it.
        """
        try:
            os.posix_fallocate(self._fd, 0, self.handle.file.nbytes)
        except OSError as error:
            raise self._no_room(format_bytes(self.handle.file.nbytes), error) from error

    def _no_room(self, what: str, error: OSError) -> SegmentError:
        where = f"{spill_folder()} (SHAREDMASK_TMPDIR names another folder)"
        return SegmentError(f"{self.handle.label}: no room for {what} in {where}: {error.strerror}")

    def array(self, name: str) -> SharedArray:
        """The array ``name``, a read-only view."""
        return array_in(attach_file(self.handle), self.specs[name])

    def release(self) -> None:
        """Let go of the file; its bytes go with the last view of them. Idempotent."""
        self._closed()


def array_in(origin: FileMap, spec: Spec) -> SharedArray:
    """The C-contiguous array of that offset, shape and dtype."""
    shape, dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])
    steps = np.cumprod((dtype.itemsize, *shape[:0:-1]))[::-1]
    return origin.at(spec["offset"], shape, tuple(map(int, steps)), dtype)


def _nameless_file(label: str, nbytes: int) -> int:
    try:
        with tempfile.TemporaryFile(dir=spill_folder(), buffering=0) as file:
            os.truncate(file.fileno(), nbytes)
            return os.dup(file.fileno())
    except OSError as error:
        raise SegmentError(f"{label}: no file can be made in {spill_folder()}: {error.strerror}") from error
