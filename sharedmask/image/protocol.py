"""Messages between the coordinator and its clients, and the client's side of them.

Covers: framing, versions, who is at the other end, asking. Does not cover: what the coordinator
does (``coordinator``), what a client does with the handle (``image``).

A message is its length (4 bytes, big-endian) and that many bytes of JSON. A connection that asked
for an image holds it until it is closed, by the client or by its death.
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
from typing import Any

from sharedmask import errors
from sharedmask.errors import AttachError, SharedMaskError
from sharedmask.storage import registry

ROLE = "coordinator"
VERSION = 1
_MAX_BYTES = 64 * 1024
_START_SECONDS = 20.0
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one message."""
    body = json.dumps({"version": VERSION, **message}).encode()
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message; None when the other end has closed.

    Raises
    ------
    AttachError
        What came is no message of this version.
    """
    length = _read(connection, _LENGTH.size)
    if length is None:
        return None
    (size,) = _LENGTH.unpack(length)
    if size > _MAX_BYTES:
        raise AttachError(f"a message of {size} bytes; {_MAX_BYTES} are allowed")
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
    return bool(_CREDENTIALS.unpack(raw)[1] == os.geteuid())


_open: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A child would keep what its parent has let go of.
    for connection in list(_open):
        connection.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def connect(timeout: float | None = None) -> socket.socket | None:
    """A connection to this user's coordinator on this machine; None if there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with registry.socket_address(ROLE) as address:
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
    """Send a request and wait for the answer.

    Raises
    ------
    SharedMaskError
        The coordinator's own error, or that it went away.
    """
    with contextlib.suppress(BrokenPipeError, ConnectionError):
        send(connection, {"verb": verb, **arguments})
    answer = receive(connection)
    if answer is None:
        raise AttachError("the coordinator went away")
    if "error" in answer:
        raise _error(str(answer["error"]), str(answer.get("message")))
    return answer


def _error(kind: str, message: str) -> SharedMaskError:
    found = getattr(errors, kind, SharedMaskError)
    proper = isinstance(found, type) and issubclass(found, SharedMaskError)
    return found(message) if proper else SharedMaskError(message)


def start(idle: float = 1800.0) -> None:
    """Start a coordinator, which ends after ``idle`` seconds alone, and wait until it answers.

    Raises
    ------
    AttachError
        It did not answer in time.
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
