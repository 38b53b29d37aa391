"""Journals: which runs of a study are complete, of which inputs, and which failed.

Covers: one line of JSON per run that is done, appended by any number of processes; one file per
run that failed. Does not cover: what the inputs are (``cohort``, ``study.output``), the outputs themselves.
"""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from hashlib import blake2b, file_digest
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from sharedmask.errors import LockError, ParameterError, SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.system import locks, platform
from sharedmask.system.files import file_name, write_json
from sharedmask.system.inputs import opened_regular, read_json
from sharedmask.system.process import cached_property
from sharedmask.system.together import at_once, keep_names

PRIVATE = ".sharedmask"
"""The folder, in a folder of outputs, that is ours: journals and failures are kept there."""
JOURNAL = "complete.jsonl"
"""The journal's name in there."""


_NAME_BYTES = 200  # of the 255 that a file's name may have
_LINE = 2048  # bytes that most lines have room in


class Inputs(NamedTuple):
    """What an image's outputs depend on."""

    files: Sequence[str | Path] = ()
    """Whether they are there or not; the image first."""
    folders: Mapping[str, str] = {}
    """Those of this machine whose names tell which files these are, as before they were listed."""


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
    stamp: str = ""
    """Of its inputs: their names, sizes and times; empty where they are not known."""
    inputs: tuple[str, ...] = ()
    """Paths of them, the image's first."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """What the folders were like that tell by their names which these are."""
    marks: tuple[str, ...] = ()
    """What each of its files was: its number, size and times."""

    @property
    def is_there(self) -> bool:
        """Whether its files still are, and are what they were."""
        sums = self.sums or ("",) * len(self.outputs)
        return len(sums) == len(self.outputs) and all(map(_is_whole, self.outputs, sums))

    def is_known_by(self, stamp: str) -> bool:
        """Whether its inputs have this stamp and nobody wrote to its files since; none of them is read."""
        return self.stamp == stamp and list(self.marks) == list(map(_mark, self.outputs))


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
    is_read: bool = True
    """Whether runs that it has are complete; else it is only written to."""
    _places: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    """Where the last line of each run begins: of very many runs no more is kept."""

    def __post_init__(self) -> None:
        self.path = Path(self.path).expanduser()
        if not self.is_read:
            return
        try:
            self._places = {self._key(told): place for place, told in _read(self.path)}
        except OSError as error:
            raise ParameterError(
                f"{self.path} cannot be read as a journal: {error.strerror or error}"
            ) from error

    @property
    def entries(self) -> Iterator[Entry]:
        """The last one of each key, in the order of the file."""
        for place, told in _read(self.path):
            if self._places.get(self._key(told)) == place:
                yield self._entry(told)

    def may_have(self, key: str) -> bool:
        """Whether :meth:`has` is worth asking: of what is new nobody has to know what it is of."""
        return key in self._places or bool(self._of_files_gone)

    def has(self, key: str, digest: str, content: Callable[[], str] | None = None) -> bool:
        """Whether ``key`` is complete for inputs of this digest, its files still there.

        ``content`` gives the digest of what the inputs hold, where they may have been moved or copied; it is
        asked for only if a run could be known by it.
        """
        entry = self.find(key)
        if entry is not None and entry.digest == digest:
            return entry.is_there
        if entry is not None:
            known = {entry.content: key} if entry.content and entry.is_there else {}
        else:
            known = self._of_files_gone
        if content is None or not known:
            return False
        same = self.find(known.get(content(), ""))
        if same is None or not same.is_there:
            return False
        self.add(replace(same, key=key, digest=digest))
        return True

    def find(self, key: str) -> Entry | None:
        """The last entry of a run; None if it is not there any more."""
        if (place := self._places.get(key)) is None:
            return None
        with contextlib.suppress(OSError, *_NO_ENTRY):
            entry = self._entry(_parsed(_loaded(_line(self.path, place))))
            return entry if entry.key == key else None
        return None

    @cached_property
    def _of_files_gone(self) -> dict[str, str]:
        """Keys of entries whose images are not where they were, by what they held."""
        if not self.is_read:
            return {}
        gone = (one for one in self.entries if one.is_file and one.content and not os.path.exists(one.key))
        return {one.content: one.key for one in gone}

    def forget(self) -> None:
        """Take no run for complete that was so before; the file keeps them, for others."""
        self._places = {}

    def add(self, *entries: Entry, kept: Mapping[str, str | None] | None = None) -> None:
        """Record complete runs, whose files are on the disk before they are; so is the record at the end.

        Files that are ``kept`` are there already, and so are their names; of those that are not None, what
        :func:`sum_of` gives is known.
        """
        settled = _settled(entries, kept or {})
        lines = [
            json.dumps(self._relative(entry), separators=(",", ":")).encode() + b"\n" for entry in settled
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | platform.OPEN, 0o666)
        try:
            self._lock(fd)
            # A process that was killed may have left half a line.
            first = b"" if _ends_a_line(fd) else b"\n"
            place = os.fstat(fd).st_size + len(first)
            platform.write_all(fd, first + b"".join(lines))
            os.fsync(fd)
        except OSError as error:
            error.filename = error.filename or os.fspath(self.path)
            raise
        finally:
            locks.let_go(fd)
        if is_new:
            with contextlib.suppress(OSError):  # not every file system has this for directories
                keep_names(self.path.parent)
        for entry, line in zip(settled, lines, strict=True):
            self._places[entry.key] = place
            place += len(line)

    def _relative(self, entry: Entry) -> dict[str, Any]:
        """What a line holds: from another directory, or moved with its outputs, it still finds them."""
        outputs = [os.path.relpath(path, self.path.parent) for path in entry.outputs]
        inputs = _shortened(entry.inputs)
        key = os.path.relpath(entry.key, self.path.parent) if entry.is_file else entry.key
        return {**vars(entry), "key": key, "outputs": outputs, "inputs": inputs, "finished": time.time()}

    def _lock(self, fd: int) -> None:
        try:
            locks.lock(fd, locks.EXCLUSIVE)
        except LockError as error:
            if self.path not in _unlocked:
                _unlocked.add(self.path)
                said = f"{error}: only one process may write to this journal at a time"
                warnings.warn(said, SharedMaskWarning, stacklevel=3)

    @cached_property
    def _folder(self) -> str:
        return os.path.abspath(self.path.parent)

    def _key(self, told: dict[str, Any]) -> str:
        return self._absolute(told["key"]) if told["is_file"] else str(told["key"])

    def _entry(self, told: dict[str, Any]) -> Entry:
        outputs = tuple(map(self._absolute, told["outputs"]))
        return Entry(**{**told, "key": self._key(told), "outputs": outputs, "inputs": _whole(told["inputs"])})

    @cached_property
    def _above(self) -> str:
        return os.path.dirname(self._folder)

    def _absolute(self, path: str) -> str:
        if path.startswith("../") and ".." not in path[3:]:  # as most are, of very many
            return f"{self._above}/{path[3:]}"
        return os.path.normpath(os.path.join(self._folder, path))


_unlocked: set[Path] = set()


def _shortened(paths: Sequence[str]) -> list[str]:
    """The first whole, of others that lie beside it their names."""
    beside = os.path.join(os.path.dirname(paths[0]), "") if paths else ""
    return [path if n == 0 else path.removeprefix(beside) for n, path in enumerate(paths)]


def _whole(paths: Sequence[str]) -> tuple[str, ...]:
    folder = os.path.dirname(paths[0]) if paths else ""
    return tuple(os.path.join(folder, path) for path in paths)


def _settled(entries: Sequence[Entry], kept: Mapping[str, str | None]) -> list[Entry]:
    """The same with what their files are, which are on the disk by now, and their names."""
    outputs = [tuple(map(os.path.abspath, entry.outputs)) for entry in entries]
    paths = [path for several in outputs for path in several if path not in kept]
    at_once(_settle_file, paths)
    at_once(keep_names, list(dict.fromkeys(map(os.path.dirname, paths))))
    return [
        replace(
            entry,
            outputs=own,
            sums=tuple(kept.get(path) or _sum(path) for path in own),
            marks=tuple(map(_mark, own)),
        )
        for entry, own in zip(entries, outputs, strict=True)
    ]


def _settle_file(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        platform.sync(file.fileno())


def sum_of(nbytes: int, digest: Any) -> str:
    """What is recorded of a file's bytes, by their BLAKE2b digest."""
    return f"{nbytes}-{digest.hexdigest()[:32]}"


def _sum(path: str) -> str:
    """Size and digest of a file; "" if it is none."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            return sum_of(size, file_digest(file, "blake2b"))
    except OSError:
        return ""


def _mark(path: str) -> str:
    """Number, size and times of a file; "" if it is none."""
    with contextlib.suppress(OSError):
        facts = os.stat(path)
        return f"{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"
    return ""


def _is_whole(path: str, was: str) -> bool:
    """Whether the file is what it ``was``; nothing is known of that in journals of old."""
    if not was:
        return os.path.exists(path)
    with contextlib.suppress(OSError):
        return str(os.path.getsize(path)) == was.partition("-")[0] and _sum(path) == was
    return False


def _ends_a_line(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size == 0 or platform.pread(fd, 1, size - 1) == b"\n"


_NO_ENTRY = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What a line that is none raises; it was never finished, and its run is not complete."""


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Where each line that is an entry begins, and what it tells."""
    place = 0
    with contextlib.suppress(FileNotFoundError), BufferedReader(opened_regular(path)) as file:
        for line in file:
            with contextlib.suppress(*_NO_ENTRY):
                yield place, _parsed(_loaded(line))
            place += len(line)


def _loaded(line: bytes) -> Any:
    import orjson

    try:
        return orjson.loads(line)
    except ValueError:  # names that are no UTF-8
        return json.loads(line.decode("utf-8", "replace"))


def _line(path: Path, place: int) -> bytes:
    """The line that begins there."""
    fd = os.open(path, os.O_RDONLY | platform.OPEN)
    try:
        line = b""
        while b"\n" not in line and (more := platform.pread(fd, _LINE, place + len(line))):
            line += more
        return line.partition(b"\n")[0]
    finally:
        os.close(fd)


def _parsed(facts: dict[str, Any]) -> dict[str, Any]:
    """What an entry is made of."""
    several = {name: tuple(map(str, facts.get(name, ()))) for name in ("sums", "marks", "inputs")}
    texts = {name: str(facts.get(name, "")) for name in ("content", "stamp")}
    return {
        "key": str(facts["key"]),
        "digest": str(facts["digest"]),
        "outputs": tuple(map(str, facts["outputs"])),
        "seconds": float(facts["seconds"]),
        "is_file": bool(facts.get("is_file")),
        "folders": {str(one): str(was) for one, was in facts.get("folders", {}).items()},
        **several,
        **texts,
    }


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
        """The run failed; where that cannot be written, as on a full disk, a warning says so."""
        facts = {"run": key, "kind": type(error).__name__, "error": str(error), "time": time.time()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._path(key), facts)
        except OSError as why:
            warnings.warn(f"the failure of {key} is not recorded: {why}", SharedMaskWarning, stacklevel=2)

    def remove(self, key: str) -> None:
        """The run is complete now."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._path(key).unlink()

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
