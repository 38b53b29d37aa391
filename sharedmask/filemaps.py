"""Files mapped as they are, whose views travel: nothing is loaded.

Covers: the handle with which another process maps the same bytes. Does not cover: which file it is and
the map itself (``mapped``), what the bytes mean (``films``), files of our own (``spills``), shared
memory (``segments``).
"""

import json
import mmap
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from weakref import WeakValueDictionary

import numpy as np

from sharedmask import mapped, segments
from sharedmask.errors import AttachError, DamagedImageError
from sharedmask.mapped import FileIdentity
from sharedmask.segments import Origin, SharedArray


@dataclass(frozen=True)
class FileHandle:
    """All that another process of this machine needs to map the same file."""

    file: FileIdentity
    label: str
    token: str
    """What a file of ours begins with: inode and descriptor numbers are used again."""
    boot_id: str

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "FileHandle":
        """Parse a handle, checking the types of all fields."""
        try:
            facts = json.loads(text)
            handle = cls(**{**facts, "file": FileIdentity.from_dict(facts["file"])})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise AttachError(f"not a handle of a mapped file: {error}") from error
        for name in ("label", "token", "boot_id"):
            if type(getattr(handle, name)) is not str:
                raise AttachError(f"not a handle of a mapped file: {name} is no str")
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
            Values may have changed under their views.
        """
        if self.handle.file.is_written_to():
            raise DamagedImageError(f"{self.handle.label} was written to while its frames were mapped")

    def begins_with(self, token: bytes) -> bool:
        return self._bytes[: len(token)].tobytes() == token


# One map per process and file, for as long as somebody uses it.
_mapped: "WeakValueDictionary[FileHandle, FileMap]" = WeakValueDictionary()


def map_users_file(path: str | os.PathLike[str], label: str) -> FileMap:
    """The file as it is now."""
    with open(path, "rb", buffering=0) as file:
        identity = FileIdentity.of(os.path.realpath(path), file.fileno(), ours=False)
    return attach_file(FileHandle(identity, label, "", segments.boot_id()))


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
        found = FileMap(handle, mapped.map_file(handle.file))
    except (OSError, ValueError) as error:
        raise AttachError(f"{handle.label} cannot be mapped: {error}") from error
    if not found.begins_with(handle.token.encode()):
        raise AttachError(f"{handle.label} is gone: its owner closed it")
    _mapped[handle] = found
    return found


def view_of(
    handle: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
) -> SharedArray:
    """A view of a mapped file again, in another process."""
    return attach_file(FileHandle.from_json(handle)).at(offset, shape, strides, np.dtype(dtype))
