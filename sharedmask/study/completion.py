"""Completion: when an image of a study counts as done, and which were done before.

Covers: images known by their inputs' names, sizes and times; files and records of many images that are put
on the disk together. Does not cover: the journal's file (``journal``), what is next (``cohort``), what is
written (``output``, ``dataset``).
"""

import contextlib
import filecmp
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from sharedmask.compute.journal import Entry, Inputs, Journal, sum_of
from sharedmask.errors import ParameterError
from sharedmask.records import dataclass
from sharedmask.remote.addresses import absolute, named, url_of
from sharedmask.remote.objects import identity
from sharedmask.sources.names import is_as
from sharedmask.sources.nifti import files_of
from sharedmask.study.tasks import Task
from sharedmask.system import settings
from sharedmask.system.inputs import exists
from sharedmask.system.threads import Threads
from sharedmask.system.together import Calls, Steps, Together, settling, waiting

Key = Any
Ended = tuple[Key, float, Exception | None]
_MOMENT = 0.02  # after which the disk may have answered
_SECONDS = 0.25  # for which what is done may wait for more, before it is recorded
_FILES = 128


@dataclass(frozen=True)
class Resumption:
    """A journal, and how an image is known as complete before anything of it is opened.

    ``asked``: what is asked of all images; empty if that has no text.
    ``inputs``: of a key: the files that its outputs depend on; none if that is not known. A digest of what is
    asked and of their names, sizes and times may differ where nothing changed, never the other way.
    ``skipped``: called with the key of an image that is complete, whatever it is known by.
    ``outputs``: of a key: files that will be written; none if that is not known.
    """

    path: Path
    asked: str
    inputs: Callable[[Key], Inputs]
    skipped: Callable[[Key], object]
    outputs: Callable[[Key], Sequence[Path]] = lambda _: ()


class Seen(NamedTuple):
    """What an image's inputs are before it is worked on; see :class:`Entry`."""

    stamp: str = ""
    inputs: tuple[str, ...] = ()
    folders: Mapping[str, str] = {}


def stamp_of(asked: str, files: Iterable[str | Path]) -> str:
    """Of files as they are now; empty where that tells nothing of what they hold."""
    return _stamp(asked, _places(files))


def _places(files: Iterable[str | Path]) -> tuple[str, ...]:
    """Where they are, and what else they may consist of."""
    return tuple(dict.fromkeys(one for path in files for one in files_of(absolute(path))))


def _stamp(asked: str, places: Sequence[str]) -> str:
    if not places or settings.current().fingerprint != "stat":
        return ""
    try:
        told = [_told(path, is_needed=number == 0) for number, path in enumerate(places)]
    except OSError:
        return ""
    return blake2b(repr((asked, told)).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _told(path: str, is_needed: bool) -> tuple[object, ...]:
    """What a file is without its bytes: of a server, what that says."""
    if url := url_of(path):
        return (named(url), identity(url)) if is_needed or exists(url) else (named(url),)
    try:
        one = os.stat(path)
    except FileNotFoundError:
        if is_needed:
            raise
        return (path,)
    return path, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns


def _is_copy(path: str, key: Key) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(path, key) or filecmp.cmp(path, key, shallow=False)
    return False


@dataclass
class Completion:
    """What is done, and is recorded soon."""

    journal: Journal | None
    resumption: Resumption | None = None
    _done: list[tuple[Key, Entry, Together]] = field(default_factory=list, init=False)
    _recorded: float = field(default_factory=time.monotonic, init=False)
    _recording: Steps[list[Ended]] | None = field(default=None, init=False)
    """Those before, on their way to the disk."""
    _calls: Calls | None = field(default=None, init=False)
    """What they wait for."""
    _threads: Threads | None = field(default=None, init=False)

    @classmethod
    def of(cls, resume: str | Path | Resumption | None, overwrite: bool) -> "Completion":
        """That of a study with this journal; with ``overwrite`` nothing was done before."""
        if resume is None:
            return cls(None)
        path = resume.path if isinstance(resume, Resumption) else Path(resume)
        journal = Journal(path.expanduser(), is_read=not overwrite)
        return cls(journal, resume if isinstance(resume, Resumption) else None)

    def check_places(self, keys: Iterable[Key]) -> None:
        """That no new image takes the place of another, that is there still.

        Raises ParameterError, naming both.
        """
        if self.resumption is None or self.journal is None or not self.journal.is_read:
            return
        new = ((key, path) for key in keys if self.is_new(key) for path in self.resumption.outputs(key))
        taken = {os.path.abspath(path): key for key, path in new if os.path.lexists(path)}
        for entry in self.journal.entries if taken else ():
            for path in filter(taken.__contains__, entry.outputs):
                if not entry.is_file or not os.path.exists(entry.key) or _is_copy(entry.key, taken[path]):
                    continue  # what moved is the same image
                over = f"{path}, which holds those of {entry.key}: choose another folder, or overwrite"
                raise ParameterError(f"signals of {taken[path]} would be written over {over}")

    def is_new(self, key: Key) -> bool:
        """Whether there is a journal that has nothing of this image, whatever its inputs are."""
        if self.journal is None or self.journal.may_have(named(str(key))):
            return False
        return not (isinstance(key, str | Path) and self.journal.may_have(absolute(key)))

    def look(self, key: Key) -> tuple[Seen, bool]:
        """What its inputs are, and whether it was complete with these and its outputs are as they were.

        Where the folders that tell which files they are have the names that they had, they are those.
        """
        if self.resumption is None or not self.resumption.asked or self.journal is None:
            return Seen(), False
        before = self._before(key)
        if before is not None and before.folders and all(map(is_as, before.folders, before.folders.values())):
            places, folders = before.inputs, before.folders
        else:
            inputs = self.resumption.inputs(key)
            places, folders = _places(inputs.files), inputs.folders
        seen = Seen(_stamp(self.resumption.asked, places), places, folders)
        return seen, bool(seen.stamp) and before is not None and before.is_known_by(seen.stamp)

    def _before(self, key: Key) -> Entry | None:
        """What the journal has of it."""
        assert self.journal is not None
        path = absolute(key) if isinstance(key, str | Path) else None
        for name in dict.fromkeys(filter(None, (named(str(key)), path))):
            entry = self.journal.find(name)
            if entry is not None and (not entry.is_file or name == path):
                return entry
        return None

    def skip(self, key: Key) -> None:
        if self.resumption is not None:
            self.resumption.skipped(key)

    def has(self, task: Task) -> bool:
        """Whether it was complete; what the task is made of is looked at if it may have been."""
        if self.journal is None or not self.journal.may_have(task.name):
            return False
        return self.journal.has(task.name, task.digest, task.content)

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
        """Seconds after which there may be something to record."""
        return _MOMENT if self._recording else _SECONDS if self._done else None

    def record(self, is_last: bool = False) -> list[Ended]:
        """What has come to its end: its seconds, and what went wrong.

        Files get their names, then what is done counts as complete. The disk is waited for while others work,
        and only of what is last until all of it is there.
        """
        if self.journal is None and not any(outputs.drafts for *_, outputs in self._done):
            done, self._done = self._done, []
            return [(key, entry.seconds, None) for key, entry, _ in done]
        ended = self._go_on(wait=is_last)
        if self._is_due or (is_last and self._done):
            ended += self._go_on(wait=True)
            self._recording, self._calls = self._steps(), None
            self._recorded = time.monotonic()
            ended += self._go_on(wait=is_last)
        if is_last and self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        return ended

    @property
    def _is_due(self) -> bool:
        if not self._done:
            return False
        n_files = sum(len(outputs.drafts) for *_, outputs in self._done)
        return time.monotonic() - self._recorded > _SECONDS or n_files > _FILES or self.journal is None

    def _go_on(self, wait: bool) -> list[Ended]:
        """Take the steps of what is being recorded whose time has come; its results, if that was the last."""
        while self._recording is not None and (wait or self._calls is None or self._calls.are_done):
            if self._calls is not None:
                self._calls.wait()
            try:
                self._calls = next(self._recording)
            except StopIteration as end:
                self._recording = self._calls = None
                ended: list[Ended] = end.value or []  # none of who was interrupted
                return ended
        return []

    def _steps(self) -> Steps[list[Ended]]:
        done, self._done = self._done, []
        self._threads = threads = self._threads or waiting()
        drafts = [draft for *_, outputs in done for draft in outputs.drafts]
        errors = yield from settling([outputs for *_, outputs in done], threads)
        kept = {os.fspath(draft.path): draft.known and sum_of(*draft.known) for draft in drafts}
        whole = [entry for (_, entry, _), error in zip(done, errors, strict=True) if error is None]
        failed = None
        if self.journal is not None and whole:
            add = partial(self.journal.add, kept=kept)
            yield (adding := Calls(lambda entries: add(*entries), [whole], threads))
            failed = adding.wait()[0]
        return [
            (key, entry.seconds, error or failed) for (key, entry, _), error in zip(done, errors, strict=True)
        ]
