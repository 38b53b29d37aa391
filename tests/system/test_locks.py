"""Locks where the file system has none of the usual ones, or none at all."""

import errno
import fcntl
import json
import os
import struct

import numpy as np
import pytest
from children import running
from images import bold, random_masks, save

from sharedmask import SharedImage, extract, extract_many
from sharedmask.compute import journal
from sharedmask.compute.journal import Entry, Journal
from sharedmask.errors import LockError, SegmentError, SharedMaskWarning
from sharedmask.system import files

OFD = (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW)


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_flock(request, monkeypatch):
    """As on a file system that is mounted without flock."""

    def refused(fd, how):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)


@pytest.fixture
def no_locks(no_flock, monkeypatch):
    """Nor has it those of fcntl."""
    usual = fcntl.fcntl

    def refused(fd, command, *rest):
        if command in OFD:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        return usual(fd, command, *rest)

    monkeypatch.setattr(fcntl, "fcntl", refused)


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


@pytest.mark.usefixtures("no_flock")
def test_without_flock_all_works(path, tmp_path):
    assert work(path, tmp_path).complete == [str(path)]
    assert work(path, tmp_path).skipped == [str(path)]


@pytest.mark.usefixtures("no_flock")
def test_another_lock_keeps_others_out_and_ends_with_its_process(tmp_path):
    file = tmp_path / "lock"
    file.touch()
    script = """
        import fcntl, os, struct, sys, time
        fd = os.open(sys.argv[1], os.O_RDWR)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        print("ready", flush=True)
        time.sleep(60)
    """
    fd = os.open(file, os.O_RDWR)
    with running(script, file):
        assert not files.is_free(fd)
        os.close(os.open(file, os.O_RDONLY))  # which would end a lock of the process
        assert not files.is_free(fd)
    assert files.is_free(fd)
    other = os.open(file, os.O_RDWR)
    assert not files.is_free(other)
    files.lock(fd, fcntl.LOCK_UN)
    assert files.is_free(other)
    os.close(other)
    os.close(fd)


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
