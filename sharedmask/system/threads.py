"""Threads of this process, where only so many can be started.

Covers: starting one, an executor whose work is done however many there are. Does not cover: locks
(``process``), worker processes.
"""

import errno
import os
import threading

from sharedmask.errors import WorkerError
from sharedmask.remote import threads
from sharedmask.system.limits import explained


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


class Threads(threads.Threads):
    """As many as can be started, which is told; where none can, or when the program ends, none is needed."""

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            raise CannotStartThreadError from error
