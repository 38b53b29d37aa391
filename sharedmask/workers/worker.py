"""Workers: the life of a process that does jobs.

Covers: receiving a job, calling its kernel for each item, what is answered. Does not cover: where workers
come from (``template``), who gives them work (``pool``), what kernels do (``compute.kernels``).

::

    job   the caller's surroundings if they are new, the kernel and the arguments that all items share,
          roots of random streams, the first items; Shared arguments are attached on arrival
    items one call of the kernel each; an answer is the value or its failure, and what was warned of.
          Those of quick items go back together. Who gets the last ones is at the end then
    end   the arguments are dropped. An image in memory stays mapped until another job comes, its caller
          closes it (let go) or a second has passed: to find all its pages again takes longer than many jobs

A worker exits when its pipe ends, whatever it is doing: its caller is gone, or has no use for it.
"""

import _thread
import contextlib
import multiprocessing
import os
import pickle
import select
import time
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from sharedmask.errors import WorkerError
from sharedmask.records import dataclass
from sharedmask.storage.segment import Attachment, Shared, attach
from sharedmask.system import platform
from sharedmask.system.platform import is_readable
from sharedmask.system.process import boot_id
from sharedmask.workers import generators, idle, streams
from sharedmask.workers.failure import Failure, dumps
from sharedmask.workers.packing import loads
from sharedmask.workers.surroundings import Entered
from sharedmask.workers.variables import taken_over

PATIENCE = 0.005
"""Seconds: what takes no longer travels together."""
_REUSED_BYTES = 31 * 2**20  # of an array, at most: malloc keeps none of 32 MiB or more
_LARGE_BYTES = 64 * 1024  # of an answer that travels alone
_REST_SECONDS = 0.05  # without a job, after which what was freed is given back
_HOLD_SECONDS = 1.0  # without a job, after which an image is held no longer

LET_GO = b""
"""The answer of who was told to let go, which no item has."""

Kernel = Callable[..., Any]
Item = tuple[Any, ...]


@dataclass(frozen=True)
class Said:
    """What a kernel warned of, and where."""

    category: type[Warning]
    text: str
    filename: str
    lineno: int

    @classmethod
    def of(cls, caught: warnings.WarningMessage) -> "Said":
        return cls(caught.category, str(caught.message), caught.filename, caught.lineno)


class Answer(NamedTuple):
    """What a kernel gave for an item."""

    value: Any = None
    seconds: float = 0.0
    """That the kernel took."""
    failure: Failure | None = None
    said: tuple[Said, ...] = ()
    drawn: Set[generators.Name] = frozenset()
    """The generators that it drew from, if none of the items before did here."""


Plain = tuple[Any, float]
"""The value and the seconds of an answer that has nothing else; an array by its shape, dtype and bytes."""
_NUMBERS = frozenset({int, float, complex, bool, type(None), np.bool_, np.float32, np.float64})

_NOTHING = frozenset[generators.Name]()


def rehearse() -> None:
    """Find out and import once for all, before they are forked, what each would at its first job."""
    platform.can_share()
    boot_id()
    # By the first large one that is freed malloc learns to use memory again, and not to return it each time.
    np.empty(_REUSED_BYTES, np.uint8)
    generators.reseed()  # when all is imported: whose each module is


def work(pipe: Connection, entered: Entered) -> None:
    """The life of a worker, which begins in the surroundings ``entered`` by what it was forked from."""
    multiprocessing.current_process().daemon = True  # it may be killed, so it starts no processes
    generators.reseed()
    with contextlib.suppress(RuntimeError):  # no more threads: the end is noticed between items
        _thread.start_new_thread(_leave_with_caller, (pipe,))  # not one of those that can be seen
    worker = _Worker(entered)
    came_along: list[bytes] = []
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            payload = came_along.pop() if came_along else pipe.recv_bytes()
            try:
                kind, *message = pickle.loads(payload)
                del payload  # it may be as large as what is in it
            except Exception as error:  # of items, as the rest is ours
                _send(pipe, [dumps(tuple(Answer(failure=Failure(error))))])
                continue
            if kind == "job":
                came_along.append(message.pop())
                worker.begin(*message)
                continue
            if kind == "let go":
                worker.let_go()
                pipe.send_bytes(LET_GO)
                _rest(pipe, worker)
                continue
            is_end = message.pop()
            if kind == "items":
                worker.answer_all(pipe, message.pop())
            if is_end:
                worker.end()
                _rest(pipe, worker)


def _rest(pipe: Connection, worker: "_Worker") -> None:
    """Give back what is not needed, little by little, until somebody asks for something."""
    if not is_readable(pipe, _REST_SECONDS):
        platform.trim_heap()
        if not is_readable(pipe, _HOLD_SECONDS):
            worker.let_go()


def _leave_with_caller(pipe: Connection) -> None:
    poll = select.poll()
    poll.register(pipe, 0)  # which tells of the end alone
    poll.poll()
    os._exit(1)


class _Worker:
    """One job after the other, each in its caller's surroundings."""

    def __init__(self, entered: Entered) -> None:
        self._entered = entered
        self._kernel: Kernel = len
        self._arguments: Item = ()
        self._images: list[Attachment] = []
        self._is_users = False
        """Whether anything of it is the user's, and not a library's or ours."""
        self._streams: streams.ItemStreams | None = None
        self._drawn = set[generators.Name]()
        self._taken_over = contextlib.ExitStack()

    def begin(
        self, payload: bytes, surroundings: bytes | None, roots: Mapping[generators.Name, generators.Root]
    ) -> None:
        """Receive a job, and its caller's surroundings unless they are entered already."""
        try:
            if surroundings is None:
                self._entered.require()
            else:
                self._entered.enter(surroundings)
            (kernel, arguments), held, values = loads(payload)
            self._is_users = values is not None
            if values:
                self._taken_over.enter_context(taken_over(values))
            self._images = [one for one in map(_image, arguments) if one is not None]
            self._kernel, self._arguments = kernel, tuple(map(resolved, arguments))
            if roots:
                self._streams = streams.ItemStreams(roots, held)
        except Exception as error:
            # A job that cannot be received fails at its first item, where somebody waits for an answer.
            self._kernel = _Failing(error)

    def answer_all(self, pipe: Connection, items: Sequence[tuple[Item, int]]) -> None:
        """Those that are there after a moment, in one message."""
        ready, since = list[bytes | Plain](), time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            for item, number in items:
                ready.append(answer := self._answer(item, number, caught))
                is_large = isinstance(answer, bytes) and len(answer) > _LARGE_BYTES
                if is_large or time.monotonic() - since > PATIENCE:
                    _send(pipe, ready)
                    ready, since = [], time.monotonic()
        _send(pipe, ready)

    def _answer(self, item: Item, number: int, caught: list[warnings.WarningMessage]) -> bytes | Plain:
        """What the kernel makes of an item, as it travels."""
        known, begun = len(self._drawn), time.monotonic()
        value, failure = None, None
        try:
            value = self._call(item, number)
        except BaseException as error:
            failure = Failure(error)
        seconds = time.monotonic() - begun
        drawn = self._drawn if len(self._drawn) > known else _NOTHING
        if not (failure or caught or drawn) and (plain := _plain(value, seconds)) is not None:
            return plain
        said = tuple(map(Said.of, caught))
        caught.clear()
        try:
            # Without its type, which would be looked up each time.
            return dumps(tuple(Answer(value, seconds, failure, said, drawn)))
        except Exception as error:
            unsent = WorkerError(f"the answer cannot be sent back: {error}")
            return dumps(tuple(Answer(failure=Failure(unsent))))

    def _call(self, item: Item, number: int) -> Any:
        if self._streams is None:
            return self._kernel(*self._arguments, *item)
        with self._streams.item(number, self._drawn):
            return self._kernel(*self._arguments, *item)

    def end(self) -> None:
        """Hold nothing of the job; what a function of the user's changed here is its caller's again."""
        if self._is_users:
            self._entered.restore()
        self._drop()

    def let_go(self) -> None:
        """Hold no image any more, and nothing of what many items had in common."""
        self._images = []
        idle.let_go()

    def _drop(self) -> None:
        self._taken_over.close()
        self._kernel, self._arguments, self._is_users = len, (), False
        self._streams, self._drawn = None, set()


def _plain(value: Any, seconds: float) -> Plain | None:
    """Of an answer that nothing can be wrong with: packed with others it takes a third of the time.

    An array as it is now: what its function does with it later is another item's.
    """
    if type(value) in _NUMBERS:
        return value, seconds
    if type(value) is not np.ndarray or value.nbytes > _LARGE_BYTES:
        return None
    if not value.flags.carray or value.dtype.kind not in "biufc" or value.dtype.metadata is not None:
        return None
    return (value.shape, value.dtype, value.tobytes()), seconds


def _send(pipe: Connection, answers: list[bytes | Plain]) -> None:
    """A single one that is packed already as it is: it may be large."""
    if not answers:
        return
    is_packed = len(answers) == 1 and isinstance(answers[0], bytes)
    pipe.send_bytes(answers[0] if is_packed else pickle.dumps(answers, pickle.HIGHEST_PROTOCOL))  # type: ignore[arg-type]


def received(payload: bytes) -> list[Answer]:
    """What :func:`_send` sent."""
    message = pickle.loads(payload)
    del payload  # it may be as large as what is in it
    return list(map(_unpacked, message)) if isinstance(message, list) else [Answer(*message)]


def _unpacked(answer: bytes | Plain) -> Answer:
    if isinstance(answer, bytes):
        return Answer(*pickle.loads(answer))
    value, seconds = answer
    if type(value) is tuple:
        shape, dtype, content = value
        value = np.ndarray(shape, dtype, bytearray(content))
    return Answer(value, seconds)


def _image(argument: Any) -> Attachment | None:
    """Where an image in memory is attached, if that is what is given: a file is its owner's to remove."""
    if not isinstance(argument, Shared) or argument.writable:
        return None
    found = attach(argument.handle)
    return found if found.file is None else None


def resolved(argument: Any) -> Any:
    """What a kernel gets for an argument: of a shared array the array."""
    if isinstance(argument, Shared):
        return attach(argument.handle, writable=argument.writable).arrays[argument.name]
    return argument


@dataclass(frozen=True)
class _Failing:
    error: Exception

    def __call__(self, *_: object) -> None:
        raise self.error
