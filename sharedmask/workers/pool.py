"""Persistent worker processes.

Covers: keeping workers, giving them a kernel and its items, noticing their death. Does not cover:
what a worker does (``worker``) and comes from (``template``), threads with the same interface (``threaded``),
what kernels do (``compute.kernels``), whether processes are worth it (``plan``).
"""

import atexit
import contextlib
import logging
import pickle
import select
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import connection, current_process
from typing import Any, Unpack

import numpy as np

from sharedmask.errors import WorkerError
from sharedmask.system import platform
from sharedmask.system.platform import rights
from sharedmask.system.process import Lock, at_fork
from sharedmask.workers import idle, modules
from sharedmask.workers.failure import dumps_by_value
from sharedmask.workers.generators import Name, Root
from sharedmask.workers.packing import dumps
from sharedmask.workers.streams import Streams
from sharedmask.workers.surroundings import Surroundings
from sharedmask.workers.template import CannotStartError, Child, Template, ended
from sharedmask.workers.threaded import OnDone, Options, checked, run_threads
from sharedmask.workers.worker import LET_GO, PATIENCE, Answer, Item, Kernel, Said, received, resolved

_log = logging.getLogger(__name__)

_PRELOAD = ("numpy", "cloudpickle", "sharedmask.compute.kernels", "sharedmask.compute.reduction")
_MANY = 8  # items for each worker
_FIRST = 32  # part of a worker's share that goes first, when nobody knows how long items take
_FIRST_MOST = 8  # items
_LEAST_SECONDS = 0.0005  # of work, where there is so much left: a message has its own price
_MESSAGE_BYTES = 16 * 1024  # of items that go together: what waits in a pipe keeps nobody from answering
_LOOK_SECONDS = 1.0  # between looks at workers that say nothing
_LET_GO_SECONDS = 1.0  # for workers to do so, which takes much less unless they are stopped
_PLAIN = frozenset({int, float, bool, str, bytes, type(None)})
_END = pickle.dumps(("end", True))
_LET_GO = pickle.dumps(("let go",))
_packed_plainly = partial(pickle.dumps, protocol=pickle.HIGHEST_PROTOCOL)
_UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError, NotImplementedError, RuntimeError)


class _Worker:
    """A process and the pipe to it."""

    def __init__(
        self, pipe: connection.Connection, process: Child, generation: int, surroundings: Surroundings
    ) -> None:
        self.pipe, self.process = pipe, process
        self.generation = generation
        """Of the user's modules: those that it may have imported."""
        self._surroundings = surroundings
        self._job: tuple[bytes, Surroundings, Mapping[Name, Root]] | None = None
        """That it is told of with its first items: each message wakes it."""
        self._knows_end = True
        self._may_hold = False

    def begin(self, payload: bytes, surroundings: Surroundings, roots: Mapping[Name, Root]) -> None:
        self._job, self._may_hold = (payload, surroundings, roots), True

    def give(self, items: bytes, are_last: bool) -> None:
        if self._job is not None:
            payload, surroundings, roots = self._job
            packed = None if surroundings is self._surroundings else surroundings.packed
            items = pickle.dumps(("job", payload, packed, roots, items))
            self._job, self._surroundings = None, surroundings
        self._knows_end = are_last
        self.send(items)

    def end(self) -> None:
        if not self._knows_end:
            self.send(_END)

    def let_go(self) -> bool:
        """Have it hold no image; whether it had to be told."""
        was_told, self._may_hold = self._may_hold, False
        if was_told:
            self.send(_LET_GO)
        return was_told

    def has_let_go(self, seconds: float) -> None:
        """Wait until it has, but no longer: what a stopped one says later is no answer to any item."""
        with contextlib.suppress(EOFError, ConnectionError):
            if self.pipe.poll(seconds):
                self.pipe.recv_bytes()

    def send(self, message: bytes) -> None:
        # A worker that died is noticed where its answer is awaited.
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self.pipe.send_bytes(message)

    def receive(self) -> list[Answer]:
        try:
            payload = self.pipe.recv_bytes()
        except (EOFError, ConnectionError):
            raise self.death() from None
        if payload == LET_GO:
            return []
        try:
            return received(payload)
        except Exception as error:
            raise WorkerError(f"the answer cannot be received: {error}") from error

    def is_silent(self) -> bool:
        """Whether it died and left nothing to receive."""
        return not self.process.is_alive() and not self.pipe.poll()

    def death(self) -> WorkerError:
        how = ended(self.process.wait())
        return WorkerError(f"worker process {self.process.pid} {how}; the next call starts new workers")

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()

    def abandon(self) -> None:
        """In a forked child: it is the parent's, and must notice the parent's end."""
        self.process.abandon()
        self.pipe.close()


class _Pool:
    """Workers forked from one template; leased to one job at a time."""

    def __init__(self, preload: Sequence[str]) -> None:
        self._template = Template((*_PRELOAD, *preload))
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._lock = Lock()

    @contextlib.contextmanager
    def lease(self, count: int, generation: int, surroundings: Surroundings) -> Iterator[list[_Worker]]:
        """``count`` workers; those not idle again at the end, for whatever reason, are stopped."""
        with self._lock:
            workers, self._idle = self._idle[:count], self._idle[count:]
        try:
            workers = self._fit(workers, generation)
            self._fill_up(workers, count, generation, surroundings)
            yield workers
        except BaseException:
            # Some are still at work on an output that nobody will read.
            self._stop(workers)
            raise
        with self._lock:
            self._idle = [*workers, *self._idle]  # the last at work go first; others stay small

    def _fill_up(
        self, workers: list[_Worker], count: int, generation: int, surroundings: Surroundings
    ) -> None:
        """Start what is missing of ``count``; where only some can be, those do the work."""
        if len(workers) == count:
            return
        try:
            for pipe, process in self._template.fork(count - len(workers), surroundings):
                workers.append(_Worker(pipe, process, generation, surroundings))
                self._all.add(workers[-1])
        except CannotStartError as error:
            if not workers:
                raise
            _log.warning("%s; %d of %d workers do the work", str(error), len(workers), count)

    def _fit(self, workers: list[_Worker], generation: int) -> list[_Worker]:
        """Those that live and have no old modules."""
        fit = [one for one in workers if one.generation == generation and one.process.is_alive()]
        if len(fit) < len(workers):
            self._stop([worker for worker in workers if worker not in fit])
        return fit

    def _stop(self, workers: list[_Worker]) -> None:
        for worker in workers:
            self._all.discard(worker)
            worker.stop()

    def begin(self) -> None:
        self._template.begin()

    def let_go(self) -> None:
        with self._lock:
            told = [worker for worker in self._idle if worker.let_go()]
            end = time.monotonic() + _LET_GO_SECONDS
            for worker in told:
                worker.has_let_go(max(end - time.monotonic(), 0.0))

    def stop(self) -> None:
        """End those that are idle."""
        with self._lock:
            workers, self._idle = self._idle, []
        self._stop(workers)

    def end(self) -> None:
        """End all, and what they come from."""
        self.stop()
        self._template.stop()

    def abandon(self) -> None:
        """In a forked child, where all is the parent's and must notice the parent's end."""
        for worker in self._all:
            worker.abandon()
        self._template.abandon()


class _Caller:
    """This process as workers are to see it."""

    def __init__(self) -> None:
        self._surroundings: Surroundings | None = None
        self._rights = rights()
        self._n_rights = 0

    def surroundings(self) -> Surroundings:
        """Those of now; the same object as long as they are the same."""
        before, here = self._surroundings, Surroundings.here()
        if before is not None and before == here:
            return before
        self._surroundings = here
        return here

    def generation(self) -> int:
        """Of which workers are, when what travels has been packed."""
        before, self._rights = self._rights, rights()
        self._n_rights += before != self._rights
        return modules.known.generation + self._n_rights


_caller = _Caller()
_pools: dict[tuple[str, ...], _Pool] = {}


def _abandon_pools() -> None:
    pools = list(_pools.values())
    _pools.clear()
    for pool in pools:
        pool.abandon()


@atexit.register
def _end_pools() -> None:
    for pool in list(_pools.values()):
        pool.end()


at_fork(after_in_child=_abandon_pools)


def begin(preload: Sequence[str]) -> None:
    """Start what workers with these modules come from, and wait for nothing."""
    with contextlib.suppress(CannotStartError):  # the call that needs it says so
        _pool(preload).begin()


def _pool(preload: Sequence[str]) -> _Pool:
    key = tuple(preload)
    return _pools.get(key) or _pools.setdefault(key, _Pool(preload))


def let_go() -> None:
    """Have idle workers hold no image any more."""
    for pool in list(_pools.values()):
        pool.let_go()


idle.let_go_by(let_go)


def shutdown() -> None:
    """Stop all idle workers; the next call starts new ones."""
    for pool in list(_pools.values()):
        pool.stop()


def can_start_processes() -> bool:
    """Whether processes are started unasked: not by a daemonic one, which is somebody's worker."""
    return platform.can_fork() and not current_process().daemon


def run_processes(
    kernel: Kernel, arguments: Item, items: Sequence[Item], n_jobs: int, **options: Unpack[Options]
) -> list[Any]:
    """Call ``kernel(*arguments, *item)`` for each item in worker processes; answers in order.

    ``Shared`` arguments arrive as arrays. Where no process can be started, or the kernel and its arguments
    cannot be sent to one, threads of this one do the work, and the log says why.

    Raises
    ------
    WorkerError
        A worker died. What a kernel raises is raised here, with the worker's traceback as cause.
    """
    if not platform.can_fork():
        return run_threads(kernel, arguments, items, n_jobs, **options)
    pool, streams = _pool(options.get("preload", ())), options.get("streams")
    surroundings, are_plain = _caller.surroundings(), all(map(_is_plain, items))
    try:
        payload = _packed((kernel, arguments), streams, with_users=not are_plain)
        with pool.lease(min(n_jobs, len(items)), _caller.generation(), surroundings) as workers:
            for worker in workers:
                worker.begin(payload, surroundings, {} if streams is None else streams.roots)
            pack = _packed_plainly if are_plain else dumps_by_value
            answers = _Dispatch(workers, items, pack, options.get("on_done"), streams).run()
            for worker in workers:
                worker.end()
        return answers
    except (CannotStartError, _CannotTravelError) as error:
        _log.warning("%s; threads of this process do the work", str(error))
        here = tuple(map(resolved, arguments))
        # Several threads would draw random numbers as it comes.
        return run_threads(kernel, here, items, n_jobs if streams is None else 1, **options)


class _CannotTravelError(WorkerError):
    """What a function holds can be nowhere but here: a lock, an open file, a generator."""


def _packed(job: tuple[Kernel, Item], streams: Streams | None, with_users: bool) -> bytes:
    try:
        return dumps(job, with_users)[0] if streams is None else streams.dumps(job)
    except _UNPICKLABLE as error:
        raise _CannotTravelError(f"the function cannot be sent to workers: {error}") from error


def _is_plain(item: Item) -> bool:
    """Whether it travels as any pickle does, and nothing in it is the user's."""
    return all(type(one) in _PLAIN or (type(one) is np.ndarray and not one.dtype.hasobject) for one in item)


class _Dispatch:
    """Gives items to workers, quick ones several at a time, and collects the answers."""

    def __init__(
        self,
        workers: list[_Worker],
        items: Sequence[Item],
        pack: Callable[[object], bytes],
        on_done: OnDone | None,
        streams: Streams | None,
    ) -> None:
        self._workers = workers
        self._items, self._pack = items, pack
        self._on_done = None if on_done is None else checked(on_done)
        self._drawn: set[Name] = set() if streams is None else streams.drawn
        self._numbers = range(len(items)) if streams is None else streams.numbers(len(items))
        self._next = 0
        self._packed: tuple[range, bytes] | None = None
        self._busy = {worker.pipe.fileno(): (worker, deque[int]()) for worker in workers}
        self._poll = select.poll()
        for number in self._busy:
            self._poll.register(number, select.POLLIN)
        self._are_many = len(items) > _MANY * len(workers)
        self._seconds: float | None = None
        """Of an item, as far as is known."""
        self._bytes = _MESSAGE_BYTES / _FIRST_MOST
        """Of an item."""
        self._answers: list[Any] = [None] * len(items)
        self._said: set[Said] = set()

    def run(self) -> list[Any]:
        for worker, given in self._busy.values():
            self._give(worker, given)
        while self._busy:
            for number, _ in self._ready():
                worker, given = self._busy[number]
                answers = worker.receive()
                for answer in answers:
                    self._take(given.popleft(), answer)
                self._learn(answers)
                self._give(worker, given)
                if not given:
                    del self._busy[number]
                    self._poll.unregister(number)
        return self._answers

    def _ready(self) -> Iterable[tuple[int, int]]:
        """Pipes that have an answer, or have ended, by their descriptors."""
        while not (ready := self._poll.poll(_LOOK_SECONDS * 1000)):
            # A forked child of ours may hold the other end of a pipe, which then does not end.
            for worker, _ in self._busy.values():
                if worker.is_silent():
                    raise worker.death()
        return ready

    def _give(self, worker: _Worker, given: deque[int]) -> None:
        """Where there are many, as much again lies ready, so that no worker waits for us."""
        while (packed := self._packed or self._next_packed()) is not None:
            numbers, message = packed
            self._packed = packed
            # What does not fit in a pipe would wait for a worker that waits for us to take its answer.
            fits = self._are_many and len(given) <= len(numbers) and len(message) <= _MESSAGE_BYTES
            if given and not fits:
                return
            given.extend(numbers)
            worker.give(message, numbers.stop == len(self._items))
            self._packed = None

    def _next_packed(self) -> tuple[range, bytes] | None:
        """The next items as they travel; quick ones go together, a part of what is left at most."""
        left = len(self._items) - self._next
        if not left:
            return None
        share = left / len(self._workers)
        if self._seconds is None:
            together = share / _FIRST
        else:
            quick = PATIENCE / max(self._seconds, 1e-6)
            together = min(quick, max(share / 2, _LEAST_SECONDS * quick / PATIENCE))
        together = int(min(together, _MESSAGE_BYTES / self._bytes)) if self._are_many else 1
        numbers = range(self._next, self._next + min(left, max(1, together)))
        items = [(self._items[n], self._numbers[n]) for n in numbers]
        try:
            message = self._pack(("items", items, numbers.stop == len(self._items)))
        except _UNPICKLABLE as error:
            raise WorkerError(
                f"what is worked on cannot be sent to workers, as n_jobs asks: {error}"
            ) from error
        self._next, self._bytes = numbers.stop, len(message) / len(numbers)
        return numbers, message

    def _take(self, number: int, answer: Answer) -> None:
        value, _, failure, said, drawn = answer
        for one in said:
            if one not in self._said:
                self._said.add(one)
                warnings.warn_explicit(one.text, one.category, one.filename, one.lineno)
        if drawn:
            self._drawn |= drawn
        if failure is not None:
            raise failure.error
        self._answers[number] = value
        if self._on_done is not None:
            self._on_done(number, value)

    def _learn(self, answers: list[Answer]) -> None:
        """How long items take."""
        if answers:
            mean = sum(answer.seconds for answer in answers) / len(answers)
            self._seconds = mean if self._seconds is None else (self._seconds + mean) / 2
