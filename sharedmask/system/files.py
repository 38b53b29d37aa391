"""Files of our own: names that mean one file, locks, and files that are written whole or not at all.

Covers: where files that may be large go, opening a private directory, files without a name, the lock on
a name, links to nothing, writing and reading all of a buffer, ``atomic_write`` and the sweep of what killed
writers left. Does not cover: what is kept in files (``registry``, ``kept``, ``disk``, ``spill``, ``tables``).
"""

import contextlib
import errno
import fcntl
import glob
import json
import logging
import os
import re
import secrets
import socket
import stat
import struct
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sharedmask.errors import LockError, MissingFileError, SegmentError, SharedMaskWarning
from sharedmask.system import process, settings

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_PATIENCE = 10.0  # seconds after which a wait for a lock is said
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\.sharedmask-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{16}\.tmp")
_swept: set[tuple[int, int]] = set()
_log = logging.getLogger(__name__)

DISK_FOLDER = "sharedmask-disk-"
"""What the name of the folder of images and frames on disk begins with; the user's number follows."""


def spill_folder() -> Path:
    """Where images and frames on disk are: ``$SHAREDMASK_TMPDIR``, else ``$TMPDIR``, else /var/tmp."""
    chosen = settings.current().spill_dir or os.environ.get("TMPDIR")
    usual = Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else Path(tempfile.gettempdir())
    return (Path(chosen) if chosen else usual).absolute()


@contextlib.contextmanager
def private_directory(path: Path, what: str, refused: int = 0o077) -> Iterator[int]:
    """A descriptor of the directory ``path``, made if it is missing; ``what`` names it in messages.

    Of the permissions of others, it must have none that are in ``refused``.

    Raises
    ------
    SegmentError
        It cannot be used, or others than this user can.
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SegmentError(f"{what} {path} cannot be used: {error.strerror}") from error
    try:
        facts = os.fstat(fd)
        if facts.st_uid != os.geteuid() or facts.st_mode & refused:
            mode = stat.S_IMODE(facts.st_mode)
            raise SegmentError(f"{what} {path} must be private: uid {facts.st_uid}, mode {mode:o}")
        yield fd
    finally:
        os.close(fd)


# --- locks ---------------------------------------------------------------------------------------


def is_named(folder: int | None, name: str, fd: int) -> bool:
    """Whether ``name`` in the directory ``folder`` is the file behind ``fd``."""
    try:
        named = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def lock(fd: int, how: int) -> None:
    """``fcntl.flock``; where the file system has no such locks, those of ``fcntl`` that last as long.

    Raises
    ------
    BlockingIOError
        Another holds it, and ``how`` says not to wait.
    LockError
        It has neither.
    """
    try:
        fcntl.flock(fd, how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _lock_description(fd, how)


def _lock_description(fd: int, how: int) -> None:
    """A lock of the open file, as flock's is, and not of the process, which closing any descriptor ends."""
    kinds = {fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}
    wish = struct.pack("hhqqi4x", kinds[how & ~fcntl.LOCK_NB], os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK if how & fcntl.LOCK_NB else fcntl.F_OFD_SETLKW, wish)
    except (OSError, AttributeError) as error:
        # An exclusive lock needs a descriptor for writing: of who has none nothing is removed.
        if getattr(error, "errno", None) in (errno.EAGAIN, errno.EACCES, errno.EBADF):
            raise BlockingIOError(errno.EAGAIN, "locked") from error
        path = os.readlink(f"/proc/self/fd/{fd}")
        raise LockError(f"{path} cannot be locked: its file system has no locks; use another one") from error


def is_free(fd: int) -> bool:
    """Whether nobody holds a lock on the file; if so we hold it now."""
    try:
        lock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def opened_locked(folder: int, name: str, flags: int, take: Callable[[int], None]) -> int:
    """A descriptor of the file ``name``, on which ``take`` waited for a lock.

    1. A holds the lock, B waits for it.
    2. A renames or removes the file. C makes a new one of that name.
    3. B gets the lock of a file that has not this name any more, and tries again, behind C.
    """
    while True:
        fd = os.open(name, flags | _OPEN, 0o600, dir_fd=folder)
        try:
            take(fd)
            if is_named(folder, name, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


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
def locked(folder: int, name: str, path: str | os.PathLike[str] = "") -> Iterator[None]:
    """The lock file ``name``, made if it is missing, in our hands; it is gone afterwards.

    A wait of more than a few seconds is logged, with the ``path`` of the directory.
    """

    def wait(fd: int) -> None:
        if not is_free(fd):
            with _said_after(_PATIENCE, "another process holds %s: waiting for it", os.path.join(path, name)):
                lock(fd, fcntl.LOCK_EX)

    fd = opened_locked(folder, name, os.O_CREAT | os.O_RDWR, wait)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        lock(fd, fcntl.LOCK_UN)  # closing is not enough if the process was forked
        os.close(fd)


@contextlib.contextmanager
def opened_ours(folder: int, name: str, magic: bytes | tuple[bytes, ...] = b"") -> Iterator[int | None]:
    """A descriptor of a regular file of this user's that begins so; None if it is another, or gone."""
    try:
        fd = os.open(name, os.O_RDONLY | _OPEN, dir_fd=folder)
    except OSError:
        yield None
        return
    try:
        yield fd if is_ours(fd, magic) else None
    finally:
        os.close(fd)


def is_ours(fd: int, magic: bytes | tuple[bytes, ...] = b"") -> bool:
    """Whether the file is regular, this user's, and begins so, or is empty."""
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
        return False
    return not facts.st_size or not magic or os.pread(fd, 64, 0).startswith(magic)


def dangling(path: str | os.PathLike[str]) -> str:
    """What to say of a link to content that is not there; empty of any other name."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return f"is a link to {os.path.realpath(path)}, which is not there: get it with `datalad get {path}`"


# --- bytes ---------------------------------------------------------------------------------------


def matches(text: str) -> list[str]:
    """The files that a pattern matches, sorted; none if it is no pattern, but the name of a file or link.

    Raises
    ------
    MissingFileError
        It matches none.
    """
    pattern = os.path.expanduser(text)
    if not glob.has_magic(text) or os.path.lexists(pattern):
        return []
    if found := sorted(glob.glob(pattern, recursive=True)):
        return found
    raise MissingFileError(f"no file matches {text}")


def nameless(folder: int, mode: int = 0o600) -> int | None:
    """A new file in the directory that has no name yet; None where that is impossible."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=folder)
    except (AttributeError, OSError) as error:
        unsupported = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
        if isinstance(error, OSError) and error.errno not in unsupported:
            raise
        return None


def scratch(path: str | os.PathLike[str]) -> int:
    """A new file in a directory that never has a name, or, where that is impossible, none any more."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = nameless(folder)
        if fd is None:
            fd, name = _named(folder, 0o600)
            os.unlink(name, dir_fd=folder)
        return fd
    finally:
        os.close(folder)


def pwrite_all(fd: int, data: memoryview | bytes, place: int) -> None:
    """Write all of ``data``, bytes, at ``place``."""
    left = memoryview(data)
    while left:
        done = os.pwrite(fd, left, place)
        left, place = left[done:], place + done


def pread_into(fd: int, view: memoryview, place: int) -> int:
    """Fill ``view`` from ``place`` on; the number of bytes read, fewer only where the file ends."""
    done = 0
    while done < len(view) and (got := os.preadv(fd, [view[done:]], place + done)):
        done += got
    return done


# --- whole or not at all -------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name to write to, whose file becomes ``path`` if all went well and else never was.

    The file has no name while it is written, so that no signal leaves one; where files must have a name
    (network file systems), the next process that writes to the directory removes those of dead ones.
    Its bytes are on the disk before it is called ``path``, and the name is there when this returns.
    What is no regular file (a pipe, a device) is written to, never replaced. An error of the system's that
    is about this file, such as a full disk, names ``path``.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "out.tsv")) as temporary:
    ...         _ = temporary.write_text("a\\n")
    ...     os.listdir(folder)
    ['out.tsv']
    """
    path = Path(os.path.abspath(path))
    if _is_special(path):
        yield path
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sweep_once(folder)
        with _about(path):
            fd = nameless(folder, 0o666)
            fd, name = (fd, "") if fd is not None else _named(folder, 0o666)
        draft = _named_draft(folder, path, fd, name) if name else _nameless_draft(folder, path, fd)
        with draft as temporary, _naming(path, temporary):
            yield temporary
        with contextlib.suppress(OSError):  # not every file system has this for directories
            os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """``facts`` as JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def readable(path: str | os.PathLike[str]) -> str:
    """A path as text that can be written anywhere: UTF-8 whatever the locale, other bytes as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_name(text: str) -> str:
    """The name of a file that is ``text`` in UTF-8, whatever the locale."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def _about(path: Path) -> Iterator[None]:
    """An error of our own calls names the output, and no descriptor or temporary name."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise


@contextlib.contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        is_full = error.filename is None and error.errno in _FULL
        if is_full or error.filename == os.fspath(temporary):
            error.filename = os.fspath(path)
        raise


def _is_special(path: Path) -> bool:
    """Whether the path leads to what is no regular file, or through a descriptor (``/dev/stdout``)."""
    place = os.path.realpath(path.parent)
    if place == "/dev" or place.startswith("/proc/"):
        return True
    with contextlib.suppress(OSError):
        return not stat.S_ISREG(os.stat(path).st_mode)
    return False


@contextlib.contextmanager
def _nameless_draft(folder: int, path: Path, fd: int) -> Iterator[Path]:
    try:
        yield Path(f"/proc/self/fd/{fd}")
        with _about(path):
            os.fsync(fd)
            try:
                _link(fd, folder, path.name)
            except FileExistsError:
                name = _temporary_name()
                _link(fd, folder, name)
                _rename(folder, name, path.name)
    except BaseException:
        if not settings.current().cleanup_temporary:
            _link(fd, folder, _half_written(path))
        raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def _named_draft(folder: int, path: Path, fd: int, name: str) -> Iterator[Path]:
    try:
        yield path.with_name(name)
        with _about(path):
            os.fsync(fd)
            _rename(folder, name, path.name)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            if settings.current().cleanup_temporary:
                os.unlink(name, dir_fd=folder)
            else:
                os.rename(name, _half_written(path), src_dir_fd=folder, dst_dir_fd=folder)
        raise
    finally:
        os.close(fd)


def _link(fd: int, folder: int, name: str) -> None:
    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)


def _rename(folder: int, name: str, final: str) -> None:
    try:
        os.replace(name, final, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(name, dir_fd=folder)
        raise


def _half_written(path: Path) -> str:
    """A name under which what is half written stays; a warning tells it."""
    name = f".{path.name[:200]}.{secrets.token_hex(8)}.tmp"
    warnings.warn(f"left half written: {path.with_name(name)}", SharedMaskWarning, stacklevel=6)
    return name


def _named(folder: int, mode: int) -> tuple[int, str]:
    name = _temporary_name()
    return os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | _OPEN, mode, dir_fd=folder), name


def _temporary_name() -> str:
    pid = os.getpid()
    return f".sharedmask-{_here()}-{pid}-{process.start_time(pid)}-{secrets.token_hex(8)}.tmp"


@cache
def _here() -> str:
    """Where process ids mean what they mean here: of other machines nobody is known to be dead."""
    return blake2b(f"{socket.gethostname()} {process.pid_namespace()}".encode(), digest_size=4).hexdigest()


# --- what killed writers left --------------------------------------------------------------------


def sweep(path: str | os.PathLike[str]) -> list[str]:
    """Remove what killed writers left half written in a directory; the paths of what was removed."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return [os.path.join(path, name) for name in _sweep(folder)]
    finally:
        os.close(folder)


def _sweep_once(folder: int) -> None:
    """Once per process and directory: there may be a great many files in it, and as many to write."""
    facts = os.fstat(folder)
    if (facts.st_dev, facts.st_ino) not in _swept:
        _swept.add((facts.st_dev, facts.st_ino))
        with contextlib.suppress(OSError):
            _sweep(folder)


def _sweep(folder: int) -> list[str]:
    return [name for name in os.listdir(folder) if _is_of_the_dead(name) and _remove_ours(folder, name)]


def _is_of_the_dead(name: str) -> bool:
    found = _TEMPORARY.fullmatch(name)
    return found is not None and found[1] == _here() and process.start_time(int(found[2])) != int(found[3])


def _remove_ours(folder: int, name: str) -> bool:
    with opened_ours(folder, name) as fd:
        if fd is not None:
            os.unlink(name, dir_fd=folder)
        return fd is not None
