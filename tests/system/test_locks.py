"""Locks where the file system has none of the usual ones, or none at all."""

import errno
import fcntl
import json
import os
import struct
import threading
import time

import numpy as np
import pytest
from children import in_fork, running
from images import bold, random_masks, save
from lock_levels import only

from sharedmask import SharedImage, extract, extract_many
from sharedmask.compute import journal
from sharedmask.compute.journal import Entry, Journal
from sharedmask.errors import LockError, SegmentError, SharedMaskWarning
from sharedmask.system import files, locks


@pytest.fixture(params=["flock", "fcntl", "files"])
def level(request):
    """Each means by which a file can be locked, where those before it are missing."""
    with only(request.param):
        yield request.param


@pytest.fixture
def no_locks():
    with only("none"):
        yield


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "run.nii.gz", bold())


def work(path, tmp_path):
    """All that locks files: rows on disk, the registry, results, a journal."""
    masks = random_masks(2)
    for store in ("shm", "disk"):
        with SharedImage(path, store=store) as image:
            image.mask_parallel(masks)
    for _ in range(2):
        extract(path, masks, memory=tmp_path / "cache")
    kept = {}
    return extract_many([path], masks, on_result=kept.__setitem__, resume=tmp_path / "done.jsonl")


@pytest.mark.usefixtures("level")
def test_whatever_locks_there_are_all_works_and_nothing_is_left(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SHAREDMASK_DIR", str(tmp_path / "registry"))
    assert work(path, tmp_path).complete == [str(path)]
    assert work(path, tmp_path).skipped == [str(path)]
    left = {path.name for path in tmp_path.rglob("*.lock")}
    assert not left


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_whatever_a_file_system_says_that_has_none_the_next_is_tried(error, file):
    with only("files", error):
        fd = os.open(file, os.O_RDWR)
        assert locks.is_free(fd)
        locks.close(fd)


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "folder/file"
    file.parent.mkdir()
    file.touch()
    return file


HOLDING = """
    import fcntl, os, sys, time
    from lock_levels import only
    from sharedmask.system import files, locks
    with only(sys.argv[2]):
        fd = os.open(sys.argv[1], os.O_RDWR)
        locks.lock(fd, fcntl.LOCK_EX)
        kept = os.dup(fd)
        os.close(fd)
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_lock_keeps_others_out_and_ends_with_its_process(level, file):
    fd = os.open(file, os.O_RDWR)
    with running(HOLDING, file, level, helpers=True):
        assert not locks.is_free(fd)
        os.close(os.open(file, os.O_RDONLY))  # which would end a lock of the process
        assert not locks.is_free(fd)
    assert locks.is_free(fd)
    other = os.open(file, os.O_RDWR)
    assert not locks.is_free(other)
    locks.lock(fd, fcntl.LOCK_UN)
    assert locks.is_free(other)
    locks.close(other)
    locks.close(fd)
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.usefixtures("level")
def test_many_may_share_a_lock_and_nobody_has_it_alone_meanwhile(file):
    one, two, three = (os.open(file, os.O_RDWR) for _ in range(3))
    for fd in (one, two):
        locks.lock(fd, fcntl.LOCK_SH)
    for fd in (one, two):
        assert not locks.is_free(three)
        locks.close(fd)
    assert locks.is_free(three)
    with pytest.raises(BlockingIOError):
        locks.lock(other := os.open(file, os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB)
    locks.close(other)
    locks.close(three)


@pytest.mark.usefixtures("level")
def test_of_many_that_count_in_a_file_each_is_counted(file):
    def count():
        for _ in range(10):
            fd = os.open(file, os.O_RDWR)
            locks.lock(fd, fcntl.LOCK_EX)
            number = int(os.pread(fd, 9, 0) or b"0")
            time.sleep(0.001)
            os.pwrite(fd, b"%09d" % (number + 1), 0)
            locks.close(fd)

    threads = [threading.Thread(target=in_fork, args=(count,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(file.read_bytes()) == 40


@pytest.mark.usefixtures("level")
def test_a_process_that_was_forked_meanwhile_keeps_no_lock(file):
    """It has the descriptor of the thread that held the lock, which it does not have."""
    fd = os.open(file, os.O_RDWR)
    locks.lock(fd, locks.EXCLUSIVE)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)  # until the parent has looked
        os._exit(0)
    locks.let_go(fd)
    again = os.open(file, os.O_RDWR)
    try:
        assert locks.is_free(again)
    finally:
        locks.close(again)
        os.close(ours)
        os.close(theirs)
        os.waitpid(pid, 0)


def test_a_lock_of_another_machine_holds_for_a_day(file):
    name = f".sharedmask-00000000-1-5-{16 * '0'}-{file.stat().st_ino}x.lock"
    lock = file.with_name(name)
    lock.touch()
    with only("files"):
        fd = os.open(file, os.O_RDWR)
        assert not locks.is_free(fd)
        assert lock.exists()
        os.utime(lock, (time.time() - 90_000,) * 2)
        assert locks.is_free(fd)
        locks.close(fd)
    assert os.listdir(file.parent) == [file.name]


def test_a_lock_that_a_dead_process_left_is_swept(file):
    with running(HOLDING, file, "files", helpers=True):
        assert files.sweep(file.parent) == []
    assert len(os.listdir(file.parent)) == 2
    (swept,) = files.sweep(file.parent)
    assert swept.endswith(".lock")
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.usefixtures("no_locks")
def test_without_any_lock_the_disk_store_and_the_registry_are_refused_by_name(path, tmp_path):
    with (
        SharedImage(path, store="disk") as image,
        pytest.raises(LockError, match="cannot be locked"),
    ):
        image.load()
    with (
        SharedImage(path, store="shm") as image,
        pytest.raises(SegmentError, match=r"registry.*SHAREDMASK_DIR"),
    ):
        image.load()


@pytest.mark.usefixtures("no_locks")
def test_without_any_lock_nothing_is_cached_with_one_warning(path, tmp_path):
    masks = random_masks(2)
    with pytest.warns(SharedMaskWarning, match=r"not cached in .*its file system has no locks") as said:
        first = extract(path, masks, memory=tmp_path / "cache")
        again = extract(path, masks, memory=tmp_path / "cache")
    assert len(said) == 1
    np.testing.assert_array_equal(first[0], again[0])


@pytest.mark.usefixtures("no_locks")
def test_without_any_lock_a_journal_is_for_one_process_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_unlocked", set())
    with pytest.warns(SharedMaskWarning, match=r"done\.jsonl.*only one process may write") as said:
        for key in "ab":
            Journal(tmp_path / "done.jsonl").add(Entry(key, "digest"))
    assert len(said) == 1
    lines = (tmp_path / "done.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["a", "b"]


def test_what_is_asked_of_the_kernel_has_its_size():
    assert struct.calcsize("hhqqi4x") == 32
