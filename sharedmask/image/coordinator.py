"""The coordinator: a process that loads images for others, each once, and keeps them in its limit.

Covers: which images are held, for whom, which goes when room is needed (memory, file descriptors), clients
that there is no room for, when the process ends.
Does not cover: messages (``protocol``), loading (``image``), cleaning up after a kill (``registry``).

Who holds what::

    client ──connection──> _Held ──> SharedImage (one load, under the entry's own lock)

    A client holds an image from the moment it asked for it, before the loading starts, until its
    connection ends. Only images that nobody holds make room for others, least recently used first.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import field
from typing import Any, Literal
from weakref import WeakSet

from sharedmask.errors import AttachError, MemoryLimitError, SegmentError, SharedMaskError
from sharedmask.image import protocol
from sharedmask.image.image import SharedImage
from sharedmask.records import dataclass
from sharedmask.sources.opening import open_source
from sharedmask.storage.registry import Claim, directory, socket_address
from sharedmask.system import limits, platform, process
from sharedmask.system.budget import MemoryBudget
from sharedmask.system.process import Lock, Semaphore
from sharedmask.system.threads import start
from sharedmask.system.units import format_bytes, parse_bytes

Key = tuple[str, str]

_TICK_SECONDS = 0.2
_END_SECONDS = 10.0  # a file system that hangs must not keep us from ending
_LOADS_AT_ONCE = 8
_LOADING_DESCRIPTORS = 8  # of one load
# Kept free: what loads need, what answering needs.
_SPARE_DESCRIPTORS = 16 + _LOADS_AT_ONCE * _LOADING_DESCRIPTORS


_serving: "WeakSet[Coordinator]" = WeakSet()


def _after_fork_in_child() -> None:
    for coordinator in list(_serving):
        coordinator.forget()


process.at_fork(after_in_child=_after_fork_in_child)


@dataclass(eq=False)
class _Held:
    """One image and who holds it."""

    key: Key
    image: SharedImage
    loading: Lock = field(default_factory=Lock)
    clients: set[int] = field(default_factory=set)
    used: float = field(default_factory=time.monotonic)
    admitted: bool = False
    """Whether room was made for it: it counts from then on, loaded or not."""
    loaded: bool = False


class Coordinator:
    """Loads images on request, once each, and shares them with all processes of this user.

    Parameters
    ----------
    memory_limit : int, float or str, optional
        What all its images may take together (``"64G"``); default: the memory free at the start.
    idle : float, optional
        End after so many seconds without a client; None: never.
    store : {"auto", "shm", "memfd"}
        Where images live, as for :class:`~sharedmask.SharedImage`.

    Examples
    --------
    >>> with Coordinator(memory_limit="1G") as coordinator:
    ...     coordinator.n_loads
    0
    """

    def __init__(
        self,
        *,
        memory_limit: int | float | str | None = None,
        idle: float | None = None,
        store: Literal["auto", "shm", "memfd"] = "auto",
    ) -> None:
        self._limit = MemoryBudget.here().limit if memory_limit is None else parse_bytes(memory_limit)
        self._idle = idle
        self._store = store
        self._lock = Lock()
        self._loads = Semaphore(_LOADS_AT_ONCE)
        self._images: dict[Key, _Held] = {}
        self._clients: dict[int, socket.socket] = {}
        self._stopping = False
        self._ended = False
        self._threads: list[threading.Thread] = []
        self.n_loads = 0

    # --- life ---

    def __enter__(self) -> "Coordinator":
        if not platform.can_share():
            raise SegmentError(platform.NOT_SHARED)
        with contextlib.ExitStack() as opened:
            self._claim = Claim(protocol.ROLE)
            opened.callback(self._claim.release)
            self._socket = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            with socket_address(protocol.ROLE) as address:
                self._socket.bind(address)
                os.chmod(address, 0o600)
            self._socket.listen(128)
            self._socket.settimeout(_TICK_SECONDS)
            self._accepting = threading.Thread(target=self._accept, name="sharedmask-accept", daemon=True)
            start(self._accepting)
            self._opened = opened.pop_all()
            _serving.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._accepting.join()
        self._opened.close()
        with self._lock:
            self._ended = True  # nobody adds an image from here on
            clients, images = list(self._clients.values()), list(self._images.values())
            self._images.clear()
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _END_SECONDS
        for held in images:
            if held.loading.acquire(timeout=max(deadline - time.monotonic(), 0)):
                held.image.close()
                held.loading.release()
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))

    def forget(self) -> None:
        """In a forked child: clients and images are the parent's."""
        self._ended = True
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._images.clear()

    def stop(self) -> None:
        """Ask the coordinator to end; safe in a signal handler, which may wait for no lock."""
        self._stopping = True

    def wait(self) -> None:
        """Return when it was asked to stop, or nobody came for ``idle`` seconds.

        Raises
        ------
        SegmentError
            The registry was removed: nobody finds the coordinator or its images any more.
        """
        alone_since = time.monotonic()
        while not self._stopping:
            if not self._claim.is_found:
                raise SegmentError(
                    f"the registry {directory()} was removed: nobody finds this coordinator any more"
                )
            with self._lock:
                alone = not self._clients
            alone_since = alone_since if alone else time.monotonic()
            if self._idle is not None and time.monotonic() - alone_since > self._idle:
                return
            time.sleep(_TICK_SECONDS)

    # --- clients ---

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                continue
            except OSError:  # no descriptor for it: it waits until there is one
                self._close_least_recent()
                time.sleep(_TICK_SECONDS)
                continue
            try:
                self._admit(connection)
            except SharedMaskError as error:
                _refuse(connection, error)

    def _admit(self, connection: socket.socket) -> None:
        self._require_descriptors()
        connection.settimeout(None)
        thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
        start(thread)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]

    def _serve(self, connection: socket.socket) -> None:
        client = id(connection)
        with connection:
            if not protocol.is_ours(connection):
                return
            with self._lock:
                self._clients[client] = connection
            try:
                self._answer_all(client, connection)
            finally:
                self._forget(client)

    def _answer_all(self, client: int, connection: socket.socket) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            while not self._stopping:
                try:
                    request = protocol.receive(connection)
                except AttachError as error:  # what follows cannot be told from it
                    protocol.send(connection, _described(error))
                    return
                if request is None:
                    return
                protocol.send(connection, self._answer(client, request))

    def _answer(self, client: int, request: dict[str, Any]) -> dict[str, Any]:
        try:
            verb = request.get("verb")
            if verb == "open":
                if "name" in request:
                    return {"handle": self.find(str(request["name"]), client)}
                return {"handle": self.open(str(request.get("path")), client)}
            if verb == "drop":
                return {"dropped": self.drop(str(request.get("name")))}
            if verb == "list":
                return {"images": self.images(), "n_loads": self.n_loads}
            raise SharedMaskError(f"the coordinator knows no {verb!r}")
        except Exception as error:
            return _described(error)

    def _forget(self, client: int) -> None:
        with self._lock:
            self._clients.pop(client, None)
            for held in self._images.values():
                held.clients.discard(client)

    # --- images ---

    def find(self, name: str, client: int = 0) -> str | None:
        """An image already asked for, by its name.

        Parameters
        ----------
        name : str
            What ``sharedmask ls`` calls it.
        client : int
            Who asks and holds the image from now on; 0: nobody.

        Returns
        -------
        str or None
            Its handle as JSON; None if there is none.
        """
        with self._lock:
            held = next((held for held in self._images.values() if held.image.name == name), None)
            if held is None:
                return None
            self._held_by(held, client)
        return self._handle(held)

    def open(self, path: str, client: int = 0) -> str:
        """The image at a path, loaded if it is not.

        Parameters
        ----------
        path : str
            Absolute.
        client : int
            Who asks and holds the image from now on; 0: nobody.

        Returns
        -------
        str
            Its handle as JSON.

        Raises
        ------
        SharedMaskError
            Whatever loading it raises; MemoryLimitError if clients hold all that would make room.
        """
        return self._handle(self._hold(path, client))

    def _handle(self, held: _Held) -> str:
        with held.loading:
            if not held.loaded:
                self._load(held)
        held.used = time.monotonic()
        return held.image.handle.to_json()

    def _hold(self, path: str, client: int) -> _Held:
        found = open_source(path)
        key = (os.path.realpath(path), found.fingerprint)
        with self._lock:
            if self._ended:
                raise AttachError("the coordinator is ending")
            if key not in self._images:
                self._images[key] = _Held(key, SharedImage(found, store=self._store))
            return self._held_by(self._images[key], client)

    @staticmethod
    def _held_by(held: _Held, client: int) -> _Held:
        if client:
            held.clients.add(client)
        return held

    def _load(self, held: _Held) -> None:
        try:
            with self._loads:
                self._require_descriptors()
                self._close(lambda: self._in_the_way(held))
                held.image.load()
        except BaseException:
            with self._lock:
                held.admitted = False
                self._images.pop(held.key, None)
            raise
        held.loaded = True
        with self._lock:
            self.n_loads += 1
            if not self._ended:
                self._images.setdefault(held.key, held)  # another client's failed attempt removed it
                return
        held.image.close()

    def _in_the_way(self, wanted: _Held) -> list[_Held]:
        """Images that nobody holds, without which ``wanted`` fits; it is admitted now."""
        others = [held for held in self._images.values() if held is not wanted and held.admitted]
        missing = sum(held.image.nbytes for held in others) + wanted.image.nbytes - self._limit
        free, leaving = self._unused(), []
        while missing > 0 and free:
            leaving.append(free.pop(0))
            missing -= leaving[-1].image.nbytes
        if missing > 0:
            taken, more, limit = map(format_bytes, (wanted.image.nbytes, missing, self._limit))
            raise MemoryLimitError(
                f"{wanted.image.name} takes {taken}: with the images that clients hold that is {more} "
                f"more than the coordinator's limit of {limit}"
            )
        wanted.admitted = True
        return leaving

    def _close(self, chosen: Callable[[], list[_Held]]) -> int:
        """Close the images that are ``chosen`` while none comes or goes; how many."""
        with self._lock:
            leaving = chosen()
            for held in leaving:
                del self._images[held.key]
        for held in leaving:
            held.image.close()
        return len(leaving)

    def _unused(self) -> list[_Held]:
        """Images that nobody holds, the least recently used first."""
        unused = (held for held in self._images.values() if held.loaded and not held.clients)
        return sorted(unused, key=lambda held: held.used)

    def _require_descriptors(self) -> None:
        """Close images that nobody holds until there are file descriptors to go on with."""
        while limits.descriptors_left() < _SPARE_DESCRIPTORS:
            if not self._close_least_recent():
                held = f"{len(self._clients)} clients hold {len(self._images)} images"
                raise SegmentError(f"the coordinator has no file descriptor left: {held}; raise `ulimit -n`")

    def _close_least_recent(self) -> bool:
        """Close an image that nobody holds; whether there was one."""
        return self._close(lambda: self._unused()[:1]) > 0

    def drop(self, name: str) -> int:
        """Close the images of a name; clients keep what they have.

        Parameters
        ----------
        name : str
            What ``sharedmask ls`` calls them.

        Returns
        -------
        int
            How many there were.
        """
        return self._close(
            lambda: [held for held in self._images.values() if held.image.name == name and held.loaded]
        )

    def images(self) -> list[dict[str, Any]]:
        """What is held.

        Returns
        -------
        list of dict
            Segment (``token``), ``name`` and number of ``clients`` of each image.
        """
        with self._lock:
            loaded = [(held, len(held.clients)) for held in self._images.values() if held.loaded]
        return [
            {"token": held.image.handle.token, "name": held.image.name, "clients": clients}
            for held, clients in loaded
        ]


def _described(error: Exception) -> dict[str, Any]:
    """An error as a message has it; those that are not ours by their kind, too."""
    said = str(error) if isinstance(error, SharedMaskError) else f"{type(error).__name__}: {error}"
    return {"error": type(error).__name__, "message": said}


def _refuse(connection: socket.socket, error: Exception) -> None:
    """Say why there is no place for a client, without waiting for it."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_TICK_SECONDS)
        if protocol.is_ours(connection):
            protocol.send(connection, _described(error))
