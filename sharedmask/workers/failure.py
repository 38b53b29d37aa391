"""Exceptions on their way from a worker to its caller.

Covers: what a function raised, as itself wherever it can be made again, with what led to it and its
traceback as text. Does not cover: deaths of workers (``pool``).
"""

import functools
import pickle
import re
import traceback
from typing import Any

from sharedmask.errors import WorkerError
from sharedmask.records import dataclass


def dumps(thing: object) -> bytes:
    """Pickled: by name where pickle can, else by value."""
    try:
        return pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        return dumps_by_value(thing)


def dumps_by_value(thing: object) -> bytes:
    """Lambdas, closures and what a script or notebook defined travel whole, the rest by name."""
    import cloudpickle

    return bytes(cloudpickle.dumps(thing))


@functools.lru_cache(maxsize=1)
def loaded_once(packed: bytes) -> Any:
    """What :func:`dumps_by_value` packed; where it arrives again it is the same object."""
    return pickle.loads(packed)


class _RemoteTraceback(Exception):
    """Carries a worker's traceback as the cause of its exception."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass(frozen=True)
class Failure:
    """An exception that travels; in another process its first cause is the traceback it had here."""

    error: BaseException

    def __reduce__(self) -> tuple[Any, ...]:
        trace = "".join(traceback.format_exception(self.error))
        return _arrived, ([_packed(error) for error in _chain(self.error)], trace)


def _chain(error: BaseException) -> list[BaseException]:
    """The exception, its cause, the cause's cause."""
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and not any(link is one for one in found):  # some cannot be compared
        found.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return found


def _arrived(packed: list[bytes], trace: str) -> Failure:
    first, *others = [pickle.loads(one) for one in packed]
    link = first
    for cause in others:
        link.__cause__ = link = cause
    link.__cause__ = _RemoteTraceback(trace)
    return Failure(first)


def _packed(error: BaseException) -> bytes:
    """The exception as it pickles, or without a call of its constructor, or with what can travel of it."""
    for form in (error, _Unconstructed(error), _Unconstructed(error, whole=False)):
        try:
            packed = dumps(form)
            again = pickle.loads(packed)
            if type(again) is type(error) and _said(again) == _said(error):
                return packed
        except Exception:
            continue
    return pickle.dumps(WorkerError("".join(traceback.format_exception_only(error)).strip()))


def _said(error: BaseException) -> str:
    """Its text, without places in memory."""
    return re.sub(r"\b0x[0-9a-f]+\b", "", str(error))


@dataclass(frozen=True)
class _Unconstructed:
    """Arrives as the exception, of which not every constructor takes what it keeps."""

    error: BaseException
    whole: bool = True
    """With all attributes, or those alone that can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        error, args = self.error, self.error.args
        if isinstance(error, BaseExceptionGroup):
            args = error.message, list(map(_Member, error.exceptions))
        elif isinstance(error, OSError):
            args = OSError.__reduce__(error)[1]  # type: ignore[assignment]  # with the files' names
        if not self.whole:
            args = tuple(one if _travels(one) else str(one) for one in args)
        state = {name: value for name, value in vars(error).items() if self.whole or _travels(value)}
        return _rebuilt, (type(error), args, state)


@dataclass(frozen=True)
class _Member:
    """Of a group: arrives as it would alone."""

    error: BaseException

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (_packed(self.error),)


def _travels(value: object) -> bool:
    try:
        pickle.loads(dumps(value))
    except Exception:
        return False
    return True


def _rebuilt(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    base: Any = kind  # its constructors may take something else
    while base.__module__ != "builtins":
        base = base.__base__
    error: BaseException = base.__new__(kind, *args)
    base.__init__(error, *args)
    error.__dict__.update(state)
    return error
