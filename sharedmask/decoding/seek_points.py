"""Seek points: places in a gzip file where decoding can begin.

Covers: points and the windows that decoding needs there, one piece decoded by ISA-L and verified. Does not
cover: finding points (``search``), many pieces (``parallel``), where points are kept (``indexes``).

A piece reaches from one point to the next. It begins at any bit of a byte, and ISA-L begins at the first:
blocks that are empty are put before the bits of the piece, so many that the whole fills bytes. Before these
comes the window, in a block that is not compressed: so a piece is a gzip file, and decoded like one, at once
and into its place.
"""

import os
import struct
from abc import ABC, abstractmethod
from io import FileIO
from typing import Protocol

import numpy as np
from isal import isal_zlib

from sharedmask.decoding.codecs import begin_into
from sharedmask.records import dataclass
from sharedmask.system import platform
from sharedmask.typing import Array, NDArray

ALIGNMENT = 16
_HEADER = b"\x1f\x8b\x08" + bytes(7)  # of a gzip file that has no name
_STORED = struct.Struct("<xHH")  # begins a block that is not compressed, with its size
_WINDOW_BYTES = 2**15
_ROUND_BYTES = 2 * _WINDOW_BYTES + 64  # the window as it is given and decoded; what begins a piece
TRAILER = struct.Struct("<II")

# Empty blocks, bit by bit: one of the fixed code, 10 bits; one with a code of its own, 91 bits, of which
# the 257th and 258th of its literals and its one distance have 1 bit each.
_EVEN = "010" + "0000000"
_LENGTHS = ["000"] * 18  # of codes for lengths; in deflate's order the third is for runs of 0, the last for 1
_LENGTHS[2] = _LENGTHS[17] = "100"
_RUNS = "1" + f"{138 - 11:07b}"[::-1] + "1" + f"{118 - 11:07b}"[::-1]
_ODD = "001" + "10000" + "00000" + "0111" + "".join(_LENGTHS) + _RUNS + "000" + "0"


def _filler(n_bits: int) -> str:
    """Empty blocks that take so many bits more than whole bytes."""
    bits = _ODD if n_bits % 2 else ""
    while len(bits) % 8 != n_bits:
        bits += _EVEN
    return bits


def _packed(bits: str) -> bytes:
    """Deflate's first bit is the lowest of the first byte."""
    return int(bits[::-1] or "0", 2).to_bytes(len(bits) // 8, "little")


_FILLERS = [_filler(n_bits) for n_bits in range(8)]


class WrongPieceError(Exception):
    """A piece is not what it was when its point was found."""


@dataclass(frozen=True, eq=False)
class Pieces(ABC):
    """Of a gzip file, each of which can be decoded by itself."""

    starts: NDArray[np.int64]
    """In the data, (n + 1,); the last is where they end."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def nbytes(self) -> int:
        """Of the data."""
        return int(self.starts[-1])

    @property
    @abstractmethod
    def largest(self) -> int:
        """Bytes that decoding the largest piece takes."""

    def at(self, place: int) -> int:
        """The number of the piece with that byte of the data."""
        return int(np.searchsorted(self.starts, place, "right")) - 1

    def buffer(self) -> memoryview:
        """Room for any piece, not cleared: a thread would wait for that."""
        return np.empty(self.largest, np.uint8).data

    @abstractmethod
    def decode(self, fd: int, number: int, buffer: memoryview) -> memoryview:
        """A piece, verified, in a buffer that has room for the largest.

        Raises WrongPieceError.
        """


@dataclass(frozen=True, eq=False)
class Points(Pieces):
    """Where the pieces of a file with one gzip member begin."""

    bits: NDArray[np.int64]
    """In the file, (n + 1,); the last is where the checksum begins."""
    crcs: NDArray[np.int64]
    """Checksum of each piece."""
    ends: NDArray[np.int64]
    """Of each window in ``windows``."""
    windows: NDArray[np.uint8]
    """What comes before each piece, compressed by zlib; nothing for the first."""

    @property
    def largest(self) -> int:
        """Bytes of the largest piece as a gzip file of its own, and decoded with its window."""
        return int(np.diff(self.starts).max() + np.diff(self.bits).max() // 8) + _ROUND_BYTES

    def fit(self, file: FileIO) -> bool:
        """Whether the file ends with the checksum of these pieces, and where they end."""
        crc = 0
        for piece, n_bytes in zip(self.crcs.tolist(), np.diff(self.starts).tolist(), strict=True):
            crc = isal_zlib.crc32_combine(crc, piece, n_bytes)
        end = int(self.bits[-1]) // 8
        return os.fstat(file.fileno()).st_size == end + TRAILER.size and trailer(file) == (
            crc,
            self.nbytes % 2**32,
        )

    def decode(self, fd: int, number: int, buffer: memoryview) -> memoryview:
        out, crc = self.decode_unverified(fd, number, buffer)
        if crc != self.crcs[number]:
            raise WrongPieceError
        return out

    def decode_unverified(self, fd: int, number: int, buffer: memoryview) -> tuple[memoryview, int]:
        """A piece and its checksum; numbers that are aligned in the data are so in the buffer."""
        start, stop = self.starts[number : number + 2].tolist()
        window, begin = self._window(number), _WINDOW_BYTES + start % ALIGNMENT
        out = buffer[begin - len(window) : begin + stop - start]
        if not begin_into(self._given(fd, number, window, buffer[begin + stop - start :]), out):
            raise WrongPieceError
        piece = out[len(window) :]
        return piece, isal_zlib.crc32(piece)

    def _given(self, fd: int, number: int, window: bytes, room: memoryview) -> memoryview:
        """A piece as a gzip file: the window as it is, what fills the byte, and the bytes of the piece."""
        first, end = self.bits[number : number + 2].tolist()
        place, n_begun = divmod(first, 8)
        begun = f"{platform.pread(fd, 1, place)[0]:08b}"[::-1][n_begun:] if n_begun else ""
        head = _HEADER + _STORED.pack(len(window), len(window) ^ 0xFFFF) + window
        head += _packed(_FILLERS[n_begun] + begun)
        place += n_begun > 0
        given = room[: len(head) + max(-(-end // 8) - place, 0)]
        given[: len(head)] = head
        if platform.pread_into(fd, given[len(head) :], place) < len(given) - len(head):
            raise WrongPieceError
        return given

    def _window(self, number: int) -> bytes:
        start = int(self.ends[number - 1]) if number else 0
        packed = self.windows[start : int(self.ends[number])].tobytes()
        return isal_zlib.decompress(packed) if packed else b""


class Index(Protocol):
    """Where points are kept."""

    def find(self, file: FileIO) -> Points | None:
        """Those of a file; None if there are none, or what is kept is not what was put there."""


def trailer(file: FileIO) -> tuple[int, int]:
    """The checksum of the data, and their size modulo 2**32."""
    size = os.fstat(file.fileno()).st_size
    crc, nbytes = TRAILER.unpack(platform.pread(file.fileno(), TRAILER.size, size - TRAILER.size))
    return crc, nbytes


def to_arrays(points: Points) -> list[Array]:
    """What is kept of points."""
    return [points.starts, points.bits, points.crcs, points.ends, points.windows]
