"""The cache: a folder of results, bounded, shared by processes.

Covers: finding an entry or computing it once, the least recently used out, counts, clearing. Does
not cover: what identifies a result (``results``), the bytes of an entry (``entries``).

::

    <key>.part     being computed; flocked by who does so, others wait. Unlocked: its process died
       │ rename, when complete
    <key>.result   an entry; its access time is set at each use, the oldest goes first
    counts         hits, misses and bytes of all processes, updated under its lock

All of it is in the folder ``sharedmask`` of the place that the user gives. What is removed has one
of these names and our first bytes.
"""

import contextlib
import fcntl
import logging
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from sharedmask.errors import ParameterError, SharedMaskWarning
from sharedmask.storage import entries
from sharedmask.system import files, settings
from sharedmask.system.settings import Settings
from sharedmask.system.units import format_bytes
from sharedmask.typing import Array

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[0-9a-f]{40}\.(result|part)")
_COUNTS_MAGIC = b"smcounts"


@dataclass(frozen=True)
class Counts:
    """What happened in a cache since it was made or cleared, in all processes."""

    hits: int = 0
    misses: int = 0
    """Computations: what several processes wait for counts once."""
    damaged: int = 0
    evicted: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


_COUNTS = struct.Struct(f"<8s{len(fields(Counts))}q")


class Stats(NamedTuple):
    """A cache as it is now."""

    folder: Path
    n_entries: int
    nbytes: int
    limit: int
    counts: Counts


class _Found(NamedTuple):
    path: str
    nbytes: int
    used: int
    """Time of the last use, in nanoseconds."""


class Cache:
    """Results in ``<location>/sharedmask``, at most ``limit`` bytes of them.

    Parameters
    ----------
    location : str or path
        A directory, which may hold anything else besides; made if only its parent exists.
    limit : int, optional
        Bytes; default: the setting ``cache_limit``.

    Raises
    ------
    ParameterError
        The parent of ``location`` does not exist.

    Examples
    --------
    >>> import tempfile
    >>> key = 40 * "0"
    >>> with tempfile.TemporaryDirectory() as location:
    ...     cache = Cache(location)
    ...     first, was_there = cache.get_or_compute(key, lambda: [np.arange(3)])
    ...     again, is_there = cache.get_or_compute(key, lambda: [np.arange(3)])
    ...     cache.stats().counts.hits, was_there, is_there, again
    (1, False, True, [array([0, 1, 2])])
    """

    def __init__(self, location: str | os.PathLike[str], limit: int | None = None) -> None:
        place = Path(location).expanduser().absolute()
        if not place.parent.is_dir():
            raise ParameterError(f"the cache {place} cannot be made: there is no directory {place.parent}")
        self.folder = place / "sharedmask"
        self.limit = settings.current().cache_limit if limit is None else limit

    @classmethod
    def of(cls, memory: Any, knobs: Settings | None = None) -> "Cache | None":
        """The cache that an argument ``memory`` means; None if results are not kept.

        Parameters
        ----------
        memory : str, path, joblib.Memory, None or False
            None: the setting ``cache_dir``. Of a joblib.Memory only the location is used.
        knobs : Settings, optional
            Where they have been read already.
        """
        if memory is None:
            memory = (knobs or settings.current()).cache_dir
        memory = getattr(memory, "location", memory)
        if memory is None or memory is False:
            return None
        if not isinstance(memory, str | os.PathLike):
            raise ParameterError(f"memory={memory!r} is no directory, joblib.Memory, None or False")
        return cls(memory)

    def get_or_compute(
        self, key: str, compute: Callable[[], list[Array]], is_valid: Callable[[], bool] = lambda: True
    ) -> tuple[list[Array], bool]:
        """The arrays under ``key``, computed if they are not there yet, and whether they were.

        Of several processes and threads that ask at once, one computes.

        Parameters
        ----------
        key : str
            40 hexadecimal digits.
        compute : callable
            Its errors are the caller's; nothing is kept then.
        is_valid : callable
            Asked after the computation: whether its results may be kept.
        """
        found = self._read(key)
        if found is None:
            with self._exclusive_part(key) as part:
                found = self._read(key)  # by who had the turn before
                if found is None:
                    results = compute()
                    self._count(misses=1)
                    if part is not None and is_valid():
                        self._keep(part, key, results)
                    return results, False
        self._count(hits=1, bytes_read=sum(array.nbytes for array in found))
        return found, True

    def stats(self) -> Stats:
        """How many entries there are, what they take, and the counts of all processes."""
        found = [entry for entry in self._files() if entry.path.endswith(".result")]
        with self._counting(os.O_RDONLY) as fd:
            counts = _read_counts(fd)
        return Stats(self.folder, len(found), sum(entry.nbytes for entry in found), self.limit, counts)

    def clear(self) -> int:
        """Remove all entries and the counts, and nothing else; returns the number of entries."""
        removed = sum(_remove(entry.path) for entry in self._files())
        with self._counting(os.O_RDONLY) as fd:
            if fd is not None and os.pread(fd, 8, 0) == _COUNTS_MAGIC:
                (self.folder / "counts").unlink(missing_ok=True)
        return removed

    def _check_owner(self) -> None:
        """Refuse a folder in which others could put results, or hold locks."""
        facts = os.stat(self.folder, follow_symlinks=False)
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            mode = stat.S_IMODE(facts.st_mode)
            raise PermissionError(f"others may write to it: uid {facts.st_uid}, mode {mode:o}")

    # --- entries ---

    def _path(self, key: str, ending: str) -> str:
        return os.path.join(self.folder, f"{key}.{ending}")

    def _read(self, key: str) -> list[Array] | None:
        """The arrays of an entry; None if there is none, or none that is whole."""
        path = self._path(key, "result")
        found = None
        with contextlib.suppress(OSError), FileIO(path) as file:
            self._check_owner()
            found = entries.read(file, key)
            if found is not None:
                os.utime(path)
            elif files.is_named(None, path, file.fileno()):
                _log.warning("%s is damaged: its result is computed again", path)
                self._count(damaged=1)
                os.unlink(path)
        return found

    @contextlib.contextmanager
    def _exclusive_part(self, key: str) -> Iterator[FileIO | None]:
        """The file that becomes the entry, ours alone; None where none can be made."""
        path = self._path(key, "part")
        part = self._claimed(path)
        if part is None:
            yield None
            return
        with part:
            try:
                yield part
            finally:
                with contextlib.suppress(OSError):
                    if files.is_named(None, path, part.fileno()):
                        os.unlink(path)
                fcntl.flock(part, fcntl.LOCK_UN)  # closing is not enough if the process was forked

    def _claimed(self, path: str) -> FileIO | None:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._check_owner()
            return FileIO(files.lock(None, path), "r+b")
        except OSError as error:
            self._tell(error)
            return None

    def _keep(self, part: FileIO, key: str, results: list[Array]) -> None:
        needed = sum(array.nbytes for array in results)
        if needed > self.limit:
            self._tell(
                f"a result of {format_bytes(needed)} is more than cache_limit, {format_bytes(self.limit)}"
            )
            return
        try:
            self._make_room(needed)
            part.truncate(0)  # what a process left that died here
            written = entries.write(part, key, results)
            os.utime(part.fileno())
            os.rename(self._path(key, "part"), self._path(key, "result"))
            self._make_room(0)
        except OSError as error:
            self._tell(error)
            return
        self._count(bytes_written=written)

    def _make_room(self, needed: int) -> None:
        """Remove what dead processes began, and the entries not used for longest."""
        found = sorted(self._files(), key=lambda entry: entry.used)
        held, evicted = needed + sum(entry.nbytes for entry in found), 0
        for entry in found:
            begun = entry.path.endswith(".part")
            if (begun or held > self.limit) and _remove(entry.path):
                held -= entry.nbytes
                evicted += not begun
        if evicted:
            self._count(evicted=evicted)

    def _files(self) -> list[_Found]:
        """Our files, by their names."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as listed:
            for item in listed:
                if _NAME.fullmatch(item.name) and item.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        facts = item.stat(follow_symlinks=False)
                        found.append(_Found(item.path, facts.st_size, facts.st_atime_ns))
        return found

    def _tell(self, problem: object) -> None:
        """Once per process and cache: the results are right, only the next call takes as long."""
        if self.folder not in _told:
            _told.add(self.folder)
            said = f"results are not cached in {self.folder}: {problem}"
            warnings.warn(said, SharedMaskWarning, stacklevel=2)

    # --- counts ---

    @contextlib.contextmanager
    def _counting(self, flags: int) -> Iterator[int | None]:
        """The file of counts, locked; None where it cannot be opened."""
        try:
            self._check_owner()
            fd = os.open(self.folder / "counts", flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError:
            yield None
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _count(self, **more: int) -> None:
        with self._counting(os.O_RDWR | os.O_CREAT) as fd, contextlib.suppress(OSError):
            if fd is not None and os.pread(fd, 8, 0) in (b"", _COUNTS_MAGIC):
                now = _read_counts(fd)
                added = (getattr(now, field.name) + more.get(field.name, 0) for field in fields(Counts))
                os.pwrite(fd, _COUNTS.pack(_COUNTS_MAGIC, *added), 0)


_told: set[Path] = set()


def _read_counts(fd: int | None) -> Counts:
    content = b"" if fd is None else os.pread(fd, _COUNTS.size, 0)
    if len(content) < _COUNTS.size or not content.startswith(_COUNTS_MAGIC):
        return Counts()
    return Counts(*_COUNTS.unpack(content)[1:])


def _remove(path: str) -> bool:
    """Remove a file of ours, unless it is being written; whether it was removed."""
    try:
        with FileIO(path) as file:
            if path.endswith(".part"):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not entries.MAGIC.startswith(file.read(len(entries.MAGIC))) or not files.is_named(
                None, path, file.fileno()
            ):
                return False
            os.unlink(path)
            return True
    except OSError:
        return False
