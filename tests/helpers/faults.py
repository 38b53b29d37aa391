"""Faults of the system at its calls: recorded, failed at, died at.

A call is named by its function (``fsync``) and the file that it is about; a fault by that and the error
(``ENOSPC``, ``short``, or an exception by name, as Ctrl-C raises). All calls in ``CALLS`` of this process are
met, those of ``open`` too: while calls are intercepted, files are those of ``_pyio``, which call ``os``. What
libraries in C write by themselves passes by, and so do other processes. Python tries again by itself after
EINTR; as a fault it stands for a handler that raises.

>>> with failing("fsync", "EIO", of=r"\\.json$"):
...     ...

>>> for fault in every_fault(write):
...     with failing(fault), pytest.raises(OSError):
...         write()
"""

import _posixshmem
import _pyio
import builtins
import errno
import fcntl
import io
import itertools
import mmap
import os
import posix
import re
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker

CALLS = {
    os: "open close read pread preadv write pwrite pwritev fsync fdatasync posix_fallocate truncate "
    "ftruncate link rename replace unlink mkdir listdir stat fstat readlink chmod fchmod memfd_create",
    fcntl: "flock fcntl",
    mmap: "mmap",
    _posixshmem: "shm_open shm_unlink",
    resource_tracker: "register unregister",
}

ERRORS = {
    "open": ("EMFILE", "ENOSPC", "EINTR"),
    "close": ("EIO",),
    "read": ("EIO", "short"),
    "pread": ("EIO",),
    "preadv": ("EIO", "short"),
    "write": ("ENOSPC", "EIO", "EINTR", "short"),
    "pwrite": ("ENOSPC", "EIO", "EINTR", "short"),
    "pwritev": ("ENOSPC", "EIO", "EINTR", "short"),
    "fsync": ("ENOSPC", "EIO"),
    "fdatasync": ("ENOSPC", "EIO"),
    "posix_fallocate": ("ENOSPC", "EIO"),
    "truncate": ("ENOSPC", "EIO"),
    "ftruncate": ("ENOSPC", "EIO"),
    "link": ("ENOSPC", "EIO"),
    "rename": ("ENOSPC", "EIO"),
    "replace": ("ENOSPC", "EIO"),
    "mkdir": ("ENOSPC",),
    "memfd_create": ("EMFILE", "ENOMEM"),
    "flock": ("ENOLCK", "EINTR"),
    "mmap": ("ENOMEM",),
    "shm_open": ("EMFILE", "ENOSPC"),
}
"""What each call may answer with, that those who make it must expect."""


@dataclass(frozen=True)
class Call:
    name: str
    target: str
    """The file that it is about: by its path, or the one behind the descriptor."""


@dataclass(frozen=True)
class Fault:
    name: str
    error: str
    number: int = 1
    """Which of the calls of that name about such a file; the first is 1."""
    of: str = ""
    """A regular expression that is found in the file's path."""

    def __str__(self):
        return f"{self.name}-{self.number}-{self.error}"


# --- what one does with faults ---


@contextmanager
def recorded(of=""):
    """The list of all calls about such files, which grows as they are made."""
    calls = []

    def note(call, function, args, options):
        if re.search(of, call.target):
            calls.append(call)
        return function(*args, **options)

    with intercepted(note):
        yield calls


def every_fault(work, of="", errors=ERRORS):
    """Each call that ``work()`` makes about such files, with each error that it may answer with."""
    with recorded(of) as calls:
        work()
    counts = Counter()
    for call in calls:
        counts[call.name] += 1
        for error in errors.get(call.name, ()):
            yield Fault(call.name, error, counts[call.name], of)


@contextmanager
def failing(fault, error="", number=1, of="", lasting=False, must=True):
    """The call fails, once, or from then on if ``lasting``; if it ``must``, it is wrong that none failed.

    ``fault`` is a ``Fault``, or the name of a call. What is yielded counts how many failed.
    """
    fault = fault if isinstance(fault, Fault) else Fault(fault, error, number, of)
    made, failed, lock = itertools.count(1), itertools.count(), threading.Lock()

    def fail(call, function, args, options):
        if call.name != fault.name or not re.search(fault.of, call.target):
            return function(*args, **options)
        with lock:
            place = next(made)
        if place != fault.number and not (lasting and place > fault.number):
            return function(*args, **options)
        next(failed)
        return _answer(fault.error, function, args, options)

    with intercepted(fail):
        yield fault
    assert next(failed) or not must, f"{fault} did not happen"


@contextmanager
def dying(number, when, kill=os.kill, names=None):
    """This process dies ``"before"`` or ``"after"`` the call of that number."""
    made = itertools.count(1)

    def die():
        kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def call(_, function, args, options):
        mine = next(made) == number
        if mine and when == "before":
            die()
        try:
            return function(*args, **options)
        finally:
            if mine and when == "after":
                die()

    with intercepted(call, names):
        yield


# --- how it is done ---


@contextmanager
def intercepted(around, names=None):
    """Each call goes through ``around(call, function, args, options)``, which gives what it gives."""
    places = [(module, name) for module, all_of in CALLS.items() for name in all_of.split()]
    places = [(module, name) for module, name in places if names is None or name in names]
    usual = [(module, name, getattr(module, name)) for module, name in places]
    usual += [(builtins, "open", builtins.open), (io, "open", io.open)]
    for module, name in places:
        setattr(module, name, _through(around, name, getattr(module, name)))
    builtins.open = io.open = _pyio.open
    try:
        yield
    finally:
        for module, name, function in usual:
            setattr(module, name, function)


def _through(around, name, function):
    if isinstance(function, type):
        return _class_through(around, name, function)

    def call(*args, **options):
        return around(Call(name, _target(name, args, options)), function, args, options)

    return call


def _class_through(around, name, kind):
    """A class in the place of ``kind``, of which all instances of ``kind`` are."""

    class Kind(type(kind)):
        def __instancecheck__(cls, instance):
            return isinstance(instance, kind)

        def __call__(cls, *args, **options):
            return around(Call(name, _target(name, args, options)), kind, args, options)

        def __getattr__(cls, attribute):
            return getattr(kind, attribute)

    return Kind(name, (), {})


def _target(name, args, options):
    if name == "memfd_create":
        return f"/memfd:{args[0]}"
    if name in ("shm_open", "shm_unlink", "register", "unregister"):
        return f"/dev/shm/{args[0].lstrip('/')}"
    if name in ("link", "rename", "replace"):
        return _path(args[1], options.get("dst_dir_fd"))
    return _path(args[0] if args else ".", options.get("dir_fd"))


def _path(place, folder):
    if hasattr(place, "fileno"):
        place = place.fileno()
    if isinstance(place, int):
        try:
            return posix.readlink(f"/proc/self/fd/{place}")
        except OSError:
            return ""
    return os.path.join("" if folder is None else _path(folder, None), os.fsdecode(place))


def _answer(error, function, args, options):
    if error == "short":
        return _short(function, args, options)
    if function is posix.close:  # what a closing reports, the descriptor is closed
        function(*args)
    if not error.startswith("E") or error not in errno.errorcode.values():
        raise getattr(builtins, error)
    number = getattr(errno, error)
    files = [place for place in args[:2] if isinstance(place, str | os.PathLike)]
    raise OSError(number, os.strerror(number), *files[:1])


def _short(function, args, options):
    """Half of it, and at least one byte."""
    place, what, *rest = args
    if isinstance(what, int):
        what = max(1, what // 2)
    elif isinstance(what, list):
        what = [memoryview(what[0]).cast("B")[: max(1, memoryview(what[0]).nbytes // 2)]]
    else:
        what = memoryview(what).cast("B")
        what = what[: max(1, len(what) // 2)]
    return function(place, what, *rest, **options)
