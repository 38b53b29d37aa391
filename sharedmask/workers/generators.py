"""Generators of random numbers, of whatever library.

Covers: where a generator stands, a stream of it for each item, whether it was drawn from, which generators a
function may draw from without holding them. Does not cover: the streams of a call (``streams``).
"""

import contextlib
import functools
import hashlib
import importlib
import os
import random
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from sharedmask.records import dataclass
from sharedmask.typing import NDArray
from sharedmask.workers.modules import own_modules

Name = str | int
"""Of a global generator (``module:name`` in a module of the user's), or the number of one that is held."""
Root = tuple[int, Name]
"""Entropy, and which generator it is for."""

BYTES = 16
"""Of entropy."""
_KEY_BYTES = 32


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
    peek: Callable[[Any], object]
    """As fast as can be: another one if anything was drawn since a seed was set."""


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
    kind = type(generator._bit_generator)
    if kind is np.random.MT19937:  # the one kind that the method seeds
        generator.seed(np.frombuffer(key, np.uint32))
    else:
        generator.set_state(np.random.RandomState(kind(_seeds(key))).get_state(legacy=False))


def _state_of_legacy(generator: np.random.RandomState) -> Any:
    state = generator.get_state(legacy=False)
    words = state["state"].get("key")
    if isinstance(words, np.ndarray):  # which is put back a word at a time, twenty times slower than a list
        state["state"]["key"] = words.tolist()
    return state


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
        lambda generator: bits_of(generator).random_raw(),
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
        lambda generator: generator.getrandbits(64),
    ),
    _Kind(
        np.random.RandomState,
        _state_of_legacy,
        lambda generator, state: generator.set_state(state),
        _seed_legacy,
        lambda generator: struct.pack("dd", generator.random_sample(), generator.random_sample()),
        lambda generator: generator.random_sample(),
    ),
    _bit_kind(np.random.Generator, lambda generator: generator.bit_generator),
    _bit_kind(np.random.BitGenerator, lambda bits: bits),
    _Kind(  # of which generators are spawned
        np.random.SeedSequence,
        _state_of_sequence,
        _restore_sequence,
        lambda seeds, key: seeds.__init__(_number(key)),
        lambda seeds: seeds.spawn(1)[0].generate_state(4).tobytes(),
        lambda seeds: seeds.n_children_spawned,
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
    def draw(generator: Any) -> bytes:
        return bytes(torch.randint(0, 256, (BYTES,), generator=generator).tolist())

    return _Kind(
        torch.Generator,
        lambda generator: generator.get_state(),
        lambda generator, state: generator.set_state(state),
        lambda generator, key: generator.manual_seed(_number(key[:8]) >> 1),
        draw,
        draw,
    )


# --- a stream for each item ----------------------------------------------------------------------


class Stream:
    """A generator: where it stands, and a stream for each item, by a seed of its own."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        kind = next((kind for kind in _KINDS if isinstance(generator, kind.type)), None)
        self._kind = kind or _torch_kind(sys.modules["torch"])

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
        with kept([self.generator]):
            return self.draw()

    def root_in(self, root: Root) -> None:
        """Have streams that hang on ``root``."""
        entropy, which = root
        self._root = hashlib.blake2b(f"{entropy} {which}".encode(), digest_size=_KEY_BYTES)

    def begin(self, number: int) -> None:
        """Have the stream of item ``number``."""
        key = self._root.copy()
        key.update(b" %d" % number)
        self._key = key.digest()
        self.seed(self._key)

    def was_drawn_from(self) -> bool:
        """Since the item began; may be asked once."""
        there = self._kind.peek(self.generator)
        self.seed(self._key)
        return bool(there != self._kind.peek(self.generator))


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
    before = [(one, one.state()) for one in map(Stream, generators)]
    try:
        yield
    finally:
        for one, state in before:
            one.restore(state)


def reseed() -> None:
    """In a process that was forked: draw what no other process draws."""
    for generator in global_generators().values():
        Stream(generator).seed(os.urandom(_KEY_BYTES))
