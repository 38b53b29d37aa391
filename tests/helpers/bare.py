"""Systems that have less: ``take_away("macos")`` or ``take_away("windows")``, before sharedmask is imported.

Taken away is what sharedmask's own modules see: modules that they import, names in ``os``, ``mmap``,
``signal`` and ``socket``, the files of the kernel (/proc, /dev/shm). All others keep theirs, so that pytest
and libraries work. Not simulated: paths with drives and backslashes, text in other encodings, the refusal of
Windows to remove or rename what is open, its locks, threads and clocks of other kernels.
"""

import builtins
import errno
import os
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
        seen["os"].name = "nt"
        seen["os"].supports_dir_fd = seen["os"].supports_fd = set()
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
    def hidden(function, answer=None):
        def call(path, *args, **options):
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(_NOWHERE):
                if answer is not None:
                    return answer
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
            return function(path, *args, **options)

        return call

    for name in ("open", "stat", "listdir", "scandir", "readlink", "unlink", "mkdir"):
        setattr(seen, name, hidden(getattr(os, name)))
    seen.access = hidden(os.access, False)
    seen.supports_dir_fd = {*os.supports_dir_fd, seen.open}
    seen.supports_fd = set(os.supports_fd)


def pytest_addoption(parser):
    parser.addoption("--profile", choices=sorted(PROFILES), help="a system that has less")


def pytest_load_initial_conftests(early_config):
    """As a plugin, before anything imports the package: ``-p bare --profile windows``."""
    if early_config.known_args_namespace.profile:
        take_away(early_config.known_args_namespace.profile)
