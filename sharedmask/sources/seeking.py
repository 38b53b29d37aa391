"""Seek points: places in a gzip file where decoding can begin, so that several cores decode it.

Covers: points and the windows that decoding needs there, finding them (rapidgzip), pieces decoded by
ISA-L and verified, on several cores or from any place. Does not cover: where points are kept
(``indexes``), a pass without them (``codecs``).

A piece reaches from one point to the next. It begins at any bit of a byte, and ISA-L begins at the first:
blocks that are empty are put before the bits of the piece, so many that the whole fills bytes.
"""

import io
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from io import FileIO
from multiprocessing import current_process, parent_process
from typing import Any, Protocol, Self

import numpy as np
from isal import igzip_lib, isal_zlib
from numpy.typing import NDArray

from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.sources.codecs import CHUNK, GZIP, MemberStream, Stream, open_raw
from sharedmask.system import settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.process import n_cpus
from sharedmask.system.threads import Threads
from sharedmask.typing import Array

_SMALL_BYTES = 16 * 2**20  # decoded; less is decoded before threads are at work
_AHEAD = 2  # pieces that are held besides those being decoded
_WINDOW = 32 * 1024
_TRAILER = struct.Struct("<II")
# While points are looked for, per core: measured 80 to 130 MB. Larger pieces take more, smaller ones longer.
_SPACING = 2 * 2**20
_SEARCH_BYTES = 130 * 2**20

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


class _WrongPieceError(Exception):
    """A piece is not what it was when its point was found."""


@dataclass(frozen=True, eq=False)
class Points:
    """Where the pieces of a file with one gzip member begin."""

    starts: NDArray[np.int64]
    """In the data, (n + 1,); the last is where they end."""
    bits: NDArray[np.int64]
    """In the file, (n + 1,); the last is where the checksum begins."""
    crcs: NDArray[np.int64]
    """Checksum of each piece."""
    ends: NDArray[np.int64]
    """Of each window in ``windows``."""
    windows: NDArray[np.uint8]
    """What comes before each piece, compressed by zlib; nothing for the first."""

    def __len__(self) -> int:
        return len(self.crcs)

    @property
    def nbytes(self) -> int:
        """Of the data."""
        return int(self.starts[-1])

    @property
    def largest(self) -> int:
        """Bytes of the largest piece, as it is in the file and decoded."""
        return int(np.diff(self.starts).max() + np.diff(self.bits).max() // 8)

    def at(self, place: int) -> int:
        """The number of the piece with that byte of the data."""
        return int(np.searchsorted(self.starts, place, "right")) - 1

    def fit(self, file: FileIO) -> bool:
        """Whether the file ends with the checksum of these pieces, and where they end."""
        crc = 0
        for piece, n_bytes in zip(self.crcs.tolist(), np.diff(self.starts).tolist(), strict=True):
            crc = isal_zlib.crc32_combine(crc, piece, n_bytes)
        end = int(self.bits[-1]) // 8
        return os.fstat(file.fileno()).st_size == end + _TRAILER.size and _trailer(file) == (
            crc,
            self.nbytes % 2**32,
        )

    def decode(self, fd: int, number: int, buffer: bytearray) -> memoryview:
        """A piece, verified, at the beginning of a buffer that has room for the largest.

        Raises
        ------
        _WrongPieceError
        """
        out = self.decode_unverified(fd, number, buffer)
        if isal_zlib.crc32(out) != self.crcs[number]:
            raise _WrongPieceError
        return out

    def buffer(self) -> bytearray:
        """Room for any piece."""
        return bytearray(int(np.diff(self.starts).max()))

    def decode_unverified(self, fd: int, number: int, buffer: bytearray) -> memoryview:
        out = memoryview(buffer)[: int(self.starts[number + 1] - self.starts[number])]
        given, done = self._given(fd, number), 0
        try:
            decoder = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE, 15, self._window(number))
            while done < len(out) and not decoder.eof:
                data = next(given) if decoder.needs_input else b""
                piece = decoder.decompress(data, min(CHUNK, len(out) - done))
                out[done : done + len(piece)] = piece
                done += len(piece)
        except (igzip_lib.IsalError, zlib.error, StopIteration) as error:  # type: ignore[misc]
            raise _WrongPieceError from error
        if done < len(out):
            raise _WrongPieceError
        return out

    def _given(self, fd: int, number: int) -> Iterator[bytes]:
        """What the decoder is given of a piece, a little at a time: it stays in the processor's cache."""
        first, place, end = int(self.bits[number]), int(self.bits[number]) // 8 + 1, self.bits[number + 1]
        begun = f"{os.pread(fd, 1, place - 1)[0]:08b}"[::-1][first % 8 :]
        yield _packed(_FILLERS[first % 8] + begun)
        while data := os.pread(fd, min(CHUNK, max(-(-int(end) // 8) - place, 0)), place):
            yield data
            place += len(data)

    def _window(self, number: int) -> bytes:
        start = int(self.ends[number - 1]) if number else 0
        packed = self.windows[start : int(self.ends[number])].tobytes()
        return zlib.decompress(packed) if packed else b""


class Index(Protocol):
    """Where points are kept."""

    def find(self, file: FileIO) -> Points | None:
        """Those of a file; None if there are none, or what is kept is not what was put there."""


def n_decoders(points: Points) -> int:
    """Cores that decode a file.

    As many as the setting ``decoders`` says. By default all that this process may use; one where it is a
    worker, as others are at work on images of their own. Fewer where memory is short, and one for little.
    """
    if points.nbytes < _SMALL_BYTES:
        return 1
    is_worker = current_process().daemon or parent_process() is not None
    asked = settings.current().decoders or (1 if is_worker else n_cpus())
    wanted = min(asked, n_cpus(), len(points))
    if wanted == 1:
        return 1
    room = MemoryBudget.here().limit // 8 // points.largest - _AHEAD
    return max(1, min(wanted, room))


def reading_bytes(points: Points) -> int:
    """Memory that a pass takes."""
    n_threads = n_decoders(points)
    return 0 if n_threads == 1 else (n_threads + _AHEAD) * points.largest


class IndexedStream(Stream):
    """The data of a file from any place on, its pieces verified one by one.

    Where a piece is not what it was, the file is decoded from its beginning: what is wrong with it is then
    said as without points.
    """

    def __init__(self, file: FileIO, points: Points, name: str, place: int, n_threads: int) -> None:
        super().__init__(file)
        self._points, self._name, self._place = points, name, place
        self._next = points.at(place)
        self._ahead: deque[tuple[bytearray, Future[memoryview]]] = deque()
        self._buffer, self._spare = points.buffer(), deque[bytearray]()
        self._threads = Threads(n_threads, "sharedmask-decode") if n_threads > 1 else None
        self._n_ahead = n_threads + _AHEAD - 1
        self._piece = memoryview(b"")
        self._begin = self._end = int(points.starts[self._next])  # of the piece in the data
        self._plain: Stream | None = None

    def finish(self) -> None:
        """Read to the end, as the checksum is of all."""
        self.skip(self._points.nbytes)
        if self._plain is not None:
            self._plain.finish()

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def _some(self, view: memoryview) -> int:
        try:
            while self._plain is None and self._place >= self._end:
                if self._next == len(self._points):
                    return 0
                self._advance()
        except _WrongPieceError:
            self._file.seek(0)
            self._plain = MemberStream(self._file, GZIP, self._name)
            self._plain.skip(self._place)
        if self._plain is not None:
            return self._plain.readinto(view)
        at = self._place - self._begin
        taken = min(len(view), self._end - self._place)
        view[:taken] = self._piece[at : at + taken]
        self._place += taken
        return taken

    def _advance(self) -> None:
        """To the next piece; others are decoded meanwhile."""
        decode, fd = self._points.decode, self._file.fileno()
        if self._threads is None:
            self._piece = decode(fd, self._next, self._buffer)
        else:
            self._spare.append(self._buffer)
            for number in range(self._next + len(self._ahead), self._next + self._n_ahead):
                if number < len(self._points):
                    buffer = self._spare.pop() if self._spare else self._points.buffer()
                    self._ahead.append((buffer, self._threads.submit(decode, fd, number, buffer)))
            self._buffer, decoding = self._ahead.popleft()
            self._piece = decoding.result()
        self._begin = int(self._points.starts[self._next])
        self._end, self._next = self._begin + len(self._piece), self._next + 1


@contextmanager
def open_indexed(path: str, name: str, points: Points, place: int, n_threads: int) -> Iterator[Stream]:
    """The data of a file from the byte ``place`` on."""
    with open_raw(path) as file:
        stream = IndexedStream(file, points, name, place, n_threads)
        try:
            yield stream
        finally:
            stream.close()


# --- finding points ------------------------------------------------------------------------------


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

    Raises
    ------
    ParameterError
        rapidgzip is not installed.
    MemoryLimitError
        Looking for them takes more than may be used.
    """
    try:
        import rapidgzip
    except ImportError as error:
        raise ParameterError("indexes need rapidgzip: pip install 'sharedmask[index]'") from error
    with open_raw(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _TRAILER.size or _trailer(file)[1] != nbytes % 2**32:
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
    end = (os.fstat(file.fileno()).st_size - _TRAILER.size) * 8
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
        except _WrongPieceError:
            return None
    points.crcs[:] = crcs
    return points


def _crc_of(points: Points, fd: int, number: int) -> int:
    crc: int = isal_zlib.crc32(points.decode_unverified(fd, number, points.buffer()))
    return crc


def _trailer(file: FileIO) -> tuple[int, int]:
    """The checksum of the data, and their size modulo 2**32."""
    size = os.fstat(file.fileno()).st_size
    crc, nbytes = _TRAILER.unpack(os.pread(file.fileno(), _TRAILER.size, size - _TRAILER.size))
    return crc, nbytes


def to_arrays(points: Points) -> list[Array]:
    """What is kept of points."""
    return [points.starts, points.bits, points.crcs, points.ends, points.windows]
