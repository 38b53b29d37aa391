"""Segments: made, written, sealed, attached, refused."""

import dataclasses
import fcntl
import gc
import json
import mmap
import os
import secrets
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from children import running
from faults import failing

from sharedmask.errors import AttachError, SegmentError
from sharedmask.storage import container, memory
from sharedmask.storage import segment as segments
from sharedmask.storage.registry import reap
from sharedmask.storage.segment import Handle, Segment, attach
from sharedmask.system import process

TOKEN = secrets.token_hex(16)  # sessions of tests may run beside each other


GEOMETRY = {"rows": ((3, 5), np.dtype("int16")), "voxels": ((3,), np.dtype(np.intp))}


@pytest.fixture(params=["shm", "memfd"])
def segment(request):
    made = Segment(TOKEN, GEOMETRY, request.param)
    yield made
    made.store.release()
    vars(made).pop("_map", None)  # pytest holds on to the fixture's value


@pytest.fixture
def named():
    made = Segment(TOKEN, GEOMETRY, "shm")
    yield made
    made.store.release()
    vars(made).pop("_map", None)


def path_of(segment):
    """Where the owner can tamper with its own segment; a sealed memfd cannot be."""
    return f"/dev/shm/{segment.store.name}"


@pytest.fixture
def handle(segment):
    segment.array("rows")[:] = np.arange(15).reshape(3, 5)
    segment.array("voxels")[:] = [2, 3, 7]
    return segment.share("run.nii.gz", {"finite": True})


def test_attached_arrays_are_the_written_ones(handle):
    found = attach(handle)
    np.testing.assert_array_equal(found.arrays["rows"], np.arange(15).reshape(3, 5))
    np.testing.assert_array_equal(found.arrays["voxels"], [2, 3, 7])
    assert found.arrays["rows"].dtype == np.int16
    assert found.meta == {"finite": True}


def test_arrays_start_at_multiples_of_64_bytes(handle):
    for array in attach(handle).arrays.values():
        assert array.ctypes.data % 64 == 0


def test_attached_arrays_cannot_be_made_writable(handle):
    rows = attach(handle).arrays["rows"]
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1
    with pytest.raises(ValueError):
        rows.flags.writeable = True


def test_one_mapping_per_process(handle):
    assert attach(handle) is attach(handle)


def test_views_keep_their_bytes_after_unlink(handle, segment):
    view = attach(handle).arrays["rows"][1:, ::2].T
    segment.store.release()
    gc.collect()
    np.testing.assert_array_equal(view, np.arange(15).reshape(3, 5)[1:, ::2].T)


def test_the_map_goes_with_the_last_view(handle):
    def mapped():
        with open("/proc/self/maps") as maps:
            return segments.segment_name(TOKEN) in maps.read()

    view = attach(handle).arrays["rows"][1]
    gc.collect()
    assert mapped()
    del view
    gc.collect()
    assert not mapped()


def test_a_sealed_segment_is_read_only_for_its_owner_too(handle, segment):
    with segment.store.opened() if handle.store == "memfd" else open(path_of(segment), "rb") as file:
        assert os.fstat(file if isinstance(file, int) else file.fileno()).st_mode & 0o777 == 0o400
    with pytest.raises(AttributeError):
        segment.array("rows")


def test_sealed_anonymous_memory_cannot_change_or_shrink():
    made = Segment(TOKEN, GEOMETRY, "memfd")
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
    made = Segment(TOKEN, GEOMETRY, "memfd")
    with mmap.mmap(made.store.fd, 4096), pytest.raises(SegmentError, match="cannot be sealed"):
        made.share("run", {})
    made.store.release()


def test_output_segment_is_writable_by_workers():
    for store in ("shm", "memfd"):
        made = Segment(TOKEN, {"out": ((4,), np.dtype("f4"))}, store)
        there = attach(made.share("output", {}, writable=True), writable=True).arrays["out"]
        there[:] = 7
        np.testing.assert_array_equal(made.array("out"), [7, 7, 7, 7])
        made.store.release()


def test_handle_survives_json(handle):
    assert Handle.from_json(handle.to_json()) == handle
    assert len(handle.to_json()) < 600


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "{", '{"token": 1}', "null", "[" * 100_000, b"\xff\xfe", '"x"'], ids=range(9)
)
def test_what_is_no_handle_is_refused(text):
    with pytest.raises(AttachError, match="not a handle"):
        Handle.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token", 3),
        ("nbytes", "4096"),
        ("pid", True),
        ("created", 1),
        ("label", None),
    ],
)
def test_fields_of_another_type_are_refused(handle, field, value):
    fields = json.loads(handle.to_json())
    fields[field] = value
    with pytest.raises(AttachError, match=field):
        Handle.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "unknown kind"),
        ({"label": "other", "store": "shm" * 2}, "unknown kind"),
        ({"store": "tape"}, "unknown kind"),
        ({"token": "../../etc/passwd"}, "not the name"),
        ({"name": "../etc/passwd"}, "not the name"),
        ({"name": "sharedmask-0000000000000000"}, "not the name"),
        ({"host": "elsewhere"}, "elsewhere"),
        ({"boot_id": "earlier"}, "restart"),
        ({"uid": 12345}, "user 12345"),
        ({"ino": 1}, "another segment"),
        ({"dev": 999_999}, "another segment"),
        ({"nbytes": 4096}, "another segment"),
    ],
)
def test_a_handle_of_something_else_is_refused(handle, changes, message):
    with pytest.raises(AttachError, match=message):
        attach(dataclasses.replace(handle, **changes))


def test_a_segment_that_is_gone_is_refused(handle, segment):
    segment.store.release()
    with pytest.raises(AttachError, match=r"run\.nii\.gz is gone"):
        attach(handle)


def test_a_reused_descriptor_is_refused(tmp_path):
    """The owner closed the image, and the number is another file's now, or another image's."""
    made = Segment(TOKEN, GEOMETRY, "memfd")
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
    made = Segment(TOKEN, GEOMETRY, "memfd")
    handle = made.share("run", {})
    read, write = os.pipe()
    os.dup2(read, made.store.fd)
    with pytest.raises(AttachError, match="is gone"):
        attach(handle)
    os.close(read)
    os.close(write)
    made.store.release()


def test_an_unsealed_memory_is_refused(monkeypatch):
    made = Segment(TOKEN, GEOMETRY, "memfd")
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


def test_an_unfinished_segment_is_refused(segment, monkeypatch):
    monkeypatch.setattr(memory, "is_sealed", lambda fd: True)
    with pytest.raises(AttachError, match="never finished"):
        attach(segment._handle("run"))


def test_a_damaged_header_is_refused(named):
    handle = named.share("run", {})
    os.chmod(path_of(named), 0o600)
    with open(path_of(named), "r+b") as file, mmap.mmap(file.fileno(), 0) as page:
        page[100] ^= 1
    with pytest.raises(AttachError, match="damaged"):
        attach(handle)


def _with_header(named, change):
    """The same segment with another, correctly digested header."""
    handle = named.share("run", {})
    path = path_of(named)
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        facts, size = container.parse_header(file.read())
        change(facts)
        file.seek(0)
        file.write(container.header(facts, size))
    return handle


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "|O"),
        ("dtype", "<M8[s]"),
        ("dtype", "<f4,<f4"),
        ("shape", [10**12, 10**12]),
        ("shape", [-3, -5]),
        ("shape", [2.5]),
        ("offset", 0),
        ("offset", 10**9),
    ],
)
def test_impossible_arrays_are_refused(named, field, value):
    handle = _with_header(named, lambda facts: facts["arrays"]["rows"].update({field: value}))
    with pytest.raises(AttachError, match="rows"):
        attach(handle)


@pytest.mark.parametrize(
    "change",
    [
        {"token": "f" * 32},
        {"nbytes": 1},
        {"arrays": []},
        {"arrays": {"rows": 3}},
        {"arrays": {"rows": {"shape": [1]}}},
        {"meta": 3},
    ],
)
def test_headers_that_say_something_else_are_refused(named, change):
    handle = _with_header(named, lambda facts: facts.update(change))
    with pytest.raises(AttachError):
        attach(handle)


def test_open_to_others_is_refused(named):
    handle = named.share("run", {})
    os.chmod(path_of(named), 0o444)
    with pytest.raises(AttachError, match="open to other users"):
        attach(handle)


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("shm", r"too small: 1 MiB are needed and \d+ MiB were free"),
        ("memfd", "memory is short: 1 MiB"),
    ],
)
def test_no_room_is_an_error_with_numbers_and_nothing_left(store, message):
    with failing("posix_fallocate", "ENOSPC"), pytest.raises(SegmentError, match=message):
        Segment(TOKEN, {"rows": ((2**18,), np.dtype("f4"))}, store)
    assert not os.path.exists(f"/dev/shm/{segments.segment_name(TOKEN)}")


def test_a_name_in_use_is_an_error(named):
    with pytest.raises(SegmentError):
        Segment(TOKEN, GEOMETRY, "shm")


@pytest.mark.parametrize("store", ["shm", "memfd"])
def test_facts_of_any_length_that_are_known_before(store):
    meta = {"long": "y" * 70_000}
    made = Segment(TOKEN, GEOMETRY, store, {"meta": meta})
    made.array("rows")[:] = 7
    found = attach(made.share("run", {"finite": True}))
    made.store.release()
    assert found.meta == {**meta, "finite": True}
    np.testing.assert_array_equal(found.arrays["rows"], np.full((3, 5), 7))


def test_too_many_facts_are_refused(segment):
    with pytest.raises(SegmentError, match="facts"):
        segment.share("x", {"long": "y" * 5000})


def test_remove_only_touches_our_names(tmp_path):
    assert not memory.remove("../etc/passwd")
    assert not memory.remove("sharedmask-xyz")
    assert not memory.remove("sharedmask-0000000000000000")


def test_an_unrelated_process_attaches_and_its_exit_harms_nothing(handle):
    script = f"""
        from sharedmask.storage.segment import Handle, attach
        found = attach(Handle.from_json({handle.to_json()!r}))
        print(int(found.arrays["rows"].sum()))
    """
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.stdout, done.stderr) == ("105\n", "")
    segments._attached.clear()
    assert attach(handle).arrays["rows"].sum() == 105


def test_start_time_tells_processes_apart():
    assert process.start_time(os.getpid()) > 0
    assert process.start_time(2**22 + 1) == 0
