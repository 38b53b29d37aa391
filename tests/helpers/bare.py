"""Systems that have less: every interpreter with this folder in ``PYTHONPATH`` and ``BARE_PROFILE`` set.

``BARE_PROFILE=windows PYTHONPATH=$PWD/tests/helpers sharedmask demo``: ``sitecustomize`` takes away what
macOS or Windows lack before anything is imported, here and in all programs that are started from there.

Taken away is what sharedmask's own modules see: modules that they import, names in ``os``, ``mmap``,
``signal`` and ``socket``, the files of the kernel (/proc, /dev/shm). All others keep theirs, so that pytest
and libraries work. Windows removes and renames nothing that this process has open, gives files no names that
it keeps for itself, renames to no name that is taken, and locks a byte of a file. Not simulated: paths with
drives and backslashes, text in other encodings, what other processes have open, threads and clocks of other
kernels.
"""

import builtins
import contextlib
import errno
import fcntl
import functools
import importlib
import os
import pathlib
import re
import sys
import types

_NOWHERE = ("/proc", "/dev/shm")
_MACOS = {
    "modules": {"_posixshmem", "multiprocessing.shared_memory"},
    "os": [
        "O_TMPFILE",
        "memfd_create",
        "MFD_CLOEXEC",
        "MFD_ALLOW_SEALING",
        "posix_fallocate",
        "posix_fadvise",
        "sched_getaffinity",
        "sched_setaffinity",
        "RWF_NOWAIT",
        "fdatasync",
        "preadv",
    ],
    "mmap": ["MADV_DONTFORK", "MADV_DOFORK"],
    "signal": [],
    "socket": ["SO_PEERCRED"],
}
_WINDOWS = {
    "modules": {*_MACOS["modules"], "fcntl", "resource", "pwd", "grp", "termios", "posix"},
    "os": [
        *_MACOS["os"],
        *[
            "O_CLOEXEC",
            "O_NOFOLLOW",
            "O_DIRECTORY",
            "O_NONBLOCK",
            "O_NOCTTY",
            "fork",
            "register_at_fork",
            "getuid",
            "geteuid",
            "getgid",
            "getegid",
            "getgroups",
            "pread",
            "pwrite",
            "statvfs",
            "fchmod",
            "environb",
            "sched_yield",
            "WNOHANG",
            "killpg",
            "setsid",
        ],
    ],
    "mmap": [name for name in dir(__import__("mmap")) if name.startswith(("MAP_", "PROT_", "MADV_"))],
    "signal": ["SIGKILL", "SIGHUP", "SIGCHLD", "SIGCONT", "SIGUSR1"],
    "socket": ["AF_UNIX", "SO_PEERCRED", "send_fds", "recv_fds"],
}
PROFILES = {"macos": _MACOS, "windows": _WINDOWS}


def take_away(profile):
    """What the system has not, sharedmask has no more."""
    assert not [name for name in sys.modules if name.split(".")[0] == "sharedmask"], "it was imported before"
    lacks = PROFILES[profile]
    seen = {name: _without(__import__(name), lacks[name]) for name in ("os", "mmap", "signal", "socket")}
    _hide_files(seen["os"])
    if profile == "windows":
        _be_windows(seen["os"])
    usual, usual_module = builtins.__import__, importlib.import_module

    def lacking(name):
        if name in lacks["modules"]:
            raise ModuleNotFoundError(f"No module named {name!r} on {profile}", name=name)

    def imported(name, globals=None, locals=None, fromlist=(), level=0):
        if level or not _is_ours((globals or {}).get("__name__")):
            return usual(name, globals, locals, fromlist, level)
        for one in (name, *(f"{name}.{one}" for one in fromlist or ())):
            lacking(one)
        return seen[name] if name in seen else usual(name, globals, locals, fromlist, level)

    def import_module(name, package=None):
        if _is_ours(sys._getframe(1).f_globals.get("__name__")):
            lacking(name)
            if name == "msvcrt" and profile == "windows":
                return Msvcrt()
        return usual_module(name, package)

    builtins.__import__, importlib.import_module = imported, import_module


def _is_ours(module):
    return (module or "").partition(".")[0] == "sharedmask"


def _without(module, names):
    """A module like it that lacks these names."""
    like = types.ModuleType(module.__name__)
    vars(like).update({name: value for name, value in vars(module).items() if name not in names})
    return like


def _hiding(function, answer=None, from_all=False):
    """Like ``function``, but without the kernel's files: where sharedmask calls it, or from everywhere."""

    @functools.wraps(function)
    def call(path, *args, **options):
        hidden = isinstance(path, str | os.PathLike) and os.fspath(path).startswith(_NOWHERE)
        if not hidden or not (from_all or _is_ours(sys._getframe(1).f_globals.get("__name__"))):
            return function(path, *args, **options)
        if answer is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        return answer

    return call


def _hide_files(seen):
    for name in ("open", "stat", "listdir", "scandir", "readlink", "unlink", "mkdir"):
        setattr(seen, name, _hiding(getattr(os, name), from_all=True))
    seen.access = _hiding(os.access, False, from_all=True)
    seen.supports_dir_fd = {*os.supports_dir_fd, seen.open}
    seen.supports_effective_ids = {seen.access}
    seen.supports_fd = set(os.supports_fd)
    seen.path = _without(os.path, ())
    for name in ("exists", "lexists", "isfile", "isdir", "islink"):
        setattr(seen.path, name, _hiding(getattr(os.path, name), False, from_all=True))
    builtins.open = _hiding(open)
    for name in ("open", "read_text", "read_bytes", "iterdir", "stat", "readlink"):
        setattr(pathlib.Path, name, _hiding(getattr(pathlib.Path, name)))
    for name in ("exists", "is_file", "is_dir"):
        setattr(pathlib.Path, name, _hiding(getattr(pathlib.Path, name), False))


# --- Windows -------------------------------------------------------------------------------------

_NO_NAME = re.compile(
    r'.*[<>:"|?*\\\x00-\x1f].*|.*[ .]|(con|prn|aux|nul|com\d|lpt\d)(\..*)?', re.IGNORECASE | re.DOTALL
)


def _be_windows(seen):
    seen.name = "nt"
    seen.supports_dir_fd = seen.supports_fd = seen.supports_effective_ids = set()
    for name in ("open", "stat", "unlink", "mkdir", "rename", "replace", "link", "access"):
        setattr(seen, name, _lacking_options(getattr(seen, name)))
    _keep_what_is_open(seen)
    _refuse_names(seen)


def _lacking_options(function):
    @functools.wraps(function)
    def call(*args, **options):
        for name in {"dir_fd", "src_dir_fd", "dst_dir_fd", "effective_ids"} & options.keys():
            if options[name]:
                raise NotImplementedError(f"{name} unavailable on this platform")
        return function(*args, **options)

    return call


def _refuse_names(seen):
    """Files are given no name that Windows keeps for itself, and renamed to none that is taken."""

    def refusing(function):
        @functools.wraps(function)
        def call(*args, **options):
            name = os.path.basename(os.fspath(args[1 if function.__name__ in ("rename", "replace") else 0]))
            is_new = function.__name__ != "open" or args[1] & os.O_CREAT
            if is_new and name not in (".", "..") and _NO_NAME.fullmatch(os.fsdecode(name)):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
            if function.__name__ == "rename" and os.path.lexists(args[1]):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), args[1])
            return function(*args, **options)

        return call

    for name in ("open", "mkdir", "rename", "replace"):
        setattr(seen, name, refusing(getattr(seen, name)))
    pathlib.Path.mkdir = _if_ours(pathlib.Path.mkdir, refusing(pathlib.Path.mkdir))


def _if_ours(usual, other):
    """``other`` where sharedmask calls it."""

    @functools.wraps(usual)
    def call(*args, **options):
        ours = _is_ours(sys._getframe(1).f_globals.get("__name__"))
        return (other if ours else usual)(*args, **options)

    return call


def _keep_what_is_open(seen):
    """What is open is neither removed nor renamed, nor takes another its name, unless it was to pass."""

    def kept(function):
        @functools.wraps(function)
        def call(*paths, **options):
            for path in paths:
                if _is_open(path):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return function(*paths, **options)

        return call

    for name in ("unlink", "remove", "rename", "replace"):
        setattr(seen, name, kept(getattr(seen, name)))
    usual, seen.O_TEMPORARY = seen.open, 1 << 30

    @functools.wraps(usual)
    def opened(path, flags, *args, **options):
        fd = usual(path, flags & ~seen.O_TEMPORARY, *args, **options)
        if flags & seen.O_TEMPORARY:
            os.unlink(path)
        return fd

    seen.open = opened


def _is_open(path):
    with contextlib.suppress(OSError):
        named = os.stat(path)
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(int(number)), named):
                    return True
    return False


class Msvcrt:
    """Locks of Windows, by those of this system."""

    LK_UNLCK, LK_NBLCK = 0, 2

    def __init__(self):
        self.places = set()

    def locking(self, fd, how, nbytes):
        self.places.add((os.lseek(fd, 0, os.SEEK_CUR), nbytes))
        fcntl.flock(fd, fcntl.LOCK_UN if how == self.LK_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB)


def cases(names, *shared):
    """Names as parameters, of which ``shared`` are skipped where processes share nothing."""
    import pytest  # here, because programs that are bare need it not

    return [pytest.param(name, marks=[pytest.mark.shares] * (name in shared)) for name in names]
