"""What a worker has in common with its caller at the moment of a call.

Covers: the folder, the environment, where modules are found, locale, file mode, filters of warnings, settings
of NumPy, the standard library and ours; taken in the caller, taken over by the worker. Does not cover:
modules (``modules``), when workers and what they come from are told (``pool``, ``template``).

What a process has once and for all stays the template's: one thread for BLAS, descriptors, signals, limits.
"""

import contextlib
import functools
import importlib
import locale
import multiprocessing
import os
import pickle
import re
import socket
import sys
import tempfile
import threading
import time
import warnings
from typing import Any, NamedTuple

import numpy as np

from sharedmask.system import platform, settings
from sharedmask.system.process import cached_property
from sharedmask.workers.failure import dumps_by_value

# One thread per worker: n_jobs says how many cores to use, and every BLAS thread has its buffers.
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB")}
_ONE_THREAD = {os.fsencode(name): os.fsencode(value) for name, value in ONE_THREAD.items()}


class _Facts(NamedTuple):
    folder: str
    environment: dict[bytes, bytes]
    path: list[Any]
    arguments: list[str]
    locale: str
    umask: int | None
    filters: list[tuple[Any, ...]]
    """Of warnings."""
    float_errors: dict[str, str]
    print_options: dict[str, Any]
    """NumPy's."""
    buffer: int
    """NumPy's."""
    decimals: tuple[Any, ...] | None
    """The context of ``decimal``, without its flags; None: as it is in the beginning."""
    recursion_limit: int
    int_digits: int
    """That a number may have as text."""
    temporary: Any
    """Where ``tempfile`` makes files; None: it has not looked yet."""
    timeout: float | None
    """Of new sockets."""
    knobs: dict[str, Any]
    """Of ours, as ``settings.using`` has set them."""
    cpus: set[int]
    """On which it may run."""
    authkey: bytes
    """With which proxies of the caller's managers are used."""


class Surroundings(_Facts):
    """A caller's; equal as long as nothing of it changes."""

    @cached_property
    def packed(self) -> bytes:
        """As they travel, categories by their names: what is not imported by a worker is not for a filter."""
        named = [(one[0], one[1], _name(one[2]), *one[3:]) for one in self.filters]
        path = [entry for entry in self.path if isinstance(entry, str)]
        return dumps_by_value(self._replace(filters=named, path=path, authkey=bytes(self.authkey)))

    @classmethod
    def here(cls) -> "Surroundings":
        """Those of this thread now."""
        return cls(
            _folder(),
            dict(os.environ._data),  # type: ignore[attr-defined]  # a fortieth of the time, each call
            list(sys.path),
            list(getattr(sys, "argv", ())),  # which a program that embeds Python may lack
            locale.setlocale(locale.LC_ALL),
            _umask(),
            list(warnings.filters),
            np.geterr(),  # type: ignore[arg-type]
            np.get_printoptions(),  # type: ignore[arg-type]
            np.getbufsize(),
            _decimals(),
            sys.getrecursionlimit(),
            sys.get_int_max_str_digits(),
            tempfile.tempdir,
            socket.getdefaulttimeout(),
            settings.given(),
            platform.cpus(),
            multiprocessing.current_process().authkey,
        )

    def enter(self) -> None:
        """Make them this process's own."""
        os.chdir(self.folder)
        _set_environment(self.environment | _ONE_THREAD)
        if sys.path != self.path:
            sys.path[:] = self.path
            importlib.invalidate_caches()
        sys.argv[:] = self.arguments
        with contextlib.suppress(locale.Error):  # a name that is known to the caller alone
            locale.setlocale(locale.LC_ALL, self.locale)
        if self.umask is not None:
            os.umask(self.umask)
        warnings.resetwarnings()
        for action, message, name, module, line in self.filters:
            warnings.filters.append((action, message, _category(*name), module, line))  # type: ignore[attr-defined]
        np.seterr(**self.float_errors)  # type: ignore[arg-type]
        np.set_printoptions(**self.print_options)
        np.setbufsize(self.buffer)
        _set_decimals(self.decimals)
        sys.setrecursionlimit(self.recursion_limit)
        sys.set_int_max_str_digits(self.int_digits)
        tempfile.tempdir = self.temporary
        socket.setdefaulttimeout(self.timeout)
        settings.adopt(self.knobs)
        if self.cpus:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self.cpus)
        multiprocessing.current_process().authkey = self.authkey


class Entered:
    """The surroundings that this process has entered, which are its children's too."""

    def __init__(self) -> None:
        self._packed: bytes | None = None
        self._found: Surroundings | None = None
        """What they were when they had been entered."""

    def enter(self, packed: bytes) -> None:
        self._packed, self._found = packed, None
        pickle.loads(packed).enter()
        self._found = Surroundings.here()

    def require(self) -> None:
        """Enter what could not be entered before, or say why it cannot."""
        if self._packed is not None and self._found is None:
            self.enter(self._packed)

    def restore(self) -> None:
        """Undo what a function changed."""
        if self._packed is not None and self._found != Surroundings.here():
            self.enter(self._packed)


class _ByName(type):
    """Of categories of warnings that are not imported here: those of this name are meant."""

    def __subclasscheck__(cls, other: type) -> bool:
        return any(_name(one) == _name(cls) for one in other.__mro__)


def _name(category: type) -> tuple[str, str]:
    return category.__module__, category.__qualname__


def _category(module: str, name: str) -> type:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else _ByName(name, (Warning,), {"__module__": module})


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        # It was deleted, and is still where this process is: files are not to be found elsewhere.
        return f"/proc/{os.getpid()}/cwd"


def _decimals() -> tuple[Any, ...] | None:
    decimal = sys.modules.get("decimal")
    if decimal is None:
        return None
    *rest, _, traps = decimal.getcontext().__reduce__()[1]
    found = *rest, [], traps
    return None if found == _usual_decimals() else found


@functools.cache
def _usual_decimals() -> tuple[Any, ...]:
    """The context that a fresh interpreter begins with, whatever this one has made of its default."""
    from decimal import ROUND_HALF_EVEN, DivisionByZero, InvalidOperation, Overflow

    return 28, ROUND_HALF_EVEN, -999999, 999999, 1, 0, [], [InvalidOperation, DivisionByZero, Overflow]


def _set_decimals(wanted: tuple[Any, ...] | None) -> None:
    if wanted is not None or "decimal" in sys.modules:
        import decimal

        decimal.setcontext(decimal.Context(*wanted or ()))


def _umask() -> int | None:
    """Read without a moment in which another thread finds another; None where the kernel does not tell."""
    if threading.active_count() == 1:
        os.umask(mask := os.umask(0o077))
        return mask
    with contextlib.suppress(OSError):
        file = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if found := re.search(rb"^Umask:\s*(\d+)", os.read(file, 256), re.MULTILINE):
                return int(found[1], 8)
        finally:
            os.close(file)
    return None


def _set_environment(wanted: dict[bytes, bytes]) -> None:
    now = dict(os.environb)
    for name in now.keys() - wanted.keys():
        del os.environb[name]
    for name, value in wanted.items():
        if now.get(name) != value:
            os.environb[name] = value
    time.tzset()
