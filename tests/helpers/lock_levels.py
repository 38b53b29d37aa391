"""File systems without flock, without locks of ``fcntl``, and where no file can be a lock."""

import errno
import fcntl
import os
from contextlib import ExitStack, contextmanager
from unittest import mock

MISSING = {"flock": (), "fcntl": ("flock",), "files": ("flock", "fcntl"), "none": ("flock", "fcntl", "files")}
"""Of each means by which a file can be locked: those before it, which are missing then."""

_OFD = (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW)


@contextmanager
def only(level, error=errno.ENOLCK):
    """All locks are of that kind in this process."""
    usual, usual_open = fcntl.fcntl, os.open

    def refused(*_):
        raise OSError(error, os.strerror(error))

    def lock(fd, command, *rest):
        return refused() if command in _OFD else usual(fd, command, *rest)

    def opened(path, flags, *rest, **options):
        is_lock = flags & os.O_EXCL and os.fspath(path).endswith(".lock")
        return refused() if is_lock else usual_open(path, flags, *rest, **options)

    calls = {
        "flock": (fcntl, "flock", refused),
        "fcntl": (fcntl, "fcntl", lock),
        "files": (os, "open", opened),
    }
    with ExitStack() as patched:
        for missing in MISSING[level]:
            patched.enter_context(mock.patch.object(*calls[missing]))
        yield
