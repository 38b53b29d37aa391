"""Journals: which runs of a study are complete, of which inputs, and which failed.

Covers: one line of JSON per run that is done, appended by any number of processes; one file per
run that failed. Does not cover: what the inputs are (``cohort``, ``output``), the outputs themselves.
"""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, replace
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from sharedmask.errors import LockError, ParameterError, SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.system import locks, platform
from sharedmask.system.files import file_name, write_json
from sharedmask.system.inputs import read_json

PRIVATE = ".sharedmask"
"""The folder, in a folder of outputs, that is ours: journals and failures are kept there."""


_NAME_BYTES = 200  # of the 255 that a file's name may have


@dataclass(frozen=True)
class Entry:
    """A run that was complete: its key, the digest of its inputs, the files it left.

    ``content`` is the digest of inputs that may have been moved since; ``is_file`` tells that the key is the
    path of the input.
    """

    key: str
    digest: str
    outputs: tuple[str, ...] = ()
    seconds: float = 0.0
    content: str = ""
    is_file: bool = False
    sums: tuple[str, ...] = ()
    """What each of its files was: its size and a digest of its bytes."""

    @property
    def is_there(self) -> bool:
        """Whether its files still are, and are what they were."""
        sums = self.sums or ("",) * len(self.outputs)
        return len(sums) == len(self.outputs) and all(map(_is_whole, self.outputs, sums))

    def settled(self) -> "Entry":
        """The same with the sums of its files, which are on the disk by now, and their names."""
        outputs = tuple(map(os.path.abspath, self.outputs))
        sums = tuple(_sum(path, settle=True) for path in outputs)
        for folder in sorted(set(map(os.path.dirname, outputs))):
            _settle_folder(folder)
        return replace(self, outputs=outputs, sums=sums)


@dataclass
class Journal:
    """The file of a study's complete runs; it names files as seen from its own folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     journal = Journal(Path(folder, "done.jsonl"))
    ...     journal.add(Entry("sub-01", "abc"))
    ...     Journal(Path(folder, "done.jsonl")).has("sub-01", "abc")
    True
    """

    path: Path
    _entries: dict[str, Entry] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path).expanduser()
        try:
            self._entries = {entry.key: entry for entry in map(self._absolute, _read(self.path))}
        except OSError as error:
            raise ParameterError(f"{self.path} cannot be read as a journal: {error.strerror}") from error

    @property
    def entries(self) -> list[Entry]:
        """The last one of each key."""
        return list(self._entries.values())

    def has(self, key: str, digest: str, content: Callable[[], str] | None = None) -> bool:
        """Whether ``key`` is complete for inputs of this digest, its files still there.

        ``content`` gives the digest of what the inputs hold, where they may have been moved or copied; it is
        asked for only if a run could be known by it.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.digest == digest:
            return entry.is_there
        known = [one for one in ([entry] if entry else self._of_files_gone()) if one.content and one.is_there]
        if content is None or not known:
            return False
        holds = content()
        same = next((one for one in known if one.content == holds), None)
        if same is not None:
            self.add(replace(same, key=key, digest=digest))
        return same is not None

    def _of_files_gone(self) -> list[Entry]:
        return [one for one in self._entries.values() if one.is_file and not os.path.exists(one.key)]

    def forget(self) -> None:
        """Take no run for complete that was so before; the file keeps them, for others."""
        self._entries = {}

    def add(self, entry: Entry) -> None:
        """Record a complete run, whose files are on the disk before it is; so is the record at the end."""
        entry = entry.settled()
        # Resumed from another directory, or moved with its outputs, it still finds them.
        outputs = [os.path.relpath(path, self.path.parent) for path in entry.outputs]
        key = os.path.relpath(entry.key, self.path.parent) if entry.is_file else entry.key
        facts = {**vars(entry), "key": key, "outputs": outputs, "finished": time.time()}
        line = json.dumps(facts, separators=(",", ":")) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | platform.OPEN, 0o666)
        try:
            self._lock(fd)
            # A process that was killed may have left half a line.
            left = memoryview(("" if _ends_a_line(fd) else "\n").encode() + line.encode())
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        except OSError as error:
            error.filename = error.filename or os.fspath(self.path)
            raise
        finally:
            locks.close(fd)
        if is_new:
            _settle_folder(os.fspath(self.path.parent))
        self._entries[entry.key] = entry

    def _lock(self, fd: int) -> None:
        try:
            locks.lock(fd, locks.EXCLUSIVE)
        except LockError as error:
            if self.path not in _unlocked:
                _unlocked.add(self.path)
                said = f"{error}: only one process may write to this journal at a time"
                warnings.warn(said, SharedMaskWarning, stacklevel=3)

    def _absolute(self, entry: Entry) -> Entry:
        folder = self.path.parent.absolute()
        outputs = tuple(os.path.normpath(folder / path) for path in entry.outputs)
        key = os.path.normpath(folder / entry.key) if entry.is_file else entry.key
        return replace(entry, key=key, outputs=outputs)


_unlocked: set[Path] = set()


def _sum(path: str, settle: bool = False) -> str:
    """Size and digest of a file, which is on the disk afterwards if it is to ``settle``; "" if it is none."""
    try:
        with open(path, "rb", buffering=0) as file:
            if settle:
                platform.sync(file.fileno())
            facts = os.fstat(file.fileno())
            return f"{facts.st_size}-{file_digest(file, 'blake2b').hexdigest()[:32]}"
    except OSError:
        return ""


def _is_whole(path: str, was: str) -> bool:
    """Whether the file is what it ``was``; nothing is known of that in journals of old."""
    if not was:
        return os.path.exists(path)
    with contextlib.suppress(OSError):
        return str(os.path.getsize(path)) == was.partition("-")[0] and _sum(path) == was
    return False


def _settle_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # not every file system has this for directories
        fd = platform.open_folder(folder)
        try:
            platform.sync_folder(fd)
        finally:
            locks.close(fd)


def _ends_a_line(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size == 0 or platform.pread(fd, 1, size - 1) == b"\n"


def _read(path: Path) -> Iterator[Entry]:
    """The entries; a line that is none was never finished, and its run is not complete."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                yield _parsed(json.loads(line))


def _parsed(facts: dict[str, Any]) -> Entry:
    outputs: Sequence[str] = facts["outputs"]
    content, is_file = str(facts.get("content", "")), bool(facts.get("is_file"))
    key, digest, seconds = str(facts["key"]), str(facts["digest"]), float(facts["seconds"])
    sums: Sequence[str] = facts.get("sums", ())
    return Entry(key, digest, tuple(map(str, outputs)), seconds, content, is_file, tuple(map(str, sums)))


@dataclass(frozen=True)
class Failures:
    """A folder with one file per run that failed, for people and programs.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     failures = Failures(Path(folder))
    ...     failures.add("sub-01", ValueError("cut short"))
    ...     failures.all()
    {'sub-01': 'ValueError: cut short'}
    """

    folder: Path

    def add(self, key: str, error: Exception) -> None:
        facts = {"run": key, "kind": type(error).__name__, "error": str(error), "time": time.time()}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(key), facts)

    def remove(self, key: str) -> None:
        """The run is complete now."""
        self._path(key).unlink(missing_ok=True)

    def all(self) -> dict[str, str]:
        """Run -> its error."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                facts = read_json(path)
                found[str(facts["run"])] = f"{facts['kind']}: {facts['error']}"
            except (OSError, ValueError, KeyError) as error:
                found[path.stem] = f"not known: {path} cannot be read: {error}"
        return found

    def _path(self, key: str) -> Path:
        # A key may be a path, and longer than a name may be; its digest keeps two of one name apart.
        mark = blake2b(key.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
        name = os.fsencode(file_name(os.path.basename(key)))[:_NAME_BYTES]
        return self.folder / f"{os.fsdecode(name)}.{mark}.json"
