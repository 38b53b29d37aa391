"""The user's modules, which a worker must run as its caller does.

Covers: which are other ones than before, so that workers that have imported them are too old; which are other
ones than a worker would import, so that what they hold travels by value. Does not cover: when workers are
replaced (``pool``).
"""

import contextlib
import os
import site
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from sharedmask.records import dataclass

# Of these all processes have the same.
_INSTALLED = tuple(
    os.path.join(folder, "")
    for folder in (
        os.path.dirname(os.__file__),
        *site.getsitepackages(),
        site.getusersitepackages(),
        os.path.dirname(os.path.dirname(__file__)),  # our own
    )
)


@dataclass(frozen=True)
class _Seen:
    spec: Any
    stamp: tuple[int, int, int] | None
    """Of its file."""


class _Own:
    """The user's modules among those that are loaded."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self._looked_at: set[str] = set()
        self._names: list[str] = []
        self._last: tuple[int, str] | None = None

    def names(self) -> list[str]:
        try:
            last = len(sys.modules), next(reversed(sys.modules))  # what is imported comes last
        except RuntimeError:  # another thread imports something between the two
            last = None
        if last is None or last != self._last:
            new = sys.modules.keys() - self._looked_at
            self._looked_at |= new
            self._names += sorted(filter(_is_own, new))
            self.known = set(self._names)
            self._last = last
        return self._names


_own = _Own()


def own_modules() -> Iterator[ModuleType]:
    """The user's modules that are loaded."""
    for name in _own.names():
        if isinstance(module := sys.modules.get(name), ModuleType):
            yield module


def is_own(name: str) -> bool:
    """Whether it is one of them, as far as they have been looked for."""
    return name in _own.known


def is_librarys(thing: Any) -> bool:
    """Whether it comes from an installed module, which all processes have the same: nothing of the user's."""
    _own.names()
    if isinstance(thing, type):
        return all(_is_librarys(one.__module__) for one in thing.__mro__)
    if isinstance(thing, FunctionType):
        return _is_librarys(thing.__globals__.get("__name__"))
    try:
        of_its_kind = type(thing).__module__  # objects of types that are written in C have none themselves
        home = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", of_its_kind)
        return _is_librarys(home)
    except Exception:  # of what somebody else made
        return False


def _is_librarys(name: Any) -> bool:
    return isinstance(name, str) and name in sys.modules and name != "__main__" and not is_own(name)


def travels_whole(name: str) -> bool:
    """Whether functions of this module travel by value, with its variables."""
    import cloudpickle

    return name in cloudpickle.list_registry_pickle_by_value()


class _Known:
    """What is known of the user's modules."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._by_value: set[str] = set()
        self._sought: object = None
        self.generation = 0
        """Rises whenever a module is another than before: a worker that imported it runs old code."""

    def look(self) -> None:
        """Take note of what is new; functions of what workers would not find as it is travel by value.

        Modules are sought again when the path is another one.
        """
        before, self._sought = self._sought, _path()
        again = before != self._sought
        for name in _own.names():
            self._note(name, again)

    def _note(self, name: str, again: bool) -> None:
        module, before = sys.modules.get(name), self._seen.get(name)
        if module is None:
            return
        spec = _spec(module)
        stamp = _stamp(spec)
        if before is None or spec is not before.spec:
            self.generation += before is not None
            self._seen[name] = _Seen(spec, stamp)
            self._send(module, by_value=not _is_found(name, spec))
        elif stamp != before.stamp:
            # The file was changed: workers would import what is not run here.
            self._send(module, by_value=True)
        elif again:
            self._send(module, by_value=not _is_found(name, spec))

    def _send(self, module: ModuleType, by_value: bool) -> None:
        import cloudpickle

        name = module.__name__
        if by_value and name not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self._by_value.add(name)
        elif not by_value and name in self._by_value:
            cloudpickle.unregister_pickle_by_value(module)
            self._by_value.discard(name)


known = _Known()


def _path() -> object:
    """All that decides where modules are found."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        folder = ""
    return folder, list(sys.path), list(sys.meta_path)


def _is_own(name: str) -> bool:
    module = sys.modules.get(name)
    if not isinstance(module, ModuleType) or name in ("__main__", *sys.builtin_module_names):
        return False
    try:
        spec = _spec(module)
    except AttributeError:  # what cffi puts among the modules has nothing in it
        return False
    parent = name.rpartition(".")[0]
    if spec is None and parent in sys.modules:  # made by its parent, as pyexpat.errors is
        return _is_own(parent)
    origin = getattr(spec, "origin", None)
    return origin != "frozen" and not (origin or "").startswith(_INSTALLED)


def _spec(module: ModuleType) -> Any:
    # A module that is reloaded, or imported anew after it was removed, has another one. What a lazy module
    # does when it is looked at is not called for.
    return object.__getattribute__(module, "__dict__").get("__spec__")


def _stamp(spec: Any) -> tuple[int, int, int] | None:
    origin = getattr(spec, "origin", None)
    if not isinstance(origin, str):
        return None
    try:
        found = os.stat(origin)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


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
