"""Functions that draw no random numbers, as their code alone says: nothing is seeded for them.

Covers: functions of arrays that name NumPy's own, plain values, and functions of that kind. Does not cover:
any other, which may draw: a library that it calls, an object that it holds (``generators``).
"""

import builtins
import functools
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import numpy as np

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_BUILTINS = frozenset([
    "abs", "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "filter", "float", "int",
    "isinstance", "len", "list", "map", "max", "min", "pow", "range", "reversed", "round", "set", "slice",
    "sorted", "str", "sum", "tuple", "zip",
])  # fmt: skip
_METHODS = (np.ndarray, np.float64, np.ufunc, str, bytes, list, tuple, dict, set)
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
        return id(value) in _known()[0]
    return all(_is_pure(one, met) for one in inside)


def _named(function: FunctionType) -> Iterator[Any]:
    """What its code finds under the names that it has, unless they may be attributes of something else."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        yield cell.cell_contents
    _, attributes, all_attributes = _known()
    for name in _names(function.__code__):
        if name in function.__globals__:
            yield function.__globals__[name]
        elif name in _BUILTINS:
            yield getattr(builtins, name)
        elif name not in attributes:
            raise NameError(name)
        if name in all_attributes and name not in attributes:
            raise NameError(name)


@functools.lru_cache(4096)
def _names(code: CodeType) -> frozenset[str]:
    inner = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    return frozenset(code.co_names).union(*inner)


@functools.cache
def _known() -> tuple[frozenset[int], frozenset[str], frozenset[str]]:
    """Objects that draw nothing, by identity; attributes that lead to such alone; all attributes."""
    modules = np, np.linalg, np.fft
    objects: list[Any] = [*modules, *(getattr(builtins, name) for name in _BUILTINS)]
    attributes = {"linalg", "fft", "pi", "e", "nan", "inf", "newaxis"}
    every = set[str]()
    for module in modules:
        every.update(dir(module))
        for name in set(dir(module)) - _UNSAFE:
            value = getattr(module, name)
            if not name.startswith("_") and _is_numpys(value):
                attributes.add(name)
                objects.append(value)
    for kind in _METHODS:
        every.update(dir(kind))
        attributes.update(name for name in set(dir(kind)) - _UNSAFE if not name.startswith("_"))
    return frozenset(map(id, objects)), frozenset(attributes), frozenset(every)


def _is_numpys(value: Any) -> bool:
    if isinstance(value, np.ufunc):
        return True
    if isinstance(value, type):
        return issubclass(value, np.generic)
    callables = FunctionType, BuiltinFunctionType, type(np.mean)
    return isinstance(value, callables) and str(value.__module__).startswith("numpy")
