"""Many files, one wait: files that are written one after the other and get their names together.

Covers: keeping many files on the disk at once, what went wrong with which. Does not cover: writing one
(``files``), which files those are (``study.output``, ``study.dataset``).
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from sharedmask.system import locks, platform
from sharedmask.system.files import Draft, about, drafts_of_thread, open_to_write
from sharedmask.system.platform import Folder
from sharedmask.system.threads import Threads

T = TypeVar("T")
_AT_ONCE = 16  # calls that wait for a disk, which answers many of them together


class Together:
    """Files that are written in the ``with`` block, and get their names by :func:`settling`.

    All that :func:`atomic_write` promises of one holds then: a disk that is asked to keep many files at once
    takes little longer than for one. If the block fails none of them is there.

    Examples
    --------
    >>> import os, tempfile
    >>> from sharedmask.system.files import atomic_write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Together() as written, atomic_write(Path(folder, "out.tsv")) as temporary:
    ...         _ = temporary.write_text("a")
    ...     before = os.listdir(folder)
    ...     with waiting() as threads:
    ...         for calls in settling([written], threads):
    ...             _ = calls.wait()
    ...     before, os.listdir(folder)
    ([], ['out.tsv'])
    """

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.paths: list[Path] = []
        """What the caller calls its outputs."""

    def __enter__(self) -> Self:
        drafts_of_thread().append(self.drafts)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        drafts_of_thread().pop()
        if kind is not None:
            self.end()

    def end(self) -> None:
        """Close them; what has no name by now is gone."""
        while self.drafts:
            self.drafts.pop().close()


Steps = Generator["Calls", None, T]
"""Work that waits for calls on other threads, which it gives, again and again; then its result."""


def settling(written: Sequence[Together], threads: Threads) -> Steps[list[Exception | None]]:
    """Give files their names, once their bytes are on the disk; what went wrong with each group, if anything.

    Who asks may do something else while the disk is waited for. The names are on it, too, at the end.
    """
    drafts = [draft for group in written for draft in group.drafts]
    failed: dict[int, Exception] = {}
    folders: dict[str, Folder] = {}
    try:
        # Files are made here: calls that do not wait have threads wait for each other.
        for draft in drafts:
            if (error := _attempted(partial(_make, folders), draft)) is not None:
                failed[id(draft)] = error
        made = [draft for draft in drafts if id(draft) not in failed]
        yield (syncs := Calls(Draft.sync, made, threads))
        for draft, error in zip(made, syncs.wait(), strict=True):
            if error is not None:
                failed[id(draft)] = error
        errors = [_named_together(group, failed) for group in written]
        yield (syncs := Calls(platform.sync_folder, list(folders.values()), threads))
        syncs.wait()
        return errors
    finally:
        for group in written:
            group.end()
        for folder in folders.values():
            locks.close(folder)


def _make(folders: dict[str, Folder], draft: Draft) -> None:
    """Have a file of it, in a folder that is opened for all of its files together."""
    parent = os.path.dirname(draft.path)
    if parent not in folders:
        with about(draft.path):
            folders[parent] = open_to_write(draft.path.parent)
    draft.begin(folders[parent])


def _named_together(group: Together, failed: Mapping[int, Exception]) -> Exception | None:
    """Give a group's files their names, unless one of them failed; how."""
    error = next((failed[id(draft)] for draft in group.drafts if id(draft) in failed), None)
    try:
        for draft in group.drafts:
            draft.give_up() if error else draft.name()
    except OSError as why:
        return why
    return error


def keep_names(folder: str | Path) -> None:
    """Have the names in a directory on the disk, where that can be asked for."""
    with locks.closing(platform.open_folder(folder)) as fd:
        platform.sync_folder(fd)


def at_once(call: Callable[[T], object], items: Sequence[T]) -> list[Exception | None]:
    """Call for each of them, many at a time; what each raised."""
    if len(items) < 2:
        return [_attempted(call, item) for item in items]
    with waiting() as threads:
        return Calls(call, items, threads).wait()


def waiting() -> Threads:
    """Threads that wait for a disk."""
    return Threads(_AT_ONCE, "sharedmask-disk")


class Calls:
    """One for each of several items, many at a time, which have begun."""

    def __init__(self, call: Callable[[T], object], items: Sequence[T], threads: Threads) -> None:
        found: list[Exception | None] = [None] * len(items)
        numbers = iter(range(len(items)))  # of which each thread takes the next: quicker than a future each

        def work() -> None:
            for number in numbers:
                found[number] = _attempted(call, items[number])

        self._found = found
        self._working = [threads.submit(work) for _ in range(min(len(items), _AT_ONCE))]

    @property
    def are_done(self) -> bool:
        return all(one.done() for one in self._working)

    def wait(self) -> list[Exception | None]:
        """What each raised, once all are done."""
        for one in self._working:
            one.result()
        return self._found


def _attempted(call: Callable[[T], object], item: T) -> Exception | None:
    """What it raised."""
    try:
        call(item)
    except Exception as error:
        return error
    return None
