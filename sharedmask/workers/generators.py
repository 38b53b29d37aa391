"""Generators of random numbers, of whatever library.

Covers: where a generator stands, a stream of it for each item, whether it was drawn from, which generators a
function may draw from without holding them. Does not cover: the streams of a call (``streams``).
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import os
import pickle
import random
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from sharedmask.records import dataclass
from sharedmask.workers.modules import own_modules

Name = str | int
"""Of a global generator (``module:name`` in a module of the user's), or the number of one that is held."""
Root = tuple[int, Name]
"""Entropy, and which generator it is for."""

BYTES = 16
"""Of entropy."""
_KEY_BYTES = 32
_N_WORDS = 624  # of a Mersenne twister; one more says which of them is next
_STATE_BYTES = 4 * (_N_WORDS + 1)
_N_RAW = _N_WORDS // 2  # numbers of PCG64 that are as many bytes
_MOST_AHEAD = 32  # items whose words are made at once


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
    fresh = np.random.RandomState(type(generator._bit_generator)(_seeds(key)))
    generator.set_state(fresh.get_state(legacy=False))


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
        lambda generator: generator.randbytes(BYTES),
    ),
    _Kind(
        np.random.RandomState,
        lambda generator: generator.get_state(legacy=False),
        lambda generator, state: generator.set_state(state),
        _seed_legacy,
        lambda generator: generator.bytes(BYTES),
        lambda generator: pickle.dumps(generator.get_state(legacy=False)),
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


def is_generator(thing: Any) -> bool:
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
        lambda generator: bytes(torch.randint(0, 256, (BYTES,), generator=generator).tolist()),
    )


# --- a stream for each item ----------------------------------------------------------------------


class Stream:
    """A generator: where it stands, and a stream for each item, by a seed of its own."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        kind = next((kind for kind in _KINDS if isinstance(generator, kind.type)), None)
        self._kind = kind or _torch_kind(sys.modules["torch"])
        self._first: bytes | None = None

    def state(self) -> Any:
        return self._kind.state(self.generator)

    def restore(self, state: Any) -> None:
        self._kind.restore(self.generator, state)

    def seed(self, key: bytes) -> None:
        """With 32 bytes."""
        self._kind.seed(self.generator, key)

    def draw(self) -> bytes:
        return self._kind.draw(self.generator)

    def next(self) -> bytes:
        """What hangs on all that it will give, without taking it."""
        if (seen := self._look()) is not None:
            return hashlib.blake2b(seen, digest_size=BYTES).digest()
        state = self.state()
        drawn = self.draw()
        self.restore(state)
        return drawn

    def root_in(self, root: Root) -> None:
        """Have streams that hang on ``root``."""
        entropy, which = root
        self._root = hashlib.blake2b(f"{entropy} {which}".encode(), digest_size=_KEY_BYTES)

    def begin(self, number: int) -> None:
        """Have the stream of item ``number``."""
        key = self._root.copy()
        key.update(b" %d" % number)
        self.seed(key.digest())
        self._first = self._look()
        if self._first is None:
            self._first = self.draw()
            self.seed(key.digest())

    def was_drawn_from(self) -> bool:
        """Since the item began; may be asked once."""
        return (self._look() or self.draw()) != self._first

    def _look(self) -> bytes | None:
        return None if self._kind.look is None else self._kind.look(self.generator)


class _Twister(Stream):
    """A Mersenne twister in memory that can be read and written: its items have words in place of seeds.

    They are those that PCG64 gives, which makes many at once: 1 microsecond for each item, not 10.
    """

    words: slice
    """Where they are in memory, beside the place of the next."""

    def __init__(self, generator: Any, memory: memoryview) -> None:
        super().__init__(generator)
        self._memory = memory
        self._ahead, self._numbers = b"", range(0)

    def state(self) -> Any:
        return self._look(), self._half()

    def restore(self, state: Any) -> None:
        self._memory[:], half = state
        self._set_half(half)

    def root_in(self, root: Root) -> None:
        super().root_in(root)
        self._bits = np.random.PCG64(_seeds(self._root.digest()))

    def begin(self, number: int) -> None:
        if number not in self._numbers:
            self._prepare(number)
        if self._memory.tobytes() != self._first:
            self._set_half(None)
        place = (number - self._numbers.start) * _STATE_BYTES
        self._memory[:] = self._first = self._ahead[place : place + _STATE_BYTES]

    def was_drawn_from(self) -> bool:
        return self._memory.tobytes() != self._first

    def _prepare(self, number: int) -> None:
        """The words of an item, and the more of those behind it the more items came one after the other."""
        skipped = number - self._numbers.stop
        count = 1 if skipped else max(1, min(2 * len(self._numbers), _MOST_AHEAD))
        self._bits.advance(skipped * _N_RAW)
        states = np.full((count, _N_WORDS + 1), _N_WORDS, np.uint32)
        states[:, self.words] = self._bits.random_raw(count * _N_RAW).view(np.uint32).reshape(count, -1)
        self._ahead, self._numbers = states.tobytes(), range(number, number + count)

    def _look(self) -> bytes:
        return self._memory.tobytes()

    def _half(self) -> float | None:
        """Normal numbers are drawn in pairs: the other one, if it waits."""
        raise NotImplementedError

    def _set_half(self, half: float | None) -> None:
        raise NotImplementedError


class _PythonTwister(_Twister):
    """Of ``random``: its words are what begins the object after what all objects have."""

    words = slice(1, None)

    def _half(self) -> float | None:
        half: float | None = self.generator.gauss_next
        return half

    def _set_half(self, half: float | None) -> None:
        self.generator.gauss_next = half


class _LegacyTwister(_Twister):
    """Of ``numpy.random``, which tells where its words are."""

    words = slice(_N_WORDS)

    def __init__(self, generator: np.random.RandomState, memory: memoryview) -> None:
        super().__init__(generator, memory)
        self._owner = generator._bit_generator  # of the memory

    def _half(self) -> float | None:
        half = self._take_half()
        if half is not None:
            self._set_half(half)
        return half

    def _take_half(self) -> float | None:
        before = self._look()
        half: float = np.random.RandomState.standard_normal(self.generator)
        if self._look() == before:
            return half
        np.random.RandomState.standard_normal(self.generator)  # the other one of a pair that was made now
        self._memory[:] = before
        return None

    def _set_half(self, half: float | None) -> None:
        if half is None:
            self._take_half()
        else:
            state = self.generator.get_state(legacy=False)
            self.generator.set_state({**state, "has_gauss": 1, "gauss": half})


def _memory_at(address: int) -> memoryview:
    return memoryview((ctypes.c_ubyte * _STATE_BYTES).from_address(address)).cast("B")


def _memory_of_random(generator: random.Random) -> memoryview:
    return _memory_at(id(generator) + object.__basicsize__)


@functools.cache
def _has_memory() -> bool:
    """Whether generators of ``random`` have it where we look."""
    own = random.Random.__mro__[1].__basicsize__ - object.__basicsize__
    if sys.implementation.name != "cpython" or own < _STATE_BYTES:
        return False
    probe = random.Random(0)
    probe.random()
    *words, place = probe.getstate()[1]
    return _memory_of_random(probe).tobytes() == struct.pack("=i624I", place, *words)


def stream_of(generator: Any) -> Stream:
    """That generator, by the fastest means that there is for its kind."""
    if type(generator) is random.Random and _has_memory():  # others may have more than its words
        return _PythonTwister(generator, _memory_of_random(generator))
    if isinstance(generator, np.random.RandomState):
        bits = generator._bit_generator
        if type(bits) is np.random.MT19937:
            return _LegacyTwister(generator, _memory_at(bits.ctypes.state_address))
    return Stream(generator)


def bits_of(generator: Any) -> Any:
    """What two generators share if they give numbers in turn."""
    return getattr(generator, "bit_generator", getattr(generator, "_bit_generator", generator))


# --- those that a function may draw from ---------------------------------------------------------


def library_generators() -> dict[Name, Any]:
    """Those that every process has one of."""
    found: dict[Name, Any] = {
        "numpy": np.random.mtrand._rand,
        "random": random.seed.__self__,  # type: ignore[attr-defined]
    }
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "default_generator"):
        found["torch"] = torch.default_generator
    return found


def global_generators() -> dict[Name, Any]:
    """The generators that a function may draw from without holding them."""
    found = library_generators()
    for module in own_modules():
        for name, value in list(vars(module).items()):
            if is_generator(value):
                found[f"{module.__name__}:{name}"] = value
    return found


def import_owner(name: Name) -> None:
    """Have the module that has this generator, as the caller has it."""
    module, colon, _ = str(name).partition(":")
    if colon and module not in sys.modules:
        with contextlib.suppress(Exception):
            importlib.import_module(module)


@contextlib.contextmanager
def kept(generators: Iterable[Any]) -> Iterator[None]:
    """In the end they stand where they did."""
    before = [(one, one.state()) for one in map(stream_of, generators)]
    try:
        yield
    finally:
        for one, state in before:
            one.restore(state)


def reseed() -> None:
    """In a process that was forked: draw what no other process draws."""
    for generator in global_generators().values():
        stream_of(generator).seed(os.urandom(_KEY_BYTES))
