"""Objects on servers: what one is, its bytes as a file that is read forward, what lies beside it.

Covers: telling versions apart, reading ahead in a thread while the caller decodes, walking a tree once. Does
not cover: how bytes come (``http``, ``filesystems``), what they mean.

Who opens an image asks for its first bytes several times (magic, header): these are kept for the objects
that were looked at last, with what the server said, and what is read later is of that version or an error.
"""

import contextlib
import functools
import io
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from hashlib import blake2b
from typing import NamedTuple, Protocol

from sharedmask.errors import MissingFileError, RemoteError
from sharedmask.remote import trees
from sharedmask.remote.addresses import is_http, named
from sharedmask.remote.version import Version

_HEAD = 64 * 1024
_KEPT = 16  # heads
_AHEAD = 24  # pieces that wait to be decoded, of 256 KiB by HTTP
_WAIT, _WAITS = 0.1, 20


class Server(Protocol):
    """The way to one object."""

    name: str

    def head(self, most: int) -> tuple[Version, bytes]: ...
    def blocks(self, place: int, version: Version) -> Generator[bytes, None, None]: ...
    def interrupt(self) -> None: ...
    def listed(self) -> list[str] | None: ...
    def below(self, goes_into: Callable[[str], bool]) -> Iterator[tuple[str, str, str]]: ...


class Head(NamedTuple):
    """What an object was when it was last asked for, and its first bytes."""

    version: Version
    content: bytes

    @property
    def identity(self) -> str:
        """What is another one when the object is; of its first bytes where the server tells nothing."""
        digest = blake2b(self.content, digest_size=16).hexdigest
        return self.version.identity or repr((self.version.nbytes, "", "", digest()))


_heads: dict[str, Head] = {}


def _server(url: str) -> Server:
    # Here, because who reads files of this machine need not wait for them.
    if is_http(url):
        from sharedmask.remote.http import HttpServer

        return HttpServer(url)
    from sharedmask.remote.filesystems import FsspecServer

    return FsspecServer(url)


def look(url: str) -> Head:
    """Ask the server what the object is now.

    Raises MissingFileError: there is none.
    Raises RemoteError: the server refuses it, or cannot be reached.
    """
    head = Head(*_server(url).head(_HEAD))
    _heads.pop(url, None)
    _heads[url] = head
    with contextlib.suppress(RuntimeError):  # another thread does the same
        for oldest in list(_heads)[:-_KEPT]:
            _heads.pop(oldest, None)
    return head


def exists(url: str) -> bool:
    """Whether there is such an object, that may be read."""
    if trees.identity_of(url) is not None or trees.lacks(url):
        return not trees.lacks(url)
    try:
        look(url)
    except (MissingFileError, RemoteError):
        return False
    return True


def identity(url: str) -> str:
    """What is another one when the object is: of the walk that found it, else the server is asked."""
    return trees.identity_of(url) or look(url).identity


def listed(url: str) -> tuple[str, ...] | None:
    """Names in a folder; None where the server tells none. Asked once."""
    known = trees.names_of(url)
    return _asked(url) if known is None else tuple(known)


@functools.lru_cache(maxsize=256)
def _asked(url: str) -> tuple[str, ...] | None:
    found = _server(url).listed()
    return None if found is None else tuple(found)


def walk(url: str, goes_into: Callable[[str], bool], endings: tuple[str, ...]) -> trees.Tree:
    """The files below a folder, by one walk, through folders of names that it ``goes_into``.

    Raises MissingFileError: there is none.
    Raises RemoteError: the server refuses it, cannot be reached, or lists no folders.
    """
    url = url.rstrip("/")
    return trees.keep(trees.Tree.of(url, endings, _server(url).below(goes_into)))


class RemoteFile(io.RawIOBase):
    """The bytes of an object from the first on, of the version that was last looked at.

    Raises SourceChangedError where they would be of another one.
    """

    def __init__(self, url: str) -> None:
        self._ahead: _Ahead | None = None  # first: what cannot be looked at is closed too
        self.url, self.name = url, named(url)
        self._server = _server(url)
        head = _heads.get(url) or look(url)
        self.version = head.version
        self._piece = memoryview(head.content)
        self._place = len(head.content)

    @property
    def identity(self) -> bytes:
        """Where it is, and what tells it from others there; the server is asked anew."""
        return f"{self.name} {look(self.url).identity}".encode()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if not len(self._piece):
            self._piece = self._next()
        n = min(len(view), len(self._piece))
        view[:n], self._piece = self._piece[:n], self._piece[n:]
        return n

    def _next(self) -> memoryview:
        if self.version.nbytes is not None and self._place >= self.version.nbytes:
            return memoryview(b"")
        if self._ahead is None:
            self._ahead = _Ahead(self._server, self._place, self.version)
        piece = self._ahead.take()
        self._place += len(piece)
        return memoryview(piece)

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None
        super().close()


class _Ahead:
    """The pieces of an object, fetched by a thread while those before are decoded."""

    def __init__(self, server: Server, place: int, version: Version) -> None:
        self._server, self._stopped = server, False
        self._pieces = server.blocks(place, version)
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._last: bytes | BaseException | None = None
        self._thread: threading.Thread | None = threading.Thread(target=self._fetch, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads are allowed: who reads waits for the server
            self._thread = None

    def take(self) -> bytes:
        """The next piece; empty at the end."""
        if self._thread is None:
            return next(self._pieces, b"")
        if self._last is None:
            found = self._queue.get()
            if isinstance(found, bytes) and found:
                return found
            self._last = found
        if isinstance(self._last, BaseException):
            raise self._last
        return b""

    def stop(self) -> None:
        self._stopped = True
        if self._thread is None:
            return
        for _ in range(_WAITS):  # one that looks for a host ends with that
            self._server.interrupt()
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()
            self._thread.join(_WAIT)
            if not self._thread.is_alive():
                return

    def _fetch(self) -> None:
        try:
            with contextlib.closing(self._pieces) as pieces:
                for piece in pieces:
                    if self._stopped:
                        return
                    self._queue.put(piece)
            self._queue.put(b"")
        except BaseException as error:
            self._queue.put(error)
