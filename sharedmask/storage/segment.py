"""Segments of shared bytes: their header, their handle, and attaching to them read-only.

Covers: what is in a segment, who may attach and all that is checked, views that travel as
handles. Does not cover: where the bytes live (``memory``, ``mapped_file``), who owns a segment and what
happens when the owner dies (``registry``), what the numbers mean (``image``).

A segment is a ``container``. Its header is written last: a segment without a valid one was never finished.
A segment may be a header only, whose arrays lie in a file that it names: who attaches to it maps that file.
"""

import contextlib
import json
import mmap
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from sharedmask.errors import AttachError, ParameterError, SegmentError
from sharedmask.records import dataclass
from sharedmask.storage import container, memory, memory_pages
from sharedmask.storage.container import Geometry, Specs
from sharedmask.storage.mapped_file import FileIdentity, map_file
from sharedmask.storage.views import Origin, SharedArray
from sharedmask.system import locks, platform
from sharedmask.system.limits import explained
from sharedmask.system.process import boot_id, pid_namespace, start_time
from sharedmask.system.units import format_bytes
from sharedmask.typing import Array

_VERSION = 1
PRIVATE = "private"
"""The store of what stays in its process."""

TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ExternalArrays:
    """Arrays of a segment that lie in a file, which stays what it is."""

    file: FileIdentity
    arrays: Specs
    kind: str
    """The store that the file is: what users call it."""

    def to_facts(self) -> dict[str, Any]:
        """What the header of such a segment says of them."""
        return {"arrays": self.arrays, "file": asdict(self.file), "kind": self.kind}


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
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Handle":
        """Parse a handle, checking the types of all fields.

        Raises AttachError if this is no handle.
        """
        what = "a handle of a shared image"
        return container.checked_facts(cls, container.checked_json(text, what), what)


def segment_name(token: str) -> str:
    """The name under which the segment of ``token`` lives; short, for systems with 31 characters."""
    return f"sharedmask-{token[:16]}"


class Segment:
    """A segment in the hands of its owner: writable until :meth:`share` seals it."""

    def __init__(
        self, token: str, geometry: Geometry, store: str, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.token = token
        self._layout = container.layout(geometry, facts)
        self._facts: dict[str, Any] = {"arrays": self._layout.specs, "meta": {}, **(facts or {})}
        nbytes = self._layout.nbytes
        self.store = memory.KINDS[store](segment_name(token), nbytes)
        try:
            with self.store.opened() as fd:
                self._map = memory_pages.mapped(fd, nbytes)
            # A child forked while this is filled would hold the bytes and keep them from being sealed.
            platform.advise(self._map, "MADV_DONTFORK")
        except BaseException as error:
            self.store.release()
            if isinstance(error, OSError):
                raise SegmentError(f"{format_bytes(nbytes)} cannot be mapped: {explained(error)}") from error
            raise

    def array(self, name: str) -> Array:
        """The array ``name``, writable."""
        return container.array_at(self._map, self._layout.specs[name])

    def share(self, label: str, meta: Mapping[str, Any], *, writable: bool = False) -> Handle:
        """Write the header, which tells ``meta`` too; from here on others can attach.

        Unless ``writable`` (outputs that workers fill), nobody can write from here on: views of
        :meth:`array` must be gone.
        """
        self._write_header(meta)
        if writable:
            platform.advise(self._map, "MADV_DOFORK")  # a result is an array like any other
        else:
            del self._map
            self.store.seal()
        return self._handle(label)

    def share_here(self, label: str, meta: Mapping[str, Any]) -> tuple[Handle, "Attachment"]:
        """The same, attached to by this process; through the map it was filled by, where the store allows it.

        To give back the pages of a map and find them again takes a tenth of the time of decoding what is
        in them.
        """
        self._write_header(meta)
        kept = self.store.protected(self._map)
        del self._map
        self.store.seal()
        handle = self._handle(label)
        return handle, attach(handle, kept=kept)

    def _write_header(self, meta: Mapping[str, Any]) -> None:
        facts = {"token": self.token, "nbytes": self.store.nbytes, **self._facts}
        facts["meta"] = {**facts["meta"], **meta}
        size = self._layout.header_bytes
        self._map[:size] = container.header(facts, size)

    def seal(self, label: str) -> None:
        """Let nobody write any more to what was shared as ``writable``.

        Raises SegmentError: somebody still can.
        """
        if (self.token, True) in _attached:
            raise SegmentError(f"{label} is still held for writing here: let go of its arrays first")
        if "_map" in vars(self):
            del self._map
        self.store.seal()

    def forget(self) -> None:
        """In a forked child: let go of the memory, which is the parent's."""
        self.store.forget()
        if "_map" in vars(self):
            _redirect_to_devnull(self.store.name)
            # The child has not its pages: whatever lies in their place by then would be unmapped with it.
            platform.never_free(self._map)

    def _handle(self, label: str) -> Handle:
        pid = os.getpid()
        return Handle(
            token=self.token,
            store=self.store.kind,
            name=self.store.name,
            nbytes=self.store.nbytes,
            dev=self.store.facts.st_dev,
            ino=self.store.facts.st_ino,
            uid=platform.user_id(),
            host=socket.gethostname(),
            boot_id=boot_id(),
            pid_ns=pid_namespace(),
            pid=pid,
            started=start_time(pid),
            fd=self.store.fd,
            created=time.monotonic(),
            label=label,
        )


def _redirect_to_devnull(name: str) -> None:
    """Point all descriptors of a segment to nothing.

    A map of Python keeps a copy of its descriptor, which holds the memory. Closing it under the
    map's feet would have the map close another file later, under the same number.
    """
    with contextlib.suppress(FileNotFoundError), open(os.devnull, "rb") as nothing:
        for fd in platform.open_descriptors():
            with contextlib.suppress(OSError):
                if name in platform.path_of(fd):
                    os.dup2(nothing.fileno(), fd, inheritable=False)


class Attachment(Origin):
    """The arrays of a segment in this process, read-only, and the facts of its header."""

    def __init__(self, handle: Handle, buffer: mmap.mmap | memoryview | bytes, writable: bool) -> None:
        facts, first = container.parse_header(buffer)
        self.file = FileIdentity.from_dict(facts["file"]) if "file" in facts else None
        """In which the arrays lie, if not in the segment."""
        if self.file is not None:
            buffer, first = map_file(self.file), 0
        _check_header(handle, facts)
        super().__init__(buffer)
        self.handle = handle
        self.writable = writable
        self.kind: str = facts.get("kind", handle.store)
        self.meta: dict[str, Any] = facts["meta"]
        self.arrays = container.arrays_in(buffer, facts.get("arrays"), first)

    @property
    def name(self) -> str:
        return self.handle.name

    def is_written_to(self) -> bool:
        """Whether the user's file in which the arrays lie has changed since it was shared."""
        return self.file is not None and self.file.is_written_to()

    def reopened_by(self) -> tuple[Callable[..., "SharedArray"], str]:
        return output_of if self.writable else view_of, self.handle.to_json()

    def shared(self, name: str) -> "Shared | None":
        """The array ``name`` as an argument, if others can attach."""
        return None if self.handle.store == PRIVATE else Shared(self.handle, name)

    def view(self, name: str) -> "SharedArray":
        """The array ``name`` as one that pickles as a handle, if others can attach."""
        return self.tagged(self.arrays[name], travels=self.handle.store != PRIVATE)


def here_only(label: str, elsewhere: ExternalArrays, meta: Mapping[str, Any]) -> Attachment:
    """The arrays in a file, attached to by this process and no other."""
    token, facts = os.urandom(16).hex(), {"meta": dict(meta), **elsewhere.to_facts()}
    size = container.layout({}, facts).header_bytes
    facts |= {"token": token, "nbytes": size}
    pid, now = os.getpid(), time.monotonic()
    handle = Handle(token, PRIVATE, "", size, 0, 0, 0, "", "", 0, pid, 0, -1, now, label)
    return Attachment(handle, container.header(facts, size), False)


def view_of(
    handle: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
) -> SharedArray:
    """A :class:`SharedArray` again, in another process."""
    return attach(Handle.from_json(handle)).at(offset, shape, strides, np.dtype(dtype))


def output_of(
    handle: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
) -> SharedArray:
    """The same of an output, to write to."""
    return attach(Handle.from_json(handle), writable=True).at(offset, shape, strides, np.dtype(dtype))


# One mapping per process and segment, for as long as somebody uses it.
_attached: "WeakValueDictionary[tuple[str, bool], Attachment]" = WeakValueDictionary()


def attach(handle: Handle, *, writable: bool = False, kept: memoryview | None = None) -> Attachment:
    """Attach to a segment; only an output that its owner shares as such can be ``writable``.

    ``kept`` is a map of it that this process has already.

    Raises AttachError: the handle is of another machine, boot or user, or does not lead to its segment.
    Raises ParameterError: it is no handle.
    """
    if not isinstance(handle, Handle):
        raise ParameterError(f"a shared image is known by its handle or its name, not by {handle!r}")
    key = (handle.token, writable)
    found = _attached.get(key)
    if found is None or found.handle != handle:
        try:
            if not platform.can_share():
                raise AttachError(platform.NOT_SHARED)
            _check_handle(handle)
            buffer = _map(handle, writable) if kept is None else kept
            found = _attached[key] = Attachment(handle, buffer, writable)
        except AttachError:
            raise
        except (OSError, ValueError) as error:  # of descriptors, maps or address space
            raise AttachError(f"the shared image {handle.label} cannot be opened: {error}") from error
    return found


def _check_handle(handle: Handle) -> None:
    if handle.version != _VERSION or handle.store not in memory.KINDS:
        raise AttachError(f"unknown kind of handle: version {handle.version}, store {handle.store!r}")
    if not TOKEN.fullmatch(handle.token) or handle.name != segment_name(handle.token):
        raise AttachError(f"not the name of a segment: {handle.name!r}")
    if handle.boot_id != boot_id():  # names of hosts differ between containers of one machine
        raise AttachError(f"{handle.label} was shared on {handle.host}, before a restart or elsewhere")
    if handle.uid != platform.user_id():
        raise AttachError(f"{handle.label} belongs to user {handle.uid}, not to {platform.user_id()}")
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
        fd = memory.open_shm(handle.name, handle.label, writable)
    else:
        fd = memory.open_memfd(handle.name, handle.pid, handle.fd, handle.label, writable)
    try:
        _check_file(handle, fd, writable)
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return memory_pages.mapped(fd, handle.nbytes, access)
    finally:
        locks.close(fd)


def _check_file(handle: Handle, fd: int, writable: bool) -> None:
    facts = os.fstat(fd)
    identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_uid)
    if identity != (handle.dev, handle.ino, handle.nbytes, handle.uid):
        raise AttachError(f"{handle.name} is another segment than the handle's")
    if facts.st_mode & 0o077:
        raise AttachError(f"{handle.name} is open to other users")
    if handle.store == "memfd" and not writable and not memory.is_sealed(fd):
        raise AttachError(f"{handle.name} is not sealed: its owner could still change it")


def _check_header(handle: Handle, facts: dict[str, Any]) -> None:
    if (facts.get("token"), facts.get("nbytes")) != (handle.token, handle.nbytes):
        raise AttachError(f"{handle.name} is another segment than the handle's")
    if not isinstance(facts.get("meta"), dict) or not isinstance(facts.get("kind", ""), str):
        raise AttachError(f"the header of {handle.name} is not one of ours")


@dataclass(frozen=True)
class Shared:
    """An array of a shared segment, as an argument: workers attach to it."""

    handle: Handle
    name: str
    writable: bool = False
