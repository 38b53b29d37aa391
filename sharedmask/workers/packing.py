"""A job as it travels: by value what a worker would not find, with the generators and variables of it.

Covers: pickling what workers are to do, and receiving it. Does not cover: answers and errors (``failure``),
which variables those are (``variables``), what generators give there (``streams``).
"""

import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

from sharedmask.workers import modules
from sharedmask.workers.generators import Name, bits_of, is_generator, library_generators
from sharedmask.workers.variables import Reached, Values


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)


def dumps(thing: object, with_users: bool = False) -> tuple[bytes, list[Any]]:
    """The thing with the variables that it reaches, and the generators in all that, in their order.

    ``with_users``: what goes with it is of the user's, whatever it holds itself.
    """
    file = io.BytesIO()
    held = _pickler()(file).dump_all(thing, with_users)
    return file.getvalue(), held


def held_by(thing: object) -> list[Any]:
    """The generators that would travel with it, without a copy of anything."""
    held: list[Any] = _pickler()(_Nowhere(), buffer_callback=lambda _: None).dump_all(thing)
    return held


def loads(payload: bytes) -> tuple[Any, list[Any], Values | None]:
    """What :func:`dumps` packed: the thing, the generators and the variables; None: nothing is the user's."""
    _arriving.clear()
    unpickler = pickle.Unpickler(io.BytesIO(payload))
    thing, values = unpickler.load(), unpickler.load()
    return thing, [_arriving[number] for number in range(len(_arriving))], values


@functools.cache
def _pickler() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Takes note of functions, and of generators, which it numbers for where they arrive."""

        def __init__(self, file: Any, reached: Reached | None = None, **options: Any) -> None:
            super().__init__(file, protocol=5, **options)
            self._held: list[Any] = []
            self._bits: list[Any] = []  # of those held: a bit generator and what draws from it are one
            self._reached = reached

        def dump_all(self, thing: object, with_users: bool = False) -> list[Any]:
            if with_users:
                self._note_users()
            self.dump(thing)
            self.dump(None if self._reached is None else self._reached.values())
            return self._held

        def _note_users(self) -> Reached:
            """From now on, as something is the user's: modules say how it travels."""
            if self._reached is None:
                modules.known.look()
                self._reached = Reached(self._travels)
            return self._reached

        def _travels(self, value: object) -> bool:
            try:
                Pickler(_Nowhere(), self._reached, buffer_callback=lambda _: None).dump(value)
            except Exception:  # it stays as a worker has it
                return False
            return True

        def reducer_override(self, met: Any) -> Any:
            if not is_generator(met):
                if self._reached is not None or not modules.is_librarys(met):
                    self._note_users().meet(met)
                return super().reducer_override(met)
            for name, one in library_generators().items():
                if met is one:  # of which every process has one
                    return _library_generator, (name,)
            bits = bits_of(met)
            if any(bits is one for one in self._bits):
                return super().reducer_override(met)
            self._bits.append(bits)
            self._held.append(met)
            reduced: Any = met.__reduce_ex__(4)
            return _arrived, (len(self._held) - 1, reduced[0], *reduced[1]), *reduced[2:]

    return Pickler


_arriving: dict[int, Any] = {}


def _arrived(number: int, make: Callable[..., Any], *arguments: Any) -> Any:
    _arriving[number] = make(*arguments)
    return _arriving[number]


def _library_generator(name: Name) -> Any:
    return library_generators()[name]
