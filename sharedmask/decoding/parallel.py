"""Pieces of a gzip file decoded on several cores, or from any place on.

Covers: how many cores decode, pieces that are decoded ahead, what happens where a piece is not what it was.
Does not cover: one piece (``seek_points``), a pass without points (``codecs``).
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from io import FileIO

from sharedmask.decoding.codecs import GZIP, MemberStream, Stream, open_file
from sharedmask.decoding.seek_points import Pieces, WrongPieceError
from sharedmask.system import settings
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.process import n_cpus, shares_cpus
from sharedmask.system.threads import Threads

_SMALL_BYTES = 16 * 2**20  # decoded; less is decoded before threads are at work
_AHEAD = 4  # pieces that are held besides those being decoded: with fewer, decoders wait


def is_small(nbytes: int) -> bool:
    """Whether so many bytes are decoded on one core, wherever decoding can begin."""
    return nbytes < _SMALL_BYTES


def n_decoders(points: Pieces) -> int:
    """Cores that decode a file.

    As many as the setting ``decoders`` says. By default all that this process may use; one where it is a
    worker that was told of no share, as others are at work on images of their own. Fewer where memory is
    short, and one for little.
    """
    if is_small(points.nbytes):
        return 1
    asked = settings.current().decoders or (1 if shares_cpus() else n_cpus())
    wanted = min(asked, n_cpus(), len(points))
    if wanted == 1:
        return 1
    room = MemoryBudget.here().limit // 8 // points.largest - _AHEAD
    return max(1, min(wanted, room))


def reading_bytes(points: Pieces, n_threads: int) -> int:
    """Memory that a pass takes."""
    return 0 if n_threads == 1 else (n_threads + _AHEAD) * points.largest


class IndexedStream(Stream):
    """The data of a file from any place on, its pieces verified one by one.

    Where a piece is not what it was, the file is decoded from its beginning: what is wrong with it is then
    said as without points.
    """

    has_views = True

    def __init__(self, file: FileIO, points: Pieces, name: str, place: int, n_threads: int) -> None:
        super().__init__(file)
        self._points, self._name, self._place = points, name, place
        self._next = points.at(place)
        self._ahead: deque[tuple[memoryview, Future[memoryview]]] = deque()
        self._buffer, self._spare = points.buffer(), deque[memoryview]()
        self._threads = Threads(n_threads, "sharedmask-decode") if n_threads > 1 else None
        self._n_ahead = n_threads + _AHEAD - 1
        self._piece = memoryview(b"")
        self._begin = self._end = int(points.starts[self._next])  # of the piece in the data
        self._plain: Stream | None = None

    def skip(self, n_bytes: int) -> int:
        return self._read_past(n_bytes)

    def finish(self) -> None:
        """Each piece is verified as it is decoded."""
        if self._plain is not None:
            self._plain.finish()

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def view(self, n_bytes: int) -> memoryview | None:
        self._reach()
        return self._taken(n_bytes) if self._place + n_bytes <= self._end else None

    def _some(self, view: memoryview) -> int:
        self._reach()
        if self._plain is not None:
            return self._plain.readinto(view)
        piece = self._taken(min(len(view), self._end - self._place))
        view[: len(piece)] = piece
        return len(piece)

    def _taken(self, n_bytes: int) -> memoryview:
        """So many bytes of this piece."""
        at, self._place = self._place - self._begin, self._place + n_bytes
        return self._piece[at : at + n_bytes]

    def _reach(self) -> None:
        """The piece with the next byte, if there is one."""
        try:
            while self._plain is None and self._place >= self._end and self._next < len(self._points):
                self._advance()
        except WrongPieceError:
            self._file.seek(0)
            self._plain, self._end = MemberStream(self._file, GZIP, self._name), self._place
            self._plain.skip(self._place)

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
def open_indexed(path: str, name: str, points: Pieces, place: int, n_threads: int) -> Iterator[Stream]:
    """The data of a file from the byte ``place`` on."""
    with open_file(path) as file:
        stream = IndexedStream(file, points, name, place, n_threads)
        try:
            yield stream
        finally:
            stream.close()
