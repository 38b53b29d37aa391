"""Files that are mapped: which file it is, its map in this and other processes, its pages.

Covers: the user's files and ours, handles with which others map them, advice to the kernel on pages. Does not
cover: shared memory (``memory``, ``segment``), how views travel (``views``).

A page of a file is read when it is first looked at, and the kernel may drop it again.
"""

import contextlib
import json
import mmap
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from sharedmask.errors import AttachError, SourceChangedError
from sharedmask.records import dataclass
from sharedmask.storage.container import Specs, array_at, checked_facts, checked_json, parse_header
from sharedmask.storage.views import Origin, SharedArray
from sharedmask.system import locks, platform, process
from sharedmask.system.identity import FileState
from sharedmask.typing import Array

_OPEN = os.O_RDONLY | platform.NOT_WAITING


@dataclass(frozen=True)
class FileIdentity(FileState):
    """A file of this machine, as it was when it was opened.

    Times are 0 of a file of ours: it never changes, and its time says when it was last used.
    """

    dev: int
    ours: bool

    @classmethod
    def of(cls, path: str, fd: int, *, ours: bool) -> "FileIdentity":
        """That of the file behind ``fd``, which was opened as ``path``."""
        facts = os.fstat(fd)
        times = (0, 0) if ours else (facts.st_mtime_ns, facts.st_ctime_ns)
        return cls(path, facts.st_ino, facts.st_size, *times, facts.st_dev, ours)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "FileIdentity":
        """The identity whose fields are given, or an AttachError."""
        return checked_facts(cls, given, "the identity of a file")

    def is_written_to(self) -> bool:
        """Whether the user's file, which this process maps, has changed since, in its place.

        A file that was replaced or removed has not: the old one stays until the last map of it goes.
        """
        now = self._now()
        if self.ours or (now is not None and now[0] == self.ino):
            return not self.ours and now != self._known
        # That it lost its name changed its inode, too. A map of Python keeps a copy of the descriptor.
        with contextlib.suppress(OSError):
            return any(map(self._is_other_content, platform.open_descriptors()))
        return False

    def _is_other_content(self, fd: int) -> bool:
        with contextlib.suppress(OSError):
            facts = os.fstat(fd)
            is_it = (facts.st_dev, facts.st_ino) == (self.dev, self.ino)
            return is_it and (facts.st_size, facts.st_mtime_ns) != (self.nbytes, self.mtime_ns)
        return False

    def check(self, fd: int) -> None:
        """Refuse another file.

        Raises AttachError: the file behind ``fd`` is not this one, or has changed since.
        """
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise AttachError(f"{self.path} is no file")
        if self.ours and not platform.is_private(facts, 0o077):
            raise AttachError(f"{self.path} is open to other users")
        if FileIdentity.of(self.path, fd, ours=self.ours) != self:
            raise AttachError(f"{self.path} is another file now, or has changed, since it was shared")


_maps: "WeakKeyDictionary[mmap.mmap, FileIdentity]" = WeakKeyDictionary()


def map_file(identity: FileIdentity) -> mmap.mmap:
    """The bytes of the file, read-only.

    A file of ours that has a name stays locked (shared) for as long as the map exists: a map of Python
    keeps a copy of the descriptor, and with it the lock.

    Raises AttachError: the file is gone, is another one, or has changed.
    """
    kept = identity.ours and not identity.path.startswith("/proc/")  # that of its owner's descriptor
    try:
        fd = platform.open_again(identity.path, _OPEN | (platform.NOFOLLOW if kept else 0))
    except OSError as error:
        raise AttachError(f"{identity.path} cannot be opened: {error.strerror}") from error
    try:
        if kept:
            locks.lock(fd, locks.SHARED)
        identity.check(fd)
        buffer = mmap.mmap(fd, identity.nbytes, access=mmap.ACCESS_READ)
    except BaseException:
        locks.close(fd)
        raise
    locks.leave_to(buffer, fd)
    if kept:
        # Rows are picked out here and there: what the kernel reads ahead is mostly not wanted.
        platform.advise(buffer, "MADV_RANDOM")
    _maps[buffer] = identity
    return buffer


def is_mapped(path: str | os.PathLike[str]) -> bool:
    """Whether this process looks at the file of that name through a map."""
    try:
        facts = os.stat(path)
    except OSError:
        return False
    return any((one.dev, one.ino) == (facts.st_dev, facts.st_ino) for one in list(_maps.values()))


@dataclass(frozen=True)
class FileHandle:
    """All that another process of this machine needs to map the same file."""

    file: FileIdentity
    label: str
    token: str
    """What the header of a file of ours says: inode and descriptor numbers are used again."""
    boot_id: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "FileHandle":
        """Parse a handle, checking the types of all fields."""
        facts = checked_json(text, "a handle of a mapped file")
        file = FileIdentity.from_dict(facts.get("file", {}))
        return checked_facts(cls, {**facts, "file": file}, "a handle of a mapped file")


class FileMap(Origin):
    """A file in this process, read-only. Views keep it mapped."""

    def __init__(self, handle: FileHandle, buffer: mmap.mmap) -> None:
        super().__init__(buffer)
        self.handle = handle
        facts = parse_header(buffer)[0] if handle.token else {}
        if facts.get("token", "") != handle.token:
            raise AttachError("it is gone: its owner closed it")
        self._specs: Specs = facts.get("arrays", {})

    @property
    def name(self) -> str:
        return self.handle.label

    def reopened_by(self) -> tuple[Callable[..., SharedArray], str]:
        return file_view_of, self.handle.to_json()

    def check(self) -> None:
        """Learn that the user's file was written to, before its pages are looked at.

        Raises SourceChangedError: values may have changed under their views.
        """
        if self.handle.file.is_written_to():
            raise SourceChangedError(f"{self.handle.label} was written to while its frames were mapped")

    def array(self, name: str) -> SharedArray:
        """The array ``name`` of a file of ours."""
        return self.tagged(array_at(self._bytes, self._specs[name]))


# One map per process and file, for as long as somebody uses it.
_mapped: "WeakValueDictionary[FileHandle, FileMap]" = WeakValueDictionary()


def map_users_file(path: str | os.PathLike[str], label: str) -> FileMap:
    """The file as it is now."""
    with open(path, "rb", buffering=0) as file:
        identity = FileIdentity.of(os.path.realpath(path), file.fileno(), ours=False)
    return attach_file(FileHandle(identity, label, "", process.boot_id()))


def attach_file(handle: FileHandle) -> FileMap:
    """The same file in another process.

    Raises AttachError: it is gone, another one, changed, or of another machine or boot.
    """
    if found := _mapped.get(handle):
        return found
    if handle.boot_id != process.boot_id():
        raise AttachError(f"{handle.label} was mapped on another machine, or before a restart")
    try:
        found = FileMap(handle, map_file(handle.file))
    except (OSError, ValueError) as error:
        raise AttachError(f"{handle.label} cannot be mapped: {error}") from error
    _mapped[handle] = found
    return found


def file_view_of(
    handle: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
) -> SharedArray:
    """A view of a mapped file again, in another process."""
    return attach_file(FileHandle.from_json(handle)).at(offset, shape, strides, np.dtype(dtype))


_PAGE = mmap.PAGESIZE
_READ_BYTES = 2 * 2**20
_PLACES = 64
"""Of a file, that are looked at to know whether it is in memory."""


def will_need(array: Array) -> None:
    """Have the pages of ``array``, a contiguous view of a map, read in the background."""
    _advise_pages(array, "MADV_WILLNEED")


def read_through(path: str | os.PathLike[str], room: int) -> None:
    """Have a file in the page cache, read once from its begin to its end, if it is not and there is room.

    Pages that are looked at here and there are read one by one, and the kernel reads only a few megabytes
    ahead, whatever it is advised.
    """
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size > room or _is_cached(file.fileno()):
            return
        piece = memoryview(bytearray(_READ_BYTES))
        while file.readinto(piece):
            pass


def _is_cached(fd: int) -> bool:
    """Whether some places of the file, here and there, are in memory."""
    size = os.fstat(fd).st_size
    return all(platform.is_cached(fd, place) for place in range(0, size, max(1, size // _PLACES)))


def no_read_ahead(array: Array) -> None:
    """Have no pages read but those of ``array`` that are looked at, or that :func:`will_need` names."""
    _advise_pages(array, "MADV_RANDOM")


def dont_need(array: Array) -> None:
    """Let go of the pages of ``array``: they do not count as this process's until looked at again.

    Nothing is lost: a shared map has its values in the file, or in the shared memory, not here.
    """
    _advise_pages(array, "MADV_DONTNEED")


def _advise_pages(array: Array, advice: str) -> None:
    buffer: Any = array
    while isinstance(buffer, np.ndarray):
        buffer = buffer.base
    mapped = buffer.obj if isinstance(buffer, memoryview) else None
    if not isinstance(mapped, mmap.mmap):
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    first = np.frombuffer(buffer, np.uint8).ctypes.data
    start = (low - first) // _PAGE * _PAGE
    platform.advise(mapped, advice, start, high - first - start)
