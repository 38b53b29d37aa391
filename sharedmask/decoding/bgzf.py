"""BGZF files: gzip members of at most 64 KiB, each of which says where the next begins.

Covers: finding the members, some of them decoded by ISA-L at a time. Does not cover: files of one member
(``seek_points``), many pieces (``parallel``).

The members are an index that nobody has to make or keep. Each has a checksum, which the decoder compares.
"""

import os
import struct
from io import FileIO

import numpy as np

from sharedmask.decoding.codecs import decode_into
from sharedmask.decoding.seek_points import ALIGNMENT, Pieces, WrongPieceError
from sharedmask.records import dataclass
from sharedmask.system import platform
from sharedmask.typing import NDArray

_HEADER = struct.Struct("<4s6x2s4sH")  # no name and no comment: as bgzip writes it
_SIGNS = (b"\x1f\x8b\x08\x04", b"\x06\0", b"BC\x02\0")
_SIZE = struct.Struct("<I")
_MEMBER_BYTES = 2**16
_PIECE_BYTES = 2**20  # of data in members that are decoded together


@dataclass(frozen=True, eq=False)
class Members(Pieces):
    """Where the members of a BGZF file begin, and which of them make a piece."""

    firsts: NDArray[np.int64]
    """Number of each piece's first member, (n + 1,)."""
    places: NDArray[np.int64]
    """Of members, in the file, (n_members + 1,)."""

    @property
    def largest(self) -> int:
        """Bytes of the largest piece, as it is in the file and decoded."""
        return int(np.diff(self.starts).max() + np.diff(self.places[self.firsts]).max()) + ALIGNMENT

    def decode(self, fd: int, number: int, buffer: memoryview) -> memoryview:
        start, stop = self.starts[number : number + 2].tolist()
        out = buffer[start % ALIGNMENT :][: stop - start]
        first, last = self.places[self.firsts[number : number + 2]].tolist()
        packed = buffer[len(buffer) - (last - first) :]
        if platform.pread_into(fd, packed, first) < len(packed) or not decode_into(packed, out):
            raise WrongPieceError
        return out


def found(file: FileIO) -> Members | None:
    """Those of a file of nothing but such members, whose headers are looked at; None of any other."""
    fd, size = file.fileno(), os.fstat(file.fileno()).st_size
    places, starts, firsts, nbytes = [0], [0], [0], 0
    header = platform.pread(fd, _HEADER.size, 0)
    while len(header) == _HEADER.size:
        *signs, length = _HEADER.unpack(header)
        end = places[-1] + length + 1
        if tuple(signs) != _SIGNS or end > size or length < _HEADER.size + _SIZE.size:
            return None
        tail = platform.pread(fd, _SIZE.size + _HEADER.size, end - _SIZE.size)
        (holds,) = _SIZE.unpack_from(tail)
        if holds > _MEMBER_BYTES:
            return None
        nbytes += holds
        places.append(end)
        if nbytes - starts[-1] >= _PIECE_BYTES:
            starts.append(nbytes)
            firsts.append(len(places) - 1)
        header = tail[_SIZE.size :]
    if header or not nbytes:
        return None
    if nbytes > starts[-1]:
        starts.append(nbytes)
        firsts.append(len(places) - 1)
    return Members(*(np.array(numbers, np.int64) for numbers in (starts, firsts, places)))
