"""HTTP: objects by ``http://`` and ``https://``, read forward over one connection.

Covers: requests by the standard library (proxies and certificates are those of the environment, or of the
opener that the program has installed), byte ranges and servers without them, which answers pass by, going on
at the byte where a connection broke, pages that list a folder. Does not cover: other protocols
(``filesystems``), reading ahead (``objects``).
"""

import contextlib
import copy
import functools
import os
import socket
import urllib.request
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Generator, Iterator
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from http.client import HTTPConnection, HTTPException, HTTPResponse
from threading import Event
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import AbstractHTTPHandler, OpenerDirector, Request, build_opener

from sharedmask.errors import MissingFileError, RemoteError, SharedMaskError, SourceChangedError
from sharedmask.remote import retries
from sharedmask.remote.addresses import named
from sharedmask.remote.retries import Retries
from sharedmask.remote.threads import Threads
from sharedmask.remote.version import Version

_PIECE = 256 * 1024  # of what is taken from a connection at once
_PAGE = 64 * _PIECE  # of one that lists a folder
_AT_ONCE = 6  # such pages
_GONE = (404, 410)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_NO_SUCH_RANGE = 416
_PARTIAL = 206
_BROKEN = (OSError, HTTPException)
_PLAIN = "/%:@!$&'()*+,;=~"  # what addresses have besides letters and digits


class _PassingError(OSError):
    """After which the same may be asked again, in so many seconds; what to say if that is of no use."""

    def __init__(self, said: str, cause: BaseException | None = None, after: float = 0.0) -> None:
        self.error, self.after = RemoteError(said), after
        self.error.__cause__ = cause
        self.is_answer = cause is None or isinstance(cause, HTTPError)


class HttpServer:
    """One object and the way to it."""

    def __init__(self, url: str, is_needed: bool = True) -> None:
        self.url, self.name = url, named(url)
        self._tries_unanswered = retries.TRIES if is_needed else retries.TRIES_OF_OPTIONAL
        self._response: HTTPResponse | None = None
        self._asked: HTTPConnection | None = None
        self._stopped = Event()

    def head(self, most: int) -> tuple[Version, bytes]:
        """What the object is, and its first bytes, at ``most`` so many."""
        tries = Retries(self._stopped)
        while True:
            try:
                with self._from(0, most) as (version, response):
                    taken = response.read(most)
                    self._refuse_page(response, taken)
                if len(taken) == min(most, version.nbytes or 0) or version.nbytes is None:
                    return version, taken
                passing = self._cut(len(taken), version)
            except _BROKEN as failure:
                passing = self._passing(failure)
            tries.wait(passing.error, passing.after, None if passing.is_answer else self._tries_unanswered)

    def blocks(self, place: int, version: Version) -> Generator[bytes, None, None]:
        """The bytes of that version from ``place`` on, piece by piece, however often the line is cut."""
        tries = Retries(self._stopped)
        while version.nbytes is None or place < version.nbytes:
            try:
                with self._from(place) as (now, response):
                    version.check(now, self.name)
                    while piece := response.read1(_PIECE):
                        place += len(piece)
                        tries.progress()
                        yield piece
                if version.nbytes is None:
                    return
                passing = self._cut(place, version)
            except _BROKEN as failure:
                passing = self._passing(failure)
            if version.nbytes is None or place < version.nbytes:
                tries.wait(passing.error, passing.after)

    def interrupt(self) -> None:
        """Let another thread that waits for bytes come back at once."""
        self._stopped.set()
        for end in (self._response, getattr(self._asked, "sock", None)):  # that may not have answered yet
            with contextlib.suppress(AttributeError, OSError, ValueError):
                line = socket.socket(fileno=os.dup(end.fileno()))  # type: ignore[union-attr]
                with line:
                    line.shutdown(socket.SHUT_RDWR)

    def listed(self) -> list[str] | None:
        """Names in a folder, if the server has a page that lists them."""
        try:
            return self._page()
        except HTTPError as refusal:
            refusal.close()
        except _BROKEN as failure:
            if self._stopped.is_set():  # which says nothing of the server
                raise self._passing(failure).error from failure
        return None

    def below(self, goes_into: Callable[[str], bool]) -> Iterator[tuple[str, str, str]]:
        """Folder and name of all files; a request for each folder, several at a time."""
        with Threads(_AT_ONCE, "sharedmask-remote") as threads:
            try:
                pages = deque([("", threads.submit(self._names))])
                while pages:
                    folder, page = pages.popleft()
                    for name in page.result():
                        if goes_into(name):
                            inner = HttpServer(f"{self.url}/{folder}{name}")
                            pages.append((f"{folder}{name}/", threads.submit(inner._names)))
                        else:
                            yield folder, name, ""
            finally:
                threads.shutdown(wait=True, cancel_futures=True)

    def _names(self) -> list[str]:
        """Of a folder that has to be listed."""
        tries = Retries(self._stopped)
        while True:
            try:
                if (names := self._page()) is not None:
                    return names
                raise RemoteError(f"{self.name} cannot be searched: its server has no page that lists it")
            except HTTPError as failure:
                with failure:
                    passing = self._passing(self._refusal(failure))
            except _BROKEN as failure:
                passing = self._passing(failure)
            tries.wait(passing.error, passing.after)

    def _page(self) -> list[str] | None:
        with _ask(self.url.rstrip("/") + "/", {}, self) as response:
            if "text/html" not in response.headers.get("Content-Type", ""):
                return None
            return _links(response.url, response.read(_PAGE).decode("utf-8", "replace"))

    # --- one request -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _from(self, place: int, most: int | None = None) -> Iterator[tuple[Version, HTTPResponse]]:
        """What answers now, and its bytes from ``place`` on; those before are passed over."""
        last = "" if most is None else place + most - 1
        try:
            response = _ask(self.url, {"Range": f"bytes={place}-{last}"}, self)
        except HTTPError as error:
            with error:
                if error.code == _NO_SUCH_RANGE and not place:  # of nothing there is no first byte
                    response = _ask(self.url, {}, self)
                elif error.code == _NO_SUCH_RANGE:
                    raise SourceChangedError(f"{self.name} is shorter now than {place} bytes") from error
                else:
                    raise self._refusal(error) from error
        with response:
            self._response = response
            yield self._version(response, place), response

    def _refuse_page(self, response: HTTPResponse, head: bytes) -> None:
        """What asks for a password, or says that nothing is there, is no image and no sidecar."""
        if "text/html" in response.headers.get("Content-Type", "") and head.lstrip().startswith(b"<"):
            raise MissingFileError(f"{self.name} does not exist: the server answers with a web page")

    def _refuse_packed(self, packed: str) -> None:
        """Bytes that are not the object's own; what is called so may be stored so, and comes as it is."""
        own = packed in ("gzip", "x-gzip") and urlsplit(self.url).path.lower().endswith(".gz")
        if packed not in ("", "identity") and not own:
            raise RemoteError(
                f"{self.name}: the server sends it compressed ({packed}), which was not asked for"
            )

    def _version(self, response: HTTPResponse, place: int) -> Version:
        told, headers = response.headers.get("Content-Length"), response.headers
        length = int(told) if told is not None and told.isdigit() else None
        self._refuse_packed(headers.get("Content-Encoding", "").strip().lower())
        if response.status == _PARTIAL:
            span, _, whole = headers.get("Content-Range", "").removeprefix("bytes").strip().partition("/")
            if span.partition("-")[0] != str(place):
                raise RemoteError(f"{self.name}: byte {place} was asked for, {span or 'others'} came")
            length = int(whole) if whole.isdigit() else None
        else:
            self._skip(response, place)
        return Version(length, headers.get("ETag", ""), headers.get("Last-Modified", ""))

    def _skip(self, response: HTTPResponse, left: int) -> None:
        while left and (piece := response.read1(min(left, _PIECE))):
            left -= len(piece)
        if left:
            raise _PassingError(f"{self.name}: the line was cut {left} bytes before the place to go on at")

    # --- what becomes of failures ----------------------------------------------------------------

    def _cut(self, place: int, version: Version) -> _PassingError:
        return _PassingError(f"{self.name} ended after {place} of {version.nbytes} bytes")

    def _refusal(self, error: HTTPError) -> OSError:
        leads = error.code // 100 == 3  # somewhere that may hold secrets, which the reason has
        reason = "and leads to nothing that can be read" if leads else error.reason
        said = f"{self.name}: the server answered {error.code} {reason}"
        if error.code in _GONE:
            return MissingFileError(f"{self.name} does not exist: {error.code} {error.reason}")
        if error.code not in _PASSING:
            return RemoteError(said)
        return _PassingError(said, error, _seconds(error.headers.get("Retry-After", "")))

    def _passing(self, failure: BaseException) -> _PassingError:
        """A failure that may pass by, in words; others are raised."""
        if isinstance(failure, _PassingError):
            return failure
        if isinstance(failure, SharedMaskError):
            raise failure
        reason = failure.reason if isinstance(failure, URLError) else failure
        if isinstance(reason, TimeoutError):
            reason = f"nothing came for {retries.TIMEOUT:g} s"
        passing = _PassingError(f"{self.name} cannot be read: {reason or type(failure).__name__}", failure)
        if _is_final(failure):
            raise passing.error
        return passing


def _is_final(failure: BaseException) -> bool:
    """Whether trying again is of no use: the host has no such name, or shows a wrong certificate."""
    import ssl

    reason = getattr(failure, "reason", failure)
    return isinstance(reason, ssl.SSLCertVerificationError) or (
        isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME
    )


def _seconds(told: str) -> float:
    """What ``Retry-After`` says: seconds, or a date."""
    if told.isdigit():
        return float(told)
    with contextlib.suppress(TypeError, ValueError):
        from datetime import UTC, datetime

        return max((parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds(), 0.0)
    return 0.0


def _opener(server: HttpServer) -> Any:
    """The program's opener, or that of the environment; one that tells the server of its connections.

    They are told of before the server has answered, as who interrupts waits for no answer.
    """
    # Whatever asked by urllib before has installed one: it is no reason to know of no connection.
    installed: Any = getattr(urllib.request, "_opener", None) or _default()
    if type(installed) is not OpenerDirector:  # which may do anything, and does it as it is
        return installed
    opener = OpenerDirector()
    opener.addheaders = installed.addheaders
    for handler in map(copy.copy, installed.handlers):  # type: ignore[attr-defined]
        if isinstance(handler, AbstractHTTPHandler):
            setattr(handler, "do_open", functools.partial(_opened, server, handler.do_open))  # noqa: B010
        opener.add_handler(handler)
    return opener


@functools.cache
def _default() -> OpenerDirector:
    return build_opener()


def _opened(server: HttpServer, do_open: Any, http_class: Any, request: Request, **options: Any) -> Any:
    def connection(*place: Any, **more: Any) -> HTTPConnection:
        made: HTTPConnection = http_class(*place, **more)
        server._asked = made
        return made

    return do_open(connection, request, **options)


def _ask(url: str, headers: dict[str, str], server: HttpServer) -> HTTPResponse:
    user, address = _written(url)
    request = Request(address, headers={"Accept-Encoding": "identity", "User-Agent": "sharedmask", **headers})
    if user:  # never sent on to where the server leads
        secret = b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    for name, value in _configured(request.type).items():
        request.add_unredirected_header(name, value)
    response: HTTPResponse = _opener(server).open(request, timeout=retries.TIMEOUT)
    return response


def _written(url: str) -> tuple[str, str]:
    """Who asks, and the address as a request has it.

    Raises RemoteError: it is none.
    """
    try:
        parts = urlsplit(url)
        user, _, host = parts.netloc.rpartition("@")
        _ = parts.port  # which is looked at now
        host = host if host.isascii() else host.encode("idna").decode()
        if not parts.hostname:
            raise ValueError("it names no host")
    except ValueError as error:
        raise RemoteError(f"{named(url)} is no address: {error}") from error
    path, query = quote(parts.path, safe=_PLAIN), quote(parts.query, safe=f"{_PLAIN}?[]")
    return user, parts._replace(netloc=host, path=path, query=query, fragment="").geturl()


def _configured(scheme: str) -> dict[str, str]:
    """Headers that the user's configuration of fsspec has for such servers, as tokens are given there."""
    told: Any = f"FSSPEC_{scheme.upper()}"
    if not any(name.startswith(told) for name in os.environ) and not os.path.isdir(
        os.environ.get("FSSPEC_CONFIG_DIR", os.path.expanduser("~/.config/fsspec"))
    ):
        return {}
    try:
        from fsspec.config import conf
    except ImportError:
        return {}
    options = conf.get(scheme, {})
    return dict(options.get("headers") or options.get("client_kwargs", {}).get("headers") or {})


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _links(folder: str, page: str) -> list[str]:
    """Names of what a page links to directly below the folder."""
    reader = _Links()
    reader.feed(page)
    places = {urljoin(folder, link).partition("?")[0].partition("#")[0] for link in reader.found}
    below = {place.removeprefix(folder).rstrip("/") for place in places if place.startswith(folder)}
    return sorted(unquote(name) for name in below if name and "/" not in name)
