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
from typing import TYPE_CHECKING, Any, NamedTuple

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
        names, by_position, _, fixed, made, *_ = _parameters(cls)
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


class _Parameters(NamedTuple):
    names: list[str]
    """What may be given, first by position."""
    by_position: int
    others: frozenset[str]
    """Fields that are not given."""
    fixed: dict[str, Any]
    """Values where nothing is given."""
    made: dict[str, Callable[[], Any]]
    """What makes such values."""
    valued: set[str]
    """Fields that have a value in the end."""
    finish: Callable[[Any], object] | None
    """What is done then."""


@functools.cache
def _parameters(cls: Any) -> _Parameters:
    found = dataclasses.fields(cls)
    names = [field.name for field in found if field.init and not field.kw_only]
    named = [field.name for field in found if field.init and field.kw_only]
    others = frozenset(field.name for field in found if not field.init)
    fixed = _without_missing({field.name: field.default for field in found})
    made = _without_missing({field.name: field.default_factory for field in found})
    valued, finish = {*names, *named, *fixed, *made}, getattr(cls, "__post_init__", None)
    return _Parameters(names + named, len(names), others, fixed, made, valued, finish)


def _without_missing(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not dataclasses.MISSING}


def _init(self: Any, /, *args: Any, **given: Any) -> None:
    # There may be very many of some: what is the same for all of a class is found out once.
    names, by_position, others, fixed, made, valued, finish = _parameters(self.__class__)
    if len(args) == by_position == len(valued) and not given and finish is None:
        self.__dict__.update(zip(names, args, strict=True))
        return
    if (
        len(args) > by_position
        or (args and given and not given.keys().isdisjoint(names[: len(args)]))
        or (others and not given.keys().isdisjoint(others))
    ):
        raise TypeError(f"{type(self).__name__} takes {', '.join(names)}, each once")
    values = {**fixed, **given} if fixed else given
    if args:
        values.update(zip(names, args, strict=False))
    if len(values) < len(valued):
        for name, make in made.items():
            if name not in values:
                values[name] = make()
    if values.keys() != valued:
        raise TypeError(f"{type(self).__name__} takes {', '.join(names)}, not {', '.join(values)}")
    self.__dict__.update(values)
    if finish is not None:
        finish(self)


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
