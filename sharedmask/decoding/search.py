"""Looking for the seek points of a gzip file.

Covers: what rapidgzip finds, each piece tried and its checksum taken. Does not cover: what points are
(``seek_points``), where they are kept (``indexes``).
"""

import io
import os
import struct
from io import FileIO
from typing import Any, Self

import numpy as np

from sharedmask.decoding.codecs import open_file
from sharedmask.decoding.seek_points import TRAILER, Points, WrongPieceError, trailer
from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.system import settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.process import n_cpus
from sharedmask.system.threads import Threads

# Per core: measured 80 to 130 MB. Larger pieces take more, smaller ones longer.
_SPACING = 2 * 2**20
_SEARCH_BYTES = 130 * 2**20


@dataclass(frozen=True)
class _Found:
    """A point that rapidgzip found."""

    start: int
    bit: int
    window: bytes

    @classmethod
    def all_in(cls, exported: bytes) -> list[Self]:
        """Those of an index in gztool's format."""
        n_points, place = struct.unpack_from(">16xQ8x", exported)[0], 32
        found = []
        for _ in range(n_points):
            start, byte, n_bits, size = struct.unpack_from(">QQII", exported, place)
            place += 24 + size
            found.append(cls(start, byte * 8 - n_bits, exported[place - size : place]))
        return found


def found(path: str, name: str, nbytes: int) -> Points | None:
    """The points of a gzip file that holds so many bytes, on all cores; each is tried.

    None where the file is damaged, or is not one gzip member and nothing else.

    Raises ParameterError: rapidgzip is not installed.
    Raises MemoryLimitError: looking for them takes more than may be used.
    """
    try:
        import rapidgzip
    except ImportError as error:
        raise ParameterError("indexes need rapidgzip: pip install 'sharedmask[index]'") from error
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= TRAILER.size or trailer(file)[1] != nbytes % 2**32:
            return None
        points = _searched(rapidgzip, file, name, nbytes)
        return points if points is not None and points.fit(file) else None


def _searched(rapidgzip: Any, file: FileIO, name: str, nbytes: int) -> Points | None:
    """The points, before they are compared with the checksum of all."""
    budget, n_threads = MemoryBudget.here(), settings.current().decoders or n_cpus()
    n_threads = max(1, min(n_threads, n_cpus(), budget.limit // _SEARCH_BYTES))
    budget.require(f"indexing {name}", n_threads * _SEARCH_BYTES)
    exported = io.BytesIO()
    reader = rapidgzip._RapidgzipFile(file.fileno(), parallelization=n_threads, chunk_size=_SPACING)
    try:
        reader.export_index(exported, rapidgzip.IndexFormat.GZTOOL)
    except (ValueError, RuntimeError):
        return None
    finally:
        reader.close()
    all_found = [one for one in _Found.all_in(exported.getvalue()) if one.start < nbytes]
    end = (os.fstat(file.fileno()).st_size - TRAILER.size) * 8
    points = Points(
        np.array([*(one.start for one in all_found), nbytes]),
        np.array([*(one.bit for one in all_found), end]),
        np.zeros(len(all_found), np.int64),
        np.cumsum([len(one.window) for one in all_found]),
        np.frombuffer(b"".join(one.window for one in all_found), np.uint8),
    )
    with Threads(n_threads, "sharedmask-index") as threads:
        try:
            crcs = list(threads.map(lambda n: _crc_of(points, file.fileno(), n), range(len(points))))
        except WrongPieceError:
            return None
    points.crcs[:] = crcs
    return points


def _crc_of(points: Points, fd: int, number: int) -> int:
    return points.decode_unverified(fd, number, points.buffer())[1]
