"""The lifecycle manager: who owns which segment, and the end of those whose owner died.

Covers: the registry directory, one record per segment, owning (record, segment) pairs, the reaper.
Does not cover: bytes (``segment``), images (``image``).

A record is linked and locked before its segment exists and removed after it is gone. The lock is
the kernel's (flock): it falls when the owner dies in whatever way, and with it the segment.
"""

import contextlib
import json
import os
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sharedmask.errors import AttachError, LockError, ParameterError, SegmentError
from sharedmask.records import dataclass
from sharedmask.storage import memory
from sharedmask.storage.container import Geometry, checked_facts, checked_json, projected
from sharedmask.storage.segment import (
    TOKEN,
    Attachment,
    ExternalArrays,
    Handle,
    Segment,
    segment_name,
)
from sharedmask.system import files, locks, platform, process
from sharedmask.system.files import abandoned, opened_ours, private_directory
from sharedmask.system.locks import is_free, is_named
from sharedmask.system.platform import Folder
from sharedmask.typing import Array

_RECORD_BYTES = 64 * 1024
_SUFFIX = ".json"
_CLAIM_SUFFIX = ".claim"
_SOCKET_SUFFIX = ".sock"


def directory() -> Path:
    """Where this user's records are: ``$SHAREDMASK_DIR``, else in /dev/shm, else temporary."""
    chosen = os.environ.get("SHAREDMASK_DIR")
    if chosen:
        return Path(chosen)
    parent = memory.SHM if os.access(memory.SHM, os.W_OK) else Path(tempfile.gettempdir())
    return parent / f"sharedmask-{platform.user_name()}"


def _open_directory() -> contextlib.AbstractContextManager[Folder]:
    """A descriptor of the registry directory, which must be ours and nobody else's."""
    return private_directory(directory(), "the registry (SHAREDMASK_DIR names another one)")


class _Locked:
    """A file of the registry that is locked for as long as we live."""

    def __init__(self, name: str, content: str) -> None:
        self.name = name
        self.content = content
        with _open_directory() as folder:
            self._fd = _locked_file(folder, name, content)

    @property
    def is_found(self) -> bool:
        """Whether others find it by its name; if not, that was removed, or made again."""
        with _open_directory() as folder:
            return is_named(folder, self.name, self._fd)

    def forget(self) -> None:
        """Let go of the lock without touching the file: at the end, or in the forked child of an owner."""
        fd, self._fd = self._fd, -1
        locks.close(fd)


class Record(_Locked):
    """A file that says what we own."""

    def replace(self, content: str) -> None:
        """Change the content in one step: readers see the old record or the new one.

        The new file is locked before it gets a name. A reaper that opened the old one cannot
        lock it until we close it, and then finds another inode under the name.
        """
        if self._fd < 0:
            raise SegmentError("only the process that made a segment names it, and until it is released")
        with _making, _open_directory() as folder:
            fresh = f"{self.name}.{os.urandom(4).hex()}"
            fd = _locked_file(folder, fresh, content)
            try:
                platform.replace_at(folder, fresh, self.name)
            except BaseException:
                locks.close(fd)
                with contextlib.suppress(OSError):
                    platform.unlink_at(folder, fresh)
                raise
            before, self._fd, self.content = self._fd, fd, content
            locks.close(before)

    def keep(self) -> None:
        """Make the record again if its name is gone (cleaners of temporary directories do that)."""
        if self._fd >= 0 and not self.is_found:
            self.replace(self.content)

    def remove(self) -> None:
        with contextlib.suppress(OSError), _open_directory() as folder:
            platform.unlink_at(folder, self.name)
        self.forget()


def _locked_file(folder: Folder, name: str, content: str) -> int:
    """Create a file that is complete and locked before anybody can see it."""
    if len(content) > _RECORD_BYTES:
        said = f"its record has {len(content)} bytes, {_RECORD_BYTES} are allowed"
        raise ParameterError(f"the name of a shared image is too long: {said}")
    fd = files.nameless(folder)
    if fd is None:  # a reaper may take it before we lock it; we try again then
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        return locks.opened_locked(folder, name, flags, lambda fd: _lock_and_fill(fd, content))
    try:
        _lock_and_fill(fd, content)
        platform.link_at(fd, folder, name)
    except BaseException:
        locks.close(fd)
        raise
    return fd


def _lock_and_fill(fd: int, content: str) -> None:
    try:
        locks.lock(fd, locks.EXCLUSIVE)
        os.write(fd, content.encode())
    except LockError as error:
        said = "its file system has no locks: SHAREDMASK_DIR names another folder"
        raise SegmentError(f"the registry {directory()} cannot be locked: {said}") from error
    except OSError as error:
        said = f"{error.strerror} (SHAREDMASK_DIR names another folder)"
        raise SegmentError(f"the registry {directory()} cannot be written to: {said}") from error


# --- owning --------------------------------------------------------------------------------------

_locks_here: "weakref.WeakSet[OwnedSegment | Claim]" = weakref.WeakSet()
# Held while descriptors that a child must let go of are made or closed, and while a fork happens.
_making = process.Lock()
_reaped_by = 0


class OwnedSegment:
    """One segment and its record, made together and released together.

    Released by :meth:`release`, by garbage collection or at exit, whichever is first, and only
    in the process that made it: a forked child never unlinks what its parent owns.
    """

    def __init__(
        self,
        label: str,
        geometry: Geometry,
        store: str = "shm",
        *,
        meta: Mapping[str, Any] | None = None,
        elsewhere: ExternalArrays | None = None,
    ) -> None:
        _reap_once()
        store, _ = memory.choose(store, projected(geometry))
        facts = {"meta": dict(meta or {}), **(elsewhere.to_facts() if elsewhere else {})}
        token = os.urandom(16).hex()
        with _making:
            self.record = Record(token + _SUFFIX, json.dumps(vars(_Provisional.of(token, label, store))))
            try:
                self.segment = Segment(token, geometry, store, facts)
            except BaseException:
                self.record.remove()
                raise
            _locks_here.add(self)
        self.label = label
        self._abandoned = weakref.finalize(self, _finalize, os.getpid(), label, self.segment, self.record)

    def share(self, meta: Mapping[str, Any], *, writable: bool = False) -> Handle:
        """Seal the segment and publish its handle in the record."""
        with _making:  # the descriptor of its map is closed
            return self._published(self.segment.share(self.label, meta, writable=writable))

    def share_here(self, meta: Mapping[str, Any]) -> Attachment:
        """The same, attached to by this process."""
        with _making:
            handle, attachment = self.segment.share_here(self.label, meta)
            self._published(handle)
        return attachment

    def seal(self) -> None:
        """Let nobody write any more to what was shared as writable."""
        with _making:
            self.segment.seal(self.label)

    def _published(self, handle: Handle) -> Handle:
        self.record.replace(handle.to_json())
        self.handle = handle
        return handle

    def rename(self, label: Any) -> Handle:
        """Publish the handle under another label; the segment stays as it is."""
        if not isinstance(label, str) or not label.isprintable() or label.lstrip()[:1] in ("", "{"):
            raise ParameterError(f"{self.label} cannot be published under the name {label!r}")
        handle = self._published(replace(self.handle, label=label))
        self.label = label
        return handle

    def release(self) -> None:
        """Unlink the segment, then remove the record. Views keep their bytes. Idempotent."""
        parts = self._abandoned.detach()
        if parts:
            _, _, (pid, _, segment, record), _ = parts
            _release(pid, segment, record)

    def __enter__(self) -> "OwnedSegment":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def forget(self) -> None:
        """In a forked child: let go of lock and memory, which are the parent's."""
        self.record.forget()
        self.segment.forget()


def publish(
    label: str,
    geometry: Geometry,
    fill: Callable[[dict[str, Array]], Mapping[str, Any] | None],
    store: str = "auto",
    *,
    meta: Mapping[str, Any] | None = None,
    elsewhere: ExternalArrays | None = None,
) -> tuple[OwnedSegment, Attachment]:
    """A segment that was filled and shared, attached to as by everyone else; all of it or nothing.

    ``fill`` writes the arrays, which it gets by their names, and returns what it learnt of them: a few
    numbers. What else is to be remembered, of any length, is ``meta``; ``elsewhere`` are arrays in a file,
    for a segment that has none of its own.
    """
    owned = OwnedSegment(label, geometry, store, meta=meta, elsewhere=elsewhere)
    try:
        learnt = fill({name: owned.segment.array(name) for name in geometry})
        return owned, owned.share_here(learnt or {})
    except BaseException:
        owned.release()
        raise


def _finalize(pid: int, label: str, segment: Segment, record: Record) -> None:
    """What happens without :meth:`OwnedSegment.release`: at garbage collection or at exit."""
    if os.getpid() == pid:
        warnings.warn(f"shared image {label} was not closed", ResourceWarning, stacklevel=2)
    _release(pid, segment, record)


def _release(pid: int, segment: Segment, record: Record) -> None:
    if os.getpid() == pid:
        with _making:
            try:
                segment.store.release()
            except BaseException:
                record.forget()  # it stays, for the reaper, who can lock it now
                raise
            record.remove()


def _after_fork_in_child() -> None:
    # The child shares our locks: if it held on to them, our death would go unnoticed.
    for one in list(_locks_here):
        one.forget()
    _making.__exit__()


process.at_fork(
    before=_making.__enter__, after_in_parent=_making.__exit__, after_in_child=_after_fork_in_child
)


@dataclass(frozen=True)
class _Provisional:
    """The record of a segment to come: enough to find it, should we die while making it."""

    token: str
    store: str
    name: str
    label: str
    pid: int
    started: int
    created: float

    @classmethod
    def of(cls, token: str, label: str, store: str) -> "_Provisional":
        return cls(token, store, segment_name(token), label, **_this_process(), created=time.monotonic())


def _this_process() -> dict[str, int]:
    pid = os.getpid()
    return {"pid": pid, "started": process.start_time(pid)}


# --- looking and reaping -------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """What one record says. ``handle`` is None while the segment is being filled."""

    token: str
    name: str
    label: str
    pid: int
    created: float
    """By a clock that nobody sets, which begins with the machine."""
    handle: Handle | None


def entries() -> list[Published]:
    """What living owners have published, oldest first."""
    with _open_directory() as folder:
        # A record that is about to replace another has a longer name, and would count twice.
        names = [name for name in os.listdir(folder) if _is_record(name) and name.endswith(_SUFFIX)]
        found = [_read(folder, name) for name in names]
    return sorted((entry for entry in found if entry), key=lambda entry: entry.created)


def find(label: str) -> Handle:
    """The handle of the newest image published under ``label``.

    Raises AttachError: nobody shares an image of that name.
    """
    found = [entry.handle for entry in entries() if entry.label == label and entry.handle]
    if not found:
        raise AttachError(f"no image is shared under the name {label!r}: `sharedmask ls` lists them")
    return found[-1]


@contextlib.contextmanager
def naming() -> Iterator[None]:
    """Nobody else gives a name to an image meanwhile; who dies at it leaves a claim, as others that die."""
    with _open_directory() as folder, locks.locked(folder, f"names{_CLAIM_SUFFIX}", directory()):
        yield


class Claim(_Locked):
    """The one holder of a role on this machine, such as the coordinator, and its socket's place."""

    def __init__(self, role: str) -> None:
        self.role = role
        reap()
        with _making:
            try:
                super().__init__(role + _CLAIM_SUFFIX, json.dumps(_this_process()))
            except FileExistsError as error:
                raise SegmentError(f"another {role} is running for this user") from error
            _locks_here.add(self)

    def release(self) -> None:
        """Remove the socket and the claim, unless they are a successor's. Idempotent."""
        if self._fd >= 0:
            with _making:
                with contextlib.suppress(SegmentError), _open_directory() as folder:
                    if is_named(folder, self.name, self._fd):
                        _remove_claim(folder, self.role)
                self.forget()


def claimed_by(role: str) -> tuple[int, int] | None:
    """The process that has the role, and when it started; None if nobody has it."""
    with _open_directory() as folder, opened_ours(folder, role + _CLAIM_SUFFIX) as fd:
        if fd is None or is_free(fd):
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            facts = json.loads(platform.pread(fd, _RECORD_BYTES, 0))
            return int(facts["pid"]), int(facts["started"])
        return None


@contextlib.contextmanager
def socket_address(role: str) -> Iterator[str]:
    """An address of the role's socket, short enough for any depth of directories."""
    with _open_directory() as folder:
        yield f"/proc/self/fd/{folder}/{role}{_SOCKET_SUFFIX}"


def _remove_claim(folder: Folder, role: str) -> None:
    for suffix in (_SOCKET_SUFFIX, _CLAIM_SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            platform.unlink_at(folder, role + suffix)


def reap() -> list[str]:
    """Remove the segments and records of dead owners; the names of what was removed.

    Only what a record names that we could lock is touched: the data first, the record last, so
    that a reaper killed in between leaves its work to the next one.
    """
    removed: list[str] = []
    with _open_directory() as folder:
        for name in sorted(os.listdir(folder)):
            if not (name.endswith(_CLAIM_SUFFIX) or _is_record(name)):
                continue
            with abandoned(folder, name) as fd:
                if fd is not None:
                    removed += _reap(folder, name)
    return removed


def _reap(folder: Folder, name: str) -> list[str]:
    if name.endswith(_CLAIM_SUFFIX):
        _remove_claim(folder, name.removesuffix(_CLAIM_SUFFIX))
        return []
    segment = segment_name(name[:32])
    removed = [segment] if memory.remove(segment) else []
    platform.unlink_at(folder, name)
    return removed


def _reap_once() -> None:
    """Clean up after the dead, once per process, before the first segment of our own."""
    global _reaped_by
    if _reaped_by != os.getpid():
        reap()
        _reaped_by = os.getpid()


def _is_record(name: str) -> bool:
    return bool(TOKEN.match(name)) and name[32:].startswith(_SUFFIX)


def _read(folder: Folder, name: str) -> Published | None:
    """What the record says; None if its owner is dead or it is none of ours."""
    with opened_ours(folder, name) as fd:
        if fd is None:
            return None
        if is_free(fd):
            # Its owner is dead, or has just put a new record in its place.
            return None if is_named(folder, name, fd) else _read(folder, name)
        text = os.read(fd, _RECORD_BYTES)
    try:
        facts = checked_json(text, "a record")
        handle = checked_facts(Handle, facts, "a handle") if "ino" in facts else None
        record = handle or checked_facts(_Provisional, facts, "a record")
    except AttachError:
        return None
    return Published(record.token, record.name, record.label, record.pid, record.created, handle)
