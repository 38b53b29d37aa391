"""Files that others wrote: opened only if they are files, and read whole only if they are small.

Covers: which files a pattern matches, links to nothing, pipes, devices and pointers in the place of a file,
files on servers, the size of texts, JSON of any depth. Does not cover: what is read (``settings``,
``study.bids``, ``lut`` and others), images (``codecs``), our own files (``files``).
"""

import contextlib
import errno
import glob
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from typing import Any

from sharedmask.errors import MissingFileError
from sharedmask.remote.addresses import url_of
from sharedmask.system import platform

_TEXT_BYTES = 64 * 2**20
_POINTERS = {  # what stands in the place of a content that is elsewhere: whose that is, and what gets it
    b"/annex/objects/": ("git-annex", "datalad get"),
    b"version https://git-lfs": ("Git LFS", "git lfs pull --include"),
}
_POINTER_BYTES = 32 * 2**10  # at most, says git-annex


def matches(text: str) -> list[str]:
    """The files that a pattern matches, sorted; none if it is no pattern, but the name of a file or link.

    Raises MissingFileError: it matches none.
    """
    pattern = os.path.expanduser(text)
    if url_of(text):
        return []
    if not glob.has_magic(text) or os.path.lexists(pattern):
        return []
    if found := sorted(glob.glob(pattern, recursive=True)):
        return found
    raise MissingFileError(f"no file matches {text}")


def dangling(path: str | os.PathLike[str]) -> str:
    """What to say of a link to content that is not there; empty of any other name."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    if os.path.islink(target := os.path.realpath(path)):
        return "is a link that leads back to itself"
    return f"is a link to {target}, which is not there: get it with `datalad get {path}`"


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file, here or on its server."""
    url = url_of(path)
    return os.path.exists(path) if url is None else _servers().exists(url)


def listed(folder: Path) -> list[Path] | None:
    """What is in a folder, sorted; None where its server tells nobody."""
    url = url_of(folder)
    names = os.listdir(folder) if url is None else _servers().listed(url)
    return None if names is None else [folder / name for name in sorted(names)]


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether it is one; of a server, whether it has it."""
    return exists(path) if url_of(path) else os.path.isfile(path)


def opened(path: str | os.PathLike[str]) -> RawIOBase:
    """The file, here or on its server, to be read forward; as :func:`opened_regular`."""
    url = url_of(path)
    return opened_regular(path) if url is None else _servers().RemoteFile(url)


def looked_at(url: str) -> Any:
    """What a server says of an object now."""
    return _servers().look(url)


def seen(url: str) -> Any:
    """What it said when it was last looked at."""
    return _servers().seen(url)


def asked_together(
    needed: str, others: Iterable[str], folders: Iterable[str]
) -> AbstractContextManager[None]:
    """In the block servers are asked for all of these at once."""
    found: AbstractContextManager[None] = _servers().together(needed, others, folders)
    return found


def _servers() -> Any:
    """What reads from them, which few need."""
    from sharedmask.remote import objects

    return objects


def opened_regular(path: str | os.PathLike[str]) -> FileIO:
    """The file, to be read.

    Raises OSError, naming it: it is a pipe or a device, which may have no end, or never begin.
    Raises MissingFileError: there is none, or what git-annex or Git LFS has for content that is elsewhere.
    """
    try:
        file = _Named(path, "rb", opener=lambda name, flags: os.open(name, flags | platform.NOT_WAITING))
    except FileNotFoundError as error:
        raise MissingFileError(f"{os.fsdecode(path)} {dangling(path) or 'does not exist'}") from error
    try:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "a pipe, a socket or a device, which is no file", os.fspath(path))
        if facts.st_size <= _POINTER_BYTES:
            check_content(platform.pread(file.fileno(), max(map(len, _POINTERS)), 0), os.fsdecode(path))
    except BaseException:
        file.close()
        raise
    return file


def check_content(head: bytes, name: str) -> None:
    """Refuse a file that begins as a pointer does; its content is elsewhere."""
    for begin, (whose, getting) in _POINTERS.items():
        if head.startswith(begin):
            said = f"is a pointer of {whose} to content that is not there"
            raise MissingFileError(f"{name} {said}: get it with `{getting} {name}`")


def check_there(path: str | os.PathLike[str]) -> None:
    """Refuse a link or a pointer to content that is elsewhere; what is no file is for others to refuse."""
    if said := dangling(path):
        raise MissingFileError(f"{os.fspath(path)} {said}")
    if os.path.isfile(path):
        opened_regular(path).close()


class _Named(FileIO):
    """A file whose errors, such as that of a failing disk, name it."""

    def readinto(self, buffer: Any, /) -> Any:
        try:  # as in _named, without a context for each block of a file
            return super().readinto(buffer)
        except OSError as error:
            self._name_in(error)
            raise

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
            self._name_in(error)
            raise

    def _name_in(self, error: OSError) -> None:
        error.filename = error.filename or os.fspath(self.name)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """What a file of text holds.

    Raises OSError, naming the file: it is none, or larger than any that people write.
    """
    if (url := url_of(path)) is not None:
        _servers().look(url)
    with opened(path) as file, BufferedReader(file) as buffered:
        size = _TEXT_BYTES if url else os.fstat(file.fileno()).st_size
        content = buffered.read(min(size, _TEXT_BYTES) + 1)
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
