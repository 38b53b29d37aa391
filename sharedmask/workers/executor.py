"""Worker processes as an executor of the standard library's kind.

Covers: tasks that wait for a worker, small ones that go to it together. Does not cover: workers themselves
(``pool``), which tasks there are.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from sharedmask.records import dataclass
from sharedmask.system import limits, monitor, process
from sharedmask.system.process import Lock
from sharedmask.system.threads import Threads
from sharedmask.workers import pool
from sharedmask.workers.failure import Failure

_TOGETHER = 16  # small tasks in one message


class Task(Protocol):
    """What a worker is given."""

    @property
    def is_small(self) -> bool:
        """Whether telling a worker of it takes about as long as the work."""

    @property
    def operation(self) -> tuple[str, str, int]:
        """As monitors are told of it: its label, what it does, the bytes it needs."""


class Processes(Threads):
    """An executor of functions of one :class:`Task`: a thread waits for each worker.

    Small tasks that wait go to a worker together, in one message.
    """

    def __init__(self, n_jobs: int, preload: Sequence[str]) -> None:
        super().__init__(n_jobs, "sharedmask-cohort")
        self._n_jobs, self._preload = n_jobs, preload
        self._n_cpus = max(1, process.n_cpus() // n_jobs)
        self._waiting: deque[_Waiting] = deque()
        self._taking = Lock()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        """Have a worker call the function for a task: of others its death is no failure."""
        (task,) = arguments
        waiting = _Waiting(Future(), function, task)
        self._waiting.append(waiting)
        if not task.is_small or len(self._waiting) >= _TOGETHER:
            super().submit(self._work)
        return waiting.future

    def begin(self) -> None:
        """Work on what waits for others to go with: nobody gives more for now."""
        for _ in range(len(self._waiting)):
            super().submit(self._work)

    def _work(self) -> None:
        taken = [one for one in self._take() if one.future.set_running_or_notify_cancel()]
        if len(taken) > 1:
            taken = self._work_together(taken)
        for one in taken:
            try:
                one.future.set_result(self._call(one.function, [one.task]))
            except BaseException as error:
                one.future.set_exception(error)

    def _take(self) -> "list[_Waiting]":
        """The task that has waited longest; of small ones some, or a worker's part of few."""
        with self._taking:
            count, taken = len(self._waiting), list[_Waiting]()
            most = _TOGETHER if count >= _TOGETHER else -(-count // self._n_jobs)
            while self._waiting and len(taken) < most:
                if taken and not (taken[0].task.is_small and self._waiting[0].task.is_small):
                    break
                taken.append(self._waiting.popleft())
            return taken

    def _work_together(self, taken: "list[_Waiting]") -> "list[_Waiting]":
        """Those that nobody knows anything of, since the worker died of one of them: each by itself, then."""
        try:
            answers = self._call(partial(_each, taken[0].function), [one.task for one in taken])
        except Exception:
            return taken
        for one, (value, failure) in zip(taken, answers, strict=True):
            if failure is None:
                one.future.set_result(value)
            else:
                one.future.set_exception(failure.error)
        return []

    def _call(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Any:
        with contextlib.ExitStack() as stack:
            for task in tasks:  # the worker's own monitors tell nobody
                stack.enter_context(monitor.operation(*task.operation))
            alone = partial(_alone, os.getpid(), self._n_cpus, function)
            return pool.run_processes(alone, (), [tuple(tasks)], 1, preload=self._preload)[0]


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A task, and who waits for it."""

    future: Future[Any]
    function: Callable[..., Any]
    task: Task


def _alone(caller: int, n_cpus: int, function: Callable[..., Any], *tasks: Task) -> Any:
    """What the function gives for tasks, in a worker that has so many CPUs for itself.

    Where none can be started, threads of the caller do the work: all of its CPUs are theirs.
    """
    with contextlib.nullcontext() if os.getpid() == caller else process.with_cpus(n_cpus):
        return function(*tasks)


def _each(function: Callable[..., Any], *tasks: Task) -> list[tuple[Any, Failure | None]]:
    """What the function gives for each task, or how it failed."""
    found = list[tuple[Any, Failure | None]]()
    with limits.looked_up():
        for task in tasks:
            try:
                found.append((function(task), None))
            except Exception as error:
                found.append((None, Failure(error)))
    return found
