"""Data classes that are made fast.

Covers: ``dataclass``, for the classes of this package. Does not cover: fields and what is done with them,
which are the standard library's.

The standard library writes and compiles up to six methods for each class: half a millisecond of an import,
for each of many classes and in each of many workers. Here all classes have theirs in common, found by fields.
"""

import dataclasses
import functools
import inspect
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, eq=True):
        """Like :func:`dataclasses.dataclass`."""
        if cls is None:
            return functools.partial(dataclass, frozen=frozen, eq=eq)
        cls.__doc__ = cls.__doc__ or cls.__name__  # it would be made of the signature
        methods = {"__init__": _init, "__repr__": _repr, "__signature__": _Signature()}
        if eq:
            methods |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
        if frozen:
            methods |= {"__setattr__": _set, "__delattr__": _delete}
        for name in methods.keys() - vars(cls).keys():
            setattr(cls, name, methods[name])
        return dataclasses.dataclass(cls, init=False, repr=False, eq=False)


class _Signature:
    """What a class may be called with, for those who ask."""

    def __get__(self, _: object, cls: Any) -> inspect.Signature:
        names, by_position, fixed, made = _parameters(cls)
        values = dict.fromkeys(names, inspect.Parameter.empty) | fixed | dict.fromkeys(made, ...)
        position, name_only = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(name, position if number < by_position else name_only, default=values[name])
            for number, name in enumerate(names)
        ]
        return inspect.Signature(parameters)


@functools.cache
def _compared(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls) if field.compare]


@functools.cache
def _parameters(cls: Any) -> tuple[list[str], int, dict[str, Any], dict[str, Callable[[], Any]]]:
    """What may be given, how many by position, values where nothing is given, and what makes such values."""
    found = dataclasses.fields(cls)
    fixed = {field.name: field.default for field in found if field.default is not dataclasses.MISSING}
    made = {
        field.name: field.default_factory
        for field in found
        if field.default_factory is not dataclasses.MISSING
    }
    names = [field.name for field in found if field.init and not field.kw_only]
    named = [field.name for field in found if field.init and field.kw_only]
    return names + named, len(names), fixed, made


def _init(self: Any, /, *args: Any, **given: Any) -> None:
    names, by_position, fixed, made = _parameters(self.__class__)
    if len(args) > by_position or not given.keys() <= set(names[len(args) :]):
        raise TypeError(f"{type(self).__name__} takes {', '.join(names)}, each once")
    values = {**fixed, **dict(zip(names, args, strict=False)), **given}
    for name in made.keys() - values.keys():
        values[name] = made[name]()
    if missing := [name for name in names if name not in values]:
        raise TypeError(f"{type(self).__name__} needs {', '.join(missing)}")
    vars(self).update(values)
    if hasattr(self, "__post_init__"):
        self.__post_init__()


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    shown = [
        f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr
    ]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name in _compared(self.__class__))


def _eq(self: Any, other: object) -> Any:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _set(self: Any, name: str, _: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
