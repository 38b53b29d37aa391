"""Segments: made, written, sealed, attached, refused."""

import dataclasses
import gc
import json
import mmap
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from owners import TOKEN, WITH_VOXELS

from sharedmask.errors import AttachError, SegmentError
from sharedmask.storage import container, memory
from sharedmask.storage import segment as segments
from sharedmask.storage.segment import Handle, Segment, attach
from sharedmask.system import platform, process


def path_of(segment):
    """Where the owner can tamper with its own segment; a sealed memfd cannot be."""
    return f"/dev/shm/{segment.store.name}"


def test_attached_arrays_are_the_written_ones(handle):
    found = attach(handle)
    np.testing.assert_array_equal(found.arrays["rows"], np.arange(15).reshape(3, 5))
    np.testing.assert_array_equal(found.arrays["voxels"], [2, 3, 7])
    assert found.arrays["rows"].dtype == np.int16
    assert found.meta == {"finite": True}


def test_arrays_start_at_multiples_of_64_bytes(handle):
    for array in attach(handle).arrays.values():
        assert array.ctypes.data % 64 == 0


@pytest.mark.shares
@pytest.mark.parametrize("store", ["shm", "memfd"])
@pytest.mark.parametrize("writable", [False, True])
def test_who_attaches_meets_large_pages_as_such(store, writable):
    size = platform.large_page()
    if not size:
        pytest.skip("this kernel has no large pages")
    segment = Segment(TOKEN, {"rows": ((17 * 2**20,), np.dtype("u1"))}, store)
    try:
        found = attach(segment.share("large", {}, writable=writable), writable=writable)
        rows = found.arrays["rows"]
        assert (rows.ctypes.data - segment._layout.header_bytes) % size == 0
        del found, rows
    finally:
        segment.store.release()


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


@pytest.mark.parametrize("store", ["shm", "memfd"])
def test_facts_of_any_length_that_are_known_before(store):
    meta = {"long": "y" * 70_000}
    made = Segment(TOKEN, WITH_VOXELS, store, {"meta": meta})
    made.array("rows")[:] = 7
    found = attach(made.share("run", {"finite": True}))
    made.store.release()
    assert found.meta == {**meta, "finite": True}
    np.testing.assert_array_equal(found.arrays["rows"], np.full((3, 5), 7))


def test_too_many_facts_are_refused(segment):
    with pytest.raises(SegmentError, match="facts"):
        segment.share("x", {"long": "y" * 5000})


@pytest.mark.some(1)
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


@pytest.mark.parametrize("store", ["shm", "memfd"])
@pytest.mark.parametrize("nbytes", [15, 17 * 2**20])
def test_who_filled_a_segment_reads_it_and_cannot_write_any_more(store, nbytes):
    """Not even by its address, where the map through which it was filled stays."""
    made = Segment(TOKEN, {"bytes": ((nbytes,), np.dtype("u1"))}, store)
    made.array("bytes")[:] = 7

    handle, found = made.share_here("run", {})

    array = found.arrays["bytes"]
    assert array.min() == array.max() == 7
    assert attach(handle) is found
    with pytest.raises(ValueError, match="cannot set WRITEABLE"):
        array.flags.writeable = True
    assert _protection(array.ctypes.data).startswith("r-")
    if store == "memfd":
        assert memory.is_sealed(made.store.fd)
    made.store.release()


def _protection(address):
    with open("/proc/self/maps") as file:
        lines = [line.split() for line in file]
    for span, protection, *_ in lines:
        begin, end = (int(part, 16) for part in span.split("-"))
        if begin <= address < end:
            return protection
    raise AssertionError(f"nothing is mapped at {address:x}")
