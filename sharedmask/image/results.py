"""Results: those of requests that were carried out before.

Covers: what identifies a result, whether the image is still what it was, telling callbacks of a
result that was found, the cache: a folder of results and its counts. Does not cover: what any such folder
does (``storage.cache``), carrying requests out (``signals``).

A key is a digest of everything that the numbers depend on: the image's fingerprint, the regions,
the parameters and the versions of what computes. How the work is done is no part of it, because the
numbers do not depend on that.
"""

import contextlib
import functools
import os
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np

from sharedmask._version import __version__
from sharedmask.compute.progress import progress_to
from sharedmask.compute.request import Request
from sharedmask.compute.signals import notify
from sharedmask.errors import AttachError, ParameterError, SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.sources.source import Source
from sharedmask.storage import container
from sharedmask.storage.cache import CacheFolder
from sharedmask.system import files, locks, platform, settings
from sharedmask.system.settings import Settings
from sharedmask.system.units import format_bytes
from sharedmask.typing import Array, NDArray

Computation = Callable[[], list[Array]]

_NUMBERS = 3  # of the way in which results come about; another one makes all entries miss
HOW = frozenset({"n_jobs", "prefer", "given", "progress", "on_result", "label", "operation"})
"""Fields of a request that say how it is carried out: the only ones that are not in the key."""

# A file that is written twice within one tick of the kernel's clock has one time for both.
_TICK = 0.02
_COARSE_TICK = 2.0


@dataclass(frozen=True)
class Lookup:
    """A request of an image, and all that its numbers depend on."""

    source: Source
    fingerprint: str
    """The source's, taken before the image was read."""
    request: Request
    voxels: NDArray[np.intp] | None = None
    """Those that the image holds, where a request for others would be refused."""

    @property
    def identity(self) -> tuple[Any, ...]:
        """The image and what is asked of it, out of strings and numbers."""
        request, dtype = self.request, self.request.dtype
        asked = {one.name: getattr(request, one.name) for one in fields(request) if one.name not in HOW}
        asked["regions"] = request.regions.digest
        if request.probes is None:
            del asked["probes"]
        if not (dtype is None or (isinstance(dtype, str) and dtype == "auto")):
            asked["dtype"] = np.dtype(dtype)  # which has many names
        image = self.fingerprint, self.source.ndim, self.source.scaled_dtype, self.voxels
        identity: tuple[Any, ...] = _plain((image, asked))
        return identity

    @property
    def key(self) -> str:
        """40 hexadecimal digits that differ where the numbers may."""
        parts = self.identity, _versions(self.request.cleaning.needed)
        return blake2b(repr(parts).encode(), digest_size=20).hexdigest()

    def notify(self, results: list[Array]) -> None:
        """Call the request's callbacks as if the results had just been computed."""
        request = self.request
        n_regions = len(request.regions)
        with progress_to(request.progress, n_regions, "mask") as tell:
            tell(n_regions)
        notify(results, request)


def get_or_compute(cache: "Cache", lookup: Lookup, compute: Computation) -> list[Array]:
    """What ``compute`` returns, or returned for the same request of the same image."""

    def settled() -> list[Array]:
        time.sleep(_unsettled(lookup.source))
        return compute()

    results, was_there = cache.get_or_compute(lookup.key, settled, lambda: _is_unchanged(lookup))
    if was_there:
        lookup.notify(results)
    return results


def is_settled(source: Source) -> bool:
    """Whether its files, which are about to be read, cannot change any more without a trace."""
    return not _unsettled(source)


def _is_unchanged(lookup: Lookup) -> bool:
    with contextlib.suppress(OSError):  # the file is gone
        return lookup.source.fingerprint == lookup.fingerprint
    return False


def _unsettled(source: Source) -> float:
    """Seconds until a further change of the files would change their time."""
    with contextlib.suppress(OSError):
        facts = map(os.stat, source.paths)
        latest = max((max(one.st_mtime_ns, one.st_ctime_ns) for one in facts), default=0)
        tick = _TICK if latest % 10**9 else _COARSE_TICK
        return max(0.0, tick - abs(time.time() - latest / 1e9))
    return 0.0


def _plain(value: Any) -> Any:
    """The same out of strings and numbers, whose ``repr`` has all their bits."""
    if isinstance(value, np.ndarray):
        content = blake2b(np.ascontiguousarray(value).tobytes(), digest_size=20).hexdigest()
        return value.dtype.str, value.shape, content
    if isinstance(value, np.dtype):
        return value.str
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be part of a key")


@functools.cache
def _versions(cleaning: bool) -> tuple[str | int, ...]:
    """Of what the last bits may depend on."""
    own = (_NUMBERS, __version__, np.__version__, nibabel.__version__)
    if not cleaning:
        return own
    from importlib.metadata import version  # nilearn and scipy themselves cost a second to import

    return *own, version("nilearn"), version("scipy")


# --- the cache -----------------------------------------------------------------------------------

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
        self._kept = CacheFolder(self.folder, "the cache", "", 40, "result", refused=0o022)
        self.limit = settings.current().cache_limit if limit is None else limit

    @classmethod
    def of(cls, memory: Any, knobs: Settings | None = None) -> "Cache | None":
        """The cache that an argument ``memory`` means; None if results are not kept.

        ``memory``: None: the setting ``cache_dir``. Of a joblib.Memory only the location is used.
        ``knobs``: where they have been read already.
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

        ``key``: 40 hexadecimal digits.
        ``compute``: its errors are the caller's; nothing is kept then.
        ``is_valid``: asked after the computation: whether its results may be kept.
        """
        found = self._read(key)
        if found is None:
            with self._turn(key) as (can_keep, found):  # found: by who had the turn before
                if found is None:
                    results = compute()
                    self._count(misses=1)
                    if can_keep and is_valid():
                        self._keep(key, results)
                    return results, False
        self._count(hits=1, bytes_read=sum(array.nbytes for array in found))
        return found, True

    def stats(self) -> Stats:
        """How many entries there are, what they take, and the counts of all processes."""
        found = self._kept.entries()
        with self._counting(os.O_RDONLY) as fd:
            counts = _read_counts(fd)
        return Stats(self.folder, len(found), sum(entry.nbytes for entry in found), self.limit, counts)

    def clear(self) -> int:
        """Remove all entries and the counts, and nothing else; returns the number of entries."""
        removed = sum(self._kept.remove(entry.name) for entry in self._kept.entries())
        with self._counting(os.O_RDONLY) as fd:
            if fd is not None and platform.pread(fd, 8, 0) == _COUNTS_MAGIC:
                (self.folder / "counts").unlink(missing_ok=True)
        return removed

    # --- entries ---

    def _read(self, key: str) -> list[Array] | None:
        """The arrays of an entry; None if there is none, or none that can be used."""
        with contextlib.suppress(OSError):
            return self._kept.find(key, partial(self._arrays, key))
        return None

    def _arrays(self, key: str, fd: int) -> list[Array]:
        try:
            return container.read(fd, key)
        except AttachError:
            self._count(damaged=1)
            raise
        finally:
            locks.lock(fd, locks.NONE)  # what is mapped stays, whether or not the entry goes

    @contextlib.contextmanager
    def _turn(self, key: str) -> Iterator[tuple[bool, list[Array] | None]]:
        """Our turn with an entry: whether it can be kept, and its arrays if it is there by now."""
        with contextlib.ExitStack() as stack:
            turn: tuple[bool, list[Array] | None] = False, None
            try:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._kept.turn(key))
                turn = True, self._kept.find(key, partial(self._arrays, key))
            except OSError as error:
                self._tell(error)
            yield turn

    def _keep(self, key: str, results: list[Array]) -> None:
        needed = container.projected(container.geometry_of(results))
        if needed > self.limit:
            self._tell(
                f"a result of {format_bytes(needed)} is more than cache_limit, {format_bytes(self.limit)}"
            )
            return
        try:
            self._kept.sweep()
            self._make_room(needed)
            path = self.folder / self._kept.name(key)
            with files.atomic_write(path) as temporary, open(temporary, "wb", buffering=0) as file:
                written = container.write(file.fileno(), results, key)
            self._make_room(0)
        except OSError as error:
            self._tell(error)
            return
        self._count(bytes_written=written)

    def _make_room(self, needed: int) -> None:
        """Remove the entries not used for longest."""
        _, evicted = self._kept.make_room(lambda held: held + needed <= self.limit)
        if evicted:
            self._count(evicted=evicted)

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
        with contextlib.ExitStack() as stack:
            fd = None
            with contextlib.suppress(OSError):
                if self.folder.is_dir():
                    folder = stack.enter_context(self._kept.opened())
                    fd = platform.open_at(folder, "counts", flags | platform.NOFOLLOW, 0o666)
                    stack.callback(locks.let_go, fd)
                    locks.lock(fd, locks.EXCLUSIVE)
            yield fd

    def _count(self, **more: int) -> None:
        with self._counting(os.O_RDWR | os.O_CREAT) as fd, contextlib.suppress(OSError):
            if fd is not None and platform.pread(fd, 8, 0) in (b"", _COUNTS_MAGIC):
                now = _read_counts(fd)
                added = (getattr(now, field.name) + more.get(field.name, 0) for field in fields(Counts))
                platform.pwrite(fd, _COUNTS.pack(_COUNTS_MAGIC, *added), 0)


_told: set[Path] = set()


def _read_counts(fd: int | None) -> Counts:
    content = b"" if fd is None else platform.pread(fd, _COUNTS.size, 0)
    if len(content) < _COUNTS.size or not content.startswith(_COUNTS_MAGIC):
        return Counts()
    return Counts(*_COUNTS.unpack(content)[1:])
