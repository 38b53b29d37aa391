"""The named segments of one test, whoever else uses this machine meanwhile.

A segment has no mark of its own that says which session made it. Two witnesses do: a record is
linked in the registry before its segment exists, whichever process makes it, and the kernel tells
(inotify) of every name that appeared there, also of those that are gone; and this process knows
which names it opened itself, with a record or without.
"""

import _posixshmem
import ctypes
import os
import struct
from contextlib import contextmanager
from pathlib import Path

from sharedmask.storage.segment import segment_name

SHM = Path("/dev/shm")

_libc = ctypes.CDLL(None, use_errno=True)
_CREATED, _MOVED_TO = 0x100, 0x80
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows

_made_here = []
_shm_open = _posixshmem.shm_open


def _remembering(name, flags, mode=0o777):
    if flags & os.O_CREAT:
        _made_here.append(name.lstrip("/"))
    return _shm_open(name, flags, mode)


_posixshmem.shm_open = _remembering


class Watch:
    """Names that appear in a directory; one for all tests, since the kernel takes its time to end it."""

    def __init__(self):
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    @contextmanager
    def of(self, folder):
        """A function that gives the names that appeared since it was called last."""
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(folder), _CREATED | _MOVED_TO)
        if watch < 0:
            raise OSError(ctypes.get_errno(), f"{folder} cannot be watched")
        try:
            yield lambda: [name for of, name in self._events() if of == watch]
        finally:
            _libc.inotify_rm_watch(self._fd, watch)
            for _ in self._events():
                pass  # they are nobody's

    def _events(self):
        while True:
            try:
                events = os.read(self._fd, 2**16)
            except BlockingIOError:
                return
            while events:
                watch, _, _, length = _EVENT.unpack_from(events)
                yield watch, events[_EVENT.size :][:length].rstrip(b"\0").decode()
                events = events[_EVENT.size + length :]

    def close(self):
        os.close(self._fd)


class Segments:
    """Call it: the names that exist now, of those whose records ``appeared`` or that were made here since."""

    def __init__(self, appeared):
        self._appeared = appeared
        self._first = len(_made_here)
        self._recorded = set()

    def __call__(self):
        self._recorded.update(segment_name(name.split(".")[0]) for name in self._appeared())
        return {name for name in self._recorded | set(_made_here[self._first :]) if exists(name)}


def exists(name):
    return (SHM / name).exists()
