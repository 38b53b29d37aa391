"""Places of our own: directories that are this user's alone, names that still mean the same file.

Covers: where files that may be large go, opening a private directory, whether a name leads to a
descriptor's file or to nothing, taking a lock or not. Does not cover: what is kept there (``registry``,
``disk``, ``spill``).
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sharedmask.errors import SegmentError, SharedMaskWarning
from sharedmask.system import settings


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


def dangling(path: str | os.PathLike[str]) -> str:
    """What to say of a link to content that is not there; empty of any other name."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return f"is a link to {os.path.realpath(path)}, which is not there: get it with `datalad get {path}`"


def nameless_file(folder: int, mode: int = 0o600) -> int | None:
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=folder)
    except (AttributeError, OSError) as error:
        unsupported = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
        if isinstance(error, OSError) and error.errno not in unsupported:
            raise
        return None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path`` that becomes ``path`` only if all went well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        if settings.current().cleanup_temporary:
            temporary.unlink(missing_ok=True)
        elif temporary.exists():
            warnings.warn(f"left half written: {temporary}", SharedMaskWarning, stacklevel=3)
        raise


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """``facts`` as JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
