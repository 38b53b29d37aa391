"""Random streams: each item of a call has its own, the same whoever works on it, and when.

Covers: the generators that a function may draw from (the global ones of NumPy, Python and torch, and those
that it holds), a stream of each for every item, what becomes of the caller's. Does not cover: who works on
items (``pool``), functions themselves (``kernels``).

A stream is made of the state that the caller's generator has (or of ``random_state``) and of the number
of the item. A generator of the caller's that was drawn from has moved on when the call ends; any other is as
it was.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import io
import os
import pickle
import random
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.workers.modules import own_modules

Name = str | int
"""Of a global generator (``module:name`` in a module of the user's), or the number of one that is held."""
Root = tuple[int, Name]
"""Entropy, and which generator it is for."""

_BYTES = 16
_KEY_BYTES = 32
_MT19937_WORDS = 624
_MT19937_BYTES = 4 * (_MT19937_WORDS + 1)


# --- kinds of generators -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """How generators of a type are read, set, seeded and drawn from."""

    type: type
    state: Callable[[Any], Any]
    restore: Callable[[Any, Any], object]
    seed: Callable[[Any, bytes], object]
    """With 32 bytes."""
    draw: Callable[[Any], bytes]
    look: Callable[[Any], bytes] | None = None
    """At where it stands, where that takes less time than to seed it again."""

    def begin(self, generator: Any, key: bytes) -> bytes:
        """Seed it; what :meth:`has_moved` needs."""
        self.seed(generator, key)
        if self.look is not None:
            return self.look(generator)
        first = self.draw(generator)
        self.seed(generator, key)
        return first

    def has_moved(self, generator: Any, since: bytes) -> bool:
        """Whether something was drawn of it, which may be asked once."""
        return (self.look or self.draw)(generator) != since


class _Key(ISeedSequence):
    """Seeds bit generators with what is random already, and not in need of mixing."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        n_bytes = n_words * np.dtype(dtype).itemsize
        return np.frombuffer(hashlib.shake_128(self._key).digest(n_bytes), dtype)


def _seeds(key: bytes) -> Any:  # what NumPy's types do not say it takes
    return _Key(key)


def _seed_legacy(generator: np.random.RandomState, key: bytes) -> None:
    bits, seeds = generator._bit_generator, _seeds(key)
    if isinstance(bits, np.random.MT19937):
        generator.seed(0)  # forgets the other one of a pair of normal numbers, and stands before its words
        words = np.random.PCG64(seeds).random_raw(_MT19937_WORDS // 2).tobytes()
        ctypes.memmove(bits.ctypes.state_address, words, len(words))
    else:  # of a newer kind, which is seeded when it is made
        fresh = np.random.RandomState(type(bits)(seeds))
        generator.set_state(fresh.get_state(legacy=False))


def _look_at_legacy(generator: np.random.RandomState) -> bytes:
    bits = generator._bit_generator
    if isinstance(bits, np.random.MT19937):  # its 624 words and its place among them, as NumPy tells
        return ctypes.string_at(bits.ctypes.state_address, _MT19937_BYTES)
    return pickle.dumps(generator.get_state(legacy=False))


def _look_at_random(generator: random.Random) -> bytes:
    """Its place among its 624 words, and those: what begins the object after what all objects have."""
    if type(generator) is not random.Random:  # it may have others of its own
        return pickle.dumps(generator.getstate())
    return ctypes.string_at(id(generator) + object.__basicsize__, _MT19937_BYTES)


def _can_look_at_random() -> bool:
    """Whether this Python has them there."""
    if sys.implementation.name != "cpython":
        return False
    probe = random.Random(0)
    probe.random()
    *words, place = probe.getstate()[1]
    return _look_at_random(probe) == struct.pack("=i624I", place, *words)


def _bit_kind(type: type, bits_of: Callable[[Any], Any]) -> _Kind:
    def restore(generator: Any, state: Any) -> None:
        bits_of(generator).state = state

    def seed(generator: Any, key: bytes) -> None:
        bits = bits_of(generator)
        bits.state = bits.__class__(_seeds(key)).state

    return _Kind(
        type,
        lambda generator: bits_of(generator).state,
        restore,
        seed,
        lambda generator: bytes(bits_of(generator).random_raw(4)),
        lambda generator: pickle.dumps(bits_of(generator).state),
    )


def _restore_sequence(seeds: Any, state: Any) -> None:
    entropy, spawn_key, pool_size, n_spawned = state
    seeds.__init__(entropy, spawn_key=spawn_key, pool_size=pool_size, n_children_spawned=n_spawned)


def _state_of_sequence(seeds: np.random.SeedSequence) -> tuple[Any, ...]:
    return seeds.entropy, seeds.spawn_key, seeds.pool_size, seeds.n_children_spawned


def _number(key: bytes) -> int:
    return int.from_bytes(key, "little")


_KINDS = [
    _Kind(
        random.Random,
        lambda generator: generator.getstate(),
        lambda generator, state: generator.setstate(state),
        lambda generator, key: generator.seed(_number(key)),
        lambda generator: generator.randbytes(_BYTES),
        _look_at_random if _can_look_at_random() else None,
    ),
    _Kind(
        np.random.RandomState,
        lambda generator: generator.get_state(legacy=False),
        lambda generator, state: generator.set_state(state),
        _seed_legacy,
        lambda generator: generator.bytes(_BYTES),
        _look_at_legacy,
    ),
    _bit_kind(np.random.Generator, lambda generator: generator.bit_generator),
    _bit_kind(np.random.BitGenerator, lambda bits: bits),
    _Kind(  # of which generators are spawned
        np.random.SeedSequence,
        _state_of_sequence,
        _restore_sequence,
        lambda seeds, key: seeds.__init__(_number(key)),
        lambda seeds: seeds.spawn(1)[0].generate_state(4).tobytes(),
        lambda seeds: pickle.dumps(_state_of_sequence(seeds)),
    ),
]


def _is_generator(thing: Any) -> bool:
    kind: Any = type(thing)
    return _has_streams(kind)


@functools.lru_cache(1024)
def _has_streams(kind: Any) -> bool:
    """Whether generators of this type have; kept, as some of NumPy's classes take long to be asked."""
    return issubclass(kind, tuple(one.type for one in _KINDS)) and not issubclass(kind, random.SystemRandom)


def _torch_kind(torch: Any) -> _Kind:
    return _Kind(
        torch.Generator,
        lambda generator: generator.get_state(),
        lambda generator, state: generator.set_state(state),
        lambda generator, key: generator.manual_seed(_number(key[:8]) >> 1),
        lambda generator: bytes(torch.randint(0, 256, (_BYTES,), generator=generator).tolist()),
    )


def _kind_of(generator: Any) -> _Kind:
    found = next((kind for kind in _KINDS if isinstance(generator, kind.type)), None)
    return found or _torch_kind(sys.modules["torch"])


def _globals() -> dict[Name, Any]:
    """The generators that a function may draw from without holding them."""
    found: dict[Name, Any] = {
        "numpy": np.random.mtrand._rand,
        "random": random.seed.__self__,  # type: ignore[attr-defined]
    }
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "default_generator"):
        found["torch"] = torch.default_generator
    for module in own_modules():
        for name, value in list(vars(module).items()):
            if _is_generator(value):
                found[f"{module.__name__}:{name}"] = value
    return found


def _imported(name: Name) -> None:
    """Have the module that has this generator, as the caller has it."""
    module, colon, _ = str(name).partition(":")
    if colon and module not in sys.modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """What is imported meanwhile draws from no generator of the user's."""
    before = [(one, _kind_of(one), _kind_of(one).state(one)) for one in _globals().values()]
    try:
        yield
    finally:
        for generator, kind, state in before:
            kind.restore(generator, state)


def reseed() -> None:
    """In a process that was forked: draw what no other process draws."""
    for generator in _globals().values():
        _kind_of(generator).seed(generator, os.urandom(_KEY_BYTES))


# --- a stream for each item ----------------------------------------------------------------------


class _Stream:
    """What one generator gives, from a root of its own for each item."""

    def __init__(self, name: Name, generator: Any, root: Root) -> None:
        entropy, which = root
        self.name = name
        self.generator, self._kind = generator, _kind_of(generator)
        self._root = hashlib.blake2b(f"{entropy} {which}".encode(), digest_size=_KEY_BYTES)
        self._first = b""

    def begin(self, number: int) -> None:
        key = self._root.copy()
        key.update(b" %d" % number)
        self._first = self._kind.begin(self.generator, key.digest())

    def was_drawn_from(self) -> bool:
        return self._kind.has_moved(self.generator, self._first)


class ItemStreams:
    """Those of the global generators here, and of those ``held``, for one item after the other."""

    def __init__(self, roots: Mapping[Name, Root], held: Sequence[Any]) -> None:
        self._each: list[_Stream] = []
        if not roots:
            return
        for name in roots:
            _imported(name)
        there = _globals() | dict(enumerate(held))
        for name, root in roots.items():
            if name in there and not any(one.generator is there[name] for one in self._each):
                self._each.append(_Stream(name, there[name], root))

    @contextlib.contextmanager
    def item(self, number: int, drawn: set[Name]) -> Iterator[None]:
        """Give each the stream of item ``number``; in the end ``drawn`` has the names of those drawn from."""
        for stream in self._each:
            stream.begin(number)
        try:
            yield
        finally:
            drawn |= {stream.name for stream in self._each if stream.was_drawn_from()}


class Streams:
    """Those of the items of one call, whose end closes them.

    Parameters
    ----------
    function : callable
        The user's.
    random_state : int, sequence of int, SeedSequence, Generator, RandomState, optional
        Default: the generators as they are.
    watched : bool
        Whether somebody is told of each value, who must find the generators as they were; that takes
        a quarter of a millisecond per item.
    """

    def __init__(self, function: object, random_state: Any = None, watched: bool = True) -> None:
        self._function, self._watched = function, watched
        self._entropy = None if random_state is None else _entropy(random_state)
        self._generators: dict[Name, Any] = {}
        self._n_items = 0
        self.roots: dict[Name, Root] = {}
        self.drawn: set[Name] = set()
        self._add(_globals())

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
        return (_next(generator) if self._entropy is None else self._entropy), name

    @contextlib.contextmanager
    def here(self, n_items: int) -> Iterator[Callable[[int], contextlib.AbstractContextManager[None]]]:
        """For the next items, worked on in this process: what gives the generators the streams of one."""
        self._seek()
        streams, numbers = ItemStreams(self.roots, self._held), self.numbers(n_items)

        def stream(place: int) -> contextlib.AbstractContextManager[None]:
            return streams.item(numbers[place], self.drawn)

        @contextlib.contextmanager
        def stream_in_between(place: int) -> Iterator[None]:
            with self._restored(), stream(place):
                yield

        if self._watched:
            yield stream_in_between
        else:
            with self._restored():
                yield stream

    @property
    def _held(self) -> list[Any]:
        return [generator for name, generator in self._generators.items() if isinstance(name, int)]

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        before = [(one, _kind_of(one), _kind_of(one).state(one)) for one in self._generators.values()]
        try:
            yield
        finally:
            for generator, kind, state in before:
                kind.restore(generator, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.are_given:
            for generator in {id(one): one for one in map(self._generators.get, self.drawn)}.values():
                _kind_of(generator).draw(generator)


def _next(generator: Any) -> int:
    """What hangs on all that it will give, without taking it."""
    kind = _kind_of(generator)
    if kind.look is not None:
        return _number(hashlib.blake2b(kind.look(generator), digest_size=_BYTES).digest())
    state = kind.state(generator)
    drawn = kind.draw(generator)
    kind.restore(generator, state)
    return int.from_bytes(drawn, "little")


def _entropy(random_state: Any) -> int:
    if isinstance(random_state, np.random.RandomState | np.random.Generator):
        return int.from_bytes(random_state.bytes(_BYTES), "little")
    try:
        given = isinstance(random_state, np.random.SeedSequence)
        seeds = random_state if given else np.random.SeedSequence(random_state)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"random_state={random_state!r} is no seed: {error}") from error
    return int.from_bytes(seeds.generate_state(4).tobytes(), "little")


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
            if not _is_generator(met):
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
