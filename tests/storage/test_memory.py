"""Memory by a name and without one: sealed, found, removed, and no room for it."""

import dataclasses
import fcntl
import mmap
import os
import textwrap

import numpy as np
import pytest
from children import python, running
from faults import failing
from owners import TOKEN, WITH_VOXELS

from sharedmask.cli import doctor
from sharedmask.errors import AttachError, SegmentError
from sharedmask.storage import memory
from sharedmask.storage import segment as segments
from sharedmask.storage.registry import reap
from sharedmask.storage.segment import Handle, Segment, attach


def test_sealed_anonymous_memory_cannot_change_or_shrink():
    made = Segment(TOKEN, WITH_VOXELS, "memfd")
    made.share("run", {})
    fd = made.store.fd
    for attempt in (
        lambda: os.ftruncate(fd, 100),
        lambda: os.ftruncate(fd, made.store.nbytes + 4096),
        lambda: os.pwrite(fd, b"x", 0),
        lambda: mmap.mmap(fd, 4096),
        lambda: os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC),
        lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x1),
    ):
        with pytest.raises(OSError):
            attempt()
    made.store.release()


def test_a_writer_that_is_left_is_an_error_before_anybody_can_attach():
    made = Segment(TOKEN, WITH_VOXELS, "memfd")
    with mmap.mmap(made.store.fd, 4096), pytest.raises(SegmentError, match="cannot be sealed"):
        made.share("run", {})
    made.store.release()


def test_a_reused_descriptor_is_refused(tmp_path):
    """The owner closed the image, and the number is another file's now, or another image's."""
    made = Segment(TOKEN, WITH_VOXELS, "memfd")
    handle, fd = made.share("run", {}), made.store.fd
    for other, message in (
        (os.open(tmp_path / "other", os.O_CREAT), "is gone"),
        (os.memfd_create(handle.name), "another segment"),
    ):
        os.dup2(other, fd)
        os.close(other)
        with pytest.raises(AttachError, match=message):
            attach(handle)
    made.store.release()


def test_a_pipe_under_the_number_does_not_block():
    made = Segment(TOKEN, WITH_VOXELS, "memfd")
    handle = made.share("run", {})
    read, write = os.pipe()
    os.dup2(read, made.store.fd)
    with pytest.raises(AttachError, match="is gone"):
        attach(handle)
    os.close(read)
    os.close(write)
    made.store.release()


def test_an_unsealed_memory_is_refused(monkeypatch):
    made = Segment(TOKEN, WITH_VOXELS, "memfd")
    monkeypatch.setattr(memory.Memfd, "seal", lambda self: None)
    with pytest.raises(AttachError, match="not sealed"):
        attach(made.share("run", {}))
    made.store.release()


@pytest.mark.parametrize(("change", "message"), [({"pid_ns": 1}, "namespace"), ({"started": 1}, "has ended")])
def test_an_owner_that_is_not_the_one_is_refused(change, message):
    with running(OWNER_OF_MEMFD) as child:
        handle = Handle.from_json(child.said[0])
        np.testing.assert_array_equal(attach(handle).arrays["rows"], np.full((3, 5), 7))
        with pytest.raises(AttachError, match=message):
            attach(dataclasses.replace(handle, **change))
    reap()


OWNER_OF_MEMFD = """
    import time, numpy as np
    from sharedmask.storage.registry import OwnedSegment as Owned
    owned = Owned("run.nii.gz", {"rows": ((3, 5), np.dtype("int16"))}, "memfd")
    owned.segment.array("rows")[:] = 7
    print("ready", owned.share({}).to_json(), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every process")
def test_an_owner_that_lets_nobody_look_is_refused_with_the_cause():
    script = "import ctypes; ctypes.CDLL(None).prctl(4, 0)\n" + textwrap.dedent(OWNER_OF_MEMFD)
    with running(script) as child:
        handle = Handle.from_json(child.said[0])
        with pytest.raises(AttachError, match="not dumpable"):
            attach(handle)
    reap()


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("shm", r"too small: 1 MiB are needed and [\d,]+ MiB were free"),
        ("memfd", "memory is short: 1 MiB"),
    ],
)
def test_no_room_is_an_error_with_numbers_and_nothing_left(store, message):
    with failing("posix_fallocate", "ENOSPC"), pytest.raises(SegmentError, match=message):
        Segment(TOKEN, {"rows": ((2**18,), np.dtype("f4"))}, store)
    assert not os.path.exists(f"/dev/shm/{segments.segment_name(TOKEN)}")


@pytest.mark.parametrize("store", ["shm", "memfd"])
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("RLIMIT_FSIZE", "8 MiB cannot be reserved: File too large (files and shared memory are limited:"),
        ("RLIMIT_AS", "8 MiB cannot be mapped: Cannot allocate memory"),
    ],
)
def test_a_limit_of_the_process_is_one_sentence_and_nothing_else(limit, message, store):
    """Not even a traceback of the standard tracker's."""
    script = f"""
    import mmap, resource, sys
    from multiprocessing import resource_tracker
    from pathlib import Path
    import numpy as np
    from sharedmask.errors import SegmentError
    from sharedmask.storage.registry import OwnedSegment

    OwnedSegment("small", {{"rows": ((5,), np.dtype("f4"))}}, "{store}").release()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.{limit}, ({limit == "RLIMIT_AS"} * used + 2**22,) * 2)
    try:
        OwnedSegment("large", {{"rows": ((2**21,), np.dtype("f4"))}}, "{store}")
    except SegmentError as error:
        print(error)
    resource_tracker._resource_tracker._stop()
    """
    done = python(textwrap.dedent(script), fresh=True)
    assert done.stdout.startswith(message), done
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("spare", "store"), [(0, "memfd"), (3 * 4096, "memfd"), (2**20, "shm")])
def test_auto_leaves_room_for_the_record(monkeypatch, spare, store):
    monkeypatch.setattr(memory, "free_bytes", lambda: 2**24 + spare)
    for name in memory._BATCH_JOBS:
        monkeypatch.delenv(name, raising=False)
    assert memory.choose("auto", 2**24)[0] == store


def test_memory_that_is_short_is_not_taken_for_a_small_shm():
    with failing("posix_fallocate", "ENOMEM"), pytest.raises(SegmentError, match="memory is short: 1 MiB"):
        Segment(TOKEN, {"rows": ((2**18,), np.dtype("f4"))}, "shm")


def test_a_name_in_use_is_an_error(named):
    with pytest.raises(SegmentError):
        Segment(TOKEN, WITH_VOXELS, "shm")


def test_remove_only_touches_our_names(tmp_path):
    assert not memory.remove("../etc/passwd")
    assert not memory.remove("sharedmask-xyz")
    assert not memory.remove("sharedmask-0000000000000000")


# --- none that has a name ---


@pytest.fixture(params=["missing", "read-only"])
def no_shm(request, monkeypatch, tmp_path):
    """As in containers and for functions of cloud services: there is none, or nothing can be made in it."""
    if request.param == "missing":
        monkeypatch.setattr(memory, "SHM", tmp_path / "none")
        return
    usual = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != memory.SHM and usual(path, mode))


@pytest.mark.usefixtures("no_shm")
def test_where_nothing_can_be_made_auto_is_anonymous_memory():
    assert memory.choose("auto", 1000) == ("memfd", f"nothing can be made in {memory.SHM}")


@pytest.mark.parametrize("no_shm", ["read-only"], indirect=True)
@pytest.mark.usefixtures("no_shm")
def test_the_doctor_says_where_nothing_can_be_made():
    findings = {finding.what: finding for finding in doctor.examine()}
    assert not findings["named shared memory"].ok
    assert "nothing can be made" in findings["named shared memory"].detail
    assert findings["attaching from another process (memfd)"].needed
    assert not findings["attaching from another process (shm)"].needed


def test_a_daemon_that_closed_all_descriptors_writes_into_no_file_of_its_own(tmp_path):
    script = """
    import os, sys
    from multiprocessing import resource_tracker
    import numpy as np
    from sharedmask.storage.registry import OwnedSegment

    def own():
        return OwnedSegment("run.nii", {"rows": ((2, 3), np.dtype("f4"))})

    own().release()  # by which the tracker is started
    told_by = resource_tracker._resource_tracker._fd
    if not os.fork():
        os.closerange(3, 256)
        while os.open(sys.argv[1], os.O_CREAT | os.O_RDWR) < told_by:
            pass
        own().release()
        os._exit(0)
    print(os.waitpid(-1, 0)[1], os.path.getsize(sys.argv[1]))
    """
    done = python(textwrap.dedent(script), tmp_path / "users.txt", fresh=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 0\n", "")
