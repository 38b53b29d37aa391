"""Threads of the caller that work on items, with the interface of worker processes.

Covers: who takes which item, telling of answers, the first error. Does not cover: starting threads
(``system.threads``), processes (``pool``), what kernels do (``compute.kernels``).
"""

import contextlib
import importlib
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, TypedDict, Unpack

from sharedmask.system.process import Caller, at_a_time
from sharedmask.system.threads import Threads
from sharedmask.workers.generators import global_generators, kept
from sharedmask.workers.streams import Streams
from sharedmask.workers.worker import Item, Kernel

OnDone = Callable[[int, Any], None]
Done = Callable[[int, Any], Any]


class Options(TypedDict, total=False):
    """How items are worked on, whoever does it."""

    on_done: OnDone | None
    """Called here with the number of an item and its answer, as answers come."""
    preload: Sequence[str]
    """Modules that the workers' template imports once for all."""
    streams: Streams | None
    """Each item has random numbers of its own."""


def run_threads(
    kernel: Kernel, arguments: Item, items: Sequence[Item], n_jobs: int, **options: Unpack[Options]
) -> list[Any]:
    """Call ``kernel(*arguments, *item)`` for each item on threads of the caller; answers in order.

    Threads have their generators in common: several draw from the caller's as it comes, unless
    ``streams`` are given, which then go one after the other.
    """
    n_threads = at_a_time(min(n_jobs, len(items)))
    done, streams = checked(options.get("on_done")), options.get("streams")
    _import(options.get("preload", ()))
    if n_threads <= 1 or (streams is not None and streams.are_given):
        return _run_here(partial(kernel, *arguments), items, done, streams)
    return _Together(partial(kernel, *arguments), items, done).run(n_threads)


class _Together:
    """Items that threads take one after the other, the caller's among them: who waits has to be woken."""

    def __init__(self, call: Kernel, items: Sequence[Item], done: Done) -> None:
        self._call, self._done = call, done
        self._waiting = deque(enumerate(items))
        self._ended: list[tuple[Any, BaseException | None] | None] = [None] * len(items)
        self._answers: list[Any] = []

    def run(self, n_threads: int) -> list[Any]:
        with Threads(n_threads - 1, thread_name_prefix="sharedmask") as threads:
            try:
                others = [threads.submit(copy_context().run, self._work) for _ in range(n_threads - 1)]
                self._work(self._tell)
                for other in others:
                    other.result()
                self._tell()
            finally:
                self._waiting.clear()
        return self._answers

    def _work(self, after: Callable[[], None] = lambda: None) -> None:
        """Work on what nobody has taken yet, until something fails."""
        while (taken := self._take()) is not None:
            number, item = taken
            self._ended[number] = self._attempt(item)
            after()

    def _take(self) -> tuple[int, Item] | None:
        with contextlib.suppress(IndexError):  # none is left
            return self._waiting.popleft()
        return None

    def _attempt(self, item: Item) -> tuple[Any, BaseException | None]:
        try:
            # Each sees what a thread of the caller's own would: context variables, NumPy's errors.
            return copy_context().run(self._call, *item), None
        except BaseException as error:
            self._waiting.clear()
            return None, error

    def _tell(self) -> None:
        """Tell of those that have ended, in their order; raise what the first that failed has raised."""
        for number in range(len(self._answers), len(self._ended)):
            if (ended := self._ended[number]) is None:
                return
            self._ended[number], (value, error) = None, ended
            if error is not None:
                raise error
            self._answers.append(self._done(number, value))


def _import(names: Sequence[str]) -> None:
    """What items need, before the first of them has its random numbers: imports may draw."""
    missing = [name for name in names if name not in sys.modules]
    if missing:
        with kept(global_generators().values()), contextlib.suppress(ImportError):  # who needs it says so
            for name in missing:
                importlib.import_module(name)


def _run_here(call: Kernel, items: Sequence[Item], done: Done, streams: Streams | None) -> list[Any]:
    answers = []
    with contextlib.nullcontext() if streams is None else streams.here(len(items)) as stream:
        for number, item in enumerate(items):
            with contextlib.nullcontext() if stream is None else stream(number):
                value = call(*item)
            answers.append(done(number, value))
    return answers


def checked(on_done: OnDone | None) -> Done:
    """``on_done``, which may fork, as a function that gives back the value."""
    caller = Caller()

    def done(number: int, value: Any) -> Any:
        if on_done is not None:
            on_done(number, value)
            caller.check()
        return value

    return done
