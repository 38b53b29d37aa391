"""Locks on files, by whatever means their file system has, and files that are there to be locked.

Covers: flock, the locks of ``fcntl`` and of Windows, files that say who holds a lock; waiting for one, and
making sure that what was locked still has its name. Does not cover: locks between threads (``process``), what
is locked.

All of them are locks of an open file: they last until the last descriptor of it is closed in the process that
took them, or until that process ends, in whatever way. Whoever uses ``close`` leaves no file that was one.
"""

import contextlib
import errno
import logging
import os
import random
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sharedmask.errors import LockError
from sharedmask.system import platform, process
from sharedmask.system.platform import Folder, fcntl, msvcrt

OPEN = platform.OPEN | platform.NOFOLLOW | platform.NOT_WAITING
"""Flags for files of ours: no link is followed, nothing is waited for."""

SHARED, EXCLUSIVE, AT_ONCE, NONE = 1, 2, 4, 8
"""What can be asked of :func:`lock`: the numbers of flock."""

_PATIENCE = 10.0  # seconds after which a wait for a lock is said
_MISSING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what file systems without locks answer
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EBADF)
_TRIES, _PAUSE = 3, 0.02
_FOREIGN_SECONDS = 24 * 3600.0  # after which locks of other machines, whose processes nobody sees, are stale
_log = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Folder)


def lock(fd: int, how: int) -> None:
    """What ``fcntl.flock`` does, by the first means that the system and the file system have.

    Raises BlockingIOError: another holds it, and ``how`` says not to wait.
    Raises LockError: it has no locks, and files that would be some cannot be made.
    """
    for take in (_lock_byte,) if fcntl is None else (fcntl.flock, _lock_description, _lock_by_file):
        try:
            take(fd, how)
            return
        except OSError as error:
            if error.errno not in _MISSING:
                raise
    path = "a file"
    with contextlib.suppress(OSError):
        path = platform.path_of(fd)
    raise LockError(f"{path} cannot be locked: its file system has no locks; use another one")


def close(fd: Folder) -> None:
    """Close a descriptor and end its lock, unless others share it.

    It is closed whatever the system reports of that; and all that is to last was on the disk before.
    """
    if isinstance(fd, str):  # a directory where those have no descriptors
        return
    _drop(fd)
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def closing(fd: _F) -> Iterator[_F]:
    """A descriptor that is closed at the end."""
    try:
        yield fd
    finally:
        close(fd)


def let_go(fd: int) -> None:
    """End the lock, and close the descriptor.

    A process that another thread forked meanwhile has the descriptor too: it would hold the lock for as long
    as it lives, and wait for itself.
    """
    with contextlib.suppress(OSError, LockError):
        lock(fd, NONE)
    close(fd)


def leave_to(holder: object, fd: int) -> None:
    """Close a descriptor of a file that ``holder``, a map, keeps open: its lock ends with that."""
    path = _held.pop(fd, None)
    close(fd)
    if path is not None:
        weakref.finalize(holder, _remove, path, os.getpid())


def is_free(fd: int) -> bool:
    """Whether nobody holds a lock on the file; if so we hold it now."""
    try:
        lock(fd, EXCLUSIVE | AT_ONCE)
    except BlockingIOError:
        return False
    return True


# --- without flock -------------------------------------------------------------------------------


def _lock_description(fd: int, how: int) -> None:
    """A lock of the open file, as flock's is, and not of the process, which closing any descriptor ends."""
    kinds = {EXCLUSIVE: fcntl.F_WRLCK, SHARED: fcntl.F_RDLCK, NONE: fcntl.F_UNLCK}
    wish = struct.pack("hhqqi4x", kinds[how & ~AT_ONCE], os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK if how & AT_ONCE else fcntl.F_OFD_SETLKW, wish)
    except AttributeError as error:  # a system without them
        raise OSError(errno.ENOSYS, "no such locks") from error
    except OSError as error:
        # An exclusive lock needs a descriptor for writing: of who has none nothing is removed.
        if error.errno in _TAKEN:
            raise BlockingIOError(errno.EAGAIN, "locked") from error
        raise


# --- Windows -------------------------------------------------------------------------------------
#
# There a byte of a file is locked, here one that no file of ours has. Who reads needs no lock: what somebody
# has open cannot be removed.

_BYTE = 2**31 - 2


def _lock_byte(fd: int, how: int) -> None:
    if msvcrt is None:
        raise OSError(errno.ENOSYS, "no such locks")
    if how & SHARED:
        return
    while not _changed_byte(fd, msvcrt.LK_UNLCK if how & NONE else msvcrt.LK_NBLCK) and not how & NONE:
        if how & AT_ONCE:
            raise BlockingIOError(errno.EAGAIN, "locked")
        time.sleep(_PAUSE)


def _changed_byte(fd: int, how: int) -> bool:
    with platform.at(fd, _BYTE), contextlib.suppress(OSError):
        msvcrt.locking(fd, how, 1)
        return True
    return False


# --- without any lock of the kernel's ------------------------------------------------------------
#
# Who wants a lock makes a file beside the one that is to be locked, whose name says all: which file (its
# inode), who (where, which process, since when) and how. Then it looks for others that are in its way, and
# if there is one takes its own away again. No two names are ever the same, so that whoever finds a stale one
# can remove it: nobody else's can be removed in its place.

_held: dict[int, Path] = {}
"""The file that is the lock of a descriptor of this process."""


def _lock_by_file(fd: int, how: int) -> None:
    _drop(fd)
    tries = 0
    while how & ~AT_ONCE != NONE and not _is_taken_by_file(fd, bool(how & EXCLUSIVE)):
        tries += 1
        if how & AT_ONCE and tries == _TRIES:
            raise BlockingIOError(errno.EAGAIN, "locked")
        time.sleep(random.uniform(0, _PAUSE) * min(tries, 10))


def _is_taken_by_file(fd: int, exclusive: bool) -> bool:
    facts = os.fstat(fd)
    try:
        folder = Path(platform.path_of(fd)).parent
        mine = folder / process.named_file(f"-{facts.st_ino}{'x' if exclusive else 's'}.lock")
        close(os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY | OPEN, 0o600))
    except OSError as error:
        raise OSError(errno.ENOLCK, "no file can be made that would be a lock") from error
    in_our_way = tuple(f"-{facts.st_ino}{kind}.lock" for kind in ("xs" if exclusive else "x"))
    others = [folder / name for name in os.listdir(folder) if name.endswith(in_our_way)]
    if any(_is_in_force(path, fd, facts) for path in others if path != mine):
        mine.unlink()
        return False
    _held[fd] = mine
    return True


def _is_in_force(path: Path, fd: int, locked: os.stat_result) -> bool:
    """Whether a lock's process still has the file open; if not, the lock is removed."""
    owner = process.owner_of(path.name)
    with contextlib.suppress(FileNotFoundError):
        if owner is None:
            stale = time.time() - path.stat().st_mtime > _FOREIGN_SECONDS
        else:
            stale = not _has_open(owner, locked, but=fd)
        if not stale:
            return True
        path.unlink()
    return False


def _has_open(owner: tuple[int, int], locked: os.stat_result, but: int) -> bool:
    """Whether a process (its id, its start) lives and has the file open, or we may not know."""
    pid, started = owner
    if process.start_time(pid) != started:
        return False
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    others = [n for n in numbers if pid != os.getpid() or int(n) != but]
    return any(_leads_to(f"/proc/{pid}/fd/{n}", locked) for n in others)


def _leads_to(path: str, locked: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), locked)
    except OSError:
        return False


def _drop(fd: int) -> None:
    """End the lock of a descriptor, if it is a file."""
    path = _held.pop(fd, None)
    if path is not None:
        _remove(path, os.getpid())


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)


process.at_fork(after_in_child=_held.clear)


# --- files that are locked -----------------------------------------------------------------------


def is_named(folder: Folder | None, name: str, fd: int) -> bool:
    """Whether ``name`` in the directory ``folder`` is the file behind ``fd``."""
    try:
        named = platform.stat_at(folder, name)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def opened_locked(folder: Folder, name: str, flags: int, take: Callable[[int], None]) -> int:
    """A descriptor of the file ``name``, on which ``take`` waited for a lock.

    1. A holds the lock, B waits for it.
    2. A renames or removes the file. C makes a new one of that name.
    3. B gets the lock of a file that has not this name any more, and tries again, behind C.
    """
    while True:
        fd = platform.open_at(folder, name, flags | OPEN)
        try:
            take(fd)
            if is_named(folder, name, fd):
                return fd
        except BaseException:
            close(fd)
            raise
        close(fd)


@contextlib.contextmanager
def _said_after(seconds: float, *said: str) -> Iterator[None]:
    timer = threading.Timer(seconds, _log.warning, said)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def locked(folder: Folder, name: str, path: str | os.PathLike[str] = "") -> Iterator[None]:
    """The lock file ``name``, made if it is missing, in our hands; it is gone afterwards.

    A wait of more than a few seconds is logged, with the ``path`` of the directory.
    """

    def wait(fd: int) -> None:
        if not is_free(fd):
            with _said_after(_PATIENCE, "another process holds %s: waiting for it", os.path.join(path, name)):
                lock(fd, EXCLUSIVE)

    fd = opened_locked(folder, name, os.O_CREAT | os.O_RDWR, wait)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            platform.remove_open(folder, name, fd)
        let_go(fd)
