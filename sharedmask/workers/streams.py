"""Random streams: each item of a call has its own, the same whoever works on it, and when.

Covers: the streams of a call, the generators that its function holds, what becomes of the caller's. Does not
cover: how a generator is seeded (``generators``), who works on items (``pool``), functions (``kernels``).

A stream is made of the state that the caller's generator has (or of ``random_state``) and of the number
of the item. A generator of the caller's that was drawn from has moved on when the call ends; any other is as
it was.
"""

import contextlib
import functools
import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.workers.generators import (
    BYTES,
    Name,
    Root,
    Stream,
    global_generators,
    import_owner,
    is_generator,
    kept,
    stream_of,
)


class ItemStreams:
    """Those of the global generators here, and of those ``held``, for one item after the other."""

    def __init__(self, roots: Mapping[Name, Root], held: Sequence[Any]) -> None:
        self._each: dict[Name, Stream] = {}
        if not roots:
            return
        for name in roots:
            import_owner(name)
        there = global_generators() | dict(enumerate(held))
        for name, root in roots.items():
            if name in there and not any(one.generator is there[name] for one in self._each.values()):
                self._each[name] = stream_of(there[name])
                self._each[name].root_in(root)

    def item(self, number: int, drawn: set[Name]) -> Self:
        """To be within while item ``number`` is worked on; in the end ``drawn`` has what was drawn from."""
        self._number, self._drawn = number, drawn
        return self

    def __enter__(self) -> None:
        for stream in self._each.values():
            stream.begin(self._number)

    def __exit__(self, *_: object) -> None:
        for name, stream in self._each.items():
            if stream.was_drawn_from():
                self._drawn.add(name)


class Streams:
    """Those of the items of one call, whose end closes them.

    Parameters
    ----------
    function : callable
        The user's.
    random_state : int, sequence of int, SeedSequence, Generator, RandomState, optional
        Default: the generators as they are.
    watched : bool
        Whether somebody is told of each value, who must find the generators as they were.
    """

    def __init__(self, function: object, random_state: Any = None, watched: bool = True) -> None:
        self._function, self._watched = function, watched
        self._entropy = None if random_state is None else _entropy(random_state)
        self._generators: dict[Name, Any] = {}
        self._n_items = 0
        self.roots: dict[Name, Root] = {}
        self.drawn: set[Name] = set()
        self._add(global_generators())

    @property
    def are_given(self) -> bool:
        """Whether they hang on ``random_state`` alone."""
        return self._entropy is not None

    def numbers(self, n_items: int) -> range:
        """Of the next items."""
        first = self._n_items
        self._n_items += n_items
        return range(first, self._n_items)

    def dumps(self, thing: object) -> bytes:
        """Pickled by value; the generators in it have streams too, here and where it arrives."""
        file = io.BytesIO()
        self._look(thing, file)
        return file.getvalue()

    def _seek(self) -> None:
        """Find the generators that the function holds, without a copy of anything."""
        with contextlib.suppress(Exception):  # it stays here, and need not be one that travels
            self._look(self._function, _Nowhere(), buffer_callback=lambda _: None)

    def _look(self, thing: object, file: Any, **options: Any) -> None:
        pickler = _pickler()(file, **options)
        pickler.dump(thing)
        self._add(dict(enumerate(pickler.held)))

    def _add(self, generators: Mapping[Name, Any]) -> None:
        for name, generator in generators.items():
            if name not in self._generators:
                self.roots[name] = self._root(name, generator)
                self._generators[name] = generator

    def _root(self, name: Name, generator: Any) -> Root:
        for other, known in self._generators.items():
            if known is generator:  # one of two names
                return self.roots[other]
        return (_number(stream_of(generator).next()) if self._entropy is None else self._entropy), name

    @contextlib.contextmanager
    def here(self, n_items: int) -> Iterator[Callable[[int], contextlib.AbstractContextManager[None]]]:
        """For the next items, worked on in this process: what gives the generators the streams of one."""
        self._seek()
        streams, numbers = ItemStreams(self.roots, self._held), self.numbers(n_items)

        def stream(place: int) -> contextlib.AbstractContextManager[None]:
            return streams.item(numbers[place], self.drawn)

        @contextlib.contextmanager
        def stream_in_between(place: int) -> Iterator[None]:
            with kept(self._generators.values()), stream(place):
                yield

        if self._watched:
            yield stream_in_between
        else:
            with kept(self._generators.values()):
                yield stream

    @property
    def _held(self) -> list[Any]:
        return [generator for name, generator in self._generators.items() if isinstance(name, int)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.are_given:
            for generator in {id(one): one for one in map(self._generators.get, self.drawn)}.values():
                stream_of(generator).draw()


def _number(entropy: bytes) -> int:
    return int.from_bytes(entropy, "little")


def _entropy(random_state: Any) -> int:
    if isinstance(random_state, np.random.RandomState | np.random.Generator):
        return _number(random_state.bytes(BYTES))
    try:
        given = isinstance(random_state, np.random.SeedSequence)
        seeds = random_state if given else np.random.SeedSequence(random_state)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"random_state={random_state!r} is no seed: {error}") from error
    return _number(seeds.generate_state(4).tobytes())


# --- generators that a function holds ------------------------------------------------------------


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)


@functools.cache
def _pickler() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Takes note of generators, and numbers them for where they arrive."""

        def __init__(self, file: Any, **options: Any) -> None:
            super().__init__(file, protocol=5, **options)
            self.held: list[Any] = []
            self._bits: list[Any] = []  # of those held: a bit generator and what draws from it are one

        def reducer_override(self, met: Any) -> Any:
            if not is_generator(met):
                return super().reducer_override(met)
            bits = getattr(met, "bit_generator", getattr(met, "_bit_generator", met))
            if any(bits is one for one in self._bits):
                return super().reducer_override(met)
            self._bits.append(bits)
            self.held.append(met)
            reduced: Any = met.__reduce_ex__(4)
            return _arrived, (len(self.held) - 1, reduced[0], *reduced[1]), *reduced[2:]

    return Pickler


_arriving: dict[int, Any] = {}


def _arrived(number: int, make: Callable[..., Any], *arguments: Any) -> Any:
    _arriving[number] = make(*arguments)
    return _arriving[number]


def loads(payload: bytes) -> tuple[Any, list[Any]]:
    """What :meth:`Streams.dumps` packed, and the generators in it."""
    _arriving.clear()
    thing = pickle.loads(payload)
    return thing, [_arriving[number] for number in range(len(_arriving))]
