"""Files that others wrote: opened only if they are files, and read whole only if they are small.

Covers: pipes and devices in the place of a file, the size of texts, JSON of any depth. Does not cover: what
is read (``settings``, ``bids``, ``lut`` and others), images (``codecs``), our own files (``files``).
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from io import FileIO
from typing import Any

_TEXT_BYTES = 64 * 2**20


def opened_regular(path: str | os.PathLike[str]) -> FileIO:
    """The file, to be read.

    Raises
    ------
    OSError
        Naming it: it is a pipe or a device, which may have no end, or never begin.
    """
    file = _Named(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, which is no file", os.fspath(path))
    return file


class _Named(FileIO):
    """A file whose errors, such as that of a failing disk, name it."""

    def readinto(self, buffer: Any, /) -> Any:
        with self._named():
            return super().readinto(buffer)

    def read(self, size: int | None = -1, /) -> Any:
        with self._named():
            return super().read(-1 if size is None else size)

    def readall(self) -> Any:
        with self._named():
            return super().readall()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = error.filename or os.fspath(self.name)
            raise


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """What a file of text holds.

    Raises
    ------
    OSError
        Naming the file: it is none, or larger than any that people write.
    """
    with opened_regular(path) as file:
        content = file.read(min(os.fstat(file.fileno()).st_size, _TEXT_BYTES) + 1)
    if len(content) > _TEXT_BYTES:
        raise OSError(errno.EFBIG, f"more than {_TEXT_BYTES >> 20} MiB of text", os.fspath(path))
    return content


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """The same as text; UnicodeDecodeError if it is none."""
    return read_bytes(path).decode(encoding)


def read_json(path: str | os.PathLike[str], encoding: str = "utf-8") -> dict[str, Any]:
    """The JSON object in a file; ValueError if it holds anything else."""
    try:
        found = json.loads(read_text(path, encoding))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object was expected, not {type(found).__name__}")
    return found
