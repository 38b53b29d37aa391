"""Where bytes live: named shared memory, or sealed anonymous memory.

Covers: making room for a segment, opening it again from another process, sealing it, giving it
back; which of the two suits this machine. Does not cover: what the bytes are (``segment``), who
owns them and what happens when the owner dies (``registry``).
"""

import contextlib
import errno
import mmap
import os
import re
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from sharedmask.errors import AttachError, SegmentError
from sharedmask.storage import memory_pages
from sharedmask.system import locks, platform
from sharedmask.system.limits import explained
from sharedmask.system.platform import fcntl
from sharedmask.system.units import format_bytes

SHM = Path(platform.SHM)
NAME = re.compile(r"sharedmask-[0-9a-f]{16}")

_BATCH_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
_BESIDES = 256 * 1024  # bytes of what else is in a segment, and of its record and the next one
_MFD_NOEXEC_SEAL = 0x8  # not in Python's os before 3.13
_OPEN = platform.OPEN | platform.NOT_WAITING


class Store(ABC):
    """The memory of one segment, in the hands of its owner."""

    kind: str
    fd = -1
    """The owner's descriptor through which others open it; -1 if it has a name."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.name = name
        self.nbytes = nbytes
        self._make()
        try:
            with self.opened() as fd:
                self.facts = os.fstat(fd)
                _reserve(fd, nbytes, self.kind)
        except BaseException:
            self.release()
            raise

    @abstractmethod
    def _make(self) -> None: ...

    @abstractmethod
    def opened(self) -> contextlib.AbstractContextManager[int]:
        """A writable descriptor."""

    @abstractmethod
    def seal(self) -> None:
        """No process writes from here on; the owner has no map any more that could be written to."""

    def protected(self, buffer: mmap.mmap) -> memoryview | None:
        """The owner's map, from here on to read only; None if it has to go before this can be sealed."""
        return None

    def release(self) -> None:
        """Give the memory back; it goes with the last map of it. Idempotent."""
        self.forget()

    def forget(self) -> None:
        """In a forked child: let go of what belongs to the parent."""
        fd, self.fd = self.fd, -1
        locks.close(fd)


class Named(Store):
    """Named shared memory, which any process of this user can open, and which outlives its owner."""

    kind = "shm"

    def _make(self) -> None:
        self._tracked = _tracker_runs() and self._make_tracked()
        if not self._tracked:
            try:
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | platform.OPEN
                locks.close(os.open(SHM / self.name, flags, 0o600))
            except OSError as error:
                size = f"{format_bytes(self.nbytes)} in {SHM}"
                hint = "store='memfd' needs none"
                raise SegmentError(f"no shared memory of {size}: {explained(error)}; {hint}") from error

    def _make_tracked(self) -> bool:
        """Whether the name was made, and is known to the standard tracker; if not, nothing is left of it."""
        try:
            # The standard object creates, no more: its map could not be closed while arrays look at it,
            # a plain one lives exactly as long as its last view.
            # A byte, for which there is always room: without it the tracker would print a traceback.
            platform.shared_memory().SharedMemory(self.name, create=True, size=1).close()
        except FileExistsError:
            return False
        except Exception:
            remove(self.name)  # the name is made before the tracker is told
            return False
        return True

    def opened(self) -> contextlib.AbstractContextManager[int]:
        return locks.closing(os.open(SHM / self.name, os.O_RDWR | platform.OPEN))

    def seal(self) -> None:
        os.chmod(SHM / self.name, 0o400)

    def protected(self, buffer: mmap.mmap) -> memoryview | None:
        if not platform.protect(memory_pages.address_of(buffer), self.nbytes):
            return None
        platform.advise(buffer, "MADV_DOFORK")
        return memoryview(buffer).toreadonly()

    def release(self) -> None:
        # A name that somebody removed is no reason to fail, nor is a tracker that is gone; with an
        # entry left behind it would warn at exit.
        remove(self.name)
        if self._tracked:
            with contextlib.suppress(Exception):
                if (tracker := _tracker())._fd is not None:
                    tracker.unregister("/" + self.name, "shared_memory")
            self._tracked = False


def _tracker_runs() -> bool:
    """Whether the standard tracker, a process that removes names when their owner dies, could be started.

    Where no process can be (limits; a program that Python is embedded in), names are made without it:
    the registry's record leads the next reaper to them.
    """
    from multiprocessing import spawn

    python = spawn.get_executable()
    if not python or not os.access(python, os.X_OK):
        return False
    with contextlib.suppress(OSError):
        _tracker().ensure_running()
        return True
    return False


def _tracker() -> Any:
    """The standard tracker, without its pipe where that was closed.

    A process that becomes a daemon closes all descriptors: what is told to the tracker would then be written
    into whatever file has the number now.
    """
    from multiprocessing import resource_tracker

    tracker: Any = resource_tracker._resource_tracker
    if tracker._fd is not None and not _is_pipe(tracker._fd):
        tracker._fd = tracker._pid = None
    return tracker


def _is_pipe(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    return False


class Memfd(Store):
    """Anonymous memory, reached through the owner's descriptor: nothing to unlink, nothing to leave."""

    kind = "memfd"

    def _make(self) -> None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            self.fd = os.memfd_create(self.name, flags | _MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel that does not know the last flag
                size, why = format_bytes(self.nbytes), explained(error)
                raise SegmentError(f"no anonymous memory of {size}: {why}") from error
            self.fd = os.memfd_create(self.name, flags)
        os.fchmod(self.fd, 0o600)

    def opened(self) -> contextlib.AbstractContextManager[int]:
        return contextlib.nullcontext(self.fd)

    def seal(self) -> None:
        try:
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            raise SegmentError(
                f"{self.name} cannot be sealed, another process still maps it for writing "
                f"(a child forked while it was being filled?): {error}"
            ) from error
        os.fchmod(self.fd, 0o400)


KINDS: dict[str, type[Store]] = {store.kind: store for store in (Named, Memfd)}


def _reserve(fd: int, nbytes: int, kind: str) -> None:
    """Take the pages now: a full file system is an error here and a bus error later."""
    try:
        memory_pages.reserve(fd, nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise SegmentError(f"{format_bytes(nbytes)} cannot be reserved: {explained(error)}") from error
        os.ftruncate(fd, 0)  # what was taken already is free again
        is_full = kind == "shm" and error.errno == errno.ENOSPC
        where = f"{SHM} is too small" if is_full else "memory is short"
        free = f" and {format_bytes(free_bytes() or 0)} were free" if is_full else ""
        raise SegmentError(f"{where}: {format_bytes(nbytes)} are needed{free}") from error


# --- choosing ------------------------------------------------------------------------------------


def free_bytes() -> int | None:
    """Room in the file system of named shared memory; None where there is none, or that cannot be told."""
    with contextlib.suppress(OSError):
        return platform.free_disk(SHM) if platform.has_shm() else None
    return None


def choose(asked: str, nbytes: int) -> tuple[str, str]:
    """The store for ``nbytes`` bytes, and the reason.

    ``"auto"`` is named shared memory, except where it may be left behind (a batch system kills
    everything at once), cannot be made, or has no room (containers give it 64 MB).

    Raises SegmentError: processes can share nothing here.
    """
    if not platform.can_share():
        raise SegmentError(platform.NOT_SHARED)
    if asked != "auto":
        return asked, "asked for"
    if platform.has_memfd():
        job = next((name for name in _BATCH_JOBS if os.environ.get(name)), None)
        if job:
            return "memfd", f"in a batch job ({job}), where a kill leaves nothing behind"
        if not os.access(SHM, os.W_OK | os.X_OK):
            return "memfd", f"nothing can be made in {SHM}"
        free = free_bytes()
        if free is not None and free < nbytes + _BESIDES:
            return "memfd", f"{SHM} has room for {format_bytes(free)} only"
    return "shm", "the default"


# --- opening from elsewhere ----------------------------------------------------------------------


def open_shm(name: str, label: str, writable: bool) -> int:
    """A descriptor of named shared memory; never through ``SharedMemory(name)``, whose tracker
    would unlink the segment of a living owner when this process exits."""
    access = os.O_RDWR if writable else os.O_RDONLY
    try:
        return os.open(f"{SHM}/{name}", access | platform.NOFOLLOW | _OPEN)
    except FileNotFoundError as error:
        raise AttachError(f"the shared image {label} is gone: {error.strerror}") from error


def open_memfd(name: str, pid: int, fd: int, label: str, writable: bool) -> int:
    """A descriptor of the owner's anonymous memory.

    The link is looked at before, so that nothing else is opened, and the caller checks identity
    after: the number may have been used again in between.
    """
    path = f"/proc/{pid}/fd/{fd}"
    try:
        if os.readlink(path) != f"/memfd:{name} (deleted)":
            raise AttachError(f"the shared image {label} is gone: its owner closed it")
        return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | _OPEN)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise AttachError(
            f"the shared image {label} is gone: process {pid} has ended or closed it"
        ) from error
    except PermissionError as error:
        raise AttachError(
            f"the shared image {label} cannot be reached: process {pid} lets nobody look into it "
            '(another user namespace, or not dumpable); share it with store="shm"'
        ) from error


def is_sealed(fd: int) -> bool:
    """Whether anonymous memory can neither shrink nor change."""
    needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE
    with contextlib.suppress(OSError):
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & needed == needed)
    return False


def remove(name: str) -> bool:
    """Unlink the named memory of a dead owner, if it is there and ours; whether it was."""
    if not NAME.fullmatch(name) or not os.path.lexists(SHM / name):  # unlinking fails where all is read-only
        return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SHM / name)
        return True
    return False
