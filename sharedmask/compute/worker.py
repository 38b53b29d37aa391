"""Workers: the life of a process that does jobs.

Covers: receiving a job, calling its kernel for each item, what is answered. Does not cover: where workers
come from (``template``), who gives them work (``pool``), what kernels do (``kernels``).

::

    job   kernel and the arguments that all items share; Shared ones are attached on arrival
    item  one call of the kernel; its answer is the value or its failure, and what was warned of
    end   the arguments are dropped, so an idle worker holds no image

A worker exits when its pipe ends, whatever it is doing: its caller is gone, or has no use for it.
"""

import contextlib
import multiprocessing
import os
import pickle
import select
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from sharedmask.compute.failure import Failure, dumps
from sharedmask.errors import WorkerError
from sharedmask.storage.segment import Shared, attach

Kernel = Callable[..., Any]
Item = tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """What a kernel gave for an item."""

    value: Any = None
    failure: Failure | None = None
    said: tuple[tuple[type[Warning], str], ...] = ()
    """What it warned of."""


def work(pipe: Connection) -> None:
    """The life of a worker."""
    multiprocessing.current_process().daemon = True  # it may be killed, so it starts no processes
    threading.Thread(target=_leave_with_caller, args=(pipe,), daemon=True).start()
    kernel: Kernel | None = None
    arguments: Item = ()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            kind, *message = pipe.recv()
            if kind == "item":
                assert kernel is not None
                pipe.send_bytes(_answer(kernel, arguments, message[0]))
                continue
            kernel, arguments = None, ()
            if kind == "job":
                kernel, arguments = _receive_job(message[0])


def _leave_with_caller(pipe: Connection) -> None:
    poll = select.poll()
    poll.register(pipe, 0)  # which tells of the end alone
    poll.poll()
    os._exit(1)


def _receive_job(payload: bytes) -> tuple[Kernel, Item]:
    try:
        kernel, arguments = pickle.loads(payload)
        return kernel, tuple(_resolved(argument) for argument in arguments)
    except Exception as error:
        # A job that cannot be received fails at its first item, where somebody waits for an answer.
        return _Failing(error), ()


def _resolved(argument: Any) -> Any:
    if isinstance(argument, Shared):
        return attach(argument.handle, writable=argument.writable).arrays[argument.name]
    return argument


@dataclass(frozen=True)
class _Failing:
    error: Exception

    def __call__(self, *_: object) -> None:
        raise self.error


def _answer(kernel: Kernel, arguments: Item, item: Item) -> bytes:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = Answer(kernel(*arguments, *item))
        except BaseException as error:
            answer = Answer(failure=Failure(error))
    said = tuple((warning.category, str(warning.message)) for warning in caught)
    try:
        return dumps(Answer(answer.value, answer.failure, said))
    except Exception as error:
        unsent = WorkerError(f"the answer cannot be sent back: {error}")
        return dumps(Answer(failure=Failure(unsent)))
