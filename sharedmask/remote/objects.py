"""Objects on servers: what one is, its bytes as a file that is read forward, what lies beside it.

Covers: telling versions apart, asking for several at once, reading ahead in a thread while the caller
decodes, walking a tree once. Does not cover: how bytes come (``http``, ``filesystems``), what they mean.

Who opens an image asks for its first bytes several times (magic, header): these are kept for the objects
that were looked at last, with what the server said, and what is read later is of that version or an error.
Each answer takes as long as the way there and back: what is known to be asked for is asked for together.
"""

import contextlib
import io
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self

from sharedmask.errors import ImageError, MissingFileError, RemoteError, SourceChangedError
from sharedmask.remote import trees
from sharedmask.remote.addresses import is_http, named
from sharedmask.remote.threads import Threads
from sharedmask.remote.version import Version

_HEAD = 64 * 1024
_KEPT = 16  # heads
_KEPT_FOLDERS = 256
_AT_ONCE = 16  # objects that are asked for together
_AHEAD = 40  # pieces that wait to be decoded, of 256 KiB by HTTP: the last answer comes meanwhile
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
_folders: dict[str, tuple[str, ...] | None] = {}
_NONE: Mapping[str, "Future[Any]"] = MappingProxyType({})
_together: ContextVar[Mapping[str, "Future[Any]"]] = ContextVar("_together", default=_NONE)


def _server(url: str, is_needed: bool = True) -> Server:
    # Here, because who reads files of this machine need not wait for them.
    if is_http(url):
        from sharedmask.remote.http import HttpServer

        return HttpServer(url, is_needed)
    from sharedmask.remote.filesystems import FsspecServer

    return FsspecServer(url)


def look(url: str) -> Head:
    """Ask the server what the object is now; in a block of :func:`together`, what it was there.

    Raises MissingFileError: there is none.
    Raises RemoteError: the server refuses it, or cannot be reached.
    """
    return _looked_at(url, is_needed=True)


def _looked_at(url: str, is_needed: bool) -> Head:
    asked = _together.get().get(url)
    return _look(url, _server(url, is_needed)) if asked is None else asked.result()


def seen(url: str) -> Head:
    """What the object was when it was last looked at; who reads it learns whether it is that still."""
    return _heads.get(url) or look(url)


def _look(url: str, server: Server) -> Head:
    head = Head(*server.head(_HEAD))
    _heads.pop(url, None)
    _heads[url] = head
    with contextlib.suppress(RuntimeError):  # another thread does the same
        for oldest in list(_heads)[:-_KEPT]:
            _heads.pop(oldest, None)
    return head


@contextlib.contextmanager
def together(needed: str, others: Iterable[str], folders: Iterable[str]) -> Iterator[None]:
    """In the block these are asked for once, beside each other; nobody waits for one until it is needed."""
    urls = [url for url in (needed, *others) if not _is_walked(url.rpartition("/")[0])]
    servers = {url: _server(url, url == needed) for url in urls}
    with Threads(_AT_ONCE, "sharedmask-remote") as threads:
        asked: dict[str, Future[Any]] = {
            url: threads.submit(_look, url, server) for url, server in servers.items()
        }
        lists = {url: _server(url) for url in folders if not _is_walked(url)}
        asked |= {url: threads.submit(_listed, url, server) for url, server in lists.items()}
        before = _together.set(asked)
        try:
            yield
        finally:
            _together.reset(before)
            threads.shutdown(wait=False, cancel_futures=True)
            for url, server in (servers | lists).items():
                if not asked[url].done():  # nobody needed it
                    server.interrupt()


def _is_walked(folder: str) -> bool:
    return trees.names_of(folder) is not None


def exists(url: str) -> bool:
    """Whether there is such an object, that may be read."""
    if trees.identity_of(url) is not None or trees.lacks(url):
        return not trees.lacks(url)
    try:
        _looked_at(url, is_needed=False)
    except (MissingFileError, RemoteError):
        return False
    return True


def identity(url: str) -> str:
    """What is another one when the object is: of the walk that found it, else the server is asked."""
    return trees.identity_of(url) or look(url).identity


def listed(url: str) -> tuple[str, ...] | None:
    """Names in a folder; None where the server tells none. Asked once."""
    known = trees.names_of(url)
    if known is not None:
        return tuple(known)
    asked = _together.get().get(url)
    return _listed(url, _server(url)) if asked is None else asked.result()


def _listed(url: str, server: Server) -> tuple[str, ...] | None:
    if url in _folders:
        return _folders[url]
    found = server.listed()
    names = None if found is None else tuple(found)
    if len(_folders) < _KEPT_FOLDERS:
        _folders[url] = names
    return names


def walk(url: str, goes_into: Callable[[str], bool], endings: tuple[str, ...]) -> trees.Tree:
    """The files below a folder, by one walk, through folders of names that it ``goes_into``.

    Raises MissingFileError: there is none.
    Raises RemoteError: the server refuses it, cannot be reached, or lists no folders.
    """
    url = url.rstrip("/")
    return trees.keep(trees.Tree.of(url, endings, _server(url).below(goes_into)))


class RemoteFile(io.RawIOBase):
    """The bytes of an object from the first on, of the version that was last looked at.

    A server that replaces the file under an answer sends bytes of both: what came is believed when the object
    was looked at once more, before its last bytes are given, else at the end of the ``with`` block.

    Raises SourceChangedError where they would be of another one.
    """

    def __init__(self, url: str) -> None:
        self._ahead: _Ahead | None = None  # first: what cannot be looked at is closed too
        self.url, self.name = url, named(url)
        self._head = seen(url)
        self._begin()

    def _begin(self) -> None:
        self._piece = memoryview(self._head.content)
        self._place = len(self._head.content)

    @property
    def version(self) -> Version:
        """Of all of its bytes."""
        return self._head.version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        ahead = self._ahead
        self.close()
        if ahead is not None and not ahead.is_whole and (error is None or _may_be_of_a_change(error)):
            self.version.check(look(self.url).version, self.name)

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
            self._ahead = _Ahead(self.url, self._place, self.version)
        piece = self._ahead.take()
        self._place += len(piece)
        return memoryview(piece)

    def seek(self, place: int, whence: int = 0, /) -> int:
        """Begin again, which is all that can be done."""
        if place or whence:
            raise io.UnsupportedOperation("a file on a server is read forward")
        self._stop()
        self._begin()
        return 0

    def close(self) -> None:
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None


def _may_be_of_a_change(error: BaseException) -> bool:
    """Whether bytes of two versions may be the reason; a server that does not answer is not asked again."""
    return isinstance(error, (ImageError, OSError)) and not isinstance(
        error, (RemoteError, SourceChangedError)
    )


class _Ahead:
    """The pieces of an object, fetched by a thread while those before are decoded."""

    def __init__(self, url: str, place: int, version: Version) -> None:
        self._url, self._server, self._stopped = url, _server(url), False
        self._pieces = self._believed(self._server.blocks(place, version), version)
        self.is_whole = False
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

    def _believed(
        self, pieces: Generator[bytes, None, None], version: Version
    ) -> Generator[bytes, None, None]:
        """All of them, the last one when the object was looked at again."""
        last = b""
        with contextlib.closing(pieces):
            for piece in pieces:
                if last:
                    yield last
                last = piece
        version.check(_look(self._url, self._server).version, self._server.name)
        self.is_whole = True
        if last:
            yield last

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
