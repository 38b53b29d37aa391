"""Folders of caches: files that are made once, by one of many, and found again until room is needed.

Covers: finding a file, whose turn it is to make it, the least recently used out, what killed processes
left. Does not cover: what is in a file (``container``); which it is, what makes it stale
and how many may stay (``disk``, ``results``).

::

    KEY.lock     held by the one process that makes it; others wait. Without a holder it is rubbish
    (no name)    what it has written so far: nothing is left of it if it dies
    KEY.SUFFIX   complete, and on the disk before it had its name

Who uses a file holds a shared lock on it. Only a file that nobody uses is removed, and only if name, owner
and first bytes are ours.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from sharedmask.errors import AttachError, SegmentError
from sharedmask.records import dataclass
from sharedmask.storage import container
from sharedmask.system import files, locks, platform
from sharedmask.system.files import abandoned, opened_ours, private_directory
from sharedmask.system.locks import is_named, locked, opened_locked
from sharedmask.system.platform import Folder

T = TypeVar("T")
_OURS = (container.OURS, b"smresult")  # the second is that of results before containers

_log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A complete file."""

    name: str
    nbytes: int
    used: int
    """When it was last used, in nanoseconds since the epoch."""


@dataclass(frozen=True)
class CacheFolder:
    """Files named ``<prefix><digits hexadecimal digits>.<suffix>`` in a directory of this user's own."""

    path: Path
    what: str
    """For messages."""
    prefix: str
    digits: int
    suffix: str
    refused: int = 0o077
    """Permissions of others with which the directory is not used."""

    def name(self, key: str) -> str:
        return f"{self.prefix}{key}.{self.suffix}"

    def opened(self) -> contextlib.AbstractContextManager[Folder]:
        """A descriptor of the directory, made if it is missing; see :func:`private_directory`."""
        return private_directory(self.path, self.what, self.refused)

    def find(self, key: str, read: Callable[[int], T]) -> T | None:
        """What ``read`` makes of the file of ``key``; None if there is none, or one that it refused.

        It takes a descriptor with a shared lock, and raises AttachError of what is damaged, which is removed.

        Raises SegmentError: a file of that name is none of ours.
        """
        if not self.path.is_dir():
            return None
        with self.opened() as folder:
            return self._find(folder, self.name(key), read)

    def _find(self, folder: Folder, name: str, read: Callable[[int], T]) -> T | None:
        try:
            fd = opened_locked(folder, name, os.O_RDONLY, lambda fd: locks.lock(fd, locks.SHARED))
        except FileNotFoundError:
            return None
        try:
            if not files.is_ours(fd, _OURS):
                raise SegmentError(f"{self.path / name} is no file of sharedmask: move it away")
            found = read(fd)
        except AttachError as error:
            # Who keeps the text keeps no frames.
            _log.warning("%s is damaged, and is made again: %s", self.path / name, str(error))
            if is_named(folder, name, fd):
                platform.remove_open(folder, name, fd)
            return None
        else:
            with contextlib.suppress(OSError):  # where nothing can be written, nothing is removed either
                platform.touch_at(folder, name, fd)
            return found
        finally:
            locks.close(fd)

    @contextlib.contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Our turn to make the file of ``key``; others wait."""
        with self.opened() as folder, locked(folder, f"{self.prefix}{key}.lock", self.path):
            yield

    # --- what is there ---

    def entries(self) -> list[Entry]:
        """The complete files, least recently used first."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as listed:
            for item in listed:
                if self._is_name(item.name, self.suffix) and item.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        facts = item.stat(follow_symlinks=False)
                        found.append(Entry(item.name, facts.st_size, facts.st_mtime_ns))
        return sorted(found, key=lambda entry: entry.used)

    def _is_name(self, name: str, suffix: str) -> bool:
        return re.fullmatch(rf"{self.prefix}[0-9a-f]{{{self.digits}}}\.{suffix}", name) is not None

    def is_ours(self, name: str) -> bool:
        """Whether we made the file of that name."""
        with self.opened() as folder, opened_ours(folder, name, _OURS) as fd:
            return fd is not None

    def remove(self, name: str) -> bool:
        """Remove a complete file if it is ours and nobody uses it; whether it was removed."""
        with self.opened() as folder, abandoned(folder, name, _OURS) as fd:
            removed = fd is not None and platform.remove_open(folder, name, fd)
        if removed:
            _log.info("%s removed from %s", name, self.path)
        return removed

    def make_room(self, is_enough: Callable[[int], bool]) -> tuple[int, int]:
        """Remove the least recently used until ``is_enough``, which gets the bytes of those that are left.

        Those bytes in the end, and how many files were removed.
        """
        found, removed = self.entries(), 0
        held = sum(entry.nbytes for entry in found)
        for entry in found:
            if is_enough(held):
                break
            if self.remove(entry.name):
                held, removed = held - entry.nbytes, removed + 1
            elif not self.is_ours(entry.name):
                held -= entry.nbytes
        return held, removed

    def sweep(self) -> list[str]:
        """Remove what killed processes left; the names of what was removed."""
        if not self.path.is_dir():
            return []
        with self.opened() as folder:
            locks = [name for name in os.listdir(folder) if self._is_name(name, "lock")]
            return files.sweep(self.path) + [name for name in locks if _remove_lock(folder, name)]


def _remove_lock(folder: Folder, name: str) -> bool:
    with abandoned(folder, name) as fd:
        return fd is not None and not os.fstat(fd).st_size and platform.remove_open(folder, name, fd)
