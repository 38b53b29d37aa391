"""Indexes: the seek points of gzip files, kept for the next time.

Covers: where they are kept, which file they are of, making one. Does not cover: points (``decoding``), what
the folder of any cache does (``cache``).

An index is that of every file of the same size, first and last bytes, the checksum of all data among them:
it stays when the file is moved or copied. Each piece of the data has a checksum in it besides.
"""

import contextlib
import os
import warnings
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from io import FileIO
from pathlib import Path

from sharedmask.decoding import search
from sharedmask.decoding.codecs import GZIP, codec_of, open_file
from sharedmask.decoding.seek_points import Points, to_arrays
from sharedmask.errors import AttachError, ImageError, SegmentError, SharedMaskWarning
from sharedmask.sources.source import FileSource, Source
from sharedmask.storage import container
from sharedmask.storage.cache import CacheFolder
from sharedmask.system import files, inputs, locks, platform, settings
from sharedmask.typing import Array

BESIDE = ".gzi"
"""What is put behind the name of a file for that of its index."""
_EDGE = 64 * 1024
_LIMIT = 2**30


def indexed(source: Source, make_one: bool = False) -> Source:
    """The image, with its seek points where they are kept.

    If ``make_one`` they are looked for where there are none; an image that can have none is as it was, as is
    one whose points cannot be kept, which is warned of.

    Raises ParameterError: rapidgzip is not installed.
    """
    if not isinstance(source, FileSource):
        return source
    found = replace(source, index=_Kept())
    if not make_one or codec_of(source.file) is not GZIP or found.points is not None:
        return found
    try:
        _made(source, beside=False)
    except (OSError, SegmentError) as error:
        warnings.warn(f"the index of {source.name} is not kept: {error}", SharedMaskWarning, stacklevel=2)
    return replace(found)  # which looks again


class _Kept:
    """The indexes beside files, and those in the folder."""

    def find(self, file: FileIO) -> Points | None:
        """The seek points of a file."""
        points = _beside(file) or _in_folder(file)
        return points if points is not None and points.fit(file) else None


def make(source: Source, *, beside: bool = False) -> Path:
    """Look for the seek points of a .nii.gz file and keep them, in the folder or beside the file; where.

    Raises ImageError: it is no gzip file, has no such points, or needs none.
    Raises DamagedImageError: what reading the image raises.
    Raises ParameterError: rapidgzip is not installed.
    Raises SegmentError: there is a file beside it that is no index of ours.
    Raises OSError, MissingFileError: there is a pipe or a folder, or a link to nothing.
    """
    if not isinstance(source, FileSource) or codec_of(source.file) is not GZIP:
        raise ImageError(f"{source.name} needs no index: it is no gzip file")
    if source.is_remote:
        raise ImageError(f"{source.name} lies on a server: indexes are kept of files of this machine")
    if replace(source, index=None).points is not None:
        raise ImageError(f"{source.name} needs no index: its blocks say where they begin")
    path = _made(source, beside)
    if path is None:
        for _ in source.each_volume():  # what is damaged says so
            pass
        raise ImageError(f"{source.name} has no index: it is not one gzip member that holds the image alone")
    return path


def _made(source: FileSource, beside: bool) -> Path | None:
    """Where the points are kept now; None if there are none."""
    cache = _folder()
    with open_file(source.file) as file:
        key = _key(file)
    path = Path(source.file + BESIDE) if beside else cache.path / cache.name(key)
    if beside:
        _check_ours(path)
    else:  # before the work
        cache.path.parent.mkdir(parents=True, exist_ok=True)
    with source.unchanged():
        points = search.found(source.file, source.name, source.offset + source.nbytes)
    if points is None:
        return None
    arrays = to_arrays(points)
    if not beside:
        with cache.turn(key):
            needed = container.projected(container.geometry_of(arrays))
            cache.make_room(lambda held: held + needed <= _LIMIT)
            _write(path, arrays, key)
        cache.sweep()
    else:
        _write(path, arrays, key)
    return path


def _write(path: Path, arrays: list[Array], key: str) -> None:
    with files.atomic_write(path) as temporary, open(temporary, "wb", buffering=0) as file:
        container.write(file.fileno(), arrays, key)


def _check_ours(path: Path) -> None:
    if not os.path.lexists(path):
        return
    with inputs.opened_regular(path) as file:
        if file.read(len(container.OURS)) != container.OURS:
            raise SegmentError(f"{path} is no index of sharedmask: move it away")


def _beside(file: FileIO) -> Points | None:
    with contextlib.suppress(AttachError, OSError):
        fd = os.open(f"{file.name!s}{BESIDE}", os.O_RDONLY | platform.OPEN | platform.NOT_WAITING)
        with locks.closing(fd):
            return _points(_key(file), fd)
    return None


def _in_folder(file: FileIO) -> Points | None:
    """Nobody asked for an index: a home that may not be looked into has none."""
    cache = _folder()
    try:
        if not cache.path.is_dir():  # as for most files: they need not be read for it
            return None
        key = _key(file)
        return cache.find(key, partial(_points, key))
    except (OSError, SegmentError):
        return None


def _points(key: str, fd: int) -> Points:
    arrays = container.read(fd, key)
    if len(arrays) != 5:
        raise AttachError("it holds no seek points")
    return Points(*arrays)


def _folder() -> CacheFolder:
    home = os.environ.get("XDG_CACHE_HOME", "")
    home = home if os.path.isabs(home) else os.path.expanduser("~/.cache")  # relative ones count for nothing
    path = settings.current().cache_dir or Path(home)
    return CacheFolder(path / "sharedmask-indexes", "folder of indexes", "", 40, "index")


def _key(file: FileIO) -> str:
    """Of a file with that size, and those first and last bytes."""
    size = os.fstat(file.fileno()).st_size
    digest = blake2b(str(size).encode(), digest_size=20)
    for place in (0, max(size - _EDGE, 0)):
        digest.update(platform.pread(file.fileno(), _EDGE, place))
    return digest.hexdigest()
