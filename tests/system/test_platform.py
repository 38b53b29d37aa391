"""What stands in where the system lacks a function: the same, by others."""

import errno
import os
from pathlib import Path

import bare
import pytest

from sharedmask.system import locks, platform

MISSING = ("pread", "pwrite", "preadv", "posix_fallocate", "posix_fadvise", "fdatasync", "sched_getaffinity")


@pytest.fixture(params=["here", "elsewhere"])
def system(request, monkeypatch):
    """This one, and one without what Windows lacks."""
    if request.param == "elsewhere":
        for name in (*MISSING, "O_TMPFILE", "RWF_NOWAIT"):
            monkeypatch.delattr(os, name)
        monkeypatch.setattr(platform, "_HAS_DIR_FD", False)
        monkeypatch.setattr(platform, "_HAS_UTIME_OF_FD", False)
    return request.param


def test_bytes_are_read_and_written_in_their_place(system, tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    platform.reserve(fd, 0, 100)
    assert os.fstat(fd).st_size == 100
    os.lseek(fd, 7, os.SEEK_SET)
    assert platform.pwrite(fd, b"abc", 50) == 3
    piece = bytearray(200)
    assert platform.pread(fd, 2, 51) == b"bc"
    assert platform.pread_into(fd, memoryview(piece), 49) == 51
    assert piece[:5] == b"\0abc\0"
    assert os.lseek(fd, 0, os.SEEK_CUR) == 7
    platform.advise_file(fd, 0, 0, "POSIX_FADV_RANDOM")
    platform.sync(fd)
    platform.sync_data(fd)
    os.close(fd)


def test_names_in_a_directory(system, tmp_path):
    folder = platform.open_folder(tmp_path)
    locks.close(platform.open_at(folder, "a", os.O_CREAT | os.O_WRONLY))
    platform.replace_at(folder, "a", "b")
    assert "b" in os.listdir(folder) and "a" not in os.listdir(folder)
    fd = platform.open_at(folder, "b", os.O_RDONLY)
    assert os.path.samestat(platform.stat_at(folder, "b"), os.fstat(fd))
    os.utime(tmp_path / "b", (1, 1))
    platform.touch_at(folder, "b", fd)
    assert os.fstat(fd).st_mtime > 1
    locks.close(fd)
    platform.unlink_at(folder, "b")
    platform.sync_folder(folder)
    locks.close(folder)
    assert "b" not in os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("make", "number"), [(None, errno.ENOENT), ("file", errno.ENOTDIR), ("link", errno.ENOTDIR)]
)
def test_what_is_no_directory_is_not_opened(system, tmp_path, make, number):
    place = tmp_path / "place"
    if make == "file":
        place.touch()
    if make == "link":
        place.symlink_to(tmp_path)
    with pytest.raises(OSError) as refused:
        platform.open_folder(place, platform.NOFOLLOW)
    assert refused.value.errno == number


def test_cpus_are_known_or_not(system):
    assert platform.cpus() == (os.sched_getaffinity(0) if system == "here" else set())


def test_locks_of_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", bare.Msvcrt())
    one, other = (os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT) for _ in range(2))
    os.write(one, b"content")
    locks.lock(one, locks.EXCLUSIVE)
    assert not locks.is_free(other)
    locks.lock(other, locks.SHARED)  # who reads needs none
    locks.lock(one, locks.NONE)
    assert locks.is_free(other)
    assert os.lseek(one, 0, os.SEEK_CUR) == 7
    assert locks.msvcrt.places == {(2**31 - 2, 1)}
    locks.close(one)
    locks.close(other)


def test_without_any_locks_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(locks.LockError, match="file cannot be locked"):
        locks.lock(fd, locks.EXCLUSIVE)
    locks.close(fd)


@pytest.mark.parametrize("asked", ["the system", "each folder"])
def test_a_path_is_real_if_no_link_is_in_it(tmp_path, monkeypatch, asked):
    if asked == "each folder":
        monkeypatch.setattr(platform, "has_proc", lambda: False)
    folder = Path(os.path.realpath(tmp_path))
    (folder / "a").mkdir()
    (folder / "a" / "file").write_text("")
    (folder / "b").symlink_to("a")
    (folder / "a" / "link").symlink_to("file")
    assert platform.is_real(str(folder / "a" / "file")) and platform.is_real(str(folder / "a"))
    assert not any(map(platform.is_real, [f"{folder}/b/file", f"{folder}/a/link", f"{folder}/b"]))
    assert platform.is_real(str(folder / "a" / "not there"))
