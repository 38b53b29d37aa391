"""What this system has, and what does the work where it has it not: asked here and nowhere else.

Covers: modules, functions, flags and files that are on Linux and not on macOS or Windows. Does not cover:
where bytes live (``memory``), which lock is taken (``locks``), what memory there is (``limits``, ``usage``).

Where a function is missing that all need, one of the same meaning stands in; where what is missing cannot be
replaced (memory that processes share), this says so, and others decide what is done without it.
"""

import contextlib
import ctypes
import errno
import functools
import importlib
import mmap
import os
import select
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any


@functools.cache
def _module(name: str) -> Any:
    """The module, or None."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


def _flag(*names: str) -> int:
    """Of those that there are, all."""
    found = 0
    for name in names:
        found |= getattr(os, name, 0)
    return found


fcntl: Any = _module("fcntl")
msvcrt: Any = _module("msvcrt")
resource: Any = _module("resource")

OPEN = _flag("O_CLOEXEC", "O_BINARY")
"""Flags for all files: no program that is started has them, and no byte is translated."""
NOT_WAITING = _flag("O_NONBLOCK", "O_NOCTTY")
NOFOLLOW = _flag("O_NOFOLLOW")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
_MADV_POPULATE_WRITE, _MADV_COLLAPSE = 23, 25  # of <asm/mman.h>
_MAP_NOTHING = 0x4022  # private, anonymous, no memory reserved
_MAP_FAILED = ctypes.c_void_p(-1).value
_LARGE_PAGE = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
_HAS_DIR_FD = os.open in os.supports_dir_fd
_HAS_UTIME_OF_FD = os.utime in os.supports_fd

Folder = int | str
"""A directory that is open: a descriptor, or its path where directories have none."""


# --- directories and the names in them -----------------------------------------------------------


def open_folder(path: str | os.PathLike[str], flags: int = 0) -> Folder:
    """A directory whose names are found by the functions below, whatever becomes of its own."""
    if _HAS_DIR_FD:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | OPEN | flags)
    path = os.path.abspath(path)
    if not os.path.isdir(path) or (flags & NOFOLLOW and os.path.islink(path)):
        number = errno.ENOTDIR if os.path.lexists(path) else errno.ENOENT
        raise OSError(number, os.strerror(number), path)
    return path


def _named(folder: Folder | None, name: str) -> tuple[str, dict[str, Any]]:
    return (os.path.join(folder, name), {}) if isinstance(folder, str) else (name, {"dir_fd": folder})


def open_at(folder: Folder, name: str, flags: int, mode: int = 0o600) -> int:
    """A descriptor of the file ``name`` in a directory."""
    path, at = _named(folder, name)
    return os.open(path, flags | OPEN, mode, **at)


def stat_at(folder: Folder | None, name: str) -> os.stat_result:
    """What the file ``name`` in a directory is; links are not followed."""
    path, at = _named(folder if _HAS_DIR_FD or folder else "", name)
    return os.stat(path, follow_symlinks=False, **at)


def unlink_at(folder: Folder, name: str) -> None:
    path, at = _named(folder, name)
    os.unlink(path, **at)


def replace_at(folder: Folder, name: str, new: str) -> None:
    """Call the file ``name`` by another name in the same directory, which no other has then."""
    if isinstance(folder, str):
        os.replace(os.path.join(folder, name), os.path.join(folder, new))
    else:
        os.replace(name, new, src_dir_fd=folder, dst_dir_fd=folder)


def touch_at(folder: Folder, name: str, fd: int) -> None:
    """Have the file ``name``, which is open, as used now."""
    os.utime(fd if _HAS_UTIME_OF_FD else _named(folder, name)[0])


def link_at(fd: int, folder: Folder, name: str) -> None:
    """Give a file of :func:`open_nameless` a name."""
    path, at = _named(folder, name)
    # With a descriptor, even if a whole path needs none, Python follows the first link as it is told to.
    os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=at.get("dir_fd", fd), follow_symlinks=True)


def open_passing(folder: Folder, name: str, mode: int) -> int:
    """A new file that goes with its last user, and its name at once where that can be."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    if not can_move_open_files():
        return open_at(folder, name, flags | os.O_TEMPORARY, mode)  # type: ignore[attr-defined]
    fd = open_at(folder, name, flags, mode)
    unlink_at(folder, name)
    return fd


def open_nameless(folder: Folder, mode: int) -> int:
    """A new file in a directory without a name; an OSError where that is impossible."""
    if not hasattr(os, "O_TMPFILE") or not has_proc():
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return open_at(folder, ".", os.O_TMPFILE | os.O_RDWR, mode)


def is_real(path: str) -> bool:
    """Whether an absolute path is that of a file itself, with no link in it."""
    if hasattr(os, "O_PATH") and has_proc():
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_PATH | OPEN)
            try:
                return os.readlink(f"/proc/self/fd/{fd}") == path  # asked once, not of each folder
            finally:
                os.close(fd)
    return os.path.realpath(path) == path


def write_all(fd: int, data: bytes) -> None:
    """Write all of it where the file is."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def begin_sync(fd: int) -> None:
    """Have the system begin to put a file's bytes on the disk; who syncs it afterwards waits for less."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(folder: Folder) -> None:
    """Have the names in it on the disk, where that can be asked for."""
    if isinstance(folder, int):
        with contextlib.suppress(OSError):  # not every file system has this for directories
            os.fsync(folder)


def can_move_open_files() -> bool:
    """Whether files that somebody has open can be renamed and removed."""
    return os.name != "nt"


def let_go(fd: int) -> None:
    """Where they cannot, have no file behind a descriptor any more; its number stays taken."""
    if not can_move_open_files():
        take_up(fd, os.devnull)


def take_up(fd: int, path: str | os.PathLike[str]) -> None:
    """The opposite of :func:`let_go`: where it let go of a file, have that of this name, to read."""
    if not can_move_open_files():
        found = os.open(path, os.O_RDONLY | OPEN)
        os.dup2(found, fd, inheritable=False)
        os.close(found)


def remove_open(folder: Folder, name: str, fd: int) -> bool:
    """Remove the file ``name``, open as ``fd``; no where it cannot be, since others have it open too."""
    let_go(fd)
    try:
        unlink_at(folder, name)
    except PermissionError:
        if can_move_open_files():
            raise
        return False
    return True


# --- whose files ---------------------------------------------------------------------------------


def user_id() -> int:
    """The number of this user; 0 where users have none."""
    return os.geteuid() if hasattr(os, "geteuid") else 0


def user_name() -> str:
    """What tells this user's folder in a common one: the number, else the name."""
    if hasattr(os, "geteuid"):
        return str(os.geteuid())
    import getpass

    return getpass.getuser()


def is_private(facts: os.stat_result, refused: int = 0) -> bool:
    """Whether it is this user's, and others have none of the permissions ``refused``.

    Where there are no such permissions, folders are private in that they lie in a private one.
    """
    return not hasattr(os, "geteuid") or (facts.st_uid == os.geteuid() and not facts.st_mode & refused)


def set_mode(fd: int, mode: int) -> None:
    if hasattr(os, "geteuid"):
        os.fchmod(fd, mode)


def is_closed(folder: str | os.PathLike[str]) -> bool:
    """Whether this user may not look into a directory."""
    if os.access in os.supports_effective_ids:
        return os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK, effective_ids=True)
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.scandir(folder).close()
    except PermissionError:
        return True
    return False


def rights() -> tuple[Any, ...]:
    """Whose files this process may read and write."""
    if not hasattr(os, "geteuid"):
        return ()
    return os.getuid(), os.geteuid(), os.getgid(), os.getegid(), os.getgroups()


# --- bytes of files ------------------------------------------------------------------------------

# Where a file has one position for all threads, nothing is forked: no child finds this held.
_seeking = contextlib.nullcontext() if hasattr(os, "fork") else threading.Lock()


@contextlib.contextmanager
def at(fd: int, place: int) -> Iterator[None]:
    """The file's position is there; afterwards where it was."""
    with _seeking:
        before = os.lseek(fd, 0, os.SEEK_CUR)
        os.lseek(fd, place, os.SEEK_SET)
        try:
            yield
        finally:
            os.lseek(fd, before, os.SEEK_SET)


def pread(fd: int, count: int, place: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, count, place)
    with at(fd, place):
        return os.read(fd, count)


def pwrite(fd: int, data: memoryview | bytes, place: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, place)
    with at(fd, place):
        return os.write(fd, data)


def pread_into(fd: int, view: memoryview, place: int) -> int:
    """Fill what there is of ``view``; how many bytes that were."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], place)
    data = pread(fd, len(view), place)
    view[: len(data)] = data
    return len(data)


def is_cached(fd: int, place: int) -> bool:
    """Whether the byte is in memory; no where that cannot be told."""
    with contextlib.suppress(OSError):  # it would have to wait, or the file system cannot tell
        return hasattr(os, "RWF_NOWAIT") and bool(os.preadv(fd, [bytearray(1)], place, os.RWF_NOWAIT))
    return False


def reserve(fd: int, place: int, nbytes: int) -> None:
    """Have room for these bytes from ``place`` on: taken now, or where that cannot be, as it is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, place, nbytes)
    elif os.fstat(fd).st_size < place + nbytes:
        os.ftruncate(fd, place + nbytes)


def advise_file(fd: int, place: int, nbytes: int, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, place, nbytes, getattr(os, advice))


def sync(fd: int) -> None:
    """Have a file on the disk."""
    try:
        os.fsync(fd)
    except OSError as error:  # Windows does it for who may write only
        if can_move_open_files() or error.errno not in (errno.EBADF, errno.EACCES):
            raise


def sync_data(fd: int) -> None:
    getattr(os, "fdatasync", os.fsync)(fd)


def advise(buffer: mmap.mmap, advice: str, *span: int) -> None:
    """Tell the kernel what of a map is needed, where it takes advice."""
    if hasattr(mmap, advice):
        buffer.madvise(getattr(mmap, advice), *span)


def populate(address: int, nbytes: int) -> None:
    """Have the pages of a map at hand, which are found one by one at the first touch else; Linux 5.14 can."""
    page = mmap.PAGESIZE
    begin, end = address // page * page, -(-(address + nbytes) // page) * page
    _tell_libc("madvise", ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_POPULATE_WRITE)


def protect(address: int, nbytes: int) -> bool:
    """Let nobody write through a map any more; whether that could be done."""
    return _tell_libc("mprotect", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), mmap.PROT_READ) == 0


@functools.cache
def large_page() -> int:
    """Bytes of a page that stands for many small ones; 0 where there are none that a program can ask for."""
    with contextlib.suppress(OSError, ValueError), open(_LARGE_PAGE) as file:
        return int(file.read())
    return 0


def make_large(address: int, nbytes: int) -> bool:
    """Have memory of small pages made of large ones; Linux 6.1 can, where there are enough that are free."""
    at, size = ctypes.c_void_p(address), ctypes.c_size_t(nbytes)
    return _tell_libc("madvise", at, size, _MADV_COLLAPSE) == 0


def never_free(thing: object) -> None:
    """Have an object last as long as this process, whoever forgets it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


@contextlib.contextmanager
def gap(nbytes: int, alignment: int) -> Iterator[None]:
    """Have a map of so many bytes begin at a multiple of ``alignment``: it is laid into a gap that fits."""
    page, libc = mmap.PAGESIZE, ctypes.CDLL(None)
    libc.mmap.restype, size = ctypes.c_void_p, -(-nbytes // page) * page
    whole = size + 3 * alignment
    begin = libc.mmap(None, ctypes.c_size_t(whole), 0, _MAP_NOTHING, -1, ctypes.c_long(0))
    if begin in (None, _MAP_FAILED):
        yield
        return
    place = (begin // alignment + 2) * alignment
    spans = [(begin, place), (place + size, begin + whole)]

    def unmap(start: int, stop: int) -> None:
        libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(stop - start))

    unmap(place, place + size)
    try:
        yield
    finally:
        for span in spans:
            unmap(*span)


def trim_heap() -> None:
    """Give back memory that was freed; with glibc only."""
    _tell_libc("malloc_trim", 0)


def let_go_of_memory(nbytes: int) -> None:
    """Have what is freed go back to the system if it was so large, in this process; with glibc only.

    Else its allocator keeps as much as the largest blocks that were freed, in each thread's arena.
    """
    _tell_libc("mallopt", _MMAP_THRESHOLD, nbytes)


def keep_memory(nbytes: int) -> None:
    """Have what is freed stay in this process for what comes next, up to so much of it; with glibc only.

    Pages that went back to the system are found one by one again, at some microseconds each on virtual
    machines: as much time as the arithmetic on small arrays takes.
    """
    _tell_libc("mallopt", _TRIM_THRESHOLD, nbytes)
    _tell_libc("mallopt", _MMAP_THRESHOLD, nbytes // 2)


def _tell_libc(name: str, *arguments: Any) -> int | None:
    """What it answers; None where it is not there."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):
            return int(getattr(ctypes.CDLL(None), name)(*arguments))
    return None


def free_disk(path: str | os.PathLike[str]) -> int:
    """Bytes that this user may still write there."""
    return shutil.disk_usage(path).free


# --- processes -----------------------------------------------------------------------------------


def has_proc() -> bool:
    """Whether the kernel tells of processes in files."""
    return os.access("/proc/self/fd", os.R_OK | os.X_OK)


def open_descriptors() -> list[int]:
    """Numbers of the files that this process has open; an OSError where nobody tells."""
    folder = "/proc/self/fd" if has_proc() else "/dev/fd"
    return [int(name) for name in os.listdir(folder)]


def path_of(fd: int) -> str:
    """The path of an open file; an OSError where nobody tells."""
    return os.readlink(f"/proc/self/fd/{fd}")


def open_again(path: str, flags: int) -> int:
    """Another descriptor of a file; one that has no name is known as ``/proc/PID/fd/NUMBER``."""
    folder, _, number = path.rpartition("/")
    if not has_proc() and folder == f"/proc/{os.getpid()}/fd":
        return os.dup(int(number))
    return os.open(path, flags | OPEN)


def cpus() -> set[int]:
    """On which this process may run; empty where that cannot be told."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def is_readable(pipe: Any, seconds: float = 0) -> bool:
    """Whether there is something in it, or its end, within so many seconds; faster than its own ``poll``."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@functools.cache
def can_fork() -> bool:
    """Whether workers can be forked from a template that is told what to do through a socket."""
    return all(hasattr(os, name) for name in ("fork", "waitpid", "WNOHANG")) and hasattr(socket, "send_fds")


def signals(*names: str) -> list[signal.Signals]:
    """Those of these names that there are."""
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


# --- memory that processes share -----------------------------------------------------------------

SHM = "/dev/shm"


def has_shm() -> bool:
    """Whether there is named shared memory that is a folder, in which what the dead left can be found."""
    return os.access(SHM, os.F_OK) and _module("_posixshmem") is not None


def has_memfd() -> bool:
    """Whether there is sealed anonymous memory that others can open."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_SEAL_WRITE") and has_proc()


def shared_memory() -> ModuleType:
    """The standard module, imported where it is there and needed."""
    return importlib.import_module("multiprocessing.shared_memory")


NOT_SHARED = (
    "sharing between processes needs /dev/shm or memfd, which this system lacks; "
    "images with store='private' stay in this process"
)


def can_share() -> bool:
    """Whether processes can share memory here, and be found by each other."""
    return fcntl is not None and hasattr(socket, "AF_UNIX") and (has_shm() or has_memfd())
