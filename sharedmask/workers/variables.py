"""Variables of the user's modules, which a function in a worker has as its caller does.

Covers: what a function, and all that it calls, names of modules that workers import by name; having it there
for as long as a job lasts. Does not cover: which modules those are (``modules``), how it goes (``packing``).

What changes in a module after its import stands in no file::

    import mine
    mine.FACTOR = 3

So with a function goes what its code names, what the code of that names, and so on.
"""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from sharedmask.workers.failure import dumps_by_value
from sharedmask.workers.modules import is_librarys, is_own, travels_whole

Place = tuple[str, str]
"""A module, and the name of a class in it, or nothing."""
Values = Mapping[Place, Mapping[str, Any]]

_MISSING = object()
_WRAPPER = type(functools.lru_cache(len))
_WRAPPERS = (
    _WRAPPER,
    staticmethod,
    classmethod,
    property,
    MethodType,
    functools.partial,
    functools.cached_property,
)
_INSIDE = ("__wrapped__", "__func__", "fget", "fset", "func")
_FOLLOWED = (FunctionType, type, *_WRAPPERS)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), np.ndarray, np.generic)


class Reached:
    """What the code of functions and classes names.

    ``travels``: whether a value can be sent; it may :meth:`meet` what is in it.
    """

    def __init__(self, travels: Callable[[Any], bool]) -> None:
        self._travels = travels
        self._met = list[tuple[Any, frozenset[str]]]()
        self._known = set[Any]()
        self._values: dict[Place, dict[str, Any]] = {}

    def meet(self, thing: Any, names: frozenset[str] = frozenset()) -> None:
        """Take note of what travels, or is named; of a module only those ``names`` are looked at."""
        if isinstance(thing, ModuleType):
            key: Any = id(thing), names
        elif isinstance(thing, _FOLLOWED):
            key = id(thing)
        else:
            return
        if key not in self._known:
            self._known.add(key)
            self._met.append((thing, names))

    def values(self) -> Values:
        """Of all that was met."""
        for thing, names in self._met:  # which grows
            if isinstance(thing, ModuleType):
                if is_own(thing.__name__):
                    self._look((thing.__name__, ""), vars(thing), names)
            elif isinstance(thing, FunctionType):
                self._look_at_function(thing)
            elif isinstance(thing, type):
                self._look_at_class(thing)
            else:
                for name in _INSIDE:
                    self.meet(getattr(thing, name, None))
        return self._values

    def _look_at_function(self, function: FunctionType) -> None:
        if is_librarys(function):
            return
        module = function.__globals__.get("__name__", "")
        inside = list(_contents(function))
        names = names_in(function.__code__, with_texts=True).union(
            one for one in inside if isinstance(one, str)
        )
        self._look((module, ""), function.__globals__, names)
        package = function.__globals__.get("__package__") or ""
        for name in names:
            for imported in (name, f"{package}.{name}"):  # by the function itself
                if is_own(imported):
                    self.meet(sys.modules.get(imported), names)
        for one in inside:
            self.meet(one, names)

    def _look_at_class(self, kind: type) -> None:
        for one in kind.__mro__:
            if is_own(one.__module__):
                constant = hasattr(one, "__members__")  # an Enum
                named = {name for name in vars(one) if constant or not name.startswith("__")}
                self._look((one.__module__, one.__qualname__), vars(one), frozenset(named), constant)

    def _look(
        self, place: Place, there: Mapping[str, Any], names: frozenset[str], constant: bool = False
    ) -> None:
        for name in names & there.keys():
            value = there[name]
            self.meet(value, names)
            if not constant and self._is_variable(place, name, value):
                self._values.setdefault(place, {})[name] = value

    def _is_variable(self, place: Place, name: str, value: Any) -> bool:
        module, owner = place
        if not is_own(module) or travels_whole(module) or name.startswith("__"):
            return False
        if isinstance(value, (ModuleType, *_WRAPPERS)):
            return False
        if isinstance(value, FunctionType | type):
            qualname = f"{owner}.{name}".lstrip(".")
            return (value.__module__, value.__qualname__) != (module, qualname) and self._travels(value)
        if owner and hasattr(type(value), "__get__"):  # a slot
            return False
        return isinstance(value, _PLAIN) or self._travels(value)


def _contents(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            yield cell.cell_contents


@functools.lru_cache(4096)
def names_in(code: CodeType, with_texts: bool = False) -> frozenset[str]:
    """All that it may name: variables, attributes, modules; also as text, for ``getattr``, if asked."""
    inner = [names_in(one, with_texts) for one in code.co_consts if isinstance(one, CodeType)]
    texts = (one for one in code.co_consts if with_texts and isinstance(one, str))
    return frozenset(code.co_names).union(texts, *inner)


@contextlib.contextmanager
def taken_over(values: Values) -> Iterator[None]:
    """The caller's values in the modules of this process."""
    before = list[tuple[Any, str, Any]]()
    for (module, owner), new in values.items():
        with contextlib.suppress(Exception):  # who needs what cannot be imported says so
            holder: Any = importlib.import_module(module)
            for part in filter(None, owner.split(".")):
                holder = getattr(holder, part)
            for name, value in new.items():
                old = vars(holder).get(name, _MISSING)
                if not _is_same(old, value):
                    setattr(holder, name, value)
                    before.append((holder, name, old))
    try:
        yield
    finally:
        for holder, name, old in reversed(before):
            with contextlib.suppress(Exception):
                delattr(holder, name) if old is _MISSING else setattr(holder, name, old)


def _is_same(old: Any, new: Any) -> bool:
    """Whether it need not be exchanged: others may hold the old one, and ask whether it is that."""
    if type(old) is not type(new) or isinstance(new, np.ndarray):
        return False
    with contextlib.suppress(Exception):
        return dumps_by_value(old) == dumps_by_value(new)
    return False
