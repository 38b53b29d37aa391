"""A file of our own without a name: nothing is left of it, whatever happens to its owner.

Covers: arrays in such a file, written piece by piece, and the handle with which others map them.
Does not cover: attaching (``mapped_file``), files that stay for the next run (``disk``), shared memory
(``memory``).
"""

import os
import weakref

import numpy as np

from sharedmask.storage import container, disk
from sharedmask.storage.mapped_file import FileHandle, FileIdentity, attach_file
from sharedmask.storage.views import SharedArray
from sharedmask.system import locks, platform, process
from sharedmask.system.files import pwrite_all
from sharedmask.typing import Array


class Spill:
    """Arrays in a file without a name, so that nothing is left of it whatever happens to its owner.

    Other processes attach through this one's descriptor. To ``reserve`` is to take the room for everything
    now; otherwise only what was written takes room.

    Raises SegmentError: there is no room on the disk or within ``spill_limit``.
    """

    def __init__(self, label: str, geometry: container.Geometry, *, reserve: bool = False) -> None:
        self._layout = container.layout(geometry)
        self._fd = disk.scratch(label, self._layout.nbytes, reserve)
        self._closed = weakref.finalize(self, locks.close, self._fd)
        token, size = os.urandom(16).hex(), self._layout.header_bytes
        platform.pwrite(self._fd, container.header({"token": token, "arrays": self._layout.specs}, size), 0)
        identity = FileIdentity.of(f"/proc/{os.getpid()}/fd/{self._fd}", self._fd, ours=True)
        self.handle = FileHandle(identity, label, token, process.boot_id())

    def write(self, name: str, number: int, values: Array) -> None:
        """Write item ``number`` of the array ``name``; its maps see it at once."""
        place = self._layout.specs[name]["offset"] + number * values.nbytes
        with disk.disk_full_as_segment_error(self.handle.label, values.nbytes):
            pwrite_all(self._fd, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, place)

    def array(self, name: str) -> SharedArray:
        """The array ``name``, a read-only view."""
        return attach_file(self.handle).array(name)

    def release(self) -> None:
        """Let go of the file; its bytes go with the last view of them. Idempotent."""
        self._closed()
