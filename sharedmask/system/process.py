"""This process and this machine: identities that cannot be mistaken, and CPUs.

Covers: boot, process ids and their start times, names of files that say whose they are, how many workers
are meant by ``n_jobs``, what a forked child finds. Does not cover: memory (``limits``, ``usage``).
"""

import contextlib
import functools
import math
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from operator import index
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from weakref import WeakSet

from sharedmask.errors import ParameterError, WorkerError
from sharedmask.system import platform
from sharedmask.system.limits import cpu_quota

_NAMED = re.compile(r"\.sharedmask-([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{16}(?:\.tmp|-\d+[xs]\.lock)")

# --- this machine, this process ------------------------------------------------------------------


@functools.cache
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
    """When process ``pid`` started, in clock ticks since boot; 0 if there is none.

    A pid is used again, a pid with its start time is not. Without /proc it is in microseconds since 1970.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # The second field, the command's name, may contain spaces and parentheses.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    if platform.has_proc():
        return 0
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * 1e6)
    except psutil.Error:  # there is none, or another user's
        return 0


@functools.cache
def _here() -> str:
    """Where process ids mean what they mean here: of other machines nobody is known to be dead."""
    return blake2b(f"{socket.gethostname()} {pid_namespace()}".encode(), digest_size=4).hexdigest()


def named_file(ending: str) -> str:
    """A hidden name for a file of this process's, never used before, which says whose it is."""
    pid = os.getpid()
    return f".sharedmask-{_here()}-{pid}-{start_time(pid)}-{os.urandom(8).hex()}{ending}"


def owner_of(name: str) -> tuple[int, int] | None:
    """The process whose file it is and when that started; None of other names, and other machines."""
    found = _NAMED.fullmatch(name)
    return (int(found[2]), int(found[3])) if found is not None and found[1] == _here() else None


_share: int | None = None


@contextlib.contextmanager
def with_cpus(share: int) -> Iterator[None]:
    """This process uses so many CPUs meanwhile, as others are at work beside it."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def n_cpus() -> int:
    """CPUs that this process may use, as joblib counts them.

    Those that it may run on, the time that its control groups leave it, and ``LOKY_MAX_CPU_COUNT``; of a
    worker that was told of its share, that.
    """
    if _share is not None:
        return _share
    found = [os.cpu_count() or 1]
    if cpus := platform.cpus():
        found.append(len(cpus))
    if (quota := cpu_quota()) is not None:
        found.append(math.ceil(quota))
    with contextlib.suppress(KeyError, ValueError):
        found.append(int(os.environ["LOKY_MAX_CPU_COUNT"]))
    return max(1, min(found))


def at_a_time(wanted: int) -> int:
    """As many of ``wanted`` as there are CPUs for, which are counted only if there is a choice."""
    return wanted if wanted < 2 else min(wanted, n_cpus())


def effective_n_jobs(n_jobs: int | None) -> int:
    """joblib's convention: None is 1, -1 every CPU this process may use, -2 all but one."""
    try:
        asked = 1 if n_jobs is None else index(n_jobs)
    except TypeError:
        asked = 0
    if asked == 0:
        raise ParameterError(f"n_jobs={n_jobs!r} has no meaning: give a number of jobs, or -1 for all CPUs")
    return asked if asked > 0 else max(1, n_cpus() + 1 + asked)


def is_worker() -> bool:
    """Whether ``multiprocessing`` made this process, which it has then imported."""
    if "multiprocessing.process" not in sys.modules:
        return False
    from multiprocessing import process  # waits for a thread that is importing it just now

    return process.current_process().daemon or process.parent_process() is not None


def shares_cpus() -> bool:
    """Whether it is a worker that was told nothing of its share: others are at work on the same CPUs."""
    return is_worker() and _share is None


# --- forks ---------------------------------------------------------------------------------------
#
# A child has the thread that forked and none of the others: what they were about stays as it was at
# that moment. So the child begins anew with each lock of the package (Lock, Semaphore, Event); what
# belongs to the parent is let go of (``at_fork``); a call that the fork cut in two goes on in the
# parent alone (``Caller``); and no fork happens while one of our threads imports a library, which the
# child could then never import.

_IMPORTING = "<frozen importlib._bootstrap>"
_PATIENCE = 10.0
_PACKAGE = __name__.partition(".")[0]

_locks: "WeakSet[Lock | Semaphore | Event]" = WeakSet()


class Lock:
    """A lock that its holder may take again; in a forked child only the thread that forked holds it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def acquire(self, timeout: float = -1) -> bool:
        """Whether it was free within so many seconds; -1 waits for as long as it takes."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def begin_anew(self) -> None:
        """In a forked child: nobody is there to release it, unless this thread is."""
        fresh = threading.RLock()
        with contextlib.suppress(RuntimeError):
            while True:
                self._lock.release()
                fresh.acquire()
        self._lock = fresh


_T = TypeVar("_T")


class cached_property(functools.cached_property[_T]):
    """The standard one, with our lock: up to Python 3.11 it takes one of its own."""

    def __init__(self, func: Callable[[Any], _T]) -> None:
        super().__init__(func)
        self.lock = Lock()


class Semaphore:
    """So many at once; in a forked child nobody yet."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.begin_anew()
        _locks.add(self)

    def __enter__(self) -> None:
        self._semaphore.acquire()

    def __exit__(self, *_: object) -> None:
        self._semaphore.release()

    def begin_anew(self) -> None:
        """In a forked child: those who were at it are not there."""
        self._semaphore = threading.BoundedSemaphore(self._count)


class Event(threading.Event):
    """An event that threads wait for, and that a forked child can set, whoever waited in the parent."""

    def __init__(self) -> None:
        super().__init__()
        _locks.add(self)

    def begin_anew(self) -> None:
        """In a forked child: nobody waits, and whether it is set stays."""
        was_set = self.is_set()
        super().__init__()
        if was_set:
            self.set()


class Caller:
    """The process that makes a call whose threads or workers are at work while the caller's code runs."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def check(self) -> None:
        """Refuse to go on in a child that the caller's code forked: what it waits for is not there.

        Raises WorkerError.
        """
        if os.getpid() != self._pid:
            raise WorkerError(
                f"this process was forked by {self._pid} in the middle of a call, which goes on there: "
                "call again here"
            )


def at_fork(**hooks: Callable[[], object]) -> None:
    """As :func:`os.register_at_fork`, where processes fork; in the child locks can be used again by then."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**hooks)


def _begin_anew() -> None:
    for one in list(_locks):
        one.begin_anew()


def _wait_for_imports() -> None:
    """Return when no other thread of ours imports a library, or it takes too long."""
    deadline = time.monotonic() + _PATIENCE
    here = threading.get_ident()
    while time.monotonic() < deadline:
        if not any(_we_import(frame) for thread, frame in sys._current_frames().items() if thread != here):
            return
        time.sleep(0.002)


def _we_import(frame: FrameType | None) -> bool:
    importing = False
    while frame is not None:
        importing = importing or frame.f_code.co_filename == _IMPORTING
        if importing and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
            return True
        frame = frame.f_back
    return False


at_fork(before=_wait_for_imports, after_in_child=_begin_anew)
