"""Files mapped read-only: which file it was, and its bytes as memory.

Covers: the identity of a file, refusing another one in its place, locks that last as long as the
map, which files are mapped now. Does not cover: what the bytes are (``segments``, ``filemaps``), files
that are kept for later (``disk``), when pages are read (``pages``).
"""

import fcntl
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sharedmask.errors import AttachError

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True)
class FileIdentity:
    """What tells a file from others, and from itself at another time."""

    path: str
    dev: int
    ino: int
    nbytes: int
    mtime_ns: int
    """0 for a file of ours: it never changes, and its time says when it was last used."""
    ours: bool

    @classmethod
    def of(cls, path: str, fd: int, *, ours: bool) -> "FileIdentity":
        """That of the file behind ``fd``, which was opened as ``path``."""
        facts = os.fstat(fd)
        changed = 0 if ours else facts.st_mtime_ns
        return cls(path, facts.st_dev, facts.st_ino, facts.st_size, changed, ours)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "FileIdentity":
        """The opposite of :meth:`to_dict`.

        Raises
        ------
        AttachError
            If it is none.
        """
        try:
            identity = cls(**given)
        except TypeError as error:
            raise AttachError(f"not the identity of a file: {error}") from error
        for name, kind in cls.__annotations__.items():
            if type(getattr(identity, name)) is not kind:
                raise AttachError(f"not the identity of a file: {name} is no {kind.__name__}")
        return identity

    def to_dict(self) -> dict[str, Any]:
        """What JSON has."""
        return asdict(self)

    @property
    def is_nameless(self) -> bool:
        """Whether the path is that of its owner's descriptor."""
        return self.path.startswith("/proc/")

    def is_written_to(self) -> bool:
        """Whether the user's file has changed since, in its place.

        A file that was replaced has not: the old one stays until the last map of it goes.
        """
        if self.ours:
            return False
        try:
            now = os.stat(self.path)
        except OSError:
            return False
        return now.st_ino == self.ino and (now.st_size, now.st_mtime_ns) != (self.nbytes, self.mtime_ns)

    def check(self, fd: int) -> None:
        """Refuse another file.

        Raises
        ------
        AttachError
            The file behind ``fd`` is not this one, or has changed since.
        """
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise AttachError(f"{self.path} is no file")
        if self.ours and (facts.st_uid != os.geteuid() or facts.st_mode & 0o077):
            raise AttachError(f"{self.path} is open to other users")
        if FileIdentity.of(self.path, fd, ours=self.ours) != self:
            raise AttachError(f"{self.path} is another file now, or has changed, since it was shared")


_maps: "WeakKeyDictionary[mmap.mmap, FileIdentity]" = WeakKeyDictionary()


def map_file(identity: FileIdentity) -> mmap.mmap:
    """The bytes of the file, read-only.

    A file of ours that has a name stays locked (shared) for as long as the map exists: a map of Python
    keeps a copy of the descriptor, and with it the lock.

    Raises
    ------
    AttachError
        The file is gone, is another one, or has changed.
    """
    kept = identity.ours and not identity.is_nameless
    try:
        fd = os.open(identity.path, _OPEN | (os.O_NOFOLLOW if kept else 0))
    except OSError as error:
        raise AttachError(f"{identity.path} cannot be opened: {error.strerror}") from error
    try:
        if kept:
            fcntl.flock(fd, fcntl.LOCK_SH)
        identity.check(fd)
        buffer = mmap.mmap(fd, identity.nbytes, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)
    if kept and hasattr(mmap, "MADV_RANDOM"):
        # Rows are picked out here and there: what the kernel reads ahead is mostly not wanted.
        buffer.madvise(mmap.MADV_RANDOM)
    _maps[buffer] = identity
    return buffer


def is_mapped(path: str | os.PathLike[str]) -> bool:
    """Whether this process looks at the file of that name through a map."""
    try:
        facts = os.stat(path)
    except OSError:
        return False
    return any((one.dev, one.ino) == (facts.st_dev, facts.st_ino) for one in list(_maps.values()))
