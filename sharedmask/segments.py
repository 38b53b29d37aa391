"""Where bytes live: create a segment, reserve it, attach to it read-only, unlink it.

Covers: named shared memory, its header page, handles and their checks. Does not cover: who owns
a segment and what happens when the owner dies (``registry``), what the bytes mean (``image``).

A segment is one header page, then arrays at multiples of 64 bytes::

    0      16         20            4080      4096
    | magic | length  | JSON facts  | blake2b | array | pad | array ...

The header is written last: a segment without a valid one was never finished.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from sharedmask.errors import AttachError, SegmentError

_MAGIC = b"sharedmask\x00\x00\x00\x00\x00\x01"
_HEADER_BYTES = 4096
_DIGEST_BYTES = 16
_ALIGNMENT = 64
_RESERVE_BYTES = 64 * 2**20
_SHM = Path("/dev/shm")
_VERSION = 1

TOKEN = re.compile(r"[0-9a-f]{32}")
NAME = re.compile(r"sharedmask-[0-9a-f]{16}")
_DTYPE = re.compile(r"[<>|=][biuf]\d+")

Array = NDArray[Any]
Geometry = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


@dataclass(frozen=True)
class Handle:
    """All that another process of this user on this machine needs to attach: a few hundred bytes.

    It holds identities, not geometry: shapes and dtypes come from the segment's own header.
    """

    token: str
    store: str
    name: str
    nbytes: int
    dev: int
    ino: int
    uid: int
    host: str
    boot_id: str
    pid: int
    started: int
    created: float
    label: str
    version: int = _VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Handle":
        """Parse a handle, checking the types of all fields."""
        try:
            fields = json.loads(text)
            handle = cls(**fields)
        except (ValueError, TypeError, RecursionError) as error:
            raise AttachError(f"not a handle of a shared image: {error}") from error
        for name, kind in cls.__annotations__.items():
            if type(getattr(handle, name)) is not kind:
                raise AttachError(f"not a handle of a shared image: {name} is no {kind.__name__}")
        return handle


@cache
def boot_id() -> str:
    """What changes when this machine restarts."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def start_time(pid: int) -> int:
    """When process ``pid`` started, in clock ticks since boot; 0 where that cannot be told.

    A pid is used again, a pid with its start time is not.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The second field, the command's name, may contain spaces and parentheses.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def segment_name(token: str) -> str:
    """The name under which the segment of ``token`` lives; short, for systems with 31 characters."""
    return f"sharedmask-{token[:16]}"


def _layout(geometry: Geometry) -> tuple[dict[str, dict[str, Any]], int]:
    arrays, offset = {}, _HEADER_BYTES
    for name, (shape, dtype) in geometry.items():
        arrays[name] = {"offset": offset, "shape": list(shape), "dtype": dtype.str}
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    return arrays, offset


def projected(geometry: Geometry) -> int:
    """Bytes of a segment that holds these arrays."""
    return _layout(geometry)[1]


def free_bytes() -> int | None:
    """Room in the file system of named shared memory; None where it has no size of its own."""
    with contextlib.suppress(OSError):
        facts = os.statvfs(_SHM)
        return facts.f_bavail * facts.f_frsize
    return None


class Segment:
    """A segment in the hands of its owner: writable until :meth:`share` seals it."""

    def __init__(self, token: str, geometry: Geometry) -> None:
        self.token = token
        self.name = segment_name(token)
        self._specs, self.nbytes = _layout(geometry)
        self._shm = _create(self.name, self.nbytes)
        try:
            # The standard object only creates and unlinks: its map could not be closed
            # while arrays look at it, a plain one lives exactly as long as its last view.
            self._shm.close()
            self._map = self._reserve_and_map()
        except BaseException:
            self.unlink()
            raise

    def _reserve_and_map(self) -> mmap.mmap:
        fd = os.open(_SHM / self.name, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._facts = os.fstat(fd)
            _reserve(fd, self.nbytes)
            return mmap.mmap(fd, self.nbytes)
        finally:
            os.close(fd)

    def array(self, name: str) -> Array:
        """The array ``name``, writable."""
        return _array(self._map, self._specs[name])

    def share(self, label: str, meta: Mapping[str, Any], *, writable: bool = False) -> Handle:
        """Write the header; from here on others can attach.

        Unless ``writable`` (outputs that workers fill), the file becomes read-only.
        """
        facts = {"token": self.token, "nbytes": self.nbytes, "writable": writable}
        self._map[:_HEADER_BYTES] = _header({**facts, "arrays": self._specs, "meta": dict(meta)})
        if not writable:
            os.chmod(_SHM / self.name, 0o400)
            del self._map  # nobody writes from here on, the owner neither
        pid = os.getpid()
        return Handle(
            token=self.token,
            store="shm",
            name=self.name,
            nbytes=self.nbytes,
            dev=self._facts.st_dev,
            ino=self._facts.st_ino,
            uid=os.geteuid(),
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid=pid,
            started=start_time(pid),
            created=time.time(),
            label=label,
        )

    def unlink(self) -> None:
        """Remove the name; the bytes go with the last view."""
        # A name that somebody removed is no reason to fail; unlink() would also leave the
        # tracker's entry behind, which then warns at exit.
        try:
            self._shm.unlink()
        except FileNotFoundError:
            from multiprocessing import resource_tracker

            resource_tracker.unregister("/" + self.name, "shared_memory")


def _create(name: str, nbytes: int) -> shared_memory.SharedMemory:
    try:
        return shared_memory.SharedMemory(name, create=True, size=nbytes)
    except OSError as error:
        raise SegmentError(f"no shared memory of {nbytes / 2**20:.0f} MiB: {error}") from error


def _reserve(fd: int, nbytes: int) -> None:
    """Take the pages now: a full /dev/shm is an error here and a bus error later."""
    try:
        for start in range(0, nbytes, _RESERVE_BYTES):
            os.posix_fallocate(fd, start, min(_RESERVE_BYTES, nbytes - start))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise SegmentError(f"{nbytes / 2**20:.0f} MiB cannot be reserved: {error}") from error
        free = (free_bytes() or 0) / 2**20
        raise SegmentError(
            f"{_SHM} is too small: {nbytes / 2**20:.0f} MiB are needed and {free:.0f} MiB were free"
        ) from error


def remove(name: str) -> bool:
    """Unlink the named segment of a dead owner; whether it was there."""
    if not NAME.fullmatch(name):
        return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_SHM / name)
        return True
    return False


def _header(facts: dict[str, Any]) -> bytes:
    text = json.dumps(facts).encode()
    room = _HEADER_BYTES - _DIGEST_BYTES - len(_MAGIC) - 4
    if len(text) > room:
        raise SegmentError(f"the facts of the segment take {len(text)} bytes, more than {room}")
    body = (_MAGIC + len(text).to_bytes(4, "little") + text).ljust(_HEADER_BYTES - _DIGEST_BYTES, b"\0")
    return body + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


def _parse_header(page: bytes) -> dict[str, Any]:
    body, digest = page[:-_DIGEST_BYTES], page[-_DIGEST_BYTES:]
    if not body.startswith(_MAGIC):
        raise AttachError("the segment was never finished, or is none of ours")
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
        raise AttachError("the segment's header is damaged")
    start = len(_MAGIC) + 4
    length = int.from_bytes(body[start - 4 : start], "little")
    return cast("dict[str, Any]", json.loads(body[start : start + length]))


def _array(buffer: mmap.mmap, spec: Mapping[str, Any]) -> Array:
    # frombuffer keeps the map alive through the array; np.ndarray(buffer=...) would not,
    # and closing the map under such a view is a segmentation fault.
    count = int(np.prod(spec["shape"], dtype=np.int64))
    flat = np.frombuffer(buffer, dtype=np.dtype(spec["dtype"]), count=count, offset=spec["offset"])
    return flat.reshape(spec["shape"])


class Attachment:
    """The arrays of a segment in this process, read-only, and the facts of its header."""

    def __init__(self, handle: Handle, buffer: mmap.mmap) -> None:
        facts = _parse_header(buffer[:_HEADER_BYTES])
        _check_header(handle, facts)
        self.handle = handle
        self.meta: dict[str, Any] = facts["meta"]
        self.arrays = {name: _array(buffer, spec) for name, spec in facts["arrays"].items()}


# One mapping per process and segment, for as long as somebody uses it.
_attached: "WeakValueDictionary[tuple[str, bool], Attachment]" = WeakValueDictionary()


def attach(handle: Handle, *, writable: bool = False) -> Attachment:
    """Attach to a segment; only an output that its owner shares as such can be ``writable``.

    Never through ``SharedMemory(name)``: its resource tracker would unlink the segment of a
    living owner when this process exits.

    Raises
    ------
    AttachError
        The handle is of another machine, boot or user, or does not lead to its segment.
    """
    key = (handle.token, writable)
    found = _attached.get(key)
    if found is None:
        _check_handle(handle)
        found = _attached[key] = Attachment(handle, _map(handle, writable))
    return found


def _check_handle(handle: Handle) -> None:
    if handle.version != _VERSION or handle.store != "shm":
        raise AttachError(f"unknown kind of handle: version {handle.version}, store {handle.store!r}")
    if not TOKEN.fullmatch(handle.token) or handle.name != segment_name(handle.token):
        raise AttachError(f"not the name of a segment: {handle.name!r}")
    if handle.host != socket.gethostname() or handle.boot_id != boot_id():
        raise AttachError(f"{handle.label} was shared on {handle.host}, before a restart or elsewhere")
    if handle.uid != os.geteuid():
        raise AttachError(f"{handle.label} belongs to user {handle.uid}, not to {os.geteuid()}")


def _map(handle: Handle, writable: bool) -> mmap.mmap:
    access = os.O_RDWR if writable else os.O_RDONLY
    try:
        fd = os.open(_SHM / handle.name, access | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY)
    except OSError as error:
        raise AttachError(f"the shared image {handle.label} is gone: {error.strerror}") from error
    try:
        _check_file(handle, os.fstat(fd))
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(fd, handle.nbytes, mmap.MAP_SHARED, protection)
    except OSError as error:
        if isinstance(error, AttachError):
            raise
        raise AttachError(f"the shared image {handle.label} cannot be mapped: {error}") from error
    finally:
        os.close(fd)


def _check_file(handle: Handle, facts: os.stat_result) -> None:
    identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_uid)
    if identity != (handle.dev, handle.ino, handle.nbytes, handle.uid):
        raise AttachError(f"{handle.name} is another segment than the handle's")
    if facts.st_mode & 0o077:
        raise AttachError(f"{handle.name} is open to other users")


def _check_header(handle: Handle, facts: dict[str, Any]) -> None:
    if (facts["token"], facts["nbytes"]) != (handle.token, handle.nbytes):
        raise AttachError(f"{handle.name} is another segment than the handle's")
    for name, spec in facts["arrays"].items():
        if not _DTYPE.fullmatch(spec["dtype"]) or not all(type(n) is int and n >= 0 for n in spec["shape"]):
            raise AttachError(f"array {name!r} of {handle.name} has an impossible shape or dtype")
        nbytes = int(np.prod(spec["shape"], dtype=object)) * np.dtype(spec["dtype"]).itemsize
        if spec["offset"] < _HEADER_BYTES or spec["offset"] + nbytes > handle.nbytes:
            raise AttachError(f"array {name!r} of {handle.name} lies outside of it")
