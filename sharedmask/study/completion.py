"""Completion: when an image of a study counts as done, and which were done before.

Covers: images known by their inputs' names, sizes and times; files and records of many images that are put
on the disk together. Does not cover: the journal's file (``journal``), what is next (``cohort``), what is
written (``output``, ``dataset``).
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sharedmask.compute.journal import Entry, Journal
from sharedmask.records import dataclass
from sharedmask.remote.addresses import absolute, named, url_of
from sharedmask.remote.objects import identity
from sharedmask.sources.nifti import files_of
from sharedmask.system import settings
from sharedmask.system.inputs import exists
from sharedmask.system.together import Together, settle

Key = Any
_SECONDS = 0.25  # for which what is done may wait for more, before it is recorded
_FILES = 128


@dataclass(frozen=True)
class Resumption:
    """A journal, and how an image is known as complete before anything of it is opened.

    Parameters
    ----------
    path : Path
    stamp : callable
        Of a key: a digest of the names, sizes and times of all that its outputs depend on, and of what is
        asked of it; empty if that is not known. It may differ where nothing changed, never the other way.
    skipped : callable
        Called with the key of an image that is complete, whatever it is known by.
    """

    path: Path
    stamp: Callable[[Key], str]
    skipped: Callable[[Key], object]


def stamp_of(asked: str, files: Iterable[str | Path]) -> str:
    """Of files as they are now; empty where that tells nothing of what they hold."""
    given = [absolute(path) for path in files]
    if settings.current().fingerprint != "stat":
        return ""
    paths = [one for path in given for one in files_of(path) if one == path or exists(one)]
    try:
        told = list(map(_told, paths))
    except OSError:
        return ""
    return blake2b(repr((asked, told)).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _told(path: str) -> tuple[object, ...]:
    """What a file is without its bytes: of a server, what that says."""
    if url := url_of(path):
        return named(url), identity(url)
    one = os.stat(path)
    return path, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns


@dataclass
class Completion:
    """What is done, and is recorded soon."""

    journal: Journal | None
    resumption: Resumption | None = None
    _done: list[tuple[Key, Entry, Together]] = field(default_factory=list, init=False)
    _recorded: float = field(default=0.0, init=False)

    @classmethod
    def of(cls, resume: str | Path | Resumption | None, overwrite: bool) -> "Completion":
        """That of a study with this journal; with ``overwrite`` nothing was done before."""
        if resume is None:
            return cls(None)
        path = resume.path if isinstance(resume, Resumption) else Path(resume)
        journal = Journal(path.expanduser(), is_read=not overwrite)
        return cls(journal, resume if isinstance(resume, Resumption) else None)

    def is_new(self, key: Key) -> bool:
        """Whether there is a journal that has nothing of this image, whatever its inputs are."""
        if self.journal is None or self.may_have(named(str(key))):
            return False
        return not (isinstance(key, str | Path) and self.may_have(absolute(key)))

    def stamp(self, key: Key) -> str:
        return "" if self.resumption is None else self.resumption.stamp(key)

    def skip(self, key: Key) -> None:
        if self.resumption is not None:
            self.resumption.skipped(key)

    def knows(self, key: Key, stamp: str) -> bool:
        """Whether it was complete with these inputs, and its outputs are as they were."""
        if not stamp or self.journal is None:
            return False
        if self.journal.has_stamp(named(str(key)), stamp):
            return True
        return isinstance(key, str | Path) and self.journal.has_stamp(absolute(key), stamp, is_file=True)

    def may_have(self, name: str) -> bool:
        """See :meth:`Journal.may_have`."""
        return self.journal is not None and self.journal.may_have(name)

    def has(self, name: str, digest: str, content: Callable[[], str]) -> bool:
        """See :meth:`Journal.has`."""
        return self.journal is not None and self.journal.has(name, digest, content)

    def add(self, key: Key, entry: Entry, outputs: Any) -> None:
        """It is done; its outputs are a path, several, or files that have no names yet."""
        if not isinstance(outputs, Together):
            paths = [outputs] if isinstance(outputs, str | Path) else outputs
            outputs = Together()
            outputs.paths += paths
        written = [*outputs.paths, *(draft.path for draft in outputs.drafts)]
        paths = tuple(dict.fromkeys(map(os.path.abspath, written)))
        self._done.append((key, replace(entry, outputs=paths), outputs))

    @property
    def patience(self) -> float | None:
        """Seconds that may be waited for more."""
        return _SECONDS if self._done else None

    @property
    def is_due(self) -> bool:
        """Whether what is done should be recorded now."""
        n_files = sum(len(outputs.drafts) for *_, outputs in self._done)
        return time.monotonic() - self._recorded > _SECONDS or n_files > _FILES or self.journal is None

    def record(self) -> list[tuple[Key, float, Exception | None]]:
        """Files get their names, then what is done counts as complete: its seconds, and what went wrong."""
        done, self._done, self._recorded = self._done, [], time.monotonic()
        kept = {os.fspath(draft.path) for *_, outputs in done for draft in outputs.drafts}
        errors = settle([outputs for *_, outputs in done])
        whole = [entry for (_, entry, _), error in zip(done, errors, strict=True) if error is None]
        failed = None
        try:
            if self.journal is not None and whole:
                self.journal.add(*whole, kept=kept)
        except Exception as error:
            failed = error
        return [
            (key, entry.seconds, error or failed) for (key, entry, _), error in zip(done, errors, strict=True)
        ]
