"""Random streams: each item of a call has its own, the same whoever works on it, and when.

Covers: the streams of a call, the generators that its function holds, what becomes of the caller's. Does not
cover: how a generator is seeded (``generators``), which functions need none (``pure``), who works on items
(``pool``).

A stream is made of the state that the caller's generator has (or of ``random_state``) and of the number
of the item. A generator of the caller's that was drawn from has moved on when the call ends; any other is as
it was.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from sharedmask.errors import ParameterError
from sharedmask.workers import packing
from sharedmask.workers.generators import (
    BYTES,
    Name,
    Root,
    Stream,
    global_generators,
    import_owner,
    kept,
)
from sharedmask.workers.pure import draws_nothing


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
                self._each[name] = Stream(there[name])
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
            if name not in self._drawn and stream.was_drawn_from():
                self._drawn.add(name)


class Streams:
    """Those of the items of one call, whose end closes them.

    ``function``: the user's.
    ``random_state``: default: the generators as they are.
    ``watched``: whether somebody is told of each value, who must find the generators as they were.
    ``of_arrays``: whether the function is given arrays of numbers and nothing else: none has streams for one
    that is certain to draw nothing.
    """

    def __init__(
        self, function: Any, random_state: Any = None, watched: bool = True, of_arrays: bool = False
    ) -> None:
        self._function, self._watched = function, watched
        self._may_draw = not (of_arrays and draws_nothing(function))
        self._entropy = None if random_state is None else _entropy(random_state)
        self._generators: dict[Name, Any] = {}
        self._n_items = 0
        self.roots: dict[Name, Root] = {}
        self.drawn: set[Name] = set()
        if self._may_draw:
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
        payload, held = packing.dumps(thing, with_users=True)
        self._add(dict(enumerate(held)))
        return payload

    def _seek(self) -> None:
        """Find the generators that the function holds."""
        if self._may_draw:
            with contextlib.suppress(Exception):  # it stays here, and need not be one that travels
                self._add(dict(enumerate(packing.held_by(self._function))))

    def _add(self, generators: Mapping[Name, Any]) -> None:
        for name, generator in generators.items():
            if name not in self._generators:
                self.roots[name] = self._root(name, generator)
                self._generators[name] = generator

    def _root(self, name: Name, generator: Any) -> Root:
        for other, known in self._generators.items():
            if known is generator:  # one of two names
                return self.roots[other]
        return (_number(Stream(generator).next()) if self._entropy is None else self._entropy), name

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
                Stream(generator).draw()


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
