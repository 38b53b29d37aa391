"""Segments of shared bytes: their header, their handle, and attaching to them read-only.

Covers: what is in a segment, who may attach and all that is checked, views that travel as
handles. Does not cover: where the bytes live (``stores``, ``mapped``), who owns a segment and what
happens when the owner dies (``registry``), what the numbers mean (``image``).

A segment is one header page, then arrays at multiples of 64 bytes::

    0      16         20            4080      4096
    | magic | length  | JSON facts  | blake2b | array | pad | array ...

The header is written last: a segment without a valid one was never finished. A segment may be a
header only, whose arrays lie in a file that it names: who attaches to it maps that file.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from sharedmask import stores
from sharedmask.errors import AttachError, SegmentError
from sharedmask.mapped import FileIdentity, map_file

MAGIC = b"sharedmask\x00\x00\x00\x00\x00\x01"
HEADER_BYTES = 4096
_DIGEST_BYTES = 16
_ALIGNMENT = 64
_VERSION = 1

TOKEN = re.compile(r"[0-9a-f]{32}")
_DTYPE = re.compile(r"[<>|=][biuf]\d+")

Array = NDArray[Any]
Geometry = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
Specs = Mapping[str, Mapping[str, Any]]
"""Of each array: its offset, shape and dtype."""


@dataclass(frozen=True)
class Elsewhere:
    """Arrays of a segment that lie in a file, which stays what it is."""

    file: FileIdentity
    arrays: Specs
    kind: str
    """The store that the file is: what users call it."""


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
    pid_ns: int
    pid: int
    started: int
    fd: int
    created: float
    label: str
    version: int = _VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Handle":
        """Parse a handle, checking the types of all fields.

        Raises
        ------
        AttachError
            If this is no handle.
        """
        try:
            handle = cls(**json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise AttachError(f"not a handle of a shared image: {error}") from error
        for name, kind in cls.__annotations__.items():
            if type(getattr(handle, name)) is not kind:
                raise AttachError(f"not a handle of a shared image: {name} is no {kind.__name__}")
        return handle


# --- this machine, this process ------------------------------------------------------------------


@cache
def boot_id() -> str:
    """What changes when this machine restarts."""
    with contextlib.suppress(FileNotFoundError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"


def pid_namespace() -> int:
    """In which process ids mean what they mean here."""
    with contextlib.suppress(FileNotFoundError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def start_time(pid: int) -> int:
    """When process ``pid`` started, in clock ticks since boot; 0 where that cannot be told.

    A pid is used again, a pid with its start time is not.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # The second field, the command's name, may contain spaces and parentheses.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def segment_name(token: str) -> str:
    """The name under which the segment of ``token`` lives; short, for systems with 31 characters."""
    return f"sharedmask-{token[:16]}"


# --- the owner's side ----------------------------------------------------------------------------


def layout(geometry: Geometry) -> tuple[dict[str, dict[str, Any]], int]:
    """Where each array begins behind the header, and where the last one ends."""
    arrays, offset = {}, HEADER_BYTES
    for name, (shape, dtype) in geometry.items():
        arrays[name] = {"offset": offset, "shape": list(shape), "dtype": dtype.str}
        nbytes = math.prod(shape) * dtype.itemsize
        offset += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    return arrays, offset


def projected(geometry: Geometry) -> int:
    """Bytes of a segment that holds these arrays."""
    return layout(geometry)[1]


class Segment:
    """A segment in the hands of its owner: writable until :meth:`share` seals it."""

    def __init__(self, token: str, geometry: Geometry, store: str) -> None:
        self.token = token
        self._specs, nbytes = layout(geometry)
        self.store = stores.KINDS[store](segment_name(token), nbytes)
        try:
            with self.store.opened() as fd:
                self._map = mmap.mmap(fd, nbytes)
            # A child forked while this is filled would hold the bytes and keep them from being sealed.
            _advise(self._map, "MADV_DONTFORK")
        except BaseException as error:
            self.store.release()
            if isinstance(error, OSError):
                raise SegmentError(f"{nbytes / 2**20:.0f} MiB cannot be mapped: {error}") from error
            raise

    def array(self, name: str) -> Array:
        """The array ``name``, writable."""
        return _array(self._map, self._specs[name])

    def share(
        self,
        label: str,
        meta: Mapping[str, Any],
        *,
        writable: bool = False,
        elsewhere: Elsewhere | None = None,
    ) -> Handle:
        """Write the header; from here on others can attach.

        Unless ``writable`` (outputs that workers fill), nobody can write from here on: views of
        :meth:`array` must be gone.
        """
        facts: dict[str, Any] = {"token": self.token, "nbytes": self.store.nbytes, "meta": dict(meta)}
        if elsewhere is None:
            facts["arrays"] = self._specs
        else:
            facts |= {"arrays": elsewhere.arrays, "file": elsewhere.file.to_dict(), "kind": elsewhere.kind}
        self._map[:HEADER_BYTES] = header(facts)
        if writable:
            _advise(self._map, "MADV_DOFORK")  # a result is an array like any other
        else:
            del self._map
            self.store.seal()
        return self._handle(label)

    def forget(self) -> None:
        """In a forked child: let go of the memory, which is the parent's."""
        self.store.forget()
        if "_map" in vars(self):
            _blind(self.store.name)

    def _handle(self, label: str) -> Handle:
        pid = os.getpid()
        return Handle(
            token=self.token,
            store=self.store.kind,
            name=self.store.name,
            nbytes=self.store.nbytes,
            dev=self.store.facts.st_dev,
            ino=self.store.facts.st_ino,
            uid=os.geteuid(),
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid_ns=pid_namespace(),
            pid=pid,
            started=start_time(pid),
            fd=self.store.fd,
            created=time.time(),
            label=label,
        )


def _advise(buffer: mmap.mmap, advice: str) -> None:
    if hasattr(mmap, advice):  # Linux
        buffer.madvise(getattr(mmap, advice))


def _blind(name: str) -> None:
    """Point all descriptors of a segment to nothing.

    A map of Python keeps a copy of its descriptor, which holds the memory. Closing it under the
    map's feet would have the map close another file later, under the same number.
    """
    with contextlib.suppress(FileNotFoundError), open(os.devnull, "rb") as nothing:
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if name in os.readlink(f"/proc/self/fd/{fd}"):
                    os.dup2(nothing.fileno(), fd, inheritable=False)


def header(facts: Mapping[str, Any]) -> bytes:
    """The header page that says these facts."""
    text = json.dumps(facts).encode()
    room = HEADER_BYTES - _DIGEST_BYTES - len(MAGIC) - 4
    if len(text) > room:
        raise SegmentError(f"the facts of the segment take {len(text)} bytes, more than {room}")
    body = (MAGIC + len(text).to_bytes(4, "little") + text).ljust(HEADER_BYTES - _DIGEST_BYTES, b"\0")
    return body + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


# --- attaching -----------------------------------------------------------------------------------


class Origin(ABC):
    """Bytes that this process maps read-only, and whose views travel as a text and a place in them."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self._bytes = np.frombuffer(buffer, np.uint8)

    @property
    @abstractmethod
    def name(self) -> str:
        """For messages."""

    @abstractmethod
    def reopened_by(self) -> tuple[Callable[..., "SharedArray"], str]:
        """The function that makes a view again in another process, and the text that it takes first."""

    def place(self, array: Array) -> int | None:
        """Where the first element of ``array`` lies in the bytes; None if it is not a view of them."""
        low, high = np.lib.array_utils.byte_bounds(array)
        start = self._bytes.ctypes.data
        if low < start or high > start + len(self._bytes):
            return None
        return int(array.ctypes.data) - start

    def at(
        self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any]
    ) -> "SharedArray":
        """The view of that place; the opposite of :meth:`place`."""
        if not _DTYPE.fullmatch(dtype.str):
            raise AttachError(f"no array of {self.name} has the dtype {dtype}")
        # The buffer is an array on the map, not the map, so the map lives as long as the view.
        array = np.ndarray(shape, dtype, self._bytes, offset, strides).view(SharedArray)
        array._origin = self
        return array


class Attachment(Origin):
    """The arrays of a segment in this process, read-only, and the facts of its header."""

    def __init__(self, handle: Handle, buffer: mmap.mmap) -> None:
        facts = parse_header(buffer[:HEADER_BYTES])
        if "file" in facts:
            buffer = map_file(FileIdentity.from_dict(facts["file"]))
        _check_header(handle, facts, len(buffer))
        super().__init__(buffer)
        self.handle = handle
        self.kind: str = facts.get("kind", handle.store)
        self.path: str | None = facts["file"]["path"] if "file" in facts else None
        self.meta: dict[str, Any] = facts["meta"]
        self.arrays = {name: _array(buffer, spec) for name, spec in facts["arrays"].items()}

    @property
    def name(self) -> str:
        return self.handle.name

    def reopened_by(self) -> tuple[Callable[..., "SharedArray"], str]:
        return view_of, self.handle.to_json()

    def view(self, name: str) -> "SharedArray":
        """The array ``name`` as one that pickles as a handle."""
        shared = self.arrays[name].view(SharedArray)
        shared._origin = self
        return shared


class SharedArray(np.ndarray[Any, np.dtype[Any]]):
    """A read-only array in shared memory that pickles as a few hundred bytes.

    Slices, transposes and other views do too, and arrive as views of the same memory. What is
    computed from it, or picked out of it by a list or a mask, is an ordinary array.
    """

    _origin: Origin | None = None

    @property
    def origin(self) -> Origin | None:
        """The bytes that this is a view of; None for a copy."""
        return self._origin

    def __array_finalize__(self, parent: Any) -> None:
        # A copy is no view: it must neither hold the segment nor travel as its handle.
        origin = getattr(parent, "_origin", None)
        self._origin = origin if origin is not None and origin.place(self) is not None else None

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __reduce_ex__(self, protocol: Any) -> Any:
        offset = self._origin.place(self) if self._origin is not None and self.size else None
        if offset is None or self._origin is None:
            return np.array(self, subok=False).__reduce_ex__(protocol)
        reopen, text = self._origin.reopened_by()
        return reopen, (text, offset, self.shape, self.strides, self.dtype.str)


def view_of(
    handle: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
) -> SharedArray:
    """A :class:`SharedArray` again, in another process."""
    return attach(Handle.from_json(handle)).at(offset, shape, strides, np.dtype(dtype))


# One mapping per process and segment, for as long as somebody uses it.
_attached: "WeakValueDictionary[tuple[str, bool], Attachment]" = WeakValueDictionary()


def attach(handle: Handle, *, writable: bool = False) -> Attachment:
    """Attach to a segment; only an output that its owner shares as such can be ``writable``.

    Raises
    ------
    AttachError
        The handle is of another machine, boot or user, or does not lead to its segment.
    """
    key = (handle.token, writable)
    found = _attached.get(key)
    if found is None or found.handle != handle:
        try:
            _check_handle(handle)
            found = _attached[key] = Attachment(handle, _map(handle, writable))
        except AttachError:
            raise
        except (OSError, ValueError) as error:  # of descriptors, maps or address space
            raise AttachError(f"the shared image {handle.label} cannot be opened: {error}") from error
    return found


def _check_handle(handle: Handle) -> None:
    if handle.version != _VERSION or handle.store not in stores.KINDS:
        raise AttachError(f"unknown kind of handle: version {handle.version}, store {handle.store!r}")
    if not TOKEN.fullmatch(handle.token) or handle.name != segment_name(handle.token):
        raise AttachError(f"not the name of a segment: {handle.name!r}")
    if handle.host != socket.gethostname() or handle.boot_id != boot_id():
        raise AttachError(f"{handle.label} was shared on {handle.host}, before a restart or elsewhere")
    if handle.uid != os.geteuid():
        raise AttachError(f"{handle.label} belongs to user {handle.uid}, not to {os.geteuid()}")
    if handle.store == "memfd":
        _check_owner(handle)


def _check_owner(handle: Handle) -> None:
    if handle.pid_ns != pid_namespace():
        raise AttachError(
            f"{handle.label} was shared in another process namespace (a container?), "
            'where its owner cannot be found from here; share it with store="shm"'
        )
    if handle.pid != os.getpid() and start_time(handle.pid) != handle.started:
        raise AttachError(f"the shared image {handle.label} is gone: process {handle.pid} has ended")


def _map(handle: Handle, writable: bool) -> mmap.mmap:
    if handle.store == "shm":
        fd = stores.open_shm(handle.name, handle.label, writable)
    else:
        fd = stores.open_memfd(handle.name, handle.pid, handle.fd, handle.label, writable)
    try:
        _check_file(handle, fd, writable)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(fd, handle.nbytes, mmap.MAP_SHARED, protection)
    finally:
        os.close(fd)


def _check_file(handle: Handle, fd: int, writable: bool) -> None:
    facts = os.fstat(fd)
    identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_uid)
    if identity != (handle.dev, handle.ino, handle.nbytes, handle.uid):
        raise AttachError(f"{handle.name} is another segment than the handle's")
    if facts.st_mode & 0o077:
        raise AttachError(f"{handle.name} is open to other users")
    if handle.store == "memfd" and not writable and not stores.is_sealed(fd):
        raise AttachError(f"{handle.name} is not sealed: its owner could still change it")


def parse_header(page: bytes) -> dict[str, Any]:
    """The facts of a header page.

    Raises
    ------
    AttachError
        It is none of ours, or damaged.
    """
    body, digest = page[:-_DIGEST_BYTES], page[-_DIGEST_BYTES:]
    if not body.startswith(MAGIC):
        raise AttachError("the segment was never finished, or is none of ours")
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != digest:
        raise AttachError("the segment's header is damaged")
    start = len(MAGIC) + 4
    length = int.from_bytes(body[start - 4 : start], "little")
    try:
        facts = json.loads(body[start : start + length])
    except (ValueError, RecursionError) as error:
        raise AttachError(f"the segment's header is damaged: {error}") from error
    if not isinstance(facts, dict):
        raise AttachError("the segment's header holds no facts")
    return facts


def _check_header(handle: Handle, facts: dict[str, Any], nbytes: int) -> None:
    try:
        if (facts["token"], facts["nbytes"]) != (handle.token, handle.nbytes):
            raise AttachError(f"{handle.name} is another segment than the handle's")
        for name, spec in facts["arrays"].items():
            _check_array(handle, name, spec, 0 if "file" in facts else HEADER_BYTES, nbytes)
        dict(facts["meta"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise AttachError(f"the header of {handle.name} is not one of ours: {error!r}") from error


def _check_array(handle: Handle, name: str, spec: Mapping[str, Any], first: int, end: int) -> None:
    sizes = [spec["offset"], *spec["shape"]] if type(spec["shape"]) is list else [-1]
    possible = all(type(n) is int and 0 <= n <= end for n in sizes)
    if not _DTYPE.fullmatch(spec["dtype"]) or not possible:
        raise AttachError(f"array {name!r} of {handle.name} has an impossible shape or dtype")
    nbytes = math.prod(spec["shape"]) * np.dtype(spec["dtype"]).itemsize
    if spec["offset"] < first or spec["offset"] + nbytes > end:
        raise AttachError(f"array {name!r} of {handle.name} lies outside of it")


def _array(buffer: mmap.mmap, spec: Mapping[str, Any]) -> Array:
    # frombuffer keeps the map alive through the array; np.ndarray(buffer=map) would not,
    # and closing the map under such a view is a segmentation fault.
    count = math.prod(spec["shape"])
    flat = np.frombuffer(buffer, dtype=np.dtype(spec["dtype"]), count=count, offset=spec["offset"])
    return flat.reshape(spec["shape"])
