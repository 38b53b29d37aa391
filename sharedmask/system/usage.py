"""Usage: the memory that a tree of processes holds, each byte counted once.

Covers: what counts, on Linux. Does not cover: sampling over time (``monitor``), how much there is
(``limits``).

What counts:

- of each process in the tree, its proportional share (PSS) of private pages;
- of each shared memory object that the tree maps, all of its bytes, once. PSS would miss those
  that no page table shows: reserved and not touched yet, or written by a worker that has left;
- apart from that, mapped pages of files (PSS): the kernel drops them when memory is short.

Summed resident sizes are no measure: they count a shared page once per process.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sharedmask.records import dataclass
from sharedmask.system import platform
from sharedmask.system.files import DISK_FOLDER

_SHARE = re.compile(rb"^(Pss|Pss_Anon|Pss_Shmem): +(\d+) kB", re.MULTILINE)
_SHARED_OBJECT = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) (\S+) (\d+) +((?:/dev/shm/|/memfd:|/dev/zero|/SYSV).*)$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Usage:
    """Bytes that processes hold at one moment."""

    private: dict[int, int]
    """PSS of private pages of each process, by its pid."""
    shared: int
    """Shared memory, once."""
    files: int
    """PSS of pages of mapped files: programs, and images on disk."""
    spilled: int
    """On disk: files of the disk store that are in use, once."""

    @property
    def held(self) -> int:
        """Memory that stays in use until it is released."""
        return sum(self.private.values()) + self.shared

    @property
    def total(self) -> int:
        return self.held + self.files


def of_tree(pid: int | None = None) -> Usage:
    """What process ``pid`` (None: this one) and its descendants hold together; 0 once it has ended."""
    shared: dict[tuple[bytes, bytes], int] = {}
    private: dict[int, int] = {}
    spilled: dict[tuple[int, int], int] = {}
    files = 0
    for one in _tree(os.getpid() if pid is None else pid):
        with suppress(OSError):  # it left meanwhile
            private[one], of_files = _shares(one)
            files += of_files
            for key, nbytes in _shared_objects(one):
                shared[key] = max(shared.get(key, 0), nbytes)
            spilled |= {key: facts.st_blocks * 512 for key, facts in _spilled_files(one, f"/{DISK_FOLDER}")}
    return Usage(private, sum(shared.values()), files, sum(spilled.values()))


def _tree(pid: int) -> list[int]:
    import psutil  # here, because requests that nobody watches need not wait for it

    with suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def _shares(pid: int) -> tuple[int, int]:
    """PSS of private pages, and of files; without /proc what is resident."""
    if not platform.has_proc():
        import psutil

        try:
            return psutil.Process(pid).memory_info().rss, 0
        except psutil.Error as error:
            raise ProcessLookupError(f"process {pid} is not to be seen") from error
    found = _SHARE.findall(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
    kib = {name: int(value) for name, value in found}
    private = kib.get(b"Pss_Anon", 0)
    return private * 1024, (kib.get(b"Pss", 0) - private - kib.get(b"Pss_Shmem", 0)) * 1024


def _shared_objects(pid: int) -> Iterator[tuple[tuple[bytes, bytes], int]]:
    """(device and inode, bytes) of the shared memory that a process maps."""
    for start, stop, offset, device, inode, name in _SHARED_OBJECT.findall(
        Path(f"/proc/{pid}/maps").read_bytes()
    ):
        extent = int(offset, 16) + int(stop, 16) - int(start, 16)
        yield (device, inode), _allocated(name, extent)


def nameless_bytes(folder: Path) -> int:
    """On disk: files without a name in ``folder`` that processes of this user have open, once."""
    nameless: dict[tuple[int, int], int] = {}
    for pid in filter(str.isdigit, os.listdir("/proc") if platform.has_proc() else ()):
        with suppress(OSError):  # it left meanwhile, or is another user's
            found = _spilled_files(int(pid), f"{folder}/")
            nameless |= {key: facts.st_blocks * 512 for key, facts in found if not facts.st_nlink}
    return sum(nameless.values())


def _spilled_files(pid: int, within: str) -> Iterator[tuple[tuple[int, int], os.stat_result]]:
    """(device and inode, facts) of the files of the disk store that a process has open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if within in os.readlink(link):
                facts = link.stat()
                yield (facts.st_dev, facts.st_ino), facts


def _allocated(name: bytes, extent: int) -> int:
    """Bytes behind a mapping: those of its file or, of a file without a name, those mapped."""
    with suppress(OSError):
        return Path(name.decode()).stat().st_blocks * 512
    return extent
