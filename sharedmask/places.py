"""Places of our own: directories that are this user's alone, names that still mean the same file.

Covers: where files that may be large go, opening a private directory, whether a name leads to a
descriptor's file, taking a lock or not. Does not cover: what is kept there (``registry``, ``disk``,
``spills``).
"""

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sharedmask import settings
from sharedmask.errors import SegmentError


def spill_folder() -> Path:
    """Where images and frames on disk are: ``$SHAREDMASK_TMPDIR``, else ``$TMPDIR``, else /var/tmp."""
    chosen = settings.current().spill_dir or os.environ.get("TMPDIR")
    usual = Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else Path(tempfile.gettempdir())
    return (Path(chosen) if chosen else usual).absolute()


@contextlib.contextmanager
def private_directory(path: Path, what: str) -> Iterator[int]:
    """A descriptor of the directory ``path``, made if it is missing; ``what`` names it in messages.

    Raises
    ------
    SegmentError
        It cannot be used, or others than this user can.
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SegmentError(f"{what} {path} cannot be used: {error.strerror}") from error
    try:
        facts = os.fstat(fd)
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            mode = stat.S_IMODE(facts.st_mode)
            raise SegmentError(f"{what} {path} must be private: uid {facts.st_uid}, mode {mode:o}")
        yield fd
    finally:
        os.close(fd)


def is_named(folder: int, name: str, fd: int) -> bool:
    """Whether ``name`` in the directory ``folder`` is the file behind ``fd``."""
    try:
        named = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)


def is_free(fd: int) -> bool:
    """Whether nobody holds a lock on the file; if so we hold it now."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
