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


class Segments:
    """Call it: the names that exist now, of those recorded in ``registry`` or made here since."""

    def __init__(self, registry):
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if _libc.inotify_add_watch(self._fd, os.fsencode(registry), _CREATED | _MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), f"{registry} cannot be watched")
        self._first = len(_made_here)
        self._recorded = set()

    def __call__(self):
        self._recorded.update(segment_name(name.split(".")[0]) for name in self._appeared())
        return {name for name in self._recorded | set(_made_here[self._first :]) if exists(name)}

    def _appeared(self):
        while True:
            try:
                events = os.read(self._fd, 2**16)
            except BlockingIOError:
                return
            while events:
                length = _EVENT.unpack_from(events)[3]
                yield events[_EVENT.size :][:length].rstrip(b"\0").decode()
                events = events[_EVENT.size + length :]

    def close(self):
        os.close(self._fd)


def exists(name):
    return (SHM / name).exists()
