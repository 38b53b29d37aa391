"""The disk store: rows of images in files that stay for the next run.

Covers: where they are, building each once, finding it again, files that have no name (``spill``), what
all may take together. Does not cover: whose turn it is, what a killed process left (``cache``), how rows
are made (``rechunk``), what attaching checks (``segment``, ``mapped_file``), when an image goes to disk
(``rows``).

A file is a container, like a segment, under a name that says of which image: ``sharedmask-KEY.rows``. Who
uses it holds a shared lock on it for as long as its map exists.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from sharedmask.errors import AttachError, SegmentError
from sharedmask.records import dataclass
from sharedmask.storage import container
from sharedmask.storage.cache import CacheFolder
from sharedmask.storage.container import Geometry
from sharedmask.storage.mapped_file import FileIdentity
from sharedmask.storage.segment import ExternalArrays
from sharedmask.system import files, locks, platform, settings
from sharedmask.system.files import DISK_FOLDER, spill_folder
from sharedmask.system.platform import Folder
from sharedmask.system.units import format_bytes
from sharedmask.system.usage import nameless_bytes
from sharedmask.typing import Array, NDArray

Write = Callable[[str, int, Array], None]
"""Takes the name of an array, the number of its first row, and rows."""
Fill = Callable[[Write], Mapping[str, Any]]
"""Writes all rows, and returns what is to be remembered of them."""

KIND = "disk"
_LAYOUT = 2
_LABEL_LENGTH = 200
# Pieces start on their way to the disk as they are written; never is more than this unwritten.
_PIECE_BYTES = 16 * 2**20
_DIRTY_BYTES = 256 * 2**20


def directory() -> Path:
    """Where this user's files are: a directory of our own, so that the one around it may hold anything."""
    return spill_folder() / f"{DISK_FOLDER}{platform.user_name()}"


def _folder() -> CacheFolder:
    return CacheFolder(directory(), "the directory for images on disk", "sharedmask-", 32, "rows")


def _opened() -> contextlib.AbstractContextManager[Folder]:
    path = directory()
    if not path.parent.is_dir():
        raise SegmentError(f"the directory for images on disk {path.parent} does not exist")
    return _folder().opened()


def key_of(fingerprint: str, voxels: NDArray[np.intp] | None, dtype: np.dtype[Any]) -> str:
    """The name of these rows: 32 hexadecimal digits that change when the rows would."""
    digest = blake2b(f"{_LAYOUT} {fingerprint} {dtype.str}".encode(), digest_size=16)
    if voxels is not None:
        digest.update(np.ascontiguousarray(voxels, np.int64).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class OpenRows:
    """A complete file: what it is, its arrays, what was remembered when it was built."""

    elsewhere: ExternalArrays
    meta: dict[str, Any]
    found: bool
    """It was there before."""


@contextlib.contextmanager
def rows_file(key: str, geometry: Geometry, label: str, fill: Fill, copied: int = 0) -> Iterator[OpenRows]:
    """The rows of ``key`` (:func:`key_of`), found or built; in use until the end of the ``with`` block.

    ``fill`` is called only if there is no such file, by one process, for which others wait; it takes
    ``copied`` bytes on the same disk on the way. ``label`` says of which image, for listings.

    Raises SegmentError: there is no room on the disk or within the limit, or the directory cannot be used.
    """
    cache = _folder()
    with contextlib.ExitStack() as using:
        read = partial(_complete, using, key, geometry)
        with _opened():
            cache.sweep()
            fd = cache.find(key, read)
            found = fd is not None
            if fd is None:
                with cache.turn(key):
                    fd = cache.find(key, read)  # built while we waited
                    fd = _build(using, key, geometry, label, fill, copied) if fd is None else fd
        facts, _ = container.read_header(fd)
        identity = FileIdentity.of(str(cache.path / cache.name(key)), fd, ours=True)
        yield OpenRows(ExternalArrays(identity, facts["arrays"], KIND), facts["meta"], found)


def _complete(using: contextlib.ExitStack, key: str, geometry: Geometry, fd: int) -> int:
    """Another descriptor of a file that holds what it should, for as long as it is in use."""
    expected = container.layout(geometry)
    facts, _ = container.read_header(fd)
    same = (facts.get("token"), facts.get("arrays")) == (key, expected.specs)
    if not same or not isinstance(facts.get("meta"), dict) or os.fstat(fd).st_size != expected.nbytes:
        raise AttachError("its arrays are others")
    mine = os.dup(fd)
    using.callback(locks.close, mine)
    locks.lock(mine, locks.SHARED)  # a lock that is a file goes with the first of them
    return mine


# --- building ------------------------------------------------------------------------------------


def _build(
    using: contextlib.ExitStack, key: str, geometry: Geometry, label: str, fill: Fill, copied: int
) -> int:
    """Build the file of ``key``, whose lock we hold; a descriptor of it, locked while in use."""
    layout, path = container.layout(geometry), directory() / _folder().name(key)
    _make_room(layout.nbytes, layout.nbytes + copied, label)
    with disk_full_as_segment_error(label, layout.nbytes), files.atomic_write(path) as temporary:
        fd = os.open(temporary, os.O_RDWR | platform.OPEN)
        using.callback(locks.close, fd)
        platform.reserve(fd, 0, layout.nbytes)
        meta = {**fill(_writer(fd, layout.specs)), "label": label[-_LABEL_LENGTH:]}
        facts = {"token": key, "arrays": layout.specs, "meta": meta}
        files.pwrite_all(fd, container.header(facts, layout.header_bytes), 0)
        platform.set_mode(fd, 0o400)
        locks.lock(fd, locks.SHARED)
        platform.let_go(fd)
    platform.take_up(fd, path)
    return fd


@contextlib.contextmanager
def disk_full_as_segment_error(label: str, nbytes: int) -> Iterator[None]:
    """Say of which file there was no room for what, and where."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        other = f" ({error.strerror}); SHAREDMASK_TMPDIR names another folder"
        raise SegmentError(_no_room(label, nbytes) + other) from error


def _writer(fd: int, arrays: container.Specs) -> Write:
    """Writes rows, and has the disk begin with them at once."""
    dirty = 0

    def write(array: str, start: int, rows: Array) -> None:
        nonlocal dirty
        place = arrays[array]["offset"] + start * rows[:1].nbytes
        view = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        for begin in range(0, len(view), _PIECE_BYTES):
            piece = view[begin : begin + _PIECE_BYTES]
            files.pwrite_all(fd, piece, place + begin)
            dirty += len(piece)
            if dirty >= _DIRTY_BYTES:
                platform.sync_data(fd)
                dirty = 0
            else:
                # On Linux this starts writing; what is written already may leave the page cache.
                platform.advise_file(fd, place + begin, len(piece), "POSIX_FADV_DONTNEED")

    return write


# --- room ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeptRows:
    """A complete file."""

    name: str
    label: str
    nbytes: int
    used: float
    """When it was last used, in seconds since the epoch."""


def entries() -> list[KeptRows]:
    """The complete files, least recently used first."""
    cache = _folder()
    ours = [entry for entry in cache.entries() if cache.is_ours(entry.name)]
    return [KeptRows(entry.name, _label(entry.name), entry.nbytes, entry.used / 1e9) for entry in ours]


def _label(name: str) -> str:
    with contextlib.suppress(OSError, KeyError, TypeError), open(directory() / name, "rb") as file:
        return str(container.read_header(file.fileno())[0]["meta"]["label"])
    return ""


def remove_unused(name: str | None = None) -> list[str]:
    """Remove the complete files that nobody uses, or the one of that name; the names of those removed."""
    cache = _folder()
    return [one.name for one in cache.entries() if name in (None, one.name) and cache.remove(one.name)]


def sweep() -> list[str]:
    """Remove what killed processes left half built; the names of what was removed."""
    return _folder().sweep()


def scratch(label: str, nbytes: int, reserve: bool) -> int:
    """A descriptor of a new file of ``nbytes`` bytes that has no name: it goes with its last user.

    Raises SegmentError: there is no room within the limit or, to ``reserve`` it all now, on the disk.
    """
    with _opened():
        _folder().sweep()
        _make_room(nbytes, nbytes if reserve else 0, label)
        fd = files.scratch(directory())
    try:
        with disk_full_as_segment_error(label, nbytes):
            if reserve:
                platform.reserve(fd, 0, nbytes)
            else:
                os.ftruncate(fd, nbytes)
    except BaseException:
        locks.close(fd)
        raise
    return fd


def _make_room(nbytes: int, on_disk: int, label: str) -> None:
    """Remove the least recently used files until there is room, within the limit and on the disk."""
    limit, nameless = settings.current().spill_limit, nameless_bytes(directory())
    held, _ = _folder().make_room(lambda left: left + nameless + nbytes <= limit and _free() >= on_disk)
    if held + nameless + nbytes > limit:
        raise SegmentError(
            f"{label} takes {format_bytes(nbytes)} on disk: images and frames in use there take "
            f"{format_bytes(held + nameless)} of the {format_bytes(limit)} that spill_limit allows"
        )
    if _free() < on_disk:
        raise SegmentError(_no_room(label, on_disk))


def _no_room(label: str, nbytes: int) -> str:
    there = f"{format_bytes(nbytes)} are needed, {format_bytes(_free())} are free"
    return f"{directory()} has no room for {label}: {there}"


def _free() -> int:
    return platform.free_disk(directory())
