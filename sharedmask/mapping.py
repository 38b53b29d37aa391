"""A file mapped as it is, read-only: nothing is loaded.

Covers: the map, the handle with which another process maps the same bytes and what it checks on the
way, telling the kernel which pages are needed next. Does not cover: what the bytes mean (``films``),
files of our own (``spills``), shared memory (``segments``).

A page is read when it is first looked at, and the kernel may drop it again.
"""

import json
import mmap
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from sharedmask import segments
from sharedmask.errors import AttachError, DamagedImageError
from sharedmask.segments import Origin, SharedArray

Array = NDArray[Any]

_PAGE = mmap.PAGESIZE
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
OWN_FILE = 0  # as time of modification: its owner writes to it


@dataclass(frozen=True)
class FileHandle:
    """All that another process of this machine needs to map the same file."""

    path: str
    """Of a file of ours, which has no name: that of its owner's descriptor."""
    label: str
    dev: int
    ino: int
    nbytes: int
    mtime_ns: int
    token: str
    """What a file of ours begins with: inode and descriptor numbers are used again."""
    boot_id: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "FileHandle":
        """Parse a handle, checking the types of all fields."""
        try:
            handle = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise AttachError(f"not a handle of a mapped file: {error}") from error
        for name, kind in cls.__annotations__.items():
            if type(getattr(handle, name)) is not kind:
                raise AttachError(f"not a handle of a mapped file: {name} is no {kind.__name__}")
        return handle


class FileMap(Origin):
    """A file in this process, read-only. Views keep it mapped."""

    def __init__(self, handle: FileHandle, buffer: mmap.mmap) -> None:
        super().__init__(buffer)
        self.handle = handle

    @property
    def name(self) -> str:
        return self.handle.label

    def reopened_by(self) -> tuple[Callable[..., SharedArray], str]:
        return view_of, self.handle.to_json()

    def check(self) -> None:
        """Learn that the user's file was written to, before its pages are looked at.

        Raises
        ------
        DamagedImageError
            Values may have changed under their views. (A file that was replaced is no matter: the
            old one stays until the last view goes.)
        """
        handle = self.handle
        if handle.mtime_ns == OWN_FILE:
            return
        try:
            now = os.stat(handle.path)
        except OSError:
            return
        as_mapped = (now.st_size, now.st_mtime_ns) == (handle.nbytes, handle.mtime_ns)
        if now.st_ino == handle.ino and not as_mapped:
            raise DamagedImageError(f"{handle.label} was written to while its frames were mapped")

    def begins_with(self, token: bytes) -> bool:
        return self._bytes[: len(token)].tobytes() == token


# One map per process and file, for as long as somebody uses it.
_mapped: "WeakValueDictionary[FileHandle, FileMap]" = WeakValueDictionary()


def map_file(path: str | os.PathLike[str], label: str) -> FileMap:
    """The file as it is now."""
    fd = os.open(path, _OPEN)
    try:
        facts = os.fstat(fd)
        handle = FileHandle(
            path=os.path.realpath(path),
            label=label,
            dev=facts.st_dev,
            ino=facts.st_ino,
            nbytes=facts.st_size,
            mtime_ns=facts.st_mtime_ns,
            token="",
            boot_id=segments.boot_id(),
        )
        return _mapped.get(handle) or _map(handle, fd)
    finally:
        os.close(fd)


def attach_file(handle: FileHandle) -> FileMap:
    """The same file in another process.

    Raises
    ------
    AttachError
        It is gone, another one, changed, or of another machine or boot.
    """
    if found := _mapped.get(handle):
        return found
    if handle.boot_id != segments.boot_id():
        raise AttachError(f"{handle.label} was mapped on another machine, or before a restart")
    try:
        fd = os.open(handle.path, _OPEN)
    except OSError as error:
        raise AttachError(f"{handle.label} cannot be mapped: {handle.path}: {error.strerror}") from error
    try:
        _check_identity(handle, os.fstat(fd))
        found = _map(handle, fd)
    except (OSError, ValueError) as error:
        if isinstance(error, AttachError):
            raise
        raise AttachError(f"{handle.label} cannot be mapped: {error}") from error
    finally:
        os.close(fd)
    if not found.begins_with(handle.token.encode()):
        raise AttachError(f"{handle.label} is gone: its owner closed it")
    return found


def _map(handle: FileHandle, fd: int) -> FileMap:
    found = _mapped[handle] = FileMap(handle, mmap.mmap(fd, handle.nbytes, mmap.MAP_SHARED, mmap.PROT_READ))
    return found


def _check_identity(handle: FileHandle, facts: os.stat_result) -> None:
    if (facts.st_dev, facts.st_ino, facts.st_size) != (handle.dev, handle.ino, handle.nbytes):
        raise AttachError(f"{handle.path} is another file than the one that {handle.label} was mapped from")
    if handle.mtime_ns not in (OWN_FILE, facts.st_mtime_ns):
        raise AttachError(f"{handle.path} was written to since {handle.label} was mapped")


def view_of(
    handle: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
) -> SharedArray:
    """A view of a mapped file again, in another process."""
    return attach_file(FileHandle.from_json(handle)).at(offset, shape, strides, np.dtype(dtype))


def is_mapped(path: str | os.PathLike[str]) -> bool:
    """Whether this process looks at the file of that name through a map."""
    try:
        facts = os.stat(path)
    except OSError:
        return False
    return any((one.dev, one.ino) == (facts.st_dev, facts.st_ino) for one in list(_mapped))


# --- pages ---------------------------------------------------------------------------------------


def ahead(array: Array) -> None:
    """Have the pages of ``array``, a contiguous view of a map, read in the background."""
    _advise(array, "MADV_WILLNEED")


def behind(array: Array) -> None:
    """Let go of the pages of ``array``: they do not count as this process's until looked at again.

    Nothing is lost: a shared map has its values in the file, or in the shared memory, not here.
    """
    _advise(array, "MADV_DONTNEED")


def _advise(array: Array, advice: str) -> None:
    buffer: Any = array
    while isinstance(buffer, np.ndarray):
        buffer = buffer.base
    mapped = buffer.obj if isinstance(buffer, memoryview) else None
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, advice):
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    first = np.frombuffer(buffer, np.uint8).ctypes.data
    start = (low - first) // _PAGE * _PAGE
    mapped.madvise(getattr(mmap, advice), start, high - first - start)
