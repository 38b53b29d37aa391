"""Systems that have less: ``take_away("macos")`` or ``take_away("windows")``, before sharedmask is imported.

Taken away is what sharedmask's own modules see: modules that they import, names in ``os``, ``mmap``,
``signal`` and ``socket``, the files of the kernel (/proc, /dev/shm). All others keep theirs, so that pytest
and libraries work. Windows removes and renames nothing that this process has open, and locks a byte of a
file. Not simulated: paths with drives and backslashes, text in other encodings, what other processes have
open, threads and clocks of other kernels.
"""

import builtins
import contextlib
import errno
import fcntl
import os
import sys
import types

import pytest

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
        seen["os"].name = "nt"
        seen["os"].supports_dir_fd = seen["os"].supports_fd = set()
        _keep_what_is_open(seen["os"])
    usual = builtins.__import__

    def imported(name, globals=None, locals=None, fromlist=(), level=0):
        if not ((globals or {}).get("__name__") or "").startswith("sharedmask") or level:
            return usual(name, globals, locals, fromlist, level)
        if name in lacks["modules"] or any(f"{name}.{one}" in lacks["modules"] for one in fromlist or ()):
            raise ModuleNotFoundError(f"No module named {name!r} on {profile}", name=name)
        return seen[name] if name in seen else usual(name, globals, locals, fromlist, level)

    def import_module(name, package=None):
        if name in lacks["modules"] and sys._getframe(1).f_globals.get("__name__", "").startswith(
            "sharedmask"
        ):
            raise ModuleNotFoundError(f"No module named {name!r} on {profile}", name=name)
        if name == "msvcrt" and profile == "windows":
            return Msvcrt()
        return usual_module(name, package)

    import importlib

    usual_module = importlib.import_module
    builtins.__import__, importlib.import_module = imported, import_module


def _without(module, names):
    """A module like it that lacks these names."""
    like = types.ModuleType(module.__name__)
    vars(like).update({name: value for name, value in vars(module).items() if name not in names})
    return like


def _hide_files(seen):
    def hidden(name, answer=None):
        def call(path, *args, **options):
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(_NOWHERE):
                if answer is not None:
                    return answer
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
            return getattr(os, name)(path, *args, **options)

        return call

    for name in ("open", "stat", "listdir", "scandir", "readlink", "unlink", "mkdir"):
        setattr(seen, name, hidden(name))
    seen.access = hidden("access", False)
    seen.supports_dir_fd = {*os.supports_dir_fd, seen.open}
    seen.supports_fd = set(os.supports_fd)


def _keep_what_is_open(seen):
    """What is open is neither removed nor renamed, nor takes another its name, unless it was to pass."""

    def kept(function):
        def call(*paths, **options):
            for path in paths:
                if _is_open(path):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return function(*paths, **options)

        return call

    for name in ("unlink", "remove", "rename", "replace"):
        setattr(seen, name, kept(getattr(seen, name)))
    usual, seen.O_TEMPORARY = seen.open, 1 << 30

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
    return [pytest.param(name, marks=[pytest.mark.shares] * (name in shared)) for name in names]


def pytest_addoption(parser):
    parser.addoption("--profile", choices=sorted(PROFILES), help="a system that has less")


def pytest_load_initial_conftests(early_config):
    """As a plugin, before anything imports the package: ``-p bare --profile windows``."""
    if profile := early_config.known_args_namespace.profile:
        take_away(profile)
        os.environ["BARE_PROFILE"] = profile  # for ``command``, whose programs are bare too
