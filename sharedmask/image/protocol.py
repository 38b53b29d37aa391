"""Messages between the coordinator and its clients, and the client's side of them.

Covers: framing, versions, who is at the other end, asking, starting a coordinator, and ending one that does
not answer. Does not cover: what the coordinator does (``coordinator``), what a client does with the handle
(``image``).

A message is its length (4 bytes, big-endian) and that many bytes of JSON. A connection that asked
for an image holds it until it is closed, by the client or by its death. To load one may take any time: a
client that waits asks now and then, by another connection, whether the coordinator still answers.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

from sharedmask import errors
from sharedmask.errors import AttachError, SharedMaskError
from sharedmask.storage import registry
from sharedmask.system import platform, process

ROLE = "coordinator"
VERSION = 1
ANSWER_SECONDS = 20.0
"""A coordinator that says nothing for so long does not run: whatever takes time leaves it able to answer."""
_REQUEST_BYTES = 64 * 1024
_ANSWER_BYTES = 16 * 2**20  # the list of some 90,000 images
_START_SECONDS = 20.0
_END_SECONDS = 10.0
_TIMEVAL = struct.Struct("ll")
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one message."""
    body = json.dumps({"version": VERSION, **message}).encode()
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket, most: int = _REQUEST_BYTES) -> dict[str, Any] | None:
    """The next message; None when the other end has closed.

    Raises AttachError: what came is no message of this version, or one of more than ``most`` bytes.
    """
    length = _read(connection, _LENGTH.size)
    if length is None:
        return None
    (size,) = _LENGTH.unpack(length)
    if size > most:
        raise AttachError(f"a message of {size} bytes; {most} are allowed")
    body = _read(connection, size)
    if body is None:
        return None
    try:
        message = json.loads(body)
        version = message["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AttachError(f"not a message of the coordinator: {error!r}") from error
    if version != VERSION:
        raise AttachError(f"a message of version {version!r}, this is version {VERSION}")
    return dict(message)


def _read(connection: socket.socket, size: int) -> bytes | None:
    """Exactly ``size`` bytes; None if the connection ends before."""
    parts = bytearray()
    with contextlib.suppress(ConnectionError):
        while len(parts) < size:
            part = connection.recv(size - len(parts))
            if not part:
                return None
            parts += part
        return bytes(parts)
    return None


def is_ours(connection: socket.socket) -> bool:
    """Whether the process at the other end is this user's; the kernel says so, not the process."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(raw)[1] == platform.user_id())


_open: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A child would keep what its parent has let go of.
    for connection in list(_open):
        connection.close()


process.at_fork(after_in_child=_after_fork_in_child)


def connect(timeout: float | None = None) -> socket.socket | None:
    """A connection to this user's coordinator on this machine; None if there is none.

    Raises AttachError: the coordinator does not take it in ``timeout`` seconds, by default
    ``ANSWER_SECONDS``.
    """
    if not platform.can_share():
        return None
    timeout = ANSWER_SECONDS if timeout is None else timeout
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The kernel's time-out: with Python's, a socket is refused at once where others wait before it.
        limit = _TIMEVAL.pack(int(timeout), int(timeout % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        with _answering(timeout), registry.socket_address(ROLE) as address:
            connection.connect(address)
        if not is_ours(connection):
            raise AttachError("the coordinator's socket belongs to another user")
        connection.settimeout(timeout)
        _open.add(connection)
        return connection
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise


def ask(connection: socket.socket, verb: str, **arguments: Any) -> dict[str, Any]:
    """Send a request and wait for the answer: to ``open``, for as long as the coordinator answers others.

    Raises SharedMaskError: the coordinator's own error, or that it went away, or does not answer.
    """
    timeout = connection.gettimeout() or ANSWER_SECONDS
    with _answering(timeout):
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            send(connection, {"verb": verb, **arguments})
        while verb == "open" and not platform.is_readable(connection, timeout / 4):
            _ask_whether_it_answers(timeout)
        answer = receive(connection, _ANSWER_BYTES)
    if answer is None:
        raise AttachError("the coordinator went away")
    if "error" in answer:
        raise _error(str(answer["error"]), str(answer.get("message")))
    return answer


def clients() -> dict[str, int]:
    """Token -> number of clients of each image that the coordinator holds; empty if there is none."""
    connection = connect()
    if connection is None:
        return {}
    with connection:
        return {image["token"]: image["clients"] for image in ask(connection, "list")["images"]}


def _ask_whether_it_answers(timeout: float) -> None:
    """Return if it says anything at all, be it that it has no room for us."""
    connection = connect(timeout)
    if connection is not None:
        with connection, contextlib.suppress(BrokenPipeError, ConnectionError):
            send(connection, {"verb": "list"})
            receive(connection, _ANSWER_BYTES)


@contextlib.contextmanager
def _answering(timeout: float) -> Iterator[None]:
    """The end of a time-out as an error that says what to do."""
    try:
        yield
    except (TimeoutError, BlockingIOError) as error:
        found = registry.claimed_by(ROLE)
        who = f"the coordinator (process {found[0]})" if found else "the coordinator"
        todo = "it may be stopped; `sharedmask serve --replace` ends it and takes its place"
        raise AttachError(f"{who} has not answered for {timeout:g} s: {todo}") from error


def _error(kind: str, message: str) -> SharedMaskError:
    found = getattr(errors, kind, SharedMaskError)
    proper = isinstance(found, type) and issubclass(found, SharedMaskError)
    return found(message) if proper else SharedMaskError(message)


def end() -> None:
    """End the coordinator, if there is one: by asking, and one that does not answer by force.

    Raises AttachError: it is a process that cannot be seen from here, or does not end.
    """
    found = registry.claimed_by(ROLE)
    for number in platform.signals("SIGTERM", "SIGKILL"):
        if found is None:
            return
        pid, started = found
        if process.start_time(pid) != started:
            raise AttachError(f"the coordinator is process {pid} of another container: end it there")
        for one in (number, *platform.signals("SIGCONT")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, one)
        deadline = time.monotonic() + _END_SECONDS
        while (found := registry.claimed_by(ROLE)) == (pid, started) and time.monotonic() < deadline:
            time.sleep(0.02)
    if found is not None:
        raise AttachError(f"the coordinator, process {found[0]}, does not end")


def start(idle: float = 1800.0) -> None:
    """Start a coordinator, which ends after ``idle`` seconds alone, and wait until it answers.

    Raises AttachError: it did not answer in time.
    """
    command = [sys.executable, "-m", "sharedmask", "serve", "--idle", f"{idle:g}s"]
    # A process in between starts it and ends: then it is nobody's child, and no one's to wait for.
    script = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
    subprocess.run(
        [sys.executable, "-c", script, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        connection = connect()
        if connection is not None:
            connection.close()
            return
        time.sleep(0.02)
    raise AttachError(f"no coordinator could be started: `{' '.join(command[1:])}` tells why")
