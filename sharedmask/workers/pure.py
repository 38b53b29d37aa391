"""Functions that draw no random numbers, as their code alone says: nothing is seeded for them.

Covers: functions of arrays that name NumPy's own, plain values, and functions of that kind. Does not cover:
any other, which may draw: a library that it calls, an object that it holds (``generators``).
"""

import builtins
import functools
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np

from sharedmask.workers.variables import names_in

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_BUILTINS = frozenset([
    "abs", "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "filter", "float", "int",
    "isinstance", "len", "list", "map", "max", "min", "pow", "range", "reversed", "round", "set", "slice",
    "sorted", "str", "sum", "tuple", "zip",
])  # fmt: skip
_METHODS = (np.ndarray, np.float64, np.ufunc, str, bytes, list, tuple, dict, set)
_MODULES = (np, np.linalg, np.fft)
_UNSAFE = frozenset({"load", "ctypes"})  # what a file holds may be any object


def draws_nothing(function: Callable[..., Any]) -> bool:
    """Whether it draws no random numbers, given arrays of numbers alone; False if that is not certain."""
    try:
        return _is_pure(function, set())
    except Exception:  # of what it holds
        return False


def _is_pure(value: Any, met: set[int]) -> bool:
    if type(value) in _PLAIN or isinstance(value, np.generic) or id(value) in met:
        return True
    if type(value) is np.ndarray:
        return not value.dtype.hasobject
    if type(value) is partial:
        inside: Iterator[Any] = iter((value.func, *value.args, *value.keywords.values()))
    elif type(value) is FunctionType and not value.__module__.startswith("numpy"):
        met.add(id(value))
        inside = _named(value)
    else:
        return id(value) in _known()
    return all(_is_pure(one, met) for one in inside)


def _named(function: FunctionType) -> Iterator[Any]:
    """All that its code may find under the names that it has, in NumPy too; KeyError of other names."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        yield cell.cell_contents
    for name in names_in(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]
        elif name in _BUILTINS:
            yield getattr(builtins, name)
        elif name not in _attributes():
            raise KeyError(name)
        yield from (getattr(module, name) for module in _MODULES if name in _contents(module))


@functools.cache
def _contents(module: ModuleType) -> frozenset[str]:
    return frozenset(dir(module))


@functools.cache
def _known() -> dict[int, Any]:
    """NumPy's functions and types and some of Python's, by identity."""
    found: list[Any] = [*_MODULES, *(getattr(builtins, name) for name in _BUILTINS)]
    for module in _MODULES:
        found += [value for name, value in vars(module).items() if name not in _UNSAFE and _is_numpys(value)]
    return {id(one): one for one in found}


@functools.cache
def _attributes() -> frozenset[str]:
    """Of arrays, numbers, containers and NumPy, which lead to nothing but such."""
    found = {name for kind in _METHODS for name in dir(kind)}
    found.update(*map(_contents, _MODULES))  # what each of these is, is looked at
    return frozenset(name for name in found - _UNSAFE if not name.startswith("_"))


def _is_numpys(value: Any) -> bool:
    if isinstance(value, np.ufunc):
        return True
    if isinstance(value, type):
        return issubclass(value, np.generic)
    callables = FunctionType, BuiltinFunctionType, type(np.mean)
    return isinstance(value, callables) and str(value.__module__).startswith("numpy")
