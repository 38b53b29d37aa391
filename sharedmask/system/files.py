"""Files of our own: private directories, and files that are written whole or not at all.

Covers: where files that may be large go, opening a private directory, files without a name, writing and
reading all of a buffer, ``atomic_write`` and the sweep of what killed writers left.
Does not cover: locks (``locks``), what is kept in files (``registry``, ``storage.cache``, ``disk``,
``tables``).
"""

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from sharedmask.errors import SegmentError, SharedMaskWarning
from sharedmask.records import dataclass
from sharedmask.system import locks, platform, process, settings
from sharedmask.system.locks import OPEN
from sharedmask.system.platform import Folder

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what is read names itself
_REFUSED = {stat.S_IFDIR: (errno.EISDIR, "a directory"), stat.S_IFSOCK: (errno.ENXIO, "a socket")}
_FEW, _LINES = 2**16, 64  # bytes of a file that waits in memory; lines that are held at once
_swept: set[tuple[int, int]] = set()

DISK_FOLDER = "sharedmask-disk-"
"""What the name of the folder of images and frames on disk begins with; the user's number follows."""


def spill_folder() -> Path:
    """Where images and frames on disk are: ``$SHAREDMASK_TMPDIR``, else ``$TMPDIR``, else /var/tmp."""
    chosen = settings.current().spill_dir or os.environ.get("TMPDIR")
    usual = Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else Path(tempfile.gettempdir())
    return (Path(chosen) if chosen else usual).absolute()


@contextlib.contextmanager
def private_directory(path: Path, what: str, refused: int = 0o077) -> Iterator[Folder]:
    """The directory ``path``, open, made if it is missing; ``what`` names it in messages.

    Of the permissions of others, it must have none that are in ``refused``. An error about a name in it, or
    a file that has none yet, tells the whole path.

    Raises SegmentError: it cannot be used, or others than this user can.
    """
    try:
        try:
            folder = platform.open_folder(path, platform.NOFOLLOW)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            folder = platform.open_folder(path, platform.NOFOLLOW)
    except OSError as error:
        raise SegmentError(f"{what} {path} cannot be used: {error.strerror}") from error
    try:
        facts = os.stat(folder)
        if not platform.is_private(facts, refused):
            mode = stat.S_IMODE(facts.st_mode)
            raise SegmentError(f"{what} {path} must be private: uid {facts.st_uid}, mode {mode:o}")
        yield folder
    except OSError as error:
        name = error.filename
        if isinstance(name, str) and (name.startswith("/proc/self/fd/") or not os.path.isabs(name)):
            _name_only(error, os.path.normpath(path / ("" if os.path.isabs(name) else name)))
        raise
    finally:
        locks.close(folder)


def _name_only(error: OSError, path: str) -> None:
    """Have an error tell this path and no other, not even that there is none."""
    error.filename = path
    del error.filename2


# --- files of ours -------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_ours(folder: Folder, name: str, magic: bytes | tuple[bytes, ...] = b"") -> Iterator[int | None]:
    """A descriptor of a regular file of this user's that begins so; None if it is another, or gone."""
    try:
        fd = platform.open_at(folder, name, os.O_RDONLY | OPEN)
    except OSError:
        yield None
        return
    try:
        yield fd if is_ours(fd, magic) else None
    finally:
        locks.let_go(fd)  # who asks whether a lock is free has it


@contextlib.contextmanager
def abandoned(folder: Folder, name: str, magic: bytes | tuple[bytes, ...] = b"") -> Iterator[int | None]:
    """The same of a file that nobody has locked: it is locked by us now, and still has its name."""
    with opened_ours(folder, name, magic) as fd:
        yield fd if fd is not None and locks.is_free(fd) and locks.is_named(folder, name, fd) else None


def is_ours(fd: int, magic: bytes | tuple[bytes, ...] = b"") -> bool:
    """Whether the file is regular, this user's, and begins so, or is empty."""
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or not platform.is_private(facts):
        return False
    return not facts.st_size or not magic or platform.pread(fd, 64, 0).startswith(magic)


# --- bytes ---------------------------------------------------------------------------------------


def nameless(folder: Folder, mode: int = 0o600) -> int | None:
    """A new file in the directory that has no name yet; None where that is impossible."""
    try:
        return platform.open_nameless(folder, mode)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
        return None


def scratch(path: str | os.PathLike[str]) -> int:
    """A new file in a directory that never has a name, or, where that is impossible, none any more."""
    folder = platform.open_folder(path)
    try:
        fd = nameless(folder)
        return platform.open_passing(folder, process.named_file(".tmp"), 0o600) if fd is None else fd
    finally:
        locks.close(folder)


def pwrite_all(fd: int, data: memoryview | bytes, place: int) -> None:
    """Write all of ``data``, bytes, at ``place``."""
    left = memoryview(data)
    while left:
        done = platform.pwrite(fd, left, place)
        left, place = left[done:], place + done


def pread_into(fd: int, view: memoryview, place: int) -> int:
    """Fill ``view`` from ``place`` on; the number of bytes read, fewer only where the file ends."""
    done = 0
    while done < len(view) and (got := platform.pread_into(fd, view[done:], place + done)):
        done += got
    return done


# --- whole or not at all -------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name to write to, whose file becomes ``path`` if all went well and else never was.

    The file has no name while it is written, so that no signal leaves one; where files must have a name
    (network file systems), the next process that writes to the directory removes those of dead ones.
    Its bytes are on the disk before it is called ``path``, and the name is there when this returns, or
    (``together``) many at once.
    What is no regular file (a pipe, a device) is written to, never replaced. An error of the system's that
    is about this file, such as a full disk, names ``path``.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "out.tsv")) as temporary:
    ...         _ = temporary.write_text("a\\n")
    ...     os.listdir(folder)
    ['out.tsv']
    """
    path = Path(os.path.abspath(path))
    if _is_special(path):
        with _passed_on(path) as temporary:
            yield temporary
        return
    with _drafted(Draft(path)) as draft:
        draft.begin()
        with _naming(path, draft.temporary):
            yield draft.temporary


def write_text(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Write lines, in UTF-8, to a file that becomes ``path`` as that of :func:`atomic_write` does.

    Among files that get their names together a small one is in memory until then.
    """
    path = Path(os.path.abspath(path))
    if not drafts_of_thread() or _is_special(path):
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        return
    with _drafted(Draft(path)) as draft:
        lines = iter(lines)
        while piece := "".join(islice(lines, _LINES)):
            draft.add(piece.encode())


@contextlib.contextmanager
def _drafted(draft: "Draft") -> Iterator["Draft"]:
    """It gets its name if all went well, now or with others, and else goes."""
    with contextlib.ExitStack() as stack:
        stack.callback(draft.close)
        try:
            yield draft
            if waiting := drafts_of_thread():
                waiting[-1].append(draft)
                stack.pop_all()  # who waits closes it
                return
            draft.sync()
            draft.name()
        except BaseException:
            draft.give_up()
            raise
        platform.sync_folder(draft.folder)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """``facts`` as JSON, whole or not at all."""
    write_text(path, [legible(json.dumps(facts, indent=2, ensure_ascii=False), r"\\x{:02x}"), "\n"])


def legible(text: str, other: str = r"\x{:02x}") -> str:
    """``text`` with names of files in UTF-8 whatever the locale; bytes that are not, as ``other``."""
    if text.isascii():
        return text
    whole = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda byte: other.format(ord(byte[0]) - 0xDC00), whole)


def readable(path: str | os.PathLike[str]) -> str:
    """A path as text that can be written anywhere: UTF-8 whatever the locale, other bytes as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def file_name(text: str) -> str:
    """The name of a file that is ``text`` in UTF-8, whatever the locale."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


@contextlib.contextmanager
def about(path: Path) -> Iterator[None]:
    """An error of our own calls names the output, and no descriptor or temporary name."""
    try:
        yield
    except OSError as error:
        _name_only(error, os.fspath(path))
        raise


@contextlib.contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        is_ours = error.filename is None and error.errno in _OF_WRITING
        if is_ours or error.filename == os.fspath(temporary):
            error.filename = os.fspath(path)
        raise


def _is_special(path: Path) -> bool:
    """Whether the path leads to what is no regular file, or through a descriptor (``/dev/stdout``).

    Raises OSError, naming it: it is a directory or a socket, which nothing can be written to.
    """
    with contextlib.suppress(OSError):
        facts = os.stat(folder := os.path.dirname(path))
        place = _real(folder, (facts.st_dev, facts.st_ino))
        if place == "/dev" or place.startswith("/proc/"):
            return True
    mode = _mode(path)
    if refused := _REFUSED.get(stat.S_IFMT(mode)):
        raise OSError(refused[0], f"{refused[1]} has the name of this output", os.fspath(path))
    return bool(mode) and not stat.S_ISREG(mode)


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


@functools.lru_cache(maxsize=16)
def _real(folder: str, _: object) -> str:
    """The folder's own name, which many files share; asked for again if the name leads to another."""
    return os.path.realpath(folder)


@contextlib.contextmanager
def _passed_on(path: Path) -> Iterator[Path]:
    """A file of its own, since writers of archives go back in theirs; its bytes then go to ``path``."""
    with _receiver(path) as receiver, _draft_elsewhere() as temporary:
        with _naming(path, temporary):
            yield temporary
        is_path = isinstance(receiver, Path)
        with about(path), open(temporary, "rb") as draft, open(receiver, "wb", closefd=is_path) as to:
            shutil.copyfileobj(draft, to)


@contextlib.contextmanager
def _receiver(path: Path) -> Iterator[int | Path]:
    """What is opened to write to it: of a pipe a descriptor, since its name waits for who reads it.

    Raises OSError, naming it: nobody does.
    """
    if not stat.S_ISFIFO(_mode(path)):
        yield path
        return
    try:
        fd = os.open(path, os.O_WRONLY | platform.OPEN | platform.NOT_WAITING)
    except OSError as error:
        error.strerror = "nobody reads this pipe" if error.errno == errno.ENXIO else error.strerror
        raise
    try:
        os.set_blocking(fd, True)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _draft_elsewhere() -> Iterator[Path]:
    """A file to write to by name, which goes; where descriptors have no names, it has one of its own."""
    if platform.has_proc():
        with open(scratch(spill_folder()), "r+b") as draft:
            yield Path(f"/proc/self/fd/{draft.fileno()}")
    else:
        with tempfile.TemporaryDirectory(dir=spill_folder(), prefix="sharedmask-") as folder:
            yield Path(folder, "draft")


_here = threading.local()


def drafts_of_thread() -> list[list["Draft"]]:
    """Where files that this thread writes wait for their names; the innermost last."""
    found: list[list[Draft]] = _here.__dict__.setdefault("drafts", [])
    return found


@dataclass(eq=False)
class Draft:
    """A file that waits for its name: bytes in memory, or in a file without one, or with one of its own."""

    path: Path
    known: tuple[int, Any] | None = field(default=None, init=False)
    """How many bytes it has, and their digest, if they were in memory."""
    _folder: Folder | None = field(default=None, init=False)
    _is_lent: bool = field(default=False, init=False)
    """Whether the folder is others', too, who close it."""
    _fd: int = field(default=-1, init=False)
    _name: str = field(default="", init=False)
    _held: list[bytes] = field(default_factory=list, init=False)

    @property
    def temporary(self) -> Path:
        """What it can be opened by."""
        return self.path.with_name(self._name) if self._name else Path(f"/proc/self/fd/{self._fd}")

    @property
    def folder(self) -> Folder:
        """Where it will be."""
        if self._folder is None:
            self._folder = open_to_write(self.path.parent)
        return self._folder

    def add(self, data: bytes) -> None:
        """Its next bytes, which are in memory while they are few."""
        self._held.append(data)
        if self._fd >= 0 or sum(map(len, self._held)) > _FEW:
            self.begin()

    def begin(self, lent: Folder | None = None) -> None:
        """Have a file of it, in a folder that is lent to it until it has its name."""
        if lent is not None and self._folder is None:
            self._folder, self._is_lent = lent, True
        with about(self.path):
            data, is_new = b"".join(self._held), self._fd < 0
            self._held.clear()  # what cannot be written is not written twice
            if is_new:
                self._fd, self._name = _opened(self.folder, 0o666)
            if data:
                self.known = (len(data), blake2b(data)) if is_new else None
                platform.write_all(self._fd, data)
                platform.begin_sync(self._fd)

    def sync(self) -> None:
        """Have its bytes on the disk."""
        self.begin()
        with about(self.path):
            os.fsync(self._fd)

    def name(self) -> None:
        with about(self.path):
            if not self._name:
                with contextlib.suppress(FileExistsError):
                    platform.link_at(self._fd, self.folder, self.path.name)
                    return
                name = process.named_file(".tmp")
                platform.link_at(self._fd, self.folder, name)
                self._name = name
            platform.let_go(self._fd)
            platform.replace_at(self.folder, self._name, self.path.name)
            self._name = ""

    def give_up(self) -> None:
        """It goes, unless what is half written is to stay."""
        if settings.current().cleanup_temporary:
            return
        with contextlib.suppress(FileNotFoundError):
            self.begin()
            platform.let_go(self._fd)
            name = f".{self.path.name[:200]}.{os.urandom(8).hex()}.tmp"
            said = f"left half written: {self.path.with_name(name)}"
            warnings.warn(said, SharedMaskWarning, stacklevel=5)
            if self._name:
                platform.replace_at(self.folder, self._name, name)
            else:
                platform.link_at(self._fd, self.folder, name)

    def close(self) -> None:
        """It is gone if it has no name by now."""
        if self._name:
            platform.let_go(self._fd)
            with contextlib.suppress(OSError):
                platform.unlink_at(self.folder, self._name)
        locks.close(self._fd)
        if self._folder is not None and not self._is_lent:
            locks.close(self._folder)


def open_to_write(path: Path) -> Folder:
    """A directory that files will be made in, without what killed writers left there."""
    folder = platform.open_folder(path)
    facts = os.stat(folder)
    # Once per process and directory: there may be a great many files in it, and as many to write.
    if (facts.st_dev, facts.st_ino) not in _swept:
        _swept.add((facts.st_dev, facts.st_ino))
        with contextlib.suppress(OSError):
            _sweep(folder)
    return folder


def _opened(folder: Folder, mode: int) -> tuple[int, str]:
    """A new file, and its name if it must have one."""
    if (fd := nameless(folder, mode)) is not None:
        return fd, ""
    name = process.named_file(".tmp")
    return platform.open_at(folder, name, os.O_CREAT | os.O_EXCL | os.O_RDWR | OPEN, mode), name


# --- what killed writers left --------------------------------------------------------------------


def sweep(path: str | os.PathLike[str]) -> list[str]:
    """Remove what killed writers left half written in a directory; the paths of what was removed."""
    folder = platform.open_folder(path)
    try:
        return [os.path.join(path, name) for name in _sweep(folder)]
    finally:
        locks.close(folder)


def _sweep(folder: Folder) -> list[str]:
    return [name for name in os.listdir(folder) if _is_of_the_dead(name) and _remove_ours(folder, name)]


def _is_of_the_dead(name: str) -> bool:
    owner = process.owner_of(name)
    return owner is not None and process.start_time(owner[0]) != owner[1]


def _remove_ours(folder: Folder, name: str) -> bool:
    with opened_ours(folder, name) as fd:
        return fd is not None and platform.remove_open(folder, name, fd)
