"""Threads of this process, where only so many can be started.

Covers: starting one, an executor whose work is done however many there are. Does not cover: locks
(``process``), worker processes.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sharedmask.errors import WorkerError
from sharedmask.system.limits import explained

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class CannotStartThreadError(WorkerError):
    """No thread can be started: the system, or a control group, allows no more."""

    def __init__(self) -> None:
        refused = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        super().__init__(f"no thread can be started: {explained(refused)}")


def start(thread: threading.Thread) -> None:
    """Start it.

    Raises CannotStartThreadError.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise CannotStartThreadError from error


class Threads(ThreadPoolExecutor):
    """As many as can be started; where none can, or when the program ends, who submits does the work."""

    _alone = False

    def submit(self, function: Callable[..., _T], /, *arguments: Any, **named: Any) -> "Future[_T]":
        if not self._alone:
            try:
                return super().submit(function, *arguments, **named)
            except RuntimeError as error:
                if self._shutdown:
                    raise
                self._alone = True  # what waits in the queue stays there
                _log.warning("%s; who asks does the work", str(error))  # who keeps it keeps no frames
        future: Future[_T] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except BaseException as error:
            future.set_exception(error)
        return future

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                raise CannotStartThreadError from error
