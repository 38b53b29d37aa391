"""Threads, where only so many can be started.

Covers: an executor whose work is done however many there are. Does not cover: what is done.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


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
        except RuntimeError:
            if not self._threads:
                raise
