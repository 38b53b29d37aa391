"""What a worker has in common with its caller at the moment of a call.

Covers: the folder, the environment, where modules are found, locale, file mode, filters of warnings, NumPy's
errors; taken in the caller, taken over by the worker; which of the user's modules are other ones than before,
or other ones than a worker would import. Does not cover: when workers are told, or replaced (``pool``).

What a process has once and for all stays the template's: one thread for BLAS, descriptors, signals, limits.
"""

import contextlib
import importlib
import locale
import multiprocessing
import os
import re
import site
import sys
import sysconfig
import time
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from sharedmask.compute.failure import dumps_by_value
from sharedmask.system.process import cached_property

# One thread per worker: n_jobs says how many cores to use, and every BLAS thread has its buffers.
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB")}


@dataclass(frozen=True)
class Surroundings:
    """A caller's; equal as long as nothing of it changes."""

    folder: str
    environment: dict[str, str]
    path: list[str]
    arguments: list[str]
    locale: str
    umask: int | None
    filters: list[Any]
    """Of warnings."""
    float_errors: dict[str, str]
    recursion_limit: int
    authkey: bytes
    """With which proxies of the caller's managers are used."""

    @cached_property
    def packed(self) -> bytes:
        """As they travel."""
        return dumps_by_value(self)

    @classmethod
    def here(cls) -> "Surroundings":
        """Those of this thread now."""
        return cls(
            _folder(),
            dict(os.environ),
            [entry for entry in sys.path if isinstance(entry, str)],
            list(sys.argv),
            locale.setlocale(locale.LC_ALL),
            _umask(),
            list(warnings.filters),
            dict(np.geterr()),  # type: ignore[arg-type]
            sys.getrecursionlimit(),
            bytes(multiprocessing.current_process().authkey),
        )

    def enter(self) -> None:
        """Make them this process's own."""
        os.chdir(self.folder)
        _set_environment(self.environment | ONE_THREAD)
        sys.path[:] = self.path
        sys.argv[:] = self.arguments
        importlib.invalidate_caches()
        with contextlib.suppress(locale.Error):  # a name that is known to the caller alone
            locale.setlocale(locale.LC_ALL, self.locale)
        if self.umask is not None:
            os.umask(self.umask)
        warnings.resetwarnings()
        warnings.filters.extend(self.filters)  # type: ignore[attr-defined]
        np.seterr(**self.float_errors)  # type: ignore[arg-type]
        sys.setrecursionlimit(self.recursion_limit)
        multiprocessing.current_process().authkey = self.authkey


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        # It was deleted, and is still where this process is: files are not to be found elsewhere.
        return f"/proc/{os.getpid()}/cwd"


def _umask() -> int | None:
    """Read without a moment in which it is another one; None where the kernel does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as file:
        if found := re.search(rb"^Umask:\s*(\d+)", file.read(), re.MULTILINE):
            return int(found[1], 8)
    return None


def _set_environment(wanted: dict[str, str]) -> None:
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    time.tzset()


# --- the user's modules --------------------------------------------------------------------------

# Of these all processes have the same.
_INSTALLED = tuple(
    os.path.join(folder, "")
    for folder in (
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        site.getusersitepackages(),
        os.path.dirname(os.path.dirname(__file__)),  # our own
    )
)


@dataclass(frozen=True)
class _Seen:
    spec: Any
    stamp: tuple[int, int, int] | None
    """Of its file."""


class Modules:
    """What is known of the user's modules."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._seen: dict[str, _Seen] = {}
        self._by_value: set[str] = set()
        self._sought: object = None
        self.generation = 0
        """Rises whenever a module is another than before: a worker that imported it runs old code."""

    def look(self, surroundings: object) -> None:
        """Take note of what is new; functions of what workers would not find as it is travel by value.

        Modules are sought again when the ``surroundings`` are others.
        """
        new = [name for name in sys.modules.keys() - self._names if _is_own(name)]
        self._names |= sys.modules.keys()
        again, self._sought = surroundings is not self._sought, surroundings
        for name in {*self._seen, *new}:
            self._note(name, again)

    def _note(self, name: str, again: bool) -> None:
        module, before = sys.modules.get(name), self._seen.get(name)
        if module is None:
            return
        now = _Seen(_spec(module), _stamp(_spec(module)))
        if before is None or now.spec is not before.spec:
            self.generation += before is not None
            self._seen[name] = now
            self._send(module, by_value=not _is_found(name, now.spec))
        elif now.stamp != before.stamp:
            # The file was changed: workers would import what is not run here.
            self._send(module, by_value=True)
        elif again:
            self._send(module, by_value=not _is_found(name, now.spec))

    def _send(self, module: ModuleType, by_value: bool) -> None:
        import cloudpickle

        name = module.__name__
        if by_value and name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self._by_value.add(name)
        elif not by_value and name in self._by_value:
            cloudpickle.unregister_pickle_by_value(module)
            self._by_value.discard(name)


def _is_own(name: str) -> bool:
    module = sys.modules.get(name)
    if not isinstance(module, ModuleType) or name in ("__main__", *sys.builtin_module_names):
        return False
    origin = getattr(_spec(module), "origin", None)
    return origin != "frozen" and not (origin or "").startswith(_INSTALLED)


def _spec(module: ModuleType) -> Any:
    # A module that is reloaded, or imported anew after it was removed, has another one. What a lazy module
    # does when it is looked at is not called for.
    return object.__getattribute__(module, "__dict__").get("__spec__")


def _stamp(spec: Any) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError, TypeError, ValueError):
        found = os.stat(spec.origin if spec else "")
        return found.st_mtime_ns, found.st_ino, found.st_size
    return None


def _is_found(name: str, spec: Any) -> bool:
    """Whether an import would find it where it came from."""
    if spec is None:
        return False
    parent = sys.modules.get(name.rpartition(".")[0])
    path = getattr(parent, "__path__", None) if "." in name else None
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):
            if (found := finder.find_spec(name, path)) is not None:
                return bool(found.origin == spec.origin)
    return False
