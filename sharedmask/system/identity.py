"""Which file it is: what tells a file from others, and from itself at another time.

Covers: a file as it was at one moment, whether it still is, what of it enters fingerprints. Does not cover:
what is done about a file that changed (``source``), files that are mapped (``mapped_file``).
"""

import os
import stat
import time
from hashlib import blake2b, file_digest
from io import FileIO, RawIOBase
from typing import Any, Self

from sharedmask.errors import MissingFileError
from sharedmask.records import dataclass
from sharedmask.remote.addresses import url_of
from sharedmask.system import inputs, settings

_TICK = 2.0  # seconds in which a file may be changed twice and have one time for both
_EDGE = 64 * 1024  # of the first and last bytes of a file, digested in its fingerprint


@dataclass(frozen=True)
class FileState:
    """A file as it was at one moment.

    The time of the last change of its inode tells what programs hide that restore the time of modification
    (``rsync -t``, ``tar``, ``touch -r``). Device numbers are not compared: a file on a share has another one
    on each machine, and images travel. 0 stands for what does not count.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     state = FileState.now(file.name)
    ...     before = state.has_changed()
    ...     _ = os.write(file.fileno(), b"more")
    ...     before, state.has_changed()
    (False, True)
    """

    path: str
    ino: int
    nbytes: int
    mtime_ns: int
    ctime_ns: int

    is_remote = False
    """Whether it lies on a server."""

    @classmethod
    def now(cls, path: str | os.PathLike[str]) -> Self:
        """What the file is.

        With the setting ``fingerprint="content"`` size and time of modification only: other facts mean
        nothing where that is needed.

        Raises MissingFileError.
        """
        try:
            return cls(os.fspath(path), *_read(path, by_inode=settings.current().fingerprint == "stat"))
        except FileNotFoundError as error:
            raise MissingFileError(f"{path} does not exist") from error

    def has_changed(self) -> bool:
        """Whether the path leads to another file now, to none, or the file was written to."""
        return self._now() != self._known

    @property
    def _known(self) -> tuple[int, int, int, int]:
        return self.ino, self.nbytes, self.mtime_ns, self.ctime_ns

    def _now(self) -> tuple[int, int, int, int] | None:
        try:
            return _read(self.path, by_inode=bool(self.ino))
        except OSError:
            return None


def _read(path: str | os.PathLike[str], by_inode: bool) -> tuple[int, int, int, int]:
    """Inode, size and times."""
    facts = os.stat(path)
    ino, ctime_ns = (facts.st_ino, facts.st_ctime_ns) if by_inode else (0, 0)
    return ino, facts.st_size, facts.st_mtime_ns, ctime_ns


@dataclass(frozen=True)
class ObjectState(FileState):
    """An object on a server as it was at one moment, by what its server says of it."""

    tag: str
    is_remote = True

    @classmethod
    def of(cls, url: str, head: Any) -> Self:
        """What it is, by what its server said."""
        size = head.version.nbytes
        return cls(url, 0, -1 if size is None else size, 0, 0, head.identity)

    def has_changed(self) -> bool:
        """Whether it was another one when it was last looked at, as who reads it does after the last byte."""
        try:
            return self.of(self.path, inputs.seen(self.path)) != self
        except MissingFileError:
            return True


def state_of(path: str | os.PathLike[str]) -> FileState:
    """What a file is, here or on its server; of unknown size, -1 bytes.

    Raises MissingFileError.
    """
    url = url_of(path)
    return FileState.now(path) if url is None else ObjectState.of(url, inputs.looked_at(url))


def fingerprint(file: RawIOBase) -> bytes:
    """Bytes that are others when the file is another one, or was written to.

    By default of its real path, inode, size, times and first and last 64 KiB; of an object on a server, of
    its address, tag, size and time; with the setting ``fingerprint="content"`` of all that it holds,
    wherever it is.
    """
    if settings.current().fingerprint == "content":
        return content(file)
    if not isinstance(file, FileIO):
        remote: Any = file
        return bytes(remote.identity)
    facts = os.fstat(file.fileno())
    times = facts.st_mtime_ns, facts.st_ctime_ns
    said = repr((os.path.realpath(file.name), facts.st_ino, facts.st_size, *times)).encode()
    if facts.st_size <= 2 * _EDGE:
        return said + content(file)
    first = file.read(_EDGE)
    file.seek(facts.st_size - _EDGE)
    return said + first + file.read(_EDGE)


def content(file: RawIOBase) -> bytes:
    """Digest of all that the file holds, wherever it is and whenever it was written."""
    global _latest
    mark = settled_mark(file.fileno()) if isinstance(file, FileIO) else ()
    if mark and mark == _latest[0]:
        return _latest[1]
    is_small = bool(mark) and mark[0] <= 2 * _EDGE  # for which no buffer is made
    digest = (blake2b(file.readall()) if is_small else file_digest(file, "blake2b")).digest()
    if mark and mark == settled_mark(file.fileno()):
        _latest = mark, digest
    return digest


_latest: tuple[tuple[int, ...], bytes] = (), b""
"""Of the last file: of very many small ones both of the above are asked for, one after the other."""


def settled_mark(file: int | str) -> tuple[int, ...]:
    """What tells a file, by descriptor or path, from others and from itself at another time.

    Empty while that may tell nothing of what it holds.
    """
    if settings.current().fingerprint != "stat":
        return ()
    facts = os.stat(file)
    if abs(time.time() - max(facts.st_mtime, facts.st_ctime)) <= _TICK or not stat.S_ISREG(facts.st_mode):
        return ()
    return facts.st_size, facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns
