"""The disk store: rows of images in files that stay for the next run.

Covers: where they are, building each once, finding it again, files that have no name (``spill``), what
all may take together, what a killed process left. Does not cover: how rows are made (``rechunk``), what
attaching checks (``segment``, ``mapped_file``), when an image goes to disk (``rows``).

A file is a header page and arrays, like a segment, under a name that says of which image::

    sharedmask-KEY.lock   held by the one process that builds it; others wait for it
    sharedmask-KEY.part   what it has built so far; without a holder of the lock it is rubbish
    sharedmask-KEY.rows   complete: the header was written last, and then it got this name

Who uses a file holds a shared lock on it, for as long as its map exists. Only a file that is
nobody's goes when room is needed, and only if name, owner and first bytes are ours.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import AttachError, SegmentError
from sharedmask.storage import container
from sharedmask.storage.container import Geometry
from sharedmask.storage.mapped_file import FileIdentity
from sharedmask.storage.segment import ExternalArrays
from sharedmask.system import files, settings
from sharedmask.system.files import (
    DISK_FOLDER,
    is_free,
    is_named,
    locked,
    opened_ours,
    private_directory,
    spill_folder,
)
from sharedmask.system.units import format_bytes
from sharedmask.system.usage import nameless_bytes
from sharedmask.typing import Array

Write = Callable[[str, int, Array], None]
"""Takes the name of an array, the number of its first row, and rows."""
Fill = Callable[[Write], Mapping[str, Any]]
"""Writes all rows, and returns what is to be remembered of them."""

KIND = "disk"
_LAYOUT = 1
_LABEL_LENGTH = 200
_NAME = re.compile(r"sharedmask-([0-9a-f]{32})\.(rows|part|lock)")
_UNFINISHED = b"sharedmask, unfinished"
_MAGICS = (container.MAGIC, _UNFINISHED)
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# Pieces start on their way to the disk as they are written; never is more than this unwritten.
_PIECE_BYTES = 16 * 2**20
_DIRTY_BYTES = 256 * 2**20

_log = logging.getLogger(__name__)


def directory() -> Path:
    """Where this user's files are: a directory of our own, so that the one around it may hold anything."""
    return spill_folder() / f"{DISK_FOLDER}{os.geteuid()}"


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
    """The rows of ``key``, found or built; they are in use until the end of the ``with`` block.

    Parameters
    ----------
    key : str
        Of :func:`key_of`.
    geometry : mapping
        Shape and dtype of each array.
    label : str
        Of which image, for listings.
    fill : callable
        Called only if there is no such file: by one process, others wait for it.
    copied : int
        Bytes that ``fill`` takes on the same disk on the way.

    Raises
    ------
    SegmentError
        There is no room on the disk or within the limit, or the directory cannot be used.
    """
    with _folder() as folder:
        _sweep(folder)
        fd = _found(folder, key, geometry)
        found = fd is not None
        if fd is None:
            with locked(folder, f"sharedmask-{key}.lock"):
                fd = _found(folder, key, geometry)  # built while we waited
                if fd is None:
                    fd = _build(folder, key, geometry, label, fill, copied)
    try:
        os.utime(fd)
        yield _kept(fd, key, found)
    finally:
        os.close(fd)


def _folder() -> contextlib.AbstractContextManager[int]:
    path = directory()
    if not path.parent.is_dir():
        raise SegmentError(f"the directory for images on disk {path.parent} does not exist")
    return private_directory(path, "the directory for images on disk")


def _kept(fd: int, key: str, found: bool) -> OpenRows:
    facts = container.parse_header(os.pread(fd, container.HEADER_BYTES, 0))
    identity = FileIdentity.of(str(directory() / f"sharedmask-{key}.rows"), fd, ours=True)
    return OpenRows(ExternalArrays(identity, facts["arrays"], KIND), facts["meta"], found)


def _found(folder: int, key: str, geometry: Geometry) -> int | None:
    """A descriptor of the complete file, locked as in use; None if it must be built."""
    name = f"sharedmask-{key}.rows"
    while True:
        try:
            fd = os.open(name, os.O_RDONLY | _OPEN, dir_fd=folder)
        except FileNotFoundError:
            return None
        fcntl.flock(fd, fcntl.LOCK_SH)
        if is_named(folder, name, fd):
            if _is_complete(fd, key, geometry):
                return fd
            if not files.is_ours(fd, _MAGICS):
                os.close(fd)
                raise SegmentError(f"{directory() / name} is no file of sharedmask: move it away")
            os.close(fd)
            return None
        os.close(fd)  # it was removed, or replaced, between the two calls


def _is_complete(fd: int, key: str, geometry: Geometry) -> bool:
    arrays, nbytes = container.layout(geometry)
    try:
        facts = container.parse_header(os.pread(fd, container.HEADER_BYTES, 0))
    except AttachError:
        return False
    same = (facts.get("token"), facts.get("nbytes"), facts.get("arrays")) == (key, nbytes, arrays)
    return same and os.fstat(fd).st_size == nbytes


# --- building ------------------------------------------------------------------------------------


def _build(folder: int, key: str, geometry: Geometry, label: str, fill: Fill, copied: int) -> int:
    """Build the file of ``key``, whose lock we hold; a descriptor of it, locked as in use."""
    arrays, nbytes = container.layout(geometry)
    part, name = f"sharedmask-{key}.part", f"sharedmask-{key}.rows"
    _remove_part(folder, part)
    _make_room(folder, nbytes, nbytes + copied, label)
    fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | _OPEN, 0o600, dir_fd=folder)
    try:
        os.pwrite(fd, _UNFINISHED, 0)
        with disk_full_as_segment_error(label, nbytes):
            os.posix_fallocate(fd, 0, nbytes)
            meta = {**fill(_Writer(fd, arrays).write), "label": label[-_LABEL_LENGTH:]}
            facts = {"token": key, "nbytes": nbytes, "arrays": arrays, "meta": meta}
            os.pwrite(fd, container.header(facts), 0)
            os.fdatasync(fd)  # before it has its name: a power failure leaves no other file under it
        os.fchmod(fd, 0o400)
        fcntl.flock(fd, fcntl.LOCK_SH)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def disk_full_as_segment_error(label: str, nbytes: int) -> Iterator[None]:
    """Say of which file there was no room for what, and where."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        folder = directory()
        free = os.statvfs(folder)
        raise SegmentError(
            f"{folder} has no room for {label}: {format_bytes(nbytes)} are needed, "
            f"{format_bytes(free.f_bavail * free.f_frsize)} are free ({error.strerror}); "
            "SHAREDMASK_TMPDIR names another folder"
        ) from error


class _Writer:
    """Writes rows, and has the disk begin with them at once."""

    def __init__(self, fd: int, arrays: container.Specs) -> None:
        self._fd, self._arrays = fd, arrays
        self._dirty = 0

    def write(self, array: str, start: int, rows: Array) -> None:
        row_bytes = rows[:1].nbytes
        place = self._arrays[array]["offset"] + start * row_bytes
        view = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        for piece in range(0, len(view), _PIECE_BYTES):
            self._put(view[piece : piece + _PIECE_BYTES], place + piece)

    def _put(self, piece: memoryview, place: int) -> None:
        files.pwrite_all(self._fd, piece, place)
        self._dirty += len(piece)
        if self._dirty >= _DIRTY_BYTES:
            os.fdatasync(self._fd)
            self._dirty = 0
        elif hasattr(os, "posix_fadvise"):
            # On Linux this starts writing; what is written already may leave the page cache.
            os.posix_fadvise(self._fd, place, len(piece), os.POSIX_FADV_DONTNEED)


# --- room ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeptRows:
    """A file of ours, complete or not."""

    name: str
    label: str
    nbytes: int
    used: float
    """When it was last used, in seconds since the epoch."""


def entries() -> list[KeptRows]:
    """The complete files, least recently used first."""
    if not directory().is_dir():
        return []
    with _folder() as folder:
        return _entries(folder, "rows")


def remove_unused(name: str | None = None) -> list[str]:
    """Remove the complete files that nobody uses, or the one of that name; the names of those removed."""
    if not directory().is_dir():
        return []
    with _folder() as folder:
        found = [entry.name for entry in _entries(folder, "rows")]
        return [one for one in found if name in (None, one) and _evict(folder, one)]


def sweep() -> list[str]:
    """Remove what killed processes left half built; the names of what was removed."""
    if not directory().is_dir():
        return []
    with _folder() as folder:
        return _sweep(folder)


def _entries(folder: int, *kinds: str) -> list[KeptRows]:
    found = (_entry(folder, name) for name in os.listdir(folder) if _kind(name) in kinds)
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.used)


def _kind(name: str) -> str | None:
    match = _NAME.fullmatch(name)
    return match[2] if match else None


def _entry(folder: int, name: str) -> KeptRows | None:
    with opened_ours(folder, name, _MAGICS) as fd:
        if fd is None:
            return None
        facts, label = os.fstat(fd), ""
        with contextlib.suppress(AttachError):
            header = container.parse_header(os.pread(fd, container.HEADER_BYTES, 0))
            label = str(header.get("meta", {}).get("label", ""))
        return KeptRows(name, label, facts.st_size, facts.st_mtime)


def scratch(label: str, nbytes: int, reserve: bool) -> int:
    """A descriptor of a new file of ``nbytes`` bytes that has no name: it goes with its last user.

    Raises
    ------
    SegmentError
        There is no room within the limit or, to ``reserve`` it all now, on the disk.
    """
    with _folder() as folder:
        _sweep(folder)
        _make_room(folder, nbytes, nbytes if reserve else 0, label)
        fd = files.scratch(directory())
    try:
        with disk_full_as_segment_error(label, nbytes):
            if reserve:
                os.posix_fallocate(fd, 0, nbytes)
            else:
                os.truncate(fd, nbytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_room(folder: int, nbytes: int, on_disk: int, label: str) -> None:
    """Remove the least recently used files until there is room, within the limit and on the disk."""
    limit = settings.current().spill_limit
    held = _entries(folder, "rows", "part")
    total = sum(entry.nbytes for entry in held) + nameless_bytes(directory())
    for entry in held:
        if total + nbytes <= limit and _free(folder) >= on_disk:
            return
        if _kind(entry.name) == "rows" and _evict(folder, entry.name):
            total -= entry.nbytes
    if total + nbytes > limit:
        raise SegmentError(
            f"{label} takes {format_bytes(nbytes)} on disk: images and frames in use there take "
            f"{format_bytes(total)} of the {format_bytes(limit)} that spill_limit allows"
        )
    if _free(folder) < on_disk:
        raise SegmentError(
            f"{directory()} has no room for {label}: {format_bytes(on_disk)} are needed, "
            f"{format_bytes(_free(folder))} are free"
        )


def _free(folder: int) -> int:
    facts = os.fstatvfs(folder)
    return facts.f_bavail * facts.f_frsize


def _evict(folder: int, name: str) -> bool:
    """Remove a complete file if it is ours and nobody uses it; whether it is gone."""
    with opened_ours(folder, name, _MAGICS) as fd:
        if fd is None or not is_free(fd) or not is_named(folder, name, fd):
            return False
        os.unlink(name, dir_fd=folder)
    _log.info("%s removed from %s", name, directory())
    return True


def _sweep(folder: int) -> list[str]:
    removed = files.sweep(directory())
    for name in sorted(os.listdir(folder), reverse=True):  # a part before the lock that guards it
        if _kind(name) in ("part", "lock") and _sweep_one(folder, name):
            removed.append(name)
    return removed


def _sweep_one(folder: int, name: str) -> bool:
    """Remove a part or a lock whose process is dead: nobody holds the lock."""
    lock = name.removesuffix(".part").removesuffix(".lock") + ".lock"
    try:
        fd = os.open(lock, os.O_CREAT | os.O_RDWR | _OPEN, 0o600, dir_fd=folder)
    except OSError:
        return False
    try:
        if not is_free(fd) or not is_named(folder, lock, fd) or os.fstat(fd).st_size:
            return False
        removed = name == lock or _remove_part(folder, name)
        os.unlink(lock, dir_fd=folder)
        return removed
    finally:
        os.close(fd)


def _remove_part(folder: int, name: str) -> bool:
    """Remove a half-built file, whose lock we hold, if it is ours; whether it was there."""
    with opened_ours(folder, name, _MAGICS) as fd:
        if fd is not None:
            os.unlink(name, dir_fd=folder)
        return fd is not None
